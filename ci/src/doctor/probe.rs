//! Checks for one need at a time, and knows the remedy if it is missing.

use std::fs::{self, OpenOptions};

use super::{machine, need::Need};
use crate::{context::Context, go, run::Cmd};

/// How to get what is missing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Remedy {
    /// A Debian package.
    Package(&'static str),
    /// A command line.
    Command(String),
    /// Run as root.
    Root,
    /// Advice without a command.
    Advice(&'static str),
}

/// What was found; or the reason why it is missing, and the remedy.
pub(super) type Probe = Result<String, (String, Remedy)>;

/// Checks for one need.
pub(super) fn probe(context: &Context, need: Need) -> Probe {
    let privileges = context.privileges;
    let absent = |why: &str, remedy: Remedy| Err((why.to_owned(), remedy));
    match need {
        Need::Component(subcommand, component) => component_of_rust(context, subcommand, component),
        Need::Root if privileges.root => Ok("yes".into()),
        Need::Root => absent(
            "not root: tests with block devices and mounts cannot run",
            Remedy::Root,
        ),
        Need::SysAdmin if privileges.sys_admin => Ok("granted".into()),
        Need::SysAdmin if !privileges.root => absent("comes with root", Remedy::Root),
        Need::SysAdmin => absent(
            "not granted: no mounts, no loop devices",
            Remedy::Advice(PRIVILEGED),
        ),
        Need::LoopDevices => loop_devices(context),
        Need::Programs(package, programs) => programs_of(context, package, programs),
        Need::Filesystem(filesystem) => kernel_filesystem(context, filesystem),
        Need::Go => match go::Go::find(context) {
            Some(go) => Ok(go.describe()),
            None => absent("not found", Remedy::Package("golang-go")),
        },
        Need::CsiSanity => match go::installed_sanity(context) {
            Some(file) => Ok(file.display().to_string()),
            None => absent(
                "not installed in the pinned version",
                Remedy::Command("cargo ci doctor sanity --install".into()),
            ),
        },
        Need::SysResource if privileges.sys_resource => Ok("granted".into()),
        Need::SysResource if !privileges.root => absent("comes with root", Remedy::Root),
        Need::SysResource => absent(
            "not granted: a mounted ext4 cannot be grown here (xfs, btrfs and an unmounted ext4 can)",
            Remedy::Advice("for growing a mounted ext4, grant the container CAP_SYS_RESOURCE"),
        ),
        Need::InitiatorName => initiator_name(),
    }
}

const PRIVILEGED: &str = "in a container, start it with --privileged and -v /dev:/dev";

fn programs_of(context: &Context, package: &'static str, programs: &[&str]) -> Probe {
    let absent: Vec<&str> = programs
        .iter()
        .copied()
        .filter(|program| context.find(program).is_none())
        .collect();
    if absent.is_empty() {
        return Ok(programs.join(", "));
    }
    Err((
        format!("not found: {}", absent.join(", ")),
        Remedy::Package(package),
    ))
}

fn component_of_rust(context: &Context, subcommand: &str, component: &str) -> Probe {
    let output = Cmd::new(context, &format!("cargo {subcommand} --version")).output();
    match output {
        Ok(output) if output.success => Ok(output.stdout.trim().to_owned()),
        Ok(_) | Err(_) => {
            let command = format!("rustup component add {component}");
            Err((
                format!("rustup component {component} is not installed"),
                Remedy::Command(command),
            ))
        }
    }
}

fn loop_devices(context: &Context) -> Probe {
    let open = || {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/loop-control")
    };
    let mut opened = open();
    if opened.is_err() && context.privileges.root {
        let _ = Cmd::new(context, "modprobe loop").output();
        opened = open();
    }
    match opened {
        Ok(_) => Ok("/dev/loop-control opens".into()),
        Err(_) if !context.privileges.root => Err(("comes with root".into(), Remedy::Root)),
        Err(error) => Err((
            format!("/dev/loop-control: {error}"),
            Remedy::Advice(PRIVILEGED),
        )),
    }
}

fn kernel_filesystem(context: &Context, filesystem: &str) -> Probe {
    if listed(filesystem) {
        return Ok("in /proc/filesystems".into());
    }
    if context.privileges.root {
        let _ = Cmd::new(context, &format!("modprobe {filesystem}")).output();
        // Containers often lack modprobe or /lib/modules, but the kernel itself loads the module for a mount with this file
        // system type. This mount always fails, because /dev/null is not a block device.
        let _ = Cmd::new(context, &format!("mount -t {filesystem} /dev/null /mnt")).output();
        if listed(filesystem) {
            return Ok("a module, loaded just now".into());
        }
    } else if module_exists(filesystem) {
        return Ok("a module that root can load".into());
    }
    let advice = "a file system missing from the kernel needs another kernel, or its module package (linux-modules-extra)";
    Err((
        "neither in /proc/filesystems nor loadable".into(),
        Remedy::Advice(advice),
    ))
}

fn listed(filesystem: &str) -> bool {
    let text = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    machine::filesystems(&text).contains(filesystem)
}

fn module_exists(filesystem: &str) -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    ["modules.dep", "modules.builtin"].iter().any(|list| {
        let text = fs::read_to_string(format!("/lib/modules/{}/{list}", release.trim()))
            .unwrap_or_default();
        machine::has_module(&text, filesystem)
    })
}

/// Only real iSCSI needs an initiator name; node-sim has its own.
fn initiator_name() -> Probe {
    let file = fs::read_to_string("/etc/iscsi/initiatorname.iscsi").unwrap_or_default();
    match machine::initiator_name(&file) {
        Some(name) => Ok(format!(
            "{name} (must differ on every node: a cloned machine keeps its original's)"
        )),
        None => Err((
            "no /etc/iscsi/initiatorname.iscsi: only real iSCSI needs it".into(),
            Remedy::Advice("for real iSCSI, install open-iscsi"),
        )),
    }
}
