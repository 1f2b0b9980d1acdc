//! Targets of the kernel's own iSCSI target (LIO), through configfs alone.
//!
//! A unit's file becomes a loop device, that an iblock backstore named by the unit's serial, and that a LUN of each target
//! that maps it. Targets admit any initiator (demo mode), with CHAP where it is wanted.
//!
//! ```text
//! <configfs>/target/core/iblock_3260/<serial>         a backstore, linked to by …
//! <configfs>/target/iscsi/<iqn>/tpgt_1/lun/lun_<N>    … the LUNs
//! <dir>/notes.json       targets, loop devices and their files, written down before they are made
//! <dir>/lock             orders all that is done
//! ```
//! What is in configfs and not in the notes belongs to somebody else and is left alone.
//!
//! # What stock LIO cannot do
//! - The NAA is `6001405` and the first 25 hex digits of the serial; hyphens are dropped, and nothing else can be said.
//! - A target has no limit on its sessions: `max_sessions` is not enforced.
//! - Writing 0 to a portal group's `enable` drops its sessions, so a disabled target is one without portals. When no other
//!   target listens there, an initiator's connection is refused.
//! - Sessions of demo mode show no address. It is known as long as all connections to the portals come from one; else
//!   it is told as `0.0.0.0`.
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

/// Longest that the kernel may take for one call; tenths of a second are normal.
const DEADLINE: Duration = Duration::from_secs(30);

/// The kernel's target, as far as it is ours.
#[derive(Clone, Debug)]
pub struct Lio {
    dir: PathBuf,
    tree: Tree,
}

/// What we have made, or were about to make.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Notes {
    targets: BTreeSet<String>,
    /// By serial.
    units: BTreeMap<String, Attached>,
}

/// A unit's loop device. Ours only as long as it shows the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Attached {
    device: String,
    backing: Backing,
}

impl Lio {
    /// The kernel's target; `dir` is for notes, and is made when missing.
    ///
    /// # Errors
    /// The kernel has no target, or the folder cannot be made.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let tree = Tree::at(Path::new("/sys/kernel/config/target"));
        tree.check()?;
        fs::create_dir_all(dir)?;
        Ok(Self {
            dir: std::path::absolute(dir)?,
            tree,
        })
    }

    /// Does some work under the lock, on a thread that is left to itself when the kernel does not come back.
    fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Work<'_>) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let side = self.clone();
        bounded(move || {
            let lock = Lock::take(&side.dir.join("lock"))?;
            let notes = store::read_json(&side.dir.join("notes.json"))?.unwrap_or_default();
            work(&mut Work {
                side: &side,
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
            work.side.tree.leave();
            Ok(())
        })
    }
}

/// Work on the tree, by the holder of the lock.
struct Work<'a> {
    side: &'a Lio,
    lock: &'a Lock,
    losetup: Losetup<'a>,
    notes: Notes,
}

impl Work<'_> {
    fn align(&mut self, targets: &[Target]) -> io::Result<()> {
        let wanted = |iqn: &String| targets.iter().any(|target| target.iqn == *iqn);
        let strays: Vec<String> = self.notes.targets.iter().cloned().collect();
        for stray in strays.iter().filter(|iqn| !wanted(iqn)) {
            self.remove(stray)?;
        }
        for portals in [Portals::Keep, Portals::Open] {
            for target in targets {
                self.make(target, portals)?;
            }
        }
        self.sweep()
    }

    /// Makes a target what it should be, and looks whether the kernel has it so.
    fn make(&mut self, target: &Target, portals: Portals) -> io::Result<()> {
        plan::check(target)?;
        let tree = &self.side.tree;
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
        let tree = &self.side.tree;
        let shown = tree.target(&target.iqn)?;
        tree.apply(&plan::target(target, shown.as_ref(), portals))?;
        let shown = tree.target(&target.iqn)?;
        taken(&plan::target(target, shown.as_ref(), portals))
    }

    fn remove(&mut self, iqn: &str) -> io::Result<()> {
        if !self.notes.targets.contains(iqn) {
            return Ok(());
        }
        let tree = &self.side.tree;
        if let Some(shown) = tree.target(iqn)? {
            tree.apply(&plan::removal(iqn, &shown))?;
        }
        self.notes.targets.remove(iqn);
        self.save()
    }

    /// Makes the unit's loop device and backstore what they should be, its capacity first of all.
    fn attach(&mut self, unit: &LogicalUnit) -> io::Result<()> {
        let backing = Backing::of(&unit.file)?;
        let good = match self.notes.units.get(&unit.serial) {
            Some(attached) => {
                attached.backing.is_same(&backing)
                    && self.losetup.shows(&attached.device, &attached.backing)?
            }
            None => false,
        };
        if !good {
            self.detach(&unit.serial)?;
            let (notes, side, lock) = (&mut self.notes, self.side, self.lock);
            self.losetup.attach(&backing, None, |device| {
                let attached = Attached {
                    device: device.to_owned(),
                    backing: backing.clone(),
                };
                notes.units.insert(unit.serial.clone(), attached);
                save(side, lock, notes)
            })?;
        }
        let device = self.notes.units[&unit.serial].device.clone();
        // A loop device counts in sectors.
        let capacity = super::capacity(unit)? / 512 * 512;
        if loop_device::size(&device) != Some(capacity) {
            self.losetup.grow(&device)?;
        }
        // An iblock backstore announces the write cache that its device has.
        loop_device::set_write_cache(&device, unit.write_cache)?;
        let tree = &self.side.tree;
        let shown = tree.backstore(&unit.serial)?;
        if !plan::is_backstore(unit, &device, shown.as_ref()) {
            tree.apply(&plan::backstore_removal(&unit.serial))?;
            tree.apply(&plan::backstore(unit, &device))?;
        }
        let shown = tree.backstore(&unit.serial)?;
        if plan::is_backstore(unit, &device, shown.as_ref()) {
            Ok(())
        } else {
            Err(io::Error::other(format!(
                "the kernel did not make a backstore of {device}: {shown:?}"
            )))
        }
    }

    /// Takes the unit's backstore and loop device away, as far as they are there.
    fn detach(&mut self, serial: &str) -> io::Result<()> {
        let Some(noted) = self.notes.units.get(serial).cloned() else {
            return Ok(());
        };
        self.side.tree.apply(&plan::backstore_removal(serial))?;
        if self.losetup.shows(&noted.device, &noted.backing)? {
            self.losetup.detach(&noted.device)?;
        }
        self.notes.units.remove(serial);
        self.save()
    }

    /// Takes away the units that no target of ours maps any more.
    fn sweep(&mut self) -> io::Result<()> {
        let mut mapped = BTreeSet::new();
        for iqn in &self.notes.targets {
            if let Some(shown) = self.side.tree.target(iqn)? {
                mapped.extend(shown.luns.into_values().flatten());
            }
        }
        let units: Vec<String> = self.notes.units.keys().cloned().collect();
        units
            .iter()
            .filter(|serial| !mapped.contains(*serial))
            .try_for_each(|serial| self.detach(serial))
    }

    fn save(&self) -> io::Result<()> {
        save(self.side, self.lock, &self.notes)
    }
}

fn save(side: &Lio, lock: &Lock, notes: &Notes) -> io::Result<()> {
    lock.write_json(&side.dir.join("notes.json"), notes, Durability::Always)
}

/// Whatever would still have to be done was not taken by the kernel.
fn taken(rest: &[Op]) -> io::Result<()> {
    match rest.first() {
        None => Ok(()),
        Some(op) => Err(io::Error::other(format!("the kernel did not take {op:?}"))),
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
                "the kernel's target does not come back after {} s",
                DEADLINE.as_secs()
            ),
        ))
    })
}
