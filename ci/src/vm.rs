//! `cargo ci vm`: builds the programs for the virtual machines, then lets e2e boot them and run the stories with real iSCSI.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::Value;

use crate::{
    context::Context,
    doctor::{self, need::Layer},
    run::Cmd,
    testing::{STARTED_PROGRAMS, build_optimized},
};

/// Arguments of `cargo ci vm`.
#[derive(Debug, Default, Args)]
pub(crate) struct Vm {
    /// Only stories whose name contains this, for instance lio/chap, or / for all; may be given several times
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Number of random schedules of the wrong-disk story on each target; by default 100
    #[arg(long)]
    cases: Option<u32>,
    /// Random seed of the schedules; printed by each run
    #[arg(long)]
    seed: Option<u64>,
    /// Also keep the logs of stories that passed
    #[arg(long)]
    keep_logs: bool,
    /// Boot another kernel than Debian 12's: the newest of a Debian suite, for instance trixie or bookworm-backports, or one from
    /// a folder with unpacked packages (a path with a /, which contains boot/ and lib/modules/)
    #[arg(long, value_name = "SUITE|DIR")]
    kernel: Option<String>,
    /// Do not use KVM
    #[arg(long)]
    no_kvm: bool,
    /// Boot, print how long it took, and exit
    #[arg(long)]
    boot_only: bool,
}

/// Runs the stories. The programs are optimized, because each instruction costs ten times as much without KVM.
///
/// # Errors
/// When something is missing, or a story fails.
pub(crate) fn run(context: &Context, vm: &Vm) -> Result<()> {
    for folder in [&context.root, &context.target] {
        check_visible_to_guest(&folder.canonicalize().unwrap_or_else(|_| folder.clone()))?;
    }
    doctor::ready(context, Layer::Vm)?;
    build_optimized(context, &[STARTED_PROGRAMS.as_slice(), &["vm"]].concat())?;
    let program = context.target.join("release/vm");
    let mut cmd = Cmd::new(context, &program.to_string_lossy())
        .arg("run")
        .arg("--folder")
        .arg(context.target.join("vm"));
    if vm.only.is_empty() || vm.only.iter().any(|part| part.starts_with("loop")) {
        cmd = cmd.arg("--node-tests").arg(node_tests(context)?);
    }
    cmd.args(&vm.arguments()).run()
}

/// Where the guest mounts its own file systems (`e2e/src/vm/guest.rs`): it does not see the host's files there.
const GUEST_MOUNTS: [&str; 5] = ["/tmp", "/run", "/dev", "/proc", "/sys"];

/// Checks that the guest can see a folder. It runs the programs from their location on the host.
fn check_visible_to_guest(folder: &Path) -> Result<()> {
    let hidden_by = GUEST_MOUNTS.iter().find(|mount| folder.starts_with(mount));
    if let Some(mount) = hidden_by {
        bail!(
            "{} is in {mount}, where the virtual machines mount their own file system: they would not find the programs there. \
             Move the checkout (and CARGO_TARGET_DIR) to another folder",
            folder.display()
        );
    }
    Ok(())
}

impl Vm {
    fn arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        let mut add = |name: &str, value: Option<String>| {
            arguments.extend(
                value
                    .map(|value| [name.to_owned(), value])
                    .into_iter()
                    .flatten(),
            );
        };
        for part in &self.only {
            add("--only", Some(part.clone()));
        }
        add("--cases", self.cases.map(|cases| cases.to_string()));
        add("--seed", self.seed.map(|seed| seed.to_string()));
        add("--kernel", self.kernel.clone());
        let switches = [
            ("--keep-logs", self.keep_logs),
            ("--no-kvm", self.no_kvm),
            ("--boot-only", self.boot_only),
        ];
        arguments.extend(
            switches
                .iter()
                .filter(|(_, on)| *on)
                .map(|(name, _)| (*name).to_owned()),
        );
        arguments
    }
}

/// The test binary `node`, which is run in the guest, too. It is the one that `cargo ci test` builds: it need not be optimized,
/// because it only waits for the programs that it starts. It is copied next to the optimized programs, so that it starts those.
fn node_tests(context: &Context) -> Result<PathBuf> {
    let mut cmd = Cmd::new(
        context,
        "cargo test --locked --workspace --test node --no-run --message-format json",
    );
    let built = cmd.output_with_progress("Building the node tests")?;
    if !built.success {
        bail!("the node tests do not compile:\n{}", built.stderr);
    }
    let built = executable(&built.stdout).context("cargo names no test program")?;
    let copy = context.target.join("release/loop-stories");
    // A virtual machine may still run the previous one.
    let _ = fs::remove_file(&copy);
    fs::copy(&built, &copy).with_context(|| built.display().to_string())?;
    Ok(copy)
}

/// The path of the test binary in cargo's JSON messages.
fn executable(messages: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["kind"] == serde_json::json!(["test"]))
        .find_map(|message| Some(PathBuf::from(message["executable"].as_str()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_that_the_guest_does_not_see_are_refused() {
        for hidden in [
            "/tmp/checkout",
            "/tmp",
            "/run/user/1000/x/target",
            "/dev/shm/x",
        ] {
            let error = check_visible_to_guest(Path::new(hidden))
                .unwrap_err()
                .to_string();
            assert!(
                error.starts_with(hidden) && error.contains("CARGO_TARGET_DIR"),
                "{error}"
            );
        }
        for seen in ["/srv/tmp/checkout", "/tmpfs/x", "/var/tmp/x"] {
            assert!(check_visible_to_guest(Path::new(seen)).is_ok(), "{seen}");
        }
    }

    /// Each mount point of the guest is in the list, or below one of it; except /etc/iscsi.
    #[test]
    fn the_list_has_all_mounts_of_the_guest() {
        let guest = include_str!("../../e2e/src/vm/guest.rs");
        let list = guest.split_once("for (at, options) in [").unwrap().1;
        let list = list.split_once("] {").unwrap().0;
        let places: Vec<&str> = list.split('"').filter(|it| it.starts_with('/')).collect();
        assert!(places.contains(&"/tmp"), "{places:?}");
        for place in places.iter().filter(|place| **place != "/etc/iscsi") {
            assert!(check_visible_to_guest(Path::new(place)).is_err(), "{place}");
        }
    }

    #[test]
    fn arguments_are_passed_on() {
        assert!(Vm::default().arguments().is_empty());
        let vm = Vm {
            only: vec!["lio/chap".to_owned()],
            cases: Some(5),
            kernel: Some("trixie".to_owned()),
            no_kvm: true,
            ..Vm::default()
        };
        let arguments = vm.arguments().join(" ");
        assert_eq!(
            arguments,
            "--only lio/chap --cases 5 --kernel trixie --no-kvm"
        );
    }

    #[test]
    fn the_test_program_is_found_among_the_messages() {
        let messages = r#"{"target":{"kind":["bin"]},"executable":"/t/vm"}
not json
{"target":{"kind":["test"]},"executable":"/t/node-1"}"#;
        assert_eq!(executable(messages), Some(PathBuf::from("/t/node-1")));
    }
}
