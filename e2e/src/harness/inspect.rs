//! Mounts, file systems and LUN images, inspected with the system's own tools.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use crate::harness::process::run;
use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

/// The bytes of its device that the mounted file system uses, metadata included.
///
/// # Errors
/// The tool fails, or its output cannot be parsed.
pub fn used_bytes(fs: &str, point: &Path, device: &Path) -> Result<u64> {
    match fs {
        "ext4" => {
            let output = run("dumpe2fs", ["-h".as_ref(), device.as_os_str()])?;
            Ok(number(&output, "Block count:")? * number(&output, "Block size:")?)
        }
        "xfs" => {
            let output = run("xfs_info", [point])?;
            let data = output
                .lines()
                .find(|line| line.starts_with("data "))
                .context("no data line")?;
            Ok(number(data, "bsize=")? * number(data, "blocks=")?)
        }
        "btrfs" => {
            let output = run(
                "btrfs",
                [
                    "filesystem".as_ref(),
                    "usage".as_ref(),
                    "-b".as_ref(),
                    point.as_os_str(),
                ],
            )?;
            number(&output, "Device size:")
        }
        other => anyhow::bail!("unknown file system {other}"),
    }
}

/// The most bytes that a file system that fills its device leaves unused at the end: ext4 adds no block group that would hold
/// little more than its own tables.
pub fn unusable(fs: &str) -> u64 {
    if fs == "ext4" { 3 << 20 } else { 1 << 20 }
}

fn number(text: &str, after: &str) -> Result<u64> {
    let (_, rest) = text
        .split_once(after)
        .with_context(|| format!("no {after} in: {text}"))?;
    let digits: String = rest
        .trim_start()
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    digits
        .parse()
        .with_context(|| format!("no number after {after} in: {text}"))
}

/// The mount options of `point`.
///
/// # Errors
/// The tool fails.
pub fn options(point: &Path) -> Result<Vec<String>> {
    let output = run(
        "findmnt",
        [
            "--noheadings".as_ref(),
            "--output=OPTIONS".as_ref(),
            "--mountpoint".as_ref(),
            point.as_os_str(),
        ],
    )?;
    Ok(output.trim().split(',').map(str::to_owned).collect())
}

/// True if something is mounted at `point`.
pub fn is_mounted(point: &Path) -> bool {
    run("findmnt", ["--mountpoint".as_ref(), point.as_os_str()]).is_ok()
}

/// A column of `df`, for instance `itotal`; 0 for `-`.
///
/// # Errors
/// The tool fails, or prints nothing.
pub fn df(column: &str, point: &Path) -> Result<i64> {
    let output = run(
        "df",
        [
            "--block-size=1".as_ref(),
            format!("--output={column}").as_ref(),
            point.as_os_str(),
        ],
    )?;
    Ok(output
        .lines()
        .last()
        .context("df printed nothing")?
        .trim()
        .trim_end_matches('-')
        .parse()
        .unwrap_or_default())
}

/// The content of a LUN's file, to check later that it was not changed. Sparse, like the file.
#[derive(Debug)]
pub struct ImageSnapshot {
    file_path: PathBuf,
    pieces: Vec<(i64, Vec<u8>)>,
}

/// The size of a stored piece, in bytes.
const PIECE: i64 = 64 << 10;

impl ImageSnapshot {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn take(file_path: &Path) -> Result<Self> {
        let (file, mut pieces, mut offset) = (File::open(file_path)?, Vec::new(), 0);
        file.sync_all()?;
        let blank = vec![0; usize::try_from(PIECE)?];
        loop {
            // A hole reads as zeros, but zeros need not be a hole: which parts count as data depends on the page cache.
            offset = match lseek(&file, offset, Whence::SeekData) {
                Err(Errno::ENXIO) => break,
                found => found? / PIECE * PIECE,
            };
            let mut piece = blank.clone();
            file.read_exact_at(&mut piece, offset.unsigned_abs())?;
            if piece != blank {
                pieces.push((offset, piece));
            }
            offset += PIECE;
        }
        Ok(Self {
            file_path: file_path.to_owned(),
            pieces,
        })
    }

    /// The file holds only zeros.
    pub fn is_blank(&self) -> bool {
        self.pieces.is_empty()
    }

    /// These bytes are in the file, within one piece.
    pub fn contains(&self, bytes: &[u8]) -> bool {
        self.pieces
            .iter()
            .any(|(_, piece)| piece.windows(bytes.len()).any(|window| window == bytes))
    }

    /// Reads the file again and compares.
    ///
    /// # Errors
    /// A byte has changed, or the file cannot be read.
    pub fn ensure_unchanged(&self) -> Result<()> {
        let untouched = Self::take(&self.file_path)?.pieces == self.pieces;
        ensure!(
            untouched,
            "{} has been written to",
            self.file_path.display()
        );
        Ok(())
    }
}
