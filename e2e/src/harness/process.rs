//! Starts child processes. No other module of this crate may start any.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The path of a program of this workspace, next to the running one: `target/<profile>/<name>`.
///
/// # Errors
/// It is not built; names the command that builds it.
pub fn binary(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let found = own
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file());
    found.with_context(|| {
        format!("{name} is not built: run cargo build --workspace --bins first (cargo ci does)")
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "the only module that may start processes"
)]
fn command(program: impl AsRef<OsStr>) -> Command {
    Command::new(program)
}

/// Runs a host tool to its end.
///
/// # Errors
/// It does not start, or it fails; includes its standard error.
pub fn run<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Result<String> {
    let output = command(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {program}"))?;
    stdout_of(program, output)
}

/// Runs a host tool to its end in a folder.
///
/// # Errors
/// It does not start, or it fails; includes its standard error.
pub fn run_in<S: AsRef<OsStr>>(
    folder: &Path,
    program: &str,
    args: impl IntoIterator<Item = S>,
) -> Result<String> {
    let output = command(program)
        .args(args)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {program}"))?;
    stdout_of(program, output)
}

/// Runs a test suite to its end: returns whether it succeeded, and its output.
///
/// # Errors
/// It does not start.
pub fn suite<S: AsRef<OsStr>>(
    program: &Path,
    args: impl IntoIterator<Item = S>,
) -> Result<(bool, String)> {
    let output = command(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {}", program.display()))?;
    let printed = [output.stdout, output.stderr].concat();
    Ok((
        output.status.success(),
        String::from_utf8_lossy(&printed).into_owned(),
    ))
}

fn stdout_of(program: &str, output: Output) -> Result<String> {
    if !output.status.success() {
        bail!(
            "{program} failed ({}): {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// A child process. It is killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program of this workspace with its output appended to `log`. `path` is put in front of `PATH`.
    ///
    /// # Errors
    /// It does not start.
    pub fn start<S: AsRef<OsStr>>(
        name: &str,
        args: impl IntoIterator<Item = S>,
        log: &Path,
        path: Option<&Path>,
    ) -> Result<Self> {
        Self::start_program(&binary(name)?, args, log, path)
    }

    /// Starts a host program, found on `PATH` unless it is a path, with its output appended to `log`.
    ///
    /// # Errors
    /// It does not start.
    pub fn tool<S: AsRef<OsStr>>(
        program: &str,
        args: impl IntoIterator<Item = S>,
        log: &Path,
    ) -> Result<Self> {
        Self::start_program(Path::new(program), args, log, None)
    }

    fn start_program<S: AsRef<OsStr>>(
        program: &Path,
        args: impl IntoIterator<Item = S>,
        log: &Path,
        path: Option<&Path>,
    ) -> Result<Self> {
        let name = program.display().to_string();
        let mut command = command(program);
        let file = OpenOptions::new().create(true).append(true).open(log)?;
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        if let Some(first) = path {
            let rest = std::env::var_os("PATH").unwrap_or_default();
            let all = std::iter::once(first.to_owned()).chain(std::env::split_paths(&rest));
            command.env("PATH", std::env::join_paths(all)?);
        }
        let child = command
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Self {
            name,
            child,
            log: log.to_owned(),
        })
    }

    /// Lets it run without an owner.
    pub fn disown(self) {
        let mut this = std::mem::ManuallyDrop::new(self);
        // Without a wait it would stay as a zombie.
        std::thread::spawn(move || this.child.wait());
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Fails if it has ended, with the end of its log.
    ///
    /// # Errors
    /// It has ended.
    pub fn check(&mut self) -> Result<()> {
        let ended = self.child.try_wait()?;
        ensure!(
            ended.is_none(),
            "{} has ended ({ended:?}); the end of its log:\n{}",
            self.name,
            self.log_tail()
        );
        Ok(())
    }

    /// Whether it is running: neither killed nor ended.
    pub fn is_alive(&self) -> bool {
        // proc(5): the state follows the name in parentheses. An ended process that was not waited for is a zombie.
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.id())).unwrap_or_default();
        let state = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.trim_start().chars().next());
        state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
    }

    /// The last 15 lines of its log.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// Resident memory, in KiB.
    ///
    /// # Errors
    /// It has ended.
    pub fn resident_kib(&self) -> Result<u64> {
        self.memory("VmRSS:")
    }

    /// Peak resident memory, in KiB.
    ///
    /// # Errors
    /// It has ended.
    pub fn peak_kib(&self) -> Result<u64> {
        self.memory("VmHWM:")
    }

    fn memory(&self, field: &str) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(field))
            .with_context(|| format!("no {field}"))?;
        Ok(line.trim().trim_end_matches("kB").trim().parse()?)
    }

    /// Kills it with SIGKILL, as a crash does.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends it SIGTERM without waiting.
    ///
    /// # Errors
    /// It has already been waited for.
    pub fn send_sigterm(&self) -> Result<()> {
        self.signal(Signal::SIGTERM)
    }

    /// Stops it with SIGSTOP: the kernel still accepts connections for it, but there are no replies.
    ///
    /// # Errors
    /// It has already been waited for.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Continues it with SIGCONT.
    ///
    /// # Errors
    /// It has already been waited for.
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let id = Pid::from_raw(i32::try_from(self.id())?);
        Ok(kill(id, signal)?)
    }

    /// The number of its open sockets.
    ///
    /// # Errors
    /// It has ended.
    pub fn sockets(&self) -> Result<usize> {
        let open = std::fs::read_dir(format!("/proc/{}/fd", self.id()))?;
        // A descriptor may be closed meanwhile.
        let links = open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        Ok(links
            .filter(|link| link.to_string_lossy().starts_with("socket:"))
            .count())
    }

    /// Sends it SIGTERM and waits; returns whether it ended with success.
    ///
    /// # Errors
    /// It does not end in time.
    pub async fn terminate(&mut self) -> Result<bool> {
        self.send_sigterm()?;
        let name = self.name.clone();
        let ended = crate::harness::until::until(
            &format!("{name} ends after SIGTERM"),
            async || Ok(self.child.try_wait()?),
            Option::is_some,
        )
        .await?;
        Ok(ended.is_some_and(|status| status.success()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A program whose standard output is read while it runs. It is killed when this is dropped.
#[derive(Debug)]
pub struct Piped(Child);

impl Piped {
    /// Starts a host program.
    ///
    /// # Errors
    /// It does not start.
    pub fn start<S: AsRef<OsStr>>(
        program: &str,
        args: impl IntoIterator<Item = S>,
    ) -> Result<Self> {
        let child = command(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {program}"))?;
        Ok(Self(child))
    }

    /// Its standard output; `None` after the first call.
    pub fn stdout(&mut self) -> Option<ChildStdout> {
        self.0.stdout.take()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        Ok(self.0.wait()?)
    }

    /// Its standard error; call it after the program has ended.
    pub fn read_stderr(&mut self) -> String {
        let mut text = String::new();
        if let Some(mut stderr) = self.0.stderr.take() {
            let _ = stderr.read_to_string(&mut text);
        }
        text.trim().to_owned()
    }
}

impl Drop for Piped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the helper that cleans up when its standard input is closed.
///
/// # Errors
/// It does not start.
pub(crate) fn start_janitor(folder: &Path) -> Result<Child> {
    let log = File::create(folder.join("janitor.log"))?;
    // In its own session: Ctrl-C in the terminal ends the test, not its janitor.
    let mut command = command("setsid");
    command.arg(binary("janitor")?).arg(folder);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .context("starting the janitor")
}
