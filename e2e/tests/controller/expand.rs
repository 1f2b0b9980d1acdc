//! ControllerExpandVolume: design.md#expansion-is-read-back and #large-enough-already. The size that the NAS reports afterwards
//! counts, and a volume never shrinks.

use anyhow::Result;
use e2e::harness::test_cluster::Plan;
use e2e::harness::test_volume::{Content, create_request};
use e2e::{GIB, MIB};
use proto::csi::CapacityRange;
use serde_json::json;
use tonic::Code;

use super::common::{
    Csi, LUN, call_names, calls, journal_end, lose_reply, lun_size, not_final, refuse, refused,
    until_called, uuid,
};

/// design.md#expansion-is-read-back
#[tokio::test]
async fn the_answer_is_the_measured_size() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("pvc-1", 10 * GIB).await?;
    for (asked, size) in [
        (15 * GIB, 15 * GIB),
        (15 * GIB + 1, 15 * GIB + MIB),
        (16 * GIB - MIB + 1, 16 * GIB),
    ] {
        assert_eq!(csi.expand(&id, asked).await?, size);
        assert_eq!(
            (lun_size(&cluster.nas, &id).await?, csi.get(&id).await?.0),
            (size, size)
        );
    }
    Ok(())
}

/// design.md#expansion-is-read-back
#[tokio::test]
async fn a_lost_reply_is_recovered_by_reading_back() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("pvc-1", GIB).await?;
    cluster.nas.fault(LUN, "set", 1, 1, lose_reply()).await?;
    assert_eq!(csi.expand(&id, 2 * GIB).await?, 2 * GIB);
    // A refusal is not an error either if the size is already reached: another controller may have been faster.
    cluster
        .nas
        .fault(LUN, "set", 1, 1, json!({"kind": "hang"}))
        .await?;
    let start = journal_end(&cluster.nas).await?;
    let expansion = tokio::spawn({
        let (csi, id) = (csi.clone(), id.clone());
        async move { csi.expand(&id, 3 * GIB).await }
    });
    until_called(&cluster.nas, start, "LUN.set").await?;
    cluster
        .nas
        .patch_lun(uuid(&id), &json!({"size": 4 * GIB}))
        .await?;
    // The NAS now refuses the smaller size.
    cluster.nas.clear_faults().await?;
    assert_eq!(expansion.await??, 4 * GIB);
    assert_eq!(lun_size(&cluster.nas, &id).await?, 4 * GIB);
    Ok(())
}

/// design.md#expansion-is-read-back
#[tokio::test]
async fn a_success_without_effect_is_an_error() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("pvc-1", GIB).await?;
    // The NAS reports success, but the size falls back before the reply arrives.
    cluster
        .nas
        .fault(LUN, "set", 1, 1, json!({"kind": "delay", "ms": 500}))
        .await?;
    let expansion = tokio::spawn({
        let (csi, id) = (csi.clone(), id.clone());
        async move { csi.expand(&id, 2 * GIB).await }
    });
    e2e::harness::until::until(
        "the LUN has grown",
        async || lun_size(&cluster.nas, &id).await,
        |size| *size == 2 * GIB,
    )
    .await?;
    cluster
        .nas
        .patch_lun(uuid(&id), &json!({"size": GIB}))
        .await?;
    // The driver polls; only the size that it reads back ends the call.
    let start = journal_end(&cluster.nas).await?;
    let reads = async || {
        Ok(call_names(&calls(&cluster.nas, start).await?)
            .iter()
            .filter(|call| *call == "LUN.get")
            .count())
    };
    e2e::harness::until::until("several reads", reads, |reads| *reads >= 3).await?;
    assert!(!expansion.is_finished());
    cluster
        .nas
        .patch_lun(uuid(&id), &json!({"size": 3 * GIB}))
        .await?;
    assert_eq!(expansion.await??, 3 * GIB);
    Ok(())
}

/// design.md#expansion-is-read-back
#[tokio::test]
async fn a_locked_lun_is_waited_for_after_an_expansion() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("pvc-1", GIB).await?;
    cluster
        .nas
        .fault(LUN, "set", 1, 1, json!({"kind": "delay", "ms": 300}))
        .await?;
    let start = journal_end(&cluster.nas).await?;
    let expansion = tokio::spawn({
        let (csi, id) = (csi.clone(), id.clone());
        async move { csi.expand(&id, 2 * GIB).await }
    });
    e2e::harness::until::until(
        "the LUN has grown",
        async || lun_size(&cluster.nas, &id).await,
        |size| *size == 2 * GIB,
    )
    .await?;
    cluster
        .nas
        .patch_lun(uuid(&id), &json!({"is_action_locked": true}))
        .await?;
    let gets = async || {
        Ok(call_names(&calls(&cluster.nas, start).await?)
            .iter()
            .filter(|call| *call == "LUN.get")
            .count())
    };
    e2e::harness::until::until("two reads after the change", gets, |gets| *gets >= 3).await?;
    assert!(!expansion.is_finished());
    cluster
        .nas
        .patch_lun(uuid(&id), &json!({"is_action_locked": false}))
        .await?;
    assert_eq!(expansion.await??, 2 * GIB);
    Ok(())
}

/// design.md#expansion-is-read-back
#[tokio::test]
async fn a_full_nas_keeps_the_old_size_and_a_smaller_request_succeeds() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    // Thick LUNs allocate their space at once; /volume2 has 2 TiB.
    let mut thick = create_request("thick", GIB, Content::Fs("ext4"));
    thick.parameters.extend([
        ("location".to_owned(), "/volume2".to_owned()),
        ("type".to_owned(), "thick".to_owned()),
        // With the driver's own free-space floor turned off (design.md#free-space), the NAS refuses.
        ("minFreeSpace".to_owned(), "0".to_owned()),
    ]);
    let id = csi.create_as(thick).await?.volume_id;
    let before = cluster.nas.state().await?;
    refused(
        csi.expand(&id, 4096 * GIB).await,
        Code::OutOfRange,
        &["18990002", "4 TiB"],
    );
    assert_eq!(cluster.nas.state().await?, before);
    assert_eq!(csi.expand(&id, 20 * GIB).await?, 20 * GIB);
    // Any other refusal may have had an effect.
    for code in [100, 117, 18_990_500] {
        cluster.nas.fault(LUN, "set", 1, 1, refuse(code)).await?;
        not_final(
            &code.to_string(),
            &csi.expand(&id, 30 * GIB).await.expect_err("refused"),
        );
    }
    assert_eq!(lun_size(&cluster.nas, &id).await?, 20 * GIB);
    Ok(())
}

/// design.md#large-enough-already
#[tokio::test]
async fn a_large_enough_volume_succeeds_and_never_shrinks() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("pvc-1", 10 * GIB).await?;
    let (before, start) = (cluster.nas.state().await?, journal_end(&cluster.nas).await?);
    for (required_bytes, limit_bytes) in [
        (10 * GIB, 0),
        (GIB, 0),
        (1, 0),
        (10 * GIB, 10 * GIB),
        (5 * GIB, 20 * GIB),
        (0, 10 * GIB),
    ] {
        let range = CapacityRange {
            required_bytes,
            limit_bytes,
        };
        assert_eq!(csi.expand_within(&id, range).await?, 10 * GIB);
    }
    for (required_bytes, limit_bytes) in [
        (GIB, 5 * GIB),
        (0, 10 * GIB - 1),
        (20 * GIB, 15 * GIB),
        (10 * GIB + 1, 10 * GIB + 2),
        (i64::MAX, 0),
    ] {
        let range = CapacityRange {
            required_bytes,
            limit_bytes,
        };
        refused(
            csi.expand_within(&id, range).await,
            Code::OutOfRange,
            &["capacity_range"],
        );
    }
    refused(
        csi.expand_within(
            &id,
            CapacityRange {
                required_bytes: -1,
                limit_bytes: 0,
            },
        )
        .await,
        Code::InvalidArgument,
        &["required_bytes"],
    );
    refused(
        csi.expand_within(&id, CapacityRange::default()).await,
        Code::InvalidArgument,
        &["capacity_range"],
    );
    assert_eq!(cluster.nas.state().await?, before);
    assert!(
        calls(&cluster.nas, start)
            .await?
            .iter()
            .all(|call| ["LUN.get", "Volume.list"].contains(&call.short().as_str())),
        "only reads"
    );
    Ok(())
}

/// design.md#large-enough-already
#[tokio::test]
async fn no_smaller_size_is_ever_sent() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("pvc-1", 4 * GIB).await?;
    for size in [5, 3, 8, 1, 8, 2, 9] {
        csi.expand(&id, size * GIB).await?;
    }
    let sets = calls(&cluster.nas, 0)
        .await?
        .into_iter()
        .filter(|call| call.short() == "LUN.set");
    let sizes: Vec<i64> = sets
        .map(|call| {
            call.params["new_size"]
                .as_str()
                .and_then(|size| size.parse().ok())
                .unwrap_or_default()
        })
        .collect();
    assert_eq!(sizes, [5 * GIB, 8 * GIB, 9 * GIB]);
    Ok(())
}
