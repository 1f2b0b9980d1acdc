//! `SendTargets` discovery, and the node records that it creates and removes.

use std::path::PathBuf;

use super::argv::{Op, Options};
use super::console::{Console, Exit, Failure};
use super::host::Host;
use super::record::{self, Origin, Pattern, Place, Record, VERSION, exactly};
use super::session::Sessions;
use crate::store::{self, Durability};

/// A discovery portal.
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

/// Discovers the targets of a portal, prints them, updates the node records, and returns the records found.
pub(crate) fn discover(
    host: &Host,
    sessions: &Sessions<'_>,
    source: &Source,
    options: &Options,
    console: &mut Console<'_>,
) -> Result<Vec<Record>, Failure> {
    host.initiator_name()?;
    let keep = !options.ops.contains(&Op::NonPersistent);
    // Like the real tool, create the discovery record before the discovery.
    if keep {
        add(host, sessions, source)?;
    }
    let Some((at, targets)) = host.listening(&source.address, source.port)? else {
        // The real tool fails after five attempts to connect, with this code and not with that of a login.
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
            let place = Place {
                iqn: target.iqn.clone(),
                address: address.to_string(),
                port: portal.port(),
            };
            let mut record = Record::new(place, Some(1), source.origin());
            record.take_defaults(&host.defaults());
            found.push(record);
        }
    }
    if found.is_empty() {
        return Err(Failure::new(Exit::NoObjects, "No portals found"));
    }
    let requested = |op| options.ops.is_empty() || options.ops.contains(&op);
    if keep && requested(Op::Delete) {
        delete_stale(host, sessions, source, &found)?;
    }
    if keep && (requested(Op::New) || requested(Op::Update)) {
        for new in &mut found {
            // An existing record keeps its settings unless an update was requested.
            if requested(Op::Update) || list(host, &new.place)?.is_empty() {
                record::write(host, sessions.lock(), new)?;
            }
        }
    }
    for record in &found {
        console.print(super::print::node(record));
    }
    Ok(found)
}

/// Removes the records from earlier discoveries of this portal that were not found again, unless a session uses them.
fn delete_stale(
    host: &Host,
    sessions: &Sessions<'_>,
    source: &Source,
    found: &[Record],
) -> Result<(), Failure> {
    for old in record::list(host, &Pattern::default())? {
        let stale =
            old.origin == source.origin() && !found.iter().any(|new| new.place == old.place);
        if stale && sessions.find(&exactly(&old.place)).is_empty() {
            record::delete(host, &old)?;
        }
    }
    Ok(())
}

/// Creates a discovery record, if there is none.
pub(crate) fn add(host: &Host, sessions: &Sessions<'_>, source: &Source) -> Result<(), Failure> {
    let file = source.file(host);
    if !file.exists() {
        let created = std::fs::create_dir_all(source.folder(host)).and_then(|()| {
            sessions
                .lock()
                .write(&file, source.text().as_bytes(), Durability::Always)
        });
        created.map_err(|error| {
            Failure::new(Exit::Database, format!("{}: {error}", file.display()))
        })?;
    }
    Ok(())
}

/// The text of a discovery record.
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

/// Removes a discovery record and the node records that it created.
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

/// All discovery records: `10.0.0.5:3260 via sendtargets`.
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

fn list(host: &Host, place: &Place) -> Result<Vec<Record>, Failure> {
    record::list(host, &exactly(place))
}
