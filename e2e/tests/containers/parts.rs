//! What runs in a scene: the NAS, and the two halves of the driver.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use e2e::harness::plugin::{Csi, Line, connect, line};
use e2e::harness::until::until;
use proto::csi;
use proto::csi::controller_client::ControllerClient;
use proto::csi::identity_client::IdentityClient;
use proto::csi::node_client::NodeClient;
use serde_json::Value;
use tokio::net::{TcpStream, UnixStream};

use crate::chart::Container;
use crate::scene::{Running, Scene, check, words};

/// The directory of a node's pods.
const KUBELET: &str = "/var/lib/kubelet";
/// The NAS's account: dsm-sim's own.
const PASSWORD: &str = "admin";
/// How the chart calls the NAS that it simulates.
const NAS: &str = "sim";

/// The NAS, with HTTPS besides what the chart gives it.
pub(crate) struct Nas {
    pub(crate) container: Running,
    /// What its certificate is for, besides itself.
    pub(crate) name: String,
    /// Its certificate's authority, in PEM form.
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

    /// Where the driver finds it.
    pub(crate) fn url(&self) -> String {
        format!("https://{}:5001", self.name)
    }

    /// Its address, which another start may change.
    pub(crate) async fn address(&self) -> Result<IpAddr> {
        Ok(self.container.get_bridge_ip_address().await?)
    }

    /// What its control port says at `path`.
    pub(crate) async fn knob(&self, path: &str) -> Result<Value> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([])
            .build()?;
        let url = format!("http://{}:5080/{path}", self.address().await?);
        let answer = http.get(url).send().await?.error_for_status()?;
        Ok(serde_json::from_str(&answer.text().await?)?)
    }

    /// The NAMEs and sizes of its LUNs.
    pub(crate) async fn luns(&self) -> Result<Vec<(String, u64)>> {
        let state = self.knob("state").await?;
        let luns = state["luns"].as_array().context("luns")?;
        let lun = |lun: &Value| {
            let name = lun["name"].as_str().context("name")?;
            Ok((name.to_owned(), lun["size"].as_u64().context("size")?))
        };
        luns.iter().map(lun).collect()
    }

    /// How many targets it has.
    pub(crate) async fn targets(&self) -> Result<usize> {
        let state = self.knob("state").await?;
        Ok(state["targets"].as_array().context("targets")?.len())
    }

    /// Kills it and starts it again.
    pub(crate) async fn restart(&self) -> Result<()> {
        restart(&self.container).await?;
        ready(&self.container).await
    }
}

/// Looks as the chart's readiness probe does: from outside of the container, whether its port can be connected to.
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

/// As a crash ends it: with SIGKILL.
async fn restart(container: &Running) -> Result<()> {
    container.stop_with_timeout(Some(0)).await?;
    ensure!(!container.is_running().await?, "it was killed, and runs");
    Ok(container.start().await?)
}

/// A half of the driver.
pub(crate) struct Driver {
    pub(crate) container: Running,
    socket: PathBuf,
    /// The node's directory that is [`KUBELET`] in the container.
    kubelet: PathBuf,
    line: Line,
}

/// How the controller reaches its NAS.
#[derive(Clone, Debug)]
pub(crate) struct Access<'a> {
    /// `https://…`.
    pub(crate) url: &'a str,
    /// The authority that it trusts.
    pub(crate) authority: &'a str,
}

impl Driver {
    /// Starts the controller half, and waits until it answers `Probe`, as the chart's probes do.
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
        Self::await_answer(container, socket, scene.host(KUBELET)).await
    }

    /// Starts the node half behind node-sim, as the chart's pod does.
    pub(crate) async fn node(scene: &Scene) -> Result<Self> {
        let read = |container| Container::read("DaemonSet", "synology-csi-node", container);
        let init = scene.start("node-sim", &read("node-sim")?, &[]).await?;
        let code = async || Ok(init.exit_code().await?);
        let code = until("node-sim has made the host root", code, Option::is_some).await?;
        ensure!(
            code == Some(0),
            "node-sim: {code:?}: {}",
            words(&init).await?
        );
        let container = scene.start("node", &read("driver")?, &[]).await?;
        let socket = scene.host("csi.synology.com").join("csi.sock");
        Self::await_answer(container, socket, scene.host(KUBELET)).await
    }

    async fn await_answer(container: Running, socket: PathBuf, kubelet: PathBuf) -> Result<Self> {
        let line = answer(&container, &socket).await?;
        Ok(Self {
            container,
            socket,
            kubelet,
            line,
        })
    }

    /// Kills it and starts it again; its socket is still there.
    pub(crate) async fn restart(&mut self) -> Result<()> {
        restart(&self.container).await?;
        self.line = answer(&self.container, &self.socket).await?;
        Ok(())
    }
}

/// Waits until the driver answers `Probe`, which is what the livenessprobe sidecar asks.
async fn answer(container: &Running, socket: &Path) -> Result<Line> {
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
    fn controller(&self) -> ControllerClient<Line> {
        ControllerClient::new(self.line.clone())
    }

    fn node(&self) -> NodeClient<Line> {
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

/// Both halves, as a CO speaks to them.
pub(crate) struct Both {
    pub(crate) controller: Driver,
    pub(crate) node: Driver,
}

impl Csi for Both {
    fn controller(&self) -> ControllerClient<Line> {
        self.controller.controller()
    }

    fn node(&self) -> NodeClient<Line> {
        self.node.node()
    }

    fn folder(&self) -> &Path {
        self.node.folder()
    }

    fn make_dir(&self, path: &Path) -> std::io::Result<()> {
        self.node.make_dir(path)
    }
}
