//! The subcommand `enter-namespaces`: this process enters the namespaces of another one and becomes a program there.

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

use nix::sched::{CloneFlags, setns};
use nix::unistd::{chroot, fchdir};

use super::{EXIT_NOT_FOUND, FAILED, NamespaceOwner, SEARCH_PATH, SUBCOMMAND, find};
use crate::host::linux::command::exec;
use crate::host::linux::daemon::Unverified;

/// Handles [`SUBCOMMAND`]: runs a program in the namespaces of another process. `None`: the arguments are for another purpose.
/// Returns an exit code only if it failed. Must be called before any thread is started.
pub fn run(arguments: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    let arguments: Vec<OsString> = arguments.skip(1).collect();
    let [subcommand, owner, program, rest @ ..] = arguments.as_slice() else {
        return None;
    };
    if subcommand != SUBCOMMAND {
        return None;
    }
    let Err(problem) = enter(owner, program, rest);
    let status = match problem {
        Unverified::NotFound(_) => EXIT_NOT_FOUND,
        Unverified::Refused(_) => FAILED,
    };
    eprintln!("{}", problem.into_text());
    Some(ExitCode::from(status))
}

pub(super) fn enter(
    owner: &OsStr,
    program: &OsStr,
    rest: &[OsString],
) -> Result<Infallible, Unverified> {
    let owner = NamespaceOwner::ALL
        .into_iter()
        .find(|known| owner == known.name())
        .ok_or_else(|| {
            Unverified::Refused(format!("unknown owner of namespaces: {}", owner.display()))
        })?;
    // All descriptors are open before the first setns(): afterwards /proc is another one, or missing.
    let process = owner.process()?;
    let refused = |what: &'static str| {
        move |error: nix::Error| {
            Unverified::Refused(format!(
                "{what} failed ({error}): the driver's container must be privileged"
            ))
        }
    };
    setns(&process.network, CloneFlags::CLONE_NEWNET)
        .map_err(refused("entering the network namespace"))?;
    setns(&process.mounts, CloneFlags::CLONE_NEWNS)
        .map_err(refused("entering the mount namespace"))?;
    fchdir(&process.root).map_err(refused("entering the root directory"))?;
    chroot(".").map_err(refused("changing the root directory"))?;
    let Some(path) = find(Path::new("/"), program) else {
        return Err(Unverified::NotFound(format!(
            "{} is in none of {}: install it there",
            program.display(),
            SEARCH_PATH.join(", ")
        )));
    };
    let error = exec(&path, rest, &SEARCH_PATH.join(":"));
    Err(Unverified::Refused(format!(
        "{} cannot be started: {error}",
        path.display()
    )))
}
