//! A Synology NAS seen from its Web API, without a NAS: for those who write clients of DSM, and for their tests.
//!
//! ```
//! use dsm_sim::{DsmSim, Fault, Rule};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let _ = rustls::crypto::ring::default_provider().install_default();
//! let nas = DsmSim::builder().model("DS423".parse()?).start().await?;
//! // The next login is carried out, but its answer gets lost.
//! nas.add_fault(Rule::new("SYNO.API.Auth", "login", Fault::LoseReply));
//!
//! // Your client goes here. The account is admin, admin.
//! let url = format!("{}/webapi/entry.cgi", nas.api());
//! let form = "api=SYNO.API.Auth&version=7&method=login&account=admin&passwd=admin";
//! let login = || reqwest::Client::new().post(&url).body(form).send();
//! assert!(login().await.is_err());
//! assert!(login().await?.text().await?.contains("\"success\":true"));
//!
//! let fates: Vec<_> = nas.journal().iter().map(|call| call.fault).collect();
//! assert_eq!(fates, [Some("lose_reply"), None]);
//! # Ok(())
//! # }
//! ```
//!
//! [`Builder`] says what to simulate; [`DsmSim`] is the running NAS with the knobs that tests turn most. Everything else is
//! at its control port, over HTTP. As a program it is `dsm-sim serve`.
//!
//! **Evidence.** `proto/dsm/*.json` holds exchanges, each with its source, that the simulator must repeat in shape; every
//! guess is a comment marked `ASSUMED`, and [`assumptions`] lists them. It knows nothing of CSI or of any driver.
//!
//! **Inside.**
//! - A request comes in at `http` (axum; `tls` and `listener` below it), is decoded by `decode`, and becomes a call.
//! - `server` lets `latency` and `fault` have their say, and notes each call in the `journal`.
//! - `core` takes calls one at a time: `nas` answers, and the effects are made durable (`store`, `backstore`, `export`).
//! - `nas` with `auth`, `lun`, `target`, `lingering`, `volume` and `system` is a pure state machine: no clock, no sockets, no files.
//! - `diff` asks a real NAS and a simulated one the same, and `shape` judges their answers; `record` writes down what
//!   a NAS says, `upstream` is that NAS.
//! - `embedded` is all of this without ports and threads.
//! - `control` is a second port for tests, `knobs` the same from Rust: state, journal, faults, clock; `page`
//!   shows it all to people.

mod account;
mod api;
pub mod assumptions;
mod auth;
mod backstore;
mod boot;
mod builder;
mod clock;
mod clone;
mod code;
mod compound;
mod control;
mod core;
mod decode;
pub mod diff;
mod embedded;
mod encryption;
mod export;
mod fault;
mod http;
mod journal;
mod knobs;
mod latency;
mod lingering;
mod listener;
mod lun;
mod lun_change;
mod lun_type;
mod model;
mod monitor;
mod nas;
mod network;
mod odd;
mod page;
pub mod record;
mod rest;
mod running;
mod san;
mod secret;
mod server;
mod settings;
pub mod shape;
mod share;
mod snapshot;
mod state;
mod store;
mod system;
mod table;
mod taken;
mod target;
mod target_change;
mod tls;
mod upstream;
mod volume;

pub use account::Account;
pub use builder::Builder;
pub use embedded::Embedded;
pub use export::ExportKind;
pub use fault::{Fault, Rule};
pub use journal::Entry;
pub use knobs::{Counters, Knobs};
pub use latency::Latency;
pub use model::{Dsm, Model};
pub use running::{DsmSim, StartError};
pub use settings::{Asked, Settings};
pub use tls::{Certificate, Https, TlsError};
pub use upstream::{Trust, Upstream};
pub use volume::{FileSystem, VolumeSpec};
