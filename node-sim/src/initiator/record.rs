//! Node records: the database of targets and their settings, which logins use.
//!
//! The layout is open-iscsi's, for other readers of `/etc/iscsi`:
//! ```text
//! nodes/<iqn>/<address>,<port>,<tpgt>/default    a record
//! nodes/<iqn>/<address>,<port>                   a record with an unknown portal group tag (created by --op new)
//! static/<iqn>,<address>,<port>,<tpgt>,default                          -> the record's folder, if created by --op new
//! send_targets/<address>,<port>/<iqn>,<address>,<port>,<tpgt>,default   -> the same, if created by discovery
//! ```

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::console::{Exit, Failure};
use super::host::Host;
use crate::store::{self, Durability, Lock};

mod setting;

use setting::{Kind, SETTINGS, Setting};

/// The only interface record.
pub(crate) const IFACE: &str = "default";

/// The version in records and in the output of `--version`: the release that is simulated.
pub(crate) const VERSION: &str = "2.1.9";

/// How a record was created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// `--op new`.
    Static,
    /// `SendTargets` at this portal.
    SendTargets { address: String, port: u16 },
}

/// Target and portal: the key of a record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NodeKey {
    pub(crate) iqn: String,
    pub(crate) address: String,
    pub(crate) port: u16,
}

/// One node record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) key: NodeKey,
    /// `None` = unknown, written as -1.
    pub(crate) tpgt: Option<u16>,
    pub(crate) origin: Origin,
    settings: BTreeMap<&'static str, String>,
}

/// A filter for records and sessions; `None` matches everything.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pattern {
    pub(crate) iqn: Option<String>,
    pub(crate) address: Option<String>,
    pub(crate) port: Option<u16>,
    pub(crate) sid: Option<u32>,
}

impl Pattern {
    pub(crate) fn matches(&self, key: &NodeKey) -> bool {
        self.iqn.as_ref().is_none_or(|iqn| *iqn == key.iqn)
            && self
                .address
                .as_ref()
                .is_none_or(|address| *address == key.address)
            && self.port.is_none_or(|port| port == key.port)
    }

    /// True if the filter matches everything.
    pub(crate) fn is_any(&self) -> bool {
        self.iqn.is_none() && self.address.is_none() && self.port.is_none() && self.sid.is_none()
    }
}

/// The pattern that matches only this key.
pub(crate) fn exactly(key: &NodeKey) -> Pattern {
    Pattern {
        iqn: Some(key.iqn.clone()),
        address: Some(key.address.clone()),
        port: Some(key.port),
        sid: None,
    }
}

impl NodeKey {
    /// `10.0.0.5:3260` or `[fd00::5]:3260`.
    pub(crate) fn portal(&self) -> String {
        portal(&self.address, self.port)
    }
}

/// An address and a port, with brackets if the address is IPv6.
pub(crate) fn portal(address: &str, port: u16) -> String {
    if address.contains(':') {
        format!("[{address}]:{port}")
    } else {
        format!("{address}:{port}")
    }
}

impl Record {
    /// A record with default settings.
    pub(crate) fn new(key: NodeKey, tpgt: Option<u16>, origin: Origin) -> Self {
        Self {
            key,
            tpgt,
            origin,
            settings: BTreeMap::new(),
        }
    }

    /// The value of a setting; empty if it has none.
    pub(crate) fn get(&self, name: &str) -> String {
        let Some(setting) = SETTINGS.iter().find(|setting| setting.name == name) else {
            return String::new();
        };
        match name {
            "node.name" => self.key.iqn.clone(),
            "node.tpgt" => self
                .tpgt
                .map_or_else(|| "-1".to_owned(), |tpgt| tpgt.to_string()),
            "node.conn[0].address" => self.key.address.clone(),
            "node.conn[0].port" => self.key.port.to_string(),
            "node.discovery_address" => match &self.origin {
                Origin::Static => String::new(),
                Origin::SendTargets { address, .. } => address.clone(),
            },
            "node.discovery_port" => match &self.origin {
                Origin::Static => "0".to_owned(),
                Origin::SendTargets { port, .. } => port.to_string(),
            },
            "node.discovery_type" => match &self.origin {
                Origin::Static => "static".to_owned(),
                Origin::SendTargets { .. } => "send_targets".to_owned(),
            },
            _ => self
                .settings
                .get(name)
                .cloned()
                .unwrap_or_else(|| setting.default.to_owned()),
        }
    }

    /// Changes a setting.
    pub(crate) fn set(&mut self, name: &str, value: &str) -> Result<(), Failure> {
        // An old name that open-iscsi still accepts.
        let name = if name == "node.transport_name" {
            "iface.transport_name"
        } else {
            name
        };
        if name.starts_with("iface.") && name != "iface.transport_name" {
            return Err(Failure::invalid(format!(
                "Cannot modify {name}. Use iface mode to update this value."
            )));
        }
        let setting = find(name)?;
        setting.accept(value)?;
        self.settings.insert(setting.name, value.to_owned());
        Ok(())
    }

    /// Overrides our defaults with those of `iscsid.conf`. Invalid lines are ignored (open-iscsi prints a warning).
    pub(crate) fn take_defaults(&mut self, defaults: &[(String, String)]) {
        for (name, value) in defaults {
            // Not `set`, because `iscsid.conf` also has settings that are not about records.
            if let Ok(setting) = find(name)
                && setting.accept(value).is_ok()
            {
                self.settings.insert(setting.name, value.clone());
            }
        }
    }

    /// The output of `--op show`; passwords are masked unless `secrets`.
    pub(crate) fn print(&self, secrets: bool) -> String {
        let mut text = format!("# BEGIN RECORD {VERSION}\n");
        for setting in SETTINGS {
            let value = match self.get(setting.name) {
                empty if empty.is_empty() => "<empty>".to_owned(),
                _ if setting.kind == Kind::Secret && !secrets => "********".to_owned(),
                value => value,
            };
            let _ = writeln!(text, "{} = {value}", setting.name);
        }
        text + "# END RECORD"
    }

    fn file_text(&self) -> String {
        let lines = SETTINGS
            .iter()
            .map(|setting| (setting.name, self.get(setting.name)));
        let lines = lines
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| format!("{name} = {value}\n"));
        format!(
            "# BEGIN RECORD {VERSION}\n{}# END RECORD\n",
            lines.collect::<String>()
        )
    }

    fn parse(key: NodeKey, tpgt: Option<u16>, read: &BTreeMap<&str, &str>) -> Self {
        let origin = match (
            read.get("node.discovery_address"),
            read.get("node.discovery_port"),
        ) {
            (Some(address), Some(port)) => Origin::SendTargets {
                address: (*address).to_owned(),
                port: port.parse().unwrap_or_default(),
            },
            _ => Origin::Static,
        };
        let mut record = Self::new(key, tpgt, origin);
        for setting in SETTINGS
            .iter()
            .filter(|setting| setting.kind != Kind::Fixed)
        {
            if let Some(value) = read.get(setting.name) {
                record.settings.insert(setting.name, (*value).to_owned());
            }
        }
        record
    }
}

/// The setting with this name, if a command may change it.
fn find(name: &str) -> Result<&'static Setting, Failure> {
    match SETTINGS.iter().find(|setting| setting.name == name) {
        Some(setting) if setting.kind == Kind::Fixed => Err(Failure::invalid(format!(
            "Cannot modify {name}: records are found by it."
        ))),
        Some(setting) => Ok(setting),
        None => Err(Failure::invalid(format!(
            "Cannot modify {name}. Invalid param name."
        ))),
    }
}

/// A record with a truncated file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Truncated {
    /// The target's name, if it is still in the file.
    pub(crate) name: Option<String>,
    key: NodeKey,
}

/// A record's file.
struct RecordFile {
    key: NodeKey,
    tpgt: Option<u16>,
    path: PathBuf,
    text: String,
}

impl RecordFile {
    /// The settings; a last line without a newline is ignored.
    fn lines(&self) -> impl Iterator<Item = (&str, &str)> {
        let whole = self.text.rfind('\n').map_or("", |end| &self.text[..end]);
        let lines = whole.lines().filter(|line| !line.starts_with('#'));
        lines.filter_map(|line| line.split_once(" = "))
    }

    fn value_of(&self, name: &str) -> Option<&str> {
        let mut lines = self.lines();
        lines.find_map(|(key, value)| (key == name).then_some(value))
    }

    fn is_truncated(&self) -> bool {
        self.value_of("node.conn[0].address").is_none()
    }
}

/// All matching records, by target and portal. Truncated records and unknown settings are ignored.
pub(crate) fn list(host: &Host, pattern: &Pattern) -> Result<Vec<Record>, Failure> {
    let mut record_files = record_files(host)?;
    record_files
        .retain(|record_files| pattern.matches(&record_files.key) && !record_files.is_truncated());
    let mut records: Vec<Record> = record_files
        .iter()
        .map(|record_files| {
            Record::parse(
                record_files.key.clone(),
                record_files.tpgt,
                &record_files.lines().collect(),
            )
        })
        .collect();
    records.sort_by(|a, b| (&a.key, a.tpgt).cmp(&(&b.key, b.tpgt)));
    Ok(records)
}

/// All truncated records.
pub(crate) fn truncated(host: &Host) -> Result<Vec<Truncated>, Failure> {
    let truncated = record_files(host)?
        .into_iter()
        .filter(RecordFile::is_truncated);
    Ok(truncated
        .map(|record_files| Truncated {
            name: record_files.value_of("node.name").map(str::to_owned),
            key: record_files.key,
        })
        .collect())
}

/// Fails if any record has an unknown setting: commands that show records read all of them, so a single record of another release
/// makes them fail (2.1.8).
pub(crate) fn must_be_readable(host: &Host) -> Result<(), Failure> {
    for record_files in record_files(host)? {
        let known = |name: &str| {
            name.starts_with("iface.") || SETTINGS.iter().any(|setting| setting.name == name)
        };
        if let Some((name, _)) = record_files.lines().find(|(name, _)| !known(name)) {
            return Err(Failure::invalid(format!(
                "Unknown parameter name {name}: config file {} invalid.",
                record_files.path.display()
            )));
        }
    }
    Ok(())
}

/// Fails if a matching record is truncated after its name: it can be neither deleted nor re-created.
pub(crate) fn must_not_be_truncated(host: &Host, pattern: &Pattern) -> Result<(), Failure> {
    let named =
        |truncated: &&Truncated| truncated.name.is_some() && pattern.matches(&truncated.key);
    match truncated(host)?.iter().find(named) {
        None => Ok(()),
        Some(truncated) => Err(Failure::new(
            Exit::Database,
            format!(
                "Could not stat {}/,3260,-1/{IFACE} to delete node: No such file or directory",
                nodes(host).join(&truncated.key.iqn).display()
            ),
        )),
    }
}

/// The files of all records.
fn record_files(host: &Host) -> Result<Vec<RecordFile>, Failure> {
    let nodes = nodes(host);
    let mut all = Vec::new();
    for iqn in names(&nodes)? {
        let folder = nodes.join(&iqn);
        if !folder.is_dir() {
            return Err(Failure::new(
                Exit::Error,
                format!("Got ENOTDIR error when scandir {}", folder.display()),
            ));
        }
        for name in names(&folder)? {
            let Some((key, tpgt)) = parse_key(&iqn, &name) else {
                continue;
            };
            let path = folder.join(&name);
            let path = if path.is_dir() {
                path.join(IFACE)
            } else {
                path
            };
            // The folder may exist without the file, if the record was never finished.
            if path.is_file() {
                let text = fs::read_to_string(&path).map_err(|error| database(&path, &error))?;
                all.push(RecordFile {
                    key,
                    tpgt,
                    path,
                    text,
                });
            }
        }
    }
    Ok(all)
}

/// Writes a record. If it has no portal group tag, it takes over the tag of an existing record for the same portal.
pub(crate) fn write(host: &Host, lock: &Lock, record: &mut Record) -> Result<(), Failure> {
    let folder = nodes(host).join(safe(&record.key.iqn)?);
    let plain = folder.join(format!("{},{}", record.key.address, record.key.port));
    if record.tpgt.is_none() {
        record.tpgt = list(host, &exactly(&record.key))?
            .iter()
            .find_map(|known| known.tpgt);
    }
    let text = record.file_text();
    let saved = |path: &Path| -> std::io::Result<()> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        lock.write(path, text.as_bytes(), Durability::Always)
    };
    match record.tpgt {
        None => saved(&plain).map_err(|error| database(&plain, &error)),
        Some(tpgt) => {
            let path = folder.join(format!("{},{},{tpgt}", record.key.address, record.key.port));
            saved(&path.join(IFACE)).map_err(|error| database(&path, &error))?;
            store::remove(&plain).map_err(|error| database(&plain, &error))?;
            let link = link(host, record, tpgt)?;
            linked(&path, &link).map_err(|error| database(&link, &error))
        }
    }
}

/// Deletes a record, and its folders if they are empty.
pub(crate) fn delete(host: &Host, record: &Record) -> Result<(), Failure> {
    let folder = nodes(host).join(safe(&record.key.iqn)?);
    let plain = format!("{},{}", record.key.address, record.key.port);
    let gone = || -> std::io::Result<()> {
        match record.tpgt {
            None => store::remove(&folder.join(&plain))?,
            Some(tpgt) => store::remove_tree(&folder.join(format!("{plain},{tpgt}")))?,
        }
        // This fails if the folder has records for other portals of the target.
        let _ = fs::remove_dir(&folder);
        Ok(())
    };
    if let Some(tpgt) = record.tpgt {
        let link = link(host, record, tpgt)?;
        store::remove(&link).map_err(|error| database(&link, &error))?;
    }
    gone().map_err(|error| database(&folder, &error))
}

fn nodes(host: &Host) -> PathBuf {
    host.iscsi_dir().join("nodes")
}

fn link(host: &Host, record: &Record, tpgt: u16) -> Result<PathBuf, Failure> {
    let NodeKey { iqn, address, port } = &record.key;
    let name = format!("{},{address},{port},{tpgt},{IFACE}", safe(iqn)?);
    Ok(match &record.origin {
        Origin::Static => host.iscsi_dir().join("static").join(name),
        Origin::SendTargets { address, port } => host
            .iscsi_dir()
            .join("send_targets")
            .join(format!("{address},{port}"))
            .join(name),
    })
}

fn linked(to: &Path, link: &Path) -> std::io::Result<()> {
    if let Some(parent) = link.parent() {
        fs::create_dir_all(parent)?;
    }
    store::remove(link)?;
    symlink(to, link)
}

/// Parses `10.0.0.5,3260,1` and `10.0.0.5,3260`.
fn parse_key(iqn: &str, name: &str) -> Option<(NodeKey, Option<u16>)> {
    let mut parts = name.split(',');
    let address = parts.next()?.to_owned();
    let port = parts.next()?.parse().ok()?;
    let tpgt = parts.next().map(str::parse).transpose().ok()?;
    Some((
        NodeKey {
            iqn: iqn.to_owned(),
            address,
            port,
        },
        tpgt,
    ))
}

/// A target's name as a folder name. Fails if the name is not valid as one; real names always are.
fn safe(iqn: &str) -> Result<&str, Failure> {
    if iqn.is_empty() || iqn.len() > 223 || iqn.starts_with('.') || iqn.contains(['/', '\0']) {
        return Err(Failure::invalid(format!(
            "'{iqn}' cannot be the name of a target"
        )));
    }
    Ok(iqn)
}

fn names(folder: &Path) -> Result<Vec<String>, Failure> {
    store::names(folder).map_err(|error| database(folder, &error))
}

fn database(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(Exit::Database, format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests;
