//! The Synology CSI driver: block volumes (iSCSI LUNs) that grow.
//!
//! Parse once at the edge, decide in pure functions, act through two named effects, answer from one error table.
//!
//! | module | owns |
//! |---|---|
//! | [`config`] | flags and the configuration file |
//! | [`identity`], [`controller`], [`node`] | the three CSI services, one method per RPC |
//! | [`request`], [`volume`], [`publication`], [`chap`], [`floor`], [`plan`] | pure: CSI message to our types; what to do next |
//! | [`in_flight`] | one operation per volume, in a task of its own |
//! | [`dsm`] | the NAS: calls and replies (pure), client (effect) |
//! | [`host`] | this machine: command builders and parsers (pure), `linux` (effect) |
//! | [`error`] | every error and its gRPC code |
//! | [`telemetry`], [`metrics`] | logs; counts and times |
//!
//! **Invariants.** `node` and `host` never import `dsm`. `plan`, `request`, `volume` and `publication` are synchronous
//! and do no I/O. No module imports a simulator.

// The tests with real tools share `tests/common`, which names this crate as integration tests do.
#[cfg(test)]
extern crate self as driver;

pub mod chap;
pub mod config;
pub mod controller;
pub mod dsm;
pub mod error;
pub mod host;
pub mod identity;
pub mod in_flight;
pub mod metrics;
pub mod min_free;
pub mod node;
pub mod owner_tag;
pub mod plan;
pub mod publication;
pub mod request;
pub mod server;
pub mod telemetry;
pub mod volume;
