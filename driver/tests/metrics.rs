//! The metrics endpoint of a running driver. One test, because metrics are per process.

#![allow(
    clippy::unwrap_used,
    reason = "a test; clippy does not treat its helper functions as test code"
)]

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use clap::Parser as _;
use driver::config::Args;
use driver::host::linux::Linux;
use driver::host::{Cmd, Host as _};
use driver::server::Plugin;
use dsm_sim::DsmSim;
use hyper_util::rt::TokioIo;
use proto::csi::controller_client::ControllerClient;
use proto::csi::node_client::NodeClient;
use proto::csi::volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode};
use proto::csi::{
    CreateVolumeRequest, DeleteVolumeRequest, NodeStageVolumeRequest, VolumeCapability,
};
use tokio::net::UnixStream;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

const PASSWORD: &str = "planted-password";
const NAME: &str = "pvc-planted-name";

async fn connect(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_: http::Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://csi");
    for _ in 0..200 {
        match endpoint.connect_with_connector(connector.clone()).await {
            Ok(channel) => return channel,
            // sleep: poll interval for the socket.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    panic!("the driver does not serve");
}

fn create(name: &str) -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: name.to_owned(),
        volume_capabilities: vec![VolumeCapability {
            access_mode: Some(AccessMode {
                mode: Mode::SingleNodeWriter.into(),
            }),
            access_type: Some(AccessType::Mount(MountVolume::default())),
        }],
        ..CreateVolumeRequest::default()
    }
}

async fn get(url: &str) -> (u16, String, String) {
    let answer = reqwest::get(url).await.unwrap();
    let kind = answer.headers()["content-type"]
        .to_str()
        .unwrap()
        .to_owned();
    (answer.status().as_u16(), kind, answer.text().await.unwrap())
}

/// Opens more idle connections than the driver accepts at a time.
async fn open_idle_connections(address: std::net::SocketAddr) -> Vec<tokio::net::TcpStream> {
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(tokio::net::TcpStream::connect(address).await.unwrap());
    }
    silent
}

#[tokio::test]
async fn calls_requests_and_programs_are_counted_and_no_secret_is_exposed() {
    let folder = tempfile::tempdir().unwrap();
    let sim = DsmSim::builder().account("csi", PASSWORD);
    let nas = sim.start().await.unwrap();
    let (config, socket) = (
        folder.path().join("config.yaml"),
        folder.path().join("csi.sock"),
    );
    let text = format!(
        "nas: [{{name: nas1, url: '{}', username: csi, password: {PASSWORD}}}]\nchap: off\n",
        nas.api()
    );
    std::fs::write(&config, text).unwrap();
    let args = Args::parse_from([
        "synology-csi",
        "--node-id=worker-1",
        "--metrics-address=127.0.0.1:0",
        &format!("--endpoint={}", socket.display()),
        &format!("--config={}", config.display()),
        &format!("--host-root={}", folder.path().display()),
    ]);
    let plugin = Plugin::new(&args).unwrap();
    let address = plugin.metrics_address().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let path = socket.clone();
    let serving = tokio::spawn(async move {
        let stop = async { stopped.await.unwrap() };
        plugin.serve(&path, stop).await
    });

    let channel = connect(&socket).await;
    let mut controller = ControllerClient::new(channel.clone());
    let volume = controller
        .create_volume(create(NAME))
        .await
        .unwrap()
        .into_inner()
        .volume
        .unwrap()
        .volume_id;
    controller.create_volume(create(NAME)).await.unwrap();
    let refused = controller.create_volume(create("")).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let stage = NodeStageVolumeRequest {
        volume_id: volume.clone(),
        secrets: HashMap::from([(PASSWORD.to_owned(), PASSWORD.to_owned())]),
        ..NodeStageVolumeRequest::default()
    };
    let mut node = NodeClient::new(channel.clone());
    let refused = node.node_stage_volume(stage).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let failing = Cmd::new("false", 10).arg(PASSWORD);
    Linux::new("/".into()).run(failing).await.unwrap();
    let delete = DeleteVolumeRequest {
        volume_id: volume.clone(),
        ..DeleteVolumeRequest::default()
    };
    controller.delete_volume(delete).await.unwrap();

    let (status, kind, text) = get(&format!("http://{address}/metrics")).await;
    assert_eq!(status, 200);
    assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
    for line in [
        r#"csi_rpc_seconds_count{rpc="CreateVolume",code="OK"} 2"#,
        r#"csi_rpc_seconds_count{rpc="CreateVolume",code="InvalidArgument"} 1"#,
        r#"csi_rpc_seconds_count{rpc="NodeStageVolume",code="InvalidArgument"} 1"#,
        r#"csi_rpc_seconds_count{rpc="DeleteVolume",code="OK"} 1"#,
        r#"dsm_request_seconds_count{nas="nas1",api="SYNO.API.Auth",method="login",code="ok"} 1"#,
        r#"dsm_request_seconds_count{nas="nas1",api="SYNO.Core.ISCSI.LUN",method="delete",code="ok"} 1"#,
        r#"host_command_seconds_count{program="false",exit="1"} 1"#,
        r#"dsm_answers{nas="nas1"} 1"#,
        "csi_in_flight 0",
    ] {
        assert!(text.lines().any(|there| there == line), "{line}\n{text}");
    }
    let uuid = volume.rsplit('/').next().unwrap();
    for secret in [PASSWORD, NAME, uuid, "csi.sock", "127.0.0.1"] {
        assert!(!text.contains(secret), "{secret}\n{text}");
    }
    assert_eq!(get(&format!("http://{address}/")).await.0, 404);
    let post = reqwest::Client::new().post(format!("http://{address}/metrics"));
    assert_eq!(post.send().await.unwrap().status().as_u16(), 405);

    // Idle connections block neither other clients nor the shutdown.
    let _silent = open_idle_connections(address).await;
    let scrape = format!("http://{address}/metrics");
    let scrape = tokio::time::timeout(Duration::from_secs(5), get(&scrape)).await;
    let (status, ..) = scrape.expect("idle connections do not block a scrape");
    assert_eq!(status, 200);
    let taken_address = Args {
        metrics_address: Some(address),
        ..args
    };
    let problem = Plugin::new(&taken_address).unwrap_err().to_string();
    assert!(
        problem.contains(&format!("--metrics-address {address}")),
        "{problem}"
    );
    drop((channel, controller, node));
    stop.send(()).unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(10), serving);
    ended.await.expect("it ends in time").unwrap().unwrap();
}
