//! A NAS that is gone, for good or for a while, and a node that reboots.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::GIB;
use e2e::harness::test_volume::Content;
use e2e::harness::writer::Writer;

use crate::scene::{REPLACEMENT, Scene, checker};
use crate::worker::{Worker, power_cycle};

/// Slack over the replacement timeout: for iscsid's next check of the connection, and for the file system to fail its I/O.
const SLACK: Duration = Duration::from_secs(60);

/// NodeUnpublish and NodeUnstage while the NAS is unreachable and there are unwritten data.
pub(crate) async fn nas_is_down(scene: &mut Scene) -> Result<String> {
    let timeout = format!("{REPLACEMENT}s");
    let worker = Worker::start(&["--replacement-timeout", &timeout]).await?;
    let (mut volumes, mut sums) = (Vec::new(), Vec::new());
    for content in Content::ALL {
        let volume = worker
            .volume(&scene.cluster, &format!("pvc-{}", content.name()), content)
            .await?;
        let kept = volume.file("kept");
        sums.push((worker.write(&kept).await?, kept));
        volumes.push(volume);
    }
    worker.cut_off().await?;
    for volume in &volumes {
        if let Content::Fs(_) = volume.content {
            worker.write_unsynced(&volume.file("lost")).await?;
        }
    }
    let (clients, started) = (worker.on(&scene.cluster), Instant::now());
    let bound = Duration::from_secs(REPLACEMENT) + SLACK;
    // As a kubelet does: all in parallel, with retries until they succeed.
    let unstaged = futures::future::join_all(volumes.iter().map(async |volume| {
        loop {
            let done = async {
                volume.node_unpublish(&clients).await?;
                volume.unstage(&clients).await
            };
            match done.await {
                Ok(()) => return Ok(started.elapsed().as_secs()),
                Err(status) if started.elapsed() < bound => {
                    ensure!(
                        matches!(
                            status.code(),
                            tonic::Code::Unavailable | tonic::Code::Aborted
                        ),
                        "{status}"
                    );
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                Err(status) => anyhow::bail!(
                    "{}: still not unstaged after {bound:?}: {status}",
                    volume.name
                ),
            }
        }
    }));
    let unstaged: Result<Vec<u64>> = unstaged.await.into_iter().collect();
    let unstaged = unstaged?;
    worker.cable(0, true).await?;
    for (mut volume, (sum, kept)) in volumes.into_iter().zip(sums) {
        // Data that were synced before persist.
        volume.attach(&clients).await?;
        ensure!(
            worker.sha256(&kept).await? == sum,
            "{} has changed",
            kept.display()
        );
        volume.detach(&clients).await?;
        volume.delete(&clients).await?;
    }
    worker.teardown().await?;
    let all: Vec<String> = Content::ALL
        .iter()
        .zip(unstaged)
        .map(|(content, time)| format!("{} {time} s", content.name()))
        .collect();
    Ok(format!(
        "unstaged with a replacement timeout of {REPLACEMENT} s: {}; synced data equal afterwards",
        all.join(", ")
    ))
}

/// A node loses power while a volume is in use.
pub(crate) async fn node_reboots(scene: &mut Scene) -> Result<String> {
    let worker = Worker::start(&[]).await?;
    let mut volumes = Vec::new();
    for content in Content::ALL {
        let volume = worker
            .volume(&scene.cluster, &format!("pvc-{}", content.name()), content)
            .await?;
        let file = volume.file("kept");
        let sum = worker.write(&file).await?;
        if let Content::Fs(_) = content {
            worker.write_unsynced(&volume.file("lost")).await?;
        }
        volumes.push((volume, file, sum));
    }
    let started = Instant::now();
    power_cycle().await?;
    let down = started.elapsed().as_secs();
    let worker = Worker::start(&[]).await?;
    let clients = worker.on(&scene.cluster);
    for (volume, file, sum) in &volumes {
        // A kubelet creates the directory, which the power cut may have lost.
        worker.make(&volume.staging).await?;
        volume.stage(&clients).await?;
        volume.node_publish(&clients).await?;
        ensure!(
            worker.sha256(file).await? == *sum,
            "{} has changed",
            file.display()
        );
        let device =
            (volume.content != Content::Block).then_some(worker.device(&volume.staging).await);
        volume.node_unpublish(&clients).await?;
        if let Some(device) = device {
            check(&worker, volume.content, &device?, &volume.staging).await?;
        }
        volume.unstage(&clients).await?;
        volume.unpublish(&clients).await?;
        volume.delete(&clients).await?;
    }
    worker.teardown().await?;
    Ok(format!(
        "up again after {down} s; staged again, file systems clean after their journals, data equal"
    ))
}

/// Checks that fsck finds no error.
async fn check(worker: &Worker, content: Content, device: &str, point: &Path) -> Result<()> {
    worker.run(&["umount", &point.to_string_lossy()]).await?;
    if let Content::Fs(fs) = content {
        worker.run(&[checker(fs), &[device]].concat()).await?;
    }
    Ok(())
}

/// The NAS restarts under pods that write, without a restart of the driver.
pub(crate) async fn nas_restarts(scene: &mut Scene) -> Result<String> {
    let mut pods = Vec::new();
    for content in [Content::Fs("xfs"), Content::Block] {
        let volume = scene
            .volume(&format!("pvc-{}", content.name()), content)
            .await?;
        let log = volume.file("log");
        pods.push((volume, Writer::start(&log)?));
    }
    for (_, writer) in &pods {
        writer.must_keep_writing().await?;
    }
    let started = Instant::now();
    scene.stop_nas().await?;
    scene.cluster.nas.restart().await?;
    let waits = pods.iter().map(async |(volume, writer)| {
        writer.must_keep_writing().await?;
        let seconds = started.elapsed().as_secs_f64();
        Ok::<_, anyhow::Error>(format!("{} {seconds:.1} s", volume.content.name()))
    });
    let waits = futures::future::try_join_all(waits).await?;
    let cluster = &scene.cluster;
    for (volume, writer) in pods {
        ensure!(volume.expand_lun(cluster, 2 * GIB).await? == 2 * GIB);
        ensure!(volume.expand_on_node(cluster, 2 * GIB).await? == 2 * GIB);
        volume.must_have(cluster, 2 * GIB)?;
        writer.stop()?;
        volume.detach(cluster).await?;
        volume.delete(cluster).await?;
    }
    Ok(format!(
        "from the kill to the next records: {}; grown afterwards; no error, no restart of the driver",
        waits.join(", ")
    ))
}
