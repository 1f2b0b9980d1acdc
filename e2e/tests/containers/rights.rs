//! What a container's program may do, as the kernel tells it.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::scene::Running;

/// Rights of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rights {
    /// Its user.
    pub(crate) user: u32,
    /// Its group.
    pub(crate) group: u32,
    /// Capabilities that it has, and those that it could ever get, as bits.
    pub(crate) capabilities: [u64; 2],
    /// It gets no more by starting a program.
    pub(crate) no_new_privileges: bool,
    /// Its calls of the kernel are filtered.
    pub(crate) filtered: bool,
    /// Its root can be written to.
    pub(crate) writable_root: bool,
}

impl Rights {
    /// Of the first process of a container.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn of(container: &Running) -> Result<Self> {
        let process = process_of(container.id())?;
        let status = fs::read_to_string(process.join("status"))?;
        let words = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let words = line.map(|line| line.split_whitespace().collect::<Vec<_>>());
            words.with_context(|| format!("no {name} in {status}"))
        };
        // Real, effective, saved, file system: all of them are the same.
        let id = |name: &str| Ok::<u32, anyhow::Error>(words(name)?[1].parse()?);
        let set = |name: &str| Ok::<_, anyhow::Error>(u64::from_str_radix(words(name)?[0], 16)?);
        let mounts = fs::read_to_string(process.join("mountinfo"))?;
        // proc(5): the mount point is the fifth word, its options are the sixth.
        let root = mounts
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>())
            .find(|words| words.get(4) == Some(&"/"))
            .context("no root")?;
        Ok(Self {
            user: id("Uid:")?,
            group: id("Gid:")?,
            capabilities: [set("CapEff:")?, set("CapBnd:")?],
            no_new_privileges: words("NoNewPrivs:")?[0] == "1",
            filtered: words("Seccomp:")?[0] == "2",
            writable_root: root[5].split(',').any(|option| option == "rw"),
        })
    }
}

/// Engines may count processes in a namespace of their own; a container's cgroup bears its id everywhere.
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
