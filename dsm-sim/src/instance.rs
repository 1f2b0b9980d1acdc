//! Instances of the simulator: with ports and threads ([`running`]), or embedded in the caller ([`embedded`]). [`handle`] is
//! the interface that both share.

pub(crate) mod embedded;
pub(crate) mod handle;
pub(crate) mod running;
mod start;
