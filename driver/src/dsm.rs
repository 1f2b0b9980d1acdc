//! The client of a NAS's Web API. Evidence: `proto/dsm/*.json`.
//!
//! [`call`], [`reply`], [`rows`], [`lun`], [`target`], [`snapshot`], [`location`] and [`system`] are pure: a request is a value,
//! a reply is parsed by a function. Only [`client`] does I/O, over a [`transport`]. [`nas`] is what the controller asks of
//! one NAS.

pub mod call;
pub mod client;
mod compound;
pub mod location;
pub mod log_once;
pub mod lun;
mod lun_locations;
pub mod nas;
pub mod reply;
pub mod rows;
#[cfg(test)]
mod slow_nas;
pub mod snapshot;
pub mod system;
pub mod target;
pub mod transport;
pub mod trust;

pub use call::Call;
pub use client::Client;
pub use nas::{Nas, TargetWrite};
pub use reply::{Code, DsmError};
