//! Model-based testing: random sequences of CSI calls and faults, checked against a reference model.
//!
//! | module | owns |
//! |---|---|
//! | [`reference_model`] | PURE: the volumes as the CO knows them, and the expected result of each call |
//! | [`step`] | PURE: the steps, their weights, and how sequences are generated |
//! | [`fault`] | PURE: the faults and their weights |
//! | [`environment`] | PURE: foreign objects on the NAS, the statuses that it reports, manual edits in SAN Manager |
//! | [`executor`] | EFFECT: runs steps on a [`TestBed`](crate::testbed::TestBed), and retries calls as a CO does |
//! | [`environment_steps`] | EFFECT: the steps that change the environment |
//! | [`scenarios`] | EFFECT: steps that consist of several calls: fencing, races, swapped LUNs, password rotation |
//! | [`fallback`] | PURE: replacement calls for what a test bed cannot do |
//! | [`invariants`] | PURE: compares the reference model with what is observed |
//! | [`stats`] | PURE: throughput of a run |
//!
//! A sequence is a value and runs on every test bed: one that found a bug is kept as JSON in `e2e/regressions`.

pub mod environment;
mod environment_steps;
pub mod executor;
mod fallback;
mod fault;
pub mod invariants;
pub mod reference_model;
mod scenarios;
pub mod stats;
pub mod step;
