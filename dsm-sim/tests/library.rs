//! The simulator as a library: the Rust methods of [`DsmSim`], without the control port.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::future::Future;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use common::{AUTH, LUN, Sim, code};
use dsm_sim::{DsmSim, Fault, Rule, Settings, StartError};

/// Runs a fixed sequence of calls: the replies and the state file.
async fn run(seed: u64, dir: &std::path::Path) -> Vec<String> {
    let builder = DsmSim::builder().seed(seed).clock(1_700_000_000_000);
    let sim = Sim::with(builder.state_dir(dir)).await;
    let mut outputs = vec![sim.sid.clone(), sim.login().await.to_string()];
    let size = [
        ("name", "a"),
        ("type", "BLUN"),
        ("location", "/volume1"),
        ("size", "1048576"),
    ];
    let made = sim.call(LUN, "create", &size).await;
    let uuid = made["data"]["uuid"].as_str().unwrap().to_owned();
    outputs.push(made.to_string());
    for (method, name) in [
        ("take_snapshot", "src_lun_uuid"),
        ("list_snapshot", "src_lun_uuid"),
        ("get", "uuid"),
    ] {
        outputs.push(sim.call(LUN, method, &[(name, &uuid)]).await.to_string());
    }
    drop(sim);
    outputs.push(std::fs::read_to_string(dir.join("state.log")).unwrap());
    outputs
}

#[tokio::test]
async fn runs_with_the_same_seed_are_identical() {
    let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let first = run(5, dirs[0].path()).await;
    assert_eq!(first, run(5, dirs[1].path()).await);
    let other = run(6, dirs[2].path()).await;
    assert!(
        first
            .iter()
            .zip(&other)
            .all(|(first, other)| first != other)
    );
    // After a restart in the same directory no id occurs twice.
    let builder = DsmSim::builder().seed(5).clock(1_700_000_000_000);
    let sim = Sim::with(builder.state_dir(dirs[0].path())).await;
    assert!(first.iter().all(|outputs| !outputs.contains(&sim.sid)));
    let uuid = sim.lun("b", "BLUN", 1 << 20).await;
    assert!(first.iter().all(|outputs| !outputs.contains(&uuid)));
}

#[tokio::test]
async fn faults_counters_journal_and_clock_work() {
    let sim = Sim::new().await;
    let list = async || sim.code(LUN, "list", &[]).await;
    let busy = Rule::new(
        LUN,
        "*",
        Fault::Refuse {
            code: 117,
            after: false,
        },
    );
    sim.nas.add_fault(busy.nth(2).times(0));
    assert_eq!([list().await, list().await, list().await], [0, 117, 117]);
    sim.nas.clear_faults();
    assert_eq!(list().await, 0);

    let counters = sim.nas.counters();
    assert_eq!(counters.requests, 5);
    assert_eq!(counters.calls[&format!("{LUN}.list")], 4);
    let journal = sim.nas.journal();
    let calls: Vec<_> = journal
        .iter()
        .map(|entry| (entry.method.as_str(), entry.code, entry.fault))
        .collect();
    let refused = ("list", Some(117), Some("refuse"));
    let succeeded = ("list", None, None);
    let login = ("login", None, None);
    assert_eq!(calls, [login, succeeded, refused, refused, succeeded]);
    assert_eq!(journal[0].params["passwd"], "***");

    sim.nas.advance_clock(Duration::from_secs(14 * 60));
    assert_eq!(list().await, 0, "the session was renewed");
    sim.nas.advance_clock(Duration::from_secs(16 * 60));
    assert_eq!(list().await, 119, "the session has expired");
}

#[tokio::test]
async fn sessions_settings_and_the_whole_nas_can_be_reset() {
    let sim = Sim::new().await;
    sim.nas.expire_sessions();
    assert_eq!(sim.code(LUN, "list", &[]).await, 119);

    sim.nas
        .change_settings(|settings| settings.missing_lun_code = 18_990_505);
    let sid = sim.login().await["data"]["sid"]
        .as_str()
        .unwrap()
        .to_owned();
    let sim = Sim { sid, ..sim };
    let missing = [("uuid", "0f5a1c9e-0000-4000-8000-000000000000")];
    assert_eq!(sim.code(LUN, "get", &missing).await, 18_990_505);
    sim.lun("one", "BLUN", 1 << 30).await;
    for _ in 0..3 {
        sim.form(&[("api", AUTH), ("version", "6"), ("method", "login")])
            .await;
    }
    assert_eq!(code(&sim.login().await), 407, "blocked");
    sim.nas
        .change_settings(|settings| settings.auto_block = false);
    assert_eq!(code(&sim.login().await), 0, "no longer blocked");

    sim.nas.reset().unwrap();
    assert_eq!(sim.nas.settings(), Settings::default());
    assert_eq!(sim.nas.counters().requests, 0);
    assert_eq!(sim.nas.journal().len(), 0);
    assert_eq!(sim.state().await["luns"], serde_json::json!([]));
    assert_eq!(sim.code(LUN, "list", &[]).await, 119);
}

#[tokio::test]
async fn dropping_it_stops_it_and_releases_everything() {
    let nas = DsmSim::builder().start().await.unwrap();
    let dir = nas.state_dir().to_owned();
    let api = nas.api().trim_start_matches("http://").parse().unwrap();
    assert!(dir.join("endpoints.json").exists());
    let second = DsmSim::builder().state_dir(&dir).start().await;
    assert!(matches!(second, Err(StartError::InUse { .. })));
    let taken = DsmSim::builder().listen(api).start().await;
    assert!(matches!(taken, Err(StartError::Listen { .. })));
    drop(nas);
    assert!(!dir.exists(), "a temporary directory is removed");
    DsmSim::builder().listen(api).start().await.unwrap();
}

#[tokio::test]
async fn a_cancelled_start_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let start = || DsmSim::builder().state_dir(dir.path()).start();
    {
        let mut started = std::pin::pin!(start());
        let mut cx = Context::from_waker(Waker::noop());
        assert!(matches!(started.as_mut().poll(&mut cx), Poll::Pending));
    }
    common::until("the directory is unlocked", async || start().await.ok()).await;
}
