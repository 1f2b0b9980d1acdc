//! Parsers for the files in which Linux describes the machine: /proc, os-release, modules.dep. No I/O.

use std::collections::BTreeSet;

const CAP_SYS_ADMIN: u32 = 21;
const CAP_SYS_RESOURCE: u32 = 24;

/// Privileges of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Privileges {
    /// Its effective user is root.
    pub(crate) root: bool,
    /// `CAP_SYS_ADMIN`: it may mount, and set up loop devices. Root in an unprivileged container lacks it.
    pub(crate) sys_admin: bool,
    /// `CAP_SYS_RESOURCE`: it may grow a mounted ext4.
    pub(crate) sys_resource: bool,
}

impl Privileges {
    /// Parses `/proc/self/status`.
    pub(crate) fn parse(status: &str) -> Option<Self> {
        let value = |name: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .map(str::trim)
        };
        // Uid: real, effective, saved, file system.
        let user: u32 = value("Uid:")?.split_whitespace().nth(1)?.parse().ok()?;
        let capabilities = u64::from_str_radix(value("CapEff:")?, 16).ok()?;
        let has = |bit: u32| capabilities & (1 << bit) != 0;
        Some(Self {
            root: user == 0,
            sys_admin: has(CAP_SYS_ADMIN),
            sys_resource: has(CAP_SYS_RESOURCE),
        })
    }
}

/// A Linux distribution, as `/etc/os-release` names it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Distribution {
    /// For display, e.g. `Debian GNU/Linux 12 (bookworm)`.
    pub(crate) name: String,
    /// It has apt: Debian, Ubuntu and their derivatives.
    pub(crate) debian: bool,
}

impl Distribution {
    /// Parses `/etc/os-release`. If it is missing: no name, not Debian.
    pub(crate) fn parse(os_release: &str) -> Self {
        let value = |name: &str| {
            let line = os_release
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.unwrap_or_default()
                .trim()
                .trim_matches(['"', '\''])
                .to_owned()
        };
        let ids = format!("{} {}", value("ID"), value("ID_LIKE"));
        let debian = ids
            .split_whitespace()
            .any(|id| id == "debian" || id == "ubuntu");
        Self {
            name: value("PRETTY_NAME"),
            debian,
        }
    }
}

/// The file systems in `/proc/filesystems`. One that is a module is listed only once it is loaded.
pub(crate) fn filesystems(proc_filesystems: &str) -> BTreeSet<&str> {
    proc_filesystems
        .lines()
        .filter_map(|line| line.split_whitespace().last())
        .collect()
}

/// Whether the kernel has a module for this file system. `list` is `modules.dep` or `modules.builtin` of the running kernel.
pub(crate) fn has_module(list: &str, filesystem: &str) -> bool {
    let file = format!("/{filesystem}.ko");
    list.lines()
        .filter_map(|line| line.split(':').next())
        .any(|path| path.contains(&file))
}

/// The `InitiatorName` in `initiatorname.iscsi`, if there is one.
pub(crate) fn initiator_name(file: &str) -> Option<&str> {
    file.lines()
        .find_map(|line| line.trim().strip_prefix("InitiatorName="))
        .map(str::trim)
        .filter(|name| !name.is_empty())
}

/// A Go release: major and minor version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct GoVersion(pub(crate) u32, pub(crate) u32);

impl GoVersion {
    /// Parses `go env GOVERSION`: `go1.26.8`, `go1.22rc1`, `devel go1.27-abc`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (_, version) = text.split_once("go")?;
        let mut parts = version.split('.');
        let major = parts.next()?.parse().ok()?;
        let minor: String = parts
            .next()?
            .chars()
            .take_while(char::is_ascii_digit)
            .collect();
        Some(Self(major, minor.parse().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn privileges_come_from_the_effective_user_and_capabilities() {
        let check = |uid: &str, capabilities: &str| {
            Privileges::parse(&format!(
                "Name:\tx\nUid:\t1000\t{uid}\t0\t0\nCapEff:\t{capabilities}\n"
            ))
            .unwrap()
        };
        assert_eq!(
            check("0", "000001ffffffffff"),
            Privileges {
                root: true,
                sys_admin: true,
                sys_resource: true
            },
        );
        assert_eq!(
            check("0", "000001fffeffffff"),
            Privileges {
                root: true,
                sys_admin: true,
                sys_resource: false
            },
        );
        // The default of an unprivileged container.
        assert_eq!(
            check("0", "00000000a80425fb"),
            Privileges {
                root: true,
                sys_admin: false,
                sys_resource: false
            },
        );
        assert!(!check("1000", "0000000000000000").root);
        assert_eq!(Privileges::parse("Name:\tx\n"), None);
    }

    #[test]
    fn distributions_are_told_apart() {
        let debian =
            Distribution::parse("PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\n");
        assert_eq!(
            debian,
            Distribution {
                name: "Debian GNU/Linux 12 (bookworm)".into(),
                debian: true
            }
        );
        assert!(Distribution::parse("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n").debian);
        assert!(!Distribution::parse("ID=\"fedora\"\nID_LIKE='rhel'\n").debian);
        assert_eq!(Distribution::parse(""), Distribution::default());
    }

    #[test]
    fn file_systems_are_the_last_field_of_each_line() {
        let known = filesystems("nodev\tsysfs\n\text4\n\txfs\n");
        assert!(known.contains("ext4") && known.contains("xfs") && known.contains("sysfs"));
        assert!(!known.contains("btrfs") && !known.contains("nodev"));
    }

    #[test]
    fn modules_are_found_compressed_or_built_in_and_not_as_dependencies() {
        let list =
            "kernel/fs/xfs/xfs.ko.zst: kernel/lib/libcrc32c.ko.zst\nkernel/fs/ext4/ext4.ko\n";
        assert!(has_module(list, "xfs") && has_module(list, "ext4"));
        assert!(!has_module(list, "btrfs") && !has_module(list, "libcrc32c"));
    }

    #[test]
    fn initiator_names_skip_comments() {
        let file = "## do not edit\nInitiatorName=iqn.1993-08.org.debian:01:5e2f\n";
        assert_eq!(initiator_name(file), Some("iqn.1993-08.org.debian:01:5e2f"));
        assert_eq!(initiator_name("GenerateName=yes\n"), None);
        assert_eq!(initiator_name("InitiatorName=\n"), None);
    }

    #[test]
    fn go_versions_compare() {
        assert_eq!(GoVersion::parse("go1.26.8\n"), Some(GoVersion(1, 26)));
        assert_eq!(GoVersion::parse("go1.22rc1"), Some(GoVersion(1, 22)));
        assert_eq!(GoVersion::parse("devel go1.27-abc"), Some(GoVersion(1, 27)));
        assert_eq!(GoVersion::parse("gccgo"), None);
        assert!(GoVersion(1, 19) < GoVersion(1, 25));
    }
}
