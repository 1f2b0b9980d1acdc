//! The sweep at start: node records that a crash left behind (design choice 10). Best effort; nothing but records is touched.

use super::{Machine, Node};
use crate::error::Error;
use crate::host::Host;
use crate::publication::Iqn;
use crate::volume::LunUuid;

impl<H: Host> Node<H> {
    /// Removes records of this node's publications that have no session, hence no disk, and no mount.
    pub async fn sweep(&self) {
        if let Err(error) = self.machine.sweep_aside().await {
            tracing::warn!(error = error.chain(), "unfinished node records may be left");
        }
        match self.machine.records_of(None).await {
            Ok(records) => {
                for iqn in records {
                    self.sweep_one(iqn).await;
                }
            }
            Err(error) => tracing::warn!(
                error = error.chain(),
                "node records cannot be listed; none are swept"
            ),
        }
    }

    async fn sweep_one(&self, iqn: Iqn) {
        let Some((uuid, _)) = iqn.publication() else {
            return;
        };
        let (shown, key) = (iqn.to_string(), uuid.to_string());
        let swept = self
            .locked(&key, |machine| async move {
                machine.sweep_record(&iqn, &uuid).await
            })
            .await;
        match swept {
            Ok(true) => tracing::info!(
                target_name = shown,
                "removed a record without session, disk or mount"
            ),
            Ok(false) => {}
            Err(error) => tracing::warn!(
                target_name = shown,
                error = error.chain(),
                "a record is left where it is"
            ),
        }
    }
}

impl<H: Host> Machine<H> {
    async fn sweep_record(&self, iqn: &Iqn, uuid: &LunUuid) -> Result<bool, Error> {
        // A mount that has lost its disk cannot be told by its volume, so any such mount keeps all records.
        if !self.sessions_of(uuid).await?.is_empty() || self.any_stale_mount().await? {
            return Ok(false);
        }
        self.delete_records(iqn).await?;
        Ok(true)
    }
}
