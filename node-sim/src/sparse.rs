//! Copies sparse files without filling their holes: with a reflink if the file system supports it, otherwise by copying the data
//! between the holes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, ioctl_ficlone, seek};
use rustix::io::Errno;

const BLOCK: usize = 1 << 20;

/// Copies a file into an empty one and keeps its holes.
///
/// # Errors
/// `from` cannot be read, or `to` cannot be written.
pub fn copy(from: &File, to: &File) -> io::Result<()> {
    // If the blocks cannot be shared (another file system, no support), copy them.
    if ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    let size = from.metadata()?.len();
    to.set_len(size)?;
    let mut buffer = vec![0; BLOCK];
    let mut at = 0;
    while let Some((start, end)) = data(from, at)? {
        at = start;
        while at < end {
            let length = usize::try_from(end - at).map_or(BLOCK, |left| left.min(BLOCK));
            from.read_exact_at(&mut buffer[..length], at)?;
            to.write_all_at(&buffer[..length], at)?;
            at += length as u64;
        }
    }
    Ok(())
}

/// Start and end of the next data extent at or after an offset.
fn data(file: &File, from: u64) -> io::Result<Option<(u64, u64)>> {
    match seek(file, SeekFrom::Data(from)) {
        Ok(start) => Ok(Some((start, seek(file, SeekFrom::Hole(start))?))),
        // Only a hole up to the end.
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn holes_stay_holes_and_data_stays_data() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let from = File::create(path("from")).unwrap();
        from.set_len(1 << 30).unwrap();
        for (at, byte) in [(0, 1), (5 << 20, 2), ((1 << 30) - 3, 3)] {
            from.write_all_at(&[byte; 3], at).unwrap();
        }
        let to = File::create(path("to")).unwrap();
        copy(&File::open(path("from")).unwrap(), &to).unwrap();
        let to = File::open(path("to")).unwrap();
        assert_eq!(to.metadata().unwrap().len(), 1 << 30);
        assert!(to.metadata().unwrap().blocks() * 512 < 4 << 20);
        for (at, byte) in [(0, 1), (5 << 20, 2), ((1 << 30) - 3, 3)] {
            let mut read = [0; 3];
            to.read_exact_at(&mut read, at).unwrap();
            assert_eq!(read, [byte; 3]);
        }
    }

    #[test]
    fn an_empty_file_is_copied_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        File::create(path("from")).unwrap().set_len(8192).unwrap();
        copy(
            &File::open(path("from")).unwrap(),
            &File::create(path("to")).unwrap(),
        )
        .unwrap();
        assert_eq!(std::fs::metadata(path("to")).unwrap().len(), 8192);
    }
}
