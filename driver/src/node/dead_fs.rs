//! Dead file systems: the kernel has shut them down after an error while they were mounted. They work again only after they
//! were unmounted everywhere and mounted again.
//!
//! | | how it is detected |
//! |---|---|
//! | ext4 after an error or an abort | `emergency_ro` or `shutdown` among the file system's options (Linux 6.15+), `ro` before |
//! | btrfs forced read-only | `ro` among the file system's options, and `rw` among the mount's |
//! | xfs shut down | not in the mount table; a stat of its root fails with EIO |
//!
//! A mount that was requested read-only, or whose disk is write-protected, shows `ro` in both places and is not dead.

use super::Machine;
use super::attachment::Attachment;
use crate::error::{Context as _, Error};
use crate::host::disk::{self, Block};
use crate::host::mount::Mount;
use crate::host::{Host, Stat};

/// How long the kernel may take to release the superblock after the last unmount.
const SUPERBLOCK_RELEASE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

impl<H: Host> Machine<H> {
    /// Why the file system of this mount is dead; `None` if it is not.
    pub(super) async fn why_dead(&self, mount: &Mount) -> Result<Option<String>, Error> {
        if let Some(why) = mount.why_dead() {
            return Ok(Some(why.to_owned()));
        }
        if mount.device_node().is_some() {
            return Ok(None);
        }
        match self.host.stat(&mount.point).await {
            Err(error) if error.is_io() => Ok(Some(
                "it returns only I/O errors: the kernel has shut it down".to_owned(),
            )),
            other => other
                .map(|_: Stat| None)
                .context(format!("checking {}", mount.point)),
        }
    }

    /// Unmounts a dead file system, so that it can be mounted again. Does nothing while a pod has it mounted: then this is an
    /// error.
    pub(super) async fn unmount_dead(
        &self,
        staging: &str,
        attachment: &Attachment,
        why: &str,
    ) -> Result<(), Error> {
        let blocks = attachment.blocks();
        let others = self.pod_mount_points(staging, self.all_mount_points(&blocks).await?);
        if !others.is_empty() {
            return Err(Error::NotReady {
                what: format!("the file system at {staging}"),
                seen: format!(
                    "it is dead ({why}) and still mounted at {}: delete the pods that use it there, and it is mounted again",
                    others.join(", ")
                ),
            });
        }
        tracing::warn!(staging, why, "unmounting a dead file system");
        self.remove_temp_mount(staging, &blocks).await?;
        self.clear(staging, &blocks).await?;
        for block in &blocks {
            self.wait_until_unused(block).await?;
        }
        Ok(())
    }

    /// Waits until the file system is unmounted in every mount namespace: until then a mount would return the same dead instance.
    pub(super) async fn wait_until_unused(&self, block: &Block) -> Result<(), Error> {
        let doing = format!("checking whether {} is still mounted", block.node());
        let gone = || async {
            let lives = disk::is_mounted_anywhere(&self.host, block).await?;
            Ok((!lives).then_some(()))
        };
        let gone = disk::poll_until(&self.host, SUPERBLOCK_RELEASE_TIMEOUT, gone).await;
        if gone.context(doing)?.is_some() {
            return Ok(());
        }
        Err(Error::NotReady {
            what: format!("mounting {} again", block.node()),
            seen: format!(
                "its file system is dead, and something on this node still has it mounted: {}",
                self.who_holds(block).await
            ),
        })
    }
}
