//! EFFECT: starts, finds and stops `tgtd`, and runs `tgtadm`.

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::argv::Step;
use super::show;
use crate::exec;
use crate::store::{self, Durability, Lock};

/// The daemon's environment variable with the folder that it belongs to, by which it is found again.
const ENV: &str = "NODE_SIM_TGT";
/// Where tgt keeps its control sockets: `socket.<port>` and `socket.<port>.lock`.
const SOCKETS: &str = "/var/run/tgtd";
/// The message of `tgtadm` about a unit with commands in progress.
const STILL_ACTIVE: &str = "this logical unit is still active";
/// How long to wait for the daemon to answer or to end.
const DEADLINE: Duration = Duration::from_secs(10);

/// The daemon of one folder, running or not.
#[derive(Debug)]
pub(super) struct Daemon<'a> {
    lock: &'a Lock,
    env: String,
    control: String,
}

impl<'a> Daemon<'a> {
    /// The daemon of this folder, for the holder of the folder's lock. Its control port is chosen once and stored.
    pub(super) fn of(dir: &Path, lock: &'a Lock) -> io::Result<Self> {
        let note = dir.join("control-port");
        let control = match fs::read_to_string(&note) {
            Ok(text) => text.trim().to_owned(),
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => {
                let control = free_control_port(dir)?;
                lock.write(&note, control.as_bytes(), Durability::Always)?;
                control
            }
            Err(error) => return Err(error),
        };
        Ok(Self {
            lock,
            env: format!("{ENV}={}", dir.display()),
            control,
        })
    }

    pub(super) fn is_alive(&self) -> io::Result<bool> {
        Ok(!self.pids()?.is_empty())
    }

    /// Starts the daemon, without any portal that an initiator knows.
    pub(super) fn start(&self) -> io::Result<()> {
        self.sweep()?;
        // Without a portal it listens on port 3260 of all addresses, so give it a random one until `listen` is called.
        let unused = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
        let portal = format!("portal={unused}");
        let (name, value) = self.env.split_once('=').unwrap_or_default();
        exec::run(
            self.lock,
            "tgtd",
            &["-C", &self.control, "--iscsi", &portal],
            &[(name, value)],
        )?;
        let mut last_error = String::new();
        exec::until(DEADLINE, || match self.show("system") {
            Ok(_) => Ok(true),
            Err(error) => {
                last_error = error.to_string();
                Ok(false)
            }
        })?
        .then_some(())
        .ok_or_else(|| io::Error::new(io::ErrorKind::TimedOut, format!("tgtd: {last_error}")))
    }

    /// Makes the daemon listen on exactly these portals; live sessions continue.
    pub(super) fn listen(&self, portals: &[SocketAddr]) -> io::Result<()> {
        let now = show::portals(&self.show("portal")?);
        for portal in now.iter().filter(|portal| !portals.contains(portal)) {
            self.run(&Step::DeletePortal(*portal))?;
        }
        for portal in portals.iter().filter(|portal| !now.contains(portal)) {
            self.run(&Step::NewPortal(*portal))
                .map_err(|error| cannot(portal, &error.to_string()))?;
        }
        let now = show::portals(&self.show("portal")?);
        match portals.iter().find(|portal| !now.contains(portal)) {
            None => Ok(()),
            Some(portal) => Err(cannot(portal, "tgtd does not list it")),
        }
    }

    /// `--op show --mode <mode>`.
    pub(super) fn show(&self, mode: &str) -> io::Result<String> {
        self.tgtadm(&["--lld", "iscsi", "--op", "show", "--mode", mode])
    }

    /// Runs one `tgtadm` command. Retries while a unit is busy with an initiator's command.
    pub(super) fn run(&self, step: &Step) -> io::Result<()> {
        let argv = step.argv();
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        let mut busy = None;
        let done = exec::until(DEADLINE, || match self.tgtadm(&argv) {
            Err(error) if error.to_string().contains(STILL_ACTIVE) => {
                busy = Some(error);
                Ok(false)
            }
            answer => answer.map(|_| true),
        })?;
        match busy {
            Some(busy) if !done => Err(busy),
            _ => Ok(()),
        }
    }

    fn tgtadm(&self, args: &[&str]) -> io::Result<String> {
        let all = [&["-C", &self.control], args].concat();
        exec::run(self.lock, "tgtadm", &all, &[])
    }

    /// Kills the daemon and removes its sockets. It has nothing to save: acknowledged writes are in the files. (On SIGTERM it
    /// stops answering but does not exit.)
    pub(super) fn stop(&self) -> io::Result<()> {
        for pid in self.pids()? {
            // It may have just ended by itself.
            let _ = kill(pid, Signal::SIGKILL);
        }
        if exec::until(DEADLINE, || Ok(!self.is_alive()?))? {
            self.sweep()
        } else {
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "tgtd did not end after SIGKILL",
            ))
        }
    }

    fn sweep(&self) -> io::Result<()> {
        sockets(&self.control)
            .iter()
            .try_for_each(|socket| store::remove(socket))
    }

    /// The daemon's process ids: its own and its logger's.
    fn pids(&self) -> io::Result<Vec<Pid>> {
        let mut pids = Vec::new();
        for name in store::names(Path::new("/proc"))? {
            let Ok(pid) = name.parse::<i32>() else {
                continue;
            };
            let process = Path::new("/proc").join(name);
            // A process may end between two reads.
            let is_tgtd = fs::read(process.join("comm")).is_ok_and(|comm| comm == b"tgtd\n");
            let is_ours = || {
                let environ = fs::read(process.join("environ")).unwrap_or_default();
                environ
                    .split(|byte| *byte == 0)
                    .any(|entry| entry == self.env.as_bytes())
            };
            if is_tgtd && is_ours() {
                pids.push(Pid::from_raw(pid));
            }
        }
        Ok(pids)
    }
}

/// The error for a portal that is not available.
pub(super) fn cannot(portal: &SocketAddr, why: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::AddrInUse,
        format!(
            "tgtd cannot listen on {portal}; is it an address of this machine, and free? ({why})"
        ),
    )
}

fn sockets(control: &str) -> [PathBuf; 2] {
    ["", ".lock"].map(|end| Path::new(SOCKETS).join(format!("socket.{control}{end}")))
}

/// A control port that no daemon uses. tgt parses it as a signed 16-bit number.
fn free_control_port(dir: &Path) -> io::Result<String> {
    let mut hasher = DefaultHasher::new();
    dir.hash(&mut hasher);
    let first = hasher.finish() % 30_000;
    (0..30_000)
        .map(|step| ((first + step) % 30_000 + 1_000).to_string())
        .find(|port| !sockets(port).iter().any(|socket| socket.exists()))
        .ok_or_else(|| io::Error::other("tgtd has no free control port"))
}
