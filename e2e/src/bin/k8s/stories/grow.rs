//! Claims that are edited.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::GIB;

use crate::co::Co;
use crate::scene::{Scene, Used};

/// MiB that are written before it grows.
const WRITTEN: u32 = 64;
/// How often a claim is edited in the story that is measured, where each edit takes a few seconds.
const EDITS: u32 = 20;
/// So often at least.
const FEWEST: u32 = 3;
/// No edit is begun after so long. A kubelet that looks as seldom as Kubernetes has it by default takes up to 90 s for each, and a
/// story may take 900.
const ROOM: Duration = Duration::from_secs(400);
/// What the node says when its kernel will not let it grow a mounted ext4.
const MAY_NOT: &str = "CAP_SYS_RESOURCE";
/// What a claim says when the LUN has grown and the file system has not.
const PENDING: &str = "FileSystemResizePending";
/// What a claim says when its node could not grow the file system.
const NODE_FAILED: [&str; 2] = ["NodeResizeError", "NodeResizeInfeasible"];
/// A pod at work: a line a tenth of a second, each of them on the disk before the next.
const WORKS: &str = "i=0; while :; do i=$((i + 1)); echo $i >> $V/log; sync; sleep 0.1; done";

/// A claim is edited while its pod is at work, again and again.
pub(super) async fn online<C: Co>(scene: &Scene<C>, fs_type: &str) -> Result<String> {
    let class = scene.class(fs_type).await?;
    let used = Used::new(&format!("online-{fs_type}"), &class, GIB).works(WORKS);
    scene.begin(&used).await?;
    let written = scene.fill(&used, WRITTEN).await?;
    if fs_type == "ext4" && may_not_grow(scene, &used).await? {
        let seen = refused_then_at_the_next_start(scene, &used, &written).await?;
        scene.end(&used).await?;
        return Ok(seen);
    }
    let start = scene.size(&used).await?;
    let (mut edits, mut sum) = (0, Duration::ZERO);
    // A mounted ext4 has grown already.
    let mut size = scene.bound(&used).await?.asked;
    let began = Instant::now();
    while is_room(edits, began.elapsed()) {
        edits += 1;
        size += GIB;
        let took = scene.grow(&used, size).await?;
        scene.times.borrow_mut().add(fs_type, took);
        sum += took;
        // The next edit is measured by itself.
        scene.has(&used, size).await?;
    }
    let end = scene.size(&used).await?;
    ensure!(
        scene.digest(&used, WRITTEN).await? == written,
        "the data is another"
    );
    worked_on(scene, &used).await?;
    let seen = scene.runs(&used).await?;
    ensure!(
        seen.restarts == 0,
        "the container was started {} times again",
        seen.restarts
    );
    scene.end(&used).await?;
    Ok(format!(
        "{edits} edits, {} → {} MiB, {:.1} s each, data equal, the pod never stopped",
        start >> 20,
        end >> 20,
        (sum / edits).as_secs_f64()
    ))
}

/// Whether there is room for one more edit after so many, and so long.
fn is_room(edits: u32, since: Duration) -> bool {
    edits < FEWEST || edits < EDITS && since < ROOM
}

/// Every line that the pod has written is there, in order.
async fn worked_on<C: Co>(scene: &Scene<C>, used: &Used) -> Result<()> {
    let check =
        "n=$(wc -l < $V/log); seq $n > $V/wanted; head -n $n $V/log | cmp - $V/wanted && echo $n";
    let lines: u32 = scene.co.run(used.name(), check).await?.parse()?;
    ensure!(lines > 0, "the pod wrote nothing");
    Ok(())
}

/// Edits the claim of a mounted ext4 by a GiB: whether the node is refused that by its kernel.
async fn may_not_grow<C: Co>(scene: &Scene<C>, used: &Used) -> Result<bool> {
    let wanted = used.claim.bytes + GIB;
    scene.co.resize(used.name(), wanted).await?;
    let decided = scene
        .claim(used, "the ext4 has grown, or may not", |seen| {
            seen.capacity >= wanted
                || NODE_FAILED
                    .iter()
                    .any(|one| seen.conditions.contains_key(*one))
        })
        .await?;
    Ok(decided.capacity < wanted)
}

/// The claim says why, nothing is lost, and the file system grows when it is staged again.
async fn refused_then_at_the_next_start<C: Co>(
    scene: &Scene<C>,
    used: &Used,
    written: &str,
) -> Result<String> {
    let seen = scene
        .claim(used, "the claim says why", |seen| {
            seen.conditions
                .values()
                .any(|message| message.contains(MAY_NOT))
        })
        .await?;
    ensure!(seen.capacity == used.claim.bytes, "{seen:?}");
    ensure!(
        scene.digest(used, WRITTEN).await? == written,
        "the data is another"
    );
    scene.stop_and_detach(used).await?;
    scene.start(used).await?;
    let wanted = used.claim.bytes + GIB;
    scene.sees(used, wanted).await?;
    scene.has(used, wanted).await?;
    ensure!(
        scene.digest(used, WRITTEN).await? == written,
        "the data is another"
    );
    Ok("this kernel lets nobody grow a mounted ext4 (CAP_SYS_RESOURCE): said on the claim, and grown at the next start".to_owned())
}

/// A claim is edited while no pod uses it.
pub(super) async fn offline<C: Co>(scene: &Scene<C>, fs_type: &str) -> Result<String> {
    let class = scene.class(fs_type).await?;
    let used = Used::new(&format!("offline-{fs_type}"), &class, GIB);
    scene.begin(&used).await?;
    let written = scene.fill(&used, WRITTEN).await?;
    scene.stop_and_detach(&used).await?;
    scene.co.resize(used.name(), 3 * GIB).await?;
    // A pod that came before would be online: its volume would be staged with the old size.
    scene
        .claim(
            &used,
            "the LUN has grown, and the rest waits for a pod",
            |seen| seen.conditions.contains_key(PENDING),
        )
        .await?;
    scene.start(&used).await?;
    let size = scene.sees(&used, 3 * GIB).await?;
    scene.has(&used, 3 * GIB).await?;
    ensure!(
        scene.digest(&used, WRITTEN).await? == written,
        "the data is another"
    );
    scene.end(&used).await?;
    Ok(format!("the next pod sees {} MiB, data equal", size >> 20))
}

/// A device grows under its pod.
pub(super) async fn block<C: Co>(scene: &Scene<C>) -> Result<String> {
    let class = scene.class("xfs").await?;
    let used = Used::new("block", &class, GIB).block();
    scene.begin(&used).await?;
    let written = scene.fill(&used, WRITTEN).await?;
    for size in (2..=4).map(|gib| gib * GIB) {
        let took = scene.grow(&used, size).await?;
        scene.times.borrow_mut().add("raw block", took);
        scene.has(&used, size).await?;
    }
    ensure!(
        scene.digest(&used, WRITTEN).await? == written,
        "the data is another"
    );
    scene.end(&used).await?;
    Ok("1 → 4 GiB in three edits, data equal".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many edits a story makes, and when it begins the last one, where each takes so long.
    fn edits(each: u64) -> (u32, u64) {
        let seconds = Duration::from_secs;
        let made = (0..=EDITS).find(|edits| !is_room(*edits, seconds(each * u64::from(*edits))));
        let made = made.unwrap();
        (made, each * u64::from(made - 1))
    }

    #[test]
    fn there_are_as_many_edits_as_there_is_room_for() {
        assert_eq!(edits(2), (20, 38));
        assert_eq!(edits(19).0, 20);
        assert_eq!(edits(90), (5, 360));
        assert_eq!(edits(300), (3, 600));
    }
}
