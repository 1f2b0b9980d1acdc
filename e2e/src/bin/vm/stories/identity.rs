//! Never the wrong disk: whatever the NAS exports in place of the volume's LUN, a disk is used only if its serial is the
//! volume's.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};

use anyhow::{Context as _, Result, ensure};
use e2e::GIB;
use e2e::harness::inspect::ImageSnapshot;
use e2e::harness::process::run;
use e2e::harness::test_volume::{Content, TestVolume};
use e2e::harness::until::until;
use nix::fcntl::OFlag;
use tonic::{Code, Status};

use crate::scene::{Scene, disks};

/// Offset of each volume's uuid, which no file system's superblock occupies.
const MARK: u64 = 512 << 20;

/// A volume whose LUN contains its uuid as a mark, with a snapshot of the LUN.
pub(super) struct Marked {
    pub(super) volume: TestVolume,
    pub(super) snapshot: ImageSnapshot,
}

impl Scene {
    pub(super) async fn marked(&self, name: &str) -> Result<Marked> {
        let mut volume = TestVolume::create(&self.cluster, name, GIB, Content::Block).await?;
        volume.publish(&self.cluster).await?;
        let file = File::options().write(true).open(self.lun_file(&volume)?)?;
        file.write_all_at(volume.uuid().as_bytes(), MARK)?;
        file.sync_all()?;
        let snapshot = ImageSnapshot::take(&self.lun_file(&volume)?)?;
        Ok(Marked { volume, snapshot })
    }

    /// `LUN.map_target` or `unmap_target` by an administrator, without the driver's knowledge.
    async fn mapping(&self, method: &str, lun: &TestVolume, target_of: &TestVolume) -> Result<()> {
        let iqn = target_of
            .publish_context
            .get("iqn")
            .context("not published")?;
        let targets = self.cluster.nas.targets_now().await?;
        let target = targets
            .iter()
            .find(|target| target["iqn"] == iqn.as_str())
            .context("no such target")?;
        let (uuid, ids) = (
            format!("\"{}\"", lun.uuid()),
            format!("[{}]", target["target_id"]),
        );
        let call = [
            ("api", "SYNO.Core.ISCSI.LUN"),
            ("version", "1"),
            ("method", method),
            ("uuid", &uuid),
            ("target_ids", &ids),
        ];
        let answer = self.cluster.nas.dsm(&call).await?;
        ensure!(answer["success"] == true, "{method}: {answer}");
        Ok(())
    }

    /// Maps the other LUN in place of the volume's.
    pub(super) async fn swap(&self, volume: &TestVolume, impostor: &TestVolume) -> Result<()> {
        self.mapping("unmap_target", volume, volume).await?;
        self.mapping("map_target", impostor, volume).await
    }

    pub(super) async fn swap_back(&self, volume: &TestVolume, impostor: &TestVolume) -> Result<()> {
        self.mapping("unmap_target", impostor, volume).await?;
        self.mapping("map_target", volume, volume).await
    }

    /// Checks that the device that the driver returned has the volume's own mark, read from the disk and not from a cache.
    pub(super) fn must_show(&self, volume: &TestVolume) -> Result<()> {
        let device = File::options()
            .read(true)
            .custom_flags(OFlag::O_DIRECT.bits())
            .open(self.device(volume)?)?;
        let mut room = vec![0; 8192];
        let start = room.as_ptr().align_offset(4096);
        device.read_exact_at(&mut room[start..start + 4096], MARK)?;
        let shows = String::from_utf8_lossy(&room[start..start + volume.uuid().len()]).into_owned();
        ensure!(
            shows == volume.uuid(),
            "wrong disk: it has the mark {shows:?}, the volume is {}",
            volume.uuid()
        );
        Ok(())
    }

    pub(super) async fn remove_marked(&self, marked: Marked) -> Result<()> {
        marked.snapshot.ensure_unchanged()?;
        marked.volume.unpublish(&self.cluster).await?;
        Ok(marked.volume.delete(&self.cluster).await?)
    }
}

/// Checks that the error is final and contains both serials.
fn names_both<T: std::fmt::Debug>(
    answer: Result<T, Status>,
    volume: &TestVolume,
    impostor: &TestVolume,
) -> Result<()> {
    let Err(status) = answer else {
        anyhow::bail!("not refused: {answer:?}");
    };
    let both = [volume, impostor]
        .iter()
        .all(|test_volume| status.message().contains(test_volume.uuid()));
    ensure!(
        status.code() == Code::FailedPrecondition && both,
        "{status}"
    );
    Ok(())
}

/// The NAS assigns the mapping index to another LUN while the session is live.
pub(crate) async fn index_reused(scene: &mut Scene) -> Result<String> {
    let (volume, impostor) = (scene.marked("pvc-1").await?, scene.marked("pvc-2").await?);
    let cluster = &scene.cluster;
    let test_volume = &volume.volume;
    test_volume.stage(cluster).await?;
    test_volume.node_publish(cluster).await?;
    scene.must_show(test_volume)?;
    scene.swap(test_volume, &impostor.volume).await?;
    names_both(
        test_volume.expand_on_node(cluster, GIB).await,
        test_volume,
        &impostor.volume,
    )?;
    names_both(
        test_volume.stage(cluster).await,
        test_volume,
        &impostor.volume,
    )?;
    names_both(
        test_volume.node_publish(cluster).await,
        test_volume,
        &impostor.volume,
    )?;
    scene.swap_back(test_volume, &impostor.volume).await?;
    test_volume.expand_on_node(cluster, GIB).await?;
    scene.must_show(test_volume)?;
    test_volume.node_unpublish(cluster).await?;
    test_volume.unstage(cluster).await?;

    // Without a session: the first read already finds the other LUN.
    scene.swap(test_volume, &impostor.volume).await?;
    names_both(
        test_volume.stage(cluster).await,
        test_volume,
        &impostor.volume,
    )?;
    ensure!(
        scene
            .cluster
            .initiator()?
            .count("sys/class/iscsi_session")?
            == 0,
        "the refused stage has left its session behind"
    );
    scene.swap_back(test_volume, &impostor.volume).await?;
    test_volume.stage(cluster).await?;
    scene.must_show(test_volume)?;
    test_volume.unstage(cluster).await?;
    scene.remove_marked(volume).await?;
    scene.remove_marked(impostor).await?;
    Ok("with and without a live session: expand, stage and publish refused with both serials; both LUNs untouched".to_owned())
}

/// A blank LUN in place of a volume with data: mkfs would destroy them.
pub(crate) async fn blank_disk(scene: &mut Scene) -> Result<String> {
    for fs in ["ext4", "xfs", "btrfs"] {
        let test_volume = scene.volume(&format!("pvc-{fs}"), Content::Fs(fs)).await?;
        let data = Scene::write(&test_volume, 5)?;
        let cluster = &scene.cluster;
        test_volume.node_unpublish(cluster).await?;
        test_volume.unstage(cluster).await?;
        let blank =
            TestVolume::create(cluster, &format!("pvc-{fs}-blank"), GIB, Content::Fs(fs)).await?;
        scene.swap(&test_volume, &blank).await?;
        names_both(test_volume.stage(cluster).await, &test_volume, &blank)?;
        ensure!(
            ImageSnapshot::take(&scene.lun_file(&blank)?)?.is_blank(),
            "something was written to the blank LUN"
        );
        scene.swap_back(&test_volume, &blank).await?;
        test_volume.stage(cluster).await?;
        test_volume.node_publish(cluster).await?;
        Scene::must_hold(&data)?;
        test_volume.detach(cluster).await?;
        test_volume.delete(cluster).await?;
        blank.delete(cluster).await?;
    }
    Ok("ext4, xfs, btrfs: a blank LUN is refused with both serials and stays blank; the data are there afterwards".to_owned())
}

/// Disks that the kernel still has but the NAS no longer exports.
pub(crate) async fn stale_disk(scene: &mut Scene) -> Result<String> {
    let (volume, other) = (scene.marked("pvc-1").await?, scene.marked("pvc-2").await?);
    let cluster = &scene.cluster;
    let mut test_volume = volume.volume.clone();

    // Another LUN came first: ours has the second index, and the old disk of the first index still exists.
    test_volume.stage(cluster).await?;
    scene.swap(&test_volume, &other.volume).await?;
    scene
        .mapping("map_target", &test_volume, &test_volume)
        .await?;
    test_volume.publish(cluster).await?;
    ensure!(
        test_volume.publish_context["lun"] == "2",
        "{:?}",
        test_volume.publish_context
    );
    test_volume.stage(cluster).await?;
    let serials = async || run("lsblk", ["-n", "-d", "-o", "NAME,SERIAL"]);
    // lsblk gets serials from udev, which probes a new disk asynchronously.
    until("both disks are there", serials, |serials| {
        serials.contains(test_volume.uuid())
    })
    .await?;
    test_volume.unstage(cluster).await?;
    // A new session attaches the volume's LUN and not the other one.
    test_volume.stage(cluster).await?;
    let disks = disks()?;
    ensure!(disks.len() == 1, "attached: {disks:?}");
    test_volume.unstage(cluster).await?;
    scene
        .mapping("unmap_target", &other.volume, &test_volume)
        .await?;
    scene
        .mapping("unmap_target", &test_volume, &test_volume)
        .await?;
    scene
        .mapping("map_target", &test_volume, &test_volume)
        .await?;
    test_volume.publish(cluster).await?;

    // The target was deleted and created again under a live session: the old session's disk is dead.
    test_volume.stage(cluster).await?;
    test_volume.unpublish(cluster).await?;
    test_volume.publish(cluster).await?;
    test_volume.stage(cluster).await?;
    test_volume.node_publish(cluster).await?;
    scene.must_show(&test_volume)?;
    test_volume.node_unpublish(cluster).await?;
    test_volume.unstage(cluster).await?;
    scene.remove_marked(volume).await?;
    scene.remove_marked(other).await?;
    Ok("a stale disk at another index, and a dead one of a target that came back: the volume's own disk is used".to_owned())
}
