//! Mounts: the commands that mount and unmount, and the checks of mount flags. [`table`] parses `/proc/self/mountinfo`. Pure.

mod table;

pub use table::{Line, MOUNTINFO, Mount, parse, select};

use super::{Cmd, selinux};
use crate::volume::FsType;

/// Options that the kernel shows in [`Mount::options`], so that a mount can be checked for them.
const VISIBLE: [&str; 7] = [
    "noatime",
    "nodiratime",
    "relatime",
    "nosuid",
    "nodev",
    "noexec",
    "nosymfollow",
];

/// The first of `flags` that the kernel would show on `mount` and does not.
pub fn lacks<'a>(mount: &Mount, flags: &'a [String]) -> Option<&'a str> {
    let missing =
        |flag: &&String| VISIBLE.contains(&flag.as_str()) && !mount.options.contains(flag);
    flags.iter().find(missing).map(String::as_str)
}

/// Adds the defaults that the options do not override. A tenant's file system is untrusted: no device nodes, no setuid, and an
/// ext4 with an error is remounted read-only, whatever its superblock says (it might say `panic`).
fn with_defaults(fs: FsType, options: &[String]) -> Vec<String> {
    let overrides = |names: &[&str]| {
        let mut given = options.iter().map(|option| name_of(option));
        given.any(|name| names.contains(&name))
    };
    let mut all: Vec<String> = Vec::new();
    for (default, either) in [("nodev", ["nodev", "dev"]), ("nosuid", ["nosuid", "suid"])] {
        if !overrides(&either) {
            all.push(default.to_owned());
        }
    }
    if fs == FsType::Ext4 && !overrides(&["errors"]) {
        all.push("errors=remount-ro".to_owned());
    }
    all.extend(options.iter().cloned());
    all
}

/// Mounts a file system at `point`, with the default options for untrusted content.
pub fn mount(fs: FsType, device: &str, point: &str, options: &[String]) -> Cmd {
    let options = with_defaults(fs, options);
    let cmd = Cmd::new("mount", 120).args(["-t", fs.as_str()]);
    let cmd = if options.is_empty() {
        cmd
    } else {
        cmd.arg("-o").arg(options.join(","))
    };
    cmd.args([device, point])
}

/// Bind-mounts `from` at `to`.
pub fn bind(from: &str, to: &str) -> Cmd {
    Cmd::new("mount", 30).args(["-o", "bind", from, to])
}

/// Remounts one bind mount read-only; the other mounts of the file system stay as they are.
pub fn make_readonly(point: &str) -> Cmd {
    Cmd::new("mount", 30).args(["-o", "remount,bind,ro", point])
}

/// Unmounts. The file system flushes its dirty pages. If the NAS is unreachable, that waits until the session's replacement
/// timeout (120 s, and 10 s until the kernel notices), hence the deadline.
pub fn unmount(point: &str) -> Cmd {
    Cmd::new("umount", 180).arg(point)
}

/// Lazy unmount, for a device that is gone: detaches the mount now, and ends the file system with its last user.
pub fn unmount_lazily(point: &str) -> Cmd {
    Cmd::new("umount", 30).args(["-l", point])
}

/// Sets or clears the write protection of the block device itself; a read-only bind mount of its node does not protect the
/// device.
pub fn protect(device: &str, readonly: bool) -> Cmd {
    Cmd::new("blockdev", 15).args([if readonly { "--setro" } else { "--setrw" }, device])
}

/// Why a mount flag cannot be accepted.
#[derive(Debug, PartialEq, Eq)]
pub struct BadFlag {
    /// The flag.
    pub flag: String,
    /// What is wrong with it, and what to do.
    pub remedy: &'static str,
}

/// Mutually exclusive options: with two of a group, `lacks` would always find one of them missing.
const MUTUALLY_EXCLUSIVE: [&[&str]; 10] = [
    &["ro", "rw"],
    &["atime", "noatime", "relatime", "strictatime"],
    &["diratime", "nodiratime"],
    &["suid", "nosuid"],
    &["dev", "nodev"],
    &["exec", "noexec"],
    &["symfollow", "nosymfollow"],
    &["sync", "async"],
    &["lazytime", "nolazytime"],
    &["discard", "nodiscard"],
];

/// Mount propagation options of mount(8). Propagation is up to the kubelet, which sets it on the container's mount.
const PROPAGATION: [&str; 8] = [
    "private",
    "rprivate",
    "shared",
    "rshared",
    "slave",
    "rslave",
    "unbindable",
    "runbindable",
];

/// Options that make `mount` do something other than mounting the volume.
const FORBIDDEN: [&str; 16] = [
    "abort",
    "bind",
    "rbind",
    "move",
    "remount",
    "loop",
    "offset",
    "sizelimit",
    "helper",
    "uhelper",
    "device",
    "logdev",
    "rtdev",
    "journal_dev",
    "subvol",
    "subvolid",
];

/// Parses `mount_flags`: each is one option, or several with commas. A label keeps its quotes, as mount(8) requires.
///
/// # Errors
/// An option that names another device or path, that asks for another kind of mount, that is malformed or contradicts another, or
/// a label that is given twice.
pub fn parse_flags(flags: &[String]) -> Result<Vec<String>, BadFlag> {
    let mut parsed: Vec<String> = Vec::new();
    for text in flags {
        let options = selinux::split(text).ok_or_else(|| BadFlag {
            flag: text.clone(),
            remedy: "a double quote is not closed",
        })?;
        for option in options {
            let name = name_of(option);
            let is_repeated = || parsed.iter().any(|flag| name_of(flag) == name);
            let contradicts = MUTUALLY_EXCLUSIVE
                .iter()
                .filter(|group| group.contains(&name))
                .any(|group| {
                    let other =
                        |flag: &String| name_of(flag) != name && group.contains(&name_of(flag));
                    parsed.iter().any(other)
                });
            let problem = if contradicts {
                Some(
                    "it contradicts another of the options, and a mount has one of the two: leave one out",
                )
            } else if selinux::LABELS.contains(&name) && is_repeated() {
                Some(
                    "it is given twice, and a mount can have only one label: remove it from the StorageClass's or volume's mountOptions if the kubelet adds it",
                )
            } else {
                problem_with(option)
            };
            if let Some(remedy) = problem {
                return Err(BadFlag {
                    flag: option.to_owned(),
                    remedy,
                });
            }
            parsed.push(option.to_owned());
        }
    }
    Ok(parsed)
}

fn name_of(option: &str) -> &str {
    option.split('=').next().unwrap_or_default()
}

/// Why an option is refused.
fn problem_with(option: &str) -> Option<&'static str> {
    let name = name_of(option);
    if selinux::LABELS.contains(&name) || option.contains('"') {
        return selinux::problem_with(option);
    }
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"_-.=:+".contains(&b);
    if name.is_empty() || !option.bytes().all(legal) || option.starts_with('-') {
        return Some("a mount option consists of letters, digits and _-.=:+; it names no path");
    }
    if PROPAGATION.contains(&name) {
        return Some(
            "how a mount spreads is not the volume's to say (a pod has mountPropagation); leave it out",
        );
    }
    if option == "errors=panic" {
        return Some(
            "an error in this volume would stop the whole node; use errors=remount-ro or leave it out",
        );
    }
    if matches!(name, "ro" | "rw") && option != name {
        return Some("use ro or rw alone");
    }
    let forbidden = FORBIDDEN.contains(&name)
        || name.starts_with("make-")
        || name.to_ascii_lowercase().starts_with("x-");
    forbidden.then_some(
        "with this option mount would do something other than mounting the volume; leave it out",
    )
}

#[cfg(test)]
mod tests {
    use super::table::TABLE;
    use super::*;

    #[test]
    fn commands() {
        let flags = ["noatime".to_owned(), "ro".to_owned()];
        assert_eq!(
            mount(FsType::Xfs, "/dev/sdb", "/s", &flags).to_string(),
            "mount -t xfs -o nodev,nosuid,noatime,ro /dev/sdb /s"
        );
        assert_eq!(
            mount(FsType::Ext4, "/dev/sdb", "/s", &[]).to_string(),
            "mount -t ext4 -o nodev,nosuid,errors=remount-ro /dev/sdb /s"
        );
        let overridden = ["suid", "dev", "errors=continue"].map(str::to_owned);
        assert_eq!(
            mount(FsType::Ext4, "/dev/sdb", "/s", &overridden).to_string(),
            "mount -t ext4 -o suid,dev,errors=continue /dev/sdb /s"
        );
        assert_eq!(bind("/s", "/t").to_string(), "mount -o bind /s /t");
        assert_eq!(
            make_readonly("/t").to_string(),
            "mount -o remount,bind,ro /t"
        );
        assert_eq!(unmount("/t").to_string(), "umount /t");
        assert_eq!(unmount_lazily("/t").to_string(), "umount -l /t");
        assert_eq!(
            protect("/dev/sdb", true).to_string(),
            "blockdev --setro /dev/sdb"
        );
        assert_eq!(
            protect("/dev/sdb", false).to_string(),
            "blockdev --setrw /dev/sdb"
        );
    }

    fn read(flags: &[&str]) -> Result<Vec<String>, BadFlag> {
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        parse_flags(&flags)
    }

    #[test]
    fn flags_are_options_and_nothing_else() {
        assert_eq!(
            read(&["noatime,nodiratime", "data=ordered"]).unwrap(),
            ["noatime", "nodiratime", "data=ordered"]
        );
        assert_eq!(read(&[]).unwrap(), Vec::<String>::new());
        for bad in [
            "",
            "a b",
            "bind",
            "remount",
            "loop",
            "loop=/dev/loop1",
            "device=/dev/sda",
            "logdev=x",
            "-o",
            "a\0",
            "make-shared",
            "X-mount.mkdir",
            "journal_path=/x",
            "ro\n",
            "context=\"u:r:t:s0:c1",
            "context=\"u:r:t\n\"",
            "context",
            "data=\"ordered\"",
            "private",
            "rshared",
            "slave",
            "unbindable",
            "errors=panic",
            "ro=fs",
            "abort",
            // What was staged with both could never be published.
            "relatime",
            "strictatime",
            "atime",
        ] {
            assert_eq!(read(&["noatime", bad]).unwrap_err().flag, bad, "{bad}");
        }
        for (first, second) in [
            ("ro", "rw"),
            ("nosuid", "suid"),
            ("dev", "nodev"),
            ("noexec", "exec"),
            ("noatime,nodiratime", "diratime"),
        ] {
            let bad = read(&[first, second]).unwrap_err();
            assert_eq!(bad.flag, second);
            assert!(bad.remedy.contains("contradicts"), "{bad:?}");
        }
        assert!(read(&["noatime", "noatime", "ro,ro", "errors=remount-ro"]).is_ok());
    }

    #[test]
    fn a_label_passes_once_and_whole() {
        let label = r#"context="system_u:object_r:container_file_t:s0:c0,c1""#;
        assert_eq!(
            read(&["noatime,nodev", label]).unwrap(),
            ["noatime", "nodev", label]
        );
        assert_eq!(
            mount(FsType::Xfs, "/dev/sdb", "/s", &read(&[label]).unwrap()).args[3],
            format!("nodev,nosuid,{label}")
        );
        for (first, second) in [
            (label, label),
            ("context=u:r:t", label),
            (label, "context=u:r:t"),
        ] {
            let bad = read(&[first, second]).unwrap_err();
            assert_eq!(bad.flag, second);
            assert!(bad.remedy.contains("twice"), "{bad:?}");
        }
        assert!(read(&["fscontext=u:r:t,rootcontext=u:r:t"]).is_ok());
    }

    #[test]
    fn options_that_can_be_seen_are_compared() {
        let mounts = parse(TABLE.as_bytes()).unwrap();
        let flags = |names: &[&str]| {
            names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(lacks(&mounts[1], &flags(&["noatime", "discard"])), None);
        assert_eq!(
            lacks(&mounts[1], &flags(&["noatime", "nodev"])),
            Some("nodev")
        );
    }
}
