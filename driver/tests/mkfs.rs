//! The driver's assumptions about the real `mkfs` programs: they accept the pinned options, the superblock shows a complete file
//! system that fills its disk, and they never write to the marker's block (design.md#identity-before-action and #mkfs-defaults).

#![allow(
    clippy::unwrap_used,
    reason = "a test; clippy does not treat its helper functions as test code"
)]

mod common;

use std::os::unix::fs::FileExt as _;
use std::path::Path;

use common::{host, sparse};
use driver::host::superblock::{self, Superblock};
use driver::host::{Host as _, filesystem, filesystem::FormatOptions, marker};
use driver::volume::{Bytes, FsType, LunUuid};

const ALL: [FsType; 3] = [FsType::Ext4, FsType::Xfs, FsType::Btrfs];

fn uuid() -> LunUuid {
    "13a3cd1e-f296-4d4b-b712-a85c139f9dac"
        .parse()
        .expect("a uuid")
}

fn read(path: &Path, span: driver::host::Span) -> Vec<u8> {
    let mut bytes = vec![0; span.length];
    std::fs::File::open(path)
        .unwrap()
        .read_exact_at(&mut bytes, span.offset)
        .unwrap();
    bytes
}

/// Formats a new sparse file that holds a marker.
async fn formatted(path: &Path, size: Bytes, fs: FsType, options: &str) {
    let _ = std::fs::remove_file(path);
    sparse(path, size.0);
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&marker::block(&uuid()), marker::PLACE.offset)
        .unwrap();
    let options = FormatOptions::parse(fs, options).unwrap();
    let exit = host()
        .run(filesystem::make(fs, path.to_str().unwrap(), &options))
        .await
        .unwrap();
    assert_eq!(exit.status, 0, "{fs} of {size}: {}", exit.stderr);
}

/// design.md#identity-before-action
#[tokio::test]
async fn mkfs_never_writes_to_the_markers_block() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lun");
    for fs in ALL {
        for size in [
            Bytes::gib(1),
            Bytes::mib(1025),
            Bytes::gib(3),
            Bytes::gib(10),
            Bytes::gib(100),
            Bytes::gib(2 << 10),
            Bytes::gib(8 << 10),
        ] {
            formatted(&path, size, fs, "").await;
            let block = read(&path, marker::PLACE);
            assert_eq!(block, marker::block(&uuid()), "{fs} of {size}");
            let found = superblock::read(&read(&path, superblock::HEAD));
            let [Superblock::Complete(geometry)] = found.as_slice() else {
                panic!("{fs} of {size}: {found:?}")
            };
            assert_eq!(geometry.kind(), fs);
            assert!(geometry.fills(size), "{fs} of {size}: {geometry:?}");
            assert!(
                !geometry.fills(Bytes(size.0 + Bytes::GIB.0)),
                "{fs} of {size}"
            );
        }
    }
}

/// design.md#identity-before-action
#[tokio::test]
async fn user_options_leave_the_marker_or_overwrite_all_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lun");
    for (fs, options) in [
        (FsType::Ext4, "-i 4096"),
        (FsType::Ext4, "-i 1024 -b 1024 -I 128"),
        (FsType::Ext4, "-E packed_meta_blocks=1 -G 256"),
        (FsType::Ext4, "-J size=512"),
        (FsType::Xfs, "-d agcount=2 -m reflink=1,rmapbt=1"),
        (FsType::Xfs, "-l size=512m"),
        (
            FsType::Xfs,
            "-m bigtime=1,inobtcount=1 -i nrext64=1,size=1024 -b size=2048",
        ),
        (FsType::Ext4, "-O quota,project,^metadata_csum"),
        (FsType::Ext4, "-O ^has_journal -T largefile -e remount-ro"),
        (
            FsType::Btrfs,
            "-O ^no-holes,^skinny-metadata --nodiscard -n 65536",
        ),
        (FsType::Btrfs, "-m single --csum xxhash"),
    ] {
        formatted(&path, Bytes::gib(3), fs, options).await;
        let block = read(&path, marker::PLACE);
        let untouched = block == marker::block(&uuid());
        assert!(
            untouched || marker::read(&block, &uuid()) == marker::MarkerState::None,
            "{fs} {options}"
        );
        let found = superblock::read(&read(&path, superblock::HEAD));
        assert!(
            matches!(found.as_slice(), [Superblock::Complete(geometry)] if geometry.fills(Bytes::gib(3))),
            "{fs} {options}: {found:?}"
        );
    }
}

/// `mkfs.xfs` leaves out a last allocation group of less than 16 MiB: that is not a failure.
/// design.md#expansion-is-read-back
#[tokio::test]
async fn an_xfs_without_its_small_last_group_counts_as_complete() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lun");
    for (size, options) in [
        (Bytes::mib(1024 + 8), "-d agsize=512m"),
        (Bytes::mib(1024 + 15), "-d agsize=512m"),
        (Bytes::mib(1024 + 16), "-d agsize=512m"),
        (Bytes((4 << 40) + Bytes::mib(8).0), ""),
    ] {
        formatted(&path, size, FsType::Xfs, options).await;
        let found = superblock::read(&read(&path, superblock::HEAD));
        let [Superblock::Complete(geometry)] = found.as_slice() else {
            panic!("{size}: {found:?}")
        };
        assert!(geometry.is_as_made_for(size), "{size}: {geometry:?}");
        let whole = size >= Bytes::mib(1024 + 16) && !options.is_empty();
        assert_eq!(geometry.fills(size), whole, "{size}: {geometry:?}");
    }
}

/// design.md#mkfs-defaults
#[tokio::test]
async fn an_older_kernel_can_mount_new_file_systems() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lun");
    formatted(&path, Bytes::GIB, FsType::Ext4, "").await;
    let features = common::run("dumpe2fs", &["-h", path.to_str().unwrap()])
        .await
        .stdout;
    let features = features
        .lines()
        .find(|line| line.starts_with("Filesystem features:"))
        .unwrap()
        .to_owned();
    for new_feature in [
        "orphan_file",
        "metadata_csum_seed",
        "casefold",
        "verity",
        "encrypt",
        "fast_commit",
    ] {
        assert!(!features.contains(new_feature), "{features}");
    }
    formatted(&path, Bytes::GIB, FsType::Xfs, "").await;
    let geometry = common::run("xfs_db", &["-r", "-c", "version", path.to_str().unwrap()])
        .await
        .stdout;
    for new_feature in ["REFLINK", "RMAPBT", "BIGTIME", "INOBTCNT", "NREXT64"] {
        assert!(!geometry.to_uppercase().contains(new_feature), "{geometry}");
    }
}

/// design.md#identity-before-action
#[tokio::test]
async fn blkid_agrees_with_the_drivers_superblock_reader() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lun");
    for fs in ALL {
        formatted(&path, Bytes::GIB, fs, "").await;
        let exit = host()
            .run(filesystem::probe(path.to_str().unwrap()))
            .await
            .unwrap();
        assert_eq!(
            filesystem::read_probe(exit).unwrap(),
            filesystem::Probe::Found(fs.to_string())
        );
    }
    let _ = std::fs::remove_file(&path);
    sparse(&path, Bytes::GIB.0);
    let exit = host()
        .run(filesystem::probe(path.to_str().unwrap()))
        .await
        .unwrap();
    assert_eq!(
        filesystem::read_probe(exit).unwrap(),
        filesystem::Probe::Nothing
    );
}
