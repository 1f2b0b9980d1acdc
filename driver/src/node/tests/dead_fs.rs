//! File systems that the kernel shuts down while they are mounted, and those that are damaged before they are mounted.

use super::*;
use crate::host::fake::FsFailure;

const ALL: [(&str, FsFailure, &str); 4] = [
    ("ext4", FsFailure::Emergency, "emergency_ro"),
    ("ext4", FsFailure::ReadOnly, "read-only"),
    ("xfs", FsFailure::ShutDown, "I/O errors"),
    ("btrfs", FsFailure::ReadOnly, "read-only"),
];

#[tokio::test]
async fn a_dead_file_system_is_remounted_once_it_is_unused() {
    for (fs, death, why) in ALL {
        let co = Co::with_fs(fs);
        co.stage().await.unwrap();
        co.publish("/pods/1", false).await.unwrap();
        co.fake.fail_fs_as("/staging", death);
        for refused in [
            co.stage().await,
            co.publish("/pods/1", false).await,
            co.publish("/pods/2", true).await,
            co.expand("/pods/1", Bytes::GIB, Bytes(0)).await.map(drop),
        ] {
            let status = refused.unwrap_err();
            assert_eq!(status.code(), Code::Aborted, "{fs}: {status}");
            for word in [why, "delete the pods"] {
                assert!(status.message().contains(word), "{fs}, {word}: {status}");
            }
        }
        assert_eq!(
            co.fake.mounted(),
            ["/staging", "/pods/1"],
            "nothing is touched"
        );
        co.unpublish("/pods/1").await.unwrap();
        // Any of the CO's next calls detects that it is dead and remounts it.
        co.publish("/pods/1", false).await.unwrap();
        assert_eq!(co.fake.mounted(), ["/staging", "/pods/1"]);
        assert!(co.fake.write_data("/pods/1", 7), "{fs} works again");
        co.unpublish("/pods/1").await.unwrap();
        co.fake.fail_fs_as("/staging", death);
        co.stage().await.unwrap();
        assert_eq!(co.fake.mounted(), ["/staging"]);
        co.publish("/pods/1", false).await.unwrap();
        assert_eq!(co.fake.read_data("/pods/1"), Some(7));
    }
}

#[tokio::test]
async fn a_dead_file_system_can_be_unstaged() {
    for (fs, death, _) in ALL {
        let co = Co::with_fs(fs);
        co.stage().await.unwrap();
        co.publish("/pods/1", true).await.unwrap();
        co.fake.fail_fs_as("/staging", death);
        co.unpublish("/pods/1").await.unwrap();
        co.unstage().await.unwrap();
        assert!(co.fake.mounted().is_empty() && co.fake.machine().sessions.is_empty());
    }
}

#[tokio::test]
async fn a_dead_file_system_still_mounted_elsewhere_is_not_remounted() {
    let co = Co::with_fs("xfs");
    co.stage().await.unwrap();
    co.fake.pin("/staging");
    co.fake.fail_fs_as("/staging", FsFailure::ShutDown);
    fails(co.stage().await, Code::Aborted, "still has it mounted");
    let mounts = co.fake.ran("mount -t");
    assert_eq!(mounts.len(), 1, "the dead one would come back: {mounts:?}");
    fails(co.stage().await, Code::Aborted, "still has it mounted");
    co.fake.machine().pinned.clear();
    co.fake.machine().deaths.clear();
    co.stage().await.unwrap();
    co.publish("/pods/1", false).await.unwrap();
}

#[tokio::test]
async fn the_volume_condition_reports_a_dead_file_system() {
    for (fs, death, why) in ALL {
        let co = Co::with_fs(fs);
        co.stage().await.unwrap();
        co.publish("/pods/1", false).await.unwrap();
        let (usage, wrong) = co.stats_and_condition("/pods/1").await.unwrap();
        assert_eq!((usage[0].total, wrong), (1000, None));
        co.fake.fail_fs_as("/staging", death);
        let (usage, wrong) = co.stats_and_condition("/pods/1").await.unwrap();
        assert_eq!(usage[0].total, 1000);
        assert!(wrong.unwrap().contains(why), "{fs}");
    }
}

/// mount(8) has one generic message for all failures.
#[tokio::test]
async fn a_mount_failure_quotes_the_kernel_log() {
    const SAID: &str = "mount: /staging: wrong fs type, bad option, bad superblock on /dev/sdb, missing codepage or helper program, or other error.";
    let log = |co: &Co, lines: &str| {
        let file = ("/dev/kmsg".to_owned(), lines.as_bytes().to_vec());
        co.fake.machine().files.extend([file]);
    };
    let co = Co::new();
    log(
        &co,
        "EXT4-fs (sdb): an older line\nEXT4-fs (sdbc): of another disk\nEXT4-fs (sdb): couldn't mount because of unsupported optional features (20000)\nusb 1-1: new device\n",
    );
    co.fake.answer("mount -t", 32, SAID);
    let status = co.stage().await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(
        status.message().contains("unsupported optional features"),
        "{status}"
    );
    assert!(!status.message().contains("another disk") && !status.message().contains("usb"));

    let co = Co::with_fs("xfs");
    log(&co, "xfs: Unknown parameter 'errors'\n");
    co.fake.answer("mount -t", 32, SAID);
    fails(
        co.stage().await,
        Code::Unavailable,
        "Unknown parameter 'errors'",
    );

    // If the log cannot be read, the message says where to look.
    let co = Co::new();
    co.fake
        .machine()
        .unreadable_paths
        .insert("/dev/kmsg".to_owned());
    co.fake.answer("mount -t", 32, SAID);
    fails(co.stage().await, Code::Unavailable, "dmesg on the node");

    let co = Co::with_fs("xfs");
    co.fake.answer(
        "mount -t",
        32,
        "mount: /staging: mount(2) system call failed: Structure needs cleaning.",
    );
    let status = co.stage().await.unwrap_err();
    let begin: String = status.message().chars().take(200).collect();
    for word in ["damaged", "scale the pods to 0", "xfs_repair"] {
        assert!(begin.contains(word), "{word}: {begin}");
    }
    co.stage().await.unwrap();
}

/// After `blockdev --setro`, or if the NAS has made the LUN read-only: mount(8) mounts it read-only, with a warning.
#[tokio::test]
async fn a_write_protected_disk_is_not_a_dead_file_system() {
    let mut co = Co::new();
    co.stage().await.unwrap();
    co.unstage().await.unwrap();
    co.fake.machine().protected = true;
    fails(
        co.stage().await,
        Code::FailedPrecondition,
        "write-protected",
    );
    assert!(co.fake.mounted().is_empty() && co.fake.machine().sessions.is_empty());
    co.mode = Mode::SingleNodeReaderOnly;
    co.stage().await.unwrap();
    co.publish("/pods/1", true).await.unwrap();
    assert_eq!(co.stats_and_condition("/pods/1").await.unwrap().1, None);
}

#[tokio::test]
async fn an_ext4_is_checked_before_it_is_mounted() {
    let mut co = Co::new();
    for why in ["mkfs has just made it", "it is mounted"] {
        co.stage().await.unwrap();
        assert!(co.fake.ran("e2fsck").is_empty(), "{why}");
    }
    co.unstage().await.unwrap();
    co.fake.machine().log.clear();
    co.stage().await.unwrap();
    let log = co.fake.machine().log.clone();
    let at = |prefix: &str| log.iter().position(|line| line.starts_with(prefix));
    assert!(
        at("echo 1 >") < at("e2fsck -p /dev/sdb"),
        "after the proof of identity: {log:?}"
    );
    assert!(at("e2fsck -p /dev/sdb") < at("mount -t"), "{log:?}");
    co.unstage().await.unwrap();
    co.mode = Mode::SingleNodeReaderOnly;
    co.stage().await.unwrap();
    assert_eq!(co.fake.ran("e2fsck").last().unwrap(), "e2fsck -n /dev/sdb");
    for fs in ["xfs", "btrfs"] {
        let co = Co::with_fs(fs);
        co.stage().await.unwrap();
        assert!(co.fake.ran("e2fsck").is_empty(), "{fs}");
    }
}

#[tokio::test]
async fn only_unrepaired_damage_prevents_mounting_an_ext4() {
    let co = Co::new();
    co.fake.put_file_system(FsType::Ext4, Bytes::GIB);
    for status in [4, 12] {
        co.fake.answer(
            "e2fsck",
            status,
            "UNEXPECTED INCONSISTENCY; RUN fsck MANUALLY.",
        );
        let refused = co.stage().await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        let begin: String = refused.message().chars().take(200).collect();
        for word in ["/dev/sdb", "damage", "scale the pods to 0", "SAN Manager"] {
            assert!(begin.contains(word), "{word}: {begin}");
        }
        assert!(refused.message().contains("e2fsck -f"), "{refused}");
        assert!(co.fake.mounted().is_empty() && co.fake.machine().sessions.is_empty());
    }
    // Repaired, or the check itself failed: neither is damage.
    for status in [1, 2, 8, 16] {
        co.fake.answer("e2fsck", status, "what it says");
        co.stage().await.unwrap();
        co.unstage().await.unwrap();
    }
    // Killed: retryable.
    co.fake.answer("e2fsck", 143, "");
    fails(co.stage().await, Code::Unavailable, "143");
    assert!(co.fake.mounted().is_empty());
    co.fake.hang("e2fsck");
    fails(co.stage().await, Code::Aborted, "may still run");
    co.stage().await.unwrap();
}
