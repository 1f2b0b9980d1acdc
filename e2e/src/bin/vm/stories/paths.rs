//! Two paths to the NAS: one is lost while a pod writes, and while a volume grows.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use e2e::GIB;
use e2e::harness::test_cluster::Plan;
use e2e::harness::test_volume::{Content, TestVolume};
use futures::future::try_join_all;

use crate::scene::{PORTALS, Scene};
use crate::worker::{Worker, WorkerClients, Writer};

/// Timeout until a restored path is used: iscsid's next retry plus multipathd's next check.
const RETURNS: Duration = Duration::from_secs(90);

/// A volume with two paths, and a pod that writes to it.
struct Pod<'a> {
    volume: TestVolume,
    writer: Writer<'a>,
}

pub(crate) async fn one_goes_away(scene: &mut Scene) -> Result<String> {
    scene
        .reset(Plan::real(scene.export.name(), &PORTALS))
        .await?;
    let flags = ["--replacement-timeout", "5s", "--path-interval", "2s"];
    let worker = Worker::start(&flags).await?;
    let multipathd = worker.multipathd().await?;
    let mut pods = Vec::new();
    for content in [Content::Fs("ext4"), Content::Block] {
        pods.push(Pod::start(scene, &worker, content).await?);
    }
    let clients = worker.on(&scene.cluster);

    // During I/O.
    worker.cable(1, false).await?;
    all_keep_writing(&pods).await?;

    // During an expansion: the map grows without the path, which is added with the new size once it is back.
    for pod in &pods {
        ensure!(pod.volume.expand_lun(&clients, 2 * GIB).await? == 2 * GIB);
    }
    try_join_all(pods.iter().map(|pod| pod.grow(&clients))).await?;
    all_keep_writing(&pods).await?;
    for pod in &pods {
        pod.has_paths(&worker, 1).await?;
    }
    worker.cable(1, true).await?;
    let waited = try_join_all(pods.iter().map(|pod| pod.has_paths(&worker, 2))).await?;

    // And the other one, now that the first carries all I/O.
    worker.cable(0, false).await?;
    all_keep_writing(&pods).await?;
    worker.cable(0, true).await?;
    let mut seen = Vec::new();
    for (pod, waited) in pods.into_iter().zip(waited) {
        pod.writer.stop().await?;
        pod.volume.detach(&clients).await?;
        pod.volume.delete(&clients).await?;
        seen.push(format!("{} {waited} s", pod.volume.content.name()));
    }
    worker.run(&["kill", &multipathd.to_string()]).await?;
    worker.teardown().await?;
    Ok(format!(
        "no I/O error; the map grows without a lost path, which is joined after its return: {}",
        seen.join(", ")
    ))
}

async fn all_keep_writing(pods: &[Pod<'_>]) -> Result<()> {
    try_join_all(pods.iter().map(|pod| pod.writer.must_keep_writing()))
        .await
        .map(drop)
}

impl<'a> Pod<'a> {
    async fn start(scene: &Scene, worker: &'a Worker, content: Content) -> Result<Self> {
        let volume = worker
            .volume(&scene.cluster, &format!("pvc-{}", content.name()), content)
            .await?;
        let map = map_of(worker, &volume).await?;
        ensure!(map.paths.len() == 2, "{map:?} does not have two paths");
        let file = volume.file("log");
        let writer = Writer::start(worker, &file).await?;
        writer.must_keep_writing().await?;
        Ok(Self { volume, writer })
    }

    /// Waits until the map has this many paths, all of 2 GiB. Returns the seconds.
    async fn has_paths(&self, worker: &Worker, count: usize) -> Result<u64> {
        let started = Instant::now();
        loop {
            let sizes = sizes(worker, &map_of(worker, &self.volume).await?).await?;
            if sizes.len() == count + 1 && sizes.iter().all(|(_, size)| *size == 2 * GIB) {
                return Ok(started.elapsed().as_secs());
            }
            let waited = started.elapsed();
            ensure!(
                waited < RETURNS,
                "not {count} paths after {waited:?}: {sizes:?}"
            );
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Retries like a kubelet until it succeeds. Returns the seconds.
    async fn grow(&self, clients: &WorkerClients<'_>) -> Result<u64> {
        let started = Instant::now();
        loop {
            match self.volume.expand_on_node(clients, 2 * GIB).await {
                Ok(size) => {
                    ensure!(size == 2 * GIB, "{size}");
                    return Ok(started.elapsed().as_secs());
                }
                Err(status) => {
                    let waited = started.elapsed();
                    ensure!(waited < RETURNS, "still after {waited:?}: {status}");
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            }
        }
    }
}

/// A multipath map and its paths, from sysfs.
#[derive(Debug)]
struct Map {
    name: String,
    paths: Vec<String>,
}

async fn map_of(worker: &Worker, volume: &TestVolume) -> Result<Map> {
    let serial = volume.uuid().replace('-', "");
    let disks = worker.remote.list("/sys/class/block").await?;
    for name in disks.iter().filter(|name| name.starts_with("dm-")) {
        let paths = worker
            .remote
            .list(&format!("/sys/class/block/{name}/slaves"))
            .await?;
        for path in &paths {
            let page = worker
                .remote
                .read(&format!("/sys/class/block/{path}/device/vpd_pg80"))
                .await
                .unwrap_or_default();
            if page.replace('-', "").contains(&serial) {
                return Ok(Map {
                    name: name.clone(),
                    paths,
                });
            }
        }
    }
    bail!("no map of {} among {disks:?}", volume.uuid())
}

async fn sizes(worker: &Worker, map: &Map) -> Result<Vec<(String, i64)>> {
    let mut sizes = Vec::new();
    for name in std::iter::once(&map.name).chain(&map.paths) {
        sizes.push((
            name.clone(),
            worker.device_bytes(&format!("/dev/{name}")).await?,
        ));
    }
    Ok(sizes)
}
