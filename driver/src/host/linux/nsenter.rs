//! The host's own namespaces, for a driver that runs in a container: iscsiadm must be of the same release as iscsid, speaks to
//! it through an abstract socket, which belongs to a network namespace, and shares its files.
//!
//! ```text
//! driver ──▶ /proc/self/exe enter-namespaces WHOSE iscsiadm …    one thread: proof, setns(net), setns(mnt), chroot, exec
//! ```
//! The process is looked up and proven for each command, by the process that enters and just before it does; so an iscsid that
//! starts anew is found again, and nobody takes its place in between. Only the mount and the network namespace are entered; no
//! shell and no `nsenter` is needed on either side.

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use nix::sched::{CloneFlags, setns};
use nix::unistd::{chroot, fchdir};

use super::daemon::{Daemon, Kept, PROC, Process, Unverified};
use super::exec::exec;
use crate::host::HostError;

/// The first argument of a process that enters namespaces instead of serving.
pub(super) const SUBCOMMAND: &str = "enter-namespaces";
/// Its exit status when it did not come to run the program; the reason is on its standard error.
pub(super) const FAILED: u8 = 125;
/// The same when there is nothing to run: no such program, or nobody whom it would speak to. A shell says so by this number.
pub(super) const EXIT_NOT_FOUND: u8 = 127;
/// Where programs are looked for inside: what distributions use, Talos and NixOS among them.
const SEARCH: [&str; 7] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
    "/run/current-system/sw/bin",
];

/// In whose mount and network namespaces the host's iscsiadm and multipath tools run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Namespaces {
    /// The driver's own: it runs on the host itself, or its image holds them.
    #[default]
    Own,
    /// Those of process 1 of the host. The pod needs hostPID and must be privileged.
    Init,
    /// Those of the process that listens on iscsid's socket in the host's network, and on multipathd's for the multipath tools, as
    /// on Talos: a root process of the host in no pod, whatever its name. The pod needs hostPID and must be privileged.
    Iscsid,
}

/// A process whose namespaces are entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// Process 1. Nobody else can have this number: the kernel gives it to the process that a process namespace begins with, and
    /// never again. With hostPID the namespace is the host's; without it, it begins with the driver itself or a process of its
    /// pod, and [`init_is_another`] refuses the driver itself.
    Init,
    /// The one that is proven to be this daemon.
    Daemon(Daemon),
}

impl Whose {
    const ALL: [Self; 3] = [
        Self::Init,
        Self::Daemon(Daemon::Iscsid),
        Self::Daemon(Daemon::Multipathd),
    ];

    fn word(self) -> &'static str {
        match self {
            Self::Init => "init",
            Self::Daemon(daemon) => daemon.name(),
        }
    }

    /// The process, for one that enters its namespaces next.
    fn process(self) -> Result<Process, Unverified> {
        match self {
            Self::Init => {
                init_is_another(Path::new(PROC))?;
                Process::init().map_err(|error| Unverified::Refused(unseen(&error)))
            }
            // A node does without multipath tools, and not without iscsid.
            Self::Daemon(Daemon::Iscsid) => Daemon::Iscsid
                .verify()
                .map_err(|error| Unverified::Refused(error.into_text())),
            Self::Daemon(Daemon::Multipathd) => Daemon::Multipathd.verify(),
        }
    }
}

impl Namespaces {
    /// The process in whose namespaces `program` runs; `None` for the driver's own.
    pub(super) fn of_program(self, program: &str) -> Option<Whose> {
        match (self, program) {
            (Self::Init, "iscsiadm" | "multipath" | "multipathd") => Some(Whose::Init),
            (Self::Iscsid, "iscsiadm") => Some(Whose::Daemon(Daemon::Iscsid)),
            // A container of iscsid's alone has no /dev with the disks (Talos).
            (Self::Iscsid, "multipath" | "multipathd") => Some(Whose::Daemon(Daemon::Multipathd)),
            _ => None,
        }
    }

    /// The process whose files open-iscsi's are; `None`: the driver.
    pub(super) fn of_files(self) -> Option<Whose> {
        self.of_program("iscsiadm")
    }
}

/// The root folder of a process, as it is seen from here while this is kept.
#[derive(Clone, Debug)]
pub(super) struct Root {
    pub(super) path: PathBuf,
    /// The path leads through a descriptor of it.
    _held: Option<Arc<Process>>,
}

impl Root {
    /// That of `whose`.
    ///
    /// # Errors
    /// [`HostError::NoNamespaces`]
    pub(super) fn of(whose: Whose, kept: &Kept) -> Result<Self, HostError> {
        let held = match whose {
            Whose::Init => init_is_another(Path::new(PROC)).map(|()| None),
            Whose::Daemon(daemon) => kept.daemon(daemon).map(Some),
        };
        let held = held.map_err(|error| HostError::NoNamespaces {
            problem: error.into_text(),
        })?;
        let path = held
            .as_ref()
            .map_or_else(|| Path::new(PROC).join("1/root"), |process| process.root());
        Ok(Self { path, _held: held })
    }

    /// True when the program is where [`run`] would find it.
    pub(super) fn has(&self, program: &str) -> bool {
        find(&self.path, program.as_ref()).is_some()
    }
}

/// Makes sure that process 1 is not the driver.
pub(super) fn init_is_another(proc: &Path) -> Result<(), Unverified> {
    let mounts = |process: &str| fs::read_link(proc.join(process).join("ns/mnt"));
    let problem = match (mounts("1"), mounts("self")) {
        (Ok(init), Ok(own)) if init != own => return Ok(()),
        (Ok(_), Ok(_)) => "process 1, as the driver sees it, has the driver's own: give the pod hostPID: true, or --host-namespaces own to a driver that runs on the host itself".to_owned(),
        (Err(error), _) | (_, Err(error)) => unseen(&error),
    };
    Err(Unverified::Refused(problem))
}

fn unseen(error: &std::io::Error) -> String {
    format!(
        "those of process 1 cannot be looked at ({error}): the driver's container must be privileged"
    )
}

/// The path of a program below `root`, without it.
fn find(root: &Path, program: &OsStr) -> Option<PathBuf> {
    SEARCH
        .iter()
        .map(|folder| Path::new(folder).join(program))
        .find(|path| {
            let seen = root.join(path.strip_prefix("/").unwrap_or(path));
            // An absolute link would be followed to a place of ours: that it is there has to do.
            let link = || fs::symlink_metadata(&seen).is_ok_and(|meta| meta.is_symlink());
            match fs::metadata(&seen) {
                Ok(meta) => meta.is_file() && meta.permissions().mode() & 0o111 != 0,
                Err(_) => link(),
            }
        })
}

/// Runs a program in the namespaces of a process, if that is what the arguments of this process ask for. It returns only when
/// that failed; `None`: the arguments ask for something else. To be called before any thread is started.
pub fn run(arguments: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    let arguments: Vec<OsString> = arguments.skip(1).collect();
    let [word, whose, program, rest @ ..] = arguments.as_slice() else {
        return None;
    };
    if word != SUBCOMMAND {
        return None;
    }
    let Err(problem) = enter(whose, program, rest);
    let status = match problem {
        Unverified::Nobody(_) => EXIT_NOT_FOUND,
        Unverified::Refused(_) => FAILED,
    };
    eprintln!("{}", problem.into_text());
    Some(ExitCode::from(status))
}

/// What the driver starts instead of `program`.
pub(super) fn arguments(whose: Whose, program: &str) -> [String; 3] {
    [SUBCOMMAND, whose.word(), program].map(str::to_owned)
}

fn enter(whose: &OsStr, program: &OsStr, rest: &[OsString]) -> Result<Infallible, Unverified> {
    let whose = Whose::ALL
        .into_iter()
        .find(|known| whose == known.word())
        .ok_or_else(|| {
            Unverified::Refused(format!(
                "whose namespaces {} are is unknown",
                whose.display()
            ))
        })?;
    // All that is entered is open already: afterwards there is another /proc, or none.
    let process = whose.process()?;
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
    fchdir(&process.root).map_err(refused("entering the root folder"))?;
    chroot(".").map_err(refused("changing the root folder"))?;
    let Some(path) = find(Path::new("/"), program) else {
        return Err(Unverified::Nobody(format!(
            "{} is in none of {}: install it there",
            program.display(),
            SEARCH.join(", ")
        )));
    };
    let error = exec(&path, rest, &SEARCH.join(":"));
    Err(Unverified::Refused(format!(
        "{} cannot be started: {error}",
        path.display()
    )))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn process_1_is_the_hosts_or_it_is_explained() {
        let proc = |processes: &[(&str, &str)]| {
            let proc = tempfile::tempdir().unwrap();
            for (number, mounts) in processes {
                let folder = proc.path().join(number).join("ns");
                fs::create_dir_all(&folder).unwrap();
                symlink(mounts, folder.join("mnt")).unwrap();
            }
            init_is_another(proc.path()).map_err(Unverified::into_text)
        };
        let container = proc(&[("1", "mnt:[1]"), ("self", "mnt:[2]")]);
        assert_eq!(container, Ok(()));
        let alone = proc(&[("1", "mnt:[2]"), ("self", "mnt:[2]")]);
        assert!(alone.unwrap_err().contains("hostPID: true"));
        assert!(proc(&[]).unwrap_err().contains("must be privileged"));
    }

    /// design.md#whose-namespaces-the-driver-enters
    #[test]
    fn each_program_runs_with_the_daemon_that_it_speaks_to() {
        let (iscsid, multipathd) = (
            Some(Whose::Daemon(Daemon::Iscsid)),
            Some(Whose::Daemon(Daemon::Multipathd)),
        );
        for (program, of_init, of_daemon) in [
            ("iscsiadm", Some(Whose::Init), iscsid),
            ("multipath", Some(Whose::Init), multipathd),
            ("multipathd", Some(Whose::Init), multipathd),
            ("mkfs.ext4", None, None),
        ] {
            assert_eq!(Namespaces::Own.of_program(program), None);
            assert_eq!(Namespaces::Init.of_program(program), of_init, "{program}");
            assert_eq!(
                Namespaces::Iscsid.of_program(program),
                of_daemon,
                "{program}"
            );
        }
        assert_eq!(Namespaces::Iscsid.of_files(), iscsid);
        for whose in Whose::ALL {
            assert_eq!(
                arguments(whose, "iscsiadm"),
                [SUBCOMMAND, whose.word(), "iscsiadm"]
            );
        }
    }

    /// design.md#whose-namespaces-the-driver-enters
    #[test]
    fn a_number_is_nobodys_proof() {
        for whose in ["1", "77", "self", "", "systemd"] {
            let Err(refused) = enter(whose.as_ref(), "iscsiadm".as_ref(), &[]);
            assert!(refused.into_text().contains("is unknown"), "{whose}");
        }
    }

    #[test]
    fn a_program_is_found_below_another_root() {
        let root = tempfile::tempdir().unwrap();
        let sbin = root.path().join("usr/sbin");
        fs::create_dir_all(&sbin).unwrap();
        fs::write(sbin.join("iscsiadm"), "").unwrap();
        assert_eq!(
            find(root.path(), "iscsiadm".as_ref()),
            None,
            "not executable"
        );
        fs::set_permissions(sbin.join("iscsiadm"), fs::Permissions::from_mode(0o755)).unwrap();
        let found = find(root.path(), "iscsiadm".as_ref());
        assert_eq!(found.as_deref(), Some(Path::new("/usr/sbin/iscsiadm")));
        symlink("/opt/multipath", sbin.join("multipath")).unwrap();
        assert!(find(root.path(), "multipath".as_ref()).is_some());
    }

    #[test]
    fn other_arguments_are_not_for_us() {
        for words in [
            vec!["synology-csi"],
            vec!["synology-csi", "--endpoint", "/x", "--mode", "all"],
        ] {
            assert!(run(words.into_iter().map(OsString::from)).is_none());
        }
    }
}
