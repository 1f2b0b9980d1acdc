//! `formatOptions`: what a StorageClass may ask of mkfs, and how that is added to the features that the driver pins
//! (design.md#mkfs-defaults). Pure.
//!
//! Two readers: [`FormatOptions::accept`] for a volume that is to be made, which refuses what could never be mounted, could not
//! grow or would make twins; [`FormatOptions::parse`] for volumes that there are, because one that was made with such options
//! has to be staged all the same.

use crate::volume::FsType;

/// The features of an ext4 that every kernel since 3.18 mounts; newer `mke2fs` would add `metadata_csum_seed` and
/// `orphan_file`, which older kernels refuse (design.md#mkfs-defaults). No blocks are kept for root: a volume has no root.
const PINNED_EXT4: &[(&str, &str)] = &[
    ("-b", "4096"),
    ("-I", "256"),
    ("-m", "0"),
    (
        "-O",
        "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum",
    ),
];
/// The features of an xfs that every kernel since 4.2 mounts; newer `mkfs.xfs` would add `reflink`, `bigtime`,
/// `inobtcount`, `nrext64` and `rmapbt`.
const PINNED_XFS: &[(&str, &str)] = &[
    (
        "-m",
        "crc=1,finobt=1,rmapbt=0,reflink=0,bigtime=0,inobtcount=0",
    ),
    ("-i", "sparse=1,nrext64=0"),
    ("-n", "ftype=1"),
];
/// The features of a btrfs that every kernel since 4.5 mounts. Metadata is kept twice, as for any single disk.
const PINNED_BTRFS: &[(&str, &str)] = &[
    ("--csum", "crc32c"),
    ("-n", "16384"),
    ("-s", "4096"),
    ("-d", "single"),
    ("-m", "dup"),
    ("-O", "extref,skinny-metadata,no-holes"),
];

/// Words of `formatOptions`, known to be harmless: pairs of an option and its value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FormatOptions(Vec<(String, String)>);

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

/// Words without a value that ask for what is done anyway: nothing is discarded, and the tools are not asked for their opinion of a
/// disk that is known to be blank. (The official driver's StorageClasses hold the first.)
const DONE_ANYWAY: [&str; 5] = ["--nodiscard", "-K", "-F", "-f", "-q"];

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
    /// Reads the words of `formatOptions`.
    ///
    /// # Errors
    /// A word that is no allowed option or no plain value.
    pub fn parse(fs: FsType, text: &str) -> Result<Self, BadFormatOption> {
        let words: Vec<&str> = text
            .split_whitespace()
            .filter(|word| !DONE_ANYWAY.contains(word))
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
            let names_elsewhere = |part: &str| ELSEWHERE.contains(&key_of(part));
            // A journal's or log's size is fine, a file system's is not: it has to fill the device.
            let sized = matches!(*option, "-J" | "-l" | "-s" | "-b" | "-i" | "-n");
            let elsewhere = value
                .split(',')
                .any(|part| names_elsewhere(part) && !(sized && part.starts_with("size=")));
            if value.starts_with('-') || !value.bytes().all(plain) || elsewhere {
                return Err(bad(fs, value));
            }
            pairs.push(((*option).to_owned(), (*value).to_owned()));
        }
        Ok(Self(pairs))
    }

    /// The same for a volume that is to be made.
    ///
    /// # Errors
    /// Also what no node could mount, what would never grow, and a fixed UUID: every volume of the class would have it, and no two
    /// of them could be mounted on one node.
    pub fn accept(fs: FsType, text: &str) -> Result<Self, BadFormatOption> {
        let options = Self::parse(fs, text)?;
        for (option, value) in &options.0 {
            for part in parts(fs, option, value) {
                if let Some(why) = unfit(fs, option, part) {
                    return Err(BadFormatOption {
                        word: format!("{option} {part}"),
                        remedy: format!("{why}: leave it out"),
                    });
                }
            }
        }
        Ok(options)
    }

    /// The words for mkfs: the pinned features, and these options in their place or beside them.
    pub(super) fn words(&self, fs: FsType) -> Vec<(String, String)> {
        let pinned = match fs {
            FsType::Ext4 => PINNED_EXT4,
            FsType::Xfs => PINNED_XFS,
            FsType::Btrfs => PINNED_BTRFS,
        };
        let mut words: Vec<(String, String)> = Vec::new();
        for (option, value) in pinned {
            let asked = self.asked(option);
            let kept = |part: &&str| {
                let same = |other: &&str| feature(other) == feature(part);
                !asked
                    .iter()
                    .flat_map(|value| value.split(','))
                    .any(|other| same(&other))
            };
            let kept: Vec<&str> = match (is_list(fs, option), asked.is_empty()) {
                (_, true) => vec![value],
                (true, false) => value.split(',').filter(kept).collect(),
                (false, false) => continue,
            };
            words.push(((*option).to_owned(), kept.join(",")));
        }
        for (option, value) in &self.0 {
            let there = words.iter_mut().find(|(name, _)| name == option);
            match there.filter(|_| is_list(fs, option)) {
                Some((_, list)) if list.is_empty() => list.clone_from(value),
                Some((_, list)) => *list = format!("{list},{value}"),
                None => words.push((option.clone(), value.clone())),
            }
        }
        words
    }

    /// What is asked for by this option.
    fn asked(&self, option: &str) -> Vec<&str> {
        let same = |other: &str| match option {
            "--csum" => matches!(other, "--csum" | "--checksum"),
            _ => other == option,
        };
        let asked = self.0.iter().filter(|(name, _)| same(name));
        asked.map(|(_, value)| value.as_str()).collect()
    }
}

/// Options whose value is a list of features or `key=value`; mkfs takes each option once, or heeds only the last.
fn is_list(fs: FsType, option: &str) -> bool {
    match fs {
        FsType::Ext4 => matches!(option, "-O" | "-E"),
        FsType::Xfs => option != "-L",
        FsType::Btrfs => matches!(option, "-O" | "-R"),
    }
}

/// What is judged one by one.
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

/// What an entry of a list is about, whether it is switched on or off.
fn feature(part: &str) -> &str {
    match key_of(part).trim_start_matches('^') {
        "extents" => "extent",
        "uninit_groups" | "gdt_csum" => "uninit_bg",
        name => name,
    }
}

const TWINS: &str =
    "every volume of the class would have the same UUID, and no two could be mounted on one node";
const GROWTH: &str = "such a file system cannot grow, at least not while it is mounted";
const UNMOUNTABLE: &str = "not every node could mount such a file system";

/// Why this part of an option is refused for a new volume.
fn unfit(fs: FsType, option: &str, part: &str) -> Option<&'static str> {
    let number = |text: &str| text.parse::<u64>().ok();
    // Kernels with pages of 4 KiB mount no larger block; sizes may have a letter (4k, 64k).
    let large = |text: &str| match text.to_ascii_lowercase().strip_suffix('k') {
        Some(kib) => number(kib).is_none_or(|kib| kib > 4),
        None => number(text).is_none_or(|bytes| bytes > 4096),
    };
    let (key, value) = part.split_once('=').unwrap_or((part, ""));
    match (fs, option) {
        (FsType::Ext4 | FsType::Btrfs, "-U") => Some(TWINS),
        (FsType::Ext4, "-C") => Some(GROWTH),
        (FsType::Ext4, "-e") if part == "panic" => {
            Some("an error in one file system would stop the whole node")
        }
        (FsType::Ext4, "-b") if large(part.trim_start_matches('-')) => Some(UNMOUNTABLE),
        (FsType::Ext4, "-E") if key == "resize" => Some(GROWTH),
        (FsType::Ext4, "-O") => unfit_ext4(part),
        (FsType::Xfs, _) => match (option, key) {
            ("-m", "uuid") => Some(TWINS),
            ("-m", "crc") | ("-n", "ftype") if value == "0" => Some(
                "newer kernels mount no such file system, and mkfs.xfs does not make it with the driver's features",
            ),
            ("-b" | "-s", "size" | "sectsize") if large(value) => Some(UNMOUNTABLE),
            ("-b", "log") | ("-s", "log" | "sectlog")
                if number(value).is_none_or(|log| log > 12) =>
            {
                Some(UNMOUNTABLE)
            }
            ("-l", "internal") if value == "0" => Some(UNMOUNTABLE),
            ("-m", "metadir" | "autofsck") | ("-n", "parent") | ("-d", "rtinherit") => {
                Some(UNMOUNTABLE)
            }
            _ => None,
        },
        (FsType::Btrfs, "-s") if large(part) || number(part).is_some_and(|size| size < 4096) => {
            Some(UNMOUNTABLE)
        }
        (FsType::Btrfs, "-d" | "-m") if !matches!(part, "single" | "dup" | "SINGLE" | "DUP") => {
            Some("a volume is one disk, and mkfs.btrfs makes single and dup there")
        }
        (FsType::Btrfs, "-O" | "-R")
            if matches!(
                key,
                "zoned" | "extent-tree-v2" | "raid-stripe-tree" | "list-all"
            ) =>
        {
            Some(UNMOUNTABLE)
        }
        _ => None,
    }
}

fn unfit_ext4(part: &str) -> Option<&'static str> {
    match part {
        "bigalloc" | "sparse_super2" | "^resize_inode" | "^sparse_super" | "^flex_bg" => {
            Some(GROWTH)
        }
        "meta_bg" => Some("mke2fs does not make it beside resize_inode, which growth needs"),
        "journal_dev" => Some("it makes a journal for another file system, and none by itself"),
        "none" | "clear" => Some("options are added to the driver's own features"),
        "^extent" | "^extents" => Some("it would be an ext3, which this driver does not mount"),
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
