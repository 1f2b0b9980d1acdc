//! A pod that writes continuously and verifies what it reads, until it is stopped.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::harness::until::until;
use anyhow::{Result, anyhow, ensure};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

const RECORD: usize = 64 << 10;
/// The file is a ring of records, so that a long test does not fill a disk.
const RECORDS: u64 = 4096;
/// After this many more records, at least one was begun and verified after the count started.
pub const MORE: u64 = 3;
/// The longest pause between two records.
const MAX_PAUSE: Duration = Duration::from_millis(150);

/// A writing pod.
#[derive(Debug)]
pub struct Writer {
    counters: Arc<Counters>,
    stop: Sender<()>,
    thread: JoinHandle<io::Result<()>>,
}

/// Counters of a writer.
#[derive(Debug, Default)]
struct Counters {
    written: AtomicU64,
    full: AtomicU64,
}

impl Writer {
    /// Starts a writer on `file`, a file or a device, at offset 0.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn start(file: &Path) -> Result<Self> {
        let (stop, stopped) = channel();
        let counters = Arc::new(Counters::default());
        let open = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(file)?;
        let shared = counters.clone();
        let thread = thread::spawn(move || work(&open, &shared, &stopped));
        Ok(Self {
            counters,
            stop,
            thread,
        })
    }

    /// The number of records written so far.
    pub fn written(&self) -> u64 {
        self.counters.written.load(Ordering::Relaxed)
    }

    /// It has ended with an error.
    pub fn has_failed(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits until it has written and verified more records.
    ///
    /// # Errors
    /// It does not, or has failed.
    pub async fn must_keep_writing(&self) -> Result<()> {
        let before = self.counters.written.load(Ordering::Relaxed);
        let read = async || Ok(self.counters.written.load(Ordering::Relaxed));
        until("the writer writes", read, |now| {
            *now >= before + MORE || self.thread.is_finished()
        })
        .await?;
        ensure!(!self.thread.is_finished(), "the writer has failed");
        Ok(())
    }

    /// Waits until it meets `ENOSPC` again.
    ///
    /// # Errors
    /// It does not, or has failed.
    pub async fn must_meet_full_disk(&self) -> Result<()> {
        let before = self.counters.full.load(Ordering::Relaxed);
        let read = async || Ok(self.counters.full.load(Ordering::Relaxed));
        until("the writer meets a full disk", read, |now| {
            *now > before + 1 || self.thread.is_finished()
        })
        .await?;
        ensure!(!self.thread.is_finished(), "the writer has failed");
        Ok(())
    }

    /// Stops it, and checks that it never read anything but what it wrote, and met no error but a full disk.
    ///
    /// # Errors
    /// It did.
    pub fn stop(self) -> Result<()> {
        drop(self.stop);
        let ended = self
            .thread
            .join()
            .map_err(|_| anyhow!("the writer panicked"))?;
        Ok(ended?)
    }
}

fn work(file: &File, counters: &Counters, stopped: &Receiver<()>) -> io::Result<()> {
    for round in 0_u64.. {
        let started = Instant::now();
        loop {
            match file
                .write_all_at(&record(round), offset_of(round))
                .and_then(|()| file.sync_data())
            {
                Ok(()) => break,
                Err(full) if full.kind() == ErrorKind::StorageFull => {
                    counters.full.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => return Err(error),
            }
            if stopped.recv_timeout(Duration::from_millis(5)) == Err(RecvTimeoutError::Disconnected)
            {
                return Ok(());
            }
        }
        counters.written.fetch_add(1, Ordering::Relaxed);
        verify(file, round / 2)?;
        verify(file, round)?;
        // Leave processor time to what is tested.
        let pause = (2 * started.elapsed()).min(MAX_PAUSE);
        if stopped.recv_timeout(pause) == Err(RecvTimeoutError::Disconnected) {
            return Ok(());
        }
    }
    Ok(())
}

/// Reads a record back from the disk, unless a later one has overwritten it.
fn verify(file: &File, round: u64) -> io::Result<()> {
    posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    let mut read = vec![0; RECORD];
    file.read_exact_at(&mut read, offset_of(round))?;
    let found = u64::from_le_bytes(read[..8].try_into().expect("8 bytes"));
    if found % RECORDS != round % RECORDS || read != record(found) {
        return Err(io::Error::other(format!(
            "record {round} differs from what was written"
        )));
    }
    Ok(())
}

fn offset_of(round: u64) -> u64 {
    (round % RECORDS) * RECORD as u64
}

fn record(round: u64) -> Vec<u8> {
    round.to_le_bytes().repeat(RECORD / 8)
}
