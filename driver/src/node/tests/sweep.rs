//! The sweep at start.

use super::*;
use crate::host::fake::SessionState;
use crate::host::mount::{Mount, parse};

/// The name of a record of a publication to this node without session and mount.
fn unused(number: usize) -> String {
    let node = NodeId::derive(NODE, "an earlier initiator name");
    format!("iqn.2000-01.com.synology:{number:08x}f2964d4bb712a85c139f9dac.{node}")
}

fn mounted(line: &str) -> Mount {
    parse(line.as_bytes()).unwrap().pop().unwrap()
}

/// design.md#unstage-needs-no-nas
#[tokio::test]
async fn the_sweep_deletes_only_unused_records() {
    let other_lun = "iqn.2000-01.com.synology:00000000f2964d4bb712a85c139f9dac";
    let own = format!(
        "{other_lun}.{}",
        NodeId::derive(NODE, "an earlier initiator name")
    );
    let of_another_node = format!("{other_lun}.{}", NodeId::derive("worker-2", "x"));
    let foreign = "iqn.1993-08.org.debian:other".to_owned();
    let co = Co::new();
    co.stage().await.unwrap();
    let staged = co.fake.iqn().to_string();
    co.fake
        .machine()
        .records
        .extend([own.clone(), of_another_node.clone(), foreign.clone()]);
    co.node.sweep().await;
    assert_eq!(
        co.fake.machine().records,
        [staged, of_another_node, foreign].into()
    );

    // A mount that has lost its disk might belong to any volume.
    co.fake.machine().records.insert(own.clone());
    co.fake.machine().sessions.clear();
    co.node.sweep().await;
    assert!(co.fake.machine().records.contains(&own));
}

/// The kubelet bind-mounts the file of a Secret into a pod, and deletes the file when the Secret changes.
#[tokio::test]
async fn a_changed_secret_mounted_by_a_pod_is_not_a_lost_disk() {
    let co = Co::new();
    co.fake.machine().records.insert(unused(0));
    let secret = mounted(
        "36 35 0:52 /..2026_11_30/sdb//deleted /pods/1/key ro,relatime - tmpfs tmpfs rw,size=4k\n",
    );
    co.fake.machine().mounts.push(secret.clone());
    co.node.sweep().await;
    assert!(co.fake.machine().records.is_empty());
    // And it is not unmounted.
    let mut there = secret;
    "/staging".clone_into(&mut there.point);
    co.fake.machine().mounts.push(there);
    fails(co.stage().await, Code::FailedPrecondition, "tmpfs");
    assert_eq!(co.fake.mounted(), ["/pods/1/key", "/staging"]);
}

#[tokio::test]
async fn a_device_whose_node_was_deleted_is_a_lost_disk() {
    let co = Co::raw();
    co.stage().await.unwrap();
    co.publish("/pods/1", false).await.unwrap();
    co.fake.machine().records.insert(unused(0));
    co.fake.machine().mounts[0].root += "//deleted";
    co.node.sweep().await;
    assert!(co.fake.machine().records.contains(&unused(0)));
}

/// Cost: each record, mount and disk is read once, not each disk for each mount for each record.
#[tokio::test]
async fn many_records_mounts_and_disks_are_read_once() {
    const RECORDS: usize = 20;
    const MOUNTS: usize = 200;
    const DISKS: usize = 200;
    let co = Co::new();
    {
        let mut machine = co.fake.machine();
        for number in 0..RECORDS {
            machine.records.insert(unused(number));
        }
        for id in 1..=u32::try_from(DISKS).unwrap() {
            let state = SessionState {
                target: "iqn.1993-08.org.debian:other".to_owned(),
                alive: true,
                seen: Some(crate::host::fake::lun()),
                portal: "10.0.0.9:3260".to_owned(),
                offline: false,
            };
            machine.sessions.insert(id, state);
        }
        for number in 0..MOUNTS / 2 {
            for (device, fs) in [
                ("8:16", "ext4 /dev/sdb"),
                ("0:52", "btrfs /dev/mapper/mpatha"),
            ] {
                machine.mounts.push(mounted(&format!(
                    "36 35 {device} / /other/{number} rw,relatime - {fs} rw\n"
                )));
            }
        }
        machine.make_map();
        machine.queries = 0;
        machine.log.clear();
    }
    co.node.sweep().await;
    let machine = co.fake.machine();
    assert!(machine.records.is_empty());
    assert_eq!(machine.log.len(), RECORDS, "{:?}", machine.log);
    // The name of each session and the number of each disk; for a record the names of maps' sessions, and two folders.
    let bound = DISKS + DISKS + MOUNTS + 3 * RECORDS + 20;
    assert!(machine.queries <= bound, "{} looks", machine.queries);
}

/// Each further record would take as long, and the CO waits meanwhile.
#[tokio::test]
async fn a_database_that_does_not_answer_is_tried_once() {
    let co = Co::new();
    for number in 0..3 {
        co.fake.machine().records.insert(unused(number));
    }
    co.fake.hang("iscsiadm -m node");
    co.node.sweep().await;
    assert_eq!(co.fake.ran("iscsiadm").len(), 1);
    assert_eq!(co.fake.machine().records.len(), 3);
}

/// RPCs are served during the sweep, so a record is checked again before it is deleted.
#[tokio::test]
async fn a_record_that_has_a_session_again_stays() {
    let co = Co::new();
    let (iqn, uuid) = (co.fake.iqn(), UUID.parse().unwrap());
    co.fake.machine().records.insert(iqn.to_string());
    let unused = co.node.machine.unused_records().await.unwrap();
    assert_eq!(unused, [(uuid, iqn.clone())]);
    co.stage().await.unwrap();
    let [(uuid, record)] = unused.as_slice() else {
        unreachable!("it was compared")
    };
    co.node.sweep_one(uuid, record).await.unwrap();
    assert!(co.fake.machine().records.contains(record.as_str()));
    co.unstage().await.unwrap();
    co.fake.machine().records.insert(iqn.to_string());
    co.node.sweep_one(uuid, record).await.unwrap();
    assert!(
        co.fake.machine().records.is_empty(),
        "and otherwise it is deleted"
    );
}

#[tokio::test]
async fn the_sweep_skips_a_volume_that_an_rpc_has_locked() {
    let co = Co::new();
    let record = unused(0);
    co.fake.machine().records.insert(record.clone());
    let iqn: Iqn = record.parse().unwrap();
    let (uuid, _) = iqn.publication().unwrap();
    let temp_file = format!("/etc/iscsi/{}{iqn}", crate::host::record::TEMP_PREFIX);
    co.fake.machine().files.insert(temp_file.clone(), vec![]);
    let occupied = co.occupy_lun(uuid.as_str()).await;
    co.node.sweep().await;
    assert!(co.fake.machine().records.contains(&record));
    assert!(co.fake.machine().files.contains_key(&temp_file));
    occupied.end().await;
    co.node.sweep().await;
    assert!(!co.fake.machine().records.contains(&record));
    assert!(!co.fake.machine().files.contains_key(&temp_file));
}
