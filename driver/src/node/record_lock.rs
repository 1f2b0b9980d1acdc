//! open-iscsi's database and its lock: a file that whoever works on records makes and removes ([`record::LOCK`]). One who is
//! killed in between leaves it, and newer releases then fail for ever, which no restart of a pod heals.
//!
//! It is removed only when it has stood still for as long as we watched it, all processes of the host can be seen and no iscsiadm is
//! among them: two that write the same record at a time would leave half of each. (iscsid and libopeniscsiusr take the lock
//! too, for moments.)

use std::time::Duration;

use super::Machine;
use crate::host::{Cmd, Exit, Host, HostError, Touched, Who, if_present, iscsiadm, record};

/// How long the lock must stand still.
const STALE_LOCK_AGE: Duration = Duration::from_secs(60);
/// Between two looks at it.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

impl<H: Host> Machine<H> {
    /// Runs a command of iscsiadm that works on records, and once more if the database was kept from it by a lock that is gone now.
    pub(super) async fn run_on_records(&self, cmd: Cmd) -> Result<Exit, HostError> {
        let ended = self.in_turn(cmd.clone()).await;
        let kept_from_it = match &ended {
            Ok(exit) => iscsiadm::is_kept_from_database(exit),
            Err(HostError::Overran { .. }) => true,
            Err(_) => false,
        };
        if kept_from_it && self.free_database().await? {
            return self.in_turn(cmd).await;
        }
        ended
    }

    /// While somebody makes sure that nobody is at work, nobody begins.
    async fn in_turn(&self, cmd: Cmd) -> Result<Exit, HostError> {
        let _turn = self.database.read().await;
        self.host.run(cmd).await
    }

    /// Sees to it that the database is not locked for ever. False: it is not locked.
    async fn free_database(&self) -> Result<bool, HostError> {
        let Some(first) = self.lock().await? else {
            return Ok(false);
        };
        for _ in 0..STALE_LOCK_AGE.as_secs() / POLL_INTERVAL.as_secs() {
            self.host.pause(POLL_INTERVAL).await;
            if self.lock().await? != Some(first) {
                return Ok(true);
            }
        }
        let _nobody_begins = self.database.write().await;
        let seen = match self.host.runs(iscsiadm::PROGRAM, Who::Anybody).await {
            Ok(false) => return self.remove_lock(first).await.map(|()| true),
            Ok(true) => "an iscsiadm runs".to_owned(),
            Err(error) => format!("nobody knows whether an iscsiadm runs ({error})"),
        };
        Err(HostError::Locked {
            path: record::LOCK.to_owned(),
            seconds: STALE_LOCK_AGE.as_secs(),
            seen,
        })
    }

    async fn remove_lock(&self, first: Touched) -> Result<(), HostError> {
        if self.lock().await? == Some(first) {
            tracing::warn!(
                path = record::LOCK,
                "removing the lock of open-iscsi's database: nobody has touched it for a minute, and no iscsiadm runs"
            );
            self.host.remove_file(record::LOCK).await?;
        }
        Ok(())
    }

    async fn lock(&self) -> Result<Option<Touched>, HostError> {
        if_present(self.host.touched(record::LOCK).await)
    }
}
