//! CreateVolume: design.md#final-codes, #create-first and #parameters. It creates first and looks up on failure; an error is
//! final only if nothing was created.

use anyhow::Result;
use e2e::GIB;
use e2e::harness::nas::Settings;
use e2e::harness::test_cluster::Plan;
use e2e::harness::test_volume::{Content, create_request};
use proto::csi;
use serde_json::json;
use tonic::Code;

use super::common::{
    Csi, LUN, NODE_A, VOLUME, call_names, calls, journal_end, lose_reply, lun, refuse, refused,
};

fn with(name: &str, parameters: &[(&str, &str)]) -> csi::CreateVolumeRequest {
    let mut request = create_request(name, GIB, Content::Fs("ext4"));
    request.parameters = parameters
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    request
}

/// design.md#create-first
#[tokio::test]
async fn a_lost_create_is_found_by_its_name() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    for (name, way, looks) in [
        ("lost", lose_reply(), 1),
        // The call that shared its compound request was garbled, too.
        ("garbled", json!({"kind": "garble"}), 2),
    ] {
        cluster.nas.fault(LUN, "create", 1, 1, way).await?;
        let start = journal_end(&cluster.nas).await?;
        let id = csi.create(name, GIB).await?;
        let sent = call_names(&calls(&cluster.nas, start).await?);
        assert_eq!(sent[..2], ["Volume.get", "LUN.create"]);
        assert_eq!(sent[2..], vec!["LUN.get"; looks]);
        assert_eq!(csi.create(name, GIB).await?, id);
    }
    assert_eq!(cluster.nas.luns().await?.len(), 2);
    // The lookup fails too: the outcome is unknown, so the error is not final, and the next call finds the LUN.
    cluster.nas.fault(LUN, "create", 1, 1, lose_reply()).await?;
    cluster.nas.fault(LUN, "get", 1, 1, lose_reply()).await?;
    refused(
        csi.create("twice", GIB).await,
        Code::Unavailable,
        &["no answer"],
    );
    csi.create("twice", GIB).await?;
    assert_eq!(cluster.nas.luns().await?.len(), 3);
    Ok(())
}

/// design.md#create-first
#[tokio::test]
async fn a_refused_create_of_an_existing_lun_returns_it() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("pvc-1", GIB).await?;
    // Whatever error DSM returns for a create, the lookup by name decides: 18990068 means "failed", for a LUN that was created.
    for code in [18_990_068, 18_990_538, 18_990_002, 18_990_501, 100, 117] {
        cluster.nas.fault(LUN, "create", 1, 1, refuse(code)).await?;
        assert_eq!(csi.create("pvc-1", GIB).await?, id, "{code}");
    }
    Ok(())
}

/// design.md#final-codes
#[tokio::test]
async fn an_error_is_final_only_if_nothing_was_created() -> Result<()> {
    let nas = Settings {
        more: vec!["--model", "DS423"],
        ..Settings::default()
    };
    let cluster = Plan {
        nas,
        ..Plan::controller()
    }
    .start()
    .await?;
    let csi = Csi::of(&cluster.plugin);
    let before = cluster.nas.state().await?;
    // With the driver's own free-space floor turned off (design.md#free-space), the NAS refuses.
    let thick = [
        ("location", "/volume2"),
        ("type", "thick"),
        ("minFreeSpace", "0"),
    ];
    let huge = csi::CreateVolumeRequest {
        capacity_range: Some(e2e::harness::test_volume::at_least(4096 * GIB)),
        ..with("huge", &thick)
    };
    refused(
        csi.create_as(huge).await,
        Code::ResourceExhausted,
        &["18990002", "huge"],
    );
    refused(
        csi.create_as(with("x", &[("location", "/volume9"), ("type", "BLUN")]))
            .await,
        Code::InvalidArgument,
        &["location", "/volume9"],
    );
    refused(
        csi.create_as(with("x", &[("location", "/volume9"), ("type", "thin")]))
            .await,
        Code::InvalidArgument,
        &["location", "/volume9"],
    );
    refused(
        csi.create_as(with("x", &[("location", "/volume2"), ("type", "BLUN")]))
            .await,
        Code::InvalidArgument,
        &["type", "18990318"],
    );
    refused(
        csi.create_as(with("x", &[("location", "/volume1"), ("type", "ADV")]))
            .await,
        Code::InvalidArgument,
        &["type"],
    );
    assert_eq!(cluster.nas.state().await?, before);
    cluster.nas.seed(4).await?;
    refused(
        csi.create("x", GIB).await,
        Code::ResourceExhausted,
        &["18990541"],
    );
    assert_eq!(cluster.nas.luns().await?.len(), 4);
    // A degraded or crashed volume is not the user's mistake, and may hold the LUN of an earlier attempt.
    cluster
        .nas
        .patch_volume("volume1", &json!({"status": "crashed"}))
        .await?;
    refused(
        csi.create_as(with("x", &[])).await,
        Code::Unavailable,
        &["18990541", "/volume1"],
    );
    cluster
        .nas
        .patch_volume("volume2", &json!({"status": "crashed"}))
        .await?;
    refused(
        csi.create_as(with("x", &[])).await,
        Code::Aborted,
        &["none of its volumes", "/volume2", "crashed"],
    );
    Ok(())
}

/// design.md#final-codes
#[tokio::test]
async fn a_refusal_is_final_only_if_an_earlier_try_left_nothing() -> Result<()> {
    let cluster = Plan::controller().without_crashed_volume().start().await?;
    let csi = Csi::of(&cluster.plugin);
    // An earlier attempt created the LUN and its reply was lost. Then the NAS reboots and lists neither its volumes nor its LUNs
    // yet.
    let id = csi.create("pvc-1", GIB).await?;
    for code in [18_990_501, 18_990_002, 18_990_502, 18_990_541, 18_990_500] {
        cluster.nas.fault(LUN, "create", 1, 1, refuse(code)).await?;
        cluster
            .nas
            .fault(LUN, "get", 1, 1, refuse(18_990_531))
            .await?;
        refused(
            csi.create("pvc-1", GIB).await,
            Code::Unavailable,
            &["list shows it"],
        );
        cluster.nas.fault(LUN, "create", 1, 1, refuse(code)).await?;
        cluster
            .nas
            .patch_volume("volume1", &json!({"status": "crashed"}))
            .await?;
        refused(
            csi.create("pvc-2", GIB).await,
            Code::Unavailable,
            &["/volume1", "crashed"],
        );
        cluster
            .nas
            .patch_volume("volume1", &json!({"status": "normal"}))
            .await?;
    }
    assert_eq!(csi.create("pvc-1", GIB).await?, id);
    assert_eq!(cluster.nas.luns().await?.len(), 1);
    Ok(())
}

/// design.md#create-first
#[tokio::test]
async fn a_fresh_lun_is_waited_for_until_it_is_unlocked() -> Result<()> {
    let cluster = Plan::controller().slow().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("pvc-1", GIB).await?;
    assert_eq!(
        lun(&cluster.nas, &id).await?.expect("the LUN")["is_action_locked"],
        false
    );
    csi.publish(&id, NODE_A).await?;
    Ok(())
}

/// design.md#parameters
#[tokio::test]
async fn the_type_follows_the_volume_and_parameters_are_checked() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    for (name, parameters, location, kind) in [
        ("a", vec![], "/volume1", "BLUN"),
        ("b", vec![("location", "/volume2")], "/volume2", "ADV"),
        (
            "c",
            vec![("location", "/volume2"), ("type", "thick")],
            "/volume2",
            "FILE",
        ),
        (
            "d",
            vec![("location", "/volume1"), ("type", "thick")],
            "/volume1",
            "BLUN_THICK",
        ),
        (
            "e",
            vec![
                ("location", "/volume2"),
                ("type", "THIN"),
                ("dsm", "127.0.0.1"),
            ],
            "/volume2",
            "THIN",
        ),
    ] {
        let id = csi.create_as(with(name, &parameters)).await?.volume_id;
        let lun = lun(&cluster.nas, &id).await?.expect("the LUN");
        assert_eq!(
            (lun["location"].as_str(), lun["type"].as_str()),
            (Some(location), Some(kind))
        );
    }
    let before = cluster.nas.state().await?;
    for (key, value) in [
        ("colour", "red"),
        ("location", "/etc"),
        ("location", "/volume1/../.."),
        ("type", "blun"),
        ("fsType", "ntfs"),
        ("protocol", "nfs"),
        ("nas", "NAS"),
    ] {
        refused(
            csi.create_as(with("x", &[(key, value)])).await,
            Code::InvalidArgument,
            &[key, value],
        );
    }
    refused(
        csi.create_as(with("x", &[("colour", "red")])).await,
        Code::InvalidArgument,
        &["location, type, fsType, formatOptions"],
    );
    refused(
        csi.create_as(with("x", &[("fsType", "xfs")])).await,
        Code::InvalidArgument,
        &["xfs", "ext4", "disagrees"],
    );
    refused(
        csi.create_as(with("x", &[("nas", "nas2")])).await,
        Code::FailedPrecondition,
        &["nas2", "nas1"],
    );
    let source = csi::VolumeContentSource::default();
    refused(
        csi.create_as(csi::CreateVolumeRequest {
            volume_content_source: Some(source),
            ..with("x", &[])
        })
        .await,
        Code::InvalidArgument,
        &["volume_content_source"],
    );
    let mutable = [("iops".to_owned(), "9".to_owned())].into();
    refused(
        csi.create_as(csi::CreateVolumeRequest {
            mutable_parameters: mutable,
            ..with("x", &[])
        })
        .await,
        Code::InvalidArgument,
        &["mutable_parameters"],
    );
    assert_eq!(cluster.nas.state().await?, before);
    Ok(())
}

/// design.md#parameters
#[tokio::test]
async fn a_busy_nas_is_not_a_missing_volume() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    // 117 means both "no such volume" and "busy": the list of volumes decides.
    cluster.nas.fault(VOLUME, "get", 1, 0, refuse(117)).await?;
    csi.create_as(with("a", &[("location", "/volume1")]))
        .await?;
    cluster.nas.fault(VOLUME, "list", 1, 1, refuse(117)).await?;
    refused(
        csi.create_as(with("b", &[("location", "/volume1")])).await,
        Code::Unavailable,
        &["117"],
    );
    Ok(())
}
