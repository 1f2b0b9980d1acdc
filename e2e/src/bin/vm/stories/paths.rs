//! Two ways to the NAS: one goes away while a pod writes, and while a volume grows.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::GIB;
use e2e::life::{Content, Life};
use e2e::world::Plan;

use crate::scene::{PORTALS, Scene};
use crate::worker::{Worker, Writer};

/// A path that comes back is seen within this time: iscsid's next try, multipathd's next look.
const RETURNS: Duration = Duration::from_secs(90);

pub(crate) async fn one_goes_away(scene: &mut Scene) -> Result<String> {
    scene
        .reset(Plan::real(scene.export.name(), &PORTALS))
        .await?;
    let worker = Worker::start(&["--replacement-timeout", "5s"]).await?;
    let mut seen = Vec::new();
    for content in Content::ALL {
        let volume = worker
            .volume(scene, &format!("pvc-{}", content.name()), content)
            .await?;
        let result = one(scene, &worker, &volume).await;
        for cable in 0..PORTALS.len() {
            worker.cable(cable, true).await?;
        }
        let waited = result.with_context(|| format!("{} over two paths", content.name()));
        let waited = match waited {
            Ok(waited) => waited,
            Err(error) => anyhow::bail!("{error:#}\n{}", worker.log().await),
        };
        seen.push(format!("{} {waited} s", content.name()));
        let there = worker.on(&scene.world);
        volume.detach(&there).await?;
        volume.delete(&there).await?;
    }
    worker.strike().await?;
    Ok(format!(
        "no I/O error; success only with both paths and the map grown, after the path's return: {}",
        seen.join(", ")
    ))
}

/// Answers how long the expansion waited for the second path.
async fn one(scene: &Scene, worker: &Worker, volume: &Life) -> Result<u64> {
    let there = worker.on(&scene.world);
    let map = map_of(worker, volume).await?;
    ensure!(map.paths.len() == 2, "{map:?} has not two paths");
    let file = match volume.content {
        Content::Fs(_) => volume.path().join("log"),
        Content::Block => volume.path(),
    };
    let writer = Writer::start(worker, &file).await?;
    writer.must_go_on().await?;

    // During I/O.
    worker.cable(1, false).await?;
    writer.must_go_on().await?;

    // During an expansion: no success while a path cannot be asked.
    ensure!(volume.expand_lun(&there, 2 * GIB).await? == 2 * GIB);
    let early = volume.expand_on_node(&there, 2 * GIB).await;
    let Err(refused) = early else {
        anyhow::bail!(
            "success with one path down: {:?}",
            sizes(worker, &map).await?
        );
    };
    ensure!(
        matches!(
            refused.code(),
            tonic::Code::Unavailable | tonic::Code::Aborted
        ),
        "with one path down: {refused}"
    );
    writer.must_go_on().await?;

    worker.cable(1, true).await?;
    let started = Instant::now();
    loop {
        match volume.expand_on_node(&there, 2 * GIB).await {
            Ok(size) => {
                ensure!(size == 2 * GIB, "{size}");
                break;
            }
            Err(status) => {
                ensure!(
                    started.elapsed() < RETURNS,
                    "still after {RETURNS:?}: {status}"
                );
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    }
    let waited = started.elapsed().as_secs();
    let sizes = sizes(worker, &map_of(worker, volume).await?).await?;
    ensure!(
        sizes.len() == 3 && sizes.iter().all(|(_, size)| *size == 2 * GIB),
        "not all are grown: {sizes:?}"
    );

    // And the other one, now that the first carries everything.
    worker.cable(0, false).await?;
    writer.must_go_on().await?;
    worker.cable(0, true).await?;
    writer.stop().await?;
    Ok(waited)
}

/// A multipath map and its paths, as sysfs has them.
#[derive(Debug)]
struct Map {
    name: String,
    paths: Vec<String>,
}

async fn map_of(worker: &Worker, volume: &Life) -> Result<Map> {
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
    anyhow::bail!("no map of {} among {disks:?}", volume.uuid())
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
