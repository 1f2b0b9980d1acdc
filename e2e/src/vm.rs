//! Virtual machines with a stock Debian kernel and this machine's root file system: real iSCSI without special hardware or root.
//!
//! | module | owns |
//! |---|---|
//! | [`image`] | kernel, modules and initramfs, fetched once and kept below `target/vm` |
//! | [`machine`] | QEMU: what a machine has, its console, what it reports |
//! | [`guest`] | in the guest: the first process, mounts, modules, network, daemons |
//! | [`page_cache`] | which files of the host a guest keeps in memory |
//! | [`remote`] | runs programs on the second machine: server and client |
//!
//! Nothing here needs root: the guest sees `/` read-only (9p) under a file system in its own memory, and is root there.

mod archive;
pub mod guest;
pub mod image;
pub mod machine;
pub mod page_cache;
pub mod remote;
