//! Behavior of compounds that is not known of DSM, for each setting: a guard call that fails, and requests between two calls.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Sim, TARGET, code, ok, until};
use reqwest::Method;
use serde_json::{Value, json};

/// A compound that deletes a target by number only if `get` finds its name.
fn guarded(name: &str, number: &str) -> String {
    json!([
        {"api": TARGET, "method": "get", "version": 1, "target_id": name},
        {"api": TARGET, "method": "delete", "version": 1, "target_id": number},
        {"api": TARGET, "method": "list", "version": 1},
    ])
    .to_string()
}

/// Sends a compound: the code of each result, and `has_fail`.
async fn compound(sim: &Sim, calls: &str) -> (Vec<u64>, Value) {
    let params = [("compound", calls), ("stop_when_error", "true")];
    let data = ok(&sim.call("SYNO.Entry.Request", "request", &params).await);
    let results = data["result"].as_array().unwrap();
    (results.iter().map(code).collect(), data["has_fail"].clone())
}

async fn names(sim: &Sim) -> Vec<String> {
    let state = sim.state().await;
    let targets = state["targets"].as_array().unwrap();
    let name = |target: &Value| target["name"].as_str().unwrap().to_owned();
    targets.iter().map(name).collect()
}

#[tokio::test]
async fn a_failed_guard_stops_the_rest_unless_the_setting_says_otherwise() {
    let not_found = 18_990_710;
    for (setting, codes, left) in [
        (json!({}), vec![not_found], vec!["foreign"]),
        (
            json!({"compound_fills_stopped": true}),
            vec![not_found, 112, 112],
            vec!["foreign"],
        ),
        (
            json!({"compounds_go_on": true}),
            vec![not_found, 0, 0],
            vec![],
        ),
        (
            json!({"compounds_go_on": true, "compound_fills_stopped": true}),
            vec![not_found, 0, 0],
            vec![],
        ),
    ] {
        let sim = Sim::new().await;
        sim.patch("/settings", setting.clone()).await;
        sim.target("foreign").await;
        let answer = compound(&sim, &guarded("ours", "1")).await;
        assert_eq!(answer, (codes, json!(true)), "{setting}");
        assert_eq!(names(&sim).await, left, "{setting}");
    }
}

#[tokio::test]
async fn a_successful_guard_is_one_request_with_any_settings() {
    let sim = Sim::new().await;
    sim.patch(
        "/settings",
        json!({"compounds_go_on": true, "compound_fills_stopped": true}),
    )
    .await;
    sim.target("ours").await;
    let answer = compound(&sim, &guarded("ours", "1")).await;
    assert_eq!(answer, (vec![0, 0, 0], json!(false)));
    assert_eq!(names(&sim).await, Vec::<String>::new());
}

#[tokio::test]
async fn every_guard_fails_if_get_does_not_take_names() {
    let sim = Sim::new().await;
    sim.patch("/settings", json!({"target_get_takes_names": false}))
        .await;
    sim.target("ours").await;
    let answer = compound(&sim, &guarded("ours", "1")).await;
    assert_eq!(answer, (vec![18_990_710], json!(true)));
    let by_number = [("target_id", "\"1\"")];
    assert_eq!(sim.code(TARGET, "get", &by_number).await, 0);
    assert_eq!(names(&sim).await, ["ours"]);
}

/// Between the `get` and the `delete` of a guarded compound, another client deletes the target and creates one that gets its
/// number.
#[tokio::test]
async fn another_request_runs_between_two_calls_of_a_compound_or_waits() {
    for (interleave, left) in [(true, vec![]), (false, vec!["foreign"])] {
        let sim = Sim::new().await;
        sim.patch("/settings", json!({"compounds_interleave": interleave}))
            .await;
        sim.target("ours").await;
        let hang = json!({"api": TARGET, "method": "delete", "fault": {"kind": "hang"}});
        let fault = sim.post("/faults", hang).await["id"].clone();
        let other_requests = async {
            until("the compound hangs at its delete", async || {
                let hanging = sim.get("/journal?faulted=true").await;
                (hanging["entries"] != json!([])).then_some(())
            })
            .await;
            let other_client = async {
                // The fault hits one call only, and that was the compound's.
                let not_found = sim.code(TARGET, "delete", &[("target_id", "\"1\"")]).await;
                sim.target("foreign").await;
                not_found
            };
            let release = async {
                if !interleave {
                    // The other client has to wait for the compound, so release the compound first.
                    let path = format!("/faults/{fault}");
                    sim.control(Method::DELETE, &path, None).await;
                }
            };
            let (not_found, ()) = tokio::join!(other_client, release);
            if interleave {
                let path = format!("/faults/{fault}");
                sim.control(Method::DELETE, &path, None).await;
            }
            not_found
        };
        let calls = guarded("ours", "1");
        let (answer, not_found) = tokio::join!(compound(&sim, &calls), other_requests);
        assert_eq!(answer, (vec![0, 0, 0], json!(false)), "{interleave}");
        assert_eq!(not_found, if interleave { 0 } else { 18_990_710 });
        assert_eq!(names(&sim).await, left, "{interleave}");
    }
}
