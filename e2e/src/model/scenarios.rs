//! Steps that consist of several calls: fencing, use on another node, races, swapped LUNs, password rotation. Each ends in the
//! state that the model predicts.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use proto::csi;
use serde_json::json;
use tonic::Code;

use super::executor::{Executor, TRIES, call, ensure_expected, expected_codes, transient};
use super::reference_model::{Expected, Volume};
use super::step::{Absence, CsiCall, Delivery, Kind, Step};
use crate::harness::plugin::Csi as _;
use crate::harness::test_volume::{TestVolume, create_request};
use crate::testbed::{Process, SECRET_PREFIX, TestBed};
use crate::{GIB, MIB};

/// Calls that a CO makes while the password is wrong.
const ASKED: usize = 6;

impl<P: TestBed> Executor<'_, P> {
    /// The CO believes that the node is dead, and unpublishes the volume from it.
    pub(super) async fn fence(&mut self, volume: u8) -> Result<()> {
        let Some(known) = self.model.volumes.get(&volume).cloned() else {
            return Ok(());
        };
        let Some(old) = known.published else {
            return Ok(());
        };
        let there = self.volumes[&volume].clone();
        let taken = CsiCall::Unpublish { node: old };
        self.retry_until_expected(volume, taken, Delivery::Once, 0, Expected::Done, TRIES)
            .await
            .context("taking it from the dead node")?;
        let seen = self.bed.observe().await?;
        let left = seen.publications(there.uuid(), &there.node_id);
        ensure!(left.is_empty(), "{left:?} is still there");
        // The node is back: unpublishing and unstaging there do not need the NAS.
        for act in [CsiCall::NodeUnpublish, CsiCall::Unstage] {
            self.retry_until_expected(volume, act, Delivery::Once, 0, Expected::Done, TRIES)
                .await
                .with_context(|| format!("{act:?} on the node that came back"))?;
        }
        let given = CsiCall::Publish { node: 1 - old };
        let context = self
            .retry_until_expected(volume, given, Delivery::Once, 0, Expected::Done, TRIES)
            .await
            .context("giving it to the other node")?;
        self.model.apply_step(&Step::Fence { volume });
        self.record(volume, given, context.as_ref())
    }

    /// Unpublished behind the node's back, used on the other node, and published back: the data written there must be visible.
    pub(super) async fn use_elsewhere(&mut self, volume: u8, how: Absence) -> Result<()> {
        let Some(known) = self.model.volumes.get(&volume).cloned() else {
            return Ok(());
        };
        let Some(node) = known.published.filter(|_| known.staged && !known.stale) else {
            return Ok(());
        };
        let here = self.volumes[&volume].clone();
        let kept = how.kept && self.bed.keep_deleted_sessions(true).await?;
        // The pages of a raw device are written back when its last pod ends, and a NAS that keeps the session accepts them.
        let unsynced = how.unsynced && !(kept && known.kind == Kind::Raw);
        if unsynced && known.node_published && !known.readonly {
            self.bed.write_unsynced(&here, node, u64::MAX)?;
        }
        self.call_until_expected(volume, CsiCall::Unpublish { node })
            .await
            .context("taking it from its node")?;
        self.model.take_from_node(volume);
        let other = 1 - node;
        for act in [
            CsiCall::Publish { node: other },
            CsiCall::Stage,
            CsiCall::NodePublish,
        ] {
            self.call_until_expected(volume, act)
                .await
                .with_context(|| format!("{act:?} on the other node"))?;
        }
        self.write(volume)?;
        for act in [
            CsiCall::NodeUnpublish,
            CsiCall::Unstage,
            CsiCall::Unpublish { node: other },
        ] {
            self.call_until_expected(volume, act)
                .await
                .with_context(|| format!("{act:?} on the other node"))?;
        }
        if how.restart {
            self.bed.restart(Process::Node(node)).await?;
        }
        self.call_until_expected(volume, CsiCall::Publish { node })
            .await?;
        if known.node_published {
            for act in [CsiCall::Stage, CsiCall::NodePublish] {
                let life = Some(self.volumes[&volume].clone());
                let seat = self.bed.clients(0, node);
                let answer = call(&seat, volume, life, act, "", known.size).await;
                self.restart_crashed().await?;
                ensure!(
                    answer.is_err(),
                    "{act:?} while a pod has it under an ended publication is answered {answer:?}"
                );
            }
            self.call_until_expected(volume, CsiCall::NodeUnpublish)
                .await
                .context("the pod of before goes")?;
        }
        // The Secret of a StorageClass is passed only to NodeStageVolume.
        if how.stage || !here.secrets.is_empty() {
            self.call_until_expected(volume, CsiCall::Stage)
                .await
                .context("staging it where it was")?;
        }
        self.model.staged_by_node_publish(volume);
        self.call_until_expected(volume, CsiCall::NodePublish)
            .await
            .context("showing it where it was")?;
        self.bed.keep_deleted_sessions(false).await.map(drop)
    }

    /// Retries a call until it succeeds, and records it.
    async fn call_until_expected(&mut self, volume: u8, act: CsiCall) -> Result<()> {
        self.prepare(volume, act).await?;
        let answer = self
            .retry_until_expected(volume, act, Delivery::Once, 0, Expected::Done, TRIES)
            .await?;
        self.record(volume, act, answer.as_ref())
    }

    /// Two controllers publish to two nodes at once: at most one may win.
    pub(super) async fn race_publish(&mut self, volume: u8) -> Result<()> {
        let Some(known) = self.model.volumes.get(&volume) else {
            return Ok(());
        };
        if known.staged || known.stale {
            return Ok(());
        }
        let life = Some(self.volumes[&volume].clone());
        let one = |controller: usize| {
            let seat = self.bed.clients(controller, controller);
            let act = CsiCall::Publish { node: controller };
            let (life, node_id) = (life.clone(), self.node_ids[controller].clone());
            async move { call(&seat, volume, life, act, &node_id, 0).await }
        };
        let (first, second) = futures::join!(one(0), one(1));
        ensure!(
            first.is_err() || second.is_err(),
            "it is published to two nodes: {first:?}, {second:?}"
        );
        self.restart_crashed().await?;
        for node in [0, 1] {
            let act = CsiCall::Unpublish { node };
            self.retry_until_expected(volume, act, Delivery::Once, node, Expected::Done, TRIES)
                .await
                .with_context(|| format!("{act:?} after the race"))?;
        }
        self.model.apply_step(&Step::Race { volume });
        Ok(())
    }

    /// Makes the first try of both calls concurrently; the caller then retries each until its expected result.
    pub(super) async fn run_concurrently(
        &mut self,
        volume: u8,
        mib: i64,
        act: CsiCall,
    ) -> Result<()> {
        if self.model.expected(volume, act) == Expected::Idle
            || !self.model.volumes.contains_key(&volume)
        {
            return Ok(());
        }
        self.prepare(volume, act).await?;
        let (known, life) = (&self.model.volumes[&volume], self.volumes.get(&volume));
        let (node, size) = (known.published.unwrap_or(0), known.size);
        let seat = self.bed.clients(0, node);
        let grow = call(
            &seat,
            volume,
            life.cloned(),
            CsiCall::Expand { mib },
            "",
            size,
        );
        let other = call(&seat, volume, life.cloned(), act, "", size);
        let hits = self.bed.fault_hits()?;
        let (grown, other) = futures::join!(grow, other);
        let died = self.restart_crashed().await?;
        // The node may see the LUN before or after it has grown.
        let grow = self.model.expected(volume, CsiCall::Expand { mib });
        let after = if self.may_not_grow(&self.model.volumes[&volume], act) {
            Expected::Refused
        } else {
            grow
        };
        for (answer, dues) in [
            (grown, [grow; 2]),
            (other, [self.model.expected(volume, act), after]),
        ] {
            match answer {
                Ok(answer) => {
                    let met = dues
                        .into_iter()
                        .any(|due| ensure_expected(&answer, due).is_ok());
                    ensure!(met, "{dues:?} are due, and it was answered {answer:?}");
                }
                Err(status) => {
                    self.said.push(status.message().to_owned());
                    let due = dues
                        .iter()
                        .any(|due| expected_codes(*due).contains(&status.code()));
                    let told = transient(&status) || due || died || self.bed.fault_hits()? > hits;
                    ensure!(
                        told,
                        "a final code beside growth, and nothing has gone wrong: {status:?}"
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
        let node = known.published.context("shown and not published")?;
        if !self.bed.kill_file_system(&self.volumes[&volume], node)? {
            return Ok(());
        }
        let show = if known.readonly {
            CsiCall::NodePublishReadonly
        } else {
            CsiCall::NodePublish
        };
        for act in [CsiCall::Stage, show] {
            let hits = self.bed.fault_hits()?;
            for answer in self.attempt(volume, act, Delivery::Once, 0).await {
                let Err(status) = answer else {
                    bail!("{act:?} of a dead file system was answered with OK");
                };
                self.said.push(status.message().to_owned());
                let told = transient(&status) || self.bed.fault_hits()? > hits;
                ensure!(told, "{act:?} of a dead file system: {status:?}");
            }
            self.restart_crashed().await?;
        }
        for act in [CsiCall::NodeUnpublish, CsiCall::NodePublish] {
            self.call_until_stable(volume, act, Delivery::Once, 0, TRIES)
                .await
                .with_context(|| format!("{act:?} after the file system had died"))?;
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
        let life = self.volumes[&volume].clone();
        // If the kernel accepts a rescan and does nothing, the driver cannot notice it.
        self.bed.clear_faults().await?;
        if !self.bed.swap_lun(&life, true).await? {
            return Ok(());
        }
        let (seat, shown) = (
            self.bed.clients(0, known.published.unwrap_or(0)),
            known.node_published,
        );
        let act = if shown {
            CsiCall::NodeExpand
        } else {
            CsiCall::Stage
        };
        for _ in 0..3 {
            let answer = call(&seat, volume, Some(life.clone()), act, "", known.size).await;
            ensure!(
                answer.is_err(),
                "{act:?} with another LUN in the volume's place is answered {answer:?}"
            );
        }
        ensure!(
            self.bed.is_swapped_lun_untouched(&life)?,
            "{act:?} has written to another LUN"
        );
        self.restart_crashed().await?;
        self.bed.swap_lun(&life, false).await?;
        if !self.fallback_calls(volume, act).is_empty() {
            // The replacement calls do not rescan the disk, which the node still sees as the other LUN. So this call does.
            let _ = call(&seat, volume, Some(life), act, "", known.size).await;
        }
        self.call_until_stable(volume, act, Delivery::Once, 0, TRIES)
            .await
            .with_context(|| format!("{act:?} with the volume in its place again"))
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
        anyhow::bail!("ListVolumes has no end in {tries} tries: {last:?}")
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
            let life = &self.volumes[number];
            let nodes = volume.published.iter();
            let nodes = nodes.map(|_| life.node_id.clone()).collect();
            (life.id.clone(), (volume.size, nodes))
        });
        let wanted: Listed = wanted.collect();
        ensure!(listed == wanted, "listed {listed:?}, not {wanted:?}");
        Ok(())
    }

    /// Every call for a foreign LUN is refused with a final code.
    pub(super) async fn use_foreign_lun(&mut self, which: u8) -> Result<()> {
        let foreign = self.foreign.luns.keys().next().context("a foreign LUN")?;
        let volume_id = format!("nas1/{foreign}");
        let never = csi::Volume {
            volume_id,
            ..csi::Volume::default()
        };
        let content = Kind::Ext4.content();
        let mut last = None;
        for attempt in 0..TRIES {
            let seat = self.bed.clients(0, 0);
            let life = TestVolume::of(&seat, "pvc-foreign", content, never.clone())?;
            let answer = match which {
                0 => life.delete(&seat).await,
                1 => life.expand_lun(&seat, 100 * GIB).await.map(drop),
                2 => {
                    let to = life.publish_to(&seat, &self.node_ids[0]).await;
                    to.map(drop)
                }
                _ => {
                    let request = create_request("pvc-9", GIB, content);
                    let made = seat.controller().create_volume(request).await;
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
                    ensure!(refused, "a LUN of others: {status:?}");
                    return Ok(());
                }
                Ok(()) => anyhow::bail!("call {which} for a LUN of others is answered OK"),
            }
        }
        anyhow::bail!("call {which} for a LUN of others has no end: {last:?}")
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
        for asked in 0..ASKED {
            if asked == ASKED / 2 && !on_nas {
                self.bed.restart(Process::Controller(0)).await?;
            }
            let request = create_request("pvc-8", MIB, Kind::Ext4.content());
            let seat = self.bed.clients(0, 0);
            let answer = seat.controller().create_volume(request).await;
            let status = answer.err().context("a volume is made without a login")?;
            self.said.push(status.message().to_owned());
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
        let seat = self.bed.clients(0, 0);
        let list = proto::csi::ListVolumesRequest::default();
        if let Err(status) = seat.controller().list_volumes(list).await {
            let refused = status.message().contains("refuses the login");
            ensure!(!refused, "the password was put right: {}", status.message());
        }
        self.restart_crashed().await?;
        Ok(())
    }

    async fn set_account(&mut self, password: &str) -> Result<()> {
        let account = json!({"name": "admin", "password": password});
        self.bed.post_control("/accounts", account).await.map(drop)
    }
}
