//! A read-only file system. If only a pod mounts it read-only, it grows anyway; if the staging mount is
//! read-only, it keeps its size until it is mounted writable (design.md#node-expansion-is-always-required).

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
            ExpandMode::Online => self
                .pod_readonly()
                .await
                .context("a pod that may only read")?,
            ExpandMode::Offline => self.staging_readonly().await.context("mounted read-only")?,
        };
        let start = Instant::now();
        if self.cell.way == ExpandMode::Offline {
            self.call_all(&[CsiCall::NodeUnpublish, CsiCall::Unstage])
                .await?;
            self.executor.volume(VOLUME)?.mount_flags.clear();
            self.call_all(&[CsiCall::Stage, CsiCall::NodePublish])
                .await?;
        } else {
            self.call_all(&[CsiCall::NodeUnpublish, CsiCall::NodePublish])
                .await?;
        }
        self.call_all(&[CsiCall::NodeExpand]).await?;
        let ms = start.elapsed().as_millis();
        self.has_grown().await.context("writable again")?;
        Ok((outcome, ms))
    }

    /// The volume is staged writable, so it can grow.
    async fn pod_readonly(&mut self) -> Result<Outcome> {
        self.call_all(&[CsiCall::NodeUnpublish, CsiCall::NodePublishReadonly])
            .await?;
        self.executor.check_invariants().await?;
        self.call_all(&[EXPAND, CsiCall::NodeExpand]).await?;
        self.executor.check_invariants().await?;
        Ok(Outcome::Grew)
    }

    /// The staging mount is read-only, so even the superblock cannot be rewritten; and nothing is damaged.
    async fn staging_readonly(&mut self) -> Result<Outcome> {
        let down = [
            CsiCall::NodeUnpublish,
            CsiCall::Unstage,
            CsiCall::Unpublish { node: NODE },
        ];
        self.call_all(&down).await?;
        self.executor.volume(VOLUME)?.mount_flags = vec!["ro".to_owned()];
        let up = [
            EXPAND,
            CsiCall::Publish { node: NODE },
            CsiCall::Stage,
            CsiCall::NodePublish,
        ];
        self.call_all(&up).await?;
        self.call_all(&[CsiCall::NodeExpand]).await?;
        let volume = self.executor.volume(VOLUME)?.clone();
        let written = data(self.executor.model())?;
        let read = self.executor.bed().read(&volume, NODE)?;
        ensure!(read == written, "{read} is read, but {written} was written");
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
