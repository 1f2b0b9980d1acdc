//! Installs Debian packages with apt-get, and explains its failures.

use std::collections::BTreeSet;

use anyhow::{Result, bail};

use crate::{context::Context, run::Cmd};

/// The command line that installs these packages; empty if there are none.
pub(crate) fn line(packages: &BTreeSet<&str>, root: bool) -> String {
    if packages.is_empty() {
        return String::new();
    }
    let sudo = if root { "" } else { "sudo " };
    format!("{sudo}apt-get update && {sudo}{}", install(packages))
}

/// Installs packages. Updates the package lists first, because a fresh container has none.
///
/// # Errors
/// When apt-get fails, with the reason.
pub(crate) fn packages(context: &Context, packages: &BTreeSet<&str>) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = packages.iter().copied().collect();
    let installing = format!("Installing {}", names.join(", "));
    let mut log = String::new();
    for (command, title) in [
        ("apt-get update", "Fetching the package lists"),
        (&install(packages), &installing),
    ] {
        let mut cmd = Cmd::new(context, command)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("LC_ALL", "C");
        let output = cmd.output_with_progress(title)?;
        // `update` exits with 0 even if no mirror is reachable. Only its warnings then explain why `install` fails.
        log.push_str(&output.stdout);
        log.push_str(&output.stderr);
        if !output.success {
            bail!("`{command}` failed: {}", explain(&log));
        }
    }
    Ok(())
}

fn install(packages: &BTreeSet<&str>) -> String {
    let names: Vec<&str> = packages.iter().copied().collect();
    format!(
        "apt-get install -y --no-install-recommends {}",
        names.join(" ")
    )
}

/// Why apt-get failed, from its output.
fn explain(log: &str) -> String {
    const NO_NETWORK: [&str; 6] = [
        "Temporary failure resolving",
        "Could not resolve",
        "Could not connect",
        "Cannot initiate the connection",
        "Network is unreachable",
        "Connection timed out",
    ];
    if NO_NETWORK.iter().any(|sign| log.contains(sign)) {
        return "the network is down, or the package mirror is unreachable".into();
    }
    if log.contains("Could not get lock") {
        return "another package manager is running; try again when it is done".into();
    }
    let errors: Vec<&str> = log.lines().filter(|line| line.starts_with("E: ")).collect();
    if errors.is_empty() {
        "it printed no error".into()
    } else {
        errors.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_names_each_package_once_and_uses_sudo_without_root() {
        let packages = BTreeSet::from(["xfsprogs", "btrfs-progs", "xfsprogs"]);
        assert_eq!(
            line(&packages, false),
            "sudo apt-get update && sudo apt-get install -y --no-install-recommends btrfs-progs xfsprogs"
        );
        assert_eq!(
            line(&packages, true),
            "apt-get update && apt-get install -y --no-install-recommends btrfs-progs xfsprogs"
        );
        assert_eq!(line(&BTreeSet::new(), true), "");
    }

    #[test]
    fn failures_are_explained() {
        let down = "W: Failed to fetch x  Temporary failure resolving 'mirror'\nE: Unable to locate package xfsprogs\n";
        assert!(explain(down).contains("network is down"));
        assert!(
            explain("E: Could not get lock /var/lib/dpkg/lock-frontend")
                .contains("another package manager")
        );
        assert_eq!(
            explain("Reading…\nE: Unable to locate package nope\n"),
            "E: Unable to locate package nope"
        );
        assert_eq!(explain(""), "it printed no error");
    }
}
