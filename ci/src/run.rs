//! [`Cmd`] starts every program that this crate runs, with its output shown, captured, or behind a progress line.

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
use indicatif::{ProgressBar, ProgressStyle};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use crate::context::Context;

/// How long to wait for buffered output after a program was killed.
const OUTPUT_GRACE: Duration = Duration::from_secs(2);

/// A program to run. By default in the workspace's root directory and without standard input.
#[derive(Debug)]
pub(crate) struct Cmd {
    command: Command,
    line: String,
    terminal: bool,
    timeout: Option<Duration>,
}

/// The result of a program whose output was captured.
#[derive(Debug)]
pub(crate) struct Output {
    /// The exit code was 0.
    pub(crate) success: bool,
    /// The exit code; `None` if it was killed by a signal.
    pub(crate) code: Option<i32>,
    /// It was killed after the [`Cmd::timeout`].
    pub(crate) timed_out: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Cmd {
    /// `line` is split at spaces. Pass arguments that contain spaces through [`Cmd::arg`].
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
        // `cargo run` sets these for the ci crate. Build scripts that watch them (ring's does) would rerun whenever they change.
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
            line: line.to_owned(),
            terminal: context.terminal,
            timeout: None,
        }
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.line = format!("{} {}", self.line, arg.as_ref().to_string_lossy());
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

    pub(crate) fn current_dir(mut self, directory: &Path) -> Self {
        self.command.current_dir(directory);
        self
    }

    /// Inherits standard input.
    pub(crate) fn interactive(mut self) -> Self {
        self.command.stdin(Stdio::inherit());
        self
    }

    /// Makes [`Cmd::run_quietly`] and [`Cmd::output_with_progress`] kill its process group after this time.
    pub(crate) fn timeout(mut self, timeout: Duration) -> Self {
        self.command.process_group(0);
        self.timeout = Some(timeout);
        self
    }

    /// Runs it with its output on the terminal.
    ///
    /// # Errors
    /// When it cannot be started, or its exit code is not 0.
    pub(crate) fn run(mut self) -> Result<()> {
        let status = self
            .command
            .status()
            .with_context(|| format!("cannot start `{}`", self.line))?;
        check_status(status, &self.line)
    }

    /// Runs it with its output on the terminal, and passes every line of standard output to `each`. Returns whether the exit code
    /// was 0.
    ///
    /// # Errors
    /// When it cannot be started, or its output cannot be read.
    pub(crate) fn tee(self, mut each: impl FnMut(&str)) -> Result<bool> {
        self.filter_lines(|line| {
            each(line);
            Some(line.to_owned())
        })
    }

    /// Like [`Cmd::tee`], but prints what `each` returns instead of the line.
    ///
    /// # Errors
    /// See [`Cmd::tee`].
    pub(crate) fn filter_lines(
        mut self,
        mut each: impl FnMut(&str) -> Option<String>,
    ) -> Result<bool> {
        let mut child = self.spawn_with(Stdio::piped(), Stdio::inherit())?;
        let stdout = child.stdout.take().context("standard output is piped")?;
        let mut to = io::stdout().lock();
        for line in lines(stdout) {
            if let Some(line) = each(&line?) {
                writeln!(to, "{line}")?;
            }
        }
        Ok(child.wait()?.success())
    }

    /// Runs it behind a progress line. Its output is printed only if it fails.
    ///
    /// # Errors
    /// When it cannot be started, or its exit code is not 0.
    pub(crate) fn run_quietly(mut self, title: &str) -> Result<()> {
        let output = self.output_with_progress(title)?;
        if !output.success {
            print!("{}{}", output.stdout, output.stderr);
            bail!("`{}` failed", self.line);
        }
        Ok(())
    }

    /// Runs it behind a progress line and returns its output, whatever the exit code.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn output_with_progress(&mut self, title: &str) -> Result<Output> {
        let mut child = self.spawn_with(Stdio::piped(), Stdio::piped())?;
        let receiver = read_lines(&mut child)?;
        let progress = progress_line(title, self.terminal);
        let since = Instant::now();
        let (mut stdout, mut stderr) = (String::new(), String::new());
        let mut timed_out = false;
        loop {
            match receiver.recv_timeout(Duration::from_millis(200)) {
                Ok(OutputLine::Out(line)) => push_line(&mut stdout, &line),
                Ok(OutputLine::Err(line)) => {
                    push_line(&mut stderr, &line);
                    progress.set_message(line.trim().to_owned());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            let time = since.elapsed();
            if timed_out
                && self
                    .timeout
                    .is_some_and(|timeout| time > timeout + OUTPUT_GRACE)
            {
                break;
            }
            if !timed_out && self.timeout.is_some_and(|timeout| time > timeout) {
                timed_out = true;
                kill_group(&child)?;
            }
            progress.tick();
        }
        progress.finish_and_clear();
        let status = child.wait()?;
        Ok(Output {
            success: status.success(),
            code: status.code(),
            timed_out,
            stdout,
            stderr,
        })
    }

    /// Starts it without waiting. Its output goes to the file `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn spawn_to_log(mut self, log: &Path) -> Result<Child> {
        let log = File::create(log).with_context(|| log.display().to_string())?;
        self.spawn_with(log.try_clone()?.into(), log.into())
    }

    /// Starts it without waiting, with its output on the terminal.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn spawn(mut self) -> Result<Child> {
        self.spawn_with(Stdio::inherit(), Stdio::inherit())
    }

    /// Runs it and returns its output, whatever the exit code.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn output(mut self) -> Result<Output> {
        let output = self
            .command
            .output()
            .with_context(|| format!("cannot start `{}`", self.line))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Output {
            success: output.status.success(),
            code: output.status.code(),
            timed_out: false,
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        })
    }

    fn spawn_with(&mut self, stdout: Stdio, stderr: Stdio) -> Result<Child> {
        let spawned = self.command.stdout(stdout).stderr(stderr).spawn();
        spawned.with_context(|| format!("cannot start `{}`", self.line))
    }
}

fn check_status(status: ExitStatus, line: &str) -> Result<()> {
    if !status.success() {
        bail!("`{line}` failed ({status})");
    }
    Ok(())
}

/// Kills the process group of a program with a [`Cmd::timeout`], which is its leader.
fn kill_group(child: &Child) -> Result<()> {
    // It has not been waited for, so its PID is not reused. An error means that it has just ended.
    let _ = killpg(Pid::from_raw(child.id().try_into()?), Signal::SIGKILL);
    Ok(())
}

enum OutputLine {
    Out(String),
    Err(String),
}

/// Lines of standard output and standard error, until every process that holds the pipes has ended.
fn read_lines(child: &mut Child) -> Result<Receiver<OutputLine>> {
    let (sender, receiver) = mpsc::channel();
    let stdout = child.stdout.take().context("standard output is piped")?;
    let stderr = child.stderr.take().context("standard error is piped")?;
    forward(stdout, sender.clone(), OutputLine::Out);
    forward(stderr, sender, OutputLine::Err);
    Ok(receiver)
}

fn forward(
    from: impl Read + Send + 'static,
    to: Sender<OutputLine>,
    stream: fn(String) -> OutputLine,
) {
    thread::spawn(move || {
        for line in lines(from).map_while(Result::ok) {
            // The receiver is dropped only if the whole task fails. The line is then not needed.
            let _ = to.send(stream(line));
        }
    });
}

/// Lines as text; invalid UTF-8 is replaced.
fn lines(from: impl Read) -> impl Iterator<Item = io::Result<String>> {
    BufReader::new(from)
        .split(b'\n')
        .map(|line| line.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

fn push_line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

/// A progress line: title, elapsed time, and the program's latest line. Without a terminal only the title is printed.
fn progress_line(title: &str, terminal: bool) -> ProgressBar {
    if !terminal {
        println!("{title} …");
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{prefix} … {elapsed}  {wide_msg}")
        .expect("the template is valid");
    ProgressBar::new_spinner()
        .with_style(style)
        .with_prefix(title.to_owned())
}
