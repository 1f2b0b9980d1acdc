//! The initiator: simulates a host with open-iscsi, as a program sees it that runs `iscsiadm` and reads `/sys`.
//!
//! ```text
//! argv ──▶ argv (strict parser) ──▶ iscsiadm (the modes) ──▶ record     node records, as open-iscsi keeps them
//!                                                       ├──▶ discovery  SendTargets
//!                                                       └──▶ session    login, rescan, logout
//!                                                              ├──▶ crate::loop_device  loop devices
//!                                                              └──▶ tree  the part of /sys that a driver reads
//! ```
//!
//! Everything is below one host root, see [`host::Host`], and one lock serializes all commands.
//!
//! # How it differs from a kernel with `iscsi_tcp`
//! - Nothing happens in the background. Only `--rescan` notices that a target is gone, and logs in again to one that is back. The
//!   kernel notices at once, and iscsid retries forever.
//! - I/O continues when the target is gone or the LUN was unmapped: a loop device cannot be made to fail. The `state` files
//!   contain `FAILED` and `transport-offline`.
//! - A disk in use survives its logout as a loop device until its last close; it is removed from the tree at once.
//! - When another LUN has been mapped in place of a disk's LUN, a rescan shows the identity of the new LUN, but its content only
//!   if the disk was not in use, because a loop device in use cannot change its file.
//! - There is no device-mapper, so only a multipathd that creates no maps is simulated, see [`multipathd`].
//! - iscsid does nothing but generate the initiator's name on first use, see [`host::Host::start_iscsid`].
//! - With `node.session.scan = manual` a login attaches no disk, but `--rescan` does. Control files that a kernel would act on
//!   are missing in the tree: `scsi_host/hostN/scan`, and a device's `rescan` and `delete`.

mod argv;
mod console;
mod database;
mod discovery;
pub mod host;
pub mod iscsiadm;
pub mod multipathd;
mod print;
mod record;
pub mod report;
mod session;
mod tree;
