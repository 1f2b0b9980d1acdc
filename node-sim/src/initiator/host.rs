//! The host root: the folder with the `/sys` and `/etc/iscsi` for a driver, and with the simulator's state.
//!
//! ```text
//! bin/iscsiadm, bin/multipathd        this program under those names
//! etc/iscsi/initiatorname.iscsi       InitiatorName=iqn.…
//! etc/iscsi/nodes, send_targets, static   node records, see `record`
//! etc/iscsi/node-sim.json             the targets that this host can reach, and the wait for the lock of the database
//! etc/iscsi/iscsid.conf               optional: defaults of new records
//! run/lock/iscsi/lock.write           see `database`
//! sys/class/…, sys/devices/…          see `tree`
//! var/node-sim/multipathd.json        the state of multipathd; without this file it is not installed
//! var/node-sim/lock                   serializes all commands
//! var/node-sim/sessions/<sid>.json    see `session`
//! ```

use std::fs;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::console::{Exit, Failure};
use super::multipathd::State;
use crate::store::{self, Durability, Lock};
use crate::target::Target;
use crate::target::loopdev::Targets;

/// Prefix of a generated initiator name; the host's id follows.
const NAME_PREFIX: &str = "iqn.1993-08.org.debian:01:";
/// The placeholder for the name in an OS image (Ubuntu's; open-iscsi's `startup-checks.sh`, Debian).
const GENERATE: &str = "GenerateName=yes";

/// A host root.
#[derive(Clone, Debug)]
pub struct Host {
    root: PathBuf,
}

/// `etc/iscsi/node-sim.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Config {
    /// Folders of targets: one per reachable NAS.
    targets: Vec<PathBuf>,
    /// A unique id, which distinguishes this host's sessions from those of other hosts.
    id: String,
    /// How long `iscsiadm` waits for the lock of its database, in milliseconds.
    #[serde(default = "thirty_seconds")]
    lock_wait: u64,
    /// It never removes a stale lock, as since 2.1.10.
    #[serde(default)]
    stays_locked: bool,
}

fn thirty_seconds() -> u64 {
    30_000
}

impl Host {
    /// The host root at `root`, which need not exist yet.
    pub fn at(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Creates or updates the host root. An existing initiator name is kept unless `name` is given. `program` is installed as
    /// `bin/iscsiadm`.
    ///
    /// # Errors
    /// A file or folder cannot be created.
    pub fn init(
        root: &Path,
        targets: &[PathBuf],
        name: Option<&str>,
        program: &Path,
    ) -> io::Result<Self> {
        let below = |path: &str| root.join(path);
        let mut private = fs::DirBuilder::new();
        private.recursive(true).mode(0o700);
        for folder in [
            "sys/class/iscsi_session",
            "sys/class/iscsi_connection",
            "sys/class/iscsi_host",
            "sys/class/block",
            "bin",
        ] {
            fs::create_dir_all(below(folder))?;
        }
        // Records may hold passwords.
        for folder in ["etc/iscsi/nodes", "var/node-sim/sessions"] {
            private.create(below(folder))?;
        }
        let host = Self {
            root: fs::canonicalize(root)?,
        };
        let lock = host.lock()?;

        let old = store::read_json::<Config>(&host.config_file())?;
        let (lock_wait, stays_locked) = old.as_ref().map_or((thirty_seconds(), false), |old| {
            (old.lock_wait, old.stays_locked)
        });
        let id = match old {
            Some(old) => old.id,
            None => fs::read_to_string("/proc/sys/kernel/random/uuid")?
                .chars()
                .filter(char::is_ascii_hexdigit)
                .take(12)
                .collect(),
        };
        let targets = targets
            .iter()
            .map(std::path::absolute)
            .collect::<io::Result<_>>()?;
        lock.write_json(
            &host.config_file(),
            &Config {
                targets,
                id: id.clone(),
                lock_wait,
                stays_locked,
            },
            Durability::Always,
        )?;

        let text = match (name, host.initiator_name()) {
            (Some(name), _) => format!("InitiatorName={name}\n"),
            (None, Ok(old)) => format!("InitiatorName={old}\n"),
            (None, Err(_)) if host.is_unnamed() => format!("{GENERATE}\n"),
            (None, Err(_)) => format!("InitiatorName={NAME_PREFIX}{id}\n"),
        };
        let file = host.initiator_name_file();
        lock.write(&file, text.as_bytes(), Durability::Always)?;
        install(program, &host.root.join("bin"), "iscsiadm")?;
        Ok(host)
    }

    /// Takes the lock that serializes all commands. The kernel releases it if its holder is killed.
    pub(crate) fn lock(&self) -> io::Result<Lock> {
        Lock::take(&self.state_dir().join("lock")).map_err(|error| {
            io::Error::new(
                error.kind(),
                format!(
                    "{} is not a host root made by node-sim init: {error}",
                    self.root.display()
                ),
            )
        })
    }

    /// How long to wait for the lock of the database, in milliseconds, and whether a stale lock stays.
    pub(crate) fn lock_wait(&self) -> io::Result<(u64, bool)> {
        let config = self.config()?;
        Ok((config.lock_wait, config.stays_locked))
    }

    /// Sets how long to wait for the lock of the database, in milliseconds (open-iscsi: 30,000), and whether a stale lock stays
    /// (since 2.1.10).
    ///
    /// # Errors
    /// There is no host root, or its file cannot be written.
    pub fn set_lock_wait(&self, lock_wait: u64, stays_locked: bool) -> io::Result<()> {
        let config = Config {
            lock_wait,
            stays_locked,
            ..self.config()?
        };
        self.lock()?
            .write_json(&self.config_file(), &config, Durability::Always)
    }

    /// Sets the state of multipathd. `program` is installed as `bin/multipathd`.
    ///
    /// # Errors
    /// There is no host root, or a file cannot be written.
    pub fn set_multipathd(&self, state: State, program: &Path) -> io::Result<()> {
        let file = self.multipathd_file();
        self.lock()?.write_json(&file, &state, Durability::Always)?;
        let bin = self.root.join("bin");
        if state == State::Absent {
            store::remove(&bin.join("multipathd"))
        } else {
            install(program, &bin, "multipathd")
        }
    }

    /// How multipathd is.
    pub(crate) fn multipathd(&self) -> io::Result<State> {
        Ok(store::read_json(&self.multipathd_file())?.unwrap_or(State::Absent))
    }

    fn multipathd_file(&self) -> PathBuf {
        self.state_dir().join("multipathd.json")
    }

    /// Replaces the initiator's name by a placeholder, as in Ubuntu's images: iscsid generates one when it starts.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn remove_initiator_name(&self) -> io::Result<()> {
        let text = format!("{GENERATE}\n");
        self.lock()?.write(
            &self.initiator_name_file(),
            text.as_bytes(),
            Durability::Always,
        )
    }

    /// The start of iscsid (Debian's `startup-checks.sh`): generates the initiator's name if there is a placeholder. False: there
    /// is none.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn start_iscsid(&self) -> io::Result<bool> {
        let lock = self.lock()?;
        if !self.is_unnamed() {
            return Ok(false);
        }
        let text = format!("InitiatorName={NAME_PREFIX}{}\n", self.id()?);
        lock.write(
            &self.initiator_name_file(),
            text.as_bytes(),
            Durability::Always,
        )?;
        Ok(true)
    }

    fn is_unnamed(&self) -> bool {
        let text = fs::read_to_string(self.initiator_name_file()).unwrap_or_default();
        text.lines().any(|line| line.trim() == GENERATE)
    }

    /// The settings in `iscsid.conf`, in order; empty if there is no such file.
    pub(crate) fn defaults(&self) -> Vec<(String, String)> {
        let text = fs::read_to_string(self.iscsi_dir().join("iscsid.conf")).unwrap_or_default();
        let lines = text.lines().map(str::trim);
        let pairs = lines
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split_once('='));
        pairs
            .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
            .collect()
    }

    /// `etc/iscsi`.
    pub(crate) fn iscsi_dir(&self) -> PathBuf {
        self.root.join("etc/iscsi")
    }

    /// `sys`.
    pub(crate) fn sys_dir(&self) -> PathBuf {
        self.root.join("sys")
    }

    /// `var/node-sim`.
    pub(crate) fn state_dir(&self) -> PathBuf {
        self.root.join("var/node-sim")
    }

    /// The name with which this initiator logs in.
    pub(crate) fn initiator_name(&self) -> Result<String, Failure> {
        let file = self.initiator_name_file();
        let text = fs::read_to_string(&file).unwrap_or_default();
        let name = text
            .lines()
            .find_map(|line| line.trim().strip_prefix("InitiatorName="));
        match name.map(str::trim).filter(|name| !name.is_empty()) {
            Some(name) => Ok(name.to_owned()),
            None => Err(Failure::invalid(format!(
                "no InitiatorName in {}",
                file.display()
            ))),
        }
    }

    /// The unique id of this host.
    pub(crate) fn id(&self) -> io::Result<String> {
        Ok(self.config()?.id)
    }

    /// The folders of targets that this host can reach, one per NAS.
    pub(crate) fn networks(&self) -> io::Result<Vec<Targets>> {
        self.config()?
            .targets
            .iter()
            .map(|dir| Targets::open(dir))
            .collect()
    }

    /// All targets that listen on a portal, as one machine with that address has them; `None` if there are none. If a host name
    /// has several addresses, the first one that answers is used.
    pub(crate) fn listening(
        &self,
        host: &str,
        port: u16,
    ) -> Result<Option<(SocketAddr, Vec<Target>)>, Failure> {
        let found = self.look_for(host, port, |network, address| {
            let all = network.list()?;
            Ok(all.iter().any(|target| listens_at(target, address)))
        })?;
        let Some((address, network)) = found else {
            return Ok(None);
        };
        let mut targets = network.list()?;
        targets.retain(|target| listens_at(target, address));
        Ok(Some((address, targets)))
    }

    /// The NAS on which a target listens at an address: the same as that of [`Host::listening`], but an existing target is found
    /// without reading all others.
    pub(crate) fn network_of(
        &self,
        iqn: &str,
        host: &str,
        port: u16,
    ) -> Result<Option<(SocketAddr, Targets)>, Failure> {
        self.look_for(host, port, |network, address| {
            let listens = |target: &Target| listens_at(target, address);
            Ok(network.get(iqn)?.is_some_and(|it| listens(&it))
                || network.list()?.iter().any(listens))
        })
    }

    /// The first NAS that listens on the address. If a host name has several addresses, each is tried in turn.
    fn look_for(
        &self,
        host: &str,
        port: u16,
        listens: impl Fn(&Targets, SocketAddr) -> io::Result<bool>,
    ) -> Result<Option<(SocketAddr, Targets)>, Failure> {
        let addresses = (host, port).to_socket_addrs().map_err(|error| {
            Failure::new(
                Exit::ConnectTimeout,
                format!("cannot resolve '{host}': {error}"),
            )
        })?;
        let networks = self.networks()?;
        for address in addresses {
            for network in &networks {
                if listens(network, address)? {
                    return Ok(Some((address, network.clone())));
                }
            }
        }
        Ok(None)
    }

    fn initiator_name_file(&self) -> PathBuf {
        self.iscsi_dir().join("initiatorname.iscsi")
    }

    fn config_file(&self) -> PathBuf {
        self.iscsi_dir().join("node-sim.json")
    }

    fn config(&self) -> io::Result<Config> {
        store::read_json(&self.config_file())?.ok_or_else(|| {
            let text = format!(
                "{} is missing: run node-sim init first",
                self.config_file().display()
            );
            io::Error::new(io::ErrorKind::NotFound, text)
        })
    }
}

fn listens_at(target: &Target, address: SocketAddr) -> bool {
    let mut portals = target.portals.iter();
    portals.any(|portal| listens(*portal, address))
}

/// True if the portal listens on the address; 0.0.0.0 and :: match every address.
fn listens(portal: SocketAddr, address: SocketAddr) -> bool {
    portal.port() == address.port() && (portal.ip() == address.ip() || portal.ip().is_unspecified())
}

/// Installs the program in `bin` under this name: as a hard link, so that the running program sees that name as its own, or as a
/// copy.
fn install(program: &Path, bin: &Path, name: &str) -> io::Result<()> {
    let (temp, path) = (bin.join(format!(".{name}.new")), bin.join(name));
    store::remove(&temp)?;
    if fs::hard_link(program, &temp).is_err() {
        fs::copy(program, &temp)?;
    }
    fs::rename(&temp, &path)?;
    // rename() onto another hard link of the same file does nothing and keeps both.
    store::remove(&temp)
}
