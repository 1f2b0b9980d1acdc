//! Node records: the database of targets and their settings that a login works from.
//!
//! Laid out as open-iscsi does it, so that another reader of `/etc/iscsi` finds its way:
//! ```text
//! nodes/<iqn>/<address>,<port>,<tpgt>/default    a record
//! nodes/<iqn>/<address>,<port>                   a record whose portal group tag nobody knows (made by --op new)
//! static/<iqn>,<address>,<port>,<tpgt>,default                          -> the record's folder, if made by --op new
//! send_targets/<address>,<port>/<iqn>,<address>,<port>,<tpgt>,default   -> the same, if made by discovery
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

/// The one interface record there is.
pub(crate) const IFACE: &str = "default";

/// The version that records are stamped with and `--version` prints: the release whose behaviour this follows.
pub(crate) const VERSION: &str = "2.1.9";

/// How a record came to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// `--op new`.
    Static,
    /// `SendTargets` at this portal.
    SendTargets { address: String, port: u16 },
}

/// Where a target is: what a record is found by.
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
    /// `None` = not known, written as -1.
    pub(crate) tpgt: Option<u16>,
    pub(crate) origin: Origin,
    settings: BTreeMap<&'static str, String>,
}

/// Which places a command means; what is `None` does not matter.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pattern {
    pub(crate) iqn: Option<String>,
    pub(crate) address: Option<String>,
    pub(crate) port: Option<u16>,
    pub(crate) sid: Option<u32>,
}

impl Pattern {
    pub(crate) fn fits(&self, place: &Place) -> bool {
        self.iqn.as_ref().is_none_or(|iqn| *iqn == place.iqn)
            && self
                .address
                .as_ref()
                .is_none_or(|address| *address == place.address)
            && self.port.is_none_or(|port| port == place.port)
    }

    /// Nothing was asked for in particular.
    pub(crate) fn is_any(&self) -> bool {
        self.iqn.is_none() && self.address.is_none() && self.port.is_none() && self.sid.is_none()
    }
}

/// The pattern that only this place fits.
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

/// An address and a port, with brackets where there are colons.
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

    /// A setting's value, empty where it has none.
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

    /// Changes a setting.
    pub(crate) fn set(&mut self, name: &str, value: &str) -> Result<(), Failure> {
        // An old name that open-iscsi still takes.
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

    /// What `iscsid.conf` says takes the place of our defaults; what makes no sense there is left out, as with a warning.
    pub(crate) fn take_defaults(&mut self, defaults: &[(String, String)]) {
        for (name, value) in defaults {
            // Not `set`: nobody is told what a file has that is not about records.
            if let Ok(setting) = find(name)
                && setting.accept(value).is_ok()
            {
                self.settings.insert(setting.name, value.clone());
            }
        }
    }

    /// As `--op show` prints it; passwords are starred unless `secrets`.
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

/// The setting of this name, if a command may change it.
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

/// A record that has lost a part of its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Torn {
    /// The target's name, as the file has it.
    pub(crate) name: Option<String>,
    place: Place,
}

/// A record's file.
struct Filed {
    place: Place,
    tpgt: Option<u16>,
    path: PathBuf,
    text: String,
}

impl Filed {
    /// A last line without an end is left out.
    fn lines(&self) -> impl Iterator<Item = (&str, &str)> {
        let whole = self.text.rfind('\n').map_or("", |end| &self.text[..end]);
        let lines = whole.lines().filter(|line| !line.starts_with('#'));
        lines.filter_map(|line| line.split_once(" = "))
    }

    fn says(&self, name: &str) -> Option<&str> {
        let mut lines = self.lines();
        lines.find_map(|(key, value)| (key == name).then_some(value))
    }

    fn is_torn(&self) -> bool {
        self.says("node.conn[0].address").is_none()
    }
}

/// All records that fit, by target and portal. What is torn is none; settings that are not known are left out.
pub(crate) fn list(host: &Host, pattern: &Pattern) -> Result<Vec<Record>, Failure> {
    let mut filed = filed(host)?;
    filed.retain(|filed| pattern.fits(&filed.place) && !filed.is_torn());
    let mut records: Vec<Record> = filed
        .iter()
        .map(|filed| Record::parse(filed.place.clone(), filed.tpgt, &filed.lines().collect()))
        .collect();
    records.sort_by(|a, b| (&a.place, a.tpgt).cmp(&(&b.place, b.tpgt)));
    Ok(records)
}

/// The records that are torn.
pub(crate) fn torn(host: &Host) -> Result<Vec<Torn>, Failure> {
    let torn = filed(host)?.into_iter().filter(Filed::is_torn);
    Ok(torn
        .map(|filed| Torn {
            name: filed.says("node.name").map(str::to_owned),
            place: filed.place,
        })
        .collect())
}

/// Whatever is shown, all records are read for it, and one of another release keeps all from being shown (2.1.8).
pub(crate) fn must_be_readable(host: &Host) -> Result<(), Failure> {
    for filed in filed(host)? {
        let known = |name: &str| {
            name.starts_with("iface.") || SETTINGS.iter().any(|setting| setting.name == name)
        };
        if let Some((name, _)) = filed.lines().find(|(name, _)| !known(name)) {
            return Err(Failure::invalid(format!(
                "Unknown parameter name {name}: config file {} invalid.",
                filed.path.display()
            )));
        }
    }
    Ok(())
}

/// One that is torn behind its name can neither be deleted nor made anew.
pub(crate) fn must_not_be_torn(host: &Host, pattern: &Pattern) -> Result<(), Failure> {
    let named = |torn: &&Torn| torn.name.is_some() && pattern.fits(&torn.place);
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
fn filed(host: &Host) -> Result<Vec<Filed>, Failure> {
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
            // Between folder and file a record may be missing: it was never finished.
            if path.is_file() {
                let text = fs::read_to_string(&path).map_err(|wrong| database(&path, &wrong))?;
                all.push(Filed {
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

/// Writes a record as it is. One without a portal group tag takes over the tag of a record for the same portal.
pub(crate) fn write(host: &Host, lock: &Lock, record: &mut Record) -> Result<(), Failure> {
    let folder = nodes(host).join(safe(&record.place.iqn)?);
    let plain = folder.join(format!("{},{}", record.place.address, record.place.port));
    if record.tpgt.is_none() {
        record.tpgt = list(host, &exactly(&record.place))?
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
        None => saved(&plain).map_err(|wrong| database(&plain, &wrong)),
        Some(tpgt) => {
            let path = folder.join(format!(
                "{},{},{tpgt}",
                record.place.address, record.place.port
            ));
            saved(&path.join(IFACE)).map_err(|wrong| database(&path, &wrong))?;
            store::remove(&plain).map_err(|wrong| database(&plain, &wrong))?;
            let link = link(host, record, tpgt)?;
            linked(&path, &link).map_err(|wrong| database(&link, &wrong))
        }
    }
}

/// Removes a record and the folders it leaves empty.
pub(crate) fn delete(host: &Host, record: &Record) -> Result<(), Failure> {
    let folder = nodes(host).join(safe(&record.place.iqn)?);
    let plain = format!("{},{}", record.place.address, record.place.port);
    let gone = || -> std::io::Result<()> {
        match record.tpgt {
            None => store::remove(&folder.join(&plain))?,
            Some(tpgt) => store::remove_tree(&folder.join(format!("{plain},{tpgt}")))?,
        }
        // The folder may hold other portals of the target.
        let _ = fs::remove_dir(&folder);
        Ok(())
    };
    if let Some(tpgt) = record.tpgt {
        let link = link(host, record, tpgt)?;
        store::remove(&link).map_err(|wrong| database(&link, &wrong))?;
    }
    gone().map_err(|wrong| database(&folder, &wrong))
}

fn nodes(host: &Host) -> PathBuf {
    host.iscsi_dir().join("nodes")
}

fn link(host: &Host, record: &Record, tpgt: u16) -> Result<PathBuf, Failure> {
    let Place { iqn, address, port } = &record.place;
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

/// A target's name as the name of a folder. Real names are; anything else was never discovered and gets no record.
fn safe(iqn: &str) -> Result<&str, Failure> {
    if iqn.is_empty() || iqn.len() > 223 || iqn.starts_with('.') || iqn.contains(['/', '\0']) {
        return Err(Failure::invalid(format!(
            "'{iqn}' cannot be the name of a target"
        )));
    }
    Ok(iqn)
}

fn names(folder: &Path) -> Result<Vec<String>, Failure> {
    store::names(folder).map_err(|wrong| database(folder, &wrong))
}

fn database(path: &Path, wrong: &std::io::Error) -> Failure {
    Failure::new(Exit::Database, format!("{}: {wrong}", path.display()))
}

#[cfg(test)]
mod tests;
