//! LUNs, as clients and initiators see them: long lists, export, latency, disk usage, sessions.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{LUN, Sim, TARGET, ok};
use dsm_sim::{DsmSim, ExportKind, Latency};
use node_sim::target::Session;
use node_sim::target::loopdev::Targets;
use serde_json::json;

const GIB: u64 = 1 << 30;

#[tokio::test]
async fn a_hundred_luns_are_listed_completely_and_one_by_one() {
    let sim = Sim::new().await;
    sim.post("/seed", json!({"luns": 100})).await;
    let uuid = sim.lun("mine", "BLUN", GIB).await;
    let reply = sim
        .call(
            LUN,
            "list",
            &[("additional", "[\"status\"]"), ("limit", "10")],
        )
        .await;
    let luns = ok(&reply)["luns"].as_array().unwrap().clone();
    assert_eq!(luns.len(), 101);
    assert!(luns.is_sorted_by_key(|lun| lun["lun_id"].as_u64()));
    let reply = sim.call(LUN, "get", &[("uuid", "mine")]).await;
    assert_eq!(ok(&reply)["lun"]["uuid"], *uuid);
    assert_eq!(sim.state().await["luns"].as_array().unwrap().len(), 101);
}

#[tokio::test]
async fn sixteen_creates_at_once_all_succeed() {
    // Behaviour 4 of dsm-web-api.md section 11; their latency is tested in nas/timing.rs.
    let sim = Sim::new().await;
    let names: Vec<String> = (0..16).map(|n| format!("lun-{n}")).collect();
    let creates = names.iter().map(|name| sim.lun(name, "BLUN", GIB));
    let mut uuids = futures::future::join_all(creates).await;
    uuids.sort();
    uuids.dedup();
    assert_eq!(uuids.len(), 16);
}

#[tokio::test]
async fn real_latency_can_be_enabled() {
    let sim = Sim::with(DsmSim::builder().latency(Latency::Ds918)).await;
    let started = std::time::Instant::now();
    let uuid = sim.lun("a", "BLUN", GIB).await;
    assert!(
        started.elapsed().as_millis() >= 1_000,
        "a create takes a second"
    );
    sim.post("/clock", json!({"advance_ms": 1_200})).await;
    assert_eq!(sim.state().await["luns"][0]["is_action_locked"], false);
    assert_eq!(sim.code(LUN, "delete", &[("uuid", &uuid)]).await, 0);
    // Behaviour 3 of dsm-web-api.md section 11: it leaves the list later; that it stays until then is tested in
    // nas/api/lun_write.
    sim.post("/clock", json!({"advance_ms": 2_000})).await;
    assert_eq!(sim.state().await["luns"], json!([]));
}

#[tokio::test]
async fn luns_are_exported_before_the_reply() {
    let sim = Sim::with(DsmSim::builder().export(ExportKind::Loop)).await;
    let uuid = sim.lun("a", "BLUN", GIB).await;
    let id = sim.target("t").await;
    let ids = format!("[{}]", id.trim_matches('"'));
    let targets = Targets::open(&sim.nas.state_dir().join("targets")).unwrap();
    let exported = || targets.get("iqn.2000-01.com.synology:t").unwrap();
    assert!(exported().unwrap().luns.is_empty());
    assert_eq!(
        sim.code(LUN, "map_target", &[("uuid", &uuid), ("target_ids", &ids)])
            .await,
        0
    );
    let unit = exported().unwrap().luns[&1].clone();
    assert_eq!(
        (&*unit.vendor, &*unit.product, &*unit.revision, &unit.serial),
        ("SYNOLOGY", "Storage", "4.0", &uuid)
    );
    assert_eq!(unit.naa.len(), 32);
    assert_eq!(unit.file.metadata().unwrap().len(), GIB);
    assert_eq!(
        sim.code(LUN, "set", &[("uuid", &uuid), ("new_size", "5368709120")])
            .await,
        0
    );
    assert_eq!(unit.file.metadata().unwrap().len(), 5 * GIB);
    assert_eq!(
        sim.code(TARGET, "set", &[("target_id", &id), ("max_sessions", "0")])
            .await,
        0
    );
    assert_eq!(exported().unwrap().max_sessions, 0);
    assert_eq!(sim.code(LUN, "delete", &[("uuid", &uuid)]).await, 0);
    assert!(exported().unwrap().luns.is_empty() && !unit.file.exists());
    assert_eq!(sim.code(TARGET, "delete", &[("target_id", &id)]).await, 0);
    assert!(exported().is_none());
}

#[tokio::test]
async fn thin_luns_report_what_was_written() {
    let sim = Sim::new().await;
    let uuid = sim.lun("a", "BLUN", GIB).await;
    let path = sim.nas.state_dir().join(format!("luns/{uuid}.img"));
    let allocated = async || {
        let reply = sim
            .call(
                LUN,
                "get",
                &[("uuid", &uuid), ("additional", "[\"allocated_size\"]")],
            )
            .await;
        ok(&reply)["lun"]["allocated_size"].as_u64().unwrap()
    };
    assert_eq!(allocated().await, 0);
    let file = std::fs::File::options().write(true).open(path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &vec![7; 1 << 20], 1 << 20).unwrap();
    file.sync_all().unwrap();
    assert!(allocated().await >= 1 << 20);
}

#[tokio::test]
async fn an_impossible_size_leaves_nothing_behind() {
    let sim = Sim::new().await;
    let fresh = sim.state().await;
    let create = [
        ("name", "a"),
        ("type", "BLUN"),
        ("location", "/volume1"),
        ("size", "9223372036854775807"),
    ];
    assert_eq!(sim.code(LUN, "create", &create).await, 18_990_502);
    assert_eq!(sim.state().await, fresh);
    assert_eq!(
        std::fs::read_dir(sim.nas.state_dir().join("luns"))
            .unwrap()
            .count(),
        0
    );
    let uuid = sim.lun("a", "BLUN", GIB).await;
    let before = sim.state().await;
    let set = [("uuid", &*uuid), ("new_size", "9223372036854775807")];
    assert_eq!(sim.code(LUN, "set", &set).await, 18_990_502);
    assert_eq!(sim.state().await, before);
}

#[tokio::test]
async fn sessions_are_those_of_the_export() {
    let sim = Sim::with(DsmSim::builder().export(ExportKind::Loop)).await;
    let id = sim.target("t").await;
    let targets = Targets::open(&sim.nas.state_dir().join("targets")).unwrap();
    let session = Session {
        initiator: "iqn.1993-08.org.debian:01:x".to_owned(),
        address: [192, 0, 2, 7].into(),
    };
    let iqn = "iqn.2000-01.com.synology:t";
    targets.login(iqn, "a", &session, None).unwrap();
    let sessions = async || {
        let reply = sim
            .call(
                TARGET,
                "get",
                &[
                    ("target_id", &id),
                    ("additional", "[\"connected_sessions\"]"),
                ],
            )
            .await;
        ok(&reply)["target"]["connected_sessions"].clone()
    };
    assert_eq!(
        sessions().await,
        json!([{"iqn": "iqn.1993-08.org.debian:01:x", "ip": "192.0.2.7"}])
    );
    // Behaviour 16 of dsm-web-api.md section 11: max_sessions starts at 1.
    assert!(targets.login(iqn, "b", &session, None).is_err());
    assert_eq!(
        sim.code(TARGET, "set", &[("target_id", &id), ("max_sessions", "0")])
            .await,
        0
    );
    assert!(targets.login(iqn, "b", &session, None).is_ok());
    // Behaviour 7: a target with sessions may be deleted, and they are dropped.
    assert_eq!(sim.code(TARGET, "delete", &[("target_id", &id)]).await, 0);
    assert_eq!(targets.sessions(iqn).unwrap(), []);
}
