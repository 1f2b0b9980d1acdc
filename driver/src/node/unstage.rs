//! NodeUnstageVolume: unmounts, logs out, deletes the node records. Works without a reachable NAS and without a readable disk
//! (design.md#unstage-needs-no-nas).

use std::time::Duration;

use super::Machine;
use super::attachment::Attachment;
use super::request::Unstage;
use crate::error::{Context as _, Error};
use crate::host::Host;
use crate::host::disk::{self, Block};

/// How long the kernel may take to shut a file system down after its last mount is gone: if umount was killed, that happens
/// in the background.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(3);

impl<H: Host> Machine<H> {
    /// Idempotent: succeeds if already unstaged.
    pub(super) async fn unstage(&self, request: &Unstage) -> Result<(), Error> {
        let action = Box::pin(self.teardown(request));
        self.with_queueing_timeout(&request.volume.uuid, action)
            .await
    }

    async fn teardown(&self, request: &Unstage) -> Result<(), Error> {
        let all = self.attachments_by_target(&request.volume.uuid).await?;
        let blocks: Vec<Block> = all.iter().flat_map(Attachment::blocks).collect();
        if let Some(staging) = self.resolve(&request.staging).await? {
            self.must_be_unpublished(request, &staging, &blocks).await?;
            self.remove_temp_mount(&staging, &blocks).await?;
            self.clear(&staging, &blocks).await?;
        }
        for attachment in &all {
            self.must_be_unused(attachment).await?;
            self.detach(attachment).await?;
        }
        // Records may exist without a session, also those of an earlier publication.
        self.delete_records_of(request).await
    }

    /// A logout while a pod has the volume mounted would lose its unwritten data.
    async fn must_be_unpublished(
        &self,
        request: &Unstage,
        staging: &str,
        blocks: &[Block],
    ) -> Result<(), Error> {
        let others = self.pod_mount_points(staging, self.mount_points(blocks).await?);
        if others.is_empty() {
            return Ok(());
        }
        Err(Error::Refused {
            what: format!("unstaging volume {}", request.volume),
            seen: format!("it is still mounted at {}", others.join(", ")),
            remedy: "unpublish it there first".to_owned(),
        })
    }

    /// The file system may still be mounted in another mount namespace; an exclusive open shows that. Checked only while the
    /// session has its target: with a lost target nothing can be written any more, so there is no point in waiting.
    pub(super) async fn must_be_unused(&self, attachment: &Attachment) -> Result<(), Error> {
        if !attachment.is_alive() {
            return Ok(());
        }
        let mut used: Vec<&Block> = match &attachment.map {
            // The map itself claims its paths.
            Some(map) => vec![&map.block],
            None => attachment.disks.iter().map(|disk| &disk.block).collect(),
        };
        used.extend(attachment.foreign_disks.iter().map(|disk| &disk.block));
        for block in used {
            let node = block.node();
            // On an error the disk cannot even be opened, so it cannot be in use.
            let free = || async {
                let claimed = matches!(self.host.is_claimed(&node).await, Ok(true));
                Ok((!claimed).then_some(()))
            };
            let released = disk::poll_until(&self.host, RELEASE_TIMEOUT, free);
            if released.await.context("checking what uses it")?.is_none() {
                return Err(Error::NotReady {
                    what: format!("the release of {node}"),
                    seen: format!(
                        "it is unmounted here, but something on this node still uses it: {}",
                        self.who_holds(block).await
                    ),
                });
            }
        }
        Ok(())
    }

    async fn delete_records_of(&self, request: &Unstage) -> Result<(), Error> {
        for iqn in self.records_of(Some(&request.volume.uuid)).await? {
            self.delete_records(&iqn).await?;
        }
        Ok(())
    }
}
