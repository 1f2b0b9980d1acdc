//! Reports tests that cannot run on this machine; `cargo ci test` counts them.

use std::fs::OpenOptions;
use std::io::Write as _;

/// Reports that `test` is skipped, and why: on standard error and in the file that `SKIP_LOG` names.
pub fn skip(test: &str, reason: &str) {
    let line = format!("SKIP: {test}: {reason}\n");
    #[expect(clippy::disallowed_methods, reason = "set by cargo ci")]
    let log = std::env::var("SKIP_LOG");
    eprint!("{line}");
    if let Ok(path) = log
        && let Ok(mut file) = OpenOptions::new().create(true).append(true).open(path)
    {
        let _ = file.write_all(line.as_bytes());
    }
}

/// Skips `test` and returns true, unless this process is root and may use loop devices.
pub fn needs_root(test: &str) -> bool {
    let able =
        nix::unistd::geteuid().is_root() && std::path::Path::new("/dev/loop-control").exists();
    if !able {
        skip(test, "needs root");
    }
    !able
}

/// True if the kernel lets this process grow a mounted ext4 (`CAP_SYS_RESOURCE`, bit 24 of the effective set).
pub fn can_grow_mounted_ext4() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|set| set & (1 << 24) != 0)
}
