//! File systems that have died under their mounts: the kernel has given them up after an error, and no call of ours brings them
//! back but to unmount them everywhere and mount anew.
//!
//! | | what shows it |
//! |---|---|
//! | ext4 after an error or an abort | `emergency_ro` or `shutdown` among the file system's options (Linux 6.15), `ro` before |
//! | btrfs forced read-only | `ro` among the file system's options, and `rw` among the mount's |
//! | xfs shut down | nothing in the table; its root gives EIO |
//!
//! A mount that was asked to be read-only, or whose disk is write-protected, shows `ro` in both places and is none of these.

use super::Machine;
use super::attachment::Attachment;
use crate::error::{Context as _, Error};
use crate::host::disk::{self, Block};
use crate::host::mount::Mount;
use crate::host::{Host, Stat};

/// How long the kernel may take to forget a file system that was unmounted.
const SUPERBLOCK_RELEASE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

impl<H: Host> Machine<H> {
    /// Why the file system of this mount is dead.
    pub(super) async fn death_of(&self, mount: &Mount) -> Result<Option<String>, Error> {
        if let Some(why) = mount.death() {
            return Ok(Some(why.to_owned()));
        }
        if mount.device_node().is_some() {
            return Ok(None);
        }
        match self.host.stat(&mount.point).await {
            Err(error) if error.is_io() => Ok(Some(
                "it answers nothing but I/O errors: the kernel has shut it down".to_owned(),
            )),
            other => other
                .map(|_: Stat| None)
                .context(format!("looking at {}", mount.point)),
        }
    }

    /// Takes down what is left of a dead file system, so that it can be mounted anew. Nothing is touched while a pod has it.
    pub(super) async fn unmount_dead(
        &self,
        staging: &str,
        held: &Attachment,
        why: &str,
    ) -> Result<(), Error> {
        let blocks = held.blocks();
        let others = self.of_pods(staging, self.shows(&blocks).await?);
        if !others.is_empty() {
            return Err(Error::NotReady {
                what: format!("the file system at {staging}"),
                seen: format!(
                    "it is dead ({why}) and still mounted at {}: delete the pods that use it there, and it is mounted anew",
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

    /// The kernel gives the same dead file system back for as long as anybody has it mounted.
    pub(super) async fn wait_until_unused(&self, block: &Block) -> Result<(), Error> {
        let doing = format!("looking whether {} is still mounted", block.node());
        let gone = || async {
            let lives = disk::is_mounted_anywhere(&self.host, block).await?;
            Ok((!lives).then_some(()))
        };
        let gone = disk::until(&self.host, SUPERBLOCK_RELEASE_TIMEOUT, gone).await;
        if gone.context(doing)?.is_some() {
            return Ok(());
        }
        Err(Error::NotReady {
            what: format!("mounting {} anew", block.node()),
            seen: format!(
                "its file system is dead, and something on this node still holds it: {}",
                self.who_holds(block).await
            ),
        })
    }
}
