//! A simulated NAS that runs: behind ports ([`running`]), or inside of its caller ([`embedded`]); [`handle`] is what both offer.

pub(crate) mod embedded;
pub(crate) mod handle;
pub(crate) mod running;
mod start;
