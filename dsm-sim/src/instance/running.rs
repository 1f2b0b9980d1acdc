//! [`DsmSim`], a simulator with ports and threads: start, addresses, shutdown.

use crate::nas::clock::millis;
use std::fs::{self, File, TryLockError};
use std::io;
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::{self, Runtime};
use tokio::sync::oneshot;

use crate::control;
use crate::instance::handle::Handle;
use crate::nas::clock::Clock;
use crate::nas::{Config, Nas};
use crate::options::Builder;
use crate::server::Server;
use crate::server::http;
use crate::server::journal::Journal;
use crate::server::journal::file::{self, JournalFile};
use crate::server::listener::{AbortableListener, Peer};
use crate::storage::backstore::Backstore;
use crate::storage::export::Export;
use crate::storage::store::{Store, write_atomically};
use crate::storage::transaction::DurableNas;
use crate::tls::{Identity, TlsError};

const ENDPOINTS: &str = "endpoints.json";
/// How long to wait for the lock of the state directory, which a process that is exiting or was killed may still hold.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);
/// How long calls in flight may take when the simulator stops.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// Why the simulator did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A file or directory cannot be used.
    #[error("cannot use {path}")]
    File {
        /// The file or directory.
        path: PathBuf,
        /// The I/O error.
        #[source]
        source: io::Error,
    },
    /// Another process uses the state directory.
    #[error("another dsm-sim is running in {path}: stop it, or take another --state-dir")]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// A LUN in the state is on a volume that is not configured.
    #[error("LUN {lun} is on {volume}: add --volume {volume}=…, or take an empty --state-dir")]
    VolumeGone {
        /// The LUN's name.
        lun: String,
        /// The volume's path.
        volume: String,
    },
    /// An account is invalid.
    #[error("{0}")]
    Account(String),
    /// A port cannot be opened.
    #[error("cannot listen on {address}: take another port, or port 0 for any free one")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The I/O error.
        #[source]
        source: io::Error,
    },
    /// LUNs cannot be exported in the configured way.
    #[error("cannot export LUNs")]
    Export(#[source] io::Error),
    /// HTTPS cannot be set up.
    #[error("cannot serve HTTPS")]
    Tls(#[source] TlsError),
    /// Threads cannot be started.
    #[error("cannot start threads")]
    Threads(#[source] io::Error),
}

/// A running simulator with its own threads. Dropping it stops it, and blocks for up to a few seconds until it has stopped.
#[derive(Debug)]
pub struct DsmSim {
    handle: Handle,
    at: Addresses,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// URLs and paths of a running simulator.
#[derive(Debug)]
struct Addresses {
    api: String,
    control: String,
    https: Option<String>,
    ca_file: Option<PathBuf>,
    state_dir: PathBuf,
}

impl DsmSim {
    /// Configures a simulator. The default is a DS923+ on DSM 7.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// URL of the Web API: `http://127.0.0.1:PORT`.
    pub fn api(&self) -> &str {
        &self.at.api
    }

    /// URL of the Web API over HTTPS, if configured: `https://127.0.0.1:PORT`.
    pub fn https(&self) -> Option<&str> {
        self.at.https.as_deref()
    }

    /// CA file that HTTPS clients must trust, if the simulator generated the certificate.
    pub fn ca_file(&self) -> Option<&Path> {
        self.at.ca_file.as_deref()
    }

    /// URL of the control port: `http://127.0.0.1:PORT`.
    pub fn control(&self) -> &str {
        &self.at.control
    }

    /// The state directory.
    pub fn state_dir(&self) -> &Path {
        &self.at.state_dir
    }
}

impl Deref for DsmSim {
    type Target = Handle;

    fn deref(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for DsmSim {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // An error means that the thread has already ended.
            let _ = stop.send(());
        }
        if self
            .thread
            .take()
            .is_some_and(|thread| thread.join().is_err())
        {
            tracing::error!("the simulator's thread panicked");
        }
    }
}

/// Starts a simulator in this process.
pub(crate) async fn start(builder: Builder) -> Result<DsmSim, StartError> {
    let (stop, stopped) = oneshot::channel();
    let (started_sender, started) = oneshot::channel();
    let options = builder.clone();
    let thread = std::thread::Builder::new()
        .name("dsm-sim".to_owned())
        .spawn(move || run(&options, started_sender, stopped))
        .map_err(StartError::Threads)?;
    let (server, at) = started
        .await
        .unwrap_or_else(|_| Err(StartError::Threads(io::ErrorKind::BrokenPipe.into())))?;
    Ok(DsmSim {
        handle: Handle { server, builder },
        at,
        stop: Some(stop),
        thread: Some(thread),
    })
}

/// The main thread of a simulator. It ends on a stop, when the handle is dropped, or when the start fails.
fn run(
    options: &Builder,
    started: oneshot::Sender<Result<(Arc<Server>, Addresses), StartError>>,
    stopped: oneshot::Receiver<()>,
) {
    let listening = match Listening::new(options) {
        Ok(listening) => listening,
        Err(error) => {
            let _ = started.send(Err(error));
            return;
        }
    };
    let Listening {
        server,
        runtime,
        at,
        folder,
    } = listening;
    let endpoints = at.state_dir.join(ENDPOINTS);
    if started.send(Ok((Arc::clone(&server), at))).is_ok() {
        // An error means that the handle was dropped, which also stops the simulator.
        let _ = runtime.block_on(stopped);
    }
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    // A call that outlives SHUTDOWN_TIMEOUT keeps the lock of the NAS until its current effect is done. After that it has no
    // export.
    server.nas().export.close();
    let _ = fs::remove_file(endpoints);
    // Releases the directory for other processes, or removes it if it is temporary.
    drop(folder);
}

/// An opened simulator: everything except ports and threads.
pub(crate) struct Opened {
    pub(crate) server: Arc<Server>,
    pub(crate) folder: StateDir,
}

/// A locked state directory. Dropping it releases the lock, or removes the directory if it is temporary.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    _lock: File,
    _temporary: Option<TempDir>,
}

impl Opened {
    pub(crate) fn new(options: &Builder) -> Result<Self, StartError> {
        let (path, temporary) = folder(options)?;
        let lock = lock(&path)?;
        let server = Arc::new(open_server(options, &path)?);
        Ok(Self {
            server,
            folder: StateDir {
                path,
                _lock: lock,
                _temporary: temporary,
            },
        })
    }
}

/// A simulator whose ports are open.
struct Listening {
    server: Arc<Server>,
    runtime: Runtime,
    at: Addresses,
    folder: StateDir,
}

impl Listening {
    fn new(options: &Builder) -> Result<Self, StartError> {
        let Opened { server, folder } = Opened::new(options)?;
        let state_dir = folder.path.clone();
        let identity = match &options.https {
            None => None,
            Some(https) => Some(
                https
                    .certificate
                    .open(&state_dir)
                    .map_err(StartError::Tls)?,
            ),
        };
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("dsm-sim")
            .enable_all()
            .build()
            .map_err(StartError::Threads)?;
        let at = runtime.block_on(bind(&server, options, identity, state_dir))?;
        at.write_endpoints().map_err(|source| StartError::File {
            path: at.state_dir.clone(),
            source,
        })?;
        Ok(Self {
            server,
            runtime,
            at,
            folder,
        })
    }
}

impl Addresses {
    /// Writes the file `endpoints.json`, for clients in other processes.
    fn write_endpoints(&self) -> io::Result<()> {
        let mut endpoints =
            json!({"api": self.api, "control": self.control, "pid": std::process::id()});
        if let Some(https) = &self.https {
            endpoints["https"] = json!(https);
        }
        if let Some(ca) = &self.ca_file {
            endpoints["ca_file"] = json!(ca);
        }
        let text = endpoints.to_string();
        write_atomically(&self.state_dir, ENDPOINTS, text.as_bytes())
    }
}

/// Opens the ports and starts the servers.
async fn bind(
    server: &Arc<Server>,
    options: &Builder,
    identity: Option<Identity>,
    state_dir: PathBuf,
) -> Result<Addresses, StartError> {
    let (api, api_at) = listen(options.listen).await?;
    let (control, control_at) = listen(options.control).await?;
    let mut at = Addresses {
        api: format!("http://{api_at}"),
        control: format!("http://{control_at}"),
        https: None,
        ca_file: None,
        state_dir,
    };
    let router = http::router(Arc::clone(server));
    if let (Some(https), Some(identity)) = (&options.https, identity) {
        let (tcp, https_at) = listen(https.listen).await?;
        let tls = Some(identity.acceptor);
        serve(
            AbortableListener { tcp, tls },
            http::secured(router.clone()),
        );
        at.https = Some(format!("https://{https_at}"));
        at.ca_file = identity.ca;
    }
    let tls = None;
    serve(AbortableListener { tcp: api, tls }, router);
    let service = control::router(Arc::clone(server), options.clone());
    tokio::spawn(async move { axum::serve(control, service).await });
    Ok(at)
}

fn serve(listener: AbortableListener, router: axum::Router) {
    let service = router.into_make_service_with_connect_info::<Peer>();
    tokio::spawn(async move { axum::serve(listener, service).await });
}

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let error = |source| StartError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(error)?;
    let at = listener.local_addr().map_err(error)?;
    Ok((listener, at))
}

fn folder(options: &Builder) -> Result<(PathBuf, Option<TempDir>), StartError> {
    let error = |path: &Path, source| StartError::File {
        path: path.to_owned(),
        source,
    };
    let Some(dir) = &options.state_dir else {
        let temporary = TempDir::with_prefix("dsm-sim-")
            .map_err(|source| error(&std::env::temp_dir(), source))?;
        return Ok((temporary.path().to_owned(), Some(temporary)));
    };
    let dir = std::path::absolute(dir).map_err(|source| error(dir, source))?;
    fs::create_dir_all(&dir).map_err(|source| error(&dir, source))?;
    Ok((dir, None))
}

fn lock(dir: &Path) -> Result<File, StartError> {
    let path = dir.join("lock");
    let file = File::create(&path).map_err(|source| StartError::File {
        path: path.clone(),
        source,
    })?;
    let until = Instant::now() + LOCK_TIMEOUT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < until => pause(),
            Err(TryLockError::WouldBlock) => {
                return Err(StartError::InUse {
                    path: dir.to_owned(),
                });
            }
            Err(TryLockError::Error(source)) => return Err(StartError::File { path, source }),
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the start is synchronous, and a lock can only be tried again"
)]
fn pause() {
    std::thread::sleep(Duration::from_millis(10));
}

/// Loads the state and reconciles backstore and exports with it.
fn open_server(options: &Builder, dir: &Path) -> Result<Server, StartError> {
    let in_dir = |source| StartError::File {
        path: dir.to_owned(),
        source,
    };
    match fs::remove_file(dir.join(ENDPOINTS)) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(in_dir(source)),
        Ok(()) | Err(_) => {}
    }
    let (mut store, state) = Store::open(dir).map_err(in_dir)?;
    let config = Config {
        dsm: options.dsm,
        generation: options.dsm.generation,
        model: options.model,
        timing: options.latency.timing(),
        portal: portal(&options.portals),
    };
    let accounts = options.all_accounts();
    for account in &accounts {
        account.check().map_err(StartError::Account)?;
    }
    // Use other random numbers after each start, to avoid duplicate uuids.
    let rng = match options.seed {
        Some(seed) => StdRng::seed_from_u64(seed.wrapping_add(store.lines())),
        None => StdRng::from_rng(&mut rand::rng()),
    };
    let clock = Clock::new(options.clock);
    let mut nas = Nas::new(config, options.settings.clone(), state, accounts, rng);
    nas.set_uptime(clock.now(), millis(options.uptime));
    nas.restore(clock.now(), &options.volumes)
        .map_err(|(lun, volume)| StartError::VolumeGone { lun, volume })?;
    store.append(&nas.state).map_err(in_dir)?;
    nas.state.commit();
    let backstore = Backstore::open(dir).map_err(in_dir)?;
    backstore.align(&nas.state).map_err(in_dir)?;
    let export = Export::open(
        options.export,
        dir,
        options.portals.clone(),
        &nas.state,
        &backstore,
    )
    .map_err(StartError::Export)?;
    let journal = options.journal_file.as_ref().map(|path| {
        let file = JournalFile::open(path, file::MAX_BYTES);
        file.map_err(|source| StartError::File {
            path: path.clone(),
            source,
        })
    });
    Ok(Server::new(
        DurableNas {
            nas,
            store,
            backstore,
            export,
        },
        clock,
        options.latency,
        Journal::to_file(journal.transpose()?),
    ))
}

/// The first portal; 127.0.0.1 replaces an unspecified address.
fn portal(portals: &[SocketAddr]) -> SocketAddr {
    let local = SocketAddr::from(([127, 0, 0, 1], 3260));
    let mut portal = portals.first().copied().unwrap_or(local);
    if portal.ip().is_unspecified() {
        portal.set_ip(local.ip());
    }
    portal
}
