//! The stories of real iSCSI: builds what the machines run, then lets the harness boot them.

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
    run::Step,
    testing::{STARTED, build_optimized},
};

/// Arguments of the virtual machines.
#[derive(Debug, Default, Args)]
pub(crate) struct Vm {
    /// Only stories whose name contains this, for instance lio/chap, and / for all; may be given several times
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Random schedules of the wrong-disk story on each target; without it 100
    #[arg(long)]
    cases: Option<u32>,
    /// Where random schedules begin; printed by each run
    #[arg(long)]
    seed: Option<u64>,
    /// Keep the logs of stories that went well, too
    #[arg(long)]
    keep_logs: bool,
    /// Boot another kernel than Debian 12's: the newest of a suite of Debian's, for instance trixie or bookworm-backports, or one
    /// whose packages are unpacked in a folder (a path with a /, with boot/ and lib/modules/ in it)
    #[arg(long, value_name = "SUITE|DIR")]
    kernel: Option<String>,
    /// Do not try KVM
    #[arg(long)]
    no_kvm: bool,
    /// Boot, print how long it took, and stop
    #[arg(long)]
    boot_only: bool,
}

/// Tells the stories. Optimized programs: each instruction costs ten times as much without KVM.
///
/// # Errors
/// When something is missing, or a story fails.
pub(crate) fn run(context: &Context, vm: &Vm) -> Result<()> {
    for folder in [&context.root, &context.target] {
        must_be_seen(&folder.canonicalize().unwrap_or_else(|_| folder.clone()))?;
    }
    doctor::ready(context, Layer::Vm)?;
    build_optimized(context, &[STARTED.as_slice(), &["vm"]].concat())?;
    let program = context.target.join("release/vm");
    let mut step = Step::new(context, &program.to_string_lossy())
        .arg("run")
        .arg("--folder")
        .arg(context.target.join("vm"));
    if vm.only.is_empty() || vm.only.iter().any(|part| part.starts_with("loop")) {
        step = step.arg("--node-tests").arg(node_tests(context)?);
    }
    step.args(&vm.arguments()).show()
}

/// What the guest puts file systems of its own over (`e2e/src/vm/guest.rs`): it does not see what the host has there.
const OWN: [&str; 5] = ["/tmp", "/run", "/dev", "/proc", "/sys"];

/// The guest runs the programs where they lie.
fn must_be_seen(folder: &Path) -> Result<()> {
    let folder_of_its_own = OWN.iter().find(|own| folder.starts_with(own));
    if let Some(own) = folder_of_its_own {
        bail!(
            "{} lies in {own}, which the virtual machines put a file system of their own over: they would find no programs there. \
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

/// The test program with the stories of the loop plane. It is the one that `cargo ci test` runs, and only waits for what it starts, so it
/// need not be optimized; beside optimized programs it starts those.
fn node_tests(context: &Context) -> Result<PathBuf> {
    let mut step = Step::new(
        context,
        "cargo test --locked --workspace --test node --no-run --message-format json",
    );
    let built = step.watch("Building the stories of the loop plane")?;
    if !built.success {
        bail!(
            "the stories of the loop plane do not compile:\n{}",
            built.stderr
        );
    }
    let built = executable(&built.stdout).context("cargo names no test program")?;
    let place = context.target.join("release/loop-stories");
    // A machine may still run the one before.
    let _ = fs::remove_file(&place);
    fs::copy(&built, &place).with_context(|| built.display().to_string())?;
    Ok(place)
}

/// What cargo says it has built.
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
    fn folders_that_the_guest_does_not_see_are_refused_by_name() {
        for hidden in [
            "/tmp/checkout",
            "/tmp",
            "/run/user/1000/x/target",
            "/dev/shm/x",
        ] {
            let told = must_be_seen(Path::new(hidden)).unwrap_err().to_string();
            assert!(
                told.starts_with(hidden) && told.contains("CARGO_TARGET_DIR"),
                "{told}"
            );
        }
        for seen in ["/srv/tmp/checkout", "/tmpfs/x", "/var/tmp/x"] {
            assert!(must_be_seen(Path::new(seen)).is_ok(), "{seen}");
        }
    }

    /// Each place that the guest mounts something at for itself is one of the list, or below one; but for its iSCSI's.
    #[test]
    fn the_list_is_the_guests() {
        let guest = include_str!("../../e2e/src/vm/guest.rs");
        let list = guest.split_once("for (at, options) in [").unwrap().1;
        let list = list.split_once("] {").unwrap().0;
        let places: Vec<&str> = list.split('"').filter(|it| it.starts_with('/')).collect();
        assert!(places.contains(&"/tmp"), "{places:?}");
        for place in places.iter().filter(|place| **place != "/etc/iscsi") {
            assert!(must_be_seen(Path::new(place)).is_err(), "{place}");
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
