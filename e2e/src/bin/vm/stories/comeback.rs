//! A node loses its volumes to another node and gets them back: none of its stale state may be used.

use std::ffi::OsStr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use e2e::harness::process::run;
use e2e::harness::test_cluster::Plan;
use e2e::harness::test_volume::{Content, TestVolume};
use e2e::harness::until::{until, until_within};
use serde_json::json;
use tonic::{Code, Status};

use super::fence::{LATE, LONG_TIMEOUT, start_dirty};
use crate::scene::{Data, PORTALS, Scene, checker};
use crate::worker::{Worker, WorkerClients};

/// Timeout of a kubelet's retries: a pod that holds a device ends only when I/O fails.
const KUBELET: Duration = Duration::from_secs(150);
/// How often the kernel writes dirty pages, in hundredths of a second: its default.
const WRITEBACK: u32 = 500;
/// An hour, longer than any story. 0 would make it check as soon as a page is dirtied.
const NEVER: u32 = 360_000;

/// How the first node loses its volumes. It always happens by force, without NodeUnstage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    /// Its cables to the NAS (this many) are unplugged.
    CutOff(usize),
    /// The controller unpublishes, and the NAS keeps the sessions of deleted targets.
    SessionsGoOn,
}

/// The calls that a kubelet makes for the new pod.
#[derive(Clone, Copy, Debug)]
enum Calls {
    StageAndPublish,
    /// It believes that the volume is staged.
    PublishOnly,
}

pub(crate) async fn ext4(scene: &mut Scene) -> Result<String> {
    run_story(scene, &[Content::Fs("ext4")], Loss::CutOff(1)).await
}

pub(crate) async fn xfs(scene: &mut Scene) -> Result<String> {
    run_story(scene, &[Content::Fs("xfs")], Loss::CutOff(1)).await
}

pub(crate) async fn btrfs(scene: &mut Scene) -> Result<String> {
    run_story(scene, &[Content::Fs("btrfs")], Loss::CutOff(1)).await
}

pub(crate) async fn block(scene: &mut Scene) -> Result<String> {
    run_story(scene, &[Content::Block], Loss::CutOff(1)).await
}

pub(crate) async fn two_paths(scene: &mut Scene) -> Result<String> {
    let contents = [Content::Fs("ext4"), Content::Block];
    run_story(scene, &contents, Loss::CutOff(2)).await
}

pub(crate) async fn session_goes_on_ext4(scene: &mut Scene) -> Result<String> {
    run_story(scene, &[Content::Fs("ext4")], Loss::SessionsGoOn).await
}

pub(crate) async fn session_goes_on_xfs(scene: &mut Scene) -> Result<String> {
    run_story(scene, &[Content::Fs("xfs")], Loss::SessionsGoOn).await
}

pub(crate) async fn session_goes_on_btrfs(scene: &mut Scene) -> Result<String> {
    run_story(scene, &[Content::Fs("btrfs")], Loss::SessionsGoOn).await
}

pub(crate) async fn session_goes_on_block(scene: &mut Scene) -> Result<String> {
    run_story(scene, &[Content::Block], Loss::SessionsGoOn).await
}

async fn run_story(scene: &mut Scene, contents: &[Content], loss: Loss) -> Result<String> {
    let two_paths = loss == Loss::CutOff(2);
    if two_paths {
        scene
            .reset(Plan::real(scene.export.name(), &PORTALS))
            .await?;
    }
    if loss == Loss::SessionsGoOn {
        let switch = json!({"deleted_targets_keep_sessions": true});
        scene.cluster.nas.patch_settings(&switch).await?;
    }
    let worker = Worker::start(&["--replacement-timeout", LONG_TIMEOUT]).await?;
    if loss == Loss::SessionsGoOn {
        set_writeback(&worker, NEVER).await?;
    }
    let multipathd = if two_paths {
        Some(worker.multipathd().await?)
    } else {
        None
    };
    let mut volumes = Vec::new();
    for &content in contents {
        for calls in [Calls::StageAndPublish, Calls::PublishOnly] {
            volumes.push(Handover::start(scene, &worker, content, calls).await?);
        }
    }

    // The first node loses them while it has dirty pages.
    worker.run(&["sync"]).await?;
    match loss {
        Loss::CutOff(cables) => plug(&worker, cables, false).await?,
        Loss::SessionsGoOn => {}
    }
    for volume in &mut volumes {
        volume.pod = start_dirty(&worker, &volume.first).await?;
    }

    // The other node uses the volumes and finishes, while the first one keeps writing.
    let mut on_other = Vec::new();
    for volume in &volumes {
        volume.first.unpublish(&scene.cluster).await?;
    }
    for volume in &volumes {
        ensure!(
            !scene.lun_contains(&volume.first, LATE)?,
            "{}: the pages were written while the first node still had the volume: the story tests nothing",
            volume.first.name
        );
    }
    let alive = if loss == Loss::SessionsGoOn {
        Some(sessions_alive(&worker).await?)
    } else {
        None
    };
    if alive.is_some() {
        ensure!(alive == Some(volumes.len()), "{alive:?} sessions go on");
    }
    for volume in &volumes {
        on_other.push(volume.move_to_other(scene).await?);
    }
    if loss == Loss::SessionsGoOn {
        worker.run(&["sync"]).await?;
        for volume in &volumes {
            volume.must_not_write(&worker).await?;
        }
    }
    for other in &on_other {
        other.end(scene).await?;
    }

    // The network returns. Logins with the old target names must fail.
    if let Loss::CutOff(cables) = loss {
        let before = failed_logins(&worker).await?;
        plug(&worker, cables, true).await?;
        until(
            "the first node's login is refused",
            async || failed_logins(&worker).await,
            |now| *now > before,
        )
        .await?;
    }

    // The volumes come back to the first node.
    let mut errors = Vec::new();
    for (volume, other) in volumes.iter().zip(&on_other) {
        errors.extend(volume.give_back(scene, &worker, other).await?);
    }
    if loss == Loss::SessionsGoOn {
        set_writeback(&worker, WRITEBACK).await?;
    }
    if let Some(multipathd) = multipathd {
        worker.run(&["kill", &multipathd.to_string()]).await?;
    }
    worker.teardown().await?;
    let seen: Vec<&str> = contents.iter().map(|content| content.name()).collect();
    let alive = alive.map_or(String::new(), |alive| {
        format!("; {alive} sessions went on and wrote nothing")
    });
    let errors = if errors.is_empty() {
        "at once".to_owned()
    } else {
        format!("after {}", errors.join("; "))
    };
    Ok(format!(
        "{}: refused while the old pod had it, then the other node's data {errors}, clean, no late page{alive}",
        seen.join(", ")
    ))
}

/// A volume of the first node that another node has in between.
struct Handover {
    first: TestVolume,
    calls: Calls,
    /// The process with dirty pages.
    pod: u32,
}

/// The volume on the other node.
struct Other {
    volume: TestVolume,
    data: Data,
}

impl Handover {
    async fn start(scene: &Scene, worker: &Worker, content: Content, calls: Calls) -> Result<Self> {
        let how = match calls {
            Calls::StageAndPublish => "staged",
            Calls::PublishOnly => "published",
        };
        let name = format!("pvc-{}-{how}", content.name());
        let first = worker.volume(&scene.cluster, &name, content).await?;
        worker.write(&first.file("shared")).await?;
        let pod = 0;
        Ok(Self { first, calls, pod })
    }

    /// Attaches it to the other node, removes what the first one has written, and writes.
    async fn move_to_other(&self, scene: &Scene) -> Result<Other> {
        let volume = scene.adopt(&self.first).await?;
        if let Content::Fs(_) = volume.content {
            std::fs::remove_file(volume.file("shared"))?;
        }
        let data = Scene::write(&volume, 11)?;
        Ok(Other { volume, data })
    }

    /// Checks that a direct (unbuffered) write of the first node, through its stale path, fails.
    async fn must_not_write(&self, worker: &Worker) -> Result<()> {
        let late = String::from_utf8_lossy(LATE);
        let file = self.first.file("later");
        let written = worker
            .run(&[
                "sh",
                "-c",
                "yes \"$0\" | dd of=\"$1\" bs=64k count=4 seek=256 iflag=fullblock oflag=direct conv=notrunc,fsync",
                &late,
                &file.to_string_lossy(),
            ])
            .await;
        ensure!(
            written.is_err(),
            "{}: the first node could still write",
            self.first.name
        );
        Ok(())
    }

    /// Gives the volume back to the first node and makes the kubelet's calls. Returns what they had to wait for.
    async fn give_back(
        &self,
        scene: &Scene,
        worker: &Worker,
        other: &Other,
    ) -> Result<Vec<String>> {
        let (clients, name) = (worker.on(&scene.cluster), &self.first.name);
        let mut returned = self.first.clone();
        returned.target = self.first.target.with_file_name("target-of-the-next-pod");
        returned.publish(&clients).await?;
        ensure!(
            returned.publish_context["iqn"] != self.first.publish_context["iqn"],
            "{name}: the target name was reused"
        );

        self.must_be_refused(&returned, worker, &clients).await?;

        worker.run(&["kill", "-9", &self.pod.to_string()]).await?;
        let mut errors = Vec::new();
        let unpublish = async || self.first.node_unpublish(&clients).await;
        repeat(
            &format!("{name}: unpublish the old pod"),
            unpublish,
            &mut errors,
        )
        .await?;
        if let Calls::StageAndPublish = self.calls {
            let stage = async || returned.stage(&clients).await;
            repeat(&format!("{name}: stage"), stage, &mut errors).await?;
        }
        let publish = async || returned.node_publish(&clients).await;
        repeat(&format!("{name}: publish"), publish, &mut errors).await?;

        // The pod sees the right data, and its writes persist.
        let sum = worker.sha256(&returned.file(other.data.name())).await?;
        ensure!(
            sum.trim() == other.data.sha256(),
            "{name}: the first node does not see what the other one has written"
        );
        if let Content::Fs(_) = returned.content {
            let files = worker
                .remote
                .list(&returned.path().to_string_lossy())
                .await?;
            ensure!(
                !files.iter().any(|file| file == "shared"),
                "{name}: a file that the other node removed is back: {files:?}"
            );
        }
        worker.write(&returned.file("new")).await?;
        returned.node_unpublish(&clients).await?;
        returned.unstage(&clients).await?;
        returned.unpublish(&clients).await?;
        must_be_clean(scene, &returned)?;
        returned.delete(&clients).await?;
        Ok(errors)
    }

    /// Checks that while the old pod has the volume the call fails with its path and changes nothing.
    async fn must_be_refused(
        &self,
        returned: &TestVolume,
        worker: &Worker,
        clients: &WorkerClients<'_>,
    ) -> Result<()> {
        let before = NodeState::read(worker).await?;
        let answer = match self.calls {
            Calls::StageAndPublish => returned.stage(clients).await,
            Calls::PublishOnly => returned.node_publish(clients).await,
        };
        let Err(status) = answer else {
            bail!("{}: given to a pod while the old one has it", returned.name);
        };
        let old = self.first.target.to_string_lossy();
        ensure!(
            status.code() == Code::Aborted && status.message().contains(&*old),
            "{}: while the old pod has it: {status}",
            returned.name
        );
        let after = NodeState::read(worker).await?;
        ensure!(before == after, "was {before:?}, is {after:?}");
        Ok(())
    }
}

impl Other {
    /// Detaches the volume from the other node.
    async fn end(&self, scene: &Scene) -> Result<()> {
        let cluster = &scene.cluster;
        Scene::must_hold(&self.data)?;
        self.volume.detach(cluster).await?;
        must_be_clean(scene, &self.volume)
    }
}

/// Checks that no late page is on an idle LUN, and that its file system is clean.
fn must_be_clean(scene: &Scene, volume: &TestVolume) -> Result<()> {
    ensure!(
        !scene.lun_contains(volume, LATE)?,
        "{}: late pages have arrived",
        volume.name
    );
    if let Content::Fs(fs) = volume.content {
        let args = checker(fs).iter().map(OsStr::new);
        let file = scene.lun_file(volume)?;
        run("env", args.chain([file.as_os_str()]))
            .with_context(|| format!("{}: its file system", volume.name))?;
    }
    Ok(())
}

/// Retries like a kubelet until the call succeeds.
async fn repeat(
    what: &str,
    call: impl AsyncFn() -> Result<(), Status>,
    errors: &mut Vec<String>,
) -> Result<()> {
    let mut seen: Vec<String> = Vec::new();
    let probe = async || {
        let refusal = call().await.err();
        if let Some(status) = &refusal {
            let message = format!("{what}: {:?} {}", status.code(), status.message());
            if !seen.contains(&message) {
                seen.push(message);
            }
        }
        Ok(refusal.map(|status| status.to_string()))
    };
    until_within(KUBELET, what, probe, Option::is_none).await?;
    errors.append(&mut seen);
    Ok(())
}

/// A node's state of volumes.
#[derive(Debug, PartialEq, Eq)]
struct NodeState {
    mounts: Vec<String>,
    sessions: Vec<String>,
    /// Disks that were set offline.
    offline: Vec<String>,
}

impl NodeState {
    async fn read(worker: &Worker) -> Result<Self> {
        let mounts = worker.remote.read("/proc/self/mounts").await?;
        let mut sessions = worker.remote.list("/sys/class/iscsi_session").await?;
        sessions.sort();
        let mut offline = Vec::new();
        for disk in worker.remote.list("/sys/class/block").await? {
            let state = format!("/sys/class/block/{disk}/device/state");
            if disk.starts_with("sd") && worker.remote.read(&state).await?.trim() == "offline" {
                offline.push(disk);
            }
        }
        Ok(Self {
            // Without mount options, which change when a file system notices that its disk is gone.
            mounts: mounts
                .lines()
                .filter_map(|line| line.split(' ').nth(1))
                .map(str::to_owned)
                .collect(),
            sessions,
            offline,
        })
    }
}

/// How many sessions the first node considers logged in.
async fn sessions_alive(worker: &Worker) -> Result<usize> {
    let mut alive = 0;
    for session in worker.remote.list("/sys/class/iscsi_session").await? {
        let state = format!("/sys/class/iscsi_session/{session}/state");
        alive += usize::from(worker.remote.read(&state).await?.trim() == "LOGGED_IN");
    }
    Ok(alive)
}

async fn plug(worker: &Worker, cables: usize, plugged: bool) -> Result<()> {
    for cable in 0..cables {
        worker.cable(cable, plugged).await?;
    }
    Ok(())
}

/// Sets how often the first node's kernel writes dirty pages.
async fn set_writeback(worker: &Worker, centiseconds: u32) -> Result<()> {
    let setting = format!("vm.dirty_writeback_centisecs={centiseconds}");
    worker
        .run(&["sysctl", "-q", "-w", &setting])
        .await
        .map(drop)
}

/// How often the first node's logins failed: refused by a target, or if no target is left, by LIO's portal, or by tgt, which
/// closes the connection.
async fn failed_logins(worker: &Worker) -> Result<usize> {
    let log = worker.remote.read("/run/iscsid.log").await?;
    let refused = [
        "login rejected",
        "(Connection refused)",
        "TCP connection closed",
    ];
    Ok(refused
        .iter()
        .map(|message| log.matches(message).count())
        .sum())
}
