//! The options of open-iscsi's `iscsiadm`: their names, whether they take a value, and whether they are simulated.
//! Source: its manual page.

/// An option.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) short: char,
    pub(super) long: &'static str,
    /// Whether it takes a value.
    pub(super) value: bool,
    /// If not, it is refused by name.
    pub(super) simulated: bool,
}

const fn known(short: char, long: &'static str, value: bool, simulated: bool) -> Known {
    Known {
        short,
        long,
        value,
        simulated,
    }
}

/// All options.
pub(super) const KNOWN: &[Known] = &[
    known('m', "mode", true, true),
    known('p', "portal", true, true),
    known('T', "targetname", true, true),
    known('I', "interface", true, true),
    known('o', "op", true, true),
    known('t', "type", true, true),
    known('n', "name", true, true),
    known('v', "value", true, true),
    known('H', "host", true, false),
    known('r', "sid", true, true),
    known('R', "rescan", false, true),
    known('P', "print", true, true),
    known('D', "discover", false, true),
    known('l', "login", false, true),
    known('L', "loginall", true, false),
    known('u', "logout", false, true),
    known('U', "logoutall", true, false),
    known('s', "stats", false, false),
    known('k', "killiscsid", true, false),
    known('d', "debug", true, true),
    known('S', "show", false, true),
    known('V', "version", false, true),
    known('h', "help", false, true),
    known('C', "submode", true, false),
    known('a', "ip", true, false),
    known('b', "packetsize", true, false),
    known('c', "count", true, false),
    known('i', "interval", true, false),
    known('x', "index", true, false),
    known('A', "portal_type", true, false),
    known('W', "no_wait", false, false),
];
