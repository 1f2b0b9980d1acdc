//! Sessions: what a login does, what a rescan finds out, what a logout undoes.
//!
//! A session is written down before anything is done for it, each disk before it is attached. `kill -9` leaves a session
//! that is not [`Stage::Live`]; the next command undoes it ([`Sessions::open`]), as a target drops a half-made login.

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

/// How far a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Stage {
    /// Its login is under way, or was killed.
    Starting,
    /// Logged in.
    Live,
    /// Its logout is under way, or was killed.
    Ending,
}

/// A disk of a session.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Disk {
    /// `/dev/loopN`. Ours only as long as it shows `backing`.
    pub(crate) device: String,
    pub(crate) backing: Backing,
    /// As of the last rescan.
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
    /// The target did not know us at the last rescan.
    pub(crate) lost: bool,
    pub(crate) disks: BTreeMap<u16, Disk>,
    pub(crate) chap_user: Option<String>,
    /// The folder of targets it is logged in to, and its name there.
    network: PathBuf,
    key: String,
    /// Sessions end with the kernel.
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

/// All sessions of a host, held by the one command that may change them.
#[derive(Debug)]
pub(crate) struct Sessions<'a> {
    host: &'a Host,
    lock: &'a Lock,
    losetup: Losetup<'a>,
    tree: Tree<'a>,
    live: BTreeMap<u32, Session>,
}

impl<'a> Sessions<'a> {
    /// Reads them, and undoes what a killed command or a reboot has left behind.
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

    /// The lock that is held: what is written is written under it.
    pub(crate) fn lock(&self) -> &'a Lock {
        self.lock
    }

    /// Those that fit, by number.
    pub(crate) fn find(&self, pattern: &Pattern) -> Vec<Session> {
        let fits = |session: &&Session| {
            pattern.sid.is_none_or(|sid| sid == session.sid) && pattern.fits(&session.place())
        };
        self.live.values().filter(fits).cloned().collect()
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
        let chap = proof(record);
        let mut session = Session {
            sid,
            // Another number on purpose: whoever mixes the two up shall notice.
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
        let made = self.make(&mut session, &initiator, at.ip(), chap.as_ref(), record);
        if let Err(failure) = made {
            self.undo(session)?;
            return Err(failure);
        }
        self.live.insert(sid, session.clone());
        Ok(session)
    }

    fn make(
        &self,
        session: &mut Session,
        initiator: &str,
        from: IpAddr,
        chap: Option<&Chap>,
        record: &Record,
    ) -> Result<(), Failure> {
        let network = Targets::open(&session.network)?;
        let target = knock(&network, session, initiator, from, chap)?;
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

    /// Looks at the target again: sizes, identities, new units, and whether it is there at all.
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
            // What somebody has mounted cannot be swapped for the file that the LUN has now, so such a session stays out.
            None if self.is_cut_off(&network, session)? => None,
            // A session whose target went away tries to log in again and again, so it succeeds when the target is back.
            None => self.knock_again(&network, session)?,
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
                Some(disk) => self.look(session, *lun, unit, &disk)?,
                None => self.attach(session, *lun, unit, None)?,
            }
        }
        // A unit that is no longer mapped stays as it was: nothing answers, so nothing is learned.
        Ok(())
    }

    /// Whether a disk in use shows the file that its unit had when the target was removed, and the target that is back
    /// has another one for the same unit.
    fn is_cut_off(&self, network: &Targets, session: &Session) -> io::Result<bool> {
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

    fn knock_again(&self, network: &Targets, session: &Session) -> Result<Option<Target>, Failure> {
        // iscsid would use the settings of the first login; those of the record are as good.
        let records = super::record::list(self.host, &exactly(&session.place()))?;
        let chap = records.iter().find_map(proof);
        let (address, port) = (&session.address, session.port);
        let Some((at, _)) = self.host.network_of(&session.iqn, address, port)? else {
            return Ok(None);
        };
        let initiator = self.host.initiator_name()?;
        match knock(network, session, &initiator, at.ip(), chap.as_ref()) {
            Ok(target) => Ok(Some(target)),
            Err(refused) if matches!(refused.exit, Exit::FatalLogin | Exit::Authentication) => {
                Ok(None)
            }
            Err(failed) => Err(failed),
        }
    }

    /// One disk at a rescan.
    fn look(
        &self,
        session: &mut Session,
        lun: u16,
        unit: &LogicalUnit,
        disk: &Disk,
    ) -> Result<(), Failure> {
        let attached = self.losetup.shows(&disk.device, &disk.backing)?;
        // Asked first: a unit without a file must not cost us the disk we have.
        let same_file = disk.backing.is_same(&Backing::of(&unit.file)?);
        if attached && !same_file && loop_device::is_claimed(&disk.device) {
            // The real disk would show the new unit's blocks from now on, under a mounted file system. This one cannot.
            self.tree.identify(session.sid, session.host, lun, unit)?;
        } else if attached && same_file {
            self.losetup.grow(&disk.device)?;
            // All of it, not only the identity: a killed command may have attached the disk and shown nothing.
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

    /// Logs out: the disks and all that shows the session go. It works for a lost session as well.
    pub(crate) fn logout(&mut self, session: Session) -> io::Result<()> {
        self.live.remove(&session.sid);
        self.undo(session)
    }

    /// After everything was logged out: takes away what no session accounts for.
    pub(crate) fn sweep(&self) -> io::Result<()> {
        self.tree.sweep()
    }

    /// Shows the unit as a disk, in the place of what the `occupied` device shows, if there is one.
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

    /// From any stage to nothing, in an order that can be taken up again at any point.
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

    /// Numbers are not used twice, as in a kernel that runs (`iscsi_session_nr` counts up). The counter is written before the
    /// session is, so a killed login uses its number up, too; should the counter be lost, the sessions tell.
    fn next_sid(&self) -> io::Result<u32> {
        let counter = self.host.state_dir().join("last-sid");
        let used = store::read_json::<u32>(&counter)?.unwrap_or(0);
        let lives = self.live.keys().last().copied().unwrap_or(0);
        let sid = used.max(lives) + 1;
        self.lock.write_json(&counter, &sid, Durability::Reboot)?;
        Ok(sid)
    }
}

/// The sessions as they are written down, whatever their stage.
pub(crate) fn read(host: &Host) -> io::Result<Vec<Session>> {
    let dir = host.state_dir().join("sessions");
    let mut sessions: Vec<Session> = Vec::new();
    for name in store::names(&dir)? {
        sessions.extend(store::read_json(&dir.join(name))?);
    }
    sessions.sort_by_key(|session| session.sid);
    Ok(sessions)
}

/// What the record says to prove ourselves with.
fn proof(record: &Record) -> Option<Chap> {
    (record.get("node.session.auth.authmethod") == "CHAP").then(|| Chap {
        user: record.get("node.session.auth.username"),
        password: record.get("node.session.auth.password"),
        // As open-iscsi does: whoever has a password for the target wants to hear it.
        mutual: Some(Credential {
            user: record.get("node.session.auth.username_in"),
            password: record.get("node.session.auth.password_in"),
        })
        .filter(|asked| !asked.password.is_empty()),
    })
}

/// The target's answer to a login, in open-iscsi's exit codes.
fn knock(
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
                // RFC 7143 section 11.13.5: 0203 and 0206 are initiator errors, which an initiator does not try again.
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
