//! Resource usage of a process, read from `/proc` and its CPU clock, without stopping it.

use std::collections::HashMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::{Pid, SysconfVar, sysconf};
use tokio::task::JoinHandle;

/// Interval between two samples of threads and descriptors.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(1);

/// A process to measure.
#[derive(Clone, Copy, Debug)]
pub(super) struct Meter {
    pid: u32,
    /// Clock ticks per second (proc(5)).
    hertz: f64,
}

/// Its total usage since its start.
#[derive(Debug)]
pub(super) struct Reading {
    at: Instant,
    /// CPU seconds of its own threads.
    cpu: f64,
    /// CPU seconds of child processes that it has waited for, with a resolution of one tick: 10 ms.
    programs: f64,
    /// By thread: number of reads and writes, and bytes read.
    threads: HashMap<u32, [f64; 2]>,
}

/// The usage between two readings.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Used {
    pub(super) wall_ms: f64,
    pub(super) cpu_ms: f64,
    pub(super) programs_ms: f64,
    /// Read and write system calls of its own threads.
    pub(super) io: f64,
    /// Bytes that these calls read, including from the page cache.
    pub(super) bytes: f64,
}

impl Meter {
    /// A meter for the process with this id.
    ///
    /// # Errors
    /// The number of clock ticks per second is unknown.
    pub(super) fn of(pid: u32) -> Result<Self> {
        let hertz = sysconf(SysconfVar::CLK_TCK)?.context("CLK_TCK")?;
        let hertz = f64::from(u32::try_from(hertz)?);
        Ok(Self { pid, hertz })
    }

    /// Reads the usage so far.
    ///
    /// # Errors
    /// The process has ended.
    pub(super) fn read(&self) -> Result<Reading> {
        let stat = self.file("stat")?;
        // The name may contain blanks; after it, cutime and cstime are fields 16 and 17 of proc(5).
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

    /// CPU seconds of its own threads, including threads that have ended.
    ///
    /// # Errors
    /// The process has ended.
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
            // A thread may end between the two reads.
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

    /// Its current number of threads and of file descriptors.
    ///
    /// # Errors
    /// The process has ended.
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

    /// Waits until the process has been nearly idle for half a second; returns the time from `started` until it became idle.
    ///
    /// # Errors
    /// The process has ended.
    pub(super) async fn quiet_since(&self, started: Instant) -> Result<Duration> {
        const STEP: Duration = Duration::from_millis(20);
        // An idle process only reads its clock in such a step.
        const IDLE_CPU: f64 = 0.000_5;
        let (mut last, mut busy_until) = (self.cpu()?, Instant::now());
        while busy_until.elapsed() < Duration::from_millis(500) {
            tokio::time::sleep(STEP).await;
            let now = self.cpu()?;
            if now - last > IDLE_CPU {
                busy_until = Instant::now();
            }
            last = now;
        }
        Ok(busy_until.duration_since(started))
    }
}

impl Reading {
    /// CPU milliseconds of its own threads.
    pub(super) fn cpu_ms(&self) -> f64 {
        self.cpu * 1e3
    }

    /// CPU milliseconds of child processes that it has waited for.
    pub(super) fn programs_ms(&self) -> f64 {
        self.programs * 1e3
    }

    /// The usage from this reading to a later one.
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

/// The peak number of threads and descriptors of a process, sampled continuously.
#[derive(Debug)]
pub(super) struct Watch {
    done: Arc<AtomicBool>,
    sampling: JoinHandle<(usize, usize)>,
}

impl Watch {
    /// Starts sampling.
    pub(super) fn begin(meter: Meter) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&done);
        let sampling = tokio::spawn(async move {
            let mut most = (0, 0);
            while !end.load(Ordering::Relaxed) {
                if let Ok((threads, descriptors)) = meter.now() {
                    most = (threads.max(most.0), descriptors.max(most.1));
                }
                tokio::time::sleep(SAMPLE_INTERVAL).await;
            }
            most
        });
        Self { done, sampling }
    }

    /// Stops sampling; returns the most threads and the most descriptors.
    ///
    /// # Errors
    /// The sampling task has panicked.
    pub(super) async fn end(self) -> Result<(usize, usize)> {
        self.done.store(true, Ordering::Relaxed);
        Ok(self.sampling.await?)
    }
}
