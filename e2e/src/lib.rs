//! The harness: a NAS (dsm-sim), a node (node-sim) and the shipped driver, each a real process, and the life of a volume as
//! a story that a test or the demo tells.
//!
//! | module | owns |
//! |---|---|
//! | [`world`] | one of everything, in a folder of its own; nothing outlives it, not even after `kill -9` |
//! | [`nas`], [`initiator`], [`plugin`] | the three processes and how to ask them |
//! | [`life`] | a volume: create, publish, stage, write, expand, and all the way back |
//! | [`plane`], [`memory`], [`real`] | worlds in which everything may go wrong |
//! | [`grounds`] | where a search gets such worlds from |
//! | [`model`] | what must hold in them |
//! | [`trap`] | a gate before the host commands of a driver |
//! | [`ledger`] | what each CSI call costs the NAS |
//! | [`tools`], [`look`] | file systems, checksums and LUNs as a person would look at them |
//! | [`writer`] | a pod at work, that verifies what it reads |
//! | [`janitor`] | cleans up behind a world, however that ended |
//! | [`vm`] | virtual machines with real iSCSI |
//! | [`until`], [`skip`] | waits with a bound; counts what cannot run here |

pub mod grounds;
pub mod initiator;
pub mod janitor;
pub mod ledger;
pub mod life;
pub mod look;
pub mod memory;
pub mod model;
pub mod nas;
pub mod plane;
pub mod plugin;
pub mod process;
pub mod real;
pub mod skip;
pub mod tools;
pub mod trap;
pub mod until;
pub mod vm;
pub mod world;
pub mod writer;

/// 2^30 bytes.
pub const GIB: i64 = 1 << 30;
/// 2^20 bytes.
pub const MIB: i64 = 1 << 20;
