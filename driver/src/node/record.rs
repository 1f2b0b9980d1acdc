//! Node records: what a login works from, written anew before each (design choice 10).
//!
//! No discovery: DSM's `SendTargets` would list every target of the NAS. What is no secret goes through `iscsiadm`; CHAP names
//! and passwords go into the record's file, because anybody can read a command line.

use super::{Doing, Machine};
use crate::chap::Chap;
use crate::error::Error;
use crate::host::{Host, if_present, iscsiadm, record};
use crate::publication::{Iqn, Portal};

impl<H: Host> Machine<H> {
    /// Makes the record of the target at one portal what it has to be: our settings, these proofs and no others.
    pub(super) async fn write_record(
        &self,
        iqn: &Iqn,
        portal: &Portal,
        chap: Option<&Chap>,
    ) -> Result<(), Error> {
        self.forget_discovered(iqn).await?;
        let doing = format!("writing the record of {iqn} at {portal}");
        // It takes the place of an older one, with all settings as iscsid.conf has them.
        self.run(&doing, iscsiadm::new_record(iqn, portal)).await?;
        let settings = iscsiadm::settings(iqn, portal, self.replacement_timeout);
        self.run(&doing, settings).await?;
        self.write_auth(iqn, portal, chap).await
    }

    /// A record that somebody's discovery made stands beside ours, and a login would use both.
    async fn forget_discovered(&self, iqn: &Iqn) -> Result<(), Error> {
        for database in record::DATABASES {
            let folder = record::folder(database, iqn);
            let names = if_present(self.host.list(&folder).await)
                .doing(format!("listing the records of {iqn}"))?;
            // Only discovery knows the portal group, the third part.
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
            let Some(text) = if_present(self.host.read(&path).await).doing(doing())? else {
                continue;
            };
            let Some(text) = record::with_auth(&String::from_utf8_lossy(&text), chap) else {
                return Ok(());
            };
            return self
                .host
                .replace_file(&path, &record::aside(database, iqn), text)
                .await
                .doing(doing());
        }
        match chap {
            // Then nothing of it can be in the record either.
            None => Ok(()),
            Some(_) => Err(Error::Unproven {
                what: doing(),
                seen: format!(
                    "iscsiadm made it, but it is neither below {} nor below {}",
                    record::DATABASES[0],
                    record::DATABASES[1]
                ),
            }),
        }
    }

    /// Removes files that a crash kept from becoming records: they hold secrets.
    pub(super) async fn sweep_aside(&self) -> Result<(), Error> {
        for database in record::DATABASES {
            let names =
                if_present(self.host.list(database).await).doing(format!("listing {database}"))?;
            for name in names.iter().flatten() {
                if name.starts_with(record::ASIDE) {
                    let path = format!("{database}/{name}");
                    self.host
                        .remove_file(&path)
                        .await
                        .doing(format!("removing {path}"))?;
                }
            }
        }
        Ok(())
    }
}
