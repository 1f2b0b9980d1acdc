//! A machine of the imagination, for tests: it behaves, rather than expecting calls.
//!
//! It has targets, sessions with a cached view of them, disks with content, a mount table, and the programs of the node
//! half as far as the driver uses them. Faults: [`Fake::answer`] makes the next matching command end as the test says.
//!
//! Other crates have it with the feature `fake`; what they turn and see stands in `fake/around.rs`.

#![allow(
    dead_code,
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    reason = "for tests only, those of this crate and of others"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use secrecy::{ExposeSecret as _, SecretString};

use super::mount::{MOUNTINFO, Mount};
use super::record::LOCK;
use super::{
    Cmd, DeviceNumber, Exit, Host, HostError, KernelFiles, Space, Span, Stat, Touched, Via, Who,
};
use crate::publication::{Iqn, NodeId, Nonce};
use crate::volume::{Bytes, FsType};

mod cache;
mod dead;
mod exit;
mod initiator;
mod multipath;
mod programs;
mod superblocks;
mod test_api;
mod tree;

#[cfg(test)]
pub(crate) use cache::lun;
pub use dead::Death;
pub(crate) use multipath::Daemon;
pub(crate) use superblocks::head_of;
#[cfg(test)]
pub(crate) use superblocks::put;
pub use test_api::{Export, FakeState, Mounted};

/// The LUN that [`Fake::with_lun`] has.
pub(crate) const UUID: &str = "13a3cd1e-f296-4d4b-b712-a85c139f9dac";
/// The node that the LUN is published to.
pub(crate) const NODE: &str = "worker-1";
const INITIATOR: &str = "iqn.1993-08.org.debian:01:abc";
const INITIATOR_NAME: &str = "/etc/iscsi/initiatorname.iscsi";
const BLOCK: usize = 4096;
/// What the kernel has no more.
const GONE: DeviceNumber = DeviceNumber {
    major: 8,
    minor: 1 << 19,
};

/// The machine. Clones are the same machine.
#[derive(Clone, Debug)]
pub struct Fake(Arc<Mutex<Machine>>);

/// By number; a block that was never written is zero.
pub(crate) type Blocks = BTreeMap<u64, Vec<u8>>;

/// What a NAS exports as one target.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) serial: String,
    pub(crate) size: Bytes,
    pub(crate) lun: u16,
    /// Deleted, and its sessions go on: nobody else may log in.
    pub(crate) lingering: bool,
}

/// A session, with what the kernel once heard of its disk.
#[derive(Clone, Debug)]
pub(crate) struct SessionState {
    pub(crate) target: String,
    pub(crate) alive: bool,
    pub(crate) seen: Option<Target>,
    pub(crate) portal: String,
    /// Its disk was taken offline.
    pub(crate) offline: bool,
}

/// Everything about the machine.
#[derive(Debug, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one fault that a test can switch on"
)]
pub(crate) struct Machine {
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    pub(crate) dirs: BTreeSet<String>,
    pub(crate) targets: BTreeMap<String, Target>,
    pub(crate) sessions: BTreeMap<u32, SessionState>,
    pub(crate) records: BTreeSet<String>,
    /// Those of them that iscsiadm can neither delete nor make anew: a power cut has left a part of them.
    pub(crate) cut_short: BTreeSet<String>,
    /// What `iscsiadm -m node` lists of a database at a place that nobody knows; `None`: it is where it should be.
    pub(crate) elsewhere: Option<String>,
    /// open-iscsi's database is locked, and when it was.
    pub(crate) locked: Option<i64>,
    /// Somebody locks it anew at each look.
    pub(crate) restless: bool,
    /// The names of processes; `None`: they cannot be seen.
    pub(crate) processes: Option<Vec<&'static str>>,
    /// The name that the initiator gets when iscsid is called; it makes none otherwise.
    pub(crate) unnamed: Option<String>,
    /// Directories and files that cannot be read.
    pub(crate) unseen: BTreeSet<String>,
    /// By serial, so that content outlives sessions; all nodes of a cluster see the same.
    pub(crate) content: Arc<Mutex<BTreeMap<String, Blocks>>>,
    pub(crate) mounts: Vec<Mount>,
    /// What pods see of disks, by the kernel's names of these.
    pub(crate) caches: BTreeMap<String, cache::Cache>,
    /// File systems that live on in mount namespaces of others: type and device.
    pub(crate) pinned: BTreeSet<(String, String)>,
    /// File systems that have died, by the kernel's names of their disks.
    pub(crate) deaths: BTreeMap<String, Death>,
    /// Directories that are links, and where they lead.
    pub(crate) links: BTreeMap<String, String>,
    /// Whatever is bound elsewhere can only be read there.
    pub(crate) binds_readonly: bool,
    /// How often the volume was published anew.
    pub(crate) publications: u64,
    /// Portals that do not answer.
    pub(crate) dead: BTreeSet<String>,
    /// A login comes to no end before so many have begun.
    pub(crate) together: usize,
    /// multipathd, when it runs.
    pub(crate) multipathd: Option<Daemon>,
    /// It keeps paths whose disks are gone.
    pub(crate) keeps_paths: bool,
    /// What its client says when it does not.
    pub(crate) client_says: String,
    /// The only multipath map that this machine can have.
    pub(crate) map: Option<multipath::MapState>,
    pub(crate) protected: bool,
    /// Reads fail.
    pub(crate) unreadable: bool,
    /// At the first look the kernel has not made the disk whose node it shows.
    pub(crate) half_made: bool,
    /// Somebody else has the disk open exclusively.
    pub(crate) claimed: bool,
    /// The kernel has taken the present disks offline.
    pub(crate) offline: bool,
    /// The kernel does not ask a disk that is offline; before Linux 6.6 it did.
    pub(crate) since_6_6: bool,
    /// It has mkfs.btrfs, too.
    pub(crate) complete: bool,
    /// The namespaces of the host's programs cannot be entered.
    pub(crate) unreachable: bool,
    /// SELinux runs, and mount(8) knows it.
    pub(crate) selinux: bool,
    /// `CAP_SYS_RESOURCE`.
    pub(crate) capable: bool,
    /// What was waited, all together; it takes no time.
    pub(crate) paused: Duration,
    /// What comes of writing to sysfs, if not success.
    pub(crate) sealed: Option<io::ErrorKind>,
    /// The name and password that the targets want.
    pub(crate) chap: Option<(String, String)>,
    /// What blkid says instead of the truth.
    pub(crate) blkid: Option<Exit>,
    /// How many files, directories and paths were looked at.
    pub(crate) looks: usize,
    /// The commands that ran, in order.
    pub(crate) log: Vec<String>,
    /// So many commands are let pass before the next answer is given.
    skip: usize,
    answers: Vec<(String, Result<Exit, Duration>)>,
}

impl Fake {
    /// A node with an empty `/staging`, and a LUN of 1 GiB published to it.
    pub(crate) fn with_lun() -> Self {
        let fake = Self::node(INITIATOR);
        let iqn = fake.iqn().to_string();
        fake.machine().targets.insert(iqn, cache::lun());
        fake
    }

    pub(crate) fn machine(&self) -> MutexGuard<'_, Machine> {
        self.0.lock().unwrap()
    }

    /// The target of the present publication.
    pub(crate) fn iqn(&self) -> Iqn {
        let mut random = StdRng::seed_from_u64(self.machine().publications);
        Iqn::of_publication(
            &UUID.parse().unwrap(),
            &NodeId::derive(NODE, INITIATOR),
            &Nonce::draw(&mut random),
        )
    }

    /// As a login by hand would.
    pub(crate) fn log_in(&self) {
        self.log_in_at("10.0.0.5:3260");
    }

    pub(crate) fn log_in_at(&self, portal: &str) {
        let (iqn, mut world) = (self.iqn().to_string(), self.machine());
        world.log_in(&iqn, portal);
    }

    /// The next command that begins with `prefix` ends like this and does nothing.
    pub(crate) fn answer(&self, prefix: &str, status: i32, stderr: &str) {
        let exit = Exit {
            status,
            stderr: stderr.to_owned(),
            ..Exit::default()
        };
        self.machine().answers.push((prefix.to_owned(), Ok(exit)));
    }

    /// The next command that begins with `prefix` hangs.
    pub(crate) fn hang(&self, prefix: &str) {
        self.machine()
            .answers
            .push((prefix.to_owned(), Err(Duration::from_secs(1))));
    }

    /// The command that begins with `prefix` hangs, once `skipped` of them have ended.
    pub(crate) fn hang_after(&self, prefix: &str, skipped: usize) {
        let mut world = self.machine();
        let hang = Err(Duration::from_secs(1));
        world.answers.push((prefix.to_owned(), hang));
        world.skip = skipped;
    }

    /// Makes the LUN larger on the NAS.
    pub(crate) fn grow_lun(&self, size: Bytes) {
        self.machine()
            .targets
            .values_mut()
            .for_each(|target| target.size = size);
    }

    /// Writes to the LUN behind the driver's back.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) {
        self.machine().write(UUID, offset, bytes);
    }

    /// A complete file system on the LUN.
    pub(crate) fn put_file_system(&self, fs: FsType, size: Bytes) {
        self.write(0, &head_of(fs, size));
    }
}

/// The disk of session `id`: `sdb`, …, `sdz`, `sdaa`, … with the numbers that `sd` gives them.
fn disk_of(id: u32) -> (String, DeviceNumber) {
    let letter = |number: u32| char::from_digit(number % 26 + 10, 36).unwrap();
    let mut name = "sd".to_owned();
    if id >= 26 {
        name.push(letter(id / 26 - 1));
    }
    name.push(letter(id));
    let number = DeviceNumber {
        major: 8,
        minor: u64::from(id) * 16,
    };
    (name, number)
}

impl Machine {
    /// How the test says that this ends, if it says so.
    fn forced(&mut self, line: &str) -> Option<Result<Exit, HostError>> {
        let meant = |(prefix, _): &(String, _)| line.starts_with(prefix);
        let at = self.answers.iter().position(meant)?;
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        let what = line.to_owned();
        let (_, answer) = self.answers.remove(at);
        Some(answer.map_err(|limit| HostError::Overran { what, limit }))
    }

    fn stat(&self, path: &str) -> Option<Stat> {
        if let Some(mount) = self.mounts.iter().rfind(|mount| mount.point == path) {
            // A node that was deleted is still seen through its bind mount.
            let deleted = mount.is_deleted() && mount.fs == "devtmpfs";
            let number = mount
                .device_node()
                .and_then(|name| Some(self.block_at(&format!("/dev/{name}"))?.1))
                .or(deleted.then_some(GONE));
            return Some(number.map_or(Stat::Directory, Stat::BlockDevice));
        }
        if let Some((_, number, _)) = self.block_at(path) {
            return Some(Stat::BlockDevice(number));
        }
        let file = self
            .files
            .get(path)
            .map(|bytes| Stat::File(bytes.len() as u64));
        file.or_else(|| self.dirs.contains(path).then_some(Stat::Directory))
    }
}

fn absent<T>(path: &str) -> Result<T, HostError> {
    Err(HostError::Absent {
        path: path.to_owned(),
    })
}

fn io_error(doing: &str, kind: io::ErrorKind) -> HostError {
    HostError::Io {
        doing: doing.to_owned(),
        source: io::Error::from(kind),
    }
}

/// How often others may do something while a command waits.
const MAX_POLLS: usize = 10_000;

impl Host for Fake {
    async fn run(&self, cmd: Cmd) -> Result<Exit, HostError> {
        let text = cmd.to_string();
        self.machine().log.push(text.clone());
        let forced = self.machine().forced(&text);
        if let Some(forced) = forced {
            return forced;
        }
        for _ in 0..MAX_POLLS {
            if !self.machine().waits(&cmd) {
                return Ok(self.machine().execute(&cmd));
            }
            tokio::task::yield_now().await;
        }
        Err(HostError::Overran {
            what: text,
            limit: Duration::from_secs(180),
        })
    }

    fn has(&self, program: &str) -> bool {
        program != "mkfs.btrfs" || self.machine().complete
    }

    fn reach(&self) -> Result<(), HostError> {
        if self.machine().unreachable {
            let problem = "nobody listens on iscsid's socket".to_owned();
            return Err(HostError::NoNamespaces { problem });
        }
        Ok(())
    }

    async fn blocking<T: Send + 'static>(
        &self,
        _: &str,
        look: impl FnOnce(&dyn KernelFiles) -> Result<T, HostError> + Send + 'static,
    ) -> Result<T, HostError> {
        look(self)
    }

    async fn read(&self, path: &str) -> Result<Vec<u8>, HostError> {
        KernelFiles::read(self, path)
    }

    async fn list(&self, path: &str) -> Result<Vec<String>, HostError> {
        self.machine().list(path)
    }

    async fn stat(&self, path: &str) -> Result<Stat, HostError> {
        self.machine().looks += 1;
        if self.machine().death_at(path) == Some(Death::ShutDown) {
            return Err(HostError::Io {
                doing: format!("looking at {path}"),
                source: io::Error::from_raw_os_error(nix::errno::Errno::EIO as i32),
            });
        }
        self.machine().stat(path).map_or_else(|| absent(path), Ok)
    }

    async fn is_mount_point(&self, path: &str) -> Result<Option<bool>, HostError> {
        let mut world = self.machine();
        world.looks += 1;
        Ok(Some(world.mounts.iter().any(|mount| mount.point == path)))
    }

    async fn resolve(&self, path: &str) -> Result<String, HostError> {
        if let Some(inside) = path.strip_prefix("/sys/class/iscsi_session/") {
            return Ok(format!(
                "/sys/devices/platform/host4/{}",
                inside.replace("/device", "")
            ));
        }
        let parent =
            path.rsplit_once('/').map_or(
                "/",
                |(parent, _)| if parent.is_empty() { "/" } else { parent },
            );
        let name = path.rsplit('/').next().unwrap_or_default();
        if let Some(to) = self.machine().links.get(parent) {
            return Ok(format!("{to}/{name}"));
        }
        if self.machine().dirs.contains(parent) {
            Ok(path.to_owned())
        } else {
            absent(path)
        }
    }

    async fn read_device(&self, device: &str, span: Span, _: Via) -> Result<Vec<u8>, HostError> {
        let world = self.machine();
        let Some((.., session)) = world.block_at(device) else {
            return absent(device);
        };
        if world.unreadable || world.half_made {
            return Err(io_error("reading", io::ErrorKind::Other));
        }
        Ok(world.read(&session.seen.as_ref().unwrap().serial, span))
    }

    async fn find_data(&self, device: &str, spans: Vec<Span>) -> Result<Option<Span>, HostError> {
        for span in spans {
            let read = self.read_device(device, span, Via::Disk).await?;
            if !super::blank::is_zero(&read) {
                return Ok(Some(span));
            }
        }
        Ok(None)
    }

    async fn write_device(
        &self,
        device: &str,
        offset: u64,
        data: Vec<u8>,
    ) -> Result<(), HostError> {
        let mut world = self.machine();
        if world.claimed
            || world.is_path(device)
            || world.mounts.iter().any(|mount| mount.source == device)
        {
            return Err(io_error("writing", io::ErrorKind::ResourceBusy));
        }
        let Some((.., session)) = world.block_at(device) else {
            return absent(device);
        };
        let serial = session.seen.as_ref().unwrap().serial.clone();
        world.log.push(format!(
            "write {offset} {}",
            if super::blank::is_zero(&data) {
                "zeros"
            } else {
                "marker"
            }
        ));
        world.write(&serial, offset, &data);
        Ok(())
    }

    async fn opens(&self, _: &str) -> Result<bool, HostError> {
        Ok(!std::mem::take(&mut self.machine().half_made))
    }

    async fn is_claimed(&self, device: &str) -> Result<bool, HostError> {
        let world = self.machine();
        let mounted = world.mounts.iter().any(|mount| mount.source == device);
        Ok(world.claimed || mounted || world.is_path(device))
    }

    async fn space(&self, _: &str) -> Result<Space, HostError> {
        Ok(Space {
            total: Bytes(1000),
            available: Bytes(600),
            used: Bytes(300),
            inodes: 10,
            inodes_free: 7,
        })
    }

    async fn create_dir(&self, path: &str) -> Result<(), HostError> {
        self.machine().dirs.insert(path.to_owned());
        Ok(())
    }

    async fn create_file(&self, path: &str) -> Result<(), HostError> {
        self.machine().files.entry(path.to_owned()).or_default();
        Ok(())
    }

    async fn remove_dir(&self, path: &str) -> Result<(), HostError> {
        let mut world = self.machine();
        let below = format!("{path}/");
        if world.files.keys().any(|file| file.starts_with(&below)) {
            return Err(io_error("removing", io::ErrorKind::DirectoryNotEmpty));
        }
        world.dirs.remove(path);
        world.forget_record(path);
        Ok(())
    }

    async fn remove_file(&self, path: &str) -> Result<(), HostError> {
        let mut world = self.machine();
        if path == LOCK {
            world.locked = None;
        }
        world.files.remove(path);
        world.forget_record(path);
        Ok(())
    }

    async fn replace_file(
        &self,
        path: &str,
        aside: &str,
        text: SecretString,
    ) -> Result<(), HostError> {
        let mut world = self.machine();
        world.log.push(format!("replace {path} by way of {aside}"));
        let text = text.expose_secret().as_bytes().to_vec();
        world.files.insert(path.to_owned(), text);
        Ok(())
    }

    async fn write_attribute(&self, path: &str, text: &str) -> Result<(), HostError> {
        let mut world = self.machine();
        match world.sealed {
            Some(io::ErrorKind::NotFound) => return absent(path),
            Some(kind) => return Err(io_error("writing", kind)),
            None => {}
        }
        let line = format!("echo {text} > {path}");
        world.log.push(line.clone());
        if let Some(forced) = world.forced(&line) {
            return forced.map(drop);
        }
        world.apply_sysfs_write(path, text)
    }

    async fn touched(&self, path: &str) -> Result<Touched, HostError> {
        let mut world = self.machine();
        let Some(at) = world.locked.filter(|_| path == LOCK) else {
            return absent(path);
        };
        world.locked = Some(at + i64::from(world.restless));
        Ok(Touched {
            inode: 7,
            changed: (at, 0),
        })
    }

    async fn runs(&self, program: &'static str, _: Who) -> Result<bool, HostError> {
        let world = self.machine();
        let Some(processes) = &world.processes else {
            let problem = "give the pod hostPID: true".to_owned();
            return Err(HostError::NoNamespaces { problem });
        };
        let daemon = world.multipathd.is_some() && program == "multipathd";
        Ok(daemon || processes.contains(&program))
    }

    async fn wake_iscsid(&self) -> Result<bool, HostError> {
        let mut world = self.machine();
        world.log.push("call iscsid".to_owned());
        let Some(name) = world.unnamed.take() else {
            return Ok(false);
        };
        let text = format!("InitiatorName={name}\n").into_bytes();
        world.files.insert(INITIATOR_NAME.to_owned(), text);
        Ok(true)
    }

    async fn kernel_log(&self) -> Result<Vec<String>, HostError> {
        if self.machine().unseen.contains("/dev/kmsg") {
            return Err(io_error(
                "reading /dev/kmsg",
                io::ErrorKind::PermissionDenied,
            ));
        }
        let log = self.machine().files.get("/dev/kmsg").cloned();
        let log = log.unwrap_or_default();
        let text = String::from_utf8_lossy(&log);
        Ok(text.lines().map(str::to_owned).collect())
    }

    async fn pause(&self, time: Duration) {
        self.machine().paused += time;
        tokio::task::yield_now().await;
    }
}
