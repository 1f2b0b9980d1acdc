//! What is on a LUN, as its user or somebody at the NAS sees it. No program is started: file systems are asked by `statfs`
//! and by their superblocks.

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

/// Where a raw volume's data are: each volume reaches that far.
const PLACE: u64 = 100 << 20;
/// A block of a raw volume.
const BLOCK: usize = 4096;
/// What no probe knows.
const FOREIGN_DATA: &[u8; 32] = b"somebody else's and no signature";
/// At the beginning a driver that looks for anything looks; but not where ext4, xfs or btrfs have their marks.
const MARGIN: u64 = 8192;
/// The LUN that stands in the place of others.
const SWAPPED_LUN: &str = "5ca1ab1e-0000-4000-8000-000000000000";

/// Whether the file system of a staged volume fills a device of `size` bytes.
///
/// # Errors
/// It cannot be asked.
pub(super) fn fs_fills_device(life: &TestVolume, device: &Path, size: u64) -> Result<bool> {
    let Content::Fs(fs) = life.content else {
        return Ok(true);
    };
    let claimed =
        claimed(fs, &life.staging, device).with_context(|| format!("the {fs} of {}", life.name))?;
    Ok(claimed + inspect::unusable(fs) > size)
}

/// How many bytes of its device a mounted file system uses.
fn claimed(fs: &str, point: &Path, device: &Path) -> Result<u64> {
    let disk = File::open(device)?;
    let told = statvfs(point)?;
    let blocks = told.blocks();
    match fs {
        // Superblock at 1024; s_blocks_count_lo at 4, s_log_block_size at 0x18, s_blocks_count_hi at 0x150.
        "ext4" => {
            let (low, high) = (number(&disk, 1024 + 4)?, number(&disk, 1024 + 0x150)?);
            let block = 1024_u64 << u32::from_le_bytes(number(&disk, 1024 + 0x18)?);
            let count =
                u64::from(u32::from_le_bytes(low)) | u64::from(u32::from_le_bytes(high)) << 32;
            Ok(count * block)
        }
        // statfs leaves the log out, whose length does not change: sb_logblocks at 0x60.
        "xfs" => {
            let log = u64::from(u32::from_be_bytes(number(&disk, 0x60)?));
            Ok((blocks + log) * told.fragment_size())
        }
        "btrfs" => Ok(blocks * told.fragment_size()),
        other => bail!("what is {other}?"),
    }
}

fn number(disk: &File, at: u64) -> io::Result<[u8; 4]> {
    let mut bytes = [0; 4];
    disk.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

/// A pod writes, and waits until the disk has it.
///
/// # Errors
/// It cannot.
pub(super) fn write(life: &TestVolume, data: u64) -> Result<()> {
    Ok(write_unsynced(life, data)?.sync_all()?)
}

/// The same, and leaves it to the kernel when that comes to the disk.
pub(super) fn write_unsynced(life: &TestVolume, data: u64) -> Result<File> {
    let (path, at) = place(life);
    let file = OpenOptions::new()
        .write(true)
        .create(life.content != Content::Block)
        .truncate(false)
        .open(path)?;
    file.write_all_at(&data.to_le_bytes().repeat(BLOCK / 8), at)?;
    Ok(file)
}

/// A pod reads: from the disk, as far as that can be asked for.
///
/// # Errors
/// It cannot, or finds several things.
pub(super) fn read(life: &TestVolume) -> Result<u64> {
    let (path, at) = place(life);
    let file = File::open(path)?;
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    let mut bytes = [0; BLOCK];
    file.read_exact_at(&mut bytes, at)?;
    let (first, _) = bytes.split_first_chunk().context("a block")?;
    ensure!(bytes.chunks(8).all(|word| word == first), "a block is torn");
    Ok(u64::from_le_bytes(*first))
}

fn place(life: &TestVolume) -> (PathBuf, u64) {
    match life.content {
        Content::Fs(_) => (life.file("data"), 0),
        Content::Block => (life.path(), PLACE),
    }
}

/// The file system dies, as after an error of its disk. False for one that nothing lets die so.
///
/// # Errors
/// It lives on.
pub(super) fn kill_file_system(life: &TestVolume, device: &Path) -> Result<bool> {
    match life.content {
        Content::Fs("ext4") => {
            let name = device.file_name().context("a device has a name")?;
            let switch = Path::new("/sys/fs/ext4").join(name);
            fs::write(switch.join("trigger_fs_error"), "1")?;
            Ok(true)
        }
        Content::Fs("xfs") => {
            let staging = life.staging.to_string_lossy();
            process::run("xfs_io", ["-x", "-c", "shutdown", &*staging])?;
            Ok(true)
        }
        Content::Fs(_) | Content::Block => Ok(false),
    }
}

/// Writes what no probe knows to a LUN's file.
///
/// # Errors
/// It cannot be written.
pub(super) fn write_foreign_data(lun: &Path) -> Result<()> {
    let file = OpenOptions::new().write(true).open(lun)?;
    file.write_all_at(FOREIGN_DATA, MARGIN)?;
    Ok(file.sync_all()?)
}

/// Whether that is still there.
///
/// # Errors
/// It cannot be read.
pub(super) fn is_foreign_data_intact(lun: &Path) -> Result<bool> {
    let mut bytes = [0; FOREIGN_DATA.len()];
    File::open(lun)?.read_exact_at(&mut bytes, MARGIN)?;
    Ok(bytes == *FOREIGN_DATA)
}

/// Shows another LUN in the place of the volume's at its target, or takes that back. Nodes see it at their next rescan.
///
/// # Errors
/// The target's file cannot be changed.
pub(super) fn swap_lun(nas: &Nas, folder: &Path, life: &TestVolume, on: bool) -> Result<()> {
    let iqn = life
        .publish_context
        .get("iqn")
        .context("it is not published")?;
    let target = nas.targets().join(format!("{iqn}.json"));
    let (kept, fresh) = (folder.join("undisguised.json"), folder.join("target.new"));
    if !on {
        return Ok(fs::rename(kept, target)?);
    }
    let stranger = swapped_lun(folder);
    File::create(&stranger)?.set_len(64 * GIB.unsigned_abs())?;
    fs::copy(&target, &kept)?;
    let mut text: Value = serde_json::from_slice(&fs::read(&target)?)?;
    let units = text["luns"].as_object_mut().context("luns")?;
    for unit in units.values_mut() {
        unit["serial"] = json!(SWAPPED_LUN);
        unit["file"] = json!(stranger);
    }
    fs::write(&fresh, text.to_string())?;
    Ok(fs::rename(fresh, target)?)
}

/// Nobody has written to that other LUN.
///
/// # Errors
/// It cannot be read.
pub(super) fn is_swapped_lun_blank(folder: &Path) -> Result<bool> {
    Ok(inspect::ImageSnapshot::take(&swapped_lun(folder))?.is_blank())
}

fn swapped_lun(folder: &Path) -> PathBuf {
    folder.join("stranger.img")
}

const _: () = assert!(PLACE < GIB.unsigned_abs() && MARGIN < MIB.unsigned_abs());
