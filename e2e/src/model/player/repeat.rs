//! Calls that are made again, as a CO does, until they have come to what is due.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tonic::Status;

use super::{Answer, Player, call, meets, transient, wanted};
use crate::model::book::Due;
use crate::model::step::{Act, How};
use crate::plane::Plane;

impl<P: Plane> Player<'_, P> {
    /// Makes a call until it has come to what is due, and then once more: the same call, the same answer.
    pub(in crate::model) async fn settle(
        &mut self,
        volume: u8,
        act: Act,
        how: How,
        controller: usize,
        tries: usize,
    ) -> Result<()> {
        for other in self.instead(volume, act) {
            Box::pin(self.settle(volume, other, how, controller, tries))
                .await
                .with_context(|| format!("{other:?} instead of {act:?}"))?;
        }
        let due = self.book.due(volume, act);
        if due == Due::Idle {
            return Ok(());
        }
        self.prepare(volume, act).await?;
        let (hits, promised) = (self.plane.hits()?, self.book.promised(volume));
        let first = self.until(volume, act, how, controller, due, tries).await?;
        self.note(volume, act, first.as_ref())?;
        let misled = act == Act::Stage && self.plane.hits()? > hits;
        if misled {
            // A kernel that takes the word to ask a disk anew, and does not, cannot be seen through by a call that names no size.
            self.book.promise(volume, promised);
        }
        if !self.beside {
            // Before a repetition could make good what the first answer promised.
            self.look().await?;
        }
        // After a deletion it is another call: for a volume that is not there.
        let (hits, due) = (self.plane.hits()?, self.book.due(volume, act));
        let again = self
            .until(volume, act, How::Once, controller, due, tries)
            .await
            .context("the same call again")?;
        let same = first == again;
        ensure!(same, "it was answered {first:?}, then {again:?}");
        if misled && self.plane.hits()? == hits {
            // Nothing has misled this one: what it answered is a promise.
            self.book.settle(volume, act);
        }
        Ok(())
    }

    /// Makes a call until it has come to what is due. `None` for a failure that was due.
    pub(in crate::model) async fn until(
        &mut self,
        volume: u8,
        act: Act,
        how: How,
        controller: usize,
        due: Due,
        tries: usize,
    ) -> Result<Option<Answer>> {
        let (mut last, mut answered) = (None, None);
        for attempt in 0..tries {
            let how = if attempt == 0 { how } else { How::Once };
            let hits = self.plane.hits()?;
            let answers = self.attempt(volume, act, how, controller).await;
            // Each of two callers asks until it is answered.
            let mut open = false;
            for answer in answers {
                match answer {
                    Ok(answer) => {
                        meets(&answer, due)?;
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
                        } else if wanted(due).contains(&status.code()) {
                            answered.get_or_insert(None);
                        } else {
                            self.gave_up(&status, hits).await?;
                            last = Some(status);
                        }
                    }
                }
            }
            let died = self.revive().await?;
            if let (Some(done), false) = (&answered, open) {
                return Ok(done.clone());
            }
            if attempt + 1 < tries && !died {
                self.wait(attempt).await?;
            }
        }
        bail!("it does not come to {due:?} in {tries} tries; the last answer: {last:?}")
    }

    /// After a final code the CO may forget the matter: it must have had a reason, and all must be as before.
    async fn gave_up(&mut self, status: &Status, hits: usize) -> Result<()> {
        ensure!(
            self.plane.hits()? > hits,
            "a final code, and nothing has gone wrong on the node: {status:?}"
        );
        if self.amid {
            return Ok(());
        }
        let left = || {
            format!(
                "after the final code {:?}: {}",
                status.code(),
                status.message()
            )
        };
        self.look().await.with_context(left)
    }

    pub(in crate::model) async fn attempt(
        &mut self,
        volume: u8,
        act: Act,
        how: How,
        controller: usize,
    ) -> Vec<Result<Answer, Status>> {
        let life = self.lives.get(&volume).cloned();
        let node = self
            .book
            .volumes
            .get(&volume)
            .and_then(|known| known.published);
        let node_id = if let Act::Publish { node } | Act::Unpublish { node } = act {
            self.node_ids[node].clone()
        } else {
            String::new()
        };
        let size = self.book.volumes.get(&volume).map_or(0, |known| known.size);
        let one = |controller: usize| {
            let seat = self.plane.seat(controller, node.unwrap_or(0));
            let (life, node_id) = (life.clone(), node_id.clone());
            async move { call(&seat, volume, life, act, &node_id, size).await }
        };
        match how {
            How::Once => {
                self.tally.calls += 1;
                vec![one(controller).await]
            }
            How::Twice | How::Rivals => {
                self.tally.calls += 2;
                let other = if how == How::Rivals {
                    1 - controller
                } else {
                    controller
                };
                let (first, second) = futures::join!(one(controller), one(other));
                vec![first, second]
            }
            How::Cancelled(millis) => {
                self.tally.calls += 1;
                let call = tokio::time::timeout(Duration::from_millis(millis), one(controller));
                let late = |_| Err(Status::unavailable("the CO did not wait"));
                vec![call.await.unwrap_or_else(late)]
            }
        }
    }
}
