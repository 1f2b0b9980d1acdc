//! The stories, in the order in which they are told.

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

/// What comes of telling a story: a few words on what was seen.
type Told<'a> = Pin<Box<dyn Future<Output = Result<String>> + 'a>>;

/// Something that must be seen.
pub(crate) struct Story<C: 'static> {
    pub(crate) name: &'static str,
    pub(crate) tell: for<'a> fn(&'a Scene<C>) -> Told<'a>,
}

macro_rules! story {
    ($name:literal, $tell:expr) => {
        Story {
            name: $name,
            tell: |scene| Box::pin($tell(scene)),
        }
    };
}

/// Those of every orchestrator.
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

/// Those that only Kubernetes can tell. The last one ends with the driver's being gone.
pub(crate) fn of_kubernetes() -> Vec<Story<Kubernetes>> {
    vec![
        story!("node/drained", node::drained),
        story!("uninstall/leaves-nothing", node::uninstalled),
    ]
}
