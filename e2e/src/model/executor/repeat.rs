//! Retries calls, as a CO does, until the expected result.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tonic::Status;

use super::{Answer, Executor, call, ensure_expected, expected_codes, transient};
use crate::model::reference_model::Expected;
use crate::model::step::{CsiCall, Delivery};
use crate::testbed::TestBed;

impl<P: TestBed> Executor<'_, P> {
    /// Retries a call until its expected result, then makes the same call once more: it must have the same answer.
    pub(in crate::model) async fn call_until_stable(
        &mut self,
        volume: u8,
        act: CsiCall,
        how: Delivery,
        controller: usize,
        tries: usize,
    ) -> Result<()> {
        for other in self.fallback_calls(volume, act) {
            Box::pin(self.call_until_stable(volume, other, how, controller, tries))
                .await
                .with_context(|| format!("{other:?} instead of {act:?}"))?;
        }
        let due = self.model.expected(volume, act);
        if due == Expected::Idle {
            return Ok(());
        }
        self.prepare(volume, act).await?;
        let (hits, promised) = (self.bed.fault_hits()?, self.model.promised(volume));
        let first = self
            .retry_until_expected(volume, act, how, controller, due, tries)
            .await?;
        self.record(volume, act, first.as_ref())?;
        let misled = act == CsiCall::Stage && self.bed.fault_hits()? > hits;
        if misled {
            // If the kernel accepts a rescan and does nothing, a call that names no size cannot notice it.
            self.model.promise(volume, promised);
        }
        if !self.beside {
            // Check now, before the repetition can make up for what the first answer promised.
            self.check_invariants().await?;
        }
        // After a deletion the expected result differs: the volume is not there.
        let (hits, due) = (self.bed.fault_hits()?, self.model.expected(volume, act));
        let again = self
            .retry_until_expected(volume, act, Delivery::Once, controller, due, tries)
            .await
            .context("the same call again")?;
        let same = first == again;
        ensure!(same, "it was answered {first:?}, then {again:?}");
        if misled && self.bed.fault_hits()? == hits {
            // No fault has hit the repetition: its answer is reliable.
            self.model.apply_call(volume, act);
        }
        Ok(())
    }

    /// Retries a call until its expected result. Returns `None` for an expected failure.
    pub(in crate::model) async fn retry_until_expected(
        &mut self,
        volume: u8,
        act: CsiCall,
        how: Delivery,
        controller: usize,
        due: Expected,
        tries: usize,
    ) -> Result<Option<Answer>> {
        let (mut last, mut answered) = (None, None);
        for attempt in 0..tries {
            let how = if attempt == 0 { how } else { Delivery::Once };
            let hits = self.bed.fault_hits()?;
            let answers = self.attempt(volume, act, how, controller).await;
            // Two concurrent callers both retry until they have an answer.
            let mut open = false;
            for answer in answers {
                match answer {
                    Ok(answer) => {
                        ensure_expected(&answer, due)?;
                        if let Some(Some(before)) = &answered {
                            ensure!(*before == answer, "{before:?} before, and now {answer:?}");
                        }
                        answered = Some(Some(answer));
                    }
                    Err(status) => {
                        self.said.push(status.message().to_owned());
                        if transient(&status) {
                            open = true;
                            last = Some(status);
                        } else if expected_codes(due).contains(&status.code()) {
                            answered.get_or_insert(None);
                        } else {
                            self.ensure_justified_failure(&status, hits).await?;
                            last = Some(status);
                        }
                    }
                }
            }
            let died = self.restart_crashed().await?;
            if let (Some(done), false) = (&answered, open) {
                return Ok(done.clone());
            }
            if attempt + 1 < tries && !died {
                self.wait(attempt).await?;
            }
        }
        bail!("it does not come to {due:?} in {tries} tries; the last answer: {last:?}")
    }

    /// After a final code the CO may give up: there must have been a fault, and the state must be as before the call.
    async fn ensure_justified_failure(&mut self, status: &Status, hits: usize) -> Result<()> {
        ensure!(
            self.bed.fault_hits()? > hits,
            "a final code, and nothing has gone wrong on the node: {status:?}"
        );
        if self.in_scenario {
            return Ok(());
        }
        let left = || {
            format!(
                "after the final code {:?}: {}",
                status.code(),
                status.message()
            )
        };
        self.check_invariants().await.with_context(left)
    }

    pub(in crate::model) async fn attempt(
        &mut self,
        volume: u8,
        act: CsiCall,
        how: Delivery,
        controller: usize,
    ) -> Vec<Result<Answer, Status>> {
        let life = self.volumes.get(&volume).cloned();
        let node = self
            .model
            .volumes
            .get(&volume)
            .and_then(|known| known.published);
        let node_id = if let CsiCall::Publish { node } | CsiCall::Unpublish { node } = act {
            self.node_ids[node].clone()
        } else {
            String::new()
        };
        let size = self
            .model
            .volumes
            .get(&volume)
            .map_or(0, |known| known.size);
        let one = |controller: usize| {
            let seat = self.bed.clients(controller, node.unwrap_or(0));
            let (life, node_id) = (life.clone(), node_id.clone());
            async move { call(&seat, volume, life, act, &node_id, size).await }
        };
        match how {
            Delivery::Once => {
                self.tally.calls += 1;
                vec![one(controller).await]
            }
            Delivery::Twice | Delivery::TwoControllers => {
                self.tally.calls += 2;
                let other = if how == Delivery::TwoControllers {
                    1 - controller
                } else {
                    controller
                };
                let (first, second) = futures::join!(one(controller), one(other));
                vec![first, second]
            }
            Delivery::Cancelled(millis) => {
                self.tally.calls += 1;
                let call = tokio::time::timeout(Duration::from_millis(millis), one(controller));
                let late = |_| Err(Status::unavailable("the CO did not wait"));
                vec![call.await.unwrap_or_else(late)]
            }
        }
    }
}
