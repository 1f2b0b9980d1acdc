//! A volume's whole life cycle over iSCSI, with expansion while it is in use and while it is not.

use anyhow::{Result, ensure};
use e2e::GIB;
use e2e::harness::test_volume::Content;
use e2e::harness::tools::device_bytes;

use crate::scene::Scene;

pub(crate) async fn ext4(scene: &mut Scene) -> Result<String> {
    whole(scene, Content::Fs("ext4")).await
}

pub(crate) async fn xfs(scene: &mut Scene) -> Result<String> {
    whole(scene, Content::Fs("xfs")).await
}

pub(crate) async fn btrfs(scene: &mut Scene) -> Result<String> {
    whole(scene, Content::Fs("btrfs")).await
}

pub(crate) async fn block(scene: &mut Scene) -> Result<String> {
    whole(scene, Content::Block).await
}

async fn whole(scene: &mut Scene, content: Content) -> Result<String> {
    let mut volume = scene.volume("pvc-1", content).await?;
    let cluster = &scene.cluster;
    volume.must_have(cluster, GIB)?;
    let before = Scene::write(&volume, 1)?;

    // Online. The rescan is necessary: the LUN has grown on the NAS, but the device has not.
    ensure!(volume.expand_lun(cluster, 2 * GIB).await? == 2 * GIB);
    let device = scene.device(&volume)?;
    let stale = device_bytes(&device)?;
    ensure!(
        stale == GIB.unsigned_abs(),
        "the device grew without a rescan: {stale}"
    );
    // And sufficient: there was no new login.
    ensure!(volume.expand_on_node(cluster, 2 * GIB).await? == 2 * GIB);
    ensure!(
        scene.device(&volume)? == device,
        "the device is another one"
    );
    volume.must_have(cluster, 2 * GIB)?;
    Scene::must_hold(&before)?;

    // Offline.
    volume.detach(cluster).await?;
    ensure!(volume.expand_lun(cluster, 3 * GIB).await? == 3 * GIB);
    volume.attach(cluster).await?;
    volume.must_have(cluster, 3 * GIB)?;
    Scene::must_hold(&before)?;

    volume.detach(cluster).await?;
    volume.delete(cluster).await?;
    Ok("1 GiB; online 2 GiB (1 GiB before the rescan); offline 3 GiB; data equal".to_owned())
}
