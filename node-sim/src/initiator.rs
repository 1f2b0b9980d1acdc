//! The initiator side: what a host with open-iscsi looks like to a program that uses it.
//!
//! ```text
//! argv ──▶ argv (strict parser) ──▶ iscsiadm (the modes) ──▶ record     node records, as open-iscsi keeps them
//!                                                       ├──▶ discovery  SendTargets
//!                                                       └──▶ session    login, rescan, logout
//!                                                              ├──▶ crate::disk  loop devices
//!                                                              └──▶ tree  the part of /sys that a driver reads
//! ```
//!
//! Everything lives below one root, see [`host::Host`], and one lock orders all commands.
//!
//! # How it differs from a kernel with `iscsi_tcp`
//! - Nothing happens on its own. A target that went away is noticed, and one that came back is logged in to again, by the
//!   next command that looks: `--rescan`. The kernel notices at once, and iscsid retries for ever.
//! - I/O goes on when the target is gone or the LUN was unmapped: a loop device cannot be told to fail. The `state` files
//!   say `FAILED` and `transport-offline`.
//! - A disk in use survives its logout as a loop device until it is closed for the last time; in the tree it is gone.
//! - When another file took the place of a LUN, a rescan shows the new LUN's identity; its content is shown only if the
//!   disk was not in use, because a loop device in use cannot change its file.
//! - There is no device-mapper, so multipathd is played only as it is where it makes no map, see [`multipathd`].
//! - iscsid is only somebody who gives the initiator a name when he is called first, see [`host::Host::start_iscsid`].
//! - With `node.session.scan = manual` a login attaches no disk. `--rescan` does. Files that a kernel would obey are not in
//!   the tree, where nobody obeys them: `scsi_host/hostN/scan`, and a device's `rescan` and `delete`.

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
