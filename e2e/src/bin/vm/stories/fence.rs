//! A node that is cut off loses its volume to another, and comes back.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Result, ensure};
use e2e::GIB;
use e2e::life::{Content, Life};
use e2e::process::run;
use e2e::until::until;

use crate::scene::{REPLACEMENT, Scene};
use crate::worker::Worker;

/// What only the cut-off node ever wrote.
pub(crate) const LATE: &[u8; 16] = b"written too late";
/// How much of it, and where in a file or device: beyond what the other node writes to a raw device.
const DIRTY: (usize, u64) = (2 << 20, 8 << 20);

/// Writes what is to come too late, and leaves it in memory.
pub(crate) fn dirty(file: &Path) -> Result<()> {
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(file)?;
    Ok(file.write_all_at(&LATE.repeat(DIRTY.0 / LATE.len()), DIRTY.1)?)
}

pub(crate) async fn late_writes(scene: &mut Scene) -> Result<String> {
    let timeout = format!("{REPLACEMENT}s");
    let worker = Worker::start(&["--replacement-timeout", &timeout]).await?;
    let mut seen = Vec::new();
    for content in Content::ALL {
        one(scene, &worker, content).await?;
        seen.push(content.name());
    }
    worker.strike().await?;
    Ok(format!(
        "{}: dirty pages of the cut-off node never arrived; the other node's data equal, file systems clean",
        seen.join(", ")
    ))
}

async fn one(scene: &Scene, worker: &Worker, content: Content) -> Result<()> {
    let world = &scene.world;
    let theirs = worker
        .volume(scene, &format!("pvc-{}", content.name()), content)
        .await?;
    let file = match content {
        Content::Fs(_) => theirs.path().join("late"),
        Content::Block => theirs.path(),
    };
    // The first node: synced data, then the network goes, then pages that stay dirty.
    if let Content::Fs(_) = content {
        worker.write(&theirs.path().join("shared")).await?;
    }
    worker.cable(0, false).await?;
    worker
        .run(&["vm", "dirty", &file.to_string_lossy()])
        .await?;

    // The CO gives the volume to this node. The first one's target goes, and that is the fence.
    theirs.unpublish(world).await?;
    let home = world.folder().join("kubelet").join(&theirs.name);
    let mut ours = Life {
        staging: home.join("staging"),
        target: home.join("target"),
        ..theirs.clone()
    };
    std::fs::create_dir_all(&ours.staging)?;
    ours.attach(world).await?;
    let before = Scene::write(&ours, 11)?;

    // The network returns. The first node tries to log in again, finds no target, and gives its pages up.
    let refused = refusals(worker).await?;
    worker.cable(0, true).await?;
    until(
        "the first node is refused",
        async || refusals(worker).await,
        |now| *now > refused,
    )
    .await?;
    worker.run(&["sync"]).await?;
    let after = Scene::write(&ours, 12)?;

    // This node's volume is as this node left it.
    ours.expand_lun(world, 2 * GIB).await?;
    ours.expand_on_node(world, 2 * GIB).await?;
    scene.must_have(&ours, 2 * GIB)?;
    if content != Content::Block {
        Scene::must_hold(&before)?;
    }
    Scene::must_hold(&after)?;
    let device = scene.device(&ours)?;
    ours.node_unpublish(world).await?;
    if let Content::Fs(fs) = content {
        run("umount", [&ours.staging])?;
        match fs {
            "ext4" => run("e2fsck", ["-f".as_ref(), "-n".as_ref(), device.as_os_str()])?,
            "xfs" => run("xfs_repair", ["-n".as_ref(), device.as_os_str()])?,
            _ => run(
                "btrfs",
                ["check".as_ref(), "--readonly".as_ref(), device.as_os_str()],
            )?,
        };
    }
    ensure!(
        !scene.lun_holds(&ours, LATE)?,
        "the cut-off node's pages have arrived"
    );
    ours.unstage(world).await?;
    ours.unpublish(world).await?;

    // The first node lets go of what it has lost.
    let there = worker.on(world);
    let let_go = async || {
        let done = async {
            theirs.node_unpublish(&there).await?;
            theirs.unstage(&there).await
        };
        Ok(done.await.err().map(|status| status.to_string()))
    };
    until("the first node lets go", let_go, Option::is_none).await?;
    ours.delete(world).await?;
    Ok(())
}

/// How often a target has refused the second machine.
async fn refusals(worker: &Worker) -> Result<usize> {
    Ok(worker
        .remote
        .read("/run/iscsid.log")
        .await?
        .matches("login rejected")
        .count())
}
