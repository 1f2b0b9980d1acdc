//! Debian packages: which ones, by which command, and what apt's failures mean.

use std::collections::BTreeSet;

use anyhow::{Result, bail};

use crate::{context::Context, run::Step};

/// The one line to type for these packages. Empty when there is nothing to install.
pub(crate) fn line(packages: &BTreeSet<&str>, root: bool) -> String {
    if packages.is_empty() {
        return String::new();
    }
    let sudo = if root { "" } else { "sudo " };
    format!("{sudo}apt-get update && {sudo}{}", install(packages))
}

/// Installs them; fetches the package lists first, since a fresh container has none.
///
/// # Errors
/// When apt cannot, with what to do about it.
pub(crate) fn packages(context: &Context, packages: &BTreeSet<&str>) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = packages.iter().copied().collect();
    let installing = format!("Installing {}", names.join(", "));
    let mut said = String::new();
    for (command, title) in [
        ("apt-get update", "Fetching the package lists"),
        (&install(packages), &installing),
    ] {
        let mut step = Step::new(context, command)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("LC_ALL", "C");
        let output = step.watch(title)?;
        // `update` exits 0 when every mirror is out of reach, and its warnings alone tell why `install` fails then.
        said.push_str(&output.stdout);
        said.push_str(&output.stderr);
        if !output.success {
            bail!("`{command}` failed: {}", explain(&said));
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

/// Why apt failed, from what it said.
fn explain(said: &str) -> String {
    const NO_NETWORK: [&str; 6] = [
        "Temporary failure resolving",
        "Could not resolve",
        "Could not connect",
        "Cannot initiate the connection",
        "Network is unreachable",
        "Connection timed out",
    ];
    if NO_NETWORK.iter().any(|sign| said.contains(sign)) {
        return "the network is down, or the package mirror is out of reach".into();
    }
    if said.contains("Could not get lock") {
        return "another package manager is running; try again when it is done".into();
    }
    let errors: Vec<&str> = said
        .lines()
        .filter(|line| line.starts_with("E: "))
        .collect();
    if errors.is_empty() {
        "it gave no reason".into()
    } else {
        errors.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_names_every_package_once_and_asks_for_root_when_needed() {
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
        assert_eq!(explain(""), "it gave no reason");
    }
}
