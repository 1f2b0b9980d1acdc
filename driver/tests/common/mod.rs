//! Shared by the tests with real tools: sparse files, loop devices with cleanup, and logged skips.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "every test binary uses its own part, and so do the crate's own tests"
)]

use std::io::Write as _;
use std::path::{Path, PathBuf};

use driver::host::linux::Linux;
use driver::host::{Cmd, Exit, Host as _};

/// The real host.
pub fn host() -> Linux {
    Linux::new(PathBuf::from("/"))
}

/// Runs a command; panics if it fails.
pub async fn run(program: &'static str, args: &[&str]) -> Exit {
    let cmd = Cmd::new(program, 300).args(args.iter().copied());
    let exit = host()
        .run(cmd.clone())
        .await
        .unwrap_or_else(|error| panic!("{cmd}: {error}"));
    assert_eq!(exit.status, 0, "{cmd}: {}{}", exit.stdout, exit.stderr);
    exit
}

/// True as root; otherwise reports that the test is skipped, see [`skip`].
pub fn is_root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        skip(test, "needs root");
    }
    root
}

/// Reports a skipped test on stderr and in the file named by `SKIP_LOG`.
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

/// Creates a sparse file of `size` bytes, or resizes it.
pub fn sparse(path: &Path, size: u64) {
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .expect("a file can be created");
    file.set_len(size).expect("a file can be resized");
}

/// A loop device, detached when dropped, and a directory to mount it at, unmounted when dropped.
pub struct Loop {
    pub file: PathBuf,
    pub node: String,
    pub point: PathBuf,
    _dir: tempfile::TempDir,
}

impl Loop {
    /// Over a new sparse file of `size` bytes.
    pub async fn of(size: u64) -> Self {
        let dir = tempfile::tempdir().expect("a directory can be created");
        let (file, point) = (dir.path().join("lun"), dir.path().join("mount"));
        std::fs::create_dir(&point).expect("a directory can be created");
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

    /// Resizes file and device, like a grown LUN after a rescan.
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

/// Runs a command from synchronous code, as in `drop`; ignores its result.
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
