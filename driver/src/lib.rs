//! The Synology CSI driver: expandable block volumes (iSCSI LUNs).
//!
//! Messages are parsed once at the edge, decisions are made in pure functions, side effects go through two modules, and one table
//! maps errors to gRPC codes.
//!
//! | module | contents |
//! |---|---|
//! | [`config`] | command-line flags and the configuration file |
//! | [`identity`], [`controller`], [`node`] | the three CSI services, one method per RPC |
//! | [`request`], [`volume`], [`publication`], [`chap`], [`min_free`], [`owner_tag`], [`plan`] | pure: CSI messages to internal types; what to do next |
//! | [`in_flight`] | one operation per volume, each in its own task |
//! | [`dsm`] | the NAS: requests and replies (pure), HTTP client (side effects) |
//! | [`host`] | this machine: command builders and parsers (pure), `linux` (side effects) |
//! | [`error`] | all errors and their gRPC codes |
//! | [`telemetry`], [`metrics`] | logging; Prometheus metrics |
//!
//! **Invariants.** `node` and `host` never import `dsm`. `plan`, `request`, `volume` and `publication` are synchronous
//! and do no I/O. No module imports a simulator.

// Tests that run real tools share `tests/common`, which refers to this crate by name, as integration tests do.
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
