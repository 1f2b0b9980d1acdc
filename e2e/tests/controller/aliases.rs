//! A NAS that was renamed: volumes are found and listed under each of its names (design.md#volume-handle and #listvolumes).

use std::collections::HashMap;

use anyhow::Result;
use e2e::GIB;
use e2e::harness::plugin::Plugin;
use e2e::harness::test_cluster::{Plan, TestCluster};
use tonic::Code;

use super::common::{Csi, NODE_A, refused, uuid};

/// A driver whose configuration calls the NAS `new`, with `nas1` and `old` as aliases.
async fn renamed(cluster: &TestCluster) -> Result<Plugin> {
    cluster
        .another_driver("renamed", |settings| {
            let names = "- name: new\n    aliases: [old, nas1]\n";
            settings.config = settings.config.replace("- name: nas1\n", names);
        })
        .await
}

/// Every volume id with its published nodes, fetched in pages of `size`.
async fn listed(csi: &Csi, size: i32) -> Result<Vec<(String, Vec<String>)>> {
    let (mut all, mut token) = (Vec::new(), String::new());
    loop {
        let page = csi.list(size, &token).await?;
        assert!(size == 0 || page.entries.len() <= usize::try_from(size)?);
        all.extend(page.entries.into_iter().map(|entry| {
            let id = entry.volume.unwrap_or_default().volume_id;
            (id, entry.status.unwrap_or_default().published_node_ids)
        }));
        token = page.next_token;
        if token.is_empty() {
            return Ok(all);
        }
    }
}

/// design.md#listvolumes
#[tokio::test]
async fn a_volume_is_listed_under_every_name_that_its_nas_has_had() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let before = Csi::of(&cluster.plugin);
    let plugin = renamed(&cluster).await?;
    let csi = Csi::of(&plugin);
    let mut ids = Vec::new();
    for n in 0..4 {
        ids.push(before.create(&format!("pvc-{n}"), GIB).await?);
    }
    csi.publish(&ids[0], NODE_A).await?;
    let created = csi.create("pvc-4", GIB).await?;
    assert!(created.starts_with("new/"), "{created}");
    ids.push(created);
    ids.sort_unstable_by(|a, b| uuid(a).cmp(uuid(b)));
    let names = ["nas1", "new", "old"];
    let expected: Vec<String> = ids
        .iter()
        .flat_map(|id| names.map(|name| format!("{name}/{}", uuid(id))))
        .collect();
    for size in [0, 1, 2, 3, 4, 7, 15, 16] {
        let seen: Vec<String> = listed(&csi, size)
            .await?
            .into_iter()
            .map(|(id, _)| id)
            .collect();
        assert_eq!(seen, expected, "pages of {size}");
    }
    // The external-attacher looks up the volume id of its PV, and the node in that entry.
    let all: HashMap<_, _> = listed(&csi, 0).await?.into_iter().collect();
    for id in &ids {
        assert!(all.contains_key(id), "{id}");
    }
    let published = all.values().filter(|nodes| **nodes == [NODE_A]).count();
    assert_eq!(published, names.len());
    // Each alias identifies the volume, for every call.
    for name in names {
        let id = format!("{name}/{}", uuid(&ids[0]));
        assert_eq!(csi.get(&id).await?.0, GIB);
    }
    for token in [
        format!("{}/NAS", uuid(&ids[0])),
        format!("{}/", uuid(&ids[0])),
        format!("{}/new/old", uuid(&ids[0])),
        "/new".to_owned(),
    ] {
        refused(
            csi.list(0, &token).await,
            Code::Aborted,
            &["starting_token"],
        );
    }
    Ok(())
}
