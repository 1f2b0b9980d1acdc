//! The fake host of one process, with fault injection: counts effects, makes the process crash at one of them, and makes commands
//! fail.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use driver::host::fake::Fake;
use driver::host::{
    Cmd, Entry, Exit, FileStamp, Host, HostError, KernelFiles, ProcessScope, ReadMode, Space, Span,
    Stat,
};
use secrecy::SecretString;

use super::crashable::CrashableProcess;
use crate::testbed::CommandFault;

/// Selects all file system calls for a fault.
const FILES: &str = "files";

#[derive(Clone, Debug)]
pub(super) struct FaultHost {
    pub(super) host: Fake,
    pub(super) crashable: Arc<CrashableProcess>,
}

/// Output that no parser accepts.
const GARBAGE: &str = "\u{fffd}\u{7}%$ blocks= size TYPE 0x00\n\n=\n";

fn failed(what: &str) -> HostError {
    HostError::Io {
        doing: format!("{what} (injected fault)"),
        source: io::Error::from(io::ErrorKind::Other),
    }
}

impl FaultHost {
    async fn command(&self, cmd: &Cmd) -> Result<Exit, HostError> {
        let text = cmd.to_string();
        let Some(fault) = self.crashable.fault_of(&text) else {
            return self.host.run(cmd.clone()).await;
        };
        let overran = || HostError::DeadlineExceeded {
            what: text.clone(),
            limit: cmd.deadline,
        };
        match fault.fault {
            CommandFault::Fails => Ok(Exit {
                status: 1,
                stderr: "injected fault".to_owned(),
                ..Exit::default()
            }),
            CommandFault::FailsAfterwards => {
                let done = self.host.run(cmd.clone()).await?;
                Ok(Exit { status: 1, ..done })
            }
            CommandFault::Hangs => {
                tokio::time::sleep(cmd.deadline).await;
                Err(overran())
            }
            CommandFault::HangsAfterwards => {
                self.host.run(cmd.clone()).await?;
                tokio::time::sleep(cmd.deadline).await;
                Err(overran())
            }
            CommandFault::SaysGarbage => Ok(Exit {
                stdout: GARBAGE.to_owned(),
                ..self.host.run(cmd.clone()).await?
            }),
            CommandFault::DoesNothing => Ok(Exit::default()),
        }
    }

    /// Applies a fault to a read access. Only faults that name it match.
    fn check_read_fault(&self, name: &str) -> Result<(), HostError> {
        match self.crashable.fault_of(name) {
            None => Ok(()),
            Some(_) => Err(failed(name)),
        }
    }

    /// A system call that changes something.
    async fn change(
        &self,
        name: String,
        operation: impl Future<Output = Result<(), HostError>>,
    ) -> Result<(), HostError> {
        let fault = self
            .crashable
            .fault_of(&name)
            .or_else(|| self.crashable.fault_of(FILES));
        let operation = async {
            match fault.map(|fault| fault.fault) {
                None => operation.await,
                // The kernel may accept a write to sysfs and do nothing; files and disks are reliable.
                Some(CommandFault::DoesNothing) if name.starts_with("echo") => Ok(()),
                Some(CommandFault::FailsAfterwards | CommandFault::HangsAfterwards) => {
                    operation.await?;
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
        let effect = self.crashable.effect(name.clone(), operation, || {});
        self.crashable.must_complete(&name, effect).await
    }
}

impl KernelFiles for FaultHost {
    fn read(&self, path: &str) -> Result<Vec<u8>, HostError> {
        self.check_read_fault(&format!("read {path}"))?;
        KernelFiles::read(&self.host, path)
    }

    fn entries(&self, path: &str) -> Result<Vec<Entry>, HostError> {
        self.check_read_fault(&format!("list {path}"))?;
        self.host.entries(path)
    }
}

impl Host for FaultHost {
    async fn run(&self, cmd: Cmd) -> Result<Exit, HostError> {
        let begin = || self.host.begin(&cmd);
        let name = cmd.to_string();
        let effect = self
            .crashable
            .effect(name.clone(), self.command(&cmd), begin);
        self.crashable.must_complete(&name, effect).await
    }

    fn has_program(&self, program: &str) -> bool {
        self.host.has_program(program)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        doing: &str,
        access: impl FnOnce(&dyn KernelFiles) -> Result<T, HostError> + Send + 'static,
    ) -> Result<T, HostError> {
        let files = self.clone();
        let access = self.host.blocking(doing, move |_| access(&files));
        self.crashable.observe(access).await
    }

    async fn read(&self, path: &str) -> Result<Vec<u8>, HostError> {
        let access = async {
            self.check_read_fault(&format!("read {path}"))?;
            Host::read(&self.host, path).await
        };
        self.crashable.observe(access).await
    }

    async fn list(&self, path: &str) -> Result<Vec<String>, HostError> {
        let access = async {
            self.check_read_fault(&format!("list {path}"))?;
            self.host.list(path).await
        };
        self.crashable.observe(access).await
    }

    async fn stat(&self, path: &str) -> Result<Stat, HostError> {
        self.crashable.observe(self.host.stat(path)).await
    }

    async fn is_mount_point(&self, path: &str) -> Result<Option<bool>, HostError> {
        self.crashable.observe(self.host.is_mount_point(path)).await
    }

    async fn resolve(&self, path: &str) -> Result<String, HostError> {
        self.crashable.observe(self.host.resolve(path)).await
    }

    async fn read_device(
        &self,
        device: &str,
        span: Span,
        via: ReadMode,
    ) -> Result<Vec<u8>, HostError> {
        self.crashable
            .observe(self.host.read_device(device, span, via))
            .await
    }

    async fn find_data(&self, device: &str, spans: Vec<Span>) -> Result<Option<Span>, HostError> {
        self.crashable
            .observe(self.host.find_data(device, spans))
            .await
    }

    async fn write_device(
        &self,
        device: &str,
        offset: u64,
        data: Vec<u8>,
    ) -> Result<(), HostError> {
        let operation = self.host.write_device(device, offset, data);
        self.change(format!("write {device} at {offset}"), operation)
            .await
    }

    async fn can_open(&self, device: &str) -> Result<bool, HostError> {
        self.crashable.observe(self.host.can_open(device)).await
    }

    async fn is_claimed(&self, device: &str) -> Result<bool, HostError> {
        self.crashable.observe(self.host.is_claimed(device)).await
    }

    async fn fs_usage(&self, path: &str) -> Result<Space, HostError> {
        self.crashable.observe(self.host.fs_usage(path)).await
    }

    async fn create_dir(&self, path: &str) -> Result<(), HostError> {
        self.change(format!("mkdir {path}"), self.host.create_dir(path))
            .await
    }

    async fn create_file(&self, path: &str) -> Result<(), HostError> {
        self.change(format!("touch {path}"), self.host.create_file(path))
            .await
    }

    async fn remove_dir(&self, path: &str) -> Result<(), HostError> {
        self.change(format!("rmdir {path}"), self.host.remove_dir(path))
            .await
    }

    async fn remove_file(&self, path: &str) -> Result<(), HostError> {
        self.change(format!("rm {path}"), self.host.remove_file(path))
            .await
    }

    async fn replace_file(
        &self,
        path: &str,
        aside: &str,
        text: SecretString,
    ) -> Result<(), HostError> {
        let operation = self.host.replace_file(path, aside, text);
        self.change(format!("replace {path}"), operation).await
    }

    async fn write_attribute(&self, path: &str, text: &str) -> Result<(), HostError> {
        let operation = self.host.write_attribute(path, text);
        self.change(format!("echo {text} > {path}"), operation)
            .await
    }

    async fn file_stamp(&self, path: &str) -> Result<FileStamp, HostError> {
        self.crashable.observe(self.host.file_stamp(path)).await
    }

    async fn is_running(
        &self,
        program: &'static str,
        who: ProcessScope,
    ) -> Result<bool, HostError> {
        self.crashable
            .observe(self.host.is_running(program, who))
            .await
    }

    async fn wake_iscsid(&self) -> Result<bool, HostError> {
        self.crashable.observe(self.host.wake_iscsid()).await
    }

    async fn pause(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }
}
