//! Wrong disk never: whatever stands where the volume's disk should be, it is used only if its serial is the volume's.

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

/// Each volume says whose it is, at a place that no file system's head occupies.
const MARK: u64 = 512 << 20;

/// A volume whose LUN bears its mark, and what the LUN shows.
pub(super) struct Marked {
    pub(super) volume: TestVolume,
    pub(super) photo: ImageSnapshot,
}

impl Scene {
    pub(super) async fn marked(&self, name: &str) -> Result<Marked> {
        let mut volume = TestVolume::create(&self.world, name, GIB, Content::Block).await?;
        volume.publish(&self.world).await?;
        let file = File::options().write(true).open(self.lun_file(&volume)?)?;
        file.write_all_at(volume.uuid().as_bytes(), MARK)?;
        file.sync_all()?;
        let photo = ImageSnapshot::take(&self.lun_file(&volume)?)?;
        Ok(Marked { volume, photo })
    }

    /// `LUN.map_target` or `unmap_target`, as an administrator does it behind everybody's back.
    async fn mapping(&self, method: &str, lun: &TestVolume, target_of: &TestVolume) -> Result<()> {
        let iqn = target_of
            .publish_context
            .get("iqn")
            .context("not published")?;
        let targets = self.world.nas.targets_now().await?;
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
        let answer = self.world.nas.dsm(&call).await?;
        ensure!(answer["success"] == true, "{method}: {answer}");
        Ok(())
    }

    /// The impostor's LUN takes the place of the volume's.
    pub(super) async fn swap(&self, volume: &TestVolume, impostor: &TestVolume) -> Result<()> {
        self.mapping("unmap_target", volume, volume).await?;
        self.mapping("map_target", impostor, volume).await
    }

    pub(super) async fn swap_back(&self, volume: &TestVolume, impostor: &TestVolume) -> Result<()> {
        self.mapping("unmap_target", impostor, volume).await?;
        self.mapping("map_target", volume, volume).await
    }

    /// The device that the driver has given out shows the volume's own mark, asked of the disk and not of a cache.
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
            "wrong disk: it bears the mark {shows:?}, the volume is {}",
            volume.uuid()
        );
        Ok(())
    }

    pub(super) async fn strike_marked(&self, marked: Marked) -> Result<()> {
        marked.photo.ensure_unchanged()?;
        marked.volume.unpublish(&self.world).await?;
        Ok(marked.volume.delete(&self.world).await?)
    }
}

/// Refused for good, with both serials.
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
        .all(|life| status.message().contains(life.uuid()));
    ensure!(
        status.code() == Code::FailedPrecondition && both,
        "{status}"
    );
    Ok(())
}

/// The NAS gives the mapping index to another LUN while the session lives.
pub(crate) async fn index_reused(scene: &mut Scene) -> Result<String> {
    let (volume, impostor) = (scene.marked("pvc-1").await?, scene.marked("pvc-2").await?);
    let world = &scene.world;
    let life = &volume.volume;
    life.stage(world).await?;
    life.node_publish(world).await?;
    scene.must_show(life)?;
    scene.swap(life, &impostor.volume).await?;
    names_both(
        life.expand_on_node(world, GIB).await,
        life,
        &impostor.volume,
    )?;
    names_both(life.stage(world).await, life, &impostor.volume)?;
    names_both(life.node_publish(world).await, life, &impostor.volume)?;
    scene.swap_back(life, &impostor.volume).await?;
    life.expand_on_node(world, GIB).await?;
    scene.must_show(life)?;
    life.node_unpublish(world).await?;
    life.unstage(world).await?;

    // Without a session: the first look already finds the other LUN.
    scene.swap(life, &impostor.volume).await?;
    names_both(life.stage(world).await, life, &impostor.volume)?;
    ensure!(
        scene.world.initiator()?.count("sys/class/iscsi_session")? == 0,
        "the refused stage has left its session"
    );
    scene.swap_back(life, &impostor.volume).await?;
    life.stage(world).await?;
    scene.must_show(life)?;
    life.unstage(world).await?;
    scene.strike_marked(volume).await?;
    scene.strike_marked(impostor).await?;
    Ok("with and without a live session: expand, stage and publish refused with both serials; both LUNs untouched".to_owned())
}

/// A LUN without anything on it stands in the place of a volume with data: mkfs would be the end of them.
pub(crate) async fn blank_disk(scene: &mut Scene) -> Result<String> {
    for fs in ["ext4", "xfs", "btrfs"] {
        let life = scene.volume(&format!("pvc-{fs}"), Content::Fs(fs)).await?;
        let data = Scene::write(&life, 5)?;
        let world = &scene.world;
        life.node_unpublish(world).await?;
        life.unstage(world).await?;
        let blank =
            TestVolume::create(world, &format!("pvc-{fs}-blank"), GIB, Content::Fs(fs)).await?;
        scene.swap(&life, &blank).await?;
        names_both(life.stage(world).await, &life, &blank)?;
        ensure!(
            ImageSnapshot::take(&scene.lun_file(&blank)?)?.is_blank(),
            "something was written to the blank LUN"
        );
        scene.swap_back(&life, &blank).await?;
        life.stage(world).await?;
        life.node_publish(world).await?;
        Scene::must_hold(&data)?;
        life.detach(world).await?;
        life.delete(world).await?;
        blank.delete(world).await?;
    }
    Ok("ext4, xfs, btrfs: a blank LUN is refused with both serials and stays blank; the data are there afterwards".to_owned())
}

/// Disks that the kernel still shows and the NAS no longer has.
pub(crate) async fn stale_disk(scene: &mut Scene) -> Result<String> {
    let (volume, other) = (scene.marked("pvc-1").await?, scene.marked("pvc-2").await?);
    let world = &scene.world;
    let mut life = volume.volume.clone();

    // Another LUN came first: ours has the second index, and the old disk of the first index is still there.
    life.stage(world).await?;
    scene.swap(&life, &other.volume).await?;
    scene.mapping("map_target", &life, &life).await?;
    life.publish(world).await?;
    ensure!(
        life.publish_context["lun"] == "2",
        "{:?}",
        life.publish_context
    );
    life.stage(world).await?;
    let serials = async || run("lsblk", ["-n", "-d", "-o", "NAME,SERIAL"]);
    // lsblk knows serials from udev, which looks at a new disk in its own time.
    until("both disks are there", serials, |serials| {
        serials.contains(life.uuid())
    })
    .await?;
    life.unstage(world).await?;
    // A new session attaches the volume's unit and not the other one.
    life.stage(world).await?;
    let disks = disks()?;
    ensure!(disks.len() == 1, "attached: {disks:?}");
    life.unstage(world).await?;
    scene.mapping("unmap_target", &other.volume, &life).await?;
    scene.mapping("unmap_target", &life, &life).await?;
    scene.mapping("map_target", &life, &life).await?;
    life.publish(world).await?;

    // The target went and came back under a live session: the disk of the old one is dead.
    life.stage(world).await?;
    life.unpublish(world).await?;
    life.publish(world).await?;
    life.stage(world).await?;
    life.node_publish(world).await?;
    scene.must_show(&life)?;
    life.node_unpublish(world).await?;
    life.unstage(world).await?;
    scene.strike_marked(volume).await?;
    scene.strike_marked(other).await?;
    Ok("a stale disk at another index, and a dead one of a target that came back: the volume's own disk is used".to_owned())
}
