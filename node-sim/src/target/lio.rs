//! Target backend for the kernel's iSCSI target (LIO), configured through configfs only.
//!
//! A unit's file is attached to a loop device, which becomes an iblock backstore named by the unit's serial number, which becomes
//! a LUN of each target that maps it. Targets admit any initiator (demo mode), with CHAP if it is required.
//!
//! ```text
//! <configfs>/target/core/iblock_3260/<serial>         a backstore, linked to by …
//! <configfs>/target/iscsi/<iqn>/tpgt_1/lun/lun_<N>    … the LUNs
//! <dir>/notes.json       targets, loop devices and their files, written before they are created
//! <dir>/lock             serializes all operations
//! ```
//! Objects in configfs that are not in the notes are foreign and left alone.
//!
//! # What stock LIO cannot do
//! - The NAA is always `6001405` and the first 25 hex digits of the serial number, without hyphens.
//! - The number of a target's sessions is not limited: `max_sessions` is not enforced.
//! - Writing 0 to a portal group's `enable` drops its sessions, so a disabled target is one without portals. If no other
//!   target listens there, an initiator's connection is refused.
//! - Sessions in demo mode do not show an address. It is known only if all connections to the portals come from a single
//!   address; otherwise it is reported as `0.0.0.0`.
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

/// Deadline of one operation in the kernel; tenths of a second are normal.
const DEADLINE: Duration = Duration::from_secs(30);

/// Our targets in the kernel's iSCSI target.
#[derive(Clone, Debug)]
pub struct Lio {
    dir: PathBuf,
    tree: Tree,
}

/// The objects that we have created, or were about to create.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Notes {
    targets: BTreeSet<String>,
    /// By serial number.
    units: BTreeMap<String, Attached>,
}

/// A unit's loop device. It is ours only as long as it is attached to the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Attached {
    device: String,
    backing: Backing,
}

impl Lio {
    /// Opens the kernel's iSCSI target; `dir` is for the notes and is created if missing.
    ///
    /// # Errors
    /// The kernel's target is not available, or the folder cannot be created.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let tree = Tree::at(Path::new("/sys/kernel/config/target"));
        tree.check()?;
        fs::create_dir_all(dir)?;
        Ok(Self {
            dir: std::path::absolute(dir)?,
            tree,
        })
    }

    /// Runs `work` under the lock, on a thread that is abandoned if the kernel does not return in time.
    fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Work<'_>) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let lio = self.clone();
        bounded(move || {
            let lock = Lock::take(&lio.dir.join("lock"))?;
            let notes = store::read_json(&lio.dir.join("notes.json"))?.unwrap_or_default();
            work(&mut Work {
                lio: &lio,
                lock: &lock,
                losetup: Losetup::new(&lock),
                notes,
            })
        })
    }
}

impl TargetBackend for Lio {
    fn align(&self, targets: &[Target]) -> io::Result<()> {
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
        bounded(move || session::list(&tree, &iqn))
    }

    fn close(&self) -> io::Result<()> {
        self.work(|work| {
            work.align(&[])?;
            work.lio.tree.remove_parents();
            Ok(())
        })
    }
}

/// The state of an operation that holds the lock.
struct Work<'a> {
    lio: &'a Lio,
    lock: &'a Lock,
    losetup: Losetup<'a>,
    notes: Notes,
}

impl Work<'_> {
    fn align(&mut self, targets: &[Target]) -> io::Result<()> {
        let wanted = |iqn: &String| targets.iter().any(|target| target.iqn == *iqn);
        let existing: Vec<String> = self.notes.targets.iter().cloned().collect();
        for iqn in existing.iter().filter(|iqn| !wanted(iqn)) {
            self.remove(iqn)?;
        }
        for portals in [Portals::Keep, Portals::Open] {
            for target in targets {
                self.make(target, portals)?;
            }
        }
        self.sweep()
    }

    /// Creates or updates a target, and verifies the result in configfs.
    fn make(&mut self, target: &Target, portals: Portals) -> io::Result<()> {
        plan::check(target)?;
        let tree = &self.lio.tree;
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
        let tree = &self.lio.tree;
        let state = tree.target(&target.iqn)?;
        tree.apply(&plan::target(target, state.as_ref(), portals))?;
        let state = tree.target(&target.iqn)?;
        ensure_done(&plan::target(target, state.as_ref(), portals))
    }

    fn remove(&mut self, iqn: &str) -> io::Result<()> {
        if !self.notes.targets.contains(iqn) {
            return Ok(());
        }
        let tree = &self.lio.tree;
        if let Some(state) = tree.target(iqn)? {
            tree.apply(&plan::removal(iqn, &state))?;
        }
        self.notes.targets.remove(iqn);
        self.save()
    }

    /// Creates or updates the unit's loop device and backstore, starting with its capacity.
    fn attach(&mut self, unit: &LogicalUnit) -> io::Result<()> {
        let backing = Backing::of(&unit.file)?;
        let is_current = match self.notes.units.get(&unit.serial) {
            Some(attached) => {
                attached.backing.is_same(&backing)
                    && self
                        .losetup
                        .is_attached_to(&attached.device, &attached.backing)?
            }
            None => false,
        };
        if !is_current {
            self.detach(&unit.serial)?;
            let (notes, lio, lock) = (&mut self.notes, self.lio, self.lock);
            self.losetup.attach(&backing, None, |device| {
                let attached = Attached {
                    device: device.to_owned(),
                    backing: backing.clone(),
                };
                notes.units.insert(unit.serial.clone(), attached);
                save(lio, lock, notes)
            })?;
        }
        let device = self.notes.units[&unit.serial].device.clone();
        // A loop device has whole sectors.
        let capacity = super::capacity(unit)? / 512 * 512;
        if loop_device::size(&device) != Some(capacity) {
            self.losetup.grow(&device)?;
        }
        // An iblock backstore announces its device's write cache.
        loop_device::set_write_cache(&device, unit.write_cache)?;
        let tree = &self.lio.tree;
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
                "the kernel did not make a backstore of {device}: {state:?}"
            )))
        }
    }

    /// Removes the unit's backstore and loop device, if they exist.
    fn detach(&mut self, serial: &str) -> io::Result<()> {
        let Some(noted) = self.notes.units.get(serial).cloned() else {
            return Ok(());
        };
        self.lio.tree.apply(&plan::backstore_removal(serial))?;
        if self.losetup.is_attached_to(&noted.device, &noted.backing)? {
            self.losetup.detach(&noted.device)?;
        }
        self.notes.units.remove(serial);
        self.save()
    }

    /// Removes the units that are no longer mapped by any of our targets.
    fn sweep(&mut self) -> io::Result<()> {
        let mut mapped = BTreeSet::new();
        for iqn in &self.notes.targets {
            if let Some(state) = self.lio.tree.target(iqn)? {
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
        save(self.lio, self.lock, &self.notes)
    }
}

fn save(lio: &Lio, lock: &Lock, notes: &Notes) -> io::Result<()> {
    lock.write_json(&lio.dir.join("notes.json"), notes, Durability::Always)
}

/// Fails if operations are left to do: the kernel has not applied them.
fn ensure_done(rest: &[Op]) -> io::Result<()> {
    match rest.first() {
        None => Ok(()),
        Some(op) => Err(io::Error::other(format!("the kernel did not apply {op:?}"))),
    }
}

fn bounded<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || send.send(work()));
    receive.recv_timeout(DEADLINE).unwrap_or_else(|_| {
        Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!(
                "the kernel's target did not answer within {} s",
                DEADLINE.as_secs()
            ),
        ))
    })
}
