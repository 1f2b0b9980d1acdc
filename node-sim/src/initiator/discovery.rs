//! `SendTargets` discovery, and the discovery records and node records that it creates and deletes.

use std::path::PathBuf;

use super::argv::{Op, Options};
use super::console::{Console, Exit, Failure};
use super::host::Host;
use super::record::{self, NodeKey, Origin, Pattern, Record, VERSION, exactly};
use super::session::Sessions;
use crate::store::{self, Durability};

/// The portal of a discovery.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) address: String,
    pub(crate) port: u16,
}

impl Source {
    fn origin(&self) -> Origin {
        Origin::SendTargets {
            address: self.address.clone(),
            port: self.port,
        }
    }

    fn folder(&self, host: &Host) -> PathBuf {
        host.iscsi_dir()
            .join(format!("send_targets/{},{}", self.address, self.port))
    }

    fn file(&self, host: &Host) -> PathBuf {
        self.folder(host).join("st_config")
    }

    fn text(&self) -> String {
        format!(
            "# BEGIN RECORD {VERSION}\ndiscovery.startup = manual\ndiscovery.type = sendtargets\n\
             discovery.sendtargets.address = {}\ndiscovery.sendtargets.port = {}\n# END RECORD\n",
            self.address, self.port
        )
    }
}

/// Queries the portal for its targets, prints them, updates the node records, and returns those of the targets found.
pub(crate) fn discover(
    host: &Host,
    sessions: &Sessions<'_>,
    source: &Source,
    options: &Options,
    console: &mut Console<'_>,
) -> Result<Vec<Record>, Failure> {
    host.initiator_name()?;
    let keep = !options.ops.contains(&Op::NonPersistent);
    // Like the real tool, create the discovery record before connecting.
    if keep {
        add(host, sessions, source)?;
    }
    let Some((at, targets)) = host.listening(&source.address, source.port)? else {
        // The real tool tries to connect five times and then exits with this code, which is not that of a login.
        let text = format!(
            "Could not perform SendTargets discovery: {} does not listen",
            record::portal(&source.address, source.port)
        );
        return Err(Failure::new(Exit::PduTimeout, text));
    };
    let mut found = Vec::new();
    for target in targets.iter().filter(|target| target.enabled) {
        for portal in &target.portals {
            let address = if portal.ip().is_unspecified() {
                at.ip()
            } else {
                portal.ip()
            };
            let key = NodeKey {
                iqn: target.iqn.clone(),
                address: address.to_string(),
                port: portal.port(),
            };
            let mut record = Record::new(key, Some(1), source.origin());
            record.take_defaults(&host.defaults());
            found.push(record);
        }
    }
    if found.is_empty() {
        return Err(Failure::new(Exit::NoObjects, "No portals found"));
    }
    let requested = |op| options.ops.is_empty() || options.ops.contains(&op);
    if keep && requested(Op::Delete) {
        forget(host, sessions, source, &found)?;
    }
    if keep && (requested(Op::New) || requested(Op::Update)) {
        for new in &mut found {
            // An existing record keeps its settings unless an update was requested.
            if requested(Op::Update) || list(host, &new.key)?.is_empty() {
                record::write(host, sessions.lock(), new)?;
            }
        }
    }
    for record in &found {
        console.print(super::print::node(record));
    }
    Ok(found)
}

/// Deletes the records that this portal no longer lists, unless a session uses them.
fn forget(
    host: &Host,
    sessions: &Sessions<'_>,
    source: &Source,
    found: &[Record],
) -> Result<(), Failure> {
    for old in record::list(host, &Pattern::default())? {
        let stale = old.origin == source.origin() && !found.iter().any(|new| new.key == old.key);
        if stale && sessions.find(&exactly(&old.key)).is_empty() {
            record::delete(host, &old)?;
        }
    }
    Ok(())
}

/// Creates a discovery record if there is none.
pub(crate) fn add(host: &Host, sessions: &Sessions<'_>, source: &Source) -> Result<(), Failure> {
    let file = source.file(host);
    if !file.exists() {
        let made = std::fs::create_dir_all(source.folder(host)).and_then(|()| {
            sessions
                .lock()
                .write(&file, source.text().as_bytes(), Durability::Always)
        });
        made.map_err(|error| Failure::new(Exit::Database, format!("{}: {error}", file.display())))?;
    }
    Ok(())
}

/// A discovery record as it is printed.
pub(crate) fn show(host: &Host, source: &Source) -> Result<String, Failure> {
    let missing = || {
        Failure::new(
            Exit::Database,
            format!(
                "Discovery record [{},{}] not found.",
                source.address, source.port
            ),
        )
    };
    std::fs::read_to_string(source.file(host)).map_err(|_| missing())
}

/// Deletes a discovery record and the node records that it created.
pub(crate) fn delete(host: &Host, source: &Source) -> Result<(), Failure> {
    show(host, source)?;
    for old in record::list(host, &Pattern::default())?
        .iter()
        .filter(|old| old.origin == source.origin())
    {
        record::delete(host, old)?;
    }
    let folder = source.folder(host);
    store::remove_tree(&folder)
        .map_err(|error| Failure::new(Exit::Database, format!("{}: {error}", folder.display())))
}

/// All discovery records, as `10.0.0.5:3260 via sendtargets`.
pub(crate) fn sources(host: &Host) -> Result<Vec<String>, Failure> {
    let names = store::names(&host.iscsi_dir().join("send_targets"))?;
    let pairs = names.iter().filter_map(|name| name.split_once(','));
    Ok(pairs
        .filter_map(|(address, port)| {
            Some(format!(
                "{} via sendtargets",
                record::portal(address, port.parse().ok()?)
            ))
        })
        .collect())
}

fn list(host: &Host, key: &NodeKey) -> Result<Vec<Record>, Failure> {
    record::list(host, &exactly(key))
}
