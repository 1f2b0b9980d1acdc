//! iSCSI targets and a simulated `iscsiadm`, to test a driver on any Linux machine, even without iSCSI in the kernel.
//!
//! - [`target`]: exports targets, whose LUNs are files. The NAS simulator uses it as a library.
//! - [`initiator`]: simulates open-iscsi's `iscsiadm`, with loop devices as disks, and a host root (`/sys`, `/etc/iscsi`) in
//!   which the driver finds them.
//!
//! The two share a directory, which [`target::loopdev::Targets`] opens. The crate knows nothing about DSM, CSI or the driver.

mod exec;
pub mod initiator;
mod loop_device;
pub mod sparse;
mod store;
pub mod target;
