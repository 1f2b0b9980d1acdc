//! The real host with a simulated iSCSI initiator.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

use super::super::*;
use super::common;
use crate::host::linux::Linux;
use crate::host::{FileStamp, HostError, KernelFiles, ProcessScope, ReadMode, Space, Span, Stat};

/// The real host with a simulated initiator: one target, whose LUN is a loop device.
#[derive(Debug)]
pub(super) struct SimulatedInitiator {
    linux: Linux,
    dir: tempfile::TempDir,
    pub(super) node: String,
    /// The next mkfs is killed after this time.
    pub(super) mkfs_timeout: std::sync::Mutex<Option<Duration>>,
    /// How long the last mkfs took.
    pub(super) mkfs_duration: std::sync::Mutex<Duration>,
}

impl SimulatedInitiator {
    pub(super) async fn new(size: Bytes) -> Arc<Self> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("lun");
        common::sparse(&file, size.0);
        let node = common::run("losetup", &["--find", "--show", file.to_str().unwrap()])
            .await
            .stdout
            .trim()
            .to_owned();
        for sub in [
            "etc/iscsi",
            "sys/class/block",
            "sys/class/iscsi_session",
            "pods",
            "staging",
        ] {
            std::fs::create_dir_all(dir.path().join(sub)).unwrap();
        }
        std::fs::write(
            dir.path().join("etc/iscsi/initiatorname.iscsi"),
            "InitiatorName=iqn.x\n",
        )
        .unwrap();
        let linux = Linux::new(dir.path().to_owned());
        Arc::new(Self {
            linux,
            dir,
            node,
            mkfs_timeout: std::sync::Mutex::default(),
            mkfs_duration: std::sync::Mutex::default(),
        })
    }

    pub(super) fn path(&self, sub: &str) -> String {
        self.dir
            .path()
            .canonicalize()
            .unwrap()
            .join(sub)
            .to_str()
            .unwrap()
            .to_owned()
    }

    fn name(&self) -> &str {
        self.node.strip_prefix("/dev/").unwrap()
    }

    pub(super) fn iqn() -> Iqn {
        Iqn::without_nonce(&UUID.parse().unwrap(), &NodeId::derive(NODE, "iqn.x"))
    }

    fn log_in(&self) -> i32 {
        let session = PathBuf::from(self.path("sys/class/iscsi_session/session1"));
        if session.exists() {
            return 15;
        }
        let unit = session.join("device/target1:0:0/1:0:0:1");
        std::fs::create_dir_all(unit.join("block")).unwrap();
        std::fs::write(session.join("targetname"), Self::iqn().as_str()).unwrap();
        std::fs::write(session.join("state"), "LOGGED_IN\n").unwrap();
        std::fs::write(
            unit.join("vpd_pg80"),
            [&[0, 0x80, 0, 36], UUID.as_bytes()].concat(),
        )
        .unwrap();
        let real = format!("/sys/class/block/{}", self.name());
        symlink(&real, unit.join("block").join(self.name())).unwrap();
        symlink(
            &real,
            self.path(&format!("sys/class/block/{}", self.name())),
        )
        .unwrap();
        0
    }

    fn log_out(&self) -> i32 {
        let _ = std::fs::remove_file(self.path(&format!("sys/class/block/{}", self.name())));
        i32::from(std::fs::remove_dir_all(self.path("sys/class/iscsi_session/session1")).is_err())
            * 21
    }
}

impl Drop for SimulatedInitiator {
    fn drop(&mut self) {
        for point in [
            "pods/2",
            "pods/1",
            "staging.csi.synology.com-readonly",
            "staging",
        ] {
            common::blocking_run(Cmd::new("umount", 60).arg(self.path(point)));
        }
        common::blocking_run(Cmd::new("losetup", 60).args(["--detach", &self.node]));
    }
}

impl Host for Arc<SimulatedInitiator> {
    async fn run(&self, mut cmd: Cmd) -> Result<Exit, HostError> {
        if cmd.program == "iscsiadm" {
            let status = match cmd.args.last().map(String::as_str) {
                Some("--login") => self.log_in(),
                Some("--logout") => self.log_out(),
                Some("--rescan") => {
                    return self
                        .linux
                        .run(Cmd::new("losetup", 60).args(["--set-capacity", &self.node]))
                        .await;
                }
                Some("node" | "delete") => 21,
                _ => 0,
            };
            return Ok(Exit {
                status,
                ..Exit::default()
            });
        }
        if cmd.program.starts_with("mkfs") {
            cmd.deadline = self
                .mkfs_timeout
                .lock()
                .unwrap()
                .take()
                .unwrap_or(cmd.deadline);
            let started = std::time::Instant::now();
            let exit = self.linux.run(cmd).await;
            *self.mkfs_duration.lock().unwrap() = started.elapsed();
            return exit;
        }
        self.linux.run(cmd).await
    }

    fn has_program(&self, program: &str) -> bool {
        self.linux.has_program(program)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        doing: &str,
        look: impl FnOnce(&dyn KernelFiles) -> Result<T, HostError> + Send + 'static,
    ) -> Result<T, HostError> {
        self.linux.blocking(doing, look).await
    }

    async fn read(&self, path: &str) -> Result<Vec<u8>, HostError> {
        self.linux.read(path).await
    }

    async fn list(&self, path: &str) -> Result<Vec<String>, HostError> {
        self.linux.list(path).await
    }

    async fn stat(&self, path: &str) -> Result<Stat, HostError> {
        self.linux.stat(path).await
    }

    async fn is_mount_point(&self, path: &str) -> Result<Option<bool>, HostError> {
        self.linux.is_mount_point(path).await
    }

    async fn resolve(&self, path: &str) -> Result<String, HostError> {
        self.linux.resolve(path).await
    }

    async fn read_device(
        &self,
        device: &str,
        span: Span,
        via: ReadMode,
    ) -> Result<Vec<u8>, HostError> {
        self.linux.read_device(device, span, via).await
    }

    async fn find_data(&self, device: &str, spans: Vec<Span>) -> Result<Option<Span>, HostError> {
        self.linux.find_data(device, spans).await
    }

    async fn write_device(
        &self,
        device: &str,
        offset: u64,
        data: Vec<u8>,
    ) -> Result<(), HostError> {
        self.linux.write_device(device, offset, data).await
    }

    async fn can_open(&self, device: &str) -> Result<bool, HostError> {
        self.linux.can_open(device).await
    }

    async fn is_claimed(&self, device: &str) -> Result<bool, HostError> {
        self.linux.is_claimed(device).await
    }

    async fn fs_usage(&self, path: &str) -> Result<Space, HostError> {
        self.linux.fs_usage(path).await
    }

    async fn create_dir(&self, path: &str) -> Result<(), HostError> {
        self.linux.create_dir(path).await
    }

    async fn create_file(&self, path: &str) -> Result<(), HostError> {
        self.linux.create_file(path).await
    }

    async fn remove_dir(&self, path: &str) -> Result<(), HostError> {
        self.linux.remove_dir(path).await
    }

    async fn remove_file(&self, path: &str) -> Result<(), HostError> {
        self.linux.remove_file(path).await
    }

    async fn replace_file(
        &self,
        path: &str,
        aside: &str,
        text: SecretString,
    ) -> Result<(), HostError> {
        self.linux.replace_file(path, aside, text).await
    }

    async fn write_attribute(&self, path: &str, text: &str) -> Result<(), HostError> {
        self.linux.write_attribute(path, text).await
    }

    async fn file_stamp(&self, path: &str) -> Result<FileStamp, HostError> {
        self.linux.file_stamp(path).await
    }

    async fn is_running(
        &self,
        program: &'static str,
        who: ProcessScope,
    ) -> Result<bool, HostError> {
        self.linux.is_running(program, who).await
    }

    async fn wake_iscsid(&self) -> Result<bool, HostError> {
        self.linux.wake_iscsid().await
    }

    async fn kernel_log(&self) -> Result<Vec<String>, HostError> {
        self.linux.kernel_log().await
    }

    async fn pause(&self, time: Duration) {
        self.linux.pause(time).await;
    }
}
