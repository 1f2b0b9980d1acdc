//! The control port: removing one fault, the journal filter, sessions, latency, and the origin check.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{LUN, Sim, TARGET, ok, until};
use reqwest::Method;
use serde_json::{Value, json};

/// The sequence numbers of the journal entries that match a query.
async fn seqs(sim: &Sim, query: &str) -> Vec<u64> {
    let journal = sim.get(&format!("/journal?{query}")).await;
    let entries = journal["entries"].as_array().unwrap();
    entries
        .iter()
        .map(|entry| entry["seq"].as_u64().unwrap())
        .collect()
}

#[tokio::test]
async fn removing_one_fault_releases_only_its_call() {
    let sim = Sim::new().await;
    let hang = |method: &str| json!({"api": LUN, "method": method, "fault": {"kind": "hang"}});
    let first = sim.post("/faults", hang("list")).await["id"].clone();
    let second = sim.post("/faults", hang("get")).await["id"].clone();
    let hanging = async || {
        let journal = sim.get("/journal?faulted=true").await;
        journal["entries"].as_array().unwrap().clone()
    };
    let lists = sim.call(LUN, "list", &[]);
    let gets = sim.call(LUN, "get", &[("uuid", "none")]);
    let remove = async {
        until("both hang", async || {
            (hanging().await.len() == 2).then_some(())
        })
        .await;
        sim.control(Method::DELETE, &format!("/faults/{first}"), None)
            .await;
        // The other call hangs until its own fault is removed.
        until("the first has ended", async || {
            let ended = |entry: &Value| entry["micros"].as_u64().unwrap() > 0;
            let by_method = |name: &str, entries: &[Value]| {
                ended(
                    entries
                        .iter()
                        .find(|entry| entry["method"] == name)
                        .unwrap(),
                )
            };
            let entries = hanging().await;
            assert!(!by_method("get", &entries), "{entries:?}");
            by_method("list", &entries).then_some(())
        })
        .await;
        let rules = sim.get("/faults").await;
        assert_eq!(
            (
                rules["faults"].as_array().unwrap().len(),
                &rules["faults"][0]["id"]
            ),
            (1, &second)
        );
        sim.control(Method::DELETE, &format!("/faults/{second}"), None)
            .await;
    };
    let (list, get, ()) = tokio::join!(lists, gets, remove);
    assert_eq!(
        (&list["success"], &get["success"]),
        (&json!(true), &json!(false))
    );
}

#[tokio::test]
async fn the_journal_is_filtered_and_bounded() {
    let sim = Sim::new().await;
    sim.lun("pvc-1", "BLUN", 1 << 30).await;
    sim.code(LUN, "get", &[("uuid", "pvc-2")]).await;
    sim.fault(TARGET, "list", json!({"kind": "refuse", "code": 109}))
        .await;
    sim.code(TARGET, "list", &[]).await;
    sim.code("SYNO.DSM.Info", "getinfo", &[]).await;
    // 1 is the login; getinfo is called with a version that does not exist.
    for (query, want) in [
        ("", vec![1, 2, 3, 4, 5]),
        ("newest=2", vec![4, 5]),
        ("failed=true", vec![3, 4, 5]),
        ("failed=true&newest=1&since=4", vec![5]),
        ("faulted=true", vec![4]),
        ("api=iscsi.LUN", vec![2, 3]),
        ("api=Target&failed=true", vec![4]),
        ("text=PVC-", vec![2, 3]),
        ("text=pvc%2018990505", vec![3]),
        ("text=admin&since=2", vec![]),
    ] {
        assert_eq!(seqs(&sim, query).await, want, "{query}");
    }
    assert!(
        sim.get("/journal").await["entries"][0]["at"]
            .as_u64()
            .unwrap()
            > 1_600_000_000_000
    );
}

#[tokio::test]
async fn requests_for_missing_objects_are_404() {
    let sim = Sim::new().await;
    sim.target("t").await;
    assert_eq!(
        sim.get("/targets/1/sessions").await,
        json!({"sessions": []})
    );
    for (method, path, hint) in [
        (Method::GET, "/targets/2/sessions", "GET /state"),
        (Method::DELETE, "/faults/7", "GET /faults"),
    ] {
        let url = format!("{}{path}", sim.nas.control());
        let reply = sim.http.request(method, url).send().await.unwrap();
        assert_eq!(reply.status().as_u16(), 404, "{path}");
        assert!(reply.text().await.unwrap().contains(hint), "{path}");
    }
}

#[tokio::test]
async fn foreign_web_pages_cannot_change_anything() {
    let sim = Sim::new().await;
    sim.lun("a", "BLUN", 1 << 30).await;
    let before = sim.state().await;
    let own = sim.nas.control().to_owned();
    let send = async |method: Method, path: &str, headers: &[(&str, &str)]| {
        let mut request = sim.http.request(method, format!("{own}{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body("{}").send().await.unwrap().status().as_u16()
    };
    // What a form can send, then what a script may try.
    for kind in ["text/plain", "application/x-www-form-urlencoded"] {
        assert_eq!(
            send(Method::POST, "/reset", &[("content-type", kind)]).await,
            415
        );
    }
    assert_eq!(send(Method::POST, "/reset", &[]).await, 415);
    let json = ("content-type", "application/json");
    let foreign = [json, ("origin", "http://evil.example")];
    assert_eq!(send(Method::POST, "/reset", &foreign).await, 403);
    assert_eq!(send(Method::DELETE, "/faults", &foreign).await, 403);
    assert_eq!(send(Method::PATCH, "/settings", &foreign).await, 403);
    assert_eq!(sim.state().await, before);
    assert_eq!(
        send(Method::PATCH, "/settings", &[json, ("origin", &own)]).await,
        200
    );
    assert_eq!(send(Method::POST, "/reset", &[json]).await, 200);
    assert_ne!(sim.state().await, before);
}

#[tokio::test]
async fn a_nas_becomes_slow_and_fast_again() {
    let sim = Sim::new().await;
    let locked = async |name: &str| {
        let uuid = sim.lun(name, "BLUN", 1 << 30).await;
        let get = [("uuid", &*uuid), ("additional", "[\"is_action_locked\"]")];
        ok(&sim.call(LUN, "get", &get).await)["lun"]["is_action_locked"].clone()
    };
    assert_eq!(locked("a").await, false);
    sim.patch("/latency", json!({"profile": "ds918"})).await;
    assert_eq!(sim.get("/latency").await["profile"], "ds918");
    assert_eq!(locked("b").await, true);
    sim.post("/reset", json!({})).await;
    assert_eq!(sim.get("/latency").await["profile"], "instant");
}

#[tokio::test]
async fn the_maximum_of_requests_in_flight_is_counted() {
    let sim = Sim::new().await;
    let most = async || sim.get("/counters").await["most_in_flight"].clone();
    for _ in 0..3 {
        ok(&sim.call(LUN, "list", &[]).await);
    }
    assert_eq!(most().await, 1, "one after the other");
    let hang = json!({"api": LUN, "method": "list", "times": 5, "fault": {"kind": "hang"}});
    sim.post("/faults", hang).await;
    let lists = futures::future::join_all((0..5).map(|_| sim.call(LUN, "list", &[])));
    let release = async {
        until("all of them hang", async || {
            let journal = sim.get("/journal?faulted=true").await;
            (journal["entries"].as_array().unwrap().len() == 5).then_some(())
        })
        .await;
        assert_eq!(most().await, 5);
        sim.control(Method::DELETE, "/faults", None).await;
    };
    tokio::join!(lists, release);
    ok(&sim.call(LUN, "list", &[]).await);
    assert_eq!(most().await, 5, "the maximum stays");
    sim.post("/reset", json!({})).await;
    assert_eq!(most().await, 0);
}
