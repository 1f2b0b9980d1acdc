//! The dsm-sim program: state directory, signals, flags, messages and help.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use common::{endpoints, program};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

fn serve(dir: &Path, flags: &[&str]) -> Command {
    let mut command = program(&[
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--control",
        "127.0.0.1:0",
    ]);
    command
        .args(flags)
        .arg("--state-dir")
        .arg(dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn run(mut command: Command) -> (bool, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    (
        status.success(),
        String::from_utf8(stdout).unwrap(),
        String::from_utf8(stderr).unwrap(),
    )
}

fn terminate(child: &Child) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
}

#[tokio::test]
async fn it_prints_its_addresses_and_exits_cleanly_on_sigterm() {
    let dir = tempfile::tempdir().unwrap();
    let password = dir.path().join("password");
    std::fs::write(&password, "planted-secret\n").unwrap();
    let journal = dir.path().join("journal.jsonl");
    let (password, journal) = (password.to_str().unwrap(), journal.to_str().unwrap());
    let flags = [
        "--password-file",
        password,
        "--journal-file",
        journal,
        "--log-level",
        "trace",
        "--model",
        "ds218play",
    ];
    let mut child = serve(dir.path(), &flags).spawn().unwrap();
    let endpoints = endpoints(&mut child, dir.path()).await;
    let api = endpoints["api"].as_str().unwrap();
    let login =
        "api=SYNO.API.Auth&version=6&method=login&account=admin&passwd=planted-secret&format=sid";
    let http = common::client().build().unwrap();
    let reply = http
        .post(format!("{api}/webapi/entry.cgi"))
        .body(login)
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    assert!(reply.contains("\"success\":true"), "{reply}");

    let (success, _, stderr) = run(serve(dir.path(), &[]));
    assert!(
        !success && stderr.contains("another dsm-sim is running") && stderr.contains("--state-dir"),
        "{stderr}"
    );

    terminate(&child);
    let Output {
        status,
        stdout,
        stderr,
    } = child.wait_with_output().unwrap();
    let (stdout, stderr) = (
        String::from_utf8(stdout).unwrap(),
        String::from_utf8(stderr).unwrap(),
    );
    assert!(status.success(), "{status} {stderr}");
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    assert!(
        stdout.contains("DS218play") && stdout.contains(api),
        "{stdout}"
    );
    assert!(!dir.path().join("endpoints.json").exists());
    let journal = std::fs::read_to_string(journal).unwrap();
    assert!(
        journal.lines().count() == 1 && journal.contains("\"method\":\"login\""),
        "{journal}"
    );
    for text in [&stdout, &stderr, &journal] {
        assert!(!text.contains("planted-secret"), "{text}");
    }
}

#[tokio::test]
async fn https_needs_only_one_flag() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = serve(dir.path(), &["--https", "127.0.0.1:0"])
        .spawn()
        .unwrap();
    let endpoints = endpoints(&mut child, dir.path()).await;
    let ca = dir.path().join("tls/ca.pem");
    assert_eq!(endpoints["ca_file"], ca.to_str().unwrap());
    let https = endpoints["https"].as_str().unwrap();
    let ca = reqwest::Certificate::from_pem(&std::fs::read(&ca).unwrap()).unwrap();
    let http = common::client().tls_certs_only([ca]).build().unwrap();
    let query = "api=SYNO.API.Info&version=1&method=query&query=all";
    let reply = http.get(format!("{https}/webapi/query.cgi?{query}"));
    assert!(reply.send().await.unwrap().status().is_success());
    terminate(&child);
    let stdout = child.wait_with_output().unwrap().stdout;
    let stdout = String::from_utf8(stdout).unwrap();
    assert!(
        stdout.contains(https) && stdout.contains("ca.pem"),
        "{stdout}"
    );
}

#[tokio::test]
async fn settings_can_be_changed_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let flags = [
        "--setting=compounds_go_on=true",
        "--setting=timeout_minutes=3",
    ];
    let mut child = serve(dir.path(), &flags).spawn().unwrap();
    let endpoints = endpoints(&mut child, dir.path()).await;
    let url = format!("{}/settings", endpoints["control"].as_str().unwrap());
    let http = common::client().build().unwrap();
    let reply = http.get(url).send().await.unwrap().text().await.unwrap();
    let settings: serde_json::Value = serde_json::from_str(&reply).unwrap();
    assert_eq!(settings["compounds_go_on"], true);
    assert_eq!(settings["timeout_minutes"], 3);
    assert_eq!(settings["target_get_takes_names"], true);
    terminate(&child);
    child.wait().unwrap();
}

#[test]
fn error_messages_name_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    for (flags, hint) in [
        (vec!["--volume", "/volume1=xfs:1TiB"], "btrfs, ext4"),
        (vec!["--model", "DS1"], "DS923+"),
        (vec!["--dsm", "5"], "say 6, 7 or one of 6.2, 7.0"),
        (vec!["--latency", "slow"], "say instant or ds918"),
        (vec!["--export", "nfs"], "say none, loop, tgt or lio"),
        (
            vec!["--password-file", "missing-file"],
            "--password-file missing-file",
        ),
        (vec!["--setting", "csrf"], "say NAME=true"),
        (vec!["--setting", "nonsense=true"], "compounds_go_on"),
        (vec!["--listen", "203.0.113.1:5000"], "take another port"),
        (vec!["--tls-cert", "cert.pem"], "--tls-key"),
        (vec!["--tls-cert", "no.pem", "--tls-key", "k"], "no.pem"),
        (vec!["--tls-cert", "c", "--tls-name", "n"], "cannot be used"),
    ] {
        let mut command = program(&["serve", "--control", "127.0.0.1:0"]);
        command.args(&flags).arg("--state-dir").arg(dir.path());
        let (success, _, stderr) = run(command);
        assert!(!success && stderr.contains(hint), "{flags:?}: {stderr}");
    }
    std::fs::write(dir.path().join("state.json"), "nonsense").unwrap();
    let (success, _, stderr) = run(serve(dir.path(), &[]));
    assert!(!success && stderr.contains("state.json"), "{stderr}");
}

#[tokio::test]
async fn a_volume_with_luns_cannot_be_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let start = |volume: &str| {
        let nas = dsm_sim::DsmSim::builder().state_dir(dir.path());
        nas.volumes([volume.parse().unwrap()]).start()
    };
    let first = start("/volume1=btrfs:1TiB").await.unwrap();
    let reply = common::client()
        .build()
        .unwrap()
        .post(format!("{}/seed", first.control()))
        .header("content-type", "application/json")
        .body("{\"luns\":1}")
        .send()
        .await
        .unwrap();
    assert!(reply.status().is_success());
    drop(first);
    let error = start("/volume2=btrfs:1TiB").await.unwrap_err().to_string();
    assert!(error.contains("add --volume /volume1"), "{error}");
    let grown = start("/volume1=btrfs:4TiB").await;
    grown.expect("a volume may grow");
}

#[test]
fn the_assumptions_can_be_printed() {
    let (success, stdout, _) = run(program(&["assumptions"]));
    assert!(success && stdout.lines().count() >= 40, "{stdout}");
    for assumption in [
        "live sessions are dropped",
        "18990502; every driver refuses to shrink",
        "stop_when_error",
    ] {
        assert!(
            stdout.contains(assumption),
            "{assumption} is not in {stdout}"
        );
    }
    assert!(stdout.lines().all(|line| line.contains(".rs:")), "{stdout}");
}

#[test]
fn help_shows_how_to_start() {
    for (args, text) in [
        (vec!["--help"], "curl"),
        (vec!["serve", "--help"], "127.0.0.1:5000"),
        (vec!["serve", "--help"], "\"admin\""),
        (vec!["serve", "--help"], "ca.pem"),
        (vec!["serve", "--help"], "PATCH /settings"),
    ] {
        let (success, stdout, _) = run(program(&args));
        assert!(success && stdout.contains(text), "{args:?}: {stdout}");
    }
}
