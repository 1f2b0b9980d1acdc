//! Many concurrent calls to a fake NAS, with paused time.

use std::time::Duration;

use futures::future::join_all;

use super::*;
use crate::dsm::call::Call;
use crate::dsm::slow_nas::{SlowNas, create, read, wait};

const SECOND: Duration = Duration::from_secs(1);
/// Enough to let other tasks run.
const MOMENT: Duration = Duration::from_millis(1);

fn spawn_many<F>(
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

fn spawn_reads(
    count: usize,
    client: &Client,
) -> Vec<tokio::task::JoinHandle<Result<(), DsmError>>> {
    spawn_many(count, client, |client| async move { read(&client).await })
}

fn spawn_creates(
    count: usize,
    client: &Client,
) -> Vec<tokio::task::JoinHandle<Result<(), DsmError>>> {
    spawn_many(count, client, |client| async move { create(&client).await })
}

/// design.md#limits-per-nas
#[tokio::test(start_paused = true)]
async fn concurrent_requests_are_limited_and_queueing_costs_no_timeout() {
    let (nas, client) = SlowNas::nas();
    let started = Instant::now();
    // They take 200 s together, which is more than the request timeout.
    let creates = spawn_creates(200, &client);
    let reads = spawn_reads(200, &client);
    for answer in join_all(reads).await {
        answer.unwrap().unwrap();
    }
    assert_eq!(
        started.elapsed().as_secs(),
        13,
        "200 reads of a second, sixteen at a time"
    );
    for answer in join_all(creates).await {
        answer.unwrap().unwrap();
    }
    assert_eq!(started.elapsed().as_secs(), 200);
    assert_eq!(nas.most()[..2], [CREATES, COMMON]);
    assert_eq!(nas.count("query"), 0, "a busy NAS is not probed");
}

/// design.md#limits-per-nas
#[tokio::test(start_paused = true)]
async fn creates_do_not_delay_other_requests() {
    let (nas, client) = SlowNas::nas();
    let creates = spawn_creates(200, &client);
    wait(SECOND / 2).await;
    let started = Instant::now();
    read(&client).await.unwrap();
    assert_eq!(started.elapsed(), SECOND, "its own duration");
    assert_eq!(nas.now()[0], CREATES);
    for create in creates {
        create.abort();
    }
}

/// design.md#limits-per-nas
#[tokio::test(start_paused = true)]
async fn a_permit_is_held_until_the_request_has_ended() {
    let (nas, client) = SlowNas::nas();
    *nas.takes.lock().unwrap() = 30 * SECOND;
    let reads = spawn_reads(COMMON, &client);
    wait(SECOND).await;
    assert_eq!(nas.now()[1], COMMON);
    // All of them are dropped, as by gRPC at the caller's deadline: the NAS is still busy with them.
    for task in &reads {
        task.abort();
    }
    join_all(reads).await;
    let started = Instant::now();
    read(&client).await.unwrap();
    assert_eq!(started.elapsed(), (29 + 30) * SECOND);
    assert_eq!(nas.most()[1], COMMON);
}

/// design.md#limits-per-nas
#[tokio::test(start_paused = true)]
async fn logins_and_logouts_do_not_wait_for_a_permit() {
    let (nas, client) = SlowNas::nas();
    *nas.takes.lock().unwrap() = 30 * SECOND;
    let reads = spawn_reads(COMMON * 3, &client);
    wait(SECOND).await;
    assert_eq!(nas.now()[1], COMMON);
    let started = Instant::now();
    client.logout().await;
    client.session().await.unwrap();
    assert_eq!(started.elapsed(), Duration::ZERO);
    assert_eq!((nas.count("login"), nas.count("logout")), (2, 1));
    for answer in join_all(reads).await {
        answer.unwrap().unwrap();
    }
}

/// design.md#limits-per-nas
#[tokio::test(start_paused = true)]
async fn each_nas_has_its_own_limits() {
    let ((slow, client), (_, other)) = (SlowNas::nas(), SlowNas::nas());
    *slow.takes.lock().unwrap() = 50 * SECOND;
    let reads = spawn_reads(100, &client);
    wait(MOMENT).await;
    assert_eq!(slow.now()[1], COMMON);
    let started = Instant::now();
    read(&other).await.unwrap();
    assert_eq!(started.elapsed(), SECOND);
    drop(reads);
}

/// design.md#limits-per-nas
#[test]
fn a_compound_with_a_create_counts_as_a_create() {
    let call = |method| Call::new(crate::dsm::lun::API, 1, method);
    for (method, class) in [
        ("create", RequestClass::Creates),
        ("clone", RequestClass::Creates),
        ("get", RequestClass::Common),
        ("delete", RequestClass::Common),
        ("map_target", RequestClass::Common),
    ] {
        assert_eq!(call(method).class(), class, "{method}");
        let get = call("get");
        for calls in [[get.clone(), call(method)], [call(method), get]] {
            assert_eq!(Call::each(&calls).class(), class, "{method}");
            assert_eq!(Call::sequence(&calls).class(), class, "{method}");
        }
    }
    let target = Call::new("SYNO.Core.ISCSI.Target", 1, "create");
    assert_eq!(
        target.class(),
        RequestClass::Common,
        "there is no evidence that those are serialized"
    );
}
