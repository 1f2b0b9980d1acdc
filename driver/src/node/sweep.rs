//! The sweep at start: node records that a crash left behind (design choice 10). Best effort; nothing but records is touched.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Doing, Machine, Node};
use crate::error::Error;
use crate::host::{Host, disk};
use crate::publication::Iqn;
use crate::volume::LunUuid;

impl<H: Host> Node<H> {
    /// Removes records of this node's publications that have no session, hence no disk, and no mount.
    pub async fn sweep(&self) {
        if let Err(error) = self.machine.sweep_aside().await {
            tracing::warn!(error = error.chain(), "unfinished node records may be left");
        }
        let records = match self.machine.unused_records().await {
            Ok(records) => records,
            Err(error) => {
                let error = error.chain();
                tracing::warn!(error, "node records cannot be judged; none are swept");
                return;
            }
        };
        for (uuid, iqn) in records {
            // The CO waits for this process: where a database is locked, each record would take minutes.
            if let Err(error) = self.sweep_one(&uuid, &iqn).await {
                let (target_name, error) = (iqn.to_string(), error.chain());
                tracing::warn!(target_name, error, "records are left where they are");
                return;
            }
        }
    }

    async fn sweep_one(&self, uuid: &LunUuid, iqn: &Iqn) -> Result<(), Error> {
        let (record, key) = (iqn.clone(), uuid.to_string());
        let work = |machine: Arc<Machine<H>>| async move { machine.delete_records(&record).await };
        self.locked(&key, work).await?;
        let target_name = iqn.to_string();
        tracing::info!(
            target_name,
            "removed a record without session, disk or mount"
        );
        Ok(())
    }
}

impl<H: Host> Machine<H> {
    /// The records of this node's publications that nothing hangs on. Nobody is served yet, so one look at sessions, mounts and
    /// devices holds for all of them, however many there are.
    async fn unused_records(&self) -> Result<Vec<(LunUuid, Iqn)>, Error> {
        let sessions = disk::sessions(&self.host)
            .await
            .doing("listing iSCSI sessions")?;
        let in_session: BTreeSet<LunUuid> = sessions
            .iter()
            .filter(|session| self.publishes_here(&session.target, None))
            .filter_map(|session| Some(session.target.parse::<Iqn>().ok()?.publication()?.0))
            .collect();
        let mut unused = Vec::new();
        for iqn in self.records_of(None).await? {
            if let Some((uuid, _)) = iqn.publication()
                && !in_session.contains(&uuid)
            {
                unused.push((uuid, iqn));
            }
        }
        // A mount that has lost its disk cannot be told by its volume, so any such mount keeps all records.
        if !unused.is_empty() && self.any_stale_mount().await? {
            unused.clear();
        }
        Ok(unused)
    }
}
