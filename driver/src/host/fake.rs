//! [`Fake`], an in-memory [`Host`] for tests. It simulates a machine's behavior; it is not a mock that expects calls.
//!
//! It has targets, sessions with a cached view of them, disks with content, a mount table, and the host programs as far as the
//! driver uses them. Fault injection: [`Fake::answer`] sets the exit of the next matching command.
//!
//! Other crates use it with the feature `fake`; their API is in `fake/test_api.rs`.

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
    Cmd, DeviceNumber, Exit, FileStamp, Host, HostError, KernelFiles, ProcessScope, ReadMode,
    Space, Span, Stat,
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
pub use dead::FsFailure;
pub(crate) use multipath::Daemon;
pub(crate) use superblocks::head_of;
#[cfg(test)]
pub(crate) use superblocks::put;
pub use test_api::{Export, FakeState, Mounted};

/// The uuid of the LUN of [`Fake::with_lun`].
pub(crate) const UUID: &str = "13a3cd1e-f296-4d4b-b712-a85c139f9dac";
/// The node that the LUN is published to.
pub(crate) const NODE: &str = "worker-1";
const INITIATOR: &str = "iqn.1993-08.org.debian:01:abc";
const INITIATOR_NAME: &str = "/etc/iscsi/initiatorname.iscsi";
const BLOCK: usize = 4096;
/// The number of a device that the kernel no longer has.
const GONE: DeviceNumber = DeviceNumber {
    major: 8,
    minor: 1 << 19,
};

/// The fake machine. Clones share the same machine.
#[derive(Clone, Debug)]
pub struct Fake(Arc<Mutex<Machine>>);

/// Content of a disk by block number; a block that was never written is zero.
pub(crate) type Blocks = BTreeMap<u64, Vec<u8>>;

/// A target of the NAS, with one LUN.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) serial: String,
    pub(crate) size: Bytes,
    pub(crate) lun: u16,
    /// The target was deleted and still serves its sessions, but refuses new logins.
    pub(crate) lingering: bool,
}

/// A session, with the kernel's cached view of its LUN.
#[derive(Clone, Debug)]
pub(crate) struct SessionState {
    pub(crate) target: String,
    pub(crate) alive: bool,
    pub(crate) seen: Option<Target>,
    pub(crate) portal: String,
    /// Its disk was set offline.
    pub(crate) offline: bool,
}

/// The state of the machine.
#[derive(Debug, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fault that a test can turn on"
)]
pub(crate) struct Machine {
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    pub(crate) dirs: BTreeSet<String>,
    pub(crate) targets: BTreeMap<String, Target>,
    pub(crate) sessions: BTreeMap<u32, SessionState>,
    pub(crate) records: BTreeSet<String>,
    /// Targets whose record was truncated by a power cut: iscsiadm can neither delete nor re-create it.
    pub(crate) truncated_records: BTreeSet<String>,
    /// The output of `iscsiadm -m node` if the database is in an unknown directory; `None`: it is in `/etc/iscsi`.
    pub(crate) elsewhere: Option<String>,
    /// The lock of open-iscsi's database: its ctime in seconds, if it is locked.
    pub(crate) locked: Option<i64>,
    /// The lock is released and taken again between any two reads.
    pub(crate) lock_changes: bool,
    /// The names of the host's processes; `None`: they are not visible.
    pub(crate) processes: Option<Vec<&'static str>>,
    /// The initiator name that is created once iscsid's socket is connected to; `None`: none is created.
    pub(crate) name_on_start: Option<String>,
    /// Directories and files that fail with `EACCES`.
    pub(crate) unreadable_paths: BTreeSet<String>,
    /// Content of LUNs by serial number, so that it outlives sessions; shared by all nodes of a cluster.
    pub(crate) content: Arc<Mutex<BTreeMap<String, Blocks>>>,
    pub(crate) mounts: Vec<Mount>,
    /// Page caches, by the kernel's names of the disks.
    pub(crate) caches: BTreeMap<String, cache::Cache>,
    /// File systems that stay mounted in other mount namespaces: type and device.
    pub(crate) pinned: BTreeSet<(String, String)>,
    /// Failed file systems, by the kernel's names of their disks.
    pub(crate) deaths: BTreeMap<String, FsFailure>,
    /// Symbolic links to directories, with their targets.
    pub(crate) links: BTreeMap<String, String>,
    /// Every bind mount is read-only.
    pub(crate) binds_readonly: bool,
    /// How often the volume was published again.
    pub(crate) publications: u64,
    /// Portals that do not answer.
    pub(crate) dead: BTreeSet<String>,
    /// Logins block until this many have started.
    pub(crate) concurrent_logins: usize,
    /// multipathd; `None`: it is not running.
    pub(crate) multipathd: Option<Daemon>,
    /// multipathd keeps paths whose disks are gone.
    pub(crate) keeps_paths: bool,
    /// The standard error of the client if multipathd is not running.
    pub(crate) client_says: String,
    /// The multipath map; this machine can have only one.
    pub(crate) map: Option<multipath::MapState>,
    pub(crate) protected: bool,
    /// Reads of devices fail with an I/O error.
    pub(crate) unreadable: bool,
    /// The device node exists before its device: the first open fails with `ENXIO`.
    pub(crate) open_fails_once: bool,
    /// Another process has the disk open exclusively.
    pub(crate) claimed: bool,
    /// The kernel has set all present disks offline.
    pub(crate) offline: bool,
    /// The kernel does not rescan a disk that is offline; before Linux 6.6 it did.
    pub(crate) since_6_6: bool,
    /// mkfs.btrfs is installed, too.
    pub(crate) complete: bool,
    /// The namespaces of the host's programs cannot be entered.
    pub(crate) unreachable: bool,
    /// SELinux is enabled, and mount(8) supports it.
    pub(crate) selinux: bool,
    /// The process has `CAP_SYS_RESOURCE`.
    pub(crate) capable: bool,
    /// The sum of all pauses, which take no real time.
    pub(crate) paused: Duration,
    /// The error of writes to sysfs; `None`: they succeed.
    pub(crate) sysfs_error: Option<io::ErrorKind>,
    /// The CHAP user and password that the targets require.
    pub(crate) chap: Option<(String, String)>,
    /// The exit of blkid, if it is not computed from the disk's content.
    pub(crate) blkid: Option<Exit>,
    /// Number of file system queries (stat, list, read).
    pub(crate) queries: usize,
    /// The commands that ran, in order.
    pub(crate) log: Vec<String>,
    /// This many matching commands run normally before the next answer is used.
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

    /// Logs in at the first portal, without the driver.
    pub(crate) fn log_in(&self) {
        self.log_in_at("10.0.0.5:3260");
    }

    pub(crate) fn log_in_at(&self, portal: &str) {
        let (iqn, mut machine) = (self.iqn().to_string(), self.machine());
        machine.log_in(&iqn, portal);
    }

    /// The next command that starts with `prefix` exits like this, without any effect.
    pub(crate) fn answer(&self, prefix: &str, status: i32, stderr: &str) {
        let exit = Exit {
            status,
            stderr: stderr.to_owned(),
            ..Exit::default()
        };
        self.machine().answers.push((prefix.to_owned(), Ok(exit)));
    }

    /// The next command that starts with `prefix` hangs.
    pub(crate) fn hang(&self, prefix: &str) {
        self.machine()
            .answers
            .push((prefix.to_owned(), Err(Duration::from_secs(1))));
    }

    /// The command that starts with `prefix` hangs, after `skipped` of them have run normally.
    pub(crate) fn hang_after(&self, prefix: &str, skipped: usize) {
        let mut machine = self.machine();
        let hang = Err(Duration::from_secs(1));
        machine.answers.push((prefix.to_owned(), hang));
        machine.skip = skipped;
    }

    /// Resizes the LUN on the NAS.
    pub(crate) fn grow_lun(&self, size: Bytes) {
        self.machine()
            .targets
            .values_mut()
            .for_each(|target| target.size = size);
    }

    /// Writes to the LUN, without the driver.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) {
        self.machine().write(UUID, offset, bytes);
    }

    /// Writes a complete file system to the LUN.
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
    /// The exit that a test has set for this command, if any.
    fn forced(&mut self, line: &str) -> Option<Result<Exit, HostError>> {
        let matches = |(prefix, _): &(String, _)| line.starts_with(prefix);
        let at = self.answers.iter().position(matches)?;
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        let what = line.to_owned();
        let (_, answer) = self.answers.remove(at);
        Some(answer.map_err(|limit| HostError::DeadlineExceeded { what, limit }))
    }

    fn stat(&self, path: &str) -> Option<Stat> {
        if let Some(mount) = self.mounts.iter().rfind(|mount| mount.point == path) {
            // A deleted device node is still visible through its bind mount.
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

/// How often a blocked command yields to other tasks before it counts as hung.
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
            if !self.machine().blocks(&cmd) {
                return Ok(self.machine().execute(&cmd));
            }
            tokio::task::yield_now().await;
        }
        Err(HostError::DeadlineExceeded {
            what: text,
            limit: Duration::from_secs(180),
        })
    }

    fn has_program(&self, program: &str) -> bool {
        program != "mkfs.btrfs" || self.machine().complete
    }

    fn check_namespaces(&self) -> Result<(), HostError> {
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
        self.machine().queries += 1;
        if self.machine().death_at(path) == Some(FsFailure::ShutDown) {
            return Err(HostError::Io {
                doing: format!("looking at {path}"),
                source: io::Error::from_raw_os_error(nix::errno::Errno::EIO as i32),
            });
        }
        self.machine().stat(path).map_or_else(|| absent(path), Ok)
    }

    async fn is_mount_point(&self, path: &str) -> Result<Option<bool>, HostError> {
        let mut machine = self.machine();
        machine.queries += 1;
        Ok(Some(machine.mounts.iter().any(|mount| mount.point == path)))
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

    async fn read_device(
        &self,
        device: &str,
        span: Span,
        _: ReadMode,
    ) -> Result<Vec<u8>, HostError> {
        let machine = self.machine();
        let Some((.., session)) = machine.block_at(device) else {
            return absent(device);
        };
        if machine.unreadable || machine.open_fails_once {
            return Err(io_error("reading", io::ErrorKind::Other));
        }
        Ok(machine.read(&session.seen.as_ref().unwrap().serial, span))
    }

    async fn find_data(&self, device: &str, spans: Vec<Span>) -> Result<Option<Span>, HostError> {
        for span in spans {
            let read = self.read_device(device, span, ReadMode::Disk).await?;
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
        let mut machine = self.machine();
        if machine.claimed
            || machine.is_path(device)
            || machine.mounts.iter().any(|mount| mount.source == device)
        {
            return Err(io_error("writing", io::ErrorKind::ResourceBusy));
        }
        let Some((.., session)) = machine.block_at(device) else {
            return absent(device);
        };
        let serial = session.seen.as_ref().unwrap().serial.clone();
        machine.log.push(format!(
            "write {offset} {}",
            if super::blank::is_zero(&data) {
                "zeros"
            } else {
                "marker"
            }
        ));
        machine.write(&serial, offset, &data);
        Ok(())
    }

    async fn can_open(&self, _: &str) -> Result<bool, HostError> {
        Ok(!std::mem::take(&mut self.machine().open_fails_once))
    }

    async fn is_claimed(&self, device: &str) -> Result<bool, HostError> {
        let machine = self.machine();
        let mounted = machine.mounts.iter().any(|mount| mount.source == device);
        Ok(machine.claimed || mounted || machine.is_path(device))
    }

    async fn fs_usage(&self, _: &str) -> Result<Space, HostError> {
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
        let mut machine = self.machine();
        let below = format!("{path}/");
        if machine.files.keys().any(|file| file.starts_with(&below)) {
            return Err(io_error("removing", io::ErrorKind::DirectoryNotEmpty));
        }
        machine.dirs.remove(path);
        machine.forget_record(path);
        Ok(())
    }

    async fn remove_file(&self, path: &str) -> Result<(), HostError> {
        let mut machine = self.machine();
        if path == LOCK {
            machine.locked = None;
        }
        machine.files.remove(path);
        machine.forget_record(path);
        Ok(())
    }

    async fn replace_file(
        &self,
        path: &str,
        temp: &str,
        text: SecretString,
    ) -> Result<(), HostError> {
        let mut machine = self.machine();
        machine.log.push(format!("replace {path} by way of {temp}"));
        let text = text.expose_secret().as_bytes().to_vec();
        machine.files.insert(path.to_owned(), text);
        Ok(())
    }

    async fn write_attribute(&self, path: &str, text: &str) -> Result<(), HostError> {
        let mut machine = self.machine();
        match machine.sysfs_error {
            Some(io::ErrorKind::NotFound) => return absent(path),
            Some(kind) => return Err(io_error("writing", kind)),
            None => {}
        }
        let line = format!("echo {text} > {path}");
        machine.log.push(line.clone());
        if let Some(forced) = machine.forced(&line) {
            return forced.map(drop);
        }
        machine.apply_sysfs_write(path, text)
    }

    async fn file_stamp(&self, path: &str) -> Result<FileStamp, HostError> {
        let mut machine = self.machine();
        let Some(at) = machine.locked.filter(|_| path == LOCK) else {
            return absent(path);
        };
        machine.locked = Some(at + i64::from(machine.lock_changes));
        Ok(FileStamp {
            inode: 7,
            changed: (at, 0),
        })
    }

    async fn is_running(&self, program: &'static str, _: ProcessScope) -> Result<bool, HostError> {
        let machine = self.machine();
        let Some(processes) = &machine.processes else {
            let problem = "give the pod hostPID: true".to_owned();
            return Err(HostError::NoNamespaces { problem });
        };
        let daemon = machine.multipathd.is_some() && program == "multipathd";
        Ok(daemon || processes.contains(&program))
    }

    async fn wake_iscsid(&self) -> Result<bool, HostError> {
        let mut machine = self.machine();
        machine.log.push("call iscsid".to_owned());
        let Some(name) = machine.name_on_start.take() else {
            return Ok(false);
        };
        let text = format!("InitiatorName={name}\n").into_bytes();
        machine.files.insert(INITIATOR_NAME.to_owned(), text);
        Ok(true)
    }

    async fn kernel_log(&self) -> Result<Vec<String>, HostError> {
        if self.machine().unreadable_paths.contains("/dev/kmsg") {
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
