//! A pod's fsync reaches the NAS if its LUN honors flushes (`enableFuaSyncCache`); otherwise no flush is sent.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use e2e::GIB;
use e2e::harness::test_volume::{Content, TestVolume, create_request};

use crate::scene::Scene;

/// The kernel's view of a disk's cache.
#[derive(Debug)]
struct Cache {
    /// `write back` or `write through`.
    mode: String,
    /// Completed flush requests (Documentation/block/stat.rst, field 16).
    flushes: u64,
}

pub(crate) async fn honoured_or_not(scene: &mut Scene) -> Result<String> {
    let (on, flushed) = written(scene, "pvc-flushed", "true").await?;
    ensure!(
        on.mode == "write back",
        "{on:?}: no write cache is announced"
    );
    ensure!(flushed > 0, "fsync sent no flush: {on:?}");
    let (off, not) = written(scene, "pvc-not-flushed", "false").await?;
    ensure!(
        off.mode == "write through" && not == 0,
        "{not} flushes: {off:?}"
    );
    Ok(format!(
        "enableFuaSyncCache true: {}, {flushed} flushes for 4 fsyncs; false: {}, none",
        on.mode, off.mode
    ))
}

/// A pod writes and syncs four times on a volume with this setting; returns the disk's cache and the number of flushes.
async fn written(scene: &Scene, name: &str, honoured: &str) -> Result<(Cache, u64)> {
    let cluster = &scene.cluster;
    let mut request = create_request(name, GIB, Content::Fs("ext4"));
    request
        .parameters
        .insert("enableFuaSyncCache".to_owned(), honoured.to_owned());
    let mut volume = TestVolume::create_as(cluster, request, Content::Fs("ext4")).await?;
    volume.attach(cluster).await?;
    let device = scene.device(&volume)?;
    let before = cache(&device)?;
    let mut file = File::create(volume.file("synced"))?;
    for _ in 0..4 {
        file.write_all(&[7; 4096])?;
        file.sync_all()?;
    }
    let after = cache(&device)?;
    drop(file);
    volume.detach(cluster).await?;
    volume.delete(cluster).await?;
    let flushed = after.flushes - before.flushes;
    Ok((after, flushed))
}

fn cache(device: &Path) -> Result<Cache> {
    let name = device.file_name().context("no device")?;
    let folder = Path::new("/sys/class/block").join(name);
    let stat = fs::read_to_string(folder.join("stat"))?;
    let flushes = stat.split_whitespace().nth(15);
    Ok(Cache {
        mode: fs::read_to_string(folder.join("queue/write_cache"))?
            .trim()
            .to_owned(),
        flushes: flushes.context("this kernel counts no flushes")?.parse()?,
    })
}
