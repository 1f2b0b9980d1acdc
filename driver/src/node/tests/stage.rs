//! NodeStageVolume.

use super::*;
use crate::host::{Exit, marker};

const GIB2: Bytes = Bytes::gib(2);

#[tokio::test]
async fn a_blank_lun_becomes_a_mounted_file_system() {
    for fs in ["ext4", "xfs", "btrfs"] {
        let co = Co::with_fs(fs);
        co.stage().await.unwrap();
        assert_eq!(co.fake.mounted(), ["/staging"]);
        let iqn = co.fake.iqn();
        let record = format!("iscsiadm -m node -T {iqn} -p 10.0.0.5:3260");
        let log = co.fake.machine().log.clone();
        let expected = [
            format!("{record} -o new"),
            format!(
                "{record} -o update -n node.startup -v manual -n node.conn[0].startup -v manual -n node.leading_login -v No \
                 -n node.session.nr_sessions -v 1 -n node.session.scan -v manual \
                 -n node.session.timeo.replacement_timeout -v 120 -n node.session.initial_login_retry_max -v 1 \
                 -n node.conn[0].timeo.login_timeout -v 15"
            ),
            // iscsid.conf would let iscsid give the session up.
            format!(
                "replace /etc/iscsi/nodes/{iqn}/10.0.0.5,3260 by way of /etc/iscsi/.synology-csi-{iqn}"
            ),
            format!("{record} --login"),
            "echo 0 0 1 > /sys/class/scsi_host/host4/scan".to_owned(),
            "blkid -p -o export /dev/sdb".to_owned(),
            format!("write {} marker", 63 << 20),
        ];
        assert_eq!(log[..7], expected);
        assert!(log[7].starts_with(&format!("mkfs.{fs} ")), "{log:?}");
        assert_eq!(
            log[8],
            format!("write {} zeros", 63 << 20),
            "the marker is erased before the mount"
        );
        let mount = format!("mount -t {fs} -o {} /dev/sdb /staging", default_options(fs));
        assert_eq!(log[9..], [mount], "nothing new is measured");
        let machine = co.fake.machine();
        let text = String::from_utf8_lossy(
            &machine.files[&format!("/etc/iscsi/nodes/{iqn}/10.0.0.5,3260")],
        );
        for line in [
            "node.session.nr_sessions = 1\n",
            "node.session.reopen_max = 0\n",
        ] {
            assert!(text.contains(line), "no {line} in {text}");
        }
    }
}

/// The device node appears in `/dev` a moment before the device can be opened (seen on a slow machine).
#[tokio::test]
async fn a_disk_is_waited_for_until_it_can_be_opened() {
    let co = Co::new();
    co.fake.machine().open_fails_once = true;
    co.stage().await.unwrap();
    assert_eq!(co.fake.mounted(), ["/staging"]);
}

#[tokio::test]
async fn staging_twice_changes_nothing() {
    let co = Co::new();
    co.stage().await.unwrap();
    co.stage().await.unwrap();
    assert_eq!(co.fake.mounted(), ["/staging"]);
    assert_eq!(
        (co.fake.ran("mkfs").len(), co.fake.ran("mount").len()),
        (1, 1)
    );
    assert_eq!(co.fake.machine().sessions.len(), 1);
}

#[tokio::test]
async fn a_different_staging_is_already_exists() {
    let mut co = Co::new();
    co.stage().await.unwrap();
    co.fs = "xfs";
    fails(co.stage().await, Code::AlreadyExists, "ext4");
    (co.fs, co.mode) = ("", Mode::SingleNodeReaderOnly);
    fails(co.stage().await, Code::AlreadyExists, "read-only");
    (co.mode, co.flags) = (Mode::SingleNodeWriter, vec!["noatime".to_owned()]);
    fails(co.stage().await, Code::AlreadyExists, "noatime");
    (co.raw, co.flags) = (true, vec![]);
    fails(co.stage().await, Code::AlreadyExists, "raw block");
    assert_eq!(co.fake.mounted(), ["/staging"], "the volume stays staged");
    assert_eq!(co.fake.machine().sessions.len(), 1);
}

#[tokio::test]
async fn flags_and_reader_modes_reach_mount() {
    let mut co = Co::new();
    co.fake.put_file_system(FsType::Ext4, Bytes::GIB);
    (co.flags, co.mode) = (vec!["noatime".to_owned()], Mode::SingleNodeReaderOnly);
    co.stage().await.unwrap();
    assert_eq!(
        co.fake.ran("mount"),
        ["mount -t ext4 -o nodev,nosuid,errors=remount-ro,noatime,ro /dev/sdb /staging"]
    );
    co.stage().await.unwrap();
}

/// design.md#identity-before-action
#[tokio::test]
async fn the_serial_is_read_after_a_rescan() {
    let co = Co::new();
    co.fake.log_in();
    // Another LUN was mapped under the live session: sysfs still has the old serial.
    let other = "00000000-f296-4d4b-b712-a85c139f9dac";
    co.fake
        .machine()
        .targets
        .values_mut()
        .for_each(|target| target.serial = other.to_owned());
    fails(co.stage().await, Code::FailedPrecondition, other);
    assert!(co.fake.content().is_empty(), "nothing was written");
    assert!(
        co.fake.machine().sessions.is_empty() && co.fake.machine().records.is_empty(),
        "and no session is left"
    );
}

/// design.md#identity-before-action
#[tokio::test]
async fn only_a_blank_disk_is_formatted() {
    let probe = |status, stdout: &str| Exit {
        status,
        stdout: stdout.to_owned(),
        stderr: String::new(),
    };
    for (put_at, blkid, cause) in [
        (0, None, "not blank"),
        ((1 << 30) - 1, None, "not blank"),
        (128 << 20, None, "not blank"),
        (500, Some(probe(0, "TYPE=LVM2_member\n")), "LVM2_member"),
        (500, Some(probe(0, "PTTYPE=gpt\n")), "gpt"),
        (500, Some(probe(8, "")), "several"),
    ] {
        let co = Co::new();
        co.fake.write(put_at, b"x");
        co.fake.machine().blkid = blkid;
        let before = co.fake.content();
        fails(co.stage().await, Code::FailedPrecondition, cause);
        assert_eq!(co.fake.content(), before, "nothing was written");
        assert!(co.fake.machine().sessions.is_empty());
    }
}

/// The last chunk of samples may be smaller than the others.
/// design.md#identity-before-action
#[tokio::test]
async fn the_end_of_a_disk_of_any_size_is_sampled() {
    for size in [Bytes::gib(1), Bytes::mib(3001), Bytes::gib(10)] {
        let co = Co::new();
        for target in co.fake.machine().targets.values_mut() {
            target.size = size;
        }
        co.fake.write(size.0 - 1, b"x");
        fails(co.stage().await, Code::FailedPrecondition, "not blank");
    }
}

/// design.md#identity-before-action
#[tokio::test]
async fn an_unreadable_disk_or_a_failed_probe_is_never_blank() {
    let co = Co::new();
    co.fake.machine().unreadable = true;
    fails(
        co.stage().await,
        Code::Unavailable,
        "looking for a file system",
    );
    co.fake.machine().unreadable = false;
    for (status, stderr) in [
        (1, ""),
        (4, "usage"),
        (2, "error: /dev/sdb: Input/output error"),
    ] {
        co.fake.answer("blkid", status, stderr);
        fails(co.stage().await, Code::Unavailable, "blkid");
    }
    assert!(co.fake.ran("mkfs").is_empty() && co.fake.ran("write").is_empty());
    co.stage().await.unwrap();
}

/// design.md#identity-before-action
#[tokio::test]
async fn another_file_system_is_left_alone() {
    let co = Co::with_fs("ext4");
    co.fake.put_file_system(FsType::Xfs, Bytes::GIB);
    fails(
        co.stage().await,
        Code::FailedPrecondition,
        "it holds xfs, not ext4",
    );
    assert!(co.fake.ran("mkfs").is_empty());
    let co = Co::with_fs("xfs");
    co.fake.put_file_system(FsType::Xfs, Bytes::GIB);
    co.stage().await.unwrap();
    assert!(co.fake.ran("mkfs").is_empty());
}

/// design.md#identity-before-action
#[tokio::test]
async fn a_read_only_volume_is_never_formatted() {
    for flags in [vec![], vec!["ro".to_owned()]] {
        let mut co = Co::new();
        if flags.is_empty() {
            co.mode = Mode::SingleNodeReaderOnly;
        }
        co.flags = flags;
        fails(
            co.stage().await,
            Code::FailedPrecondition,
            "a read-only volume is never formatted",
        );
        assert!(co.fake.ran("mkfs").is_empty() && co.fake.ran("write").is_empty());
        assert!(co.fake.machine().sessions.is_empty());
        // Nothing else is written for a read-only volume, either.
        co.fake.put_file_system(FsType::Ext4, Bytes::GIB);
        co.fake
            .write(marker::PLACE.offset, &marker::block(&UUID.parse().unwrap()));
        co.stage().await.unwrap();
        assert!(co.fake.ran("write").is_empty());
        co.unstage().await.unwrap();
        (co.mode, co.flags) = (Mode::SingleNodeWriter, vec![]);
        co.stage().await.unwrap();
        assert_eq!(co.fake.ran("write").len(), 1);
    }
}

#[tokio::test]
async fn a_raw_device_in_use_keeps_its_write_protection() {
    let mut co = Co::raw();
    co.stage().await.unwrap();
    co.publish("/pods/1", false).await.unwrap();
    co.mode = Mode::MultiNodeReaderOnly;
    fails(co.stage().await, Code::AlreadyExists, "in use at /pods/1");
    assert!(!co.fake.machine().protected);
    co.unpublish("/pods/1").await.unwrap();
    co.stage().await.unwrap();
    assert!(co.fake.machine().protected);
}

/// design.md#identity-before-action
#[tokio::test]
async fn an_interrupted_mkfs_is_started_again() {
    let co = Co::new();
    co.fake.hang("mkfs");
    fails(co.stage().await, Code::Aborted, "may still run");
    co.fake.write(700 << 20, b"inode tables, half written");
    co.stage().await.unwrap();
    assert_eq!(co.fake.ran("mkfs").len(), 2);
    let uuid = UUID.parse().unwrap();
    let mark = co
        .fake
        .read_device("/dev/sdb", marker::PLACE, crate::host::ReadMode::Disk)
        .await
        .unwrap();
    assert_eq!(marker::read(&mark, &uuid), marker::MarkerState::None);
}

/// design.md#identity-before-action
#[tokio::test]
async fn a_crash_after_mkfs_only_erases_the_marker() {
    let co = Co::new();
    co.fake.put_file_system(FsType::Ext4, Bytes::GIB);
    co.fake
        .write(marker::PLACE.offset, &marker::block(&UUID.parse().unwrap()));
    co.stage().await.unwrap();
    assert_eq!(
        (co.fake.ran("mkfs").len(), co.fake.ran("write").len()),
        (0, 1)
    );
}

/// design.md#identity-before-action
#[tokio::test]
async fn the_marker_of_another_volume_is_no_permission() {
    let co = Co::new();
    co.fake.write(
        marker::PLACE.offset,
        &marker::block(&"00000000-f296-4d4b-b712-a85c139f9dac".parse().unwrap()),
    );
    fails(
        co.stage().await,
        Code::FailedPrecondition,
        "another volume, 00000000",
    );
}

#[tokio::test]
async fn a_claimed_disk_is_not_written() {
    let co = Co::new();
    co.fake.machine().claimed = true;
    fails(co.stage().await, Code::FailedPrecondition, "claimed");
    assert!(co.fake.ran("mkfs").is_empty());
}

/// design.md#expansion-is-read-back
#[tokio::test]
async fn an_mkfs_that_does_nothing_has_failed() {
    let co = Co::new();
    co.fake.answer("mkfs", 0, "");
    fails(co.stage().await, Code::Unavailable, "mkfs reports success");
}

/// design.md#portals
#[tokio::test]
async fn the_first_portal_that_accepts_is_used() {
    let co = Co::new();
    co.fake.answer(
        &format!(
            "iscsiadm -m node -T {} -p 10.0.0.5:3260 --login",
            co.fake.iqn()
        ),
        8,
        "timed out",
    );
    co.stage_through(&["10.0.0.5:3260", "[fd00::5]:3261"])
        .await
        .unwrap();
    assert_eq!(
        co.fake
            .ran("iscsiadm")
            .iter()
            .filter(|line| line.ends_with("--login"))
            .count(),
        2
    );
    assert_eq!(co.fake.machine().sessions.len(), 1);
}

#[tokio::test]
async fn a_failed_login_reports_its_cause() {
    for (status, code, cause) in [
        (8, Code::Unavailable, "does not answer"),
        (19, Code::FailedPrecondition, "refuses the login for good"),
        (21, Code::Unavailable, "no record"),
        (24, Code::Unauthenticated, "wants CHAP"),
        (6, Code::Unavailable, "/etc/iscsi/nodes"),
        (18, Code::Unavailable, "iscsid"),
        (99, Code::Unavailable, "status 99"),
    ] {
        let co = Co::new();
        let login = format!(
            "iscsiadm -m node -T {} -p 10.0.0.5:3260 --login",
            co.fake.iqn()
        );
        // A database error is retried once.
        for _ in 0..if status == 6 { 2 } else { 1 } {
            co.fake
                .answer(&login, status, "iscsiadm: Could not log into all portals");
        }
        fails(co.stage().await, code, cause);
        assert!(
            co.fake.machine().records.is_empty() && co.fake.machine().sessions.is_empty(),
            "nothing is left"
        );
    }
}

/// design.md#final-codes
#[tokio::test]
async fn a_login_that_hangs_is_not_final() {
    let co = Co::new();
    co.fake.hang(&format!(
        "iscsiadm -m node -T {} -p 10.0.0.5:3260 --login",
        co.fake.iqn()
    ));
    fails(co.stage().await, Code::Aborted, "--login");
}

/// design.md#final-codes
#[tokio::test]
async fn a_final_answer_leaves_no_session() {
    let co = Co::new();
    co.fake.write(0, b"somebody's data");
    co.fake
        .answer("iscsiadm -m session -r 1 --logout", 9, "internal error");
    fails(
        co.stage().await,
        Code::Unavailable,
        "undoing what was done before a failure",
    );
    fails(co.stage().await, Code::FailedPrecondition, "not blank");
    assert!(co.fake.machine().sessions.is_empty());
}

/// design.md#unstage-needs-no-nas
#[tokio::test]
async fn a_session_without_its_target_is_replaced() {
    let co = Co::new();
    co.fake.log_in();
    co.fake.machine().sessions.get_mut(&1).unwrap().alive = false;
    co.stage().await.unwrap();
    assert_eq!(co.fake.ran("iscsiadm -m session -r 1 --logout").len(), 1);
    assert_eq!(co.fake.mounted(), ["/staging"]);
    // The same with a mount that a crash has left behind.
    co.fake.machine().sessions.get_mut(&1).unwrap().alive = false;
    co.stage().await.unwrap();
    assert_eq!(co.fake.mounted(), ["/staging"]);
    assert!(co.fake.machine().sessions[&1].alive);
}

/// design.md#identity-before-action
#[tokio::test]
async fn a_cached_serial_of_a_lost_target_does_not_prove_identity() {
    let co = Co::new();
    co.stage().await.unwrap();
    co.publish("/pods/1", false).await.unwrap();
    // The rescan succeeds, and sysfs still has the right serial.
    co.fake.machine().targets.clear();
    fails(co.stage().await, Code::Aborted, "/pods/1");
    fails(
        co.expand("/staging", Bytes::GIB, Bytes(0)).await,
        Code::Aborted,
        "lost its target",
    );
    assert_eq!(co.fake.mounted(), ["/staging", "/pods/1"]);
    let co = Co::raw();
    co.stage().await.unwrap();
    co.fake.machine().targets.clear();
    fails(
        co.publish("/pods/1", false).await,
        Code::Aborted,
        "lost its target",
    );
    fails(
        co.stage().await,
        Code::FailedPrecondition,
        "refuses the login",
    );
    assert!(co.fake.machine().sessions.is_empty());
}

/// design.md#unstage-needs-no-nas
#[tokio::test]
async fn a_lost_session_in_use_is_left_alone() {
    let co = Co::new();
    co.stage().await.unwrap();
    co.publish("/pods/1", false).await.unwrap();
    co.fake.machine().sessions.get_mut(&1).unwrap().alive = false;
    fails(co.stage().await, Code::Aborted, "/pods/1");
    assert_eq!(co.fake.mounted(), ["/staging", "/pods/1"]);
}

/// design.md#unstage-needs-no-nas
#[tokio::test]
async fn a_mount_without_its_device_is_removed() {
    let co = Co::new();
    co.stage().await.unwrap();
    // A logout by hand: sdb is gone.
    co.fake.machine().sessions.clear();
    co.stage().await.unwrap();
    assert_eq!(
        (co.fake.mounted().len(), co.fake.ran("umount").len()),
        (1, 1)
    );
    co.fake.machine().sessions.clear();
    co.fake.answer("umount /staging", 32, "target is busy");
    co.stage().await.unwrap();
    assert_eq!(co.fake.ran("umount -l").len(), 1);
}

/// design.md#identity-before-action
#[tokio::test]
async fn a_foreign_mount_is_left_alone() {
    for (fs, device, source) in [
        ("ext4", "8:0", "/dev/sda"),
        ("tmpfs", "0:50", "tmpfs"),
        ("nfs4", "0:51", "nas:/x"),
    ] {
        let co = Co::new();
        let table = format!("1 1 {device} / /staging rw - {fs} {source} rw\n");
        co.fake.machine().mounts = crate::host::mount::parse(table.as_bytes()).unwrap();
        fails(
            co.stage().await,
            Code::FailedPrecondition,
            &format!("{fs} of {source}"),
        );
        fails(co.unstage().await, Code::FailedPrecondition, fs);
        fails(co.unpublish("/staging").await, Code::FailedPrecondition, fs);
        assert_eq!(co.fake.mounted(), ["/staging"]);
    }
}

#[tokio::test]
async fn additional_sessions_made_by_hand_do_not_block() {
    for raw in [false, true] {
        let co = Co { raw, ..Co::new() };
        for _ in 0..3 {
            co.fake.log_in();
        }
        co.stage().await.unwrap();
        assert_eq!(co.fake.machine().sessions.len(), 1);
        co.publish("/pods/1", false).await.unwrap();
        co.fake.log_in();
        co.stage().await.unwrap();
        assert_eq!(co.fake.machine().sessions.len(), 1);
        co.fake.log_in();
        co.unpublish("/pods/1").await.unwrap();
        co.unstage().await.unwrap();
        assert!(co.fake.machine().sessions.is_empty());
    }
}

#[tokio::test]
async fn the_staging_directory_must_exist() {
    let co = Co::new();
    co.fake.machine().dirs.remove("/staging");
    fails(co.stage().await, Code::FailedPrecondition, "does not exist");
    co.fake
        .machine()
        .files
        .insert("/staging".to_owned(), vec![]);
    fails(
        co.stage().await,
        Code::FailedPrecondition,
        "not a directory",
    );
    assert!(co.fake.machine().log.is_empty());
}

/// design.md#node-expansion-is-always-required
#[tokio::test]
async fn staging_grows_a_file_system_smaller_than_its_disk() {
    for fs in ["ext4", "xfs", "btrfs"] {
        let co = Co::with_fs(fs);
        co.fake.put_file_system(fs.parse().unwrap(), Bytes::GIB);
        co.fake.grow_lun(GIB2);
        co.stage().await.unwrap();
        assert_eq!(
            co.fake.ran("resize2fs").len()
                + co.fake.ran("xfs_growfs").len()
                + co.fake.ran("btrfs filesystem resize").len(),
            1,
            "{fs}"
        );
    }
}

/// design.md#node-expansion-is-always-required
#[tokio::test]
async fn without_cap_sys_resource_ext4_grows_unmounted() {
    let co = Co::new();
    co.fake.put_file_system(FsType::Ext4, Bytes::GIB);
    co.fake.grow_lun(GIB2);
    co.fake.machine().capable = false;
    co.stage().await.unwrap();
    let log = co.fake.machine().log.clone();
    let tail = [
        "resize2fs /dev/sdb",
        "umount /staging",
        "e2fsck -f -p /dev/sdb",
        "resize2fs /dev/sdb",
        "mount -t ext4 -o nodev,nosuid,errors=remount-ro /dev/sdb /staging",
    ];
    assert_eq!(log[log.len() - 5..], tail);
    assert_eq!(co.fake.mounted(), ["/staging"]);
}

#[tokio::test]
async fn a_file_system_larger_than_its_disk_is_not_mounted() {
    let co = Co::new();
    co.fake.put_file_system(FsType::Ext4, GIB2);
    fails(
        co.stage().await,
        Code::FailedPrecondition,
        "its file system is 2 GiB",
    );
    assert!(co.fake.mounted().is_empty());
}

#[tokio::test]
async fn a_raw_device_is_only_attached() {
    let mut co = Co::raw();
    co.fake.write(0, b"somebody's data");
    co.stage().await.unwrap();
    co.stage().await.unwrap();
    assert!(
        co.fake.mounted().is_empty()
            && co.fake.ran("blkid").is_empty()
            && co.fake.ran("write").is_empty()
    );
    co.mode = Mode::SingleNodeReaderOnly;
    co.stage().await.unwrap();
    assert_eq!(co.fake.ran("blockdev"), ["blockdev --setro /dev/sdb"]);
    co.mode = Mode::SingleNodeWriter;
    co.stage().await.unwrap();
    assert!(!co.fake.machine().protected);
}
