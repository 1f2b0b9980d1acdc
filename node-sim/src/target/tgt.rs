//! Exports targets through tgt, an iSCSI target in user space: a private `tgtd`, controlled by `tgtadm`.
//!
//! ```text
//! <dir>/control-port     the daemon's control port, for `tgtadm -C <port> --op show --mode target`
//! <dir>/lock             serializes all operations
//! ```
//! The daemon survives a kill of its user, and is found again by the directory's name in its environment. It opens its portals
//! only after all targets are created, because an initiator that reconnects to a portal without its target gives up for good.
//! Like a NAS, it has no portals while it has no targets. A daemon that died is restarted with all targets by the next change.
//!
//! # What tgt cannot do
//! - All targets listen on all portals of the daemon, which are those of [`Tgt::open`].
//! - A CHAP name has one password for the whole daemon: a target with another password is refused.
//! - A target has no limit on its sessions: `max_sessions` is not enforced.
//! - It announces TPGS 0 (a NAS: 1, implicit ALUA), and the T10 designator of VPD page 0x83 is the SCSI ID without the vendor:
//!   both are hard-coded. The kernel's target ([`super::lio`]) has them right.
//! - A unit below 512 bytes would announce 2 TiB, so it is not exported.
//! - A new unit has tgt's own serial for a moment between two commands.
//! - Growth takes a unit offline for some ms; the initiator's commands wait.
//! - `tgtadm` takes passwords only on its command line, where every process on this machine can read them. They are only a
//!   simulator's.

mod argv;
mod daemon;
mod plan;
mod show;

use parking_lot::{Mutex, MutexGuard};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use self::daemon::Daemon;
use self::plan::Memory;
use super::{Session, Target, TargetBackend};
use crate::store::Lock;

/// The backend of a private tgtd.
#[derive(Debug)]
pub struct Tgt {
    dir: PathBuf,
    portals: Vec<SocketAddr>,
    /// Desired and assumed state of the daemon, which does not show all of its state.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    wanted: BTreeMap<String, Target>,
    memory: Memory,
}

impl Tgt {
    /// Opens the backend. Its daemon listens on these portals and is started by the first change. `dir`, for its state, is
    /// created if missing.
    ///
    /// # Errors
    /// There is no portal, or the directory cannot be created.
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
            state: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn lock(&self) -> io::Result<Lock> {
        Lock::take(&self.dir.join("lock"))
    }

    /// Starts the daemon if it is not running, with all targets.
    fn ensure_running<'a>(&self, lock: &'a Lock, state: &mut State) -> io::Result<Daemon<'a>> {
        let daemon = Daemon::of(&self.dir, lock)?;
        if !daemon.is_running()? {
            state.memory = Memory::default();
            daemon.start()?;
            for target in state.wanted.values() {
                apply(&daemon, &mut state.memory, target, &state.wanted)?;
            }
            self.listen(&daemon, state)?;
        }
        Ok(daemon)
    }

    /// Opens the portals if there are targets, and closes them if there are none.
    fn listen(&self, daemon: &Daemon<'_>, state: &State) -> io::Result<()> {
        let none = state.wanted.is_empty();
        daemon.listen(if none { &[] } else { &self.portals })
    }

    /// Checks that the portals can be opened, before there is a target.
    fn check_portals(&self) -> io::Result<()> {
        self.portals.iter().try_for_each(|portal| {
            let tried = TcpListener::bind(portal);
            tried
                .map(drop)
                .map_err(|why| daemon::cannot_listen(portal, &why.to_string()))
        })
    }
}

impl TargetBackend for Tgt {
    fn reconcile(&self, targets: &[Target]) -> io::Result<()> {
        let (lock, mut state) = (self.lock()?, self.state());
        let state = &mut *state;
        state.memory = Memory::default();
        state.wanted = targets
            .iter()
            .map(|target| (target.iqn.clone(), target.clone()))
            .collect();
        let daemon = Daemon::of(&self.dir, &lock)?;
        if daemon.is_running()? {
            // The daemon does not show passwords, so create the accounts again, with the portals closed.
            daemon.listen(&[])?;
            for step in plan::stale(
                &show::targets(&daemon.show("target")?)?,
                &show::accounts(&daemon.show("account")?),
                &state.wanted,
            ) {
                daemon.run(&step)?;
            }
        } else {
            daemon.start()?;
        }
        for target in targets {
            apply(&daemon, &mut state.memory, target, &state.wanted)?;
        }
        self.listen(&daemon, state)?;
        if targets.is_empty() {
            self.check_portals()?;
        }
        Ok(())
    }

    fn put(&self, target: &Target) -> io::Result<()> {
        let (lock, mut state) = (self.lock()?, self.state());
        let state = &mut *state;
        plan::check(target, &state.wanted)?;
        state.wanted.insert(target.iqn.clone(), target.clone());
        let daemon = self.ensure_running(&lock, state)?;
        apply(&daemon, &mut state.memory, target, &state.wanted)?;
        if state.wanted.len() == 1 {
            self.listen(&daemon, state)?;
        }
        Ok(())
    }

    fn remove(&self, iqn: &str) -> io::Result<()> {
        let (lock, mut state) = (self.lock()?, self.state());
        let state = &mut *state;
        state.wanted.remove(iqn);
        let daemon = self.ensure_running(&lock, state)?;
        let shown = show::targets(&daemon.show("target")?)?;
        let Some(shown) = shown.into_iter().find(|shown| shown.iqn == iqn) else {
            return self.listen(&daemon, state);
        };
        for step in plan::removal(&shown, &state.memory, &state.wanted) {
            daemon.run(&step)?;
            state.memory.learn(iqn, &step);
        }
        let left = show::targets(&daemon.show("target")?)?;
        if left.iter().any(|shown| shown.iqn == iqn) {
            return Err(io::Error::other(format!("tgtd still has {iqn}")));
        }
        if state.wanted.is_empty() {
            self.listen(&daemon, state)?;
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
        let shown = if daemon.is_running()? {
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
        let (lock, mut state) = (self.lock()?, self.state());
        *state = State::default();
        Daemon::of(&self.dir, &lock)?.stop()
    }
}

/// Creates or updates a target, and verifies the result.
fn apply(
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
        Some(step) => Err(io::Error::other(format!("tgtd did not accept {step:?}"))),
    }
}
