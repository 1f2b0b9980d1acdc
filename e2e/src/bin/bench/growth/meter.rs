//! What a process uses, read from `/proc` and its clock: nobody has to hold it for that.

use std::collections::HashMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::{Pid, SysconfVar, sysconf};
use tokio::task::JoinHandle;

/// Between two looks at threads and descriptors.
const LOOK: Duration = Duration::from_millis(1);

/// A process that is measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Meter {
    pid: u32,
    /// Clock ticks per second (proc(5)).
    hertz: f64,
}

/// All that it has used since its start.
#[derive(Debug)]
pub(super) struct Reading {
    at: Instant,
    /// Seconds of its own threads.
    cpu: f64,
    /// Seconds of the programs that it has started and waited for, to a tick: 10 ms.
    programs: f64,
    /// By thread: reads and writes, and bytes read.
    threads: HashMap<u32, [f64; 2]>,
}

/// What it used between two readings.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Used {
    pub(super) wall_ms: f64,
    pub(super) cpu_ms: f64,
    pub(super) programs_ms: f64,
    /// Reads and writes of its own threads (system calls).
    pub(super) io: f64,
    /// Bytes that these read, pages of the cache included.
    pub(super) bytes: f64,
}

impl Meter {
    /// Of the process with this id.
    ///
    /// # Errors
    /// The system does not tell how it counts.
    pub(super) fn of(pid: u32) -> Result<Self> {
        let hertz = sysconf(SysconfVar::CLK_TCK)?.context("CLK_TCK")?;
        let hertz = f64::from(u32::try_from(hertz)?);
        Ok(Self { pid, hertz })
    }

    /// Reads what it has used.
    ///
    /// # Errors
    /// It has ended.
    pub(super) fn read(&self) -> Result<Reading> {
        let stat = self.file("stat")?;
        // The name may hold blanks; after it, cutime and cstime are the fields 16 and 17 of proc(5).
        let (_, rest) = stat.rsplit_once(')').context("stat")?;
        let ticks = |field: usize| -> Result<f64> {
            let word = rest.split_whitespace().nth(field - 3).context("stat")?;
            Ok(f64::from(word.parse::<u32>()?))
        };
        Ok(Reading {
            at: Instant::now(),
            cpu: self.cpu()?,
            programs: (ticks(16)? + ticks(17)?) / self.hertz,
            threads: self.threads()?,
        })
    }

    /// Seconds of its own threads, those that have ended included.
    ///
    /// # Errors
    /// It has ended.
    pub(super) fn cpu(&self) -> Result<f64> {
        let clock = clock_getcpuclockid(Pid::from_raw(i32::try_from(self.pid)?))?;
        Ok(Duration::from(clock_gettime(clock)?).as_secs_f64())
    }

    fn threads(&self) -> Result<HashMap<u32, [f64; 2]>> {
        let mut threads = HashMap::new();
        for entry in fs::read_dir(format!("/proc/{}/task", self.pid))?.flatten() {
            let Some(id) = entry.file_name().to_str().and_then(|id| id.parse().ok()) else {
                continue;
            };
            // A thread may end between the two looks.
            let Ok(text) = fs::read_to_string(entry.path().join("io")) else {
                continue;
            };
            let number = |name: &str| -> f64 {
                let line = text.lines().find_map(|line| line.strip_prefix(name));
                line.and_then(|line| line.trim().parse().ok())
                    .unwrap_or(0.0)
            };
            let calls = number("syscr:") + number("syscw:");
            threads.insert(id, [calls, number("rchar:")]);
        }
        Ok(threads)
    }

    /// How many threads it has, and how many descriptors.
    ///
    /// # Errors
    /// It has ended.
    pub(super) fn now(&self) -> Result<(usize, usize)> {
        let count = |folder: &str| -> Result<usize> {
            Ok(fs::read_dir(format!("/proc/{}/{folder}", self.pid))?.count())
        };
        Ok((count("task")?, count("fd")?))
    }

    fn file(&self, name: &str) -> Result<String> {
        let path = format!("/proc/{}/{name}", self.pid);
        fs::read_to_string(&path).context(path)
    }

    /// Waits until it has done next to nothing for half a second; answers how long it was busy until then, since a moment.
    ///
    /// # Errors
    /// It has ended.
    pub(super) async fn quiet_since(&self, started: Instant) -> Result<Duration> {
        const STEP: Duration = Duration::from_millis(20);
        // In a step of rest it only asks its clock.
        const REST: f64 = 0.000_5;
        let (mut last, mut busy_until) = (self.cpu()?, Instant::now());
        while busy_until.elapsed() < Duration::from_millis(500) {
            tokio::time::sleep(STEP).await;
            let now = self.cpu()?;
            if now - last > REST {
                busy_until = Instant::now();
            }
            last = now;
        }
        Ok(busy_until.duration_since(started))
    }
}

impl Reading {
    /// Milliseconds of its own threads.
    pub(super) fn cpu_ms(&self) -> f64 {
        self.cpu * 1e3
    }

    /// Milliseconds of the programs that it has waited for.
    pub(super) fn programs_ms(&self) -> f64 {
        self.programs * 1e3
    }

    /// What was used from here to a later reading.
    pub(super) fn until(&self, later: &Self) -> Used {
        let none = [0.0; 2];
        let sum = |what: usize| -> f64 {
            let used = |(id, now): (&u32, &[f64; 2])| {
                now[what] - self.threads.get(id).unwrap_or(&none)[what]
            };
            later.threads.iter().map(used).sum()
        };
        Used {
            wall_ms: later.at.duration_since(self.at).as_secs_f64() * 1e3,
            cpu_ms: (later.cpu - self.cpu) * 1e3,
            programs_ms: (later.programs - self.programs) * 1e3,
            io: sum(0),
            bytes: sum(1),
        }
    }
}

/// The most threads and descriptors of a process, looked at all the time.
#[derive(Debug)]
pub(super) struct Watch {
    done: Arc<AtomicBool>,
    looks: JoinHandle<(usize, usize)>,
}

impl Watch {
    /// Begins to look.
    pub(super) fn begin(meter: Meter) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&done);
        let looks = tokio::spawn(async move {
            let mut most = (0, 0);
            while !end.load(Ordering::Relaxed) {
                if let Ok((threads, descriptors)) = meter.now() {
                    most = (threads.max(most.0), descriptors.max(most.1));
                }
                tokio::time::sleep(LOOK).await;
            }
            most
        });
        Self { done, looks }
    }

    /// Ends it: the most threads, the most descriptors.
    ///
    /// # Errors
    /// The looks have panicked.
    pub(super) async fn end(self) -> Result<(usize, usize)> {
        self.done.store(true, Ordering::Relaxed);
        Ok(self.looks.await?)
    }
}
