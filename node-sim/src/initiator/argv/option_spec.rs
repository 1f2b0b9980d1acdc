//! Table of the options of open-iscsi's `iscsiadm`: their names, whether they take a value, and whether they are simulated.
//! Source: its manual page.

/// An option of the command line.
#[derive(Debug)]
pub(super) struct OptionSpec {
    pub(super) short: char,
    pub(super) long: &'static str,
    /// It takes a value.
    pub(super) value: bool,
    /// False: it is refused by name.
    pub(super) simulated: bool,
}

const fn option(short: char, long: &'static str, value: bool, simulated: bool) -> OptionSpec {
    OptionSpec {
        short,
        long,
        value,
        simulated,
    }
}

/// All options.
pub(super) const OPTIONS: &[OptionSpec] = &[
    option('m', "mode", true, true),
    option('p', "portal", true, true),
    option('T', "targetname", true, true),
    option('I', "interface", true, true),
    option('o', "op", true, true),
    option('t', "type", true, true),
    option('n', "name", true, true),
    option('v', "value", true, true),
    option('H', "host", true, false),
    option('r', "sid", true, true),
    option('R', "rescan", false, true),
    option('P', "print", true, true),
    option('D', "discover", false, true),
    option('l', "login", false, true),
    option('L', "loginall", true, false),
    option('u', "logout", false, true),
    option('U', "logoutall", true, false),
    option('s', "stats", false, false),
    option('k', "killiscsid", true, false),
    option('d', "debug", true, true),
    option('S', "show", false, true),
    option('V', "version", false, true),
    option('h', "help", false, true),
    option('C', "submode", true, false),
    option('a', "ip", true, false),
    option('b', "packetsize", true, false),
    option('c', "count", true, false),
    option('i', "interval", true, false),
    option('x', "index", true, false),
    option('A', "portal_type", true, false),
    option('W', "no_wait", false, false),
];
