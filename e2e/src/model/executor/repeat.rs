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
        rpc: CsiCall,
        delivery: Delivery,
        controller: usize,
        tries: usize,
    ) -> Result<()> {
        for other in self.fallback_calls(volume, rpc) {
            Box::pin(self.call_until_stable(volume, other, delivery, controller, tries))
                .await
                .with_context(|| format!("{other:?} instead of {rpc:?}"))?;
        }
        let expected = self.model.expected(volume, rpc);
        if expected == Expected::Idle {
            return Ok(());
        }
        self.prepare(volume, rpc).await?;
        let (hits, promised) = (self.bed.fault_hits()?, self.model.promised(volume));
        let first = self
            .retry_until_expected(volume, rpc, delivery, controller, expected, tries)
            .await?;
        self.record(volume, rpc, first.as_ref())?;
        let unreliable = rpc == CsiCall::Stage && self.bed.fault_hits()? > hits;
        if unreliable {
            // If the kernel accepts a rescan and does nothing, a call that names no size cannot notice it.
            self.model.promise(volume, promised);
        }
        if !self.concurrent {
            // Check now, before the repetition can make up for what the first answer promised.
            self.check_invariants().await?;
        }
        // After a deletion the expected result differs: the volume is not there.
        let (hits, expected) = (self.bed.fault_hits()?, self.model.expected(volume, rpc));
        let again = self
            .retry_until_expected(volume, rpc, Delivery::Once, controller, expected, tries)
            .await
            .context("repeating the same call")?;
        let same = first == again;
        ensure!(same, "the first answer was {first:?}, the second {again:?}");
        if unreliable && self.bed.fault_hits()? == hits {
            // No fault has hit the repetition: its answer is reliable.
            self.model.apply_call(volume, rpc);
        }
        Ok(())
    }

    /// Retries a call until its expected result. Returns `None` for an expected failure.
    pub(in crate::model) async fn retry_until_expected(
        &mut self,
        volume: u8,
        rpc: CsiCall,
        delivery: Delivery,
        controller: usize,
        expected: Expected,
        tries: usize,
    ) -> Result<Option<Answer>> {
        let (mut last, mut answered) = (None, None);
        for attempt in 0..tries {
            let delivery = if attempt == 0 {
                delivery
            } else {
                Delivery::Once
            };
            let hits = self.bed.fault_hits()?;
            let answers = self.attempt(volume, rpc, delivery, controller).await;
            // Two concurrent callers both retry until they have an answer.
            let mut unanswered = false;
            for answer in answers {
                match answer {
                    Ok(answer) => {
                        ensure_expected(&answer, expected)?;
                        if let Some(Some(before)) = &answered {
                            ensure!(*before == answer, "{before:?} at first, then {answer:?}");
                        }
                        answered = Some(Some(answer));
                    }
                    Err(status) => {
                        self.messages.push(status.message().to_owned());
                        if transient(&status) {
                            unanswered = true;
                            last = Some(status);
                        } else if expected_codes(expected).contains(&status.code()) {
                            answered.get_or_insert(None);
                        } else {
                            self.ensure_justified_failure(&status, hits).await?;
                            last = Some(status);
                        }
                    }
                }
            }
            let crashed = self.restart_crashed().await?;
            if let (Some(done), false) = (&answered, unanswered) {
                return Ok(done.clone());
            }
            if attempt + 1 < tries && !crashed {
                self.wait(attempt).await?;
            }
        }
        bail!("not {expected:?} after {tries} tries; the last answer: {last:?}")
    }

    /// After a final code the CO may give up: there must have been a fault, and the state must be as before the call.
    async fn ensure_justified_failure(&mut self, status: &Status, hits: usize) -> Result<()> {
        ensure!(
            self.bed.fault_hits()? > hits,
            "a final code without a fault on the node: {status:?}"
        );
        if self.in_scenario {
            return Ok(());
        }
        let context = || {
            format!(
                "after the final code {:?}: {}",
                status.code(),
                status.message()
            )
        };
        self.check_invariants().await.with_context(context)
    }

    pub(in crate::model) async fn attempt(
        &mut self,
        volume: u8,
        rpc: CsiCall,
        delivery: Delivery,
        controller: usize,
    ) -> Vec<Result<Answer, Status>> {
        let test_volume = self.volumes.get(&volume).cloned();
        let node = self
            .model
            .volumes
            .get(&volume)
            .and_then(|known| known.published);
        let node_id = if let CsiCall::Publish { node } | CsiCall::Unpublish { node } = rpc {
            self.node_ids[node].clone()
        } else {
            String::new()
        };
        let size = self
            .model
            .volumes
            .get(&volume)
            .map_or(0, |known| known.size);
        let call_controller = |controller: usize| {
            let clients = self.bed.clients(controller, node.unwrap_or(0));
            let (test_volume, node_id) = (test_volume.clone(), node_id.clone());
            async move { call(&clients, volume, test_volume, rpc, &node_id, size).await }
        };
        match delivery {
            Delivery::Once => {
                self.tally.calls += 1;
                vec![call_controller(controller).await]
            }
            Delivery::Twice | Delivery::TwoControllers => {
                self.tally.calls += 2;
                let other = if delivery == Delivery::TwoControllers {
                    1 - controller
                } else {
                    controller
                };
                let (first, second) =
                    futures::join!(call_controller(controller), call_controller(other));
                vec![first, second]
            }
            Delivery::Cancelled(millis) => {
                self.tally.calls += 1;
                let call = tokio::time::timeout(
                    Duration::from_millis(millis),
                    call_controller(controller),
                );
                let cancelled = |_| Err(Status::unavailable("the CO cancelled the call"));
                vec![call.await.unwrap_or_else(cancelled)]
            }
        }
    }
}
