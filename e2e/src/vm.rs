//! Virtual machines with a stock Debian kernel and this machine's root file system: real iSCSI for everybody.
//!
//! | module | owns |
//! |---|---|
//! | [`image`] | kernel, modules and initramfs, fetched once and kept below `target/vm` |
//! | [`machine`] | QEMU: what a machine has, its console, what it reports |
//! | [`guest`] | inside: the first process, mounts, modules, network, daemons |
//! | [`warm`] | what of the host's files a machine keeps in memory |
//! | [`remote`] | inside, on the second machine: does what the first asks; and how to ask |
//!
//! Nothing here needs root: the guest sees `/` read-only (9p) below a file system in its own memory, and is root there.

mod archive;
pub mod guest;
pub mod image;
pub mod machine;
pub mod page_cache;
pub mod remote;
