//! Exports targets through the kernel's iSCSI target (LIO), using only configfs.
//!
//! A unit's file becomes a loop device, which becomes an iblock backstore named after the unit's serial, which becomes a LUN of
//! each target that maps it. Targets accept any initiator (demo mode), with CHAP if configured.
//!
//! ```text
//! <configfs>/target/core/iblock_3260/<serial>         a backstore, linked to by …
//! <configfs>/target/iscsi/<iqn>/tpgt_1/lun/lun_<N>    … the LUNs
//! <dir>/notes.json       our targets and loop devices with their files, recorded before they are created
//! <dir>/lock             serializes all operations
//! ```
//! Everything else in configfs belongs to others and is left alone.
//!
//! # What stock LIO cannot do
//! - The NAA is always `6001405` and the first 25 hex digits of the serial, without hyphens.
//! - A target has no limit on its sessions: `max_sessions` is not enforced.
//! - Writing 0 to a portal group's `enable` drops its sessions, so a disabled target is one without portals. If no other target
//!   listens there, an initiator's connection is refused.
//! - Sessions in demo mode have no address. It is known only if all connections to the portals come from the same address; else
//!   it is reported as `0.0.0.0`.
//! - The unit serial page (VPD 0x80) ends with a NUL after the serial.

mod configfs;
mod plan;
mod session;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::configfs::{Op, Tree};
use self::plan::Portals;
use super::{LogicalUnit, Session, Target, TargetBackend};
use crate::loop_device::{self, Backing, Losetup};
use crate::store::{self, Durability, Lock};

/// Timeout of a configfs operation; tenths of a second are normal.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The backend of the kernel's target.
#[derive(Clone, Debug)]
pub struct Lio {
    dir: PathBuf,
    tree: Tree,
}

/// `notes.json`: everything that was created, or was about to be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Notes {
    targets: BTreeSet<String>,
    /// By serial.
    units: BTreeMap<String, Attached>,
}

/// The loop device of a unit. It is ours only while this file is attached to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Attached {
    device: String,
    backing: Backing,
}

impl Lio {
    /// Opens the backend. `dir`, for its state, is created if missing.
    ///
    /// # Errors
    /// The kernel has no iSCSI target, or the directory cannot be created.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let tree = Tree::at(Path::new("/sys/kernel/config/target"));
        tree.check()?;
        fs::create_dir_all(dir)?;
        Ok(Self {
            dir: std::path::absolute(dir)?,
            tree,
        })
    }

    /// Runs an operation under the lock, on a thread that is abandoned if the kernel hangs.
    fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Work<'_>) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let backend = self.clone();
        with_timeout(move || {
            let lock = Lock::take(&backend.dir.join("lock"))?;
            let notes = store::read_json(&backend.dir.join("notes.json"))?.unwrap_or_default();
            work(&mut Work {
                backend: &backend,
                lock: &lock,
                losetup: Losetup::new(&lock),
                notes,
            })
        })
    }
}

impl TargetBackend for Lio {
    fn reconcile(&self, targets: &[Target]) -> io::Result<()> {
        let targets = targets.to_vec();
        self.work(move |work| work.align(&targets))
    }

    fn put(&self, target: &Target) -> io::Result<()> {
        let target = target.clone();
        self.work(move |work| {
            work.make(&target, Portals::Open)?;
            work.sweep()
        })
    }

    fn remove(&self, iqn: &str) -> io::Result<()> {
        let iqn = iqn.to_owned();
        self.work(move |work| {
            work.remove(&iqn)?;
            work.sweep()
        })
    }

    fn sessions(&self, iqn: &str) -> io::Result<Vec<Session>> {
        let (tree, iqn) = (self.tree.clone(), iqn.to_owned());
        with_timeout(move || session::list(&tree, &iqn))
    }

    fn close(&self) -> io::Result<()> {
        self.work(|work| {
            work.align(&[])?;
            work.backend.tree.remove_parents();
            Ok(())
        })
    }
}

/// An operation on the tree, under the lock.
struct Work<'a> {
    backend: &'a Lio,
    lock: &'a Lock,
    losetup: Losetup<'a>,
    notes: Notes,
}

impl Work<'_> {
    fn align(&mut self, targets: &[Target]) -> io::Result<()> {
        let wanted = |iqn: &String| targets.iter().any(|target| target.iqn == *iqn);
        let stale: Vec<String> = self.notes.targets.iter().cloned().collect();
        for iqn in stale.iter().filter(|iqn| !wanted(iqn)) {
            self.remove(iqn)?;
        }
        for portals in [Portals::Keep, Portals::Open] {
            for target in targets {
                self.make(target, portals)?;
            }
        }
        self.sweep()
    }

    /// Creates or updates a target, and verifies the result.
    fn make(&mut self, target: &Target, portals: Portals) -> io::Result<()> {
        plan::check(target)?;
        let tree = &self.backend.tree;
        if !self.notes.targets.contains(&target.iqn) {
            if tree.target(&target.iqn)?.is_some() {
                return Err(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    format!("the kernel has a target {} that is not ours", target.iqn),
                ));
            }
            self.notes.targets.insert(target.iqn.clone());
            self.save()?;
        }
        for unit in target.luns.values() {
            self.attach(unit)?;
        }
        let tree = &self.backend.tree;
        let state = tree.target(&target.iqn)?;
        tree.apply(&plan::target(target, state.as_ref(), portals))?;
        let state = tree.target(&target.iqn)?;
        check_done(&plan::target(target, state.as_ref(), portals))
    }

    fn remove(&mut self, iqn: &str) -> io::Result<()> {
        if !self.notes.targets.contains(iqn) {
            return Ok(());
        }
        let tree = &self.backend.tree;
        if let Some(state) = tree.target(iqn)? {
            tree.apply(&plan::removal(iqn, &state))?;
        }
        self.notes.targets.remove(iqn);
        self.save()
    }

    /// Creates or updates the unit's loop device, its capacity and its backstore.
    fn attach(&mut self, unit: &LogicalUnit) -> io::Result<()> {
        let backing = Backing::of(&unit.file)?;
        let up_to_date = match self.notes.units.get(&unit.serial) {
            Some(attached) => {
                attached.backing.is_same(&backing)
                    && self.losetup.shows(&attached.device, &attached.backing)?
            }
            None => false,
        };
        if !up_to_date {
            self.detach(&unit.serial)?;
            let (notes, backend, lock) = (&mut self.notes, self.backend, self.lock);
            self.losetup.attach(&backing, None, |device| {
                let attached = Attached {
                    device: device.to_owned(),
                    backing: backing.clone(),
                };
                notes.units.insert(unit.serial.clone(), attached);
                save(backend, lock, notes)
            })?;
        }
        let device = self.notes.units[&unit.serial].device.clone();
        // The size of a loop device is in sectors.
        let capacity = super::capacity(unit)? / 512 * 512;
        if loop_device::size(&device) != Some(capacity) {
            self.losetup.grow(&device)?;
        }
        // An iblock backstore announces the write cache of its device.
        loop_device::set_write_cache(&device, unit.write_cache)?;
        let tree = &self.backend.tree;
        let state = tree.backstore(&unit.serial)?;
        if !plan::is_backstore(unit, &device, state.as_ref()) {
            tree.apply(&plan::backstore_removal(&unit.serial))?;
            tree.apply(&plan::backstore(unit, &device))?;
        }
        let state = tree.backstore(&unit.serial)?;
        if plan::is_backstore(unit, &device, state.as_ref()) {
            Ok(())
        } else {
            Err(io::Error::other(format!(
                "the kernel did not create a backstore of {device}: {state:?}"
            )))
        }
    }

    /// Removes the unit's backstore and loop device. Idempotent.
    fn detach(&mut self, serial: &str) -> io::Result<()> {
        let Some(attached) = self.notes.units.get(serial).cloned() else {
            return Ok(());
        };
        self.backend.tree.apply(&plan::backstore_removal(serial))?;
        if self.losetup.shows(&attached.device, &attached.backing)? {
            self.losetup.detach(&attached.device)?;
        }
        self.notes.units.remove(serial);
        self.save()
    }

    /// Removes the units that none of our targets maps.
    fn sweep(&mut self) -> io::Result<()> {
        let mut mapped = BTreeSet::new();
        for iqn in &self.notes.targets {
            if let Some(state) = self.backend.tree.target(iqn)? {
                mapped.extend(state.luns.into_values().flatten());
            }
        }
        let units: Vec<String> = self.notes.units.keys().cloned().collect();
        units
            .iter()
            .filter(|serial| !mapped.contains(*serial))
            .try_for_each(|serial| self.detach(serial))
    }

    fn save(&self) -> io::Result<()> {
        save(self.backend, self.lock, &self.notes)
    }
}

fn save(backend: &Lio, lock: &Lock, notes: &Notes) -> io::Result<()> {
    lock.write_json(&backend.dir.join("notes.json"), notes, Durability::Always)
}

/// Fails if any operation is left to do: the kernel has not accepted it.
fn check_done(rest: &[Op]) -> io::Result<()> {
    match rest.first() {
        None => Ok(()),
        Some(op) => Err(io::Error::other(format!(
            "the kernel did not accept {op:?}"
        ))),
    }
}

fn with_timeout<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || send.send(work()));
    receive.recv_timeout(TIMEOUT).unwrap_or_else(|_| {
        Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!(
                "the kernel's target did not respond within {} s",
                TIMEOUT.as_secs()
            ),
        ))
    })
}
