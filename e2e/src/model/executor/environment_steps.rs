//! Steps that change the driver's environment: foreign objects and unusual statuses on the NAS, lists that cannot be trusted for
//! a while, manual edits in SAN Manager, and a reinstalled node.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use proto::csi;
use serde_json::{Value, json};
use tonic::{Code, Status};

use super::{Executor, PAUSE, TRIES, transient};
use crate::harness::plugin::Csi as _;
use crate::model::environment::{Environment, HiddenLists, ManualEdit};
use crate::model::reference_model::Expected;
use crate::model::step::{CsiCall, Delivery, Step};
use crate::testbed::TestBed;

/// Text that a manual edit adds before and after an owner tag.
const BEFORE: &str = "Do not delete! ";
const AFTER: &str = "; asked for by Eve, n=5";
/// Foreign rows of dsm-sim (`odd_rows`): prefixes of their uuids and of their targets' ids.
const ODD_ROWS: [&str; 3] = ["0dd00000-0000-0000-", "\"90000", "[90000"];
/// Calls that modify an existing LUN or target.
const CHANGES: [&str; 7] = [
    "LUN.set ",
    "LUN.delete ",
    "LUN.map_target ",
    "LUN.unmap_target ",
    "LUN.delete_snapshot ",
    "Target.set ",
    "Target.delete ",
];

/// The present environment of the driver.
#[derive(Debug, Default)]
pub(super) struct EnvironmentState {
    current: Environment,
    hidden_lists: Option<HiddenLists>,
    /// The number of names, snapshots and initiators made so far: makes each name unique.
    made: u32,
    /// The uuids of locked snapshots, by volume number.
    locked: BTreeMap<u8, Vec<String>>,
}

impl<P: TestBed> Executor<'_, P> {
    /// Sets the foreign objects and the statuses of the NAS.
    pub(super) async fn change_environment(&mut self, environment: &Environment) -> Result<()> {
        self.environment.current = environment.clone();
        if !self.bed.can_wait_minutes() {
            self.environment.current.up_time_shown = true;
        }
        self.send_environment().await
    }

    /// Makes the lists of the NAS untrustworthy.
    pub(super) async fn hide_lists(&mut self, hidden_lists: HiddenLists) -> Result<()> {
        self.environment.hidden_lists = Some(hidden_lists);
        self.send_environment().await
    }

    /// Makes the lists trustworthy again, and reports the uptime.
    pub(super) async fn show_lists(&mut self) -> Result<()> {
        self.environment.hidden_lists = None;
        self.environment.current.up_time_shown = true;
        self.send_environment().await
    }

    /// Sends the environment to the NAS, which forgets it when it restarts.
    pub(super) async fn send_environment(&mut self) -> Result<()> {
        let EnvironmentState {
            current,
            hidden_lists,
            ..
        } = &self.environment;
        for settings in [current.settings(), HiddenLists::settings(*hidden_lists)] {
            self.bed.patch_control("/settings", settings).await?;
        }
        let crashed = *hidden_lists == Some(HiddenLists::Crashed);
        let first = json!({"status": current.volume});
        let second = if crashed {
            json!({"status": "crashed", "without": ["size_free_byte"]})
        } else {
            json!({"status": current.volume, "without": []})
        };
        self.bed.patch_control("/volumes/volume1", first).await?;
        self.bed.patch_control("/volumes/volume2", second).await?;
        Ok(())
    }

    /// The CO's backoff after try number `attempt`; the first is 0. After the second failed try the lists of the NAS can be
    /// trusted again.
    pub(super) async fn wait(&mut self, attempt: usize) -> Result<()> {
        self.bed.pause(PAUSE * (1 << attempt.min(6))).await;
        if attempt > 0 && self.environment.hidden_lists.take().is_some() {
            self.send_environment().await?;
        }
        Ok(())
    }

    /// A CO that retries gets two observations a minute apart, and the NAS reports a long uptime.
    pub(super) fn waits_past_a_minute(&self) -> bool {
        self.bed.can_wait_minutes() && self.environment.current.up_time_shown
    }

    /// Edits a volume's LUN by hand in SAN Manager.
    pub(super) async fn edit_by_hand(&mut self, volume: u8, what: ManualEdit) -> Result<()> {
        if !self.model.volumes.contains_key(&volume) {
            return Ok(());
        }
        self.environment.made += 1;
        let made = self.environment.made;
        match what {
            ManualEdit::Rename => {
                let name = json!({"name": format!("renamed-{made}")});
                self.edit_in_san_manager(volume, "rename", name).await?;
            }
            ManualEdit::Describe => {
                let description = self.description(volume).await?;
                let bare = description
                    .strip_prefix(BEFORE)
                    .and_then(|text| text.strip_suffix(AFTER));
                let text = bare.map_or_else(
                    || format!("{BEFORE}{description}{AFTER}"),
                    ToOwned::to_owned,
                );
                self.describe(volume, &text).await?;
            }
            ManualEdit::Unmark => {
                self.in_scenario = true;
                self.remove_owner_tag(volume).await?;
                self.in_scenario = false;
            }
            ManualEdit::Snapshot { locked } => {
                let name = json!({"name": format!("by-hand-{made}"), "locked": locked});
                let made = self.edit_in_san_manager(volume, "snapshot", name).await?;
                let uuid = made["snapshot_uuid"].as_str().context("snapshot_uuid")?;
                if locked {
                    let of_volume = self.environment.locked.entry(volume).or_default();
                    of_volume.push(uuid.to_owned());
                }
            }
        }
        self.model.apply_step(&Step::EditByHand { volume, what });
        Ok(())
    }

    /// Deletes the volume's locked snapshots by hand before the volume is deleted.
    pub(super) async fn delete_locked_snapshots(&mut self, volume: u8) -> Result<()> {
        if self.model.expected(volume, CsiCall::Delete) != Expected::Done {
            return Ok(());
        }
        for snapshot in self.environment.locked.remove(&volume).unwrap_or_default() {
            let which = json!({"snapshot_uuid": snapshot});
            self.edit_in_san_manager(volume, "unsnapshot", which)
                .await?;
        }
        Ok(())
    }

    /// Overwrites the description: the driver must not touch the LUN, and must fail with a final code, until the owner tag is
    /// restored as its error message says.
    async fn remove_owner_tag(&mut self, volume: u8) -> Result<()> {
        let known = &self.model.volumes[&volume];
        let (node, size) = (known.published.unwrap_or(0), known.size);
        self.describe(volume, "Eve's, for the accounts of 2019")
            .await?;
        let before = self.bed.observe().await?;
        let more = CsiCall::Expand {
            mib: size / crate::MIB + 1,
        };
        let mut owner_tag = String::new();
        for rpc in [CsiCall::Delete, more, CsiCall::Publish { node }] {
            let status = self.refusal(volume, rpc).await?;
            ensure!(
                status.code() == Code::FailedPrecondition,
                "{rpc:?} of a LUN without owner tag: {status:?}"
            );
            let remedy = status.message().split_once("write \"");
            let quoted = remedy.and_then(|(_, rest)| Some(rest.split_once('"')?.0));
            quoted
                .with_context(|| format!("{rpc:?} does not name the owner tag: {status:?}"))?
                .clone_into(&mut owner_tag);
        }
        let after = self.bed.observe().await?;
        ensure!(
            before.luns == after.luns && before.targets == after.targets,
            "a LUN without owner tag was modified: {before:?}, then {after:?}"
        );
        self.describe(volume, &format!("{owner_tag} was lost"))
            .await
    }

    /// The final error of a call that is expected to be refused.
    async fn refusal(&mut self, volume: u8, rpc: CsiCall) -> Result<Status> {
        let mut last = None;
        for attempt in 0..TRIES {
            let answer = self.attempt(volume, rpc, Delivery::Once, 0).await.pop();
            self.restart_crashed().await?;
            match answer.context("one call, one answer")? {
                Ok(answer) => bail!("{rpc:?} returned {answer:?}"),
                Err(status) if transient(&status) => last = Some(status),
                Err(status) => {
                    self.messages.push(status.message().to_owned());
                    return Ok(status);
                }
            }
            self.wait(attempt).await?;
        }
        bail!("{rpc:?} was not refused in {TRIES} tries: {last:?}")
    }

    async fn description(&self, volume: u8) -> Result<String> {
        let (seen, test_volume) = (self.bed.observe().await?, &self.volumes[&volume]);
        let lun = seen
            .luns
            .get(test_volume.uuid())
            .context("the volume's LUN")?;
        Ok(lun.description.clone())
    }

    async fn describe(&mut self, volume: u8, text: &str) -> Result<()> {
        let text = json!({"description": text});
        self.edit_in_san_manager(volume, "describe", text)
            .await
            .map(drop)
    }

    /// Retries until it succeeds: a NAS that is starting lists nothing.
    async fn edit_in_san_manager(
        &mut self,
        volume: u8,
        action: &str,
        mut arguments: Value,
    ) -> Result<Value> {
        if action != "unsnapshot" {
            arguments["uuid"] = json!(self.volumes[&volume].uuid());
        }
        let mut last = None;
        for attempt in 0..TRIES {
            match self
                .bed
                .post_control(&format!("/san/luns/{action}"), arguments.clone())
                .await
            {
                Ok(done) => return Ok(done),
                Err(error) => last = Some(error),
            }
            self.wait(attempt).await?;
        }
        let last = last.context("no try")?;
        Err(last.context(format!("{action} in SAN Manager, {arguments}")))
    }

    /// Reinstalls a node: it loses everything, and comes back under its name with another initiator.
    pub(super) async fn reimage(&mut self, node: usize) -> Result<()> {
        self.environment.made += 1;
        let initiator = format!("iqn.1993-08.org.debian:01:new-{}", self.environment.made);
        self.bed.reimage(node, &initiator).await?;
        let info = csi::NodeGetInfoRequest {};
        let answer = self.bed.clients(0, node).node().node_get_info(info).await?;
        let node_id = answer.into_inner().node_id;
        ensure!(
            !self.node_ids.contains(&node_id),
            "another initiator has the same node id: {node_id}"
        );
        self.node_ids[node] = node_id;
        self.model.apply_step(&Step::Reimage { node });
        Ok(())
    }

    /// The driver must never have tried to modify a foreign object.
    pub(super) fn ensure_foreign_untouched(&self, journal: &[String]) -> Result<()> {
        let is_foreign = |line: &str| {
            ODD_ROWS.iter().any(|odd| line.contains(odd))
                || self.foreign.luns.keys().any(|uuid| line.contains(uuid))
        };
        let is_change = |line: &&String| CHANGES.iter().any(|call| line.contains(call));
        let found = journal
            .iter()
            .find(|line| is_change(line) && is_foreign(line));
        ensure!(
            found.is_none(),
            "the driver tried to change a foreign object: {found:?}"
        );
        Ok(())
    }
}
