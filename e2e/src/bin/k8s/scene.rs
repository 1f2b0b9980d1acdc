//! What a story has at hand: an orchestrator, names of its own, and waits with bounds.

use std::cell::RefCell;
use std::fmt::Debug;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::GIB;
use e2e::harness::until::until_within;

use crate::co::{Claim, ClaimSeen, Class, Co, Half, Pod, PodSeen, VolumeSeen};
use crate::times::Times;

/// How long anything may take: kubelets and sidecars wait up to a minute before they ask again.
pub(crate) const PATIENCE: Duration = Duration::from_secs(240);

/// A StorageClass of the stories: the end of its name, its parameters as YAML has them between braces, and its `reclaimPolicy`.
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

/// A claim that is used by one pod; both have one name.
#[derive(Clone, Debug)]
pub(crate) struct Used {
    pub(crate) claim: Claim,
    pub(crate) pod: Pod,
}

impl Used {
    /// Of a class.
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
                works: None,
            },
        }
    }

    /// The same as a device.
    pub(crate) fn block(mut self) -> Self {
        (self.claim.block, self.pod.block) = (true, true);
        self
    }

    /// The same on this node.
    pub(crate) fn on(mut self, node: &str) -> Self {
        self.pod.node = Some(node.to_owned());
        self
    }

    /// The same with something to do.
    pub(crate) fn works(mut self, script: &'static str) -> Self {
        self.pod.works = Some(script);
        self
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.claim.name
    }

    /// The name of the file, or the device, in the pod's shell.
    fn data(&self) -> &'static str {
        if self.claim.block { "$V" } else { "$V/data" }
    }
}

/// Where a story is told.
pub(crate) struct Scene<C> {
    pub(crate) co: C,
    /// Expansions of all stories.
    pub(crate) times: RefCell<Times>,
}

impl<C: Co> Scene<C> {
    /// Waits for what a story waits for.
    pub(crate) async fn until<T: Debug>(
        &self,
        what: &str,
        probe: impl AsyncFnMut() -> Result<T>,
        holds: impl Fn(&T) -> bool,
    ) -> Result<T> {
        until_within(PATIENCE, what, probe, holds).await
    }

    /// Makes a class, if it is not there.
    pub(crate) async fn class(&self, fs_type: &str) -> Result<Class> {
        let class = class_of(fs_type)?;
        self.co.class(&class).await?;
        Ok(class)
    }

    /// Makes claim and pod, and waits until the pod runs.
    pub(crate) async fn begin(&self, used: &Used) -> Result<()> {
        self.co.claim(&used.claim).await?;
        self.start(used).await.map(drop)
    }

    /// Starts the pod, and waits until it runs.
    pub(crate) async fn start(&self, used: &Used) -> Result<PodSeen> {
        self.co.start(&used.pod).await?;
        self.runs(used).await
    }

    /// Waits until the pod runs.
    pub(crate) async fn runs(&self, used: &Used) -> Result<PodSeen> {
        let look = async || self.co.see_pod(used.name()).await;
        let runs = |seen: &Option<PodSeen>| seen.as_ref().is_some_and(|seen| seen.runs);
        let seen = self.until("the pod runs", look, runs).await?;
        seen.context("a pod")
    }

    /// Stops the pod, and waits until it has gone.
    pub(crate) async fn stop(&self, used: &Used) -> Result<()> {
        self.co.stop(used.name()).await?;
        let look = async || self.co.see_pod(used.name()).await;
        self.until("the pod has gone", look, Option::is_none)
            .await?;
        Ok(())
    }

    /// Stops the pod, and waits until its node has let the volume go: a pod that comes before that finds it staged as it was.
    pub(crate) async fn stop_and_detach(&self, used: &Used) -> Result<()> {
        let volume = self.bound(used).await?.volume.context("a volume")?;
        self.stop(used).await?;
        let look = async || self.volume(&volume).await;
        let detached =
            |seen: &Option<VolumeSeen>| seen.as_ref().is_none_or(|volume| volume.nodes.is_empty());
        self.until("the volume is detached", look, detached).await?;
        Ok(())
    }

    /// Stops the pod, deletes the claim, and waits until both and the volume have gone.
    pub(crate) async fn end(&self, used: &Used) -> Result<()> {
        let volume = self.bound(used).await?.volume.context("a volume")?;
        self.stop(used).await?;
        self.unclaim(used).await?;
        let look = async || self.volume(&volume).await;
        self.until("the volume has gone", look, Option::is_none)
            .await?;
        Ok(())
    }

    /// Deletes the claim, and waits until it has gone.
    pub(crate) async fn unclaim(&self, used: &Used) -> Result<()> {
        self.co.unclaim(used.name()).await?;
        let look = async || self.co.see_claim(used.name()).await;
        self.until("the claim has gone", look, Option::is_none)
            .await?;
        Ok(())
    }

    /// Waits until the claim has a volume.
    pub(crate) async fn bound(&self, used: &Used) -> Result<ClaimSeen> {
        self.claim(used, "the claim is bound", |seen| {
            seen.volume.is_some() && seen.capacity > 0
        })
        .await
    }

    /// Waits until the claim is as `holds` wants it.
    pub(crate) async fn claim(
        &self,
        used: &Used,
        what: &str,
        holds: impl Fn(&ClaimSeen) -> bool,
    ) -> Result<ClaimSeen> {
        let look = async || {
            let seen = self.co.see_claim(used.name()).await?;
            seen.with_context(|| format!("there is no claim {}", used.name()))
        };
        self.until(what, look, holds).await
    }

    /// A volume of the driver by its name.
    pub(crate) async fn volume(&self, name: &str) -> Result<Option<VolumeSeen>> {
        let volumes = self.co.see_volumes().await?;
        Ok(volumes.into_iter().find(|volume| volume.name == name))
    }

    /// Writes random data and answers their digest.
    pub(crate) async fn fill(&self, used: &Used, mib: u32) -> Result<String> {
        let data = used.data();
        let write = format!("dd if=/dev/urandom of={data} bs=1M count={mib} conv=fsync");
        self.co.run(used.name(), &write).await?;
        self.digest(used, mib).await
    }

    /// The digest of what was written.
    pub(crate) async fn digest(&self, used: &Used, mib: u32) -> Result<String> {
        let data = used.data();
        let read = format!("dd if={data} bs=1M count={mib} | sha256sum");
        let printed = self.co.run(used.name(), &read).await?;
        let digest = printed.split(' ').next().unwrap_or_default().to_owned();
        ensure!(digest.len() == 64, "{printed}");
        Ok(digest)
    }

    /// What the pod sees of its volume: the size of the file system or the device, bytes.
    pub(crate) async fn size(&self, used: &Used) -> Result<i64> {
        if used.claim.block {
            let printed = self.co.run(used.name(), "blockdev --getsize64 $V").await?;
            return Ok(printed.parse()?);
        }
        let printed = self.co.run(used.name(), "df -Pk $V | tail -n 1").await?;
        let kib: i64 = printed
            .split_whitespace()
            .nth(1)
            .with_context(|| printed.clone())?
            .parse()?;
        Ok(kib * 1024)
    }

    /// Edits the claim and waits until the pod sees it: answers how long that took.
    pub(crate) async fn grow(&self, used: &Used, bytes: i64) -> Result<Duration> {
        let edited = Instant::now();
        self.co.resize(used.name(), bytes).await?;
        self.sees(used, bytes).await?;
        Ok(edited.elapsed())
    }

    /// Waits until the pod sees so many bytes. A file system keeps some for itself, but never as much as an edit adds.
    pub(crate) async fn sees(&self, used: &Used, bytes: i64) -> Result<i64> {
        let least = if used.claim.block {
            bytes
        } else {
            bytes - (bytes / 10).min(GIB / 2)
        };
        let look = async || self.size(used).await;
        let seen = self.until("the pod sees the new size", look, |seen| *seen >= least);
        seen.await
    }

    /// Waits until the claim has what it asks for.
    pub(crate) async fn has(&self, used: &Used, bytes: i64) -> Result<ClaimSeen> {
        self.claim(used, "the claim has what it asks for", |seen| {
            seen.capacity >= bytes && seen.conditions.is_empty()
        })
        .await
    }

    /// Waits until all parts of the driver are up.
    pub(crate) async fn driver_is_up(&self) -> Result<()> {
        let look = async || self.co.driver_is_up().await;
        self.until("the driver is up", look, |up| *up).await?;
        Ok(())
    }

    /// Kills parts of the driver, and waits until they are back.
    pub(crate) async fn kill(&self, halves: &[Half]) -> Result<()> {
        for half in halves {
            self.co.kill(half).await?;
        }
        self.driver_is_up().await
    }

    /// Waits until the NAS answers.
    pub(crate) async fn nas_is_up(&self) -> Result<()> {
        let look = async || Ok(self.co.nas("state", None).await.is_ok());
        self.until("the NAS is up", look, |up| *up).await?;
        Ok(())
    }

    /// LUNs on the NAS.
    pub(crate) async fn luns(&self) -> Result<usize> {
        let state = self.co.nas("state", None).await?;
        Ok(state["luns"].as_array().context("luns")?.len())
    }

    /// A node that is not this one.
    pub(crate) async fn other_node(&self, than: &str) -> Result<Option<String>> {
        let nodes = self.co.nodes().await?;
        Ok(nodes.into_iter().find(|node| node != than))
    }
}
