//! Parser of `iscsiadm`'s command line. It is stricter than the real one, to find mistakes of the caller.
//!
//! The options, their short forms and the modes that allow them are open-iscsi's. Stricter here: no abbreviated option names, no
//! extra arguments, no repeated options, only valid numbers. Options of the real tool that are not simulated are refused by name,
//! never silently ignored.

use std::collections::BTreeSet;
use std::fmt;

use super::console::Failure;

mod option_spec;

use option_spec::{OPTIONS, OptionSpec};

/// The mode of a command, `--mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// `SendTargets`, which creates records.
    Discovery,
    /// `SendTargets` with a persistent discovery record.
    DiscoveryDb,
    /// Node records, and logins with them.
    Node,
    /// Live sessions.
    Session,
    /// SCSI hosts.
    Host,
    /// Interface records.
    Iface,
}

/// `--op`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Op {
    /// Create a record.
    New,
    /// Delete records.
    Delete,
    /// Update records.
    Update,
    /// Print records.
    Show,
    /// Discover without storing records.
    NonPersistent,
}

/// `--portal host[:port][,tpgt]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Portal {
    /// Address or host name, without brackets.
    pub(crate) host: String,
    /// `None` if the command line has none.
    pub(crate) port: Option<u16>,
    /// Portal group tag.
    pub(crate) tpgt: Option<u16>,
}

/// A valid command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one flag of the command line"
)]
pub(crate) struct Options {
    pub(crate) mode: Option<Mode>,
    pub(crate) portal: Option<Portal>,
    pub(crate) target: Option<String>,
    pub(crate) iface: Option<String>,
    pub(crate) ops: BTreeSet<Op>,
    pub(crate) send_targets: bool,
    /// `--name` and `--value`, in pairs.
    pub(crate) params: Vec<(String, String)>,
    pub(crate) sid: Option<u32>,
    pub(crate) print: Option<u32>,
    pub(crate) rescan: bool,
    pub(crate) discover: bool,
    pub(crate) login: bool,
    pub(crate) logout: bool,
    /// `--show`: print passwords.
    pub(crate) show: bool,
    pub(crate) version: bool,
    pub(crate) help: bool,
}

impl Options {
    /// The operation, if there is one.
    pub(crate) fn op(&self) -> Result<Option<Op>, Failure> {
        if self.ops.len() > 1 {
            return Err(Failure::invalid("only discovery allows more than one --op"));
        }
        Ok(self.ops.first().copied())
    }
}

/// Parses a command line (without the program's own name).
pub(crate) fn parse(args: &[String]) -> Result<Options, Failure> {
    let given = split(args)?;
    let mut options = Options::default();
    let mut seen = BTreeSet::new();
    let (mut name, mut value) = (None, None);
    for (option, text) in &given {
        let repeatable = matches!(option, 'o' | 'n' | 'v');
        if !seen.insert(*option) && !repeatable {
            return Err(Failure::invalid(format!(
                "option '-{option}' is given twice"
            )));
        }
        match option {
            'n' if name.is_none() => name = Some(text.clone()),
            'v' if value.is_none() => value = Some(text.clone()),
            'n' | 'v' => return Err(Failure::invalid("--name and --value must come in pairs")),
            _ => set(&mut options, *option, text)?,
        }
        if name.is_some() && value.is_some() {
            options.params.extend(name.take().zip(value.take()));
        }
    }
    if name.is_some() || value.is_some() {
        return Err(Failure::invalid("--name and --value must come in pairs"));
    }
    check(&options, &given)?;
    Ok(options)
}

/// Splits arguments into options and values, in order: `--long value`, `--long=value`, `-o value`, `-ovalue`, `-lR`.
fn split(args: &[String]) -> Result<Vec<(char, String)>, Failure> {
    let mut given = Vec::new();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if let Some(long) = arg.strip_prefix("--") {
            let (word, inline) = long
                .split_once('=')
                .map_or((long, None), |(word, text)| (word, Some(text.to_owned())));
            let spec = find(
                |spec| spec.long == word,
                || format!("unrecognized option '--{word}'"),
            )?;
            let text = match (spec.value, inline) {
                (true, Some(text)) => text,
                (true, None) => next_value(&mut args, spec)?,
                (false, None) => String::new(),
                (false, Some(_)) => {
                    return Err(Failure::invalid(format!(
                        "option '--{word}' takes no value"
                    )));
                }
            };
            given.push((spec.short, text));
        } else if let Some(cluster) = arg.strip_prefix('-').filter(|cluster| !cluster.is_empty()) {
            for (at, short) in cluster.char_indices() {
                let spec = find(
                    |spec| spec.short == short,
                    || format!("unrecognized option '-{short}'"),
                )?;
                if !spec.value {
                    given.push((short, String::new()));
                    continue;
                }
                let rest = &cluster[at + short.len_utf8()..];
                let text = if rest.is_empty() {
                    next_value(&mut args, spec)?
                } else {
                    rest.to_owned()
                };
                given.push((short, text));
                break;
            }
        } else {
            return Err(Failure::invalid(format!("unexpected word '{arg}'")));
        }
    }
    Ok(given)
}

fn find(
    is: impl Fn(&OptionSpec) -> bool,
    unknown: impl Fn() -> String,
) -> Result<&'static OptionSpec, Failure> {
    let spec = OPTIONS
        .iter()
        .find(|spec| is(spec))
        .ok_or_else(|| Failure::invalid(unknown()))?;
    if spec.simulated {
        Ok(spec)
    } else {
        Err(Failure::invalid(format!(
            "'--{}' is not simulated by node-sim",
            spec.long
        )))
    }
}

fn next_value(
    args: &mut std::slice::Iter<'_, String>,
    spec: &OptionSpec,
) -> Result<String, Failure> {
    args.next()
        .cloned()
        .ok_or_else(|| Failure::invalid(format!("option '--{}' needs a value", spec.long)))
}

fn set(options: &mut Options, option: char, text: &str) -> Result<(), Failure> {
    match option {
        'm' => options.mode = Some(mode(text)?),
        'p' => options.portal = Some(portal(text)?),
        'T' if text.is_empty() => return Err(Failure::invalid("--targetname is empty")),
        'T' => options.target = Some(text.to_owned()),
        'I' => options.iface = Some(text.to_owned()),
        'o' => {
            options.ops.insert(op(text)?);
        }
        't' if text == "st" || text == "sendtargets" => options.send_targets = true,
        't' => {
            return Err(Failure::invalid(format!(
                "discovery type '{text}' is not simulated by node-sim"
            )));
        }
        'r' => options.sid = Some(number(text, "sid")?),
        'P' => options.print = Some(number(text, "print level")?),
        'd' => {
            number::<u8>(text, "debug level")?;
        }
        'R' => options.rescan = true,
        'D' => options.discover = true,
        'l' => options.login = true,
        'u' => options.logout = true,
        'S' => options.show = true,
        'V' => options.version = true,
        'h' => options.help = true,
        other => return Err(Failure::invalid(format!("unrecognized option '-{other}'"))),
    }
    Ok(())
}

fn mode(text: &str) -> Result<Mode, Failure> {
    Ok(match text {
        "discovery" => Mode::Discovery,
        "discoverydb" => Mode::DiscoveryDb,
        "node" => Mode::Node,
        "session" => Mode::Session,
        "host" => Mode::Host,
        "iface" => Mode::Iface,
        "fw" => return Err(Failure::invalid("mode 'fw' is not simulated by node-sim")),
        _ => return Err(Failure::invalid(format!("unknown mode '{text}'"))),
    })
}

fn op(text: &str) -> Result<Op, Failure> {
    Ok(match text {
        "new" => Op::New,
        "delete" => Op::Delete,
        "update" => Op::Update,
        "show" => Op::Show,
        "nonpersistent" => Op::NonPersistent,
        _ => {
            return Err(Failure::invalid(format!(
                "can not recognize operation: '{text}'"
            )));
        }
    })
}

fn number<T: std::str::FromStr>(text: &str, what: &str) -> Result<T, Failure> {
    text.parse()
        .map_err(|_| Failure::invalid(format!("invalid {what} '{text}'")))
}

/// `10.0.0.5`, `10.0.0.5:3260`, `10.0.0.5:3260,1`, `[fd00::5]:3260`, `fd00::5`, `nas.example:3260`.
pub(crate) fn portal(text: &str) -> Result<Portal, Failure> {
    let invalid = || Failure::invalid(format!("invalid portal '{text}'"));
    let (address, tpgt) = match text.split_once(',') {
        Some((address, tpgt)) => (address, Some(number(tpgt, "portal group tag")?)),
        None => (text, None),
    };
    let (host, port) = if let Some(rest) = address.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or_else(invalid)?;
        host.parse::<std::net::Ipv6Addr>().map_err(|_| invalid())?;
        match rest {
            "" => (host, None),
            _ => (host, Some(rest.strip_prefix(':').ok_or_else(invalid)?)),
        }
    } else {
        match address.split_once(':') {
            // More than one colon and no brackets: an IPv6 address without a port.
            Some((_, rest)) if rest.contains(':') => {
                address
                    .parse::<std::net::Ipv6Addr>()
                    .map_err(|_| invalid())?;
                (address, None)
            }
            Some((host, port)) => (host, Some(port)),
            None => (address, None),
        }
    };
    let port = port.map(|port| number(port, "port")).transpose()?;
    // The host becomes part of a file name.
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '-' | '_');
    if host.is_empty() || host.starts_with('.') || !host.chars().all(plain) || port == Some(0) {
        return Err(invalid());
    }
    Ok(Portal {
        host: host.to_owned(),
        port,
        tpgt,
    })
}

/// Checks that the mode allows all options, and that they do not exclude each other.
fn check(options: &Options, given: &[(char, String)]) -> Result<(), Failure> {
    if options.version || options.help {
        return Ok(());
    }
    let Some(mode) = options.mode else {
        return Err(Failure::invalid("no mode specified"));
    };
    let allowed = match mode {
        Mode::Discovery | Mode::DiscoveryDb => "mdDSIPntplov",
        Mode::Node => "mdRPIlSonvupT",
        Mode::Session => "mdPRruSonv",
        Mode::Host => "mdP",
        Mode::Iface => "mdIPo",
    };
    if let Some((option, _)) = given.iter().find(|(option, _)| !allowed.contains(*option)) {
        return Err(Failure::invalid(format!(
            "{mode} mode: option '-{option}' is not allowed/supported"
        )));
    }
    let actions = [options.login, options.logout, options.rescan]
        .into_iter()
        .filter(|action| *action)
        .count();
    if actions > 1 {
        return Err(Failure::invalid(
            "only one of --login, --logout and --rescan at a time",
        ));
    }
    let discovers = matches!(mode, Mode::Discovery | Mode::DiscoveryDb);
    if actions > 0 && !options.ops.is_empty() && !discovers {
        return Err(Failure::invalid(
            "--op does not go with --login, --logout or --rescan",
        ));
    }
    if !options.params.is_empty() && !options.ops.contains(&Op::Update) {
        return Err(Failure::invalid("--name and --value go with --op update"));
    }
    Ok(())
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Discovery => "discovery",
            Mode::DiscoveryDb => "discoverydb",
            Mode::Node => "node",
            Mode::Session => "session",
            Mode::Host => "host",
            Mode::Iface => "iface",
        })
    }
}

#[cfg(test)]
mod tests;
