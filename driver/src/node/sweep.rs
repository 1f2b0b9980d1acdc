//! The sweep at start: node records that a crash left behind (design.md#unstage-needs-no-nas). Best effort; nothing but records is touched.
//!
//! Calls are served meanwhile, so each record is judged once more with its volume's lock held, and a call that comes does not wait
//! for more than the one that is under way.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Machine, Node};
use crate::error::{Context as _, Error};
use crate::host::{Host, if_present, record};
use crate::publication::Iqn;
use crate::volume::LunUuid;

impl<H: Host> Node<H> {
    /// Removes records of this node's publications that have no session, hence no disk, and no mount.
    pub async fn sweep(&self) {
        if let Err(error) = self.sweep_in_background().await {
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
            // Where a database is locked, each record would take minutes.
            if let Err(error) = self.sweep_one(&uuid, &iqn).await {
                let (target_name, error) = (iqn.to_string(), error.chain());
                tracing::warn!(target_name, error, "records are left where they are");
                return;
            }
        }
    }

    /// Removes the records of one publication, unless it has come to life again.
    pub(super) async fn sweep_one(&self, uuid: &LunUuid, iqn: &Iqn) -> Result<(), Error> {
        let (lun, record) = (uuid.clone(), iqn.clone());
        let work = |machine: Arc<Machine<H>>| async move {
            if !machine.sessions_of(Some(&lun)).await?.is_empty() {
                return Ok(false);
            }
            machine.delete_records(&record).await.map(|()| true)
        };
        if self.alone(uuid, work).await? == Some(true) {
            let target_name = iqn.to_string();
            tracing::info!(
                target_name,
                "removed a record without session, disk or mount"
            );
        }
        Ok(())
    }

    /// Removes files that a crash kept from becoming records: they hold secrets.
    async fn sweep_in_background(&self) -> Result<(), Error> {
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
                    // A call may be writing just this file.
                    Some((uuid, _)) => drop(self.alone(&uuid, remove).await?),
                    None => remove(self.machine.clone()).await?,
                }
            }
        }
        Ok(())
    }

    /// Does something with the lock of a LUN held; `None` where a call is at work, which sees to its volume itself.
    async fn alone<T, F>(
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
    /// The records of this node's publications that nothing seems to hang on: one look at sessions, mounts and devices for all of
    /// them, however many there are.
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
        // A mount that has lost its disk cannot be told by its volume, so any such mount keeps all records.
        if !unused.is_empty() && self.any_stale_mount().await? {
            unused.clear();
        }
        Ok(unused)
    }
}
