//! Sessions: login, rescan and logout, and the recovery of killed ones.
//!
//! A session's file is written before anything else is done for it, and each disk is recorded before it is attached. `kill -9`
//! leaves a session that is not [`Stage::Live`]; the next command removes it ([`Sessions::open`]), as a target drops a half-made
//! login.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::console::{Exit, Failure};

use super::host::Host;
use super::record::{Pattern, Place, Record, exactly};
use super::tree::{LinkState, SessionView, Tree};
use crate::loop_device::{self, Backing, Losetup};
use crate::store::{self, Durability, Lock};
use crate::target::loopdev::{Refusal, Targets};
use crate::target::{self, Chap, Credential, LogicalUnit, Target};

/// Life cycle of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Stage {
    /// Its login is in progress or was killed.
    Starting,
    /// Logged in.
    Live,
    /// Its logout is in progress or was killed.
    Ending,
}

/// A disk of a session.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Disk {
    /// `/dev/loopN`. It belongs to this session only while `backing` is attached to it.
    pub(crate) device: String,
    pub(crate) backing: Backing,
    /// The unit as of the last rescan.
    pub(crate) unit: LogicalUnit,
}

/// `var/node-sim/sessions/<sid>.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Session {
    pub(crate) sid: u32,
    /// Number of its SCSI host.
    pub(crate) host: u32,
    pub(crate) iqn: String,
    pub(crate) address: String,
    pub(crate) port: u16,
    pub(crate) tpgt: u16,
    pub(crate) stage: Stage,
    /// Whether the target did not know this session at the last rescan.
    pub(crate) lost: bool,
    pub(crate) disks: BTreeMap<u16, Disk>,
    pub(crate) chap_user: Option<String>,
    /// The directory of targets it is logged in to, and its key there.
    network: PathBuf,
    key: String,
    /// Boot id: sessions end with a reboot.
    boot: String,
}

impl Session {
    pub(crate) fn place(&self) -> Place {
        Place {
            iqn: self.iqn.clone(),
            address: self.address.clone(),
            port: self.port,
        }
    }
}

/// All sessions of a host, for the command that holds the lock.
#[derive(Debug)]
pub(crate) struct Sessions<'a> {
    host: &'a Host,
    lock: &'a Lock,
    losetup: Losetup<'a>,
    tree: Tree<'a>,
    live: BTreeMap<u32, Session>,
}

impl<'a> Sessions<'a> {
    /// Reads all sessions, and removes those that a killed command or a reboot has left behind.
    pub(crate) fn open(host: &'a Host, lock: &'a Lock) -> io::Result<Self> {
        let tree = Tree::new(host.sys_dir(), lock);
        let mut sessions = Self {
            host,
            lock,
            losetup: Losetup::new(lock),
            tree,
            live: BTreeMap::new(),
        };
        let boot_id = boot_id()?;
        for session in read(host)? {
            if session.stage == Stage::Live && session.boot == boot_id {
                sessions.live.insert(session.sid, session);
            } else {
                sessions.tear_down(session)?;
            }
        }
        Ok(sessions)
    }

    /// The lock under which all files are written.
    pub(crate) fn lock(&self) -> &'a Lock {
        self.lock
    }

    /// The sessions that match, sorted by id.
    pub(crate) fn find(&self, pattern: &Pattern) -> Vec<Session> {
        let matches = |session: &&Session| {
            pattern.sid.is_none_or(|sid| sid == session.sid) && pattern.matches(&session.place())
        };
        self.live.values().filter(matches).cloned().collect()
    }

    /// Logs in at the record's portal and attaches the target's disks.
    pub(crate) fn login(&mut self, record: &Record) -> Result<Session, Failure> {
        let initiator = self.host.initiator_name()?;
        let Place { iqn, address, port } = record.place.clone();
        let Some((at, network)) = self.host.network_of(&iqn, &address, port)? else {
            return Err(Failure::new(
                Exit::ConnectTimeout,
                format!("{} does not listen", record.place.portal()),
            ));
        };
        let sid = self.next_sid()?;
        let chap = chap_of(record);
        let mut session = Session {
            sid,
            // Deliberately different from the session id, so that mixing them up is noticed.
            host: sid + 10,
            iqn,
            address,
            port,
            tpgt: record.tpgt.unwrap_or(1),
            stage: Stage::Starting,
            lost: false,
            disks: BTreeMap::new(),
            chap_user: chap.as_ref().map(|chap| chap.user.clone()),
            network: network.dir().to_owned(),
            key: format!("{}-{sid}", self.host.id()?),
            boot: boot_id()?,
        };
        self.save(&session)?;
        let result = self.establish(&mut session, &initiator, at.ip(), chap.as_ref(), record);
        if let Err(failure) = result {
            self.tear_down(session)?;
            return Err(failure);
        }
        self.live.insert(sid, session.clone());
        Ok(session)
    }

    fn establish(
        &self,
        session: &mut Session,
        initiator: &str,
        from: IpAddr,
        chap: Option<&Chap>,
        record: &Record,
    ) -> Result<(), Failure> {
        let network = Targets::open(&session.network)?;
        let target = target_login(&network, session, initiator, from, chap)?;
        self.tree.build(&SessionView {
            sid: session.sid,
            host: session.host,
            iqn: &session.iqn,
            initiator,
            address: &session.address,
            port: session.port,
            tpgt: session.tpgt,
            recovery_tmo: &record.get("node.session.timeo.replacement_timeout"),
        })?;
        if record.get("node.session.scan") == "auto" {
            for (lun, unit) in &target.luns {
                self.attach(session, *lun, unit, None)?;
            }
        }
        self.tree.show(session.sid, session.host)?;
        session.stage = Stage::Live;
        Ok(self.save(session)?)
    }

    /// Updates a session from its target: sizes, identities, new units, and whether the target still exists.
    pub(crate) fn rescan(&mut self, session: &mut Session) -> Result<(), Failure> {
        let result = self.refresh(session);
        self.save(session)?;
        self.live.insert(session.sid, session.clone());
        result
    }

    fn refresh(&self, session: &mut Session) -> Result<(), Failure> {
        let network = Targets::open(&session.network)?;
        let target = match network.attached(&session.iqn, &session.key)? {
            Some(target) => Some(target),
            // A mounted loop device cannot switch to the LUN's new file, so such a session stays lost.
            None if self.is_mounted_with_old_file(&network, session)? => None,
            // iscsid keeps trying to log in again, so that succeeds once the target is back.
            None => self.log_in_again(&network, session)?,
        };
        session.lost = target.is_none();
        let link = if session.lost {
            LinkState::Lost
        } else {
            LinkState::Up
        };
        self.tree.state(
            session.sid,
            session.host,
            session.disks.keys().copied(),
            link,
        )?;
        let Some(target) = target.filter(|target| !target.luns.is_empty()) else {
            return Ok(());
        };
        for (lun, unit) in &target.luns {
            match session.disks.get(lun).cloned() {
                Some(disk) => self.rescan_disk(session, *lun, unit, &disk)?,
                None => self.attach(session, *lun, unit, None)?,
            }
        }
        // A unit that is no longer mapped is left as it is: the kernel gets no answer from it.
        Ok(())
    }

    /// Whether a disk in use still has the file that its unit had when the target was removed, while the restored target has
    /// another file for the same unit.
    fn is_mounted_with_old_file(&self, network: &Targets, session: &Session) -> io::Result<bool> {
        let Some(target) = network.get(&session.iqn)? else {
            return Ok(false);
        };
        for (lun, disk) in &session.disks {
            let unit = target.luns.get(lun);
            let Some(unit) = unit.filter(|unit| unit.serial == disk.unit.serial) else {
                continue;
            };
            if self.losetup.shows(&disk.device, &disk.backing)?
                && !disk.backing.is_same(&Backing::of(&unit.file)?)
                && loop_device::is_claimed(&disk.device)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn log_in_again(
        &self,
        network: &Targets,
        session: &Session,
    ) -> Result<Option<Target>, Failure> {
        // iscsid would use the settings of the first login; those of the record will do.
        let records = super::record::list(self.host, &exactly(&session.place()))?;
        let chap = records.iter().find_map(chap_of);
        let (address, port) = (&session.address, session.port);
        let Some((at, _)) = self.host.network_of(&session.iqn, address, port)? else {
            return Ok(None);
        };
        let initiator = self.host.initiator_name()?;
        match target_login(network, session, &initiator, at.ip(), chap.as_ref()) {
            Ok(target) => Ok(Some(target)),
            Err(refused) if matches!(refused.exit, Exit::FatalLogin | Exit::Authentication) => {
                Ok(None)
            }
            Err(failed) => Err(failed),
        }
    }

    /// Rescans one disk.
    fn rescan_disk(
        &self,
        session: &mut Session,
        lun: u16,
        unit: &LogicalUnit,
        disk: &Disk,
    ) -> Result<(), Failure> {
        let attached = self.losetup.shows(&disk.device, &disk.backing)?;
        // Check the file first: if it is missing, the existing disk must be kept.
        let same_file = disk.backing.is_same(&Backing::of(&unit.file)?);
        if attached && !same_file && loop_device::is_claimed(&disk.device) {
            // A real disk would now have the new unit's content, under a mounted file system. A loop device cannot.
            self.tree.identify(session.sid, session.host, lun, unit)?;
        } else if attached && same_file {
            self.losetup.grow(&disk.device)?;
            // Write all files, not only the identity: a killed command may have attached the disk without writing them.
            self.tree
                .add_disk(session.sid, session.host, lun, unit, &disk.device)?;
        } else {
            self.tree
                .remove_disk(session.sid, session.host, lun, &disk.device)?;
            let reuse_device = attached.then_some(disk.device.as_str());
            return self.attach(session, lun, unit, reuse_device);
        }
        if let Some(disk) = session.disks.get_mut(&lun) {
            disk.unit = unit.clone();
        }
        Ok(())
    }

    /// Logs out: removes the disks and the session. Also works for a lost session.
    pub(crate) fn logout(&mut self, session: Session) -> io::Result<()> {
        self.live.remove(&session.sid);
        self.tear_down(session)
    }

    /// Removes everything that belongs to no session. Only after all sessions have been logged out.
    pub(crate) fn sweep(&self) -> io::Result<()> {
        self.tree.sweep()
    }

    /// Attaches the unit as a disk, on `reuse_device` if given, whose current file is detached.
    fn attach(
        &self,
        session: &mut Session,
        lun: u16,
        unit: &LogicalUnit,
        reuse_device: Option<&str>,
    ) -> Result<(), Failure> {
        let backing = Backing::of(&unit.file)?;
        let device = self.losetup.attach(&backing, reuse_device, |device| {
            let disk = Disk {
                device: device.to_owned(),
                backing: backing.clone(),
                unit: unit.clone(),
            };
            session.disks.insert(lun, disk);
            self.save(session)
        })?;
        Ok(self
            .tree
            .add_disk(session.sid, session.host, lun, unit, &device)?)
    }

    /// Removes a session in any stage, in an order that can be resumed after a kill at any point.
    fn tear_down(&self, mut session: Session) -> io::Result<()> {
        if session.stage != Stage::Ending {
            session.stage = Stage::Ending;
            self.save(&session)?;
        }
        let devices: Vec<String> = session
            .disks
            .values()
            .map(|disk| disk.device.clone())
            .collect();
        self.tree.remove(session.sid, session.host, &devices)?;
        for disk in session.disks.values() {
            if self.losetup.shows(&disk.device, &disk.backing)? {
                self.losetup.detach(&disk.device)?;
            }
        }
        if session.network.is_dir() {
            Targets::open(&session.network)?.logout(&session.iqn, &session.key)?;
        }
        store::remove(&file(self.host, session.sid))
    }

    fn save(&self, session: &Session) -> io::Result<()> {
        self.lock
            .write_json(&file(self.host, session.sid), session, Durability::Reboot)
    }

    /// Session ids are never reused, as in a running kernel (`iscsi_session_nr` counts up). The counter is written before the
    /// session, so a killed login also uses up its id. If the counter is lost, the ids of the sessions are used.
    fn next_sid(&self) -> io::Result<u32> {
        let counter = self.host.state_dir().join("last-sid");
        let used = store::read_json::<u32>(&counter)?.unwrap_or(0);
        let newest = self.live.keys().last().copied().unwrap_or(0);
        let sid = used.max(newest) + 1;
        self.lock.write_json(&counter, &sid, Durability::Reboot)?;
        Ok(sid)
    }
}

/// All sessions on disk, in any stage.
pub(crate) fn read(host: &Host) -> io::Result<Vec<Session>> {
    let dir = host.state_dir().join("sessions");
    let mut sessions: Vec<Session> = Vec::new();
    for name in store::names(&dir)? {
        sessions.extend(store::read_json(&dir.join(name))?);
    }
    sessions.sort_by_key(|session| session.sid);
    Ok(sessions)
}

/// The CHAP credentials of a record.
fn chap_of(record: &Record) -> Option<Chap> {
    (record.get("node.session.auth.authmethod") == "CHAP").then(|| Chap {
        user: record.get("node.session.auth.username"),
        password: record.get("node.session.auth.password"),
        // As in open-iscsi, a password for the target enables mutual CHAP.
        mutual: Some(Credential {
            user: record.get("node.session.auth.username_in"),
            password: record.get("node.session.auth.password_in"),
        })
        .filter(|mutual| !mutual.password.is_empty()),
    })
}

/// Logs in to the target. Refusals are mapped to open-iscsi's exit codes.
fn target_login(
    network: &Targets,
    session: &Session,
    initiator: &str,
    from: IpAddr,
    chap: Option<&Chap>,
) -> Result<Target, Failure> {
    let ours = target::Session {
        initiator: initiator.to_owned(),
        address: from,
    };
    network
        .login(&session.iqn, &session.key, &ours, chap)
        .map_err(|refusal| {
            let exit = match refusal {
                // RFC 7143 section 11.13.5: 0203 and 0206 are initiator errors, after which an initiator does not retry.
                Refusal::NoTarget | Refusal::SessionLimit => Exit::FatalLogin,
                Refusal::Authentication => Exit::Authentication,
                Refusal::Io(_) => Exit::Internal,
            };
            Failure::new(exit, refusal.to_string())
        })
}

fn file(host: &Host, sid: u32) -> PathBuf {
    host.state_dir().join(format!("sessions/{sid}.json"))
}

fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}
