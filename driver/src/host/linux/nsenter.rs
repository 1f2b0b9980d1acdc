//! Runs host programs in the host's own namespaces, for a driver in a container: iscsiadm must be of the same release as iscsid,
//! connects to its abstract socket, which belongs to a network namespace, and shares its files.
//!
//! ```text
//! driver ──▶ /proc/self/exe enter-namespaces OWNER iscsiadm …    one thread: verify, setns(net), setns(mnt), chroot, exec
//! ```
//! The owner is looked up and verified for each command, by the process that enters its namespaces and just before it does so: a
//! restarted iscsid is found again, and no other process can take its place in between. Only the mount and the network namespace
//! are entered; neither side needs a shell or `nsenter`.

pub mod subcommand;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::daemon::{Daemon, IscsidCache, PROC, Process, Unverified};
use crate::host::HostError;

/// The first argument of a process that enters namespaces instead of serving CSI.
pub(super) const SUBCOMMAND: &str = "enter-namespaces";
/// Its exit status if it failed before it ran the program; the reason is on its standard error.
pub(super) const FAILED: u8 = 125;
/// Its exit status if the program, or the daemon that it needs, was not found. Shells use the same number.
pub(super) const EXIT_NOT_FOUND: u8 = 127;
/// Where programs are looked up in the entered namespace: the paths of common distributions, including Talos and NixOS.
const SEARCH_PATH: [&str; 7] = [
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
    /// The driver's own: it runs on the host itself, or its image contains them.
    #[default]
    Own,
    /// Those of process 1 of the host. The pod needs hostPID and must be privileged.
    Init,
    /// Those of the process that listens on iscsid's socket in the host's network (for the multipath tools: on multipathd's), as
    /// on Talos. It must be a root process of the host and not of a pod; its name does not matter. The pod needs hostPID and must
    /// be privileged.
    Iscsid,
}

/// The process whose namespaces are entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NamespaceOwner {
    /// Process 1. No other process can have this id: the kernel gives it to the first process of a PID namespace and never reuses
    /// it. With hostPID the namespace is the host's; without it, process 1 is the driver itself or a process of its pod, and
    /// [`check_init_is_not_us`] refuses the driver itself.
    Init,
    /// The process that is verified to be this daemon.
    Daemon(Daemon),
}

impl NamespaceOwner {
    const ALL: [Self; 3] = [
        Self::Init,
        Self::Daemon(Daemon::Iscsid),
        Self::Daemon(Daemon::Multipathd),
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Init => "init",
            Self::Daemon(daemon) => daemon.name(),
        }
    }

    /// Finds and verifies the process. The caller enters its namespaces next.
    fn process(self) -> Result<Process, Unverified> {
        match self {
            Self::Init => {
                check_init_is_not_us(Path::new(PROC))?;
                Process::init().map_err(|error| Unverified::Refused(unreadable(&error)))
            }
            // A node can work without multipathd, but not without iscsid.
            Self::Daemon(Daemon::Iscsid) => Daemon::Iscsid
                .verify()
                .map_err(|error| Unverified::Refused(error.into_text())),
            Self::Daemon(Daemon::Multipathd) => Daemon::Multipathd.verify(),
        }
    }
}

impl Namespaces {
    /// The process in whose namespaces `program` runs; `None`: the driver's own.
    pub(super) fn of_program(self, program: &str) -> Option<NamespaceOwner> {
        match (self, program) {
            (Self::Init, "iscsiadm" | "multipath" | "multipathd") => Some(NamespaceOwner::Init),
            (Self::Iscsid, "iscsiadm") => Some(NamespaceOwner::Daemon(Daemon::Iscsid)),
            // A container for iscsid alone has no disks in its /dev (Talos).
            (Self::Iscsid, "multipath" | "multipathd") => {
                Some(NamespaceOwner::Daemon(Daemon::Multipathd))
            }
            _ => None,
        }
    }

    /// The process whose root has open-iscsi's files; `None`: the driver's own root.
    pub(super) fn of_files(self) -> Option<NamespaceOwner> {
        self.of_program("iscsiadm")
    }
}

/// The root directory of a process, as a path that the driver can use as long as this value lives.
#[derive(Clone, Debug)]
pub(super) struct Root {
    pub(super) path: PathBuf,
    /// The path goes through a descriptor of this process.
    _process: Option<Arc<Process>>,
}

impl Root {
    /// The root directory of `owner`.
    ///
    /// # Errors
    /// [`HostError::NoNamespaces`]
    pub(super) fn of(owner: NamespaceOwner, iscsid: &IscsidCache) -> Result<Self, HostError> {
        let process = match owner {
            NamespaceOwner::Init => check_init_is_not_us(Path::new(PROC)).map(|()| None),
            NamespaceOwner::Daemon(daemon) => iscsid.process_of(daemon).map(Some),
        };
        let process = process.map_err(|error| HostError::NoNamespaces {
            problem: error.into_text(),
        })?;
        let path = process
            .as_ref()
            .map_or_else(|| Path::new(PROC).join("1/root"), |process| process.root());
        Ok(Self {
            path,
            _process: process,
        })
    }

    /// True if [`run`] would find the program.
    pub(super) fn has(&self, program: &str) -> bool {
        find(&self.path, program.as_ref()).is_some()
    }
}

/// Checks that process 1 is not the driver itself, i.e. that the pod has hostPID.
pub(super) fn check_init_is_not_us(proc: &Path) -> Result<(), Unverified> {
    let mounts = |process: &str| fs::read_link(proc.join(process).join("ns/mnt"));
    let problem = match (mounts("1"), mounts("self")) {
        (Ok(init), Ok(own)) if init != own => return Ok(()),
        (Ok(_), Ok(_)) => "process 1 has the driver's own mount namespace: give the pod hostPID: true, or run a driver that is not in a container with --host-namespaces own".to_owned(),
        (Err(error), _) | (_, Err(error)) => unreadable(&error),
    };
    Err(Unverified::Refused(problem))
}

fn unreadable(error: &std::io::Error) -> String {
    format!(
        "those of process 1 cannot be read ({error}): the driver's container must be privileged"
    )
}

/// The path of a program below `root`, relative to `root`.
fn find(root: &Path, program: &OsStr) -> Option<PathBuf> {
    SEARCH_PATH
        .iter()
        .map(|folder| Path::new(folder).join(program))
        .find(|path| {
            let seen = root.join(path.strip_prefix("/").unwrap_or(path));
            // An absolute link would be resolved in the driver's own root, so its existence has to suffice.
            let link = || fs::symlink_metadata(&seen).is_ok_and(|meta| meta.is_symlink());
            match fs::metadata(&seen) {
                Ok(meta) => meta.is_file() && meta.permissions().mode() & 0o111 != 0,
                Err(_) => link(),
            }
        })
}

/// The arguments with which the driver starts itself in order to run `program`.
pub(super) fn arguments(owner: NamespaceOwner, program: &str) -> [String; 3] {
    [SUBCOMMAND, owner.name(), program].map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::fs::symlink;

    use super::subcommand::{enter, run};
    use super::*;

    #[test]
    fn process_1_must_not_be_the_driver() {
        let proc = |processes: &[(&str, &str)]| {
            let proc = tempfile::tempdir().unwrap();
            for (number, mounts) in processes {
                let folder = proc.path().join(number).join("ns");
                fs::create_dir_all(&folder).unwrap();
                symlink(mounts, folder.join("mnt")).unwrap();
            }
            check_init_is_not_us(proc.path()).map_err(Unverified::into_text)
        };
        let container = proc(&[("1", "mnt:[1]"), ("self", "mnt:[2]")]);
        assert_eq!(container, Ok(()));
        let alone = proc(&[("1", "mnt:[2]"), ("self", "mnt:[2]")]);
        assert!(alone.unwrap_err().contains("hostPID: true"));
        assert!(proc(&[]).unwrap_err().contains("must be privileged"));
    }

    /// design.md#whose-namespaces-the-driver-enters
    #[test]
    fn each_program_runs_in_the_namespaces_of_its_daemon() {
        let (iscsid, multipathd) = (
            Some(NamespaceOwner::Daemon(Daemon::Iscsid)),
            Some(NamespaceOwner::Daemon(Daemon::Multipathd)),
        );
        for (program, of_init, of_daemon) in [
            ("iscsiadm", Some(NamespaceOwner::Init), iscsid),
            ("multipath", Some(NamespaceOwner::Init), multipathd),
            ("multipathd", Some(NamespaceOwner::Init), multipathd),
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
        for owner in NamespaceOwner::ALL {
            assert_eq!(
                arguments(owner, "iscsiadm"),
                [SUBCOMMAND, owner.name(), "iscsiadm"]
            );
        }
    }

    /// design.md#whose-namespaces-the-driver-enters
    #[test]
    fn a_process_id_is_not_accepted_as_owner() {
        for owner in ["1", "77", "self", "", "systemd"] {
            let Err(refused) = enter(owner.as_ref(), "iscsiadm".as_ref(), &[]);
            assert!(refused.into_text().contains("unknown owner"), "{owner}");
        }
    }

    #[test]
    fn programs_are_found_below_another_root() {
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
    fn other_arguments_are_not_handled() {
        for words in [
            vec!["synology-csi"],
            vec!["synology-csi", "--endpoint", "/x", "--mode", "all"],
        ] {
            assert!(run(words.into_iter().map(OsString::from)).is_none());
        }
    }
}
