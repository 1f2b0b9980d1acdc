//! Claims that request more than the NAS has.

use anyhow::{Context as _, Result, ensure};
use e2e::GIB;

use crate::co::{ClaimSeen, Co};
use crate::scene::{Scene, Workload, class};

/// MiB that are written.
const WRITTEN: u32 = 32;

/// The claim's conditions when its expansion was refused. The resizer sets the condition first, and its message a moment later.
const REFUSED: [&str; 2] = ["ControllerResizeError", "ControllerResizeInfeasible"];

/// Why a claim's expansion was refused, once its conditions say so.
fn why_not(seen: &ClaimSeen) -> Option<&str> {
    let reason = REFUSED.iter().filter_map(|one| seen.conditions.get(*one));
    reason
        .map(String::as_str)
        .find(|message| !message.is_empty())
}

/// A claim that requests too much is refused; after it is edited to request less, it is expanded.
pub(super) async fn then_smaller<C: Co>(scene: &Scene<C>) -> Result<String> {
    // /volume2 has 4 GiB, and a thick LUN allocates its size there.
    let parameters = "location: /volume2, type: thick, fsType: xfs";
    let class = class("thick", parameters, "Delete")?;
    scene.co.class(&class).await?;
    let workload = Workload::new("refused", &class, GIB);
    scene.begin(&workload).await?;
    let written = scene.fill(&workload, WRITTEN).await?;
    scene.co.resize(workload.name(), 100 * GIB).await?;
    let seen = scene
        .claim(
            &workload,
            "the claim says that it cannot have that",
            |seen| why_not(seen).is_some(),
        )
        .await?;
    ensure!(seen.capacity == GIB, "{seen:?}");
    let reason = why_not(&seen).context("no condition says why")?.to_owned();
    ensure!(
        scene.digest(&workload, WRITTEN).await? == written,
        "the data have changed"
    );
    scene.co.resize(workload.name(), 2 * GIB).await?;
    let size = scene.wait_for_size(&workload, 2 * GIB).await?;
    ensure!(size < 3 * GIB, "it has grown to {size} bytes");
    scene.wait_for_capacity(&workload, 2 * GIB).await?;
    ensure!(
        scene.digest(&workload, WRITTEN).await? == written,
        "the data have changed"
    );
    scene.end(&workload).await?;
    Ok(format!("100 GiB refused ({reason}), then 2 GiB granted"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_counts_once_it_has_a_message() {
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
            // A transient state of resizer 2.3.0.
            seen(&[("ControllerResizeInfeasible", "")]),
        ];
        for seen in &pending {
            assert_eq!(why_not(seen), None, "{seen:?}");
        }
        let with_message = seen(&[
            ("ControllerResizeInfeasible", ""),
            ("ControllerResizeError", "full"),
        ]);
        assert_eq!(why_not(&with_message), Some("full"));
    }
}
