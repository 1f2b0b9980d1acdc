//! Stops the world at a chosen host command of the driver, so that the driver can be killed there; kills it there; or lets
//! commands go wrong.
//!
//! Each program that the driver starts is found first in the node's `bin`, where a few lines of shell count the calls down
//! and let them through, until the chosen one: that is held before it starts, after it has ended, or is killed in between.
//! A trap that kills needs nobody to watch it: the gate is a child of the driver and knows whom to kill. Files in the
//! trap's folder say what is to happen, so that an open gate costs a shell and nothing else:
//!
//! ```text
//! left, when     the number of commands until the chosen one, or its name; before, after, or the seconds after its start
//! held, go       the command that is held, and the word to let it go on
//! tripped        the command at which the driver was killed
//! faults/NNNN    how a command fails and by which part of its line it is known; who removes the file has met the fault
//! hits           the faults that were met
//! journal        all commands, with the process groups in which they run
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

/// Where a command is held.
#[derive(Clone, Copy, Debug)]
pub enum StopAt {
    /// It has not started.
    Before,
    /// It has ended, and the driver does not know it.
    After,
    /// It was killed so many microseconds after its start.
    During(u32),
}

/// The gate that the host commands of a driver go through.
#[derive(Debug)]
pub struct CommandInterceptor {
    folder: PathBuf,
    /// How many faults were planted: they are met in their order.
    planted: usize,
}

/// A held command.
#[derive(Debug)]
pub struct HeldCommand {
    group: Pid,
    go: PathBuf,
    /// The program.
    pub program: String,
}

impl HeldCommand {
    /// Ends it, as the end of its container would.
    pub fn kill(&self) {
        let _ = killpg(self.group, Signal::SIGKILL);
    }

    /// Lets it go on, whatever has become of the driver, and waits for its end.
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
    /// Builds the gate, which is open, in `folder`, for a driver that finds `bin` first on its `PATH`.
    ///
    /// # Errors
    /// A program is missing, or a file cannot be written.
    pub fn build(folder: &Path, bin: &Path) -> Result<Self> {
        let trap = Self {
            folder: folder.to_owned(),
            planted: 0,
        };
        fs::create_dir_all(folder.join("faults"))?;
        // node-sim's iscsiadm finds its host root two folders above itself, so this is as good a place for it as bin.
        let aside = bin.with_file_name("aside");
        fs::create_dir(&aside)?;
        fs::rename(bin.join("iscsiadm"), aside.join("iscsiadm"))?;
        let path = std::env::var_os("PATH").unwrap_or_default();
        let search: Vec<PathBuf> = std::iter::once(aside)
            .chain(std::env::split_paths(&path))
            .collect();
        for program in PROGRAMS {
            let real = search
                .iter()
                .map(|folder| folder.join(program))
                .find(|path| path.is_file())
                .with_context(|| format!("{program} is missing"))?;
            let gate = bin.join(program);
            let script = wrapper_script::script(folder, &real, program, &path.to_string_lossy());
            fs::write(&gate, script)?;
            fs::set_permissions(&gate, fs::Permissions::from_mode(0o755))?;
        }
        Ok(trap)
    }

    /// Closes the gate for the `nth` command from now.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn arm(&self, nth: usize, when: StopAt) -> Result<()> {
        self.close(&nth.to_string(), when, "hold")
    }

    /// Closes the gate for the next call of `program`.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn arm_for(&self, program: &str, when: StopAt) -> Result<()> {
        self.close(program, when, "hold")
    }

    /// Lets the driver be killed at its `nth` command from now.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn arm_to_kill(&self, nth: usize, when: StopAt) -> Result<()> {
        self.close(&nth.to_string(), when, "kill")
    }

    fn close(&self, left: &str, when: StopAt, act: &str) -> Result<()> {
        let when = match when {
            StopAt::Before => "before".to_owned(),
            StopAt::After => "after".to_owned(),
            StopAt::During(micros) => format!("0.{micros:06}"),
        };
        remove(&self.folder.join("held"))?;
        remove(&self.folder.join("tripped"))?;
        fs::write(self.folder.join("when"), format!("{when} {act}\n"))?;
        Ok(fs::write(self.folder.join("left"), format!("{left}\n"))?)
    }

    /// Opens it again.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn disarm(&self) -> Result<()> {
        Ok(remove(&self.folder.join("left"))?)
    }

    /// The command at which the driver was killed since the gate was closed.
    pub fn stopped_at(&self) -> Option<String> {
        let line = fs::read_to_string(self.folder.join("tripped")).ok()?;
        Some(line.trim_end().to_owned())
    }

    /// The same; it is forgotten, and nobody is killed any more.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn take_stopped(&self) -> Result<Option<String>> {
        self.disarm()?;
        let met = self.stopped_at();
        remove(&self.folder.join("tripped"))?;
        Ok(met)
    }

    /// Waits for the command at the gate.
    ///
    /// # Errors
    /// None comes.
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

    /// Lets commands go wrong. What is no command is never met.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn inject_fault(&mut self, fault: &HostFault) -> Result<()> {
        self.planted += 1;
        let line = format!("{} {}\n", wrapper_script::word(fault.fault), fault.command);
        let fresh = self.folder.join("fault.new");
        for time in 1..=fault.times.max(1) {
            let end = if fault.times == 0 { ".always" } else { "" };
            let name = format!("faults/{:06}-{time:02}{end}", self.planted);
            // A gate must not read half a fault.
            fs::write(&fresh, &line)?;
            fs::rename(&fresh, self.folder.join(name))?;
        }
        Ok(())
    }

    /// How many faults were met.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn hits(&self) -> Result<usize> {
        Ok(self.read("hits")?.lines().count())
    }

    /// All commands so far, in order.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn journal(&self) -> Result<Vec<String>> {
        let text = self.read("journal")?;
        let lines = text.lines().filter_map(|line| line.split_once(' '));
        Ok(lines.map(|(_, command)| command.to_owned()).collect())
    }

    /// Kills what the driver has started and not lived to wait for. Answers whether anything was left.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn kill_commands(&self) -> Result<bool> {
        let text = self.read("journal")?;
        let mark = format!("CSI_GATE={}", self.folder.display());
        let mut found = false;
        let groups = text.lines().filter_map(|line| line.split(' ').next());
        for group in groups {
            // The number may be somebody else's by now.
            let environment = fs::read(format!("/proc/{group}/environ")).unwrap_or_default();
            if environment
                .split(|byte| *byte == 0)
                .any(|it| it == mark.as_bytes())
            {
                found = true;
                let _ = killpg(Pid::from_raw(group.parse()?), Signal::SIGKILL);
            }
        }
        Ok(found)
    }

    /// Opens all gates: nothing is held, nobody is killed, nothing fails.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn open(&self) -> Result<()> {
        self.disarm()?;
        for fault in fs::read_dir(self.folder.join("faults"))? {
            remove(&fault?.path())?;
        }
        Ok(())
    }

    /// The same, and what has been is forgotten.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn reset(&self) -> Result<()> {
        self.open()?;
        for name in ["held", "go", "tripped", "hits", "journal"] {
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
