//! Which process of this machine may be believed to be a daemon of the host. PURE: what the kernel says of it is given.
//!
//! Its name is not asked for: every process gives itself any name, and so does a pod. What the driver does in the namespaces of
//! a process it does as the process would like it (the programs, the files and the initiator's name are the process's), with all
//! rights and with passwords. So it must be one that could do all of that by itself.

use std::fmt;

/// What a daemon of the host may lack of process 1's capabilities: Talos takes `CAP_SYS_MODULE` and `CAP_SYS_BOOT` from all of
/// its services (siderolabs/talos: pkg/machinery/constants/constants.go, `DefaultDroppedCapabilities`).
const DISPENSABLE: u64 = 1 << 16 | 1 << 22;

/// What the kernel says of a process. Cgroups are as process 1 sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    /// Real, effective, saved, of the file system.
    pub(super) users: Vec<u32>,
    /// The effective ones.
    pub(super) capabilities: u64,
    /// The number of its user namespace.
    pub(super) user_namespace: u64,
    /// One for each hierarchy.
    pub(super) cgroups: Vec<Cgroup>,
}

/// A process's place in a hierarchy of cgroups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cgroup {
    /// The hierarchy's number and controllers: `0:` is version 2.
    hierarchy: String,
    path: String,
}

/// Why a process is not believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Distrust {
    /// One of these is not root.
    Users(Vec<u32>),
    /// It lacks these.
    Capabilities(u64),
    /// It has another user namespace than process 1.
    UserNamespace,
    /// The kernel says of no cgroup.
    NoCgroup,
    /// This cgroup is a pod's.
    Pod(String),
    /// This cgroup is outside of all that process 1 sees.
    Outside(String),
    /// This cgroup is below the one that the driver's own container is in.
    Beside(String),
}

impl fmt::Display for Distrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Users(users) => write!(f, "does not run as root (its user ids are {users:?})"),
            Self::Capabilities(lacking) => {
                write!(f, "lacks capabilities of process 1 ({lacking:#x})")
            }
            Self::UserNamespace => f.write_str("is in another user namespace than process 1"),
            Self::NoCgroup => f.write_str("is in no cgroup, so that it may be a pod's"),
            Self::Pod(path) => write!(f, "is in a pod (cgroup {path})"),
            Self::Outside(path) => {
                write!(f, "is in cgroup {path}, which process 1 does not see")
            }
            Self::Beside(path) => write!(
                f,
                "is in cgroup {path}, where the driver's own container is, so that it may be a pod's"
            ),
        }
    }
}

/// Believes a process that is root with the rights of a daemon of the host, and in no container of the kubelet's.
///
/// `init` is process 1 of the host, `own` the cgroups of the driver.
pub(super) fn judge(facts: &Facts, init: &Facts, own: &[Cgroup]) -> Result<(), Distrust> {
    if facts.users.is_empty() || facts.users.iter().any(|user| *user != 0) {
        return Err(Distrust::Users(facts.users.clone()));
    }
    let lacking = init.capabilities & !DISPENSABLE & !facts.capabilities;
    if lacking != 0 {
        return Err(Distrust::Capabilities(lacking));
    }
    // Root of another user namespace has all capabilities, too: over what is its own.
    if facts.user_namespace != init.user_namespace {
        return Err(Distrust::UserNamespace);
    }
    if facts.cgroups.is_empty() {
        return Err(Distrust::NoCgroup);
    }
    facts
        .cgroups
        .iter()
        .try_for_each(|cgroup| outside_of_pods(cgroup, own))
}

/// The kubelet keeps all pods below `kubepods` (or `kubepods.slice`), wherever that is. Where it is told not to
/// (`cgroupsPerQOS: false`), the runtime puts all containers into one place, which is the driver's, too.
fn outside_of_pods(cgroup: &Cgroup, own: &[Cgroup]) -> Result<(), Distrust> {
    let path = &cgroup.path;
    if path.split('/').any(|part| part.starts_with("kubepods")) {
        return Err(Distrust::Pod(path.clone()));
    }
    if path.split('/').any(|part| part == "..") {
        return Err(Distrust::Outside(path.clone()));
    }
    let beside = |own: &Cgroup| {
        let containers = own.path.rsplit_once('/').map_or("", |(parent, _)| parent);
        let below = path.strip_prefix(containers);
        own.hierarchy == cgroup.hierarchy
            && !containers.is_empty()
            && below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    if own.iter().any(beside) {
        return Err(Distrust::Beside(path.clone()));
    }
    Ok(())
}

/// The user ids and the effective capabilities in `/proc/PID/status`.
pub(super) fn read_status(text: &str) -> Option<(Vec<u32>, u64)> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    let users: Result<_, _> = field("Uid:")?.split_whitespace().map(str::parse).collect();
    let capabilities = u64::from_str_radix(field("CapEff:")?.trim(), 16);
    Some((users.ok()?, capabilities.ok()?))
}

/// What `/proc/PID/cgroup` says: `NUMBER:CONTROLLERS:PATH`.
pub(super) fn read_cgroups(text: &str) -> Option<Vec<Cgroup>> {
    let read = |line: &str| {
        let (number, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        Some(Cgroup {
            hierarchy: format!("{number}:{controllers}"),
            path: path.to_owned(),
        })
    };
    text.lines().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = 0x1ff_ffff_ffff;
    const OF_A_POD: &str = "0::/kubepods/besteffort/pod7/aa\n";

    fn daemon() -> Facts {
        Facts {
            users: vec![0; 4],
            capabilities: ALL,
            user_namespace: 4_026_531_837,
            cgroups: read_cgroups("0::/system/extensions\n").unwrap(),
        }
    }

    fn cgroup(text: &str) -> Facts {
        let cgroups = read_cgroups(text).unwrap();
        Facts {
            cgroups,
            ..daemon()
        }
    }

    #[track_caller]
    fn verdict(facts: &Facts, own: &str) -> Option<String> {
        let init = cgroup("0::/init\n");
        let own = read_cgroups(own).unwrap();
        judge(facts, &init, &own).err().map(|why| why.to_string())
    }

    /// design.md#whose-namespaces-the-driver-enters
    #[test]
    fn a_daemon_of_the_host_is_believed() {
        let on_talos = Facts {
            capabilities: ALL & !DISPENSABLE,
            ..daemon()
        };
        for facts in [
            daemon(),
            on_talos,
            cgroup("0::/\n"),
            cgroup("0::/system.slice/iscsid.service\n"),
            cgroup("0::/init.scope\n"),
            cgroup("4:memory:/system/extensions\n1:cpu:/\n0::/\n"),
        ] {
            assert_eq!(verdict(&facts, OF_A_POD), None, "{facts:?}");
        }
        // A driver outside of Kubernetes.
        for own in ["0::/\n", "0::/docker/aa\n", "0::/system.slice/d/aa\n"] {
            assert_eq!(verdict(&cgroup("0::/\n"), own), None, "{own}");
        }
        assert_eq!(verdict(&cgroup("0::/a/bb\n"), "0::/a/b/c\n"), None);
        assert_eq!(verdict(&cgroup("2:cpu:/a/x\n"), "1:cpu:/a/y\n"), None);
    }

    /// design.md#whose-namespaces-the-driver-enters
    #[test]
    fn whoever_could_be_a_pod_is_not() {
        let users = |users: [u32; 4]| Facts {
            users: users.to_vec(),
            ..daemon()
        };
        let capabilities = |capabilities| Facts {
            capabilities,
            ..daemon()
        };
        let elsewhere = Facts {
            user_namespace: 4_026_532_000,
            ..daemon()
        };
        for (facts, says) in [
            (users([1000; 4]), "does not run as root"),
            (users([0, 1000, 0, 0]), "0, 1000, 0, 0"),
            (users([1000, 0, 0, 0]), "does not run as root"),
            (
                Facts {
                    users: vec![],
                    ..daemon()
                },
                "does not run as root",
            ),
            // What containerd gives to root in a pod.
            (capabilities(0xa804_25fb), "lacks capabilities of process 1"),
            // All but CAP_SYS_ADMIN.
            (capabilities(ALL & !(1 << 21)), "(0x200000)"),
            (elsewhere, "another user namespace"),
            (cgroup(""), "is in no cgroup"),
            // Version 2, by each of the kubelet's drivers.
            (cgroup("0::/kubepods/burstable/pod1/cc\n"), "is in a pod"),
            (
                cgroup("0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-cc.scope\n"),
                "is in a pod",
            ),
            (cgroup("0::/lab/kubepods/pod1/cc\n"), "is in a pod"),
            (cgroup("0::/kubepods/pod1/cc (deleted)\n"), "is in a pod"),
            // Version 1: one hierarchy is enough.
            (
                cgroup("3:cpu,cpuacct:/kubepods/pod1/cc\n1:name=systemd:/\n0::/\n"),
                "is in a pod",
            ),
            // A runtime that does not know the driver which the kubelet has.
            (
                cgroup("0::/system.slice/containerd.service/kubepods-pod1.slice:cri:cc\n"),
                "is in a pod",
            ),
            (cgroup("0::/../pod1/cc\n"), "process 1 does not see"),
        ] {
            let seen = verdict(&facts, OF_A_POD);
            assert!(
                seen.as_deref().is_some_and(|why| why.contains(says)),
                "{facts:?}: {seen:?}"
            );
        }
    }

    /// design.md#whose-namespaces-the-driver-enters
    #[test]
    fn without_kubepods_the_drivers_own_place_is_the_pods() {
        for (other, own) in [
            ("0::/k8s.io/cc\n", "0::/k8s.io/aa\n"),
            ("0::/k8s.io/cc/deeper\n", "0::/k8s.io/aa\n"),
            ("0::/k8s.io\n", "0::/k8s.io/aa\n"),
            ("0::/k8s.io/aa\n", "0::/k8s.io/aa\n"),
            ("5:pids:/k8s.io/cc\n0::/\n", "5:pids:/k8s.io/aa\n0::/\n"),
        ] {
            let seen = verdict(&cgroup(other), own).unwrap_or_default();
            assert!(
                seen.contains("the driver's own container"),
                "{other}: {seen}"
            );
        }
    }

    #[test]
    fn what_the_kernel_says_is_read() {
        let status = "Name:\tiscsid\nUid:\t0\t1\t2\t3\nGid:\t9\t9\t9\t9\nCapPrm:\t0\nCapEff:\t000001ffffffffff\n";
        assert_eq!(read_status(status), Some((vec![0, 1, 2, 3], ALL)));
        for bad in ["", "Uid:\t0\n", "Uid:\tx\nCapEff:\t0\n", "CapEff:\t0\n"] {
            assert_eq!(read_status(bad), None, "{bad}");
        }
        // A name cannot speak for another field: the kernel writes its line breaks as \n.
        assert_eq!(
            read_cgroups("12:cpu,cpuacct:/a:b\n0::/\n").unwrap(),
            [
                Cgroup {
                    hierarchy: "12:cpu,cpuacct".to_owned(),
                    path: "/a:b".to_owned()
                },
                Cgroup {
                    hierarchy: "0:".to_owned(),
                    path: "/".to_owned()
                }
            ]
        );
        assert_eq!(read_cgroups("garbage\n"), None);
    }
}
