//! A file system that may only be read. Where one pod may only read it, it grows all the same; where it is mounted
//! read-only altogether, it keeps its size until it is mounted to be written (design.md#node-expansion-is-always-required).

use anyhow::{Context as _, Result, ensure};
use e2e::model::step::CsiCall;
use e2e::testbed::TestBed;
use e2e::testbed::pool::TestBedPool;
use e2e::{MIB, model};
use tokio::time::Instant;

use super::{Outcome, Run, VOLUME};
use crate::fault::ExpandMode;
use crate::plan::{LARGE, NODE, SMALL};

const EXPAND: CsiCall = CsiCall::Expand { mib: LARGE };

impl<P: TestBed, G: TestBedPool> Run<'_, '_, P, G> {
    pub(super) async fn read_only(&mut self) -> Result<(Outcome, u128)> {
        let outcome = match self.cell.way {
            ExpandMode::Online => self.pod_reads().await.context("a pod that may only read")?,
            ExpandMode::Offline => self.all_read().await.context("mounted read-only")?,
        };
        let start = Instant::now();
        if self.cell.way == ExpandMode::Offline {
            self.must(&[CsiCall::NodeUnpublish, CsiCall::Unstage])
                .await?;
            self.executor.volume(VOLUME)?.mount_flags.clear();
            self.must(&[CsiCall::Stage, CsiCall::NodePublish]).await?;
        } else {
            self.must(&[CsiCall::NodeUnpublish, CsiCall::NodePublish])
                .await?;
        }
        self.must(&[CsiCall::NodeExpand]).await?;
        let ms = start.elapsed().as_millis();
        self.has_grown().await.context("writable again")?;
        Ok((outcome, ms))
    }

    /// The volume is staged to be written, so it can grow.
    async fn pod_reads(&mut self) -> Result<Outcome> {
        self.must(&[CsiCall::NodeUnpublish, CsiCall::NodePublishReadonly])
            .await?;
        self.executor.check_invariants().await?;
        self.must(&[EXPAND, CsiCall::NodeExpand]).await?;
        self.executor.check_invariants().await?;
        Ok(Outcome::Grew)
    }

    /// Nothing can be written, not even a larger superblock; and nothing is damaged.
    async fn all_read(&mut self) -> Result<Outcome> {
        let down = [
            CsiCall::NodeUnpublish,
            CsiCall::Unstage,
            CsiCall::Unpublish { node: NODE },
        ];
        self.must(&down).await?;
        self.executor.volume(VOLUME)?.mount_flags = vec!["ro".to_owned()];
        let up = [
            EXPAND,
            CsiCall::Publish { node: NODE },
            CsiCall::Stage,
            CsiCall::NodePublish,
        ];
        self.must(&up).await?;
        self.must(&[CsiCall::NodeExpand]).await?;
        let volume = self.executor.volume(VOLUME)?.clone();
        let written = data(self.executor.model())?;
        let read = self.executor.bed().read(&volume, NODE)?;
        ensure!(
            read == written,
            "{read} is read where {written} was written"
        );
        let fills = |size: i64| size.unsigned_abs();
        let bed = self.executor.bed();
        ensure!(
            bed.fs_fills_device(&volume, NODE, fills(SMALL * MIB))?,
            "it does not fill what it had"
        );
        let grew = bed.fs_fills_device(&volume, NODE, fills(LARGE * MIB))?;
        ensure!(!grew, "a file system that is mounted read-only has grown");
        Ok(Outcome::Kept)
    }
}

fn data(model: &model::reference_model::ReferenceModel) -> Result<u64> {
    let known = model.volumes.get(&VOLUME).context("no such volume")?;
    known.data.context("nothing was written")
}
