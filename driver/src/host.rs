//! This machine, as the node half sees it: one trait for every effect, and pure builders and parsers around it.
//!
//! | module | owns |
//! |---|---|
//! | [`linux`] | EFFECT: the real machine, the only place that starts programs |
//! | [`iscsiadm`], [`multipath`], [`filesystem`], [`mount`] | PURE: command builders and parsers |
//! | [`selinux`] | PURE: labels among mount options |
//! | [`record`] | PURE: open-iscsi's node records as files |
//! | [`superblock`], [`fills`], [`marker`], [`blank`] | PURE: what stands on a disk, and what it means |
//! | [`session`], [`disk`], [`map`], [`names`] | sessions, disks and multipath maps, read from sysfs |
//!
//! **Invariant.** Nothing here knows the NAS, CSI messages or a simulator.

pub mod blank;
pub mod disk;
pub mod dm_multipath;
mod error;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
pub mod filesystem;
pub mod fs_limits;
pub mod iscsiadm;
pub mod kernel_names;
pub mod linux;
pub mod marker;
pub mod mount;
pub mod multipath;
pub mod record;
pub mod selinux;
pub mod session;
pub mod superblock;

use std::fmt;
use std::future::Future;
use std::time::Duration;

pub use error::{HostError, if_present};

use secrecy::SecretString;

use crate::volume::Bytes;

/// Files that the kernel makes up as they are read, below `/sys` and `/proc`: no disk and no network is waited for.
pub trait KernelFiles {
    /// Reads a file.
    ///
    /// # Errors
    /// [`HostError::Absent`] when there is none, also when what it is about goes as it is read.
    fn read(&self, path: &str) -> Result<Vec<u8>, HostError>;

    /// What is in a directory, in order of the names.
    ///
    /// # Errors
    /// [`HostError::Absent`] when there is none.
    fn entries(&self, path: &str) -> Result<Vec<Entry>, HostError>;
}

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name.
    pub name: String,
    /// The number of what it names. sysfs gives it to nothing else for as long as the kernel runs.
    pub inode: u64,
}

/// Everything the node half does to its machine.
///
/// Paths below `/sys` and those of open-iscsi's database and its lock ([`record::DATABASES`], [`record::LOCK`]) are read below this host's root, all others as they are (design.md#host-commands).
/// Every call has a deadline; whatever overruns it is abandoned and keeps the volume's lock until it has really ended.
pub trait Host: Send + Sync + 'static {
    /// Runs `cmd` to its end. A nonzero exit is data; `Err` means that it did not start or overran.
    fn run(&self, cmd: Cmd) -> impl Future<Output = Result<Exit, HostError>> + Send;

    /// True when `program` can be started.
    fn has(&self, program: &str) -> bool;

    /// Looks whether the place where the host's own programs run can be reached.
    ///
    /// # Errors
    /// It cannot, and so none of them can be started.
    fn reach(&self) -> Result<(), HostError> {
        Ok(())
    }

    /// Looks at files of the kernel, however many: all of them in one go.
    ///
    /// # Errors
    /// Those of `look`; or it did not come back.
    fn blocking<T: Send + 'static>(
        &self,
        doing: &str,
        look: impl FnOnce(&dyn KernelFiles) -> Result<T, HostError> + Send + 'static,
    ) -> impl Future<Output = Result<T, HostError>> + Send;

    /// Reads a small file, e.g. `/proc/self/mountinfo`.
    fn read(&self, path: &str) -> impl Future<Output = Result<Vec<u8>, HostError>> + Send;

    /// The names in a directory, in order.
    fn list(&self, path: &str) -> impl Future<Output = Result<Vec<String>, HostError>> + Send;

    /// What is at `path`; a symbolic link is not followed.
    fn stat(&self, path: &str) -> impl Future<Output = Result<Stat, HostError>> + Send;

    /// True when something is mounted at `path`. `None`: the kernel does not tell without the whole table of mounts.
    fn is_mount_point(
        &self,
        path: &str,
    ) -> impl Future<Output = Result<Option<bool>, HostError>> + Send;

    /// `path` with every symbolic link resolved, except in its last part, which need not exist.
    fn resolve(&self, path: &str) -> impl Future<Output = Result<String, HostError>> + Send;

    /// Reads a block device.
    fn read_device(
        &self,
        device: &str,
        span: Span,
        via: Via,
    ) -> impl Future<Output = Result<Vec<u8>, HostError>> + Send;

    /// The first of these parts of a block device that holds anything but zeros, read past every cache. They are read one after the
    /// other, and none behind the one that is found.
    ///
    /// # Errors
    /// A part cannot be read, or not in time.
    fn find_data(
        &self,
        device: &str,
        spans: Vec<Span>,
    ) -> impl Future<Output = Result<Option<Span>, HostError>> + Send;

    /// Writes to a block device that nobody uses, past every cache. `EBUSY` when it is mounted or otherwise claimed.
    fn write_device(
        &self,
        device: &str,
        offset: u64,
        data: Vec<u8>,
    ) -> impl Future<Output = Result<(), HostError>> + Send;

    /// False while the kernel shows the device's node and has not made the device itself yet, or has it no more.
    fn opens(&self, device: &str) -> impl Future<Output = Result<bool, HostError>> + Send;

    /// True when a file system, a mapping or the like has claimed the device, in whatever mount namespace.
    fn is_claimed(&self, device: &str) -> impl Future<Output = Result<bool, HostError>> + Send;

    /// Space and inodes of the file system mounted at `path`.
    fn space(&self, path: &str) -> impl Future<Output = Result<Space, HostError>> + Send;

    /// Makes a directory (mode 0750) unless there is one.
    fn create_dir(&self, path: &str) -> impl Future<Output = Result<(), HostError>> + Send;

    /// Makes an empty file (mode 0640) unless there is a file.
    fn create_file(&self, path: &str) -> impl Future<Output = Result<(), HostError>> + Send;

    /// Removes a directory, which must be empty. Nothing there is fine.
    fn remove_dir(&self, path: &str) -> impl Future<Output = Result<(), HostError>> + Send;

    /// Removes a file. Nothing there is fine.
    fn remove_file(&self, path: &str) -> impl Future<Output = Result<(), HostError>> + Send;

    /// Writes a file that only root can read to `aside`, syncs it and puts it in the place of `path`: whoever reads `path` sees
    /// the old text or the new, also after a crash. `aside` must be in the same file system; what is there is lost.
    fn replace_file(
        &self,
        path: &str,
        aside: &str,
        text: SecretString,
    ) -> impl Future<Output = Result<(), HostError>> + Send;

    /// Writes to a file of `/sys` that exists.
    fn write_attribute(
        &self,
        path: &str,
        text: &str,
    ) -> impl Future<Output = Result<(), HostError>> + Send;

    /// Which file `path` is and when it was made, linked or changed; a symbolic link is not followed.
    fn touched(&self, path: &str) -> impl Future<Output = Result<Touched, HostError>> + Send;

    /// True when a process of this name runs on the host.
    ///
    /// Errors: the processes of the host cannot be seen from here, so that nobody knows.
    fn runs(
        &self,
        program: &'static str,
        who: Who,
    ) -> impl Future<Output = Result<bool, HostError>> + Send;

    /// Calls at iscsid's socket, as iscsiadm does: an init system that listens there for it starts it then. False: nobody listens.
    fn wake_iscsid(&self) -> impl Future<Output = Result<bool, HostError>> + Send;

    /// What the kernel has said of late, oldest first: lines without their time.
    fn kernel_log(&self) -> impl Future<Output = Result<Vec<String>, HostError>> + Send {
        std::future::ready(Ok(Vec::new()))
    }

    /// Lets time pass between two looks at the world.
    fn pause(&self, time: Duration) -> impl Future<Output = ()> + Send;
}

/// A command: a program, its arguments and how long it may take. No shell sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cmd {
    /// Found on `PATH`.
    pub program: &'static str,
    /// Its arguments.
    pub args: Vec<String>,
    /// After this it is killed.
    pub deadline: Duration,
}

impl Cmd {
    /// `program`, which is killed after `seconds`.
    pub fn new(program: &'static str, seconds: u64) -> Self {
        Self {
            program,
            args: Vec::new(),
            deadline: Duration::from_secs(seconds),
        }
    }

    /// Adds words.
    #[must_use]
    pub fn args<S: Into<String>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(words.into_iter().map(Into::into));
        self
    }

    /// Adds one word.
    #[must_use]
    pub fn arg(self, word: impl Into<String>) -> Self {
        self.args([word.into()])
    }
}

impl fmt::Display for Cmd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.program)?;
        self.args.iter().try_for_each(|arg| write!(f, " {arg}"))
    }
}

/// How a command ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exit {
    /// Its exit status; `128 + n` when signal `n` ended it.
    pub status: i32,
    /// What it said, at most 256 KiB.
    pub stdout: String,
    /// What it complained of, at most 256 KiB.
    pub stderr: String,
}

impl Exit {
    /// The exit of a `program` that had to succeed.
    ///
    /// # Errors
    /// Any status but 0.
    pub fn ok(self, program: &'static str) -> Result<Self, HostError> {
        if self.status == 0 {
            Ok(self)
        } else {
            Err(self.failed(program))
        }
    }

    /// As an error.
    pub fn failed(&self, program: &'static str) -> HostError {
        HostError::Failed {
            program,
            status: self.status,
            said: self.said(),
        }
    }

    /// What it said, in one line: its complaints, if there are any.
    pub fn said(&self) -> String {
        let said = if self.stderr.trim().is_empty() {
            &self.stdout
        } else {
            &self.stderr
        };
        // Some programs name the cause first and then explain their options; others begin with a banner.
        let lines: Vec<&str> = said
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        match lines.as_slice() {
            [first, second, .., last] if lines.len() > 4 => format!("{first}; {second}; …; {last}"),
            few => few.join("; "),
        }
    }
}

/// Major and minor number of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceNumber {
    /// The driver.
    pub major: u64,
    /// The unit.
    pub minor: u64,
}

impl DeviceNumber {
    /// Reads `8:16`.
    pub fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.trim().split_once(':')?;
        Some(Self {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
        })
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// What a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stat {
    /// A directory.
    Directory,
    /// A regular file, of this size.
    File(u64),
    /// A block device.
    BlockDevice(DeviceNumber),
    /// A symbolic link, a character device, a socket, a pipe.
    Other,
}

/// Equal: nobody has made, linked, unlinked or changed the file in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touched {
    /// The file's number in its file system.
    pub inode: u64,
    /// Its ctime: seconds since 1970, and nanoseconds.
    pub changed: (i64, i64),
}

/// Whose process is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Anybody's, a pod's too.
    Anybody,
    /// One that is the host's (design.md#whose-namespaces-the-driver-enters). A driver that shares no namespace of the host has nobody but itself to ask:
    /// then there is none.
    Host,
}

/// A part of a device: whole sectors of 4 KiB for a direct read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: usize,
}

/// How to read a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// Past every cache: what is really on the disk.
    Disk,
    /// Through the page cache: what a mounted ext4 has changed in its superblock but not yet written.
    Cache,
}

/// Space and inodes of a mounted file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Size.
    pub total: Bytes,
    /// Free for everybody.
    pub available: Bytes,
    /// In use.
    pub used: Bytes,
    /// Inodes; 0 when the file system has no such limit.
    pub inodes: u64,
    /// Free inodes.
    pub inodes_free: u64,
}

/// The programs that the node half needs, in the order in which a life of a volume meets them.
pub const PROGRAMS: [&str; 13] = [
    "iscsiadm",
    "blkid",
    "blockdev",
    "mkfs.ext4",
    "mkfs.xfs",
    "mkfs.btrfs",
    "mount",
    "umount",
    "e2fsck",
    "resize2fs",
    "xfs_growfs",
    "btrfs",
    "xfs_spaceman",
];

/// The programs that the node half needs and this machine lacks.
pub fn tools_present(host: &impl Host) -> Vec<String> {
    PROGRAMS
        .iter()
        .filter(|program| !host.has(program))
        .map(|program| (*program).to_owned())
        .collect()
}

#[cfg(test)]
mod tests;
