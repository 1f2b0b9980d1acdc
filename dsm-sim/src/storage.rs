//! What outlives the process: the state file, the images of LUNs, what is exported; [`transaction`] keeps them in step.

pub(crate) mod backstore;
pub(crate) mod export;
pub(crate) mod store;
pub(crate) mod transaction;
