//! A Docker engine: the one that runs on this machine, or a private dockerd that ends with this process.

use std::{
    fs::{self, File},
    io,
    path::Path,
    process::Child,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{context::Context, doctor, run::Cmd};

/// How long a private engine may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// The network of a private engine's containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Network {
    /// The host's, because image builds download packages.
    Host,
    /// A network namespace of its own, with bridges, addresses and ports that end with the engine. It has no connection to the
    /// outside; [`Engine::runner`] runs a program inside.
    Isolated,
}

/// A running engine.
pub(crate) struct Engine<'a> {
    context: &'a Context,
    private: Option<Private>,
}

/// An engine that this process has started.
struct Private {
    /// `DOCKER_HOST` for its clients.
    host: String,
    /// The `unshare` process. All its descendants end with it.
    unshare: Child,
    network: Network,
    /// Keeps other processes from starting an engine with the same data.
    _lock: File,
}

impl<'a> Engine<'a> {
    /// Uses the running engine, or starts a private one with its data below the target directory.
    ///
    /// # Errors
    /// When no engine runs and none can be started.
    pub(crate) fn connect_or_start(context: &'a Context, network: Network) -> Result<Self> {
        let mut engine = Self {
            context,
            private: None,
        };
        let info = engine.docker("info").output()?;
        if info.success {
            return Ok(engine);
        }
        ensure!(
            context.privileges.root,
            "no Docker engine is usable here, and only root can start one: {}",
            info.stderr.trim()
        );
        doctor::provide(context, "docker.io", "dockerd")?;
        let folder = context.target.join("docker");
        fs::create_dir_all(&folder)?;
        let log = folder.join("log");
        engine.private = Some(Private::start(context, &folder, &log, network)?);
        engine.wait(&log)?;
        if network == Network::Isolated {
            let inside = engine.runner()?;
            Cmd::new(context, &inside.join(" "))
                .args(&["ip", "link", "set", "lo", "up"])
                .run_quietly("Bringing up the engine's network")?;
        }
        Ok(engine)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the only sleep of this program: polls for a daemon, with a timeout"
    )]
    fn wait(&mut self, log: &Path) -> Result<()> {
        let start = Instant::now();
        while !self.responds()? {
            let unshare = self.private.as_mut().map(|private| &mut private.unshare);
            let ended = unshare.map(Child::try_wait).transpose()?;
            if start.elapsed() > START_TIMEOUT || ended.flatten().is_some() {
                let log_text = fs::read_to_string(log).unwrap_or_default();
                let last: Vec<&str> = log_text.lines().rev().take(5).collect();
                bail!("the Docker engine does not start; the end of its log: {last:?}");
            }
            // sleep: poll interval.
            sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    fn responds(&self) -> Result<bool> {
        Ok(self.docker("info").output()?.success)
    }

    /// A command of its client; `line` is split at spaces.
    pub(crate) fn docker(&self, line: &str) -> Cmd {
        self.with_docker_host(Cmd::new(self.context, &format!("docker {line}")))
    }

    /// Sets `DOCKER_HOST` of a program, if the engine is a private one.
    pub(crate) fn with_docker_host(&self, cmd: Cmd) -> Cmd {
        match &self.private {
            Some(private) => cmd.env("DOCKER_HOST", &private.host),
            None => cmd,
        }
    }

    /// The command that runs a program inside the engine's network namespace, so that it reaches the containers. Empty if the
    /// engine is not isolated.
    ///
    /// # Errors
    /// When the engine has ended.
    pub(crate) fn runner(&self) -> Result<Vec<String>> {
        let own = self
            .private
            .as_ref()
            .filter(|it| it.network == Network::Isolated);
        own.map_or(Ok(Vec::new()), |private| {
            let network = format!("--net=/proc/{}/ns/net", private.daemon()?);
            Ok(vec!["nsenter".to_owned(), network])
        })
    }

    /// `docker build`. Falls back to the legacy builder if the client lacks the buildx plugin.
    ///
    /// # Errors
    /// When there is no client.
    pub(crate) fn build(&self) -> Result<Cmd> {
        let newer = self.docker("buildx version").output()?.success;
        let cmd = self.docker("build --network host");
        Ok(if newer {
            cmd
        } else {
            cmd.env("DOCKER_BUILDKIT", "0")
        })
    }
}

impl Private {
    fn start(context: &Context, folder: &Path, log: &Path, network: Network) -> Result<Self> {
        let host = format!("unix://{}", folder.join("docker.sock").display());
        let lock = File::create(folder.join("lock"))?;
        lock.try_lock()
            .context("another cargo ci has started a Docker engine with the same data")?;
        // A killed engine leaves its PID file and containerd's. Their PIDs are those of a PID namespace that is gone: the next
        // engine would mistake its own processes for them.
        let (pid_file, exec) = (folder.join("pid"), folder.join("exec"));
        remove(&pid_file, |it| fs::remove_file(it))?;
        remove(&exec, |it| fs::remove_dir_all(it))?;
        // And networks, which the next engine would restore, perhaps on the host.
        remove(&folder.join("data/network"), |it| fs::remove_dir_all(it))?;
        // However this process ends, unshare is killed with it, and with unshare its child, the init process of a PID namespace:
        // the kernel then kills all other processes in it. Mounts and networks are released with the last of them.
        let unshare =
            "setpriv --pdeathsig KILL unshare --fork --pid --kill-child --mount --mount-proc";
        let mut cmd = Cmd::new(context, unshare);
        cmd = match network {
            Network::Host => cmd.args(&["dockerd", "--bridge", "none"]),
            // Ports are forwarded by a userland proxy, not by iptables, because the kernel may lack netfilter modules.
            Network::Isolated => cmd.args(&["--net", "dockerd", "--ip-forward=false"]),
        };
        let unshare = cmd
            .args(&["--iptables=false", "--ip6tables=false"])
            .args(&["--host", &host])
            .arg("--data-root")
            .arg(folder.join("data"))
            .arg("--exec-root")
            .arg(&exec)
            .arg("--pidfile")
            .arg(&pid_file)
            .spawn_to_log(log)?;
        Ok(Self {
            host,
            unshare,
            network,
            _lock: lock,
        })
    }

    /// The engine's PID in the host's PID namespace.
    fn daemon(&self) -> Result<Pid> {
        let unshare = self.unshare.id();
        let file = format!("/proc/{unshare}/task/{unshare}/children");
        let children = fs::read_to_string(&file).context(file)?;
        let first = children.split_whitespace().next();
        let pid_file = first.context("the Docker engine has ended")?.parse()?;
        Ok(Pid::from_raw(pid_file))
    }
}

fn remove(path: &Path, how: impl FnOnce(&Path) -> io::Result<()>) -> Result<()> {
    match how(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| path.display().to_string())
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        // On SIGTERM it stops its containers and saves its state. unshare ends when it has ended.
        let terminated = self
            .daemon()
            .and_then(|pid| Ok(kill(pid, Signal::SIGTERM)?));
        if terminated.is_err() {
            let _ = self.unshare.kill();
        }
        let _ = self.unshare.wait();
    }
}
