//! The fixture of the stories: a NAS that exports over iSCSI, a controller, the node of this VM, and the second VM.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use e2e::harness::inspect;
use e2e::harness::process::run;
use e2e::harness::test_cluster::{Plan, TestCluster};
use e2e::harness::test_volume::{Content, TestVolume};
use e2e::harness::tools::{fill, sha256};
use e2e::harness::until::until;

use crate::setup::{Export, SECOND, Setup};
use crate::worker;

/// The NAS's address on each of the two networks.
pub(crate) const PORTALS: [&str; 2] = ["10.77.0.1:3260", "10.78.0.1:3260"];
/// The replacement timeout in seconds: how long I/O waits for a NAS that does not respond. Short, to keep the stories short.
pub(crate) const REPLACEMENT: u64 = 15;
/// How many bytes a story writes: enough to see that data persist.
pub(crate) const WRITTEN: u64 = 1 << 20;

/// The read-only check command for a file system; the device is the last argument.
pub(crate) fn checker(fs: &str) -> &'static [&'static str] {
    match fs {
        "ext4" => &["e2fsck", "-f", "-n"],
        "xfs" => &["xfs_repair", "-n"],
        _ => &["btrfs", "check", "--readonly"],
    }
}

/// The test cluster and parameters of one story.
#[derive(Debug)]
pub(crate) struct Scene {
    pub(crate) cluster: TestCluster,
    pub(crate) export: Export,
    second: bool,
    pub(crate) cases: u32,
    pub(crate) seed: u64,
}

/// A user's data.
#[derive(Clone, Debug)]
pub(crate) struct Data {
    path: PathBuf,
    sha256: String,
}

impl Data {
    pub(crate) fn name(&self) -> &str {
        let name = self.path.file_name().and_then(|name| name.to_str());
        name.unwrap_or_default()
    }

    pub(crate) fn sha256(&self) -> &str {
        &self.sha256
    }
}

impl Scene {
    pub(crate) async fn start(setup: Setup, cases: u32, seed: u64) -> Result<Self> {
        let cluster = Plan::real(setup.export.name(), &PORTALS[..1])
            .start()
            .await?;
        Ok(Self {
            cluster,
            export: setup.export,
            second: setup.second,
            cases,
            seed,
        })
    }

    /// Replaces the cluster with another one, after the NAS has released its portals.
    pub(crate) async fn reset(&mut self, plan: Plan) -> Result<()> {
        self.cluster.nas.shut_down().await?;
        self.cluster = plan.start().await?;
        Ok(())
    }

    /// A volume of 1 GiB, attached to a pod on this node.
    pub(crate) async fn volume(&self, name: &str, content: Content) -> Result<TestVolume> {
        let mut volume = TestVolume::create(&self.cluster, name, e2e::GIB, content).await?;
        volume.attach(&self.cluster).await?;
        Ok(volume)
    }

    /// Attaches another node's volume to a pod on this node.
    pub(crate) async fn adopt(&self, theirs: &TestVolume) -> Result<TestVolume> {
        let home = self.cluster.folder().join("kubelet").join(&theirs.name);
        let mut ours = TestVolume {
            staging: home.join("staging"),
            target: home.join("target"),
            ..theirs.clone()
        };
        std::fs::create_dir_all(&ours.staging)?;
        ours.attach(&self.cluster).await?;
        Ok(ours)
    }

    pub(crate) fn device(&self, volume: &TestVolume) -> Result<PathBuf> {
        volume.device(&self.cluster)
    }

    /// Writes data to the pod's target path.
    pub(crate) fn write(volume: &TestVolume, seed: u64) -> Result<Data> {
        let path = volume.file(&format!("data-{seed}"));
        let sha256 = fill(&path, WRITTEN, seed)?;
        Ok(Data { path, sha256 })
    }

    /// Checks that the data on the disk are as written.
    pub(crate) fn must_hold(data: &Data) -> Result<()> {
        let is = sha256(&data.path, WRITTEN)?;
        ensure!(is == data.sha256, "{} has changed", data.path.display());
        Ok(())
    }

    /// Stops the NAS together with its iSCSI target. LIO runs in the kernel and cannot be killed: there the NAS shuts down.
    pub(crate) async fn stop_nas(&mut self) -> Result<()> {
        match self.export {
            Export::Tgt => {
                self.cluster.nas.kill();
                run("pkill", ["-KILL", "tgtd"]).map(drop)
            }
            Export::Lio => self.cluster.nas.shut_down().await.map(drop),
        }
    }

    /// The backing file of the LUN on the NAS.
    pub(crate) fn lun_file(&self, volume: &TestVolume) -> Result<PathBuf> {
        let luns = self.cluster.nas.folder().join("luns");
        let found = std::fs::read_dir(&luns)?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.to_string_lossy().contains(volume.uuid()));
        found.with_context(|| format!("no file of LUN {} in {}", volume.uuid(), luns.display()))
    }

    /// Whether a LUN contains these bytes anywhere.
    pub(crate) fn lun_contains(&self, volume: &TestVolume, words: &[u8]) -> Result<bool> {
        let snapshot = inspect::ImageSnapshot::take(&self.lun_file(volume)?)?;
        Ok(snapshot.contains(words))
    }

    /// Checks that nothing is left of any volume, here or on the NAS, and nothing of the NAS after it has shut down. Disks
    /// disappear shortly after their session.
    pub(crate) async fn teardown(&mut self) -> Result<()> {
        let leftovers = async || {
            let mut leftovers = self.cluster.leftovers().await?;
            leftovers.extend(disks()?);
            Ok(leftovers)
        };
        until("nothing is left", leftovers, Vec::is_empty).await?;
        ensure!(
            self.cluster.nas.shut_down().await?,
            "the NAS did not shut down cleanly"
        );
        let leftovers = exports()?;
        ensure!(
            leftovers.is_empty(),
            "the NAS has left {} behind",
            leftovers.join(", ")
        );
        Ok(())
    }

    /// Cleans up after a failed story, so that the next one starts with two clean VMs.
    pub(crate) async fn clean_up(&mut self) {
        for point in mounts_below(self.cluster.folder()).into_iter().rev() {
            let _ = run("umount", ["--lazy", &point]);
        }
        for words in [
            ["-m", "session", "-u"].as_slice(),
            &["-m", "node", "-o", "delete"],
        ] {
            let _ = run("iscsiadm", words);
        }
        let _ = self.cluster.nas.shut_down().await;
        let _ = run("pkill", ["-KILL", "tgtd"]);
        if self.second
            && let Err(error) = worker::clean_up().await
        {
            eprintln!("the second machine could not be cleaned up: {error:#}");
        }
    }

    /// Keeps the logs that are needed to debug a failure.
    pub(crate) async fn keep_logs(&self, folder: &Path) {
        let logs = [
            ("driver.log", self.cluster.folder().join("driver.log")),
            ("dsm-sim.log", self.cluster.nas.folder().join("dsm-sim.log")),
            ("iscsid.log", PathBuf::from("/run/iscsid.log")),
        ];
        let _ = std::fs::create_dir_all(folder);
        for (name, log) in logs {
            let _ = std::fs::copy(log, folder.join(name));
        }
        for (name, words) in [
            ("dmesg", vec!["dmesg"]),
            ("sessions", vec!["iscsiadm", "-m", "session", "-P", "3"]),
            ("block", vec!["lsblk", "-o", "NAME,SIZE,SERIAL,MOUNTPOINTS"]),
        ] {
            let output = run(words[0], &words[1..]).unwrap_or_else(|error| format!("{error:#}"));
            let _ = std::fs::write(folder.join(name), output);
        }
        if self.second {
            worker::keep_logs(&folder.join(SECOND)).await;
        }
    }
}

/// The mount points below a folder, in the order of mounting.
fn mounts_below(folder: &Path) -> Vec<String> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    points
        .filter(|point| Path::new(point).starts_with(folder))
        .map(str::to_owned)
        .collect()
}

/// The SCSI disks of this VM: each belongs to an iSCSI session.
pub(crate) fn disks() -> Result<Vec<String>> {
    let names = std::fs::read_dir("/sys/class/block").context("/sys/class/block")?;
    let names = names.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let names: Result<Vec<String>> = names.collect();
    Ok(names?
        .into_iter()
        .filter(|name| name.starts_with("sd") || name.starts_with("dm-"))
        .collect())
}

/// What the NAS still exports.
fn exports() -> Result<Vec<String>> {
    let mut leftovers = Vec::new();
    for (folder, ours) in [
        ("/sys/kernel/config/target/iscsi", "iqn."),
        ("/sys/kernel/config/target/core", "iblock_"),
    ] {
        let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
        leftovers.extend(names.filter(|name| name.starts_with(ours)));
    }
    leftovers.extend(
        run("losetup", ["--list", "--noheadings"])?
            .lines()
            .map(str::to_owned),
    );
    // pgrep fails if there is no match.
    leftovers.extend(
        run("pgrep", ["-l", "tgtd"])
            .unwrap_or_default()
            .lines()
            .map(str::to_owned),
    );
    Ok(leftovers)
}
