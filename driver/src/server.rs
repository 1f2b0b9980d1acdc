//! Wires up the CSI services, serves them on a unix socket and shuts down gracefully.

use std::convert::Infallible;
use std::fs::Permissions;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proto::csi::controller_server::ControllerServer;
use proto::csi::identity_server::IdentityServer;
use proto::csi::node_server::NodeServer;
use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tokio::sync::Notify;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tracing::{info, warn};

use crate::config::{Args, ChapMode, Config, ConfigError, NasConfig};
use crate::controller::Controller;
use crate::dsm::Nas;
use crate::dsm::client::credential::Refusals;
use crate::dsm::client::{Account, Client};
use crate::host::linux::Linux;
use crate::identity::Identity;
use crate::in_flight::InFlight;
use crate::metrics::{self, serve::Endpoint};
use crate::node::Node;
use crate::owner_tag::Owner;

/// How long the NAS may take to log out.
const LOGOUT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long operations in flight may still run after SIGTERM; Kubernetes sends SIGKILL after 30 s. Each is safe to interrupt;
/// waiting only saves retries.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);
/// `listen(2)` backlog of the CSI socket.
const BACKLOG: u32 = 1024;

/// The services of this process, built from its flags and configuration.
#[derive(Debug)]
pub struct Plugin {
    identity: Identity<Linux>,
    controller: Option<Controller>,
    node: Option<Node<Linux>>,
    in_flight: InFlight,
    metrics: Option<Endpoint>,
    /// How often to look for missing multipath paths; zero: never.
    path_interval: Duration,
}

impl Plugin {
    /// Reads the configuration and sets up the services, without contacting any NAS.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn new(args: &Args) -> Result<Self, ConfigError> {
        let in_flight = InFlight::default();
        let missing = |flag| ConfigError::FlagMissing {
            flag,
            mode: args.mode,
        };
        let controller = if args.mode.controller() {
            let path = args.config.as_ref().ok_or_else(|| missing("config"))?;
            let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
                path: path.clone(),
                source,
            })?;
            let config = Config::read(&text)?;
            let keys = config.keys()?;
            if config.chap == ChapMode::Off {
                warn!(
                    "chap is off: any host that reaches port 3260 of the NAS can log in to published volumes"
                );
            }
            metrics::of_process().set_chap_enabled(config.chap != ChapMode::Off);
            Some(Controller::new(
                Owner::new(args.driver_name.clone(), config.cluster.clone()),
                nases(&config)?,
                keys,
                rand::make_rng(),
                in_flight.clone(),
            ))
        } else {
            None
        };
        let host = args
            .mode
            .node()
            .then(|| Linux::new(args.host_root.clone()).in_namespaces(args.host_namespaces));
        let node = match &host {
            Some(host) => {
                let name = args
                    .node_id
                    .clone()
                    .filter(|name| !name.is_empty())
                    .ok_or_else(|| missing("node-id"))?;
                let node = Node::new(
                    host.clone(),
                    name,
                    args.driver_name.clone(),
                    args.replacement_timeout,
                    in_flight.clone(),
                );
                let node = node.with_max_volumes(args.max_volumes_per_node);
                Some(node.with_kubelet_dir(args.kubelet_dir.clone()))
            }
            None => None,
        };
        let bind = |address| {
            Endpoint::bind(address).map_err(|source| ConfigError::SetUp {
                what: format!(
                    "--metrics-address {address}: nothing can listen there; give an address of this machine and a free port"
                ),
                source: source.into(),
            })
        };
        Ok(Self {
            identity: Identity::new(args.driver_name.clone(), controller.is_some(), host),
            controller,
            node,
            in_flight,
            metrics: args.metrics_address.map(bind).transpose()?,
            path_interval: args.path_interval,
        })
    }

    /// The address at which metrics are served, with the actual port.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics
            .as_ref()
            .and_then(|endpoint| endpoint.address().ok())
    }

    /// Serves on the socket at `path` until `stop` resolves, then drains operations in flight and logs out of all NASes.
    ///
    /// # Errors
    /// The socket cannot be created or served.
    pub async fn serve(
        self,
        path: &Path,
        stop: impl Future<Output = ()>,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let (listener, identity) = listen(path).await?;
        self.identity.check_host();
        let address = self.metrics_address().map(tracing::field::display);
        info!(socket = %path.display(), metrics = address, "serving");
        let signalled = Notify::new();
        let stop = async {
            stop.await;
            info!("stopping");
            signalled.notify_one();
        };
        let background = run_background_tasks(self.node.clone(), self.path_interval);
        let serving = Server::builder()
            .add_service(IdentityServer::new(self.identity))
            .add_optional_service(self.controller.clone().map(ControllerServer::new))
            .add_optional_service(self.node.map(NodeServer::new))
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop);
        let all_done = async {
            tokio::select! {
                served = serving => served?,
                never = background => match never {},
            }
            self.in_flight.idle().await;
            Ok::<(), tonic::transport::Error>(())
        };
        let drain_timeout = async {
            signalled.notified().await;
            tokio::time::sleep(DRAIN_TIMEOUT).await;
        };
        let metrics = async {
            match self.metrics {
                Some(endpoint) => endpoint.serve(metrics::of_process()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            done = all_done => done?,
            ended = metrics => match ended? {},
            () = drain_timeout => warn!(
                "shutting down with operations in flight: each can be retried safely after the next start"
            ),
        }
        if let Some(controller) = &self.controller {
            // If logging out fails, the session expires by itself.
            let _ = tokio::time::timeout(LOGOUT_TIMEOUT, controller.logout()).await;
        }
        // A process that was started meanwhile has replaced the socket with its own, which must stay.
        if socket_identity(path).is_ok_and(|now| now == identity) {
            let _ = std::fs::remove_file(path);
        }
        Ok(())
    }
}

/// Background tasks of a node while calls are served: clean up after a crash, then log in to missing multipath paths.
async fn run_background_tasks(node: Option<Node<Linux>>, every: Duration) -> Infallible {
    if let Some(node) = node {
        Box::pin(node.sweep()).await;
        info!("node records have been swept");
        if !every.is_zero() {
            Box::pin(node.add_missing_paths_forever(every)).await;
        }
    }
    std::future::pending().await
}

/// Distinguishes a socket from its successor at the same path: device, inode, change time (s, ns). Inode numbers are reused,
/// hence the time.
type SocketIdentity = (u64, u64, i64, i64);

fn socket_identity(path: &Path) -> io::Result<SocketIdentity> {
    let found = std::fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino(), found.ctime(), found.ctime_nsec()))
}

/// Opens the socket with mode 0600. A stale socket of a killed process is replaced; one that is being served is not.
async fn listen(path: &Path) -> io::Result<(UnixListener, SocketIdentity)> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {
            if UnixStream::connect(path).await.is_ok() {
                return Err(io::Error::new(
                    io::ErrorKind::AddrInUse,
                    format!("{} is served by another process", path.display()),
                ));
            }
            std::fs::remove_file(path)?;
        }
        Ok(_) => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!("{} exists and is not a socket", path.display()),
            ));
        }
        Err(_) => {}
    }
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let socket = UnixSocket::new_stream()?;
    socket.bind(path)?;
    // Before any client can connect: a client of this socket has all the driver's rights, and the umask cannot be relied on.
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    let identity = socket_identity(path)?;
    Ok((socket.listen(BACKLOG)?, identity))
}

fn nases(config: &Config) -> Result<Vec<Nas>, ConfigError> {
    let set_up = |what: String| {
        move |source: Box<dyn std::error::Error + Send + Sync>| ConfigError::SetUp { what, source }
    };
    let path = config.state_file.clone().unwrap_or_default();
    let refusals = Refusals::open(config.state_file.clone()).map_err(|error| {
        let path = path.display();
        let what = format!(
            "state_file {path} cannot be read, or was not written by the driver; if it was, it holds nothing but when logins were refused: rm {path}"
        );
        set_up(what)(error.into())
    })?;
    let refusals = Arc::new(refusals);
    config
        .nas
        .iter()
        .map(|nas| {
            connect(nas, refusals.clone())
                .map_err(set_up(format!("nas {:?}", nas.name.to_string())))
        })
        .collect()
}

fn connect(
    nas: &NasConfig,
    refusals: Arc<Refusals>,
) -> Result<Nas, Box<dyn std::error::Error + Send + Sync>> {
    if nas.sends_password_in_clear() {
        warn!(
            nas = %nas.name,
            "plain_http: the administrator's password and the CHAP secrets of all volumes are sent over the network in the clear"
        );
    }
    let trust = nas.trust()?;
    let account = Account {
        nas: nas.name.clone(),
        url: nas.url.to_string(),
        username: nas.username.clone(),
        password: nas.password(),
    };
    let host = nas.url.host_str().unwrap_or_default().to_owned();
    let client = Client::new(account, trust, refusals)?;
    let mut connected = Nas::new(nas.name.clone(), host, client);
    connected.aliases.clone_from(&nas.aliases);
    connected.portals.clone_from(&nas.portals);
    connected.floor = nas.min_free_space;
    Ok(connected)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::symlink_metadata(path)
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    }

    #[tokio::test]
    async fn the_socket_is_private_and_a_successors_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("csi.sock");
        let (first, identity) = listen(&path).await.unwrap();
        assert_eq!(mode(&path), 0o600);
        assert!(listen(&path).await.is_err(), "another process serves it");
        drop(first);
        let (_second, successor) = listen(&path).await.unwrap();
        assert_eq!(socket_identity(&path).unwrap(), successor);
        assert_ne!(
            identity, successor,
            "the first process must not remove the second one's socket"
        );
    }
}
