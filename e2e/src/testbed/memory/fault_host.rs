//! The fake host of one process, with fault injection: counts effects, makes the process crash at one of them, and makes commands
//! fail.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use driver::host::fake::Fake;
use driver::host::{
    Cmd, Entry, Exit, Host, HostError, KernelFiles, Space, Span, Stat, Touched, Via, Who,
};
use secrecy::SecretString;

use super::crashable::CrashableProcess;
use crate::testbed::CommandFault;

/// Selects all file system calls for a fault.
const FILES: &str = "files";

#[derive(Clone, Debug)]
pub(super) struct FaultHost {
    pub(super) machine: Fake,
    pub(super) mortal: Arc<CrashableProcess>,
}

/// Output that no parser accepts.
const GARBAGE: &str = "\u{fffd}\u{7}%$ blocks= size TYPE 0x00\n\n=\n";

fn failed(what: &str) -> HostError {
    HostError::Io {
        doing: format!("{what}, which a fault was asked for"),
        source: io::Error::from(io::ErrorKind::Other),
    }
}

impl FaultHost {
    async fn command(&self, cmd: &Cmd) -> Result<Exit, HostError> {
        let text = cmd.to_string();
        let Some(fault) = self.mortal.fault_of(&text) else {
            return self.machine.run(cmd.clone()).await;
        };
        let late = || HostError::Overran {
            what: text.clone(),
            limit: cmd.deadline,
        };
        match fault.fault {
            CommandFault::Fails => Ok(Exit {
                status: 1,
                stderr: "it fails, as a fault says".to_owned(),
                ..Exit::default()
            }),
            CommandFault::FailsAfterwards => {
                let done = self.machine.run(cmd.clone()).await?;
                Ok(Exit { status: 1, ..done })
            }
            CommandFault::Hangs => {
                tokio::time::sleep(cmd.deadline).await;
                Err(late())
            }
            CommandFault::HangsAfterwards => {
                self.machine.run(cmd.clone()).await?;
                tokio::time::sleep(cmd.deadline).await;
                Err(late())
            }
            CommandFault::SaysGarbage => Ok(Exit {
                stdout: GARBAGE.to_owned(),
                ..self.machine.run(cmd.clone()).await?
            }),
            CommandFault::DoesNothing => Ok(Exit::default()),
        }
    }

    /// Applies a fault to a read access. Only faults that name it match.
    fn unseen(&self, name: &str) -> Result<(), HostError> {
        match self.mortal.fault_of(name) {
            None => Ok(()),
            Some(_) => Err(failed(name)),
        }
    }

    /// A system call that changes something.
    async fn change(
        &self,
        name: String,
        act: impl Future<Output = Result<(), HostError>>,
    ) -> Result<(), HostError> {
        let fault = self
            .mortal
            .fault_of(&name)
            .or_else(|| self.mortal.fault_of(FILES));
        let act = async {
            match fault.map(|fault| fault.fault) {
                None => act.await,
                // The kernel may accept a write to sysfs and do nothing; files and disks are reliable.
                Some(CommandFault::DoesNothing) if name.starts_with("echo") => Ok(()),
                Some(CommandFault::FailsAfterwards | CommandFault::HangsAfterwards) => {
                    act.await?;
                    Err(failed(&name))
                }
                Some(
                    CommandFault::Fails
                    | CommandFault::Hangs
                    | CommandFault::SaysGarbage
                    | CommandFault::DoesNothing,
                ) => Err(failed(&name)),
            }
        };
        let effect = self.mortal.effect(name.clone(), act, || {});
        self.mortal.whole(&name, effect).await
    }
}

impl KernelFiles for FaultHost {
    fn read(&self, path: &str) -> Result<Vec<u8>, HostError> {
        self.unseen(&format!("read {path}"))?;
        KernelFiles::read(&self.machine, path)
    }

    fn entries(&self, path: &str) -> Result<Vec<Entry>, HostError> {
        self.unseen(&format!("list {path}"))?;
        self.machine.entries(path)
    }
}

impl Host for FaultHost {
    async fn run(&self, cmd: Cmd) -> Result<Exit, HostError> {
        let begin = || self.machine.begin(&cmd);
        let name = cmd.to_string();
        let effect = self.mortal.effect(name.clone(), self.command(&cmd), begin);
        self.mortal.whole(&name, effect).await
    }

    fn has(&self, program: &str) -> bool {
        self.machine.has(program)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        doing: &str,
        look: impl FnOnce(&dyn KernelFiles) -> Result<T, HostError> + Send + 'static,
    ) -> Result<T, HostError> {
        let gate = self.clone();
        let look = self.machine.blocking(doing, move |_| look(&gate));
        self.mortal.observe(look).await
    }

    async fn read(&self, path: &str) -> Result<Vec<u8>, HostError> {
        let look = async {
            self.unseen(&format!("read {path}"))?;
            Host::read(&self.machine, path).await
        };
        self.mortal.observe(look).await
    }

    async fn list(&self, path: &str) -> Result<Vec<String>, HostError> {
        let look = async {
            self.unseen(&format!("list {path}"))?;
            self.machine.list(path).await
        };
        self.mortal.observe(look).await
    }

    async fn stat(&self, path: &str) -> Result<Stat, HostError> {
        self.mortal.observe(self.machine.stat(path)).await
    }

    async fn is_mount_point(&self, path: &str) -> Result<Option<bool>, HostError> {
        self.mortal.observe(self.machine.is_mount_point(path)).await
    }

    async fn resolve(&self, path: &str) -> Result<String, HostError> {
        self.mortal.observe(self.machine.resolve(path)).await
    }

    async fn read_device(&self, device: &str, span: Span, via: Via) -> Result<Vec<u8>, HostError> {
        self.mortal
            .observe(self.machine.read_device(device, span, via))
            .await
    }

    async fn find_data(&self, device: &str, spans: Vec<Span>) -> Result<Option<Span>, HostError> {
        self.mortal
            .observe(self.machine.find_data(device, spans))
            .await
    }

    async fn write_device(
        &self,
        device: &str,
        offset: u64,
        data: Vec<u8>,
    ) -> Result<(), HostError> {
        let act = self.machine.write_device(device, offset, data);
        self.change(format!("write {device} at {offset}"), act)
            .await
    }

    async fn opens(&self, device: &str) -> Result<bool, HostError> {
        self.mortal.observe(self.machine.opens(device)).await
    }

    async fn is_claimed(&self, device: &str) -> Result<bool, HostError> {
        self.mortal.observe(self.machine.is_claimed(device)).await
    }

    async fn space(&self, path: &str) -> Result<Space, HostError> {
        self.mortal.observe(self.machine.space(path)).await
    }

    async fn create_dir(&self, path: &str) -> Result<(), HostError> {
        self.change(format!("mkdir {path}"), self.machine.create_dir(path))
            .await
    }

    async fn create_file(&self, path: &str) -> Result<(), HostError> {
        self.change(format!("touch {path}"), self.machine.create_file(path))
            .await
    }

    async fn remove_dir(&self, path: &str) -> Result<(), HostError> {
        self.change(format!("rmdir {path}"), self.machine.remove_dir(path))
            .await
    }

    async fn remove_file(&self, path: &str) -> Result<(), HostError> {
        self.change(format!("rm {path}"), self.machine.remove_file(path))
            .await
    }

    async fn replace_file(
        &self,
        path: &str,
        aside: &str,
        text: SecretString,
    ) -> Result<(), HostError> {
        let act = self.machine.replace_file(path, aside, text);
        self.change(format!("replace {path}"), act).await
    }

    async fn write_attribute(&self, path: &str, text: &str) -> Result<(), HostError> {
        let act = self.machine.write_attribute(path, text);
        self.change(format!("echo {text} > {path}"), act).await
    }

    async fn touched(&self, path: &str) -> Result<Touched, HostError> {
        self.mortal.observe(self.machine.touched(path)).await
    }

    async fn runs(&self, program: &'static str, who: Who) -> Result<bool, HostError> {
        self.mortal.observe(self.machine.runs(program, who)).await
    }

    async fn wake_iscsid(&self) -> Result<bool, HostError> {
        self.mortal.observe(self.machine.wake_iscsid()).await
    }

    async fn pause(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }
}
