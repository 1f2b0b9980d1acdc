//! EFFECT: [`Linux`], the implementation of [`Host`] on the real machine. The only place in the driver that starts programs.
//!
//! Nothing here blocks a worker of the async runtime: kernel files are read on the blocking pool, operations that may wait for a
//! disk run in their own thread ([`blocking`]), programs run as child processes, and everything has a deadline. What overruns it
//! (a process in uninterruptible sleep, a read from a device whose target is gone) cannot be stopped: it is abandoned, and keeps
//! the lock of its volume until it ends (design.md#unstage-needs-no-nas and #one-operation-per-volume).

mod blocking;
mod command;
mod daemon;
mod device;
mod files;
mod host_path;
pub mod nsenter;
mod process;
mod trust;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{major, minor};
use secrecy::{ExposeSecret as _, SecretString};
use tracing::debug;

use super::record::{DATABASES, LOCK};
use super::{
    Cmd, DeviceNumber, Exit, FileStamp, Host, HostError, KernelFiles, ProcessScope, ReadMode,
    Space, Span, Stat, if_present,
};
use daemon::IscsidCache;
use host_path::HostPath;
use nsenter::{Namespaces, Root};

use crate::metrics;
use crate::volume::Bytes;

/// Deadline of an operation on a file or directory.
const FILE_DEADLINE: Duration = Duration::from_secs(10);
/// Deadline of one read or write of a device. The kernel waits 120 s for a dead iSCSI session before it fails I/O.
const DEVICE_DEADLINE: Duration = Duration::from_secs(30);
const KERNEL_LOG: &str = "/dev/kmsg";
/// Older messages are not about the operation that has just failed.
const KERNEL_LOG_WINDOW: Duration = Duration::from_secs(150);

/// The machine that this process runs on.
#[derive(Clone, Debug)]
pub struct Linux {
    root: PathBuf,
    search_path: Vec<PathBuf>,
    namespaces: Namespaces,
    iscsid: IscsidCache,
}

impl Linux {
    /// This machine, with `/sys` and `/etc/iscsi` found below `root` (design.md#host-commands).
    pub fn new(root: PathBuf) -> Self {
        let path = std::env::var_os("PATH").filter(|path| !path.is_empty());
        let path = path.unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
        let search_path = std::env::split_paths(&path).collect();
        Self {
            root,
            search_path,
            namespaces: Namespaces::Own,
            iscsid: IscsidCache::default(),
        }
    }

    /// The same machine, with the host's own programs and their files in other namespaces.
    #[must_use]
    pub fn in_namespaces(self, namespaces: Namespaces) -> Self {
        Self { namespaces, ..self }
    }

    async fn locate(&self, path: &str) -> Result<HostPath, HostError> {
        let below = |prefix: &str| Path::new(path).starts_with(prefix);
        let relative = path.trim_start_matches('/');
        let of_open_iscsi = DATABASES.iter().any(|database| below(database)) || path == LOCK;
        if let (true, Some(owner)) = (of_open_iscsi, self.namespaces.of_files()) {
            let iscsid = self.iscsid.clone();
            // This may have to connect to a daemon, which may be slow.
            let find = move |_: &mut blocking::Step| Root::of(owner, &iscsid);
            let root =
                blocking::in_thread(&format!("finding {path}"), DEVICE_DEADLINE, find).await?;
            return Ok(HostPath::within(root.path.clone(), relative, Some(root)));
        }
        Ok(if of_open_iscsi && self.root != Path::new("/") {
            HostPath::within(self.root.clone(), relative, None)
        } else if of_open_iscsi || below("/sys") {
            // Links in sysfs stay in sysfs.
            HostPath::plain(self.root.join(relative))
        } else {
            HostPath::plain(PathBuf::from(path))
        })
    }

    /// Runs `act` on the blocking pool, with the real path behind all links.
    async fn on_pool<T: Send + 'static>(
        &self,
        doing: &'static str,
        path: &str,
        act: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T, HostError> {
        let host_path = self.locate(path).await?;
        let act = move || act(&host_path.follow_links()?.path);
        blocking::pooled(&format!("{doing} {path}"), path, FILE_DEADLINE, act).await
    }

    /// Runs `act` in its own thread, with a path whose last part is not followed if it is a link.
    async fn in_thread<T: Send + 'static>(
        &self,
        doing: &'static str,
        path: &str,
        act: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T, HostError> {
        let host_path = self.locate(path).await?;
        let act = move || act(&host_path.without_last_link()?.path);
        blocking::in_own_thread(&format!("{doing} {path}"), path, FILE_DEADLINE, act).await
    }
}

impl Host for Linux {
    async fn run(&self, cmd: Cmd) -> Result<Exit, HostError> {
        let started = std::time::Instant::now();
        let result = command::run(
            &cmd,
            self.namespaces.of_program(cmd.program),
            &self.search_path,
        )
        .await;
        let exit = result
            .as_ref()
            .map_or_else(HostError::label, |exit| exit.status.to_string().into());
        metrics::of_process().host(cmd.program, exit, started.elapsed());
        let status = result.as_ref().ok().map(|exit| exit.status);
        debug!(program = cmd.program, command = %cmd, status, seconds = started.elapsed().as_secs_f64(), "host command");
        result
    }

    fn has_program(&self, program: &str) -> bool {
        if let Some(owner) = self.namespaces.of_program(program) {
            return Root::of(owner, &self.iscsid).is_ok_and(|root| root.has(program));
        }
        self.search_path.iter().any(|dir| {
            fs::metadata(dir.join(program))
                .is_ok_and(|meta| meta.is_file() && meta.mode() & 0o111 != 0)
        })
    }

    fn check_namespaces(&self) -> Result<(), HostError> {
        match self.namespaces.of_files() {
            Some(owner) => Root::of(owner, &self.iscsid).map(|_| ()),
            None => Ok(()),
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        doing: &str,
        look: impl FnOnce(&dyn KernelFiles) -> Result<T, HostError> + Send + 'static,
    ) -> Result<T, HostError> {
        let files = files::SysRoot(self.root.clone());
        blocking::blocking(doing, FILE_DEADLINE, move || look(&files)).await
    }

    async fn read(&self, path: &str) -> Result<Vec<u8>, HostError> {
        let is_sysfs = files::is_sysfs(path);
        let read = move |path: &Path| files::read(path, is_sysfs);
        self.on_pool("reading", path, read).await
    }

    async fn list(&self, path: &str) -> Result<Vec<String>, HostError> {
        let entries = self.on_pool("listing", path, files::entries).await?;
        Ok(entries.into_iter().map(|entry| entry.name).collect())
    }

    async fn stat(&self, path: &str) -> Result<Stat, HostError> {
        self.in_thread("inspecting", path, |path| {
            let meta = fs::symlink_metadata(path)?;
            Ok(match meta.file_type() {
                kind if kind.is_dir() => Stat::Directory,
                kind if kind.is_file() => Stat::File(meta.len()),
                kind if kind.is_block_device() => Stat::BlockDevice(DeviceNumber {
                    major: major(meta.rdev()),
                    minor: minor(meta.rdev()),
                }),
                _ => Stat::Other,
            })
        })
        .await
    }

    async fn is_mount_point(&self, path: &str) -> Result<Option<bool>, HostError> {
        let found = self
            .in_thread("inspecting", path, files::is_mount_point)
            .await;
        Ok(if_present(found)?.unwrap_or(Some(false)))
    }

    async fn resolve(&self, path: &str) -> Result<String, HostError> {
        self.in_thread("resolving", path, |path| {
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
                return Err(io::Error::from(io::ErrorKind::InvalidInput));
            };
            let parent = fs::canonicalize(parent)?;
            if !parent.is_dir() {
                // A file has no children.
                return Err(io::Error::from(io::ErrorKind::NotADirectory));
            }
            let real = parent.join(name);
            real.into_os_string()
                .into_string()
                .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
        })
        .await
    }

    async fn read_device(
        &self,
        device: &str,
        span: Span,
        via: ReadMode,
    ) -> Result<Vec<u8>, HostError> {
        let path = PathBuf::from(device);
        let doing = format!(
            "reading {} bytes at {} of {device}",
            span.length, span.offset
        );
        let read = move || device::read(&path, span, via);
        blocking::in_own_thread(&doing, device, DEVICE_DEADLINE, read).await
    }

    async fn find_data(&self, device: &str, spans: Vec<Span>) -> Result<Option<Span>, HostError> {
        let path = PathBuf::from(device);
        let doing = format!("reading parts of {device}");
        let find = move |step: &mut blocking::Step| device::find_data(&path, spans, step);
        blocking::in_steps(&doing, device, DEVICE_DEADLINE, find).await
    }

    async fn write_device(
        &self,
        device: &str,
        offset: u64,
        data: Vec<u8>,
    ) -> Result<(), HostError> {
        let path = PathBuf::from(device);
        let doing = format!("writing {} bytes at {offset} of {device}", data.len());
        let write = move || device::write(&path, offset, &data);
        blocking::in_own_thread(&doing, device, DEVICE_DEADLINE, write).await
    }

    async fn can_open(&self, device: &str) -> Result<bool, HostError> {
        let path = PathBuf::from(device);
        let doing = format!("opening {device}");
        let open = move || device::opens(&path);
        blocking::in_own_thread(&doing, device, DEVICE_DEADLINE, open).await
    }

    async fn is_claimed(&self, device: &str) -> Result<bool, HostError> {
        let path = PathBuf::from(device);
        let doing = format!("opening {device}");
        let open = move || device::is_claimed(&path);
        blocking::in_own_thread(&doing, device, DEVICE_DEADLINE, open).await
    }

    async fn fs_usage(&self, path: &str) -> Result<Space, HostError> {
        self.in_thread("measuring", path, |path| {
            let fs = nix::sys::statvfs::statvfs(path)?;
            let bytes = |blocks: u64| Bytes(blocks.saturating_mul(fs.fragment_size()));
            Ok(Space {
                total: bytes(fs.blocks()),
                available: bytes(fs.blocks_available()),
                used: bytes(fs.blocks().saturating_sub(fs.blocks_free())),
                inodes: fs.files(),
                inodes_free: fs.files_free(),
            })
        })
        .await
    }

    async fn create_dir(&self, path: &str) -> Result<(), HostError> {
        self.in_thread(
            "creating directory",
            path,
            |path| match fs::DirBuilder::new().mode(0o750).create(path) {
                Err(error)
                    if error.kind() == io::ErrorKind::AlreadyExists
                        && fs::symlink_metadata(path)?.is_dir() =>
                {
                    Ok(())
                }
                other => other,
            },
        )
        .await
    }

    async fn create_file(&self, path: &str) -> Result<(), HostError> {
        self.in_thread("creating file", path, |path| {
            match OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o640)
                .open(path)
            {
                Ok(_) => Ok(()),
                Err(error)
                    if error.kind() == io::ErrorKind::AlreadyExists
                        && fs::symlink_metadata(path)?.is_file() =>
                {
                    Ok(())
                }
                Err(error) => Err(error),
            }
        })
        .await
    }

    async fn remove_dir(&self, path: &str) -> Result<(), HostError> {
        self.in_thread("removing directory", path, |path| {
            ignore_absent(fs::remove_dir(path))
        })
        .await
    }

    async fn remove_file(&self, path: &str) -> Result<(), HostError> {
        self.in_thread("removing file", path, |path| {
            ignore_absent(fs::remove_file(path))
        })
        .await
    }

    async fn replace_file(
        &self,
        path: &str,
        temp: &str,
        text: SecretString,
    ) -> Result<(), HostError> {
        let temp = self.locate(temp).await?;
        self.in_thread("replacing file", path, move |path| {
            let temp = temp.without_last_link()?;
            let replaced = replace(path, &temp.path, text.expose_secret().as_bytes());
            if replaced.is_err() {
                // Only the first error matters.
                let _ = fs::remove_file(&temp.path);
            }
            replaced
        })
        .await
    }

    async fn write_attribute(&self, path: &str, text: &str) -> Result<(), HostError> {
        let (host_path, text) = (self.locate(path).await?, text.to_owned());
        let doing = format!("writing {text:?} to {path}");
        debug!(path, text, "writing to sysfs");
        // A scan waits for the target, so this needs its own thread.
        let write = move || {
            let target = host_path.follow_links()?;
            let mut file = OpenOptions::new().write(true).open(&target.path)?;
            io::Write::write_all(&mut file, text.as_bytes())
        };
        blocking::in_own_thread(&doing, path, DEVICE_DEADLINE, write).await
    }

    async fn file_stamp(&self, path: &str) -> Result<FileStamp, HostError> {
        self.in_thread("inspecting", path, |path| {
            let meta = fs::symlink_metadata(path)?;
            Ok(FileStamp {
                inode: meta.ino(),
                changed: (meta.ctime(), meta.ctime_nsec()),
            })
        })
        .await
    }

    async fn is_running(
        &self,
        program: &'static str,
        who: ProcessScope,
    ) -> Result<bool, HostError> {
        let namespaces = self.namespaces;
        let doing = format!("checking whether {program} runs");
        let look = move |_: &mut blocking::Step| process::is_running(program, who, namespaces);
        blocking::in_thread(&doing, FILE_DEADLINE, look).await
    }

    async fn wake_iscsid(&self) -> Result<bool, HostError> {
        let namespaces = self.namespaces;
        let connect = move |_: &mut blocking::Step| process::wake_iscsid(namespaces);
        blocking::in_thread("connecting to iscsid", FILE_DEADLINE, connect).await
    }

    async fn kernel_log(&self) -> Result<Vec<String>, HostError> {
        let doing = "reading the kernel log";
        blocking::pooled(doing, KERNEL_LOG, FILE_DEADLINE, kernel_log).await
    }

    async fn pause(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }
}

/// The kernel's messages of the last [`KERNEL_LOG_WINDOW`]. Each read returns one record: `priority,number,microseconds,…;text`
/// and a newline (Linux, `Documentation/ABI/testing/dev-kmsg`).
fn kernel_log() -> io::Result<Vec<String>> {
    let uptime = fs::read_to_string("/proc/uptime")?;
    let seconds = uptime.split('.').next().and_then(|it| it.parse().ok());
    let since = Duration::from_secs(seconds.unwrap_or_default()).saturating_sub(KERNEL_LOG_WINDOW);
    let mut log = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(KERNEL_LOG)?;
    let (mut lines, mut record) = (Vec::new(), [0; 8192]);
    loop {
        let length = match io::Read::read(&mut log, &mut record) {
            Ok(0) => return Ok(lines),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(lines),
            // The next record was overwritten in the ring buffer; there are more behind it.
            Err(error) if error.raw_os_error() == Some(Errno::EPIPE as i32) => continue,
            Err(error) => return Err(error),
        };
        let record = String::from_utf8_lossy(&record[..length]);
        let Some((head, text)) = record.split_once(';') else {
            continue;
        };
        let time = head.split(',').nth(2).and_then(|it| it.parse().ok());
        if time.is_none_or(|time| Duration::from_micros(time) >= since) {
            lines.push(text.lines().next().unwrap_or_default().to_owned());
        }
    }
}

fn replace(path: &Path, temp: &Path, text: &[u8]) -> io::Result<()> {
    // A new file, so that no other process has it open and its mode is ours.
    ignore_absent(fs::remove_file(temp))?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(temp)?;
    io::Write::write_all(&mut file, text)?;
    file.sync_all()?;
    fs::rename(temp, path)?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

fn ignore_absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests;
