//! The NAS, seen from its Web API. Evidence: `proto/dsm/*.json`.
//!
//! [`call`], [`reply`], [`lun`], [`target`] and [`location`] are pure: a request is a value, an answer is parsed by a
//! function. [`client`] is the one effect, over a [`wire`].

pub mod call;
pub mod client;
pub mod credential;
pub mod location;
pub mod lun;
pub mod nas;
pub mod reply;
mod session;
pub mod target;
pub mod trust;
pub mod wire;

pub use call::Call;
pub use client::Client;
pub use nas::{Acted, Nas};
pub use reply::{Code, DsmError};
