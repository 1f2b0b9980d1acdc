//! Concurrent calls: twenty volumes at once, and twenty creates with the same name.

use std::collections::HashSet;

use anyhow::Result;
use e2e::GIB;
use e2e::harness::test_cluster::Plan;
use futures::future::join_all;
use tonic::Code;

use super::common::{Csi, NODE_A, publication, publications, refused};

#[tokio::test]
async fn twenty_volumes_at_once() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let names: Vec<String> = (0..20).map(|n| format!("pvc-{n}")).collect();
    let created = join_all(names.iter().map(|name| csi.create(name, GIB))).await;
    let ids = created
        .into_iter()
        .collect::<Result<HashSet<String>, _>>()?;
    assert_eq!((ids.len(), cluster.nas.luns().await?.len()), (20, 20));
    let published = join_all(ids.iter().map(|id| csi.publish(id, NODE_A))).await;
    published.into_iter().collect::<Result<Vec<_>, _>>()?;
    let expected: HashSet<String> = ids.iter().map(|id| publication(id, NODE_A)).collect();
    assert_eq!(
        publications(&cluster.nas)
            .await?
            .into_iter()
            .collect::<HashSet<_>>(),
        expected
    );
    let grown = join_all(ids.iter().map(|id| csi.expand(id, 2 * GIB))).await;
    assert!(
        grown
            .iter()
            .all(|size| matches!(size, Ok(size) if *size == 2 * GIB)),
        "{grown:?}"
    );
    join_all(ids.iter().map(|id| csi.unpublish(id, NODE_A)))
        .await
        .into_iter()
        .collect::<Result<Vec<_>, _>>()?;
    join_all(ids.iter().map(|id| csi.delete(id)))
        .await
        .into_iter()
        .collect::<Result<Vec<_>, _>>()?;
    assert_eq!(cluster.leftovers().await?, Vec::<String>::new());
    Ok(())
}

#[tokio::test]
async fn twenty_times_the_same_name_is_one_lun() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let created = join_all((0..20).map(|_| csi.create("pvc-1", GIB))).await;
    let mut ids = HashSet::new();
    for answer in created {
        match answer {
            Ok(id) => drop(ids.insert(id)),
            Err(status) => refused(Err::<(), _>(status), Code::Aborted, &["pvc-1"]),
        }
    }
    assert_eq!((ids.len(), cluster.nas.luns().await?.len()), (1, 1));
    ids.insert(csi.create("pvc-1", GIB).await?);
    assert_eq!(ids.len(), 1);
    Ok(())
}
