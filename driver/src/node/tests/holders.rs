//! Other holders of a volume's device, and other LUNs of its target.

use super::*;

const UNIT: &str = "/sys/class/iscsi_session/session1/device/target4:0:0/4:0:0:1/block/sdb";

fn put_file(co: &Co, path: &str, text: &str) {
    let file = (path.to_owned(), text.as_bytes().to_vec());
    co.fake.machine().files.extend([file]);
}

/// LVM auto-activates what has its signature; then a pod and LVM would both write to the disk.
#[tokio::test]
async fn a_raw_device_that_the_host_has_claimed_is_not_published() {
    for holder in [
        format!("{UNIT}/holders/dm-1/dev"),
        // The signature is on a partition.
        format!("{UNIT}/sdb1/holders/dm-1/dev"),
    ] {
        let co = Co::raw();
        co.stage().await.unwrap();
        co.fake.machine().claimed = true;
        put_file(&co, &holder, "254:1");
        put_file(&co, "/sys/class/block/dm-1/dm/name", "vg0-data\n");
        let refused = co.publish("/pods/1", false).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        let begin: String = refused.message().chars().take(200).collect();
        for word in ["/dev/sdb", "dm-1 (vg0-data)", "vgchange -an", "lvm.conf"] {
            assert!(begin.contains(word), "{word}: {begin}");
        }
        assert!(co.fake.mounted().is_empty() && !co.fake.machine().files.contains_key("/pods/1"));
        fails(co.unstage().await, Code::Aborted, "dm-1 (vg0-data)");
        co.fake.machine().claimed = false;
        co.publish("/pods/1", false).await.unwrap();
        // From now on the claim may be the pods' own.
        co.fake.machine().claimed = true;
        co.publish("/pods/1", false).await.unwrap();
        co.publish("/pods/2", false).await.unwrap();
    }
    // The holder is unknown: retryable.
    let co = Co::raw();
    co.stage().await.unwrap();
    co.fake.machine().claimed = true;
    fails(
        co.publish("/pods/1", false).await,
        Code::Aborted,
        "lsblk /dev/sdb",
    );
    assert!(co.fake.mounted().is_empty());
}

/// The same for a file system volume.
#[tokio::test]
async fn a_holder_that_blocks_mkfs_or_mount_is_named() {
    let co = Co::new();
    co.fake.machine().claimed = true;
    put_file(&co, &format!("{UNIT}/holders/md127/dev"), "9:127");
    fails(
        co.stage().await,
        Code::FailedPrecondition,
        "claimed it: md127",
    );
    co.fake.put_file_system(FsType::Ext4, Bytes::GIB);
    co.fake.answer(
        "mount -t",
        32,
        "mount: /staging: /dev/sdb already mounted or mount point busy.",
    );
    fails(co.stage().await, Code::Unavailable, "in use by: md127");
}

/// A mount that was leaked into a container's mount namespace.
#[tokio::test]
async fn a_holder_that_blocks_unstage_is_named() {
    for (fs, line) in [
        ("ext4", "36 35 8:16 / /leak rw,relatime - ext4 /dev/sdb rw"),
        (
            "btrfs",
            "36 35 0:52 / /leak rw,relatime - btrfs /dev/sdb rw",
        ),
    ] {
        let co = Co::with_fs(fs);
        co.stage().await.unwrap();
        co.fake.machine().claimed = true;
        fails(co.unstage().await, Code::Aborted, "/proc/[0-9]*/mountinfo");
        put_file(
            &co,
            "/proc/1/mountinfo",
            "22 28 0:21 / /proc rw - proc proc rw\n",
        );
        put_file(
            &co,
            "/proc/4242/mountinfo",
            &format!("22 28 0:21 / / rw - overlay o rw\n{line}\n"),
        );
        put_file(&co, "/proc/4242/comm", "node_exporter\n");
        put_file(&co, "/proc/4243/mountinfo", &format!("{line}\n"));
        let refused = co.unstage().await.unwrap_err();
        let named = "process 4242 (node_exporter) has it mounted at /leak";
        assert!(refused.message().contains(named), "{refused}");
        assert!(
            !refused.message().contains("4243"),
            "one process per mount point: {refused}"
        );
        co.fake.machine().claimed = false;
        co.unstage().await.unwrap();
    }
}

/// Another LUN is mapped to the volume's target, with a lower LUN number.
#[tokio::test]
async fn another_lun_in_the_target_is_not_taken_for_the_volume() {
    let other = "00000000-f296-4d4b-b712-a85c139f9dac";
    for mut co in [Co::raw(), Co::new()] {
        co.mode = Mode::SingleNodeWriter;
        co.stage().await.unwrap();
        let unit = "/sys/class/iscsi_session/session1/device/target4:0:0/4:0:0:0";
        let page = [&[0, 0x80, 0, 36], other.as_bytes()].concat();
        co.fake
            .machine()
            .files
            .insert(format!("{unit}/vpd_pg80"), page);
        put_file(&co, &format!("{unit}/block/sdx/dev"), "65:112\n");
        co.publish("/pods/1", false).await.unwrap();
        co.publish("/pods/1", false).await.unwrap();
        if co.raw {
            assert_eq!(
                co.fake.ran("mount -o bind"),
                ["mount -o bind /dev/sdb /pods/1"]
            );
        }
        let size = co.expand("/pods/1", Bytes::GIB, Bytes(0)).await.unwrap();
        assert_eq!(size, Bytes::GIB);
        co.stats("/pods/1").await.unwrap();
        co.unpublish("/pods/1").await.unwrap();
        // A user of the other LUN keeps the session.
        co.fake.machine().claimed = true;
        fails(co.unstage().await, Code::Aborted, "still uses it");
        assert_eq!(co.fake.machine().sessions.len(), 1);
        co.fake.machine().claimed = false;
        co.fake
            .machine()
            .files
            .retain(|path, _| !path.starts_with(unit));
        co.unstage().await.unwrap();
    }
}
