//! Claims that ask for more than there is.

use anyhow::{Context as _, Result, ensure};
use e2e::GIB;

use crate::co::Co;
use crate::scene::{Scene, Used, class};

/// MiB that are written.
const WRITTEN: u32 = 32;

/// The NAS is full for a claim that wants too much; one that wants less afterwards gets it.
pub(super) async fn then_smaller<C: Co>(scene: &Scene<C>) -> Result<String> {
    // /volume2 has 4 GiB, and a thick LUN takes its size from it.
    let parameters = "location: /volume2, type: thick, fsType: xfs";
    let class = class("thick", parameters, "Delete")?;
    scene.co.class(&class).await?;
    let used = Used::new("refused", &class, GIB);
    scene.begin(&used).await?;
    let written = scene.fill(&used, WRITTEN).await?;
    scene.co.resize(used.name(), 100 * GIB).await?;
    let seen = scene
        .claim(&used, "the claim says that it cannot have that", |seen| {
            seen.conditions
                .keys()
                .any(|one| one.starts_with("ControllerResize"))
        })
        .await?;
    ensure!(seen.capacity == GIB, "{seen:?}");
    let said = seen.conditions.values().find(|message| !message.is_empty());
    let said = said.context("no condition says why")?.clone();
    ensure!(
        scene.digest(&used, WRITTEN).await? == written,
        "the data is another"
    );
    scene.co.resize(used.name(), 2 * GIB).await?;
    let size = scene.sees(&used, 2 * GIB).await?;
    ensure!(size < 3 * GIB, "it has grown to {size} bytes");
    scene.has(&used, 2 * GIB).await?;
    ensure!(
        scene.digest(&used, WRITTEN).await? == written,
        "the data is another"
    );
    scene.end(&used).await?;
    Ok(format!("100 GiB refused ({said}), then 2 GiB granted"))
}
