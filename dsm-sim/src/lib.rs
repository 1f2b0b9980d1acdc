//! A Synology NAS seen from its Web API, without a NAS: for drivers and their tests.
//!
//! - A request comes in at `http` (axum), is decoded by `decode`, and becomes a call.
//! - `server` lets `latency` and `fault` have their say, and notes each call in the `journal`.
//! - `core` takes calls one at a time: `nas` answers, and the effects are made durable (`store`, `backstore`, `export`).
//! - `nas` with `auth`, `lun`, `target`, `volume` and `system` is a pure state machine: no clock, no sockets, no files.
//! - `control` is a second port for tests: state, journal, faults, clock.
//!
//! What DSM does is written down, with its evidence, in `dsm-api.md`; every guess is a comment marked `ASSUMED`, and
//! [`assumptions`] lists them. It knows nothing of CSI or of any driver.

mod account;
mod api;
pub mod assumptions;
mod auth;
mod backstore;
mod boot;
mod clock;
mod clone;
mod code;
mod compound;
mod control;
mod core;
mod decode;
mod encryption;
mod export;
mod fault;
mod http;
mod journal;
mod latency;
mod listener;
mod lun;
mod lun_change;
mod lun_type;
mod model;
mod monitor;
mod nas;
mod network;
mod running;
mod san;
mod server;
mod share;
mod snapshot;
mod sparse;
mod state;
mod store;
mod system;
mod table;
mod target;
mod target_change;
mod tls;
mod volume;

pub use account::Account;
pub use auth::Settings;
pub use export::ExportKind;
pub use latency::Latency;
pub use model::{Dsm, Model};
pub use running::{Options, Running, StartError, start};
pub use tls::{Certificate, Https, TlsError};
pub use volume::{FileSystem, VolumeSpec};
