//! Steps that are stories of their own: they end where they began, or where the book says.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use proto::csi;
use serde_json::json;
use tonic::Code;

use super::book::{Due, Volume};
use super::player::{Player, TRIES, call, meets, transient, wanted};
use super::step::{Absence, Act, How, Kind, Step};
use crate::life::{Life, create_request};
use crate::plane::{PLANTED, Plane, Process};
use crate::plugin::Csi as _;
use crate::{GIB, MIB};

/// How often a CO asks while the password is wrong.
const ASKED: usize = 6;

impl<P: Plane> Player<'_, P> {
    /// The CO believes the node to be dead, and takes the volume away from it.
    pub(super) async fn fence(&mut self, volume: u8) -> Result<()> {
        let Some(known) = self.book.volumes.get(&volume).cloned() else {
            return Ok(());
        };
        let Some(old) = known.published else {
            return Ok(());
        };
        let there = self.lives[&volume].clone();
        let taken = Act::Unpublish { node: old };
        self.until(volume, taken, How::Once, 0, Due::Done, TRIES)
            .await
            .context("taking it from the dead node")?;
        let seen = self.plane.see().await?;
        let left = seen.publications(there.uuid(), &there.node_id);
        ensure!(left.is_empty(), "{left:?} is still there");
        // Back from the dead: nothing there needs the NAS.
        for act in [Act::Hide, Act::Unstage] {
            self.until(volume, act, How::Once, 0, Due::Done, TRIES)
                .await
                .with_context(|| format!("{act:?} on the node that came back"))?;
        }
        let given = Act::Publish { node: 1 - old };
        let context = self
            .until(volume, given, How::Once, 0, Due::Done, TRIES)
            .await
            .context("giving it to the other node")?;
        self.book.take(&Step::Fence { volume });
        self.note(volume, given, context.as_ref())
    }

    /// Taken from its node without the node's knowing, used elsewhere, and given back: what was written elsewhere is there.
    pub(super) async fn away(&mut self, volume: u8, how: Absence) -> Result<()> {
        let Some(known) = self.book.volumes.get(&volume).cloned() else {
            return Ok(());
        };
        let Some(node) = known.published.filter(|_| known.staged && !known.stale) else {
            return Ok(());
        };
        let here = self.lives[&volume].clone();
        let kept = how.kept && self.plane.keeps_sessions(true).await?;
        // The pages of a raw device are written when its last pod goes, and a NAS that keeps the session takes them.
        let unsynced = how.unsynced && !(kept && known.kind == Kind::Raw);
        if unsynced && known.shown && !known.readonly {
            self.plane.write_unsynced(&here, node, u64::MAX)?;
        }
        self.come_to(volume, Act::Unpublish { node })
            .await
            .context("taking it from its node")?;
        self.book.take_from_node(volume);
        let other = 1 - node;
        for act in [Act::Publish { node: other }, Act::Stage, Act::Show] {
            self.come_to(volume, act)
                .await
                .with_context(|| format!("{act:?} on the other node"))?;
        }
        self.write(volume)?;
        for act in [Act::Hide, Act::Unstage, Act::Unpublish { node: other }] {
            self.come_to(volume, act)
                .await
                .with_context(|| format!("{act:?} on the other node"))?;
        }
        if how.restart {
            self.plane.restart(Process::Node(node)).await?;
        }
        self.come_to(volume, Act::Publish { node }).await?;
        if known.shown {
            for act in [Act::Stage, Act::Show] {
                let life = Some(self.lives[&volume].clone());
                let seat = self.plane.seat(0, node);
                let answer = call(&seat, volume, life, act, "", known.size).await;
                self.revive().await?;
                ensure!(
                    answer.is_err(),
                    "{act:?} while a pod has it under an ended publication is answered {answer:?}"
                );
            }
            self.come_to(volume, Act::Hide)
                .await
                .context("the pod of before goes")?;
        }
        // A Secret of the class comes with the staging.
        if how.stage || !here.secrets.is_empty() {
            self.come_to(volume, Act::Stage)
                .await
                .context("staging it where it was")?;
        }
        self.book.staged_by_show(volume);
        self.come_to(volume, Act::Show)
            .await
            .context("showing it where it was")?;
        self.plane.keeps_sessions(false).await.map(drop)
    }

    /// Makes a call until it is done, and writes that down.
    async fn come_to(&mut self, volume: u8, act: Act) -> Result<()> {
        self.prepare(volume, act).await?;
        let answer = self
            .until(volume, act, How::Once, 0, Due::Done, TRIES)
            .await?;
        self.note(volume, act, answer.as_ref())
    }

    /// Two controllers publish to two nodes at once: at most one may win.
    pub(super) async fn race(&mut self, volume: u8) -> Result<()> {
        let Some(known) = self.book.volumes.get(&volume) else {
            return Ok(());
        };
        if known.staged || known.stale {
            return Ok(());
        }
        let life = Some(self.lives[&volume].clone());
        let one = |controller: usize| {
            let seat = self.plane.seat(controller, controller);
            let act = Act::Publish { node: controller };
            let (life, node_id) = (life.clone(), self.node_ids[controller].clone());
            async move { call(&seat, volume, life, act, &node_id, 0).await }
        };
        let (first, second) = futures::join!(one(0), one(1));
        ensure!(
            first.is_err() || second.is_err(),
            "it is published to two nodes: {first:?}, {second:?}"
        );
        self.revive().await?;
        for node in [0, 1] {
            let act = Act::Unpublish { node };
            self.until(volume, act, How::Once, node, Due::Done, TRIES)
                .await
                .with_context(|| format!("{act:?} after the race"))?;
        }
        self.book.take(&Step::Race { volume });
        Ok(())
    }

    /// The first try of both at a time; that each comes to what is due is seen afterwards.
    pub(super) async fn beside(&mut self, volume: u8, mib: i64, act: Act) -> Result<()> {
        if self.book.due(volume, act) == Due::Idle || !self.book.volumes.contains_key(&volume) {
            return Ok(());
        }
        self.prepare(volume, act).await?;
        let (known, life) = (&self.book.volumes[&volume], self.lives.get(&volume));
        let (node, size) = (known.published.unwrap_or(0), known.size);
        let seat = self.plane.seat(0, node);
        let grow = call(&seat, volume, life.cloned(), Act::Expand { mib }, "", size);
        let other = call(&seat, volume, life.cloned(), act, "", size);
        let hits = self.plane.hits()?;
        let (grown, other) = futures::join!(grow, other);
        let died = self.revive().await?;
        // The node may see the LUN before or after it has grown.
        let grow = self.book.due(volume, Act::Expand { mib });
        let after = if self.may_not_grow(&self.book.volumes[&volume], act) {
            Due::Refused
        } else {
            grow
        };
        for (answer, dues) in [
            (grown, [grow; 2]),
            (other, [self.book.due(volume, act), after]),
        ] {
            match answer {
                Ok(answer) => {
                    let met = dues.into_iter().any(|due| meets(&answer, due).is_ok());
                    ensure!(met, "{dues:?} are due, and it was answered {answer:?}");
                }
                Err(status) => {
                    self.said.push(status.message().to_owned());
                    let due = dues.iter().any(|due| wanted(*due).contains(&status.code()));
                    let told = transient(&status) || due || died || self.plane.hits()? > hits;
                    ensure!(
                        told,
                        "a final code beside growth, and nothing has gone wrong: {status:?}"
                    );
                }
            }
        }
        Ok(())
    }

    pub(super) fn scribble(&mut self, volume: u8) -> Result<()> {
        let known = self.book.volumes.get(&volume);
        if known.is_some_and(|known| !known.formatted) {
            self.plane.scribble(&self.lives[&volume])?;
        }
        self.book.take(&Step::Scribble { volume });
        Ok(())
    }

    /// It was made with options that rule growth out: nobody knows before it is to grow.
    pub(super) fn stiffen(&mut self, volume: u8) -> Result<()> {
        let known = self.book.volumes.get(&volume);
        if known.is_some_and(Volume::may_stiffen) && self.plane.stiffen(&self.lives[&volume])? {
            self.book.take(&Step::Stiffen { volume });
        }
        Ok(())
    }

    /// The kernel gives a file system up under its pod: nothing of it is answered with OK, nor for good. Once the pod has ended, the
    /// next one finds all that was written.
    pub(super) async fn die(&mut self, volume: u8) -> Result<()> {
        let known = self.book.volumes.get(&volume).cloned();
        let Some(known) = known.filter(|known| known.shown && known.kind != Kind::Raw) else {
            return Ok(());
        };
        let node = known.published.context("shown and not published")?;
        if !self.plane.kill_file_system(&self.lives[&volume], node)? {
            return Ok(());
        }
        let show = if known.readonly {
            Act::ShowReadonly
        } else {
            Act::Show
        };
        for act in [Act::Stage, show] {
            let hits = self.plane.hits()?;
            for answer in self.attempt(volume, act, How::Once, 0).await {
                let Err(status) = answer else {
                    bail!("{act:?} of a dead file system was answered with OK");
                };
                self.said.push(status.message().to_owned());
                let told = transient(&status) || self.plane.hits()? > hits;
                ensure!(told, "{act:?} of a dead file system: {status:?}");
            }
            self.revive().await?;
        }
        for act in [Act::Hide, Act::Show] {
            self.settle(volume, act, How::Once, 0, TRIES)
                .await
                .with_context(|| format!("{act:?} after the file system had died"))?;
        }
        Ok(())
    }

    /// Another LUN stands in the volume's place: nothing may be done to it.
    pub(super) async fn disguise(&mut self, volume: u8) -> Result<()> {
        let Some(known) = self
            .book
            .volumes
            .get(&volume)
            .filter(|it| it.staged)
            .cloned()
        else {
            return Ok(());
        };
        let life = self.lives[&volume].clone();
        // A kernel that takes the word to ask a disk anew, and does not, cannot be seen through.
        self.plane.clear().await?;
        if !self.plane.disguise(&life, true).await? {
            return Ok(());
        }
        let (seat, shown) = (
            self.plane.seat(0, known.published.unwrap_or(0)),
            known.shown,
        );
        let act = if shown { Act::ExpandNode } else { Act::Stage };
        for _ in 0..3 {
            let answer = call(&seat, volume, Some(life.clone()), act, "", known.size).await;
            ensure!(
                answer.is_err(),
                "{act:?} with another LUN in the volume's place is answered {answer:?}"
            );
        }
        ensure!(
            self.plane.is_disguise_untouched(&life)?,
            "{act:?} has written to another LUN"
        );
        self.revive().await?;
        self.plane.disguise(&life, false).await?;
        if !self.instead(volume, act).is_empty() {
            // What is done instead does not look at the disk, which is still another's for the node. So this does.
            let _ = call(&seat, volume, Some(life), act, "", known.size).await;
        }
        self.settle(volume, act, How::Once, 0, TRIES)
            .await
            .with_context(|| format!("{act:?} with the volume in its place again"))
    }

    /// What is listed is what there is.
    pub(super) async fn list(&mut self, tries: usize) -> Result<()> {
        let mut last = None;
        for attempt in 0..tries {
            let request = csi::ListVolumesRequest::default();
            let answer = self
                .plane
                .seat(0, 0)
                .controller()
                .list_volumes(request)
                .await;
            self.revive().await?;
            match answer {
                Ok(answer) => return self.must_be_all(answer.into_inner()),
                Err(status) => {
                    ensure!(transient(&status), "ListVolumes: {status:?}");
                    last = Some(status);
                    self.wait(attempt).await?;
                }
            }
        }
        anyhow::bail!("ListVolumes has no end in {tries} tries: {last:?}")
    }

    fn must_be_all(&self, answer: csi::ListVolumesResponse) -> Result<()> {
        type Listed = BTreeMap<String, (i64, Vec<String>)>;
        let entry = |entry: csi::list_volumes_response::Entry| {
            let volume = entry.volume.unwrap_or_default();
            let nodes = entry.status.unwrap_or_default().published_node_ids;
            (volume.volume_id, (volume.capacity_bytes, nodes))
        };
        let listed: Listed = answer.entries.into_iter().map(entry).collect();
        let wanted = self.book.volumes.iter().map(|(number, volume)| {
            let life = &self.lives[number];
            let nodes = volume.published.iter();
            let nodes = nodes.map(|_| life.node_id.clone()).collect();
            (life.id.clone(), (volume.size, nodes))
        });
        let wanted: Listed = wanted.collect();
        ensure!(listed == wanted, "listed {listed:?}, not {wanted:?}");
        Ok(())
    }

    /// Whatever is asked for LUNs of others is refused, for good.
    pub(super) async fn trespass(&mut self, which: u8) -> Result<()> {
        let foreign = self.foreign.luns.keys().next().context("a foreign LUN")?;
        let volume_id = format!("nas1/{foreign}");
        let never = csi::Volume {
            volume_id,
            ..csi::Volume::default()
        };
        let content = Kind::Ext4.content();
        let mut last = None;
        for attempt in 0..TRIES {
            let seat = self.plane.seat(0, 0);
            let life = Life::of(&seat, "pvc-foreign", content, never.clone())?;
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
            self.revive().await?;
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

    /// While the password is wrong, the NAS hears of it at most once in each life of a controller. Then it is put right: in the
    /// driver's configuration, or on the NAS, where a restart lets the driver notice at once (design.md#one-login).
    pub(super) async fn rotate(&mut self) -> Result<()> {
        // Of an answer that is lost the driver does not know, and three of them would lock it out.
        self.plane.clear().await?;
        self.rotations += 1;
        let on_nas = self.rotations.is_multiple_of(2);
        let password = format!("{PLANTED}rotated-{}", self.rotations);
        self.set_account(&password).await?;
        self.plane.knob("/sessions/expire", json!({})).await?;
        let before = self.plane.refused_logins().await?;
        for asked in 0..ASKED {
            if asked == ASKED / 2 && !on_nas {
                self.plane.restart(Process::Controller(0)).await?;
            }
            let request = create_request("pvc-8", MIB, Kind::Ext4.content());
            let seat = self.plane.seat(0, 0);
            let answer = seat.controller().create_volume(request).await;
            let status = answer.err().context("a volume is made without a login")?;
            self.said.push(status.message().to_owned());
            self.revive().await?;
        }
        let refused = self.plane.refused_logins().await? - before;
        ensure!(
            refused <= 1 + usize::from(!on_nas),
            "{refused} failed logins with the same password"
        );
        // Several in ten minutes would lock the address out, and this is not the last time.
        self.plane
            .knob("/clock", json!({"advance_ms": 600_000}))
            .await?;
        if on_nas {
            let former = self.password.clone();
            self.set_account(&former).await?;
        } else {
            self.plane.set_password(&password)?;
            self.password = password;
        }
        for controller in [0, 1] {
            self.plane.restart(Process::Controller(controller)).await?;
        }
        let seat = self.plane.seat(0, 0);
        let list = proto::csi::ListVolumesRequest::default();
        if let Err(status) = seat.controller().list_volumes(list).await {
            let refused = status.message().contains("refuses the login");
            ensure!(!refused, "the password was put right: {}", status.message());
        }
        self.revive().await?;
        Ok(())
    }

    async fn set_account(&mut self, password: &str) -> Result<()> {
        let account = json!({"name": "admin", "password": password});
        self.plane.knob("/accounts", account).await.map(drop)
    }
}
