//! ListVolumes: design.md#listvolumes. Only our volumes, in one order, and either all of them or an error.

use std::collections::HashMap;

use anyhow::Result;
use e2e::GIB;
use e2e::harness::nas::{Nas, Settings};
use e2e::harness::plugin::Plugin;
use e2e::harness::test_cluster::{Plan, TestCluster};
use proto::csi::CreateVolumeRequest;
use serde_json::json;
use tonic::Code;

use super::common::{
    Csi, LUN, NODE_A, NODE_B, TARGET, VOLUME, call_names, calls, journal_end, lose_reply, refuse,
    refused, uuid,
};

/// All volume ids, page by page.
async fn pages(csi: &Csi, size: i32) -> Result<Vec<Vec<String>>> {
    let (mut pages, mut token) = (Vec::new(), String::new());
    loop {
        let page = csi.list(size, &token).await?;
        pages.push(
            page.entries
                .into_iter()
                .map(|entry| entry.volume.unwrap_or_default().volume_id)
                .collect(),
        );
        token = page.next_token;
        if token.is_empty() {
            return Ok(pages);
        }
    }
}

/// design.md#listvolumes
#[tokio::test]
async fn pages_hold_ours_alone_ordered_by_uuid() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let mut ids = Vec::new();
    for n in 0..23 {
        ids.push(csi.create(&format!("pvc-{n}"), GIB).await?);
        cluster
            .nas
            .foreign_lun(&format!("foreign-{n}"), GIB)
            .await?;
    }
    ids.sort_unstable_by(|a, b| uuid(a).cmp(uuid(b)));
    for (size, sizes) in [
        (0, vec![23]),
        (10, vec![10, 10, 3]),
        (23, vec![23]),
        (100, vec![23]),
        (22, vec![22, 1]),
        (1, vec![1; 23]),
    ] {
        let pages = pages(&csi, size).await?;
        assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), sizes);
        assert_eq!(pages.concat(), ids);
    }
    // Deleting a volume between two pages does not skip another one.
    let first = csi.list(10, "").await?;
    csi.delete(&ids[9]).await?;
    let second = csi.list(10, &first.next_token).await?;
    assert_eq!(
        second.entries[0]
            .volume
            .clone()
            .unwrap_or_default()
            .volume_id,
        ids[10]
    );
    for token in [
        "x",
        "1",
        "nas1",
        &ids[0],
        &uuid(&ids[0])[1..],
        "00000000-0000-4000-8000-00000000000G",
    ] {
        refused(
            csi.list(0, token).await,
            Code::Aborted,
            &[token, "starting_token"],
        );
    }
    refused(
        csi.list(-1, "").await,
        Code::InvalidArgument,
        &["max_entries"],
    );
    Ok(())
}

/// The ids of one page, and the next token.
async fn next(csi: &Csi, size: i32, token: &str) -> Result<(Vec<String>, String)> {
    let page = csi.list(size, token).await?;
    let volumes = page.entries.into_iter();
    let ids = volumes.map(|entry| entry.volume.unwrap_or_default().volume_id);
    Ok((ids.collect(), page.next_token))
}

/// design.md#listvolumes
#[tokio::test]
async fn paging_reads_the_nas_once_and_continues_without_it() -> Result<()> {
    let mut cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let mut ids = Vec::new();
    for n in 0..12 {
        ids.push(csi.create(&format!("pvc-{n}"), GIB).await?);
    }
    ids.sort_unstable_by(|a, b| uuid(a).cmp(uuid(b)));
    let since = journal_end(&cluster.nas).await?;
    assert_eq!(pages(&csi, 3).await?.concat(), ids);
    let once = ["LUN.list", "Target.list", "System.info"];
    assert_eq!(call_names(&calls(&cluster.nas, since).await?), once);
    // A new walk reads the current state; one that continues needs no NAS.
    let since = journal_end(&cluster.nas).await?;
    let (first, token) = next(&csi, 5, "").await?;
    assert_eq!(call_names(&calls(&cluster.nas, since).await?), once);
    cluster.nas.fault(LUN, "list", 1, 0, refuse(117)).await?;
    let (second, token) = next(&csi, 5, &token).await?;
    refused(csi.list(5, "").await, Code::Unavailable, &["listing"]);
    cluster.nas.clear_faults().await?;
    // It does not need the process that started it either.
    cluster.restart_driver().await?;
    let csi = Csi::of(&cluster.plugin);
    let (third, token) = next(&csi, 5, &token).await?;
    assert_eq!((first.len(), second.len(), third.len()), (5, 5, 2));
    assert_eq!(([first, second, third].concat(), token.as_str()), (ids, ""));
    Ok(())
}

/// design.md#listvolumes
#[tokio::test]
async fn concurrent_paging_misses_no_volume_that_stays() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let (mut stay, mut to_delete) = (Vec::new(), Vec::new());
    for n in 0..10 {
        stay.push(csi.create(&format!("stays-{n}"), GIB).await?);
        to_delete.push(csi.create(&format!("goes-{n}"), GIB).await?);
    }
    stay.sort_unstable();
    let mut walks = [(Vec::new(), String::new()), (Vec::new(), String::new())];
    let mut turn = 0;
    while turn < 2 || walks.iter().any(|(_, token)| !token.is_empty()) {
        let (seen, token) = &mut walks[turn % 2];
        // The second walk starts while the first is under way.
        if turn < 2 || !token.is_empty() {
            let (ids, following) = next(&csi, 2 + i32::try_from(turn % 2)?, token).await?;
            seen.extend(ids);
            *token = following;
        }
        if let Some(gone) = to_delete.pop() {
            csi.delete(&gone).await?;
        }
        csi.create(&format!("comes-{turn}"), GIB).await?;
        turn += 1;
    }
    for (mut seen, _) in walks {
        let all = seen.len();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), all, "none twice");
        seen.retain(|id| stay.contains(id));
        assert_eq!(seen, stay);
    }
    Ok(())
}

/// design.md#listvolumes
#[tokio::test]
async fn entries_have_size_and_nodes() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let [a, b] = [csi.create("a", GIB).await?, csi.create("b", 2 * GIB).await?];
    csi.publish(&a, NODE_A).await?;
    csi.publish(&b, NODE_B).await?;
    csi.unpublish(&b, NODE_B).await?;
    let listed: HashMap<String, (i64, Vec<String>)> = csi
        .list(0, "")
        .await?
        .entries
        .into_iter()
        .map(|entry| {
            (
                entry.volume.unwrap_or_default(),
                entry.status.unwrap_or_default(),
            )
        })
        .map(|(volume, status)| {
            (
                volume.volume_id,
                (volume.capacity_bytes, status.published_node_ids),
            )
        })
        .collect();
    assert_eq!(
        listed,
        HashMap::from([(a, (GIB, vec![NODE_A.to_owned()])), (b, (2 * GIB, vec![]))])
    );
    Ok(())
}

/// A second NAS with its own folder, and a driver that is configured with both.
pub(super) async fn two(cluster: &TestCluster) -> Result<(Nas, Plugin)> {
    let folder = cluster.folder().join("second");
    std::fs::create_dir_all(&folder)?;
    let nas = Nas::start(&folder, Settings::default()).await?;
    let plugin = driver_with_both(cluster, "both", &nas).await?;
    Ok((nas, plugin))
}

/// A request for a volume on the NAS with this name.
pub(super) fn on_nas(name: &str, nas: &str) -> CreateVolumeRequest {
    let mut request = e2e::harness::test_volume::create_request(
        name,
        GIB,
        e2e::harness::test_volume::Content::Block,
    );
    request.parameters.insert("nas".to_owned(), nas.to_owned());
    request
}

/// A driver that is configured with the cluster's NAS and this one.
async fn driver_with_both(cluster: &TestCluster, name: &str, nas: &Nas) -> Result<Plugin> {
    let more = format!(
        "  - name: nas2\n    url: {}\n    username: admin\n    password_file: {}\n    portals: ['127.0.0.2']\nstate_file:",
        nas.api,
        nas.password_file().display()
    );
    cluster
        .another_driver(name, |settings| {
            settings.config = settings.config.replace("state_file:", &more);
        })
        .await
}

/// design.md#listvolumes
#[tokio::test]
async fn a_failing_nas_is_listed_with_its_last_known_state() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let (second, plugin) = two(&cluster).await?;
    let csi = Csi::of(&plugin);
    refused(csi.create("x", GIB).await, Code::Aborted, &["nas1, nas2"]);
    let mut ids = Vec::new();
    for n in 0..6 {
        ids.push(
            csi.create_as(on_nas(
                &format!("pvc-{n}"),
                if n % 2 == 0 { "nas1" } else { "nas2" },
            ))
            .await?
            .volume_id,
        );
    }
    assert_eq!(
        (cluster.nas.luns().await?.len(), second.luns().await?.len()),
        (3, 3)
    );
    ids.sort_unstable_by(|a, b| uuid(a).cmp(uuid(b)));
    assert_eq!(pages(&csi, 4).await?.concat(), ids);

    let failures = [
        refuse(100),
        refuse(105),
        refuse(117),
        lose_reply(),
        json!({"kind": "garble"}),
        json!({"kind": "http", "status": 502}),
    ];
    for nas in [&cluster.nas, &second] {
        for (api, method) in [(LUN, "list"), (TARGET, "list")] {
            for way in &failures {
                nas.fault(api, method, 1, 0, way.clone()).await?;
                // Its last known state is listed, and the other's current one.
                assert_eq!(pages(&csi, 4).await?.concat(), ids);
                nas.clear_faults().await?;
            }
        }
    }
    // Neither NAS responds: there is nothing to list.
    for nas in [&cluster.nas, &second] {
        nas.fault(LUN, "list", 1, 0, refuse(117)).await?;
    }
    refused(
        csi.list(0, "").await,
        Code::Unavailable,
        &["listing the volumes of NAS"],
    );
    for nas in [&cluster.nas, &second] {
        nas.clear_faults().await?;
    }
    let on_both = csi.capacity(HashMap::new()).await?;
    second.fault(VOLUME, "list", 1, 0, refuse(117)).await?;
    assert_eq!(csi.capacity(HashMap::new()).await?, on_both / 2);
    cluster.nas.fault(VOLUME, "list", 1, 0, refuse(117)).await?;
    refused(
        csi.capacity(HashMap::new()).await,
        Code::Unavailable,
        &["free space"],
    );
    for nas in [&cluster.nas, &second] {
        nas.clear_faults().await?;
    }
    let fresh = driver_with_both(&cluster, "fresh", &second).await?;
    drop(second);
    assert_eq!(pages(&csi, 4).await?.concat(), ids);
    // A driver that has never reached the NAS has no last known state.
    let fresh = Csi::of(&fresh);
    refused(fresh.list(0, "").await, Code::Unavailable, &["nas2"]);
    // Calls that do not need that NAS still work.
    assert_eq!(
        csi.get(ids.iter().find(|id| id.starts_with("nas1/")).expect("one"))
            .await?
            .0,
        GIB
    );
    Ok(())
}

#[tokio::test]
async fn capacity_is_what_new_luns_can_have() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let on = |path: &str| HashMap::from([("location".to_owned(), path.to_owned())]);
    let [all, first, second] = [
        csi.capacity(HashMap::new()).await?,
        csi.capacity(on("/volume1")).await?,
        csi.capacity(on("/volume2")).await?,
    ];
    // One GiB of each volume stays free.
    let room = |free: i64| free - GIB;
    assert_eq!(
        (first, second, all),
        (
            room(20 << 40),
            room(2 << 40),
            room(20 << 40) + room(2 << 40)
        )
    );
    cluster
        .nas
        .patch_volume("volume1", &json!({"status": "crashed"}))
        .await?;
    assert_eq!(
        (
            csi.capacity(HashMap::new()).await?,
            csi.capacity(on("/volume1")).await?
        ),
        (room(2 << 40), 0)
    );
    cluster
        .nas
        .patch_volume("volume2", &json!({"free": 5 * GIB}))
        .await?;
    assert_eq!(csi.capacity(on("/volume2")).await?, room(5 * GIB));
    let free = json!({"free": GIB / 2});
    cluster.nas.patch_volume("volume2", &free).await?;
    assert_eq!(csi.capacity(on("/volume2")).await?, 0);
    refused(
        csi.capacity(on("volume1")).await,
        Code::InvalidArgument,
        &["location"],
    );
    Ok(())
}

/// A booting NAS lists only a part of what it has, and only its uptime shows it.
/// design.md#listvolumes
#[tokio::test]
async fn a_booting_nas_is_not_listed() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    csi.create("pvc-1", GIB).await?;
    cluster.nas.boot(60_000).await?;
    let words = ["has been up for", "15 minutes"];
    refused(csi.list(0, "").await, Code::Unavailable, &words);
    cluster.nas.advance(60_000).await?;
    refused(csi.list(0, "").await, Code::Unavailable, &words);
    cluster.nas.advance(15 * 60_000).await?;
    assert_eq!(csi.list(0, "").await?.entries.len(), 1);
    Ok(())
}
