//! Block devices: reading, writing, opening.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::blocking::Step;
use crate::host::{Span, Via, blank};

/// Every logical block size divides it.
const ALIGNMENT: usize = 4096;

pub(super) fn read(path: &Path, span: Span, via: Via) -> io::Result<Vec<u8>> {
    let file = match via {
        Via::Cache => File::open(path)?,
        Via::Disk => open_direct(path)?,
    };
    let mut room = Room::of(span.length);
    let read = room.part(span.length);
    file.read_exact_at(read, span.offset)?;
    Ok(read.to_vec())
}

/// The first of these parts that holds anything but zeros. The largest of them is all the memory that it takes.
pub(super) fn find_data(
    path: &Path,
    spans: Vec<Span>,
    step: &mut Step,
) -> io::Result<Option<Span>> {
    let file = open_direct(path)?;
    let most = spans.iter().map(|span| span.length).max();
    let mut room = Room::of(most.unwrap_or_default());
    for span in spans {
        let read = room.part(span.length);
        file.read_exact_at(read, span.offset)?;
        if !blank::is_zero(read) {
            return Ok(Some(span));
        }
        if !step.done() {
            // Nobody waits for it any more.
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
    Ok(None)
}

pub(super) fn write(path: &Path, offset: u64, data: &[u8]) -> io::Result<()> {
    let open = |flags: OFlag| {
        OpenOptions::new()
            .write(true)
            .custom_flags((OFlag::O_EXCL | flags).bits())
            .open(path)
    };
    let file = match open(OFlag::O_DIRECT) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => open(OFlag::empty())?,
        other => other?,
    };
    let mut room = Room::of(data.len());
    let written = room.part(data.len());
    written.copy_from_slice(data);
    file.write_all_at(written, offset)?;
    file.sync_all()
}

/// False while there is a node and no device behind it.
pub(super) fn opens(path: &Path) -> io::Result<bool> {
    match File::open(path) {
        Ok(_) => Ok(true),
        Err(none) if none.raw_os_error() == Some(Errno::ENXIO as i32) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Somebody has it for himself alone.
pub(super) fn is_claimed(path: &Path) -> io::Result<bool> {
    let exclusively = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_EXCL.bits())
        .open(path);
    match exclusively {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(true),
        Err(error) => Err(error),
    }
}

/// A file system below a loop device may know no direct I/O; then there is nothing better than the cache.
fn open_direct(path: &Path) -> io::Result<File> {
    let direct = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_DIRECT.bits())
        .open(path);
    match direct {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => File::open(path),
        other => other,
    }
}

/// Memory for direct I/O.
struct Room(Vec<u8>);

impl Room {
    fn of(length: usize) -> Self {
        Self(vec![0; length + ALIGNMENT])
    }

    /// The first `length` bytes of it, aligned.
    fn part(&mut self, length: usize) -> &mut [u8] {
        let start = self.0.as_ptr().align_offset(ALIGNMENT);
        &mut self.0[start..start + length]
    }
}
