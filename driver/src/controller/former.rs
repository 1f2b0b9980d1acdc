//! A node that has another initiator name than before, because it was installed anew or somebody changed the name: it is registered under
//! another id, and targets of its former one are left.

use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::Instant;

use super::publish::Publish;
use super::target::withdraw;
use super::{Doing as _, Shared};
use crate::dsm::Nas;
use crate::dsm::target::Target;
use crate::error::Error;

/// How long nobody may have been logged in to a target before it is changed or replaced.
pub(super) const UNUSED_FOR: Duration = Duration::from_secs(60);

impl Shared {
    /// Withdraws what a former registration of the node has left, if nobody uses it; answers the targets that there are then. `None`:
    /// there was nothing to do.
    ///
    /// The initiator may have been renamed under running pods, whose sessions go on under the old name: so a target that is in use stays,
    /// and the answer says so.
    pub(super) async fn end_former(
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
            left = Some(withdraw(nas, &asked.id.uuid, target).await?);
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
                .doing(doing)?
                .is_some_and(|up| up >= UNUSED_FOR);
        let mut seen = self.unused.lock().unwrap_or_else(PoisonError::into_inner);
        if !settled {
            seen.remove(&target.iqn);
            return Ok(false);
        }
        let since = *seen.entry(target.iqn.clone()).or_insert_with(Instant::now);
        Ok(since.elapsed() >= UNUSED_FOR)
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
    Error::Unfinished {
        what: asked.what(),
        seen: format!(
            "the node had another initiator name before, and target {} of that name is left; {seen}",
            target.iqn
        ),
    }
}
