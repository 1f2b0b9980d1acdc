//! Finds iscsid and multipathd by the sockets that they listen on, and verifies that they are processes of the host. EFFECT:
//! reads facts from the kernel; [`trust`] decides.
//!
//! ```text
//! connect ──▶ SO_PEERCRED, SO_PEERPIDFD: who called listen() ──▶ /proc/PID: facts ──▶ verify ──▶ still alive? else refused
//! ```
//! A pidfd is opened before the first fact is read: as long as the process has not ended, its id cannot be reused. Its root and
//! its namespaces are opened meanwhile, and these descriptors stay valid even if it ends.

use parking_lot::Mutex;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::trust::{self, Cgroup, Facts};

pub(super) const PROC: &str = "/proc";
/// Maximum length of an abstract socket's name, in bytes.
const MAX_ABSTRACT_NAME: usize = 107;
/// Timeout of a connection to a daemon's socket, in seconds.
const CONNECT_TIMEOUT_SECONDS: i64 = 2;

/// A daemon of the host that may have its own namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Daemon {
    /// The daemon of open-iscsi.
    Iscsid,
    /// The daemon of multipath-tools.
    Multipathd,
}

/// Why there is no usable daemon.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unverified {
    /// No process listens on the socket, or there is no such program.
    NotFound(String),
    /// A process may listen, but it cannot be inspected or is not trusted.
    Refused(String),
}

impl Unverified {
    pub(super) fn into_text(self) -> String {
        match self {
            Self::NotFound(text) | Self::Refused(text) => text,
        }
    }
}

impl Daemon {
    /// The program's name, for messages only.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Iscsid => "iscsid",
            Self::Multipathd => "multipathd",
        }
    }

    /// The abstract socket names that it may listen on, without the leading zero byte.
    fn addresses(self) -> Vec<Vec<u8>> {
        match self {
            Self::Iscsid => {
                // open-iscsi/open-iscsi: usr/mgmt_ipc.c. Older releases bind the whole `sockaddr_un`, including its zeros.
                let name = b"ISCSIADM_ABSTRACT_NAMESPACE".to_vec();
                let mut padded = name.clone();
                padded.resize(MAX_ABSTRACT_NAME, 0);
                vec![name, padded]
            }
            // opensvc/multipath-tools: libmpathcmd/mpath_cmd.h. Newer releases also listen on a socket file.
            Self::Multipathd => vec![b"/org/kernel/linux/storage/multipathd".to_vec()],
        }
    }

    /// Finds the process that listens on this daemon's socket in the host's network namespace, and verifies that it is a process
    /// of the host.
    ///
    /// Moves the calling thread into the network and the cgroup namespace of process 1.
    pub(super) fn verify(self) -> Result<Process, Unverified> {
        let own = join_init()?;
        let mut refused = None;
        for address in self.addresses() {
            match self.verify_at(&address, &own) {
                Ok(process) => return Ok(process),
                Err(Unverified::NotFound(_)) => {}
                // An impostor at one address must not hide the real daemon at the other.
                Err(error @ Unverified::Refused(_)) => refused = Some(error),
            }
        }
        Err(refused.unwrap_or_else(|| {
            Unverified::NotFound(format!(
                "nobody listens on {0}'s socket in the host's network namespace: start {0} on the node",
                self.name()
            ))
        }))
    }

    fn verify_at(self, address: &[u8], own: &[Cgroup]) -> Result<Process, Unverified> {
        let name = self.name();
        let refuse = |problem: String| Unverified::Refused(problem);
        let socket = connect_abstract(address)
            .map_err(|error| {
                refuse(format!(
                    "{name}'s socket takes no connection ({error}): is {name} stuck? Restart it"
                ))
            })?
            .ok_or_else(|| Unverified::NotFound(String::new()))?;
        let peer = listening_process(&socket);
        // iscsid serves one client at a time, and would wait for a request on this connection.
        drop(socket);
        let ended = || {
            refuse(format!(
                "the process that opened {name}'s socket has ended: restart {name} in the foreground (iscsid -f, multipathd -d)"
            ))
        };
        let (number, pidfd) = peer.map_err(|_| ended())?.ok_or_else(|| {
            refuse(format!(
                "the process that listens on {name}'s socket is not visible to the driver: give the pod hostPID: true"
            ))
        })?;
        let read = || Ok::<_, io::Error>((Process::open(number)?, facts(number)?, facts(1)?));
        let result = read();
        // Only if the process is still alive is it certain that all of this was read from it, and not from another with its id.
        if !is_alive(&pidfd) {
            return Err(ended());
        }
        let (process, facts, init) = result.map_err(|error| {
            refuse(format!(
                "process {number}, which listens on {name}'s socket, cannot be inspected ({error}): the driver's container must be privileged"
            ))
        })?;
        match trust::verify(&facts, &init, own) {
            Ok(()) => Ok(Process {
                pidfd: Some(pidfd),
                ..process
            }),
            Err(why) => Err(refuse(format!(
                "process {number}, which listens on {name}'s socket, {why}: end it, and run {name} as a service of the node itself"
            ))),
        }
    }
}

/// An open process: a pidfd, and the root and the namespaces that the driver enters.
#[derive(Debug)]
pub(super) struct Process {
    /// `None` for process 1, which never ends while the machine runs.
    pidfd: Option<OwnedFd>,
    pub(super) root: File,
    pub(super) mounts: File,
    pub(super) network: File,
}

impl Process {
    /// Process 1 of the host.
    pub(super) fn init() -> io::Result<Self> {
        Self::open(1)
    }

    fn open(number: u32) -> io::Result<Self> {
        let open = |name: &str, flags: OFlag| {
            let path = proc_dir(number).join(name);
            let mut options = File::options();
            options.read(true).custom_flags(flags.bits()).open(path)
        };
        Ok(Self {
            pidfd: None,
            root: open("root", OFlag::O_PATH | OFlag::O_DIRECTORY)?,
            mounts: open("ns/mnt", OFlag::empty())?,
            network: open("ns/net", OFlag::empty())?,
        })
    }

    /// False if it has ended.
    fn is_alive(&self) -> bool {
        self.pidfd.as_ref().is_none_or(is_alive)
    }

    /// The path of its root directory; valid as long as this value lives.
    pub(super) fn root(&self) -> PathBuf {
        Path::new(PROC).join(format!("self/fd/{}", self.root.as_raw_fd()))
    }
}

/// False if the process has ended, so that its id may be reused.
fn is_alive(pidfd: &OwnedFd) -> bool {
    let mut ended = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    matches!(poll(&mut ended, PollTimeout::ZERO), Ok(0))
}

/// iscsid's process, verified once and cached as long as it lives. iscsid serves one client at a time, so the driver does not
/// connect to it for each file.
#[derive(Clone, Debug, Default)]
pub(super) struct IscsidCache(Arc<Mutex<Option<Arc<Process>>>>);

impl IscsidCache {
    /// The verified process of `daemon`; only that of iscsid is cached.
    pub(super) fn process_of(&self, daemon: Daemon) -> Result<Arc<Process>, Unverified> {
        if daemon != Daemon::Iscsid {
            return verify_in_thread(daemon).map(Arc::new);
        }
        // A thread that panicked here has changed nothing.
        let mut cached = self.0.lock();
        if let Some(process) = cached.as_ref().filter(|process| process.is_alive()) {
            return Ok(Arc::clone(process));
        }
        *cached = None;
        let process = Arc::new(verify_in_thread(daemon)?);
        *cached = Some(Arc::clone(&process));
        Ok(process)
    }
}

/// [`Daemon::verify`] in a new thread, so that the calling thread stays in its own namespaces.
fn verify_in_thread(daemon: Daemon) -> Result<Process, Unverified> {
    thread::spawn(move || daemon.verify())
        .join()
        .unwrap_or_else(|_| {
            Err(Unverified::Refused(
                "the thread that inspected it panicked".to_owned(),
            ))
        })
}

/// True if this process is trusted as one of the host's; false also if it has just ended.
pub(super) fn is_of_host(number: u32) -> Result<bool, Unverified> {
    let thread = thread::spawn(move || {
        let own = join_init()?;
        let read = facts(number).and_then(|facts| Ok((facts, self::facts(1)?)));
        match read {
            Ok((facts, init)) => Ok(trust::verify(&facts, &init, &own).is_ok()),
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Unverified::Refused(format!(
                "process {number} cannot be inspected ({error}): the driver's container must be privileged"
            ))),
        }
    });
    thread.join().unwrap_or_else(|_| {
        Err(Unverified::Refused(
            "the thread that inspected it panicked".to_owned(),
        ))
    })
}

/// Connects to the daemon's socket in this thread's network namespace, or in that of process 1. False: connection refused.
pub(super) fn try_connect(daemon: Daemon, of_init: bool) -> Result<bool, Unverified> {
    let thread = thread::spawn(move || {
        if of_init {
            join_init()?;
        }
        for address in daemon.addresses() {
            let answer = connect_abstract(&address).map_err(|error| {
                Unverified::Refused(format!(
                    "{0}'s socket takes no connection ({error}): is {0} stuck? Restart it",
                    daemon.name()
                ))
            })?;
            if answer.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    });
    thread.join().unwrap_or_else(|_| {
        Err(Unverified::Refused(
            "the thread that connected to it panicked".to_owned(),
        ))
    })
}

/// Moves the calling thread into the network namespace of process 1, where the daemons listen, and into its cgroup namespace,
/// where `/proc/PID/cgroup` shows full paths. Returns the driver's own cgroups.
fn join_init() -> Result<Vec<Cgroup>, Unverified> {
    let join = |kind: &str, flag: CloneFlags| {
        let theirs = proc_dir(1).join("ns").join(kind);
        let own = Path::new(PROC).join("thread-self/ns").join(kind);
        if fs::metadata(&theirs)?.ino() == fs::metadata(own)?.ino() {
            return Ok(());
        }
        setns(File::open(theirs)?, flag).map_err(io::Error::from)
    };
    let joined = join("net", CloneFlags::CLONE_NEWNET)
        .and_then(|()| join("cgroup", CloneFlags::CLONE_NEWCGROUP))
        .and_then(|()| cgroups(&Path::new(PROC).join("thread-self")));
    joined.map_err(|error| {
        Unverified::Refused(format!(
            "cannot join those of process 1 ({error}): the driver's container must be privileged"
        ))
    })
}

/// Connects to an abstract socket; `None` if the connection is refused.
fn connect_abstract(address: &[u8]) -> nix::Result<Option<OwnedFd>> {
    let socket = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    setsockopt(
        &socket,
        sockopt::SendTimeout,
        &TimeVal::seconds(CONNECT_TIMEOUT_SECONDS),
    )?;
    match connect(socket.as_raw_fd(), &UnixAddr::new_abstract(address)?) {
        Ok(()) => Ok(Some(socket)),
        Err(Errno::ECONNREFUSED) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The id and a pidfd of the process that called `listen()`. `None`: it has no id in the driver's PID namespace.
fn listening_process(socket: &OwnedFd) -> nix::Result<Option<(u32, OwnedFd)>> {
    let number = getsockopt(socket, sockopt::PeerCredentials)?.pid();
    let (Some(pid), Ok(number)) = (Pid::from_raw(number), u32::try_from(number)) else {
        return Ok(None);
    };
    let pidfd = match getsockopt(socket, sockopt::PeerPidfd) {
        // Before Linux 6.5. If the id was reused meanwhile, the process that has it now is verified instead.
        Err(Errno::ENOPROTOOPT) => pidfd_open(pid, PidfdFlags::empty())
            .map_err(|error| Errno::from_raw(error.raw_os_error()))?,
        other => other?,
    };
    Ok(Some((number, pidfd)))
}

fn facts(number: u32) -> io::Result<Facts> {
    let dir = proc_dir(number);
    let status = fs::read_to_string(dir.join("status"))?;
    let (users, capabilities) = trust::parse_status(&status).ok_or_else(malformed)?;
    Ok(Facts {
        users,
        capabilities,
        user_namespace: fs::metadata(dir.join("ns/user"))?.ino(),
        cgroups: cgroups(&dir)?,
    })
}

fn cgroups(dir: &Path) -> io::Result<Vec<Cgroup>> {
    trust::parse_cgroups(&fs::read_to_string(dir.join("cgroup"))?).ok_or_else(malformed)
}

fn malformed() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "a file of /proc cannot be parsed",
    )
}

fn proc_dir(number: u32) -> PathBuf {
    Path::new(PROC).join(number.to_string())
}
