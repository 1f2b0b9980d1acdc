//! A Docker engine: the one that runs on this machine, or a private one for as long as it is needed.

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

use crate::{context::Context, doctor, run::Step};

/// How long a private engine may take to answer.
const STARTS: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Which network a private engine gives its containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Network {
    /// The machine's, and no other: builds fetch packages.
    Machine,
    /// One that the machine does not see: bridges, addresses and ports are the engine's own, and end with it. No way leads out
    /// of it, and in only with [`Engine::runner`].
    Own,
}

/// An engine that answers.
pub(crate) struct Engine<'a> {
    context: &'a Context,
    private: Option<Private>,
}

/// An engine that was started here.
struct Private {
    /// Where the client finds it.
    host: String,
    /// `unshare`: what it started, and whatever that has started, ends with it.
    keeper: Child,
    network: Network,
    /// Nobody else may start one with the same data.
    _lock: File,
}

impl<'a> Engine<'a> {
    /// Finds one, or starts one below the target directory.
    ///
    /// # Errors
    /// When none runs and none can be started.
    pub(crate) fn reach(context: &'a Context, network: Network) -> Result<Self> {
        let mut engine = Self {
            context,
            private: None,
        };
        let asked = engine.step("info").output()?;
        if asked.success {
            return Ok(engine);
        }
        ensure!(
            context.privileges.root,
            "no Docker engine can be used here, and only root can start one: {}",
            asked.stderr.trim()
        );
        doctor::provide(context, "docker.io", "dockerd")?;
        let folder = context.target.join("docker");
        fs::create_dir_all(&folder)?;
        let log = folder.join("log");
        engine.private = Some(Private::start(context, &folder, &log, network)?);
        engine.wait(&log)?;
        if network == Network::Own {
            let inside = engine.runner()?;
            Step::new(context, &inside.join(" "))
                .args(&["ip", "link", "set", "lo", "up"])
                .quiet("Giving the engine a network of its own")?;
        }
        Ok(engine)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the one wait of this program: for a daemon, between two looks, with a bound"
    )]
    fn wait(&mut self, log: &Path) -> Result<()> {
        let start = Instant::now();
        while !self.answers()? {
            let keeper = self.private.as_mut().map(|private| &mut private.keeper);
            let ended = keeper.map(Child::try_wait).transpose()?;
            if start.elapsed() > STARTS || ended.flatten().is_some() {
                let said = fs::read_to_string(log).unwrap_or_default();
                let last: Vec<&str> = said.lines().rev().take(5).collect();
                bail!("no Docker engine comes up; its last words: {last:?}");
            }
            // sleep: between two looks.
            sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    fn answers(&self) -> Result<bool> {
        Ok(self.step("info").output()?.success)
    }

    /// A call of its client; `line` is split at blanks.
    pub(crate) fn step(&self, line: &str) -> Step {
        self.known_to(Step::new(self.context, &format!("docker {line}")))
    }

    /// Tells a program where the engine is, when that is not where it looks by itself.
    pub(crate) fn known_to(&self, step: Step) -> Step {
        match &self.private {
            Some(private) => step.env("DOCKER_HOST", &private.host),
            None => step,
        }
    }

    /// What a program that speaks with containers is to be started by. Nothing, when it reaches them from where it is.
    ///
    /// # Errors
    /// When the engine has ended.
    pub(crate) fn runner(&self) -> Result<Vec<String>> {
        let own = self
            .private
            .as_ref()
            .filter(|it| it.network == Network::Own);
        own.map_or(Ok(Vec::new()), |private| {
            let network = format!("--net=/proc/{}/ns/net", private.daemon()?);
            Ok(vec!["nsenter".to_owned(), network])
        })
    }

    /// `docker build`. Some clients lack the plugin that the newer builder needs; the older one does too.
    ///
    /// # Errors
    /// When there is no client.
    pub(crate) fn build(&self) -> Result<Step> {
        let newer = self.step("buildx version").output()?.success;
        let step = self.step("build --network host");
        Ok(if newer {
            step
        } else {
            step.env("DOCKER_BUILDKIT", "0")
        })
    }
}

impl Private {
    fn start(context: &Context, folder: &Path, log: &Path, network: Network) -> Result<Self> {
        let host = format!("unix://{}", folder.join("docker.sock").display());
        let lock = File::create(folder.join("lock"))?;
        lock.try_lock()
            .context("another cargo ci has started a Docker engine with the same data")?;
        // One that was killed leaves its number and its containerd's, which count in a namespace that is gone: the next one would
        // take its own processes for those.
        let (number, exec) = (folder.join("pid"), folder.join("exec"));
        remove(&number, |it| fs::remove_file(it))?;
        remove(&exec, |it| fs::remove_dir_all(it))?;
        // And networks, which the next one would bring to life again, perhaps on the machine.
        remove(&folder.join("data/network"), |it| fs::remove_dir_all(it))?;
        // However this process ends, unshare ends with it, and with unshare its child, which is the first process of a
        // namespace: the kernel ends all others in it. Mounts and networks go with the last of them.
        let keeper =
            "setpriv --pdeathsig KILL unshare --fork --pid --kill-child --mount --mount-proc";
        let mut step = Step::new(context, keeper);
        step = match network {
            Network::Machine => step.args(&["dockerd", "--bridge", "none"]),
            // Ports are forwarded by a process, and not by rules: it takes no part of the kernel that may be missing.
            Network::Own => step.args(&["--net", "dockerd", "--ip-forward=false"]),
        };
        let keeper = step
            .args(&["--iptables=false", "--ip6tables=false"])
            .args(&["--host", &host])
            .arg("--data-root")
            .arg(folder.join("data"))
            .arg("--exec-root")
            .arg(&exec)
            .arg("--pidfile")
            .arg(&number)
            .background(log)?;
        Ok(Self {
            host,
            keeper,
            network,
            _lock: lock,
        })
    }

    /// The engine's process, as the machine counts them.
    fn daemon(&self) -> Result<Pid> {
        let keeper = self.keeper.id();
        let file = format!("/proc/{keeper}/task/{keeper}/children");
        let children = fs::read_to_string(&file).context(file)?;
        let first = children.split_whitespace().next();
        let number = first.context("the Docker engine has ended")?.parse()?;
        Ok(Pid::from_raw(number))
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
        // It stops its containers and writes down what it knows. unshare ends when it has ended.
        let asked = self
            .daemon()
            .and_then(|pid| Ok(kill(pid, Signal::SIGTERM)?));
        if asked.is_err() {
            let _ = self.keeper.kill();
        }
        let _ = self.keeper.wait();
    }
}
