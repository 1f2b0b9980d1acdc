//! The NAS, seen from its Web API. Evidence: `proto/dsm/*.json`.
//!
//! [`call`], [`reply`], [`rows`], [`lun`], [`target`], [`snapshot`], [`location`] and [`system`] are pure: a request is a value, an answer is parsed by a
//! function. [`client`] is the one effect, over a [`wire`].

pub mod call;
pub mod client;
pub mod credential;
mod lane;
pub mod location;
pub mod lun;
pub mod nas;
mod place;
#[cfg(test)]
mod played;
pub mod pulse;
pub mod reply;
pub mod room;
pub mod rows;
mod session;
pub mod snapshot;
pub mod system;
pub mod target;
pub mod told;
pub mod trust;
pub mod whole;
pub mod wire;

pub use call::Call;
pub use client::Client;
pub use nas::{TargetWrite, Nas};
pub use reply::{Code, DsmError};
