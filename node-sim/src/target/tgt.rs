//! Target backend for tgt, an iSCSI target in user space: runs its own `tgtd`, configured with `tgtadm`.
//!
//! ```text
//! <dir>/control-port     the daemon's control port, for `tgtadm -C <port> --op show --mode target`
//! <dir>/lock             serializes all operations
//! ```
//! The daemon survives a killed caller, and is found again by the folder's name in its environment. It opens its portals only
//! after all targets are created, because an initiator that reconnects to a portal without its target gives up for good. Like a
//! NAS, it has no portal open while there is no target. The next change restarts a dead daemon with all targets.
//!
//! # What tgt cannot do
//! - All targets listen on all portals of the daemon, which are those of [`Tgt::open`].
//! - A CHAP name has one password for the whole daemon: a target with another password is refused.
//! - The number of a target's sessions is not limited: `max_sessions` is not enforced.
//! - It reports TPGS 0 (a NAS: 1, implicit ALUA), and the T10 designator of VPD page 0x83 is the SCSI ID without the vendor:
//!   both are hard-coded in its sources. The kernel's target ([`super::lio`]) has the correct values.
//! - A unit below 512 bytes has no block, and tgt would report 2 TiB for it: it is not exported.
//! - A new unit has tgt's default serial number until the next command sets it.
//! - Growth takes a unit offline for some ms; the initiator's commands wait.
//! - `tgtadm` accepts passwords only on its command line, where every user of the machine can read them. They are only
//!   a simulator's passwords.

mod argv;
mod daemon;
mod plan;
mod show;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use self::daemon::Daemon;
use self::plan::Memory;
use super::{Session, Target, TargetBackend};
use crate::store::Lock;

/// The targets of one `tgtd`.
#[derive(Debug)]
pub struct Tgt {
    dir: PathBuf,
    portals: Vec<SocketAddr>,
    /// The desired state, and what we remember of the daemon's state: it does not show all of it.
    desired: Mutex<Desired>,
}

#[derive(Debug, Default)]
struct Desired {
    targets: BTreeMap<String, Target>,
    memory: Memory,
}

impl Tgt {
    /// A daemon for these portals, which the first change starts. `dir` is for its state and is created if missing.
    ///
    /// # Errors
    /// There is no portal, or the folder cannot be created.
    pub fn open(dir: &Path, portals: Vec<SocketAddr>) -> io::Result<Self> {
        if portals.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "tgt needs at least one portal",
            ));
        }
        fs::create_dir_all(dir)?;
        Ok(Self {
            dir: fs::canonicalize(dir)?,
            portals,
            desired: Mutex::default(),
        })
    }

    fn desired(&self) -> MutexGuard<'_, Desired> {
        self.desired.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> io::Result<Lock> {
        Lock::take(&self.dir.join("lock"))
    }

    /// Starts the daemon with all targets, unless it is running.
    fn ensure_running<'a>(&self, lock: &'a Lock, desired: &mut Desired) -> io::Result<Daemon<'a>> {
        let daemon = Daemon::of(&self.dir, lock)?;
        if !daemon.is_alive()? {
            desired.memory = Memory::default();
            daemon.start()?;
            for target in desired.targets.values() {
                make(&daemon, &mut desired.memory, target, &desired.targets)?;
            }
            self.listen(&daemon, desired)?;
        }
        Ok(daemon)
    }

    /// Opens the portals if there is a target, otherwise closes them.
    fn listen(&self, daemon: &Daemon<'_>, desired: &Desired) -> io::Result<()> {
        let none = desired.targets.is_empty();
        daemon.listen(if none { &[] } else { &self.portals })
    }

    /// Checks that each portal is available, so that this fails early and not only with the first target.
    fn try_portals(&self) -> io::Result<()> {
        self.portals.iter().try_for_each(|portal| {
            let bound = TcpListener::bind(portal);
            bound
                .map(drop)
                .map_err(|why| daemon::cannot(portal, &why.to_string()))
        })
    }
}

impl TargetBackend for Tgt {
    fn align(&self, targets: &[Target]) -> io::Result<()> {
        let (lock, mut desired) = (self.lock()?, self.desired());
        let desired = &mut *desired;
        desired.memory = Memory::default();
        desired.targets = targets
            .iter()
            .map(|target| (target.iqn.clone(), target.clone()))
            .collect();
        let daemon = Daemon::of(&self.dir, &lock)?;
        if daemon.is_alive()? {
            // tgt does not show the passwords of accounts, so re-create them. The portals are closed meanwhile, so that no login
            // fails.
            daemon.listen(&[])?;
            for step in plan::leftovers(
                &show::targets(&daemon.show("target")?)?,
                &show::accounts(&daemon.show("account")?),
                &desired.targets,
            ) {
                daemon.run(&step)?;
            }
        } else {
            daemon.start()?;
        }
        for target in targets {
            make(&daemon, &mut desired.memory, target, &desired.targets)?;
        }
        self.listen(&daemon, desired)?;
        if targets.is_empty() {
            self.try_portals()?;
        }
        Ok(())
    }

    fn put(&self, target: &Target) -> io::Result<()> {
        let (lock, mut desired) = (self.lock()?, self.desired());
        let desired = &mut *desired;
        plan::check(target, &desired.targets)?;
        desired.targets.insert(target.iqn.clone(), target.clone());
        let daemon = self.ensure_running(&lock, desired)?;
        make(&daemon, &mut desired.memory, target, &desired.targets)?;
        if desired.targets.len() == 1 {
            self.listen(&daemon, desired)?;
        }
        Ok(())
    }

    fn remove(&self, iqn: &str) -> io::Result<()> {
        let (lock, mut desired) = (self.lock()?, self.desired());
        let desired = &mut *desired;
        desired.targets.remove(iqn);
        let daemon = self.ensure_running(&lock, desired)?;
        let shown = show::targets(&daemon.show("target")?)?;
        let Some(shown) = shown.into_iter().find(|shown| shown.iqn == iqn) else {
            return self.listen(&daemon, desired);
        };
        for step in plan::removal(&shown, &desired.memory, &desired.targets) {
            daemon.run(&step)?;
            desired.memory.learn(iqn, &step);
        }
        let left = show::targets(&daemon.show("target")?)?;
        if left.iter().any(|shown| shown.iqn == iqn) {
            return Err(io::Error::other(format!("tgtd still has {iqn}")));
        }
        if desired.targets.is_empty() {
            self.listen(&daemon, desired)?;
        }
        Ok(())
    }

    fn sessions(&self, iqn: &str) -> io::Result<Vec<Session>> {
        let mut all = self.sessions_of(&[iqn.to_owned()])?;
        Ok(all.pop().unwrap_or_default())
    }

    fn sessions_of(&self, iqns: &[String]) -> io::Result<Vec<Vec<Session>>> {
        let lock = self.lock()?;
        let daemon = Daemon::of(&self.dir, &lock)?;
        let shown = if daemon.is_alive()? {
            show::targets(&daemon.show("target")?)?
        } else {
            Vec::new()
        };
        let of = |iqn: &String| {
            let target = shown.iter().find(|shown| shown.iqn == *iqn);
            target.map(|target| target.sessions.clone())
        };
        Ok(iqns.iter().map(|iqn| of(iqn).unwrap_or_default()).collect())
    }

    fn close(&self) -> io::Result<()> {
        let (lock, mut desired) = (self.lock()?, self.desired());
        *desired = Desired::default();
        Daemon::of(&self.dir, &lock)?.stop()
    }
}

/// Creates or updates a target, and verifies the result.
fn make(
    daemon: &Daemon<'_>,
    memory: &mut Memory,
    target: &Target,
    targets: &BTreeMap<String, Target>,
) -> io::Result<()> {
    plan::check(target, targets)?;
    let sizes = plan::sizes(target)?;
    let shown = show::targets(&daemon.show("target")?)?;
    let steps = plan::target(target, &shown, memory, targets, &sizes);
    if steps.is_empty() {
        return Ok(());
    }
    for step in steps {
        daemon.run(&step)?;
        memory.learn(&target.iqn, &step);
    }
    let shown = show::targets(&daemon.show("target")?)?;
    match plan::target(target, &shown, memory, targets, &sizes).first() {
        None => Ok(()),
        Some(step) => Err(io::Error::other(format!("tgtd did not apply {step:?}"))),
    }
}
