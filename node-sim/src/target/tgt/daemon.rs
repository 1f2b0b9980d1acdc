//! EFFECT: starts, finds and stops the daemon, and runs `tgtadm`.

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

/// Environment variable of the daemon with its directory.
const ENV_NAME: &str = "NODE_SIM_TGT";
/// Directory of tgt's control sockets: `socket.<port>` and `socket.<port>.lock`.
const SOCKETS: &str = "/var/run/tgtd";
/// Error of `tgtadm` for a unit with a command in progress.
const STILL_ACTIVE: &str = "this logical unit is still active";
/// Timeout for the daemon to answer or to end.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The daemon of a directory, running or not.
#[derive(Debug)]
pub(super) struct Daemon<'a> {
    lock: &'a Lock,
    env_entry: String,
    control: String,
}

impl<'a> Daemon<'a> {
    /// The daemon of this directory, under its lock. Its control port is chosen once and recorded.
    pub(super) fn of(dir: &Path, lock: &'a Lock) -> io::Result<Self> {
        let port_file = dir.join("control-port");
        let control = match fs::read_to_string(&port_file) {
            Ok(text) => text.trim().to_owned(),
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => {
                let control = free_control_port(dir)?;
                lock.write(&port_file, control.as_bytes(), Durability::Always)?;
                control
            }
            Err(error) => return Err(error),
        };
        Ok(Self {
            lock,
            env_entry: format!("{ENV_NAME}={}", dir.display()),
            control,
        })
    }

    pub(super) fn is_running(&self) -> io::Result<bool> {
        Ok(!self.pids()?.is_empty())
    }

    /// Starts the daemon without a portal that initiators use.
    pub(super) fn start(&self) -> io::Result<()> {
        self.remove_sockets()?;
        // Without a portal it listens on port 3260 of all addresses, so give it a free port until `listen` is called.
        let unused = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
        let portal = format!("portal={unused}");
        let (name, value) = self.env_entry.split_once('=').unwrap_or_default();
        exec::run(
            self.lock,
            "tgtd",
            &["-C", &self.control, "--iscsi", &portal],
            &[(name, value)],
        )?;
        let mut last_error = String::new();
        exec::until(TIMEOUT, || match self.show("system") {
            Ok(_) => Ok(true),
            Err(error) => {
                last_error = error.to_string();
                Ok(false)
            }
        })?
        .then_some(())
        .ok_or_else(|| io::Error::new(io::ErrorKind::TimedOut, format!("tgtd: {last_error}")))
    }

    /// Makes the daemon listen on exactly these portals. Live sessions continue.
    pub(super) fn listen(&self, portals: &[SocketAddr]) -> io::Result<()> {
        let now = show::portals(&self.show("portal")?);
        for portal in now.iter().filter(|portal| !portals.contains(portal)) {
            self.run(&Step::DeletePortal(*portal))?;
        }
        for portal in portals.iter().filter(|portal| !now.contains(portal)) {
            self.run(&Step::NewPortal(*portal))
                .map_err(|error| cannot_listen(portal, &error.to_string()))?;
        }
        let now = show::portals(&self.show("portal")?);
        match portals.iter().find(|portal| !now.contains(portal)) {
            None => Ok(()),
            Some(portal) => Err(cannot_listen(
                portal,
                "it is missing in its list of portals",
            )),
        }
    }

    /// `--op show --mode <mode>`.
    pub(super) fn show(&self, mode: &str) -> io::Result<String> {
        self.tgtadm(&["--lld", "iscsi", "--op", "show", "--mode", mode])
    }

    /// Runs a command. It is retried if a unit is busy with a command of an initiator.
    pub(super) fn run(&self, step: &Step) -> io::Result<()> {
        let argv = step.argv();
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        let mut busy = None;
        let done = exec::until(TIMEOUT, || match self.tgtadm(&argv) {
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
            // It may have ended already.
            let _ = kill(pid, Signal::SIGKILL);
        }
        if exec::until(TIMEOUT, || Ok(!self.is_running()?))? {
            self.remove_sockets()
        } else {
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "tgtd did not end after SIGKILL",
            ))
        }
    }

    fn remove_sockets(&self) -> io::Result<()> {
        sockets(&self.control)
            .iter()
            .try_for_each(|socket| store::remove(socket))
    }

    /// The daemon's processes: itself and its logger.
    fn pids(&self) -> io::Result<Vec<Pid>> {
        let mut pids = Vec::new();
        for name in store::names(Path::new("/proc"))? {
            let Ok(pid) = name.parse::<i32>() else {
                continue;
            };
            let process = Path::new("/proc").join(name);
            // Ignore a process that ends in the meantime.
            let is_tgtd = fs::read(process.join("comm")).is_ok_and(|comm| comm == b"tgtd\n");
            let is_ours = || {
                let environ = fs::read(process.join("environ")).unwrap_or_default();
                environ
                    .split(|byte| *byte == 0)
                    .any(|entry| entry == self.env_entry.as_bytes())
            };
            if is_tgtd && is_ours() {
                pids.push(Pid::from_raw(pid));
            }
        }
        Ok(pids)
    }
}

/// Error for a portal that cannot be opened.
pub(super) fn cannot_listen(portal: &SocketAddr, why: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::AddrInUse,
        format!(
            "tgtd cannot listen on {portal}; is it an address of this machine, and free? ({why})"
        ),
    )
}

fn sockets(control: &str) -> [PathBuf; 2] {
    ["", ".lock"].map(|suffix| Path::new(SOCKETS).join(format!("socket.{control}{suffix}")))
}

/// A control port that no daemon uses. Tgt parses it as a signed 16-bit number.
fn free_control_port(dir: &Path) -> io::Result<String> {
    let mut hasher = DefaultHasher::new();
    dir.hash(&mut hasher);
    let first = hasher.finish() % 30_000;
    (0..30_000)
        .map(|step| ((first + step) % 30_000 + 1_000).to_string())
        .find(|port| !sockets(port).iter().any(|socket| socket.exists()))
        .ok_or_else(|| io::Error::other("tgtd has no free control port"))
}
