//! The privileges of a container's process, from `/proc`.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::scene::Running;

/// Privileges of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rights {
    /// User id.
    pub(crate) user: u32,
    /// Group id.
    pub(crate) group: u32,
    /// Its capabilities and its bounding set, as bit masks.
    pub(crate) capabilities: [u64; 2],
    /// `no_new_privs` is set.
    pub(crate) no_new_privileges: bool,
    /// A seccomp filter is active.
    pub(crate) filtered: bool,
    /// Its root file system is writable.
    pub(crate) writable_root: bool,
}

impl Rights {
    /// Reads those of a container's first process.
    ///
    /// # Errors
    /// The container has no process.
    pub(crate) fn of(container: &Running) -> Result<Self> {
        let process = process_of(container.id())?;
        let status = fs::read_to_string(process.join("status"))?;
        let fields = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let fields = line.map(|line| line.split_whitespace().collect::<Vec<_>>());
            fields.with_context(|| format!("no {name} in {status}"))
        };
        // Real, effective, saved and file system id are all the same.
        let id = |name: &str| Ok::<u32, anyhow::Error>(fields(name)?[1].parse()?);
        let set = |name: &str| Ok::<_, anyhow::Error>(u64::from_str_radix(fields(name)?[0], 16)?);
        let mounts = fs::read_to_string(process.join("mountinfo"))?;
        // proc(5): field 5 is the mount point, field 6 its options.
        let root = mounts
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>())
            .find(|fields| fields.get(4) == Some(&"/"))
            .context("no root")?;
        Ok(Self {
            user: id("Uid:")?,
            group: id("Gid:")?,
            capabilities: [set("CapEff:")?, set("CapBnd:")?],
            no_new_privileges: fields("NoNewPrivs:")?[0] == "1",
            filtered: fields("Seccomp:")?[0] == "2",
            writable_root: root[5].split(',').any(|option| option == "rw"),
        })
    }
}

/// Finds a process of the container by its cgroup, which contains the container's id even if the engine uses a PID namespace of
/// its own.
fn process_of(id: &str) -> Result<PathBuf> {
    for entry in fs::read_dir("/proc")? {
        let process = entry?.path();
        let groups = fs::read_to_string(process.join("cgroup")).unwrap_or_default();
        if groups.contains(id) {
            return Ok(process);
        }
    }
    anyhow::bail!("no process of container {id}")
}
