//! A player's calls one by one, for those who look at what comes of each: the crash search and the fault matrix.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tonic::Status;

use super::{Player, meets, transient};
use crate::life::Life;
use crate::model::book::{Book, Due};
use crate::model::judge;
use crate::model::step::{Act, How, Step};
use crate::plane::Plane;

/// A NAS has done what it was asked, or never will, after this.
const SOON: Duration = Duration::from_millis(100);

impl<P: Plane> Player<'_, P> {
    /// What it plays on.
    pub fn plane(&mut self) -> &mut P {
        self.plane
    }

    /// What it believes.
    pub fn book(&self) -> &Book {
        &self.book
    }

    /// How it asks for a volume.
    ///
    /// # Errors
    /// There is no such volume.
    pub fn life(&mut self, volume: u8) -> Result<&mut Life> {
        self.lives.get_mut(&volume).context("no such volume")
    }

    /// One call, and no other. What it has come to is written down; after a final code all must be as before, unless a
    /// process has died of the call.
    ///
    /// # Errors
    /// A success that is not due, or a property does not hold.
    pub async fn once(&mut self, volume: u8, act: Act) -> Result<Result<(), Status>> {
        let due = self.book.due(volume, act);
        ensure!(
            matches!(due, Due::Done | Due::Size(_)),
            "no CO would call {act:?} now: {due:?}"
        );
        self.prepare(volume, act).await?;
        let mut answers = self.attempt(volume, act, How::Once, 0).await;
        match answers.pop().context("one call, one answer")? {
            Ok(answer) => {
                meets(&answer, due)?;
                self.note(volume, act, Some(&answer))?;
                Ok(Ok(()))
            }
            Err(status) => {
                self.said.push(status.message().to_owned());
                if !transient(&status) && self.plane.dead().is_empty() {
                    let left =
                        || format!("after the final {:?}, {}", status.code(), status.message());
                    self.look().await.with_context(left)?;
                }
                Ok(Err(status))
            }
        }
    }

    /// A call that must succeed at once, and again.
    ///
    /// # Errors
    /// It does not, or a property does not hold.
    pub async fn perform(&mut self, volume: u8, act: Act) -> Result<()> {
        self.settle(volume, act, How::Once, 0, 1)
            .await
            .with_context(|| format!("{act:?}"))
    }

    /// A step that is no call: a pod writes, a node loses its power.
    ///
    /// # Errors
    /// A property does not hold.
    pub async fn happen(&mut self, step: &Step) -> Result<()> {
        Box::pin(self.take(step)).await
    }

    /// The way back of a CO that does not know how far its last call has come: nothing is as the book has it before the end.
    ///
    /// # Errors
    /// A call does not come to what is due with one repetition.
    pub async fn go_back(&mut self, volume: u8) -> Result<()> {
        let node = self.book.volumes.get(&volume);
        let node = node.and_then(|known| known.published).unwrap_or(0);
        let unpublish = Act::Unpublish { node };
        for act in [Act::Hide, Act::Unstage, unpublish, Act::Delete] {
            let due = self.book.due(volume, act);
            if due == Due::Idle || !self.lives.contains_key(&volume) {
                continue;
            }
            let done = self
                .until(volume, act, How::Once, 0, due, 2)
                .await
                .with_context(|| format!("{act:?}"))?;
            self.note(volume, act, done.as_ref())?;
        }
        Ok(())
    }

    /// Nothing that was begun goes on, and everything is taken away. What is left then, in words.
    ///
    /// # Errors
    /// A call does not come to what is due with one repetition.
    pub async fn leave(mut self) -> Result<Vec<String>> {
        self.plane.clear().await?;
        self.revive().await?;
        self.plane.pause(SOON).await;
        self.take_away().await?;
        let seen = self.plane.see().await?;
        let left = judge::leftovers(&self.foreign, &seen);
        if left.is_empty() {
            self.look().await.context("in the end")?;
        }
        self.must_have_behaved().await?;
        Ok(left)
    }
}
