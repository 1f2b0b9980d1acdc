//! Wrapper scripts in front of the driver's host commands: hold a chosen command so that the driver can be killed there, kill the
//! driver there, or make commands fail.
//!
//! The node's `bin` comes first on the driver's `PATH`. For each program it holds a shell script that counts the calls down and
//! passes them through, until the chosen one: that is held before it starts or after it has ended, or is killed in between.
//! To kill the driver no watcher is needed: the script is a child of the driver and kills its parent. Files in the
//! interceptor's folder control the scripts, so that a disarmed interceptor costs one shell per command:
//!
//! ```text
//! left, when     the number of commands until the chosen one, or its name; before, after, or the seconds after its start
//! held, go       the command that is held, and the signal to release it
//! crashed        the command at which the driver was killed
//! faults/NNNN    how a command fails and a part of its command line; the script that removes the file applies the fault
//! hits           the faults that were applied
//! journal        all commands, with their process groups
//! ```

mod wrapper_script;

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use driver::host::PROGRAMS;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::harness::until::until;
use crate::testbed::HostFault;

/// The point of a command at which the driver or the command is stopped.
#[derive(Clone, Copy, Debug)]
pub enum StopAt {
    /// Before the command starts.
    Before,
    /// After the command has ended; the driver has not seen its exit yet.
    After,
    /// The command is killed this many microseconds after its start.
    During(u32),
}

/// The wrapper scripts of one driver's host commands.
#[derive(Debug)]
pub struct CommandInterceptor {
    folder: PathBuf,
    /// The number of injected faults: they apply in this order.
    injected: usize,
}

/// A command that waits to be released.
#[derive(Debug)]
pub struct HeldCommand {
    group: Pid,
    go: PathBuf,
    /// The program's name.
    pub program: String,
}

impl HeldCommand {
    /// Kills it, as the end of its container would.
    pub fn kill(&self) {
        let _ = killpg(self.group, Signal::SIGKILL);
    }

    /// Lets it continue, even if the driver is dead, and waits until it has ended.
    ///
    /// # Errors
    /// It does not end.
    pub async fn release(self) -> Result<()> {
        fs::write(&self.go, "")?;
        let ended = async || Ok(killpg(self.group, None).is_err());
        until("the released command ends", ended, |ended| *ended).await?;
        Ok(fs::remove_file(&self.go)?)
    }
}

impl CommandInterceptor {
    /// Writes the wrapper scripts, disarmed, for a driver that has `bin` first on its `PATH`. `folder` gets the control files.
    ///
    /// # Errors
    /// A program is missing, or a file cannot be written.
    pub fn build(folder: &Path, bin: &Path) -> Result<Self> {
        let interceptor = Self {
            folder: folder.to_owned(),
            injected: 0,
        };
        fs::create_dir_all(folder.join("faults"))?;
        // node-sim's iscsiadm finds its host root two folders above itself, so its real program may lie beside bin.
        let original_bin = bin.with_file_name("original-bin");
        fs::create_dir(&original_bin)?;
        fs::rename(bin.join("iscsiadm"), original_bin.join("iscsiadm"))?;
        let path = std::env::var_os("PATH").unwrap_or_default();
        let search: Vec<PathBuf> = std::iter::once(original_bin)
            .chain(std::env::split_paths(&path))
            .collect();
        for program in PROGRAMS {
            let real = search
                .iter()
                .map(|folder| folder.join(program))
                .find(|path| path.is_file())
                .with_context(|| format!("{program} is missing"))?;
            let wrapper = bin.join(program);
            let script = wrapper_script::script(folder, &real, program, &path.to_string_lossy());
            fs::write(&wrapper, script)?;
            fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
        }
        Ok(interceptor)
    }

    /// Holds the `nth` command from now.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn arm(&self, nth: usize, when: StopAt) -> Result<()> {
        self.arm_with(&nth.to_string(), when, "hold")
    }

    /// Holds the next call of `program`.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn arm_for(&self, program: &str, when: StopAt) -> Result<()> {
        self.arm_with(program, when, "hold")
    }

    /// Kills the driver at its `nth` command from now.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn arm_to_kill(&self, nth: usize, when: StopAt) -> Result<()> {
        self.arm_with(&nth.to_string(), when, "kill")
    }

    fn arm_with(&self, left: &str, when: StopAt, action: &str) -> Result<()> {
        let when = match when {
            StopAt::Before => "before".to_owned(),
            StopAt::After => "after".to_owned(),
            StopAt::During(micros) => format!("0.{micros:06}"),
        };
        remove(&self.folder.join("held"))?;
        remove(&self.folder.join("crashed"))?;
        fs::write(self.folder.join("when"), format!("{when} {action}\n"))?;
        Ok(fs::write(self.folder.join("left"), format!("{left}\n"))?)
    }

    /// Cancels the last `arm…`; faults stay.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn disarm(&self) -> Result<()> {
        Ok(remove(&self.folder.join("left"))?)
    }

    /// The command line at which the driver was killed since the interceptor was armed.
    pub fn stopped_at(&self) -> Option<String> {
        let line = fs::read_to_string(self.folder.join("crashed")).ok()?;
        Some(line.trim_end().to_owned())
    }

    /// Like [`Self::stopped_at`]; also disarms and forgets it.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn take_stopped(&self) -> Result<Option<String>> {
        self.disarm()?;
        let stopped = self.stopped_at();
        remove(&self.folder.join("crashed"))?;
        Ok(stopped)
    }

    /// Waits until a command is held.
    ///
    /// # Errors
    /// None is, in time.
    pub async fn held(&self) -> Result<HeldCommand> {
        let note = self.folder.join("held");
        let seen = until(
            "a command is held",
            async || Ok(fs::read_to_string(&note).ok()),
            Option::is_some,
        )
        .await?;
        let seen = seen.unwrap_or_default();
        let (group, program) = seen.trim().split_once(' ').unwrap_or_default();
        Ok(HeldCommand {
            group: Pid::from_raw(group.parse()?),
            go: self.folder.join("go"),
            program: program.to_owned(),
        })
    }

    /// Makes commands fail. Only commands are affected, not file accesses.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn inject_fault(&mut self, fault: &HostFault) -> Result<()> {
        self.injected += 1;
        let line = format!(
            "{} {}\n",
            wrapper_script::fault_name(fault.fault),
            fault.command
        );
        let temporary = self.folder.join("fault.new");
        for time in 1..=fault.times.max(1) {
            let end = if fault.times == 0 { ".always" } else { "" };
            let name = format!("faults/{:06}-{time:02}{end}", self.injected);
            // A wrapper script must not read a half-written fault.
            fs::write(&temporary, &line)?;
            fs::rename(&temporary, self.folder.join(name))?;
        }
        Ok(())
    }

    /// The number of commands that were hit by a fault.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn hits(&self) -> Result<usize> {
        Ok(self.read("hits")?.lines().count())
    }

    /// The command lines of all commands so far, in order.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn journal(&self) -> Result<Vec<String>> {
        let text = self.read("journal")?;
        let lines = text.lines().filter_map(|line| line.split_once(' '));
        Ok(lines.map(|(_, command)| command.to_owned()).collect())
    }

    /// Kills commands that a dead driver has left running. Returns whether there were any.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn kill_commands(&self) -> Result<bool> {
        let text = self.read("journal")?;
        let marker = format!("CSI_GATE={}", self.folder.display());
        let mut found = false;
        let groups = text.lines().filter_map(|line| line.split(' ').next());
        for group in groups {
            // The number may have been reused by another process.
            let environment = fs::read(format!("/proc/{group}/environ")).unwrap_or_default();
            if environment
                .split(|byte| *byte == 0)
                .any(|it| it == marker.as_bytes())
            {
                found = true;
                let _ = killpg(Pid::from_raw(group.parse()?), Signal::SIGKILL);
            }
        }
        Ok(found)
    }

    /// Disarms and removes all faults.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn clear(&self) -> Result<()> {
        self.disarm()?;
        for fault in fs::read_dir(self.folder.join("faults"))? {
            remove(&fault?.path())?;
        }
        Ok(())
    }

    /// Like [`Self::clear`]; also clears the journal and the counters.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn reset(&self) -> Result<()> {
        self.clear()?;
        for name in ["held", "go", "crashed", "hits", "journal"] {
            remove(&self.folder.join(name))?;
        }
        Ok(())
    }

    fn read(&self, name: &str) -> io::Result<String> {
        match fs::read_to_string(self.folder.join(name)) {
            Err(none) if none.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            other => other,
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(none) if none.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
