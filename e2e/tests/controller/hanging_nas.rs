//! A NAS that accepts connections but never responds: design.md#limits-per-nas. Unit tests in paused time check the exact times;
//! here they are printed, and the wait is bounded.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::GIB;
use e2e::harness::test_cluster::Plan;
use e2e::harness::until::until;
use futures::future::{BoxFuture, join_all};
use tonic::{Code, Status};

use super::common::{Csi, NODE_A, refused};
use super::list::{on_nas, two};

/// Far more than any caller should need, so that a slow machine fails no test.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Twenty concurrent callers, one of every kind that needs the NAS, and the errors they get within a minute.
async fn callers(csi: &Csi, id: &str) -> Result<()> {
    let kinds = ["create", "publish", "expand", "delete", "list"];
    let one = |number: usize| -> BoxFuture<'_, (&str, Result<(), Status>, Duration)> {
        Box::pin(async move {
            let (kind, started) = (kinds[number % kinds.len()], Instant::now());
            let answer = match kind {
                "create" => csi.create(&format!("pvc-{number}"), GIB).await.map(drop),
                "publish" => csi.publish(id, NODE_A).await.map(drop),
                "expand" => csi.expand(id, 2 * GIB).await.map(drop),
                "delete" => {
                    let gone = format!("nas1/00000000-0000-4000-8000-{number:012}");
                    csi.delete(&gone).await
                }
                _ => csi.list(0, "").await.map(drop),
            };
            (kind, answer, started.elapsed())
        })
    };
    let answers = tokio::time::timeout(CALL_TIMEOUT, join_all((0..20).map(one))).await?;
    for (kind, answer, took) in answers {
        eprintln!("{kind}: {took:?}");
        // Two of them are about one volume, and the second gets Aborted.
        if answer
            .as_ref()
            .is_err_and(|status| status.code() == Code::Aborted)
        {
            continue;
        }
        let words = [
            "NAS nas1 at http://",
            "has answered nothing since 20",
            "look whether",
        ];
        refused(answer, Code::Unavailable, &words);
    }
    Ok(())
}

/// design.md#limits-per-nas
#[tokio::test]
async fn every_caller_of_a_hanging_nas_gets_the_cause_and_the_nas_recovers() -> Result<()> {
    let mut cluster = Plan::controller().start().await?;
    let id = Csi::of(&cluster.plugin).create("first", GIB).await?;
    // In the middle of a session, and before the login.
    for fresh in [false, true] {
        if fresh {
            cluster.restart_driver().await?;
        }
        let csi = Csi::of(&cluster.plugin);
        cluster.nas.process().freeze()?;
        let errors = callers(&csi, &id).await;
        cluster.nas.process().thaw()?;
        errors?;
        // Calls that may have been carried out are found, and nothing is created twice.
        for number in [0, 5, 10, 15] {
            let name = format!("pvc-{number}");
            until(
                "the NAS is used again",
                async || Ok(csi.create(&name, GIB).await.ok()),
                Option::is_some,
            )
            .await?;
        }
        ensure!(cluster.nas.luns().await?.len() == 5, "one for each name");
    }
    Ok(())
}

/// design.md#limits-per-nas
#[tokio::test]
async fn a_hanging_nas_does_not_block_another() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let (second, plugin) = two(&cluster).await?;
    let csi = Csi::of(&plugin);
    let existing = csi.create_as(on_nas("there", "nas2")).await?.volume_id;
    let here = csi.create_as(on_nas("here", "nas1")).await?.volume_id;
    csi.list(0, "").await?;
    second.process().freeze()?;
    let hanging = join_all((0..100).map(|n| csi.create_as(on_nas(&format!("pvc-{n}"), "nas2"))));
    tokio::pin!(hanging);
    let others = async {
        csi.publish(&here, NODE_A).await?;
        csi.expand(&here, 2 * GIB).await?;
        csi.unpublish(&here, NODE_A).await?;
        csi.delete(&here).await
    };
    tokio::select! {
        biased;
        done = others => done?,
        hanging = &mut hanging => anyhow::bail!("the hanging NAS was first: {hanging:?}"),
    }
    for answer in tokio::time::timeout(CALL_TIMEOUT, hanging).await? {
        refused(
            answer,
            Code::Unavailable,
            &["NAS nas2 at", "has answered nothing since"],
        );
    }
    // Its volumes are still listed.
    let entries = csi.list(0, "").await?.entries;
    let ids: Vec<_> = entries
        .into_iter()
        .map(|entry| entry.volume.unwrap_or_default().volume_id)
        .collect();
    assert_eq!(ids, [existing]);
    second.process().thaw()
}
