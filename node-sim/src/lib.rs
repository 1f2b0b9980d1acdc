//! Simulates both sides of iSCSI without iSCSI: targets and an `iscsiadm`, so that a driver can be tested on any Linux machine.
//!
//! - [`target`]: the target side. Its caller, the NAS simulator, defines the targets and the files of their LUNs.
//! - [`initiator`]: a program that behaves like open-iscsi's `iscsiadm` and attaches LUNs as loop devices, and the host
//!   root (`/sys`, `/etc/iscsi`) in which the driver finds them.
//!
//! Both sides share one folder, the one that [`target::loopdev::Targets`] opens. This crate does not depend on DSM's API, CSI or
//! the driver.

mod exec;
pub mod initiator;
mod loop_device;
pub mod sparse;
mod store;
pub mod target;
