//! Expansion: claims are edited while they are used and while they are not.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::GIB;

use crate::co::Co;
use crate::scene::{Scene, Workload};

/// MiB that are written before the expansion.
const WRITTEN: u32 = 64;
/// How often a claim is edited in the measured story, if an edit takes a few seconds.
const MAX_EDITS: u32 = 20;
/// Minimum number of edits.
const MIN_EDITS: u32 = 3;
/// No edit is started after this time. A kubelet with Kubernetes' default sync interval takes up to 90 s for each, and the
/// timeout of a story is 900 s.
const EDIT_TIME: Duration = Duration::from_secs(400);
/// Part of the node's error if its kernel does not let it grow a mounted ext4.
const NO_CAPABILITY: &str = "CAP_SYS_RESOURCE";
/// The claim's condition when the LUN has grown and the file system has not.
const PENDING: &str = "FileSystemResizePending";
/// The claim's conditions when its node could not grow the file system.
const NODE_FAILED: [&str; 2] = ["NodeResizeError", "NodeResizeInfeasible"];
/// A workload that appends a line every tenth of a second, and syncs each of them.
const WRITE_LOOP: &str = "i=0; while :; do i=$((i + 1)); echo $i >> $V/log; sync; sleep 0.1; done";

/// Edits a claim repeatedly while its pod is writing.
pub(super) async fn online<C: Co>(scene: &Scene<C>, fs_type: &str) -> Result<String> {
    let class = scene.class(fs_type).await?;
    let workload = Workload::new(&format!("online-{fs_type}"), &class, GIB).script(WRITE_LOOP);
    scene.begin(&workload).await?;
    let written = scene.fill(&workload, WRITTEN).await?;
    if fs_type == "ext4" && growth_is_refused(scene, &workload).await? {
        let seen = grows_at_next_start(scene, &workload, &written).await?;
        scene.end(&workload).await?;
        return Ok(seen);
    }
    let start = scene.size(&workload).await?;
    let (mut edits, mut sum) = (0, Duration::ZERO);
    // A mounted ext4 was already expanded by the check above.
    let mut size = scene.wait_until_bound(&workload).await?.requested;
    let began = Instant::now();
    while has_time_for_edit(edits, began.elapsed()) {
        edits += 1;
        size += GIB;
        let took = scene.grow(&workload, size).await?;
        scene.times.borrow_mut().add(fs_type, took);
        sum += took;
        // Waits, so that the next edit is measured separately.
        scene.wait_for_capacity(&workload, size).await?;
    }
    let end = scene.size(&workload).await?;
    ensure!(
        scene.digest(&workload, WRITTEN).await? == written,
        "the data have changed"
    );
    check_log(scene, &workload).await?;
    let seen = scene.wait_until_running(&workload).await?;
    ensure!(
        seen.restarts == 0,
        "the container was started {} times again",
        seen.restarts
    );
    scene.end(&workload).await?;
    Ok(format!(
        "{edits} edits, {} → {} MiB, {:.1} s each, data equal, the pod never stopped",
        start >> 20,
        end >> 20,
        (sum / edits).as_secs_f64()
    ))
}

/// Whether there is time for one more edit after this many, and this long.
fn has_time_for_edit(edits: u32, since: Duration) -> bool {
    edits < MIN_EDITS || edits < MAX_EDITS && since < EDIT_TIME
}

/// Checks that every line that the pod has written exists, in order.
async fn check_log<C: Co>(scene: &Scene<C>, workload: &Workload) -> Result<()> {
    let check =
        "n=$(wc -l < $V/log); seq $n > $V/wanted; head -n $n $V/log | cmp - $V/wanted && echo $n";
    let lines: u32 = scene.co.run(workload.name(), check).await?.parse()?;
    ensure!(lines > 0, "the pod wrote nothing");
    Ok(())
}

/// Expands the claim of a mounted ext4 by a GiB. Returns whether the node's kernel refused that.
async fn growth_is_refused<C: Co>(scene: &Scene<C>, workload: &Workload) -> Result<bool> {
    let requested = workload.claim.bytes + GIB;
    scene.co.resize(workload.name(), requested).await?;
    let decided = scene
        .claim(workload, "the ext4 has grown, or may not", |seen| {
            seen.capacity >= requested
                || NODE_FAILED
                    .iter()
                    .any(|one| seen.conditions.contains_key(*one))
        })
        .await?;
    Ok(decided.capacity < requested)
}

/// The claim contains the cause, nothing is lost, and the file system grows when it is staged again.
async fn grows_at_next_start<C: Co>(
    scene: &Scene<C>,
    workload: &Workload,
    written: &str,
) -> Result<String> {
    let seen = scene
        .claim(workload, "the claim says why", |seen| {
            seen.conditions
                .values()
                .any(|message| message.contains(NO_CAPABILITY))
        })
        .await?;
    ensure!(seen.capacity == workload.claim.bytes, "{seen:?}");
    ensure!(
        scene.digest(workload, WRITTEN).await? == written,
        "the data have changed"
    );
    scene.stop_and_detach(workload).await?;
    scene.start(workload).await?;
    let requested = workload.claim.bytes + GIB;
    scene.wait_for_size(workload, requested).await?;
    scene.wait_for_capacity(workload, requested).await?;
    ensure!(
        scene.digest(workload, WRITTEN).await? == written,
        "the data have changed"
    );
    Ok("this kernel refuses to grow a mounted ext4 (CAP_SYS_RESOURCE): reported on the claim, and grown at the next start".to_owned())
}

/// Edits a claim while no pod uses it.
pub(super) async fn offline<C: Co>(scene: &Scene<C>, fs_type: &str) -> Result<String> {
    let class = scene.class(fs_type).await?;
    let workload = Workload::new(&format!("offline-{fs_type}"), &class, GIB);
    scene.begin(&workload).await?;
    let written = scene.fill(&workload, WRITTEN).await?;
    scene.stop_and_detach(&workload).await?;
    scene.co.resize(workload.name(), 3 * GIB).await?;
    // A pod that starts earlier would be online: its volume would be staged with the old size.
    scene
        .claim(
            &workload,
            "the LUN has grown, and the rest waits for a pod",
            |seen| seen.conditions.contains_key(PENDING),
        )
        .await?;
    scene.start(&workload).await?;
    let size = scene.wait_for_size(&workload, 3 * GIB).await?;
    scene.wait_for_capacity(&workload, 3 * GIB).await?;
    ensure!(
        scene.digest(&workload, WRITTEN).await? == written,
        "the data have changed"
    );
    scene.end(&workload).await?;
    Ok(format!("the next pod sees {} MiB, data equal", size >> 20))
}

/// Expands a block device while its pod runs.
pub(super) async fn block<C: Co>(scene: &Scene<C>) -> Result<String> {
    let class = scene.class("xfs").await?;
    let workload = Workload::new("block", &class, GIB).block();
    scene.begin(&workload).await?;
    let written = scene.fill(&workload, WRITTEN).await?;
    for size in (2..=4).map(|gib| gib * GIB) {
        let took = scene.grow(&workload, size).await?;
        scene.times.borrow_mut().add("raw block", took);
        scene.wait_for_capacity(&workload, size).await?;
    }
    ensure!(
        scene.digest(&workload, WRITTEN).await? == written,
        "the data have changed"
    );
    scene.end(&workload).await?;
    Ok("1 → 4 GiB in three edits, data equal".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of edits, and when the last one starts, if each takes this many seconds.
    fn edits(each: u64) -> (u32, u64) {
        let seconds = Duration::from_secs;
        let count = (0..=MAX_EDITS)
            .find(|edits| !has_time_for_edit(*edits, seconds(each * u64::from(*edits))));
        let count = count.unwrap();
        (count, each * u64::from(count - 1))
    }

    #[test]
    fn there_are_as_many_edits_as_fit_into_the_time() {
        assert_eq!(edits(2), (20, 38));
        assert_eq!(edits(19).0, 20);
        assert_eq!(edits(90), (5, 360));
        assert_eq!(edits(300), (3, 600));
    }
}
