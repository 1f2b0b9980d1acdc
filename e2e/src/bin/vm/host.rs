//! Outside: boots two machines, prints what they report as it comes, and keeps logs of what failed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use comfy_table::{Table, presets};
use e2e::janitor::Janitor;
use e2e::vm::guest::{Nic, Plan};
use e2e::vm::image::Image;
use e2e::vm::machine::{Machine, Spec};
use serde_json::json;

use crate::scene::Export;
use crate::suite::{self, FIRST, Report, SECOND, SECOND_SERVES};
use crate::{Choice, Run};

/// A machine that does not come up in this time, on the slowest of hosts, never will.
const BOOT: Duration = Duration::from_secs(180);
/// No story is silent for longer.
const SILENCE: Duration = Duration::from_secs(700);
/// The second machine's disk, sparse.
const DISK: u64 = 256 << 20;

/// The target of an iSCSI session, both ends of it and what a node does with a disk.
const NODE_MODULES: [&str; 7] = [
    "iscsi_tcp",
    "sd_mod",
    "dm_multipath",
    "dm_round_robin",
    "ext4",
    "xfs",
    "btrfs",
];
const NAS_MODULES: [&str; 3] = ["loop", "iscsi_target_mod", "target_core_iblock"];

pub(crate) fn run(run: &Run) -> Result<()> {
    let started = Instant::now();
    fs::create_dir_all(&run.folder)?;
    let folder = run.folder.canonicalize()?;
    let image = Image::ready(&folder.join("image"))?;
    let logs = folder.join("logs");
    let _ = fs::remove_dir_all(&logs);
    // Short, for the sockets in it; its janitor ends the machines if this process is killed.
    let scratch = tempfile::TempDir::with_prefix("csi-vm-")?.keep();
    let _janitor = Janitor::hire(&scratch)?;
    let mut choice = run.choice.clone();
    let seed = *choice.seed.get_or_insert_with(rand::random);
    println!("{}; --seed {seed}", image.release);

    // A pair of machines for each kind of target, side by side: a story mostly waits.
    let wanted = Export::ALL
        .into_iter()
        .filter(|export| suite::has_stories(*export, &choice));
    let told = std::thread::scope(|scope| {
        let pairs: Vec<_> = wanted
            .map(|export| {
                let pair = Pair {
                    run,
                    choice: &choice,
                    export,
                    image: &image,
                    folder: scratch.join(export.name()),
                };
                let logs = logs.join(export.name());
                scope.spawn(move || pair.tell(&logs))
            })
            .collect();
        let told = pairs
            .into_iter()
            .map(|pair| pair.join().map_err(|_| anyhow!("a thread panicked"))?);
        // Both come to their end, also when one has failed.
        told.collect::<Vec<Result<Vec<Report>>>>()
    });
    let told: Result<Vec<Vec<Report>>> = told.into_iter().collect();
    let told = told?.concat();
    if run.boot_only {
        return Ok(());
    }
    conclude(run, &told, started.elapsed(), &logs)
}

/// Two machines whose NAS exports in one way.
struct Pair<'a> {
    run: &'a Run,
    choice: &'a Choice,
    export: Export,
    image: &'a Image,
    folder: PathBuf,
}

impl Pair<'_> {
    /// Boots them, prints what they report, and keeps their logs.
    fn tell(&self, logs: &Path) -> Result<Vec<Report>> {
        fs::create_dir_all(&self.folder)?;
        let told = self.boot_and_listen();
        keep_logs(&self.folder, logs)?;
        told.with_context(|| {
            format!(
                "{} (consoles and logs are in {})",
                self.export.name(),
                logs.display()
            )
        })
    }

    fn boot_and_listen(&self) -> Result<Vec<Report>> {
        let program = std::env::current_exe()?;
        let disk = self.folder.join("worker-2.disk");
        fs::File::create(&disk)?.set_len(DISK)?;
        let (nas, worker) = self.plans()?;
        let boot = |plan: &Plan, memory, disk| {
            let spec = Spec {
                image: self.image,
                size: (1, memory),
                plan,
                program: &program,
                folder: &self.folder,
                disk,
            };
            Machine::boot(&spec, !self.run.no_kvm, BOOT)
        };
        let (nas, worker) = std::thread::scope(|scope| {
            let worker = scope.spawn(|| boot(&worker, 1024, Some(disk.as_path())));
            let nas = boot(&nas, 4096, None);
            let worker = worker.join().map_err(|_| anyhow!("a thread panicked"));
            Ok::<_, anyhow::Error>((nas?, worker??))
        })?;
        println!(
            "{}: by {}, {FIRST} up after {:.1} s, {SECOND} after {:.1} s",
            self.export.name(),
            nas.accelerator.name(),
            nas.boot.as_secs_f64(),
            worker.boot.as_secs_f64()
        );
        if let Some(why) = &nas.kvm_refused {
            println!("KVM is there but does not work ({why}): instructions are translated");
        }
        if self.run.boot_only {
            return Ok(Vec::new());
        }
        // The second machine lives as long as the first has stories.
        listen(nas)
    }

    fn plans(&self) -> Result<(Plan, Plan)> {
        let nics = |host: u8| {
            ["a", "b", "control"]
                .into_iter()
                .zip(77_u8..)
                .map(|(net, subnet)| Nic {
                    net: net.to_owned(),
                    mac: format!("52:54:00:00:{subnet:02x}:{host:02x}"),
                    address: format!("10.{subnet}.0.{host}/24"),
                })
                .collect()
        };
        let owned = |words: &[&str]| {
            words
                .iter()
                .map(|&word| word.to_owned())
                .collect::<Vec<_>>()
        };
        let nas = Plan {
            name: FIRST.to_owned(),
            peer: SECOND.to_owned(),
            nics: nics(1),
            modules: owned(&[NAS_MODULES.as_slice(), &NODE_MODULES].concat()),
            initiator: format!("iqn.1993-08.org.debian:01:{FIRST}"),
            module_folder: self.image.modules.clone(),
            may_reset: false,
            disk: false,
            multipathd: false,
            arguments: vec![
                "suite".to_owned(),
                self.export.name().to_owned(),
                serde_json::to_string(self.choice)?,
            ],
        };
        let worker = Plan {
            name: SECOND.to_owned(),
            peer: FIRST.to_owned(),
            nics: nics(2),
            modules: owned(&NODE_MODULES),
            initiator: format!("iqn.1993-08.org.debian:01:{SECOND}"),
            may_reset: true,
            disk: true,
            multipathd: true,
            arguments: owned(&["serve", SECOND_SERVES]),
            ..nas.clone()
        };
        Ok((nas, worker))
    }
}

/// Prints each report as it comes.
fn listen(mut nas: Machine) -> Result<Vec<Report>> {
    let mut told = Vec::new();
    let mut finished = false;
    while let Some(line) = nas.line(SILENCE)? {
        match serde_json::from_str(&line) {
            Ok(Report::Done) => finished = true,
            Ok(report) => {
                println!("{report}");
                told.push(report);
            }
            // The serial line carries what a kernel that dies says, too.
            Err(_) => println!("  {line}"),
        }
    }
    if !finished {
        bail!(
            "the suite did not come to its end; the end of the console:\n{}",
            nas.last_words()
        );
    }
    Ok(told)
}

/// Whatever the guests left, but sockets and the disk.
fn keep_logs(scratch: &Path, logs: &Path) -> Result<()> {
    fs::create_dir_all(logs)?;
    for entry in fs::read_dir(scratch)? {
        let path = entry?.path();
        let name = path.file_name().context("a name")?;
        let is_log = path
            .extension()
            .is_some_and(|kind| kind == "log" || kind == "console" || kind == "plan");
        if path.is_dir() {
            copy_tree(&path, &logs.join(name))?;
        } else if is_log {
            fs::copy(&path, logs.join(name))?;
        }
    }
    Ok(())
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        let target: PathBuf = to.join(path.file_name().context("a name")?);
        if path.is_dir() {
            copy_tree(&path, &target)?;
        } else {
            fs::copy(&path, &target)?;
        }
    }
    Ok(())
}

fn conclude(run: &Run, told: &[Report], time: Duration, logs: &Path) -> Result<()> {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(["story", "result", "seconds", "seen"]);
    let (mut passed, mut failed) = (0, 0);
    for report in told {
        let Report::Story {
            name,
            seconds,
            outcome,
        } = report
        else {
            continue;
        };
        let (result, seen) = match outcome {
            Ok(seen) => {
                passed += 1;
                ("ok", seen.clone())
            }
            Err(why) => {
                failed += 1;
                ("FAILED", why.lines().next().unwrap_or_default().to_owned())
            }
        };
        table.add_row([
            name.clone(),
            result.to_owned(),
            format!("{seconds:.1}"),
            seen,
        ]);
    }
    println!(
        "\n{table}\n\n{passed} passed, {failed} failed, in {:.0} s",
        time.as_secs_f64()
    );
    let results = json!({"seconds": time.as_secs_f64(), "stories": told});
    fs::write(
        run.folder.join("results.json"),
        serde_json::to_vec_pretty(&results)?,
    )?;
    if failed > 0 {
        bail!(
            "{failed} stories failed; consoles and logs are in {}",
            logs.display()
        );
    }
    if passed == 0 {
        bail!("no story is called {}", run.choice.only.join(" or "));
    }
    Ok(())
}
