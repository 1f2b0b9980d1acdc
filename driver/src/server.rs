//! Puts the services together, serves them on a unix socket and ends in good order.

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

/// How long the NAS may take to end the session.
const LOGOUT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long operations in flight may still run after SIGTERM; Kubernetes kills after 30 s. Each is safe to break off; this only spares retries.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);
/// Connections that wait for the process.
const BACKLOG: u32 = 1024;

/// What a process offers, put together from its flags and configuration.
#[derive(Debug)]
pub struct Plugin {
    identity: Identity<Linux>,
    controller: Option<Controller>,
    node: Option<Node<Linux>>,
    in_flight: InFlight,
    metrics: Option<Endpoint>,
    /// How often missing paths are looked for; zero: never.
    path_interval: Duration,
}

impl Plugin {
    /// Reads the configuration and sets everything up, without a word to any NAS.
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
                    "chap is off: whoever reaches port 3260 of the NAS can log in to published volumes"
                );
            }
            metrics::of_process().chap_is(config.chap != ChapMode::Off);
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
                Some(node.below(args.kubelet_dir.clone()))
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

    /// Where metrics are shown.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics
            .as_ref()
            .and_then(|endpoint| endpoint.address().ok())
    }

    /// Serves on the socket at `path` until `stop` resolves, then lets operations in flight end and logs out.
    ///
    /// # Errors
    /// The socket cannot be made or served.
    pub async fn serve(
        self,
        path: &Path,
        stop: impl Future<Output = ()>,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let (listener, mark) = listen(path).await?;
        self.identity.check_host();
        let address = self.metrics_address().map(tracing::field::display);
        info!(socket = %path.display(), metrics = address, "serving");
        let signalled = Notify::new();
        let stop = async {
            stop.await;
            info!("stopping");
            signalled.notify_one();
        };
        let own = run_background_tasks(self.node.clone(), self.path_interval);
        let serving = Server::builder()
            .add_service(IdentityServer::new(self.identity))
            .add_optional_service(self.controller.clone().map(ControllerServer::new))
            .add_optional_service(self.node.map(NodeServer::new))
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop);
        let all_done = async {
            tokio::select! {
                served = serving => served?,
                never = own => match never {},
            }
            self.in_flight.idle().await;
            Ok::<(), tonic::transport::Error>(())
        };
        let farewell = async {
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
            () = farewell => warn!(
                "operations were still in flight; each is repeated safely after the next start"
            ),
        }
        if let Some(controller) = &self.controller {
            // A session that is not ended here ends by itself.
            let _ = tokio::time::timeout(LOGOUT_TIMEOUT, controller.logout()).await;
        }
        // Whoever starts while this process ends has taken the place over, and is served there.
        if socket_file(path).is_ok_and(|now| now == mark) {
            let _ = std::fs::remove_file(path);
        }
        Ok(())
    }
}

/// What a node does on its own while calls are served: it removes what a crash has left, then it joins missing paths.
async fn run_background_tasks(node: Option<Node<Linux>>, every: Duration) -> Infallible {
    if let Some(node) = node {
        Box::pin(node.sweep()).await;
        info!("node records have been swept");
        if !every.is_zero() {
            Box::pin(node.keep_paths(every)).await;
        }
    }
    std::future::pending().await
}

/// What tells a socket from the next one at its path. File systems give the numbers of deleted files away again, hence the time.
type SocketFile = (u64, u64, i64, i64);

fn socket_file(path: &Path) -> io::Result<SocketFile> {
    let found = std::fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino(), found.ctime(), found.ctime_nsec()))
}

/// Opens the socket, for its owner alone. One left behind by a process that was killed is taken over; one that is served is not.
async fn listen(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
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
                format!("{} exists and is no socket", path.display()),
            ));
        }
        Err(_) => {}
    }
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let socket = UnixSocket::new_stream()?;
    socket.bind(path)?;
    // Before anybody can connect: whoever speaks here may do all that the driver may, and what the umask says is luck.
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    let mark = socket_file(path)?;
    Ok((socket.listen(BACKLOG)?, mark))
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
    if nas.tells_password() {
        warn!(
            nas = %nas.name,
            "plain_http: the administrator's password and the proofs of all volumes go over the network in the clear"
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
    let mut made = Nas::new(nas.name.clone(), host, client);
    made.aliases.clone_from(&nas.aliases);
    made.portals.clone_from(&nas.portals);
    made.floor = nas.min_free_space;
    Ok(made)
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
    async fn the_socket_is_its_owner_s_and_its_successor_s_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("csi.sock");
        let (first, mark) = listen(&path).await.unwrap();
        assert_eq!(mode(&path), 0o600);
        assert!(listen(&path).await.is_err(), "it is served");
        drop(first);
        let (_second, successor) = listen(&path).await.unwrap();
        assert_eq!(socket_file(&path).unwrap(), successor);
        assert_ne!(mark, successor, "what ended takes nothing along");
    }
}
