//! Steps that consist of several calls: fencing, use on another node, races, swapped LUNs, password rotation. Each ends in the
//! state that the model predicts.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use proto::csi;
use serde_json::json;
use tonic::Code;

use super::{Executor, TRIES, call, ensure_expected, expected_codes, transient};
use crate::harness::plugin::Csi as _;
use crate::harness::test_volume::{TestVolume, create_request};
use crate::model::reference_model::{Expected, Volume};
use crate::model::step::{Absence, CsiCall, Delivery, Kind, Step};
use crate::testbed::{Process, SECRET_PREFIX, TestBed};
use crate::{GIB, MIB};

/// Calls that a CO makes while the password is wrong.
const WRONG_PASSWORD_CALLS: usize = 6;

impl<P: TestBed> Executor<'_, P> {
    /// The CO believes that the node is dead, and unpublishes the volume from it.
    pub(super) async fn fence(&mut self, volume: u8) -> Result<()> {
        let Some(known) = self.model.volumes.get(&volume).cloned() else {
            return Ok(());
        };
        let Some(old) = known.published else {
            return Ok(());
        };
        let test_volume = self.volumes[&volume].clone();
        let unpublish = CsiCall::Unpublish { node: old };
        self.retry_until_expected(volume, unpublish, Delivery::Once, 0, Expected::Done, TRIES)
            .await
            .context("unpublishing it from the dead node")?;
        let seen = self.bed.observe().await?;
        let left = seen.publications(test_volume.uuid(), &test_volume.node_id);
        ensure!(left.is_empty(), "{left:?} is still there");
        // The node is back: unpublishing and unstaging there do not need the NAS.
        for rpc in [CsiCall::NodeUnpublish, CsiCall::Unstage] {
            self.retry_until_expected(volume, rpc, Delivery::Once, 0, Expected::Done, TRIES)
                .await
                .with_context(|| format!("{rpc:?} on the node that came back"))?;
        }
        let publish = CsiCall::Publish { node: 1 - old };
        let context = self
            .retry_until_expected(volume, publish, Delivery::Once, 0, Expected::Done, TRIES)
            .await
            .context("publishing it to the other node")?;
        self.model.apply_step(&Step::Fence { volume });
        self.record(volume, publish, context.as_ref())
    }

    /// Unpublished behind the node's back, used on the other node, and published back: the data written there must be visible.
    pub(super) async fn use_elsewhere(&mut self, volume: u8, absence: Absence) -> Result<()> {
        let Some(known) = self.model.volumes.get(&volume).cloned() else {
            return Ok(());
        };
        let Some(node) = known.published.filter(|_| known.staged && !known.stale) else {
            return Ok(());
        };
        let test_volume = self.volumes[&volume].clone();
        let keeps_session = absence.kept && self.bed.keep_deleted_sessions(true).await?;
        // The pages of a raw device are written back when its last pod ends, and a NAS that keeps the session accepts them.
        let unsynced = absence.unsynced && !(keeps_session && known.kind == Kind::Raw);
        if unsynced && known.node_published && !known.readonly {
            self.bed.write_unsynced(&test_volume, node, u64::MAX)?;
        }
        self.call_until_expected(volume, CsiCall::Unpublish { node })
            .await
            .context("unpublishing it from its node")?;
        self.model.unpublish_behind_node(volume);
        let other = 1 - node;
        for rpc in [
            CsiCall::Publish { node: other },
            CsiCall::Stage,
            CsiCall::NodePublish,
        ] {
            self.call_until_expected(volume, rpc)
                .await
                .with_context(|| format!("{rpc:?} on the other node"))?;
        }
        self.write(volume)?;
        for rpc in [
            CsiCall::NodeUnpublish,
            CsiCall::Unstage,
            CsiCall::Unpublish { node: other },
        ] {
            self.call_until_expected(volume, rpc)
                .await
                .with_context(|| format!("{rpc:?} on the other node"))?;
        }
        if absence.restart {
            self.bed.restart(Process::Node(node)).await?;
        }
        self.call_until_expected(volume, CsiCall::Publish { node })
            .await?;
        if known.node_published {
            for rpc in [CsiCall::Stage, CsiCall::NodePublish] {
                let test_volume = Some(self.volumes[&volume].clone());
                let clients = self.bed.clients(0, node);
                let answer = call(&clients, volume, test_volume, rpc, "", known.size).await;
                self.restart_crashed().await?;
                ensure!(
                    answer.is_err(),
                    "{rpc:?} while a pod uses an ended publication returned {answer:?}"
                );
            }
            self.call_until_expected(volume, CsiCall::NodeUnpublish)
                .await
                .context("node-unpublishing the former pod")?;
        }
        // The Secret of a StorageClass is passed only to NodeStageVolume.
        if absence.stage || !test_volume.secrets.is_empty() {
            self.call_until_expected(volume, CsiCall::Stage)
                .await
                .context("staging it on its former node")?;
        }
        self.model.staged_by_node_publish(volume);
        self.call_until_expected(volume, CsiCall::NodePublish)
            .await
            .context("node-publishing it on its former node")?;
        self.bed.keep_deleted_sessions(false).await.map(drop)
    }

    /// Retries a call until it succeeds, and records it.
    async fn call_until_expected(&mut self, volume: u8, rpc: CsiCall) -> Result<()> {
        self.prepare(volume, rpc).await?;
        let answer = self
            .retry_until_expected(volume, rpc, Delivery::Once, 0, Expected::Done, TRIES)
            .await?;
        self.record(volume, rpc, answer.as_ref())
    }

    /// Two controllers publish to two nodes at once: at most one may win.
    pub(super) async fn race_publish(&mut self, volume: u8) -> Result<()> {
        let Some(known) = self.model.volumes.get(&volume) else {
            return Ok(());
        };
        if known.staged || known.stale {
            return Ok(());
        }
        let test_volume = Some(self.volumes[&volume].clone());
        let publish = |controller: usize| {
            let clients = self.bed.clients(controller, controller);
            let rpc = CsiCall::Publish { node: controller };
            let (test_volume, node_id) = (test_volume.clone(), self.node_ids[controller].clone());
            async move { call(&clients, volume, test_volume, rpc, &node_id, 0).await }
        };
        let (first, second) = futures::join!(publish(0), publish(1));
        ensure!(
            first.is_err() || second.is_err(),
            "it was published to two nodes: {first:?}, {second:?}"
        );
        self.restart_crashed().await?;
        for node in [0, 1] {
            let rpc = CsiCall::Unpublish { node };
            self.retry_until_expected(volume, rpc, Delivery::Once, node, Expected::Done, TRIES)
                .await
                .with_context(|| format!("{rpc:?} after the race"))?;
        }
        self.model.apply_step(&Step::Race { volume });
        Ok(())
    }

    /// Makes the first try of both calls concurrently; the caller then retries each until its expected result.
    pub(super) async fn run_concurrently(
        &mut self,
        volume: u8,
        mib: i64,
        rpc: CsiCall,
    ) -> Result<()> {
        if self.model.expected(volume, rpc) == Expected::Idle
            || !self.model.volumes.contains_key(&volume)
        {
            return Ok(());
        }
        self.prepare(volume, rpc).await?;
        let (known, test_volume) = (&self.model.volumes[&volume], self.volumes.get(&volume));
        let (node, size) = (known.published.unwrap_or(0), known.size);
        let clients = self.bed.clients(0, node);
        let grow = call(
            &clients,
            volume,
            test_volume.cloned(),
            CsiCall::Expand { mib },
            "",
            size,
        );
        let other = call(&clients, volume, test_volume.cloned(), rpc, "", size);
        let hits = self.bed.fault_hits()?;
        let (grown, other) = futures::join!(grow, other);
        let crashed = self.restart_crashed().await?;
        // The node may see the LUN before or after it has grown.
        let grow = self.model.expected(volume, CsiCall::Expand { mib });
        let after = if self.cannot_grow_online(&self.model.volumes[&volume], rpc) {
            Expected::Refused
        } else {
            grow
        };
        for (answer, candidates) in [
            (grown, [grow; 2]),
            (other, [self.model.expected(volume, rpc), after]),
        ] {
            match answer {
                Ok(answer) => {
                    let matches = candidates
                        .into_iter()
                        .any(|expected| ensure_expected(&answer, expected).is_ok());
                    ensure!(matches, "expected one of {candidates:?}, got {answer:?}");
                }
                Err(status) => {
                    self.messages.push(status.message().to_owned());
                    let is_expected = candidates
                        .iter()
                        .any(|expected| expected_codes(*expected).contains(&status.code()));
                    let justified = transient(&status)
                        || is_expected
                        || crashed
                        || self.bed.fault_hits()? > hits;
                    ensure!(
                        justified,
                        "a final code during growth without a fault: {status:?}"
                    );
                }
            }
        }
        Ok(())
    }

    pub(super) fn write_foreign_data(&mut self, volume: u8) -> Result<()> {
        let known = self.model.volumes.get(&volume);
        if known.is_some_and(|known| !known.formatted) {
            self.bed.write_foreign_data(&self.volumes[&volume])?;
        }
        self.model.apply_step(&Step::WriteForeignData { volume });
        Ok(())
    }

    /// The file system was made with options that rule out growth, which only shows when it has to grow.
    pub(super) fn make_unresizable(&mut self, volume: u8) -> Result<()> {
        let known = self.model.volumes.get(&volume);
        if known.is_some_and(Volume::may_become_unresizable)
            && self.bed.make_unresizable(&self.volumes[&volume])?
        {
            self.model.apply_step(&Step::MakeUnresizable { volume });
        }
        Ok(())
    }

    /// The kernel shuts a file system down under its pod: no call for it may return OK or a final code. Once the pod has ended,
    /// the next one finds all data.
    pub(super) async fn kill_file_system(&mut self, volume: u8) -> Result<()> {
        let known = self.model.volumes.get(&volume).cloned();
        let Some(known) = known.filter(|known| known.node_published && known.kind != Kind::Raw)
        else {
            return Ok(());
        };
        let node = known
            .published
            .context("node-published and not published")?;
        if !self.bed.kill_file_system(&self.volumes[&volume], node)? {
            return Ok(());
        }
        let publish = if known.readonly {
            CsiCall::NodePublishReadonly
        } else {
            CsiCall::NodePublish
        };
        for rpc in [CsiCall::Stage, publish] {
            let hits = self.bed.fault_hits()?;
            for answer in self.attempt(volume, rpc, Delivery::Once, 0).await {
                let Err(status) = answer else {
                    bail!("{rpc:?} of a dead file system returned OK");
                };
                self.messages.push(status.message().to_owned());
                let justified = transient(&status) || self.bed.fault_hits()? > hits;
                ensure!(justified, "{rpc:?} of a dead file system: {status:?}");
            }
            self.restart_crashed().await?;
        }
        for rpc in [CsiCall::NodeUnpublish, CsiCall::NodePublish] {
            self.call_until_stable(volume, rpc, Delivery::Once, 0, TRIES)
                .await
                .with_context(|| format!("{rpc:?} after the file system had died"))?;
        }
        Ok(())
    }

    /// Another LUN is exported in place of the volume's: the driver must not touch it.
    pub(super) async fn swap_lun(&mut self, volume: u8) -> Result<()> {
        let Some(known) = self
            .model
            .volumes
            .get(&volume)
            .filter(|it| it.staged)
            .cloned()
        else {
            return Ok(());
        };
        let test_volume = self.volumes[&volume].clone();
        // If the kernel accepts a rescan and does nothing, the driver cannot notice it.
        self.bed.clear_faults().await?;
        if !self.bed.swap_lun(&test_volume, true).await? {
            return Ok(());
        }
        let (clients, node_published) = (
            self.bed.clients(0, known.published.unwrap_or(0)),
            known.node_published,
        );
        let rpc = if node_published {
            CsiCall::NodeExpand
        } else {
            CsiCall::Stage
        };
        for _ in 0..3 {
            let answer = call(
                &clients,
                volume,
                Some(test_volume.clone()),
                rpc,
                "",
                known.size,
            )
            .await;
            ensure!(
                answer.is_err(),
                "{rpc:?} with a swapped LUN returned {answer:?}"
            );
        }
        ensure!(
            self.bed.is_swapped_lun_untouched(&test_volume)?,
            "{rpc:?} has written to the swapped-in LUN"
        );
        self.restart_crashed().await?;
        self.bed.swap_lun(&test_volume, false).await?;
        if !self.fallback_calls(volume, rpc).is_empty() {
            // The replacement calls do not rescan the disk, which the node still sees as the other LUN. So this call does.
            let _ = call(&clients, volume, Some(test_volume), rpc, "", known.size).await;
        }
        self.call_until_stable(volume, rpc, Delivery::Once, 0, TRIES)
            .await
            .with_context(|| format!("{rpc:?} after the LUN was swapped back"))
    }

    /// `ListVolumes` must return exactly the volumes of the model.
    pub(super) async fn list(&mut self, tries: usize) -> Result<()> {
        let mut last = None;
        for attempt in 0..tries {
            let request = csi::ListVolumesRequest::default();
            let answer = self
                .bed
                .clients(0, 0)
                .controller()
                .list_volumes(request)
                .await;
            self.restart_crashed().await?;
            match answer {
                Ok(answer) => return self.ensure_list_complete(answer.into_inner()),
                Err(status) => {
                    ensure!(transient(&status), "ListVolumes: {status:?}");
                    last = Some(status);
                    self.wait(attempt).await?;
                }
            }
        }
        anyhow::bail!("ListVolumes failed {tries} times: {last:?}")
    }

    fn ensure_list_complete(&self, answer: csi::ListVolumesResponse) -> Result<()> {
        type Listed = BTreeMap<String, (i64, Vec<String>)>;
        let entry = |entry: csi::list_volumes_response::Entry| {
            let volume = entry.volume.unwrap_or_default();
            let nodes = entry.status.unwrap_or_default().published_node_ids;
            (volume.volume_id, (volume.capacity_bytes, nodes))
        };
        let listed: Listed = answer.entries.into_iter().map(entry).collect();
        let wanted = self.model.volumes.iter().map(|(number, volume)| {
            let test_volume = &self.volumes[number];
            let nodes = volume.published.iter();
            let nodes = nodes.map(|_| test_volume.node_id.clone()).collect();
            (test_volume.id.clone(), (volume.size, nodes))
        });
        let wanted: Listed = wanted.collect();
        ensure!(listed == wanted, "listed {listed:?}, expected {wanted:?}");
        Ok(())
    }

    /// Every call for a foreign LUN is refused with a final code.
    pub(super) async fn use_foreign_lun(&mut self, which: u8) -> Result<()> {
        let foreign = self.foreign.luns.keys().next().context("a foreign LUN")?;
        let volume_id = format!("nas1/{foreign}");
        let foreign_volume = csi::Volume {
            volume_id,
            ..csi::Volume::default()
        };
        let content = Kind::Ext4.content();
        let mut last = None;
        for attempt in 0..TRIES {
            let clients = self.bed.clients(0, 0);
            let test_volume =
                TestVolume::of(&clients, "pvc-foreign", content, foreign_volume.clone())?;
            let answer = match which {
                0 => test_volume.delete(&clients).await,
                1 => test_volume.expand_lun(&clients, 100 * GIB).await.map(drop),
                2 => {
                    let published = test_volume.publish_to(&clients, &self.node_ids[0]).await;
                    published.map(drop)
                }
                _ => {
                    let request = create_request("pvc-9", GIB, content);
                    let made = clients.controller().create_volume(request).await;
                    made.map(drop)
                }
            };
            self.restart_crashed().await?;
            match answer {
                Err(status) if transient(&status) => {
                    last = Some(status);
                    self.wait(attempt).await?;
                }
                Err(status) => {
                    let code = status.code();
                    let refused = matches!(code, Code::FailedPrecondition | Code::AlreadyExists);
                    ensure!(refused, "a foreign LUN: {status:?}");
                    return Ok(());
                }
                Ok(()) => anyhow::bail!("call {which} for a foreign LUN returned OK"),
            }
        }
        anyhow::bail!("call {which} for a foreign LUN was never refused: {last:?}")
    }

    /// While the password is wrong, each controller process tries it at most once. Then the password is corrected: in the
    /// driver's configuration, or on the NAS, where a restart lets the driver notice at once (design.md#one-login).
    pub(super) async fn rotate_password(&mut self) -> Result<()> {
        // The driver does not count a login whose reply is lost, and three of them would lock it out.
        self.bed.clear_faults().await?;
        self.rotations += 1;
        let on_nas = self.rotations.is_multiple_of(2);
        let password = format!("{SECRET_PREFIX}rotated-{}", self.rotations);
        self.set_account(&password).await?;
        self.bed.post_control("/sessions/expire", json!({})).await?;
        let before = self.bed.refused_logins().await?;
        for attempt in 0..WRONG_PASSWORD_CALLS {
            if attempt == WRONG_PASSWORD_CALLS / 2 && !on_nas {
                self.bed.restart(Process::Controller(0)).await?;
            }
            let request = create_request("pvc-8", MIB, Kind::Ext4.content());
            let clients = self.bed.clients(0, 0);
            let answer = clients.controller().create_volume(request).await;
            let status = answer
                .err()
                .context("a volume was created without a login")?;
            self.messages.push(status.message().to_owned());
            self.restart_crashed().await?;
        }
        let refused = self.bed.refused_logins().await? - before;
        ensure!(
            refused <= 1 + usize::from(!on_nas),
            "{refused} failed logins with the same password"
        );
        // Several failed logins within ten minutes would lock the address out, and the step may run again.
        self.bed
            .post_control("/clock", json!({"advance_ms": 600_000}))
            .await?;
        if on_nas {
            let former = self.password.clone();
            self.set_account(&former).await?;
        } else {
            self.bed.set_password(&password)?;
            self.password = password;
        }
        for controller in [0, 1] {
            self.bed.restart(Process::Controller(controller)).await?;
        }
        let clients = self.bed.clients(0, 0);
        let list = proto::csi::ListVolumesRequest::default();
        if let Err(status) = clients.controller().list_volumes(list).await {
            let refused = status.message().contains("refuses the login");
            ensure!(!refused, "the password was corrected: {}", status.message());
        }
        self.restart_crashed().await?;
        Ok(())
    }

    async fn set_account(&mut self, password: &str) -> Result<()> {
        let account = json!({"name": "admin", "password": password});
        self.bed.post_control("/accounts", account).await.map(drop)
    }
}
