//! Nodes whose initiator name has changed (reinstalled, or edited): they are registered under a new node id, and targets of the
//! former id are left over. Deletes these targets once they are unused.

use parking_lot::{Mutex, MutexGuard};
use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::Shared;
use super::publish::Publish;
use super::target::delete_target;
use crate::dsm::Nas;
use crate::dsm::target::Target;
use crate::error::{Context as _, Error};

/// How long a target must have been without sessions before it is changed or replaced.
pub(super) const IDLE_TIME: Duration = Duration::from_secs(60);

/// Capacity of [`IdleTargets`], several times the number of targets of a NAS.
const MAX_TARGETS: usize = 1024;

/// Since when targets that are to be changed have been seen without sessions, by IQN. Lost on restart, or if there are too many,
/// which only makes the wait longer.
#[derive(Debug, Default)]
pub(super) struct IdleTargets(Mutex<HashMap<String, Instant>>);

impl IdleTargets {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.0.lock()
    }

    /// Records that the target has no session now; returns since when that has been so.
    fn idle_since(&self, iqn: &str) -> Instant {
        let mut targets = self.lock();
        if targets.len() >= MAX_TARGETS && !targets.contains_key(iqn) {
            // The oldest target is the one most likely deleted: IQNs are never reused, and deletions are not reported here.
            let oldest = targets.iter().min_by_key(|(_, since)| **since);
            if let Some(oldest) = oldest.map(|(iqn, _)| iqn.clone()) {
                targets.remove(&oldest);
            }
        }
        *targets.entry(iqn.to_owned()).or_insert_with(Instant::now)
    }

    /// The target has a session, or was deleted.
    fn forget(&self, iqn: &str) {
        self.lock().remove(iqn);
    }
}

impl Shared {
    /// Deletes targets of a former registration of the node, if they are unused; returns the remaining targets. `None`: there
    /// were none to delete.
    ///
    /// The initiator may have been renamed under running pods, whose sessions continue under the old name: a target in use is
    /// kept, and is an error.
    pub(super) async fn delete_former_publications(
        &self,
        nas: &Nas,
        request: &Publish,
        targets: &[Target],
    ) -> Result<Option<Vec<Target>>, Error> {
        let former = request.publication(targets).former;
        let mut used = None;
        for target in former.iter().copied() {
            if !self.is_idle_for_long(nas, target).await? {
                used.get_or_insert(target);
            }
        }
        if let Some(target) = used {
            return Err(in_use(request, target));
        }
        let mut remaining = None;
        for target in former {
            tracing::warn!(target = target.iqn, node = %request.node, "the node's initiator name has changed: deleting the unused target of its former name");
            remaining = Some(delete_target(nas, &request.id.uuid, target).await?);
            self.idle_targets.forget(&target.iqn);
        }
        Ok(remaining)
    }

    /// The target had no sessions at two observations a minute apart, on a NAS that had been up for a minute at the first one.
    /// One observation proves nothing: after a restart of the NAS, initiators take seconds to reconnect.
    pub(super) async fn is_idle_for_long(&self, nas: &Nas, target: &Target) -> Result<bool, Error> {
        let doing = || format!("reading the uptime of NAS {}", nas.name);
        let settled = target.connected_sessions.is_empty()
            && nas
                .up_time()
                .await
                .with_context(doing)?
                .is_some_and(|up| up >= IDLE_TIME);
        if !settled {
            self.idle_targets.forget(&target.iqn);
            return Ok(false);
        }
        Ok(self.idle_targets.idle_since(&target.iqn).elapsed() >= IDLE_TIME)
    }
}

fn in_use(request: &Publish, target: &Target) -> Error {
    let users: Vec<&str> = target
        .connected_sessions
        .iter()
        .map(|session| session.iqn.as_str())
        .collect();
    let seen = if users.is_empty() {
        "no initiator is logged in to it: it is replaced after a minute without sessions".to_owned()
    } else {
        format!(
            "logged in: {}: delete the pods that use the volume on that node, or the target in SAN Manager if that machine is gone",
            users.join(", ")
        )
    };
    Error::NotReady {
        what: request.what(),
        seen: format!(
            "the node had another initiator name before, and target {} of that name is left; {seen}",
            target.iqn
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_number_of_remembered_idle_targets_is_bounded() {
        let idle_targets = IdleTargets::default();
        let started = Instant::now();
        for number in 0..5_000 {
            idle_targets.idle_since(&format!("iqn.{number}"));
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert_eq!(idle_targets.lock().len(), MAX_TARGETS);
        // The latest are remembered, with their time.
        let known = idle_targets.idle_since("iqn.4999");
        assert_eq!(known - started, Duration::from_millis(4_999));
        assert_eq!(
            idle_targets.idle_since("iqn.0"),
            Instant::now(),
            "the oldest was evicted"
        );
        idle_targets.forget("iqn.0");
        assert_eq!(idle_targets.lock().len(), MAX_TARGETS - 1);
    }
}
