//! The control port: faults, journal, counters, and changes behind the client's back.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::{Duration, Instant};

use common::{AUTH, LUN, Sim, TARGET, code, ok, pause, until};
use serde_json::{Value, json};

const GIB: u64 = 1 << 30;

fn set<'a>(uuid: &'a str, size: &'a str) -> [(&'a str, &'a str); 2] {
    [("uuid", uuid), ("new_size", size)]
}

/// Sends a call: HTTP status and body.
async fn send(sim: &Sim, method: &str, params: &[(&str, &str)]) -> reqwest::Result<(u16, String)> {
    let mut pairs = vec![
        ("api", LUN),
        ("version", "1"),
        ("method", method),
        ("_sid", &sim.sid),
    ];
    pairs.extend_from_slice(params);
    let reply = sim.http.post(sim.entry()).form(&pairs).send().await?;
    Ok((reply.status().as_u16(), reply.text().await?))
}

#[tokio::test]
async fn refuse_has_no_effect_and_returns_the_code() {
    let sim = Sim::new().await;
    let uuid = sim.lun("a", "BLUN", GIB).await;
    let before = sim.state().await;
    sim.fault(LUN, "set", json!({"kind": "refuse", "code": 18_990_002}))
        .await;
    assert_eq!(
        sim.code(LUN, "set", &set(&uuid, "2147483648")).await,
        18_990_002
    );
    assert_eq!(sim.state().await, before);
    assert_eq!(
        sim.code(LUN, "set", &set(&uuid, "2147483648")).await,
        0,
        "the fault hits only one call"
    );
}

#[tokio::test]
async fn lose_reply_takes_effect_without_a_reply() {
    let sim = Sim::new().await;
    let uuid = sim.lun("a", "BLUN", GIB).await;
    sim.fault(LUN, "set", json!({"kind": "lose_reply"})).await;
    assert!(send(&sim, "set", &set(&uuid, "2147483648")).await.is_err());
    assert_eq!(sim.state().await["luns"][0]["size"], 2_147_483_648_u64);
    let last = sim.get("/journal").await["entries"]
        .as_array()
        .unwrap()
        .last()
        .unwrap()
        .clone();
    assert_eq!(
        (&last["method"], &last["fault"], &last["code"]),
        (&json!("set"), &json!("lose_reply"), &Value::Null)
    );
}

#[tokio::test]
async fn garble_and_http_errors_are_not_json() {
    let sim = Sim::new().await;
    let uuid = sim.lun("a", "BLUN", GIB).await;
    sim.fault(LUN, "set", json!({"kind": "garble"})).await;
    let (status, text) = send(&sim, "set", &set(&uuid, "2147483648")).await.unwrap();
    assert!(
        status == 200 && serde_json::from_str::<Value>(&text).is_err(),
        "{text}"
    );
    assert_eq!(sim.state().await["luns"][0]["size"], 2_147_483_648_u64);
    sim.fault("*", "*", json!({"kind": "http", "status": 502}))
        .await;
    let (status, text) = send(&sim, "set", &set(&uuid, "3221225472")).await.unwrap();
    assert!(
        status == 502 && text.starts_with("<html>"),
        "{status} {text}"
    );
    // The truncation may split a UTF-8 character.
    for before in 0..4 {
        let description = format!("{}{}", "x".repeat(before), "é".repeat(400));
        sim.patch(
            &format!("/luns/{uuid}"),
            json!({"description": description}),
        )
        .await;
        sim.fault(LUN, "get", json!({"kind": "garble"})).await;
        let (status, _) = send(&sim, "get", &[("uuid", &uuid)]).await.unwrap();
        assert_eq!(status, 200);
    }
    assert_eq!(sim.state().await["luns"][0]["size"], 2_147_483_648_u64);
}

#[tokio::test]
async fn delay_delays_the_reply() {
    let sim = Sim::new().await;
    let uuid = sim.lun("a", "BLUN", GIB).await;
    sim.fault(LUN, "set", json!({"kind": "delay", "ms": 300}))
        .await;
    let started = Instant::now();
    assert_eq!(sim.code(LUN, "set", &set(&uuid, "2147483648")).await, 0);
    assert!(started.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn a_hanging_call_waits_for_its_release() {
    let sim = Sim::new().await;
    let uuid = sim.lun("a", "BLUN", GIB).await;
    sim.fault(LUN, "set", json!({"kind": "hang"})).await;
    let params = set(&uuid, "2147483648");
    let hanging = send(&sim, "set", &params);
    let release = async {
        until("the call hangs", async || {
            let journal = sim.get("/journal").await;
            (journal["entries"].as_array()?.last()?["fault"] == "hang").then_some(())
        })
        .await;
        assert_eq!(
            sim.state().await["luns"][0]["size"],
            GIB,
            "nothing has happened yet"
        );
        sim.control(reqwest::Method::DELETE, "/faults", None).await;
    };
    let (reply, ()) = tokio::join!(hanging, release);
    assert_eq!(reply.unwrap(), (200, "{\"success\":true}".to_owned()));
    assert_eq!(sim.state().await["luns"][0]["size"], 2_147_483_648_u64);
    assert_eq!(sim.get("/faults").await, json!({"faults": []}));
}

#[tokio::test]
async fn a_hanging_call_whose_client_disconnects_is_never_carried_out() {
    let sim = Sim::new().await;
    let uuid = sim.lun("a", "BLUN", GIB).await;
    sim.fault(LUN, "set", json!({"kind": "hang"})).await;
    let params = set(&uuid, "2147483648");
    let gone = tokio::time::timeout(Duration::from_millis(300), send(&sim, "set", &params)).await;
    assert!(gone.is_err());
    until(
        "the simulator notices that the client disconnected",
        async || {
            let journal = sim.get("/journal").await;
            let note = journal["entries"].as_array()?.last()?["note"]
                .as_str()?
                .to_owned();
            note.contains("the client disconnected").then_some(())
        },
    )
    .await;
    sim.control(reqwest::Method::DELETE, "/faults", None).await;
    pause(100).await;
    assert_eq!(sim.state().await["luns"][0]["size"], GIB);
}

#[tokio::test]
async fn a_client_that_hangs_up_does_not_stop_the_effect() {
    let sim = Sim::new().await;
    let uuid = sim.lun("a", "BLUN", GIB).await;
    sim.fault(LUN, "set", json!({"kind": "delay", "ms": 400}))
        .await;
    let params = set(&uuid, "2147483648");
    let gone = tokio::time::timeout(Duration::from_millis(100), send(&sim, "set", &params)).await;
    assert!(gone.is_err());
    until("the LUN grows", async || {
        (sim.state().await["luns"][0]["size"] == 2_147_483_648_u64).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_lost_reply_inside_a_compound_ends_it_there() {
    let sim = Sim::new().await;
    let uuid = sim.lun("a", "BLUN", GIB).await;
    let calls = json!([
        {"api": LUN, "method": "set", "version": 1, "uuid": uuid, "new_size": 2 * GIB},
        {"api": LUN, "method": "set", "version": 1, "uuid": uuid, "new_size": 3 * GIB},
        {"api": LUN, "method": "set", "version": 1, "uuid": uuid, "new_size": 4 * GIB},
    ])
    .to_string();
    let compound = async || {
        let form = [
            ("api", "SYNO.Entry.Request"),
            ("version", "1"),
            ("method", "request"),
            ("compound", &*calls),
            ("_sid", &*sim.sid),
        ];
        sim.http
            .post(sim.entry())
            .form(&form)
            .send()
            .await?
            .text()
            .await
    };
    sim.post(
        "/faults",
        json!({"api": LUN, "method": "set", "nth": 2, "fault": {"kind": "lose_reply"}}),
    )
    .await;
    assert!(compound().await.is_err());
    assert_eq!(
        sim.state().await["luns"][0]["size"],
        3 * GIB,
        "the second took effect, the third was never made"
    );

    sim.fault(LUN, "set", json!({"kind": "refuse", "code": 117}))
        .await;
    let text = compound().await.unwrap();
    let result = serde_json::from_str::<Value>(&text).unwrap()["data"]["result"].clone();
    let codes: Vec<u64> = result.as_array().unwrap().iter().map(code).collect();
    assert_eq!(
        codes,
        [117, 0, 0],
        "a refused call inside, and the rest continues"
    );

    sim.fault(
        "SYNO.Entry.Request",
        "request",
        json!({"kind": "lose_reply"}),
    )
    .await;
    assert!(
        compound().await.is_err(),
        "a fault for the compound as a whole"
    );
    sim.fault(
        "SYNO.Entry.Request",
        "*",
        json!({"kind": "refuse", "code": 109}),
    )
    .await;
    let text = compound().await.unwrap();
    assert_eq!(code(&serde_json::from_str(&text).unwrap()), 109);
}

#[tokio::test]
async fn a_login_can_be_made_to_fail() {
    let sim = Sim::new().await;
    sim.fault(AUTH, "login", json!({"kind": "refuse", "code": 498}))
        .await;
    assert_eq!(code(&sim.login().await), 498);
}

#[tokio::test]
async fn the_journal_has_every_call_and_no_secret() {
    let sim = Sim::new().await;
    let iqn = "iqn.2000-01.com.synology:t";
    let chap = [
        ("name", "t"),
        ("iqn", iqn),
        ("auth_type", "1"),
        ("user", "u"),
        ("password", "planted-secret"),
    ];
    assert_eq!(sim.code(TARGET, "create", &chap).await, 0);
    let inner = json!([{"api": TARGET, "method": "set", "version": 1, "target_id": "1", "password": "planted-secret2"}]).to_string();
    assert_eq!(
        sim.code("SYNO.Entry.Request", "request", &[("compound", &inner)])
            .await,
        0
    );
    assert_eq!(sim.code("SYNO.FileStation.List", "list", &[]).await, 102);
    let journal = sim.get("/journal").await;
    let entries = journal["entries"].as_array().unwrap();
    let calls: Vec<(&str, &str)> = entries
        .iter()
        .map(|entry| {
            (
                entry["api"].as_str().unwrap(),
                entry["method"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        calls,
        [
            (AUTH, "login"),
            (TARGET, "create"),
            (TARGET, "set"),
            ("SYNO.FileStation.List", "list")
        ]
    );
    let gap = "simulator gap: SYNO.FileStation.List v1 list is not simulated";
    assert_eq!(
        (&entries[3]["code"], &entries[3]["note"]),
        (&json!(102), &json!(gap))
    );
    assert_eq!(entries[1]["params"]["iqn"], iqn);
    for text in [journal.to_string(), sim.state().await.to_string()] {
        for secret in ["planted-secret", sim.sid.as_str()] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }
    let next = journal["next"].as_u64().unwrap();
    assert_eq!(
        sim.get(&format!("/journal?since={next}")).await["entries"],
        json!([])
    );
    assert_eq!(
        sim.get("/counters").await["calls"]["SYNO.Core.ISCSI.Target.create"],
        1
    );
}

#[tokio::test]
async fn equal_state_means_that_nothing_changed() {
    let sim = Sim::new().await;
    let uuid = sim.lun("a", "BLUN", GIB).await;
    let id = sim.target("t").await;
    let before = sim.state().await;
    for (api, method, params, want) in [
        (LUN, "list", vec![], 0),
        (LUN, "get", vec![("uuid", &*uuid)], 0),
        (
            LUN,
            "set",
            vec![("uuid", &*uuid), ("new_size", "5")],
            18_990_502,
        ),
        (
            LUN,
            "create",
            vec![
                ("name", "a"),
                ("type", "BLUN"),
                ("location", "/volume1"),
                ("size", "5"),
            ],
            18_990_538,
        ),
        (TARGET, "enable", vec![("target_id", &*id)], 0),
        (TARGET, "delete", vec![("target_id", "\"t\"")], 18_990_710),
    ] {
        assert_eq!(sim.code(api, method, &params).await, want, "{api} {method}");
        assert_eq!(sim.state().await, before, "{api} {method}");
    }
}

#[tokio::test]
async fn the_control_port_changes_luns_and_volumes() {
    let sim = Sim::new().await;
    let uuid = sim
        .post(
            "/luns",
            json!({"name": "theirs", "size": 7, "description": "hands off"}),
        )
        .await["uuid"]
        .as_str()
        .unwrap()
        .to_owned();
    let patch = json!({"status": "crashed", "is_action_locked": true, "size": 9, "name": "renamed", "description": "other"});
    sim.patch(&format!("/luns/{uuid}"), patch).await;
    let reply = sim
        .call(
            LUN,
            "get",
            &[
                ("uuid", "renamed"),
                ("additional", "[\"status\",\"is_action_locked\"]"),
            ],
        )
        .await;
    let lun = ok(&reply)["lun"].clone();
    assert_eq!(
        (&lun["status"], &lun["is_action_locked"], &lun["size"]),
        (&json!("crashed"), &json!(true), &json!(9))
    );
    assert_eq!(lun["description"], "other");
    sim.patch(
        "/volumes/volume1",
        json!({"status": "crashed", "free": 5 * GIB}),
    )
    .await;
    let reply = sim
        .call(
            "SYNO.Core.Storage.Volume",
            "get",
            &[("volume_path", "/volume1")],
        )
        .await;
    let volume = ok(&reply)["volume"].clone();
    assert_eq!(
        (&volume["status"], &volume["size_free_byte"]),
        (&json!("crashed"), &json!((5 * GIB).to_string()))
    );
    sim.patch("/volumes/volume1", json!({"status": "normal"}))
        .await;
    let thick = [
        ("name", "b"),
        ("type", "BLUN_THICK"),
        ("location", "/volume1"),
        ("size", "5368709121"),
    ];
    assert_eq!(sim.code(LUN, "create", &thick).await, 18_990_002);
}

#[tokio::test]
async fn a_reset_forgets_accounts_and_devices() {
    let secret = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP";
    let sim = Sim::new().await;
    let login = async |params: &[(&str, &str)]| {
        let always = [
            ("api", AUTH),
            ("version", "6"),
            ("method", "login"),
            ("account", "anna"),
            ("passwd", "x"),
        ];
        sim.form(&[&always, params].concat()).await
    };
    let plain = json!({"name": "anna", "password": "x"});
    let guarded = json!({"name": "anna", "password": "x", "otp_secret": secret});
    sim.post("/accounts", plain).await;
    let known = ok(&login(&[("enable_device_token", "yes")]).await);
    let device = [("device_id", known["did"].as_str().unwrap())];
    sim.post("/accounts", guarded.clone()).await;
    assert_eq!(code(&login(&[]).await), 403);
    assert_eq!(code(&login(&device).await), 0);
    sim.post("/reset", json!({})).await;
    assert_eq!(
        code(&login(&device).await),
        400,
        "the account was removed by the reset"
    );
    sim.post("/accounts", guarded).await;
    assert_eq!(
        code(&login(&device).await),
        403,
        "the device was removed by the reset"
    );
}

#[tokio::test]
async fn a_reset_leaves_a_fresh_nas() {
    let sim = Sim::new().await;
    let fresh = sim.state().await;
    sim.lun("a", "BLUN", GIB).await;
    sim.target("t").await;
    sim.patch("/settings", json!({"csrf_protection": true}))
        .await;
    sim.patch("/volumes/volume1", json!({"status": "crashed"}))
        .await;
    sim.fault("*", "*", json!({"kind": "refuse", "code": 117}))
        .await;
    sim.post("/reset", json!({})).await;
    let mut state = sim.state().await;
    assert_eq!(state["sessions"], 0);
    state["sessions"] = json!(1);
    assert_eq!(state, fresh);
    assert_eq!(sim.get("/journal").await["entries"], json!([]));
    assert_eq!(
        code(&sim.login().await),
        0,
        "no faults, and the initial settings"
    );
    assert_eq!(
        std::fs::read_dir(sim.nas.state_dir().join("luns"))
            .unwrap()
            .count(),
        0
    );
}

#[tokio::test]
async fn invalid_requests_to_the_control_port_are_explained() {
    let sim = Sim::new().await;
    for (method, path, body, want, hint) in [
        ("GET", "/nonsense", "", 404, "POST /reset"),
        (
            "POST",
            "/faults",
            "{\"api\":\"A\",\"method\":\"b\",\"fault\":{\"kind\":\"explode\"}}",
            422,
            "explode",
        ),
        ("POST", "/faults", "{", 400, "EOF"),
        (
            "PATCH",
            "/settings",
            "{\"csrf\":true}",
            422,
            "csrf_protection",
        ),
        ("PATCH", "/luns/none", "{}", 404, "GET /state"),
        ("PATCH", "/volumes/volume9", "{}", 404, "GET /state"),
        ("POST", "/luns", "{\"name\":\"a_b\"}", 409, "18990503"),
        ("POST", "/seed", "{\"luns\":1000}", 409, "18990541"),
    ] {
        let url = format!("{}{path}", sim.nas.control());
        let request = sim
            .http
            .request(method.parse().unwrap(), url)
            .header("content-type", "application/json")
            .body(body);
        let reply = request.send().await.unwrap();
        let (status, text) = (reply.status().as_u16(), reply.text().await.unwrap());
        assert!(
            status == want && text.contains(hint),
            "{method} {path} {body}: {status} {text}"
        );
    }
}

#[tokio::test]
async fn a_fault_comes_before_the_effect_or_after_it() {
    let sim = Sim::new().await;
    let uuid = sim.lun("a", "BLUN", GIB).await;
    let mut size = GIB;
    for (kind, takes_effect, status) in [
        (json!({"kind": "lose_call"}), false, None),
        (json!({"kind": "lose_reply"}), true, None),
        (json!({"kind": "http", "status": 504}), false, Some(504)),
        (
            json!({"kind": "http", "status": 504, "after": true}),
            true,
            Some(504),
        ),
        (json!({"kind": "refuse", "code": 117}), false, Some(200)),
        (
            json!({"kind": "refuse", "code": 117, "after": true}),
            true,
            Some(200),
        ),
    ] {
        sim.fault(LUN, "set", kind.clone()).await;
        let new_size = (size + GIB).to_string();
        let reply = send(&sim, "set", &set(&uuid, &new_size)).await;
        assert_eq!(reply.as_ref().ok().map(|reply| reply.0), status, "{kind}");
        if status == Some(200) {
            assert!(reply.unwrap().1.contains("117"), "{kind}");
        }
        if takes_effect {
            size += GIB;
        }
        assert_eq!(sim.state().await["luns"][0]["size"], size, "{kind}");
    }
}

#[tokio::test]
async fn a_fault_can_be_for_one_lun() {
    let sim = Sim::new().await;
    let (hit, other) = (
        sim.lun("a", "BLUN", GIB).await,
        sim.lun("b", "BLUN", GIB).await,
    );
    let rule = json!({"api": LUN, "method": "get", "object": hit, "times": 0, "fault": {"kind": "refuse", "code": 117}});
    sim.post("/faults", rule).await;
    assert_eq!(sim.code(LUN, "get", &[("uuid", &hit)]).await, 117);
    assert_eq!(sim.code(LUN, "get", &[("uuid", &other)]).await, 0);
    let invalid = json!({"api": LUN, "method": "get", "probability": 2, "fault": {"kind": "hang"}});
    let reply = sim
        .http
        .post(format!("{}/faults", sim.nas.control()))
        .header("content-type", "application/json")
        .body(invalid.to_string())
        .send()
        .await
        .unwrap();
    assert_eq!(reply.status(), 422);
    assert!(reply.text().await.unwrap().contains("probability 2"));
}

#[tokio::test]
async fn a_booting_nas_does_not_know_its_luns() {
    let sim = Sim::new().await;
    let uuid = sim.lun("a", "BLUN", GIB).await;
    sim.post("/boot", json!({"loading": "absent", "for_ms": 60_000}))
        .await;
    let get = [("uuid", &*uuid)];
    assert_eq!(sim.code(LUN, "get", &get).await, 119, "sessions are over");
    let sid = sim.login().await["data"]["sid"]
        .as_str()
        .unwrap()
        .to_owned();
    let sim = Sim { sid, ..sim };
    assert_eq!(sim.code(LUN, "get", &get).await, 18_990_531);
    sim.post("/clock", json!({"advance_ms": 60_000})).await;
    assert_eq!(sim.code(LUN, "get", &get).await, 0);
}
