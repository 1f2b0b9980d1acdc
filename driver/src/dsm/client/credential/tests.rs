//! With paused time.

use std::time::Duration;

use tokio::time::advance;

use super::*;

const WRONG: &str = "wrong-password";

fn with(password: &SecretString) -> Credential<'_> {
    Credential {
        url: "http://nas",
        account: "csi",
        password,
    }
}

async fn wait(seconds: u64) {
    advance(Duration::from_secs(seconds)).await;
}

/// How long after each refusal with this code the same credential is tried again, in seconds.
async fn pauses(code: u32, times: usize) -> Vec<u64> {
    let (refusals, wrong) = (Refusals::default(), SecretString::from(WRONG));
    let mut seen = Vec::new();
    for _ in 0..times {
        let now = refusals.now();
        let next = refusals.remember("nas1", with(&wrong), Code(code)).unwrap();
        let after = next.at - now;
        wait(after - 1).await;
        assert!(
            refusals.pending("nas1", with(&wrong)).is_some(),
            "not before that"
        );
        wait(1).await;
        assert_eq!(
            refusals.pending("nas1", with(&wrong)),
            None,
            "not after that"
        );
        seen.push(after);
    }
    seen
}

/// design.md#one-login
#[tokio::test(start_paused = true)]
async fn refused_logins_are_retried_after_growing_pauses() {
    assert_eq!(pauses(400, 5).await, [900, 3_600, 21_600, 86_400, 86_400]);
    assert_eq!(pauses(404, 2).await, [900, 3_600]);
    for code in [401, 402, 403, 405, 406, 408, 409, 410, 411] {
        assert_eq!(pauses(code, 4).await, [60, 120, 300, 300], "{code}");
    }
    assert_eq!(pauses(407, 3).await, [600, 600, 600]);
}

/// design.md#one-login
#[tokio::test(start_paused = true)]
async fn transient_refusals_are_not_remembered() {
    let (refusals, wrong) = (Refusals::default(), SecretString::from(WRONG));
    assert_eq!(refusals.remember("nas1", with(&wrong), Code(498)), None);
    assert_eq!(refusals.pending("nas1", with(&wrong)), None);
}

/// design.md#one-login
#[tokio::test(start_paused = true)]
async fn another_credential_is_tried_at_once_and_a_former_one_is_not() {
    let refusals = Refusals::default();
    let [one, two, right] = ["one", "two", "right"].map(SecretString::from);
    refusals.remember("nas1", with(&one), Code(400));
    assert!(refusals.pending("nas1", with(&one)).is_some());
    assert_eq!(refusals.pending("nas2", with(&one)), None);
    assert_eq!(refusals.pending("nas1", with(&two)), None);
    refusals.remember("nas1", with(&two), Code(400));
    // A file that alternates between two of them gets only one attempt for each.
    assert!(refusals.pending("nas1", with(&one)).is_some());
    assert_eq!(refusals.pending("nas1", with(&right)), None);
    // A blocked address is blocked for all of them.
    refusals.remember("nas1", with(&right), Code(407));
    for password in [&one, &two, &right] {
        let (code, next) = refusals.pending("nas1", with(password)).unwrap();
        assert_eq!((code, next.restart), (Code::ADDRESS_BLOCKED, false));
    }
    wait(600).await;
    assert_eq!(refusals.pending("nas1", with(&right)), None);
    assert!(refusals.pending("nas1", with(&one)).is_some());
    refusals.forget("nas1");
    assert_eq!(refusals.pending("nas1", with(&one)), None);
}

/// design.md#one-login
#[tokio::test(start_paused = true)]
async fn another_kind_of_refusal_restarts_the_pauses() {
    let (refusals, wrong) = (Refusals::default(), SecretString::from(WRONG));
    for _ in 0..3 {
        refusals.remember("nas1", with(&wrong), Code(400));
        wait(DAY).await;
    }
    let now = refusals.now();
    let next = refusals.remember("nas1", with(&wrong), Code(402)).unwrap();
    assert_eq!(next.at - now, 60);
}

/// design.md#one-login
#[tokio::test(start_paused = true)]
async fn a_restart_tries_at_once_and_never_more_often_than_auto_block_allows() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("refused.json");
    let open = || Refusals::open(Some(file.clone())).unwrap();
    let wrong = SecretString::from(WRONG);
    for code in [401, 402, 403, 411] {
        open().remember("nas1", with(&wrong), Code(code));
        for _ in 0..3 {
            assert_eq!(open().pending("nas1", with(&wrong)), None, "{code}");
        }
    }
    open().forget("nas1");
    // A driver in a restart loop with a wrong password: one more attempt, and then as seldom as without restarts.
    for tries in 1..=2 {
        let refusals = open();
        assert_eq!(refusals.pending("nas1", with(&wrong)), None, "{tries}");
        let next = refusals.remember("nas1", with(&wrong), Code(400)).unwrap();
        assert_eq!(next.restart, tries < 2, "the prediction is right");
    }
    let refusals = open();
    let (code, next) = refusals.pending("nas1", with(&wrong)).unwrap();
    assert_eq!((code, next.restart), (Code::WRONG_PASSWORD, false));
    assert!(next.at - refusals.now() <= HOUR);
    assert!(
        !std::fs::read_to_string(&file).unwrap().contains(WRONG),
        "the file holds no password"
    );
    // A blocked address stays blocked for ten minutes, despite restarts.
    refusals.remember("nas1", with(&wrong), Code(407));
    let (code, next) = open().pending("nas1", with(&wrong)).unwrap();
    assert_eq!(code, Code::ADDRESS_BLOCKED);
    assert!((590..=600).contains(&(next.at - refusals.now())));
}

/// Whenever it is restarted: at most two failures an hour and four a day. design.md#one-login
#[test]
fn restarts_never_exceed_the_failure_limits() {
    let (wrong, mut tried) = (SecretString::from(WRONG), Vec::new());
    let mut record = Record::default();
    let start = 1_767_225_600;
    for minute in 0..3 * 24 * 60 {
        let now = start + minute * MINUTE;
        // It restarts every minute, except in some hours.
        if minute / 60 % 5 != 3 {
            record = record.restored(now);
        }
        if record.pending(with(&wrong), now).is_none() {
            tried.push(now);
            record.refuse(with(&wrong), Code(400), now);
        }
    }
    assert!(tried.len() >= 4, "it does not give up: {tried:?}");
    for (span, most) in FAILURE_LIMITS {
        for from in &tried {
            let within = tried.iter().filter(|at| (*from..from + span).contains(at));
            assert!(within.count() <= most, "{span} s from {from}: {tried:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_file_of_the_previous_version_is_read_and_a_clock_set_back_blocks_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("refused.json");
    std::fs::write(
        &file,
        r#"{"nas1": {"salt": "00", "hash": "11", "code": 402}}"#,
    )
    .unwrap();
    let (refusals, wrong) = (
        Refusals::open(Some(file.clone())).unwrap(),
        SecretString::from(WRONG),
    );
    assert_eq!(refusals.pending("nas1", with(&wrong)), None);
    refusals.remember("nas1", with(&wrong), Code(407));
    let text = std::fs::read_to_string(&file).unwrap();
    let mut known: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        known["nas1"]["code"], 402,
        "the previous version can read it"
    );
    known["nas1"]["blocked"] = (refusals.now() + 10 * DAY).into();
    std::fs::write(&file, known.to_string()).unwrap();
    let (_, next) = Refusals::open(Some(file))
        .unwrap()
        .pending("nas1", with(&wrong))
        .unwrap();
    assert!(next.at <= refusals.now() + BLOCKED_PAUSE);
}

#[test]
fn a_malformed_state_file_is_an_error_and_not_overwritten() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("refused.json");
    std::fs::write(&file, "not json").unwrap();
    assert!(Refusals::open(Some(file.clone())).is_err());
    for nothing in ["", "\n", "\0"] {
        std::fs::write(&file, nothing).unwrap();
        assert_eq!(
            Refusals::open(Some(file.clone())).is_ok(),
            nothing != "\0",
            "{nothing:?}"
        );
    }
}
