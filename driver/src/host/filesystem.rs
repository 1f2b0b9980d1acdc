//! File systems: making, measuring, growing and checking them; command builders and parsers. Pure.

use super::fills::{Btrfs, Xfs};
use super::superblock::Geometry;
use super::{Cmd, Exit, HostError};
use crate::volume::{Bytes, FsType};

/// `mkfs.xfs` refuses less.
pub const SMALLEST_XFS: Bytes = Bytes::mib(300);

/// The features of an ext4 that every kernel since 3.18 mounts; newer `mke2fs` would add `metadata_csum_seed` and
/// `orphan_file`, which older kernels refuse (design choice 11). No blocks are kept for root: a volume has no root.
const PINNED_EXT4: &[&str] = &[
    "-b",
    "4096",
    "-I",
    "256",
    "-m",
    "0",
    "-O",
    "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum",
];
/// The features of an xfs that every kernel since 4.2 mounts; newer `mkfs.xfs` would add `reflink`, `bigtime`,
/// `inobtcount`, `nrext64` and `rmapbt`.
const PINNED_XFS: &[&str] = &[
    "-m",
    "crc=1,finobt=1,rmapbt=0,reflink=0,bigtime=0,inobtcount=0",
    "-i",
    "sparse=1,nrext64=0",
    "-n",
    "ftype=1",
];
/// The features of a btrfs that every kernel since 4.5 mounts. Metadata is kept twice, as for any single disk.
const PINNED_BTRFS: &[&str] = &[
    "--csum",
    "crc32c",
    "-n",
    "16384",
    "-s",
    "4096",
    "-d",
    "single",
    "-m",
    "dup",
    "-O",
    "extref,skinny-metadata,no-holes",
];

/// Words of `formatOptions`, known to be harmless.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FormatOptions(Vec<String>);

/// Why `formatOptions` cannot be accepted.
#[derive(Debug, PartialEq, Eq)]
pub struct BadFormatOption {
    /// The word.
    pub word: String,
    /// What is accepted instead.
    pub remedy: String,
}

/// The options that may be set, each with a value: none of them names a device or file, forces, or discards.
fn allowed(fs: FsType) -> &'static [&'static str] {
    match fs {
        FsType::Ext4 => &[
            "-b", "-C", "-E", "-e", "-g", "-G", "-i", "-I", "-J", "-L", "-m", "-N", "-O", "-T",
            "-U",
        ],
        FsType::Xfs => &["-b", "-d", "-i", "-l", "-L", "-m", "-n", "-s"],
        FsType::Btrfs => &[
            "--csum",
            "--checksum",
            "-d",
            "-L",
            "-m",
            "-n",
            "-O",
            "-R",
            "-s",
            "-U",
        ],
    }
}

/// Keys in the value of an option that would put a part of the file system elsewhere or beyond the disk.
const ELSEWHERE: [&str; 10] = [
    "device",
    "offset",
    "logdev",
    "rtdev",
    "name",
    "file",
    "test_fs",
    "discard",
    "size",
    "root_owner",
];

impl FormatOptions {
    /// Reads the words of `formatOptions`, which take the place of the pinned features.
    ///
    /// # Errors
    /// A word that is no allowed option or no plain value.
    pub fn parse(fs: FsType, text: &str) -> Result<Self, BadFormatOption> {
        let words: Vec<&str> = text.split_whitespace().collect();
        for pair in words.chunks(2) {
            let [option, value] = pair else {
                return Err(bad(fs, pair[0]));
            };
            if !allowed(fs).contains(option) {
                return Err(bad(fs, option));
            }
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"_-.=:,^".contains(&b);
            let names_elsewhere =
                |part: &str| ELSEWHERE.contains(&part.split('=').next().unwrap_or_default());
            // A journal's or log's size is fine, a file system's is not: it has to fill the device.
            let sized = matches!(*option, "-J" | "-l" | "-s" | "-b" | "-i" | "-n");
            let elsewhere = value
                .split(',')
                .any(|part| names_elsewhere(part) && !(sized && part.starts_with("size=")));
            if value.starts_with('-') || !value.bytes().all(plain) || elsewhere {
                return Err(bad(fs, value));
            }
        }
        Ok(Self(words.into_iter().map(str::to_owned).collect()))
    }
}

fn bad(fs: FsType, word: &str) -> BadFormatOption {
    let remedy = format!(
        "mkfs.{fs} options are OPTION VALUE pairs, with OPTION one of {}, and a VALUE that names no device, path, offset or file system size",
        allowed(fs).join(" ")
    );
    BadFormatOption {
        word: word.to_owned(),
        remedy,
    }
}

/// Makes a file system, without discarding anything. The caller knows that the device is ours and blank, so the tool's
/// own caution (which would ask a terminal) is switched off.
pub fn make(fs: FsType, device: &str, options: &FormatOptions) -> Cmd {
    let (program, always, pinned): (_, &[&str], _) = match fs {
        FsType::Ext4 => ("mkfs.ext4", &["-F", "-q"], PINNED_EXT4),
        FsType::Xfs => ("mkfs.xfs", &["-f", "-q", "-K"], PINNED_XFS),
        FsType::Btrfs => ("mkfs.btrfs", &["-f", "-q", "-K"], PINNED_BTRFS),
    };
    let asked: Vec<&str> = options.0.iter().map(String::as_str).collect();
    let words = if asked.is_empty() { pinned } else { &asked };
    let cmd = Cmd::new(program, 600).args(always.iter().copied());
    let cmd = if fs == FsType::Ext4 {
        with_one_extended_option(cmd, words)
    } else {
        cmd.args(words.iter().copied())
    };
    cmd.arg(device)
}

/// `mke2fs` heeds only the last `-E`, and it discards unless that one says otherwise: so there is one, with everything in it.
fn with_one_extended_option(cmd: Cmd, words: &[&str]) -> Cmd {
    let (extended, others): (Vec<_>, Vec<_>) = words.chunks(2).partition(|pair| pair[0] == "-E");
    let extended = extended.iter().filter_map(|pair| pair.get(1)).copied();
    let all: Vec<&str> = ["nodiscard,lazy_itable_init=1,lazy_journal_init=0"]
        .into_iter()
        .chain(extended)
        .collect();
    cmd.arg("-E").arg(all.join(",")).args(others.concat())
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

/// Grows a file system to the end of its device: a mounted one at `point`, or ext4 on its device alone.
pub fn grow(fs: FsType, device: &str, point: &str) -> Cmd {
    match fs {
        FsType::Ext4 => Cmd::new("resize2fs", 600).arg(device),
        FsType::Xfs => Cmd::new("xfs_growfs", 300).args(["-d", point]),
        FsType::Btrfs => Cmd::new("btrfs", 300).args(["filesystem", "resize", "max", point]),
    }
}

/// True when `resize2fs` was refused by the kernel: growing a mounted ext4 takes `CAP_SYS_RESOURCE`. It exits with 1
/// whatever the cause, so the text has to be looked at (e2fsprogs, `resize/online.c`).
pub fn lacks_capability(exit: &Exit) -> bool {
    exit.status != 0
        && exit
            .stderr
            .contains("Permission denied to resize filesystem")
}

/// Checks an unmounted ext4 and repairs what can be repaired safely; `resize2fs` insists on it.
pub fn check(device: &str) -> Cmd {
    Cmd::new("e2fsck", 600).args(["-f", "-p", device])
}

/// The exit of [`check`]: 0 clean, 1 repaired (`man 8 e2fsck`).
///
/// # Errors
/// Errors are left, or it did not run.
pub fn read_check(exit: Exit) -> Result<(), HostError> {
    if exit.status == 1 {
        Ok(())
    } else {
        exit.ok("e2fsck").map(|_| ())
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
