//! The settings and endpoints of `docs/knobs.md`: each is documented and works.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{LUN, Sim, TARGET, ok};
use dsm_sim::{DsmSim, Settings};
use serde_json::{Value, json};

const DOC: &str = include_str!("../docs/knobs.md");
const VOLUME: &str = "SYNO.Core.Storage.Volume";
const GIB: u64 = 1 << 30;

#[tokio::test]
async fn each_setting_and_endpoint_is_documented() {
    let settings = json!(Settings::default());
    for (name, default) in settings.as_object().unwrap() {
        assert!(
            DOC.contains(&format!("| `{name}` | {default} |")),
            "{name}={default}"
        );
    }
    let sim = Sim::new().await;
    let answer = sim.http.get(format!("{}/nothing", sim.nas.control()));
    let list = answer.send().await.unwrap().text().await.unwrap();
    let paths = list
        .split([' ', ',', ';', '"', '\n'])
        .filter(|word| word.starts_with('/'));
    let paths: Vec<&str> = paths.filter(|path| path.len() > 1).collect();
    assert!(paths.len() > 15, "{list}");
    for path in paths {
        let prefix = path
            .split(['?', '{'])
            .next()
            .unwrap()
            .replace("/NAME", "/volume2");
        assert!(DOC.contains(&prefix), "{prefix}");
    }
}

async fn volumes(sim: &Sim) -> Vec<Value> {
    let data = ok(&sim.call(VOLUME, "list", &[]).await);
    data["volumes"].as_array().unwrap().clone()
}

#[tokio::test]
async fn a_volume_can_have_any_status_and_a_crashed_one_may_lack_sizes_and_luns() {
    let specs = ["/volume1=btrfs:2TiB:attention", "/volume2=ext4:1TiB"];
    let specs = specs.map(|text| text.parse().unwrap());
    let sim = Sim::with(DsmSim::builder().volumes(specs)).await;
    assert_eq!(volumes(&sim).await[0]["status"], "attention");
    for status in ["background", "has_unverified_disk", "moonlit"] {
        sim.patch("/volumes/volume1", json!({"status": status}))
            .await;
        assert_eq!(volumes(&sim).await[0]["status"], status);
        sim.lun(&status.replace('_', "-"), "BLUN", GIB).await;
    }
    let uuid = ok(&sim.call(LUN, "get", &[("uuid", "moonlit")]).await)["lun"]["uuid"].clone();
    let crash = json!({"status": "crashed", "without": ["size_free_byte"], "hides_luns": true, "container": "external"});
    sim.patch("/volumes/volume1", crash).await;
    let rows = volumes(&sim).await;
    assert_eq!(
        (&rows[0]["crashed"], &rows[0]["container"]),
        (&json!(true), &json!("external"))
    );
    assert!(rows[0].get("size_free_byte").is_none() && rows[1].get("size_free_byte").is_some());
    let one = ok(&sim
        .call(VOLUME, "get", &[("volume_path", "/volume1")])
        .await);
    assert!(one["volume"].get("size_free_byte").is_none());
    assert_eq!(ok(&sim.call(LUN, "list", &[]).await)["luns"], json!([]));
    let get = [("uuid", uuid.as_str().unwrap())];
    assert_eq!(sim.code(LUN, "get", &get).await, 18_990_531);
    assert_eq!(sim.code(LUN, "delete", &get).await, 18_990_531);
    sim.patch(
        "/volumes/volume1",
        json!({"status": "normal", "without": [], "hides_luns": false}),
    )
    .await;
    assert_eq!(sim.code(LUN, "get", &get).await, 0);
    sim.post("/reset", json!({})).await;
    let sim = log_in_again(sim).await;
    assert_eq!(volumes(&sim).await[0]["status"], "attention");
}

/// Logs in again.
async fn log_in_again(sim: Sim) -> Sim {
    let sid = sim.login().await["data"]["sid"]
        .as_str()
        .unwrap()
        .to_owned();
    Sim { sid, ..sim }
}

#[tokio::test]
async fn a_client_with_a_new_address_is_refused_until_it_logs_in_again() {
    let sim = Sim::new().await;
    sim.post("/sessions/move", json!({})).await;
    assert_eq!(sim.code(LUN, "list", &[]).await, 150);
    assert_eq!(
        sim.code(LUN, "list", &[]).await,
        150,
        "the session is still there"
    );
    let sim = log_in_again(sim).await;
    assert_eq!(sim.code(LUN, "list", &[]).await, 0);
}

#[tokio::test]
async fn the_uptime_can_be_set_hidden_and_refused() {
    let sim = Sim::with(DsmSim::builder().clock(1_767_225_600_000)).await;
    let up_time = async |sim: &Sim| {
        let info = sim.call("SYNO.Core.System", "info", &[]).await;
        info["data"]["up_time"].clone()
    };
    assert_eq!(up_time(&sim).await, "100:0:0");
    sim.post("/uptime", json!({"seconds": 899})).await;
    assert_eq!(up_time(&sim).await, "0:14:59");
    sim.post("/clock", json!({"advance_ms": 1_000})).await;
    assert_eq!(up_time(&sim).await, "0:15:0");
    sim.post(
        "/boot",
        json!({"loading": "absent", "for_ms": 5, "status": "background"}),
    )
    .await;
    let sim = log_in_again(sim).await;
    assert_eq!(up_time(&sim).await, "0:0:0");
    assert_eq!(volumes(&sim).await[0]["status"], "background");
    sim.patch("/settings", json!({"up_time_shown": false}))
        .await;
    assert_eq!(up_time(&sim).await, Value::Null);
    let refuse = json!({"api": "SYNO.Core.System", "method": "info", "times": 0, "fault": {"kind": "refuse", "code": 105}});
    sim.post("/faults", refuse).await;
    for _ in 0..3 {
        assert_eq!(sim.code("SYNO.Core.System", "info", &[]).await, 105);
    }
}

#[tokio::test]
async fn san_manager_changes_luns_and_targets_outside_the_journal() {
    let sim = Sim::new().await;
    let uuid = sim.lun("a", "BLUN", GIB).await;
    sim.target("t").await;
    let act = async |action: &str, mut body: Value| {
        body["uuid"] = json!(uuid);
        sim.post(&format!("/san/luns/{action}"), body).await
    };
    act("rename", json!({"name": "b"})).await;
    act("describe", json!({"description": "mine"})).await;
    let lun = ok(&sim.call(LUN, "get", &[("uuid", &uuid)]).await)["lun"].clone();
    assert_eq!(
        (&lun["name"], &lun["description"]),
        (&json!("b"), &json!("mine"))
    );
    let locked = json!({"name": "keep", "description": "of Anna", "locked": true});
    let made = act("snapshot", locked).await;
    let of = [("src_lun_uuid", &*uuid)];
    let rows = ok(&sim.call(LUN, "list_snapshot", &of).await)["snapshots"].clone();
    assert_eq!(
        (&rows[0]["is_user_locked"], &rows[0]["name"]),
        (&json!(true), &json!("keep"))
    );
    assert_eq!(rows[0]["uuid"], made["snapshot_uuid"]);
    act(
        "unsnapshot",
        json!({"snapshot_uuid": made["snapshot_uuid"]}),
    )
    .await;
    let rows = ok(&sim.call(LUN, "list_snapshot", &of).await)["snapshots"].clone();
    assert_eq!(rows, json!([]));
    sim.post("/san/targets/rename", json!({"target_id": 1, "name": "u"}))
        .await;
    let target = ok(&sim.call(TARGET, "get", &[("target_id", "\"1\"")]).await)["target"].clone();
    assert_eq!(
        (&target["name"], &target["iqn"]),
        (&json!("u"), &json!("iqn.2000-01.com.synology:t"))
    );
    act("delete", json!({})).await;
    assert_eq!(sim.code(LUN, "get", &[("uuid", &uuid)]).await, 18_990_531);
    let journal = sim.get("/journal").await.to_string();
    assert!(!journal.contains("of Anna"), "no Web API call was made");
}

#[tokio::test]
async fn healthy_luns_have_the_configured_status() {
    let sim = Sim::new().await;
    let (uuid, crashed) = (
        sim.lun("a", "BLUN", GIB).await,
        sim.lun("b", "BLUN", GIB).await,
    );
    sim.patch(&format!("/luns/{crashed}"), json!({"status": "crashed"}))
        .await;
    sim.patch("/settings", json!({"lun_status": "soft_limit_reach"}))
        .await;
    for (uuid, want) in [(uuid, "soft_limit_reach"), (crashed, "crashed")] {
        let params = [("uuid", &*uuid), ("additional", "[\"status\"]")];
        let lun = ok(&sim.call(LUN, "get", &params).await)["lun"].clone();
        assert_eq!(lun["status"], want);
    }
}
