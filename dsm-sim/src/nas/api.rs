//! Handlers of the Web API: one file for each API of DSM, with reads and writes of LUNs and targets split.

pub(crate) mod auth;
pub(crate) mod boot;
pub(crate) mod clone;
pub(crate) mod encryption;
pub(crate) mod info;
pub(crate) mod lun;
pub(crate) mod lun_write;
pub(crate) mod monitoring;
pub(crate) mod network;
pub(crate) mod node_host;
pub(crate) mod share;
pub(crate) mod snapshot;
pub(crate) mod system;
pub(crate) mod target;
pub(crate) mod target_write;
pub(crate) mod utilization;
pub(crate) mod volume;
