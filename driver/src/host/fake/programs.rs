//! The host programs of the fake machine: their effects and exits. iscsiadm is in `initiator.rs`, multipathd in `multipath.rs`.

use super::exit::{exited, printed};
use super::test_api::DATA;
use super::{Bytes, Cmd, DeviceNumber, Exit, FsType, Machine, Mount, head_of};
use crate::host::selinux;

impl Machine {
    /// Runs a command.
    pub(super) fn execute(&mut self, cmd: &Cmd) -> Exit {
        let words: Vec<&str> = cmd.args.iter().map(String::as_str).collect();
        let last = words.last().copied().unwrap_or_default();
        match cmd.program {
            "iscsiadm" => self.iscsiadm(&words),
            "multipathd" => self.multipathd(&words),
            "multipath" => self.multipath(&words),
            "blkid" => self.blkid(last),
            "mkfs.ext4" => self.mkfs(FsType::Ext4, last),
            "mkfs.xfs" => self.mkfs(FsType::Xfs, last),
            "mkfs.btrfs" => self.mkfs(FsType::Btrfs, last),
            "mount" => self.mount(&words),
            "umount" => self.umount(last),
            "blockdev" => {
                self.protected = words[0] == "--setro";
                exited(0)
            }
            "e2fsck" => exited(0),
            "resize2fs" => self.resize2fs(last),
            "xfs_spaceman" => printed(format!(
                "meta-data=x agsize=65536 blks\ndata = bsize=4096 blocks={}, imaxpct=25\n",
                self.mounted_size(last).0 / 4096
            )),
            "btrfs" if words.contains(&"show") => printed(format!(
                "\tdevid    1 size {} used 1 path x\n",
                self.mounted_size(last).0
            )),
            "btrfs" | "xfs_growfs" => self.grow(last),
            other => panic!("the fake machine has no {other}"),
        }
    }

    pub(super) fn serial(&self, device: &str) -> Option<String> {
        let (.., session) = self.block_at(device)?;
        Some(session.seen.as_ref()?.serial.clone())
    }

    fn blkid(&self, device: &str) -> Exit {
        let found = self
            .serial(device)
            .and_then(|serial| self.file_system(&serial));
        match (&self.blkid, found) {
            (Some(exit), _) => exit.clone(),
            (None, Some((fs, _))) => printed(format!("DEVNAME={device}\nTYPE={fs}\n")),
            (None, None) => exited(2),
        }
    }

    fn size(&self, device: &str) -> Bytes {
        let map = self
            .map
            .as_ref()
            .filter(|_| super::multipath::is_map(device));
        let disk = || Some(self.block_at(device)?.2.seen.as_ref()?.size);
        map.map(|map| map.size).or_else(disk).unwrap_or_default()
    }

    fn mkfs(&mut self, fs: FsType, device: &str) -> Exit {
        let Some(serial) = self.serial(device) else {
            return exited(1);
        };
        // mkfs erases other signatures and the metadata of earlier file systems, and leaves the rest of the disk untouched.
        if let Some(blocks) = self.content.lock().unwrap().get_mut(&serial) {
            blocks.retain(|number, _| (32..DATA / 4096).contains(number));
        }
        self.put_head(&serial, fs, self.size(device));
        exited(0)
    }

    /// Writes a superblock of a file system of `size`; other content of the disk stays.
    fn put_head(&mut self, serial: &str, fs: FsType, size: Bytes) {
        let (start, length) = match fs {
            FsType::Ext4 => (1024, 4096),
            FsType::Xfs => (0, 512),
            FsType::Btrfs => (64 << 10, 4096),
        };
        let head = head_of(fs, size);
        self.write(serial, start as u64, &head[start..start + length]);
    }

    fn mount(&mut self, words: &[&str]) -> Exit {
        let [.., from, to] = words else {
            return exited(1);
        };
        let options = words
            .iter()
            .position(|word| *word == "-o")
            .map_or("", |at| words[at + 1]);
        if options == "remount,bind,ro" {
            let mount = self
                .mounts
                .iter_mut()
                .rfind(|mount| mount.point == *to)
                .unwrap();
            "ro".clone_into(&mut mount.options[0]);
            return exited(0);
        }
        let mount = if options == "bind" {
            self.bind_mount(from, to)
        } else {
            self.device_mount(words[1], from, to, options)
        };
        let Some(mount) = mount else {
            return exited(32);
        };
        self.mounts.push(mount);
        exited(0)
    }

    fn bind_mount(&self, from: &str, to: &str) -> Option<Mount> {
        if let Some((name, ..)) = self.block_at(from) {
            let root = format!("/{name}");
            let device = DeviceNumber { major: 0, minor: 5 };
            let options = || vec!["rw".to_owned()];
            let (fs, source) = ("devtmpfs".to_owned(), "udev".to_owned());
            return Some(Mount {
                device,
                root,
                point: to.to_owned(),
                options: options(),
                fs,
                source,
                fs_options: options(),
            });
        }
        let mounted = self.mounts.iter().rfind(|mount| mount.point == from)?;
        let mut bound = Mount {
            point: to.to_owned(),
            ..mounted.clone()
        };
        if self.binds_readonly {
            "ro".clone_into(&mut bound.options[0]);
        }
        Some(bound)
    }

    fn device_mount(&self, fs: &str, device: &str, to: &str, options: &str) -> Option<Mount> {
        let (_, shown, _) = self.block_at(device)?;
        if self.is_path(device) {
            return None;
        }
        let (found, _) = self.file_system(&self.serial(device)?)?;
        if found.as_str() != fs {
            return None;
        }
        let number = if found == FsType::Btrfs {
            DeviceNumber {
                major: 0,
                minor: 40,
            }
        } else {
            shown
        };
        let options = selinux::split(options)?;
        let is_label = |option: &&str| option.starts_with("context=");
        // mount(8) mounts a write-protected disk read-only, with a warning.
        let readonly = options.contains(&"ro") || self.protected;
        let access = if readonly { "ro" } else { "rw" }.to_owned();
        let labels = options
            .iter()
            .filter(|option| self.selinux && is_label(option));
        let fs_options = std::iter::once(access.clone())
            .chain(labels.map(|option| (*option).to_owned()))
            .collect();
        let flags = options
            .iter()
            .filter(|option| !matches!(**option, "ro" | "rw" | "") && !is_label(option));
        let options = std::iter::once(access)
            .chain(flags.map(|option| (*option).to_owned()))
            .collect();
        Some(Mount {
            device: number,
            root: "/".to_owned(),
            point: to.to_owned(),
            options,
            fs: fs.to_owned(),
            // As mount(8) does, and as btrfs learns from udev.
            source: if device == super::multipath::NODE {
                super::multipath::ALIAS.to_owned()
            } else {
                device.to_owned()
            },
            fs_options,
        })
    }

    fn umount(&mut self, point: &str) -> Exit {
        exited(if self.unmount(point) { 0 } else { 32 })
    }

    fn mounted_size(&self, point: &str) -> Bytes {
        let source = self
            .mounts
            .iter()
            .rfind(|mount| mount.point == point)
            .map(|mount| mount.source.clone());
        let serial = source.and_then(|source| self.serial(&source));
        serial
            .and_then(|serial| self.file_system(&serial))
            .map(|(_, size)| size)
            .unwrap_or_default()
    }

    fn resize2fs(&mut self, device: &str) -> Exit {
        let same = |source: &str| {
            source == device || super::multipath::is_map(source) && super::multipath::is_map(device)
        };
        let mounted = self.mounts.iter().any(|mount| same(&mount.source));
        if mounted && !self.capable {
            return Exit {
                status: 1,
                stderr: "resize2fs: Permission denied to resize filesystem\n".to_owned(),
                ..Exit::default()
            };
        }
        match self.serial(device) {
            Some(serial) if self.is_unresizable(&serial) => Exit {
                status: 1,
                stdout: "\nResizing bigalloc file systems has not been fully tested.  Proceed at\nyour own risk!  Use the force option if you want to go ahead anyway.\n\n".to_owned(),
                stderr: "resize2fs 1.47.0 (5-Feb-2023)\n".to_owned(),
            },
            Some(serial) if self.file_system(&serial).is_some() => {
                self.put_head(&serial, FsType::Ext4, self.size(device));
                exited(0)
            }
            _ => exited(1),
        }
    }

    fn grow(&mut self, point: &str) -> Exit {
        let Some(mount) = self.mounts.iter().rfind(|mount| mount.point == point) else {
            return exited(1);
        };
        let (fs, device) = (mount.fs.parse().unwrap(), mount.source.clone());
        let Some(serial) = self.serial(&device) else {
            return exited(1);
        };
        self.put_head(&serial, fs, self.size(&device));
        exited(0)
    }
}
