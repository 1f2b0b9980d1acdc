//! DeleteVolume: design.md#unknown-is-not-absent and #deletevolume. Success means that the LUN is verified to be gone.

use anyhow::Result;
use e2e::GIB;
use e2e::harness::test_cluster::{Plan, TestCluster};
use serde_json::json;
use tonic::Code;

use super::common::{
    Csi, LUN, NO_UUID, NODE_A, TARGET, VOLUME, admin_call, call_names, calls, hang, iqn,
    journal_end, lose_reply, lun, refuse, refused, until_called, uuid,
};
use super::transport::wiretap;

/// Error codes with which DSM reports a LUN as missing, whether or not it is.
const DENIALS: [u32; 2] = [18_990_531, 18_990_505];

/// design.md#deletevolume
#[tokio::test]
async fn a_published_volume_is_not_deleted() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("pvc-1", GIB).await?;
    csi.publish(&id, NODE_A).await?;
    let before = cluster.nas.state().await?;
    refused(
        csi.delete(&id).await,
        Code::FailedPrecondition,
        &[NODE_A, &iqn(&cluster.nas, &id, NODE_A).await?, "unpublish"],
    );
    // Whether the LUN is in use cannot be determined: nothing is deleted.
    cluster.nas.fault(TARGET, "list", 1, 1, refuse(117)).await?;
    refused(csi.delete(&id).await, Code::Unavailable, &["117"]);
    assert_eq!(cluster.nas.state().await?, before);
    csi.unpublish(&id, NODE_A).await?;
    csi.delete(&id).await?;
    csi.delete(&id).await?;
    assert_eq!(cluster.leftovers().await?, Vec::<String>::new());
    Ok(())
}

/// design.md#deletevolume
#[tokio::test]
async fn a_recreated_volume_is_never_the_one_being_deleted() -> Result<()> {
    let cluster = Plan::controller().slow().start().await?;
    let found = json!({"deleted_luns_stay_listed": true, "deleted_luns_answer_get": true});
    cluster.nas.patch_settings(&found).await?;
    let csi = Csi::of(&cluster.plugin);
    let first = csi.create("pvc-1", GIB).await?;
    csi.delete(&first).await?;
    assert_eq!(
        lun(&cluster.nas, &first).await?,
        None,
        "DeleteVolume has waited until the NAS had finished"
    );
    let second = csi.create("pvc-1", GIB).await?;
    assert_ne!(first, second);

    // While it is being deleted it can be neither published nor deleted again.
    let plugin = cluster.another_driver("rival", |_| {}).await?;
    let start = journal_end(&cluster.nas).await?;
    let deletion = tokio::spawn({
        let (csi, id) = (csi.clone(), second.clone());
        async move { csi.delete(&id).await }
    });
    until_called(&cluster.nas, start, "LUN.delete").await?;
    let second_controller = Csi::of(&plugin);
    let (made, deleted) =
        futures::join!(csi.create("pvc-1", GIB), second_controller.delete(&second));
    refused(made, Code::Aborted, &["is_action_locked true"]);
    refused(deleted, Code::Aborted, &["is_action_locked true"]);
    deletion.await??;
    let third = csi.create("pvc-1", GIB).await?;
    assert!(third != first && third != second);
    Ok(())
}

/// The other way in which a NAS may lag: `get` reports the LUN as missing at once, while it is still listed and its name is still
/// taken.
/// design.md#deletevolume
#[tokio::test]
async fn a_recreated_volume_waits_until_the_old_name_is_free() -> Result<()> {
    let cluster = Plan::controller().slow().start().await?;
    let listed = json!({"deleted_luns_stay_listed": true});
    cluster.nas.patch_settings(&listed).await?;
    let csi = Csi::of(&cluster.plugin);
    let first = csi.create("pvc-1", GIB).await?;
    csi.delete(&first).await?;
    assert!(lun(&cluster.nas, &first).await?.is_some(), "it is listed");
    refused(
        csi.create("pvc-1", GIB).await,
        Code::Unavailable,
        &["pvc-1"],
    );
    cluster.nas.advance(2_000).await?;
    let second = csi.create("pvc-1", GIB).await?;
    assert_ne!(first, second);
    Ok(())
}

/// design.md#unknown-is-not-absent
#[tokio::test]
async fn a_lun_that_get_does_not_find_but_list_shows_is_not_gone() -> Result<()> {
    let cluster = Plan::controller().without_crashed_volume().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("pvc-1", GIB).await?;
    let before = cluster.nas.state().await?;
    for code in DENIALS {
        cluster.nas.fault(LUN, "get", 1, 0, refuse(code)).await?;
        for (call, answer) in csi.every(&id).await {
            match call {
                "unpublish" => assert!(answer.is_ok(), "{answer:?}"),
                _ => refused(answer, Code::Unavailable, &[uuid(&id), "list shows it"]),
            }
        }
        cluster.nas.clear_faults().await?;
    }
    assert_eq!(cluster.nas.state().await?, before);
    csi.delete(&id).await?;
    Ok(())
}

/// design.md#unknown-is-not-absent
#[tokio::test]
async fn a_not_found_error_does_not_prove_a_refused_deletion() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("pvc-1", GIB).await?;
    // The NAS reboots between the calls: it refuses to delete, then reports no LUNs.
    for (code, denial) in [
        (117, DENIALS[0]),
        (100, DENIALS[1]),
        (DENIALS[0], DENIALS[0]),
    ] {
        cluster.nas.fault(LUN, "delete", 1, 1, refuse(code)).await?;
        cluster.nas.fault(LUN, "get", 2, 0, refuse(denial)).await?;
        refused(csi.delete(&id).await, Code::Unavailable, &[uuid(&id)]);
        cluster.nas.clear_faults().await?;
        assert!(lun(&cluster.nas, &id).await?.is_some());
    }
    csi.delete(&id).await?;
    Ok(())
}

/// design.md#unknown-is-not-absent
#[tokio::test]
async fn a_refused_deletion_is_reported_at_once() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("pvc-1", GIB).await?;
    cluster.nas.fault(LUN, "delete", 1, 1, refuse(117)).await?;
    let start = journal_end(&cluster.nas).await?;
    refused(
        csi.delete(&id).await,
        Code::Unavailable,
        &["LUN.delete", "117"],
    );
    let reads = call_names(&calls(&cluster.nas, start).await?)
        .into_iter()
        .filter(|call| call == "LUN.get")
        .count();
    assert_eq!(reads, 2, "the NAS refused: there is nothing to wait for");
    Ok(())
}

async fn deleted_by_administrator(cluster: &TestCluster, csi: &Csi) -> Result<String> {
    let id = csi.create("pvc-1", GIB).await?;
    let lun = format!("\"{}\"", uuid(&id));
    admin_call(
        cluster,
        &[
            ("api", LUN),
            ("version", "1"),
            ("method", "delete"),
            ("uuid", &lun),
        ],
    )
    .await?;
    Ok(id)
}

/// design.md#unknown-is-not-absent
#[tokio::test]
async fn absence_needs_a_full_list_and_healthy_volumes() -> Result<()> {
    let cluster = Plan::controller().without_crashed_volume().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = deleted_by_administrator(&cluster, &csi).await?;
    for (status, hides) in [
        ("crashed", true),
        ("unmounted", true),
        ("degrade", false),
        ("attention", false),
        ("background", false),
        ("a word of DSM 8", false),
    ] {
        cluster
            .nas
            .patch_volume("volume1", &json!({"status": status}))
            .await?;
        for (call, answer) in csi.every(&id).await {
            match call {
                // Targets do not depend on a volume.
                "unpublish" => assert!(answer.is_ok(), "{answer:?}"),
                _ if hides => refused(answer, Code::Unavailable, &["/volume1", status]),
                "delete" => assert!(answer.is_ok(), "{answer:?}"),
                _ => refused(answer, Code::NotFound, &[uuid(&id)]),
            }
        }
    }
    cluster
        .nas
        .patch_volume("volume1", &json!({"status": "normal"}))
        .await?;
    for kind in [
        refuse(100),
        refuse(117),
        lose_reply(),
        json!({"kind": "garble"}),
        json!({"kind": "http", "status": 503}),
    ] {
        for (api, method) in [(LUN, "get"), (LUN, "list"), (VOLUME, "list")] {
            cluster.nas.fault(api, method, 1, 1, kind.clone()).await?;
            let doing = if method == "get" { "get" } else { "absence" };
            refused(csi.delete(&id).await, Code::Unavailable, &[doing]);
        }
    }
    csi.delete(&id).await?;
    for (call, answer) in csi.every(&id).await {
        match call {
            "delete" | "unpublish" => assert!(answer.is_ok(), "{answer:?}"),
            _ => refused(answer, Code::NotFound, &[uuid(&id)]),
        }
    }
    Ok(())
}

/// A volume may stay crashed for weeks: a LUN that was never on it is still verifiably gone.
/// design.md#unknown-is-not-absent
#[tokio::test]
async fn a_crashed_volume_hides_no_lun_that_was_seen_on_another() -> Result<()> {
    let mut cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("pvc-1", GIB).await?;
    csi.delete(&id).await?;
    for (volume, hides) in [("volume1", true), ("volume2", false)] {
        let state = |status| json!({"status": status});
        cluster.nas.patch_volume(volume, &state("crashed")).await?;
        let answer = csi.delete(&id).await;
        if hides {
            refused(answer, Code::Unavailable, &[volume]);
            cluster.nas.patch_volume(volume, &state("normal")).await?;
        } else {
            answer?;
        }
    }
    // A driver that has not seen the LUN on the other volume cannot know.
    cluster.restart_driver().await?;
    let answer = Csi::of(&cluster.plugin).delete(&id).await;
    refused(answer, Code::Unavailable, &["/volume", "crashed"]);
    Ok(())
}

/// design.md#unknown-is-not-absent
#[tokio::test]
async fn the_volumes_are_read_before_the_lun_list() -> Result<()> {
    let cluster = Plan::controller().without_crashed_volume().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let start = journal_end(&cluster.nas).await?;
    csi.delete(&format!("nas1/{NO_UUID}")).await?;
    // In the reverse order a volume could come up between the two: too late for the LUN list, but in time for the volume check.
    let calls = calls(&cluster.nas, start).await?;
    assert_eq!(
        call_names(&calls),
        ["LUN.get", "Volume.list", "LUN.list", "System.info"]
    );
    assert_eq!(
        calls[2].params.get("types"),
        None,
        "a list of some LUN types is not a full list"
    );
    Ok(())
}

/// design.md#deletevolume
#[tokio::test]
async fn a_lost_reply_of_delete_is_recovered_by_confirming_absence() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("pvc-1", GIB).await?;
    cluster.nas.fault(LUN, "delete", 1, 1, lose_reply()).await?;
    csi.delete(&id).await?;
    assert_eq!(lun(&cluster.nas, &id).await?, None);
    Ok(())
}

/// design.md#create-first
#[tokio::test]
async fn every_change_of_a_locked_lun_is_aborted() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("pvc-1", GIB).await?;
    let patch = json!({"is_action_locked": true});
    cluster.nas.patch_lun(uuid(&id), &patch).await?;
    let before = cluster.nas.state().await?;
    let seen = ["is_action_locked true"];
    for (call, answer) in csi.every(&id).await {
        match call {
            "unpublish" | "get" | "validate" => assert!(answer.is_ok(), "{call}: {answer:?}"),
            _ => refused(answer, Code::Aborted, &seen),
        }
    }
    refused(csi.create("pvc-1", GIB).await, Code::Aborted, &seen);
    // It is already large enough and needs no change, so the lock does not matter.
    assert_eq!(csi.expand(&id, GIB).await?, GIB);
    assert_eq!(cluster.nas.state().await?, before);
    Ok(())
}

/// design.md#create-first
#[tokio::test]
async fn a_crashed_lun_is_not_used_and_can_be_deleted() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("pvc-1", GIB).await?;
    let patch = json!({"status": "crashed"});
    cluster.nas.patch_lun(uuid(&id), &patch).await?;
    let seen = ["crashed", "SAN Manager"];
    refused(csi.create("pvc-1", GIB).await, Code::Aborted, &seen);
    refused(csi.publish(&id, NODE_A).await, Code::Aborted, &seen);
    refused(csi.expand(&id, 2 * GIB).await, Code::Aborted, &seen);
    assert_eq!(csi.get(&id).await?.0, GIB);
    csi.delete(&id).await?;
    assert_eq!(lun(&cluster.nas, &id).await?, None);
    Ok(())
}

/// design.md#deletevolume
#[tokio::test]
async fn a_deletion_returns_only_after_the_lun_is_gone() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("pvc-1", GIB).await?;
    cluster.nas.fault(LUN, "delete", 1, 1, hang()).await?;
    let start = journal_end(&cluster.nas).await?;
    let deletion = tokio::spawn({
        let (csi, id) = (csi.clone(), id.clone());
        async move { csi.delete(&id).await }
    });
    until_called(&cluster.nas, start, "LUN.delete").await?;
    assert!(!deletion.is_finished() && lun(&cluster.nas, &id).await?.is_some());
    cluster.nas.clear_faults().await?;
    deletion.await??;
    assert_eq!(lun(&cluster.nas, &id).await?, None);
    Ok(())
}

/// Replaces the UUID in a list's `lun_uuid` filter with that of a LUN that does not exist.
fn spoil_filter(sent: &mut [u8]) {
    let filter = b"lun_uuid=%22";
    if let Some(at) = sent.windows(filter.len()).position(|seen| seen == filter) {
        let digits = sent[at + filter.len()..]
            .iter_mut()
            .take(36)
            .filter(|byte| **byte != b'-');
        digits.for_each(|byte| *byte = b'0');
    }
}

/// design.md#deletevolume
#[tokio::test]
async fn a_filter_that_hides_the_mapping_deletes_nothing() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let (url, _) = wiretap(&cluster.nas.api, spoil_filter).await?;
    let spoilt = cluster
        .another_driver("spoilt", |settings| {
            settings.config = settings.config.replace(&cluster.nas.api, &url);
        })
        .await?;
    let (csi, blind) = (Csi::of(&cluster.plugin), Csi::of(&spoilt));
    let id = csi.create("pvc-1", GIB).await?;
    csi.publish(&id, NODE_A).await?;
    let before = cluster.nas.state().await?;
    // Whether a real NAS filters by LUN is not verified: `is_mapped` and the full list contradict the filtered list.
    refused(
        blind.delete(&id).await,
        Code::FailedPrecondition,
        &[NODE_A, &iqn(&cluster.nas, &id, NODE_A).await?],
    );
    assert_eq!(cluster.nas.state().await?, before);
    csi.unpublish(&id, NODE_A).await?;
    blind.delete(&id).await?;
    assert_eq!(lun(&cluster.nas, &id).await?, None);
    Ok(())
}
