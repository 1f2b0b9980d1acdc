//! Mounts: what `/proc/self/mountinfo` says, and the commands that change it. Pure.

use super::{Cmd, DeviceNumber, HostError, selinux};
use crate::volume::FsType;

/// The kernel's table of this mount namespace (`man 5 proc_pid_mountinfo`).
pub const MOUNTINFO: &str = "/proc/self/mountinfo";

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The file system's device number. btrfs has an invented one, see [`Mount::source`].
    pub device: DeviceNumber,
    /// What of the file system is mounted: `/` or a part. A bind-mounted device node shows its name here.
    pub root: String,
    /// Where.
    pub point: String,
    /// Options of this mount alone.
    pub options: Vec<String>,
    /// The file system's type.
    pub fs: String,
    /// What was mounted, as the mounter spelt it: usually `/dev/…`.
    pub source: String,
    /// Options of the file system, the same for all its mounts.
    pub fs_options: Vec<String>,
}

impl Mount {
    /// True when nothing can be written through this mount.
    pub fn is_readonly(&self) -> bool {
        self.options.iter().any(|option| option == "ro") || self.is_fs_readonly()
    }

    /// True when the whole file system is read-only.
    pub fn is_fs_readonly(&self) -> bool {
        self.fs_options.iter().any(|option| option == "ro")
    }

    /// Why the kernel writes nothing to this file system any more, as far as the table tells. Who mounts read-only, and who mounts
    /// from a write-protected disk, has `ro` among the options of the mount, too.
    pub fn death(&self) -> Option<&'static str> {
        let has = |options: &[String], word: &str| options.iter().any(|option| option == word);
        if has(&self.fs_options, "emergency_ro") {
            Some("after an error the kernel writes nothing more to it: emergency_ro")
        } else if has(&self.fs_options, "shutdown") {
            Some("it was shut down")
        } else if self.is_fs_readonly() && has(&self.options, "rw") {
            Some("after an error the kernel has made it read-only")
        } else {
            None
        }
    }

    /// The name of the device node, when this is a bind mount of one.
    pub fn device_node(&self) -> Option<&str> {
        let root = self.root.strip_suffix("//deleted").unwrap_or(&self.root);
        let name = root.rsplit('/').next().filter(|name| !name.is_empty())?;
        matches!(self.fs.as_str(), "devtmpfs" | "tmpfs").then_some(name)
    }

    /// True when the file or device node below this bind mount is gone.
    pub fn is_deleted(&self) -> bool {
        self.root.ends_with("//deleted")
    }

    /// The SELinux label that all files of the file system have by its mount, whatever is written in them.
    pub fn context(&self) -> Option<&str> {
        selinux::context(self.fs_options.iter())
    }

    /// For messages: `ext4 of /dev/sdb (8:16)`.
    pub fn describe(&self) -> String {
        format!("{} of {} ({})", self.fs, self.source, self.device)
    }
}

/// Reads the table.
///
/// # Errors
/// A line is not understood: then nothing is known, rather than "not mounted".
pub fn parse(mountinfo: &[u8]) -> Result<Vec<Mount>, HostError> {
    let text = String::from_utf8_lossy(mountinfo);
    text.lines()
        .map(|line| {
            parse_line(line).ok_or_else(|| HostError::Garbled {
                what: MOUNTINFO.to_owned(),
                seen: line.to_owned(),
            })
        })
        .collect()
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`.
fn parse_line(line: &str) -> Option<Mount> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(2);
    let mut filesystem = filesystem.split(' ');
    // Other people's mounts may show a lonely quote, for instance in a path of an overlay.
    let list = |text: &str| {
        let parts = selinux::split(text).unwrap_or_else(|| text.split(',').collect());
        parts.into_iter().map(str::to_owned).collect()
    };
    Some(Mount {
        device: DeviceNumber::parse(mount.next()?)?,
        root: unescape(mount.next()?),
        point: unescape(mount.next()?),
        options: list(mount.next()?),
        fs: filesystem.next()?.to_owned(),
        source: unescape(filesystem.next()?),
        fs_options: list(filesystem.next()?),
    })
}

/// The kernel writes blank, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> String {
    let mut plain = Vec::new();
    let mut bytes = text.as_bytes();
    while let [first, rest @ ..] = bytes {
        bytes = rest;
        let code = rest
            .get(..3)
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match code {
            Some(code) if *first == b'\\' => {
                plain.push(code);
                bytes = &rest[3..];
            }
            _ => plain.push(*first),
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

/// The mounts at `point`, the visible one last.
pub fn at<'a>(mounts: &'a [Mount], point: &str) -> Vec<&'a Mount> {
    mounts.iter().filter(|mount| mount.point == point).collect()
}

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
    use super::*;

    const TABLE: &str = "\
22 28 0:21 / /proc rw,nosuid shared:13 - proc proc rw
40 28 8:16 / /var/lib/kubelet/plugins/a\\040b/globalmount rw,noatime shared:20 - ext4 /dev/sdb rw,seclabel
41 28 8:16 / /pods/1/mount ro,noatime shared:20 master:3 - ext4 /dev/sdb rw,seclabel
42 28 0:45 / /pods/2/mount rw - btrfs /dev/loop3 ro,space_cache
43 28 0:5 /sdc /pods/3/dev rw - devtmpfs udev rw,size=1k
44 28 0:5 /sdd//deleted /pods/4/dev rw - devtmpfs udev rw
45 28 0:50 / /pods/1/mount rw - tmpfs  rw
";

    #[test]
    fn the_table_is_read() {
        let mounts = parse(TABLE.as_bytes()).unwrap();
        assert_eq!(mounts.len(), 7);
        assert_eq!(mounts[1].point, "/var/lib/kubelet/plugins/a b/globalmount");
        assert_eq!(
            mounts[1].device,
            DeviceNumber {
                major: 8,
                minor: 16
            }
        );
        assert_eq!(mounts[1].describe(), "ext4 of /dev/sdb (8:16)");
        let readonly: Vec<bool> = mounts.iter().map(Mount::is_readonly).collect();
        assert_eq!(readonly, [false, false, true, true, false, false, false]);
        assert!(!mounts[2].is_fs_readonly() && mounts[3].is_fs_readonly());
        assert_eq!(mounts[4].device_node(), Some("sdc"));
        assert_eq!(
            (mounts[5].device_node(), mounts[5].is_deleted()),
            (Some("sdd"), true)
        );
        assert_eq!(mounts[1].device_node(), None);
        assert_eq!(
            mounts[6].device_node(),
            None,
            "a whole tmpfs is no device node"
        );
    }

    /// Each line as Linux 6.18 shows it.
    #[test]
    fn what_the_kernel_has_given_up_shows_in_the_table() {
        let dies = |options: &str, fs: &str, fs_options: &str| {
            let line = format!("42 27 7:0 / /m {options} - {fs} /dev/loop0 {fs_options}\n");
            parse(line.as_bytes()).unwrap()[0].death().is_some()
        };
        assert!(dies(
            "rw,relatime",
            "ext4",
            "rw,errors=remount-ro,emergency_ro"
        ));
        assert!(dies("rw,relatime", "ext4", "rw,abort,emergency_ro"));
        assert!(
            dies("ro,relatime", "ext4", "rw,emergency_ro"),
            "a reader's path"
        );
        assert!(dies("rw,relatime", "ext4", "rw,shutdown"));
        // ext4 before Linux 6.15; btrfs.
        assert!(dies("rw,relatime", "ext4", "ro,errors=remount-ro"));
        assert!(dies(
            "rw,relatime",
            "btrfs",
            "ro,space_cache=v2,subvolid=5,subvol=/"
        ));
        for (options, fs_options) in [
            ("rw,relatime", "rw"),
            ("ro,relatime", "rw"),
            // Asked to be read-only, or from a write-protected disk.
            ("ro,relatime", "ro"),
            ("ro,relatime", "ro,errors=remount-ro"),
        ] {
            assert!(!dies(options, "ext4", fs_options), "{options} {fs_options}");
        }
        let node = parse(TABLE.as_bytes()).unwrap();
        assert!(node[4].death().is_none() && node[3].death().is_some());
    }

    #[test]
    fn the_visible_mount_comes_last() {
        let mounts = parse(TABLE.as_bytes()).unwrap();
        let there: Vec<&str> = at(&mounts, "/pods/1/mount")
            .iter()
            .map(|mount| mount.fs.as_str())
            .collect();
        assert_eq!(there, ["ext4", "tmpfs"]);
        assert!(at(&mounts, "/pods/1").is_empty());
    }

    #[test]
    fn choice_16_a_table_that_is_not_understood_is_not_an_empty_one() {
        assert!(parse(b"36 35 98:0 /mnt1 /mnt2 rw").is_err());
        assert!(parse(b"").unwrap().is_empty());
    }

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
    fn a_label_in_the_table_is_one_option() {
        let line = "40 28 8:16 / /s rw,noatime shared:20 - ext4 /dev/sdb rw,context=\"u:r:t:s0:c0,c1\",errors=continue\n";
        let mounts = parse(line.as_bytes()).unwrap();
        assert_eq!(mounts[0].context(), Some("u:r:t:s0:c0,c1"));
        assert_eq!(mounts[0].fs_options.len(), 3);
        assert_eq!(parse(TABLE.as_bytes()).unwrap()[1].context(), None);
        let overlay = "41 28 0:60 / /o rw - overlay overlay rw,lowerdir=/a\"b,upperdir=/c\n";
        assert_eq!(parse(overlay.as_bytes()).unwrap()[0].fs_options.len(), 3);
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
