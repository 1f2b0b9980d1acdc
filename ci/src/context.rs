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
    /// `KUBECONFIG` for every program we start, when it is set: from the root directory on, for most start in another folder.
    pub(crate) kubeconfig: Option<OsString>,
    /// `DOCKER_HOST`, when it is set: where a Docker engine is.
    pub(crate) docker_host: Option<String>,
    /// Who has called sudo: the user's number and the group's.
    pub(crate) caller: Option<(u32, u32)>,
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
            kubeconfig: get("KUBECONFIG")
                .filter(|set| !set.is_empty())
                .map(|set| absolute(&set, &env::current_dir()?))
                .transpose()?,
            docker_host: get("DOCKER_HOST").map(|set| set.to_string_lossy().into_owned()),
            caller: get("SUDO_UID")
                .as_deref()
                .and_then(number)
                .zip(get("SUDO_GID").as_deref().and_then(number)),
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

fn number(text: &OsStr) -> Option<u32> {
    text.to_str()?.parse().ok()
}

/// A list of files as KUBECONFIG has it, each from the root directory on.
fn absolute(list: &OsStr, here: &Path) -> Result<OsString> {
    let files = env::split_paths(list).filter(|file| !file.as_os_str().is_empty());
    env::join_paths(files.map(|file| here.join(file))).context("KUBECONFIG")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_file_of_the_kubeconfig_begins_at_the_root_directory() {
        let of = |list: &str| absolute(list.as_ref(), Path::new("/here")).unwrap();
        assert_eq!(of("target/k8s/kubeconfig"), "/here/target/k8s/kubeconfig");
        assert_eq!(of("/etc/a::b"), "/etc/a:/here/b");
    }
}
