//! Decides whether a process may be trusted as a daemon of the host. PURE: the kernel's facts about it are passed in.
//!
//! The name is not evidence: any process, also in a pod, can choose its name. In the namespaces of a process the driver runs that
//! process's programs, on its files and with its initiator name, with all privileges and with passwords. So it must be a process
//! that already has all of these rights.

use std::fmt;

/// Capabilities of process 1 that a daemon of the host may lack: Talos drops `CAP_SYS_MODULE` and `CAP_SYS_BOOT` from all of its
/// services (siderolabs/talos: pkg/machinery/constants/constants.go, `DefaultDroppedCapabilities`).
const OPTIONAL_CAPABILITIES: u64 = 1 << 16 | 1 << 22;

/// What the kernel reports about a process. Cgroup paths are those of process 1's cgroup namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    /// Real, effective, saved and file system user id.
    pub(super) users: Vec<u32>,
    /// The effective capabilities, a bit mask.
    pub(super) capabilities: u64,
    /// The inode number of its user namespace.
    pub(super) user_namespace: u64,
    /// One per cgroup hierarchy.
    pub(super) cgroups: Vec<Cgroup>,
}

/// A process's cgroup in one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cgroup {
    /// The hierarchy's id and controllers; `0:` is cgroup v2.
    hierarchy: String,
    path: String,
}

/// Why a process is not trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Distrust {
    /// One of these user ids is not root.
    Users(Vec<u32>),
    /// It lacks these capabilities, a bit mask.
    Capabilities(u64),
    /// Its user namespace is not that of process 1.
    UserNamespace,
    /// The kernel reports no cgroup.
    NoCgroup,
    /// This cgroup belongs to a pod.
    Pod(String),
    /// This cgroup is outside of process 1's cgroup namespace.
    Outside(String),
    /// This cgroup is below the parent of the driver's own container.
    NextToDriver(String),
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
                write!(f, "is in cgroup {path}, which process 1 cannot see")
            }
            Self::NextToDriver(path) => write!(
                f,
                "is in cgroup {path}, next to the driver's own container, so that it may be a pod's"
            ),
        }
    }
}

/// Trusts a process that is root, has the capabilities of a daemon of the host, and is in no container of the kubelet.
///
/// `init` is process 1 of the host, `own` are the cgroups of the driver.
pub(super) fn verify(facts: &Facts, init: &Facts, own: &[Cgroup]) -> Result<(), Distrust> {
    if facts.users.is_empty() || facts.users.iter().any(|user| *user != 0) {
        return Err(Distrust::Users(facts.users.clone()));
    }
    let lacking = init.capabilities & !OPTIONAL_CAPABILITIES & !facts.capabilities;
    if lacking != 0 {
        return Err(Distrust::Capabilities(lacking));
    }
    // Root in another user namespace has all capabilities, too, but only within that namespace.
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

/// The kubelet puts all pods below a cgroup `kubepods` (or `kubepods.slice`), which may be at any level. With `cgroupsPerQOS:
/// false` it does not, and the container runtime puts all containers below one cgroup, including the driver's.
fn outside_of_pods(cgroup: &Cgroup, own: &[Cgroup]) -> Result<(), Distrust> {
    let path = &cgroup.path;
    if path.split('/').any(|part| part.starts_with("kubepods")) {
        return Err(Distrust::Pod(path.clone()));
    }
    if path.split('/').any(|part| part == "..") {
        return Err(Distrust::Outside(path.clone()));
    }
    let is_next_to_driver = |own: &Cgroup| {
        let parent = own.path.rsplit_once('/').map_or("", |(dir, _)| dir);
        let below = path.strip_prefix(parent);
        own.hierarchy == cgroup.hierarchy
            && !parent.is_empty()
            && below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    if own.iter().any(is_next_to_driver) {
        return Err(Distrust::NextToDriver(path.clone()));
    }
    Ok(())
}

/// Parses the user ids and the effective capabilities in `/proc/PID/status`.
pub(super) fn parse_status(text: &str) -> Option<(Vec<u32>, u64)> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    let users: Result<_, _> = field("Uid:")?.split_whitespace().map(str::parse).collect();
    let capabilities = u64::from_str_radix(field("CapEff:")?.trim(), 16);
    Some((users.ok()?, capabilities.ok()?))
}

/// Parses `/proc/PID/cgroup`, with lines of `NUMBER:CONTROLLERS:PATH`.
pub(super) fn parse_cgroups(text: &str) -> Option<Vec<Cgroup>> {
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
    const POD_CGROUP: &str = "0::/kubepods/besteffort/pod7/aa\n";

    fn daemon() -> Facts {
        Facts {
            users: vec![0; 4],
            capabilities: ALL,
            user_namespace: 4_026_531_837,
            cgroups: parse_cgroups("0::/system/extensions\n").unwrap(),
        }
    }

    fn cgroup(text: &str) -> Facts {
        let cgroups = parse_cgroups(text).unwrap();
        Facts {
            cgroups,
            ..daemon()
        }
    }

    #[track_caller]
    fn verdict(facts: &Facts, own: &str) -> Option<String> {
        let init = cgroup("0::/init\n");
        let own = parse_cgroups(own).unwrap();
        verify(facts, &init, &own).err().map(|why| why.to_string())
    }

    /// design.md#whose-namespaces-the-driver-enters
    #[test]
    fn a_daemon_of_the_host_is_trusted() {
        let on_talos = Facts {
            capabilities: ALL & !OPTIONAL_CAPABILITIES,
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
            assert_eq!(verdict(&facts, POD_CGROUP), None, "{facts:?}");
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
    fn a_process_that_may_be_in_a_pod_is_not_trusted() {
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
            // containerd's default for root in a pod.
            (capabilities(0xa804_25fb), "lacks capabilities of process 1"),
            // All but CAP_SYS_ADMIN.
            (capabilities(ALL & !(1 << 21)), "(0x200000)"),
            (elsewhere, "another user namespace"),
            (cgroup(""), "is in no cgroup"),
            // cgroup v2, with each of the kubelet's cgroup drivers.
            (cgroup("0::/kubepods/burstable/pod1/cc\n"), "is in a pod"),
            (
                cgroup("0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-cc.scope\n"),
                "is in a pod",
            ),
            (cgroup("0::/lab/kubepods/pod1/cc\n"), "is in a pod"),
            (cgroup("0::/kubepods/pod1/cc (deleted)\n"), "is in a pod"),
            // cgroup v1: one hierarchy is enough.
            (
                cgroup("3:cpu,cpuacct:/kubepods/pod1/cc\n1:name=systemd:/\n0::/\n"),
                "is in a pod",
            ),
            // A container runtime that does not support the kubelet's cgroup driver.
            (
                cgroup("0::/system.slice/containerd.service/kubepods-pod1.slice:cri:cc\n"),
                "is in a pod",
            ),
            (cgroup("0::/../pod1/cc\n"), "process 1 cannot see"),
        ] {
            let seen = verdict(&facts, POD_CGROUP);
            assert!(
                seen.as_deref().is_some_and(|why| why.contains(says)),
                "{facts:?}: {seen:?}"
            );
        }
    }

    /// design.md#whose-namespaces-the-driver-enters
    #[test]
    fn without_kubepods_siblings_of_the_driver_may_be_pods() {
        for (other, own) in [
            ("0::/k8s.io/cc\n", "0::/k8s.io/aa\n"),
            ("0::/k8s.io/cc/deeper\n", "0::/k8s.io/aa\n"),
            ("0::/k8s.io\n", "0::/k8s.io/aa\n"),
            ("0::/k8s.io/aa\n", "0::/k8s.io/aa\n"),
            ("5:pids:/k8s.io/cc\n0::/\n", "5:pids:/k8s.io/aa\n0::/\n"),
        ] {
            let seen = verdict(&cgroup(other), own).unwrap_or_default();
            assert!(
                seen.contains("next to the driver's own container"),
                "{other}: {seen}"
            );
        }
    }

    #[test]
    fn proc_files_are_parsed() {
        let status = "Name:\tiscsid\nUid:\t0\t1\t2\t3\nGid:\t9\t9\t9\t9\nCapPrm:\t0\nCapEff:\t000001ffffffffff\n";
        assert_eq!(parse_status(status), Some((vec![0, 1, 2, 3], ALL)));
        for bad in ["", "Uid:\t0\n", "Uid:\tx\nCapEff:\t0\n", "CapEff:\t0\n"] {
            assert_eq!(parse_status(bad), None, "{bad}");
        }
        // A name cannot inject a field: the kernel escapes its line breaks as \n.
        assert_eq!(
            parse_cgroups("12:cpu,cpuacct:/a:b\n0::/\n").unwrap(),
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
        assert_eq!(parse_cgroups("garbage\n"), None);
    }
}
