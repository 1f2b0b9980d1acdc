//! The Web API over HTTP: envelopes, decoding, headers, sessions, compounds.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::net::{IpAddr, Ipv4Addr};

use common::{AUTH, LUN, Sim, TARGET, client, code, ok};
use serde_json::{Value, json};

const GIB: u64 = 1 << 30;

async fn text(reply: reqwest::RequestBuilder) -> Value {
    serde_json::from_str(&reply.send().await.unwrap().text().await.unwrap()).unwrap()
}

#[tokio::test]
async fn replies_have_the_recorded_headers() {
    let sim = Sim::new().await;
    let query = "api=SYNO.API.Info&version=1&method=query&query=all";
    let reply = sim
        .http
        .get(format!("{}/webapi/query.cgi?{query}", sim.nas.api()))
        .send()
        .await
        .unwrap();
    assert_eq!(reply.status(), 200);
    for (name, value) in [
        ("server", "nginx"),
        ("content-type", "application/json; charset=\"UTF-8\""),
        ("transfer-encoding", "chunked"),
        ("keep-alive", "timeout=20"),
        ("vary", "Accept-Encoding"),
        ("x-content-type-options", "nosniff"),
        ("x-xss-protection", "1; mode=block"),
        (
            "cache-control",
            "max-age=0, no-cache, no-store, must-revalidate",
        ),
        ("pragma", "no-cache"),
        ("expires", "0"),
    ] {
        assert_eq!(reply.headers().get(name).unwrap(), value, "{name}");
    }
    let body = reply.text().await.unwrap();
    assert!(
        body.starts_with("{\"data\":{\"SYNO.API.Auth\":") && body.ends_with("\"success\":true}"),
        "keys in order: {body}"
    );
}

#[tokio::test]
async fn requests_that_are_not_calls_are_refused() {
    let sim = Sim::new().await;
    let base = format!("{}/webapi", sim.nas.api());
    let sid = &sim.sid;
    for (path, want) in [
        ("entry.cgi".to_owned(), 101),
        ("entry.cgi?api=SYNO.API.Info&method=query".to_owned(), 101),
        ("entry.cgi?api=SYNO.API.Info&version=1".to_owned(), 101),
        (
            "entry.cgi?api=SYNO.API.Info&version=one&method=query".to_owned(),
            104,
        ),
        (
            "entry.cgi?api=SYNO.API.Info&version=1&method=query".to_owned(),
            0,
        ),
        (
            "entry.cgi?api=SYNO.API.Info&version=1&method=nonsense".to_owned(),
            103,
        ),
        (
            "query.cgi?api=SYNO.API.Auth&version=6&method=login".to_owned(),
            102,
        ),
        (format!("entry.cgi?api={LUN}&version=1&method=list"), 119),
        (
            format!("entry.cgi?api={LUN}&version=1&method=list&_sid=unknown"),
            119,
        ),
        (
            format!("entry.cgi?api={LUN}&version=1&method=list&_sid={sid}"),
            0,
        ),
        (
            format!("entry.cgi/{LUN}?version=1&method=list&_sid={sid}"),
            0,
        ),
        (
            format!("entry.cgi?api=%22{LUN}%22&version=%221%22&method=%22list%22&_sid=%22{sid}%22"),
            0,
        ),
        // Behaviour 23 of dsm-web-api.md section 11: unknown parameters are ignored.
        (
            format!(
                "entry.cgi?api={LUN}&version=1&method=list&_sid={sid}&path=entry.cgi&unknown=[1"
            ),
            0,
        ),
    ] {
        assert_eq!(
            code(&text(sim.http.get(format!("{base}/{path}"))).await),
            want,
            "{path}"
        );
    }
    for path in ["other.cgi", "entry.cgi/a/b", ""] {
        assert_eq!(
            sim.http
                .get(format!("{base}/{path}"))
                .send()
                .await
                .unwrap()
                .status(),
            404,
            "{path}"
        );
    }
}

#[tokio::test]
async fn parameters_come_in_query_and_form_with_any_content_type() {
    let sim = Sim::new().await;
    let control = format!("api={LUN}&version=1&_sid={}", sim.sid);
    let create = "method=create&name=%22a%22&type=BLUN&location=%2Fvolume1&size=5";
    let url = sim.entry();
    let get = sim
        .http
        .get(format!("{url}?{control}&{create}"))
        .header("content-type", "application/json");
    assert_eq!(
        code(&text(get).await),
        0,
        "GET with everything in the query, as the official driver sends it"
    );
    let mixed = sim
        .http
        .post(format!("{url}?{control}"))
        .body(create.replace("%22a%22", "b"));
    assert_eq!(
        code(&text(mixed).await),
        0,
        "POST with half of it in a body without a content type"
    );
    let cookie = sim
        .http
        .post(&url)
        .header("cookie", format!("other=1; id={}", sim.sid))
        .body(format!("api={LUN}&version=1&method=list"));
    assert_eq!(
        text(cookie).await["data"]["luns"].as_array().unwrap().len(),
        2
    );
}

/// design.md#how-strict-dsm-sim-is
#[tokio::test]
async fn a_strict_nas_accepts_no_sid_from_a_form() {
    let sim = Sim::new().await;
    assert_eq!(sim.code(LUN, "list", &[]).await, 0);
    sim.patch("/settings", json!({"sid_in_form": false})).await;
    assert_eq!(sim.code(LUN, "list", &[]).await, 119);
    let query = format!(
        "{}?api={LUN}&version=1&method=list&_sid={}",
        sim.entry(),
        sim.sid
    );
    assert_eq!(code(&text(sim.http.get(query)).await), 0);
}

#[tokio::test]
async fn a_cookie_login_sets_the_cookie() {
    let sim = Sim::new().await;
    let form = [
        ("api", AUTH),
        ("version", "7"),
        ("method", "login"),
        ("account", "admin"),
        ("passwd", "admin"),
    ];
    let reply = sim.http.post(sim.entry()).form(&form).send().await.unwrap();
    let cookie = reply.headers()["set-cookie"].to_str().unwrap().to_owned();
    assert!(
        reply.headers().contains_key("p3p") && cookie.contains(";max-age=604800;path=/;HttpOnly"),
        "{cookie}"
    );
    let id = cookie.split(';').next().unwrap().to_owned();
    let list = sim
        .http
        .get(format!("{}?api={LUN}&version=1&method=list", sim.entry()))
        .header("cookie", id);
    assert_eq!(code(&text(list).await), 0);
}

#[tokio::test]
async fn csrf_protection_needs_the_token_as_parameter_or_header() {
    let sim = Sim::new().await;
    sim.patch("/settings", json!({"csrf_protection": true}))
        .await;
    assert_eq!(
        sim.code(LUN, "list", &[]).await,
        105,
        "this login did not request a token"
    );
    let form = [
        ("api", AUTH),
        ("version", "7"),
        ("method", "login"),
        ("account", "admin"),
        ("passwd", "admin"),
        ("enable_syno_token", "yes"),
    ];
    let login = sim.form(&form).await["data"].clone();
    let (sid, token) = (
        login["sid"].as_str().unwrap(),
        login["synotoken"].as_str().unwrap(),
    );
    let list = [
        ("api", LUN),
        ("version", "1"),
        ("method", "list"),
        ("_sid", sid),
    ];
    assert_eq!(code(&sim.form(&list).await), 105);
    assert_eq!(
        code(
            &sim.form(&[list.as_slice(), &[("SynoToken", token)]].concat())
                .await
        ),
        0
    );
    let header = sim
        .http
        .post(sim.entry())
        .header("X-SYNO-TOKEN", token)
        .form(&list);
    assert_eq!(code(&text(header).await), 0);
    let security = [
        ("api", "SYNO.Core.Security.DSM"),
        ("version", "1"),
        ("method", "get"),
        ("_sid", sid),
        ("SynoToken", token),
    ];
    assert_eq!(
        sim.form(&security).await["data"]["enable_csrf_protection"],
        true
    );
}

#[tokio::test]
async fn auto_block_and_address_binding_go_by_source_address() {
    // Behaviour 19 of dsm-web-api.md section 11.
    let sim = Sim::new().await;
    let other_address = client()
        .local_address(IpAddr::from(Ipv4Addr::new(127, 0, 0, 2)))
        .build()
        .unwrap();

    let list = format!(
        "{}?api={LUN}&version=1&method=list&_sid={}",
        sim.entry(),
        sim.sid
    );
    assert_eq!(code(&text(other_address.get(&list)).await), 150);
    let wrong = format!(
        "{}?api={AUTH}&version=6&method=login&account=admin&passwd=no",
        sim.entry()
    );
    let right = wrong.replace("=no", "=admin");
    for _ in 0..3 {
        assert_eq!(code(&text(other_address.get(&wrong)).await), 400);
    }
    assert_eq!(code(&text(other_address.get(&right)).await), 407);
    assert_eq!(
        code(&text(sim.http.get(&right)).await),
        0,
        "other addresses are not blocked"
    );
    sim.post("/clock", json!({"advance_ms": 24 * 3_600_000}))
        .await;
    assert_eq!(
        code(&text(other_address.get(&right)).await),
        0,
        "a day later"
    );
}

#[tokio::test]
async fn sessions_expire_and_can_be_invalidated() {
    let sim = Sim::new().await;
    sim.post("/clock", json!({"advance_ms": 15 * 60_000 - 5_000}))
        .await;
    assert_eq!(sim.code(LUN, "list", &[]).await, 0);
    sim.post("/clock", json!({"advance_ms": 16 * 60_000})).await;
    assert_eq!(sim.code(LUN, "list", &[]).await, 119);
    let sim = Sim::new().await;
    sim.post("/sessions/expire", json!({})).await;
    assert_eq!(sim.code(LUN, "list", &[]).await, 119);
}

#[tokio::test]
async fn a_compound_runs_many_calls_in_one_request() {
    let sim = Sim::new().await;
    let uuid = sim.lun("a", "BLUN", GIB).await;
    let calls = json!([
        {"api": TARGET, "method": "create", "version": 1, "name": "t", "iqn": "iqn.2000-01.com.synology:t", "max_sessions": 0},
        {"api": LUN, "method": "map_target", "version": 1, "uuid": uuid, "target_ids": [1]},
        {"api": TARGET, "method": "get", "version": 1, "target_id": 1},
        {"api": TARGET, "method": "list", "version": "1", "additional": ["mapped_lun"], "lun_uuid": uuid},
    ]);
    let before = sim.get("/counters").await["requests"].as_u64().unwrap();
    let compound = |stop: &'static str| {
        [
            ("compound", calls.to_string()),
            ("mode", "sequential".to_owned()),
            ("stop_when_error", stop.to_owned()),
        ]
    };
    let params = compound("false");
    let params: Vec<(&str, &str)> = params
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    let reply = sim.call("SYNO.Entry.Request", "request", &params).await;
    let data = ok(&reply);
    let result = data["result"].as_array().unwrap();
    assert_eq!((data["has_fail"].clone(), result.len()), (json!(true), 4));
    assert_eq!(
        result[0],
        json!({"api": TARGET, "method": "create", "version": 1, "success": true, "data": {"target_id": 1}})
    );
    assert_eq!(
        result[1],
        json!({"api": LUN, "method": "map_target", "version": 1, "success": true})
    );
    assert_eq!(
        result[2]["error"],
        json!({"code": 18_990_710}),
        "inside a compound, too, a number is not a string"
    );
    assert_eq!(
        result[3]["data"]["targets"][0]["mapped_luns"],
        json!([{"lun_uuid": uuid, "mapping_index": 1}])
    );

    let journal = sim.get("/journal").await["entries"]
        .as_array()
        .unwrap()
        .clone();
    let inside: Vec<&Value> = journal
        .iter()
        .filter(|entry| entry["request"] == before + 1)
        .collect();
    assert_eq!(
        inside.len(),
        4,
        "the calls share the request's number, and the compound is not one of them"
    );
    assert_eq!(sim.get("/counters").await["requests"], before + 1);

    let params = compound("true");
    let params: Vec<(&str, &str)> = params
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    let reply = sim.call("SYNO.Entry.Request", "request", &params).await;
    let data = ok(&reply);
    assert_eq!(
        (
            data["result"].as_array().unwrap().len(),
            data["has_fail"].clone()
        ),
        (1, json!(true)),
        "the name exists"
    );
}

#[tokio::test]
async fn a_compound_may_be_refused_as_a_whole() {
    let sim = Sim::new().await;
    let request = |compound: &'static str| {
        sim.call(
            "SYNO.Entry.Request",
            "request",
            Box::leak(Box::new([("compound", compound)])),
        )
    };
    assert_eq!(code(&request("nonsense").await), 113);
    assert_eq!(code(&request("[1]").await), 113);
    assert_eq!(code(&request("[{\"api\":\"A\"}]").await), 113);
    assert_eq!(
        code(&sim.call("SYNO.Entry.Request", "request", &[]).await),
        114
    );
    let form = [
        ("api", "SYNO.Entry.Request"),
        ("version", "1"),
        ("method", "request"),
        ("compound", "[]"),
    ];
    assert_eq!(code(&sim.form(&form).await), 119);
    let nested =
        "[{\"api\":\"SYNO.Entry.Request\",\"method\":\"request\",\"version\":1,\"compound\":[]}]";
    assert_eq!(
        request(nested).await["data"]["result"][0]["error"]["code"],
        113
    );
}

#[tokio::test]
async fn the_bytes_of_requests_and_replies_are_counted() {
    let sim = Sim::new().await;
    let count = async || {
        let counters = sim.get("/counters").await;
        ["received", "sent"].map(|name| counters[name].as_u64().unwrap())
    };
    let before = count().await;
    let query = format!("api={LUN}&version=1&method=list&_sid={}", sim.sid);
    let answer = sim
        .http
        .get(format!("{}?{query}", sim.entry()))
        .send()
        .await
        .unwrap();
    let answer = answer.text().await.unwrap();
    let after = count().await;
    assert_eq!(after[0] - before[0], query.len() as u64);
    assert_eq!(after[1] - before[1], answer.len() as u64);
}
