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
pub use nas::settings::{Asked, Settings};
pub use nas::state::account::Account;
pub use nas::state::volume::{FileSystem, VolumeSpec};
pub use nas::timing::Latency;
pub use options::Builder;
pub use server::fault::{Fault, Rule};
pub use server::journal::Entry;
pub use storage::export::ExportKind;
pub use tls::{Certificate, Https, TlsError};
