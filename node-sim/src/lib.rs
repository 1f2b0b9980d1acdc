//! iSCSI without iSCSI: an exporting side and an `iscsiadm`, so that a driver can be tried on any Linux box.
//!
//! - [`target`]: the exporting side. Whoever plays the NAS says which targets exist and which files are their LUNs.
//!   Used as a library by the NAS simulator.
//! - [`initiator`]: a program that answers as open-iscsi's `iscsiadm` and attaches LUNs as loop devices, and the host
//!   root (`/sys`, `/etc/iscsi`) in which the driver finds them.
//!
//! The two meet in one folder, the one that [`target::loopdev::Targets`] opens.
//! It knows nothing of DSM's API, of CSI or of the driver.

mod exec;
pub mod initiator;
mod loop_device;
pub mod sparse;
mod store;
pub mod target;
