//! Starting and stopping a simulator.

use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use crate::account::Account;
use crate::auth::Settings;
use crate::backstore::Backstore;
use crate::clock::Clock;
use crate::core::Core;
use crate::export::{Export, ExportKind};
use crate::journal::Journal;
use crate::latency::Latency;
use crate::listener::{CutListener, Peer};
use crate::model::{Dsm, Model};
use crate::nas::{Config, Nas};
use crate::server::Server;
use crate::store::{Store, write_atomically};
use crate::tls::{Https, TlsError};
use crate::volume::VolumeSpec;
use crate::{control, http};

const ENDPOINTS: &str = "endpoints.json";
/// How long one that is just ending, or has been killed, may still hold its folder.
const PREDECESSOR: Duration = Duration::from_secs(1);
/// How long calls under way may take to end when the simulator stops.
const GRACE: Duration = Duration::from_secs(2);

/// What to simulate, and where.
#[derive(Clone)]
pub struct Options {
    /// Where the Web API listens. Port 0 takes any free port.
    pub listen: SocketAddr,
    /// Where the control port listens.
    pub control: SocketAddr,
    /// Answers HTTPS too.
    pub https: Option<Https>,
    /// Where state, LUNs and exports are kept. `None`: a temporary folder that goes when the simulator stops.
    pub state_dir: Option<PathBuf>,
    /// The volumes of the NAS.
    pub volumes: Vec<VolumeSpec>,
    /// How LUNs become block devices.
    pub export: ExportKind,
    /// Where targets listen; with [`ExportKind::Loop`], where they are said to.
    pub portals: Vec<SocketAddr>,
    /// The first account, an administrator.
    pub account: String,
    /// Its password.
    pub password: String,
    /// The base32 secret of its second factor, if it has one.
    pub otp_secret: Option<String>,
    /// Further accounts.
    pub accounts: Vec<Account>,
    /// The release of DSM.
    pub dsm: Dsm,
    /// The model, for its limits.
    pub model: Model,
    /// How long calls take.
    pub latency: Latency,
    /// The switches to start with; a reset goes back to them.
    pub settings: Settings,
    /// Also write the journal to this file.
    pub journal_file: Option<PathBuf>,
}

impl Default for Options {
    /// A DS923+ with one btrfs volume of 2 TiB, on free ports, in a temporary folder.
    fn default() -> Self {
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Self {
            listen: local(0),
            control: local(0),
            https: None,
            state_dir: None,
            volumes: vec![VolumeSpec {
                path: "/volume1".to_owned(),
                fs: crate::FileSystem::Btrfs,
                size: 2 << 40,
            }],
            export: ExportKind::None,
            portals: vec![local(3260)],
            account: "admin".to_owned(),
            password: "admin".to_owned(),
            otp_secret: None,
            accounts: Vec::new(),
            dsm: Dsm::default(),
            model: Model::default(),
            latency: Latency::Instant,
            settings: Settings::default(),
            journal_file: None,
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("listen", &self.listen)
            .field("state_dir", &self.state_dir)
            .finish_non_exhaustive()
    }
}

/// Why the simulator did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Something about a file or folder.
    #[error("cannot use {path}")]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Somebody else works in the folder.
    #[error("another dsm-sim is running in {path}: stop it, or take another --state-dir")]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// A LUN is on a volume that was not asked for.
    #[error("LUN {lun} is on {volume}: add --volume {volume}=…, or take an empty --state-dir")]
    VolumeGone {
        /// The LUN's name.
        lun: String,
        /// Where it is.
        volume: String,
    },
    /// An account cannot be.
    #[error("{0}")]
    Account(String),
    /// A port cannot be had.
    #[error("cannot listen on {address}: take another port, or port 0 for any free one")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// LUNs cannot be exported in the way that was asked for.
    #[error("cannot export LUNs")]
    Export(#[source] io::Error),
    /// HTTPS was asked for and cannot be had.
    #[error("cannot serve HTTPS")]
    Tls(#[source] TlsError),
    /// The system gives no threads.
    #[error("cannot start threads")]
    Threads(#[source] io::Error),
}

/// A simulator that is running; it stops when this is dropped.
#[derive(Debug)]
pub struct Running {
    /// The Web API, `http://127.0.0.1:PORT`.
    pub api: String,
    /// The control port, `http://127.0.0.1:PORT`.
    pub control: String,
    /// The Web API again, `https://127.0.0.1:PORT`, when HTTPS was asked for.
    pub https: Option<String>,
    /// The authority to trust there, when the simulator made the certificate itself.
    pub ca_file: Option<PathBuf>,
    /// Where its state is.
    pub state_dir: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    // Held for their drop, after the thread has ended: the folder is free for others, then gone if it was temporary.
    _lock: File,
    _temporary: Option<TempDir>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // The thread may have ended on its own; then there is nobody to tell.
            let _ = stop.send(());
        }
        if self
            .thread
            .take()
            .is_some_and(|thread| thread.join().is_err())
        {
            tracing::error!("the simulator's thread panicked");
        }
        let _ = fs::remove_file(self.state_dir.join(ENDPOINTS));
    }
}

/// Starts a simulator in this process, on threads of its own; it may be called from async code or not.
///
/// # Errors
/// The folder, a volume or a port cannot be had; see [`StartError`].
pub fn start(options: Options) -> Result<Running, StartError> {
    let (state_dir, temporary) = folder(&options)?;
    let lock = lock(&state_dir)?;
    let in_dir = |source| StartError::File {
        path: state_dir.clone(),
        source,
    };
    let (tls, ca_file) = certificate(&options)?;
    let server = Arc::new(prepare(&options, &state_dir)?);
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("dsm-sim")
        .enable_all()
        .build()
        .map_err(StartError::Threads)?;
    let (stop, stopped) = oneshot::channel();
    let (tell, told) = mpsc::channel();
    let thread = std::thread::Builder::new()
        .name("dsm-sim".to_owned())
        .spawn(move || serve(runtime, &server, tls, &tell, stopped, options));
    let thread = thread.map_err(StartError::Threads)?;
    let at = told
        .recv()
        .unwrap_or_else(|_| Err(StartError::Threads(io::ErrorKind::BrokenPipe.into())))?;
    let running = Running {
        api: format!("http://{}", at.api),
        control: format!("http://{}", at.control),
        https: at.https.map(|at| format!("https://{at}")),
        ca_file,
        state_dir: state_dir.clone(),
        stop: Some(stop),
        thread: Some(thread),
        _lock: lock,
        _temporary: temporary,
    };
    let endpoints = running.endpoints().to_string();
    write_atomically(&state_dir, ENDPOINTS, endpoints.as_bytes()).map_err(in_dir)?;
    Ok(running)
}

/// Where it listens.
struct Addresses {
    api: SocketAddr,
    control: SocketAddr,
    https: Option<SocketAddr>,
}

impl Running {
    /// What a client must know, for those who did not start it.
    fn endpoints(&self) -> serde_json::Value {
        let mut endpoints =
            json!({"api": self.api, "control": self.control, "pid": std::process::id()});
        if let Some(https) = &self.https {
            endpoints["https"] = json!(https);
        }
        if let Some(ca) = &self.ca_file {
            endpoints["ca_file"] = json!(ca);
        }
        endpoints
    }
}

fn serve(
    runtime: Runtime,
    server: &Arc<Server>,
    tls: Option<TlsAcceptor>,
    tell: &mpsc::Sender<Result<Addresses, StartError>>,
    stopped: oneshot::Receiver<()>,
    options: Options,
) {
    runtime.block_on(async {
        let at = open(server, tls, options).await;
        let fine = at.is_ok();
        if tell.send(at).is_ok() && fine {
            // An error means that the handle was dropped, which is a stop as well.
            let _ = stopped.await;
        }
    });
    runtime.shutdown_timeout(GRACE);
    // A call that outlives its grace holds the core for as long as its last effect takes, and has no export after that.
    server.core().export.close();
}

/// Opens the ports and serves them.
async fn open(
    server: &Arc<Server>,
    tls: Option<TlsAcceptor>,
    options: Options,
) -> Result<Addresses, StartError> {
    let (api, api_at) = listen(options.listen).await?;
    let (control, control_at) = listen(options.control).await?;
    let https = match (&options.https, tls) {
        (Some(https), Some(tls)) => Some((listen(https.listen).await?, tls)),
        _ => None,
    };
    let at = Addresses {
        api: api_at,
        control: control_at,
        https: https.as_ref().map(|((_, at), _)| *at),
    };
    let router = http::router(Arc::clone(server));
    if let Some(((tcp, _), tls)) = https {
        let tls = Some(tls);
        answer(CutListener { tcp, tls }, http::secured(router.clone()));
    }
    let tls = None;
    answer(CutListener { tcp: api, tls }, router);
    let service = control::router(Arc::clone(server), options);
    tokio::spawn(async move { axum::serve(control, service).await });
    Ok(at)
}

fn answer(listener: CutListener, router: axum::Router) {
    let service = router.into_make_service_with_connect_info::<Peer>();
    tokio::spawn(async move { axum::serve(listener, service).await });
}

/// The certificate for HTTPS, and the authority that clients must trust.
fn certificate(options: &Options) -> Result<(Option<TlsAcceptor>, Option<PathBuf>), StartError> {
    let Some(https) = &options.https else {
        return Ok((None, None));
    };
    let identity = https.certificate.open().map_err(StartError::Tls)?;
    Ok((Some(identity.acceptor), identity.ca))
}

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let wrong = |source| StartError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(wrong)?;
    let at = listener.local_addr().map_err(wrong)?;
    Ok((listener, at))
}

fn folder(options: &Options) -> Result<(PathBuf, Option<TempDir>), StartError> {
    let wrong = |path: &Path, source| StartError::File {
        path: path.to_owned(),
        source,
    };
    let Some(dir) = &options.state_dir else {
        let temporary = TempDir::with_prefix("dsm-sim-")
            .map_err(|source| wrong(&std::env::temp_dir(), source))?;
        return Ok((temporary.path().to_owned(), Some(temporary)));
    };
    let dir = std::path::absolute(dir).map_err(|source| wrong(dir, source))?;
    fs::create_dir_all(&dir).map_err(|source| wrong(&dir, source))?;
    Ok((dir, None))
}

fn lock(dir: &Path) -> Result<File, StartError> {
    let path = dir.join("lock");
    let file = File::create(&path).map_err(|source| StartError::File {
        path: path.clone(),
        source,
    })?;
    let until = Instant::now() + PREDECESSOR;
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

/// Loads the state and makes everything else follow it.
fn prepare(options: &Options, dir: &Path) -> Result<Server, StartError> {
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
    let mut accounts = vec![Account {
        otp_secret: options.otp_secret.clone(),
        ..Account::new(&options.account, &options.password)
    }];
    accounts.extend(options.accounts.iter().cloned());
    for account in &accounts {
        account.check().map_err(StartError::Account)?;
    }
    let rng = StdRng::from_rng(&mut rand::rng());
    let mut nas = Nas::new(config, options.settings.clone(), state, accounts, rng);
    nas.revive(Clock::default().now(), &options.volumes)
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
        let file = File::options().create(true).append(true).open(path);
        file.map_err(|source| StartError::File {
            path: path.clone(),
            source,
        })
    });
    Ok(Server::new(
        Core {
            nas,
            store,
            backstore,
            export,
        },
        options.latency,
        Journal::to_file(journal.transpose()?),
    ))
}

/// The first portal; where it is any address of this machine, the one that is always there.
fn portal(portals: &[SocketAddr]) -> SocketAddr {
    let local = SocketAddr::from(([127, 0, 0, 1], 3260));
    let mut portal = portals.first().copied().unwrap_or(local);
    if portal.ip().is_unspecified() {
        portal.set_ip(local.ip());
    }
    portal
}
