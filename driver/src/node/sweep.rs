//! The sweep at start: deletes node records that a crash left behind (design.md#unstage-needs-no-nas). Best effort; touches only
//! records.
//!
//! RPCs are served meanwhile, so each record is checked again while holding its volume's lock; an RPC waits at most for the
//! deletion in progress.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Machine, Node};
use crate::error::{Context as _, Error};
use crate::host::{Host, if_present, record};
use crate::publication::Iqn;
use crate::volume::LunUuid;

impl<H: Host> Node<H> {
    /// Deletes the records of this node's publications that have no session, hence no disk, and no mount.
    pub async fn sweep(&self) {
        if let Err(error) = self.sweep_temp_files().await {
            tracing::warn!(error = error.chain(), "temporary record files may be left");
        }
        let records = match self.machine.unused_records().await {
            Ok(records) => records,
            Err(error) => {
                let error = error.chain();
                tracing::warn!(
                    error,
                    "cannot tell which node records are unused; none are deleted"
                );
                return;
            }
        };
        for (uuid, iqn) in records {
            // If the database is locked, each further record would take minutes.
            if let Err(error) = self.sweep_one(&uuid, &iqn).await {
                let (target_name, error) = (iqn.to_string(), error.chain());
                tracing::warn!(
                    target_name,
                    error,
                    "deleting unused records failed; the others are left in place"
                );
                return;
            }
        }
    }

    /// Deletes the records of one publication, unless it has a session again or its volume is busy.
    pub(super) async fn sweep_one(&self, uuid: &LunUuid, iqn: &Iqn) -> Result<(), Error> {
        let (lun, record) = (uuid.clone(), iqn.clone());
        let work = |machine: Arc<Machine<H>>| async move {
            if !machine.sessions_of(Some(&lun)).await?.is_empty() {
                return Ok(false);
            }
            machine.delete_records(&record).await.map(|()| true)
        };
        if self.run_if_idle(uuid, work).await? == Some(true) {
            let target_name = iqn.to_string();
            tracing::info!(
                target_name,
                "deleted the records of a publication without session, disk or mount"
            );
        }
        Ok(())
    }

    /// Removes temporary record files that a crash left behind: they hold secrets.
    async fn sweep_temp_files(&self) -> Result<(), Error> {
        for database in record::DATABASES {
            let names = if_present(self.machine.host.list(database).await)
                .context(format!("listing {database}"))?;
            for name in names.iter().flatten() {
                let Some(iqn) = name.strip_prefix(record::TEMP_PREFIX) else {
                    continue;
                };
                let path = format!("{database}/{name}");
                let remove = |machine: Arc<Machine<H>>| async move {
                    let removed = machine.host.remove_file(&path).await;
                    removed.context(format!("removing {path}"))
                };
                match iqn.parse::<Iqn>().ok().and_then(|iqn| iqn.publication()) {
                    // An RPC may be writing this file right now.
                    Some((uuid, _)) => drop(self.run_if_idle(&uuid, remove).await?),
                    None => remove(self.machine.clone()).await?,
                }
            }
        }
        Ok(())
    }

    /// Runs `work` while holding the LUN's lock; `None` if an RPC holds it, which cleans up its volume itself.
    async fn run_if_idle<T, F>(
        &self,
        uuid: &LunUuid,
        work: impl FnOnce(Arc<Machine<H>>) -> F,
    ) -> Result<Option<T>, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let machine = self.machine.clone();
        let done = self.in_flight.run_aside(uuid.as_str(), |_| work(machine));
        match done.await {
            Err(Error::Busy { .. }) => Ok(None),
            done => done.map(Some),
        }
    }
}

impl<H: Host> Machine<H> {
    /// The records of this node's publications that have no session or mount. Sessions, mounts and devices are read once, not
    /// once per record.
    pub(super) async fn unused_records(&self) -> Result<Vec<(LunUuid, Iqn)>, Error> {
        let sessions = self.sessions_of(None).await?;
        let in_session: BTreeSet<LunUuid> = sessions
            .iter()
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
        // A mount that has lost its disk cannot be matched to a volume, so any such mount keeps all records.
        if !unused.is_empty() && self.any_stale_mount().await? {
            unused.clear();
        }
        Ok(unused)
    }
}
