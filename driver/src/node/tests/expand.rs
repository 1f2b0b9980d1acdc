//! NodeExpandVolume.

use std::io::ErrorKind;

use super::*;

const GIB2: Bytes = Bytes::gib(2);
const ANY: Bytes = Bytes(0);

async fn staged(fs: &'static str) -> Co {
    let co = Co::with_fs(fs);
    co.stage().await.unwrap();
    co.publish("/pods/1", false).await.unwrap();
    co.fake.machine().log.clear();
    co
}

/// design.md#expansion-is-read-back
#[tokio::test]
async fn rescan_then_identity_then_size_then_growth() {
    for (fs, grow) in [
        ("ext4", "resize2fs /dev/sdb"),
        ("xfs", "xfs_growfs -d /pods/1"),
        ("btrfs", "btrfs filesystem resize max /pods/1"),
    ] {
        let co = staged(fs).await;
        co.fake.grow_lun(GIB2);
        assert_eq!(co.expand("/pods/1", GIB2, ANY).await.unwrap(), GIB2);
        let log = co.fake.machine().log.clone();
        assert_eq!(
            log[0],
            "echo 1 > /sys/class/iscsi_session/session1/device/target4:0:0/4:0:0:1/rescan"
        );
        assert_eq!(
            log.iter().filter(|line| **line == grow).count(),
            1,
            "{log:?}"
        );
        assert_eq!(co.expand("/pods/1", GIB2, ANY).await.unwrap(), GIB2);
        assert_eq!(
            co.fake.ran(grow).len(),
            1,
            "a file system that fills its disk is not grown again"
        );
    }
}

/// A container with a read-only `/sys`: iscsiadm writes there in the host's namespaces.
/// design.md#expansion-is-read-back
#[tokio::test]
async fn without_write_access_to_sysfs_iscsiadm_rescans() {
    for kind in [
        ErrorKind::ReadOnlyFilesystem,
        ErrorKind::PermissionDenied,
        ErrorKind::NotFound,
    ] {
        let co = Co::new();
        co.fake.machine().sysfs_error = Some(kind);
        co.stage().await.unwrap();
        co.fake.grow_lun(GIB2);
        assert_eq!(co.expand("/staging", GIB2, ANY).await.unwrap(), GIB2);
        let rescans = co.fake.ran("iscsiadm -m session -r 1 --rescan");
        assert_eq!(rescans.len(), 2, "stage and expand: {kind}");
    }
    let co = staged("ext4").await;
    co.fake.grow_lun(GIB2);
    co.fake.machine().sysfs_error = Some(ErrorKind::ResourceBusy);
    fails(
        co.expand("/staging", GIB2, ANY).await,
        Code::Unavailable,
        "rescanning session 1",
    );
    assert!(co.fake.ran("resize2fs").is_empty());
}

/// design.md#node-expansion-is-always-required
#[tokio::test]
async fn staging_and_publish_paths_are_accepted() {
    for path in ["/staging", "/pods/1"] {
        let co = staged("ext4").await;
        co.fake.grow_lun(GIB2);
        assert_eq!(
            co.expand(path, ANY, ANY).await.unwrap(),
            GIB2,
            "without a range: the whole disk"
        );
    }
}

/// design.md#large-enough-already
#[tokio::test]
async fn a_smaller_retry_succeeds_and_the_limit_is_enforced() {
    let co = staged("xfs").await;
    co.fake.grow_lun(GIB2);
    assert_eq!(co.expand("/pods/1", Bytes::GIB, ANY).await.unwrap(), GIB2);
    assert_eq!(co.expand("/pods/1", Bytes(1), GIB2).await.unwrap(), GIB2);
    fails(
        co.expand("/pods/1", Bytes(1), Bytes::GIB).await,
        Code::OutOfRange,
        "already 2 GiB",
    );
}

/// design.md#sizes
#[tokio::test]
async fn the_reply_has_the_measured_size() {
    let co = staged("btrfs").await;
    co.fake.grow_lun(Bytes::mib(1537));
    let required = Bytes(Bytes::mib(1536).0 + 1);
    assert_eq!(
        co.expand("/pods/1", required, ANY).await.unwrap(),
        Bytes::mib(1537),
        "a LUN is whole MiB"
    );
}

/// design.md#expansion-is-read-back
#[tokio::test]
async fn a_disk_that_did_not_grow_is_not_a_success() {
    let co = staged("ext4").await;
    fails(
        co.expand("/pods/1", GIB2, ANY).await,
        Code::Unavailable,
        "after a rescan the disk is 1 GiB",
    );
    assert!(co.fake.ran("resize2fs").is_empty());
}

/// design.md#expansion-is-read-back
#[tokio::test]
async fn a_tool_that_does_nothing_has_failed() {
    for (fs, tool) in [
        ("ext4", "resize2fs"),
        ("xfs", "xfs_growfs"),
        ("btrfs", "btrfs filesystem resize"),
    ] {
        let co = staged(fs).await;
        co.fake.grow_lun(GIB2);
        co.fake.answer(tool, 0, "");
        fails(
            co.expand("/pods/1", GIB2, ANY).await,
            Code::Unavailable,
            "reports success",
        );
        co.fake.answer(tool, 1, "no such thing");
        fails(
            co.expand("/pods/1", GIB2, ANY).await,
            Code::Unavailable,
            "no such thing",
        );
        assert_eq!(co.expand("/pods/1", GIB2, ANY).await.unwrap(), GIB2);
    }
}

/// design.md#identity-before-action
#[tokio::test]
async fn another_lun_is_not_grown() {
    let co = staged("ext4").await;
    let other = "00000000-f296-4d4b-b712-a85c139f9dac";
    co.fake
        .machine()
        .targets
        .values_mut()
        .for_each(|target| (target.serial, target.size) = (other.to_owned(), GIB2));
    fails(
        co.expand("/pods/1", GIB2, ANY).await,
        Code::FailedPrecondition,
        other,
    );
    assert!(co.fake.ran("resize2fs").is_empty());
}

/// design.md#node-expansion-is-always-required
#[tokio::test]
async fn a_missing_capability_is_named() {
    let co = staged("ext4").await;
    co.fake.grow_lun(GIB2);
    co.fake.machine().capable = false;
    fails(
        co.expand("/pods/1", GIB2, ANY).await,
        Code::FailedPrecondition,
        "CAP_SYS_RESOURCE",
    );
    assert_eq!(
        co.fake.mounted(),
        ["/staging", "/pods/1"],
        "a pod's file system is not unmounted"
    );
    co.fake.machine().capable = true;
    assert_eq!(co.expand("/pods/1", GIB2, ANY).await.unwrap(), GIB2);
}

/// For instance with `formatOptions: -O bigalloc`. The data is intact, so the volume must be usable.
/// design.md#node-expansion-is-always-required
#[tokio::test]
async fn a_file_system_that_never_grows_is_staged_as_it_is() {
    for capable in [true, false] {
        let co = staged("ext4").await;
        co.fake.machine().capable = capable;
        assert!(co.fake.make_unresizable(UUID));
        co.fake.grow_lun(GIB2);
        fails(
            co.expand("/pods/1", GIB2, ANY).await,
            Code::FailedPrecondition,
            "copy them into a new volume",
        );
        for _ in 0..2 {
            co.stage().await.unwrap();
        }
        co.publish("/pods/1", false).await.unwrap();
        let (_, wrong) = co.stats_and_condition("/pods/1").await.unwrap();
        assert!(wrong.unwrap().contains("1 GiB on a disk of 2 GiB"));
        co.unpublish("/pods/1").await.unwrap();
        co.unstage().await.unwrap();
        co.fake.machine().log.clear();
        co.stage().await.unwrap();
        assert_eq!(co.fake.mounted(), ["/staging"]);
        let checks = co.fake.ran("e2fsck -f");
        assert!(checks.is_empty(), "a pointless, long check: {checks:?}");
    }
}

/// A file system that can grow only unmounted, and is mounted: staging succeeds without growth.
/// design.md#node-expansion-is-always-required
#[tokio::test]
async fn growth_that_needs_an_unmount_does_not_block_staging() {
    let co = staged("ext4").await;
    co.fake.machine().capable = false;
    co.fake.grow_lun(GIB2);
    co.stage().await.unwrap();
    assert_eq!(co.fake.mounted(), ["/staging", "/pods/1"]);
    co.unpublish("/pods/1").await.unwrap();
    co.stage().await.unwrap();
    assert_eq!(co.fake.ran("e2fsck -f -p").len(), 1);
    assert_eq!(co.stats_and_condition("/staging").await.unwrap().1, None);
}

/// Every stage retries growth: after a restore to a larger size the CO never calls NodeExpandVolume.
/// design.md#node-expansion-is-always-required
#[tokio::test]
async fn growth_that_failed_is_tried_again() {
    for (status, said) in [
        (1, "resize2fs: Input/output error while trying to resize"),
        (1, "Please run 'e2fsck -f /dev/sdb' first."),
        (137, ""),
    ] {
        let co = Co::new();
        co.fake.put_file_system(FsType::Ext4, Bytes::GIB);
        co.fake.grow_lun(GIB2);
        co.fake.answer("resize2fs", status, said);
        fails(co.stage().await, Code::Unavailable, "growing the ext4");
        co.stage().await.unwrap();
        assert_eq!(co.stats_and_condition("/staging").await.unwrap().1, None);
    }
}

/// design.md#node-expansion-is-always-required
#[tokio::test]
async fn a_read_only_file_system_keeps_its_size() {
    let mut co = Co::with_fs("xfs");
    co.fake.put_file_system(FsType::Xfs, Bytes::GIB);
    co.mode = Mode::SingleNodeReaderOnly;
    co.stage().await.unwrap();
    co.fake.grow_lun(GIB2);
    assert_eq!(co.expand("/staging", GIB2, ANY).await.unwrap(), GIB2);
    assert!(co.fake.ran("xfs_growfs").is_empty());
}

/// design.md#node-expansion-is-always-required
#[tokio::test]
async fn a_read_only_path_of_a_writable_file_system_grows_it() {
    let co = Co::with_fs("xfs");
    co.stage().await.unwrap();
    co.publish("/pods/1", true).await.unwrap();
    co.fake.grow_lun(GIB2);
    assert_eq!(co.expand("/pods/1", GIB2, ANY).await.unwrap(), GIB2);
    assert_eq!(co.fake.ran("xfs_growfs"), ["xfs_growfs -d /staging"]);
}

/// design.md#node-expansion-is-always-required
#[tokio::test]
async fn expanding_a_raw_device_only_reads_its_size() {
    let co = Co::raw();
    co.stage().await.unwrap();
    co.publish("/pods/1", false).await.unwrap();
    co.fake.grow_lun(GIB2);
    assert_eq!(co.expand("/pods/1", GIB2, ANY).await.unwrap(), GIB2);
    // Staging a raw device mounts nothing, so the request has to say that the path is its staging path.
    fails(
        co.expand("/staging", GIB2, ANY).await,
        Code::NotFound,
        "nothing is mounted",
    );
    let request = csi::NodeExpandVolumeRequest {
        volume_id: co.volume_id.clone(),
        volume_path: "/staging".to_owned(),
        staging_target_path: "/staging".to_owned(),
        ..Default::default()
    };
    let reply = co
        .node
        .node_expand_volume(Request::new(request))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(reply.capacity_bytes, GIB2.as_i64());
}

#[tokio::test]
async fn a_path_without_the_volume_is_not_found() {
    let co = staged("ext4").await;
    fails(
        co.expand("/pods/2", GIB2, ANY).await,
        Code::NotFound,
        "nothing is mounted",
    );
    fails(
        co.expand("some/path", GIB2, ANY).await,
        Code::NotFound,
        "not absolute",
    );
    let table = "1 1 8:0 / /pods/3 rw - ext4 /dev/sda rw\n";
    let foreign = crate::host::mount::parse(table.as_bytes()).unwrap();
    co.fake.machine().mounts.extend(foreign);
    fails(
        co.expand("/pods/3", GIB2, ANY).await,
        Code::NotFound,
        "/dev/sda",
    );
    assert!(co.fake.machine().log.is_empty());
}
