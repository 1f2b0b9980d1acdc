//! NodeUnstageVolume: unmount, log out, forget. It needs neither a NAS nor a readable disk (design choice 10).

use super::Machine;
use super::request::Unstage;
use super::sweep::records_of;
use crate::error::Error;
use crate::host::Host;
use crate::host::disk::{Disk, Session};

impl<H: Host> Machine<H> {
    /// Lets a volume go. What is gone already is fine.
    pub(super) async fn unstage(&self, ask: &Unstage) -> Result<(), Error> {
        let session = self.session_of(&ask.volume.uuid).await?;
        let disks = self.disks_of(session.as_ref()).await?;
        if let Some(staging) = self.resolve(&ask.staging).await? {
            self.must_be_unpublished(ask, &staging, &disks).await?;
            self.clear_stone(&staging, &disks).await?;
            self.clear(&staging, &disks).await?;
        }
        match session {
            Some(session) => {
                self.must_be_unused(&session, &disks).await?;
                self.detach(&session).await
            }
            None => self.forget(ask).await,
        }
    }

    /// Logging out under a pod would lose what it has written.
    async fn must_be_unpublished(
        &self,
        ask: &Unstage,
        staging: &str,
        disks: &[Disk],
    ) -> Result<(), Error> {
        let own = [staging, &self.stepping_stone(staging)];
        let others: Vec<String> = self
            .uses(disks)
            .await?
            .into_iter()
            .filter(|point| !own.contains(&point.as_str()))
            .collect();
        if others.is_empty() {
            return Ok(());
        }
        Err(Error::Refused {
            what: format!("unstaging volume {}", ask.volume),
            seen: format!("it is still mounted at {}", others.join(", ")),
            remedy: "unpublish it there first".to_owned(),
        })
    }

    /// A file system may live on in a mount namespace that is not ours; the kernel knows. Asked only of a session that
    /// answers: a lost target cannot be waited for, and nothing can be written to it any more.
    async fn must_be_unused(&self, session: &Session, disks: &[Disk]) -> Result<(), Error> {
        for disk in disks.iter().filter(|_| session.alive) {
            // An error says that the disk cannot even be opened, and so cannot be in use.
            if matches!(self.host.is_claimed(&disk.node()).await, Ok(true)) {
                return Err(Error::Unfinished {
                    what: format!("the release of {}", disk.node()),
                    seen: "it is unmounted here, but something on this node still uses it (a container that has not ended, LVM, RAID)".to_owned(),
                });
            }
        }
        Ok(())
    }

    /// Without a session there may still be records.
    async fn forget(&self, ask: &Unstage) -> Result<(), Error> {
        for iqn in records_of(self, Some(&ask.volume.uuid)).await? {
            self.delete_records(&iqn).await?;
        }
        Ok(())
    }
}
