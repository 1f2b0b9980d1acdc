//! Commands that make, probe, measure, grow and check file systems, and parsers of their output. Pure.

mod options;

use super::fs_limits::{Btrfs, Xfs};
use super::superblock::Geometry;
use super::{Cmd, Exit, HostError};
use crate::volume::{Bytes, FsType};

pub use options::{BadFormatOption, FormatOptions};

/// Deadline in seconds of commands whose run time depends on the disk's size. Killing one half-way would mean to start over, or
/// do damage; meanwhile the volume stays locked.
const NO_DEADLINE: u64 = 24 * 3600;

/// The smallest device that `mkfs.xfs` accepts.
pub const SMALLEST_XFS: Bytes = Bytes::mib(300);

/// Makes a file system, without discarding blocks. The caller has verified that the device is ours and blank, so the tool's own
/// check (which would prompt on a terminal) is disabled by force flags.
pub fn make(fs: FsType, device: &str, options: &FormatOptions) -> Cmd {
    let (program, always): (_, &[&str]) = match fs {
        FsType::Ext4 => ("mkfs.ext4", &["-F", "-q"]),
        FsType::Xfs => ("mkfs.xfs", &["-f", "-q", "-K"]),
        FsType::Btrfs => ("mkfs.btrfs", &["-f", "-q", "-K"]),
    };
    let pairs = options.pairs(fs);
    let cmd = Cmd::new(program, NO_DEADLINE).args(always.iter().copied());
    let cmd = if fs == FsType::Ext4 {
        with_one_extended_option(cmd, &pairs)
    } else {
        pairs
            .into_iter()
            .fold(cmd, |cmd, (option, value)| cmd.args([option, value]))
    };
    cmd.arg(device)
}

/// `mke2fs` uses only its last `-E`, and discards blocks unless that has `nodiscard`: so this merges all extended options into
/// one.
fn with_one_extended_option(cmd: Cmd, pairs: &[(String, String)]) -> Cmd {
    let (extended, others): (Vec<_>, Vec<_>) = pairs.iter().partition(|(option, _)| option == "-E");
    let extended = extended.iter().map(|(_, value)| value.as_str());
    let all: Vec<&str> = ["nodiscard,lazy_itable_init=1,lazy_journal_init=0"]
        .into_iter()
        .chain(extended)
        .collect();
    others
        .into_iter()
        .fold(cmd.arg("-E").arg(all.join(",")), |cmd, (option, value)| {
            cmd.args([option, value])
        })
}

/// Probes for signatures of any kind, past every cache.
pub fn probe(device: &str) -> Cmd {
    Cmd::new("blkid", 60).args(["-p", "-o", "export", device])
}

/// The result of [`probe`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// No signature. This alone proves nothing: `blkid` also reports it for a device that it cannot open.
    Nothing,
    /// One signature: `ext4`, `swap`, `LVM2_member`, `gpt partition table`, …
    Found(String),
    /// More than one signature.
    Several,
}

/// Interprets the exit of [`probe`]: 0 found, 2 nothing found, 8 found several (`man 8 blkid`).
///
/// # Errors
/// Any other status, or an output without a type: a failed probe never counts as blank.
pub fn read_probe(exit: Exit) -> Result<Probe, HostError> {
    match exit.status {
        2 if exit.stderr.trim().is_empty() => Ok(Probe::Nothing),
        8 => Ok(Probe::Several),
        _ => {
            let found = exit.ok("blkid")?.stdout;
            let value = |key: &str| {
                found
                    .lines()
                    .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
            };
            match (value("TYPE"), value("PTTYPE")) {
                (Some(kind), None) => Ok(Probe::Found(kind.to_owned())),
                (None, Some(table)) => Ok(Probe::Found(format!("{table} partition table"))),
                (Some(_), Some(_)) => Ok(Probe::Several),
                (None, None) => Err(HostError::Unparsable {
                    what: "the output of blkid".to_owned(),
                    seen: found,
                }),
            }
        }
    }
}

/// Grows a mounted file system to the end of its device.
pub fn grow(fs: FsType, device: &str, point: &str) -> Cmd {
    match fs {
        FsType::Ext4 => Cmd::new("resize2fs", 600).arg(device),
        FsType::Xfs => Cmd::new("xfs_growfs", 300).args(["-d", point]),
        FsType::Btrfs => Cmd::new("btrfs", 300).args(["filesystem", "resize", "max", point]),
    }
}

/// Grows an unmounted ext4. This may move blocks, so it must not be killed half-way, however large the disk is.
pub fn grow_unmounted(device: &str) -> Cmd {
    Cmd::new("resize2fs", NO_DEADLINE).arg(device)
}

/// Why a file system cannot be grown, if a retry of the same command is pointless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrowFailure {
    /// Not while it is mounted: the kernel requires `CAP_SYS_RESOURCE`.
    NotPermitted,
    /// Not while it is mounted: its features do not allow online growth.
    OnlyUnmounted,
    /// Not at all.
    Never,
}

/// The message of `resize2fs` if the kernel refuses. It exits with 1 whatever the cause, so the text has to be matched
/// (e2fsprogs, `resize/online.c`).
const NOT_PERMITTED: &str = "permission denied to resize filesystem";
/// Its messages about features that prevent online growth (`resize/online.c`).
const ONLY_UNMOUNTED: [&str; 7] = [
    "does not support online resizing",
    "not enough reserved gdt blocks",
    "does not support online resize",
    "does not support on-line resizing",
    "does not support resizing a file system this large",
    "operation not supported while checking for on-line resizing",
    "invalid argument while checking for on-line resizing",
];
/// Its messages about features that prevent growth altogether (`resize/main.c`).
const NEVER: [&str; 5] = [
    "has not been fully tested",
    "too large to be expressed in 32 bits",
    "unsupported feature",
    "features is not supported by resize2fs",
    "unsupported read-only feature",
];

/// Interprets the exit of [`grow`] by the tool's messages. `None`: it succeeded, or a retry may succeed.
pub fn cannot_grow(fs: FsType, exit: &Exit) -> Option<GrowFailure> {
    if fs != FsType::Ext4 || exit.status == 0 {
        return None;
    }
    // It wraps long lines.
    let output = format!("{} {}", exit.stdout, exit.stderr).to_lowercase();
    let output = output.split_whitespace().collect::<Vec<_>>().join(" ");
    let has_any = |texts: &[&str]| texts.iter().any(|text| output.contains(text));
    if has_any(&[NOT_PERMITTED]) {
        Some(GrowFailure::NotPermitted)
    } else if has_any(&ONLY_UNMOUNTED) {
        Some(GrowFailure::OnlyUnmounted)
    } else if has_any(&NEVER) {
        Some(GrowFailure::Never)
    } else {
        None
    }
}

/// Checks an ext4 before it is mounted: replays its journal and, if it is marked as having errors, repairs what can be repaired
/// safely. A read-only check changes nothing.
pub fn check(device: &str, readonly: bool) -> Cmd {
    let how = if readonly { "-n" } else { "-p" };
    Cmd::new("e2fsck", NO_DEADLINE).args([how, device])
}

/// Full check of an unmounted ext4, which repairs what can be repaired safely; `resize2fs` requires it.
pub fn check_full(device: &str) -> Cmd {
    Cmd::new("e2fsck", NO_DEADLINE).args(["-f", "-p", device])
}

/// The result of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckResult {
    /// No errors, or all were repaired.
    Sound,
    /// Errors that need manual repair, with the tool's output.
    Damaged(String),
    /// The check could not run, with the tool's output: unknown features, a write-protected disk.
    Unchecked(String),
}

/// Interprets the exit status of e2fsck, which is a bit mask (`man 8 e2fsck`): 1 and 2 repaired, 4 errors left, 8 and above it
/// failed.
///
/// # Errors
/// A signal killed it: the check has to be repeated.
pub fn read_check(exit: &Exit) -> Result<CheckResult, HostError> {
    match exit.status {
        // `128 + n` for signal n; 128 alone means that a shared library is missing.
        status if !(0..=128).contains(&status) => Err(exit.failed("e2fsck")),
        status if status & 4 != 0 => Ok(CheckResult::Damaged(exit.output_line())),
        status if status >= 8 => Ok(CheckResult::Unchecked(exit.output_line())),
        _ => Ok(CheckResult::Sound),
    }
}

/// Reads the geometry of a mounted xfs, because its superblock on the disk is out of date after growth. (`xfs_info` is a shell
/// script around the same command, and would need a shell in the image.)
pub fn xfs_geometry(point: &str) -> Cmd {
    Cmd::new("xfs_spaceman", 60).args(["-c", "info", point])
}

/// Parses the output of [`xfs_geometry`].
///
/// # Errors
/// It failed, or its output cannot be parsed.
pub fn read_xfs_geometry(exit: Exit) -> Result<Geometry, HostError> {
    let text = exit.ok("xfs_spaceman")?.stdout;
    let number = |line: &str, key: &str| {
        let word = text
            .lines()
            .find(|l| l.trim_start().starts_with(line))?
            .split([' ', ','])
            .find_map(|word| word.strip_prefix(key))?;
        word.parse().ok()
    };
    let geometry = (
        number("data", "bsize="),
        number("data", "blocks="),
        number("meta-data", "agsize="),
    );
    match geometry {
        (Some(block_size @ 1..), Some(blocks), Some(blocks_per_group @ 1..)) => {
            Ok(Geometry::Xfs(Xfs {
                blocks,
                block_size,
                blocks_per_group,
            }))
        }
        _ => Err(HostError::Unparsable {
            what: "the output of xfs_spaceman -c info".to_owned(),
            seen: text,
        }),
    }
}

/// Reads how much of its device a mounted btrfs uses.
pub fn btrfs_geometry(point: &str) -> Cmd {
    Cmd::new("btrfs", 60).args(["filesystem", "show", "--raw", point])
}

/// Parses the output of [`btrfs_geometry`].
///
/// # Errors
/// It failed, its output cannot be parsed, or the file system has more than one device.
pub fn read_btrfs_geometry(exit: Exit) -> Result<Geometry, HostError> {
    let text = exit.ok("btrfs")?.stdout;
    let sizes: Vec<u64> = text
        .lines()
        .filter_map(|line| {
            line.trim_start()
                .strip_prefix("devid")?
                .split_once(" size ")?
                .1
                .split(' ')
                .next()?
                .parse()
                .ok()
        })
        .collect();
    match sizes.as_slice() {
        // The driver formats with 4096, the largest sector size that a kernel with 4 KiB pages mounts.
        [size] => Ok(Geometry::Btrfs(Btrfs {
            size: Bytes(*size),
            sector: 4096,
        })),
        _ => Err(HostError::Unparsable {
            what: "the output of btrfs filesystem show".to_owned(),
            seen: text,
        }),
    }
}

#[cfg(test)]
mod tests;
