//! The host root: the directory with the simulated `/sys` and `/etc/iscsi` for the driver, and with node-sim's own state.
//!
//! ```text
//! bin/iscsiadm, bin/multipathd        this program under these names
//! etc/iscsi/initiatorname.iscsi       InitiatorName=iqn.…
//! etc/iscsi/nodes, send_targets, static   node records, see `record`
//! etc/iscsi/node-sim.json             the targets that this host can reach, and the timeout of the database lock
//! etc/iscsi/iscsid.conf               optional: default settings of new records
//! run/lock/iscsi/lock.write           see `database`
//! sys/class/…, sys/devices/…          see `tree`
//! var/node-sim/multipathd.json        state of multipathd; missing: not installed
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
/// Placeholder for the name in an OS image (Ubuntu's; open-iscsi's `startup-checks.sh`, Debian).
const GENERATE_NAME: &str = "GenerateName=yes";

/// A host root.
#[derive(Clone, Debug)]
pub struct Host {
    root: PathBuf,
}

/// `etc/iscsi/node-sim.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Config {
    /// Directories of targets: the network that this host can reach.
    targets: Vec<PathBuf>,
    /// Distinguishes this host's sessions from those of other hosts.
    id: String,
    /// How long `iscsiadm` waits for the lock of its database, in milliseconds.
    #[serde(default = "thirty_seconds")]
    lock_wait: u64,
    /// Whether it fails on a stale lock instead of ignoring it, as since 2.1.10.
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

    /// Path of the host root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Creates or updates the host root. An existing initiator name is kept unless `name` replaces it. `program` becomes
    /// `bin/iscsiadm`.
    ///
    /// # Errors
    /// A file or directory cannot be created.
    pub fn init(
        root: &Path,
        targets: &[PathBuf],
        name: Option<&str>,
        program: &Path,
    ) -> io::Result<Self> {
        let path_of = |path: &str| root.join(path);
        let mut private = fs::DirBuilder::new();
        private.recursive(true).mode(0o700);
        for folder in [
            "sys/class/iscsi_session",
            "sys/class/iscsi_connection",
            "sys/class/iscsi_host",
            "sys/class/block",
            "bin",
        ] {
            fs::create_dir_all(path_of(folder))?;
        }
        // Records may hold passwords.
        for folder in ["etc/iscsi/nodes", "var/node-sim/sessions"] {
            private.create(path_of(folder))?;
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
            (None, Err(_)) if host.is_unnamed() => format!("{GENERATE_NAME}\n"),
            (None, Err(_)) => format!("InitiatorName={NAME_PREFIX}{id}\n"),
        };
        let file = host.initiator_name_file();
        lock.write(&file, text.as_bytes(), Durability::Always)?;
        install(program, &host.root.join("bin"), "iscsiadm")?;
        Ok(host)
    }

    /// Serializes commands. The kernel releases the lock when its holder exits or is killed.
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

    /// Timeout of the database lock in milliseconds, and whether a stale lock is an error (see [`super::database`]).
    pub(crate) fn database_lock(&self) -> io::Result<(u64, bool)> {
        let config = self.config()?;
        Ok((config.lock_wait, config.stays_locked))
    }

    /// Sets how the database lock behaves: the timeout in milliseconds (open-iscsi's is 30,000), and whether a stale lock is an
    /// error, as since 2.1.10.
    ///
    /// # Errors
    /// There is no host root, or its file cannot be written.
    pub fn set_database_lock(&self, lock_wait: u64, stays_locked: bool) -> io::Result<()> {
        let config = Config {
            lock_wait,
            stays_locked,
            ..self.config()?
        };
        self.lock()?
            .write_json(&self.config_file(), &config, Durability::Always)
    }

    /// Sets the state of multipathd. `program` becomes `bin/multipathd`.
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

    /// The state of multipathd that was set last; absent if none was.
    ///
    /// # Errors
    /// The file that holds it cannot be read.
    pub fn multipathd(&self) -> io::Result<State> {
        Ok(store::read_json(&self.multipathd_file())?.unwrap_or(State::Absent))
    }

    fn multipathd_file(&self) -> PathBuf {
        self.state_dir().join("multipathd.json")
    }

    /// Replaces the initiator's name by the placeholder of an Ubuntu image: iscsid generates a name when it starts.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn remove_initiator_name(&self) -> io::Result<()> {
        let text = format!("{GENERATE_NAME}\n");
        self.lock()?.write(
            &self.initiator_name_file(),
            text.as_bytes(),
            Durability::Always,
        )
    }

    /// Simulates the start of iscsid (Debian's `startup-checks.sh`): generates the initiator's name if it is a placeholder.
    /// Returns false if there is a name, or no file at all.
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
        text.lines().any(|line| line.trim() == GENERATE_NAME)
    }

    /// The settings in `iscsid.conf`, in order; empty if the file is missing.
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

    /// The initiator name for logins.
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

    /// The id that distinguishes this host's sessions from those of other hosts.
    pub(crate) fn id(&self) -> io::Result<String> {
        Ok(self.config()?.id)
    }

    /// The directories of targets that this host can reach.
    pub(crate) fn networks(&self) -> io::Result<Vec<Targets>> {
        self.config()?
            .targets
            .iter()
            .map(|dir| Targets::open(dir))
            .collect()
    }

    /// All targets of a portal, and its address; `None` if nothing listens there. Of a name with several addresses the first one
    /// that answers is used.
    pub(crate) fn listening(
        &self,
        host: &str,
        port: u16,
    ) -> Result<Option<(SocketAddr, Vec<Target>)>, Failure> {
        let found = self.find_network(host, port, |network, address| {
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

    /// The network in which the portal listens: the same as in [`Host::listening`], but without reading the other targets if this
    /// target exists.
    pub(crate) fn network_of(
        &self,
        iqn: &str,
        host: &str,
        port: u16,
    ) -> Result<Option<(SocketAddr, Targets)>, Failure> {
        self.find_network(host, port, |network, address| {
            let listens = |target: &Target| listens_at(target, address);
            Ok(network.get(iqn)?.is_some_and(|it| listens(&it))
                || network.list()?.iter().any(listens))
        })
    }

    /// The first network that `listens` accepts for an address. All addresses of a name are tried in turn.
    fn find_network(
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

/// 0.0.0.0 and :: listen on every address.
fn listens(portal: SocketAddr, address: SocketAddr) -> bool {
    portal.port() == address.port() && (portal.ip() == address.ip() || portal.ip().is_unspecified())
}

/// Installs the program in `bin` under this name, as a hard link (so that the program sees its name) or else as a copy.
fn install(program: &Path, bin: &Path, name: &str) -> io::Result<()> {
    let (fresh, target) = (bin.join(format!(".{name}.new")), bin.join(name));
    store::remove(&fresh)?;
    if fs::hard_link(program, &fresh).is_err() {
        fs::copy(program, &fresh)?;
    }
    fs::rename(&fresh, &target)?;
    // rename(2) of a link over another link to the same file does nothing and leaves both.
    store::remove(&fresh)
}
