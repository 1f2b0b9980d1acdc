//! `dsm-sim diff` with a second simulator as the NAS: it finds the differences and sends only read-only calls.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use common::{LUN, Sim, program};
use dsm_sim::compare::diff::{Read, Report, diff};
use dsm_sim::{Builder, DsmSim, Https, Settings, TlsTrust, Upstream};
use serde_json::{Value, json};

/// A NAS with a LUN, a target, a mapping and a snapshot.
async fn used(builder: Builder) -> Sim {
    let sim = Sim::with(builder).await;
    let dev_attribs = r#"[{"dev_attrib":"can_snapshot","enable":1}]"#;
    let params = [
        ("name", "\"theirs\""),
        ("type", "BLUN"),
        ("location", "/volume1"),
        ("size", "2147483648"),
        ("dev_attribs", dev_attribs),
    ];
    let reply = sim.call(LUN, "create", &params).await;
    let uuid = common::ok(&reply)["uuid"].to_string();
    let target = sim.target("theirs").await.replace('"', "");
    let ids = format!("[{target}]");
    let map = [("uuid", uuid.as_str()), ("target_ids", &ids)];
    assert_eq!(sim.code(LUN, "map_target", &map).await, 0);
    let take = [
        ("src_lun_uuid", uuid.as_str()),
        ("snapshot_name", "\"theirs\""),
        ("taken_by", "\"them\""),
    ];
    assert_eq!(sim.code(LUN, "take_snapshot", &take).await, 0);
    sim
}

fn at(url: &str) -> Upstream {
    Upstream {
        url: url.parse().unwrap(),
        trust: TlsTrust::Platform,
    }
}

async fn run_diff(url: &str) -> Report {
    diff(&at(url), "admin", "admin").await.unwrap()
}

fn lines(report: &Report) -> Vec<String> {
    let calls = report.calls.iter();
    calls
        .flat_map(|call| {
            let differences = call.differences.iter();
            differences.map(|difference| format!("{}{difference}", call.call))
        })
        .collect()
}

#[tokio::test]
async fn a_simulator_does_not_differ_from_itself() {
    for dsm in ["6.2", "7.0", "7.3"] {
        for (csrf_protection, sid_in_form) in [(false, true), (true, false)] {
            let settings = Settings {
                csrf_protection: false,
                sid_in_form,
                ..Settings::default()
            };
            let nas = DsmSim::builder()
                .dsm(dsm.parse().unwrap())
                .model("DS423".parse().unwrap());
            let sim = Sim::with(nas.settings(settings)).await;
            sim.nas
                .change_settings(|settings| settings.csrf_protection = csrf_protection);
            let report = run_diff(sim.nas.api()).await;
            assert_eq!(lines(&report), [""; 0], "{dsm}");
            assert_eq!(report.nas, report.simulated, "{dsm}");
            assert_eq!(report.nas[0], "DS423");
        }
    }
    let report = run_diff(used(DsmSim::builder()).await.nas.api()).await;
    assert_eq!(report.calls.len(), Read::ALL.len());
    assert_eq!((lines(&report), report.notes), (vec![], vec![]));
}

#[tokio::test]
async fn only_reading_calls_arrive() {
    let sim = used(DsmSim::builder()).await;
    let state = sim.state().await;
    let before = sim.nas.journal().len();
    run_diff(sim.nas.api()).await;
    let journal = sim.nas.journal();
    let arrived: Vec<(&str, &str)> = journal[before..]
        .iter()
        .map(|call| (call.api.as_str(), call.method.as_str()))
        .collect();
    let mut expected = vec![("SYNO.API.Auth", "login")];
    expected.extend([
        ("SYNO.API.Info", "query"),
        ("SYNO.Core.System", "info"),
        ("SYNO.Core.Storage.Volume", "list"),
        ("SYNO.Core.Storage.Volume", "get"),
        ("SYNO.Core.ISCSI.LUN", "list"),
        ("SYNO.Core.ISCSI.LUN", "get"),
        ("SYNO.Core.ISCSI.Target", "list"),
        ("SYNO.Core.ISCSI.Target", "get"),
        ("SYNO.Core.ISCSI.LUN", "list_snapshot"),
        ("SYNO.Core.ISCSI.Node", "list"),
        ("SYNO.Core.ISCSI.Host", "list"),
        ("SYNO.Core.Network.Interface", "list"),
        ("SYNO.Core.System.Utilization", "get"),
        ("SYNO.Storage.CGI.Storage", "load_info"),
        ("SYNO.Core.Security.DSM", "get"),
        ("SYNO.API.Auth", "logout"),
    ]);
    assert_eq!(arrived, expected);
    assert_eq!(sim.state().await, state, "nothing has changed");
    let methods: BTreeSet<&str> = Read::ALL.map(Read::method).into();
    assert!(methods.iter().all(|method| {
        ["query", "info", "list", "get", "list_snapshot", "load_info"].contains(method)
    }));
}

/// A proxy in front of a NAS that removes, adds and changes a field of a LUN, and reports DSM 7.2.4 instead of 6.2.4.
async fn odd_nas(upstream: String) -> String {
    async fn forward(
        State(upstream): State<String>,
        uri: Uri,
        headers: HeaderMap,
        body: Bytes,
    ) -> String {
        let url = format!("{upstream}{uri}");
        let mut request = common::client().build().unwrap().post(url).body(body);
        if let Some(cookie) = headers.get("cookie") {
            request = request.header("cookie", cookie);
        }
        let text = request.send().await.unwrap().text().await.unwrap();
        let text = text.replace("DSM 6.2.4", "DSM 7.2.4");
        let mut reply: Value = serde_json::from_str(&text).unwrap();
        if let Some(lun) = reply["data"].get_mut("lun").filter(|lun| lun.is_object()) {
            lun.as_object_mut().unwrap().remove("extent_size").unwrap();
            lun["size"] = json!("12");
            lun["only_here"] = json!(1);
        }
        reply.to_string()
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().fallback(forward).with_state(upstream);
    tokio::spawn(async { axum::serve(listener, router).await.unwrap() });
    url
}

#[tokio::test]
async fn each_difference_is_reported() {
    let sim = used(DsmSim::builder()).await;
    let url = odd_nas(sim.nas.api().to_owned()).await;
    assert_eq!(
        lines(&run_diff(&url).await),
        [
            "SYNO.Core.ISCSI.LUN get.data.lun.extent_size is simulated and not recorded",
            "SYNO.Core.ISCSI.LUN get.data.lun.only_here is recorded and not simulated",
            "SYNO.Core.ISCSI.LUN get.data.lun.size: recorded a string, simulated an integer",
        ]
    );
}

#[tokio::test]
async fn another_release_is_detected() {
    let sim = Sim::with(DsmSim::builder().dsm("6.2".parse().unwrap())).await;
    let report = run_diff(&odd_nas(sim.nas.api().to_owned()).await).await;
    let lines = lines(&report);
    for difference in [
        "SYNO.API.Info query.data.SYNO.API.Auth.maxVersion: recorded 6, simulated 7",
        "SYNO.API.Info query.data.SYNO.API.Auth.path: recorded \"auth.cgi\", simulated \"entry.cgi\"",
        "SYNO.Core.ISCSI.Host list.success: recorded false, simulated true",
    ] {
        assert!(lines.iter().any(|line| line == difference), "{lines:#?}");
    }
    // It has no LUN to read.
    let missing = "SYNO.Core.ISCSI.LUN get: not asked, the NAS has no such object";
    assert!(report.notes.iter().any(|note| note == missing));
}

/// Runs the program: exit code, stdout and stderr.
async fn run(url: &str, more: &[&str], password: &str) -> (i32, String, String) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    std::fs::write(&file, format!("{password}\n")).unwrap();
    let mut command = program(&["diff", "--nas", url, "--account", "admin"]);
    command.args(more).arg("--password-file").arg(&file);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap();
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[tokio::test]
async fn the_exit_code_tells_the_result() {
    let sim = used(DsmSim::builder().https(Https::default())).await;
    let url = sim.nas.api();
    let (code, out, error) = run(url, &["--read-only"], "admin").await;
    assert_eq!((code, error.as_str()), (0, ""), "{out}");
    assert!(out.contains("0 differences"), "{out}");

    let odd = odd_nas(url.to_owned()).await;
    let (code, out, _) = run(&odd, &["--read-only"], "admin").await;
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("only_here is recorded") && out.contains("3 differences"));
    let (code, out, _) = run(&odd, &["--read-only", "--json"], "admin").await;
    let report: Value = serde_json::from_str(&out).unwrap();
    let lun = &report["calls"][5];
    assert_eq!((code, &lun["call"]), (1, &json!("SYNO.Core.ISCSI.LUN get")));
    assert_eq!(lun["differences"][0]["kind"], "additional");

    let secure = sim.nas.https().unwrap();
    let ca = sim.nas.ca_file().unwrap().to_str().unwrap();
    for (more, expected) in [
        (&["--read-only"][..], 2),
        (&["--read-only", "--insecure"], 0),
        (&["--read-only", "--ca-file", ca], 0),
    ] {
        let (code, out, error) = run(secure, more, "admin").await;
        assert_eq!(code, expected, "{more:?}: {out}{error}");
    }
    for (more, password, word) in [
        (&["--read-only"][..], "wrong-password", "code 400"),
        (&[], "admin", "--read-only"),
    ] {
        let (code, out, error) = run(url, more, password).await;
        assert_eq!((code, out.as_str()), (2, ""), "{error}");
        assert!(
            error.contains(word) && !error.contains("wrong-p"),
            "{error}"
        );
    }
}
