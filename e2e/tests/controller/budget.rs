//! How many requests to the NAS each CSI call costs, on a NAS with 100 other LUNs, and that only ListVolumes grows with
//! their number. Logins are not counted: there is one per driver process.

use anyhow::Result;
use e2e::GIB;
use e2e::harness::nas::{Entry, Nas};
use e2e::harness::test_cluster::Plan;

use super::common::{Csi, LUN, NODE_A, NODE_B, VOLUME, call_names, calls, journal_end, lun_size};

/// The number of requests since `since`, and the calls in them.
async fn cost(nas: &Nas, since: u64) -> Result<(usize, Vec<Entry>)> {
    let calls = calls(nas, since).await?;
    let mut requests: Vec<u64> = calls.iter().map(|call| call.request).collect();
    requests.dedup();
    Ok((requests.len(), calls))
}

/// Whether the reply grows with the number of LUNs. (A NAS has at most 128 targets.)
fn grows(call: &Entry) -> bool {
    call.method == "list" && call.api == LUN
}

#[tokio::test]
async fn every_call_stays_within_its_budget() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    cluster.nas.seed(100).await?;
    let mut id = String::new();
    let published = [NODE_A.to_owned()];
    for (call, budget) in [
        ("create", 2),
        ("create again", 2),
        ("publish", 3),
        ("publish again", 1),
        ("validate", 1),
        ("get", 2),
        ("expand", 3),
        ("expand again", 1),
        ("expand to less", 1),
        ("unpublish", 2),
        ("publish to be refused", 0),
        ("capacity", 1),
        ("delete", 4),
    ] {
        let start = journal_end(&cluster.nas).await?;
        match call {
            "create" | "create again" => id = csi.create("pvc-1", GIB).await?,
            "publish" | "publish again" => drop(csi.publish(&id, NODE_A).await?),
            "publish to be refused" => assert!(csi.publish(&id, "no-node").await.is_err()),
            "validate" => assert!(csi.validate(&id).await?),
            "get" => assert_eq!(csi.get(&id).await?, (GIB, published.to_vec())),
            "expand" | "expand again" => assert_eq!(csi.expand(&id, 2 * GIB).await?, 2 * GIB),
            "expand to less" => assert_eq!(csi.expand(&id, GIB).await?, 2 * GIB),
            "unpublish" => csi.unpublish(&id, NODE_A).await?,
            "capacity" => assert!(csi.capacity(std::collections::HashMap::new()).await? > 0),
            "delete" => csi.delete(&id).await?,
            other => panic!("no such call: {other}"),
        }
        let (requests, calls) = cost(&cluster.nas, start).await?;
        eprintln!(
            "{call:22} {requests} of {budget}: {}",
            call_names(&calls).join(", ")
        );
        assert!(
            requests <= budget,
            "{call} makes {requests} requests: {:?}",
            call_names(&calls)
        );
        assert!(call != "expand" || lun_size(&cluster.nas, &id).await? == 2 * GIB);
        assert!(
            !call.starts_with("expand ") || requests == 1,
            "{call}: a no-op costs one request"
        );
        assert!(
            !calls.iter().any(grows),
            "{call} grows with the number of LUNs: {calls:?}"
        );
        let may_read_volumes = |call: &str| {
            ["create", "expand", "capacity"]
                .iter()
                .any(|it| call.starts_with(it))
        };
        assert!(
            calls
                .iter()
                .all(|made| made.api != VOLUME || may_read_volumes(call)),
            "{call} reads the list of volumes"
        );
    }
    assert_eq!(cluster.nas.luns().await?.len(), 100);
    Ok(())
}

#[tokio::test]
async fn listing_costs_two_requests_for_each_nas() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    cluster.nas.seed(100).await?;
    csi.create("pvc-1", GIB).await?;
    let start = journal_end(&cluster.nas).await?;
    assert_eq!(csi.list(0, "").await?.entries.len(), 1);
    let (requests, calls) = cost(&cluster.nas, start).await?;
    assert_eq!(requests, 2);
    assert_eq!(
        call_names(&calls),
        ["LUN.list", "Target.list", "System.info"]
    );
    Ok(())
}

#[tokio::test]
async fn the_slow_paths_are_bounded() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    cluster.nas.seed(100).await?;
    let id = csi.create("pvc-1", GIB).await?;
    csi.publish(&id, NODE_A).await?;
    let start = journal_end(&cluster.nas).await?;
    assert!(csi.publish(&id, NODE_B).await.is_err());
    // One list of the LUN's targets shows that no earlier attempt for this node left anything.
    assert_eq!(
        call_names(&calls(&cluster.nas, start).await?),
        ["LUN.get", "Target.list"]
    );
    csi.unpublish(&id, NODE_A).await?;
    csi.delete(&id).await?;
    for (call, bound) in [
        ("delete what is gone", 3),
        ("unpublish what is gone", 2),
        ("publish what is gone", 3),
    ] {
        let start = journal_end(&cluster.nas).await?;
        match call {
            "delete what is gone" => csi.delete(&id).await?,
            "unpublish what is gone" => csi.unpublish(&id, NODE_A).await?,
            _ => assert!(csi.publish(&id, NODE_A).await.is_err()),
        }
        let (requests, calls) = cost(&cluster.nas, start).await?;
        assert!(requests <= bound, "{call}: {:?}", call_names(&calls));
    }
    Ok(())
}
