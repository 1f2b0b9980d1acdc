//! Disks that must not be formatted: they contain foreign data, are not the volume's disk, or cannot be
//! read. Each row creates a volume, corrupts it, and stages it; the disk must not be written to.

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use e2e::harness::test_cluster::TestCluster;
use e2e::harness::test_volume::{Content, TestVolume};
use e2e::harness::{process, tools};
use e2e::{GIB, MIB};
use serde_json::{Value, json};
use tonic::Code::{self, FailedPrecondition, Unavailable};

use crate::staged::stage;
use crate::table::{Tally, row};

/// A way to corrupt a volume's disk.
struct CorruptDisk {
    name: &'static str,
    /// The requested file system.
    fs: &'static str,
    corrupt: fn(&Disk) -> Result<()>,
    code: Code,
    says: &'static [&'static str],
}

/// The files that the rows manipulate.
struct Disk {
    /// The backing file of the LUN.
    file: PathBuf,
    /// The target's JSON file, which node-sim reads on login.
    target: PathBuf,
}

const WIPE: &str = "nothing was written; if the data is not needed, wipe the LUN";

#[rustfmt::skip] // One row per line.
const ROWS: [CorruptDisk; 17] = [
    CorruptDisk { name: "an xfs where ext4 is wanted", fs: "ext4", corrupt: |disk| disk.mkfs("mkfs.xfs", &["-q"]), code: FailedPrecondition, says: &["it holds xfs, not ext4", WIPE] },
    CorruptDisk { name: "an ext4 where xfs is wanted", fs: "xfs", corrupt: |disk| disk.mkfs("mkfs.ext4", &["-q"]), code: FailedPrecondition, says: &["it holds ext4, not xfs", WIPE] },
    CorruptDisk { name: "an ext3 where ext4 is wanted", fs: "ext4", corrupt: |disk| disk.mkfs("mkfs.ext4", &["-q", "-t", "ext3"]), code: FailedPrecondition, says: &["it holds ext3, not ext4", WIPE] },
    CorruptDisk { name: "an ext4 where btrfs is wanted", fs: "btrfs", corrupt: |disk| disk.mkfs("mkfs.ext4", &["-q"]), code: FailedPrecondition, says: &["it holds ext4, not btrfs", WIPE] },
    CorruptDisk { name: "swap space", fs: "ext4", corrupt: |disk| disk.mkfs("mkswap", &[]), code: FailedPrecondition, says: &["it holds swap, not ext4", WIPE] },
    CorruptDisk { name: "a partition table", fs: "ext4", corrupt: partition, code: FailedPrecondition, says: &["it holds dos partition table, not ext4", WIPE] },
    CorruptDisk { name: "a LUKS header", fs: "xfs", corrupt: |disk| disk.write(0, b"LUKS\xba\xbe\0\x01"), code: FailedPrecondition, says: &["it holds crypto_LUKS, not xfs", WIPE] },
    CorruptDisk { name: "a physical volume of LVM", fs: "ext4", corrupt: |disk| disk.write(512, &lvm_label()), code: FailedPrecondition, says: &["it holds LVM2_member, not ext4", WIPE] },
    CorruptDisk { name: "several signatures", fs: "ext4", corrupt: two_file_systems, code: FailedPrecondition, says: &["signatures of several", WIPE] },
    CorruptDisk { name: "unknown data at the start", fs: "ext4", corrupt: |disk| disk.write_random(0, 4096), code: FailedPrecondition, says: &["not blank", "of a kind unknown to blkid", WIPE] },
    CorruptDisk { name: "unknown data in the middle", fs: "xfs", corrupt: |disk| disk.write_random(GIB as u64 / 2, 64 << 20), code: FailedPrecondition, says: &["not blank", "of a kind unknown to blkid", WIPE] },
    CorruptDisk { name: "unknown data at the end", fs: "btrfs", corrupt: |disk| disk.write_random((GIB - MIB) as u64, MIB as u64), code: FailedPrecondition, says: &["not blank", "of a kind unknown to blkid", WIPE] },
    CorruptDisk { name: "an ext4 whose superblock is lost", fs: "ext4", corrupt: |disk| disk.mkfs("mkfs.ext4", &["-q"]).and_then(|()| disk.write(1024, &[0; 1024])), code: FailedPrecondition, says: &["not blank", WIPE] },
    CorruptDisk { name: "a file system larger than the disk", fs: "ext4", corrupt: cut_short, code: FailedPrecondition, says: &["its file system is 2 GiB and the disk only 1 GiB", "give it its old size again"] },
    CorruptDisk { name: "another serial: the mapping index was used again", fs: "ext4", corrupt: |disk| disk.unit("serial", "0f5a1c9e-0000-4000-8000-00000000beef"), code: FailedPrecondition, says: &["its unit serial is 0f5a1c9e-0000-4000-8000-00000000beef", "check the target's mappings"] },
    CorruptDisk { name: "no serial", fs: "ext4", corrupt: |disk| disk.unit("serial", ""), code: FailedPrecondition, says: &["its unit serial is", "check the target's mappings"] },
    CorruptDisk { name: "a target that is switched off", fs: "ext4", corrupt: |disk| disk.target("enabled", json!(false)), code: FailedPrecondition, says: &["logging in to iqn.", "still published to this node"] },
];

/// Runs every row.
pub(crate) async fn corrupted(cluster: &TestCluster, tally: &mut Tally) {
    // First a valid disk, so that later rows are refused because of their disk.
    let good = published(cluster, "good", "ext4").await;
    tally.twice(cluster, "a blank disk", stage(&good)).await;
    good.unstage(cluster).await.unwrap();
    delete(cluster, &good).await;
    for (number, corrupted) in ROWS.into_iter().enumerate() {
        let volume = published(cluster, &format!("spoiled-{number}"), corrupted.fs).await;
        let disk = Disk::of(cluster, &volume).unwrap();
        let export = std::fs::read(&disk.target).unwrap();
        (corrupted.corrupt)(&disk).unwrap_or_else(|error| panic!("{}: {error:#}", corrupted.name));
        let before = disk.fingerprint().unwrap();
        let words = corrupted.says.iter().copied();
        tally
            .refused(
                cluster,
                vec![row(corrupted.name, stage(&volume), corrupted.code, words)],
            )
            .await;
        tally.check(disk.fingerprint().unwrap() == before, || {
            format!("{}: something was written to the disk", corrupted.name)
        });
        std::fs::write(&disk.target, export).unwrap();
        delete(cluster, &volume).await;
    }
}

/// An unreadable disk: the LUN's file is replaced by a device that is larger than its truncated backing file.
pub(crate) async fn unreadable(cluster: &TestCluster, tally: &mut Tally) {
    let volume = published(cluster, "unreadable", "ext4").await;
    let disk = Disk::of(cluster, &volume).unwrap();
    let (export, short) = (
        std::fs::read(&disk.target).unwrap(),
        cluster.folder().join("short.img"),
    );
    File::create(&short).unwrap().set_len(GIB as u64).unwrap();
    let torn = Loop::of(&short).unwrap();
    File::options()
        .write(true)
        .open(&short)
        .unwrap()
        .set_len(0)
        .unwrap();
    disk.unit("file", &torn.0).unwrap();
    let refused = row(
        "a disk that cannot be read",
        stage(&volume),
        Unavailable,
        ["/dev/loop", "Input/output error"],
    );
    // The error is not final, so the session may stay for the retry.
    tally
        .refused_but(cluster, refused, &["the node's", "the loop devices"])
        .await;
    volume.unstage(cluster).await.unwrap();
    std::fs::write(&disk.target, export).unwrap();
    drop(torn);
    delete(cluster, &volume).await;
}

/// Creates and publishes a volume of 1 GiB.
pub(crate) async fn published(cluster: &TestCluster, name: &str, fs: &'static str) -> TestVolume {
    let mut volume = TestVolume::create(cluster, name, GIB, Content::Fs(fs))
        .await
        .unwrap();
    volume.publish(cluster).await.unwrap();
    volume
}

async fn delete(cluster: &TestCluster, volume: &TestVolume) {
    volume.unpublish(cluster).await.unwrap();
    volume.delete(cluster).await.unwrap();
}

impl Disk {
    fn of(cluster: &TestCluster, volume: &TestVolume) -> Result<Self> {
        let folder = cluster.nas.folder();
        let file = folder.join("luns").join(format!("{}.img", volume.uuid()));
        let iqn = volume.publish_context.get("iqn").context("not published")?;
        let exports = std::fs::read_dir(folder.join("targets"))?
            .flatten()
            .map(|entry| entry.path());
        let contains_uuid = |path: &PathBuf| {
            std::fs::read(path).is_ok_and(|text| {
                serde_json::from_slice::<Value>(&text).is_ok_and(|target| target["iqn"] == **iqn)
            })
        };
        Ok(Self {
            file,
            target: exports
                .into_iter()
                .find(contains_uuid)
                .context("not exported")?,
        })
    }

    fn mkfs(&self, program: &str, args: &[&str]) -> Result<()> {
        let file = self.file.to_string_lossy();
        process::run(program, args.iter().copied().chain([&*file])).map(drop)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        Ok(File::options()
            .write(true)
            .open(&self.file)?
            .write_all_at(bytes, offset)?)
    }

    fn write_random(&self, offset: u64, bytes: u64) -> Result<()> {
        let random = self.file.with_extension("noise");
        tools::fill(&random, bytes, 7)?;
        let mut file = File::options().write(true).open(&self.file)?;
        file.seek(SeekFrom::Start(offset))?;
        file.write_all(&std::fs::read(&random)?)?;
        Ok(std::fs::remove_file(random)?)
    }

    /// Changes the logical unit in the target's file.
    fn unit(&self, field: &str, value: &str) -> Result<()> {
        self.change(|target| {
            for (_, unit) in target["luns"].as_object_mut().into_iter().flatten() {
                unit[field] = json!(value);
            }
        })
    }

    /// Changes the target's file.
    fn target(&self, field: &str, value: Value) -> Result<()> {
        self.change(|target| target[field] = value)
    }

    fn change(&self, change: impl FnOnce(&mut Value)) -> Result<()> {
        let mut target = serde_json::from_slice(&std::fs::read(&self.target)?)?;
        change(&mut target);
        Ok(std::fs::write(&self.target, serde_json::to_vec(&target)?)?)
    }

    /// Modification time, size and the like: changes with every write to the file.
    fn fingerprint(&self) -> Result<(i64, i64, u64, u64)> {
        let file = std::fs::metadata(&self.file)?;
        Ok((file.mtime(), file.mtime_nsec(), file.blocks(), file.size()))
    }
}

/// Writes a master boot record with one Linux partition.
fn partition(disk: &Disk) -> Result<()> {
    let mut record = [0; 512];
    record[450] = 0x83;
    record[454..458].copy_from_slice(&2048_u32.to_le_bytes());
    record[458..462].copy_from_slice(&100_000_u32.to_le_bytes());
    record[510..].copy_from_slice(&[0x55, 0xaa]);
    disk.write(0, &record)
}

/// The label sector of an LVM physical volume with a valid checksum, which `blkid` requires.
fn lvm_label() -> [u8; 512] {
    let mut label = [0; 512];
    label[..8].copy_from_slice(b"LABELONE");
    label[8] = 1;
    label[20] = 32;
    label[24..32].copy_from_slice(b"LVM2 001");
    label[32..64].copy_from_slice(b"abcdefghijklmnopqrstuvwxyz012345");
    let crc = label[20..].iter().fold(0xf597_a6cf_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 {
                crc >> 1 ^ 0xedb8_8320
            } else {
                crc >> 1
            }
        })
    });
    label[16..20].copy_from_slice(&crc.to_le_bytes());
    label
}

/// Creates a btrfs, and then an ext4 over it with force.
fn two_file_systems(disk: &Disk) -> Result<()> {
    let mut superblock = [0; 4096];
    disk.mkfs("mkfs.btrfs", &["-q"])?;
    File::open(&disk.file)?.read_exact_at(&mut superblock, 0x1_0000)?;
    disk.mkfs("mkfs.ext4", &["-q", "-F"])?;
    disk.write(0x1_0000, &superblock)
}

/// Writes the first half of an ext4 of 2 GiB.
fn cut_short(disk: &Disk) -> Result<()> {
    let file = File::options().write(true).open(&disk.file)?;
    file.set_len(2 * GIB as u64)?;
    disk.mkfs("mkfs.ext4", &["-q"])?;
    Ok(file.set_len(GIB as u64)?)
}

/// A loop device of this test; detached on drop.
struct Loop(String);

impl Loop {
    fn of(file: &Path) -> Result<Self> {
        let file = file.to_string_lossy();
        Ok(Self(
            process::run("losetup", ["--find", "--show", &file])?
                .trim()
                .to_owned(),
        ))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = process::run("losetup", ["--detach", &self.0]);
    }
}
