//! Whole RPCs with the real mkfs, mount and resize tools on a loop device; only iSCSI and its part of sysfs are simulated. Needs
//! root.

use std::path::PathBuf;
use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _};

use super::*;
use crate::volume::VolumeId;

#[path = "../../../tests/common/mod.rs"]
mod common;
mod simulated_initiator;

use simulated_initiator::SimulatedInitiator;

/// One volume on its own host.
struct TestVolume {
    host: Arc<SimulatedInitiator>,
    machine: Machine<Arc<SimulatedInitiator>>,
    capability: Option<csi::VolumeCapability>,
}

impl TestVolume {
    async fn new(fs: &'static str, size: Bytes) -> Self {
        let host = SimulatedInitiator::new(size).await;
        let machine = Machine::new(
            host.clone(),
            NODE.to_owned(),
            "csi.synology.com".to_owned(),
            Duration::from_secs(120),
        );
        let capability = if fs == "raw" {
            Co::raw().capability()
        } else {
            Co::with_fs(fs).capability()
        };
        Self {
            host,
            machine,
            capability,
        }
    }

    fn volume_id() -> String {
        format!("nas1/{UUID}")
    }

    fn context() -> PublishContext {
        PublishContext {
            portals: vec!["127.0.0.1:3260".parse().unwrap()],
            iqn: SimulatedInitiator::iqn(),
            lun: 1,
            uuid: UUID.parse().unwrap(),
            auth: None,
            chap: None,
        }
    }

    async fn stage(&self) -> Result<(), Error> {
        let message = csi::NodeStageVolumeRequest {
            volume_id: Self::volume_id(),
            publish_context: Self::context().to_map(),
            staging_target_path: self.host.path("staging"),
            volume_capability: self.capability.clone(),
            ..Default::default()
        };
        self.machine.stage(&Stage::read(&message)?).await
    }

    async fn publish(&self, target: &str, readonly: bool) -> Result<(), Error> {
        let message = csi::NodePublishVolumeRequest {
            volume_id: Self::volume_id(),
            publish_context: Self::context().to_map(),
            staging_target_path: self.host.path("staging"),
            target_path: self.host.path(target),
            volume_capability: self.capability.clone(),
            readonly,
            ..Default::default()
        };
        self.machine.publish(&Publish::read(&message)?).await
    }

    async fn expand(&self, path: &str, required: Bytes) -> Result<Bytes, Error> {
        let capacity_range = Some(csi::CapacityRange {
            required_bytes: required.as_i64(),
            limit_bytes: 0,
        });
        let message = csi::NodeExpandVolumeRequest {
            volume_id: Self::volume_id(),
            volume_path: self.host.path(path),
            capacity_range,
            ..Default::default()
        };
        self.machine.expand(&Expand::read(&message)?).await
    }

    async fn unpublish(&self, target: &str) -> Result<(), Error> {
        self.machine
            .unpublish(
                &Self::volume_id().parse::<VolumeId>().unwrap(),
                &self.host.path(target),
            )
            .await
    }

    async fn unstage(&self) -> Result<(), Error> {
        let message = csi::NodeUnstageVolumeRequest {
            volume_id: Self::volume_id(),
            staging_target_path: self.host.path("staging"),
        };
        self.machine.unstage(&Unstage::read(&message)?).await
    }

    fn grow_lun(&self, size: Bytes) {
        common::sparse(&PathBuf::from(self.host.path("lun")), size.0);
    }

    async fn bytes(&self, path: &str) -> i64 {
        let request = Stats {
            volume: Self::volume_id().parse().unwrap(),
            path: self.host.path(path),
        };
        self.machine.stats(&request).await.unwrap().0[0].total
    }
}

async fn full_lifecycle(fs: &'static str) {
    let volume = TestVolume::new(fs, Bytes::GIB).await;
    let text = "x".repeat(3 << 20);
    volume.stage().await.unwrap();
    volume.stage().await.unwrap();
    volume.publish("pods/1", false).await.unwrap();
    volume.publish("pods/2", true).await.unwrap();
    std::fs::write(volume.host.path("pods/1/file"), &text).unwrap();
    assert!(
        std::fs::write(volume.host.path("pods/2/other"), "x").is_err(),
        "read-only is read-only"
    );
    let before = volume.bytes("pods/1").await;
    let grown = Bytes::mib(1536);
    volume.grow_lun(grown);
    match volume.expand("pods/1", grown).await {
        Ok(size) => assert_eq!(size, grown),
        Err(error) if fs == "ext4" && error.chain().contains("CAP_SYS_RESOURCE") => {
            common::skip(
                "ext4_lifecycle (mounted growth)",
                "growth of a mounted ext4 needs CAP_SYS_RESOURCE",
            );
            assert_eq!(error.code(), Code::FailedPrecondition);
            volume.unpublish("pods/1").await.unwrap();
            volume.unpublish("pods/2").await.unwrap();
            volume.unstage().await.unwrap();
            volume.stage().await.unwrap();
            volume.publish("pods/1", false).await.unwrap();
        }
        Err(error) => panic!("{}", error.chain()),
    }
    assert_eq!(volume.expand("staging", grown).await.unwrap(), grown);
    let after = volume.bytes("pods/1").await;
    assert!(after - before > 480 << 20, "{before} became {after}");
    assert_eq!(
        std::fs::read_to_string(volume.host.path("pods/1/file")).unwrap(),
        text
    );
    for target in ["pods/1", "pods/2"] {
        volume.unpublish(target).await.unwrap();
        volume.unpublish(target).await.unwrap();
        assert!(!PathBuf::from(volume.host.path(target)).exists());
    }
    volume.unstage().await.unwrap();
    volume.unstage().await.unwrap();
    let mounts = volume.machine.mounts(|_| true).await.unwrap();
    assert!(
        mounts
            .iter()
            .all(|mount| !mount.point.starts_with(&volume.host.path("")))
    );
}

/// design.md#node-expansion-is-always-required
#[tokio::test]
async fn ext4_lifecycle() {
    if common::is_root("ext4_lifecycle") {
        full_lifecycle("ext4").await;
    }
}

/// design.md#node-expansion-is-always-required
#[tokio::test]
async fn xfs_lifecycle() {
    if common::is_root("xfs_lifecycle") {
        full_lifecycle("xfs").await;
    }
}

/// design.md#node-expansion-is-always-required
#[tokio::test]
async fn btrfs_lifecycle() {
    if common::is_root("btrfs_lifecycle") {
        full_lifecycle("btrfs").await;
    }
}

/// design.md#node-expansion-is-always-required
#[tokio::test]
async fn raw_device_lifecycle() {
    if !common::is_root("raw_device_lifecycle") {
        return;
    }
    let volume = TestVolume::new("raw", Bytes::GIB).await;
    volume.stage().await.unwrap();
    for _ in 0..2 {
        volume.publish("pods/1", false).await.unwrap();
    }
    volume.grow_lun(Bytes::gib(2));
    assert_eq!(
        volume.expand("pods/1", Bytes::gib(2)).await.unwrap(),
        Bytes::gib(2)
    );
    assert_eq!(volume.bytes("pods/1").await, Bytes::gib(2).as_i64());
    volume.unpublish("pods/1").await.unwrap();
    volume.unstage().await.unwrap();
}

/// Kills the real mkfs at random moments, at least 12 times; then staging must succeed.
async fn survive_kills(test: &str, fs: &'static str, check: &'static str, check_args: &[&str]) {
    if !common::is_root(test) {
        return;
    }
    let seed: u64 = std::env::var_os("SEED")
        .and_then(|seed| seed.to_str()?.parse().ok())
        .unwrap_or(20_251);
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let mut killed = 0;
    // Duration of an undisturbed mkfs, measured in every round, so that the kills are spread over all of it.
    let mut mkfs_duration = Duration::ZERO;
    for round in 0..60 {
        if killed >= 12 {
            break;
        }
        let volume = TestVolume::new(fs, Bytes::GIB).await;
        for _ in 0..if round == 0 { 0 } else { 3 } {
            *volume.host.mkfs_timeout.lock().unwrap() =
                Some(mkfs_duration.mul_f64(random.random_range(0.05..1.0)));
            match volume.stage().await {
                Ok(()) => break,
                // ABORTED; or UNAVAILABLE, if the killed process still has the disk open for a moment. Never a final code.
                Err(error) => assert!(
                    !error.is_final(),
                    "seed {seed}, round {round}: {}",
                    error.chain()
                ),
            }
            killed += 1;
        }
        *volume.host.mkfs_timeout.lock().unwrap() = None;
        volume
            .stage()
            .await
            .unwrap_or_else(|error| panic!("seed {seed}, round {round}: {}", error.chain()));
        mkfs_duration = *volume.host.mkfs_duration.lock().unwrap();
        volume.unstage().await.unwrap();
        common::run(check, &[check_args, &[volume.host.node.as_str()]].concat()).await;
    }
    eprintln!("seed {seed}: killed mkfs.{fs} {killed} times within {mkfs_duration:?}");
    assert!(
        killed >= 12,
        "seed {seed}: only {killed} were killed in time"
    );
}

/// design.md#identity-before-action
#[tokio::test]
async fn ext4_survives_kills() {
    survive_kills("ext4_survives_kills", "ext4", "e2fsck", &["-f", "-n"]).await;
}

/// design.md#identity-before-action
#[tokio::test]
async fn xfs_survives_kills() {
    survive_kills("xfs_survives_kills", "xfs", "xfs_repair", &["-n"]).await;
}

/// design.md#identity-before-action
#[tokio::test]
async fn btrfs_survives_kills() {
    survive_kills(
        "btrfs_survives_kills",
        "btrfs",
        "btrfs",
        &["check", "--readonly"],
    )
    .await;
}

/// design.md#identity-before-action
#[tokio::test]
async fn real_data_is_left_alone() {
    const NAME: &str = "real_data_is_left_alone";
    if !common::is_root(NAME) {
        return;
    }
    for (program, args, cause) in [
        ("mkfs.ext3", ["-F", "-q"].as_slice(), "ext3"),
        ("mkswap", &[], "swap"),
        ("mkfs.xfs", &["-q"], "xfs"),
        ("mkfs.btrfs", &["-q"], "btrfs"),
    ] {
        let volume = TestVolume::new("ext4", Bytes::mib(400)).await;
        common::run(program, &[args, &[volume.host.node.as_str()]].concat()).await;
        let before = common::run("sha256sum", &[&volume.host.path("lun")])
            .await
            .stdout;
        let error = volume.stage().await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{}", error.chain());
        assert!(error.chain().contains(cause), "{}", error.chain());
        assert_eq!(
            common::run("sha256sum", &[&volume.host.path("lun")])
                .await
                .stdout,
            before,
            "{program}"
        );
        assert!(!PathBuf::from(volume.host.path("sys/class/iscsi_session/session1")).exists());
    }
}
