//! EFFECT: the real machine. The only place of the driver that starts programs.
//!
//! Nothing here blocks a worker: files of the kernel are read on the blocking pool, what may wait for a disk has a thread of its
//! own ([`wait`]), programs run as children, and all have a deadline. What overruns it (a process in uninterruptible sleep, a read
//! from a device whose target is gone) cannot be stopped: it is left to itself together with the lock of the volume it works for
//! (design.md#unstage-needs-no-nas and #one-operation-per-volume).

mod blocking;
mod command;
mod daemon;
mod device;
mod exec;
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
    Cmd, DeviceNumber, Exit, Host, HostError, KernelFiles, Space, Span, Stat, Touched, Via, Who,
    if_present,
};
use daemon::Kept;
use host_path::Place;
use nsenter::{Namespaces, Root};

use crate::metrics;
use crate::volume::Bytes;

/// How long a file, a directory or a path may take.
const FILE_DEADLINE: Duration = Duration::from_secs(10);
/// How long one read or write of a device may take. The kernel gives a dead iSCSI session 120 s before it fails I/O.
const DEVICE_DEADLINE: Duration = Duration::from_secs(30);
const KERNEL_LOG: &str = "/dev/kmsg";
/// What the kernel has said before is not about what has just failed.
const KERNEL_LOG_WINDOW: Duration = Duration::from_secs(150);

/// The machine that this process runs on.
#[derive(Clone, Debug)]
pub struct Linux {
    root: PathBuf,
    search: Vec<PathBuf>,
    namespaces: Namespaces,
    kept: Kept,
}

impl Linux {
    /// This machine, with `/sys` and `/etc/iscsi` found below `root` (design.md#host-commands).
    pub fn new(root: PathBuf) -> Self {
        let path = std::env::var_os("PATH").filter(|path| !path.is_empty());
        let path = path.unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
        let search = std::env::split_paths(&path).collect();
        Self {
            root,
            search,
            namespaces: Namespaces::Own,
            kept: Kept::default(),
        }
    }

    /// The same, with the host's own programs and their files found in other namespaces.
    #[must_use]
    pub fn in_namespaces(self, namespaces: Namespaces) -> Self {
        Self { namespaces, ..self }
    }

    async fn place(&self, path: &str) -> Result<Place, HostError> {
        let below = |prefix: &str| Path::new(path).starts_with(prefix);
        let bare = path.trim_start_matches('/');
        let of_open_iscsi = DATABASES.iter().any(|database| below(database)) || path == LOCK;
        if let (true, Some(whose)) = (of_open_iscsi, self.namespaces.of_files()) {
            let kept = self.kept.clone();
            // It may have to ask a daemon, which may be slow.
            let find = move |_: &mut blocking::Step| Root::of(whose, &kept);
            let root =
                blocking::in_thread(&format!("finding {path}"), DEVICE_DEADLINE, find).await?;
            return Ok(Place::within(root.path.clone(), bare, Some(root)));
        }
        Ok(if of_open_iscsi && self.root != Path::new("/") {
            Place::within(self.root.clone(), bare, None)
        } else if of_open_iscsi || below("/sys") {
            // Links of sysfs lead to sysfs.
            Place::plain(self.root.join(bare))
        } else {
            Place::plain(PathBuf::from(path))
        })
    }

    /// Looks at what a path leads to.
    async fn read_at<T: Send + 'static>(
        &self,
        doing: &'static str,
        path: &str,
        look: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T, HostError> {
        let place = self.place(path).await?;
        let look = move || look(&place.followed()?.path);
        blocking::pooled(&format!("{doing} {path}"), path, FILE_DEADLINE, look).await
    }

    async fn at<T: Send + 'static>(
        &self,
        doing: &'static str,
        path: &str,
        look: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T, HostError> {
        let place = self.place(path).await?;
        let look = move || look(&place.named()?.path);
        blocking::in_own_thread(&format!("{doing} {path}"), path, FILE_DEADLINE, look).await
    }
}

impl Host for Linux {
    async fn run(&self, cmd: Cmd) -> Result<Exit, HostError> {
        let started = std::time::Instant::now();
        let result =
            command::run(&cmd, self.namespaces.of_program(cmd.program), &self.search).await;
        let exit = result
            .as_ref()
            .map_or_else(HostError::label, |exit| exit.status.to_string().into());
        metrics::of_process().host(cmd.program, exit, started.elapsed());
        let status = result.as_ref().ok().map(|exit| exit.status);
        debug!(program = cmd.program, command = %cmd, status, seconds = started.elapsed().as_secs_f64(), "host command");
        result
    }

    fn has(&self, program: &str) -> bool {
        if let Some(whose) = self.namespaces.of_program(program) {
            return Root::of(whose, &self.kept).is_ok_and(|root| root.has(program));
        }
        self.search.iter().any(|dir| {
            fs::metadata(dir.join(program))
                .is_ok_and(|meta| meta.is_file() && meta.mode() & 0o111 != 0)
        })
    }

    fn reach(&self) -> Result<(), HostError> {
        match self.namespaces.of_files() {
            Some(whose) => Root::of(whose, &self.kept).map(|_| ()),
            None => Ok(()),
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        doing: &str,
        look: impl FnOnce(&dyn KernelFiles) -> Result<T, HostError> + Send + 'static,
    ) -> Result<T, HostError> {
        let files = files::Below(self.root.clone());
        blocking::blocking(doing, FILE_DEADLINE, move || look(&files)).await
    }

    async fn read(&self, path: &str) -> Result<Vec<u8>, HostError> {
        let of_sysfs = files::is_of_sysfs(path);
        let read = move |path: &Path| files::read(path, of_sysfs);
        self.read_at("reading", path, read).await
    }

    async fn list(&self, path: &str) -> Result<Vec<String>, HostError> {
        let entries = self.read_at("listing", path, files::entries).await?;
        Ok(entries.into_iter().map(|entry| entry.name).collect())
    }

    async fn stat(&self, path: &str) -> Result<Stat, HostError> {
        self.at("looking at", path, |path| {
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
        let found = self.at("looking at", path, files::is_mount_point).await;
        Ok(if_present(found)?.unwrap_or(Some(false)))
    }

    async fn resolve(&self, path: &str) -> Result<String, HostError> {
        self.at("resolving", path, |path| {
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
                return Err(io::Error::from(io::ErrorKind::InvalidInput));
            };
            let parent = fs::canonicalize(parent)?;
            if !parent.is_dir() {
                // Nothing can be below a file.
                return Err(io::Error::from(io::ErrorKind::NotADirectory));
            }
            let real = parent.join(name);
            real.into_os_string()
                .into_string()
                .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
        })
        .await
    }

    async fn read_device(&self, device: &str, span: Span, via: Via) -> Result<Vec<u8>, HostError> {
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

    async fn opens(&self, device: &str) -> Result<bool, HostError> {
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

    async fn space(&self, path: &str) -> Result<Space, HostError> {
        self.at("measuring", path, |path| {
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
        self.at("making directory", path, |path| match fs::DirBuilder::new()
            .mode(0o750)
            .create(path)
        {
            Err(error)
                if error.kind() == io::ErrorKind::AlreadyExists
                    && fs::symlink_metadata(path)?.is_dir() =>
            {
                Ok(())
            }
            other => other,
        })
        .await
    }

    async fn create_file(&self, path: &str) -> Result<(), HostError> {
        self.at("making file", path, |path| {
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
        self.at("removing directory", path, |path| {
            absent_is_fine(fs::remove_dir(path))
        })
        .await
    }

    async fn remove_file(&self, path: &str) -> Result<(), HostError> {
        self.at("removing file", path, |path| {
            absent_is_fine(fs::remove_file(path))
        })
        .await
    }

    async fn replace_file(
        &self,
        path: &str,
        aside: &str,
        text: SecretString,
    ) -> Result<(), HostError> {
        let aside = self.place(aside).await?;
        self.at("replacing file", path, move |path| {
            let aside = aside.named()?;
            let replaced = replace(path, &aside.path, text.expose_secret().as_bytes());
            if replaced.is_err() {
                // The error that matters is the first.
                let _ = fs::remove_file(&aside.path);
            }
            replaced
        })
        .await
    }

    async fn write_attribute(&self, path: &str, text: &str) -> Result<(), HostError> {
        let (place, text) = (self.place(path).await?, text.to_owned());
        let doing = format!("writing {text:?} to {path}");
        debug!(path, text, "telling the kernel");
        // A scan asks the target, which may take its time.
        let write = move || {
            let place = place.followed()?;
            let mut file = OpenOptions::new().write(true).open(&place.path)?;
            io::Write::write_all(&mut file, text.as_bytes())
        };
        blocking::in_own_thread(&doing, path, DEVICE_DEADLINE, write).await
    }

    async fn touched(&self, path: &str) -> Result<Touched, HostError> {
        self.at("looking at", path, |path| {
            let meta = fs::symlink_metadata(path)?;
            Ok(Touched {
                inode: meta.ino(),
                changed: (meta.ctime(), meta.ctime_nsec()),
            })
        })
        .await
    }

    async fn runs(&self, program: &'static str, who: Who) -> Result<bool, HostError> {
        let namespaces = self.namespaces;
        let doing = format!("looking whether {program} runs");
        let look = move |_: &mut blocking::Step| process::runs(program, who, namespaces);
        blocking::in_thread(&doing, FILE_DEADLINE, look).await
    }

    async fn wake_iscsid(&self) -> Result<bool, HostError> {
        let namespaces = self.namespaces;
        let call = move |_: &mut blocking::Step| process::wake_iscsid(namespaces);
        blocking::in_thread("calling iscsid", FILE_DEADLINE, call).await
    }

    async fn kernel_log(&self) -> Result<Vec<String>, HostError> {
        let doing = "reading the kernel's log";
        blocking::pooled(doing, KERNEL_LOG, FILE_DEADLINE, kernel_log).await
    }

    async fn pause(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }
}

/// What the kernel has said within [`LATELY`]. Each reading gives one record: `priority,number,microseconds,…;text` and a line end
/// (Linux, `Documentation/ABI/testing/dev-kmsg`).
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
            // What was to be read next has been overwritten: there is more behind it.
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

fn replace(path: &Path, aside: &Path, text: &[u8]) -> io::Result<()> {
    // Made anew, so that nobody has it open and its mode is ours.
    absent_is_fine(fs::remove_file(aside))?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(aside)?;
    io::Write::write_all(&mut file, text)?;
    file.sync_all()?;
    fs::rename(aside, path)?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests;
