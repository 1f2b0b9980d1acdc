//! A file system that may only be read. Where one pod may only read it, it grows all the same; where it is mounted
//! read-only altogether, it keeps its size until it is mounted to be written (design.md#node-expansion-is-always-required).

use anyhow::{Context as _, Result, ensure};
use e2e::grounds::Grounds;
use e2e::model::step::Act;
use e2e::plane::Plane;
use e2e::{MIB, model};
use tokio::time::Instant;

use super::{Course, Outcome, VOLUME};
use crate::fault::Way;
use crate::plan::{LARGE, NODE, SMALL};

const EXPAND: Act = Act::Expand { mib: LARGE };

impl<P: Plane, G: Grounds> Course<'_, '_, P, G> {
    pub(super) async fn read_only(&mut self) -> Result<(Outcome, u128)> {
        let outcome = match self.cell.way {
            Way::Online => self.pod_reads().await.context("a pod that may only read")?,
            Way::Offline => self.all_read().await.context("mounted read-only")?,
        };
        let start = Instant::now();
        if self.cell.way == Way::Offline {
            self.must(&[Act::Hide, Act::Unstage]).await?;
            self.player.life(VOLUME)?.mount_flags.clear();
            self.must(&[Act::Stage, Act::Show]).await?;
        } else {
            self.must(&[Act::Hide, Act::Show]).await?;
        }
        self.must(&[Act::ExpandNode]).await?;
        let ms = start.elapsed().as_millis();
        self.has_grown().await.context("writable again")?;
        Ok((outcome, ms))
    }

    /// The volume is staged to be written, so it can grow.
    async fn pod_reads(&mut self) -> Result<Outcome> {
        self.must(&[Act::Hide, Act::ShowReadonly]).await?;
        self.player.look().await?;
        self.must(&[EXPAND, Act::ExpandNode]).await?;
        self.player.look().await?;
        Ok(Outcome::Grew)
    }

    /// Nothing can be written, not even a larger superblock; and nothing is damaged.
    async fn all_read(&mut self) -> Result<Outcome> {
        let down = [Act::Hide, Act::Unstage, Act::Unpublish { node: NODE }];
        self.must(&down).await?;
        self.player.life(VOLUME)?.mount_flags = vec!["ro".to_owned()];
        let up = [EXPAND, Act::Publish { node: NODE }, Act::Stage, Act::Show];
        self.must(&up).await?;
        self.must(&[Act::ExpandNode]).await?;
        let life = self.player.life(VOLUME)?.clone();
        let written = data(self.player.book())?;
        let read = self.player.plane().read(&life, NODE)?;
        ensure!(
            read == written,
            "{read} is read where {written} was written"
        );
        let fills = |size: i64| size.unsigned_abs();
        let plane = self.player.plane();
        ensure!(
            plane.fills(&life, NODE, fills(SMALL * MIB))?,
            "it does not fill what it had"
        );
        let grew = plane.fills(&life, NODE, fills(LARGE * MIB))?;
        ensure!(!grew, "a file system that is mounted read-only has grown");
        Ok(Outcome::Kept)
    }
}

fn data(book: &model::book::Book) -> Result<u64> {
    let known = book.volumes.get(&VOLUME).context("no such volume")?;
    known.data.context("nothing was written")
}
