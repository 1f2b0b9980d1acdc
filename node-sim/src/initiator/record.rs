//! Node records: the database of targets and their login settings.
//!
//! It has the layout of open-iscsi, for other readers of `/etc/iscsi`:
//! ```text
//! nodes/<iqn>/<address>,<port>,<tpgt>/default    a record
//! nodes/<iqn>/<address>,<port>                   a record without a portal group tag (created by --op new)
//! static/<iqn>,<address>,<port>,<tpgt>,default                          -> the record's directory, if created by --op new
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

/// The open-iscsi release that is simulated: printed by `--version` and written into records.
pub(crate) const VERSION: &str = "2.1.9";

/// How a record was created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// `--op new`.
    Static,
    /// `SendTargets` at this portal.
    SendTargets { address: String, port: u16 },
}

/// A target at a portal: the key of a record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) iqn: String,
    pub(crate) address: String,
    pub(crate) port: u16,
}

/// One node record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) place: Place,
    /// Portal group tag; `None` = unknown, written as -1.
    pub(crate) tpgt: Option<u16>,
    pub(crate) origin: Origin,
    settings: BTreeMap<&'static str, String>,
}

/// Selects records and sessions; `None` matches anything.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pattern {
    pub(crate) iqn: Option<String>,
    pub(crate) address: Option<String>,
    pub(crate) port: Option<u16>,
    pub(crate) sid: Option<u32>,
}

impl Pattern {
    pub(crate) fn matches(&self, place: &Place) -> bool {
        self.iqn.as_ref().is_none_or(|iqn| *iqn == place.iqn)
            && self
                .address
                .as_ref()
                .is_none_or(|address| *address == place.address)
            && self.port.is_none_or(|port| port == place.port)
    }

    /// Whether it matches everything.
    pub(crate) fn is_any(&self) -> bool {
        self.iqn.is_none() && self.address.is_none() && self.port.is_none() && self.sid.is_none()
    }
}

/// The pattern that matches only this place.
pub(crate) fn exactly(place: &Place) -> Pattern {
    Pattern {
        iqn: Some(place.iqn.clone()),
        address: Some(place.address.clone()),
        port: Some(place.port),
        sid: None,
    }
}

impl Place {
    /// `10.0.0.5:3260` or `[fd00::5]:3260`.
    pub(crate) fn portal(&self) -> String {
        portal(&self.address, self.port)
    }
}

/// `address:port`, with brackets around an IPv6 address.
pub(crate) fn portal(address: &str, port: u16) -> String {
    if address.contains(':') {
        format!("[{address}]:{port}")
    } else {
        format!("{address}:{port}")
    }
}

impl Record {
    /// A record with default settings.
    pub(crate) fn new(place: Place, tpgt: Option<u16>, origin: Origin) -> Self {
        Self {
            place,
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
            "node.name" => self.place.iqn.clone(),
            "node.tpgt" => self
                .tpgt
                .map_or_else(|| "-1".to_owned(), |tpgt| tpgt.to_string()),
            "node.conn[0].address" => self.place.address.clone(),
            "node.conn[0].port" => self.place.port.to_string(),
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

    /// Validates and changes a setting.
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

    /// Applies the settings of `iscsid.conf`. Invalid ones are ignored, where open-iscsi warns.
    pub(crate) fn take_defaults(&mut self, defaults: &[(String, String)]) {
        for (name, value) in defaults {
            // Not `set`: the file also contains settings that are not for records.
            if let Ok(setting) = find(name)
                && setting.accept(value).is_ok()
            {
                self.settings.insert(setting.name, value.clone());
            }
        }
    }

    /// The output of `--op show`. Passwords are masked unless `secrets`.
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

    fn parse(place: Place, tpgt: Option<u16>, read: &BTreeMap<&str, &str>) -> Self {
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
        let mut record = Self::new(place, tpgt, origin);
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

/// A record whose file is truncated, as after a power cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Torn {
    /// The target's name in the file, if it is left.
    pub(crate) name: Option<String>,
    place: Place,
}

/// The file of a record.
struct RecordFile {
    place: Place,
    tpgt: Option<u16>,
    path: PathBuf,
    text: String,
}

impl RecordFile {
    /// Names and values. A last line without a line break is ignored.
    fn lines(&self) -> impl Iterator<Item = (&str, &str)> {
        let complete = self.text.rfind('\n').map_or("", |end| &self.text[..end]);
        let lines = complete.lines().filter(|line| !line.starts_with('#'));
        lines.filter_map(|line| line.split_once(" = "))
    }

    fn value_of(&self, name: &str) -> Option<&str> {
        let mut lines = self.lines();
        lines.find_map(|(key, value)| (key == name).then_some(value))
    }

    fn is_torn(&self) -> bool {
        self.value_of("node.conn[0].address").is_none()
    }
}

/// All records that match, sorted by target and portal. Truncated records and unknown settings are ignored.
pub(crate) fn list(host: &Host, pattern: &Pattern) -> Result<Vec<Record>, Failure> {
    let mut files = files(host)?;
    files.retain(|file| pattern.matches(&file.place) && !file.is_torn());
    let mut records: Vec<Record> = files
        .iter()
        .map(|file| Record::parse(file.place.clone(), file.tpgt, &file.lines().collect()))
        .collect();
    records.sort_by(|a, b| (&a.place, a.tpgt).cmp(&(&b.place, b.tpgt)));
    Ok(records)
}

/// The truncated records.
pub(crate) fn torn(host: &Host) -> Result<Vec<Torn>, Failure> {
    let torn = files(host)?.into_iter().filter(RecordFile::is_torn);
    Ok(torn
        .map(|file| Torn {
            name: file.value_of("node.name").map(str::to_owned),
            place: file.place,
        })
        .collect())
}

/// Checks that all records can be read: like 2.1.8, showing any record fails if one record of another release exists.
pub(crate) fn must_be_readable(host: &Host) -> Result<(), Failure> {
    for file in files(host)? {
        let known = |name: &str| {
            name.starts_with("iface.") || SETTINGS.iter().any(|setting| setting.name == name)
        };
        if let Some((name, _)) = file.lines().find(|(name, _)| !known(name)) {
            return Err(Failure::invalid(format!(
                "Unknown parameter name {name}: config file {} invalid.",
                file.path.display()
            )));
        }
    }
    Ok(())
}

/// Checks that no matching record is truncated after its name: it can be neither deleted nor created again.
pub(crate) fn must_not_be_torn(host: &Host, pattern: &Pattern) -> Result<(), Failure> {
    let named = |torn: &&Torn| torn.name.is_some() && pattern.matches(&torn.place);
    match torn(host)?.iter().find(named) {
        None => Ok(()),
        Some(torn) => Err(Failure::new(
            Exit::Database,
            format!(
                "Could not stat {}/,3260,-1/{IFACE} to delete node: No such file or directory",
                nodes(host).join(&torn.place.iqn).display()
            ),
        )),
    }
}

/// The files of all records.
fn files(host: &Host) -> Result<Vec<RecordFile>, Failure> {
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
            let Some((place, tpgt)) = place_of(&iqn, &name) else {
                continue;
            };
            let path = folder.join(&name);
            let path = if path.is_dir() {
                path.join(IFACE)
            } else {
                path
            };
            // A directory without a file is a record that was never completed.
            if path.is_file() {
                let text = fs::read_to_string(&path).map_err(|error| database(&path, &error))?;
                all.push(RecordFile {
                    place,
                    tpgt,
                    path,
                    text,
                });
            }
        }
    }
    Ok(all)
}

/// Writes a record. One without a portal group tag gets the tag of an existing record for the same portal.
pub(crate) fn write(host: &Host, lock: &Lock, record: &mut Record) -> Result<(), Failure> {
    let folder = nodes(host).join(checked_name(&record.place.iqn)?);
    let without_tag = folder.join(format!("{},{}", record.place.address, record.place.port));
    if record.tpgt.is_none() {
        record.tpgt = list(host, &exactly(&record.place))?
            .iter()
            .find_map(|known| known.tpgt);
    }
    let text = record.file_text();
    let save = |path: &Path| -> std::io::Result<()> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        lock.write(path, text.as_bytes(), Durability::Always)
    };
    match record.tpgt {
        None => save(&without_tag).map_err(|error| database(&without_tag, &error)),
        Some(tpgt) => {
            let path = folder.join(format!(
                "{},{},{tpgt}",
                record.place.address, record.place.port
            ));
            save(&path.join(IFACE)).map_err(|error| database(&path, &error))?;
            store::remove(&without_tag).map_err(|error| database(&without_tag, &error))?;
            let link = link(host, record, tpgt)?;
            make_link(&path, &link).map_err(|error| database(&link, &error))
        }
    }
}

/// Removes a record and the directories that become empty.
pub(crate) fn delete(host: &Host, record: &Record) -> Result<(), Failure> {
    let folder = nodes(host).join(checked_name(&record.place.iqn)?);
    let without_tag = format!("{},{}", record.place.address, record.place.port);
    let remove = || -> std::io::Result<()> {
        match record.tpgt {
            None => store::remove(&folder.join(&without_tag))?,
            Some(tpgt) => store::remove_tree(&folder.join(format!("{without_tag},{tpgt}")))?,
        }
        // The directory may contain other portals of the target.
        let _ = fs::remove_dir(&folder);
        Ok(())
    };
    if let Some(tpgt) = record.tpgt {
        let link = link(host, record, tpgt)?;
        store::remove(&link).map_err(|error| database(&link, &error))?;
    }
    remove().map_err(|error| database(&folder, &error))
}

fn nodes(host: &Host) -> PathBuf {
    host.iscsi_dir().join("nodes")
}

fn link(host: &Host, record: &Record, tpgt: u16) -> Result<PathBuf, Failure> {
    let Place { iqn, address, port } = &record.place;
    let name = format!("{},{address},{port},{tpgt},{IFACE}", checked_name(iqn)?);
    Ok(match &record.origin {
        Origin::Static => host.iscsi_dir().join("static").join(name),
        Origin::SendTargets { address, port } => host
            .iscsi_dir()
            .join("send_targets")
            .join(format!("{address},{port}"))
            .join(name),
    })
}

fn make_link(to: &Path, link: &Path) -> std::io::Result<()> {
    if let Some(parent) = link.parent() {
        fs::create_dir_all(parent)?;
    }
    store::remove(link)?;
    symlink(to, link)
}

/// `10.0.0.5,3260,1` and `10.0.0.5,3260`.
fn place_of(iqn: &str, name: &str) -> Option<(Place, Option<u16>)> {
    let mut parts = name.split(',');
    let address = parts.next()?.to_owned();
    let port = parts.next()?.parse().ok()?;
    let tpgt = parts.next().map(str::parse).transpose().ok()?;
    Some((
        Place {
            iqn: iqn.to_owned(),
            address,
            port,
        },
        tpgt,
    ))
}

/// A target's name as a directory name. Real names are valid; any other name is refused.
fn checked_name(iqn: &str) -> Result<&str, Failure> {
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
