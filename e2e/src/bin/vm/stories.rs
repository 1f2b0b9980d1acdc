//! The list of stories, in the order in which they run.

mod chap;
mod comeback;
mod fence;
mod flush;
mod fresh;
mod growth;
mod identity;
mod life;
mod namespaces;
mod outage;
mod paths;
mod schedules;

use std::pin::Pin;

use anyhow::Result;

use crate::scene::Scene;
use crate::setup::Export;
pub(crate) use fence::dirty;

/// The future of a running story.
type StoryFuture<'a> = Pin<Box<dyn Future<Output = Result<String>> + 'a>>;

/// A test scenario.
pub(crate) struct Story {
    pub(crate) name: &'static str,
    /// Whether it needs another node, on a second VM.
    pub(crate) second: bool,
    /// The exports with which it runs by default.
    pub(crate) by_default: &'static [Export],
    /// Runs it, and returns a summary of what was observed.
    pub(crate) run: for<'a> fn(&'a mut Scene) -> StoryFuture<'a>,
}

macro_rules! story {
    ($name:literal, $run:path) => {
        story!($name, $run, false)
    };
    ($name:literal, $run:path, second) => {
        story!($name, $run, true)
    };
    ($name:literal, $run:path, second, $($export:ident)*) => {
        story!($name, $run, true, &[$(Export::$export),*])
    };
    ($name:literal, $run:path, $second:literal) => {
        story!($name, $run, $second, &Export::ALL)
    };
    ($name:literal, $run:path, $second:literal, $by_default:expr) => {
        Story {
            name: $name,
            second: $second,
            by_default: $by_default,
            run: |scene| Box::pin($run(scene)),
        }
    };
}

pub(crate) const ALL: &[Story] = &[
    story!("life/ext4", life::ext4),
    story!("life/xfs", life::xfs),
    story!("life/btrfs", life::btrfs),
    story!("life/block", life::block),
    story!("growth/five-times", growth::five_times),
    story!("flush/honoured-or-not", flush::honoured_or_not),
    story!("chap/secrets", chap::secrets),
    story!("chap/stranger", chap::without_secret, second),
    story!("chap/default", chap::default, second, Lio),
    story!("identity/index-reused", identity::index_reused),
    story!("identity/blank-disk", identity::blank_disk),
    story!("identity/stale-disk", identity::stale_disk),
    story!("identity/schedules", schedules::schedules),
    story!("namespaces/of-the-host", namespaces::of_the_host, second),
    story!("fresh/node", fresh::node, second, Lio),
    story!("outage/nas-is-down", outage::nas_is_down, second),
    story!("outage/node-reboots", outage::node_reboots, second),
    story!("outage/nas-restarts", outage::nas_restarts),
    story!("fence/late-writes", fence::late_writes, second),
    story!("fence/comes-back/ext4", comeback::ext4, second, Lio),
    story!("fence/comes-back/xfs", comeback::xfs, second,),
    story!("fence/comes-back/btrfs", comeback::btrfs, second,),
    story!("fence/comes-back/block", comeback::block, second, Tgt),
    story!("fence/comes-back/two-paths", comeback::two_paths, second,),
    story!(
        "fence/session-goes-on/ext4",
        comeback::session_goes_on_ext4,
        second,
    ),
    story!(
        "fence/session-goes-on/xfs",
        comeback::session_goes_on_xfs,
        second,
    ),
    story!(
        "fence/session-goes-on/btrfs",
        comeback::session_goes_on_btrfs,
        second,
    ),
    story!(
        "fence/session-goes-on/block",
        comeback::session_goes_on_block,
        second,
    ),
    story!("multipath/one-goes-away", paths::one_goes_away, second),
];
