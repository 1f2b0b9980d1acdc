//! Single calls, for the crash search and the fault matrix, which check the result of each one.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tonic::Status;

use super::{Executor, ensure_expected, transient};
use crate::harness::test_volume::TestVolume;
use crate::model::invariants;
use crate::model::reference_model::{Expected, ReferenceModel};
use crate::model::step::{CsiCall, Delivery, Step};
use crate::testbed::TestBed;

/// After this time the NAS has executed a request, or never will.
const SETTLE_TIME: Duration = Duration::from_millis(100);

impl<P: TestBed> Executor<'_, P> {
    /// The test bed.
    pub fn bed(&mut self) -> &mut P {
        self.bed
    }

    /// The reference model.
    pub fn model(&self) -> &ReferenceModel {
        &self.model
    }

    /// The volume's arguments for CSI calls.
    ///
    /// # Errors
    /// There is no such volume.
    pub fn volume(&mut self, volume: u8) -> Result<&mut TestVolume> {
        self.volumes.get_mut(&volume).context("no such volume")
    }

    /// Makes a call once, without retries, and records a success. After a final code all invariants must hold, unless a
    /// process has crashed during the call.
    ///
    /// # Errors
    /// A success that was not expected, or an invariant is violated.
    pub async fn call_once(&mut self, volume: u8, rpc: CsiCall) -> Result<Result<(), Status>> {
        let expected = self.model.expected(volume, rpc);
        ensure!(
            matches!(expected, Expected::Done | Expected::Size(_)),
            "no CO would call {rpc:?} now: {expected:?}"
        );
        self.prepare(volume, rpc).await?;
        let mut answers = self.attempt(volume, rpc, Delivery::Once, 0).await;
        match answers.pop().context("one call, one answer")? {
            Ok(answer) => {
                ensure_expected(&answer, expected)?;
                self.record(volume, rpc, Some(&answer))?;
                Ok(Ok(()))
            }
            Err(status) => {
                self.messages.push(status.message().to_owned());
                if !transient(&status) && self.bed.crashed_processes().is_empty() {
                    let context = || {
                        format!(
                            "after the final code {:?}: {}",
                            status.code(),
                            status.message()
                        )
                    };
                    self.check_invariants().await.with_context(context)?;
                }
                Ok(Err(status))
            }
        }
    }

    /// Makes a call that must succeed at the first try, and then the same call again.
    ///
    /// # Errors
    /// One of them fails, or an invariant is violated.
    pub async fn call_and_repeat(&mut self, volume: u8, rpc: CsiCall) -> Result<()> {
        self.call_until_stable(volume, rpc, Delivery::Once, 0, 1)
            .await
            .with_context(|| format!("{rpc:?}"))
    }

    /// Runs a step that is not a call: a pod writes, a node loses power.
    ///
    /// # Errors
    /// An invariant is violated.
    pub async fn run_event(&mut self, step: &Step) -> Result<()> {
        Box::pin(self.run_step(step)).await
    }

    /// Detaches and deletes a volume when it is not known how far the last call got: the state matches the model only at the end.
    ///
    /// # Errors
    /// A call does not have its expected result with one retry.
    pub async fn tear_down(&mut self, volume: u8) -> Result<()> {
        let node = self.model.volumes.get(&volume);
        let node = node.and_then(|known| known.published).unwrap_or(0);
        let unpublish = CsiCall::Unpublish { node };
        for rpc in [
            CsiCall::NodeUnpublish,
            CsiCall::Unstage,
            unpublish,
            CsiCall::Delete,
        ] {
            let expected = self.model.expected(volume, rpc);
            if expected == Expected::Idle || !self.volumes.contains_key(&volume) {
                continue;
            }
            let done = self
                .retry_until_expected(volume, rpc, Delivery::Once, 0, expected, 2)
                .await
                .with_context(|| format!("{rpc:?}"))?;
            self.record(volume, rpc, done.as_ref())?;
        }
        Ok(())
    }

    /// Clears faults, waits for everything in progress, and deletes all volumes. Returns what is left, as text.
    ///
    /// # Errors
    /// A call does not have its expected result with one retry.
    pub async fn remove_all_and_list_leftovers(mut self) -> Result<Vec<String>> {
        self.bed.clear_faults().await?;
        self.restart_crashed().await?;
        self.bed.pause(SETTLE_TIME).await;
        self.remove_all().await?;
        let seen = self.bed.observe().await?;
        let left = invariants::leftovers(&self.foreign, &seen);
        if left.is_empty() {
            self.check_invariants().await.context("at the end")?;
        }
        self.ensure_no_violations().await?;
        Ok(left)
    }
}
