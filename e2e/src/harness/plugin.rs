//! The shipped driver as a process, and clients of its three services.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use hyper_util::rt::TokioIo;
use proto::csi::ProbeRequest;
use proto::csi::controller_client::ControllerClient;
use proto::csi::identity_client::IdentityClient;
use proto::csi::node_client::NodeClient;
use tokio::net::UnixStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::ServiceExt as _;
use tower::util::BoxCloneSyncService;

use crate::harness::initiator::Initiator;
use crate::harness::process::Process;
use crate::harness::until::until;

/// A gRPC connection to a driver: a channel to a process, or direct calls to a service in this process.
pub type CsiChannel = BoxCloneSyncService<
    http::Request<tonic::body::Body>,
    http::Response<tonic::body::Body>,
    Status,
>;

/// CSI clients of a controller and of the plugin of one node.
pub trait Csi {
    /// The controller service.
    fn controller(&self) -> ControllerClient<CsiChannel>;

    /// The node service.
    fn node(&self) -> NodeClient<CsiChannel>;

    /// The folder on that node that holds the kubelet's directory.
    fn folder(&self) -> &Path;

    /// Makes a directory on that node, with its parents.
    ///
    /// # Errors
    /// It cannot be made.
    fn make_dir(&self, path: &Path) -> std::io::Result<()> {
        std::fs::create_dir_all(path)
    }
}

/// The log line (level `info`) of a node that has completed its sweep at start.
const SWEPT_MESSAGE: &str = "node records have been swept";

/// A running `synology-csi`.
#[derive(Debug)]
pub struct Plugin {
    /// The process.
    pub process: Process,
    /// The path of its socket.
    pub socket: PathBuf,
    channel: Channel,
}

/// The settings of a driver process.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The folder for its configuration, socket and log.
    pub folder: PathBuf,
    /// The configuration file's content (YAML).
    pub config: String,
    /// For `--node-id`.
    pub node_name: String,
    /// For `--log-level`.
    pub log_level: String,
    /// `controller`, `node` or `all`.
    pub mode: &'static str,
    /// More arguments.
    pub more: Vec<String>,
}

impl Plugin {
    /// Starts the driver on the host root of `initiator`, or on this machine, and waits until a node has swept its records, so
    /// that its state is stable.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn start(settings: &Settings, initiator: Option<&Initiator>) -> Result<Self> {
        let log = settings.folder.join("driver.log");
        let before = std::fs::metadata(&log).map_or(0, |log| log.len());
        let mut plugin = Self::begin(settings, initiator).await?;
        if settings.mode != "controller" {
            let swept = async || {
                plugin.process.check()?;
                let log = std::fs::read(&log)?;
                let new_lines = log.get(usize::try_from(before)?..).unwrap_or(&log);
                Ok(String::from_utf8_lossy(new_lines).contains(SWEPT_MESSAGE))
            };
            until("the node has swept its records", swept, |swept| *swept).await?;
        }
        Ok(plugin)
    }

    /// Starts the driver and waits only until it answers `Probe`.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn begin(settings: &Settings, initiator: Option<&Initiator>) -> Result<Self> {
        let (config, socket) = (
            settings.folder.join("config.yaml"),
            settings.folder.join("csi.sock"),
        );
        std::fs::write(&config, &settings.config)?;
        let _ = std::fs::remove_file(&socket);
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let mut args = vec![
            "--endpoint".to_owned(),
            format!("unix://{}", text(&socket)),
            "--config".to_owned(),
            text(&config),
        ];
        args.extend(
            [
                "--mode",
                settings.mode,
                "--node-id",
                &settings.node_name,
                "--log-level",
                &settings.log_level,
            ]
            .map(str::to_owned),
        );
        let simulated = initiator.filter(|initiator| initiator.is_simulated());
        if let Some(initiator) = simulated {
            args.extend(["--host-root".to_owned(), text(initiator.root())]);
        }
        args.extend(settings.more.iter().cloned());
        let bin = simulated.map(Initiator::bin);
        let mut process = Process::start(
            "synology-csi",
            args,
            &settings.folder.join("driver.log"),
            bin.as_deref(),
        )?;
        // A socket file that exists is bound, but perhaps not yet listening.
        let opens = async || {
            process.check()?;
            Ok(UnixStream::connect(&socket).await.is_ok())
        };
        until("the driver opens its socket", opens, |open| *open).await?;
        let channel = connect(&socket).await?;
        let plugin = Self {
            process,
            socket,
            channel,
        };
        let ready = plugin
            .identity()
            .probe(ProbeRequest {})
            .await?
            .into_inner()
            .ready;
        ensure!(ready == Some(true), "the driver is not ready: {ready:?}");
        Ok(plugin)
    }

    /// The identity service.
    pub fn identity(&self) -> IdentityClient<Channel> {
        IdentityClient::new(self.channel.clone())
    }

    /// The controller service.
    pub fn controller(&self) -> ControllerClient<CsiChannel> {
        ControllerClient::new(self.line())
    }

    /// The node service.
    pub fn node(&self) -> NodeClient<CsiChannel> {
        NodeClient::new(self.line())
    }

    /// A connection for clients of all its services.
    pub fn line(&self) -> CsiChannel {
        line(self.channel.clone())
    }
}

/// Wraps a channel as a [`CsiChannel`].
pub fn line(channel: Channel) -> CsiChannel {
    CsiChannel::new(channel.map_err(|error| Status::from_error(error.into())))
}

/// A channel to a unix socket.
///
/// # Errors
/// Nothing listens there.
pub async fn connect(socket: &Path) -> Result<Channel> {
    let socket = socket.to_owned();
    // The address is a formality: the connector opens the socket.
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Ok(Endpoint::from_static("http://csi")
        .connect_with_connector(connector)
        .await?)
}
