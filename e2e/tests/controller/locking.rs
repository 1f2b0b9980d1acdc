//! One operation per volume, which completes even if its caller goes away: design.md#one-operation-per-volume.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use anyhow::Result;
use e2e::GIB;
use e2e::harness::nas::Nas;
use e2e::harness::test_cluster::Plan;
use e2e::harness::until::until;
use proto::csi;
use proto::csi::controller_client::ControllerClient;
use tonic::Code;

use super::common::{
    AUTH, Csi, LUN, NODE_A, TARGET, hang, journal_end, lun, lun_size, publication, publications,
    refused, until_called,
};

/// While an operation is under way, every mutating call about that volume is Aborted and read-only ones are not.
async fn busy(csi: &Csi, id: &str) {
    for (call, answer) in csi.every(id).await {
        match call {
            "get" | "validate" => assert!(answer.is_ok(), "{call}: {answer:?}"),
            _ => refused(answer, Code::Aborted, &["in progress"]),
        }
    }
}

/// design.md#one-operation-per-volume
#[tokio::test]
async fn the_second_operation_on_a_volume_is_aborted() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("pvc-1", GIB).await?;
    let other = csi.create("pvc-2", GIB).await?;
    for (api, method, short) in [
        (LUN, "set", "LUN.set"),
        (TARGET, "create", "Target.create"),
        (TARGET, "delete", "Target.delete"),
        (LUN, "delete", "LUN.delete"),
    ] {
        cluster.nas.fault(api, method, 1, 1, hang()).await?;
        let start = journal_end(&cluster.nas).await?;
        let first = tokio::spawn({
            let (csi, id) = (csi.clone(), id.clone());
            async move {
                match short {
                    "LUN.set" => csi.expand(&id, 2 * GIB).await.map(drop),
                    "Target.create" => csi.publish(&id, NODE_A).await.map(drop),
                    "Target.delete" => csi.unpublish(&id, NODE_A).await,
                    _ => csi.delete(&id).await,
                }
            }
        });
        until_called(&cluster.nas, start, short).await?;
        busy(&csi, &id).await;
        // Other volumes are not blocked.
        csi.publish(&other, NODE_A).await?;
        csi.unpublish(&other, NODE_A).await?;
        assert!(!first.is_finished());
        cluster.nas.clear_faults().await?;
        first.await??;
    }
    assert_eq!(lun(&cluster.nas, &id).await?, None);
    Ok(())
}

/// design.md#one-operation-per-volume
#[tokio::test]
async fn the_same_name_is_one_operation() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    cluster.nas.fault(LUN, "create", 1, 1, hang()).await?;
    let first = tokio::spawn({
        let csi = csi.clone();
        async move { csi.create("pvc-1", GIB).await }
    });
    until_called(&cluster.nas, 0, "LUN.create").await?;
    refused(
        csi.create("pvc-1", GIB).await,
        Code::Aborted,
        &["pvc-1", "in progress"],
    );
    csi.create("pvc-2", GIB).await?;
    cluster.nas.clear_faults().await?;
    let id = first.await??;
    assert_eq!(csi.create("pvc-1", GIB).await?, id);
    Ok(())
}

/// A request with a short deadline.
fn with_deadline<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(Duration::from_millis(200));
    request
}

fn deadline_exceeded(answer: Result<tonic::Response<impl std::fmt::Debug>, tonic::Status>) {
    let code = answer.expect_err("the caller gives up").code();
    assert!(
        matches!(code, Code::Cancelled | Code::DeadlineExceeded),
        "{code:?}"
    );
}

/// design.md#one-operation-per-volume
#[tokio::test]
async fn an_operation_outlives_its_caller_and_keeps_the_lock() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("pvc-1", GIB).await?;

    cluster.nas.fault(LUN, "set", 1, 1, hang()).await?;
    let capacity_range = Some(e2e::harness::test_volume::at_least(2 * GIB));
    let expand = csi::ControllerExpandVolumeRequest {
        volume_id: id.clone(),
        capacity_range,
        ..Default::default()
    };
    deadline_exceeded(
        csi.0
            .clone()
            .controller_expand_volume(with_deadline(expand))
            .await,
    );
    busy(&csi, &id).await;
    assert_eq!(lun_size(&cluster.nas, &id).await?, GIB);
    cluster.nas.clear_faults().await?;
    until(
        "the LUN grows anyway",
        async || lun_size(&cluster.nas, &id).await,
        |size| *size == 2 * GIB,
    )
    .await?;
    until(
        "the volume is free",
        async || Ok(csi.expand(&id, 2 * GIB).await.is_ok()),
        |free| *free,
    )
    .await?;

    cluster.nas.fault(TARGET, "create", 1, 1, hang()).await?;
    let capability = e2e::harness::test_volume::capability(
        e2e::harness::test_volume::Content::Block,
        csi::volume_capability::access_mode::Mode::SingleNodeWriter,
    );
    let publish = csi::ControllerPublishVolumeRequest {
        volume_id: id.clone(),
        node_id: NODE_A.to_owned(),
        volume_capability: Some(capability),
        ..Default::default()
    };
    deadline_exceeded(
        csi.0
            .clone()
            .controller_publish_volume(with_deadline(publish))
            .await,
    );
    busy(&csi, &id).await;
    cluster.nas.clear_faults().await?;
    until(
        "it is published anyway",
        async || super::common::exports(&cluster.nas, &id).await,
        |seen| *seen == [publication(&id, NODE_A)],
    )
    .await?;
    until(
        "the volume is free",
        async || Ok(csi.unpublish(&id, NODE_A).await.is_ok()),
        |free| *free,
    )
    .await?;
    assert_eq!(publications(&cluster.nas).await?, Vec::<String>::new());

    cluster.nas.fault(LUN, "create", 1, 1, hang()).await?;
    let create = e2e::harness::test_volume::create_request(
        "pvc-2",
        GIB,
        e2e::harness::test_volume::Content::Block,
    );
    deadline_exceeded(
        csi.0
            .clone()
            .create_volume(with_deadline(create.clone()))
            .await,
    );
    refused(
        csi.create_as(create.clone()).await,
        Code::Aborted,
        &["pvc-2"],
    );
    cluster.nas.clear_faults().await?;
    until(
        "the volume is there and free",
        async || Ok(csi.create_as(create.clone()).await.is_ok()),
        |made| *made,
    )
    .await?;
    assert_eq!(cluster.nas.luns().await?.len(), 2);
    Ok(())
}

async fn logouts(nas: &Nas) -> Result<usize> {
    Ok(nas
        .journal(0)
        .await?
        .0
        .iter()
        .filter(|entry| entry.api == AUTH && entry.method == "logout")
        .count())
}

/// design.md#one-operation-per-volume
#[tokio::test]
async fn sigterm_waits_for_an_operation() -> Result<()> {
    let mut cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("pvc-1", GIB).await?;
    cluster.nas.fault(LUN, "set", 1, 1, hang()).await?;
    let start = journal_end(&cluster.nas).await?;
    let expansion = tokio::spawn({
        let (csi, id) = (csi.clone(), id.clone());
        async move { csi.expand(&id, 2 * GIB).await }
    });
    until_called(&cluster.nas, start, "LUN.set").await?;
    let socket = cluster.plugin.socket.clone();
    let (ended, released) = futures::join!(cluster.plugin.process.terminate(), async {
        // The driver stops listening first, so that no new call can start.
        let refuses = async || Ok(tokio::net::UnixStream::connect(&socket).await.is_err());
        until("the driver takes no more calls", refuses, |refuses| {
            *refuses
        })
        .await?;
        cluster.nas.clear_faults().await
    });
    released?;
    assert!(ended?, "a clean exit");
    assert_eq!(expansion.await??, 2 * GIB);
    assert_eq!(lun_size(&cluster.nas, &id).await?, 2 * GIB);
    assert_eq!(logouts(&cluster.nas).await?, 1);
    Ok(())
}

/// Kubernetes kills 30 s after SIGTERM; the harness uses the same timeout.
/// design.md#one-operation-per-volume
#[tokio::test]
async fn sigterm_does_not_wait_for_a_nas_that_hangs() -> Result<()> {
    let mut cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("pvc-1", GIB).await?;
    cluster.nas.fault(LUN, "set", 1, 1, hang()).await?;
    let start = journal_end(&cluster.nas).await?;
    let expansion = tokio::spawn(async move { csi.expand(&id, 2 * GIB).await });
    until_called(&cluster.nas, start, "LUN.set").await?;
    assert!(cluster.plugin.process.terminate().await?, "a clean exit");
    assert!(expansion.await?.is_err());
    assert_eq!(logouts(&cluster.nas).await?, 1);
    Ok(())
}

/// The stopping process waits for its operations while the next one starts, and does not remove the new socket.
#[tokio::test]
async fn a_stopping_process_keeps_its_successor_s_socket() -> Result<()> {
    let mut cluster = Plan::controller().start().await?;
    let since = journal_end(&cluster.nas).await?;
    cluster.nas.fault(LUN, "create", 1, 1, hang()).await?;
    let csi = Csi::of(&cluster.plugin);
    let creating = tokio::spawn(async move { csi.create("pvc-1", GIB).await });
    until_called(&cluster.nas, since, "LUN.create").await?;
    let folder = cluster.folder().to_owned();
    cluster.plugin.process.send_sigterm()?;
    let successor = cluster
        .another_driver("unused", |settings| settings.folder = folder)
        .await?;
    cluster.nas.clear_faults().await?;
    assert!(cluster.plugin.process.terminate().await?);
    creating.await?.ok();
    let mode = std::fs::metadata(&successor.socket)?.permissions().mode();
    assert_eq!(
        mode & 0o777,
        0o600,
        "whoever can connect there can do anything"
    );
    let again = e2e::harness::plugin::connect(&successor.socket).await?;
    let csi = Csi(ControllerClient::new(e2e::harness::plugin::line(again)));
    csi.create("pvc-1", GIB).await?;
    Ok(())
}
