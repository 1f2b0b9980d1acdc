//! Publish and unpublish with one driver: design.md#node-id, #one-target-per-publication, #dsm-reuses-target-numbers and
//! #portals.

use std::collections::HashSet;

use anyhow::Result;
use e2e::GIB;
use e2e::harness::nas::Settings;
use e2e::harness::test_cluster::Plan;
use e2e::harness::test_volume::{Content, capability, create_request};
use proto::csi::volume_capability::access_mode::Mode;
use serde_json::json;
use tonic::Code;

use super::common::{
    Csi, LUN, NODE_A, NODE_B, TARGET, admin_call, call_names, calls, exports, iqn, journal_end,
    lose_reply, publication, publications, refuse, refused, uuid,
};

/// design.md#node-id
#[tokio::test]
async fn publish_takes_only_valid_node_ids_and_unpublish_any() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("pvc-1", GIB).await?;
    csi.publish(&id, NODE_A).await?;
    let before = cluster.nas.state().await?;
    let long = format!("{}:01234567", "n".repeat(62));
    for node in [
        "some-fake-node-id",
        "w:",
        "w:0123456",
        "w:0123456g",
        "W:01234567",
        ":01234567",
        "a/b:01234567",
        long.as_str(),
    ] {
        refused(
            csi.publish(&id, node).await,
            Code::NotFound,
            &[node, "NodeGetInfo"],
        );
        csi.unpublish(&id, node).await?;
    }
    // Well-formed, but never published to.
    csi.unpublish(&id, NODE_B).await?;
    assert_eq!(cluster.nas.state().await?, before);
    Ok(())
}

/// design.md#node-id
#[tokio::test]
async fn an_empty_node_id_unpublishes_from_all_nodes() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let [shared, other] = [
        csi.create("shared", GIB).await?,
        csi.create("other", GIB).await?,
    ];
    let everywhere = capability(Content::Block, Mode::MultiNodeMultiWriter);
    for node in [NODE_A, NODE_B] {
        csi.publish_as(&shared, node, everywhere.clone()).await?;
    }
    csi.publish(&other, NODE_A).await?;
    csi.unpublish(&shared, "").await?;
    csi.unpublish(&shared, "").await?;
    assert_eq!(
        publications(&cluster.nas).await?,
        [publication(&other, NODE_A)]
    );
    Ok(())
}

/// design.md#one-target-per-publication
#[tokio::test]
async fn a_publication_is_one_target_and_unpublish_deletes_it() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("pvc-1", GIB).await?;
    assert_eq!(
        publications(&cluster.nas).await?,
        Vec::<String>::new(),
        "an idle volume needs no target"
    );
    let first = csi.publish(&id, NODE_A).await?;
    assert_eq!(
        (first["iqn"].as_str(), first["uuid"].as_str()),
        (iqn(&cluster.nas, &id, NODE_A).await?.as_str(), uuid(&id))
    );
    let target = &cluster.nas.targets_now().await?[0];
    assert_eq!(target["max_sessions"], 0);
    assert_eq!(
        target["mapped_luns"][0]["mapping_index"].to_string(),
        first["lun"]
    );
    // The same call again returns the same context and changes nothing.
    let before = cluster.nas.state().await?;
    assert_eq!(csi.publish(&id, NODE_A).await?, first);
    assert_eq!(cluster.nas.state().await?, before);
    assert_eq!(csi.get(&id).await?.1, [NODE_A]);

    csi.unpublish(&id, NODE_A).await?;
    csi.unpublish(&id, NODE_A).await?;
    assert_eq!(publications(&cluster.nas).await?, Vec::<String>::new());
    assert_eq!(csi.get(&id).await?.1, Vec::<String>::new());

    // A node that still has the old context finds no target, now and later.
    let republished = csi.publish(&id, NODE_A).await?;
    for key in ["iqn", "chap_username", "chap_password", "chap_password_in"] {
        assert_ne!(republished[key], first[key], "{key}");
    }
    Ok(())
}

/// design.md#one-target-per-publication
#[tokio::test]
async fn a_second_node_is_refused_and_its_target_rolled_back() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("pvc-1", GIB).await?;
    csi.publish(&id, NODE_A).await?;
    let before = cluster.nas.state().await?;
    for mode in [
        Mode::SingleNodeWriter,
        Mode::SingleNodeSingleWriter,
        Mode::SingleNodeMultiWriter,
        Mode::SingleNodeReaderOnly,
    ] {
        for content in [Content::Fs("ext4"), Content::Block] {
            let answer = csi.publish_as(&id, NODE_B, capability(content, mode)).await;
            refused(
                answer,
                Code::FailedPrecondition,
                &[
                    NODE_A,
                    &iqn(&cluster.nas, &id, NODE_A).await?,
                    "ControllerUnpublishVolume",
                    "volumeattachment",
                ],
            );
        }
    }
    assert_eq!(cluster.nas.state().await?, before);
    // A publication is never broken automatically: only unpublish lets the other node in.
    csi.unpublish(&id, NODE_A).await?;
    csi.publish(&id, NODE_B).await?;
    assert_eq!(
        publications(&cluster.nas).await?,
        [publication(&id, NODE_B)]
    );
    Ok(())
}

/// design.md#one-target-per-publication
#[tokio::test]
async fn a_foreign_target_counts_too() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("pvc-1", GIB).await?;
    admin_call(
        &cluster,
        &[
            ("api", TARGET),
            ("version", "1"),
            ("method", "create"),
            ("name", "backup"),
            ("iqn", "iqn.2000-01.com.synology:backup"),
        ],
    )
    .await?;
    let lun = format!("\"{}\"", uuid(&id));
    admin_call(
        &cluster,
        &[
            ("api", LUN),
            ("version", "1"),
            ("method", "map_target"),
            ("uuid", &lun),
            ("target_ids", "[1]"),
        ],
    )
    .await?;
    let before = cluster.nas.state().await?;
    for capability in [
        capability(Content::Fs("xfs"), Mode::SingleNodeWriter),
        capability(Content::Block, Mode::MultiNodeMultiWriter),
    ] {
        refused(
            csi.publish_as(&id, NODE_A, capability).await,
            Code::FailedPrecondition,
            &["iqn.2000-01.com.synology:backup", "SAN Manager"],
        );
    }
    refused(
        csi.delete(&id).await,
        Code::FailedPrecondition,
        &["iqn.2000-01.com.synology:backup"],
    );
    csi.unpublish(&id, "").await?;
    assert_eq!(cluster.nas.state().await?, before);
    Ok(())
}

/// design.md#one-target-per-publication
#[tokio::test]
async fn raw_block_is_published_to_several_nodes_and_file_systems_never_are() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi
        .create_as(create_request("raw", GIB, Content::Block))
        .await?
        .volume_id;
    let everywhere = capability(Content::Block, Mode::MultiNodeMultiWriter);
    let a = csi.publish_as(&id, NODE_A, everywhere.clone()).await?;
    let b = csi.publish_as(&id, NODE_B, everywhere.clone()).await?;
    assert_ne!(a["iqn"], b["iqn"]);
    assert_eq!(
        csi.get(&id).await?.1.into_iter().collect::<HashSet<_>>(),
        HashSet::from([NODE_A.to_owned(), NODE_B.to_owned()])
    );
    assert_eq!(csi.publish_as(&id, NODE_A, everywhere).await?, a);
    csi.unpublish(&id, NODE_A).await?;
    assert_eq!(csi.get(&id).await?.1, [NODE_B]);

    for mode in [
        Mode::MultiNodeReaderOnly,
        Mode::MultiNodeSingleWriter,
        Mode::MultiNodeMultiWriter,
    ] {
        let file_system = capability(Content::Fs("ext4"), mode);
        refused(
            csi.publish_as(&id, NODE_A, file_system.clone()).await,
            Code::InvalidArgument,
            &["MULTI_NODE", "one node"],
        );
        let mut request = create_request("shared-fs", GIB, Content::Fs("ext4"));
        request.volume_capabilities = vec![file_system];
        refused(
            csi.create_as(request).await,
            Code::InvalidArgument,
            &["MULTI_NODE"],
        );
    }
    Ok(())
}

/// design.md#one-target-per-publication
#[tokio::test]
async fn a_model_with_two_targets_holds_four_volumes() -> Result<()> {
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
    let mut ids = Vec::new();
    for name in ["a", "b", "c", "d"] {
        ids.push(csi.create(name, GIB).await?);
    }
    refused(
        csi.create("e", GIB).await,
        Code::ResourceExhausted,
        &["18990541"],
    );
    csi.publish(&ids[0], NODE_A).await?;
    csi.publish(&ids[1], NODE_A).await?;
    refused(
        csi.publish(&ids[2], NODE_A).await,
        Code::ResourceExhausted,
        &["18990542", "unpublish"],
    );
    assert_eq!(
        (
            cluster.nas.luns().await?.len(),
            publications(&cluster.nas).await?.len()
        ),
        (4, 2)
    );
    csi.unpublish(&ids[0], NODE_A).await?;
    csi.publish(&ids[2], NODE_A).await?;
    Ok(())
}

/// Error codes with which DSM reports a target as missing, whether or not it is.
const DENIALS: [u32; 3] = [18_990_710, 18_990_722, 18_990_724];

/// design.md#dsm-reuses-target-numbers
#[tokio::test]
async fn a_target_that_get_does_not_find_is_looked_up_in_the_full_list() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("pvc-1", GIB).await?;
    for code in DENIALS {
        csi.publish(&id, NODE_A).await?;
        cluster.nas.fault(TARGET, "get", 1, 1, refuse(code)).await?;
        // The list is refused as well: absence is not confirmed, so it is not reported.
        cluster.nas.fault(TARGET, "list", 2, 1, refuse(117)).await?;
        refused(
            csi.unpublish(&id, NODE_A).await,
            Code::Unavailable,
            &["117"],
        );
        assert_eq!(
            publications(&cluster.nas).await?,
            [publication(&id, NODE_A)]
        );
        cluster.nas.clear_faults().await?;
        cluster.nas.fault(TARGET, "get", 1, 1, refuse(code)).await?;
        let start = journal_end(&cluster.nas).await?;
        csi.unpublish(&id, NODE_A).await?;
        assert_eq!(
            publications(&cluster.nas).await?,
            Vec::<String>::new(),
            "{code}"
        );
        let calls = calls(&cluster.nas, start).await?;
        let expected = [
            "Target.list",
            "Target.get",
            "Target.list",
            "Target.get",
            "LUN.unmap_target",
            "Target.delete",
            "Target.list",
        ];
        assert_eq!(call_names(&calls), expected);
        assert_eq!(
            calls[5].params["target_id"], "\"1\"",
            "by number, and as a JSON string"
        );
    }
    Ok(())
}

/// That `get` takes names, and that a compound stops at the first error, was only ever observed by others.
/// design.md#dsm-reuses-target-numbers
#[tokio::test]
async fn a_publication_works_whatever_the_nas_does_with_guard_calls() -> Result<()> {
    for switches in [
        json!({"target_get_takes_names": false}),
        json!({"compounds_go_on": true}),
        json!({"compound_fills_stopped": true}),
        json!({"compounds_go_on": true, "target_get_takes_names": false}),
        json!({"deleted_targets_keep_sessions": true}),
    ] {
        let cluster = Plan::controller().start().await?;
        let csi = Csi::of(&cluster.plugin);
        cluster.nas.patch_settings(&switches).await?;
        let id = csi.create("pvc-1", GIB).await?;
        for _ in 0..2 {
            let context = csi.publish(&id, NODE_A).await?;
            assert_eq!(csi.publish(&id, NODE_A).await?, context, "{switches}");
            assert_eq!(
                exports(&cluster.nas, &id).await?,
                [publication(&id, NODE_A)]
            );
            csi.unpublish(&id, NODE_A).await?;
            csi.unpublish(&id, NODE_A).await?;
            assert_eq!(publications(&cluster.nas).await?, Vec::<String>::new());
        }
        csi.delete(&id).await?;
    }
    Ok(())
}

/// design.md#dsm-reuses-target-numbers
#[tokio::test]
async fn a_not_found_error_of_a_deletion_does_not_prove_it() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("pvc-1", GIB).await?;
    csi.publish(&id, NODE_A).await?;
    for code in DENIALS {
        cluster
            .nas
            .fault(TARGET, "delete", 1, 1, refuse(code))
            .await?;
        refused(
            csi.unpublish(&id, NODE_A).await,
            Code::Unavailable,
            &[&iqn(&cluster.nas, &id, NODE_A).await?],
        );
        assert_eq!(
            publications(&cluster.nas).await?,
            [publication(&id, NODE_A)]
        );
    }
    csi.unpublish(&id, NODE_A).await?;
    Ok(())
}

/// While the reply was lost, another controller may have found the target and returned it: the target stays, and the retry
/// finds it.
/// design.md#one-operation-per-volume
#[tokio::test]
async fn a_mapping_whose_reply_is_lost_is_not_rolled_back() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("pvc-1", GIB).await?;
    let start = journal_end(&cluster.nas).await?;
    cluster
        .nas
        .fault(LUN, "map_target", 1, 1, lose_reply())
        .await?;
    refused(
        csi.publish(&id, NODE_A).await,
        Code::Unavailable,
        &["mapping", "no answer"],
    );
    assert_eq!(
        publications(&cluster.nas).await?,
        [publication(&id, NODE_A)]
    );
    csi.publish(&id, NODE_A).await?;
    let calls = call_names(&calls(&cluster.nas, start).await?);
    let count = |name: &str| calls.iter().filter(|call| *call == name).count();
    assert_eq!(
        (count("Target.create"), count("Target.delete")),
        (1, 0),
        "{calls:?}"
    );
    csi.unpublish(&id, NODE_A).await?;
    assert_eq!(publications(&cluster.nas).await?, Vec::<String>::new());
    Ok(())
}

/// design.md#portals
#[tokio::test]
async fn portals_come_from_the_configuration() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let id = Csi::of(&cluster.plugin).create("pvc-1", GIB).await?;
    let old = Csi::of(&cluster.plugin).publish(&id, NODE_A).await?;
    assert_eq!(old["portals"], "127.0.0.1:3260");
    for (name, portals, expected) in [
        (
            "several",
            "portals: ['10.0.0.5', '[fd00::5]', '[fd00::6]:3261']",
            "10.0.0.5:3260,[fd00::5]:3260,[fd00::6]:3261",
        ),
        ("default", "portals: []", "127.0.0.1:3260"),
    ] {
        let plugin = cluster
            .another_driver(name, |settings| {
                settings.config = settings
                    .config
                    .replace("portals: ['127.0.0.1:3260']", portals);
            })
            .await?;
        let mut new = Csi::of(&plugin).publish(&id, NODE_A).await?;
        assert_eq!(
            new.insert("portals".to_owned(), old["portals"].clone())
                .as_deref(),
            Some(expected)
        );
        assert_eq!(new, old, "nothing else depends on them");
    }
    let sixteen = (0..16)
        .map(|n| format!("'[fd00:1111:2222:3333:4444:5555:6666:{n:x}]:65535'"))
        .collect::<Vec<_>>()
        .join(", ");
    let many = cluster
        .another_driver("many", |settings| {
            settings.config = settings.config.replace("'127.0.0.1:3260'", &sixteen);
        })
        .await?;
    let context = Csi::of(&many).publish(&id, NODE_A).await?;
    assert_eq!(context["portals"].split(',').count(), 16);
    assert!(
        context
            .iter()
            .map(|(key, value)| key.len() + value.len())
            .sum::<usize>()
            < 4096
    );
    Ok(())
}
