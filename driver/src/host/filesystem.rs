//! File systems: making, measuring, growing and checking them; command builders and parsers. Pure.

mod options;

use super::fs_limits::{Btrfs, Xfs};
use super::superblock::Geometry;
use super::{Cmd, Exit, HostError};
use crate::volume::{Bytes, FsType};

pub use options::{BadFormatOption, FormatOptions};

/// For work that takes the longer the larger a disk is, seconds. Who is killed half-way starts again from the beginning, or has done
/// harm; meanwhile the volume stays locked.
const NO_DEADLINE: u64 = 24 * 3600;

/// `mkfs.xfs` refuses less.
pub const SMALLEST_XFS: Bytes = Bytes::mib(300);

/// Makes a file system, without discarding anything. The caller knows that the device is ours and blank, so the tool's
/// own caution (which would ask a terminal) is switched off.
pub fn make(fs: FsType, device: &str, options: &FormatOptions) -> Cmd {
    let (program, always): (_, &[&str]) = match fs {
        FsType::Ext4 => ("mkfs.ext4", &["-F", "-q"]),
        FsType::Xfs => ("mkfs.xfs", &["-f", "-q", "-K"]),
        FsType::Btrfs => ("mkfs.btrfs", &["-f", "-q", "-K"]),
    };
    let words = options.words(fs);
    let cmd = Cmd::new(program, NO_DEADLINE).args(always.iter().copied());
    let cmd = if fs == FsType::Ext4 {
        with_one_extended_option(cmd, &words)
    } else {
        words
            .into_iter()
            .fold(cmd, |cmd, (option, value)| cmd.args([option, value]))
    };
    cmd.arg(device)
}

/// `mke2fs` heeds only the last `-E`, and it discards unless that one says otherwise: so there is one, with everything in it.
fn with_one_extended_option(cmd: Cmd, words: &[(String, String)]) -> Cmd {
    let (extended, others): (Vec<_>, Vec<_>) = words.iter().partition(|(option, _)| option == "-E");
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

/// Looks for signatures of any kind, past every cache.
pub fn probe(device: &str) -> Cmd {
    Cmd::new("blkid", 60).args(["-p", "-o", "export", device])
}

/// What [`probe`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Nothing. By itself no proof: `blkid` says so of a device that it cannot open, too.
    Nothing,
    /// One thing: `ext4`, `swap`, `LVM2_member`, `gpt partition table`, …
    Found(String),
    /// More than one thing.
    Several,
}

/// The exit of [`probe`]: 0 found, 2 nothing found, 8 found several (`man 8 blkid`).
///
/// # Errors
/// Any other status, and an output without a type: a failed probe is never blank.
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
                (None, None) => Err(HostError::Garbled {
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

/// Grows an ext4 that is not mounted, which moves blocks out of the way: it is not killed half-way, however large the disk is.
pub fn grow_unmounted(device: &str) -> Cmd {
    Cmd::new("resize2fs", NO_DEADLINE).arg(device)
}

/// Why a file system did not grow, as far as another try changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cannot {
    /// Not while it is mounted: the kernel asks for `CAP_SYS_RESOURCE`.
    NotPermitted,
    /// Not while it is mounted: its features do not allow it.
    OnlyUnmounted,
    /// Never.
    Never,
}

/// What `resize2fs` says when it is refused by the kernel. It exits with 1 whatever the cause, so the text has to be looked at
/// (e2fsprogs, `resize/online.c`).
const NOT_PERMITTED: &str = "permission denied to resize filesystem";
/// What it says of features that the kernel does not grow while mounted (`resize/online.c`).
const ONLY_UNMOUNTED: [&str; 7] = [
    "does not support online resizing",
    "not enough reserved gdt blocks",
    "does not support online resize",
    "does not support on-line resizing",
    "does not support resizing a file system this large",
    "operation not supported while checking for on-line resizing",
    "invalid argument while checking for on-line resizing",
];
/// What it says of features that it does not grow at all (`resize/main.c`).
const NEVER: [&str; 5] = [
    "has not been fully tested",
    "too large to be expressed in 32 bits",
    "unsupported feature",
    "features is not supported by resize2fs",
    "unsupported read-only feature",
];

/// True growth that another try cannot bring, by the tool's own words. `None`: it went well, or may go well next time.
pub fn cannot_grow(fs: FsType, exit: &Exit) -> Option<Cannot> {
    if fs != FsType::Ext4 || exit.status == 0 {
        return None;
    }
    // It breaks its lines where they are full.
    let said = format!("{} {}", exit.stdout, exit.stderr).to_lowercase();
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    let says = |texts: &[&str]| texts.iter().any(|text| said.contains(text));
    if says(&[NOT_PERMITTED]) {
        Some(Cannot::NotPermitted)
    } else if says(&ONLY_UNMOUNTED) {
        Some(Cannot::OnlyUnmounted)
    } else if says(&NEVER) {
        Some(Cannot::Never)
    } else {
        None
    }
}

/// Checks an ext4 that is about to be mounted: replays its journal, and if it says that it has faults, repairs what can be repaired
/// safely. For a reader it is only looked at.
pub fn check(device: &str, readonly: bool) -> Cmd {
    let how = if readonly { "-n" } else { "-p" };
    Cmd::new("e2fsck", NO_DEADLINE).args([how, device])
}

/// Checks an unmounted ext4 throughout and repairs what can be repaired safely; `resize2fs` insists on it.
pub fn check_throughout(device: &str) -> Cmd {
    Cmd::new("e2fsck", NO_DEADLINE).args(["-f", "-p", device])
}

/// What a check has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checked {
    /// No fault, or none any more.
    Sound,
    /// Faults that only a person may repair, in the tool's words.
    Damaged(String),
    /// It could not be checked, in the tool's words: features that the tool does not know, a disk that may only be read.
    Unchecked(String),
}

/// The exit of a check, bit by bit (`man 8 e2fsck`): 1 and 2 repaired, 4 faults are left, 8 and above it did not work.
///
/// # Errors
/// A signal ended it: then it has to be done again.
pub fn read_check(exit: &Exit) -> Result<Checked, HostError> {
    match exit.status {
        // `128 + n` for signal n; 128 alone is a library that is missing.
        status if !(0..=128).contains(&status) => Err(exit.failed("e2fsck")),
        status if status & 4 != 0 => Ok(Checked::Damaged(exit.said())),
        status if status >= 8 => Ok(Checked::Unchecked(exit.said())),
        _ => Ok(Checked::Sound),
    }
}

/// Asks a mounted xfs for its geometry. The superblock on the disk is stale after growth. (`xfs_info` is a script around the
/// same, and would bring a shell into the image.)
pub fn xfs_geometry(point: &str) -> Cmd {
    Cmd::new("xfs_spaceman", 60).args(["-c", "info", point])
}

/// Reads the output of [`xfs_geometry`].
///
/// # Errors
/// It failed, or is not understood.
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
        _ => Err(HostError::Garbled {
            what: "the output of xfs_spaceman -c info".to_owned(),
            seen: text,
        }),
    }
}

/// Asks a mounted btrfs how much of its device it uses.
pub fn btrfs_geometry(point: &str) -> Cmd {
    Cmd::new("btrfs", 60).args(["filesystem", "show", "--raw", point])
}

/// Reads the output of [`btrfs_geometry`].
///
/// # Errors
/// It failed, is not understood, or the file system has more than one device.
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
        // 4096 is what the driver formats with, and the largest sector that a 4 KiB-page kernel mounts.
        [size] => Ok(Geometry::Btrfs(Btrfs {
            size: Bytes(*size),
            sector: 4096,
        })),
        _ => Err(HostError::Garbled {
            what: "the output of btrfs filesystem show".to_owned(),
            seen: text,
        }),
    }
}

#[cfg(test)]
mod tests;
