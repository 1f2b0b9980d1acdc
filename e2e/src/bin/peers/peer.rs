//! A driver, ours or another one, with its own simulated NAS.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use e2e::GIB;
use e2e::harness::nas::{Nas, PASSWORD, Settings};
use e2e::harness::plugin::{CsiChannel, connect, line};
use e2e::harness::process::Process;
use e2e::harness::test_cluster::{Plan, TestCluster};
use e2e::harness::test_volume::{Content, create_request};
use e2e::harness::until::until;
use proto::csi::CreateVolumeRequest;
use proto::csi::controller_client::ControllerClient;
use tempfile::TempDir;
use tokio::net::UnixStream;

/// The official driver starts only if it finds a service account token and the address of an API server, which its controller
/// half then never calls. So both are provided in a private mount namespace.
const IN_CLUSTER: &str = "mount -t tmpfs none /run && mkdir -p /run/secrets/kubernetes.io/serviceaccount && \
     echo token > /run/secrets/kubernetes.io/serviceaccount/token && \
     exec env KUBERNETES_SERVICE_HOST=127.0.0.1 KUBERNETES_SERVICE_PORT=1 \"$0\" \"$@\"";

/// Which driver.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Ours,
    Official(PathBuf),
    Community(PathBuf),
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ours => "ours",
            Self::Official(_) => "official",
            Self::Community(_) => "community",
        })
    }
}

/// A driver and its NAS.
pub(crate) struct Peer {
    pub(crate) controller: ControllerClient<CsiChannel>,
    pub(crate) socket: PathBuf,
    host: Host,
}

/// What runs for it. Fields are dropped in order: the driver before its NAS, the folder last.
enum Host {
    Ours(Box<TestCluster>),
    Other(Box<Other>),
}

struct Other {
    driver: Process,
    nas: Nas,
    folder: TempDir,
}

impl Peer {
    /// Starts a driver on a fresh NAS with this DSM release and the unlimited model, on btrfs.
    pub(crate) async fn start(kind: &Kind, dsm: &'static str) -> Result<Self> {
        Self::start_on(kind, dsm, "btrfs").await
    }

    /// Like `start`, with this file system on the NAS's volume.
    pub(crate) async fn start_on(kind: &Kind, dsm: &'static str, fs: &str) -> Result<Self> {
        let mut settings = Settings {
            more: vec!["--model", "unlimited", "--dsm", dsm],
            ..Settings::default()
        };
        if fs == "ext4" {
            settings.volumes = vec!["/volume1=ext4:20TiB", "/volume2=btrfs:2TiB"];
        }
        match kind {
            Kind::Ours => Self::ours(settings).await,
            Kind::Official(program) => Self::other(program, settings, official).await,
            Kind::Community(program) => Self::other(program, settings, community).await,
        }
    }

    async fn ours(nas: Settings) -> Result<Self> {
        let cluster = Plan {
            nas,
            ..Plan::controller()
        };
        let cluster = cluster.start().await?;
        Ok(Self {
            controller: cluster.plugin.controller(),
            socket: cluster.plugin.socket.clone(),
            host: Host::Ours(Box::new(cluster)),
        })
    }

    async fn other(
        program: &Path,
        settings: Settings,
        arguments: fn(&Path, &str) -> Result<Vec<String>>,
    ) -> Result<Self> {
        let folder = TempDir::with_prefix("csi-")?;
        let nas = Nas::start(folder.path(), settings).await?;
        let socket = folder.path().join("csi.sock");
        let port = nas.api.rsplit(':').next().unwrap_or_default();
        let mut args = arguments(folder.path(), port)?;
        args.extend([
            "--endpoint".to_owned(),
            format!("unix://{}", socket.display()),
        ]);
        let log = folder.path().join("driver.log");
        let program = program.to_string_lossy().into_owned();
        let command = [vec!["-c".to_owned(), IN_CLUSTER.to_owned(), program], args].concat();
        let inside = ["--map-root-user", "--mount", "sh"].map(str::to_owned);
        let mut driver = Process::tool("unshare", inside.into_iter().chain(command), &log)?;
        let opens = async || {
            driver.check()?;
            Ok(UnixStream::connect(&socket).await.is_ok())
        };
        until("the driver opens its socket", opens, |open| *open).await?;
        Ok(Self {
            // A list of a thousand volumes exceeds the default message size.
            controller: ControllerClient::new(line(connect(&socket).await?))
                .max_decoding_message_size(64 << 20),
            socket,
            host: Host::Other(Box::new(Other {
                driver,
                nas,
                folder,
            })),
        })
    }

    pub(crate) fn nas(&self) -> &Nas {
        match &self.host {
            Host::Ours(cluster) => &cluster.nas,
            Host::Other(other) => &other.nas,
        }
    }

    pub(crate) fn folder(&self) -> &Path {
        match &self.host {
            Host::Ours(cluster) => cluster.folder(),
            Host::Other(other) => other.folder.path(),
        }
    }

    /// The end of the driver's log.
    pub(crate) fn log_tail(&self) -> String {
        match &self.host {
            Host::Ours(cluster) => cluster.plugin.process.log_tail(),
            Host::Other(other) => other.driver.log_tail(),
        }
    }
}

/// Configures the official driver for a NAS: its config/client-info-template.yml.
fn official(folder: &Path, port: &str) -> Result<Vec<String>> {
    let file = folder.join("client-info.yml");
    let text = format!(
        "clients:\n  - host: 127.0.0.1\n    port: {port}\n    https: false\n    username: admin\n    password: {PASSWORD}\n"
    );
    std::fs::write(&file, text)?;
    Ok(vec!["--client-info".to_owned(), file.display().to_string()])
}

/// Configures the community driver: its syno-config.yml. DSM 7 rejects its default, login version 2.
fn community(folder: &Path, port: &str) -> Result<Vec<String>> {
    let file = folder.join("syno-config.yml");
    let text = format!(
        "---\nhost: 127.0.0.1\nport: {port}\nsslVerify: false\nusername: admin\npassword: {PASSWORD}\nloginApiVersion: 3\n\
         sessionName: Core\n"
    );
    std::fs::write(&file, text)?;
    let file = file.display().to_string();
    Ok(["--nodeid", "node", "--synology-config", &file]
        .map(str::to_owned)
        .to_vec())
}

impl Kind {
    /// StorageClass parameters for a thin LUN on the first volume.
    pub(crate) fn parameters(&self) -> HashMap<String, String> {
        let pairs: &[(&str, &str)] = match self {
            Self::Ours | Self::Community(_) => &[("location", "/volume1"), ("type", "BLUN")],
            Self::Official(_) => &[
                ("location", "/volume1"),
                ("protocol", "iscsi"),
                ("dsm", "127.0.0.1"),
            ],
        };
        let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        pairs.iter().map(pair).collect()
    }

    /// A CreateVolume request for 1 GiB.
    pub(crate) fn create(&self, name: &str) -> CreateVolumeRequest {
        CreateVolumeRequest {
            parameters: self.parameters(),
            ..create_request(name, GIB, Content::Fs("ext4"))
        }
    }

    /// The prefix of its LUN and target names, so that foreign ones with that prefix count as its own.
    pub(crate) fn prefix(&self) -> &'static str {
        match self {
            Self::Ours => "other",
            Self::Official(_) => "k8s-csi",
            Self::Community(_) => "kube-csi",
        }
    }
}
