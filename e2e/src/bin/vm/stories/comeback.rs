//! A node loses its volumes to another and gets them back: of what it had before, nothing may count.

use std::ffi::OsStr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use e2e::harness::process::run;
use e2e::harness::test_cluster::Plan;
use e2e::harness::test_volume::{Content, TestVolume};
use e2e::harness::until::{until, until_within};
use serde_json::json;
use tonic::{Code, Status};

use super::fence::{GIVES_UP, LATE, start_dirty};
use crate::scene::{Data, PORTALS, Scene, checker};
use crate::worker::{There, Worker};

/// A pod that holds a device ends when I/O is given up, and a kubelet calls again until it is done.
const KUBELET: Duration = Duration::from_secs(150);
/// How often the kernel writes what is dirty, in hundredths of a second: its own default.
const WRITEBACK: u32 = 500;
/// Longer than any story: an hour. 0 would let it look at once whenever a page gets dirty.
const NEVER: u32 = 360_000;

/// How the first node loses its volumes. Its pods always lose them by force: nobody unstages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    /// It is cut off from the NAS, over so many cables.
    CutOff(usize),
    /// The controller says so, and the NAS lets the sessions of deleted targets go on.
    SessionsGoOn,
}

/// What a kubelet calls for the new pod.
#[derive(Clone, Copy, Debug)]
enum Calls {
    StageAndPublish,
    /// It takes the volume for staged.
    PublishOnly,
}

pub(crate) async fn ext4(scene: &mut Scene) -> Result<String> {
    comes_back(scene, &[Content::Fs("ext4")], Loss::CutOff(1)).await
}

pub(crate) async fn xfs(scene: &mut Scene) -> Result<String> {
    comes_back(scene, &[Content::Fs("xfs")], Loss::CutOff(1)).await
}

pub(crate) async fn btrfs(scene: &mut Scene) -> Result<String> {
    comes_back(scene, &[Content::Fs("btrfs")], Loss::CutOff(1)).await
}

pub(crate) async fn block(scene: &mut Scene) -> Result<String> {
    comes_back(scene, &[Content::Block], Loss::CutOff(1)).await
}

pub(crate) async fn two_paths(scene: &mut Scene) -> Result<String> {
    let contents = [Content::Fs("ext4"), Content::Block];
    comes_back(scene, &contents, Loss::CutOff(2)).await
}

pub(crate) async fn session_goes_on_ext4(scene: &mut Scene) -> Result<String> {
    comes_back(scene, &[Content::Fs("ext4")], Loss::SessionsGoOn).await
}

pub(crate) async fn session_goes_on_xfs(scene: &mut Scene) -> Result<String> {
    comes_back(scene, &[Content::Fs("xfs")], Loss::SessionsGoOn).await
}

pub(crate) async fn session_goes_on_btrfs(scene: &mut Scene) -> Result<String> {
    comes_back(scene, &[Content::Fs("btrfs")], Loss::SessionsGoOn).await
}

pub(crate) async fn session_goes_on_block(scene: &mut Scene) -> Result<String> {
    comes_back(scene, &[Content::Block], Loss::SessionsGoOn).await
}

async fn comes_back(scene: &mut Scene, contents: &[Content], loss: Loss) -> Result<String> {
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
    let worker = Worker::start(&["--replacement-timeout", GIVES_UP]).await?;
    if loss == Loss::SessionsGoOn {
        writeback(&worker, NEVER).await?;
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

    // The first node loses them with pages that are still dirty.
    worker.run(&["sync"]).await?;
    match loss {
        Loss::CutOff(cables) => plug(&worker, cables, false).await?,
        Loss::SessionsGoOn => {}
    }
    for volume in &mut volumes {
        volume.pod = start_dirty(&worker, &volume.first).await?;
    }

    // The other node uses them and is done with them, whatever the first one writes meanwhile.
    let mut others = Vec::new();
    for volume in &volumes {
        volume.first.unpublish(&scene.cluster).await?;
    }
    for volume in &volumes {
        ensure!(
            !scene.lun_holds(&volume.first, LATE)?,
            "{}: the pages were written while the first node still had the volume: nothing can be told",
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
        others.push(volume.take(scene).await?);
    }
    if loss == Loss::SessionsGoOn {
        worker.run(&["sync"]).await?;
        for volume in &volumes {
            volume.must_not_write(&worker).await?;
        }
    }
    for other in &others {
        other.end(scene).await?;
    }

    // The network returns. Nobody may log in under the old names any more.
    if let Loss::CutOff(cables) = loss {
        let before = knocks(&worker).await?;
        plug(&worker, cables, true).await?;
        until(
            "the first node is turned away",
            async || knocks(&worker).await,
            |now| *now > before,
        )
        .await?;
    }

    // And the volumes come back.
    let mut waited_for = Vec::new();
    for (volume, other) in volumes.iter().zip(&others) {
        waited_for.extend(volume.come_back(scene, &worker, other).await?);
    }
    if loss == Loss::SessionsGoOn {
        writeback(&worker, WRITEBACK).await?;
    }
    if let Some(multipathd) = multipathd {
        worker.run(&["kill", &multipathd.to_string()]).await?;
    }
    worker.strike().await?;
    let seen: Vec<&str> = contents.iter().map(|content| content.name()).collect();
    let alive = alive.map_or(String::new(), |alive| {
        format!("; {alive} sessions went on and wrote nothing")
    });
    let waited_for = if waited_for.is_empty() {
        "at once".to_owned()
    } else {
        format!("after {}", waited_for.join("; "))
    };
    Ok(format!(
        "{}: refused while the old pod had it, then the other node's data {waited_for}, clean, no late page{alive}",
        seen.join(", ")
    ))
}

/// A volume of the first node, that another one has in between.
struct Handover {
    first: TestVolume,
    calls: Calls,
    /// The process that has dirty pages.
    pod: u32,
}

/// The other node has it.
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
        let first = worker.volume(scene, &name, content).await?;
        worker.write(&first.file("shared")).await?;
        let pod = 0;
        Ok(Self { first, calls, pod })
    }

    /// The other node attaches it, removes what the first one has written, and writes.
    async fn take(&self, scene: &Scene) -> Result<Other> {
        let volume = scene.adopt(&self.first).await?;
        if let Content::Fs(_) = volume.content {
            std::fs::remove_file(volume.file("shared"))?;
        }
        let data = Scene::write(&volume, 11)?;
        Ok(Other { volume, data })
    }

    /// A write of the first node, through whatever it still has, that does not wait in memory.
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

    /// The volume is given back to the first node, whose kubelet does what it does. Answers what it had to wait for.
    async fn come_back(
        &self,
        scene: &Scene,
        worker: &Worker,
        other: &Other,
    ) -> Result<Vec<String>> {
        let (there, name) = (worker.on(&scene.cluster), &self.first.name);
        let mut again = self.first.clone();
        again.target = self.first.target.with_file_name("target-of-the-next-pod");
        again.publish(&there).await?;
        ensure!(
            again.publish_context["iqn"] != self.first.publish_context["iqn"],
            "{name}: the name has come back"
        );

        self.must_be_refused(&again, worker, &there).await?;

        worker.run(&["kill", "-9", &self.pod.to_string()]).await?;
        let mut waited_for = Vec::new();
        let unpublish = async || self.first.node_unpublish(&there).await;
        repeat(
            &format!("{name}: unpublish the old pod"),
            unpublish,
            &mut waited_for,
        )
        .await?;
        if let Calls::StageAndPublish = self.calls {
            let stage = async || again.stage(&there).await;
            repeat(&format!("{name}: stage"), stage, &mut waited_for).await?;
        }
        let publish = async || again.node_publish(&there).await;
        repeat(&format!("{name}: publish"), publish, &mut waited_for).await?;

        // What a pod sees, and what it writes stays.
        let held = worker.sha256(&again.file(other.data.name())).await?;
        ensure!(
            held.trim() == other.data.sha256(),
            "{name}: the first node does not see what the other one has written"
        );
        if let Content::Fs(_) = again.content {
            let files = worker.remote.list(&again.path().to_string_lossy()).await?;
            ensure!(
                !files.iter().any(|file| file == "shared"),
                "{name}: a file that the other node removed is back: {files:?}"
            );
        }
        worker.write(&again.file("new")).await?;
        again.node_unpublish(&there).await?;
        again.unstage(&there).await?;
        again.unpublish(&there).await?;
        must_be_clean(scene, &again)?;
        again.delete(&there).await?;
        Ok(waited_for)
    }

    /// While the old pod has it nothing is touched, and the answer says where it is.
    async fn must_be_refused(
        &self,
        again: &TestVolume,
        worker: &Worker,
        there: &There<'_>,
    ) -> Result<()> {
        let before = NodeState::look(worker).await?;
        let answer = match self.calls {
            Calls::StageAndPublish => again.stage(there).await,
            Calls::PublishOnly => again.node_publish(there).await,
        };
        let Err(status) = answer else {
            bail!("{}: given to a pod while the old one has it", again.name);
        };
        let old = self.first.target.to_string_lossy();
        ensure!(
            status.code() == Code::Aborted && status.message().contains(&*old),
            "{}: while the old pod has it: {status}",
            again.name
        );
        let after = NodeState::look(worker).await?;
        ensure!(before == after, "was {before:?}, is {after:?}");
        Ok(())
    }
}

impl Other {
    /// Ends the other node's use.
    async fn end(&self, scene: &Scene) -> Result<()> {
        let cluster = &scene.cluster;
        Scene::must_hold(&self.data)?;
        self.volume.detach(cluster).await?;
        must_be_clean(scene, &self.volume)
    }
}

/// No late page is on a LUN that nobody uses, and its file system is in order.
fn must_be_clean(scene: &Scene, volume: &TestVolume) -> Result<()> {
    ensure!(
        !scene.lun_holds(volume, LATE)?,
        "{}: late pages have arrived",
        volume.name
    );
    if let Content::Fs(fs) = volume.content {
        let words = checker(fs).iter().map(OsStr::new);
        let file = scene.lun_file(volume)?;
        run("env", words.chain([file.as_os_str()]))
            .with_context(|| format!("{}: its file system", volume.name))?;
    }
    Ok(())
}

/// As a kubelet does: again until it is done.
async fn repeat(
    what: &str,
    call: impl AsyncFn() -> Result<(), Status>,
    waited_for: &mut Vec<String>,
) -> Result<()> {
    let mut seen: Vec<String> = Vec::new();
    let probe = async || {
        let refusal = call().await.err();
        if let Some(status) = &refusal {
            let words = format!("{what}: {:?} {}", status.code(), status.message());
            if !seen.contains(&words) {
                seen.push(words);
            }
        }
        Ok(refusal.map(|status| status.to_string()))
    };
    until_within(KUBELET, what, probe, Option::is_none).await?;
    waited_for.append(&mut seen);
    Ok(())
}

/// What a node has of volumes.
#[derive(Debug, PartialEq, Eq)]
struct NodeState {
    mounts: Vec<String>,
    sessions: Vec<String>,
    /// Disks that take nothing because somebody wants it so.
    offline: Vec<String>,
}

impl NodeState {
    async fn look(worker: &Worker) -> Result<Self> {
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
            // Options change when a file system notices that its disk is gone.
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

/// How many sessions the first node takes for working.
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

/// How often the first node writes what is dirty without being asked.
async fn writeback(worker: &Worker, centiseconds: u32) -> Result<()> {
    let setting = format!("vm.dirty_writeback_centisecs={centiseconds}");
    worker
        .run(&["sysctl", "-q", "-w", &setting])
        .await
        .map(drop)
}

/// How often the first node was turned away: by a target, or where there is none left, by LIO's portal, or by tgt, which hangs up.
async fn knocks(worker: &Worker) -> Result<usize> {
    let log = worker.remote.read("/run/iscsid.log").await?;
    let refused = [
        "login rejected",
        "(Connection refused)",
        "TCP connection closed",
    ];
    Ok(refused.iter().map(|words| log.matches(words).count()).sum())
}
