//! The journal on disk: one JSON object a line, in a file that grows to a bound. Then it takes the place of the one before it,
//! and a new one begins.
//!
//! A line is written at once and whole. A kill leaves at most a part of the last one, which goes at the next start; between the
//! two steps of a change of files there is just the older one.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Bytes that a file may have; there are at most two of them.
pub(crate) const MOST: u64 = 64 << 20;
/// So much is read at a time, to find the end of the last whole line.
const STEP: u64 = 64 << 10;

/// Where the journal is kept.
#[derive(Debug)]
pub(crate) struct JournalFile {
    path: PathBuf,
    file: File,
    /// Bytes in it; `None` for what is no file, as a terminal or a pipe, which has no bound.
    length: Option<u64>,
    most: u64,
}

impl JournalFile {
    /// Goes on with a file, or begins it. It grows to so many bytes.
    ///
    /// # Errors
    /// It cannot be opened, read or written.
    pub(crate) fn open(path: &Path, most: u64) -> io::Result<Self> {
        let mut file = File::options().create(true).append(true).open(path)?;
        let length = if file.metadata()?.is_file() {
            let whole = whole_lines(&mut File::open(path)?)?;
            file.set_len(whole)?;
            Some(file.seek(SeekFrom::End(0))?)
        } else {
            None
        };
        Ok(Self {
            path: path.to_owned(),
            file,
            length,
            most,
        })
    }

    /// Adds a line, in a new file where the present one would grow beyond the bound.
    ///
    /// # Errors
    /// It could not be written; or the files could not be changed, and then the line is in the old one.
    pub(crate) fn add(&mut self, mut line: String) -> io::Result<()> {
        line.push('\n');
        let bytes = line.len() as u64;
        let changed = match self.length {
            Some(length) if length > 0 && length + bytes > self.most => self.change(),
            Some(_) | None => Ok(()),
        };
        self.file.write_all(line.as_bytes())?;
        self.length = self.length.map(|length| length + bytes);
        changed
    }

    /// Puts the file in the place of the older one, and begins a new one.
    fn change(&mut self) -> io::Result<()> {
        // Should it fail, it is tried again when as much more has come.
        self.length = Some(0);
        fs::rename(&self.path, older(&self.path))?;
        self.file = File::options().create(true).append(true).open(&self.path)?;
        Ok(())
    }
}

/// What the file becomes when it is full: its name and `.1`.
pub(crate) fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

/// The length of a file without the part of a line at its end.
fn whole_lines(file: &mut File) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    while end > 0 {
        let begin = end.saturating_sub(STEP);
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
    fn there_are_two_files_with_the_newest_lines_and_none_beyond_the_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.jsonl");
        // A line has ten bytes.
        let mut journal = JournalFile::open(&path, 105).unwrap();
        for (n, line) in numbered(0..57).into_iter().enumerate() {
            journal.add(line).unwrap();
            let begin = n / 10 * 10;
            assert_eq!(lines(&path), numbered(begin..n + 1));
            let before = begin.saturating_sub(10)..begin;
            assert_eq!(lines(&older(&path)), numbered(before));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        // The next life goes on in the same file, to the same bound.
        drop(journal);
        let mut journal = JournalFile::open(&path, 105).unwrap();
        for line in numbered(57..61) {
            journal.add(line).unwrap();
        }
        assert_eq!(lines(&older(&path)), numbered(50..60));
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
        // Between the two steps of a change.
        fs::rename(&path, older(&path)).unwrap();
        let mut journal = JournalFile::open(&path, 1_000).unwrap();
        journal.add("line 0003".to_owned()).unwrap();
        assert_eq!(
            (lines(&path), lines(&older(&path)).len()),
            (numbered(3..4), 3)
        );
    }

    #[test]
    fn the_end_of_the_last_line_is_found_however_far_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.jsonl");
        let torn = "x".repeat(usize::try_from(3 * STEP).unwrap());
        for before in ["", "line 0000\n"] {
            fs::write(&path, format!("{before}{torn}")).unwrap();
            drop(JournalFile::open(&path, 1_000).unwrap());
            assert_eq!(fs::read_to_string(&path).unwrap(), before);
        }
    }

    #[test]
    fn a_file_that_cannot_be_moved_takes_the_line_and_what_is_no_file_has_no_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.jsonl");
        let mut journal = JournalFile::open(&path, 15).unwrap();
        journal.add("line 0000".to_owned()).unwrap();
        // A folder that is not empty cannot be replaced by a file.
        fs::create_dir_all(older(&path).join("in the way")).unwrap();
        assert!(journal.add("line 0001".to_owned()).is_err());
        assert_eq!(lines(&path), numbered(0..2));
        fs::remove_dir_all(older(&path)).unwrap();
        journal.add("line 0002".to_owned()).unwrap();
        assert_eq!(
            (lines(&path), lines(&older(&path))),
            (numbered(2..3), numbered(0..2))
        );

        let mut nowhere = JournalFile::open(Path::new("/dev/null"), 5).unwrap();
        nowhere.add("line 0000".to_owned()).unwrap();
        nowhere.add("line 0001".to_owned()).unwrap();
        assert!(!older(Path::new("/dev/null")).exists());
    }
}
