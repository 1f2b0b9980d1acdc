//! Parser of the kernel's mount table, `/proc/self/mountinfo`. Pure.

use std::borrow::Cow;

use crate::host::{DeviceNumber, HostError, selinux};

/// The mount table of this mount namespace (`man 5 proc_pid_mountinfo`).
pub const MOUNTINFO: &str = "/proc/self/mountinfo";

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The file system's device number. btrfs has an anonymous one, see [`Mount::source`].
    pub device: DeviceNumber,
    /// The directory of the file system that is the root of this mount. A bind-mounted device node shows its name here.
    pub root: String,
    /// The mount point.
    pub point: String,
    /// Per-mount options.
    pub options: Vec<String>,
    /// The file system's type.
    pub fs: String,
    /// The mount source as given to mount(2): usually `/dev/…`.
    pub source: String,
    /// Superblock options, the same for all mounts of the file system.
    pub fs_options: Vec<String>,
}

impl Mount {
    /// True if this mount or its file system is read-only.
    pub fn is_readonly(&self) -> bool {
        self.options.iter().any(|option| option == "ro") || self.is_fs_readonly()
    }

    /// True if the whole file system is read-only.
    pub fn is_fs_readonly(&self) -> bool {
        self.fs_options.iter().any(|option| option == "ro")
    }

    /// Why the kernel has stopped writing to this file system, as far as the table shows it. A file system that was mounted
    /// read-only, or from a write-protected disk, has `ro` among the per-mount options, too.
    pub fn why_dead(&self) -> Option<&'static str> {
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

    /// The name of the device node, if this is a bind mount of one.
    pub fn device_node(&self) -> Option<&str> {
        device_node(&self.fs, &self.root)
    }

    /// True if the file or device node below this bind mount was deleted.
    pub fn is_deleted(&self) -> bool {
        self.root.ends_with("//deleted")
    }

    /// The SELinux label that the mount gives to all files of the file system, whatever their own attributes say.
    pub fn context(&self) -> Option<&str> {
        selinux::context(self.fs_options.iter())
    }

    /// For messages, e.g. `ext4 of /dev/sdb (8:16)`.
    pub fn describe(&self) -> String {
        format!("{} of {} ({})", self.fs, self.source, self.device)
    }
}

/// A line of the table, not unescaped yet: there may be hundreds of irrelevant lines.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    /// See [`Mount::device`].
    pub device: DeviceNumber,
    /// See [`Mount::fs`].
    pub fs: &'a str,
    root: &'a str,
    point: &'a str,
    options: &'a str,
    source: &'a str,
    fs_options: &'a str,
}

impl Line<'_> {
    /// True if the mount point is `point`.
    pub fn is_at(&self, point: &str) -> bool {
        self.point == point || self.point.contains('\\') && unescape(self.point) == point
    }

    /// See [`Mount::source`].
    pub fn source(&self) -> Cow<'_, str> {
        if self.source.contains('\\') {
            Cow::Owned(unescape(self.source))
        } else {
            Cow::Borrowed(self.source)
        }
    }

    /// See [`Mount::device_node`].
    pub fn device_node(&self) -> Option<&str> {
        device_node(self.fs, self.root)
    }

    fn mount(&self) -> Mount {
        // Unrelated mounts may have an unbalanced quote, for instance in a path of an overlay.
        let list = |text: &str| {
            let parts = selinux::split(text).unwrap_or_else(|| text.split(',').collect());
            parts.into_iter().map(str::to_owned).collect()
        };
        Mount {
            device: self.device,
            root: unescape(self.root),
            point: unescape(self.point),
            options: list(self.options),
            fs: self.fs.to_owned(),
            source: unescape(self.source),
            fs_options: list(self.fs_options),
        }
    }
}

/// The last part of `root`, if `fs` is a file system that holds device nodes.
fn device_node<'a>(fs: &str, root: &'a str) -> Option<&'a str> {
    let root = root.strip_suffix("//deleted").unwrap_or(root);
    let name = root.rsplit('/').next().filter(|name| !name.is_empty())?;
    matches!(fs, "devtmpfs" | "tmpfs").then_some(name)
}

/// Parses the table.
///
/// # Errors
/// A line cannot be parsed: the result is unknown, which is not "not mounted".
pub fn parse(mountinfo: &[u8]) -> Result<Vec<Mount>, HostError> {
    select(mountinfo, |_| true)
}

/// Parses the table and returns the wanted lines.
///
/// # Errors
/// A line cannot be parsed, wanted or not.
pub fn select(
    mountinfo: &[u8],
    wanted: impl Fn(&Line<'_>) -> bool,
) -> Result<Vec<Mount>, HostError> {
    let text = String::from_utf8_lossy(mountinfo);
    let mut mounts = Vec::new();
    for line in text.lines() {
        let line = read_line(line).ok_or_else(|| HostError::Unparsable {
            what: MOUNTINFO.to_owned(),
            seen: line.to_owned(),
        })?;
        if wanted(&line) {
            mounts.push(line.mount());
        }
    }
    Ok(mounts)
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`.
fn read_line(line: &str) -> Option<Line<'_>> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(2);
    let mut filesystem = filesystem.split(' ');
    Some(Line {
        device: DeviceNumber::parse(mount.next()?)?,
        root: mount.next()?,
        point: mount.next()?,
        options: mount.next()?,
        fs: filesystem.next()?,
        source: filesystem.next()?,
        fs_options: filesystem.next()?,
    })
}

/// The kernel escapes space, tab, newline and backslash as three octal digits.
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

/// Lines of every kind.
#[cfg(test)]
pub(super) const TABLE: &str = "\
22 28 0:21 / /proc rw,nosuid shared:13 - proc proc rw
40 28 8:16 / /var/lib/kubelet/plugins/a\\040b/globalmount rw,noatime shared:20 - ext4 /dev/sdb rw,seclabel
41 28 8:16 / /pods/1/mount ro,noatime shared:20 master:3 - ext4 /dev/sdb rw,seclabel
42 28 0:45 / /pods/2/mount rw - btrfs /dev/loop3 ro,space_cache
43 28 0:5 /sdc /pods/3/dev rw - devtmpfs udev rw,size=1k
44 28 0:5 /sdd//deleted /pods/4/dev rw - devtmpfs udev rw
45 28 0:50 / /pods/1/mount rw - tmpfs  rw
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_parsed() {
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
            "a whole tmpfs is not a device node"
        );
    }

    /// Each line as Linux 6.18 shows it.
    #[test]
    fn a_dead_file_system_is_recognized_in_the_table() {
        let is_dead = |options: &str, fs: &str, fs_options: &str| {
            let line = format!("42 27 7:0 / /m {options} - {fs} /dev/loop0 {fs_options}\n");
            parse(line.as_bytes()).unwrap()[0].why_dead().is_some()
        };
        assert!(is_dead(
            "rw,relatime",
            "ext4",
            "rw,errors=remount-ro,emergency_ro"
        ));
        assert!(is_dead("rw,relatime", "ext4", "rw,abort,emergency_ro"));
        assert!(
            is_dead("ro,relatime", "ext4", "rw,emergency_ro"),
            "a read-only publication"
        );
        assert!(is_dead("rw,relatime", "ext4", "rw,shutdown"));
        // ext4 before Linux 6.15; btrfs.
        assert!(is_dead("rw,relatime", "ext4", "ro,errors=remount-ro"));
        assert!(is_dead(
            "rw,relatime",
            "btrfs",
            "ro,space_cache=v2,subvolid=5,subvol=/"
        ));
        for (options, fs_options) in [
            ("rw,relatime", "rw"),
            ("ro,relatime", "rw"),
            // Mounted read-only, or from a write-protected disk.
            ("ro,relatime", "ro"),
            ("ro,relatime", "ro,errors=remount-ro"),
        ] {
            assert!(
                !is_dead(options, "ext4", fs_options),
                "{options} {fs_options}"
            );
        }
        let node = parse(TABLE.as_bytes()).unwrap();
        assert!(node[4].why_dead().is_none() && node[3].why_dead().is_some());
    }

    #[test]
    fn the_visible_mount_comes_last() {
        let at = |point: &str| select(TABLE.as_bytes(), |line| line.is_at(point)).unwrap();
        let mounts = at("/pods/1/mount");
        let types: Vec<&str> = mounts.iter().map(|mount| mount.fs.as_str()).collect();
        assert_eq!(types, ["ext4", "tmpfs"]);
        assert!(at("/pods/1").is_empty());
    }

    /// design.md#unknown-is-not-absent
    #[test]
    fn a_table_that_cannot_be_parsed_is_not_an_empty_one() {
        assert!(parse(b"36 35 98:0 /mnt1 /mnt2 rw").is_err());
        assert!(parse(b"").unwrap().is_empty());
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
}
