//! What the tests with real tools share: sparse files, loop devices that always go again, and honest skips.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "every test binary uses its own part, and so do the crate's own tests"
)]

use std::io::Write as _;
use std::path::{Path, PathBuf};

use driver::host::linux::Linux;
use driver::host::{Cmd, Exit, Host as _};

/// The real machine.
pub fn host() -> Linux {
    Linux::new(PathBuf::from("/"))
}

/// Runs a command that has to succeed.
pub async fn run(program: &'static str, args: &[&str]) -> Exit {
    let cmd = Cmd::new(program, 300).args(args.iter().copied());
    let exit = host()
        .run(cmd.clone())
        .await
        .unwrap_or_else(|error| panic!("{cmd}: {error}"));
    assert_eq!(exit.status, 0, "{cmd}: {}{}", exit.stdout, exit.stderr);
    exit
}

/// True as root; else says and logs that the test is skipped.
pub fn is_root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        skip(test, "needs root");
    }
    root
}

/// Says, and appends to the file named by `SKIP_LOG`, that a test is skipped.
pub fn skip(test: &str, why: &str) {
    let line = format!("SKIP: {test}: {why}");
    eprintln!("{line}");
    if let Some(log) = std::env::var_os("SKIP_LOG") {
        let mut log = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(log)
            .expect("SKIP_LOG can be written");
        writeln!(log, "{line}").expect("SKIP_LOG can be written");
    }
}

/// A sparse file of `size` bytes.
pub fn sparse(path: &Path, size: u64) {
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .expect("a file can be made");
    file.set_len(size).expect("a file can be sized");
}

/// A loop device, detached when dropped, and a directory to mount it at, unmounted when dropped.
pub struct Loop {
    pub file: PathBuf,
    pub node: String,
    pub point: PathBuf,
    _dir: tempfile::TempDir,
}

impl Loop {
    /// Over a fresh sparse file.
    pub async fn of(size: u64) -> Self {
        let dir = tempfile::tempdir().expect("a directory can be made");
        let (file, point) = (dir.path().join("lun"), dir.path().join("mount"));
        std::fs::create_dir(&point).expect("a directory can be made");
        sparse(&file, size);
        let node = run(
            "losetup",
            &["--find", "--show", &file.display().to_string()],
        )
        .await
        .stdout
        .trim()
        .to_owned();
        Self {
            file,
            node,
            point,
            _dir: dir,
        }
    }

    /// As a grown LUN after a rescan.
    pub async fn grow(&self, size: u64) {
        sparse(&self.file, size);
        run("losetup", &["--set-capacity", &self.node]).await;
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let clean_up = [
            ("umount", self.point.display().to_string()),
            ("losetup", format!("--detach={}", self.node)),
        ];
        for (program, arg) in clean_up {
            blocking_run(Cmd::new(program, 60).arg(arg));
        }
    }
}

/// Runs a command, whatever comes of it, from where nothing can be awaited.
pub fn blocking_run(cmd: Cmd) {
    let ended = std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime can be built");
        let _ = runtime.block_on(host().run(cmd));
    });
    let _ = ended.join();
}
