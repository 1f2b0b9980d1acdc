//! The first process (PID 1) of a guest. It sets up mounts, network and daemons on the bare kernel, runs one program, reaps
//! zombies, and powers the machine off when that program has ended.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, sethostname};
use serde::{Deserialize, Serialize};

use super::page_cache;
use crate::harness::process::{Process, run};

/// Where the host's folder of this run is mounted in the guest, writable: for logs to keep.
pub const OUT: &str = "/run/out";
/// The serial port for report lines to the host.
const REPORT: &str = "/dev/ttyS1";
/// The mount point of cgroup2, as on every Kubernetes node.
pub const CGROUPS: &str = "/sys/fs/cgroup";
/// The disk that survives a reset.
const DISK: &str = "/dev/vda";
/// The mount point of that disk: what a node keeps over a reboot.
pub const PERSISTENT: &str = "/var/lib/node";

/// The configuration of a machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// Its host name.
    pub name: String,
    /// The name of the machine that its network cards connect to.
    pub peer: String,
    /// Its network cards, in order.
    pub nics: Vec<Nic>,
    /// Kernel modules to load.
    pub modules: Vec<String>,
    /// Its iSCSI initiator name.
    pub initiator: String,
    /// The host's folder with the kernel's modules.
    pub module_folder: PathBuf,
    /// A reset does not end QEMU.
    pub may_reset: bool,
    /// It has a disk that survives a reset.
    pub disk: bool,
    /// The result of [`page_cache::paths`] on the host.
    pub warm: Vec<PathBuf>,
    /// Arguments of the program that it runs.
    pub arguments: Vec<String>,
}

/// A network card.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Nic {
    /// The network's name.
    pub net: String,
    /// Its MAC address.
    pub mac: String,
    /// Its address and prefix, `10.77.0.1/24`.
    pub address: String,
}

/// A variable from the kernel's command line, which the kernel passes in the environment of PID 1.
fn kernel_parameter(name: &str) -> Result<PathBuf> {
    let value = std::env::var_os(name)
        .with_context(|| format!("the kernel's command line has no {name}="))?;
    Ok(PathBuf::from(value))
}

/// Runs as PID 1.
///
/// # Errors
/// Only if the power cannot be turned off: other errors go to the console.
pub fn first() -> Result<()> {
    if let Err(error) = run_plan() {
        log_to_console(&format!("{error:#}"));
    }
    nix::unistd::sync();
    reboot(RebootMode::RB_POWER_OFF)?;
    Ok(())
}

fn run_plan() -> Result<()> {
    let (program, plan) = (kernel_parameter("program")?, kernel_parameter("plan")?);
    let plan: Plan =
        serde_json::from_slice(&fs::read(&plan).with_context(|| plan.display().to_string())?)?;
    let _iscsid = prepare(&plan)?;
    let child = Process::tool(
        &program.to_string_lossy(),
        &plan.arguments,
        Path::new("/run/program.log"),
    )?;
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    loop {
        // Orphans are reparented to PID 1.
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(ended, _) | WaitStatus::Signaled(ended, ..)) if ended == pid => {
                break;
            }
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let log = fs::read_to_string("/run/program.log").unwrap_or_default();
    fs::write(Path::new(OUT).join(format!("{}.log", plan.name)), log)?;
    Ok(())
}

/// Writes a line to the console, which the host logs.
fn log_to_console(line: &str) {
    if let Ok(mut console) = fs::File::options().write(true).open("/dev/console") {
        let _ = writeln!(console, "{line}");
    }
}

/// Reports a line to the host.
///
/// # Errors
/// This is not a guest.
pub fn report(line: &str) -> Result<()> {
    let mut port = fs::File::options()
        .write(true)
        .open(REPORT)
        .context(REPORT)?;
    Ok(writeln!(port, "{line}")?)
}

/// Returns the daemon that runs until the machine ends.
fn prepare(plan: &Plan) -> Result<Process> {
    report("up")?;
    page_cache::copy_up(&plan.warm)?;
    mounts(plan)?;
    sethostname(&plan.name)?;
    network(plan)?;
    if !plan.modules.is_empty() {
        run(
            "modprobe",
            std::iter::once("-a").chain(plan.modules.iter().map(String::as_str)),
        )?;
    }
    if Path::new("/sys/kernel/config").exists() {
        mount_fs("configfs", "/sys/kernel/config", "configfs", "")?;
    }
    mount_persistent(plan)?;
    write_config(plan)?;
    daemons()
}

fn mount_fs(source: &str, at: &str, kind: &str, options: &str) -> Result<()> {
    fs::create_dir_all(at)?;
    mount(
        Some(source),
        at,
        Some(kind),
        MsFlags::empty(),
        Some(options),
    )
    .with_context(|| format!("mounting {kind} at {at}"))
}

fn bind(source: &Path, at: &str) -> Result<()> {
    fs::create_dir_all(at)?;
    mount(
        Some(source),
        at,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .with_context(|| format!("binding {} at {at}", source.display()))
}

fn mounts(plan: &Plan) -> Result<()> {
    // As systemd does; otherwise bind mounts do not propagate.
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_SHARED | MsFlags::MS_REC,
        None::<&str>,
    )?;
    mount_fs("devpts", "/dev/pts", "devpts", "mode=620,ptmxmode=666")?;
    mount_fs("cgroup2", CGROUPS, "cgroup2", "")?;
    for (at, options) in [
        ("/dev/shm", "mode=1777"),
        ("/run", "mode=755"),
        ("/tmp", "mode=1777"),
        ("/etc/iscsi", "mode=755"),
    ] {
        mount_fs("tmpfs", at, "tmpfs", options)?;
    }
    fs::create_dir_all("/run/lock")?;
    mount_fs(
        "out",
        OUT,
        "9p",
        "trans=virtio,version=9p2000.L,msize=512000",
    )?;
    bind(&plan.module_folder, "/lib/modules")
}

fn network(plan: &Plan) -> Result<()> {
    run("ip", ["link", "set", "lo", "up"])?;
    for (index, nic) in plan.nics.iter().enumerate() {
        let card = format!("eth{index}");
        let found =
            fs::read_to_string(format!("/sys/class/net/{card}/address")).context(card.clone())?;
        anyhow::ensure!(
            found.trim() == nic.mac,
            "{card} is {found}, not {}",
            nic.mac
        );
        run("ip", ["address", "add", &nic.address, "dev", &card])?;
        run("ip", ["link", "set", &card, "mtu", MTU, "up"])?;
    }
    Ok(())
}

/// Keeps node records and the kubelet's directory on the disk that survives a reset.
fn mount_persistent(plan: &Plan) -> Result<()> {
    if !plan.disk {
        return Ok(());
    }
    fs::create_dir_all(PERSISTENT)?;
    if run("mount", [DISK, PERSISTENT]).is_err() {
        run("mkfs.ext4", ["-q", DISK])?;
        run("mount", [DISK, PERSISTENT])?;
    }
    let records = Path::new(PERSISTENT).join("iscsi");
    fs::create_dir_all(&records)?;
    bind(&records, "/etc/iscsi")
}

fn write_config(plan: &Plan) -> Result<()> {
    fs::write(
        "/etc/iscsi/initiatorname.iscsi",
        format!("InitiatorName={}\n", plan.initiator),
    )?;
    // Debian's defaults, as far as a node needs them; the records hold the rest.
    fs::write("/etc/iscsi/iscsid.conf", "node.startup = manual\n")?;
    fs::write("/etc/multipath.conf", MULTIPATH)?;
    Ok(())
}

/// Queues longer than any story needs, and checks paths often.
const MULTIPATH: &str = "defaults {
    user_friendly_names no
    find_multipaths yes
    polling_interval 2
    no_path_retry 15
}
";

/// Bytes per frame: each frame costs both machines the same, whatever its size.
const MTU: &str = "61440";

/// The udev rules that a node's disks need. All others are masked: udev evaluates every rule for each of the dozen events of a
/// session, and some rules start programs.
const UDEV_RULES: [&str; 9] = [
    "50-udev-default.rules",
    "55-dm.rules",
    "56-dm-mpath.rules",
    "60-block.rules",
    "60-persistent-storage-dm.rules",
    "60-persistent-storage.rules",
    "64-btrfs-dm.rules",
    "64-btrfs.rules",
    "95-dm-notify.rules",
];
/// The rules of multipathd, which runs only while a story needs it.
pub const OF_MULTIPATH: &str = "60-multipath.rules";
/// An empty file in this folder masks the udev rules of the same name.
pub const MASKS: &str = "/run/udev/rules.d";

fn mask_rules() -> Result<()> {
    fs::create_dir_all(MASKS)?;
    for rules in fs::read_dir("/usr/lib/udev/rules.d")? {
        let name = rules?.file_name();
        if !UDEV_RULES.iter().any(|needed| name == *needed) {
            fs::write(Path::new(MASKS).join(name), "")?;
        }
    }
    Ok(())
}

fn daemons() -> Result<Process> {
    mask_rules()?;
    run("/usr/lib/systemd/systemd-udevd", ["--daemon"])?;
    run(
        "udevadm",
        ["trigger", "--action=add", "--subsystem-match=block"],
    )?;
    Process::tool("iscsid", ["-f"], Path::new("/run/iscsid.log"))
}
