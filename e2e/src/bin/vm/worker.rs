//! The second VM as a node of the cluster: the shipped driver's node half there, and commands to inspect that node.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use e2e::harness::plugin::{Csi, CsiChannel, line};
use e2e::harness::test_cluster::TestCluster;
use e2e::harness::test_volume::{Content, TestVolume};
use e2e::harness::until::until;
use e2e::harness::writer::MORE;
use e2e::vm::guest::{MASKS, OF_MULTIPATH, PERSISTENT};
use e2e::vm::remote::Remote;
use proto::csi::controller_client::ControllerClient;
use proto::csi::node_client::NodeClient;

use crate::setup::{SECOND, SECOND_ADDRESS};

const SOCKET: &str = "/run/csi.sock";
const LOG: &str = "/run/driver.log";
/// Boot timeout.
const BOOT: Duration = Duration::from_secs(180);
/// A running VM reads a file in less time.
const ALIVE: Duration = Duration::from_secs(5);
/// The kernel creates a new id at each boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The second VM.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) remote: Remote,
    kubelet: PathBuf,
    driver: u32,
    node: NodeClient<CsiChannel>,
}

/// CSI clients: the cluster's controller, and the second VM's node.
pub(crate) struct WorkerClients<'a> {
    cluster: &'a TestCluster,
    worker: &'a Worker,
}

impl Csi for WorkerClients<'_> {
    fn controller(&self) -> ControllerClient<CsiChannel> {
        self.cluster.controller()
    }

    fn node(&self) -> NodeClient<CsiChannel> {
        self.worker.node.clone()
    }

    fn folder(&self) -> &Path {
        &self.worker.kubelet
    }
}

impl Worker {
    /// Waits for the VM and starts the driver there, with these additional arguments.
    pub(crate) async fn start(more: &[&str]) -> Result<Self> {
        Self::start_by(&[], more).await
    }

    /// Like `start`, but in a container.
    pub(crate) async fn start_contained(more: &[&str]) -> Result<Self> {
        Self::start_by(&["vm", "contained"], more).await
    }

    async fn start_by(starter: &[&str], more: &[&str]) -> Result<Self> {
        let remote = Remote::at(SECOND_ADDRESS);
        remote.ready().await?;
        let kubelet = Path::new(PERSISTENT).join("kubelet");
        remote
            .run(&["mkdir", "-p", &kubelet.to_string_lossy()])
            .await?;
        remote.run(&["rm", "-f", SOCKET]).await?;
        let endpoint = format!("unix://{SOCKET}");
        let usual = [
            "synology-csi",
            "--endpoint",
            &endpoint,
            "--mode",
            "node",
            "--node-id",
            SECOND,
            "--log-level",
            "debug",
        ];
        let driver = remote.start(&[starter, &usual, more].concat(), LOG).await?;
        let channel = async || Ok(remote.channel(SOCKET).await.ok());
        let channel = until("the other driver serves", channel, Option::is_some)
            .await?
            .context("a channel")?;
        Ok(Self {
            node: NodeClient::new(line(channel)),
            remote,
            kubelet,
            driver,
        })
    }

    pub(crate) fn on<'a>(&'a self, cluster: &'a TestCluster) -> WorkerClients<'a> {
        WorkerClients {
            cluster,
            worker: self,
        }
    }

    /// A volume of 1 GiB, attached to a pod on this node.
    pub(crate) async fn volume(
        &self,
        cluster: &TestCluster,
        name: &str,
        content: Content,
    ) -> Result<TestVolume> {
        let mut volume = TestVolume::create(cluster, name, e2e::GIB, content).await?;
        self.adopt(&mut volume).await?;
        volume.attach(&self.on(cluster)).await?;
        Ok(volume)
    }

    /// From now on the kubelet uses directories on this node for the volume.
    pub(crate) async fn adopt(&self, volume: &mut TestVolume) -> Result<()> {
        let home = self.kubelet.join(&volume.name);
        (volume.staging, volume.target) = (home.join("staging"), home.join("target"));
        self.make(&volume.staging).await
    }

    pub(crate) async fn make(&self, folder: &Path) -> Result<()> {
        self.run(&["mkdir", "-p", &folder.to_string_lossy()])
            .await
            .map(drop)
    }

    pub(crate) async fn run(&self, args: &[&str]) -> Result<String> {
        self.remote.run(args).await
    }

    /// Writes a file of pseudo-random data and syncs it; returns its SHA-256.
    pub(crate) async fn write(&self, file: &Path) -> Result<String> {
        let to = format!("of={}", file.display());
        self.run(&[
            "dd",
            "if=/dev/urandom",
            &to,
            "bs=64k",
            "count=16",
            "conv=fsync,notrunc",
            "status=none",
        ])
        .await?;
        self.sha256(file).await
    }

    /// Writes a file without syncing it.
    pub(crate) async fn write_unsynced(&self, file: &Path) -> Result<()> {
        let to = format!("of={}", file.display());
        self.run(&[
            "dd",
            "if=/dev/urandom",
            &to,
            "bs=64k",
            "count=8",
            "status=none",
        ])
        .await
        .map(drop)
    }

    /// The SHA-256 of a file or of the first MiB of a device, read from the disk.
    pub(crate) async fn sha256(&self, file: &Path) -> Result<String> {
        self.run(&["vm", "sum", &file.to_string_lossy()]).await
    }

    /// The device that is mounted at a path.
    pub(crate) async fn device(&self, point: &Path) -> Result<String> {
        let output = self
            .run(&[
                "findmnt",
                "-n",
                "-o",
                "SOURCE",
                "--mountpoint",
                &point.to_string_lossy(),
            ])
            .await?;
        Ok(output.trim().to_owned())
    }

    pub(crate) async fn device_bytes(&self, device: &str) -> Result<i64> {
        Ok(self
            .run(&["blockdev", "--getsize64", device])
            .await?
            .trim()
            .parse()?)
    }

    /// Makes the NAS unreachable. Syncs before, because a journal that is being committed at that moment would block every
    /// later write.
    pub(crate) async fn cut_off(&self) -> Result<()> {
        self.run(&["sync"]).await?;
        self.cable(0, false).await
    }

    /// Plugs cable `a` (0) or `b` (1) in, or unplugs it.
    pub(crate) async fn cable(&self, cable: usize, plugged: bool) -> Result<()> {
        let card = format!("eth{cable}");
        self.run(&[
            "ip",
            "link",
            "set",
            &card,
            if plugged { "up" } else { "down" },
        ])
        .await
        .map(drop)
    }

    /// Starts multipathd there, with its udev rules; returns its process id.
    pub(crate) async fn multipathd(&self) -> Result<u32> {
        let mask = format!("{MASKS}/{OF_MULTIPATH}");
        self.run(&["rm", &mask]).await?;
        self.run(&["udevadm", "control", "--reload"]).await?;
        let args = ["multipathd", "-d", "-s"];
        let daemon = self.remote.start(&args, "/run/multipathd.log").await?;
        let answers = async || Ok(self.run(&["multipathd", "show", "daemon"]).await.is_ok());
        until("multipathd answers", answers, |answers| *answers).await?;
        Ok(daemon)
    }

    /// Checks that nothing is left of any volume, and stops the driver.
    pub(crate) async fn teardown(self) -> Result<()> {
        let leftovers = async || self.leftovers().await;
        let leftovers = until(
            "nothing is left on the other machine",
            leftovers,
            Vec::is_empty,
        )
        .await;
        self.run(&["kill", "-9", &self.driver.to_string()]).await?;
        leftovers.map(drop)
    }

    async fn leftovers(&self) -> Result<Vec<String>> {
        let mut leftovers = Vec::new();
        for (folder, ours) in [
            ("/sys/class/iscsi_session", "session"),
            ("/etc/iscsi/nodes", "iqn."),
            ("/sys/class/block", "sd"),
            ("/sys/class/block", "dm-"),
        ] {
            let names = self.remote.list(folder).await.unwrap_or_default();
            leftovers.extend(names.into_iter().filter(|name| name.starts_with(ours)));
        }
        let mounts = self.remote.read("/proc/self/mounts").await?;
        let below = self.kubelet.to_string_lossy().into_owned();
        leftovers.extend(
            mounts
                .lines()
                .filter(|line| line.contains(&below))
                .map(str::to_owned),
        );
        Ok(leftovers)
    }
}

/// Keeps the second VM's logs for debugging a failure.
pub(crate) async fn keep_logs(folder: &Path) {
    let remote = Remote::at(SECOND_ADDRESS);
    let _ = std::fs::create_dir_all(folder);
    for log in [
        LOG,
        "/run/iscsid.log",
        "/run/multipathd.log",
        "/run/writer.log",
    ] {
        if let (Ok(text), Some(name)) = (remote.read(log).await, Path::new(log).file_name()) {
            let _ = std::fs::write(folder.join(name), text);
        }
    }
    if let Ok(text) = remote.run(&["dmesg"]).await {
        let _ = std::fs::write(folder.join("dmesg"), text);
    }
}

/// Cuts the power of the second VM and waits until it is up again. The driver must be started again.
pub(crate) async fn power_cycle() -> Result<()> {
    let remote = Remote::at(SECOND_ADDRESS);
    let boot = remote.read(BOOT_ID).await?;
    // The VM dies before it can respond.
    let reset = remote.start_and_forget(&["vm", "reset"]);
    let _ = tokio::time::timeout(ALIVE, reset).await;
    let started = Instant::now();
    while started.elapsed() < BOOT {
        let fresh = async || {
            // A request in its last moment is never answered: the rebooted VM does not know the connection.
            let now = tokio::time::timeout(ALIVE, remote.read(BOOT_ID)).await;
            Ok(now.is_ok_and(|now| now.is_ok_and(|now| now != boot)))
        };
        if until("the other machine is up again", fresh, |fresh| *fresh)
            .await
            .is_ok()
        {
            return Ok(());
        }
    }
    bail!("the other machine did not come up again within {BOOT:?}")
}

/// Cleans up the second VM after a failed story.
pub(crate) async fn clean_up() -> Result<()> {
    power_cycle().await?;
    let remote = Remote::at(SECOND_ADDRESS);
    for folder in ["kubelet", "iscsi/nodes", "iscsi/send_targets"] {
        let folder = format!("{PERSISTENT}/{folder}");
        remote.run(&["rm", "-rf", &folder]).await?;
    }
    Ok(())
}

/// A writer on the second VM that verifies what it reads.
#[derive(Debug)]
pub(crate) struct Writer<'a> {
    worker: &'a Worker,
    pid: String,
    progress: String,
}

impl<'a> Writer<'a> {
    pub(crate) async fn start(worker: &'a Worker, file: &Path) -> Result<Self> {
        let progress = format!(
            "/run/writer-{}",
            file.display().to_string().replace('/', "_")
        );
        worker.run(&["rm", "-f", &progress]).await?;
        let pid = worker
            .remote
            .start(
                &["vm", "write", &file.to_string_lossy(), &progress],
                "/run/writer.log",
            )
            .await?;
        Ok(Self {
            worker,
            pid: pid.to_string(),
            progress,
        })
    }

    async fn written(&self) -> Result<u64> {
        let output = self
            .worker
            .remote
            .read(&self.progress)
            .await
            .unwrap_or_default();
        ensure!(!output.starts_with("failed"), "the writer there {output}");
        Ok(output.trim().parse().unwrap_or_default())
    }

    pub(crate) async fn must_keep_writing(&self) -> Result<()> {
        let before = self.written().await?;
        until(
            "the writer there writes",
            async || self.written().await,
            |now| *now >= before + MORE,
        )
        .await
        .map(drop)
    }

    pub(crate) async fn stop(self) -> Result<()> {
        self.worker.run(&["kill", &self.pid]).await?;
        let output = async || self.worker.remote.read(&self.progress).await;
        let output = until("the writer there stops", output, |output| {
            output.starts_with("stopped") || output.starts_with("failed")
        })
        .await?;
        ensure!(output.starts_with("stopped"), "the writer there {output}");
        Ok(())
    }
}
