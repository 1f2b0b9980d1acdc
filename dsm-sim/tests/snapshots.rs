//! Snapshots and clones contain the real data of the LUN at that time, which initiators can read.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use common::{LUN, Sim, TARGET, ok};
use dsm_sim::{DsmSim, ExportKind};
use node_sim::target::loopdev::Targets;
use node_sim::target::{LogicalUnit, Session};

const GIB: u64 = 1 << 30;
const AT: u64 = 100 << 20;
const IQN: &str = "iqn.2000-01.com.synology:t";

/// A NAS whose LUNs can be attached by initiators on this machine.
async fn exporting() -> Sim {
    Sim::with(DsmSim::builder().export(ExportKind::Loop)).await
}

fn file(sim: &Sim, uuid: &str) -> PathBuf {
    sim.nas.state_dir().join(format!("luns/{uuid}.img"))
}

fn write(path: PathBuf, text: &str) {
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(text.as_bytes(), AT).unwrap();
}

fn read(path: PathBuf) -> String {
    let mut text = [0; 3];
    File::open(path)
        .unwrap()
        .read_exact_at(&mut text, AT)
        .unwrap();
    String::from_utf8(text.to_vec()).unwrap()
}

async fn snapshot(sim: &Sim, lun: &str) -> String {
    let reply = sim
        .call(LUN, "take_snapshot", &[("src_lun_uuid", lun)])
        .await;
    ok(&reply)["snapshot_uuid"].as_str().unwrap().to_owned()
}

/// Maps a LUN to the target, and returns the exported logical unit.
async fn unit(sim: &Sim, target: &str, uuid: &str) -> LogicalUnit {
    let ids = format!("[{}]", target.trim_matches('"'));
    let map = [("uuid", uuid), ("target_ids", &*ids)];
    assert_eq!(sim.code(LUN, "map_target", &map).await, 0);
    let targets = Targets::open(&sim.nas.state_dir().join("targets")).unwrap();
    let target = targets.get(IQN).unwrap().unwrap();
    let unit = target.luns.into_values().find(|unit| unit.serial == uuid);
    unit.unwrap()
}

#[tokio::test]
async fn a_clone_of_a_snapshot_has_the_data_of_the_snapshot() {
    let sim = exporting().await;
    let uuid = sim.lun("a", "BLUN", GIB).await;
    write(file(&sim, &uuid), "old");
    let taken = snapshot(&sim, &uuid).await;
    write(file(&sim, &uuid), "new");
    let clone = |params: Vec<(&'static str, String)>, method: &'static str, key: &'static str| {
        let (sim, uuid) = (&sim, uuid.clone());
        async move {
            let mut all = vec![("src_lun_uuid", uuid)];
            all.extend(params);
            let all: Vec<(&str, &str)> = all.iter().map(|(n, v)| (*n, &**v)).collect();
            ok(&sim.call(LUN, method, &all).await)[key]
                .as_str()
                .unwrap()
                .to_owned()
        }
    };
    let of_snapshot = clone(
        vec![
            ("snapshot_uuid", taken.clone()),
            ("cloned_lun_name", "b".into()),
        ],
        "clone_snapshot",
        "cloned_lun_uuid",
    )
    .await;
    let of_lun = clone(vec![("dst_lun_name", "c".into())], "clone", "dst_lun_uuid").await;
    assert_eq!(read(file(&sim, &of_snapshot)), "old");
    assert_eq!(read(file(&sim, &of_lun)), "new");
    // Clones are exported like any LUN, and writes to one do not appear in another.
    let target = sim.target("t").await;
    let attached = unit(&sim, &target, &of_snapshot).await;
    assert_eq!(attached.file.metadata().unwrap().len(), GIB);
    write(attached.file.clone(), "own");
    for (uuid, want) in [(&uuid, "new"), (&of_snapshot, "own"), (&of_lun, "new")] {
        assert_eq!(read(file(&sim, uuid)), want);
    }
    // Their source may be deleted: behaviour 8 of dsm-web-api.md section 11.
    for (method, params) in [
        ("delete_snapshot", ("snapshot_uuid", &taken)),
        ("delete", ("uuid", &uuid)),
    ] {
        assert_eq!(sim.code(LUN, method, &[(params.0, params.1)]).await, 0);
    }
    assert_eq!(read(attached.file), "own");
    let left = std::fs::read_dir(sim.nas.state_dir().join("snapshots")).unwrap();
    assert_eq!(left.count(), 0);
}

#[tokio::test]
async fn a_restore_restores_the_data_and_ends_the_sessions() {
    // Behaviour 20 of dsm-web-api.md section 11.
    let sim = exporting().await;
    let uuid = sim.lun("a", "BLUN", GIB).await;
    let target = sim.target("t").await;
    let before = unit(&sim, &target, &uuid).await;
    write(before.file.clone(), "old");
    let taken = snapshot(&sim, &uuid).await;
    write(before.file, "new");
    let grow = [("uuid", &*uuid), ("new_size", "5368709120")];
    assert_eq!(sim.code(LUN, "set", &grow).await, 0);
    let targets = Targets::open(&sim.nas.state_dir().join("targets")).unwrap();
    let session = Session {
        initiator: "iqn.1993-08.org.debian:01:x".to_owned(),
        address: [192, 0, 2, 7].into(),
    };
    targets.login(IQN, "a", &session, None).unwrap();
    let restore = [("src_lun_uuid", &*uuid), ("snapshot_uuid", &taken)];
    assert_eq!(sim.code(LUN, "restore_snapshot", &restore).await, 0);
    assert_eq!(targets.sessions(IQN).unwrap(), []);
    targets.login(IQN, "a", &session, None).unwrap();
    let after = unit(&sim, &target, &uuid).await;
    assert_eq!(read(after.file.clone()), "old");
    assert_eq!(after.file.metadata().unwrap().len(), GIB);
    let get = sim.call(LUN, "get", &[("uuid", &uuid)]).await;
    assert_eq!(ok(&get)["lun"]["size"], GIB);
    assert!(ok(&get)["lun"]["restored_time"].as_u64().unwrap() > 0);
    let list = sim.call(TARGET, "list", &[("lun_uuid", &uuid)]).await;
    assert_eq!(ok(&list)["targets"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn snapshots_survive_a_restart_and_unfinished_files_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let options = || DsmSim::builder().state_dir(dir.path());
    let sim = Sim::with(options()).await;
    let uuid = sim.lun("a", "BLUN", GIB).await;
    write(file(&sim, &uuid), "old");
    let taken = snapshot(&sim, &uuid).await;
    let before = sim.state().await;
    drop(sim);
    for name in ["snapshots/x.img", "snapshots/y.new", "luns/z.new"] {
        std::fs::write(dir.path().join(name), "half").unwrap();
    }
    std::fs::write(dir.path().join(format!("luns/{uuid}.new")), "half").unwrap();
    let sim = Sim::with(options()).await;
    assert_eq!(sim.state().await, before);
    for (folder, name) in [("snapshots", &taken), ("luns", &uuid)] {
        let files: Vec<_> = std::fs::read_dir(dir.path().join(folder))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(files, [format!("{name}.img")]);
    }
    let params = [
        ("src_lun_uuid", &*uuid),
        ("snapshot_uuid", &taken),
        ("cloned_lun_name", "b"),
    ];
    let clone = ok(&sim.call(LUN, "clone_snapshot", &params).await);
    let clone = clone["cloned_lun_uuid"].as_str().unwrap();
    assert_eq!(read(file(&sim, clone)), "old");
}

#[tokio::test]
async fn a_failed_clone_leaves_nothing_behind() {
    let sim = Sim::new().await;
    let uuid = sim.lun("a", "BLUN", GIB).await;
    let before = sim.state().await;
    // Simulates an error of the simulator's disk.
    std::fs::remove_file(file(&sim, &uuid)).unwrap();
    let params = [("src_lun_uuid", &*uuid), ("dst_lun_name", "b")];
    assert_eq!(sim.code(LUN, "clone", &params).await, 117);
    let params = [("src_lun_uuid", &*uuid)];
    assert_eq!(sim.code(LUN, "take_snapshot", &params).await, 117);
    assert_eq!(sim.state().await, before);
    for folder in ["luns", "snapshots"] {
        let left = std::fs::read_dir(sim.nas.state_dir().join(folder)).unwrap();
        assert_eq!(left.count(), 0, "{folder}");
    }
}
