//! Tests of the images, started as the chart starts them, with testcontainers: a volume's life cycle over TLS, rejected
//! certificates, restarts, privileges.
//!
//! `cargo ci containers` builds the images, and finds or starts an engine; in other runs these tests are skipped.

use anyhow::{Context as _, Result, ensure};
use e2e::GIB;
use e2e::harness::plugin::Csi as _;
use e2e::harness::skip::{can_grow_mounted_ext4, skip};
use e2e::harness::test_volume::{Content, TestVolume, create_request};
use proto::csi;
use testcontainers::runners::AsyncRunner as _;
use testcontainers::{GenericImage, ImageExt as _};
use tonic::Code;

#[path = "containers/chart.rs"]
mod chart;
#[path = "containers/parts.rs"]
mod parts;
#[path = "containers/rights.rs"]
mod rights;
#[path = "containers/scene.rs"]
mod scene;

use parts::{Access, Both, Driver, Nas, ready};
use rights::Rights;
use scene::Scene;

/// A node id as `NodeGetInfo` returns it.
const NODE: &str = "worker-a:0000000a";
const EXT4: Content = Content::Fs("ext4");

/// The NAS, and a controller that connects to it over HTTPS only.
async fn over_tls(scene: &Scene) -> Result<(Nas, Driver)> {
    let nas = Nas::start(scene).await?;
    let access = Access {
        url: &nas.url(),
        authority: &nas.authority,
    };
    let driver = Driver::controller(scene, &access).await?;
    Ok((nas, driver))
}

/// The volumes that the driver lists: ids and sizes in bytes.
async fn listed(driver: &Driver) -> Result<Vec<(String, i64)>> {
    let request = csi::ListVolumesRequest::default();
    let answer = driver
        .controller()
        .list_volumes(request)
        .await?
        .into_inner();
    let volumes = answer.entries.into_iter().filter_map(|entry| entry.volume);
    Ok(volumes
        .map(|volume| (volume.volume_id, volume.capacity_bytes))
        .collect())
}

fn bytes(size: i64) -> u64 {
    size.unsigned_abs()
}

#[tokio::test(flavor = "multi_thread")]
async fn contained_controller_lives_over_tls() -> Result<()> {
    let Some(scene) = Scene::create("contained_controller_lives_over_tls")? else {
        return Ok(());
    };
    let (nas, driver) = over_tls(&scene).await?;
    let volume = TestVolume::create(&driver, "pvc-1", GIB, EXT4).await?;
    ensure!(nas.luns().await?.iter().map(|lun| lun.1).eq([bytes(GIB)]));
    assert_eq!(listed(&driver).await?, [(volume.id.clone(), GIB)]);

    assert_eq!(volume.expand_lun(&driver, 2 * GIB).await?, 2 * GIB);
    ensure!(
        nas.luns()
            .await?
            .iter()
            .map(|lun| lun.1)
            .eq([bytes(2 * GIB)])
    );
    assert_eq!(listed(&driver).await?, [(volume.id.clone(), 2 * GIB)]);

    let context = volume.publish_to(&driver, NODE).await?;
    ensure!(context.contains_key("iqn"), "{context:?}");
    assert_eq!(nas.targets().await?, 1);
    volume.unpublish_from(&driver, NODE).await?;
    assert_eq!(nas.targets().await?, 0);

    volume.delete(&driver).await?;
    assert_eq!(nas.luns().await?, []);
    assert_eq!(listed(&driver).await?, []);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn contained_controller_trusts_no_other_authority() -> Result<()> {
    let Some(scene) = Scene::create("contained_controller_trusts_no_other_authority")? else {
        return Ok(());
    };
    let Some(elsewhere) = Scene::create("contained_controller_trusts_no_other_authority")? else {
        return Ok(());
    };
    let nas = Nas::start(&scene).await?;
    let other = Nas::start(&elsewhere).await?.authority;
    ensure!(other != nas.authority, "both have one authority");
    let unnamed = format!("https://{}:5001", nas.address().await?);
    let (url, own) = (nas.url(), &nas.authority);
    for (url, authority, why) in [
        // The authority of each dsm-sim has the same name; only the keys differ.
        (&url, &other, "another key"),
        // The right authority, with an address that the certificate is not valid for.
        (&unnamed, own, "write tls_server_name"),
    ] {
        let driver = Driver::controller(&scene, &Access { url, authority }).await?;
        let refused = TestVolume::create(&driver, "pvc-1", GIB, EXT4).await;
        let refused = refused.err().context("it was created")?;
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
        ensure!(refused.message().contains(why), "{refused}");
    }
    // Not even a login has reached the NAS.
    let counters = nas.control("counters").await?;
    assert_eq!(counters["calls"], serde_json::json!({}), "{counters}");
    // Only the trusted authority makes the difference.
    let access = Access {
        url: &url,
        authority: own,
    };
    let driver = Driver::controller(&scene, &access).await?;
    TestVolume::create(&driver, "pvc-1", GIB, EXT4).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn contained_restarts_lose_no_volume() -> Result<()> {
    let Some(scene) = Scene::create("contained_restarts_lose_no_volume")? else {
        return Ok(());
    };
    let (nas, mut driver) = over_tls(&scene).await?;
    let volume = TestVolume::create(&driver, "pvc-1", GIB, EXT4).await?;
    volume.publish_to(&driver, NODE).await?;

    driver.restart().await?;
    assert_eq!(listed(&driver).await?, [(volume.id.clone(), GIB)]);
    assert_eq!(volume.expand_lun(&driver, 2 * GIB).await?, 2 * GIB);

    // The driver is not restarted and still has its old session and connections.
    nas.restart().await?;
    assert_eq!(nas.targets().await?, 1);
    assert_eq!(volume.expand_lun(&driver, 3 * GIB).await?, 3 * GIB);
    assert_eq!(listed(&driver).await?, [(volume.id.clone(), 3 * GIB)]);

    let repeated = create_request("pvc-1", 3 * GIB, EXT4);
    assert_eq!(
        TestVolume::create_as(&driver, repeated, EXT4).await?.id,
        volume.id
    );
    volume.unpublish_from(&driver, NODE).await?;
    volume.delete(&driver).await?;
    assert_eq!(nas.luns().await?, []);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn contained_programs_have_no_rights() -> Result<()> {
    let Some(scene) = Scene::create("contained_programs_have_no_rights")? else {
        return Ok(());
    };
    let (nas, driver) = over_tls(&scene).await?;
    let nothing = Rights {
        user: 65532,
        group: 65532,
        capabilities: [0, 0],
        no_new_privileges: true,
        filtered: true,
        writable_root: false,
    };
    assert_eq!(Rights::of(&driver.container)?, nothing);
    // The simulated nodes keep their sessions next to its targets, so the chart runs it as root, but without capabilities.
    let as_root = Rights {
        user: 0,
        group: 0,
        ..nothing
    };
    assert_eq!(Rights::of(&nas.container)?, as_root);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn contained_dsm_sim_needs_no_words() -> Result<()> {
    let Some(scene) = Scene::create("contained_dsm_sim_needs_no_words")? else {
        return Ok(());
    };
    // As `docker run` starts it, without additional privileges.
    let alone = GenericImage::new("localhost/dsm-sim", env!("CARGO_PKG_VERSION"))
        .with_container_name(scene.name_of("alone"))
        .with_network(scene.name_of("net"))
        .with_readonly_rootfs(true)
        .with_cap_drop("ALL")
        .with_security_opt("no-new-privileges")
        .start()
        .await?;
    ready(&alone).await?;
    let rights = Rights::of(&alone)?;
    assert_eq!((rights.user, rights.capabilities), (65532, [0, 0]));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn contained_node_grows_a_mounted_volume() -> Result<()> {
    let Some(scene) = Scene::create("contained_node_grows_a_mounted_volume")? else {
        return Ok(());
    };
    if !can_grow_mounted_ext4() {
        skip(
            "contained_node_is_privileged",
            "needs CAP_SYS_RESOURCE, which a privileged container has: it is started with all other rights",
        );
    }
    let (nas, controller) = over_tls(&scene).await?;
    let node = Driver::node(&scene).await?;
    let rights = Rights::of(&node.container)?;
    assert_eq!((rights.user, rights.writable_root), (0, false));
    let both = Both { controller, node };
    let info = both
        .node()
        .node_get_info(csi::NodeGetInfoRequest {})
        .await?;
    let id = info.into_inner().node_id;
    ensure!(id.starts_with(scene::NODE), "{id}");

    let mut volume = TestVolume::create(&both, "pvc-1", GIB, Content::Fs("xfs")).await?;
    volume.attach(&both).await?;
    let before = total(&volume, &both).await?;
    assert_eq!(volume.expand_lun(&both, 2 * GIB).await?, 2 * GIB);
    volume.expand_on_node(&both, 2 * GIB).await?;
    let after = total(&volume, &both).await?;
    ensure!(
        after - before > GIB / 10 * 9,
        "{before}, then {after} bytes"
    );
    volume.detach(&both).await?;
    volume.delete(&both).await?;
    assert_eq!(nas.luns().await?, []);
    Ok(())
}

/// The size of the volume's file system that a pod sees.
async fn total(volume: &TestVolume, both: &Both) -> Result<i64> {
    let usage = volume.stats(both).await?.usage;
    let bytes = usage
        .into_iter()
        .find(|usage| usage.unit == i32::from(csi::volume_usage::Unit::Bytes));
    Ok(bytes.context("bytes")?.total)
}
