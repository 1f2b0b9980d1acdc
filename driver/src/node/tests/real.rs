//! Whole calls with the real mkfs, mount and resize tools on a loop device; only iSCSI and its part of sysfs are played.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _};

use super::*;
use crate::host::linux::Linux;
use crate::host::{Space, Span, Stat, Via};
use crate::volume::VolumeId;

#[path = "../../../tests/common/mod.rs"]
mod common;

/// The real machine with a played initiator: one target, whose LUN is a loop device.
#[derive(Debug)]
struct Stage1 {
    linux: Linux,
    dir: tempfile::TempDir,
    node: String,
    /// Kills mkfs after so long.
    patience: std::sync::Mutex<Option<Duration>>,
    /// How long the last mkfs took.
    took: std::sync::Mutex<Duration>,
}

impl Stage1 {
    async fn new(size: Bytes) -> Arc<Self> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("lun");
        common::sparse(&file, size.0);
        let node = common::run("losetup", &["--find", "--show", file.to_str().unwrap()]).await.stdout.trim().to_owned();
        for sub in ["etc/iscsi", "sys/class/block", "sys/class/iscsi_session", "pods", "staging"] {
            std::fs::create_dir_all(dir.path().join(sub)).unwrap();
        }
        std::fs::write(dir.path().join("etc/iscsi/initiatorname.iscsi"), "InitiatorName=iqn.x\n").unwrap();
        let linux = Linux::new(dir.path().to_owned());
        Arc::new(Self { linux, dir, node, patience: std::sync::Mutex::default(), took: std::sync::Mutex::default() })
    }

    fn path(&self, sub: &str) -> String {
        self.dir.path().canonicalize().unwrap().join(sub).to_str().unwrap().to_owned()
    }

    fn name(&self) -> &str {
        self.node.strip_prefix("/dev/").unwrap()
    }

    fn iqn() -> Iqn {
        Iqn::of_publication(&UUID.parse().unwrap(), &NodeId::derive(NODE, "iqn.x"))
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
        std::fs::write(unit.join("vpd_pg80"), [&[0, 0x80, 0, 36], UUID.as_bytes()].concat()).unwrap();
        let real = format!("/sys/class/block/{}", self.name());
        symlink(&real, unit.join("block").join(self.name())).unwrap();
        symlink(&real, self.path(&format!("sys/class/block/{}", self.name()))).unwrap();
        0
    }

    fn log_out(&self) -> i32 {
        let _ = std::fs::remove_file(self.path(&format!("sys/class/block/{}", self.name())));
        i32::from(std::fs::remove_dir_all(self.path("sys/class/iscsi_session/session1")).is_err()) * 21
    }
}

impl Drop for Stage1 {
    fn drop(&mut self) {
        for point in ["pods/2", "pods/1", "staging.csi.synology.com-readonly", "staging"] {
            common::blocking_run(Cmd::new("umount", 60).arg(self.path(point)));
        }
        common::blocking_run(Cmd::new("losetup", 60).args(["--detach", &self.node]));
    }
}

impl Host for Arc<Stage1> {
    async fn run(&self, mut cmd: Cmd) -> Result<Exit, HostError> {
        if cmd.program == "iscsiadm" {
            let status = match cmd.args.last().map(String::as_str) {
                Some("--login") => self.log_in(),
                Some("--logout") => self.log_out(),
                Some("--rescan") => return self.linux.run(Cmd::new("losetup", 60).args(["--set-capacity", &self.node])).await,
                Some("node" | "delete") => 21,
                _ => 0,
            };
            return Ok(Exit { status, ..Exit::default() });
        }
        if cmd.program.starts_with("mkfs") {
            cmd.deadline = self.patience.lock().unwrap().take().unwrap_or(cmd.deadline);
            let started = std::time::Instant::now();
            let exit = self.linux.run(cmd).await;
            *self.took.lock().unwrap() = started.elapsed();
            return exit;
        }
        self.linux.run(cmd).await
    }

    fn has(&self, program: &str) -> bool {
        self.linux.has(program)
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

    async fn resolve(&self, path: &str) -> Result<String, HostError> {
        self.linux.resolve(path).await
    }

    async fn read_device(&self, device: &str, span: Span, via: Via) -> Result<Vec<u8>, HostError> {
        self.linux.read_device(device, span, via).await
    }

    async fn write_device(&self, device: &str, offset: u64, data: Vec<u8>) -> Result<(), HostError> {
        self.linux.write_device(device, offset, data).await
    }

    async fn is_claimed(&self, device: &str) -> Result<bool, HostError> {
        self.linux.is_claimed(device).await
    }

    async fn space(&self, path: &str) -> Result<Space, HostError> {
        self.linux.space(path).await
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

    async fn pause(&self, time: Duration) {
        self.linux.pause(time).await;
    }
}

/// A machine and the calls for its one volume.
struct Life {
    host: Arc<Stage1>,
    machine: Machine<Arc<Stage1>>,
    capability: Option<csi::VolumeCapability>,
}

impl Life {
    async fn new(fs: &'static str, size: Bytes) -> Self {
        let host = Stage1::new(size).await;
        let machine = Machine { host: host.clone(), node_name: NODE.to_owned(), driver_name: "csi.synology.com".to_owned() };
        let capability = if fs == "raw" { Co::raw().capability() } else { Co::with_fs(fs).capability() };
        Self { host, machine, capability }
    }

    fn volume_id() -> String {
        format!("nas1/{UUID}")
    }

    async fn stage(&self) -> Result<(), Error> {
        let context = PublishContext { portals: vec!["127.0.0.1:3260".parse().unwrap()], iqn: Stage1::iqn(), lun: 1, uuid: UUID.parse().unwrap() };
        let message = csi::NodeStageVolumeRequest {
            volume_id: Self::volume_id(),
            publish_context: context.to_map(),
            staging_target_path: self.host.path("staging"),
            volume_capability: self.capability.clone(),
            ..Default::default()
        };
        self.machine.stage(&Stage::read(&message)?).await
    }

    async fn publish(&self, target: &str, readonly: bool) -> Result<(), Error> {
        let message = csi::NodePublishVolumeRequest {
            volume_id: Self::volume_id(),
            staging_target_path: self.host.path("staging"),
            target_path: self.host.path(target),
            volume_capability: self.capability.clone(),
            readonly,
            ..Default::default()
        };
        self.machine.publish(&Publish::read(&message)?).await
    }

    async fn expand(&self, path: &str, required: Bytes) -> Result<Bytes, Error> {
        let capacity_range = Some(csi::CapacityRange { required_bytes: required.as_i64(), limit_bytes: 0 });
        let message = csi::NodeExpandVolumeRequest { volume_id: Self::volume_id(), volume_path: self.host.path(path), capacity_range, ..Default::default() };
        self.machine.expand(&Expand::read(&message)?).await
    }

    async fn unpublish(&self, target: &str) -> Result<(), Error> {
        self.machine.unpublish(&Self::volume_id().parse::<VolumeId>().unwrap(), &self.host.path(target)).await
    }

    async fn unstage(&self) -> Result<(), Error> {
        let message = csi::NodeUnstageVolumeRequest { volume_id: Self::volume_id(), staging_target_path: self.host.path("staging") };
        self.machine.unstage(&Unstage::read(&message)?).await
    }

    fn grow_lun(&self, size: Bytes) {
        common::sparse(&PathBuf::from(self.host.path("lun")), size.0);
    }

    async fn bytes(&self, path: &str) -> i64 {
        let ask = Stats { volume: Self::volume_id().parse().unwrap(), path: self.host.path(path) };
        self.machine.stats(&ask).await.unwrap()[0].total
    }
}

async fn live(fs: &'static str) {
    let life = Life::new(fs, Bytes::GIB).await;
    let text = "x".repeat(3 << 20);
    life.stage().await.unwrap();
    life.stage().await.unwrap();
    life.publish("pods/1", false).await.unwrap();
    life.publish("pods/2", true).await.unwrap();
    std::fs::write(life.host.path("pods/1/file"), &text).unwrap();
    assert!(std::fs::write(life.host.path("pods/2/other"), "x").is_err(), "read-only is read-only");
    let before = life.bytes("pods/1").await;
    let grown = Bytes::mib(1536);
    life.grow_lun(grown);
    match life.expand("pods/1", grown).await {
        Ok(size) => assert_eq!(size, grown),
        Err(error) if fs == "ext4" && error.chain().contains("CAP_SYS_RESOURCE") => {
            common::skip("choice_14_ext4_lives (mounted growth)", "growth of a mounted ext4 needs CAP_SYS_RESOURCE");
            assert_eq!(error.code(), Code::FailedPrecondition);
            life.unpublish("pods/1").await.unwrap();
            life.unpublish("pods/2").await.unwrap();
            life.unstage().await.unwrap();
            life.stage().await.unwrap();
            life.publish("pods/1", false).await.unwrap();
        }
        Err(error) => panic!("{}", error.chain()),
    }
    assert_eq!(life.expand("staging", grown).await.unwrap(), grown);
    let after = life.bytes("pods/1").await;
    assert!(after - before > 480 << 20, "{before} became {after}");
    assert_eq!(std::fs::read_to_string(life.host.path("pods/1/file")).unwrap(), text);
    for target in ["pods/1", "pods/2"] {
        life.unpublish(target).await.unwrap();
        life.unpublish(target).await.unwrap();
        assert!(!PathBuf::from(life.host.path(target)).exists());
    }
    life.unstage().await.unwrap();
    life.unstage().await.unwrap();
    let mounts = life.machine.mounts().await.unwrap();
    assert!(mounts.iter().all(|mount| !mount.point.starts_with(&life.host.path(""))));
}

#[tokio::test]
async fn choice_14_ext4_lives() {
    if common::is_root("choice_14_ext4_lives") {
        live("ext4").await;
    }
}

#[tokio::test]
async fn choice_14_xfs_lives() {
    if common::is_root("choice_14_xfs_lives") {
        live("xfs").await;
    }
}

#[tokio::test]
async fn choice_14_btrfs_lives() {
    if common::is_root("choice_14_btrfs_lives") {
        live("btrfs").await;
    }
}

#[tokio::test]
async fn choice_14_a_raw_device_lives() {
    if !common::is_root("choice_14_a_raw_device_lives") {
        return;
    }
    let life = Life::new("raw", Bytes::GIB).await;
    life.stage().await.unwrap();
    for _ in 0..2 {
        life.publish("pods/1", false).await.unwrap();
    }
    life.grow_lun(Bytes::gib(2));
    assert_eq!(life.expand("pods/1", Bytes::gib(2)).await.unwrap(), Bytes::gib(2));
    assert_eq!(life.bytes("pods/1").await, Bytes::gib(2).as_i64());
    life.unpublish("pods/1").await.unwrap();
    life.unstage().await.unwrap();
}

/// Kills the real mkfs at random moments, as often as it takes, and then stages to the end.
async fn survive_kills(test: &str, fs: &'static str, check: &'static str, check_args: &[&str]) {
    if !common::is_root(test) {
        return;
    }
    let seed: u64 = std::env::var_os("SEED").and_then(|seed| seed.to_str()?.parse().ok()).unwrap_or(20_251);
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let mut killed = 0;
    // How long it takes undisturbed is measured again and again, so that the kills fall on all of it.
    let mut whole = Duration::ZERO;
    for round in 0..60 {
        if killed >= 12 {
            break;
        }
        let life = Life::new(fs, Bytes::GIB).await;
        for _ in 0..if round == 0 { 0 } else { 3 } {
            *life.host.patience.lock().unwrap() = Some(whole.mul_f64(random.random_range(0.05..1.0)));
            match life.stage().await {
                Ok(()) => break,
                Err(error) => assert_eq!(error.code(), Code::Aborted, "seed {seed}, round {round}: {}", error.chain()),
            }
            killed += 1;
        }
        *life.host.patience.lock().unwrap() = None;
        life.stage().await.unwrap_or_else(|error| panic!("seed {seed}, round {round}: {}", error.chain()));
        whole = *life.host.took.lock().unwrap();
        life.unstage().await.unwrap();
        common::run(check, &[check_args, &[life.host.node.as_str()]].concat()).await;
    }
    eprintln!("seed {seed}: {killed} mkfs.{fs} were killed within {whole:?}");
    assert!(killed >= 12, "seed {seed}: only {killed} were killed in time");
}

#[tokio::test]
async fn choice_9_ext4_survives_kills() {
    survive_kills("choice_9_ext4_survives_kills", "ext4", "e2fsck", &["-f", "-n"]).await;
}

#[tokio::test]
async fn choice_9_xfs_survives_kills() {
    survive_kills("choice_9_xfs_survives_kills", "xfs", "xfs_repair", &["-n"]).await;
}

#[tokio::test]
async fn choice_9_btrfs_survives_kills() {
    survive_kills("choice_9_btrfs_survives_kills", "btrfs", "btrfs", &["check", "--readonly"]).await;
}

#[tokio::test]
async fn choice_9_real_data_is_left_alone() {
    const NAME: &str = "choice_9_real_data_is_left_alone";
    if !common::is_root(NAME) {
        return;
    }
    for (program, args, cause) in [
        ("mkfs.ext3", ["-F", "-q"].as_slice(), "ext3"),
        ("mkswap", &[], "swap"),
        ("mkfs.xfs", &["-q"], "xfs"),
        ("mkfs.btrfs", &["-q"], "btrfs"),
    ] {
        let life = Life::new("ext4", Bytes::mib(400)).await;
        common::run(program, &[args, &[life.host.node.as_str()]].concat()).await;
        let before = common::run("sha256sum", &[&life.host.path("lun")]).await.stdout;
        let error = life.stage().await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{}", error.chain());
        assert!(error.chain().contains(cause), "{}", error.chain());
        assert_eq!(common::run("sha256sum", &[&life.host.path("lun")]).await.stdout, before, "{program}");
        assert!(!PathBuf::from(life.host.path("sys/class/iscsi_session/session1")).exists());
    }
}
