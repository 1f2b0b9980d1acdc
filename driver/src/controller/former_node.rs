//! A node that has another initiator name than before, because it was installed anew or somebody changed the name: it is registered under
//! another id, and targets of its former one are left.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::Shared;
use super::publish::Publish;
use super::target::delete_target;
use crate::dsm::Nas;
use crate::dsm::target::Target;
use crate::error::{Context as _, Error};

/// How long nobody may have been logged in to a target before it is changed or replaced.
pub(super) const IDLE_TIME: Duration = Duration::from_secs(60);

/// More than a NAS has targets, several times over.
const MOST: usize = 1024;

/// Since when nobody was seen to be logged in to targets that are to be changed, by IQN. Lost with the process, or when there are too many,
/// which only makes the wait longer.
#[derive(Debug, Default)]
pub(super) struct Unused(Mutex<HashMap<String, Instant>>);

impl Unused {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody is logged in to the target now: since when that is so.
    fn seen(&self, iqn: &str) -> Instant {
        let mut unused = self.lock();
        if unused.len() >= MOST && !unused.contains_key(iqn) {
            // It is the likeliest to be gone: a name is never made twice, and nobody says when one ends.
            let oldest = unused.iter().min_by_key(|(_, since)| **since);
            if let Some(oldest) = oldest.map(|(iqn, _)| iqn.clone()) {
                unused.remove(&oldest);
            }
        }
        *unused.entry(iqn.to_owned()).or_insert_with(Instant::now)
    }

    /// Somebody is logged in to the target, or it is gone.
    fn forget(&self, iqn: &str) {
        self.lock().remove(iqn);
    }
}

impl Shared {
    /// Withdraws what a former registration of the node has left, if nobody uses it; answers the targets that there are then. `None`:
    /// there was nothing to do.
    ///
    /// The initiator may have been renamed under running pods, whose sessions go on under the old name: so a target that is in use stays,
    /// and the answer says so.
    pub(super) async fn end_former_publications(
        &self,
        nas: &Nas,
        asked: &Publish,
        targets: &[Target],
    ) -> Result<Option<Vec<Target>>, Error> {
        let former = asked.seen(targets).former;
        let mut used = None;
        for target in former.iter().copied() {
            if !self.is_idle_for_long(nas, target).await? {
                used.get_or_insert(target);
            }
        }
        if let Some(target) = used {
            return Err(in_use(asked, target));
        }
        let mut left = None;
        for target in former {
            tracing::warn!(target = target.iqn, node = %asked.node, "the node has another initiator name than before, and nobody uses the target of its former one: it is deleted");
            left = Some(delete_target(nas, &asked.id.uuid, target).await?);
            self.unused.forget(&target.iqn);
        }
        Ok(left)
    }

    /// Nobody was logged in to the target at two looks that are a minute apart, on a NAS that was up for a minute at the first. One look
    /// proves nothing: after a restart of the NAS nobody is connected for seconds.
    pub(super) async fn is_idle_for_long(&self, nas: &Nas, target: &Target) -> Result<bool, Error> {
        let doing = || format!("asking NAS {} how long it has been up", nas.name);
        let settled = target.connected_sessions.is_empty()
            && nas
                .up_time()
                .await
                .with_context(doing)?
                .is_some_and(|up| up >= IDLE_TIME);
        if !settled {
            self.unused.forget(&target.iqn);
            return Ok(false);
        }
        Ok(self.unused.seen(&target.iqn).elapsed() >= IDLE_TIME)
    }
}

fn in_use(asked: &Publish, target: &Target) -> Error {
    let users: Vec<&str> = target
        .connected_sessions
        .iter()
        .map(|session| session.iqn.as_str())
        .collect();
    let seen = if users.is_empty() {
        "nobody is logged in there: it is replaced when that is so for a minute".to_owned()
    } else {
        format!(
            "logged in there: {}: delete the pods that use the volume on that node, or the target in SAN Manager if that machine is gone",
            users.join(", ")
        )
    };
    Error::NotReady {
        what: asked.what(),
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
    async fn what_is_known_of_unused_targets_is_bounded() {
        let unused = Unused::default();
        let started = Instant::now();
        for life in 0..5_000 {
            unused.seen(&format!("iqn.{life}"));
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert_eq!(unused.lock().len(), MOST);
        // The latest are known, and since when.
        let known = unused.seen("iqn.4999");
        assert_eq!(known - started, Duration::from_millis(4_999));
        assert_eq!(unused.seen("iqn.0"), Instant::now(), "and this one anew");
        unused.forget("iqn.0");
        assert_eq!(unused.lock().len(), MOST - 1);
    }
}
