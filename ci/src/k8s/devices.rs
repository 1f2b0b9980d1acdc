//! A snapshot of the host's /dev, to check that a cluster has not changed it: kind's nodes have all of it mounted.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::Path,
};

use anyhow::{Context as _, Result, ensure};

/// Folders whose content is ignored: processes create and remove terminals, shared memory and queues there all the time.
const PRIVATE: [&str; 4] = ["pts", "shm", "mqueue", "hugepages"];

/// The device files below a folder, with number, mode and owner, and the links, files and folders directly in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Devices(BTreeMap<String, String>);

impl Devices {
    /// Takes a snapshot of a folder.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub(super) fn of(folder: &Path) -> Result<Self> {
        let mut found = BTreeMap::new();
        scan(folder, folder, &mut found)?;
        Ok(Self(found))
    }

    /// The differences from an earlier snapshot, except loop devices, which come and go with volumes.
    pub(super) fn changes(&self, before: &Self) -> Vec<String> {
        let names = before.0.keys().chain(self.0.keys());
        let mut changes: Vec<String> = names
            .filter(|name| !is_loop_device(name))
            .filter_map(|name| {
                let (was, is) = (before.0.get(name), self.0.get(name));
                let shown = |it: Option<&String>| it.map_or("not there", String::as_str).to_owned();
                (was != is).then(|| format!("{name}: was {}, is {}", shown(was), shown(is)))
            })
            .collect();
        changes.sort();
        changes.dedup();
        changes
    }

    /// Checks that nothing has changed.
    ///
    /// # Errors
    /// Lists the changes.
    pub(super) fn must_equal(&self, before: &Self) -> Result<()> {
        let changes = self.changes(before);
        ensure!(
            changes.is_empty(),
            "the cluster has changed device files of this machine: {}. e2e/k8s/kind.yaml should keep systemd in the nodes from doing that; \
             repair them by hand, or reboot the machine",
            changes.join("; ")
        );
        Ok(())
    }
}

/// Matches `loop7`, but not `loop-control`.
fn is_loop_device(name: &str) -> bool {
    let number = name.strip_prefix("loop").unwrap_or_default();
    number.starts_with(|first: char| first.is_ascii_digit())
}

fn scan(root: &Path, folder: &Path, found: &mut BTreeMap<String, String>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let name = path.strip_prefix(root)?.display().to_string();
        // Removed in the meantime, so it is not one that matters.
        let Ok(metadata) = path.symlink_metadata() else {
            continue;
        };
        let kind = metadata.file_type();
        // Links and folders further below come and go with volumes, as in disk/by-uuid.
        let at_top = folder == root;
        if at_top && kind.is_symlink() {
            let to = fs::read_link(&path).unwrap_or_default();
            found.insert(name.clone(), format!("link to {}", to.display()));
        } else if at_top && (kind.is_dir() || kind.is_file()) {
            found.insert(name.clone(), "file or folder".to_owned());
        }
        if kind.is_dir() && !PRIVATE.contains(&name.as_str()) {
            scan(root, &path, found)?;
        } else if kind.is_char_device() || kind.is_block_device() {
            let device = format!(
                "device {:#x}, mode {:o}, owner {}:{}",
                metadata.rdev(),
                metadata.mode(),
                metadata.uid(),
                metadata.gid()
            );
            found.insert(name, device);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn devices(list: &[(&str, &str)]) -> Devices {
        let own = |(name, state): &(&str, &str)| ((*name).to_owned(), (*state).to_owned());
        Devices(list.iter().map(own).collect())
    }

    #[test]
    fn changed_new_and_removed_devices_are_reported() {
        let before = devices(&[("kvm", "mode 666"), ("fuse", "mode 666"), ("loop0", "a")]);
        assert!(before.must_equal(&before.clone()).is_ok());
        let after = devices(&[("kvm", "mode 660"), ("net/tun", "mode 666"), ("loop1", "b")]);
        assert_eq!(
            after.changes(&before),
            [
                "fuse: was mode 666, is not there",
                "kvm: was mode 666, is mode 660",
                "net/tun: was not there, is mode 666",
            ]
        );
        let error = after.must_equal(&before).unwrap_err().to_string();
        assert!(error.contains("kvm: was mode 666, is mode 660"), "{error}");
    }

    #[test]
    fn loop_control_is_not_ignored() {
        let (one, other) = (
            devices(&[("loop-control", "a")]),
            devices(&[("loop-control", "b")]),
        );
        assert_eq!(one.changes(&other).len(), 1);
    }

    #[test]
    fn the_devices_of_this_machine_are_read() {
        let seen = Devices::of(Path::new("/dev")).unwrap();
        assert!(seen.0.contains_key("null") && !seen.0.keys().any(|name| name.starts_with("pts/")));
    }

    #[test]
    fn new_links_files_and_folders_at_the_top_are_reported() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("disk")).unwrap();
        let before = Devices::of(folder.path()).unwrap();
        symlink("/run/log", folder.path().join("log")).unwrap();
        fs::create_dir(folder.path().join("hugepages")).unwrap();
        fs::write(folder.path().join("termination-log"), "").unwrap();
        symlink("../loop0", folder.path().join("disk/by-number")).unwrap();
        assert_eq!(
            Devices::of(folder.path()).unwrap().changes(&before),
            [
                "hugepages: was not there, is file or folder",
                "log: was not there, is link to /run/log",
                "termination-log: was not there, is file or folder",
            ]
        );
    }
}
