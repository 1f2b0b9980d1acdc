//! Many calls at once against a NAS that is played, in paused time.

use std::time::Duration;

use futures::future::join_all;

use super::*;
use crate::dsm::call::Call;
use crate::dsm::slow_nas::{SlowNas, ask, create, later};

const SECOND: Duration = Duration::from_secs(1);
/// Long enough for everything that takes no time.
const MOMENT: Duration = Duration::from_millis(1);

fn crowd<F>(
    count: usize,
    client: &Client,
    act: impl Fn(Client) -> F,
) -> Vec<tokio::task::JoinHandle<F::Output>>
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    (0..count)
        .map(|_| tokio::spawn(act(client.clone())))
        .collect()
}

fn asking(count: usize, client: &Client) -> Vec<tokio::task::JoinHandle<Result<(), DsmError>>> {
    crowd(count, client, |client| async move { ask(&client).await })
}

fn creating(count: usize, client: &Client) -> Vec<tokio::task::JoinHandle<Result<(), DsmError>>> {
    crowd(count, client, |client| async move { create(&client).await })
}

/// design.md#limits-per-nas
#[tokio::test(start_paused = true)]
async fn requests_under_way_are_bounded_and_their_queue_costs_no_deadline() {
    let (nas, client) = SlowNas::nas();
    let started = Instant::now();
    // They take 200 s together, which is more than any request has.
    let creates = creating(200, &client);
    let asked = asking(200, &client);
    for answer in join_all(asked).await {
        answer.unwrap().unwrap();
    }
    assert_eq!(
        started.elapsed().as_secs(),
        13,
        "200 in sixteens of a second"
    );
    for answer in join_all(creates).await {
        answer.unwrap().unwrap();
    }
    assert_eq!(started.elapsed().as_secs(), 200);
    assert_eq!(nas.most()[..2], [CREATES, COMMON]);
    assert_eq!(
        nas.count("query"),
        0,
        "a busy NAS is not asked whether it is there"
    );
}

/// design.md#limits-per-nas
#[tokio::test(start_paused = true)]
async fn creates_hold_up_nothing_else() {
    let (nas, client) = SlowNas::nas();
    let creates = creating(200, &client);
    later(SECOND / 2).await;
    let started = Instant::now();
    ask(&client).await.unwrap();
    assert_eq!(started.elapsed(), SECOND, "what it takes by itself");
    assert_eq!(nas.now()[0], CREATES);
    for create in creates {
        create.abort();
    }
}

/// design.md#limits-per-nas
#[tokio::test(start_paused = true)]
async fn a_place_is_taken_until_the_request_has_ended() {
    let (nas, client) = SlowNas::nas();
    *nas.takes.lock().unwrap() = 30 * SECOND;
    let asked = asking(COMMON, &client);
    later(SECOND).await;
    assert_eq!(nas.now()[1], COMMON);
    // All of them are given up, as gRPC does at the caller's deadline: the NAS is at work all the same.
    for task in &asked {
        task.abort();
    }
    join_all(asked).await;
    let started = Instant::now();
    ask(&client).await.unwrap();
    assert_eq!(started.elapsed(), (29 + 30) * SECOND);
    assert_eq!(nas.most()[1], COMMON);
}

/// design.md#limits-per-nas
#[tokio::test(start_paused = true)]
async fn logins_and_logouts_wait_behind_nobody() {
    let (nas, client) = SlowNas::nas();
    *nas.takes.lock().unwrap() = 30 * SECOND;
    let asked = asking(COMMON * 3, &client);
    later(SECOND).await;
    assert_eq!(nas.now()[1], COMMON);
    let started = Instant::now();
    client.logout().await;
    client.session().await.unwrap();
    assert_eq!(started.elapsed(), Duration::ZERO);
    assert_eq!((nas.count("login"), nas.count("logout")), (2, 1));
    for answer in join_all(asked).await {
        answer.unwrap().unwrap();
    }
}

/// design.md#limits-per-nas
#[tokio::test(start_paused = true)]
async fn each_nas_has_its_own_places() {
    let ((slow, client), (_, other)) = (SlowNas::nas(), SlowNas::nas());
    *slow.takes.lock().unwrap() = 50 * SECOND;
    let asked = asking(100, &client);
    later(MOMENT).await;
    assert_eq!(slow.now()[1], COMMON);
    let started = Instant::now();
    ask(&other).await.unwrap();
    assert_eq!(started.elapsed(), SECOND);
    drop(asked);
}

/// design.md#limits-per-nas
#[test]
fn a_compound_waits_with_its_create() {
    let call = |method| Call::new(crate::dsm::lun::API, 1, method);
    for (method, lane) in [
        ("create", RequestClass::Creates),
        ("clone", RequestClass::Creates),
        ("get", RequestClass::Common),
        ("delete", RequestClass::Common),
        ("map_target", RequestClass::Common),
    ] {
        assert_eq!(call(method).lane(), lane, "{method}");
        let get = call("get");
        for calls in [[get.clone(), call(method)], [call(method), get]] {
            assert_eq!(Call::each(&calls).lane(), lane, "{method}");
            assert_eq!(Call::sequence(&calls).lane(), lane, "{method}");
        }
    }
    let target = Call::new("SYNO.Core.ISCSI.Target", 1, "create");
    assert_eq!(
        target.lane(),
        RequestClass::Common,
        "nobody has seen those queue up"
    );
}
