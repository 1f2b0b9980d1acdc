//! Outside: boots machines, prints what they report as it comes, and keeps logs of what failed.

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

use crate::suite::{self, Cast, FIRST, Report, SECOND, SECOND_SERVES};
use crate::{Choice, Run};

/// A machine that does not come up in this time, on the slowest of hosts, never will.
const BOOT: Duration = Duration::from_secs(180);
/// No story is silent for longer.
const SILENCE: Duration = Duration::from_secs(1300);
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
    let (image, warm) = (
        Image::ready(&folder.join("image"), run.kernel.as_deref())?,
        page_cache::paths()?,
    );
    let logs = folder.join("logs");
    let _ = fs::remove_dir_all(&logs);
    // Short, for the sockets in it; its janitor ends the machines if this process is killed.
    let scratch = tempfile::TempDir::with_prefix("csi-vm-")?.keep();
    let _janitor = Janitor::start(&scratch)?;
    let mut choice = run.choice.clone();
    let seed = *choice.seed.get_or_insert_with(rand::random);
    println!("{}; --seed {seed}", image.release);

    let wanted = Cast::all().filter(|cast| suite::has_stories(*cast, &choice));
    let queue = Mutex::new(wanted.collect::<VecDeque<_>>());
    let next = || queue.lock().ok()?.pop_front();
    // More at a time than there are processors: a story that waits for a timeout leaves its own to another.
    let at_a_time = std::thread::available_parallelism()?.get() + 2;
    let told = std::thread::scope(|scope| {
        let tell_some = || {
            let stages = std::iter::from_fn(next).map(|cast| {
                let stage = Stage {
                    run,
                    choice: &choice,
                    cast,
                    image: &image,
                    warm: &warm,
                    folder: scratch.join(cast.name()),
                };
                stage.tell(&logs.join(cast.name()))
            });
            // All come to their end, also when one has failed.
            stages.collect::<Vec<Result<Vec<Report>>>>()
        };
        let tellers: Vec<_> = (0..at_a_time).map(|_| scope.spawn(tell_some)).collect();
        let told = tellers
            .into_iter()
            .map(|teller| teller.join().map_err(|_| anyhow!("a thread panicked")));
        told.collect::<Result<Vec<_>>>()
    })?;
    let told = told.into_iter().flatten();
    let told: Result<Vec<Vec<Report>>> = told.collect();
    let told = told?.concat();
    if run.boot_only {
        return Ok(());
    }
    conclude(run, &told, started.elapsed(), &logs)
}

/// One or two machines whose NAS exports in one way.
struct Stage<'a> {
    run: &'a Run,
    choice: &'a Choice,
    cast: Cast,
    image: &'a Image,
    warm: &'a [PathBuf],
    folder: PathBuf,
}

impl Stage<'_> {
    /// Boots them, prints what they report, and keeps their logs.
    fn tell(&self, logs: &Path) -> Result<Vec<Report>> {
        fs::create_dir_all(&self.folder)?;
        let told = self.boot_and_listen();
        keep_logs(&self.folder, logs)?;
        told.with_context(|| {
            format!(
                "{} (consoles and logs are in {})",
                self.cast.name(),
                logs.display()
            )
        })
    }

    fn boot_and_listen(&self) -> Result<Vec<Report>> {
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
            let second = self.cast.second.then(|| scope.spawn(boot_second));
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
        let mut words = vec![up(FIRST, &nas)];
        words.extend(second.as_ref().map(|machine| up(SECOND, machine)));
        println!(
            "{}: by {}, {}",
            self.cast.name(),
            nas.accelerator.name(),
            words.join(", ")
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
            warm: self.warm.to_vec(),
            arguments: [
                owned(&["suite", self.cast.export.name()]),
                owned(if self.cast.second { &["--second"] } else { &[] }),
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
