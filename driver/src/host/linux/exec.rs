//! The environment that host programs get, and `exec`: this process becomes the program.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;

/// Makes this process that program, and returns only when it cannot.
#[expect(
    clippy::disallowed_methods,
    reason = "the deadline is that of this process, which the program takes the place of"
)]
pub(super) fn exec(path: &Path, args: &[OsString], search: &str) -> io::Error {
    std::process::Command::new(path)
        .args(args)
        .env_clear()
        .envs(environment(search.into()))
        .exec()
}

/// All that a program gets of an environment. The driver's own is none of its business, least of all in another's namespaces, and
/// some tools are told by theirs where to read and write (`MKE2FS_CONFIG`, `BLKID_FILE`, `LIBMOUNT_FSTAB`).
pub(super) fn environment(search: OsString) -> [(&'static str, OsString); 2] {
    // Messages in English, and paths outside ASCII as they are: some tools escape them in plain C.
    [("PATH", search), ("LC_ALL", "C.UTF-8".into())]
}
