//! Cleans up after a test cluster, however its process ended: a helper process waits until its standard input closes, which
//! also happens when the test is killed, then frees the cluster's processes, mounts, loop devices and files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::process;

/// A file of this name in a cluster's folder: leave everything as it is.
pub const KEEP: &str = "keep";
const RETRY_TIMEOUT: Duration = Duration::from_secs(20);
/// The programs of a cluster; no others are killed.
const OURS: [&str; 6] = [
    "synology-csi",
    "dsm-sim",
    "node-sim",
    "iscsiadm",
    "csi-sanity",
    "qemu-system-x86_64",
];

/// A handle of the janitor process. Dropping it starts the cleanup and waits for it.
#[derive(Debug)]
pub struct Janitor(Child);

impl Janitor {
    /// Starts a janitor for `folder`.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(folder: &Path) -> Result<Self> {
        process::start_janitor(folder).map(Self)
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Frees everything that the cluster in `folder` uses, then removes the folder.
///
/// # Errors
/// A resource cannot be freed.
pub fn clean(folder: &Path) -> Result<()> {
    if folder.join(KEEP).exists() {
        return Ok(());
    }
    for pid in processes_of(folder)? {
        let _ = kill(pid, Signal::SIGKILL);
    }
    retry("its processes have ended", || {
        Ok(processes_of(folder)?.is_empty())
    })?;
    retry("its mounts are gone", || {
        for mount in mounts_below(folder)?.iter().rev() {
            let _ = process::run("umount", [mount]);
        }
        Ok(mounts_below(folder)?.is_empty())
    })?;
    for node in host_roots(folder)? {
        retry("its loop devices are free", || {
            let root = node.to_string_lossy().into_owned();
            Ok(process::run(
                &process::binary("node-sim")?.to_string_lossy(),
                ["cleanup", "--root", &root],
            )
            .is_ok())
        })?;
    }
    fs::remove_dir_all(folder)?;
    Ok(())
}

/// The host roots of a cluster: one, or one per node.
fn host_roots(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut roots = vec![folder.join("node")];
    for entry in fs::read_dir(folder)? {
        roots.push(entry?.path().join("node"));
    }
    roots.retain(|root| root.join("var/node-sim").exists());
    Ok(roots)
}

fn retry(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + RETRY_TIMEOUT;
    while !done()? {
        ensure!(
            Instant::now() < deadline,
            "waited {RETRY_TIMEOUT:?} until {what}"
        );
        #[expect(
            clippy::disallowed_methods,
            reason = "a pause between two checks, with a timeout"
        )]
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Processes of our programs with `folder` in their program path or arguments.
fn processes_of(folder: &Path) -> Result<Vec<Pid>> {
    let folder = folder.to_string_lossy();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        let Ok(command_line) = fs::read(format!("/proc/{pid}/cmdline")) else {
            continue;
        };
        let command_line = String::from_utf8_lossy(&command_line);
        let mut arguments = command_line.split('\0');
        let program = arguments
            .clone()
            .next()
            .and_then(|program| program.rsplit('/').next())
            .unwrap_or_default();
        // node-sim's iscsiadm has no such argument, but its program lies in the folder.
        if OURS.contains(&program) && arguments.any(|argument| argument.contains(&*folder)) {
            found.push(Pid::from_raw(pid));
        }
    }
    Ok(found)
}

/// Mount points below `folder`, in mount order.
///
/// # Errors
/// `/proc/self/mountinfo` cannot be read.
pub fn mounts_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let points = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from);
    Ok(points.filter(|point| point.starts_with(folder)).collect())
}
