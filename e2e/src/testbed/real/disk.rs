//! The data on a LUN, as a pod or an administrator of the NAS sees it. Starts no programs: file systems are read with `statfs`
//! and from their superblocks.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::statvfs::statvfs;
use serde_json::{Value, json};

use crate::harness::inspect;
use crate::harness::nas::Nas;
use crate::harness::process;
use crate::harness::test_volume::{Content, TestVolume};
use crate::{GIB, MIB};

/// The offset of a raw volume's data: every volume is larger.
const RAW_OFFSET: u64 = 100 << 20;
/// A block of a raw volume.
const BLOCK: usize = 4096;
/// Data that no probe recognizes.
const FOREIGN_DATA: &[u8; 32] = b"somebody else's and no signature";
/// Near the start, where a driver looks for data, but outside of the signatures of ext4, xfs and btrfs.
const FOREIGN_OFFSET: u64 = 8192;
/// The LUN that is exported in place of swapped LUNs.
const SWAPPED_LUN: &str = "5ca1ab1e-0000-4000-8000-000000000000";

/// Whether the file system of a staged volume fills a device of `size` bytes.
///
/// # Errors
/// The device or the file system cannot be read.
pub(super) fn fs_fills_device(volume: &TestVolume, device: &Path, size: u64) -> Result<bool> {
    let Content::Fs(fs) = volume.content else {
        return Ok(true);
    };
    let claimed = claimed(fs, &volume.staging, device)
        .with_context(|| format!("the {fs} of {}", volume.name))?;
    Ok(claimed + inspect::unusable(fs) > size)
}

/// The bytes of its device that a mounted file system uses.
fn claimed(fs: &str, point: &Path, device: &Path) -> Result<u64> {
    let disk = File::open(device)?;
    let stats = statvfs(point)?;
    let blocks = stats.blocks();
    match fs {
        // Superblock at 1024; s_blocks_count_lo at 4, s_log_block_size at 0x18, s_blocks_count_hi at 0x150.
        "ext4" => {
            let (low, high) = (number(&disk, 1024 + 4)?, number(&disk, 1024 + 0x150)?);
            let block = 1024_u64 << u32::from_le_bytes(number(&disk, 1024 + 0x18)?);
            let count =
                u64::from(u32::from_le_bytes(low)) | u64::from(u32::from_le_bytes(high)) << 32;
            Ok(count * block)
        }
        // statfs does not count the log, whose length is constant: sb_logblocks at 0x60.
        "xfs" => {
            let log = u64::from(u32::from_be_bytes(number(&disk, 0x60)?));
            Ok((blocks + log) * stats.fragment_size())
        }
        "btrfs" => Ok(blocks * stats.fragment_size()),
        other => bail!("unknown file system {other}"),
    }
}

fn number(disk: &File, offset: u64) -> io::Result<[u8; 4]> {
    let mut bytes = [0; 4];
    disk.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// A pod writes and syncs.
///
/// # Errors
/// The write fails.
pub(super) fn write(volume: &TestVolume, data: u64) -> Result<()> {
    Ok(write_unsynced(volume, data)?.sync_all()?)
}

/// A pod writes without syncing.
pub(super) fn write_unsynced(volume: &TestVolume, data: u64) -> Result<File> {
    let (path, offset) = data_location(volume);
    let file = OpenOptions::new()
        .write(true)
        .create(volume.content != Content::Block)
        .truncate(false)
        .open(path)?;
    file.write_all_at(&data.to_le_bytes().repeat(BLOCK / 8), offset)?;
    Ok(file)
}

/// A pod reads, bypassing the page cache where possible.
///
/// # Errors
/// The read fails, or the block is torn.
pub(super) fn read(volume: &TestVolume) -> Result<u64> {
    let (path, offset) = data_location(volume);
    let file = File::open(path)?;
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    let mut bytes = [0; BLOCK];
    file.read_exact_at(&mut bytes, offset)?;
    let (first, _) = bytes.split_first_chunk().context("a block")?;
    ensure!(
        bytes.chunks(8).all(|value| value == first),
        "a block is torn"
    );
    Ok(u64::from_le_bytes(*first))
}

fn data_location(volume: &TestVolume) -> (PathBuf, u64) {
    match volume.content {
        Content::Fs(_) => (volume.file("data"), 0),
        Content::Block => (volume.path(), RAW_OFFSET),
    }
}

/// Shuts the file system down, as after an I/O error. Returns false if it has no way to do that.
///
/// # Errors
/// The shutdown fails.
pub(super) fn kill_file_system(volume: &TestVolume, device: &Path) -> Result<bool> {
    match volume.content {
        Content::Fs("ext4") => {
            let name = device.file_name().context("a device has a name")?;
            let sysfs = Path::new("/sys/fs/ext4").join(name);
            fs::write(sysfs.join("trigger_fs_error"), "1")?;
            Ok(true)
        }
        Content::Fs("xfs") => {
            let staging = volume.staging.to_string_lossy();
            process::run("xfs_io", ["-x", "-c", "shutdown", &*staging])?;
            Ok(true)
        }
        Content::Fs(_) | Content::Block => Ok(false),
    }
}

/// Writes data that no probe recognizes to a LUN's file.
///
/// # Errors
/// The write fails.
pub(super) fn write_foreign_data(lun: &Path) -> Result<()> {
    let file = OpenOptions::new().write(true).open(lun)?;
    file.write_all_at(FOREIGN_DATA, FOREIGN_OFFSET)?;
    Ok(file.sync_all()?)
}

/// Whether the foreign data is still there.
///
/// # Errors
/// It cannot be read.
pub(super) fn is_foreign_data_intact(lun: &Path) -> Result<bool> {
    let mut bytes = [0; FOREIGN_DATA.len()];
    File::open(lun)?.read_exact_at(&mut bytes, FOREIGN_OFFSET)?;
    Ok(bytes == *FOREIGN_DATA)
}

/// Exports another LUN in place of the volume's at its target, or undoes that. Nodes see it at their next rescan.
///
/// # Errors
/// The target's file cannot be changed.
pub(super) fn swap_lun(nas: &Nas, folder: &Path, volume: &TestVolume, on: bool) -> Result<()> {
    let iqn = volume
        .publish_context
        .get("iqn")
        .context("the volume is not published")?;
    let target = nas.targets().join(format!("{iqn}.json"));
    let (original, temporary) = (folder.join("original.json"), folder.join("target.new"));
    if !on {
        return Ok(fs::rename(original, target)?);
    }
    let swapped = swapped_lun(folder);
    File::create(&swapped)?.set_len(64 * GIB.unsigned_abs())?;
    fs::copy(&target, &original)?;
    let mut text: Value = serde_json::from_slice(&fs::read(&target)?)?;
    let units = text["luns"].as_object_mut().context("luns")?;
    for unit in units.values_mut() {
        unit["serial"] = json!(SWAPPED_LUN);
        unit["file"] = json!(swapped);
    }
    fs::write(&temporary, text.to_string())?;
    Ok(fs::rename(temporary, target)?)
}

/// Whether nothing was written to the swapped-in LUN.
///
/// # Errors
/// It cannot be read.
pub(super) fn is_swapped_lun_blank(folder: &Path) -> Result<bool> {
    Ok(inspect::ImageSnapshot::take(&swapped_lun(folder))?.is_blank())
}

fn swapped_lun(folder: &Path) -> PathBuf {
    folder.join("swapped.img")
}

const _: () = assert!(RAW_OFFSET < GIB.unsigned_abs() && FOREIGN_OFFSET < MIB.unsigned_abs());
