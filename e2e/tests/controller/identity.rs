//! Volume ids, owner tags, LUN names and the identity service: design.md#volume-handle, #owner-tag, #lun-names, #probe and
//! #capabilities.

use std::collections::HashSet;

use anyhow::Result;
use e2e::harness::test_cluster::Plan;
use e2e::harness::test_volume::{Content, create_request};
use e2e::{GIB, MIB};
use proto::csi;
use proto::csi::controller_service_capability::{Type, rpc};
use proto::csi::plugin_capability::{
    Service, Type as Plugin, VolumeExpansion, service, volume_expansion,
};
use serde_json::json;
use tonic::Code;

use super::common::{
    Csi, NO_UUID, NODE_A, calls, exports, journal_end, lun, lun_size, refused, uuid,
};

/// design.md#volume-handle
#[tokio::test]
async fn an_id_that_we_never_issued_is_gone_or_not_found_and_costs_no_call() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let (before, start) = (cluster.nas.state().await?, journal_end(&cluster.nas).await?);
    let upper = format!("nas1/{}", NO_UUID.to_uppercase().replace('0', "A"));
    let foreign = [
        "x",
        "nas1",
        NO_UUID,
        "nas1/",
        "nas1/csi-pvc-1",
        "../etc/passwd",
        "NAS1/x",
        "1.1",
        upper.as_str(),
        "nas1/../nas1",
    ];
    for id in foreign {
        for (call, answer) in csi.every(id).await {
            match call {
                "delete" | "unpublish" => assert!(answer.is_ok(), "{call} {id}: {answer:?}"),
                _ => refused(answer, Code::NotFound, &[id, "<nas>/<lun uuid>"]),
            }
        }
    }
    // Missing fields are reported first.
    refused(
        csi.publish("x", "").await,
        Code::InvalidArgument,
        &["node_id"],
    );
    refused(
        csi.expand("x", 0).await,
        Code::InvalidArgument,
        &["capacity_range"],
    );
    for (call, answer) in csi.every("").await {
        assert_eq!(
            answer.expect_err(call).code(),
            Code::InvalidArgument,
            "{call}"
        );
    }
    assert_eq!(calls(&cluster.nas, start).await?.len(), 0);
    assert_eq!(cluster.nas.state().await?, before);
    Ok(())
}

/// design.md#volume-handle
#[tokio::test]
async fn a_nas_that_is_not_configured_is_a_failed_precondition_everywhere() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let start = journal_end(&cluster.nas).await?;
    for (_, answer) in csi.every(&format!("nas9/{NO_UUID}")).await {
        refused(answer, Code::FailedPrecondition, &["\"nas9\"", "alias"]);
    }
    assert_eq!(calls(&cluster.nas, start).await?.len(), 0);
    Ok(())
}

/// design.md#volume-handle
#[tokio::test]
async fn a_nas_answers_to_its_aliases() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let old = Csi::of(&cluster.plugin).create("pvc-1", GIB).await?;
    let renamed = |settings: &mut e2e::harness::plugin::Settings| {
        settings.config = settings
            .config
            .replace("- name: nas1", "- name: nas-new\n    aliases: [nas0, nas1]");
    };
    let plugin = cluster.another_driver("renamed", renamed).await?;
    let csi = Csi::of(&plugin);
    assert!(csi.validate(&old).await?);
    csi.publish(&old, NODE_A).await?;
    assert_eq!(csi.get(&old).await?, (GIB, vec![NODE_A.to_owned()]));
    assert_eq!(csi.expand(&old, 2 * GIB).await?, 2 * GIB);
    csi.unpublish(&old, NODE_A).await?;
    let new = csi.create("pvc-2", GIB).await?;
    assert!(new.starts_with("nas-new/"), "{new}");
    csi.delete(&old).await?;
    csi.delete(&new).await?;
    assert_eq!(cluster.leftovers().await?, Vec::<String>::new());
    Ok(())
}

/// design.md#volume-handle
#[tokio::test]
async fn a_lun_whose_name_is_the_uuid_is_another_one() -> Result<()> {
    let cluster = Plan::controller().without_crashed_volume().start().await?;
    let csi = Csi::of(&cluster.plugin);
    cluster.nas.foreign_lun(NO_UUID, GIB).await?;
    let before = cluster.nas.state().await?;
    for (call, answer) in csi.every(&format!("nas1/{NO_UUID}")).await {
        match call {
            "delete" | "unpublish" => assert!(answer.is_ok(), "{call}: {answer:?}"),
            _ => refused(answer, Code::NotFound, &[NO_UUID]),
        }
    }
    assert_eq!(cluster.nas.state().await?, before);
    Ok(())
}

/// design.md#owner-tag
#[tokio::test]
async fn a_lun_without_our_mark_is_never_touched() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let foreign = cluster.nas.foreign_lun("somebody-elses", GIB).await?;
    let other_driver = cluster.nas.foreign_lun("other", GIB).await?;
    let mark = "csi.other.com parameters=0123456789abcdef name=pvc-1";
    cluster
        .nas
        .patch_lun(&other_driver, &json!({"description": mark}))
        .await?;
    // One of our LUNs whose description was edited is no longer ours.
    let lost = csi.create("pvc-lost", GIB).await?;
    cluster
        .nas
        .patch_lun(
            uuid(&lost),
            &json!({"description": "finance, do not touch"}),
        )
        .await?;
    let before = cluster.nas.state().await?;
    for lun in [&foreign, &other_driver, uuid(&lost)] {
        for (call, answer) in csi.every(&format!("nas1/{lun}")).await {
            match call {
                // There is no target of ours, so there is nothing to remove.
                "unpublish" => assert!(answer.is_ok(), "{answer:?}"),
                _ => refused(
                    answer,
                    Code::FailedPrecondition,
                    &["owner tag", "csi.synology.com"],
                ),
            }
        }
    }
    assert_eq!(csi.list(0, "").await?.entries, []);
    assert_eq!(cluster.nas.state().await?, before);
    Ok(())
}

/// design.md#owner-tag
#[tokio::test]
async fn a_lun_that_only_has_the_name_is_not_returned() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    cluster.nas.foreign_lun("csi-pvc-1", 5 * GIB).await?;
    let before = cluster.nas.state().await?;
    refused(
        csi.create("pvc-1", 5 * GIB).await,
        Code::AlreadyExists,
        &["csi-pvc-1", "owner tag"],
    );
    assert_eq!(cluster.nas.state().await?, before);
    Ok(())
}

/// design.md#lun-names
#[tokio::test]
async fn every_legal_name_is_a_volume_of_its_own() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let long = "x".repeat(128);
    let names = [
        "a_b",
        "a b",
        "A",
        "a",
        "ä",
        "a/b",
        "../../x",
        "{\"json\":1}",
        "a&b=c",
        "'\"\\",
        "tab\there",
        &long,
        &long[1..],
    ];
    let mut ids = HashSet::new();
    for name in names {
        let id = csi.create(name, GIB).await?;
        assert_eq!(csi.create(name, GIB).await?, id, "{name}");
        let found = lun(&cluster.nas, &id).await?.expect("its LUN");
        assert!(
            found["description"]
                .as_str()
                .is_some_and(|text| text.starts_with("csi2 o=") && text.contains(" n=")),
            "{found}"
        );
        assert!(
            found["name"].as_str().is_some_and(|text| text.len() <= 64),
            "{found}"
        );
        ids.insert(id);
    }
    assert_eq!(ids.len(), names.len());
    refused(
        csi.create(&"x".repeat(129), GIB).await,
        Code::InvalidArgument,
        &["name", "128"],
    );
    refused(
        csi.create("a\u{7}b", GIB).await,
        Code::InvalidArgument,
        &["name", "control"],
    );
    assert_eq!(cluster.nas.luns().await?.len(), names.len());
    Ok(())
}

/// design.md#sizes
#[tokio::test]
async fn sizes_are_whole_mib_of_at_least_one_gib_within_the_range() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let ask = |name: &str, required_bytes: i64, limit_bytes: i64| {
        let capacity_range = Some(csi::CapacityRange {
            required_bytes,
            limit_bytes,
        });
        csi::CreateVolumeRequest {
            capacity_range,
            ..create_request(name, 0, Content::Fs("ext4"))
        }
    };
    let no_range = csi::CreateVolumeRequest {
        capacity_range: None,
        ..create_request("none", 0, Content::Block)
    };
    for (request, size) in [
        (no_range, GIB),
        (ask("zero", 0, 0), GIB),
        (ask("tiny", 1, 0), GIB),
        (ask("odd", GIB + 1, 0), GIB + MIB),
        (ask("exact", 3 * GIB, 3 * GIB), 3 * GIB),
        (ask("limit", 0, 5 * GIB), GIB),
    ] {
        let volume = csi.create_as(request).await?;
        assert_eq!(
            (
                volume.capacity_bytes,
                lun_size(&cluster.nas, &volume.volume_id).await?
            ),
            (size, size)
        );
    }
    let luns = cluster.nas.luns().await?.len();
    for (required, limit) in [
        (GIB + 1, GIB + 2),
        (0, GIB - 1),
        (2 * GIB, GIB),
        (i64::MAX, 0),
    ] {
        refused(
            csi.create_as(ask("no", required, limit)).await,
            Code::OutOfRange,
            &["capacity_range"],
        );
    }
    refused(
        csi.create_as(ask("no", -1, 0)).await,
        Code::InvalidArgument,
        &["required_bytes"],
    );
    assert_eq!(cluster.nas.luns().await?.len(), luns);
    // The same name is the same volume as long as its size fits the range.
    let odd = csi.create_as(ask("odd", GIB + 1, 0)).await?.volume_id;
    for (required, limit) in [(0, 0), (GIB, 0), (GIB + MIB, GIB + MIB)] {
        assert_eq!(
            csi.create_as(ask("odd", required, limit)).await?.volume_id,
            odd
        );
    }
    refused(
        csi.create_as(ask("odd", 2 * GIB, 0)).await,
        Code::AlreadyExists,
        &["csi-odd"],
    );
    refused(
        csi.create_as(ask("odd", GIB, GIB)).await,
        Code::AlreadyExists,
        &["csi-odd"],
    );
    Ok(())
}

/// design.md#sizes
#[tokio::test]
async fn the_same_name_with_other_parameters_is_another_volume() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("pvc-1", GIB).await?;
    let before = cluster.nas.state().await?;
    for (key, value) in [
        ("location", "/volume2"),
        ("type", "BLUN_THICK"),
        ("fsType", "xfs"),
        ("formatOptions", "-i 4096"),
    ] {
        let mut other = create_request(
            "pvc-1",
            GIB,
            Content::Fs(if key == "fsType" { "xfs" } else { "ext4" }),
        );
        other.parameters.insert(key.to_owned(), value.to_owned());
        refused(
            csi.create_as(other).await,
            Code::AlreadyExists,
            &["csi-pvc-1"],
        );
    }
    assert_eq!(cluster.nas.state().await?, before);
    // The provisioner's own keys, fsType in capitals and a synonymous type change nothing.
    let mut same = create_request("pvc-1", GIB, Content::Fs("ext4"));
    same.parameters.extend(
        [
            ("csi.storage.k8s.io/pvc/name", "x"),
            ("fsType", "EXT4"),
            ("type", "thin"),
            ("protocol", "iSCSI"),
        ]
        .map(|(k, v)| (k.into(), v.into())),
    );
    assert_eq!(csi.create_as(same).await?.volume_id, id);
    Ok(())
}

/// design.md#probe
#[tokio::test]
async fn probe_never_asks_the_nas() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    // Nothing listens on the discard port of this machine.
    let down = cluster
        .another_driver("down", |settings| {
            settings.config = settings
                .config
                .replace(&cluster.nas.api, "http://127.0.0.1:9");
        })
        .await?;
    for plugin in [&cluster.plugin, &down] {
        for _ in 0..3 {
            let ready = plugin
                .identity()
                .probe(csi::ProbeRequest {})
                .await?
                .into_inner()
                .ready;
            assert_eq!(ready, Some(true));
        }
    }
    assert_eq!(cluster.nas.journal(0).await?.0.len(), 0);
    // Calls that need the NAS fail.
    refused(
        Csi::of(&down).create("pvc-1", GIB).await,
        Code::Unavailable,
        &["cannot be reached", "127.0.0.1:9"],
    );
    assert_eq!(
        down.identity()
            .probe(csi::ProbeRequest {})
            .await?
            .into_inner()
            .ready,
        Some(true)
    );
    Ok(())
}

/// design.md#capabilities
#[tokio::test]
async fn the_capabilities_are_exactly_these() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let offered = cluster
        .plugin
        .controller()
        .controller_get_capabilities(csi::ControllerGetCapabilitiesRequest {})
        .await?
        .into_inner();
    let name = |capability: &csi::ControllerServiceCapability| match &capability.r#type {
        Some(Type::Rpc(rpc)) => rpc::Type::try_from(rpc.r#type)
            .expect("a known type")
            .as_str_name(),
        None => "none",
    };
    let offered: Vec<&str> = offered.capabilities.iter().map(name).collect();
    let wanted = [
        "CREATE_DELETE_VOLUME",
        "PUBLISH_UNPUBLISH_VOLUME",
        "LIST_VOLUMES",
        "LIST_VOLUMES_PUBLISHED_NODES",
        "GET_CAPACITY",
        "GET_VOLUME",
        "EXPAND_VOLUME",
        "SINGLE_NODE_MULTI_WRITER",
    ];
    assert_eq!(offered, wanted);

    let plugin = cluster
        .plugin
        .identity()
        .get_plugin_capabilities(csi::GetPluginCapabilitiesRequest {})
        .await?
        .into_inner()
        .capabilities;
    let wanted = [
        Plugin::Service(Service {
            r#type: service::Type::ControllerService.into(),
        }),
        Plugin::VolumeExpansion(VolumeExpansion {
            r#type: volume_expansion::Type::Online.into(),
        }),
    ];
    assert_eq!(
        plugin,
        wanted.map(|kind| csi::PluginCapability { r#type: Some(kind) })
    );

    let info = cluster
        .plugin
        .identity()
        .get_plugin_info(csi::GetPluginInfoRequest {})
        .await?
        .into_inner();
    assert_eq!(info.name, "csi.synology.com");
    // Unsupported RPCs return Unimplemented.
    let snapshot = csi::CreateSnapshotRequest {
        name: "s".to_owned(),
        source_volume_id: "x".to_owned(),
        ..Default::default()
    };
    refused(
        cluster.plugin.controller().create_snapshot(snapshot).await,
        Code::Unimplemented,
        &["CreateSnapshot"],
    );
    Ok(())
}

/// design.md#node-expansion-is-always-required
#[tokio::test]
async fn node_expansion_is_always_required() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("pvc-1", GIB).await?;
    assert_eq!(exports(&cluster.nas, &id).await?, Vec::<String>::new());
    for size in [2 * GIB, GIB] {
        let capacity_range = Some(e2e::harness::test_volume::at_least(size));
        let request = csi::ControllerExpandVolumeRequest {
            volume_id: id.clone(),
            capacity_range,
            ..Default::default()
        };
        let answer = cluster
            .plugin
            .controller()
            .controller_expand_volume(request)
            .await?
            .into_inner();
        assert_eq!(
            (answer.capacity_bytes, answer.node_expansion_required),
            (2 * GIB, true)
        );
    }
    Ok(())
}
