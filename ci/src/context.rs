//! The environment of a task, read once: paths, privileges and variables.

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

/// The environment of every task.
#[derive(Debug)]
pub(crate) struct Context {
    /// The workspace's root directory.
    pub(crate) root: PathBuf,
    /// Cargo's target directory. Programs that we install go to `tools` below it.
    pub(crate) target: PathBuf,
    /// `CARGO_HOME`.
    pub(crate) cargo: PathBuf,
    pub(crate) privileges: Privileges,
    /// Standard output is a terminal: progress lines and colors make sense.
    pub(crate) terminal: bool,
    /// `CI` is set: a task that cannot run is a failure.
    pub(crate) pipeline: bool,
    /// `PATH` for every program that we start.
    pub(crate) path: OsString,
    /// `KUBECONFIG` for every program that we start, if it is set; made absolute, because most start in another folder.
    pub(crate) kubeconfig: Option<OsString>,
    /// `DOCKER_HOST`, if it is set.
    pub(crate) docker_host: Option<String>,
    /// The UID and GID of the user who called sudo.
    pub(crate) caller: Option<(u32, u32)>,
}

impl Context {
    /// # Errors
    /// When /proc cannot be read: the tasks need Linux.
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

    /// The directory for programs that we install.
    pub(crate) fn tools(&self) -> PathBuf {
        self.target.join("tools")
    }

    /// Searches `path` for a program.
    pub(crate) fn find(&self, program: &str) -> Option<PathBuf> {
        env::split_paths(&self.path)
            .map(|directory| directory.join(program))
            .find(|file| file.is_file())
    }
}

fn number(text: &OsStr) -> Option<u32> {
    text.to_str()?.parse().ok()
}

/// Makes each path in a colon-separated list absolute.
fn absolute(list: &OsStr, here: &Path) -> Result<OsString> {
    let files = env::split_paths(list).filter(|file| !file.as_os_str().is_empty());
    env::join_paths(files.map(|file| here.join(file))).context("KUBECONFIG")
}

/// The caller's PATH, plus the directories that a shell of `su` or of an ordinary user leaves out.
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
        .context("PATH has a directory with a quotation mark or a colon in its name")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_path_of_kubeconfig_is_made_absolute() {
        let of = |list: &str| absolute(list.as_ref(), Path::new("/here")).unwrap();
        assert_eq!(of("target/k8s/kubeconfig"), "/here/target/k8s/kubeconfig");
        assert_eq!(of("/etc/a::b"), "/etc/a:/here/b");
    }
}
