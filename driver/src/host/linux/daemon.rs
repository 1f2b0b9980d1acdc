//! The daemons of the host that the driver works with, found by the sockets that they listen on. EFFECT: asks the kernel, and
//! lets [`trust`] decide.
//!
//! ```text
//! connect ──▶ SO_PEERCRED, SO_PEERPIDFD: who called listen() ──▶ /proc/PID: facts ──▶ judged ──▶ still alive? then it was that one
//! ```
//! A process is held by a pidfd from before the first look at it: as long as it has not ended, its number is no one else's.
//! Its root and its namespaces are opened meanwhile and stay what they are, whatever becomes of it.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
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
/// The longest name that an abstract socket has.
const LONGEST: usize = 107;
/// How long a daemon may leave a caller waiting that nobody else waits before, in seconds.
const CONNECT_TIMEOUT_SECONDS: i64 = 2;

/// A daemon of the host that has namespaces of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Daemon {
    /// open-iscsi's.
    Iscsid,
    /// That of multipath-tools.
    Multipathd,
}

/// Why there is no daemon to work with.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unverified {
    /// Nobody listens.
    Nobody(String),
    /// Somebody may, but cannot be looked at or must not be believed.
    Refused(String),
}

impl Unverified {
    pub(super) fn into_text(self) -> String {
        match self {
            Self::Nobody(text) | Self::Refused(text) => text,
        }
    }
}

impl Daemon {
    /// The program's name. For words to people only.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Iscsid => "iscsid",
            Self::Multipathd => "multipathd",
        }
    }

    /// The abstract addresses that it may listen at, without the leading zero.
    fn addresses(self) -> Vec<Vec<u8>> {
        match self {
            Self::Iscsid => {
                // open-iscsi/open-iscsi: usr/mgmt_ipc.c. Older releases bind the whole `sockaddr_un`, zeros included.
                let name = b"ISCSIADM_ABSTRACT_NAMESPACE".to_vec();
                let mut padded = name.clone();
                padded.resize(LONGEST, 0);
                vec![name, padded]
            }
            // opensvc/multipath-tools: libmpathcmd/mpath_cmd.h. Newer releases listen at a path, too.
            Self::Multipathd => vec![b"/org/kernel/linux/storage/multipathd".to_vec()],
        }
    }

    /// The process that listens for this daemon in the host's network namespace, proven to be the host's.
    ///
    /// The calling thread is in the network and the cgroup namespace of process 1 afterwards.
    pub(super) fn verify(self) -> Result<Process, Unverified> {
        let own = join_init()?;
        let mut refused = None;
        for address in self.addresses() {
            match self.verify_at(&address, &own) {
                Ok(process) => return Ok(process),
                Err(Unverified::Nobody(_)) => {}
                // One who pretends must not hide the real one at the other address.
                Err(error @ Unverified::Refused(_)) => refused = Some(error),
            }
        }
        Err(refused.unwrap_or_else(|| {
            Unverified::Nobody(format!(
                "nobody listens on {0}'s socket in the host's network namespace: start {0} on the node",
                self.name()
            ))
        }))
    }

    fn verify_at(self, address: &[u8], own: &[Cgroup]) -> Result<Process, Unverified> {
        let name = self.name();
        let refuse = |problem: String| Unverified::Refused(problem);
        let socket = call(address)
            .map_err(|error| {
                refuse(format!(
                    "{name}'s socket takes no connection ({error}): is {name} stuck? Start it anew"
                ))
            })?
            .ok_or_else(|| Unverified::Nobody(String::new()))?;
        let held = listener(&socket);
        // iscsid serves one caller after the other, and would wait for this one to say something.
        drop(socket);
        let ended = || {
            refuse(format!(
                "the process that opened {name}'s socket has ended: start {name} anew, in the foreground (iscsid -f, multipathd -d)"
            ))
        };
        let (number, pidfd) = held.map_err(|_| ended())?.ok_or_else(|| {
            refuse(format!(
                "the process that listens on {name}'s socket is none that the driver can see: give the pod hostPID: true"
            ))
        })?;
        let look = || Ok::<_, io::Error>((Process::read(number)?, facts(number)?, facts(1)?));
        let looked = look();
        // Only now is it certain that all of this was of the process that listens.
        if !lives(&pidfd) {
            return Err(ended());
        }
        let (process, facts, init) = looked.map_err(|error| {
            refuse(format!(
                "process {number}, which listens on {name}'s socket, cannot be looked at ({error}): the driver's container must be privileged"
            ))
        })?;
        match trust::judge(&facts, &init, own) {
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

/// A process, held together with what the driver enters of it.
#[derive(Debug)]
pub(super) struct Process {
    /// Process 1 needs none: it does not end before the machine does.
    pidfd: Option<OwnedFd>,
    pub(super) root: File,
    pub(super) mounts: File,
    pub(super) network: File,
}

impl Process {
    /// Process 1 of the host.
    pub(super) fn init() -> io::Result<Self> {
        Self::read(1)
    }

    fn read(number: u32) -> io::Result<Self> {
        let open = |name: &str, flags: OFlag| {
            let path = of(number).join(name);
            let mut how = File::options();
            how.read(true).custom_flags(flags.bits()).open(path)
        };
        Ok(Self {
            pidfd: None,
            root: open("root", OFlag::O_PATH | OFlag::O_DIRECTORY)?,
            mounts: open("ns/mnt", OFlag::empty())?,
            network: open("ns/net", OFlag::empty())?,
        })
    }

    /// False when it has ended.
    fn lives(&self) -> bool {
        self.pidfd.as_ref().is_none_or(lives)
    }

    /// Its root folder, as it is seen from here for as long as this is kept.
    pub(super) fn root(&self) -> PathBuf {
        Path::new(PROC).join(format!("self/fd/{}", self.root.as_raw_fd()))
    }
}

/// False when the process has ended, and its number may be another's.
fn lives(pidfd: &OwnedFd) -> bool {
    let mut ended = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    matches!(poll(&mut ended, PollTimeout::ZERO), Ok(0))
}

/// iscsid, proven once and kept for as long as it lives: it serves one caller after the other and need not be asked for each file.
#[derive(Clone, Debug, Default)]
pub(super) struct Kept(Arc<Mutex<Option<Arc<Process>>>>);

impl Kept {
    /// The process that is `daemon` now.
    pub(super) fn daemon(&self, daemon: Daemon) -> Result<Arc<Process>, Unverified> {
        if daemon != Daemon::Iscsid {
            return verify_in_thread(daemon).map(Arc::new);
        }
        // A thread that died here has changed nothing.
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(process) = kept.as_ref().filter(|process| process.lives()) {
            return Ok(Arc::clone(process));
        }
        *kept = None;
        let process = Arc::new(verify_in_thread(daemon)?);
        *kept = Some(Arc::clone(&process));
        Ok(process)
    }
}

/// [`Daemon::prove`] for a process that has to stay in its own namespaces.
fn verify_in_thread(daemon: Daemon) -> Result<Process, Unverified> {
    thread::spawn(move || daemon.verify())
        .join()
        .unwrap_or_else(|_| Err(Unverified::Refused("the driver failed to look".to_owned())))
}

/// True when this process may be believed to be one of the host's; false when it has just ended, too.
pub(super) fn is_of_host(number: u32) -> Result<bool, Unverified> {
    let asked = thread::spawn(move || {
        let own = join_init()?;
        let judged = facts(number).and_then(|facts| Ok((facts, self::facts(1)?)));
        match judged {
            Ok((facts, init)) => Ok(trust::judge(&facts, &init, &own).is_ok()),
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Unverified::Refused(format!(
                "process {number} cannot be looked at ({error}): the driver's container must be privileged"
            ))),
        }
    });
    asked
        .join()
        .unwrap_or_else(|_| Err(Unverified::Refused("the driver failed to look".to_owned())))
}

/// Calls at the daemon's socket in this thread's network namespace, or in that of process 1. False: nobody listens.
pub(super) fn call_at(daemon: Daemon, of_init: bool) -> Result<bool, Unverified> {
    let called = thread::spawn(move || {
        if of_init {
            join_init()?;
        }
        for address in daemon.addresses() {
            let answer = call(&address).map_err(|error| {
                Unverified::Refused(format!(
                    "{0}'s socket takes no connection ({error}): is {0} stuck? Start it anew",
                    daemon.name()
                ))
            })?;
            if answer.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    });
    called
        .join()
        .unwrap_or_else(|_| Err(Unverified::Refused("the driver failed to call".to_owned())))
}

/// Joins the network namespace of process 1, which the daemons listen in, and its cgroup namespace, which a cgroup's whole path
/// is seen from. Answers the driver's own cgroups.
fn join_init() -> Result<Vec<Cgroup>, Unverified> {
    let join = |kind: &str, flag: CloneFlags| {
        let theirs = of(1).join("ns").join(kind);
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
            "those of process 1 cannot be looked at ({error}): the driver's container must be privileged"
        ))
    })
}

/// A connection to who listens there; `None` when nobody does.
fn call(address: &[u8]) -> nix::Result<Option<OwnedFd>> {
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

/// The process that has called `listen()`, and a hold on it. `None`: it has no number in the driver's process namespace.
fn listener(socket: &OwnedFd) -> nix::Result<Option<(u32, OwnedFd)>> {
    let number = getsockopt(socket, sockopt::PeerCredentials)?.pid();
    let (Some(pid), Ok(number)) = (Pid::from_raw(number), u32::try_from(number)) else {
        return Ok(None);
    };
    let pidfd = match getsockopt(socket, sockopt::PeerPidfd) {
        // Before Linux 6.5. A number that has become another's meanwhile is judged by what that one is.
        Err(Errno::ENOPROTOOPT) => pidfd_open(pid, PidfdFlags::empty())
            .map_err(|error| Errno::from_raw(error.raw_os_error()))?,
        other => other?,
    };
    Ok(Some((number, pidfd)))
}

fn facts(number: u32) -> io::Result<Facts> {
    let place = of(number);
    let status = fs::read_to_string(place.join("status"))?;
    let (users, capabilities) = trust::read_status(&status).ok_or_else(odd)?;
    Ok(Facts {
        users,
        capabilities,
        user_namespace: fs::metadata(place.join("ns/user"))?.ino(),
        cgroups: cgroups(&place)?,
    })
}

fn cgroups(place: &Path) -> io::Result<Vec<Cgroup>> {
    trust::read_cgroups(&fs::read_to_string(place.join("cgroup"))?).ok_or_else(odd)
}

fn odd() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the kernel's words are not understood",
    )
}

fn of(number: u32) -> PathBuf {
    Path::new(PROC).join(number.to_string())
}
