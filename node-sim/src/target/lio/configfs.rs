//! EFFECT: reads LIO's configfs tree into [`ConfigfsState`], and applies a list of [`Op`]s to it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::store;

/// The folder of our backstores; each is named by its unit's serial number.
pub(super) const BACKSTORES: &str = "core/iblock_3260";

/// One change of the tree. Paths are relative to its root. All except the writes are idempotent.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Op {
    Mkdir(String),
    Rmdir(String),
    Write(String, String),
    /// A write that may fail, on an older kernel or a device without the feature.
    Try(String, String),
    Link {
        at: String,
        to: String,
    },
    Unlink(String),
}

/// Without the written values, which may be passwords.
impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mkdir(path) => write!(f, "mkdir {path}"),
            Self::Rmdir(path) => write!(f, "rmdir {path}"),
            Self::Write(path, _) | Self::Try(path, _) => write!(f, "write to {path}"),
            Self::Link { at, to } => write!(f, "link {at} to {to}"),
            Self::Unlink(path) => write!(f, "unlink {path}"),
        }
    }
}

/// The actual state of a target's portal group.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct ConfigfsState {
    pub(super) enabled: bool,
    /// `attrib/*`.
    pub(super) attribs: BTreeMap<String, String>,
    /// `auth/*`.
    pub(super) auth: BTreeMap<String, String>,
    /// The backstore's name of each LUN; `None` = an unfinished LUN, without a link to a backstore.
    pub(super) luns: BTreeMap<u16, Option<String>>,
    pub(super) portals: BTreeSet<SocketAddr>,
}

/// Without the CHAP secrets.
impl fmt::Debug for ConfigfsState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigfsState")
            .field("enabled", &self.enabled)
            .field("attribs", &self.attribs)
            .field("luns", &self.luns)
            .field("portals", &self.portals)
            .finish_non_exhaustive()
    }
}

/// The actual state of a backstore.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Backstore {
    pub(super) enabled: bool,
    pub(super) device: String,
    pub(super) serial: String,
}

/// `/sys/kernel/config/target`.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    root: PathBuf,
}

impl Tree {
    pub(super) fn at(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// Checks that the kernel's target is available.
    pub(super) fn check(&self) -> io::Result<()> {
        let core = self.root.join("core");
        fs::metadata(&core).map(drop).map_err(|error| {
            io::Error::new(
                error.kind(),
                format!(
                    "{}: {error} (this needs root, configfs, and modprobe target_core_mod)",
                    core.display()
                ),
            )
        })
    }

    /// The target's portal group; `None` if the target does not exist, the default if it has no portal group yet.
    pub(super) fn target(&self, iqn: &str) -> io::Result<Option<ConfigfsState>> {
        let target = self.root.join("iscsi").join(iqn);
        if !target.try_exists()? {
            return Ok(None);
        }
        let group = target.join("tpgt_1");
        let mut state = ConfigfsState {
            enabled: text(&group.join("enable"))? == "1",
            attribs: texts(&group.join("attrib"))?,
            auth: texts(&group.join("auth"))?,
            ..ConfigfsState::default()
        };
        for portal in store::names(&group.join("np"))? {
            state.portals.extend(portal.parse::<SocketAddr>());
        }
        for name in store::names(&group.join("lun"))? {
            if let Some(lun) = name
                .strip_prefix("lun_")
                .and_then(|number| number.parse().ok())
            {
                state.luns.insert(lun, link(&group.join("lun").join(name))?);
            }
        }
        Ok(Some(state))
    }

    /// Names of the initiators with a session on the target, as the kernel prints them.
    pub(super) fn dynamic_sessions(&self, iqn: &str) -> io::Result<String> {
        text(
            &self
                .root
                .join("iscsi")
                .join(iqn)
                .join("tpgt_1/dynamic_sessions"),
        )
    }

    /// One of our backstores.
    pub(super) fn backstore(&self, name: &str) -> io::Result<Option<Backstore>> {
        let dir = self.root.join(BACKSTORES).join(name);
        if !dir.try_exists()? {
            return Ok(None);
        }
        let serial = text(&dir.join("wwn/vpd_unit_serial"))?;
        Ok(Some(Backstore {
            enabled: text(&dir.join("enable"))? == "1",
            device: text(&dir.join("udev_path"))?,
            // The kernel prints `T10 VPD Unit Serial Number: …`.
            serial: serial
                .rsplit(": ")
                .next()
                .unwrap_or_default()
                .trim()
                .to_owned(),
        }))
    }

    pub(super) fn apply(&self, ops: &[Op]) -> io::Result<()> {
        ops.iter().try_for_each(|op| {
            self.apply_one(op).map_err(|error| {
                // The kernel returns EINVAL for every problem with a portal.
                let hint = match op {
                    Op::Mkdir(path) if path.contains("/np/") => {
                        "; is it an address of this machine, and free?"
                    }
                    Op::Mkdir(_)
                    | Op::Rmdir(_)
                    | Op::Write(..)
                    | Op::Try(..)
                    | Op::Link { .. }
                    | Op::Unlink(_) => "",
                };
                io::Error::new(error.kind(), format!("{op:?}: {error}{hint}"))
            })
        })
    }

    fn apply_one(&self, op: &Op) -> io::Result<()> {
        let ignore = |result: io::Result<()>, kind| match result {
            Err(error) if error.kind() == kind => Ok(()),
            other => other,
        };
        match op {
            Op::Mkdir(path) => ignore(
                fs::create_dir(self.root.join(path)),
                io::ErrorKind::AlreadyExists,
            ),
            Op::Rmdir(path) => ignore(
                fs::remove_dir(self.root.join(path)),
                io::ErrorKind::NotFound,
            ),
            Op::Write(path, value) => fs::write(self.root.join(path), value),
            Op::Try(path, value) => {
                let _ = fs::write(self.root.join(path), value);
                Ok(())
            }
            Op::Link { at, to } => ignore(
                std::os::unix::fs::symlink(self.root.join(to), self.root.join(at)),
                io::ErrorKind::AlreadyExists,
            ),
            Op::Unlink(path) => ignore(
                fs::remove_file(self.root.join(path)),
                io::ErrorKind::NotFound,
            ),
        }
    }

    /// Removes the parent folders of targets and backstores, unless they still have foreign ones.
    pub(super) fn remove_parents(&self) {
        for shared in [BACKSTORES, "iscsi"] {
            let _ = fs::remove_dir(self.root.join(shared));
        }
    }
}

/// The backstore to which a LUN's folder links.
fn link(lun: &Path) -> io::Result<Option<String>> {
    for entry in fs::read_dir(lun)? {
        let entry = entry?;
        if entry.file_type()?.is_symlink() {
            let to = fs::read_link(entry.path())?;
            return Ok(to
                .file_name()
                .and_then(|name| Some(name.to_str()?.to_owned())));
        }
    }
    Ok(None)
}

fn texts(dir: &Path) -> io::Result<BTreeMap<String, String>> {
    store::names(dir)?
        .into_iter()
        .map(|name| {
            let value = text(&dir.join(&name))?;
            Ok((name, value))
        })
        .collect()
}

/// An attribute without its trailing newline; empty if the kernel does not have it.
fn text(path: &Path) -> io::Result<String> {
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(io::Error::new(
            error.kind(),
            format!("{}: {error}", path.display()),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests::{IQN, SERIAL, target, unit};
    use super::super::plan::{self, Portals};
    use super::*;

    /// A folder with the entries that the kernel would create.
    fn tree() -> (tempfile::TempDir, Tree) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("core")).unwrap();
        let group = dir.path().join("iscsi").join(IQN).join("tpgt_1");
        for folder in ["attrib", "auth", "lun", "np"] {
            fs::create_dir_all(group.join(folder)).unwrap();
        }
        let wwn = dir.path().join(BACKSTORES).join(SERIAL).join("wwn");
        fs::create_dir_all(wwn).unwrap();
        let tree = Tree::at(dir.path());
        tree.check().unwrap();
        (dir, tree)
    }

    #[test]
    fn an_applied_plan_is_read_back_and_leaves_nothing_to_do() {
        let (_dir, tree) = tree();
        tree.apply(&plan::backstore(&unit(), "/dev/loop7")).unwrap();
        let state = tree.backstore(SERIAL).unwrap();
        assert!(plan::is_backstore(&unit(), "/dev/loop7", state.as_ref()));
        assert!(!plan::is_backstore(&unit(), "/dev/loop8", state.as_ref()));

        let target = target();
        let state = tree.target(IQN).unwrap();
        assert_eq!(state, Some(ConfigfsState::default()));
        let ops = plan::target(&target, state.as_ref(), Portals::Open);
        tree.apply(&ops).unwrap();
        let state = tree.target(IQN).unwrap().unwrap();
        assert_eq!(state.luns[&1].as_deref(), Some(SERIAL));
        assert_eq!(state.portals.len(), 2);
        assert_eq!(plan::target(&target, Some(&state), Portals::Open), []);
    }

    #[test]
    fn an_empty_tree_has_no_targets() {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::at(dir.path());
        assert_eq!(tree.target(IQN).unwrap(), None);
        assert_eq!(tree.backstore(SERIAL).unwrap(), None);
        assert!(
            tree.check()
                .unwrap_err()
                .to_string()
                .contains("target_core_mod")
        );
        tree.apply(&plan::removal(IQN, &ConfigfsState::default()))
            .unwrap();
    }

    #[test]
    fn the_error_of_a_failed_write_has_no_password() {
        let (_dir, tree) = tree();
        let op = Op::Write("no/auth/password".into(), "hush".into());
        let error = tree.apply(&[op]).unwrap_err().to_string();
        assert!(error.starts_with("write to no/auth/password: "), "{error}");
    }
}
