//! A node that is cut off loses its volume to another node, and then reconnects.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Result, ensure};
use e2e::GIB;
use e2e::harness::process::run;
use e2e::harness::test_volume::{Content, TestVolume};
use e2e::harness::until::until;

use crate::scene::{Data, Scene, checker};
use crate::worker::Worker;

/// Data that only the cut-off node writes.
pub(crate) const LATE: &[u8; 16] = b"written too late";
/// Size and offset of these data in a file or device: beyond what the other node writes to a raw device.
const DIRTY: (usize, u64) = (2 << 20, 8 << 20);

/// The contents of the volumes.
const CONTENTS: [Content; 3] = [Content::Fs("ext4"), Content::Fs("xfs"), Content::Block];
/// Replacement timeout, longer than it takes to move all volumes to the other node on a slow machine.
pub(super) const LONG_TIMEOUT: &str = "60s";

/// A pod that writes the late data, leaves them in the page cache and keeps the file open: the last close of a device
/// waits until all pages are written.
pub(crate) fn dirty(file: &Path) -> Result<()> {
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(file)?;
    file.write_all_at(&LATE.repeat(DIRTY.0 / LATE.len()), DIRTY.1)?;
    println!("written");
    loop {
        std::thread::park();
    }
}

/// Starts such a pod on the second VM; returns its process id.
pub(super) async fn start_dirty(worker: &Worker, volume: &TestVolume) -> Result<u32> {
    let log = format!("/run/dirty-{}.log", volume.name);
    let file = volume.file("late");
    let args = ["vm", "dirty", &file.to_string_lossy()];
    let pod = worker.remote.start(&args, &log).await?;
    let output = async || worker.remote.read(&log).await;
    until("the pages are dirty", output, |output| {
        output.contains("written")
    })
    .await?;
    Ok(pod)
}

/// A volume that moved from the cut-off node to this one.
struct Moved {
    on_cut_off: TestVolume,
    on_this_node: TestVolume,
    before: Data,
}

pub(crate) async fn late_writes(scene: &mut Scene) -> Result<String> {
    let worker = Worker::start(&["--replacement-timeout", LONG_TIMEOUT]).await?;
    let mut volumes = Vec::new();
    for content in CONTENTS {
        let volume = worker
            .volume(&scene.cluster, &format!("pvc-{}", content.name()), content)
            .await?;
        if let Content::Fs(_) = content {
            worker.write(&volume.path().join("shared")).await?;
        }
        volumes.push(volume);
    }

    // The network is cut, then pages are dirtied.
    worker.cut_off().await?;
    let mut pods = Vec::new();
    for volume in &volumes {
        pods.push(start_dirty(&worker, volume).await?);
    }

    // The CO moves the volumes to this node. The first node's targets are deleted, which is the fence.
    let mut moved = Vec::new();
    for on_cut_off in volumes {
        moved.push(Moved::move_here(scene, on_cut_off).await?);
    }

    // The network returns. The first node retries the login, finds no target, and drops its pages.
    must_still_retry(&worker).await?;
    let refused = refusals(&worker).await?;
    worker.cable(0, true).await?;
    until(
        "the first node is refused",
        async || refusals(&worker).await,
        |now| *now > refused,
    )
    .await?;
    worker.run(&["sync"]).await?;

    for volume in &moved {
        volume.must_be_ours(scene).await?;
    }
    // The first node unpublishes and unstages the lost volumes.
    for pod in pods {
        worker.run(&["kill", "-9", &pod.to_string()]).await?;
    }
    let clients = worker.on(&scene.cluster);
    for Moved {
        on_cut_off,
        on_this_node,
        ..
    } in moved
    {
        let unstage = async || {
            let done = async {
                on_cut_off.node_unpublish(&clients).await?;
                on_cut_off.unstage(&clients).await
            };
            Ok(done.await.err().map(|status| status.to_string()))
        };
        until("the first node has unstaged", unstage, Option::is_none).await?;
        on_this_node.delete(&clients).await?;
    }
    worker.teardown().await?;
    let seen = CONTENTS.map(Content::name).join(", ");
    Ok(format!(
        "{seen}: dirty pages of the cut-off node never arrived; the other node's data equal, file systems clean"
    ))
}

impl Moved {
    async fn move_here(scene: &Scene, on_cut_off: TestVolume) -> Result<Self> {
        let cluster = &scene.cluster;
        on_cut_off.unpublish(cluster).await?;
        let on_this_node = scene.adopt(&on_cut_off).await?;
        let before = Scene::write(&on_this_node, 11)?;
        Ok(Self {
            on_cut_off,
            on_this_node,
            before,
        })
    }

    /// Checks that this node's volume is as this node left it, and still works.
    async fn must_be_ours(&self, scene: &Scene) -> Result<()> {
        let (cluster, on_this_node) = (&scene.cluster, &self.on_this_node);
        Scene::must_hold(&self.before)?;
        let after = Scene::write(on_this_node, 12)?;
        on_this_node.expand_lun(cluster, 2 * GIB).await?;
        on_this_node.expand_on_node(cluster, 2 * GIB).await?;
        on_this_node.must_have(cluster, 2 * GIB)?;
        Scene::must_hold(&after)?;
        let device = scene.device(on_this_node)?;
        on_this_node.node_unpublish(cluster).await?;
        if let Content::Fs(fs) = on_this_node.content {
            run("umount", [&on_this_node.staging])?;
            let args = checker(fs).iter().map(OsStr::new);
            run("env", args.chain([device.as_os_str()]))?;
        }
        ensure!(
            !scene.lun_contains(on_this_node, LATE)?,
            "the cut-off node's pages have arrived"
        );
        on_this_node.unstage(cluster).await?;
        Ok(on_this_node.unpublish(cluster).await?)
    }
}

/// Checks that no session of the first node has reached its replacement timeout: its pages are still pending.
async fn must_still_retry(worker: &Worker) -> Result<()> {
    let sessions = worker.remote.list("/sys/class/iscsi_session").await?;
    ensure!(sessions.len() == CONTENTS.len(), "{sessions:?}");
    for session in sessions {
        let state = format!("/sys/class/iscsi_session/{session}/state");
        let state = worker.remote.read(&state).await?;
        ensure!(state.trim() != "FREE", "{session} has timed out too early");
    }
    Ok(())
}

/// How often a target has refused a login of the second VM.
async fn refusals(worker: &Worker) -> Result<usize> {
    let log = worker.remote.read("/run/iscsid.log").await?;
    Ok(log.matches("login rejected").count())
}
