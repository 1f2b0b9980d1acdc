//! The host's own namespaces, for a driver that runs in a container: iscsiadm must be of the same release as iscsid, speaks to
//! it through an abstract socket, which belongs to a network namespace, and shares its files.
//!
//! ```text
//! driver ──▶ /proc/self/exe enter-namespaces PID iscsiadm …    one thread: setns(net), setns(mnt), chroot, exec
//! ```
//! The process is looked up for each command, so an iscsid that starts anew is found again. Only the mount and the network
//! namespace are entered; no shell and no `nsenter` is needed on either side.

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::sched::{CloneFlags, setns};
use nix::unistd::{chroot, fchdir};

use super::command;
use crate::host::HostError;

/// The first argument of a process that enters namespaces instead of serving.
pub(super) const WORD: &str = "enter-namespaces";
/// Its exit status when it did not come to run the program; the reason is on its standard error.
pub(super) const FAILED: u8 = 125;
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
/// The programs that belong to daemons of the host.
const PROGRAMS: [&str; 3] = ["iscsiadm", "multipath", "multipathd"];
const PROC: &str = "/proc";

/// In whose mount and network namespaces the host's iscsiadm and multipath tools run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Namespaces {
    /// The driver's own: it runs on the host itself, or its image holds them.
    #[default]
    Own,
    /// Those of process 1 of the host. The pod needs hostPID and must be privileged.
    Init,
    /// Those of the process called iscsid, as on Talos. The pod needs hostPID and must be privileged.
    Iscsid,
}

impl Namespaces {
    /// The process in whose namespaces `program` runs; `None` for the driver's own.
    pub(super) fn of_program(self, program: &str) -> Result<Option<u32>, HostError> {
        if PROGRAMS.contains(&program) {
            self.process()
        } else {
            Ok(None)
        }
    }

    /// The process that has these namespaces; `None`: the driver.
    pub(super) fn process(self) -> Result<Option<u32>, HostError> {
        self.process_in(Path::new(PROC))
    }

    /// The root folder of these namespaces, as it is seen from here; `None`: the driver's.
    pub(super) fn root(self) -> Result<Option<PathBuf>, HostError> {
        Ok(self
            .process()?
            .map(|process| root_of(Path::new(PROC), process)))
    }

    /// True when the program is where [`run`] would find it.
    pub(super) fn hold(self, program: &str) -> Result<bool, HostError> {
        let root = self.root()?.unwrap_or_else(|| PathBuf::from("/"));
        Ok(find(&root, program.as_ref()).is_some())
    }

    fn process_in(self, proc: &Path) -> Result<Option<u32>, HostError> {
        let problem = |problem: &str| HostError::NoNamespaces {
            problem: problem.to_owned(),
        };
        match self {
            Self::Own => Ok(None),
            Self::Init => {
                let mounts = |process: &str| fs::read_link(proc.join(process).join("ns/mnt"));
                match (mounts("1"), mounts("self")) {
                    (Ok(init), Ok(own)) if init != own => Ok(Some(1)),
                    (Ok(_), Ok(_)) => Err(problem(
                        "process 1, as the driver sees it, has the driver's own: give the pod hostPID: true, or --host-namespaces own to a driver that runs on the host itself",
                    )),
                    (Err(error), _) | (_, Err(error)) => Err(problem(&format!(
                        "those of process 1 cannot be looked at ({error}): the driver's container must be privileged"
                    ))),
                }
            }
            Self::Iscsid => named(proc, "iscsid").map(Some).ok_or_else(|| {
                problem(
                    "no process is called iscsid: start it on the node, and give the pod hostPID: true so that the driver can see it",
                )
            }),
        }
    }
}

/// The first process of this name. A daemon and its helpers share their namespaces.
fn named(proc: &Path, name: &str) -> Option<u32> {
    fs::read_dir(proc)
        .ok()?
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let number = entry.file_name().to_str()?.parse().ok()?;
            let called = fs::read_to_string(entry.path().join("comm")).ok()?;
            (called.trim_end() == name).then_some(number)
        })
        .min()
}

fn root_of(proc: &Path, process: u32) -> PathBuf {
    proc.join(process.to_string()).join("root")
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
    let [word, process, program, rest @ ..] = arguments.as_slice() else {
        return None;
    };
    if word != WORD {
        return None;
    }
    let Err(problem) = enter(process, program, rest);
    eprintln!("{problem}");
    Some(ExitCode::from(FAILED))
}

/// What the driver starts instead of `program`.
pub(super) fn arguments(process: u32, program: &str) -> [String; 3] {
    [WORD.to_owned(), process.to_string(), program.to_owned()]
}

fn enter(process: &OsStr, program: &OsStr, rest: &[OsString]) -> Result<Infallible, String> {
    let place = Path::new(PROC).join(process);
    let open = |name: &str| {
        File::open(place.join(name)).map_err(|error| {
            format!(
                "{}/{name} cannot be opened ({error}): the process has ended, or the driver's container is not privileged",
                place.display()
            )
        })
    };
    // All of them first: afterwards there is another /proc, or none.
    let (root, mounts, network) = (open("root")?, open("ns/mnt")?, open("ns/net")?);
    let refused = |what: &'static str| {
        move |error: nix::Error| {
            format!("{what} failed ({error}): the driver's container must be privileged")
        }
    };
    setns(&network, CloneFlags::CLONE_NEWNET).map_err(refused("entering the network namespace"))?;
    setns(&mounts, CloneFlags::CLONE_NEWNS).map_err(refused("entering the mount namespace"))?;
    fchdir(&root).map_err(refused("entering the root folder"))?;
    chroot(".").map_err(refused("changing the root folder"))?;
    let Some(path) = find(Path::new("/"), program) else {
        return Err(format!(
            "{} is in none of {}: install it there",
            program.display(),
            SEARCH.join(", ")
        ));
    };
    let error = command::become_program(&path, rest, &SEARCH.join(":"));
    Err(format!("{} cannot be started: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A `/proc` with these processes: number, name, mount namespace.
    fn proc(processes: &[(&str, &str, &str)]) -> tempfile::TempDir {
        let proc = tempfile::tempdir().unwrap();
        for (number, name, mounts) in processes {
            let folder = proc.path().join(number);
            fs::create_dir_all(folder.join("ns")).unwrap();
            fs::write(folder.join("comm"), format!("{name}\n")).unwrap();
            symlink(mounts, folder.join("ns/mnt")).unwrap();
        }
        proc
    }

    #[track_caller]
    fn refused(namespaces: Namespaces, proc: &tempfile::TempDir, says: &str) {
        let error = namespaces.process_in(proc.path()).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }

    #[test]
    fn the_process_is_found_or_its_absence_explained() {
        let host = proc(&[
            ("1", "systemd", "mnt:[1]"),
            ("77", "iscsid", "mnt:[3]"),
            ("76", "iscsid", "mnt:[3]"),
            ("9", "iscsid-helper", "mnt:[3]"),
            ("self", "synology-csi", "mnt:[2]"),
        ]);
        for (namespaces, process) in [
            (Namespaces::Own, None),
            (Namespaces::Init, Some(1)),
            (Namespaces::Iscsid, Some(76)),
        ] {
            assert_eq!(namespaces.process_in(host.path()).unwrap(), process);
        }
        let alone = proc(&[
            ("1", "synology-csi", "mnt:[2]"),
            ("self", "synology-csi", "mnt:[2]"),
        ]);
        refused(Namespaces::Init, &alone, "hostPID: true");
        refused(Namespaces::Iscsid, &alone, "no process is called iscsid");
        refused(Namespaces::Init, &proc(&[]), "must be privileged");
    }

    #[test]
    fn only_the_programs_of_the_hosts_daemons_run_there() {
        assert_eq!(Namespaces::Iscsid.of_program("mkfs.ext4").unwrap(), None);
        assert_eq!(Namespaces::Own.of_program("iscsiadm").unwrap(), None);
        assert_eq!(arguments(7, "iscsiadm"), [WORD, "7", "iscsiadm"]);
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
