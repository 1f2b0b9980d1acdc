//! The list of stories, in the order in which they run.

mod concurrency;
mod grow;
mod kill;
mod life;
mod node;
mod refuse;

use std::pin::Pin;

use anyhow::Result;

use crate::co::Co;
use crate::kubernetes::Kubernetes;
use crate::scene::Scene;

/// The future of a running story; returns a summary of what was observed.
type StoryFuture<'a> = Pin<Box<dyn Future<Output = Result<String>> + 'a>>;

/// A test scenario.
pub(crate) struct Story<C: 'static> {
    pub(crate) name: &'static str,
    pub(crate) run: for<'a> fn(&'a Scene<C>) -> StoryFuture<'a>,
}

macro_rules! story {
    ($name:literal, $run:expr) => {
        Story {
            name: $name,
            run: |scene| Box::pin($run(scene)),
        }
    };
}

/// The stories for every orchestrator.
pub(crate) fn of_every_co<C: Co>() -> Vec<Story<C>> {
    vec![
        story!("article/a-volume-lives", life::article),
        story!("online/ext4", |scene| grow::online(scene, "ext4")),
        story!("online/xfs", |scene| grow::online(scene, "xfs")),
        story!("online/btrfs", |scene| grow::online(scene, "btrfs")),
        story!("offline/ext4", |scene| grow::offline(scene, "ext4")),
        story!("offline/xfs", |scene| grow::offline(scene, "xfs")),
        story!("block/grows", grow::block),
        story!("refused/then-smaller", refuse::then_smaller),
        story!("moves/keeps-its-data", life::moves),
        story!("reclaim/delete", life::reclaim_delete),
        story!("reclaim/retain", life::reclaim_retain),
        story!("crowd/fifty-claims", concurrency::fifty_claims),
        story!("nas/restarts-in-the-middle", kill::nas),
        story!("driver/killed-in-the-middle", kill::driver),
        story!("node/its-pod-goes-while-mounted", kill::node_while_mounted),
    ]
}

/// The stories for Kubernetes only. The last one uninstalls the driver.
pub(crate) fn of_kubernetes() -> Vec<Story<Kubernetes>> {
    vec![
        story!("node/drained", node::drained),
        story!("uninstall/leaves-nothing", node::uninstalled),
    ]
}
