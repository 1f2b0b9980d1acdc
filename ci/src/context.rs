//! Where the workspace lies and who runs it: the environment, read once.

use std::{
    collections::HashMap,
    env,
    ffi::{OsStr, OsString},
    fs,
    io::{self, IsTerminal as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::doctor::machine::Privileges;

/// What every task may know of its surroundings.
#[derive(Debug)]
pub(crate) struct Context {
    /// The workspace's root directory.
    pub(crate) root: PathBuf,
    /// Cargo's target directory; programs we install go to `tools` below it.
    pub(crate) target: PathBuf,
    /// Where cargo keeps what it has fetched for all workspaces.
    pub(crate) cargo: PathBuf,
    /// What this process may do.
    pub(crate) privileges: Privileges,
    /// Somebody watches: progress lines and colours make sense.
    pub(crate) terminal: bool,
    /// `CI` is set: a task that cannot run is a failure.
    pub(crate) pipeline: bool,
    /// `PATH` for every program we start.
    pub(crate) path: OsString,
}

impl Context {
    /// Reads it all.
    ///
    /// # Errors
    /// When /proc cannot be read: these chores are for Linux.
    pub(crate) fn read() -> Result<Self> {
        let environment: HashMap<OsString, OsString> = env::vars_os().collect();
        let get = |name: &str| environment.get(&OsString::from(name)).cloned();
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("ci/ lies inside the workspace")?;
        let status =
            fs::read_to_string("/proc/self/status").context("/proc/self/status: is this Linux?")?;
        let target =
            get("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |set| root.join(set));
        let home = get("HOME").map(PathBuf::from).unwrap_or_default();
        Ok(Self {
            root: root.to_owned(),
            target,
            cargo: get("CARGO_HOME").map_or_else(|| home.join(".cargo"), PathBuf::from),
            privileges: Privileges::parse(&status)
                .context("/proc/self/status has no Uid or CapEff")?,
            terminal: io::stdout().is_terminal(),
            pipeline: get("CI").is_some_and(|set| !set.is_empty() && set != "false"),
            path: search_path(&get("PATH").unwrap_or_default())?,
        })
    }

    /// Where programs that we install ourselves go.
    pub(crate) fn tools(&self) -> PathBuf {
        self.target.join("tools")
    }

    /// The file a bare program name stands for.
    pub(crate) fn find(&self, program: &str) -> Option<PathBuf> {
        env::split_paths(&self.path)
            .map(|directory| directory.join(program))
            .find(|file| file.is_file())
    }
}

/// The caller's PATH, and at its end the places that a shell of `su` or of an ordinary user leaves out.
fn search_path(given: &OsStr) -> Result<OsString> {
    let mut directories: Vec<PathBuf> = env::split_paths(given).collect();
    for more in ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/go/bin"] {
        if !directories
            .iter()
            .any(|directory| directory == Path::new(more))
        {
            directories.push(more.into());
        }
    }
    env::join_paths(directories)
        .context("PATH holds a quotation mark or a colon that it should not")
}
