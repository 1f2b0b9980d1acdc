//! Changes of targets behind the client's back, by SAN Manager, and sessions that outlive their deleted target.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use common::{LUN, Sim, TARGET, ok};
use dsm_sim::{DsmSim, ExportKind, Settings};
use node_sim::target::Session;
use node_sim::target::loopdev::{Refusal, Targets};
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
use serde_json::{Value, json};

const GIB: u64 = 1 << 30;
const T: &str = "iqn.2000-01.com.synology:t";

/// A simulator that keeps the sessions of deleted targets, with a target that maps a LUN; and the LUN's uuid.
async fn keeping_sessions(export: ExportKind) -> (Sim, String) {
    let settings = Settings {
        deleted_targets_keep_sessions: true,
        ..Settings::default()
    };
    let sim = Sim::with(DsmSim::builder().export(export).settings(settings)).await;
    let id = sim.target("t").await;
    let uuid = sim.lun("a", "BLUN", GIB).await;
    let map = [
        ("target_id", &*id),
        ("lun_uuids", &*json!([uuid]).to_string()),
    ];
    ok(&sim.call(TARGET, "map_lun", &map).await);
    (sim, uuid)
}

async fn delete(sim: &Sim) {
    let id = [("target_id", "\"1\"")];
    assert_eq!(sim.code(TARGET, "delete", &id).await, 0);
}

async fn lingering(sim: &Sim) -> Value {
    sim.state().await["lingering_targets"].take()
}

#[tokio::test]
async fn san_manager_changes_targets_outside_the_journal() {
    let sim = Sim::new().await;
    let uuid = sim.lun("a", "BLUN", GIB).await;
    let before = sim.get("/counters").await;
    let row = async |name: &str| {
        let state = sim.state().await;
        let targets = state["targets"].as_array().unwrap();
        targets.iter().find(|row| row["name"] == name).cloned()
    };
    let made = sim.post("/san/targets/create", json!({"name": "t"})).await;
    assert_eq!(made, json!({"target_id": 1, "iqn": T}));
    let other = json!({"name": "u", "iqn": "iqn.foreign"});
    let made = sim.post("/san/targets/create", other).await;
    assert_eq!(made, json!({"target_id": 2, "iqn": "iqn.foreign"}));
    let map = json!({"iqn": T, "lun_uuid": uuid});
    sim.post("/san/targets/map", map.clone()).await;
    let mapped = json!([{"lun_uuid": uuid, "mapping_index": 1}]);
    assert_eq!(row("t").await.unwrap()["mapped_luns"], mapped);
    sim.post("/san/targets/unmap", map).await;
    assert_eq!(row("t").await.unwrap()["mapped_luns"], json!([]));
    for (act, enabled) in [("disable", false), ("enable", true)] {
        let path = format!("/san/targets/{act}");
        sim.post(&path, json!({"target_id": 1})).await;
        assert_eq!(row("t").await.unwrap()["is_enabled"], enabled);
    }
    sim.post("/san/targets/delete", json!({"iqn": T})).await;
    assert_eq!(row("t").await, None);
    let made = sim.post("/san/targets/create", json!({"name": "v"})).await;
    assert_eq!(made["target_id"], 1, "the lowest free number");
    assert_eq!(sim.get("/counters").await, before);
}

#[tokio::test]
async fn impossible_actions_explain_why() {
    let sim = Sim::new().await;
    sim.target("t").await;
    for (path, body, want, hint) in [
        ("/san/targets/paint", json!({"iqn": T}), 404, "unmap"),
        ("/san/targets/delete", json!({"iqn": "x"}), 404, "/state"),
        ("/san/targets/delete", json!({}), 422, "target_id"),
        ("/san/targets/map", json!({"iqn": T}), 422, "lun_uuid"),
        (
            "/san/targets/map",
            json!({"iqn": T, "lun_uuid": "x"}),
            409,
            "18990505",
        ),
        (
            "/san/targets/create",
            json!({"name": "t"}),
            409,
            "there is a target t",
        ),
        ("/san/targets/create", json!({}), 422, "name"),
        ("/lingering/forget", json!({"iqn": T}), 404, "/state"),
    ] {
        let url = format!("{}{path}", sim.nas.control());
        let request = sim
            .http
            .post(url)
            .header("content-type", "application/json");
        let reply = request.body(body.to_string()).send().await.unwrap();
        let (status, text) = (reply.status().as_u16(), reply.text().await.unwrap());
        assert!(
            status == want && text.contains(hint),
            "{path} {body}: {status} {text}"
        );
    }
}

/// Without an export the test simulates the initiators, and only it knows the sessions.
#[tokio::test]
async fn without_an_export_a_deleted_target_lingers_until_it_is_forgotten() {
    let (sim, uuid) = keeping_sessions(ExportKind::None).await;
    delete(&sim).await;
    let rows = lingering(&sim).await;
    assert_eq!(rows.as_array().unwrap().len(), 1);
    assert_eq!(rows[0]["iqn"], T);
    assert_eq!(
        rows[0]["mapped_luns"],
        json!([{"lun_uuid": uuid, "mapping_index": 1}])
    );
    let listed = ok(&sim.call(TARGET, "list", &[]).await);
    assert_eq!(listed["targets"], json!([]));
    sim.post("/lingering/forget", json!({"iqn": T})).await;
    assert_eq!(lingering(&sim).await, json!([]));

    // A deletion by SAN Manager has the same effect, and a restart ends the session.
    sim.target("t").await;
    sim.post("/san/targets/delete", json!({"iqn": T})).await;
    assert_eq!(lingering(&sim).await[0]["iqn"], T);
    sim.post("/boot", json!({"loading": "busy", "for_ms": 0}))
        .await;
    assert_eq!(lingering(&sim).await, json!([]));
}

#[tokio::test]
async fn a_reset_ends_lingering_targets() {
    let (sim, _) = keeping_sessions(ExportKind::None).await;
    delete(&sim).await;
    sim.post("/reset", json!({})).await;
    assert_eq!(lingering(&sim).await, json!([]));
}

fn session() -> Session {
    Session {
        initiator: "iqn.1993-08.org.debian:01:abc".to_owned(),
        address: [127, 0, 0, 1].into(),
    }
}

#[tokio::test]
async fn a_session_outlives_its_target_and_new_logins_are_refused() {
    let (sim, _) = keeping_sessions(ExportKind::Loop).await;
    let targets = Targets::open(&sim.nas.state_dir().join("targets")).unwrap();
    targets.login(T, "old", &session(), None).unwrap();
    delete(&sim).await;
    assert!(targets.attached(T, "old").unwrap().is_some());
    let refused = targets.login(T, "new", &session(), None);
    assert!(matches!(refused, Err(Refusal::NoTarget)));
    assert_eq!(lingering(&sim).await[0]["iqn"], T);

    targets.logout(T, "old").unwrap();
    assert_eq!(sim.code(LUN, "list", &[]).await, 0);
    assert_eq!(
        targets.get(T).unwrap(),
        None,
        "it was removed with its session"
    );
    assert_eq!(lingering(&sim).await, json!([]));
}

#[tokio::test]
async fn a_new_target_of_that_iqn_inherits_the_session() {
    let (sim, _) = keeping_sessions(ExportKind::Loop).await;
    let targets = Targets::open(&sim.nas.state_dir().join("targets")).unwrap();
    targets.login(T, "old", &session(), None).unwrap();
    delete(&sim).await;
    sim.target("t").await;
    assert!(targets.attached(T, "old").unwrap().unwrap().enabled);
    let get = [
        ("target_id", "\"t\""),
        ("additional", "[\"connected_sessions\"]"),
    ];
    let target = ok(&sim.call(TARGET, "get", &get).await)["target"].take();
    assert_eq!(
        target["connected_sessions"].as_array().unwrap().len(),
        1,
        "{target}"
    );
    assert_eq!(lingering(&sim).await, json!([]));
}

#[tokio::test]
async fn a_restart_ends_lingering_targets() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings {
        deleted_targets_keep_sessions: true,
        ..Settings::default()
    };
    let builder = DsmSim::builder()
        .export(ExportKind::Loop)
        .state_dir(dir.path())
        .settings(settings);
    let sim = Sim::with(builder.clone()).await;
    sim.target("t").await;
    let targets = Targets::open(&dir.path().join("targets")).unwrap();
    targets.login(T, "old", &session(), None).unwrap();
    delete(&sim).await;
    assert!(targets.attached(T, "old").unwrap().is_some());
    drop(sim);
    let sim = Sim::with(builder).await;
    assert_eq!(targets.get(T).unwrap(), None);
    assert_eq!(lingering(&sim).await, json!([]));
}

/// The session is dropped, and later writes on it do not reach the LUN. That the LUN's file is replaced for this is an
/// implementation detail.
#[tokio::test]
async fn writes_of_a_dropped_session_do_not_reach_the_lun() {
    let (sim, uuid) = keeping_sessions(ExportKind::Loop).await;
    sim.patch("/settings", json!({"deleted_targets_keep_sessions": false}))
        .await;
    let targets = Targets::open(&sim.nas.state_dir().join("targets")).unwrap();
    targets.login(T, "old", &session(), None).unwrap();
    let path = sim.nas.state_dir().join(format!("luns/{uuid}.img"));
    let device = File::options().write(true).open(&path).unwrap();
    device.write_all_at(b"early", 0).unwrap();
    delete(&sim).await;
    // The write fails, or has no effect.
    let _ = device.write_all_at(b"later", 4096);
    let lun = File::open(&path).unwrap();
    let mut read = [0; 5];
    lun.read_exact_at(&mut read, 0).unwrap();
    assert_eq!(&read, b"early");
    lun.read_exact_at(&mut read, 4096).unwrap();
    assert_eq!(read, [0; 5]);

    let grow = [("uuid", &*uuid), ("new_size", &*(2 * GIB).to_string())];
    assert_eq!(sim.code(LUN, "set", &grow).await, 0);
    assert_eq!(lun.metadata().unwrap().len(), 2 * GIB);
    assert_eq!(device.metadata().unwrap().len(), GIB);
}

/// A LUN as `kill -9` leaves it while its file is being replaced.
#[tokio::test]
async fn a_lun_whose_file_was_being_replaced_is_intact_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let builder = DsmSim::builder()
        .export(ExportKind::Loop)
        .state_dir(dir.path());
    let sim = Sim::with(builder.clone()).await;
    let uuid = sim.lun("a", "BLUN", GIB).await;
    drop(sim);
    let path = dir.path().join(format!("luns/{uuid}.img"));
    let fresh = dir.path().join(format!("luns/{uuid}.img.fresh"));
    std::fs::write(&fresh, b"half").unwrap();
    // Without root this has no effect, and the rest is tested anyway.
    let lun = File::open(&path).unwrap();
    let _ = ioctl_getflags(&lun).and_then(|flags| ioctl_setflags(&lun, flags | IFlags::IMMUTABLE));
    let sim = Sim::with(builder).await;
    assert!(!fresh.exists());
    let uuid = json!(uuid).to_string();
    assert_eq!(sim.code(LUN, "delete", &[("uuid", &uuid)]).await, 0);
    assert!(!path.exists());
}

#[tokio::test]
async fn without_a_session_or_the_setting_a_deletion_is_final() {
    let (sim, _) = keeping_sessions(ExportKind::Loop).await;
    let targets = Targets::open(&sim.nas.state_dir().join("targets")).unwrap();
    delete(&sim).await;
    assert_eq!(targets.get(T).unwrap(), None);

    sim.target("t").await;
    targets.login(T, "old", &session(), None).unwrap();
    sim.patch("/settings", json!({"deleted_targets_keep_sessions": false}))
        .await;
    delete(&sim).await;
    assert!(targets.attached(T, "old").unwrap().is_none());
    assert_eq!(lingering(&sim).await, json!([]));
}
