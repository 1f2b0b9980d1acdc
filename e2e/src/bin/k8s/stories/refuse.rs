//! Claims that ask for more than there is.

use anyhow::{Context as _, Result, ensure};
use e2e::GIB;

use crate::co::{ClaimSeen, Co};
use crate::scene::{Scene, Used, class};

/// MiB that are written.
const WRITTEN: u32 = 32;

/// What a claim says when its expansion was refused. The resizer writes down how it stands first, and why a moment later.
const REFUSED: [&str; 2] = ["ControllerResizeError", "ControllerResizeInfeasible"];

/// Why a claim cannot have what it asks for, once it says so.
fn why_not(seen: &ClaimSeen) -> Option<&str> {
    let said = REFUSED.iter().filter_map(|one| seen.conditions.get(*one));
    said.map(String::as_str).find(|message| !message.is_empty())
}

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
            why_not(seen).is_some()
        })
        .await?;
    ensure!(seen.capacity == GIB, "{seen:?}");
    let said = why_not(&seen).context("no condition says why")?.to_owned();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_one_when_it_says_why() {
        let seen = |conditions: &[(&str, &str)]| ClaimSeen {
            conditions: conditions
                .iter()
                .map(|(name, message)| ((*name).to_owned(), (*message).to_owned()))
                .collect(),
            ..ClaimSeen::default()
        };
        let pending = [
            seen(&[]),
            seen(&[("ControllerResizeInProgress", ""), ("Resizing", "waits")]),
            // As resizer 2.3.0 has it for a moment.
            seen(&[("ControllerResizeInfeasible", "")]),
        ];
        for seen in &pending {
            assert_eq!(why_not(seen), None, "{seen:?}");
        }
        let told = seen(&[
            ("ControllerResizeInfeasible", ""),
            ("ControllerResizeError", "full"),
        ]);
        assert_eq!(why_not(&told), Some("full"));
    }
}
