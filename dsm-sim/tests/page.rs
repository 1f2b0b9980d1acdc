//! The web page of the control port, without a browser: its content, and that forms of other pages change nothing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{LUN, Sim, TARGET};
use reqwest::StatusCode;
use serde_json::json;

const HOSTILE: &str = "<script>document.title='taken'</script>";

/// Fetches the page or a part of it.
async fn page(sim: &Sim, path: &str) -> String {
    let request = sim.http.get(format!("{}{path}", sim.nas.control()));
    let reply = request.header("accept", "text/html").send().await.unwrap();
    assert_eq!(reply.status(), StatusCode::OK, "{path}");
    let policy = reply.headers()["content-security-policy"].to_str().unwrap();
    assert!(policy.contains("default-src 'none'"), "{policy}");
    reply.text().await.unwrap()
}

#[tokio::test]
async fn it_shows_the_objects_and_escapes_their_names() {
    let sim = Sim::new().await;
    let lun = json!({"name": "pvc-1", "description": HOSTILE, "size": 1u64 << 30, "location": "/volume1", "type": "BLUN"});
    let uuid = sim.post("/luns", lun).await["uuid"].clone();
    let snapshot = [
        ("src_lun_uuid", &*uuid.to_string()),
        ("snapshot_name", "nightly"),
        ("description", ""),
        ("taken_by", "page"),
        ("is_locked", "false"),
        ("is_app_consistent", "false"),
    ];
    common::ok(&sim.call(LUN, "take_snapshot", &snapshot).await);
    let id = sim.target("tgt-1").await;
    let uuids = json!([uuid]).to_string();
    let map = [("target_id", &*id), ("lun_uuids", &*uuids)];
    common::ok(&sim.call(TARGET, "map_lun", &map).await);
    sim.call(LUN, HOSTILE, &[("uuid", HOSTILE)]).await;
    let html = page(&sim, "/").await;
    for wanted in [
        "/volume1",
        "2.0 TiB",
        "pvc-1",
        "1.0 GiB",
        "nightly",
        "iqn.2000-01.com.synology:tgt-1",
        "1: pvc-1",
        "take_snapshot",
        "&#60;script&#62;document",
    ] {
        assert!(html.contains(wanted), "no {wanted} in {html}");
    }
    assert_eq!(html.matches("<script").count(), 1, "only its own: {html}");
    for path in ["/page/overview", "/page/journal"] {
        assert!(!page(&sim, path).await.contains("<script"), "{path}");
    }
    let reflected = format!(
        "/?text={}&luns={}",
        "%22%3E%3Cscript%3E", "%27%3E%3Cscript%3E"
    );
    assert_eq!(page(&sim, &reflected).await.matches("<script").count(), 1);
}

#[tokio::test]
async fn clients_that_do_not_accept_html_get_the_list_of_endpoints() {
    let sim = Sim::new().await;
    let endpoints = sim.get("/").await;
    assert!(endpoints["knobs"].as_str().unwrap().contains("POST /reset"));
}

#[tokio::test]
async fn long_lists_have_pages_and_a_search() {
    let sim = Sim::new().await;
    sim.post("/seed", json!({"luns": 60})).await;
    let rows = |html: &str| html.matches("<meter").count() - 1;
    let first = page(&sim, "/page/overview").await;
    assert_eq!(rows(&first), 25);
    assert!(
        first.contains("page 1 of 3") && first.contains(">next<") && !first.contains(">previous<")
    );
    let last = page(&sim, "/page/overview?luns_page=99").await;
    assert_eq!(rows(&last), 10);
    assert!(
        last.contains("page 3 of 3") && last.contains(">previous<") && !last.contains(">next<")
    );
    let state = sim.state().await;
    let uuid = state["luns"][41]["uuid"].as_str().unwrap();
    let found = page(&sim, &format!("/page/overview?luns={uuid}")).await;
    assert!(found.contains("1 of 60") && found.contains(uuid));
}

#[tokio::test]
async fn the_journal_can_be_filtered() {
    let sim = Sim::new().await;
    sim.call(LUN, "get", &[("uuid", "none")]).await;
    let refused = page(&sim, "/page/journal?failed=true").await;
    assert!(
        refused.contains("18990505") && !refused.contains("login"),
        "{refused}"
    );
    let logins = page(&sim, "/page/journal?api=auth.login").await;
    assert!(
        logins.contains("login") && !logins.contains("18990505"),
        "{logins}"
    );
}

#[tokio::test]
async fn forms_of_other_pages_change_nothing() {
    let sim = Sim::new().await;
    for (origin, status) in [
        ("http://evil.example", StatusCode::FORBIDDEN),
        ("null", StatusCode::FORBIDDEN),
        (sim.nas.control(), StatusCode::UNSUPPORTED_MEDIA_TYPE),
    ] {
        let request = sim.http.post(format!("{}/reset", sim.nas.control()));
        let reply = request.header("origin", origin).form(&[("a", "b")]).send();
        assert_eq!(reply.await.unwrap().status(), status, "{origin}");
    }
}
