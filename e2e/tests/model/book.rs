//! What a CO may rely upon, kept beside the real thing: after each step, once retries have settled, both must agree.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use e2e::nas::Nas;
use e2e::world::World;
use e2e::{GIB, MIB};
use serde_json::{Value, json};
use tonic::{Code, Status};

use super::act::{Act, Answer};
use super::step::{NODES, On, Step};

/// Far more tries than there are faults in a case.
const TRIES: usize = 40;
const NEVER_MADE: &str = "nas1/00000000-0000-4000-8000-000000000000";

/// A volume, as the CO believes it to be.
#[derive(Clone, Debug)]
struct Volume {
    id: String,
    size: i64,
    published: Option<&'static str>,
}

/// One case.
#[derive(Debug)]
pub(super) struct Book<'a> {
    world: &'a mut World,
    volumes: BTreeMap<u8, Volume>,
    /// The last id of each, which stays when the volume goes.
    ids: BTreeMap<u8, String>,
    /// LUNs of somebody else's, as they were.
    foreign: Vec<Value>,
    kill: Option<(On, bool)>,
    /// The last call and its answer.
    last: Option<(Act, Result<Answer, Status>)>,
}

impl<'a> Book<'a> {
    /// Takes the steps on a fresh NAS and looks at everything after each.
    pub(super) async fn keep(world: &'a mut World, steps: &[Step]) -> Result<()> {
        world.nas.reset().await?;
        for name in ["finance", "csi-not-ours", "csi-pvc-9"] {
            world.nas.foreign_lun(name, 3 * GIB).await?;
        }
        let foreign = world.nas.luns().await?;
        let mut book = Self {
            world,
            volumes: BTreeMap::new(),
            ids: BTreeMap::new(),
            foreign,
            kill: None,
            last: None,
        };
        for (number, step) in steps.iter().enumerate() {
            book.take(step)
                .await
                .with_context(|| format!("step {number}, {step:?}"))?;
            let after = || format!("after step {number}, {step:?}");
            book.compare().await.with_context(after)?;
            book.again().await.with_context(after)?;
            book.compare().await.with_context(after)?;
        }
        book.close().await.context("in the end")
    }

    async fn take(&mut self, step: &Step) -> Result<()> {
        if let Some(((api, method), fault)) = step.fault() {
            return self.world.nas.fault(api, method, 1, 1, fault).await;
        }
        match step {
            Step::Create { volume, mib } => self.create(*volume, mib * MIB).await,
            Step::Expand { volume, mib } => self.expand(*volume, mib * MIB).await,
            Step::Publish {
                volume,
                node,
                resign,
            } => self.publish(*volume, NODES[*node], *resign).await,
            Step::Unpublish { volume, node } => self.unpublish(*volume, NODES[*node]).await,
            Step::Release { volume } => {
                let holder = self.volumes.get(volume).and_then(|known| known.published);
                self.unpublish(*volume, holder.unwrap_or(NODES[0])).await
            }
            Step::UnpublishEverywhere { volume } => self.unpublish(*volume, "").await,
            Step::Delete { volume } => self.delete(*volume).await,
            Step::RestartDriver => self.world.restart_driver().await,
            Step::RestartNas => self.world.nas.restart().await,
            Step::ExpireSessions => self.world.nas.expire_sessions().await,
            Step::KillDriverAt { on, after_effect } => {
                self.kill = Some((*on, *after_effect));
                Ok(())
            }
            Step::LoseNextReply { .. }
            | Step::RefuseNext { .. }
            | Step::GarbleNext { .. }
            | Step::FailNext { .. } => Ok(()),
        }
    }

    async fn create(&mut self, volume: u8, required: i64) -> Result<()> {
        let answer = self
            .settle(&Act::Create {
                name: format!("pvc-{volume}"),
                size: required,
            })
            .await?;
        match (self.volumes.get(&volume), answer) {
            (Some(known), Err(status)) if known.size < required => {
                expect(&status, Code::AlreadyExists)
            }
            (Some(known), Ok(Answer::Volume { id, size })) => {
                ensure!(
                    (&id, size) == (&known.id, known.size),
                    "another volume: {id} of {size}, known is {known:?}"
                );
                ensure!(size >= required, "too small: {size}");
                Ok(())
            }
            (None, Ok(Answer::Volume { id, size })) => {
                ensure!(size == required.max(GIB), "{size} for {required}");
                ensure!(
                    !self.ids.values().any(|old| *old == id),
                    "{id} was a volume before"
                );
                self.ids.insert(volume, id.clone());
                self.volumes.insert(
                    volume,
                    Volume {
                        id,
                        size,
                        published: None,
                    },
                );
                Ok(())
            }
            (known, answer) => bail!("{known:?} was answered {answer:?}"),
        }
    }

    async fn expand(&mut self, volume: u8, required: i64) -> Result<()> {
        let answer = self
            .settle(&Act::Expand {
                id: self.id(volume),
                size: required,
            })
            .await?;
        match (self.volumes.get_mut(&volume), answer) {
            (None, Err(status)) => expect(&status, Code::NotFound),
            (Some(known), Ok(Answer::Size(size))) => {
                ensure!(
                    size == known.size.max(required),
                    "{size} for {required}, had {}",
                    known.size
                );
                known.size = size;
                Ok(())
            }
            (known, answer) => bail!("{known:?} was answered {answer:?}"),
        }
    }

    async fn publish(&mut self, volume: u8, node: &'static str, resign: bool) -> Result<()> {
        let act = Act::Publish {
            id: self.id(volume),
            node,
        };
        let answer = if resign {
            match self.once(&act).await? {
                Err(status) if transient(&status) => return self.unpublish(volume, node).await,
                answer => answer,
            }
        } else {
            self.settle(&act).await?
        };
        let Some(known) = self.volumes.get_mut(&volume) else {
            return expect(
                &answer.err().context("published what is not there")?,
                Code::NotFound,
            );
        };
        match (known.published.filter(|holder| *holder != node), answer) {
            (Some(holder), Err(status)) => {
                ensure!(
                    status.message().contains(holder),
                    "{holder} is not named: {}",
                    status.message()
                );
                expect(&status, Code::FailedPrecondition)
            }
            (None, Ok(Answer::Context(context))) => {
                ensure!(
                    known.id.ends_with(&context["uuid"]),
                    "{context:?} for {known:?}"
                );
                known.published = Some(node);
                Ok(())
            }
            (holder, answer) => bail!("published to {holder:?} and answered {answer:?}"),
        }
    }

    async fn unpublish(&mut self, volume: u8, node: &'static str) -> Result<()> {
        let answer = self
            .settle(&Act::Unpublish {
                id: self.id(volume),
                node,
            })
            .await?;
        ensure!(matches!(answer, Ok(Answer::Done)), "{answer:?}");
        if let Some(known) = self.volumes.get_mut(&volume) {
            known.published = known
                .published
                .filter(|holder| !node.is_empty() && *holder != node);
        }
        Ok(())
    }

    async fn delete(&mut self, volume: u8) -> Result<()> {
        let answer = self
            .settle(&Act::Delete {
                id: self.id(volume),
            })
            .await?;
        match (
            self.volumes.get(&volume).and_then(|known| known.published),
            answer,
        ) {
            (Some(holder), Err(status)) => {
                ensure!(
                    status.message().contains(holder),
                    "{holder} is not named: {}",
                    status.message()
                );
                expect(&status, Code::FailedPrecondition)
            }
            (None, Ok(Answer::Done)) => {
                self.volumes.remove(&volume);
                Ok(())
            }
            (holder, answer) => bail!("published to {holder:?} and answered {answer:?}"),
        }
    }

    fn id(&self, volume: u8) -> String {
        self.ids
            .get(&volume)
            .cloned()
            .unwrap_or_else(|| NEVER_MADE.to_owned())
    }

    /// Repeats a call as a CO does until it has an answer that is final.
    async fn settle(&mut self, act: &Act) -> Result<Result<Answer, Status>> {
        let answer = self.tried(act).await?;
        self.last = Some((act.clone(), answer.clone()));
        Ok(answer)
    }

    /// The last call again: same call, same answer.
    async fn again(&mut self) -> Result<()> {
        let Some((act, first)) = self.last.take() else {
            return Ok(());
        };
        let again = self.tried(&act).await?;
        let same = match (&first, &again) {
            (Ok(first), Ok(again)) => first == again,
            (Err(first), Err(again)) => first.code() == again.code(),
            (Ok(_), Err(_)) | (Err(_), Ok(_)) => false,
        };
        ensure!(same, "{act:?} was answered {first:?}, then {again:?}");
        Ok(())
    }

    async fn tried(&mut self, act: &Act) -> Result<Result<Answer, Status>> {
        let mut last = None;
        for _ in 0..TRIES {
            match self.once(act).await? {
                Err(status) if transient(&status) => last = Some(status),
                answer => return Ok(answer),
            }
        }
        bail!("{act:?} never comes to an end: {last:?}")
    }

    /// One try, in which the driver may be killed.
    async fn once(&mut self, act: &Act) -> Result<Result<Answer, Status>> {
        let call = act.clone().call(self.world.plugin.controller());
        let Some(((api, method), after_effect)) = self.kill.take() else {
            return Ok(call.await);
        };
        let before = self.world.nas.fault_matches().await?.len();
        let fault = if after_effect {
            json!({"kind": "delay", "ms": 2000})
        } else {
            json!({"kind": "hang"})
        };
        self.world.nas.fault(api, method, 1, 1, fault).await?;
        let call = tokio::spawn(call);
        while !call.is_finished() {
            if hit(&self.world.nas, before).await? {
                self.world.plugin.process.kill();
                self.world.nas.no_faults().await?;
                self.world.restart_driver().await?;
                break;
            }
        }
        if !call.is_finished() || hit(&self.world.nas, before).await? {
            call.abort();
            return Ok(Err(Status::unavailable("the driver was killed")));
        }
        self.world.nas.no_faults().await?;
        Ok(call.await?)
    }

    /// The NAS must hold what the book says, and nothing else.
    async fn compare(&self) -> Result<()> {
        let state = self.world.nas.state().await?;
        let rows = |name: &str| state[name].as_array().cloned().unwrap_or_default();
        let (mut ours, mut foreign) = (BTreeMap::new(), Vec::new());
        for lun in rows("luns") {
            let mark = lun["description"]
                .as_str()
                .is_some_and(|text| text.starts_with("csi.synology.com "));
            if mark {
                ours.insert(
                    format!("nas1/{}", lun["uuid"].as_str().unwrap_or_default()),
                    lun["size"].as_i64().unwrap_or_default(),
                );
            } else {
                foreign.push(lun);
            }
        }
        let wanted: BTreeMap<String, i64> = self
            .volumes
            .values()
            .map(|volume| (volume.id.clone(), volume.size))
            .collect();
        ensure!(
            ours == wanted,
            "LUNs of ours: {ours:?}, volumes: {wanted:?}"
        );
        ensure!(
            foreign == self.foreign,
            "LUNs of others were {:?}, are {foreign:?}",
            self.foreign
        );

        let exported = |target: &Value| {
            let luns = target["mapped_luns"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            (
                target["iqn"].as_str().unwrap_or_default().to_owned(),
                luns.iter()
                    .map(|lun| lun["lun_uuid"].to_string())
                    .collect::<String>(),
            )
        };
        let targets: BTreeMap<String, String> = rows("targets").iter().map(exported).collect();
        let publications = self
            .volumes
            .values()
            .filter_map(|volume| Some((volume.id.trim_start_matches("nas1/"), volume.published?)));
        let wanted: BTreeMap<String, String> = publications
            .map(|(uuid, node)| {
                (
                    format!("iqn.2000-01.com.synology:{}.{node}", uuid.replace('-', "")),
                    format!("\"{uuid}\""),
                )
            })
            .collect();
        ensure!(
            targets == wanted,
            "targets: {targets:?}, publications: {wanted:?}"
        );
        Ok(())
    }

    /// Without faults everything is answered at once; then all is taken away, and nothing of ours is left.
    async fn close(mut self) -> Result<()> {
        self.world.nas.no_faults().await?;
        self.kill = None;
        let request = proto::csi::ListVolumesRequest::default();
        let listed = self
            .world
            .plugin
            .controller()
            .list_volumes(request)
            .await?
            .into_inner()
            .entries;
        let listed: BTreeMap<String, (i64, Vec<String>)> = listed
            .into_iter()
            .map(|entry| {
                (
                    entry.volume.unwrap_or_default(),
                    entry.status.unwrap_or_default(),
                )
            })
            .map(|(volume, status)| {
                (
                    volume.volume_id,
                    (volume.capacity_bytes, status.published_node_ids),
                )
            })
            .collect();
        let nodes = |volume: &Volume| {
            volume
                .published
                .iter()
                .map(|node| (*node).to_owned())
                .collect()
        };
        let wanted = self
            .volumes
            .values()
            .map(|volume| (volume.id.clone(), (volume.size, nodes(volume))))
            .collect();
        ensure!(listed == wanted, "listed {listed:?}, not {wanted:?}");
        for volume in self.volumes.keys().copied().collect::<Vec<_>>() {
            self.unpublish(volume, "").await?;
            self.delete(volume).await?;
        }
        self.compare().await
    }
}

/// The fault planted after `before` others has been met. Faults are taken away when the driver has been killed.
async fn hit(nas: &Nas, before: usize) -> Result<bool> {
    // sleep: the step of a look that is repeated, with a bound, by whoever waits for the fault.
    tokio::time::sleep(Duration::from_millis(2)).await;
    Ok(nas
        .fault_matches()
        .await?
        .get(before)
        .is_none_or(|seen| *seen > 0))
}

fn transient(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Aborted)
}

fn expect(status: &Status, code: Code) -> Result<()> {
    ensure!(
        status.code() == code,
        "{:?} instead of {code:?}: {}",
        status.code(),
        status.message()
    );
    Ok(())
}
