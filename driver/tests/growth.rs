//! `Geometry::fills` against the real tools, MiB by MiB (design.md#expansion-is-read-back): it is true exactly if the tool would
//! not grow the file system.

#![allow(
    clippy::unwrap_used,
    reason = "a test; clippy does not treat its helper functions as test code"
)]

mod common;

use common::{Loop, host, is_root, run};
use driver::host::filesystem::{self, FormatOptions, GrowFailure};
use driver::host::superblock::{self, Geometry, Superblock};
use driver::host::{Cmd, Host as _, ReadMode};
use driver::volume::{Bytes, FsType};

const MIB: u64 = 1 << 20;

async fn on_disk(path: &str) -> Geometry {
    let head = host()
        .read_device(path, superblock::HEAD, ReadMode::Cache)
        .await
        .unwrap();
    match superblock::read(&head).as_slice() {
        [Superblock::Complete(geometry)] => geometry.clone(),
        found => panic!("{path}: {found:?}"),
    }
}

async fn make(fs: FsType, path: &str) {
    let exit = host()
        .run(filesystem::make(fs, path, &FormatOptions::default()))
        .await
        .unwrap();
    assert_eq!(exit.status, 0, "{}", exit.stderr);
}

/// Asserts that `fills` was true before the tool ran exactly if the tool changed nothing, and is true afterwards.
#[track_caller]
fn check_fills(before: &Geometry, after: &Geometry, device: Bytes) {
    assert_eq!(
        before.fills(device),
        before.size() == after.size(),
        "on {device}: {before:?} became {after:?}"
    );
    assert!(after.fills(device), "on {device}: {after:?}");
}

/// design.md#expansion-is-read-back
#[tokio::test]
async fn ext4_offline() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lun");
    let name = path.to_str().unwrap();
    // Around the ends of groups of 128 MiB, of which 9, 25 and 27 hold a superblock copy.
    let grown = (0..=6)
        .chain(126..=136)
        .chain(2174..=2184)
        .chain(2430..=2440)
        .chain([300, 5120]);
    for (base, add) in [1024, 1030]
        .into_iter()
        .flat_map(|base| grown.clone().map(move |add| (base, add)))
    {
        let _ = std::fs::remove_file(&path);
        common::sparse(&path, base * MIB);
        make(FsType::Ext4, name).await;
        let device = Bytes::mib(base + add);
        common::sparse(&path, device.0);
        let before = on_disk(name).await;
        run("resize2fs", &[name]).await;
        check_fills(&before, &on_disk(name).await, device);
    }
    // A new file system counts as full, even if mke2fs leaves a rest at the end.
    for mib in (1024..1032).chain(1150..1160).chain(3198..3210) {
        let _ = std::fs::remove_file(&path);
        common::sparse(&path, mib * MIB);
        make(FsType::Ext4, name).await;
        assert!(on_disk(name).await.fills(Bytes::mib(mib)), "{mib} MiB");
    }
}

/// An ext4 that resize2fs cannot grow unmounted is recognized by the tool's message, and beforehand by its features.
/// design.md#node-expansion-is-always-required
#[tokio::test]
async fn an_ext4_that_never_grows_is_recognized() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lun");
    let name = path.to_str().unwrap();
    for (options, cannot) in [
        ("-O bigalloc -C 65536", Some(GrowFailure::Never)),
        ("-O sparse_super2", None),
        ("-O ^resize_inode", None),
    ] {
        let _ = std::fs::remove_file(&path);
        common::sparse(&path, Bytes::GIB.0);
        let options = FormatOptions::parse(FsType::Ext4, options).unwrap();
        let cmd = filesystem::make(FsType::Ext4, name, &options);
        assert_eq!(host().run(cmd).await.unwrap().status, 0);
        common::sparse(&path, 2 * Bytes::GIB.0);
        let exit = host().run(filesystem::grow_unmounted(name)).await.unwrap();
        let seen = filesystem::cannot_grow(FsType::Ext4, &exit);
        assert_eq!(seen, cannot, "{options:?}: {exit:?}");
        let geometry = on_disk(name).await;
        assert_eq!(geometry.grows_unmounted(), cannot.is_none());
        assert_eq!(geometry.fills(Bytes::gib(2)), cannot.is_none());
    }
}

async fn mounted(fs: FsType, disk: &Loop) -> Geometry {
    let point = disk.point.to_str().unwrap();
    match fs {
        FsType::Ext4 => on_disk(&disk.node).await,
        FsType::Xfs => filesystem::read_xfs_geometry(
            host().run(filesystem::xfs_geometry(point)).await.unwrap(),
        )
        .unwrap(),
        FsType::Btrfs => filesystem::read_btrfs_geometry(
            host().run(filesystem::btrfs_geometry(point)).await.unwrap(),
        )
        .unwrap(),
    }
}

/// Grows a mounted file system step by step, like a volume that is expanded several times.
async fn online(fs: FsType, sizes: impl Iterator<Item = u64>) {
    let disk = Loop::of(Bytes::GIB.0).await;
    let point = disk.point.to_str().unwrap();
    make(fs, &disk.node).await;
    run("mount", &[&disk.node, point]).await;
    for size in sizes {
        disk.grow(size).await;
        let before = mounted(fs, &disk).await;
        let cmd = filesystem::grow(fs, &disk.node, point);
        host().run(cmd).await.unwrap().ok("growth").unwrap();
        check_fills(&before, &mounted(fs, &disk).await, Bytes(size));
    }
}

/// design.md#expansion-is-read-back
#[tokio::test]
async fn xfs_mounted() {
    if !is_root("xfs_mounted") {
        return;
    }
    let kib64 = (1..=8).map(|part| Bytes::GIB.0 + part * (64 << 10));
    let mib = (1025..1030)
        .chain(1279..1284)
        .chain([1536, 1537, 2048, 5120])
        .map(|mib| mib * MIB);
    online(FsType::Xfs, kib64.chain(mib)).await;
}

/// design.md#expansion-is-read-back
#[tokio::test]
async fn btrfs_mounted() {
    if !is_root("btrfs_mounted") {
        return;
    }
    let mib = (1025..1030)
        .chain([1279, 1280, 2048, 5120])
        .map(|mib| mib * MIB);
    online(FsType::Btrfs, mib.chain([5121 * MIB + 4096])).await;
}

/// design.md#expansion-is-read-back
#[tokio::test]
async fn ext4_mounted() {
    const NAME: &str = "ext4_mounted";
    if !is_root(NAME) {
        return;
    }
    let disk = Loop::of(Bytes::GIB.0).await;
    make(FsType::Ext4, &disk.node).await;
    run("mount", &[&disk.node, disk.point.to_str().unwrap()]).await;
    disk.grow(2 * Bytes::GIB.0).await;
    let exit = host()
        .run(Cmd::new("resize2fs", 60).arg(&disk.node))
        .await
        .unwrap();
    if filesystem::cannot_grow(FsType::Ext4, &exit) == Some(GrowFailure::NotPermitted) {
        common::skip(NAME, "growth of a mounted ext4 needs CAP_SYS_RESOURCE");
        return;
    }
    drop(disk);
    let sizes = (1025..1030)
        .chain(1152..1158)
        .chain([2048, 2051, 3203, 3204, 3205, 5120])
        .map(|mib| mib * MIB);
    online(FsType::Ext4, sizes).await;
}
