//! What nobody has seen a compound do yet: a guard that fails, its other possible outcomes, and who gets in between.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Sim, TARGET, code, ok, until};
use reqwest::Method;
use serde_json::{Value, json};

/// Looks a target up by its name, and deletes by number only when that name is there.
fn guarded(name: &str, number: &str) -> String {
    json!([
        {"api": TARGET, "method": "get", "version": 1, "target_id": name},
        {"api": TARGET, "method": "delete", "version": 1, "target_id": number},
        {"api": TARGET, "method": "list", "version": 1},
    ])
    .to_string()
}

/// The code of each result of a compound, and whether it says that something failed.
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
async fn a_guard_that_fails_stops_the_rest_or_does_not() {
    let gone = 18_990_710;
    for (switch, codes, left) in [
        (json!({}), vec![gone], vec!["foreign"]),
        (
            json!({"compound_fills_stopped": true}),
            vec![gone, 112, 112],
            vec!["foreign"],
        ),
        (json!({"compounds_go_on": true}), vec![gone, 0, 0], vec![]),
        (
            json!({"compounds_go_on": true, "compound_fills_stopped": true}),
            vec![gone, 0, 0],
            vec![],
        ),
    ] {
        let sim = Sim::new().await;
        sim.patch("/settings", switch.clone()).await;
        sim.target("foreign").await;
        let answer = compound(&sim, &guarded("ours", "1")).await;
        assert_eq!(answer, (codes, json!(true)), "{switch}");
        assert_eq!(names(&sim).await, left, "{switch}");
    }
}

#[tokio::test]
async fn a_guard_that_holds_is_one_request_whatever_the_switches() {
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
async fn a_nas_that_gets_no_target_by_name_fails_every_guard() {
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

/// Between the look and the act of a guarded delete, somebody else's request deletes the target, and another one takes
/// its number.
#[tokio::test]
async fn another_request_gets_between_two_calls_of_a_compound_or_waits() {
    for (interleave, left) in [(true, vec![]), (false, vec!["foreign"])] {
        let sim = Sim::new().await;
        sim.patch("/settings", json!({"compounds_interleave": interleave}))
            .await;
        sim.target("ours").await;
        let hang = json!({"api": TARGET, "method": "delete", "fault": {"kind": "hang"}});
        let fault = sim.post("/faults", hang).await["id"].clone();
        let others = async {
            until("the compound hangs at its delete", async || {
                let hanging = sim.get("/journal?faulted=true").await;
                (hanging["entries"] != json!([])).then_some(())
            })
            .await;
            let person = async {
                // The fault is for one call, and that one has it.
                let gone = sim.code(TARGET, "delete", &[("target_id", "\"1\"")]).await;
                sim.target("foreign").await;
                gone
            };
            let release = async {
                if !interleave {
                    // Nobody gets in, so nothing would ever come of waiting for somebody.
                    let path = format!("/faults/{fault}");
                    sim.control(Method::DELETE, &path, None).await;
                }
            };
            let (gone, ()) = tokio::join!(person, release);
            if interleave {
                let path = format!("/faults/{fault}");
                sim.control(Method::DELETE, &path, None).await;
            }
            gone
        };
        let calls = guarded("ours", "1");
        let (answer, gone) = tokio::join!(compound(&sim, &calls), others);
        assert_eq!(answer, (vec![0, 0, 0], json!(false)), "{interleave}");
        assert_eq!(gone, if interleave { 0 } else { 18_990_710 });
        assert_eq!(names(&sim).await, left, "{interleave}");
    }
}
