//! Expansion under load: five times in a row, while a pod writes and verifies what it reads back.

use anyhow::{Result, ensure};
use e2e::GIB;
use e2e::harness::test_volume::Content;
use e2e::harness::writer::Writer;

use crate::scene::Scene;

const TIMES: i64 = 5;

pub(crate) async fn five_times(scene: &mut Scene) -> Result<String> {
    let cluster = &scene.cluster;
    let mut seen = Vec::new();
    for content in Content::ALL {
        let volume = scene
            .volume(&format!("pvc-{}", content.name()), content)
            .await?;
        // On a raw device the old data are beyond what the writer uses.
        let (log, old) = match content {
            Content::Fs(_) => (volume.path().join("log"), Some(Scene::write(&volume, 7)?)),
            Content::Block => (volume.path(), None),
        };
        let writer = Writer::start(&log)?;
        for times in 1..=TIMES {
            let size = GIB + times * GIB / 2;
            ensure!(volume.expand_lun(cluster, size).await? == size);
            ensure!(volume.expand_on_node(cluster, size).await? == size);
            volume.must_have(cluster, size)?;
            writer.must_keep_writing().await?;
        }
        seen.push(format!("{} {}", content.name(), writer.written()));
        writer.stop()?;
        if let Some(old) = old {
            Scene::must_hold(&old)?;
        }
        volume.detach(cluster).await?;
        volume.delete(cluster).await?;
    }
    Ok(format!(
        "{TIMES} expansions each; records of 64 KiB written and verified meanwhile: {}; 0 errors",
        seen.join(", ")
    ))
}
