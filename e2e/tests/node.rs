//! Tests of the node half: the shipped driver on a simulated NAS and a simulated `iscsiadm`, with real file systems, real
//! mounts and real loop devices. They need root; without it each prints that it was skipped.
//!
//! | modules | topic |
//! |---|---|
//! | [`expand`], [`full_filesystem`] | expansion: mounted or not, in steps, of a full file system |
//! | [`crash`], [`format`] | a driver that is killed: between two steps, at each host command, during a format |
//! | [`comeback`] | a volume that is forcibly detached from its node, used elsewhere, and given back |
//! | [`idempotency`], [`outage`] | repeated calls, nodes that reboot, NASes that are down |
//! | [`dead_fs`] | file systems that fail under their pods, or are damaged |
//! | [`access_modes`], [`stats`] | read-only volumes, mount flags, one pod or two, raw devices, statistics |
//! | [`chap`] | CHAP secrets: right, wrong, changed, and never exposed |
//! | [`identity`] | wrong disks |
//! | [`portals`] | several portals on a node whose multipathd creates no map |
//! | [`concurrency`] | twenty volumes, five at a time |
//!
//! Each test checks that no node call makes a NAS call ([`story::Story::node`], design.md#the-node-never-calls-dsm), and that
//! nothing is left over at the end ([`story::Story::end`]).

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
