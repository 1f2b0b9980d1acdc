//! Free space on the NAS's volumes: design.md#free-space. A full volume stops every thin LUN on it, so no LUN is created or grown
//! below a floor.

use std::collections::HashMap;

use anyhow::Result;
use e2e::harness::test_cluster::{Plan, TestCluster};
use e2e::harness::test_volume::{Content, at_least, create_request};
use e2e::{GIB, MIB};
use proto::csi;
use serde_json::json;
use tonic::{Code, Status};

use super::common::{
    Csi, LUN, VOLUME, call_names, calls, journal_end, lose_reply, lun, lun_size, refuse, refused,
    uuid,
};

fn with(name: &str, size: i64, parameters: &[(&str, &str)]) -> csi::CreateVolumeRequest {
    let parameters = parameters.iter();
    csi::CreateVolumeRequest {
        parameters: parameters
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
        ..create_request(name, size, Content::Fs("ext4"))
    }
}

const NAMED: [(&str, &str); 2] = [("location", "/volume1"), ("type", "BLUN")];
const THICK: [(&str, &str); 2] = [("location", "/volume1"), ("type", "thick")];

fn and<'a>(some: &[(&'a str, &'a str)], more: (&'a str, &'a str)) -> Vec<(&'a str, &'a str)> {
    [some, &[more]].concat()
}

async fn free(cluster: &TestCluster, volume: &str, bytes: i64) -> Result<()> {
    let free = json!({"free": bytes});
    cluster.nas.patch_volume(volume, &free).await
}

async fn created(csi: &Csi, request: csi::CreateVolumeRequest) -> Result<String, Status> {
    Ok(csi.create_as(request).await?.volume_id)
}

/// design.md#free-space
#[tokio::test]
async fn no_lun_is_created_below_the_free_space_floor() -> Result<()> {
    let cluster = Plan::controller().without_crashed_volume().start().await?;
    let csi = Csi::of(&cluster.plugin);
    for volume in ["volume1", "volume2"] {
        free(&cluster, volume, GIB - MIB).await?;
    }
    let (before, start) = (cluster.nas.state().await?, journal_end(&cluster.nas).await?);
    let words = [
        "1023 MiB free",
        "1 GiB that stay free",
        "free space there",
        "minFreeSpace",
    ];
    for parameters in [
        &NAMED[..],
        &[("location", "/volume1")],
        &[("location", "/volume2"), ("type", "ADV")],
        &THICK,
        &[],
    ] {
        let answer = csi.create_as(with("pvc-1", GIB, parameters)).await;
        let text = answer
            .as_ref()
            .err()
            .map(Status::message)
            .unwrap_or_default();
        assert!(text.find("free space").is_some_and(|at| at < 200), "{text}");
        refused(answer, Code::ResourceExhausted, &words);
    }
    assert_eq!(cluster.nas.state().await?, before);
    let sent = call_names(&calls(&cluster.nas, start).await?);
    assert!(!sent.contains(&"LUN.create".to_owned()), "{sent:?}");
    // Exactly at the floor, whatever the size: the total of thin LUNs is not bounded.
    free(&cluster, "volume1", GIB).await?;
    let id = created(&csi, with("pvc-1", 10 << 40, &NAMED)).await?;
    assert_eq!(lun_size(&cluster.nas, &id).await?, 10 << 40);
    // The volume that the driver chooses has space.
    free(&cluster, "volume2", 3 * GIB).await?;
    let id = created(&csi, with("pvc-2", GIB, &[])).await?;
    let chosen = lun(&cluster.nas, &id).await?.unwrap_or_default();
    assert_eq!(chosen["location"], "/volume2");
    Ok(())
}

/// design.md#free-space
#[tokio::test]
async fn an_existing_volume_is_returned_on_a_full_nas() -> Result<()> {
    let cluster = Plan::controller().without_crashed_volume().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("pvc-1", GIB).await?;
    // The caller never got the reply for this one.
    for method in ["create", "get"] {
        cluster.nas.fault(LUN, method, 1, 1, lose_reply()).await?;
    }
    csi.create("pvc-2", GIB).await.expect_err("lost");
    cluster.nas.clear_faults().await?;
    free(&cluster, "volume1", 0).await?;
    assert_eq!(csi.create("pvc-1", GIB).await?, id);
    csi.create("pvc-2", GIB).await?;
    assert_eq!(cluster.nas.luns().await?.len(), 2);
    // It must still be the same volume, and a lookup that fails proves nothing.
    refused(
        csi.create("pvc-1", 2 * GIB).await,
        Code::AlreadyExists,
        &["it has 1 GiB"],
    );
    cluster.nas.fault(LUN, "get", 1, 1, refuse(117)).await?;
    refused(csi.create("pvc-3", GIB).await, Code::Unavailable, &["117"]);
    cluster
        .nas
        .fault(LUN, "get", 1, 1, refuse(18_990_531))
        .await?;
    refused(
        csi.create("pvc-1", GIB).await,
        Code::Unavailable,
        &["list shows it"],
    );
    Ok(())
}

/// design.md#free-space
#[tokio::test]
async fn expansion_stops_at_the_floor_and_a_smaller_request_succeeds() -> Result<()> {
    let cluster = Plan::controller().without_crashed_volume().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("pvc-1", 10 * GIB).await?;
    free(&cluster, "volume1", 512 * MIB).await?;
    let start = journal_end(&cluster.nas).await?;
    // With RESOURCE_EXHAUSTED the resizer would retry the same size forever.
    refused(
        csi.expand(&id, 20 * GIB).await,
        Code::OutOfRange,
        &[
            "/volume1 has 512 MiB free",
            "kubectl edit pvc",
            "min_free_space",
        ],
    );
    assert_eq!(
        call_names(&calls(&cluster.nas, start).await?),
        ["LUN.get", "Volume.list"]
    );
    // A volume that is already large enough needs no space.
    assert_eq!(csi.expand(&id, 10 * GIB).await?, 10 * GIB);
    free(&cluster, "volume1", GIB).await?;
    assert_eq!(csi.expand(&id, 20 * GIB).await?, 20 * GIB);
    Ok(())
}

/// design.md#free-space
#[tokio::test]
async fn thick_luns_stay_above_the_floor() -> Result<()> {
    let cluster = Plan::controller().without_crashed_volume().start().await?;
    let csi = Csi::of(&cluster.plugin);
    free(&cluster, "volume1", 11 * GIB).await?;
    refused(
        created(&csi, with("thick", 10 * GIB + MIB, &THICK)).await,
        Code::ResourceExhausted,
        &["takes 10241 MiB at once", "11 GiB free"],
    );
    let id = created(&csi, with("thick", 8 * GIB, &THICK)).await?;
    // 3 GiB are left.
    refused(
        csi.expand(&id, 11 * GIB).await,
        Code::OutOfRange,
        &["takes 3 GiB at once", "3 GiB free"],
    );
    assert_eq!(csi.expand(&id, 10 * GIB).await?, 10 * GIB);
    Ok(())
}

/// design.md#free-space
#[tokio::test]
async fn the_class_sets_the_floor_for_growth_too() -> Result<()> {
    let cluster = Plan::controller().without_crashed_volume().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let careful = and(&NAMED, ("minFreeSpace", "100Gi"));
    let careless = and(&NAMED, ("minFreeSpace", "0"));
    let [a, b] = [
        created(&csi, with("careful", GIB, &careful)).await?,
        created(&csi, with("careless", GIB, &careless)).await?,
    ];
    free(&cluster, "volume1", 99 * GIB).await?;
    for request in [
        with("another", GIB, &careful),
        with("another", GIB, &[("minFreeSpace", "5000Gi")]),
    ] {
        refused(
            csi.create_as(request).await,
            Code::ResourceExhausted,
            &["GiB that stay free"],
        );
    }
    // The StorageClass is not known when a volume grows: the floor is stored in the owner tag in the LUN's description, whatever
    // people add to that.
    let tagged = lun(&cluster.nas, &a).await?.unwrap_or_default();
    let text = tagged["description"].as_str().unwrap_or_default();
    assert!(text.contains(" f=100G - careful"), "{text}");
    let edited = json!({"description": format!("Finance: {text}")});
    cluster.nas.patch_lun(uuid(&a), &edited).await?;
    refused(
        csi.expand(&a, 2 * GIB).await,
        Code::OutOfRange,
        &["100 GiB that stay free", "f=100G in the description"],
    );
    free(&cluster, "volume1", 0).await?;
    assert_eq!(csi.expand(&b, 2 * GIB).await?, 2 * GIB);
    created(&csi, with("another", GIB, &careless)).await?;
    // A request for the same volume with another floor does not create another volume.
    let repeated = with("careful", GIB, &careless);
    assert_eq!(created(&csi, repeated).await?, a);
    for bad in ["1", "-1Gi", "1.5Gi", "10%", "20000Mi", ""] {
        refused(
            csi.create_as(with("x", GIB, &and(&NAMED, ("minFreeSpace", bad))))
                .await,
            Code::InvalidArgument,
            &["parameters[minFreeSpace]", "for instance 10Gi"],
        );
    }
    Ok(())
}

/// design.md#free-space
#[tokio::test]
async fn the_configuration_sets_the_floor_of_a_nas() -> Result<()> {
    let cluster = Plan::controller().without_crashed_volume().start().await?;
    free(&cluster, "volume1", 50 * GIB).await?;
    for (value, least, fits) in [
        ("100Gi", 100 * GIB, false),
        ("0", 0, true),
        ("10Gi", 10 * GIB, true),
    ] {
        let plugin = cluster
            .another_driver(&format!("floor-{value}"), |settings| {
                let with = format!("    min_free_space: {value}\nstate_file:");
                settings.config = settings.config.replace("state_file:", &with);
            })
            .await?;
        let csi = Csi::of(&plugin);
        let place = HashMap::from([("location".to_owned(), "/volume1".to_owned())]);
        assert_eq!(
            csi.capacity(place).await?,
            (50 * GIB - least).max(0),
            "{value}"
        );
        let result = csi.create(&format!("pvc-{least}"), GIB).await;
        assert_eq!(result.is_ok(), fits, "{value}: {result:?}");
        // The StorageClass overrides the configuration.
        created(
            &csi,
            with(
                &format!("own-{least}"),
                GIB,
                &and(&NAMED, ("minFreeSpace", "1Gi")),
            ),
        )
        .await?;
    }
    Ok(())
}

/// design.md#free-space
#[tokio::test]
async fn a_nas_that_reports_no_free_space_is_assumed_to_have_some() -> Result<()> {
    let cluster = Plan::controller().without_crashed_volume().start().await?;
    let csi = Csi::of(&cluster.plugin);
    free(&cluster, "volume1", 0).await?;
    for (n, code) in [102, 103, 105, 117].into_iter().enumerate() {
        for method in ["get", "list"] {
            cluster
                .nas
                .fault(VOLUME, method, 1, 0, refuse(code))
                .await?;
        }
        let name = format!("pvc-{n}");
        let id = csi.create(&name, GIB).await?;
        assert_eq!(csi.expand(&id, 2 * GIB).await?, 2 * GIB, "{code}");
        cluster.nas.clear_faults().await?;
    }
    let silent = json!({"without": ["size_free_byte"]});
    cluster.nas.patch_volume("volume1", &silent).await?;
    let id = csi.create("silent", GIB).await?;
    assert_eq!(csi.expand(&id, 2 * GIB).await?, 2 * GIB);
    // No reply at all is different.
    cluster.nas.fault(VOLUME, "get", 1, 1, lose_reply()).await?;
    refused(
        csi.create("lost", GIB).await,
        Code::Unavailable,
        &["no answer"],
    );
    Ok(())
}

/// design.md#free-space
#[tokio::test]
async fn checking_free_space_costs_no_request() -> Result<()> {
    let cluster = Plan::controller().without_crashed_volume().start().await?;
    let csi = Csi::of(&cluster.plugin);
    for (n, parameters) in [&NAMED[..], &[("location", "/volume1")], &[]]
        .into_iter()
        .enumerate()
    {
        let start = journal_end(&cluster.nas).await?;
        let id = created(&csi, with(&format!("pvc-{n}"), GIB, parameters)).await?;
        let mut created = calls(&cluster.nas, start).await?;
        created.dedup_by_key(|call| call.request);
        assert_eq!(created.len(), 2, "{:?}", call_names(&created));
        let start = journal_end(&cluster.nas).await?;
        csi.expand_within(&id, at_least(2 * GIB)).await?;
        let mut created = calls(&cluster.nas, start).await?;
        created.dedup_by_key(|call| call.request);
        assert_eq!(created.len(), 3, "{:?}", call_names(&created));
    }
    Ok(())
}

/// Calls in a compound request are repeated separately if the NAS has no compound requests, or loses the session in one.
/// design.md#free-space
#[tokio::test]
async fn calls_work_without_compound_requests() -> Result<()> {
    let cluster = Plan::controller().without_crashed_volume().start().await?;
    let csi = Csi::of(&cluster.plugin);
    for (n, (api, method, code)) in [
        ("SYNO.Entry.Request", "request", 103),
        (LUN, "create", 119),
        (LUN, "get", 119),
        (LUN, "get", 117),
        (VOLUME, "list", 119),
        (LUN, "list_snapshot", 119),
    ]
    .into_iter()
    .enumerate()
    {
        let fault = async || cluster.nas.fault(api, method, 1, 1, refuse(code)).await;
        let name = format!("pvc-{n}");
        fault().await?;
        let id = csi.create(&name, GIB).await?;
        cluster.nas.clear_faults().await?;
        fault().await?;
        let grown = csi.expand(&id, 2 * GIB).await;
        cluster.nas.clear_faults().await?;
        // "DSM is busy" is not a result for the call itself.
        assert_eq!(grown.is_ok(), code != 117, "{api} {method}: {grown:?}");
        assert_eq!(csi.create(&name, GIB).await?, id);
        fault().await?;
        let deleted = csi.delete(&id).await;
        cluster.nas.clear_faults().await?;
        assert_eq!(deleted.is_ok(), code != 117, "{api} {method}: {deleted:?}");
        csi.delete(&id).await?;
    }
    assert_eq!(cluster.leftovers().await?, Vec::<String>::new());
    Ok(())
}

/// An external (unpluggable) device is marked in either of two fields. No LUN is put on it unless the request names it.
/// design.md#create-first
#[tokio::test]
async fn no_external_device_is_chosen() -> Result<()> {
    let cluster = Plan::controller().without_crashed_volume().start().await?;
    let csi = Csi::of(&cluster.plugin);
    for (n, (container, location, outside)) in [
        ("internal", "internal", false),
        ("external", "internal", true),
        ("internal", "external", true),
        ("external", "external", true),
    ]
    .into_iter()
    .enumerate()
    {
        let fields = json!({"container": container, "location": location});
        cluster.nas.patch_volume("volume1", &fields).await?;
        // Otherwise the larger of the two.
        let id = created(&csi, with(&format!("pvc-{n}"), GIB, &[])).await?;
        let chosen = lun(&cluster.nas, &id).await?.unwrap_or_default();
        assert_eq!(chosen["location"] == "/volume2", outside, "{fields}");
        created(&csi, with(&format!("named-{n}"), GIB, &NAMED)).await?;
    }
    Ok(())
}
