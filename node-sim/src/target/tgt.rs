//! Targets of tgt, an iSCSI target in user space: a `tgtd` of our own, told what to do by `tgtadm`.
//!
//! ```text
//! <dir>/control-port     the daemon's control port: `tgtadm -C <port> --op show --mode target` looks into it
//! <dir>/lock             orders all that is done
//! ```
//! The daemon outlives a user that is killed. It bears the folder's name in its environment, by which it is found again; it
//! opens its portals only after all targets are made, because an initiator that comes back to a portal without its target
//! gives up for good, and it has none while there is no target, as a NAS. A daemon that died is started again by the next change, with all targets.
//!
//! # What tgt cannot do
//! - All targets listen on all portals of the daemon, which are those of [`Tgt::open`].
//! - A CHAP name has one password for the whole daemon: a target that wants another is refused.
//! - A target has no limit on its sessions: `max_sessions` is not enforced.
//! - It says TPGS 0 (a NAS: 1, implicit ALUA), and the T10 designator of VPD page 0x83 is the SCSI ID without the vendor: both
//!   are written into its sources, and no parameter changes them. The kernel's target ([`super::lio`]) has them right.
//! - A unit below 512 bytes has no block, and it would say that it has 2 TiB: it is not exported.
//! - A new unit bears tgt's own serial for the moment between two commands.
//! - Growth takes a unit offline for some ms; the initiator's commands wait.
//! - `tgtadm` takes passwords on its command line only, where everybody on this machine can read them. They are a
//!   simulator's; a real NAS has its own ways.

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

/// A daemon of our own.
#[derive(Debug)]
pub struct Tgt {
    dir: PathBuf,
    portals: Vec<SocketAddr>,
    /// What the daemon shall do, to the best of our knowledge: it cannot be asked for all of it.
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    wanted: BTreeMap<String, Target>,
    memory: Memory,
}

impl Tgt {
    /// A daemon that listens on these portals; it is started by the first change. `dir` is for notes, and is made when
    /// missing.
    ///
    /// # Errors
    /// There is no portal, or the folder cannot be made.
    pub fn open(dir: &Path, portals: Vec<SocketAddr>) -> io::Result<Self> {
        if portals.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "tgt wants at least one portal",
            ));
        }
        fs::create_dir_all(dir)?;
        Ok(Self {
            dir: fs::canonicalize(dir)?,
            portals,
            known: Mutex::default(),
        })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> io::Result<Lock> {
        Lock::take(&self.dir.join("lock"))
    }

    /// Starts a daemon when there is none, and makes all that is wanted.
    fn revive<'a>(&self, lock: &'a Lock, known: &mut Known) -> io::Result<Daemon<'a>> {
        let daemon = Daemon::of(&self.dir, lock)?;
        if !daemon.lives()? {
            known.memory = Memory::default();
            daemon.start()?;
            for target in known.wanted.values() {
                make(&daemon, &mut known.memory, target, &known.wanted)?;
            }
            self.listen(&daemon, known)?;
        }
        Ok(daemon)
    }

    /// Opens the portals while there is a target, and closes them when there is none.
    fn listen(&self, daemon: &Daemon<'_>, known: &Known) -> io::Result<()> {
        let none = known.wanted.is_empty();
        daemon.listen(if none { &[] } else { &self.portals })
    }

    /// Tells now that a portal cannot be had, and not only when there is a target.
    fn try_portals(&self) -> io::Result<()> {
        self.portals.iter().try_for_each(|portal| {
            let tried = TcpListener::bind(portal);
            tried
                .map(drop)
                .map_err(|why| daemon::cannot(portal, &why.to_string()))
        })
    }
}

impl TargetBackend for Tgt {
    fn align(&self, targets: &[Target]) -> io::Result<()> {
        let (lock, mut known) = (self.lock()?, self.known());
        let known = &mut *known;
        known.memory = Memory::default();
        known.wanted = targets
            .iter()
            .map(|target| (target.iqn.clone(), target.clone()))
            .collect();
        let daemon = Daemon::of(&self.dir, &lock)?;
        if daemon.lives()? {
            // Accounts do not tell their passwords, so they are made anew; nobody logs in meanwhile.
            daemon.listen(&[])?;
            for step in plan::strays(
                &show::targets(&daemon.show("target")?)?,
                &show::accounts(&daemon.show("account")?),
                &known.wanted,
            ) {
                daemon.run(&step)?;
            }
        } else {
            daemon.start()?;
        }
        for target in targets {
            make(&daemon, &mut known.memory, target, &known.wanted)?;
        }
        self.listen(&daemon, known)?;
        if targets.is_empty() {
            self.try_portals()?;
        }
        Ok(())
    }

    fn put(&self, target: &Target) -> io::Result<()> {
        let (lock, mut known) = (self.lock()?, self.known());
        let known = &mut *known;
        plan::check(target, &known.wanted)?;
        known.wanted.insert(target.iqn.clone(), target.clone());
        let daemon = self.revive(&lock, known)?;
        make(&daemon, &mut known.memory, target, &known.wanted)?;
        if known.wanted.len() == 1 {
            self.listen(&daemon, known)?;
        }
        Ok(())
    }

    fn remove(&self, iqn: &str) -> io::Result<()> {
        let (lock, mut known) = (self.lock()?, self.known());
        let known = &mut *known;
        known.wanted.remove(iqn);
        let daemon = self.revive(&lock, known)?;
        let shown = show::targets(&daemon.show("target")?)?;
        let Some(shown) = shown.into_iter().find(|shown| shown.iqn == iqn) else {
            return self.listen(&daemon, known);
        };
        for step in plan::removal(&shown, &known.memory, &known.wanted) {
            daemon.run(&step)?;
            known.memory.learn(iqn, &step);
        }
        let left = show::targets(&daemon.show("target")?)?;
        if left.iter().any(|shown| shown.iqn == iqn) {
            return Err(io::Error::other(format!("tgtd still has {iqn}")));
        }
        if known.wanted.is_empty() {
            self.listen(&daemon, known)?;
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
        let shown = if daemon.lives()? {
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
        let (lock, mut known) = (self.lock()?, self.known());
        *known = Known::default();
        Daemon::of(&self.dir, &lock)?.end()
    }
}

/// Makes a target what it should be, and looks whether the daemon has it so.
fn make(
    daemon: &Daemon<'_>,
    memory: &mut Memory,
    target: &Target,
    wanted: &BTreeMap<String, Target>,
) -> io::Result<()> {
    plan::check(target, wanted)?;
    let sizes = plan::sizes(target)?;
    let shown = show::targets(&daemon.show("target")?)?;
    let steps = plan::target(target, &shown, memory, wanted, &sizes);
    if steps.is_empty() {
        return Ok(());
    }
    for step in steps {
        daemon.run(&step)?;
        memory.learn(&target.iqn, &step);
    }
    let shown = show::targets(&daemon.show("target")?)?;
    match plan::target(target, &shown, memory, wanted, &sizes).first() {
        None => Ok(()),
        Some(step) => Err(io::Error::other(format!("tgtd did not take {step:?}"))),
    }
}
