//! Fails each call that an RPC makes to the NAS once, in every way: design.md#final-codes. Whatever the first result was,
//! retrying the RPC must end in the right state, and the first result must have been true.

use anyhow::{Result, ensure};
use e2e::GIB;
use e2e::harness::test_cluster::{Plan, TestCluster};
use serde_json::{Value, json};
use tonic::Status;

use super::common::{
    Csi, NODE_A, calls, exports, journal_end, lose_reply, lun, lun_size, not_final, publication,
    publications, refuse,
};

/// The ways in which a call can fail. After a lost or garbled reply it was carried out.
fn failures() -> [Value; 6] {
    [
        lose_reply(),
        json!({"kind": "garble"}),
        json!({"kind": "http", "status": 502}),
        refuse(100),
        refuse(117),
        refuse(119),
    ]
}

/// More calls to the NAS than any RPC makes.
const MOST_CALLS: u64 = 10;

/// Runs `rpc` with its n-th call failing, for every n and every failure. `prepare` creates the volume for it and returns its id,
/// and
/// `done` checks the NAS once `rpc` has returned OK.
async fn fail_each_call<Prepare, Rpc, Done>(
    cluster: &TestCluster,
    prepare: Prepare,
    rpc: Rpc,
    done: Done,
) -> Result<()>
where
    Prepare: AsyncFn(String) -> Result<String>,
    Rpc: AsyncFn(&str) -> Result<(), Status>,
    Done: AsyncFn(&str) -> Result<()>,
{
    for failure in failures() {
        let mut failed = 0;
        for nth in 1..=MOST_CALLS {
            let subject = prepare(format!("pvc-{nth}-{}", failure.to_string().len())).await?;
            let case = format!("{failure} at call {nth} for {subject}");
            cluster.nas.fault("*", "*", nth, 1, failure.clone()).await?;
            let start = journal_end(&cluster.nas).await?;
            let answer = rpc(&subject).await;
            cluster.nas.clear_faults().await?;
            let made = calls(&cluster.nas, start).await?.len();
            match answer {
                Ok(()) => done(&subject)
                    .await
                    .map_err(|error| error.context(format!("{case}: OK was not true")))?,
                Err(status) => {
                    failed += 1;
                    not_final(&case, &status);
                }
            }
            rpc(&subject)
                .await
                .map_err(|status| anyhow::anyhow!("{case}: the retry failed: {status}"))?;
            done(&subject)
                .await
                .map_err(|error| error.context(format!("{case}: after the retry")))?;
            if u64::try_from(made)? < nth {
                break;
            }
            ensure!(nth < MOST_CALLS, "{case}: {made} calls, and no end");
        }
        // Lost sessions are renewed transparently, and a lost reply is often recovered by reading back; a refusal always shows.
        ensure!(
            failed > 0 || failure["code"] != 117,
            "{failure} never had an effect"
        );
    }
    Ok(())
}

/// design.md#final-codes
#[tokio::test]
async fn create_loses_each_call_once() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let prepare = async |name: String| {
        for lun in cluster.nas.luns().await? {
            csi.delete(&format!(
                "nas1/{}",
                lun["uuid"].as_str().unwrap_or_default()
            ))
            .await?;
        }
        Ok(name)
    };
    let done = async |name: &str| {
        let luns = cluster.nas.luns().await?;
        ensure!(
            luns.len() == 1 && luns[0]["name"] == format!("csi-{name}"),
            "{luns:?}"
        );
        Ok(())
    };
    fail_each_call(
        &cluster,
        prepare,
        async |name| csi.create(name, GIB).await.map(drop),
        done,
    )
    .await
}

/// design.md#final-codes
#[tokio::test]
async fn publish_loses_each_call_once() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("pvc-1", GIB).await?;
    let prepare = async |_| {
        csi.unpublish(&id, NODE_A).await?;
        Ok(id.clone())
    };
    let done = async |id: &str| {
        let (targets, exports) = (
            publications(&cluster.nas).await?,
            exports(&cluster.nas, id).await?,
        );
        ensure!(
            targets == [publication(id, NODE_A)] && exports == targets,
            "{targets:?}, mapped: {exports:?}"
        );
        Ok(())
    };
    fail_each_call(
        &cluster,
        prepare,
        async |id| csi.publish(id, NODE_A).await.map(drop),
        done,
    )
    .await
}

/// design.md#final-codes
#[tokio::test]
async fn unpublish_loses_each_call_once() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("pvc-1", GIB).await?;
    let prepare = async |_| {
        csi.publish(&id, NODE_A).await?;
        Ok(id.clone())
    };
    let done = async |_: &str| {
        let targets = publications(&cluster.nas).await?;
        ensure!(targets.is_empty(), "{targets:?}");
        Ok(())
    };
    fail_each_call(
        &cluster,
        prepare,
        async |id| csi.unpublish(id, NODE_A).await,
        done,
    )
    .await?;
    fail_each_call(
        &cluster,
        prepare,
        async |id| csi.unpublish(id, "").await,
        done,
    )
    .await
}

/// design.md#final-codes
#[tokio::test]
async fn expand_loses_each_call_once() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let prepare = async |name: String| Ok(csi.create(&name, GIB).await?);
    let done = async |id: &str| {
        let size = lun_size(&cluster.nas, id).await?;
        ensure!(size == 2 * GIB, "{size}");
        Ok(())
    };
    fail_each_call(
        &cluster,
        prepare,
        async |id| csi.expand(id, 2 * GIB).await.map(drop),
        done,
    )
    .await
}

/// design.md#final-codes
#[tokio::test]
async fn delete_loses_each_call_once() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let prepare = async |name: String| Ok(csi.create(&name, GIB).await?);
    let done = async |id: &str| {
        ensure!(
            lun(&cluster.nas, id).await?.is_none(),
            "the LUN is still there"
        );
        Ok(())
    };
    fail_each_call(&cluster, prepare, async |id| csi.delete(id).await, done).await
}
