//! The fixture of a story: an orchestrator, workloads (a claim with a pod), and waits with timeouts.

use std::cell::RefCell;
use std::fmt::Debug;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::GIB;
use e2e::harness::until::until_within;

use crate::co::{Claim, ClaimSeen, Class, Co, Half, Pod, PodSeen, VolumeSeen};
use crate::times::Times;

/// Timeout of every wait: kubelets and sidecars wait up to a minute before they retry.
pub(crate) const WAIT_TIMEOUT: Duration = Duration::from_secs(240);

/// A StorageClass of the stories: the suffix of its name, its parameters as the body of a YAML flow mapping, and its
/// `reclaimPolicy`.
pub(crate) fn class(name: &str, parameters: &str, reclaim: &str) -> Result<Class> {
    Class::read(&format!(
        "apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {{name: stories-{name}}}
provisioner: csi.synology.com
parameters: {{{parameters}}}
allowVolumeExpansion: true
reclaimPolicy: {reclaim}
"
    ))
}

/// On the NAS's large volume, thin, with this file system.
fn class_of(fs_type: &str) -> Result<Class> {
    let parameters = format!("location: /volume1, type: BLUN, fsType: {fs_type}");
    class(fs_type, &parameters, "Delete")
}

/// A claim that is used by one pod; both have the same name.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    pub(crate) claim: Claim,
    pub(crate) pod: Pod,
}

impl Workload {
    /// With a claim of this class and size, used as a directory by a pod on any node.
    pub(crate) fn new(name: &str, class: &Class, bytes: i64) -> Self {
        let name = name.to_owned();
        Self {
            claim: Claim {
                name: name.clone(),
                class: class.name.clone(),
                bytes,
                block: false,
            },
            pod: Pod {
                name: name.clone(),
                claim: name,
                block: false,
                node: None,
                script: None,
            },
        }
    }

    /// The same as a block device.
    pub(crate) fn block(mut self) -> Self {
        (self.claim.block, self.pod.block) = (true, true);
        self
    }

    /// The same on this node.
    pub(crate) fn on(mut self, node: &str) -> Self {
        self.pod.node = Some(node.to_owned());
        self
    }

    /// The same with a pod that runs this script.
    pub(crate) fn script(mut self, script: &'static str) -> Self {
        self.pod.script = Some(script);
        self
    }

    pub(crate) fn name(&self) -> &str {
        &self.claim.name
    }

    /// The path of the data file, or of the device, in the pod's shell.
    fn data(&self) -> &'static str {
        if self.claim.block { "$V" } else { "$V/data" }
    }
}

/// The orchestrator, and the measurements.
pub(crate) struct Scene<C> {
    pub(crate) co: C,
    /// The times of all stories' expansions.
    pub(crate) times: RefCell<Times>,
}

impl<C: Co> Scene<C> {
    /// Waits with [`WAIT_TIMEOUT`].
    pub(crate) async fn until<T: Debug>(
        &self,
        what: &str,
        probe: impl AsyncFnMut() -> Result<T>,
        holds: impl Fn(&T) -> bool,
    ) -> Result<T> {
        until_within(WAIT_TIMEOUT, what, probe, holds).await
    }

    /// Creates a StorageClass, unless it exists.
    pub(crate) async fn class(&self, fs_type: &str) -> Result<Class> {
        let class = class_of(fs_type)?;
        self.co.class(&class).await?;
        Ok(class)
    }

    /// Creates claim and pod, and waits until the pod runs.
    pub(crate) async fn begin(&self, workload: &Workload) -> Result<()> {
        self.co.claim(&workload.claim).await?;
        self.start(workload).await.map(drop)
    }

    /// Starts the pod, and waits until it runs.
    pub(crate) async fn start(&self, workload: &Workload) -> Result<PodSeen> {
        self.co.start(&workload.pod).await?;
        self.wait_until_running(workload).await
    }

    /// Waits until the pod runs.
    pub(crate) async fn wait_until_running(&self, workload: &Workload) -> Result<PodSeen> {
        let poll = async || self.co.see_pod(workload.name()).await;
        let runs = |seen: &Option<PodSeen>| seen.as_ref().is_some_and(|seen| seen.runs);
        let seen = self.until("the pod runs", poll, runs).await?;
        seen.context("a pod")
    }

    /// Stops the pod, and waits until it is gone.
    pub(crate) async fn stop(&self, workload: &Workload) -> Result<()> {
        self.co.stop(workload.name()).await?;
        let poll = async || self.co.see_pod(workload.name()).await;
        self.until("the pod has gone", poll, Option::is_none)
            .await?;
        Ok(())
    }

    /// Stops the pod, and waits until the volume is detached: a pod that starts before that finds it still staged.
    pub(crate) async fn stop_and_detach(&self, workload: &Workload) -> Result<()> {
        let volume = self
            .wait_until_bound(workload)
            .await?
            .volume
            .context("a volume")?;
        self.stop(workload).await?;
        let poll = async || self.volume(&volume).await;
        let detached =
            |seen: &Option<VolumeSeen>| seen.as_ref().is_none_or(|volume| volume.nodes.is_empty());
        self.until("the volume is detached", poll, detached).await?;
        Ok(())
    }

    /// Stops the pod, deletes the claim, and waits until both and the volume are gone.
    pub(crate) async fn end(&self, workload: &Workload) -> Result<()> {
        let volume = self
            .wait_until_bound(workload)
            .await?
            .volume
            .context("a volume")?;
        self.stop(workload).await?;
        self.unclaim(workload).await?;
        let poll = async || self.volume(&volume).await;
        self.until("the volume has gone", poll, Option::is_none)
            .await?;
        Ok(())
    }

    /// Deletes the claim, and waits until it is gone.
    pub(crate) async fn unclaim(&self, workload: &Workload) -> Result<()> {
        self.co.unclaim(workload.name()).await?;
        let poll = async || self.co.see_claim(workload.name()).await;
        self.until("the claim has gone", poll, Option::is_none)
            .await?;
        Ok(())
    }

    /// Waits until the claim is bound.
    pub(crate) async fn wait_until_bound(&self, workload: &Workload) -> Result<ClaimSeen> {
        self.claim(workload, "the claim is bound", |seen| {
            seen.volume.is_some() && seen.capacity > 0
        })
        .await
    }

    /// Waits until the claim fulfills `holds`.
    pub(crate) async fn claim(
        &self,
        workload: &Workload,
        what: &str,
        holds: impl Fn(&ClaimSeen) -> bool,
    ) -> Result<ClaimSeen> {
        let poll = async || {
            let seen = self.co.see_claim(workload.name()).await?;
            seen.with_context(|| format!("there is no claim {}", workload.name()))
        };
        self.until(what, poll, holds).await
    }

    /// The driver's volume with this name.
    pub(crate) async fn volume(&self, name: &str) -> Result<Option<VolumeSeen>> {
        let volumes = self.co.see_volumes().await?;
        Ok(volumes.into_iter().find(|volume| volume.name == name))
    }

    /// Writes random data and returns their digest.
    pub(crate) async fn fill(&self, workload: &Workload, mib: u32) -> Result<String> {
        let data = workload.data();
        let write = format!("dd if=/dev/urandom of={data} bs=1M count={mib} conv=fsync");
        self.co.run(workload.name(), &write).await?;
        self.digest(workload, mib).await
    }

    /// The digest of the written data.
    pub(crate) async fn digest(&self, workload: &Workload, mib: u32) -> Result<String> {
        let data = workload.data();
        let read = format!("dd if={data} bs=1M count={mib} | sha256sum");
        let printed = self.co.run(workload.name(), &read).await?;
        let digest = printed.split(' ').next().unwrap_or_default().to_owned();
        ensure!(digest.len() == 64, "{printed}");
        Ok(digest)
    }

    /// The size that the pod sees: of the file system or the device, bytes.
    pub(crate) async fn size(&self, workload: &Workload) -> Result<i64> {
        if workload.claim.block {
            let printed = self
                .co
                .run(workload.name(), "blockdev --getsize64 $V")
                .await?;
            return Ok(printed.parse()?);
        }
        let printed = self
            .co
            .run(workload.name(), "df -Pk $V | tail -n 1")
            .await?;
        let kib: i64 = printed
            .split_whitespace()
            .nth(1)
            .with_context(|| printed.clone())?
            .parse()?;
        Ok(kib * 1024)
    }

    /// Edits the claim and waits until the pod sees the new size; returns how long that took.
    pub(crate) async fn grow(&self, workload: &Workload, bytes: i64) -> Result<Duration> {
        let edited = Instant::now();
        self.co.resize(workload.name(), bytes).await?;
        self.wait_for_size(workload, bytes).await?;
        Ok(edited.elapsed())
    }

    /// Waits until the pod sees this many bytes. A file system reserves some, but less than an edit adds.
    pub(crate) async fn wait_for_size(&self, workload: &Workload, bytes: i64) -> Result<i64> {
        let least = if workload.claim.block {
            bytes
        } else {
            bytes - (bytes / 10).min(GIB / 2)
        };
        let poll = async || self.size(workload).await;
        let seen = self.until("the pod sees the new size", poll, |seen| *seen >= least);
        seen.await
    }

    /// Waits until the claim's capacity is the requested size.
    pub(crate) async fn wait_for_capacity(
        &self,
        workload: &Workload,
        bytes: i64,
    ) -> Result<ClaimSeen> {
        self.claim(workload, "the claim has what it asks for", |seen| {
            seen.capacity >= bytes && seen.conditions.is_empty()
        })
        .await
    }

    /// Waits until all parts of the driver are up.
    pub(crate) async fn driver_is_up(&self) -> Result<()> {
        let poll = async || self.co.driver_is_up().await;
        self.until("the driver is up", poll, |up| *up).await?;
        Ok(())
    }

    /// Kills parts of the driver, and waits until they are up again.
    pub(crate) async fn kill(&self, halves: &[Half]) -> Result<()> {
        for half in halves {
            self.co.kill(half).await?;
        }
        self.driver_is_up().await
    }

    /// Waits until the NAS responds.
    pub(crate) async fn nas_is_up(&self) -> Result<()> {
        let poll = async || Ok(self.co.nas("state", None).await.is_ok());
        self.until("the NAS is up", poll, |up| *up).await?;
        Ok(())
    }

    /// The number of LUNs on the NAS.
    pub(crate) async fn luns(&self) -> Result<usize> {
        let state = self.co.nas("state", None).await?;
        Ok(state["luns"].as_array().context("luns")?.len())
    }

    /// Another node than this one, if there is one.
    pub(crate) async fn other_node(&self, than: &str) -> Result<Option<String>> {
        let nodes = self.co.nodes().await?;
        Ok(nodes.into_iter().find(|node| node != than))
    }
}
