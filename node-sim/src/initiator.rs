//! The initiator side: simulates open-iscsi on a host, with `iscsiadm`, node records and the sysfs tree of sessions.
//!
//! ```text
//! argv ──▶ argv (strict parser) ──▶ iscsiadm (the modes) ──▶ record     node records, as open-iscsi keeps them
//!                                                       ├──▶ discovery  SendTargets
//!                                                       └──▶ session    login, rescan, logout
//!                                                              ├──▶ crate::loop_device  loop devices
//!                                                              └──▶ tree  the part of /sys that a driver reads
//! ```
//!
//! All state is below one root, see [`host::Host`], and one lock serializes all commands.
//!
//! # How it differs from a kernel with `iscsi_tcp`
//! - Nothing happens in the background. Only the next `--rescan` notices that a target is gone, or logs in again to one
//!   that is back. The kernel notices at once, and iscsid retries forever.
//! - I/O continues if the target is gone or the LUN was unmapped, because a loop device cannot be made to fail. Only the
//!   `state` files change, to `FAILED` and `transport-offline`.
//! - A disk in use survives its logout as a loop device until its last close; it disappears from the tree at once.
//! - If another file replaced a LUN, a rescan shows the new LUN's identity. Its content is shown only if the disk was not
//!   in use, because a loop device in use cannot change its file.
//! - There is no device-mapper, so multipathd is simulated only in states in which it creates no map, see [`multipathd`].
//! - iscsid does nothing except name the initiator at its first start, see [`host::Host::start_iscsid`].
//! - With `node.session.scan = manual` a login attaches no disk; `--rescan` does. Files that trigger actions of a kernel
//!   are not in the tree: `scsi_host/hostN/scan`, and a device's `rescan` and `delete`.

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
