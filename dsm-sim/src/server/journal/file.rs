//! The journal on disk: one JSON object per line. A full file is rotated to `.1`, which replaces the older one.
//!
//! A line is written with one `write`. A kill leaves at most one partial line, which is removed at the next start. A kill during
//! a rotation leaves only the older file.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Maximum size of a file in bytes. There are at most two files.
pub(crate) const MAX_BYTES: u64 = 64 << 20;
/// Number of bytes that are read at a time, to find the end of the last complete line.
const CHUNK: u64 = 64 << 10;

/// An open journal file.
#[derive(Debug)]
pub(crate) struct JournalFile {
    path: PathBuf,
    file: File,
    /// Size in bytes; `None` if it is not a regular file but, for instance, a terminal or a pipe, which is never rotated.
    length: Option<u64>,
    max_bytes: u64,
}

impl JournalFile {
    /// Opens a file for appending, or creates it. It is rotated at `max_bytes`.
    ///
    /// # Errors
    /// It cannot be opened, read or written.
    pub(crate) fn open(path: &Path, max_bytes: u64) -> io::Result<Self> {
        let mut file = File::options().create(true).append(true).open(path)?;
        let length = if file.metadata()?.is_file() {
            let whole = complete_lines_length(&mut File::open(path)?)?;
            file.set_len(whole)?;
            Some(file.seek(SeekFrom::End(0))?)
        } else {
            None
        };
        Ok(Self {
            path: path.to_owned(),
            file,
            length,
            max_bytes,
        })
    }

    /// Appends a line. Rotates the file first if it would get too large.
    ///
    /// # Errors
    /// The line could not be written; or the rotation failed, and the line is in the old file.
    pub(crate) fn add(&mut self, mut line: String) -> io::Result<()> {
        line.push('\n');
        let bytes = line.len() as u64;
        let rotated = match self.length {
            Some(length) if length > 0 && length + bytes > self.max_bytes => self.rotate(),
            Some(_) | None => Ok(()),
        };
        self.file.write_all(line.as_bytes())?;
        self.length = self.length.map(|length| length + bytes);
        rotated
    }

    /// Renames the file to `.1`, replacing the older one, and creates a new one.
    fn rotate(&mut self) -> io::Result<()> {
        // If this fails, the next attempt is after another `max_bytes`.
        self.length = Some(0);
        fs::rename(&self.path, rotated_path(&self.path))?;
        self.file = File::options().create(true).append(true).open(&self.path)?;
        Ok(())
    }
}

/// The path of the rotated file: with `.1` appended.
pub(crate) fn rotated_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

/// The length of a file without a partial line at its end.
fn complete_lines_length(file: &mut File) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    while end > 0 {
        let begin = end.saturating_sub(CHUNK);
        file.seek(SeekFrom::Start(begin))?;
        let mut bytes = Vec::new();
        file.take(end - begin).read_to_end(&mut bytes)?;
        if let Some(at) = bytes.iter().rposition(|&byte| byte == b'\n') {
            return Ok(begin + at as u64 + 1);
        }
        end = begin;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &Path) -> Vec<String> {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn numbered(range: std::ops::Range<usize>) -> Vec<String> {
        range.map(|n| format!("line {n:04}")).collect()
    }

    #[test]
    fn there_are_two_files_with_the_newest_lines_and_none_is_too_large() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.jsonl");
        // A line has ten bytes.
        let mut journal = JournalFile::open(&path, 105).unwrap();
        for (n, line) in numbered(0..57).into_iter().enumerate() {
            journal.add(line).unwrap();
            let begin = n / 10 * 10;
            assert_eq!(lines(&path), numbered(begin..n + 1));
            let before = begin.saturating_sub(10)..begin;
            assert_eq!(lines(&rotated_path(&path)), numbered(before));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        // After a restart the same file is continued, up to the same size.
        drop(journal);
        let mut journal = JournalFile::open(&path, 105).unwrap();
        for line in numbered(57..61) {
            journal.add(line).unwrap();
        }
        assert_eq!(lines(&rotated_path(&path)), numbered(50..60));
        assert_eq!(lines(&path), numbered(60..61));
    }

    #[test]
    fn a_kill_at_any_moment_loses_at_most_the_line_that_was_being_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.jsonl");
        let whole = "line 0000\nline 0001\n";
        for length in 0..=whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let mut journal = JournalFile::open(&path, 1_000).unwrap();
            journal.add("line 0002".to_owned()).unwrap();
            let mut wanted = numbered(0..length / 10);
            wanted.push("line 0002".to_owned());
            assert_eq!(lines(&path), wanted, "cut at {length}");
        }
        // Between the two steps of a rotation.
        fs::rename(&path, rotated_path(&path)).unwrap();
        let mut journal = JournalFile::open(&path, 1_000).unwrap();
        journal.add("line 0003".to_owned()).unwrap();
        assert_eq!(
            (lines(&path), lines(&rotated_path(&path)).len()),
            (numbered(3..4), 3)
        );
    }

    #[test]
    fn the_end_of_the_last_line_is_found_at_any_distance() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.jsonl");
        let torn = "x".repeat(usize::try_from(3 * CHUNK).unwrap());
        for before in ["", "line 0000\n"] {
            fs::write(&path, format!("{before}{torn}")).unwrap();
            drop(JournalFile::open(&path, 1_000).unwrap());
            assert_eq!(fs::read_to_string(&path).unwrap(), before);
        }
    }

    #[test]
    fn a_failed_rotation_keeps_the_line_and_a_device_is_never_rotated() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.jsonl");
        let mut journal = JournalFile::open(&path, 15).unwrap();
        journal.add("line 0000".to_owned()).unwrap();
        // A directory that is not empty cannot be replaced by a file.
        fs::create_dir_all(rotated_path(&path).join("in the way")).unwrap();
        assert!(journal.add("line 0001".to_owned()).is_err());
        assert_eq!(lines(&path), numbered(0..2));
        fs::remove_dir_all(rotated_path(&path)).unwrap();
        journal.add("line 0002".to_owned()).unwrap();
        assert_eq!(
            (lines(&path), lines(&rotated_path(&path))),
            (numbered(2..3), numbered(0..2))
        );

        let mut dev_null = JournalFile::open(Path::new("/dev/null"), 5).unwrap();
        dev_null.add("line 0000".to_owned()).unwrap();
        dev_null.add("line 0001".to_owned()).unwrap();
        assert!(!rotated_path(Path::new("/dev/null")).exists());
    }
}
