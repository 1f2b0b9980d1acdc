//! The scratch copy of the workspace that mutants are applied to.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use super::mutants::{Mutant, SWITCH_SOURCE};
use crate::{context::Context, run::Cmd};

/// The workspace's files at the start, and the location of the copy.
#[derive(Debug)]
pub(super) struct Tree {
    /// The root of the copy.
    pub(super) root: PathBuf,
    /// Contents by path, relative to the workspace's root.
    files: BTreeMap<PathBuf, Vec<u8>>,
}

impl Tree {
    /// Reads the workspace: tracked files, and untracked ones that are not ignored. Does not write the copy yet.
    ///
    /// # Errors
    /// When the workspace is not a git repository, or a file cannot be read.
    pub(super) fn read(context: &Context, root: PathBuf) -> Result<Self> {
        let list = "git ls-files -z --cached --others --exclude-standard";
        let listed = Cmd::new(context, list).output()?;
        if !listed.success {
            bail!("`{list}`: {}", listed.stderr.trim());
        }
        let mut files = BTreeMap::new();
        for name in listed.stdout.split_terminator('\0') {
            match fs::read(context.root.join(name)) {
                Ok(bytes) => files.insert(name.into(), bytes),
                // Deleted, but still in git's index.
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(error).context(name.to_owned()),
            };
        }
        Ok(Self { root, files })
    }

    /// The files that these mutants change, with their new contents.
    ///
    /// # Errors
    /// When a patch does not apply, perhaps because it overlaps with an earlier one.
    pub(super) fn patched(&self, mutants: &[&Mutant]) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
        let mut changed: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::new();
        let source = |changed: &BTreeMap<PathBuf, Vec<u8>>, path: &Path| {
            let bytes = changed.get(path).or_else(|| self.files.get(path));
            let bytes = bytes.with_context(|| format!("there is no {}", path.display()))?;
            Ok::<_, anyhow::Error>(std::str::from_utf8(bytes)?.to_owned())
        };
        for mutant in mutants {
            let path = Path::new(mutant.file);
            let text = source(&changed, path).with_context(|| mutant.name)?;
            changed.insert(path.to_owned(), mutant.patch(&text)?.into_bytes());
        }
        if mutants.iter().any(|mutant| mutant.is_switchable()) {
            let path = Path::new("driver/src/lib.rs");
            let text = source(&changed, path)? + SWITCH_SOURCE;
            changed.insert(path.to_owned(), text.into_bytes());
        }
        Ok(changed)
    }

    /// Writes the copy with these mutants. Unchanged files are not written, and changed files get a new mtime, even when the
    /// original content is restored: cargo decides by mtime what to rebuild.
    ///
    /// # Errors
    /// When the copy cannot be written, or a patch does not apply.
    pub(super) fn write_copy(&self, mutants: &[&Mutant]) -> Result<()> {
        let changed = self.patched(mutants)?;
        fs::create_dir_all(&self.root).with_context(|| self.root.display().to_string())?;
        self.remove_unknown(&self.root)?;
        for (path, bytes) in &self.files {
            self.write(path, changed.get(path).unwrap_or(bytes))?;
        }
        Ok(())
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let path = self.root.join(path);
        if fs::read(&path).is_ok_and(|present| present == bytes) {
            return Ok(());
        }
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&path, bytes).with_context(|| path.display().to_string())
    }

    /// Removes files that are not in the workspace: cargo would discover them as binaries or tests.
    fn remove_unknown(&self, folder: &Path) -> Result<()> {
        for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
            let entry = entry?;
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                self.remove_unknown(&path)?;
            } else if !self.files.contains_key(path.strip_prefix(&self.root)?) {
                fs::remove_file(&path).with_context(|| path.display().to_string())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    const MUTANT: Mutant = Mutant {
        name: "one-is-two",
        file: "driver/src/a.rs",
        find: "1",
        replace: "2",
        effect: "sums are wrong",
    };

    fn tree(name: &str) -> Tree {
        let root = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
        let files = [("driver/src/a.rs", "a = 1"), ("Cargo.toml", "[workspace]")];
        Tree {
            root,
            files: files.map(|(path, text)| (path.into(), text.into())).into(),
        }
    }

    #[test]
    fn only_the_mutated_file_is_written_and_restored() {
        let tree = tree("mutants-write");
        let file = tree.root.join(MUTANT.file);
        let manifest = tree.root.join("Cargo.toml");
        let changed = |path: &Path| -> SystemTime { path.metadata().unwrap().modified().unwrap() };
        tree.write_copy(&[]).unwrap();
        let before = changed(&manifest);
        for (mutants, text) in [(vec![&MUTANT], "a = 2"), (vec![], "a = 1")] {
            tree.write_copy(&mutants).unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), text);
            assert!(changed(&file) >= before);
        }
        assert_eq!(changed(&manifest), before);
        fs::remove_dir_all(&tree.root).unwrap();
    }

    #[test]
    fn switchable_mutants_can_share_a_build_unless_they_overlap() {
        let mut tree = tree("mutants-share");
        tree.files
            .insert("driver/src/a.rs".into(), b"a = 1; b = 3".to_vec());
        tree.files
            .insert("driver/src/lib.rs".into(), b"mod a;".to_vec());
        let first = Mutant {
            replace: "(1 + i($ON))",
            ..MUTANT
        };
        let second = Mutant {
            name: "three-is-four",
            find: "3",
            replace: "(3 + i($ON))",
            ..MUTANT
        };
        let files = tree.patched(&[&first, &second]).unwrap();
        assert_eq!(
            std::str::from_utf8(&files[Path::new("driver/src/a.rs")]).unwrap(),
            r#"a = (1 + i(crate::is_active_mutant("one-is-two"))); b = (3 + i(crate::is_active_mutant("three-is-four")))"#
        );
        assert!(files[Path::new("driver/src/lib.rs")].ends_with(SWITCH_SOURCE.as_bytes()));
        let in_the_way = Mutant {
            find: "1;",
            ..second
        };
        assert!(tree.patched(&[&first, &in_the_way]).is_err());
        // The switch function is added only for switchable mutants.
        assert_eq!(tree.patched(&[&MUTANT]).unwrap().len(), 1);
    }

    #[test]
    fn unknown_files_are_removed() {
        let tree = tree("mutants-unknown");
        let left = tree.root.join("driver/src/bin/left.rs");
        fs::create_dir_all(left.parent().unwrap()).unwrap();
        fs::write(&left, "fn main() {}").unwrap();
        tree.write_copy(&[]).unwrap();
        assert!(!left.exists());
        fs::remove_dir_all(&tree.root).unwrap();
    }

    #[test]
    fn a_mutant_of_a_missing_file_is_named() {
        let mutant = Mutant {
            file: "driver/src/b.rs",
            ..MUTANT
        };
        let error = tree("mutants-missing").patched(&[&mutant]).unwrap_err();
        let error = format!("{error:#}");
        assert!(
            error.contains(MUTANT.name) && error.contains(mutant.file),
            "{error}"
        );
    }
}
