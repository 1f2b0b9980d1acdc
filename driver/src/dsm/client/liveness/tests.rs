//! A NAS that stops answering many pending calls, with paused time.

use std::sync::atomic::Ordering;

use futures::future::join_all;

use super::*;
use crate::dsm::client::limits::RequestLimits;
use crate::dsm::slow_nas::{SlowNas, create, read, wait};

/// When a caller gets the error of a NAS that hangs.
const DETECTED_AFTER: Duration = Duration::from_secs(14);

/// When each caller must have an error.
const BOUND: Duration = Duration::from_secs(20);

/// Duration and result of `count` concurrent calls, reads and creates.
async fn call_many(client: &Client, count: usize) -> Vec<(Duration, Result<(), DsmError>)> {
    let started = Instant::now();
    let one = async |number: usize| {
        let answer = if number.is_multiple_of(2) {
            read(client).await
        } else {
            create(client).await
        };
        (started.elapsed(), answer)
    };
    join_all((0..count).map(one)).await
}

#[track_caller]
fn assert_names_the_silence(error: &DsmError) {
    let source = std::error::Error::source(error);
    let text = format!(
        "{error}: {}",
        source.map(ToString::to_string).unwrap_or_default()
    );
    for word in [
        "NAS nas1 at http://nas.example:5000",
        "has answered nothing since 20",
        "look whether it is up",
    ] {
        assert!(text.contains(word), "{word:?} is not in {text:?}");
    }
}

/// design.md#limits-per-nas
#[tokio::test(start_paused = true)]
async fn a_nas_that_hangs_before_the_login_fails_all_calls_together() {
    let (nas, client) = SlowNas::nas();
    nas.hang(true);
    for (after, answer) in call_many(&client, 200).await {
        assert_names_the_silence(&answer.unwrap_err());
        assert_eq!(after, DETECTED_AFTER);
    }
    assert_eq!((nas.count("login"), nas.count("query")), (1, 1));
}

/// design.md#limits-per-nas
#[tokio::test(start_paused = true)]
async fn a_nas_that_hangs_in_a_session_fails_all_calls_together() {
    let (nas, client) = SlowNas::nas();
    read(&client).await.unwrap();
    nas.hang(true);
    let (mut lost, mut unsent) = (0, 0);
    for (after, answer) in call_many(&client, 200).await {
        let error = answer.unwrap_err();
        assert_names_the_silence(&error);
        if matches!(error, DsmError::Lost { .. }) {
            lost += 1;
        } else {
            assert!(matches!(error, DsmError::Silent(_)), "{error}");
            unsent += 1;
        }
        assert_eq!(after, DETECTED_AFTER);
    }
    // Only what was sent may have been carried out.
    assert_eq!(
        (lost, unsent),
        (
            RequestLimits::MAX_REQUESTS,
            200 - RequestLimits::MAX_REQUESTS
        )
    );
    assert_eq!(
        (nas.now(), nas.count("query")),
        ([0, 0, 1], 1),
        "only the probe's connection is left open"
    );

    // Later calls fail immediately, and after a while a single probe is sent for all.
    let first = call_many(&client, 200).await.pop().unwrap();
    assert_eq!((first.0, nas.count("query")), (Duration::ZERO, 1));
    wait(PROBE_INTERVAL).await;
    for (after, answer) in call_many(&client, 200).await {
        let error = answer.unwrap_err();
        assert!(matches!(error, DsmError::Silent(_)), "{error}");
        assert_eq!(after, SILENCE_LIMIT);
    }
    assert_eq!((nas.count("query"), nas.most()[2]), (2, 1), "one at a time");

    // It recovers, and calls work again immediately.
    nas.hang(false);
    wait(Duration::from_millis(1)).await;
    let started = Instant::now();
    read(&client).await.unwrap();
    assert_eq!(
        started.elapsed(),
        Duration::from_secs(1),
        "its own duration"
    );
    assert_eq!(
        nas.count("query"),
        2,
        "the late reply to the last probe was enough"
    );
}

/// design.md#limits-per-nas
#[tokio::test(start_paused = true)]
async fn the_error_text_stays_the_same_during_an_outage() {
    let (nas, client) = SlowNas::nas();
    read(&client).await.unwrap();
    nas.hang(true);
    read(&client).await.unwrap_err();
    let mut texts = Vec::new();
    for _ in 0..4 {
        wait(PROBE_INTERVAL * 5).await;
        texts.push(read(&client).await.unwrap_err().to_string());
    }
    assert_eq!(nas.count("query"), 5);
    assert!(texts.iter().all(|text| *text == texts[0]), "{texts:?}");
}

/// design.md#limits-per-nas
#[tokio::test(start_paused = true)]
async fn a_nas_that_comes_back_in_time_loses_nothing() {
    let (nas, client) = SlowNas::nas();
    read(&client).await.unwrap();
    nas.hang(true);
    let waiting = call_many(&client, 40);
    let back = async {
        wait(Duration::from_secs(12)).await;
        assert_eq!(nas.count("query"), 1);
        nas.hang(false);
    };
    let (answers, ()) = tokio::join!(waiting, back);
    assert!(
        answers.iter().all(|(_, answer)| answer.is_ok()),
        "{answers:?}"
    );
}

/// design.md#limits-per-nas
#[tokio::test(start_paused = true)]
async fn each_hang_of_a_nas_is_detected() {
    let (nas, client) = SlowNas::nas();
    for _ in 0..3 {
        read(&client).await.unwrap();
        nas.hang(true);
        for (after, answer) in call_many(&client, 30).await {
            assert_names_the_silence(&answer.unwrap_err());
            assert_eq!(after, DETECTED_AFTER);
        }
        nas.hang(false);
        wait(Duration::from_millis(1)).await;
    }
}

/// design.md#limits-per-nas
#[tokio::test(start_paused = true)]
async fn a_slow_nas_is_waited_for() {
    let (nas, client) = SlowNas::nas();
    *nas.takes.lock().unwrap() = Duration::from_secs(55);
    let started = Instant::now();
    create(&client).await.unwrap();
    assert_eq!(started.elapsed(), Duration::from_secs(55));
    assert_eq!(
        (nas.count("query"), nas.most()[2]),
        (10, 1),
        "every five seconds, one at a time"
    );
}

/// design.md#limits-per-nas
#[tokio::test(start_paused = true)]
async fn a_nas_that_hangs_in_one_call_only_is_not_silent() {
    let (nas, client) = SlowNas::nas();
    nas.mute.lock().unwrap().insert("list");
    let started = Instant::now();
    let (read, created) = tokio::join!(read(&client), create(&client));
    created.unwrap();
    let error = read.unwrap_err();
    assert_eq!(started.elapsed(), Duration::from_secs(60));
    let DsmError::Lost { source, .. } = error else {
        panic!("{error}");
    };
    let text = source.to_string();
    assert!(
        text.contains("nas1 gave none within 60 s, though it answers other"),
        "{text}"
    );
    // Likewise for a login, which has a shorter timeout because others wait for it.
    let (nas, client) = SlowNas::nas();
    nas.mute.lock().unwrap().insert("login");
    for (after, answer) in call_many(&client, 200).await {
        let error = answer.unwrap_err();
        assert!(
            matches!(
                error,
                DsmError::Lost {
                    method: "login",
                    ..
                }
            ),
            "{error}"
        );
        assert_eq!(after, Duration::from_secs(15));
    }
    assert_eq!(nas.count("login"), 1);
}

/// design.md#limits-per-nas
#[tokio::test(start_paused = true)]
async fn a_nas_that_is_off_fails_all_calls_together() {
    let (nas, client) = SlowNas::nas();
    nas.off.store(true, Ordering::Relaxed);
    for (after, answer) in call_many(&client, 200).await {
        answer.unwrap_err();
        assert!(after <= BOUND, "{after:?}");
    }
    assert_eq!(nas.count("login"), 1);
    // In a session: calls that wait for a permit do not run into the timeout in turns.
    nas.off.store(false, Ordering::Relaxed);
    // The last probe was lost, so there is no late reply.
    wait(SILENCE_LIMIT + PROBE_INTERVAL).await;
    read(&client).await.unwrap();
    nas.off.store(true, Ordering::Relaxed);
    for (after, answer) in call_many(&client, 200).await {
        answer.unwrap_err();
        assert!(after <= BOUND, "{after:?}");
    }
    nas.off.store(false, Ordering::Relaxed);
    wait(SILENCE_LIMIT + PROBE_INTERVAL).await;
    let started = Instant::now();
    read(&client).await.unwrap();
    assert_eq!(started.elapsed(), Duration::from_secs(1));
}

/// design.md#limits-per-nas
#[tokio::test(start_paused = true)]
async fn a_login_whose_caller_gives_up_is_not_restarted() {
    let (nas, client) = SlowNas::nas();
    nas.hang(true);
    let first = tokio::spawn({
        let client = client.clone();
        async move { read(&client).await }
    });
    wait(Duration::from_secs(5)).await;
    first.abort();
    let started = Instant::now();
    assert_names_the_silence(&read(&client).await.unwrap_err());
    assert_eq!(started.elapsed() + Duration::from_secs(5), DETECTED_AFTER);
    assert_eq!(nas.count("login"), 1);
}
