//! A node that is cut off loses its volume to another, and comes back.

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

/// What only the cut-off node ever wrote.
pub(crate) const LATE: &[u8; 16] = b"written too late";
/// How much of it, and where in a file or device: beyond what the other node writes to a raw device.
const DIRTY: (usize, u64) = (2 << 20, 8 << 20);

/// What the volumes hold.
const CONTENTS: [Content; 3] = [Content::Fs("ext4"), Content::Fs("xfs"), Content::Block];
/// Longer than it takes to give all volumes to the other node, also on a slow machine.
pub(super) const GIVES_UP: &str = "60s";

/// A pod that writes what is to come too late, leaves it in memory and keeps the file open: the last one to close a device
/// waits until everything is on the disk.
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

/// Starts such a pod on the second machine; answers its process id.
pub(super) async fn start_dirty(worker: &Worker, volume: &TestVolume) -> Result<u32> {
    let log = format!("/run/dirty-{}.log", volume.name);
    let file = volume.file("late");
    let words = ["vm", "dirty", &file.to_string_lossy()];
    let pod = worker.remote.start(&words, &log).await?;
    let said = async || worker.remote.read(&log).await;
    until("the pages are dirty", said, |said| said.contains("written")).await?;
    Ok(pod)
}

/// A volume that moves from the cut-off node to this one.
struct Moved {
    theirs: TestVolume,
    ours: TestVolume,
    before: Data,
}

pub(crate) async fn late_writes(scene: &mut Scene) -> Result<String> {
    let worker = Worker::start(&["--replacement-timeout", GIVES_UP]).await?;
    let mut volumes = Vec::new();
    for content in CONTENTS {
        let volume = worker
            .volume(scene, &format!("pvc-{}", content.name()), content)
            .await?;
        if let Content::Fs(_) = content {
            worker.write(&volume.path().join("shared")).await?;
        }
        volumes.push(volume);
    }

    // The network goes; then come pages that stay dirty.
    worker.cut_off().await?;
    let mut pods = Vec::new();
    for volume in &volumes {
        pods.push(start_dirty(&worker, volume).await?);
    }

    // The CO gives the volumes to this node. Their targets for the first one go, and that is the fence.
    let mut moved = Vec::new();
    for theirs in volumes {
        moved.push(Moved::take(scene, theirs).await?);
    }

    // The network returns. The first node tries to log in again, finds no target, and gives its pages up.
    must_still_hope(&worker).await?;
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
    // The first node lets go of what it has lost.
    for pod in pods {
        worker.run(&["kill", "-9", &pod.to_string()]).await?;
    }
    let there = worker.on(&scene.cluster);
    for Moved { theirs, ours, .. } in moved {
        let let_go = async || {
            let done = async {
                theirs.node_unpublish(&there).await?;
                theirs.unstage(&there).await
            };
            Ok(done.await.err().map(|status| status.to_string()))
        };
        until("the first node lets go", let_go, Option::is_none).await?;
        ours.delete(&there).await?;
    }
    worker.strike().await?;
    let seen = CONTENTS.map(Content::name).join(", ");
    Ok(format!(
        "{seen}: dirty pages of the cut-off node never arrived; the other node's data equal, file systems clean"
    ))
}

impl Moved {
    async fn take(scene: &Scene, theirs: TestVolume) -> Result<Self> {
        let cluster = &scene.cluster;
        theirs.unpublish(cluster).await?;
        let ours = scene.adopt(&theirs).await?;
        let before = Scene::write(&ours, 11)?;
        Ok(Self {
            theirs,
            ours,
            before,
        })
    }

    /// This node's volume is as this node left it, and goes on.
    async fn must_be_ours(&self, scene: &Scene) -> Result<()> {
        let (cluster, ours) = (&scene.cluster, &self.ours);
        Scene::must_hold(&self.before)?;
        let after = Scene::write(ours, 12)?;
        ours.expand_lun(cluster, 2 * GIB).await?;
        ours.expand_on_node(cluster, 2 * GIB).await?;
        ours.must_have(cluster, 2 * GIB)?;
        Scene::must_hold(&after)?;
        let device = scene.device(ours)?;
        ours.node_unpublish(cluster).await?;
        if let Content::Fs(fs) = ours.content {
            run("umount", [&ours.staging])?;
            let words = checker(fs).iter().map(OsStr::new);
            run("env", words.chain([device.as_os_str()]))?;
        }
        ensure!(
            !scene.lun_holds(ours, LATE)?,
            "the cut-off node's pages have arrived"
        );
        ours.unstage(cluster).await?;
        Ok(ours.unpublish(cluster).await?)
    }
}

/// No session of the first node has given up: its pages are still waiting.
async fn must_still_hope(worker: &Worker) -> Result<()> {
    let sessions = worker.remote.list("/sys/class/iscsi_session").await?;
    ensure!(sessions.len() == CONTENTS.len(), "{sessions:?}");
    for session in sessions {
        let state = format!("/sys/class/iscsi_session/{session}/state");
        let state = worker.remote.read(&state).await?;
        ensure!(state.trim() != "FREE", "{session} has given up too early");
    }
    Ok(())
}

/// How often a target has refused the second machine.
async fn refusals(worker: &Worker) -> Result<usize> {
    let log = worker.remote.read("/run/iscsid.log").await?;
    Ok(log.matches("login rejected").count())
}
