//! QEMU: starts a machine, and reads its console and its reports.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::guest::Plan;
use super::image::Image;
use crate::harness::process::Piped;

/// If KVM does not boot a kernel within this time, it counts as broken; a working one needs two seconds.
const KVM_DEADLINE: Duration = Duration::from_secs(10);

/// How the guest's instructions are executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// By the processor.
    Kvm,
    /// Translated by QEMU: about ten times slower, but available everywhere.
    Tcg,
}

impl Accelerator {
    /// Its name, for QEMU and for messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }

    fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            // What Debian and its libraries need, and little more: 256-bit vectors, the instructions that save them at each
            // context switch, and repeated byte instructions are slow to translate.
            Self::Tcg => [
                "-accel",
                "tcg,thread=multi",
                "-cpu",
                "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16",
            ],
        }
    }

    /// For the guest kernel's command line.
    fn kernel_args(self) -> &'static str {
        match self {
            Self::Kvm => "",
            // Without repeated instructions for long words too, and without address randomization, so that translated code can be
            // reused. Together they halve the time that starting a program takes.
            Self::Tcg => "clearcpuid=rep_good init_on_alloc=0 norandmaps nokaslr",
        }
    }
}

/// Command line for every kernel: console output to the host, and no hardening or accounting, which these tests do not need.
const KERNEL_ARGS: &str = "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on net.ifnames=0 lsm= audit=0 \
     hardened_usercopy=off cgroup_disable=memory psi=0";

/// The parts of a machine.
#[derive(Clone, Debug)]
pub struct Spec<'a> {
    /// Kernel and initramfs.
    pub image: &'a Image,
    /// The number of processors, and memory in MiB.
    pub size: (u32, u32),
    /// Its configuration.
    pub plan: &'a Plan,
    /// The program of this workspace that runs as PID 1.
    pub program: &'a Path,
    /// The folder for sockets, plan and console log; mounted writable in the guest at [`super::guest::OUT`].
    pub folder: &'a Path,
    /// A disk that survives a reset.
    pub disk: Option<&'a Path>,
}

/// A running machine. It is killed when this is dropped.
#[derive(Debug)]
pub struct Machine {
    process: Piped,
    lines: Receiver<String>,
    console: PathBuf,
    /// How its instructions are executed.
    pub accelerator: Accelerator,
    /// Why KVM was not used although `/dev/kvm` exists.
    pub kvm_refused: Option<String>,
    /// From the start of QEMU to the guest's first report line.
    pub boot: Duration,
}

impl Machine {
    /// Starts a machine, with KVM if that works, and waits for the guest's first report line.
    ///
    /// # Errors
    /// It does not boot; includes the end of its console log.
    pub fn boot(spec: &Spec<'_>, kvm: bool, timeout: Duration) -> Result<Self> {
        std::fs::write(plan_file(spec), serde_json::to_vec(spec.plan)?)?;
        let mut refused = None;
        if kvm
            && File::options()
                .read(true)
                .write(true)
                .open("/dev/kvm")
                .is_ok()
        {
            match Self::start(spec, Accelerator::Kvm, KVM_DEADLINE.min(timeout)) {
                Ok(machine) => return Ok(machine),
                Err(error) => refused = format!("{error:#}").lines().next().map(str::to_owned),
            }
        }
        let mut machine = Self::start(spec, Accelerator::Tcg, timeout)?;
        machine.kvm_refused = refused;
        Ok(machine)
    }

    fn start(spec: &Spec<'_>, accelerator: Accelerator, timeout: Duration) -> Result<Self> {
        let console = spec.folder.join(format!("{}.console", spec.plan.name));
        let started = Instant::now();
        let mut process = Piped::start(
            "qemu-system-x86_64",
            arguments(spec, accelerator, &console)?,
        )?;
        let (sender, lines) = mpsc::channel();
        let reader = BufReader::new(process.stdout().context("piped")?);
        std::thread::spawn(move || {
            for line in reader.lines().map_while(Result::ok) {
                if sender.send(line.trim().to_owned()).is_err() {
                    break;
                }
            }
        });
        let mut machine = Self {
            process,
            lines,
            console,
            accelerator,
            kvm_refused: None,
            boot: Duration::ZERO,
        };
        machine
            .line(timeout)
            .with_context(|| format!("{} does not boot", spec.plan.name))?;
        machine.boot = started.elapsed();
        Ok(machine)
    }

    /// The next line that the guest reports. `None` if the machine has powered off.
    ///
    /// # Errors
    /// No line within `timeout`; includes the end of its console log. Or QEMU fails.
    pub fn line(&mut self, timeout: Duration) -> Result<Option<String>> {
        match self.lines.recv_timeout(timeout) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Disconnected) => {
                let end = self.process.wait()?;
                if end.success() {
                    Ok(None)
                } else {
                    bail!("QEMU ended with {end}: {}", self.process.read_stderr())
                }
            }
            Err(RecvTimeoutError::Timeout) => bail!(
                "no report for {timeout:?}; the end of its console ({}):\n{}",
                self.console.display(),
                self.log_tail()
            ),
        }
    }

    /// The last 15 lines of its console log.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read(&self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

fn plan_file(spec: &Spec<'_>) -> PathBuf {
    spec.folder.join(format!("{}.plan", spec.plan.name))
}

fn arguments(spec: &Spec<'_>, accelerator: Accelerator, console: &Path) -> Result<Vec<String>> {
    let (program, plan) = (text(spec.program)?, text(&plan_file(spec))?);
    let folder = text(spec.folder)?;
    let command_line = format!(
        "{KERNEL_ARGS} {} program={program} plan={plan}",
        accelerator.kernel_args()
    );
    let mut args: Vec<String> = [
        "-M",
        "q35",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
    ]
    .iter()
    .chain(&accelerator.arguments())
    .map(|argument| (*argument).to_owned())
    .collect();
    let mut add = |option: &str, value: String| args.extend([option.to_owned(), value]);
    add("-smp", spec.size.0.to_string());
    add("-m", format!("{}M", spec.size.1));
    add("-kernel", text(&spec.image.kernel)?);
    add("-initrd", text(&spec.image.initramfs)?);
    add("-append", command_line);
    add("-serial", format!("file:{}", text(console)?));
    add("-serial", "stdio".to_owned());
    add("-device", "virtio-rng-pci".to_owned());
    add(
        "-fsdev",
        "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap".to_owned(),
    );
    add(
        "-device",
        "virtio-9p-pci,fsdev=host,mount_tag=host".to_owned(),
    );
    add(
        "-fsdev",
        format!("local,id=out,path={folder},security_model=none"),
    );
    add(
        "-device",
        "virtio-9p-pci,fsdev=out,mount_tag=out".to_owned(),
    );
    for (index, nic) in spec.plan.nics.iter().enumerate() {
        // A virtual Ethernet cable: datagrams between two unix sockets.
        let socket = |name: &str| format!("{folder}/{}-{index}.{name}", nic.net);
        let (local, remote) = (socket(&spec.plan.name), socket(&spec.plan.peer));
        add(
            "-netdev",
            format!(
                "dgram,id=n{index},local.type=unix,local.path={local},remote.type=unix,remote.path={remote}"
            ),
        );
        add(
            "-device",
            format!("virtio-net-pci,netdev=n{index},mac={}", nic.mac),
        );
    }
    if let Some(disk) = spec.disk {
        add(
            "-drive",
            format!("file={},if=virtio,format=raw,discard=unmap", text(disk)?),
        );
    }
    if !spec.plan.may_reset {
        args.push("-no-reboot".to_owned());
    }
    Ok(args)
}

/// A path for QEMU's options and the kernel's command line, which split at commas and blanks.
fn text(path: &Path) -> Result<String> {
    let text = path.to_str().context("the path is not UTF-8")?;
    if text.contains([' ', ',']) {
        bail!("{text}: move the workspace to a path without blanks and commas");
    }
    Ok(text.to_owned())
}
