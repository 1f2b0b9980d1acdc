//! The cost of an RPC does not depend on how many other volumes the node has (design.md#cost-of-a-call-on-a-node).

use std::collections::BTreeMap;

use super::*;
use crate::host::fake::{SessionState, lun};
use crate::host::mount::parse;

const MANY: u32 = 120;

/// Other volumes of this node, staged and published: sessions, disks, records, mounts.
fn put_others(co: &Co, fs: &str, count: u32) {
    let mut machine = co.fake.machine();
    for number in 0..count {
        let node = NodeId::derive(NODE, "an initiator");
        let target =
            format!("iqn.2000-01.com.synology:{number:08x}f2964d4bb712a85c139f9dac.{node}");
        let state = SessionState {
            target: target.clone(),
            alive: true,
            seen: Some(lun()),
            portal: "10.0.0.9:3260".to_owned(),
            offline: false,
        };
        machine.records.insert(target);
        machine.sessions.insert(200 + number, state);
        let (minor, device) = (16 * (200 + number), format!("/dev/other{number}"));
        let number = if fs == "btrfs" {
            "0:52".to_owned()
        } else {
            format!("8:{minor}")
        };
        for place in ["staged", "pods"] {
            let line =
                format!("36 35 {number} / /{place}{device} rw,relatime - {fs} {device} rw\n");
            machine.mounts.extend(parse(line.as_bytes()).unwrap());
        }
        let secret = format!("36 35 0:53 / /secret{device} rw - tmpfs tmpfs rw\n");
        machine.mounts.extend(parse(secret.as_bytes()).unwrap());
        machine.files.insert(
            format!("/sys{}", device.replace("/dev", "/class/block")) + "/dev",
            b"8:1\n".to_vec(),
        );
    }
}

/// Per RPC: how many files, directories and paths it reads, and how many programs it starts.
async fn costs(fs: &'static str, others: u32) -> BTreeMap<&'static str, (usize, usize)> {
    let co = if fs == "raw" {
        Co::raw()
    } else {
        Co::with_fs(fs)
    };
    put_others(&co, fs, others);
    // Fill the caches of names.
    co.unstage().await.unwrap();
    let mut costs = BTreeMap::new();
    let mut count = |name: &'static str| {
        let mut machine = co.fake.machine();
        let looks = std::mem::take(&mut machine.queries);
        let programs = std::mem::take(&mut machine.log).len();
        costs.insert(name, (looks, programs));
    };
    count("before");
    co.stage().await.unwrap();
    count("NodeStageVolume");
    co.stage().await.unwrap();
    count("NodeStageVolume, repeated");
    co.publish("/pods/1", false).await.unwrap();
    count("NodePublishVolume");
    co.publish("/pods/1", false).await.unwrap();
    count("NodePublishVolume, repeated");
    co.stats("/pods/1").await.unwrap();
    count("NodeGetVolumeStats");
    co.fake.grow_lun(Bytes::gib(2));
    co.expand("/pods/1", Bytes::gib(2), Bytes::gib(2))
        .await
        .unwrap();
    count("NodeExpandVolume");
    co.unpublish("/pods/1").await.unwrap();
    count("NodeUnpublishVolume");
    co.unstage().await.unwrap();
    count("NodeUnstageVolume");
    costs.remove("before");
    costs
}

#[tokio::test]
async fn the_cost_of_a_call_does_not_depend_on_other_volumes() {
    for fs in ["ext4", "xfs", "btrfs", "raw"] {
        let one = costs(fs, 1).await;
        assert_eq!(costs(fs, MANY).await, one, "{fs}");
    }
}

/// A new file system, whose superblock was read back after mkfs, is not measured again.
#[tokio::test]
async fn a_new_file_system_costs_few_programs() {
    for fs in ["ext4", "xfs", "btrfs"] {
        let co = Co::with_fs(fs);
        co.stage().await.unwrap();
        let log = co.fake.commands();
        let effects = ["write ", "echo ", "replace "];
        let is_program = |line: &&String| !effects.iter().any(|effect| line.starts_with(effect));
        // iscsiadm: new, update, login; blkid, mkfs, mount.
        assert_eq!(log.iter().filter(is_program).count(), 6, "{fs}: {log:?}");
    }
}
