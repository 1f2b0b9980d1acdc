//! Model-based testing: random sequences of CSI calls and faults, checked against a reference model.
//!
//! | module | owns |
//! |---|---|
//! | [`reference_model`] | PURE: the volumes as the CO knows them, and the expected result of each call |
//! | [`step`] | PURE: the steps that a sequence consists of |
//! | [`sequence`] | PURE: how sequences are generated: weights, sizes, nodes |
//! | [`fault`] | PURE: the faults and their weights |
//! | [`environment`] | PURE: foreign objects on the NAS, the statuses that it reports, manual edits in SAN Manager |
//! | [`executor`] | EFFECT: runs steps on a [`TestBed`](crate::testbed::TestBed), and retries calls as a CO does |
//! | [`invariants`] | PURE: compares the reference model with what is observed |
//! | [`stats`] | PURE: throughput of a run |
//!
//! A sequence is a value and runs on every test bed: one that found a bug is kept as JSON in `e2e/regressions`.

pub mod environment;
pub mod executor;
mod fault;
pub mod invariants;
pub mod reference_model;
pub mod sequence;
pub mod stats;
pub mod step;

/// The number of volumes. Few, so that steps interact.
pub const VOLUMES: u8 = 2;
/// The number of nodes: every test bed has at least as many.
pub const NODES: usize = 2;
