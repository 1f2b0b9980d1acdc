//! The stale lock of open-iscsi's record database: [`record::LOCK`] is a file that each program creates and removes. If iscsiadm
//! is killed in between, the lock stays, and newer releases fail forever, which no restart of a pod fixes.
//!
//! It is removed only if it has not changed for [`STALE_LOCK_AGE`], all processes of the host are visible and no iscsiadm is
//! among them: two concurrent writers would corrupt a record. (iscsid and libopeniscsiusr take the lock too, but only briefly.)

use std::time::Duration;

use super::Machine;
use crate::host::{
    Cmd, Exit, FileStamp, Host, HostError, ProcessScope, if_present, iscsiadm, record,
};

/// How long the lock must be unchanged.
const STALE_LOCK_AGE: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_secs(1);

impl<H: Host> Machine<H> {
    /// Runs an iscsiadm command on records. If it failed because the database was locked, removes a stale lock and runs it again. It
    /// also runs again after a database error without a lock: iscsiadm walks through all records, and fails if another iscsiadm (the
    /// sweep of this driver, for example) deletes one of them meanwhile.
    pub(super) async fn run_on_records(&self, cmd: Cmd) -> Result<Exit, HostError> {
        let result = self.run_shared(cmd.clone()).await;
        let database_error = matches!(&result, Ok(exit) if iscsiadm::is_database_error(exit));
        let overran = matches!(&result, Err(HostError::DeadlineExceeded { .. }));
        if !database_error && !overran {
            return result;
        }
        let was_locked = self.remove_stale_lock().await?;
        if was_locked || database_error {
            return self.run_shared(cmd).await;
        }
        result
    }

    /// Runs the command, but not while [`Self::remove_stale_lock`] checks that no iscsiadm runs.
    async fn run_shared(&self, cmd: Cmd) -> Result<Exit, HostError> {
        let _shared = self.record_db.read().await;
        self.host.run(cmd).await
    }

    /// Waits for the lock to change, and removes it if it is stale. True: a retry makes sense; false: the database is not locked.
    async fn remove_stale_lock(&self) -> Result<bool, HostError> {
        let Some(first) = self.lock_state().await? else {
            return Ok(false);
        };
        for _ in 0..STALE_LOCK_AGE.as_secs() / POLL_INTERVAL.as_secs() {
            self.host.pause(POLL_INTERVAL).await;
            if self.lock_state().await? != Some(first) {
                return Ok(true);
            }
        }
        let _exclusive = self.record_db.write().await;
        let seen = match self
            .host
            .is_running(iscsiadm::PROGRAM, ProcessScope::Any)
            .await
        {
            Ok(false) => return self.remove_lock(first).await.map(|()| true),
            Ok(true) => "an iscsiadm runs".to_owned(),
            Err(error) => format!("it is unknown whether an iscsiadm runs ({error})"),
        };
        Err(HostError::Locked {
            path: record::LOCK.to_owned(),
            seconds: STALE_LOCK_AGE.as_secs(),
            seen,
        })
    }

    async fn remove_lock(&self, first: FileStamp) -> Result<(), HostError> {
        if self.lock_state().await? == Some(first) {
            tracing::warn!(
                path = record::LOCK,
                "removing the stale lock of open-iscsi's database: unchanged for a minute, and no iscsiadm runs"
            );
            self.host.remove_file(record::LOCK).await?;
        }
        Ok(())
    }

    async fn lock_state(&self) -> Result<Option<FileStamp>, HostError> {
        if_present(self.host.file_stamp(record::LOCK).await)
    }
}
