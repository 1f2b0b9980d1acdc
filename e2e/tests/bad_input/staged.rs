//! Table rows for a node in use: with staged and published volumes, and with foreign mounts and files in the way. Also
//! unusual but legal calls there.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use e2e::GIB;
use e2e::harness::test_cluster::TestCluster;
use e2e::harness::test_volume::{Content, TestVolume, capability};
use e2e::harness::{process, tools};
use proto::csi;
use proto::csi::volume_capability::access_mode::Mode;
use tonic::Code::{AlreadyExists, FailedPrecondition, NotFound, OutOfRange, Unavailable};

use crate::call::Call;
use crate::disk::published;
use crate::node::text;
use crate::request::*;
use crate::table::{Row, Tally, nothing_to_do, row};

/// `NodeStageVolume` for a volume, as a CO sends it.
pub(crate) fn stage(volume: &TestVolume) -> csi::NodeStageVolumeRequest {
    csi::NodeStageVolumeRequest {
        volume_id: volume.id.clone(),
        publish_context: volume.publish_context.clone(),
        staging_target_path: text(&volume.staging),
        volume_capability: Some(volume.capability()),
        volume_context: volume.volume_context.clone(),
        ..Default::default()
    }
}

/// `NodePublishVolume` for a volume, as a CO sends it.
pub(crate) fn publish(volume: &TestVolume) -> csi::NodePublishVolumeRequest {
    csi::NodePublishVolumeRequest {
        volume_id: volume.id.clone(),
        publish_context: volume.publish_context.clone(),
        staging_target_path: text(&volume.staging),
        target_path: text(&volume.target),
        volume_capability: Some(volume.capability()),
        volume_context: volume.volume_context.clone(),
        ..Default::default()
    }
}

/// A node in use.
pub(crate) struct NodeInUse {
    /// xfs, staged and published.
    used: TestVolume,
    /// ext4, staged only.
    staged: TestVolume,
    /// Published to the node, but not staged.
    fresh: TestVolume,
    /// A raw device, staged and published.
    raw: TestVolume,
    /// A folder with a foreign mount.
    occupied: PathBuf,
    /// A folder with a file in it.
    full: PathBuf,
    /// A file with text in it.
    file: PathBuf,
}

impl NodeInUse {
    /// Creates its volumes, mounts and files.
    pub(crate) async fn create(cluster: &TestCluster) -> Result<Self> {
        let mut used = TestVolume::create(cluster, "used", GIB, Content::Fs("xfs")).await?;
        used.attach(cluster).await?;
        let mut raw = TestVolume::create(cluster, "raw", GIB, Content::Block).await?;
        raw.attach(cluster).await?;
        let staged = published(cluster, "staged", "ext4").await;
        staged.stage(cluster).await?;
        let kubelet = cluster.folder().join("kubelet");
        let (occupied, full) = (kubelet.join("occupied"), kubelet.join("full"));
        fs::create_dir_all(&occupied)?;
        process::run(
            "mount",
            [
                "-t",
                "tmpfs",
                "-o",
                "size=1m",
                "somebodys",
                &text(&occupied),
            ],
        )?;
        fs::create_dir_all(&full)?;
        let file = full.join("precious");
        fs::write(&file, "data")?;
        Ok(Self {
            used,
            staged,
            fresh: published(cluster, "fresh", "ext4").await,
            raw,
            occupied,
            full,
            file,
        })
    }

    /// Tears it down, which also shows that no row has broken anything.
    pub(crate) async fn tear_down(self, cluster: &TestCluster) -> Result<()> {
        process::run("umount", [&text(&self.occupied)])?;
        for volume in [&self.used, &self.raw] {
            volume.node_unpublish(cluster).await?;
        }
        for volume in [&self.used, &self.staged, &self.raw] {
            volume.unstage(cluster).await?;
        }
        for volume in [&self.used, &self.staged, &self.raw, &self.fresh] {
            volume.unpublish(cluster).await?;
            volume.delete(cluster).await?;
        }
        Ok(())
    }

    /// Rows that must be refused.
    #[rustfmt::skip] // One row per line.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let Self { used, staged, fresh, raw, .. } = self;
        let [occupied, full, file] = [&self.occupied, &self.full, &self.file].map(|path| text(path));
        let reader = |fs| capability(Content::Fs(fs), Mode::SingleNodeReaderOnly);
        let restage = |capability| modified(stage(used), |r| (r.volume_capability, r.volume_context) = (Some(capability), map([])));
        let stage_at = |path: &str| modified(stage(fresh), |r| path.clone_into(&mut r.staging_target_path));
        let publish_at = |path: &str| modified(publish(staged), |r| path.clone_into(&mut r.target_path));
        let republish = |change: fn(&mut csi::NodePublishVolumeRequest)| modified(publish(used), change);
        let second = format!("{}-2", text(&used.target));
        let grow = |path: &str, required, limit| modified(node_expand(&used.id, path, 0), |r| r.capacity_range = Some(range(required, limit)));
        let (staging, target) = (text(&used.staging), text(&used.target));
        let second_raw = |path: &str| modified(publish(raw), |r| (r.target_path, r.volume_capability) = (path.to_owned(), Some(device(Mode::SingleNodeMultiWriter))));
        let differs = "exists already and differs";
        vec![
            row("staged already, as another file system", restage(of_type("ext4")), AlreadyExists, [differs, &staging, "xfs", "asked for ext4"]),
            row("staged already, as a raw device now", restage(device(Mode::SingleNodeWriter)), AlreadyExists, [differs, &staging, "mounted as xfs", "a raw block device"]),
            row("staged already, for a reader now", restage(reader("xfs")), AlreadyExists, [differs, &staging, "read-write", "asked for read-only"]),
            row("something else is mounted at the staging path", stage_at(&occupied), FailedPrecondition, [&*occupied, "tmpfs of somebodys", "not this volume", "unmount it if it is not needed"]),
            row("another volume is mounted at the staging path", stage_at(&staging), FailedPrecondition, [&*staging, "not this volume", "unmount it if it is not needed"]),
            row("the staging path is a file", stage_at(&file), FailedPrecondition, [&*file, "it is not a directory", "must be an existing directory"]),
            row("a second path for a single writer", republish(|r| r.target_path.push_str("-2")), FailedPrecondition, [&*used.id, &target, "allows one path", "unpublish it there"]),
            row("published already, read-only now", republish(|r| r.readonly = true), AlreadyExists, [differs, &target, "read-write", "asked for a file system, read-only"]),
            row("published as another file system than staged", republish(|r| (r.volume_capability, r.volume_context) = (Some(of_type("ext4")), map([]))), FailedPrecondition, ["staged as xfs, not ext4", "with the same capability"]),
            row("a mount flag that it was not staged with", modified(publish(staged), |r| r.volume_capability = Some(flagged("noatime"))), FailedPrecondition, ["without the mount flag noatime", "with the same capability"]),
            row("another volume's staging path", modified(publish(staged), |r| staging.clone_into(&mut r.staging_target_path)), FailedPrecondition, [&*staged.id, &staging, "stage the volume first"]),
            row("before it is staged", publish(fresh), FailedPrecondition, ["no file system", "stage the volume first"]),
            row("something else is mounted at the target path", publish_at(&occupied), FailedPrecondition, [&*occupied, "tmpfs of somebodys", "unmount it if it is not needed"]),
            row("another volume is published at the target path", publish_at(&target), FailedPrecondition, [&*target, "not this volume", "unmount it if it is not needed"]),
            row("the target path is a file", publish_at(&file), FailedPrecondition, [&*file, "something else exists", "remove it if it is not needed"]),
            row("the target path lies below a file", publish_at(&format!("{file}/below")), FailedPrecondition, ["precious/below", "create it"]),
            row("the target path lies nowhere", publish_at("/nowhere/at/all"), FailedPrecondition, ["/nowhere/at/all", "does not exist", "create it"]),
            row("a raw device as a file system", modified(publish(raw), |r| r.volume_capability = Some(of_type("ext4"))), FailedPrecondition, [&*raw.id, "stage the volume first"]),
            row("a raw device over a file with data", second_raw(&file), FailedPrecondition, [&*file, "something else exists", "remove it if it is not needed"]),
            row("a raw device over a folder", second_raw(&full), FailedPrecondition, [&*full, "something else exists", "remove it if it is not needed"]),
            row("unstaged while it is published", unstage(&used.id, &staging), FailedPrecondition, [&*used.id, &target, "unpublish it there first"]),
            row("unstaged from another path than its own", unstage(&staged.id, &full), FailedPrecondition, [&*staged.id, &text(&staged.staging), "unpublish it there first"]),
            row("unstaged from another volume's path", unstage(&fresh.id, &staging), FailedPrecondition, [&*staging, "not this volume", "unmount it if it is not needed"]),
            row("unstaged where something else is mounted", unstage(&fresh.id, &occupied), FailedPrecondition, [&*occupied, "tmpfs of somebodys", "unmount it if it is not needed"]),
            row("unpublished where something else is mounted", node_unpublish(&used.id, &occupied), FailedPrecondition, [&*occupied, "tmpfs of somebodys", "unmount it if it is not needed"]),
            row("unpublished where another volume is published", node_unpublish(&staged.id, &target), FailedPrecondition, [&*target, "not this volume"]),
            row("unpublished where there are files", node_unpublish(&used.id, &full), FailedPrecondition, [&*full, "it holds data", "save what is there"]),
            row("unpublished where there is a file with data", node_unpublish(&used.id, &file), FailedPrecondition, [&*file, "it holds data", "save what is there"]),
            nothing_to_do("unpublished where it never was", node_unpublish(&used.id, &second)),
            row("the statistics of another volume", stats(&staged.id, &target), NotFound, [&*staged.id, &target, "xfs of /dev/loop"]),
            row("the statistics of something else", stats(&used.id, &occupied), NotFound, [&*used.id, &occupied, "tmpfs of somebodys"]),
            row("the statistics of a folder", stats(&used.id, &full), NotFound, [&*used.id, &full, "nothing is mounted there"]),
            row("growth at another volume's path", node_expand(&staged.id, &target, 2 * GIB), NotFound, [&*staged.id, &target, "xfs of /dev/loop"]),
            row("growth of something else", node_expand(&used.id, &occupied, 2 * GIB), NotFound, [&*used.id, &occupied, "tmpfs of somebodys"]),
            row("the present size is above the limit", grow(&target, 0, GIB / 2), OutOfRange, ["limit_bytes 512 MiB", "already 1 GiB", "never made smaller"]),
            row("growth before the LUN has grown", grow(&target, 2 * GIB, 0), Unavailable, ["/dev/loop", "to 2 GiB", "the disk is 1 GiB", "has the LUN been grown"]),
            row("deleted while it is used", delete(&used.id), FailedPrecondition, [&*used.id, &used.node_id, "logged in: iqn."]),
        ]
    }
}

/// Unusual but legal node calls, each made twice.
pub(crate) async fn legal(cluster: &TestCluster, tally: &mut Tally) {
    unusual_calls(cluster, tally).await;
    several_targets(cluster, tally).await;
    raw_device(cluster, tally).await;
    static_volume(cluster, tally).await;
}

async fn all_twice<const N: usize>(
    cluster: &TestCluster,
    tally: &mut Tally,
    calls: [(&'static str, Call); N],
) {
    for (name, call) in calls {
        tally.twice(cluster, name, call).await;
    }
}

/// Unnormalized paths, a file system in another case, expansion without capability, staging path or range.
#[rustfmt::skip] // One row per line.
async fn unusual_calls(cluster: &TestCluster, tally: &mut Tally) {
    let mut volume = published(cluster, "odd", "xfs").await;
    volume.staging = cluster.folder().join("kubelet/odd  path/with 'quotes' and ünïcode");
    volume.target = cluster.folder().join("kubelet/odd  path/#target\\012");
    fs::create_dir_all(&volume.staging).unwrap();
    volume.volume_context = map([("fsType", "xFS"), ("storage.kubernetes.io/csiProvisionerIdentity", "x"), ("formatOptions", "-m reflink=0")]);
    let staging = modified(stage(&volume), |r| {
        r.staging_target_path.push('/');
        r.volume_capability = Some(of_type("XFS"));
    });
    let id = &volume.id;
    let (staging_path, target) = (text(&volume.staging), text(&volume.target));
    all_twice(cluster, tally, [
        ("odd words and paths", staging.into()),
        ("odd paths", publish(&volume).into()),
        ("an odd path", stats(id, &format!("{target}/")).into()),
        ("no range", modified(node_expand(id, &target, 0), |r| r.capacity_range = None).into()),
        ("a staging path as volume path", node_expand(id, &staging_path, GIB).into()),
        ("less than it has", node_expand(id, &target, 1).into()),
    ]).await;
    volume.expand_lun(cluster, 2 * GIB).await.unwrap();
    all_twice(cluster, tally, [
        ("growth", node_expand(id, &target, 2 * GIB).into()),
        ("an odd path", node_unpublish(id, &target).into()),
        ("an odd path", unstage(id, &staging_path).into()),
        ("the node that has it", unpublish(id, &volume.node_id).into()),
        ("a volume that was mounted", delete(id).into()),
    ]).await;
}

/// Two pods on one node, one of them read-only.
#[rustfmt::skip] // One row per line.
async fn several_targets(cluster: &TestCluster, tally: &mut Tally) {
    let volume = published(cluster, "several", "ext4").await;
    let many = || Some(mounted(Mode::SingleNodeMultiWriter));
    let second = volume.target.with_file_name("second");
    let reading = modified(publish(&volume), |r| {
        (r.volume_capability, r.readonly) = (many(), true);
        r.target_path = text(&second);
    });
    all_twice(cluster, tally, [
        ("many writers", modified(stage(&volume), |r| r.volume_capability = many()).into()),
        ("one of several", modified(publish(&volume), |r| r.volume_capability = many()).into()),
        ("another, read-only", reading.into()),
    ]).await;
    tally.check(fs::write(second.join("x"), "").is_err(), || "a read-only target path can be written to".to_owned());
    tally.check(fs::write(volume.target.join("x"), "").is_ok(), || "the other target path cannot be written to".to_owned());
    all_twice(cluster, tally, [
        ("one of several", node_unpublish(&volume.id, &text(&second)).into()),
        ("the last of several", node_unpublish(&volume.id, &text(&volume.target)).into()),
        ("what several used", unstage(&volume.id, &text(&volume.staging)).into()),
    ]).await;
    volume.unpublish(cluster).await.unwrap();
    volume.delete(cluster).await.unwrap();
}

/// A raw device may contain any data.
#[rustfmt::skip] // One row per line.
async fn raw_device(cluster: &TestCluster, tally: &mut Tally) {
    let mut volume = TestVolume::create(cluster, "raw-2", GIB, Content::Block).await.unwrap();
    volume.publish(cluster).await.unwrap();
    let file = cluster.nas.folder().join("luns").join(format!("{}.img", volume.uuid()));
    process::run("mkswap", [&text(&file)]).unwrap();
    let written = tools::sha256(&file, 1 << 20).unwrap();
    all_twice(cluster, tally, [
        ("a raw device with swap space on it", stage(&volume).into()),
        ("a raw device", publish(&volume).into()),
        ("a raw device", stats(&volume.id, &text(&volume.target)).into()),
    ]).await;
    tally.check(tools::sha256(&volume.target, 1 << 20).unwrap() == written, || "the raw device has changed".to_owned());
    volume.expand_lun(cluster, 2 * GIB).await.unwrap();
    all_twice(cluster, tally, [
        ("a raw device", node_expand(&volume.id, &text(&volume.target), 2 * GIB).into()),
        ("a raw device", node_unpublish(&volume.id, &text(&volume.target)).into()),
        ("a raw device", unstage(&volume.id, &text(&volume.staging)).into()),
    ]).await;
    volume.unpublish(cluster).await.unwrap();
    volume.delete(cluster).await.unwrap();
}

/// A PV that an administrator wrote by hand: without volume_context and fs_type, only with the volume handle.
#[rustfmt::skip] // One row per line.
async fn static_volume(cluster: &TestCluster, tally: &mut Tally) {
    let volume = published(cluster, "static", "ext4").await;
    let bare = Some(of_type(""));
    all_twice(cluster, tally, [
        ("a static volume", modified(stage(&volume), |r| (r.volume_capability, r.volume_context) = (bare.clone(), map([]))).into()),
        ("a static volume", modified(publish(&volume), |r| (r.volume_capability, r.volume_context) = (bare, map([]))).into()),
    ]).await;
    let fs_type = tools::fs_type(&volume.target).unwrap();
    tally.check(fs_type == "ext4", || format!("a static volume became {fs_type}"));
    volume.node_unpublish(cluster).await.unwrap();
    volume.unstage(cluster).await.unwrap();
    volume.unpublish(cluster).await.unwrap();
    volume.delete(cluster).await.unwrap();
}
