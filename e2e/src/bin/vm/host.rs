//! The host side: boots the VMs, prints their reports as they arrive, and keeps the logs of failed stories.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use comfy_table::{Table, presets};
use e2e::harness::janitor::Janitor;
use e2e::vm::guest::{Nic, Plan};
use e2e::vm::image::Image;
use e2e::vm::machine::{Machine, Spec};
use e2e::vm::page_cache;
use serde_json::json;

use crate::setup::{FIRST, SECOND, SECOND_ADDRESS, Setup};
use crate::suite::{self, Report};
use crate::{Choice, Run};

/// Boot timeout, sufficient for the slowest hosts.
const BOOT: Duration = Duration::from_secs(180);
/// Timeout between two reports; longer than any story.
const SILENCE: Duration = Duration::from_secs(1300);
/// Size of the second VM's sparse disk.
const DISK: u64 = 256 << 20;

/// Kernel modules for both ends of an iSCSI session and for what a node does with a disk.
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
    let (image, warm) = (
        Image::ready(&folder.join("image"), run.kernel.as_deref())?,
        page_cache::paths()?,
    );
    let logs = folder.join("logs");
    let _ = fs::remove_dir_all(&logs);
    // A short path, because of its sockets; its janitor ends the VMs if this process is killed.
    let scratch = tempfile::TempDir::with_prefix("csi-vm-")?.keep();
    let _janitor = Janitor::start(&scratch)?;
    let mut choice = run.choice.clone();
    let seed = *choice.seed.get_or_insert_with(rand::random);
    println!("{}; --seed {seed}", image.release);

    let setups = Setup::all().filter(|setup| suite::has_stories(*setup, &choice));
    let queue = Mutex::new(setups.collect::<VecDeque<_>>());
    let next = || queue.lock().ok()?.pop_front();
    // More VMs than CPUs: a story that waits for a timeout leaves its CPU to another.
    let parallelism = std::thread::available_parallelism()?.get() + 2;
    let reports = std::thread::scope(|scope| {
        let run_next = || {
            let results = std::iter::from_fn(next).map(|setup| {
                let machines = Machines {
                    run,
                    choice: &choice,
                    setup,
                    image: &image,
                    warm: &warm,
                    folder: scratch.join(setup.name()),
                };
                machines.run_stories(&logs.join(setup.name()))
            });
            // All run to the end, even if one has failed.
            results.collect::<Vec<Result<Vec<Report>>>>()
        };
        let threads: Vec<_> = (0..parallelism).map(|_| scope.spawn(run_next)).collect();
        let reports = threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked")));
        reports.collect::<Result<Vec<_>>>()
    })?;
    let reports = reports.into_iter().flatten();
    let reports: Result<Vec<Vec<Report>>> = reports.collect();
    let reports = reports?.concat();
    if run.boot_only {
        return Ok(());
    }
    conclude(run, &reports, started.elapsed(), &logs)
}

/// One or two VMs whose NAS exports in one way.
struct Machines<'a> {
    run: &'a Run,
    choice: &'a Choice,
    setup: Setup,
    image: &'a Image,
    warm: &'a [PathBuf],
    folder: PathBuf,
}

impl Machines<'_> {
    /// Boots them, prints their reports, and keeps their logs.
    fn run_stories(&self, logs: &Path) -> Result<Vec<Report>> {
        fs::create_dir_all(&self.folder)?;
        let reports = self.boot_and_collect();
        keep_logs(&self.folder, logs)?;
        reports.with_context(|| {
            format!(
                "{} (consoles and logs are in {})",
                self.setup.name(),
                logs.display()
            )
        })
    }

    fn boot_and_collect(&self) -> Result<Vec<Report>> {
        let program = std::env::current_exe()?;
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
        let disk = self.folder.join("worker-2.disk");
        let boot_second = || {
            fs::File::create(&disk)?.set_len(DISK)?;
            boot(&worker, 1024, Some(disk.as_path()))
        };
        let (nas, second) = std::thread::scope(|scope| {
            let second = self.setup.second.then(|| scope.spawn(boot_second));
            let nas = boot(&nas, 4096, None)?;
            let second = second.map(|machine| {
                let booted = machine.join();
                booted.map_err(|_| anyhow!("a thread panicked"))?
            });
            Ok::<_, anyhow::Error>((nas, second.transpose()?))
        })?;
        let up = |name: &str, machine: &Machine| {
            format!("{name} up after {:.1} s", machine.boot.as_secs_f64())
        };
        let mut boot_times = vec![up(FIRST, &nas)];
        boot_times.extend(second.as_ref().map(|machine| up(SECOND, machine)));
        println!(
            "{}: by {}, {}",
            self.setup.name(),
            nas.accelerator.name(),
            boot_times.join(", ")
        );
        if let Some(why) = &nas.kvm_refused {
            println!("KVM exists but does not work ({why}): using emulation");
        }
        if self.run.boot_only {
            return Ok(Vec::new());
        }
        // The second VM runs as long as the first has stories.
        collect_reports(nas)
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
        let owned = |args: &[&str]| args.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let nas = Plan {
            name: FIRST.to_owned(),
            peer: SECOND.to_owned(),
            nics: nics(1),
            modules: owned(&[NAS_MODULES.as_slice(), &NODE_MODULES].concat()),
            initiator: format!("iqn.1993-08.org.debian:01:{FIRST}"),
            module_folder: self.image.modules.clone(),
            may_reset: false,
            disk: false,
            warm: self.warm.to_vec(),
            arguments: [
                owned(&["suite", self.setup.export.name()]),
                owned(if self.setup.second {
                    &["--second"]
                } else {
                    &[]
                }),
                vec![serde_json::to_string(self.choice)?],
            ]
            .concat(),
        };
        let worker = Plan {
            name: SECOND.to_owned(),
            peer: FIRST.to_owned(),
            nics: nics(2),
            modules: owned(&NODE_MODULES),
            initiator: format!("iqn.1993-08.org.debian:01:{SECOND}"),
            may_reset: true,
            disk: true,
            arguments: owned(&["serve", SECOND_ADDRESS]),
            ..nas.clone()
        };
        Ok((nas, worker))
    }
}

/// Prints each report as it arrives.
fn collect_reports(mut nas: Machine) -> Result<Vec<Report>> {
    let mut reports = Vec::new();
    let mut finished = false;
    while let Some(line) = nas.line(SILENCE)? {
        match serde_json::from_str(&line) {
            Ok(Report::Done) => finished = true,
            Ok(report) => {
                println!("{report}");
                reports.push(report);
            }
            // A crashing kernel also prints to this serial line.
            Err(_) => println!("  {line}"),
        }
    }
    if !finished {
        bail!(
            "the suite did not finish; the end of the console:\n{}",
            nas.log_tail()
        );
    }
    Ok(reports)
}

/// Copies everything that the guests left, except sockets and the disk.
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

fn conclude(run: &Run, reports: &[Report], time: Duration, logs: &Path) -> Result<()> {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(["story", "result", "seconds", "seen"]);
    let (mut passed, mut failed) = (0, 0);
    for report in reports {
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
    let results = json!({"seconds": time.as_secs_f64(), "stories": reports});
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
