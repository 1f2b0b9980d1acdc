//! A Docker engine: the one that runs on this machine, or a private one for as long as it is needed.

use std::{
    fs,
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

use crate::{context::Context, run::Step};

/// How long a private engine may take to answer.
const STARTS: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// An engine that answers.
pub(crate) struct Engine<'a> {
    context: &'a Context,
    /// Where the client finds it, when that is not where it looks by itself.
    host: Option<String>,
    daemon: Option<Child>,
}

impl<'a> Engine<'a> {
    /// Finds one, or starts one below the target directory. It has no network of its own: builds use the machine's.
    ///
    /// # Errors
    /// When none runs and none can be started.
    pub(crate) fn reach(context: &'a Context) -> Result<Self> {
        let mut engine = Self {
            context,
            host: None,
            daemon: None,
        };
        if engine.answers()? {
            return Ok(engine);
        }
        ensure!(
            context.privileges.root,
            "no Docker engine runs here, and only root can start one"
        );
        let folder = context.target.join("docker");
        fs::create_dir_all(&folder)?;
        let host = format!("unix://{}", folder.join("docker.sock").display());
        let log = folder.join("log");
        // It ends with this process, however that ends, and what it has mounted goes with it.
        let daemon = Step::new(context, "unshare --mount setpriv --pdeathsig TERM dockerd")
            .args(&["--bridge", "none", "--iptables=false", "--ip6tables=false"])
            .args(&["--host", &host])
            .arg("--data-root")
            .arg(folder.join("data"))
            .arg("--exec-root")
            .arg(folder.join("exec"))
            .arg("--pidfile")
            .arg(folder.join("pid"))
            .background(&log)?;
        engine.host = Some(host);
        engine.daemon = Some(daemon);
        engine.wait(&log)?;
        Ok(engine)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the one wait of this program: for a daemon, between two looks, with a bound"
    )]
    fn wait(&mut self, log: &Path) -> Result<()> {
        let start = Instant::now();
        while !self.answers()? {
            let ended = self.daemon.as_mut().map(Child::try_wait).transpose()?;
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
        let step = Step::new(self.context, &format!("docker {line}"));
        match &self.host {
            Some(host) => step.env("DOCKER_HOST", host),
            None => step,
        }
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

impl Drop for Engine<'_> {
    fn drop(&mut self) {
        let Some(mut daemon) = self.daemon.take() else {
            return;
        };
        let stopped = i32::try_from(daemon.id())
            .context("a process number")
            .and_then(|pid| Ok(kill(Pid::from_raw(pid), Signal::SIGTERM)?));
        // It has not been waited for, so its number is still its own; an error says that it has ended just now.
        if stopped.is_ok() {
            let _ = daemon.wait();
        }
    }
}
