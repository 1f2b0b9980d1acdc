//! A NAS that stops answering, with many who wait for it, in paused time.

use std::sync::atomic::Ordering;

use futures::future::join_all;

use super::*;
use crate::dsm::client::limits::RequestLimits;
use crate::dsm::slow_nas::{SlowNas, ask, create, later};

/// When a caller has its cause.
const TOLD: Duration = Duration::from_secs(14);

/// Whoever calls has to have its cause by then.
const BOUND: Duration = Duration::from_secs(20);

/// What so many get that ask and create at the same time, and after which time.
async fn crowd(client: &Client, count: usize) -> Vec<(Duration, Result<(), DsmError>)> {
    let started = Instant::now();
    let one = async |number: usize| {
        let answer = if number.is_multiple_of(2) {
            ask(client).await
        } else {
            create(client).await
        };
        (started.elapsed(), answer)
    };
    join_all((0..count).map(one)).await
}

#[track_caller]
fn is_told(error: &DsmError) {
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
async fn a_nas_that_hangs_before_the_login_is_told_of_to_all_at_once() {
    let (nas, client) = SlowNas::nas();
    nas.hang(true);
    for (after, answer) in crowd(&client, 200).await {
        is_told(&answer.unwrap_err());
        assert_eq!(after, TOLD);
    }
    assert_eq!((nas.count("login"), nas.count("query")), (1, 1));
}

/// design.md#limits-per-nas
#[tokio::test(start_paused = true)]
async fn a_nas_that_hangs_in_a_session_is_told_of_to_all_at_once() {
    let (nas, client) = SlowNas::nas();
    ask(&client).await.unwrap();
    nas.hang(true);
    let (mut lost, mut unsent) = (0, 0);
    for (after, answer) in crowd(&client, 200).await {
        let error = answer.unwrap_err();
        is_told(&error);
        if matches!(error, DsmError::Lost { .. }) {
            lost += 1;
        } else {
            assert!(matches!(error, DsmError::Silent(_)), "{error}");
            unsent += 1;
        }
        assert_eq!(after, TOLD);
    }
    // Only what was sent may have been carried out.
    assert_eq!(
        (lost, unsent),
        (RequestLimits::MOST, 200 - RequestLimits::MOST)
    );
    assert_eq!(
        (nas.now(), nas.count("query")),
        ([0, 0, 1], 1),
        "no connection is kept but the question's"
    );

    // Who comes next learns it at once, and after a while another question is asked, by one for all.
    let first = crowd(&client, 200).await.pop().unwrap();
    assert_eq!((first.0, nas.count("query")), (Duration::ZERO, 1));
    later(PROBE_INTERVAL).await;
    for (after, answer) in crowd(&client, 200).await {
        let error = answer.unwrap_err();
        assert!(matches!(error, DsmError::Silent(_)), "{error}");
        assert_eq!(after, SILENCE_LIMIT);
    }
    assert_eq!((nas.count("query"), nas.most()[2]), (2, 1), "one at a time");

    // It comes to itself, and everything goes on at once.
    nas.hang(false);
    later(Duration::from_millis(1)).await;
    let started = Instant::now();
    ask(&client).await.unwrap();
    assert_eq!(
        started.elapsed(),
        Duration::from_secs(1),
        "what it takes by itself"
    );
    assert_eq!(
        nas.count("query"),
        2,
        "the answer to the last question was enough"
    );
}

/// design.md#limits-per-nas
#[tokio::test(start_paused = true)]
async fn the_same_outage_is_told_in_the_same_words() {
    let (nas, client) = SlowNas::nas();
    ask(&client).await.unwrap();
    nas.hang(true);
    ask(&client).await.unwrap_err();
    let mut words = Vec::new();
    for _ in 0..4 {
        later(PROBE_INTERVAL * 5).await;
        words.push(ask(&client).await.unwrap_err().to_string());
    }
    assert_eq!(nas.count("query"), 5);
    assert!(words.iter().all(|text| *text == words[0]), "{words:?}");
}

/// design.md#limits-per-nas
#[tokio::test(start_paused = true)]
async fn a_nas_that_comes_back_in_time_loses_nothing() {
    let (nas, client) = SlowNas::nas();
    ask(&client).await.unwrap();
    nas.hang(true);
    let waiting = crowd(&client, 40);
    let back = async {
        later(Duration::from_secs(12)).await;
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
async fn one_that_hangs_again_and_again_is_believed_each_time() {
    let (nas, client) = SlowNas::nas();
    for _ in 0..3 {
        ask(&client).await.unwrap();
        nas.hang(true);
        for (after, answer) in crowd(&client, 30).await {
            is_told(&answer.unwrap_err());
            assert_eq!(after, TOLD);
        }
        nas.hang(false);
        later(Duration::from_millis(1)).await;
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
async fn a_nas_of_which_one_call_hangs_is_not_called_hung() {
    let (nas, client) = SlowNas::nas();
    nas.mute.lock().unwrap().insert("list");
    let started = Instant::now();
    let (asked, made) = tokio::join!(ask(&client), create(&client));
    made.unwrap();
    let error = asked.unwrap_err();
    assert_eq!(started.elapsed(), Duration::from_secs(60));
    let DsmError::Lost { source, .. } = error else {
        panic!("{error}");
    };
    let text = source.to_string();
    assert!(
        text.contains("nas1 gave none within 60 s, though it answers other"),
        "{text}"
    );
    // The same of the login, which has less time because others wait for it.
    let (nas, client) = SlowNas::nas();
    nas.mute.lock().unwrap().insert("login");
    for (after, answer) in crowd(&client, 200).await {
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
async fn a_nas_that_is_off_is_told_of_to_all_at_once() {
    let (nas, client) = SlowNas::nas();
    nas.off.store(true, Ordering::Relaxed);
    for (after, answer) in crowd(&client, 200).await {
        answer.unwrap_err();
        assert!(after <= BOUND, "{after:?}");
    }
    assert_eq!(nas.count("login"), 1);
    // In a session: those that wait for a place do not find out in turns.
    nas.off.store(false, Ordering::Relaxed);
    // The last question was sent to nobody, and its answer does not come any more.
    later(SILENCE_LIMIT + PROBE_INTERVAL).await;
    ask(&client).await.unwrap();
    nas.off.store(true, Ordering::Relaxed);
    for (after, answer) in crowd(&client, 200).await {
        answer.unwrap_err();
        assert!(after <= BOUND, "{after:?}");
    }
    nas.off.store(false, Ordering::Relaxed);
    later(SILENCE_LIMIT + PROBE_INTERVAL).await;
    let started = Instant::now();
    ask(&client).await.unwrap();
    assert_eq!(started.elapsed(), Duration::from_secs(1));
}

/// design.md#limits-per-nas
#[tokio::test(start_paused = true)]
async fn a_login_whose_caller_leaves_is_not_begun_anew() {
    let (nas, client) = SlowNas::nas();
    nas.hang(true);
    let first = tokio::spawn({
        let client = client.clone();
        async move { ask(&client).await }
    });
    later(Duration::from_secs(5)).await;
    first.abort();
    let started = Instant::now();
    is_told(&ask(&client).await.unwrap_err());
    assert_eq!(started.elapsed() + Duration::from_secs(5), TOLD);
    assert_eq!(nas.count("login"), 1);
}
