//! Everything outside of the state machine: the state file, the image files, the exports. [`transaction`] keeps them consistent.

pub(crate) mod backstore;
pub(crate) mod export;
pub(crate) mod store;
pub(crate) mod transaction;
