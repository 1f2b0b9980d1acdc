//! Starting programs: the only place in this crate that does.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, BufRead, BufReader, Read, Write as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use crate::context::Context;

/// How long what a killed program has said may take to arrive.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// One program to run, from the workspace's root and without input.
#[derive(Debug)]
pub(crate) struct Step {
    command: Command,
    shown: String,
    terminal: bool,
    limit: Option<Duration>,
}

/// What a program said.
#[derive(Debug)]
pub(crate) struct Output {
    /// It ended with exit code 0.
    pub(crate) success: bool,
    /// Its exit code; `None` when a signal ended it.
    pub(crate) code: Option<i32>,
    /// It was killed because it took longer than [`Step::within`] allows.
    pub(crate) overran: bool,
    /// Its standard output.
    pub(crate) stdout: String,
    /// Its standard error.
    pub(crate) stderr: String,
}

impl Step {
    /// `line` is split at blanks; arguments with blanks go through [`Step::arg`].
    pub(crate) fn new(context: &Context, line: &str) -> Self {
        let mut words = line.split(' ');
        #[expect(
            clippy::disallowed_methods,
            reason = "the one place of this crate that starts programs"
        )]
        let mut command = Command::new(words.next().unwrap_or_default());
        command
            .args(words)
            .current_dir(&context.root)
            .env("PATH", &context.path)
            .stdin(Stdio::null());
        if let Some(kubeconfig) = &context.kubeconfig {
            command.env("KUBECONFIG", kubeconfig);
        }
        // `cargo run` describes the ci crate in the environment. Build scripts that watch these variables (ring's does)
        // would run again each time they come and go.
        for name in [
            "CARGO_MANIFEST_DIR",
            "CARGO_MANIFEST_PATH",
            "CARGO_BIN_NAME",
            "CARGO_CRATE_NAME",
        ] {
            command.env_remove(name);
        }
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("CARGO_PKG_") {
                command.env_remove(name);
            }
        }
        Self {
            command,
            shown: line.to_owned(),
            terminal: context.terminal,
            limit: None,
        }
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.shown = format!("{} {}", self.shown, arg.as_ref().to_string_lossy());
        self.command.arg(arg);
        self
    }

    pub(crate) fn args(self, args: &[impl AsRef<OsStr>]) -> Self {
        args.iter().fold(self, Self::arg)
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub(crate) fn directory(mut self, directory: &Path) -> Self {
        self.command.current_dir(directory);
        self
    }

    /// Lets the program read what the user types.
    pub(crate) fn interactive(mut self) -> Self {
        self.command.stdin(Stdio::inherit());
        self
    }

    /// Lets [`Step::quiet`] and [`Step::watch`] kill it, and what it has started, when it takes longer.
    pub(crate) fn within(mut self, limit: Duration) -> Self {
        self.command.process_group(0);
        self.limit = Some(limit);
        self
    }

    /// Runs it in full view.
    ///
    /// # Errors
    /// When it cannot be started or ends with another code than 0.
    pub(crate) fn show(mut self) -> Result<()> {
        let status = self
            .command
            .status()
            .with_context(|| format!("cannot start `{}`", self.shown))?;
        success(status, &self.shown)
    }

    /// Runs it in full view and hands every line of its standard output on.
    ///
    /// # Errors
    /// When it cannot be started or its output cannot be read. Its exit code is the answer: true for 0.
    pub(crate) fn tee(self, mut each: impl FnMut(&str)) -> Result<bool> {
        self.retell(|line| {
            each(line);
            Some(line.to_owned())
        })
    }

    /// Like [`Step::tee`], but of each line only what is answered is shown.
    ///
    /// # Errors
    /// See [`Step::tee`].
    pub(crate) fn retell(mut self, mut each: impl FnMut(&str) -> Option<String>) -> Result<bool> {
        let mut child = self.spawn(Stdio::piped(), Stdio::inherit())?;
        let stdout = child.stdout.take().context("standard output is piped")?;
        let mut shown = io::stdout().lock();
        for line in lines(stdout) {
            if let Some(line) = each(&line?) {
                writeln!(shown, "{line}")?;
            }
        }
        Ok(child.wait()?.success())
    }

    /// Runs it behind one progress line; what it said is shown only when it fails.
    ///
    /// # Errors
    /// When it cannot be started or ends with another code than 0.
    pub(crate) fn quiet(mut self, title: &str) -> Result<()> {
        let output = self.watch(title)?;
        if !output.success {
            print!("{}{}", output.stdout, output.stderr);
            bail!("`{}` failed", self.shown);
        }
        Ok(())
    }

    /// Like [`Step::quiet`], but a failure is data.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn watch(&mut self, title: &str) -> Result<Output> {
        let mut child = self.spawn(Stdio::piped(), Stdio::piped())?;
        let receiver = listen(&mut child)?;
        let mut progress = Progress::start(title, self.terminal);
        let (mut stdout, mut stderr) = (String::new(), String::new());
        let mut overran = false;
        loop {
            match receiver.recv_timeout(Duration::from_millis(200)) {
                Ok(Said::Out(line)) => keep(&mut stdout, &line),
                Ok(Said::Err(line)) => {
                    keep(&mut stderr, &line);
                    line.trim().clone_into(&mut progress.latest);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            let time = progress.since.elapsed();
            if overran && self.limit.is_some_and(|limit| time > limit + LAST_WORDS) {
                break;
            }
            if !overran && self.limit.is_some_and(|limit| time > limit) {
                overran = true;
                kill_group(&child)?;
            }
            progress.draw();
        }
        progress.end();
        let status = child.wait()?;
        Ok(Output {
            success: status.success(),
            code: status.code(),
            overran,
            stdout,
            stderr,
        })
    }

    /// Starts it and goes on; what it says goes to a file.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn background(mut self, log: &Path) -> Result<Child> {
        let log = File::create(log).with_context(|| log.display().to_string())?;
        self.spawn(log.try_clone()?.into(), log.into())
    }

    /// Starts it in full view, and goes on.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn foreground(mut self) -> Result<Child> {
        self.spawn(Stdio::inherit(), Stdio::inherit())
    }

    /// Runs it unseen.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn output(mut self) -> Result<Output> {
        let output = self
            .command
            .output()
            .with_context(|| format!("cannot start `{}`", self.shown))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Output {
            success: output.status.success(),
            code: output.status.code(),
            overran: false,
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        })
    }

    fn spawn(&mut self, stdout: Stdio, stderr: Stdio) -> Result<Child> {
        let spawned = self.command.stdout(stdout).stderr(stderr).spawn();
        spawned.with_context(|| format!("cannot start `{}`", self.shown))
    }
}

fn success(status: ExitStatus, shown: &str) -> Result<()> {
    if !status.success() {
        bail!("`{shown}` failed ({status})");
    }
    Ok(())
}

/// Kills a program that [`Step::within`] made the leader of its group, and the group.
fn kill_group(child: &Child) -> Result<()> {
    // It has not been waited for, so its number is still its own; an error says that it has ended just now.
    let _ = killpg(Pid::from_raw(child.id().try_into()?), Signal::SIGKILL);
    Ok(())
}

enum Said {
    Out(String),
    Err(String),
}

/// Everything that a program says, line by line, until nobody is left who could say more.
fn listen(child: &mut Child) -> Result<Receiver<Said>> {
    let (sender, receiver) = mpsc::channel();
    let stdout = child.stdout.take().context("standard output is piped")?;
    let stderr = child.stderr.take().context("standard error is piped")?;
    forward(stdout, sender.clone(), Said::Out);
    forward(stderr, sender, Said::Err);
    Ok(receiver)
}

fn forward(from: impl Read + Send + 'static, to: Sender<Said>, said: fn(String) -> Said) {
    thread::spawn(move || {
        for line in lines(from).map_while(Result::ok) {
            // The receiver goes away only when the whole task fails; then nobody needs the line.
            let _ = to.send(said(line));
        }
    });
}

/// Lines as text, whatever bytes they hold.
fn lines(from: impl Read) -> impl Iterator<Item = io::Result<String>> {
    BufReader::new(from)
        .split(b'\n')
        .map(|line| line.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

fn keep(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

/// One line that says what is being done, for how long, and the program's latest words.
struct Progress<'a> {
    title: &'a str,
    since: Instant,
    latest: String,
    terminal: bool,
}

impl<'a> Progress<'a> {
    fn start(title: &'a str, terminal: bool) -> Self {
        if !terminal {
            println!("{title} …");
        }
        Self {
            title,
            since: Instant::now(),
            latest: String::new(),
            terminal,
        }
    }

    fn draw(&self) {
        if !self.terminal {
            return;
        }
        let text = format!(
            "{} … {} s  {}",
            self.title,
            self.since.elapsed().as_secs(),
            self.latest
        );
        // Most terminals are at least this wide; a wrapped line could not be drawn over.
        let text: String = text
            .chars()
            .filter(|letter| !letter.is_control())
            .take(78)
            .collect();
        print!("\r\x1b[K{text}");
        let _ = io::stdout().flush();
    }

    fn end(&self) {
        if self.terminal {
            print!("\r\x1b[K");
            let _ = io::stdout().flush();
        }
    }
}
