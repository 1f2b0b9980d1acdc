//! The environment that host programs get, and `exec`: this process becomes the program.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;

/// Replaces this process with a program, like exec(3). Returns only on failure.
#[expect(
    clippy::disallowed_methods,
    reason = "the program replaces this process, which has a deadline"
)]
pub(super) fn exec(path: &Path, args: &[OsString], search_path: &str) -> io::Error {
    std::process::Command::new(path)
        .args(args)
        .env_clear()
        .envs(environment(search_path.into()))
        .exec()
}

/// The whole environment of a program. The driver's own environment must not leak, least of all into other namespaces, and some
/// tools take paths to read and write from it (`MKE2FS_CONFIG`, `BLKID_FILE`, `LIBMOUNT_FSTAB`).
pub(super) fn environment(search_path: OsString) -> [(&'static str, OsString); 2] {
    // English messages, and unescaped non-ASCII paths: in plain C some tools escape them.
    [("PATH", search_path), ("LC_ALL", "C.UTF-8".into())]
}
