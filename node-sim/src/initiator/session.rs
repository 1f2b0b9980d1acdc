//! Sessions: login, rescan and logout.
//!
//! A session's file is written before its login starts, and each disk is added to it before it is attached. `kill -9` leaves a
//! session that is not [`Stage::Live`]; the next command undoes it ([`Sessions::open`]), as a target drops a half-made login.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::console::{Exit, Failure};

use super::host::Host;
use super::record::{NodeKey, Pattern, Record, exactly};
use super::tree::{LinkState, SessionView, Tree};
use crate::loop_device::{self, Backing, Losetup};
use crate::store::{self, Durability, Lock};
use crate::target::loopdev::{Refusal, Targets};
use crate::target::{self, Chap, Credential, LogicalUnit, Target};

/// The stage of a session's life cycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Stage {
    /// Its login is in progress, or was killed.
    Starting,
    /// Logged in.
    Live,
    /// Its logout is in progress, or was killed.
    Ending,
}

/// A disk of a session.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Disk {
    /// `/dev/loopN`. It is ours only as long as it is attached to `backing`.
    pub(crate) device: String,
    pub(crate) backing: Backing,
    /// As of the last rescan.
    pub(crate) unit: LogicalUnit,
}

/// `var/node-sim/sessions/<sid>.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Session {
    pub(crate) sid: u32,
    /// The number of its SCSI host.
    pub(crate) host: u32,
    pub(crate) iqn: String,
    pub(crate) address: String,
    pub(crate) port: u16,
    pub(crate) tpgt: u16,
    pub(crate) stage: Stage,
    /// The target did not have this session at the last rescan.
    pub(crate) lost: bool,
    pub(crate) disks: BTreeMap<u16, Disk>,
    pub(crate) chap_user: Option<String>,
    /// The folder of targets that it is logged in to.
    network: PathBuf,
    key: String,
    /// The kernel's boot id: sessions end at a reboot.
    boot: String,
}

impl Session {
    pub(crate) fn node_key(&self) -> NodeKey {
        NodeKey {
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
    /// Reads the sessions, and cleans up after killed commands and reboots.
    pub(crate) fn open(host: &'a Host, lock: &'a Lock) -> io::Result<Self> {
        let tree = Tree::new(host.sys_dir(), lock);
        let mut sessions = Self {
            host,
            lock,
            losetup: Losetup::new(lock),
            tree,
            live: BTreeMap::new(),
        };
        let boot = boot()?;
        for session in read(host)? {
            if session.stage == Stage::Live && session.boot == boot {
                sessions.live.insert(session.sid, session);
            } else {
                sessions.undo(session)?;
            }
        }
        Ok(sessions)
    }

    /// The lock that all writes need.
    pub(crate) fn lock(&self) -> &'a Lock {
        self.lock
    }

    /// The sessions that match, by number.
    pub(crate) fn find(&self, pattern: &Pattern) -> Vec<Session> {
        let matches = |session: &&Session| {
            pattern.sid.is_none_or(|sid| sid == session.sid) && pattern.matches(&session.node_key())
        };
        self.live.values().filter(matches).cloned().collect()
    }

    /// Logs in at the record's portal and attaches the target's disks.
    pub(crate) fn login(&mut self, record: &Record) -> Result<Session, Failure> {
        let initiator = self.host.initiator_name()?;
        let NodeKey { iqn, address, port } = record.key.clone();
        let Some((at, network)) = self.host.network_of(&iqn, &address, port)? else {
            return Err(Failure::new(
                Exit::ConnectTimeout,
                format!("{} does not listen", record.key.portal()),
            ));
        };
        let sid = self.next_sid()?;
        let chap = chap_of(record);
        let mut session = Session {
            sid,
            // A different number on purpose, so that a mix-up of the two is noticed.
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
            boot: boot()?,
        };
        self.save(&session)?;
        let result = self.establish(&mut session, &initiator, at.ip(), chap.as_ref(), record);
        if let Err(failure) = result {
            self.undo(session)?;
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
        let target = login_to(&network, session, initiator, from, chap)?;
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

    /// Re-reads the target: whether it exists, sizes, identities and new units.
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
            // A disk in use cannot switch to the LUN's new file, so such a session stays lost.
            None if self.is_cut_off(&network, session)? => None,
            // A session without its target retries its login forever, so it succeeds once the target is back.
            None => self.reconnect(&network, session)?,
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
        // A disk whose LUN is no longer mapped keeps its cached state, as in the kernel.
        Ok(())
    }

    /// True if a disk in use is attached to its unit's old file, which was replaced when the target was removed.
    fn is_cut_off(&self, network: &Targets, session: &Session) -> io::Result<bool> {
        let Some(target) = network.get(&session.iqn)? else {
            return Ok(false);
        };
        for (lun, disk) in &session.disks {
            let unit = target.luns.get(lun);
            let Some(unit) = unit.filter(|unit| unit.serial == disk.unit.serial) else {
                continue;
            };
            if self.losetup.is_attached_to(&disk.device, &disk.backing)?
                && !disk.backing.is_same(&Backing::of(&unit.file)?)
                && loop_device::is_claimed(&disk.device)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn reconnect(&self, network: &Targets, session: &Session) -> Result<Option<Target>, Failure> {
        // iscsid would use the settings of the first login; those of the record are good enough.
        let records = super::record::list(self.host, &exactly(&session.node_key()))?;
        let chap = records.iter().find_map(chap_of);
        let (address, port) = (&session.address, session.port);
        let Some((at, _)) = self.host.network_of(&session.iqn, address, port)? else {
            return Ok(None);
        };
        let initiator = self.host.initiator_name()?;
        match login_to(network, session, &initiator, at.ip(), chap.as_ref()) {
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
        let attached = self.losetup.is_attached_to(&disk.device, &disk.backing)?;
        // Check this first: if the unit's file is missing, keep the existing disk.
        let same_file = disk.backing.is_same(&Backing::of(&unit.file)?);
        if attached && !same_file && loop_device::is_claimed(&disk.device) {
            // A real disk would now show the new unit's blocks, even under a mounted file system. A loop device cannot.
            self.tree.identify(session.sid, session.host, lun, unit)?;
        } else if attached && same_file {
            self.losetup.grow(&disk.device)?;
            // Write the whole entry, not only the identity: a killed command may have attached the disk without adding it.
            self.tree
                .add_disk(session.sid, session.host, lun, unit, &disk.device)?;
        } else {
            self.tree
                .remove_disk(session.sid, session.host, lun, &disk.device)?;
            let occupied = attached.then_some(disk.device.as_str());
            return self.attach(session, lun, unit, occupied);
        }
        if let Some(disk) = session.disks.get_mut(&lun) {
            disk.unit = unit.clone();
        }
        Ok(())
    }

    /// Logs out: removes the disks and the session's entries in the tree. It also works for a lost session.
    pub(crate) fn logout(&mut self, session: Session) -> io::Result<()> {
        self.live.remove(&session.sid);
        self.undo(session)
    }

    /// Removes leftovers from the tree, after all sessions are logged out.
    pub(crate) fn sweep(&self) -> io::Result<()> {
        self.tree.sweep()
    }

    /// Attaches the unit as a disk, reusing the `occupied` device if there is one.
    fn attach(
        &self,
        session: &mut Session,
        lun: u16,
        unit: &LogicalUnit,
        occupied: Option<&str>,
    ) -> Result<(), Failure> {
        let backing = Backing::of(&unit.file)?;
        let device = self.losetup.attach(&backing, occupied, |device| {
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

    /// Removes a session in any stage. It can be interrupted at any point and repeated.
    fn undo(&self, mut session: Session) -> io::Result<()> {
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
            if self.losetup.is_attached_to(&disk.device, &disk.backing)? {
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

    /// The next session number. As in the kernel (`iscsi_session_nr`), numbers are not reused until a reboot. The counter is
    /// written before the session, so a killed login also consumes its number. If the counter is lost, the live sessions' numbers
    /// are used.
    fn next_sid(&self) -> io::Result<u32> {
        let counter = self.host.state_dir().join("last-sid");
        let used = store::read_json::<u32>(&counter)?.unwrap_or(0);
        let newest = self.live.keys().last().copied().unwrap_or(0);
        let sid = used.max(newest) + 1;
        self.lock.write_json(&counter, &sid, Durability::Reboot)?;
        Ok(sid)
    }
}

/// Reads the stored sessions, in any stage.
pub(crate) fn read(host: &Host) -> io::Result<Vec<Session>> {
    let dir = host.state_dir().join("sessions");
    let mut sessions: Vec<Session> = Vec::new();
    for name in store::names(&dir)? {
        sessions.extend(store::read_json(&dir.join(name))?);
    }
    sessions.sort_by_key(|session| session.sid);
    Ok(sessions)
}

/// The CHAP credentials in the record.
fn chap_of(record: &Record) -> Option<Chap> {
    (record.get("node.session.auth.authmethod") == "CHAP").then(|| Chap {
        user: record.get("node.session.auth.username"),
        password: record.get("node.session.auth.password"),
        // As in open-iscsi: a password for the target requires mutual CHAP.
        mutual: Some(Credential {
            user: record.get("node.session.auth.username_in"),
            password: record.get("node.session.auth.password_in"),
        })
        .filter(|target| !target.password.is_empty()),
    })
}

/// Logs in to the target; a refusal becomes open-iscsi's exit code.
fn login_to(
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
                // RFC 7143 section 11.13.5: 0203 and 0206 are initiator errors, which an initiator does not retry.
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

fn boot() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}
