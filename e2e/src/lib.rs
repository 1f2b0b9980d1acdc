//! The end-to-end test harness: the shipped driver against a simulated NAS (dsm-sim) and simulated or real nodes.
//!
//! | module | owns |
//! |---|---|
//! | [`harness`] | the programs under test as processes, and the CSI calls of a volume |
//! | [`testbed`] | environments for crashes, failing commands and lost replies: in memory, or on block devices |
//! | [`model`] | random sequences of calls and faults, the reference model, and the invariants |
//! | [`interceptor`] | wrapper scripts in front of the driver's host commands |
//! | [`vm`] | virtual machines with real iSCSI |

pub mod harness;
pub mod interceptor;
pub mod model;
pub mod testbed;
pub mod vm;

/// 2^30 bytes.
pub const GIB: i64 = 1 << 30;
/// 2^20 bytes.
pub const MIB: i64 = 1 << 20;
