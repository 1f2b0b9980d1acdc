//! Stories of the node half: the shipped driver on a simulated NAS and a simulated `iscsiadm`, with real file systems, real
//! mounts and real loop devices. As root; elsewhere each story says that it was skipped.
//!
//! | stories | of |
//! |---|---|
//! | [`growth`], [`full`] | volumes that grow: mounted or not, in steps, full to the brim |
//! | [`crash`], [`format`] | a driver that is killed: between two steps, at each host command, in the midst of a format |
//! | [`comeback`] | a volume that is forced away from its node, used elsewhere, and given back |
//! | [`again`], [`outage`] | calls that come twice, nodes that reboot, NASes that are down |
//! | [`dead`] | file systems that die under their pods, or come damaged |
//! | [`modes`], [`views`] | readers, mount flags, one pod or two, raw devices, statistics |
//! | [`chap`] | secrets: right, wrong, changed, and seen nowhere |
//! | [`identity`] | disks that are not what they should be |
//! | [`portals`] | several portals on a node whose multipathd makes no map |
//! | [`crowd`] | twenty volumes at a time |
//!
//! In each, no call of the node service makes the NAS hear anything ([`story::Story::node`], design.md#the-node-never-calls-dsm),
//! and at the end nothing is left anywhere ([`story::Story::end`]).

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

#[path = "node/access_modes.rs"]
mod access_modes;
#[path = "node/chap.rs"]
mod chap;
#[path = "node/comeback.rs"]
mod comeback;
#[path = "node/concurrency.rs"]
mod concurrency;
#[path = "node/crash.rs"]
mod crash;
#[path = "node/dead_fs.rs"]
mod dead_fs;
#[path = "node/expand.rs"]
mod expand;
#[path = "node/format.rs"]
mod format;
#[path = "node/full_filesystem.rs"]
mod full_filesystem;
#[path = "node/idempotency.rs"]
mod idempotency;
#[path = "node/identity.rs"]
mod identity;
#[path = "node/outage.rs"]
mod outage;
#[path = "node/portals.rs"]
mod portals;
#[path = "node/stats.rs"]
mod stats;
#[path = "node/story.rs"]
mod story;
