//! Block devices: direct and cached reads, exclusive writes, and checks by opening them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::blocking::Step;
use crate::host::{ReadMode, Span, blank};

/// Alignment for direct I/O in bytes, a multiple of every logical block size.
const ALIGNMENT: usize = 4096;

pub(super) fn read(path: &Path, span: Span, via: ReadMode) -> io::Result<Vec<u8>> {
    let file = match via {
        ReadMode::Cache => File::open(path)?,
        ReadMode::Disk => open_direct(path)?,
    };
    let mut buffer = AlignedBuffer::new(span.length);
    let read = buffer.slice(span.length);
    file.read_exact_at(read, span.offset)?;
    Ok(read.to_vec())
}

/// The first of these spans that holds anything but zeros. Uses memory for the largest span only.
pub(super) fn find_data(
    path: &Path,
    spans: Vec<Span>,
    step: &mut Step,
) -> io::Result<Option<Span>> {
    let file = open_direct(path)?;
    let longest = spans.iter().map(|span| span.length).max();
    let mut buffer = AlignedBuffer::new(longest.unwrap_or_default());
    for span in spans {
        let read = buffer.slice(span.length);
        file.read_exact_at(read, span.offset)?;
        if !blank::is_zero(read) {
            return Ok(Some(span));
        }
        if !step.done() {
            // The caller no longer waits.
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
    let mut buffer = AlignedBuffer::new(data.len());
    let written = buffer.slice(data.len());
    written.copy_from_slice(data);
    file.write_all_at(written, offset)?;
    file.sync_all()
}

/// False if the node exists and the device behind it does not (`ENXIO`).
pub(super) fn opens(path: &Path) -> io::Result<bool> {
    match File::open(path) {
        Ok(_) => Ok(true),
        Err(none) if none.raw_os_error() == Some(Errno::ENXIO as i32) => Ok(false),
        Err(error) => Err(error),
    }
}

/// True if the device is open exclusively (`O_EXCL`).
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

/// Falls back to the page cache if direct I/O is not supported, e.g. by the file system below a loop device.
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

/// A buffer with the alignment that direct I/O requires.
struct AlignedBuffer(Vec<u8>);

impl AlignedBuffer {
    fn new(length: usize) -> Self {
        Self(vec![0; length + ALIGNMENT])
    }

    /// The first `length` bytes, aligned.
    fn slice(&mut self, length: usize) -> &mut [u8] {
        let start = self.0.as_ptr().align_offset(ALIGNMENT);
        &mut self.0[start..start + length]
    }
}
