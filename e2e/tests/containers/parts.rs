//! The containers of a test: the NAS, and the two halves of the driver.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use e2e::harness::plugin::{Csi, CsiChannel, connect, line};
use e2e::harness::until::until;
use proto::csi;
use proto::csi::controller_client::ControllerClient;
use proto::csi::identity_client::IdentityClient;
use proto::csi::node_client::NodeClient;
use serde_json::Value;
use tokio::net::{TcpStream, UnixStream};

use crate::chart::Container;
use crate::scene::{Running, Scene, check, log_tail};

/// The kubelet's directory on a node.
const KUBELET: &str = "/var/lib/kubelet";
/// The password of the NAS's account, dsm-sim's default.
const PASSWORD: &str = "admin";
/// The chart's name for the NAS that it simulates.
const NAS: &str = "sim";

/// The NAS, with HTTPS in addition to the chart's configuration.
pub(crate) struct Nas {
    pub(crate) container: Running,
    /// An additional name in its certificate.
    pub(crate) name: String,
    /// The CA certificate of its certificate, in PEM.
    pub(crate) authority: String,
}

impl Nas {
    /// Starts it, and waits until it is ready.
    pub(crate) async fn start(scene: &Scene) -> Result<Self> {
        let chart = Container::read("Deployment", "synology-csi-dsm-sim", "dsm-sim")?;
        let name = scene.name_of("nas");
        let https = [
            "--https=0.0.0.0:5001".to_owned(),
            format!("--tls-name={name}"),
        ];
        let container = scene.start("nas", &chart, &https).await?;
        ready(&container).await?;
        let authority = scene
            .host("/var/lib/synology-csi-sim/nas")
            .join("tls/ca.pem");
        let authority =
            fs::read_to_string(&authority).with_context(|| authority.display().to_string())?;
        Ok(Self {
            container,
            name,
            authority,
        })
    }

    /// The URL that the driver uses.
    pub(crate) fn url(&self) -> String {
        format!("https://{}:5001", self.name)
    }

    /// Its IP address, which a restart may change.
    pub(crate) async fn address(&self) -> Result<IpAddr> {
        Ok(self.container.get_bridge_ip_address().await?)
    }

    /// GETs `path` from its control API.
    pub(crate) async fn control(&self, path: &str) -> Result<Value> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([])
            .build()?;
        let url = format!("http://{}:5080/{path}", self.address().await?);
        let wait_for_probe = http.get(url).send().await?.error_for_status()?;
        Ok(serde_json::from_str(&wait_for_probe.text().await?)?)
    }

    /// The names and sizes of its LUNs.
    pub(crate) async fn luns(&self) -> Result<Vec<(String, u64)>> {
        let state = self.control("state").await?;
        let luns = state["luns"].as_array().context("luns")?;
        let lun = |lun: &Value| {
            let name = lun["name"].as_str().context("name")?;
            Ok((name.to_owned(), lun["size"].as_u64().context("size")?))
        };
        luns.iter().map(lun).collect()
    }

    /// The number of its targets.
    pub(crate) async fn targets(&self) -> Result<usize> {
        let state = self.control("state").await?;
        Ok(state["targets"].as_array().context("targets")?.len())
    }

    /// Kills and restarts it.
    pub(crate) async fn restart(&self) -> Result<()> {
        restart(&self.container).await?;
        ready(&self.container).await
    }
}

/// Checks like the chart's readiness probe: whether its port accepts a connection from outside the container.
pub(crate) async fn ready(nas: &Running) -> Result<()> {
    let opens = async || {
        check(nas).await?;
        let at = SocketAddr::new(nas.get_bridge_ip_address().await?, 5000);
        Ok(TcpStream::connect(at).await.is_ok())
    };
    until("dsm-sim is ready", opens, |open| *open)
        .await
        .map(drop)
}

/// Like a crash: with SIGKILL.
async fn restart(container: &Running) -> Result<()> {
    container.stop_with_timeout(Some(0)).await?;
    ensure!(!container.is_running().await?, "it was killed, and runs");
    Ok(container.start().await?)
}

/// A half of the driver.
pub(crate) struct Driver {
    pub(crate) container: Running,
    socket: PathBuf,
    /// The node's directory that is mounted at [`KUBELET`] in the container.
    kubelet: PathBuf,
    line: CsiChannel,
}

/// How the controller connects to its NAS.
#[derive(Clone, Debug)]
pub(crate) struct Access<'a> {
    /// `https://…`.
    pub(crate) url: &'a str,
    /// The trusted CA certificate.
    pub(crate) authority: &'a str,
}

impl Driver {
    /// Starts the controller half, and waits until it responds to `Probe`, like the chart's probes.
    pub(crate) async fn controller(scene: &Scene, access: &Access<'_>) -> Result<Self> {
        let chart = Container::read("Deployment", "synology-csi-controller", "driver")?;
        let mounted = "/etc/synology-csi";
        let config = format!(
            "nas:\n  - name: {NAS}\n    url: {}\n    username: admin\n    password_file: {mounted}/passwords/{NAS}\n    ca_file: {mounted}/ca/{NAS}.crt\n    portals: ['127.0.0.1:3260']\nstate_file: /var/lib/synology-csi/refused.json\nchap_key_file: {mounted}/chap/key\n",
            access.url
        );
        for (path, text) in [
            ("config.yaml", config.as_str()),
            ("passwords/sim", PASSWORD),
            ("ca/sim.crt", access.authority),
            ("chap/key", e2e::harness::nas::CHAP_KEY),
        ] {
            scene.file("controller", "config", path, text)?;
        }
        let container = scene.start("controller", &chart, &[]).await?;
        let socket = scene.volume("controller", "socket").join("csi.sock");
        Self::wait_until_ready(container, socket, scene.host(KUBELET)).await
    }

    /// Starts the node half with node-sim, like the chart's pod.
    pub(crate) async fn node(scene: &Scene) -> Result<Self> {
        let read = |container| Container::read("DaemonSet", "synology-csi-node", container);
        let init = scene.start("node-sim", &read("node-sim")?, &[]).await?;
        let code = async || Ok(init.exit_code().await?);
        let code = until("node-sim has made the host root", code, Option::is_some).await?;
        ensure!(
            code == Some(0),
            "node-sim: {code:?}: {}",
            log_tail(&init).await?
        );
        let container = scene.start("node", &read("driver")?, &[]).await?;
        let socket = scene.host("csi.synology.com").join("csi.sock");
        Self::wait_until_ready(container, socket, scene.host(KUBELET)).await
    }

    async fn wait_until_ready(
        container: Running,
        socket: PathBuf,
        kubelet: PathBuf,
    ) -> Result<Self> {
        let line = wait_for_probe(&container, &socket).await?;
        Ok(Self {
            container,
            socket,
            kubelet,
            line,
        })
    }

    /// Kills and restarts it; its socket file remains.
    pub(crate) async fn restart(&mut self) -> Result<()> {
        restart(&self.container).await?;
        self.line = wait_for_probe(&self.container, &self.socket).await?;
        Ok(())
    }
}

/// Waits until the driver responds to `Probe`, which is what the livenessprobe sidecar calls.
async fn wait_for_probe(container: &Running, socket: &Path) -> Result<CsiChannel> {
    let opens = async || {
        check(container).await?;
        Ok(UnixStream::connect(socket).await.is_ok())
    };
    until("the driver opens its socket", opens, |open| *open).await?;
    let line = line(connect(socket).await?);
    let ready = IdentityClient::new(line.clone())
        .probe(csi::ProbeRequest {})
        .await?
        .into_inner()
        .ready;
    ensure!(ready == Some(true), "the driver is not ready: {ready:?}");
    Ok(line)
}

impl Csi for Driver {
    fn controller(&self) -> ControllerClient<CsiChannel> {
        ControllerClient::new(self.line.clone())
    }

    fn node(&self) -> NodeClient<CsiChannel> {
        NodeClient::new(self.line.clone())
    }

    fn folder(&self) -> &Path {
        Path::new(KUBELET)
    }

    fn make_dir(&self, path: &Path) -> std::io::Result<()> {
        let below = path.strip_prefix(KUBELET).map_err(std::io::Error::other)?;
        fs::create_dir_all(self.kubelet.join(below))
    }
}

/// Clients of both halves, like a CO's.
pub(crate) struct Both {
    pub(crate) controller: Driver,
    pub(crate) node: Driver,
}

impl Csi for Both {
    fn controller(&self) -> ControllerClient<CsiChannel> {
        self.controller.controller()
    }

    fn node(&self) -> NodeClient<CsiChannel> {
        self.node.node()
    }

    fn folder(&self) -> &Path {
        self.node.folder()
    }

    fn make_dir(&self, path: &Path) -> std::io::Result<()> {
        self.node.make_dir(path)
    }
}
