//! The node's machine: the [`Host`] trait, which has one method per side effect, and the types that it takes and returns. The
//! submodules build commands and parse their output.
//!
//! | module | contents |
//! |---|---|
//! | [`linux`] | EFFECT: the real machine, the only module that starts programs |
//! | [`iscsiadm`], [`multipath`], [`filesystem`], [`mount`] | PURE: command builders and parsers |
//! | [`selinux`] | PURE: SELinux labels in mount options |
//! | [`record`] | PURE: open-iscsi's node records as files |
//! | [`superblock`], [`fs_limits`], [`marker`], [`blank`] | PURE: on-disk content and how to interpret it |
//! | [`session`], [`disk`], [`dm_multipath`], [`kernel_names`] | sessions, disks and multipath maps, read from sysfs |
//!
//! **Invariant.** Nothing here depends on the NAS, CSI messages or a simulator.

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

/// Pseudo files below `/sys` and `/proc`, which the kernel generates on read: reading them waits for no disk and no network.
pub trait KernelFiles {
    /// Reads a file.
    ///
    /// # Errors
    /// [`HostError::Absent`] if the file does not exist, or if the object that it describes is removed during the read.
    fn read(&self, path: &str) -> Result<Vec<u8>, HostError>;

    /// The entries of a directory, sorted by name.
    ///
    /// # Errors
    /// [`HostError::Absent`] if the directory does not exist.
    fn entries(&self, path: &str) -> Result<Vec<Entry>, HostError>;
}

/// A directory entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The file name.
    pub name: String,
    /// The inode number. sysfs does not reuse it as long as the kernel runs.
    pub inode: u64,
}

/// Every side effect of the node service on its machine.
///
/// Paths below `/sys` and those of open-iscsi's database and its lock ([`record::DATABASES`], [`record::LOCK`]) are resolved
/// below this host's root, all others as they are (design.md#host-commands).
/// Every call has a deadline. A call that overruns it is abandoned and keeps the volume's lock until it has really ended.
pub trait Host: Send + Sync + 'static {
    /// Runs `cmd` to completion. A nonzero exit status is `Ok`; `Err` means that it did not start or overran its deadline.
    fn run(&self, cmd: Cmd) -> impl Future<Output = Result<Exit, HostError>> + Send;

    /// True if `program` is installed and executable.
    fn has_program(&self, program: &str) -> bool;

    /// Checks that the namespaces in which the host's own programs run can be entered.
    ///
    /// # Errors
    /// They cannot be entered, so none of these programs can be started.
    fn check_namespaces(&self) -> Result<(), HostError> {
        Ok(())
    }

    /// Reads any number of kernel files in one task on the blocking pool.
    ///
    /// # Errors
    /// Those of `look`, or it did not return in time.
    fn blocking<T: Send + 'static>(
        &self,
        doing: &str,
        look: impl FnOnce(&dyn KernelFiles) -> Result<T, HostError> + Send + 'static,
    ) -> impl Future<Output = Result<T, HostError>> + Send;

    /// Reads a small file, e.g. `/proc/self/mountinfo`.
    fn read(&self, path: &str) -> impl Future<Output = Result<Vec<u8>, HostError>> + Send;

    /// The names in a directory, sorted.
    fn list(&self, path: &str) -> impl Future<Output = Result<Vec<String>, HostError>> + Send;

    /// The file type at `path`; a symbolic link is not followed.
    fn stat(&self, path: &str) -> impl Future<Output = Result<Stat, HostError>> + Send;

    /// True if `path` is a mount point. `None`: this kernel cannot tell without reading the whole mount table.
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
        via: ReadMode,
    ) -> impl Future<Output = Result<Vec<u8>, HostError>> + Send;

    /// The first of these spans of a block device that holds anything but zeros, read past every cache. Spans are read one after
    /// the other, up to the one that is returned.
    ///
    /// # Errors
    /// A span cannot be read, or not in time.
    fn find_data(
        &self,
        device: &str,
        spans: Vec<Span>,
    ) -> impl Future<Output = Result<Option<Span>, HostError>> + Send;

    /// Writes to an unused block device, past every cache. `EBUSY` if it is mounted or otherwise claimed.
    fn write_device(
        &self,
        device: &str,
        offset: u64,
        data: Vec<u8>,
    ) -> impl Future<Output = Result<(), HostError>> + Send;

    /// False if the device node exists, but the kernel has not created the device yet, or has removed it (`ENXIO`).
    fn can_open(&self, device: &str) -> impl Future<Output = Result<bool, HostError>> + Send;

    /// True if a file system, a device-mapper device or the like has claimed the device, in any mount namespace.
    fn is_claimed(&self, device: &str) -> impl Future<Output = Result<bool, HostError>> + Send;

    /// Space and inodes of the file system mounted at `path`.
    fn fs_usage(&self, path: &str) -> impl Future<Output = Result<Space, HostError>> + Send;

    /// Creates a directory (mode 0750). Idempotent.
    fn create_dir(&self, path: &str) -> impl Future<Output = Result<(), HostError>> + Send;

    /// Creates an empty file (mode 0640). Idempotent: an existing file is left as it is.
    fn create_file(&self, path: &str) -> impl Future<Output = Result<(), HostError>> + Send;

    /// Removes an empty directory. Idempotent.
    fn remove_dir(&self, path: &str) -> impl Future<Output = Result<(), HostError>> + Send;

    /// Removes a file. Idempotent.
    fn remove_file(&self, path: &str) -> impl Future<Output = Result<(), HostError>> + Send;

    /// Atomically replaces `path` with a file that only root can read: writes `temp`, syncs it and renames it. A reader of `path`
    /// sees the old text or the new, also after a crash. `temp` must be in the same file system; an existing file there is
    /// overwritten.
    fn replace_file(
        &self,
        path: &str,
        temp: &str,
        text: SecretString,
    ) -> impl Future<Output = Result<(), HostError>> + Send;

    /// Writes to an existing file below `/sys`.
    fn write_attribute(
        &self,
        path: &str,
        text: &str,
    ) -> impl Future<Output = Result<(), HostError>> + Send;

    /// The inode number and the ctime of `path`; a symbolic link is not followed.
    fn file_stamp(&self, path: &str) -> impl Future<Output = Result<FileStamp, HostError>> + Send;

    /// True if a process of this name runs on the host.
    ///
    /// Errors: the host's processes are not visible to the driver, so the answer is unknown.
    fn is_running(
        &self,
        program: &'static str,
        who: ProcessScope,
    ) -> impl Future<Output = Result<bool, HostError>> + Send;

    /// Connects to iscsid's socket, as iscsiadm does, which starts iscsid if the init system uses socket activation. False:
    /// connection refused.
    fn wake_iscsid(&self) -> impl Future<Output = Result<bool, HostError>> + Send;

    /// The kernel's latest log messages, oldest first, without time stamps.
    fn kernel_log(&self) -> impl Future<Output = Result<Vec<String>, HostError>> + Send {
        std::future::ready(Ok(Vec::new()))
    }

    /// Sleeps between two polls.
    fn pause(&self, time: Duration) -> impl Future<Output = ()> + Send;
}

/// A command: a program, its arguments and its deadline. It is not run by a shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cmd {
    /// The program's name, which is looked up on `PATH`.
    pub program: &'static str,
    /// Its arguments.
    pub args: Vec<String>,
    /// The command is killed after this time.
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

    /// Appends arguments.
    #[must_use]
    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Appends one argument.
    #[must_use]
    pub fn arg(self, arg: impl Into<String>) -> Self {
        self.args([arg.into()])
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
    /// The exit status; `128 + n` if signal `n` killed it.
    pub status: i32,
    /// Its standard output, at most 256 KiB.
    pub stdout: String,
    /// Its standard error, at most 256 KiB.
    pub stderr: String,
}

impl Exit {
    /// Requires that `program` succeeded.
    ///
    /// # Errors
    /// Any status other than 0.
    pub fn ok(self, program: &'static str) -> Result<Self, HostError> {
        if self.status == 0 {
            Ok(self)
        } else {
            Err(self.failed(program))
        }
    }

    /// This exit as [`HostError::Failed`].
    pub fn failed(&self, program: &'static str) -> HostError {
        HostError::Failed {
            program,
            status: self.status,
            said: self.output_line(),
        }
    }

    /// The output in one line: standard error, or standard output if standard error is empty.
    pub fn output_line(&self) -> String {
        let output = if self.stderr.trim().is_empty() {
            &self.stdout
        } else {
            &self.stderr
        };
        // Some programs print the cause first and then their usage; others begin with a banner.
        let lines: Vec<&str> = output
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
    /// The device driver.
    pub major: u64,
    /// The driver's unit.
    pub minor: u64,
}

impl DeviceNumber {
    /// Parses `8:16`; `None` if the text has another format.
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

/// The file type of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stat {
    /// A directory.
    Directory,
    /// A regular file of this size in bytes.
    File(u64),
    /// A block device.
    BlockDevice(DeviceNumber),
    /// A symbolic link, a character device, a socket, a pipe.
    Other,
}

/// Equal values mean that the file was not created, linked, unlinked or changed in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStamp {
    /// The inode number.
    pub inode: u64,
    /// Its ctime: seconds since 1970, and nanoseconds.
    pub changed: (i64, i64),
}

/// Which processes [`Host::is_running`] considers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessScope {
    /// All, including those of pods.
    Any,
    /// Only those of the host itself (design.md#whose-namespaces-the-driver-enters). A driver that shares no namespace with the
    /// host sees only its own container: then there are none.
    Host,
}

/// A byte range of a device: whole blocks of 4 KiB for a direct read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Offset of the first byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: usize,
}

/// How to read a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadMode {
    /// Direct I/O, past every cache: the content of the disk itself.
    Disk,
    /// Through the page cache, which also has what a mounted ext4 has changed in its superblock but not yet written.
    Cache,
}

/// Space and inodes of a mounted file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Total size.
    pub total: Bytes,
    /// Free for unprivileged users.
    pub available: Bytes,
    /// In use.
    pub used: Bytes,
    /// Number of inodes; 0 if the file system has no fixed number.
    pub inodes: u64,
    /// Free inodes.
    pub inodes_free: u64,
}

/// The programs that the node service needs, in the order in which a volume's life cycle uses them.
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

/// The programs of [`PROGRAMS`] that are missing on this machine.
pub fn missing_programs(host: &impl Host) -> Vec<String> {
    PROGRAMS
        .iter()
        .filter(|program| !host.has_program(program))
        .map(|program| (*program).to_owned())
        .collect()
}

#[cfg(test)]
mod tests;
