//! Several portals: one map over all paths.

mod join;
mod release;

use super::*;
use crate::host::fake::Daemon;
use crate::node::Backoff;

const GIB2: Bytes = Bytes::gib(2);
const ANY: Bytes = Bytes(0);
const PORTALS: [&str; 2] = ["10.0.0.5:3260", "[fd00::5]:3261"];

const REPLACEMENT: Duration = Duration::from_secs(35);

impl Co {
    /// Two portals, on a node that runs multipathd.
    fn multipath() -> Self {
        // Not the default timeout.
        let co = Self::with_replacement_timeout(REPLACEMENT);
        co.fake.start_multipathd();
        co
    }

    async fn stage_both(&self) -> Result<(), Status> {
        self.stage_through(&PORTALS).await
    }

    fn bring_down(&self, portal: &str) {
        let mut machine = self.fake.machine();
        machine.dead.insert(portal.to_owned());
        let lost = |session: &&mut crate::host::fake::SessionState| session.portal == portal;
        machine
            .sessions
            .values_mut()
            .filter(lost)
            .for_each(|session| session.alive = false);
    }

    fn bring_up(&self, portal: &str) {
        let mut machine = self.fake.machine();
        machine.dead.remove(portal);
        let found = |session: &&mut crate::host::fake::SessionState| session.portal == portal;
        machine
            .sessions
            .values_mut()
            .filter(found)
            .for_each(|session| session.alive = true);
    }

    pub(super) fn logins(&self) -> usize {
        let lines = self.fake.ran("iscsiadm");
        lines
            .iter()
            .filter(|line| line.ends_with("--login"))
            .count()
    }

    fn assert_nothing_left(&self) {
        let machine = self.fake.machine();
        assert!(machine.mounts.is_empty() && machine.map.is_none());
        assert!(machine.sessions.is_empty() && machine.records.is_empty());
    }
}

/// design.md#portals
#[tokio::test]
async fn every_portal_is_a_path_to_one_map() {
    for fs in ["ext4", "xfs", "btrfs"] {
        let co = Co {
            fs,
            ..Co::multipath()
        };
        for _ in 0..2 {
            co.stage_both().await.unwrap();
            assert_eq!(co.fake.machine().sessions.len(), 2);
            assert_eq!(co.logins(), 2);
            assert_eq!(co.fake.mounted(), ["/staging"]);
        }
        let mkfs = co.fake.ran("mkfs");
        assert!(
            mkfs.len() == 1 && mkfs[0].ends_with("/dev/dm-0"),
            "{mkfs:?}"
        );
        assert_eq!(
            co.fake.ran("mount"),
            [format!(
                "mount -t {fs} -o {} /dev/dm-0 /staging",
                default_options(fs)
            )]
        );
        co.publish("/pods/1", false).await.unwrap();
        fails(co.unstage().await, Code::FailedPrecondition, "/pods/1");
        co.unpublish("/pods/1").await.unwrap();
        for _ in 0..2 {
            co.unstage().await.unwrap();
            co.assert_nothing_left();
        }
    }
}

#[tokio::test]
async fn without_multipathd_one_portal_is_used() {
    let co = Co::new();
    co.stage_both().await.unwrap();
    assert_eq!(co.fake.machine().sessions.len(), 1);
    assert_eq!(
        co.fake.ran("mount"),
        ["mount -t ext4 -o nodev,nosuid,errors=remount-ro /dev/sdb /staging"]
    );
    // With one portal, multipathd is not asked.
    let co = Co::multipath();
    co.stage().await.unwrap();
    assert!(co.fake.ran("multipath").is_empty());
}

/// design.md#unknown-is-not-absent
#[tokio::test]
async fn a_daemon_that_hangs_is_not_absent() {
    let co = Co::multipath();
    co.fake
        .answer("multipathd show daemon", 1, "timeout receiving packet");
    fails(
        co.stage_both().await,
        Code::Unavailable,
        "timeout receiving packet",
    );
    assert_eq!(co.logins(), 0);
}

#[tokio::test]
async fn one_portal_if_multipathd_makes_maps_over_all_disks() {
    for raw in [false, true] {
        let co = Co { raw, ..Co::new() };
        co.fake.machine().multipathd = Some(Daemon::Greedy);
        co.stage().await.unwrap();
        co.publish("/pods/1", false).await.unwrap();
        if raw {
            assert_eq!(co.fake.ran("mount"), ["mount -o bind /dev/dm-0 /pods/1"]);
        } else {
            assert_eq!(
                co.fake.ran("mount")[0],
                "mount -t ext4 -o nodev,nosuid,errors=remount-ro /dev/dm-0 /staging"
            );
        }
        co.fake.grow_lun(GIB2);
        assert_eq!(co.expand("/pods/1", GIB2, ANY).await.unwrap(), GIB2);
        assert_eq!(co.fake.machine().map.as_ref().unwrap().size, GIB2);
        co.unpublish("/pods/1").await.unwrap();
        co.unstage().await.unwrap();
        co.assert_nothing_left();
    }
}

#[tokio::test]
async fn a_raw_map_is_published_protected_and_measured() {
    let mut co = Co {
        raw: true,
        ..Co::multipath()
    };
    co.mode = Mode::SingleNodeReaderOnly;
    co.stage_both().await.unwrap();
    assert_eq!(co.fake.ran("blockdev"), ["blockdev --setro /dev/dm-0"]);
    co.publish("/pods/1", true).await.unwrap();
    assert_eq!(co.fake.ran("mount"), ["mount -o bind /dev/dm-0 /pods/1"]);
    assert_eq!(
        co.stats("/pods/1").await.unwrap()[0].total,
        Bytes::GIB.as_i64()
    );
    // Every live path is verified, and at least one must be live.
    co.bring_down(PORTALS[0]);
    co.publish("/pods/1", true).await.unwrap();
    co.bring_down(PORTALS[1]);
    fails(
        co.publish("/pods/1", true).await,
        Code::Aborted,
        "lost its target",
    );
}

/// design.md#identity-before-action
#[tokio::test]
async fn a_device_without_a_path_or_a_size_is_not_published() {
    let co = Co {
        raw: true,
        ..Co::multipath()
    };
    co.stage_both().await.unwrap();
    co.fake.machine().map.as_mut().unwrap().paths.clear();
    fails(
        co.publish("/pods/1", false).await,
        Code::Aborted,
        "no path of it answers",
    );
    let co = Co::raw();
    co.stage().await.unwrap();
    co.fake.grow_lun(Bytes(0));
    fails(
        co.publish("/pods/1", false).await,
        Code::Aborted,
        "not mapped",
    );
    assert!(co.fake.mounted().is_empty());
}

#[tokio::test]
async fn an_unused_offline_disk_is_replaced() {
    for (since_6_6, seen) in [(false, "offline"), (true, "is not running")] {
        let co = Co::raw();
        co.fake.machine().since_6_6 = since_6_6;
        co.stage().await.unwrap();
        co.fake.machine().offline = true;
        fails(co.publish("/pods/1", false).await, Code::Aborted, seen);
        co.stage().await.unwrap();
        assert_eq!((co.logins(), co.fake.machine().sessions.len()), (2, 1));
    }
}

#[tokio::test]
async fn an_unreachable_portal_does_not_block_and_is_used_later() {
    for portal in PORTALS {
        let co = Co::multipath();
        co.bring_down(portal);
        co.stage_both().await.unwrap();
        assert_eq!(co.fake.machine().map.as_ref().unwrap().paths.len(), 1);
        co.bring_up(portal);
        co.stage_both().await.unwrap();
        assert_eq!(co.fake.machine().map.as_ref().unwrap().paths.len(), 2);
        assert_eq!(co.fake.ran("mkfs").len(), 1);
        co.unstage().await.unwrap();
        co.assert_nothing_left();
    }
    let co = Co::multipath();
    for portal in PORTALS {
        co.bring_down(portal);
    }
    fails(co.stage_both().await, Code::Unavailable, "does not answer");
    co.assert_nothing_left();
}

#[tokio::test]
async fn a_login_that_hangs_at_one_portal_does_not_block() {
    let co = Co::multipath();
    let iqn = co.fake.iqn();
    co.fake.hang(&format!(
        "iscsiadm -m node -T {iqn} -p {} --login",
        PORTALS[0]
    ));
    co.stage_both().await.unwrap();
    assert_eq!(co.fake.mounted(), ["/staging"]);
}

#[tokio::test]
async fn a_lost_path_in_use_is_left_to_iscsid_and_otherwise_replaced() {
    let co = Co::multipath();
    co.stage_both().await.unwrap();
    co.bring_down(PORTALS[0]);
    co.stage_both().await.unwrap();
    assert!(co.fake.ran("iscsiadm -m session -r 1 --logout").is_empty());
    assert_eq!(co.logins(), 2);
    // The map is unused: the stale session is logged out, and its portal is tried again.
    co.fake.machine().mounts.clear();
    co.fake.machine().dead.clear();
    co.stage_both().await.unwrap();
    assert_eq!(co.fake.ran("iscsiadm -m session -r 1 --logout").len(), 1);
    assert_eq!(co.fake.machine().map.as_ref().unwrap().paths.len(), 2);
}

#[tokio::test]
async fn a_daemon_that_excludes_the_disks_leaves_one_path() {
    for raw in [false, true] {
        let co = Co {
            raw,
            ..Co::multipath()
        };
        co.fake.machine().multipathd = Some(Daemon::Excluding);
        for _ in 0..2 {
            co.stage_both().await.unwrap();
            assert_eq!(co.fake.machine().sessions.len(), 1);
            // No further logins: the first disk shows that it is excluded.
            assert_eq!(co.logins(), 2);
        }
        co.publish_through(&PORTALS, "/pods/1").await.unwrap();
        co.unpublish("/pods/1").await.unwrap();
        co.unstage().await.unwrap();
        co.assert_nothing_left();
    }
}

/// The messages of 0.9, 0.11 and Red Hat's without a configuration; and an unknown one.
#[tokio::test]
async fn without_multipathd_there_is_one_path_for_any_message_of_its_client() {
    for said in [
        "",
        "ERROR: failed to connect to multipathd\n",
        "/etc/multipath.conf does not exist, blacklisting all devices.\nYou can run \"/sbin/mpathconf --enable\" to create\n/etc/multipath.conf. See man mpathconf(8) for more details\n",
        "timeout receiving packet\n",
    ] {
        let co = Co::new();
        said.clone_into(&mut co.fake.machine().client_says);
        co.stage_both().await.unwrap();
        assert_eq!(co.fake.machine().sessions.len(), 1, "{said}");
        let options = default_options("ext4");
        let mount = format!("mount -t ext4 -o {options} /dev/sdb /staging");
        assert_eq!(co.fake.ran("mount"), [mount]);

        // The process exists: then its silence is an error.
        let co = Co::new();
        said.clone_into(&mut co.fake.machine().client_says);
        co.fake.machine().processes = Some(vec!["multipathd"]);
        let says = "systemctl restart multipathd";
        fails(co.stage_both().await, Code::Unavailable, says);
        assert_eq!(co.logins(), 0);
        co.fake.machine().processes = None;
        fails(co.stage_both().await, Code::Unavailable, "hostPID");
    }
}

#[tokio::test]
async fn a_disk_in_use_gets_no_map_when_multipathd_is_started() {
    for raw in [false, true] {
        let co = Co { raw, ..Co::new() };
        co.stage_both().await.unwrap();
        co.publish_through(&PORTALS, "/pods/1").await.unwrap();
        co.fake.start_multipathd();
        co.stage_both().await.unwrap();
        let machine = co.fake.machine();
        assert!(machine.sessions.len() == 1 && machine.map.is_none());
    }
}

/// design.md#identity-before-action
#[tokio::test]
async fn a_map_over_a_foreign_path_is_refused_with_its_serial() {
    let co = Co::multipath();
    co.stage_both().await.unwrap();
    let other = "00000000-f296-4d4b-b712-a85c139f9dac";
    {
        let mut machine = co.fake.machine();
        machine.map.as_mut().unwrap().foreign = Some("sdz".to_owned());
        let page = [&[0, 0x80, 0, 36][..], other.as_bytes()].concat();
        machine
            .files
            .insert("/sys/class/block/sdz/device/vpd_pg80".to_owned(), page);
    }
    for seen in [other, UUID, "sdb", "sdz"] {
        fails(co.unstage().await, Code::FailedPrecondition, seen);
    }
    fails(co.stage_both().await, Code::Unavailable, other);
    assert_eq!(co.fake.mounted(), ["/staging"]);
}

/// design.md#identity-before-action
#[tokio::test]
async fn every_path_is_verified() {
    let co = Co::multipath();
    co.fake.log_in_at(PORTALS[1]);
    co.fake
        .machine()
        .sessions
        .get_mut(&1)
        .unwrap()
        .seen
        .as_mut()
        .unwrap()
        .serial = "stale".to_owned();
    // The rescan corrects the serial.
    co.stage_both().await.unwrap();
    co.unstage().await.unwrap();
    let other = "00000000-f296-4d4b-b712-a85c139f9dac";
    co.stage_both().await.unwrap();
    co.fake
        .machine()
        .targets
        .values_mut()
        .for_each(|target| target.serial = other.to_owned());
    fails(
        co.expand("/staging", Bytes::GIB, ANY).await,
        Code::FailedPrecondition,
        other,
    );
}

/// design.md#expansion-is-read-back
#[tokio::test]
async fn all_paths_and_the_map_grow_or_nothing_is_reported() {
    for fs in ["ext4", "xfs", "btrfs"] {
        let co = Co {
            fs,
            ..Co::multipath()
        };
        co.stage_both().await.unwrap();
        co.fake.grow_lun(GIB2);
        // multipathd reports success and does nothing.
        co.fake.answer("multipathd resize", 0, "");
        fails(
            co.expand("/staging", GIB2, ANY).await,
            Code::Unavailable,
            "its paths are 2 GiB",
        );
        assert_eq!(co.expand("/staging", GIB2, ANY).await.unwrap(), GIB2);
        assert_eq!(co.fake.machine().map.as_ref().unwrap().size, GIB2);
        assert_eq!(co.expand("/staging", GIB2, ANY).await.unwrap(), GIB2);
        assert_eq!(co.fake.ran("multipathd resize map dm-0").len(), 2);
    }
}

/// design.md#expansion-is-read-back
#[tokio::test]
async fn a_map_grows_without_a_path_that_is_lost() {
    for lost in PORTALS {
        for fs in ["ext4", "xfs", "btrfs"] {
            let co = Co {
                fs,
                ..Co::multipath()
            };
            co.stage_both().await.unwrap();
            co.bring_down(lost);
            // The size does not change, so no session is logged out.
            let same = co.expand("/staging", Bytes::GIB, ANY).await;
            assert_eq!(same.unwrap(), Bytes::GIB);
            assert_eq!(co.fake.machine().sessions.len(), 2);
            // The LUN has not been grown, so the lost path stays.
            let early = co.expand("/staging", GIB2, ANY).await;
            fails(early, Code::Unavailable, "has the LUN been grown");
            assert_eq!(co.fake.machine().sessions.len(), 2);
            co.fake.grow_lun(GIB2);
            assert_eq!(co.expand("/staging", GIB2, ANY).await.unwrap(), GIB2);
            let map = co.fake.machine().map.clone().unwrap();
            assert_eq!((map.size, map.paths.len()), (GIB2, 1), "{fs}");
            co.bring_up(lost);
            assert_eq!(co.node.add_missing_paths(&mut Backoff::default()).await, 0);
            assert_eq!(co.fake.machine().map.as_ref().unwrap().paths.len(), 2);
        }
    }
    let co = Co::multipath();
    co.stage_both().await.unwrap();
    co.fake.grow_lun(GIB2);
    for portal in PORTALS {
        co.bring_down(portal);
    }
    fails(
        co.expand("/staging", GIB2, ANY).await,
        Code::Aborted,
        "end it on the node: iscsiadm -m session -r 1 --logout",
    );
    assert_eq!(co.fake.machine().sessions.len(), 2);
}

/// design.md#expansion-is-read-back
#[tokio::test]
async fn a_map_does_not_grow_while_multipathd_keeps_a_lost_path() {
    let co = Co::multipath();
    co.stage_both().await.unwrap();
    co.fake.grow_lun(GIB2);
    co.bring_down(PORTALS[0]);
    co.fake.machine().keeps_paths = true;
    let kept = co.expand("/staging", GIB2, ANY).await;
    fails(kept, Code::Unavailable, "multipathd del path");
    assert_eq!(co.fake.machine().map.as_ref().unwrap().size, Bytes::GIB);
}

#[tokio::test]
async fn logins_are_concurrent_unless_the_first_portal_rejects_the_credentials() {
    let co = Co::multipath();
    co.fake.machine().concurrent_logins = 2;
    co.stage_both().await.unwrap();
    assert_eq!(co.fake.machine().sessions.len(), 2);
    // The other portal would reject the credentials, too.
    let co = Co::multipath();
    co.fake.machine().chap = Some(("alice".to_owned(), "another-secret".to_owned()));
    fails(co.stage_both().await, Code::Unauthenticated, "wants CHAP");
    assert_eq!(co.logins(), 1);
}

/// design.md#node-expansion-is-always-required
#[tokio::test]
async fn staging_again_resizes_the_map() {
    let co = Co::multipath();
    co.stage_both().await.unwrap();
    co.fake.grow_lun(GIB2);
    co.stage_both().await.unwrap();
    assert_eq!(co.fake.machine().map.as_ref().unwrap().size, GIB2);
    assert_eq!(co.fake.ran("resize2fs").len(), 1);
}
