//! File systems and devices, read and written with the system's own tools, never with the driver's code.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result};
use rand::{Rng as _, SeedableRng as _};
use sha2::{Digest as _, Sha256};

use crate::harness::process;

/// A device's size in bytes, from the kernel.
///
/// # Errors
/// `blockdev` fails.
pub fn device_bytes(device: &Path) -> Result<u64> {
    Ok(
        process::run("blockdev", ["--getsize64".as_ref(), device.as_os_str()])?
            .trim()
            .parse()?,
    )
}

/// The size of the file system mounted at `path`, in bytes, from `df`.
///
/// # Errors
/// `df` fails.
pub fn fs_bytes(path: &Path) -> Result<u64> {
    let table = process::run(
        "df",
        [
            "--block-size=1".as_ref(),
            "--output=size".as_ref(),
            path.as_os_str(),
        ],
    )?;
    Ok(table
        .lines()
        .last()
        .context("df printed nothing")?
        .trim()
        .parse()?)
}

/// The type of the file system mounted at `path`.
///
/// # Errors
/// `findmnt` fails.
pub fn fs_type(path: &Path) -> Result<String> {
    Ok(process::run(
        "findmnt",
        [
            "--noheadings".as_ref(),
            "--output=FSTYPE".as_ref(),
            "--mountpoint".as_ref(),
            path.as_os_str(),
        ],
    )?
    .trim()
    .to_owned())
}

/// Writes `bytes` of pseudo-random data (from `seed`) to a file or device, syncs it and returns its SHA-256.
///
/// # Errors
/// The write fails.
pub fn fill(path: &Path, bytes: u64, seed: u64) -> Result<String> {
    let mut file = File::options()
        .write(true)
        .create(!path.exists())
        .truncate(false)
        .open(path)?;
    let mut random = rand::rngs::SmallRng::seed_from_u64(seed);
    let mut chunk = vec![0; 1 << 20];
    let mut hasher = Sha256::new();
    let mut left = bytes;
    while left > 0 {
        let now = usize::try_from(left.min(chunk.len() as u64))?;
        random.fill_bytes(&mut chunk[..now]);
        file.write_all(&chunk[..now])?;
        hasher.update(&chunk[..now]);
        left -= now as u64;
    }
    file.sync_all()?;
    Ok(hex::encode(hasher.finalize()))
}

/// The SHA-256 of the first `bytes` of a file or device, read from the disk, not from the page cache.
///
/// # Errors
/// The read fails.
pub fn sha256(path: &Path, bytes: u64) -> Result<String> {
    drop_caches(path)?;
    let mut hasher = Sha256::new();
    let mut file = File::open(path)?.take(bytes);
    let mut chunk = vec![0; 1 << 20];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(hex::encode(hasher.finalize())),
            read => hasher.update(&chunk[..read]),
        }
    }
}

fn drop_caches(path: &Path) -> Result<()> {
    let file = File::open(path)?;
    file.sync_all().or_else(|error| {
        if error.raw_os_error() == Some(22) {
            Ok(())
        } else {
            Err(error)
        }
    })?;
    nix::fcntl::posix_fadvise(
        &file,
        0,
        0,
        nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED,
    )?;
    Ok(())
}
