//! Teardown of what an ended publication has left on this node: sessions with a target name that is never reused, their disks and
//! map, mounts with a stale page cache (design.md, "Fencing: one publication, one name").
//!
//! A volume that was detached by force, used on another node and published here again has a new target name. What is left of the
//! old publication may be out of date, and flushing its dirty pages would destroy what others have written since.

use super::Machine;
use super::attachment::Attachment;
use crate::error::{Context as _, Error};
use crate::host::disk::{self, Disk};
use crate::host::session::Session;
use crate::host::{Host, mount};
use crate::publication::Iqn;
use crate::volume::LunUuid;

impl<H: Host> Machine<H> {
    /// Tears down what publications of the LUN other than `present` have left here. True: there was something.
    ///
    /// # Errors
    /// `NotReady`, before anything is changed, while a pod still has it mounted.
    pub(super) async fn tear_down_ended(
        &self,
        uuid: &LunUuid,
        present: &Iqn,
        staging: &str,
    ) -> Result<bool, Error> {
        let ended = self.ended_attachment(uuid, present).await?;
        if ended.sessions.is_empty() && ended.map.is_none() {
            return Ok(false);
        }
        self.must_be_out_of_use(uuid, &ended, staging).await?;
        tracing::warn!(
            %uuid,
            sessions = ?ended.sessions.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "tearing down what an ended publication has left on this node"
        );
        self.stop_writes(&ended).await?;
        let dead = !ended.is_alive();
        if dead {
            // After a logout iscsid cannot reconnect, and pending I/O fails: an unmount would wait for it.
            self.log_out_all(&ended).await?;
        } else {
            self.must_be_offline(&ended).await?;
        }
        let action = Box::pin(self.clear_all(staging, &ended));
        self.with_queueing_disabled(&ended, action).await?;
        if !dead {
            self.log_out_all(&ended).await?;
        }
        if let Some(map) = &ended.map {
            // A multipathd that makes maps over all disks may have recreated it in between.
            self.must_be_flushed(map).await?;
        }
        self.wait_until_released(uuid, &ended).await?;
        self.delete_ended_records(uuid, present).await?;
        Ok(true)
    }

    /// Deletes the records of the LUN's ended publications: they hold secrets.
    pub(super) async fn delete_ended_records(
        &self,
        uuid: &LunUuid,
        present: &Iqn,
    ) -> Result<(), Error> {
        for iqn in self.records_of(Some(uuid)).await? {
            if iqn != *present {
                self.delete_records(&iqn).await?;
            }
        }
        Ok(())
    }

    /// What is attached of the LUN under other target names. A map without paths belongs to an ended publication.
    async fn ended_attachment(&self, uuid: &LunUuid, present: &Iqn) -> Result<Attachment, Error> {
        let mut sessions = self.sessions_of(Some(uuid)).await?;
        let is_present = !sessions
            .iter()
            .all(|session| session.target != present.as_str());
        sessions.retain(|session| session.target != present.as_str());
        let disks = self.disks_of(&sessions).await?;
        let map = if sessions.is_empty() && is_present {
            None
        } else {
            self.map_over(uuid, &disks).await?
        };
        Ok(Attachment {
            sessions,
            disks,
            foreign_disks: vec![],
            map,
        })
    }

    /// Its pods must be deleted first: their unsynced data is lost either way, but their file system must not fail under them
    /// without a visible reason.
    async fn must_be_out_of_use(
        &self,
        uuid: &LunUuid,
        ended: &Attachment,
        staging: &str,
    ) -> Result<(), Error> {
        let others = self.pod_mount_points(staging, self.all_mount_points(&ended.blocks()).await?);
        if others.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = ended.targets().iter().map(ToString::to_string).collect();
        Err(Error::NotReady {
            what: format!("using LUN {uuid} again"),
            seen: format!(
                "an earlier publication ({}) has ended and is still mounted at {}: delete the pods that use it there",
                names.join(", "),
                others.join(", ")
            ),
        })
    }

    /// Takes the disks offline, so that nothing is written from here on: an unmount and a logout both flush.
    async fn stop_writes(&self, ended: &Attachment) -> Result<(), Error> {
        for disk in &ended.disks {
            let doing = format!("taking {} offline", disk.block.node());
            disk.take_offline(&self.host).await.context(doing)?;
        }
        Ok(())
    }

    /// Removes the mounts, then the map.
    async fn clear_all(&self, staging: &str, ended: &Attachment) -> Result<(), Error> {
        self.remove_temp_mount(staging, &ended.blocks()).await?;
        self.clear_ended(staging, ended).await?;
        if let Some(map) = &ended.map {
            self.flush(map).await?;
        }
        Ok(())
    }

    /// Verifies that disks with a live target are offline, before anything is unmounted from them.
    async fn must_be_offline(&self, ended: &Attachment) -> Result<(), Error> {
        let alive = |disk: &&Disk| {
            let of = |session: &Session| session.id == disk.session && session.alive;
            ended.sessions.iter().any(of)
        };
        for disk in ended.disks.iter().filter(alive) {
            let node = disk.block.node();
            let doing = format!("checking {node}");
            if !disk.is_offline(&self.host).await.context(doing)? {
                return Err(Error::NotReady {
                    what: format!("taking {node} offline"),
                    seen: "the kernel does not show it offline: the driver's container needs a writable /sys (privileged: true)".to_owned(),
                });
            }
        }
        Ok(())
    }

    /// Unmounts the staging path; lazily if it is busy.
    async fn clear_ended(&self, staging: &str, ended: &Attachment) -> Result<(), Error> {
        let blocks = ended.blocks();
        let Err(failure) = self.clear(staging, &blocks).await else {
            return Ok(());
        };
        if !self
            .all_mount_points(&blocks)
            .await?
            .iter()
            .any(|point| point == staging)
        {
            return Err(failure);
        }
        tracing::warn!(staging, error = failure.chain(), "unmounting lazily");
        let doing = format!("unmounting {staging} from an ended publication");
        self.run(&doing, mount::unmount_lazily(staging))
            .await
            .map(drop)
    }

    async fn log_out_all(&self, ended: &Attachment) -> Result<(), Error> {
        for session in &ended.sessions {
            self.log_out(session).await?;
        }
        Ok(())
    }

    /// Verifies that the file system is unmounted in every mount namespace: until then the next mount would get the same instance
    /// with its stale page cache.
    async fn wait_until_released(&self, uuid: &LunUuid, ended: &Attachment) -> Result<(), Error> {
        for block in ended.blocks() {
            let doing = format!("checking whether {} is still mounted", block.node());
            if disk::is_mounted_anywhere(&self.host, &block)
                .await
                .context(doing)?
            {
                return Err(Error::NotReady {
                    what: format!("using LUN {uuid} again"),
                    seen: format!(
                        "the file system of {}, left by an earlier publication, is still mounted on this node: {}",
                        block.node(),
                        self.who_holds(&block).await
                    ),
                });
            }
        }
        Ok(())
    }
}
