//! Mounts: what `/proc/self/mountinfo` says, and the commands that change it. Pure.

mod table;

pub use table::{Line, MOUNTINFO, Mount, parse, select};

use super::{Cmd, selinux};
use crate::volume::FsType;

/// Options that show up again in [`Mount::options`], so that two mounts can be told apart by them.
const VISIBLE: [&str; 7] = [
    "noatime",
    "nodiratime",
    "relatime",
    "nosuid",
    "nodev",
    "noexec",
    "nosymfollow",
];

/// The first of `flags` that should be seen on `mount` and is not.
pub fn lacks<'a>(mount: &Mount, flags: &'a [String]) -> Option<&'a str> {
    let seen = |flag: &&String| VISIBLE.contains(&flag.as_str()) && !mount.options.contains(flag);
    flags.iter().find(seen).map(String::as_str)
}

/// What a tenant's file system is mounted with unless an option says otherwise: nothing on it becomes a device or gives rights, and
/// an ext4 that finds an error in itself is written no more, whatever it says of that on its disk (it might say `panic`).
fn with_defaults(fs: FsType, options: &[String]) -> Vec<String> {
    let asks = |names: &[&str]| {
        let mut asked = options.iter().map(|option| name_of(option));
        asked.any(|name| names.contains(&name))
    };
    let mut all: Vec<String> = Vec::new();
    for (default, instead) in [("nodev", ["nodev", "dev"]), ("nosuid", ["nosuid", "suid"])] {
        if !asks(&instead) {
            all.push(default.to_owned());
        }
    }
    if fs == FsType::Ext4 && !asks(&["errors"]) {
        all.push("errors=remount-ro".to_owned());
    }
    all.extend(options.iter().cloned());
    all
}

/// Mounts a file system.
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

/// Shows what is at `from` at `to` too.
pub fn bind(from: &str, to: &str) -> Cmd {
    Cmd::new("mount", 30).args(["-o", "bind", from, to])
}

/// Makes one mount read-only and leaves the file system's others as they are.
pub fn make_readonly(point: &str) -> Cmd {
    Cmd::new("mount", 30).args(["-o", "remount,bind,ro", point])
}

/// Unmounts. A file system flushes what it holds, and waits for a NAS that is away until its session is given up (120 s, and
/// 10 s until the kernel notices), hence the time.
pub fn unmount(point: &str) -> Cmd {
    Cmd::new("umount", 180).arg(point)
}

/// Unmounts from a device that is gone: the name space now, the rest when its last user ends.
pub fn unmount_lazily(point: &str) -> Cmd {
    Cmd::new("umount", 30).args(["-l", point])
}

/// Sets or clears the block device's own write protection, which a read-only bind mount of its node is not.
pub fn protect(device: &str, readonly: bool) -> Cmd {
    Cmd::new("blockdev", 15).args([if readonly { "--setro" } else { "--setrw" }, device])
}

/// Why a mount flag cannot be accepted.
#[derive(Debug, PartialEq, Eq)]
pub struct BadFlag {
    /// The flag.
    pub flag: String,
    /// What is wrong with it.
    pub remedy: &'static str,
}

/// Of each of these a mount has one; `lacks` would miss the other for ever.
const ONE_OF: [&[&str]; 10] = [
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

/// Words of mount(8) about how mounts spread: the driver binds what it has staged, and kubelet says how that spreads.
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

/// Words that make `mount` do something else than mounting the volume.
const NOT_FLAGS: [&str; 16] = [
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

/// Reads `mount_flags`: single options, or several with commas. A label keeps its quotes, as mount(8) wants them.
///
/// # Errors
/// An option that names another device or path, that makes it another kind of mount, that is no option at all, or two labels
/// where the kernel takes one.
pub fn parse_flags(flags: &[String]) -> Result<Vec<String>, BadFlag> {
    let mut parsed: Vec<String> = Vec::new();
    for text in flags {
        let options = selinux::split(text).ok_or_else(|| BadFlag {
            flag: text.clone(),
            remedy: "a double quote has no end",
        })?;
        for option in options {
            let name = name_of(option);
            let again = || parsed.iter().any(|flag| name_of(flag) == name);
            let contradicts = ONE_OF
                .iter()
                .filter(|group| group.contains(&name))
                .any(|group| {
                    let other =
                        |flag: &String| name_of(flag) != name && group.contains(&name_of(flag));
                    parsed.iter().any(other)
                });
            let fault = if contradicts {
                Some(
                    "it contradicts another of the options, and a mount has one of the two: leave one out",
                )
            } else if selinux::LABELS.contains(&name) && again() {
                Some(
                    "it is given twice, and a mount has one label: leave it out of the StorageClass's or volume's mountOptions, where the kubelet gives it",
                )
            } else {
                fault(option)
            };
            if let Some(remedy) = fault {
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

/// Why an option is not passed to mount.
fn fault(option: &str) -> Option<&'static str> {
    let name = name_of(option);
    if selinux::LABELS.contains(&name) || option.contains('"') {
        return selinux::fault(option);
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
    let other = NOT_FLAGS.contains(&name)
        || name.starts_with("make-")
        || name.to_ascii_lowercase().starts_with("x-");
    other.then_some(
        "this option would mount something else, or otherwise, than the volume; leave it out",
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
        let instead = ["suid", "dev", "errors=continue"].map(str::to_owned);
        assert_eq!(
            mount(FsType::Ext4, "/dev/sdb", "/s", &instead).to_string(),
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
