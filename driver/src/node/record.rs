//! open-iscsi node records: the settings of a login, written before each login and deleted on unstage
//! (design.md#unstage-needs-no-nas).
//!
//! No discovery: DSM's `SendTargets` would list every target of the NAS. Non-secret settings are written with `iscsiadm`; CHAP
//! names and passwords are written into the record's file, because command lines are world-readable.

use super::Machine;
use crate::chap::Chap;
use crate::error::{Context as _, Error};
use crate::host::{Host, HostError, Stat, if_present, iscsiadm, record};
use crate::publication::{Iqn, Portal};
use crate::volume::LunUuid;

impl<H: Host> Machine<H> {
    /// The targets of node records that are publications to this node: of one LUN, or of all.
    ///
    /// Found by directory name, because `iscsiadm -m node` lists nothing if a single record, even a foreign one, cannot be read
    /// by this release. `iscsiadm` is the fallback if the database is not at a known path.
    pub(super) async fn records_of(&self, uuid: Option<&LunUuid>) -> Result<Vec<Iqn>, Error> {
        let names = match self.record_names().await? {
            Some(names) => names,
            None => self
                .run_on_records(iscsiadm::list_records())
                .await
                .and_then(iscsiadm::read_records)
                .context("listing node records")?,
        };
        // A name that does not parse as an IQN is not ours.
        let ours = self.publications(uuid);
        let targets = names.iter().filter(|name| ours.include(name));
        let mut targets: Vec<Iqn> = targets.filter_map(|name| name.parse().ok()).collect();
        targets.sort_unstable();
        targets.dedup();
        Ok(targets)
    }

    /// The target names (directories) in all databases; `None` if there is no database at a known path.
    async fn record_names(&self) -> Result<Option<Vec<String>>, Error> {
        let mut all = None;
        for database in record::DATABASES {
            let nodes = record::nodes(database);
            let names =
                if_present(self.host.list(&nodes).await).context(format!("listing {nodes}"))?;
            if let Some(names) = names {
                all.get_or_insert_with(Vec::new).extend(names);
            }
        }
        Ok(all)
    }

    /// Deletes the records of a target. They hold secrets, and a restart of open-iscsi may log in to their targets. What iscsiadm
    /// cannot delete, because a power cut or another release has made it unreadable, is removed as files.
    pub(super) async fn delete_records(&self, iqn: &Iqn) -> Result<(), Error> {
        let doing = format!("removing the records of {iqn}");
        let failed = self
            .run_on_records(iscsiadm::delete_records(iqn))
            .await
            .and_then(iscsiadm::read_delete)
            .context(&doing)?;
        let Some(left) = self.nonempty_record_dir(iqn).await.context(&doing)? else {
            return Ok(());
        };
        tracing::warn!(
            folder = left,
            error = failed.map(|error| error.to_string()),
            "iscsiadm has not deleted all records: removing their files"
        );
        self.remove_records(&left).await.context(&doing)?;
        match self.nonempty_record_dir(iqn).await.context(&doing)? {
            None => Ok(()),
            Some(left) => Err(Error::Unverified {
                what: doing,
                seen: format!("{left} is still there: check what writes to it"),
            }),
        }
    }

    /// The directory of a target's records, if it is not empty.
    async fn nonempty_record_dir(&self, iqn: &Iqn) -> Result<Option<String>, HostError> {
        for database in record::DATABASES {
            let folder = record::folder(database, iqn);
            let left = if_present(self.host.list(&folder).await)?;
            if left.is_some_and(|names| !names.is_empty()) {
                return Ok(Some(folder));
            }
        }
        Ok(None)
    }

    /// Removes a target's directory. A record is a file, or a directory of files.
    async fn remove_records(&self, folder: &str) -> Result<(), HostError> {
        for name in self.host.list(folder).await? {
            let path = format!("{folder}/{name}");
            if self.host.stat(&path).await? == Stat::Directory {
                for inner in if_present(self.host.list(&path).await)?.unwrap_or_default() {
                    self.host.remove_file(&format!("{path}/{inner}")).await?;
                }
                self.host.remove_dir(&path).await?;
            } else {
                self.host.remove_file(&path).await?;
            }
        }
        self.host.remove_dir(folder).await
    }

    /// Writes the record of the target at one portal: our settings and exactly these CHAP credentials.
    pub(super) async fn write_record(
        &self,
        iqn: &Iqn,
        portal: &Portal,
        chap: Option<&Chap>,
    ) -> Result<(), Error> {
        self.delete_discovered(iqn).await?;
        let doing = format!("writing the record of {iqn} at {portal}");
        // This replaces an existing record and resets all settings to those of iscsid.conf.
        let made = self.new_record(iqn, portal).await;
        if matches!(made, Err(HostError::Failed { .. })) {
            // An existing record that a power cut has damaged is in the way.
            for database in record::DATABASES {
                let path = format!("{}/{}", record::folder(database, iqn), record::name(portal));
                self.host.remove_file(&path).await.context(&doing)?;
            }
            self.new_record(iqn, portal).await.context(&doing)?;
        } else {
            made.context(&doing)?;
        }
        let settings = iscsiadm::settings(iqn, portal, self.replacement_timeout);
        self.run_on_records(settings)
            .await
            .and_then(|exit| exit.ok(iscsiadm::PROGRAM))
            .context(&doing)?;
        self.write_auth(iqn, portal, chap).await
    }

    async fn new_record(&self, iqn: &Iqn, portal: &Portal) -> Result<(), HostError> {
        self.run_on_records(iscsiadm::new_record(iqn, portal))
            .await
            .and_then(|exit| exit.ok(iscsiadm::PROGRAM))
            .map(drop)
    }

    /// Deletes all records of the target if one was made by discovery: a login would use it as well as ours.
    async fn delete_discovered(&self, iqn: &Iqn) -> Result<(), Error> {
        for database in record::DATABASES {
            let folder = record::folder(database, iqn);
            let names = if_present(self.host.list(&folder).await)
                .context(format!("listing the records of {iqn}"))?;
            // Only records made by discovery have a portal group, the third part.
            if names
                .iter()
                .flatten()
                .any(|name| name.split(',').count() > 2)
            {
                return self.delete_records(iqn).await;
            }
        }
        Ok(())
    }

    async fn write_auth(
        &self,
        iqn: &Iqn,
        portal: &Portal,
        chap: Option<&Chap>,
    ) -> Result<(), Error> {
        let doing = || format!("writing CHAP settings into the record of {iqn} at {portal}");
        for database in record::DATABASES {
            let path = format!("{}/{}", record::folder(database, iqn), record::name(portal));
            let Some(text) = if_present(self.host.read(&path).await).context(doing())? else {
                continue;
            };
            let text = String::from_utf8_lossy(&text);
            let pinned = iscsiadm::required_settings(self.replacement_timeout);
            if let Some(line) = record::disagreeing(&text, &pinned) {
                return Err(Error::Unverified {
                    what: format!("writing the record of {iqn} at {portal}"),
                    seen: format!("iscsiadm reports success, but the record has {line:?}"),
                });
            }
            let Some(text) = record::with_auth(&text, chap) else {
                return Ok(());
            };
            return self
                .host
                .replace_file(&path, &record::temp_path(database, iqn), text)
                .await
                .context(doing());
        }
        match chap {
            // The record was just created, so there are no CHAP settings to remove.
            None => Ok(()),
            Some(_) => Err(Error::Unverified {
                what: doing(),
                seen: format!(
                    "iscsiadm made it, but it is neither below {} nor below {}",
                    record::DATABASES[0],
                    record::DATABASES[1]
                ),
            }),
        }
    }

    /// The portals of the target's records, by file name: those of the last stage.
    pub(super) async fn recorded_portals(&self, iqn: &Iqn) -> Result<Vec<Portal>, Error> {
        let mut portals = Vec::new();
        for database in record::DATABASES {
            let folder = record::folder(database, iqn);
            let names =
                if_present(self.host.list(&folder).await).context(format!("listing {folder}"))?;
            portals.extend(
                names
                    .iter()
                    .flatten()
                    .filter_map(|name| record::portal(name)),
            );
        }
        portals.sort_unstable();
        portals.dedup();
        Ok(portals)
    }

    /// True if the record has the settings that the driver requires: one session, manual scan.
    pub(super) async fn has_required_settings(
        &self,
        iqn: &Iqn,
        portal: &Portal,
    ) -> Result<bool, Error> {
        for database in record::DATABASES {
            let path = format!("{}/{}", record::folder(database, iqn), record::name(portal));
            let text =
                if_present(self.host.read(&path).await).context(format!("reading {path}"))?;
            if let Some(text) = text {
                let required: Vec<_> = iscsiadm::required().collect();
                let text = String::from_utf8_lossy(&text);
                return Ok(record::disagreeing(&text, &required).is_none());
            }
        }
        Ok(false)
    }

    /// Deletes the records at portals that the publication no longer names, so that no path is added there. Best effort; a record
    /// with a session stays until the session ends.
    pub(super) async fn delete_former_portals(&self, iqn: &Iqn, present: &[Portal]) {
        let recorded = match self.recorded_portals(iqn).await {
            Ok(recorded) => recorded,
            Err(error) => {
                tracing::warn!(%iqn, error = error.chain(), "deleting the records of former portals failed: they may be left");
                return;
            }
        };
        for portal in recorded.iter().filter(|portal| !present.contains(portal)) {
            let gone = self.run_on_records(iscsiadm::delete_record(iqn, portal));
            if let Err(error) = gone.await.and_then(iscsiadm::read_delete) {
                tracing::warn!(%iqn, %portal, %error, "deleting the record of a former portal failed");
            }
        }
    }
}
