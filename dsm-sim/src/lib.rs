//! A simulator of the DSM Web API of a Synology NAS, for the tests of DSM clients.
//!
//! ```
//! use dsm_sim::{DsmSim, Fault, Rule};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let _ = rustls::crypto::ring::default_provider().install_default();
//! let nas = DsmSim::builder().model("DS423".parse()?).start().await?;
//! // The next login succeeds, but its reply is lost.
//! nas.add_fault(Rule::new("SYNO.API.Auth", "login", Fault::LoseReply));
//!
//! // Your client goes here. Account and password are both admin.
//! let url = format!("{}/webapi/entry.cgi", nas.api());
//! let form = "api=SYNO.API.Auth&version=7&method=login&account=admin&passwd=admin";
//! let login = || reqwest::Client::new().post(&url).body(form).send();
//! assert!(login().await.is_err());
//! assert!(login().await?.text().await?.contains("\"success\":true"));
//!
//! let faults: Vec<_> = nas.journal().iter().map(|call| call.fault).collect();
//! assert_eq!(faults, [Some("lose_reply"), None]);
//! # Ok(())
//! # }
//! ```
//!
//! [`Builder`] configures the simulated NAS. [`DsmSim`] is the running NAS, with the controls that tests need most. The
//! control port offers all of them over HTTP. The command line is `dsm-sim serve`.
//!
//! **Evidence.** `proto/dsm/*.json` holds recorded exchanges, each with its source. The simulator's replies must have the same
//! shape. Every guess is a comment marked `ASSUMED`, and [`assumptions`] lists them. The simulator knows nothing about CSI.
//!
//! **Inside.**
//! - `server::http` (axum; `tls` and `server::listener` below it) decodes a request into a call.
//! - `server` applies latency and faults, and records each call in its `journal`.
//! - `storage::transaction` takes one call at a time: `nas` computes the reply, and the effects are made durable (`store`,
//!   `backstore`, `export`).
//! - `nas` is a pure state machine: no clock, no sockets, no files. `nas::api` has one file per DSM API.
//! - `compare::diff` sends the same calls to a real and a simulated NAS and compares the replies by `json_shape`;
//!   `compare::record` is a recording proxy in front of a NAS; `compare::upstream` is the real NAS.
//! - `instance` starts it all; `instance::embedded` runs without ports and threads.
//! - `control` is the control port for tests: state, journal, faults, clock; `instance::handle` is the same from Rust, and
//!   `control::page` is the web page.

pub mod assumptions;
pub mod compare;
mod control;
mod instance;
mod nas;
mod options;
mod secret_names;
mod server;
mod storage;
mod tls;

pub use compare::upstream::{TlsTrust, Upstream};
pub use instance::embedded::Embedded;
pub use instance::handle::{Counters, Handle};
pub use instance::running::{DsmSim, StartError};
pub use nas::model::{Dsm, Model};
pub use nas::settings::{AttribPolicy, Settings};
pub use nas::state::account::Account;
pub use nas::state::volume::{FileSystem, VolumeSpec};
pub use nas::timing::Latency;
pub use options::Builder;
pub use server::fault::{Fault, Rule};
pub use server::journal::Entry;
pub use storage::export::ExportKind;
pub use tls::{Certificate, Https, TlsError};
