//! `formatOptions`: the mkfs options that a StorageClass may set, and how they are merged with the features that the driver pins
//! (design.md#mkfs-defaults). Pure.
//!
//! Two parsers: [`FormatOptions::accept`] for a new volume, which refuses options that make a file system which cannot be mounted
//! on every node, cannot grow, or has a fixed UUID; [`FormatOptions::parse`] for existing volumes, because a volume that was made
//! with such options must still be staged.

use crate::volume::FsType;

/// ext4 features that every kernel since 3.18 mounts; newer `mke2fs` would add `metadata_csum_seed` and `orphan_file`, which
/// older kernels refuse (design.md#mkfs-defaults). No blocks are reserved for root: a volume has no root user.
const PINNED_EXT4: &[(&str, &str)] = &[
    ("-b", "4096"),
    ("-I", "256"),
    ("-m", "0"),
    (
        "-O",
        "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum",
    ),
];
/// xfs features that every kernel since 4.2 mounts; newer `mkfs.xfs` would add `reflink`, `bigtime`, `inobtcount`, `nrext64` and
/// `rmapbt`.
const PINNED_XFS: &[(&str, &str)] = &[
    (
        "-m",
        "crc=1,finobt=1,rmapbt=0,reflink=0,bigtime=0,inobtcount=0",
    ),
    ("-i", "sparse=1,nrext64=0"),
    ("-n", "ftype=1"),
];
/// btrfs features that every kernel since 4.5 mounts. Metadata is duplicated, as is the default for a single disk.
const PINNED_BTRFS: &[(&str, &str)] = &[
    ("--csum", "crc32c"),
    ("-n", "16384"),
    ("-s", "4096"),
    ("-d", "single"),
    ("-m", "dup"),
    ("-O", "extref,skinny-metadata,no-holes"),
];

/// Validated `formatOptions`: pairs of an option and its value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FormatOptions(Vec<(String, String)>);

/// Why `formatOptions` cannot be accepted.
#[derive(Debug, PartialEq, Eq)]
pub struct BadFormatOption {
    /// The refused word.
    pub word: String,
    /// Why it is refused, or what is accepted.
    pub remedy: String,
}

/// The options that may be set, each with a value. None of them names a device or file, forces, or discards.
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

/// Flags without a value that are accepted and ignored, because the driver does the same anyway: never discard, and force, as the
/// disk is known to be blank. (The official driver's StorageClasses have the first.)
const IGNORED_FLAGS: [&str; 5] = ["--nodiscard", "-K", "-F", "-f", "-q"];

/// Keys in an option's value that would place a part of the file system on another device or file, or would change its size or
/// offset.
const FORBIDDEN_KEYS: [&str; 10] = [
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
    /// Parses `formatOptions`.
    ///
    /// # Errors
    /// A word is not an allowed option or not a plain value.
    pub fn parse(fs: FsType, text: &str) -> Result<Self, BadFormatOption> {
        let words: Vec<&str> = text
            .split_whitespace()
            .filter(|word| !IGNORED_FLAGS.contains(word))
            .collect();
        let mut pairs = Vec::new();
        for pair in words.chunks(2) {
            let [option, value] = pair else {
                return Err(bad(fs, pair[0]));
            };
            if !allowed(fs).contains(option) {
                return Err(bad(fs, option));
            }
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"_-.=:,^".contains(&b);
            let is_forbidden = |part: &str| FORBIDDEN_KEYS.contains(&key_of(part));
            // The size of a journal, log, block, inode or sector may be set. The file system's may not: it has to fill the
            // device.
            let may_set_size = matches!(*option, "-J" | "-l" | "-s" | "-b" | "-i" | "-n");
            let forbidden = value
                .split(',')
                .any(|part| is_forbidden(part) && !(may_set_size && part.starts_with("size=")));
            if value.starts_with('-') || !value.bytes().all(plain) || forbidden {
                return Err(bad(fs, value));
            }
            pairs.push(((*option).to_owned(), (*value).to_owned()));
        }
        Ok(Self(pairs))
    }

    /// Parses `formatOptions` for a new volume.
    ///
    /// # Errors
    /// Those of [`FormatOptions::parse`]; and options that make a file system which not every node can mount or which cannot
    /// grow, and a fixed UUID: all volumes of the class would share it, and no two of them could be mounted on one node.
    pub fn accept(fs: FsType, text: &str) -> Result<Self, BadFormatOption> {
        let options = Self::parse(fs, text)?;
        for (option, value) in &options.0 {
            for part in parts(fs, option, value) {
                if let Some(reason) = refusal(fs, option, part) {
                    return Err(BadFormatOption {
                        word: format!("{option} {part}"),
                        remedy: format!("{reason}: leave it out"),
                    });
                }
            }
        }
        Ok(options)
    }

    /// The option and value pairs for mkfs: the pinned features, overridden or extended by these options.
    pub(super) fn pairs(&self, fs: FsType) -> Vec<(String, String)> {
        let pinned = match fs {
            FsType::Ext4 => PINNED_EXT4,
            FsType::Xfs => PINNED_XFS,
            FsType::Btrfs => PINNED_BTRFS,
        };
        let mut pairs: Vec<(String, String)> = Vec::new();
        for (option, value) in pinned {
            let given = self.values_of(option);
            let kept = |part: &&str| {
                let same = |other: &&str| feature(other) == feature(part);
                !given
                    .iter()
                    .flat_map(|value| value.split(','))
                    .any(|other| same(&other))
            };
            let kept: Vec<&str> = match (is_list(fs, option), given.is_empty()) {
                (_, true) => vec![value],
                (true, false) => value.split(',').filter(kept).collect(),
                (false, false) => continue,
            };
            pairs.push(((*option).to_owned(), kept.join(",")));
        }
        for (option, value) in &self.0 {
            let present = pairs.iter_mut().find(|(name, _)| name == option);
            match present.filter(|_| is_list(fs, option)) {
                Some((_, list)) if list.is_empty() => list.clone_from(value),
                Some((_, list)) => *list = format!("{list},{value}"),
                None => pairs.push((option.clone(), value.clone())),
            }
        }
        pairs
    }

    /// The values given for this option.
    fn values_of(&self, option: &str) -> Vec<&str> {
        let same = |other: &str| match option {
            "--csum" => matches!(other, "--csum" | "--checksum"),
            _ => other == option,
        };
        let values = self.0.iter().filter(|(name, _)| same(name));
        values.map(|(_, value)| value.as_str()).collect()
    }
}

/// Options whose value is a list of features or `key=value`. mkfs accepts such an option once, or uses only the last.
fn is_list(fs: FsType, option: &str) -> bool {
    match fs {
        FsType::Ext4 => matches!(option, "-O" | "-E"),
        FsType::Xfs => option != "-L",
        FsType::Btrfs => matches!(option, "-O" | "-R"),
    }
}

/// The entries of an option that takes a list, or its only value.
fn parts<'a>(fs: FsType, option: &str, value: &'a str) -> Vec<&'a str> {
    if is_list(fs, option) {
        value.split(',').collect()
    } else {
        vec![value]
    }
}

fn key_of(part: &str) -> &str {
    part.split('=').next().unwrap_or_default()
}

/// The name of the feature that a list entry turns on or off, without aliases.
fn feature(part: &str) -> &str {
    match key_of(part).trim_start_matches('^') {
        "extents" => "extent",
        "uninit_groups" | "gdt_csum" => "uninit_bg",
        name => name,
    }
}

const SHARED_UUID: &str =
    "every volume of the class would have the same UUID, and no two could be mounted on one node";
const CANNOT_GROW: &str = "such a file system cannot grow, at least not while it is mounted";
const NOT_MOUNTABLE: &str = "not every node could mount such a file system";

/// Why this entry of an option is refused for a new volume.
fn refusal(fs: FsType, option: &str, part: &str) -> Option<&'static str> {
    let number = |text: &str| text.parse::<u64>().ok();
    // Kernels with 4 KiB pages mount no larger blocks. Sizes may have a unit (4k, 64k).
    let large = |text: &str| match text.to_ascii_lowercase().strip_suffix('k') {
        Some(kib) => number(kib).is_none_or(|kib| kib > 4),
        None => number(text).is_none_or(|bytes| bytes > 4096),
    };
    let (key, value) = part.split_once('=').unwrap_or((part, ""));
    match (fs, option) {
        (FsType::Ext4 | FsType::Btrfs, "-U") => Some(SHARED_UUID),
        (FsType::Ext4, "-C") => Some(CANNOT_GROW),
        (FsType::Ext4, "-e") if part == "panic" => {
            Some("an error in one file system would stop the whole node")
        }
        (FsType::Ext4, "-b") if large(part.trim_start_matches('-')) => Some(NOT_MOUNTABLE),
        (FsType::Ext4, "-E") if key == "resize" => Some(CANNOT_GROW),
        (FsType::Ext4, "-O") => refusal_ext4(part),
        (FsType::Xfs, _) => match (option, key) {
            ("-m", "uuid") => Some(SHARED_UUID),
            ("-m", "crc") | ("-n", "ftype") if value == "0" => Some(
                "newer kernels cannot mount such a file system, and mkfs.xfs refuses it together with the features that the driver pins",
            ),
            ("-b" | "-s", "size" | "sectsize") if large(value) => Some(NOT_MOUNTABLE),
            ("-b", "log") | ("-s", "log" | "sectlog")
                if number(value).is_none_or(|log| log > 12) =>
            {
                Some(NOT_MOUNTABLE)
            }
            ("-l", "internal") if value == "0" => Some(NOT_MOUNTABLE),
            ("-m", "metadir" | "autofsck") | ("-n", "parent") | ("-d", "rtinherit") => {
                Some(NOT_MOUNTABLE)
            }
            _ => None,
        },
        (FsType::Btrfs, "-s") if large(part) || number(part).is_some_and(|size| size < 4096) => {
            Some(NOT_MOUNTABLE)
        }
        (FsType::Btrfs, "-d" | "-m") if !matches!(part, "single" | "dup" | "SINGLE" | "DUP") => {
            Some("a volume is a single disk, on which mkfs.btrfs supports only single and dup")
        }
        (FsType::Btrfs, "-O" | "-R")
            if matches!(
                key,
                "zoned" | "extent-tree-v2" | "raid-stripe-tree" | "list-all"
            ) =>
        {
            Some(NOT_MOUNTABLE)
        }
        _ => None,
    }
}

fn refusal_ext4(part: &str) -> Option<&'static str> {
    match part {
        "bigalloc" | "sparse_super2" | "^resize_inode" | "^sparse_super" | "^flex_bg" => {
            Some(CANNOT_GROW)
        }
        "meta_bg" => Some("mke2fs does not combine it with resize_inode, which growth requires"),
        "journal_dev" => Some("it makes an external journal instead of a file system"),
        "none" | "clear" => Some("options are added to the driver's own features"),
        "^extent" | "^extents" => {
            Some("the result would be an ext3, which this driver does not mount")
        }
        _ => None,
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
