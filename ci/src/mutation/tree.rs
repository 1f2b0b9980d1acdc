//! The scratch copy of the workspace, which bugs are put into.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use super::bugs::{Bug, SWITCHES};
use crate::{context::Context, run::Step};

/// The workspace as it was when this began, and the place of its copy.
#[derive(Debug)]
pub(super) struct Tree {
    /// The copy.
    pub(super) root: PathBuf,
    /// By the path from the workspace's root.
    files: BTreeMap<PathBuf, Vec<u8>>,
}

impl Tree {
    /// Reads the workspace: what git tracks, and what is new and not ignored. Nothing is copied yet.
    ///
    /// # Errors
    /// When git does not know the workspace, or a file cannot be read.
    pub(super) fn read(context: &Context, root: PathBuf) -> Result<Self> {
        let list = "git ls-files -z --cached --others --exclude-standard";
        let listed = Step::new(context, list).output()?;
        if !listed.success {
            bail!("`{list}`: {}", listed.stderr.trim());
        }
        let mut files = BTreeMap::new();
        for name in listed.stdout.split_terminator('\0') {
            match fs::read(context.root.join(name)) {
                Ok(bytes) => files.insert(name.into(), bytes),
                // Deleted, and git has not been told.
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(error).context(name.to_owned()),
            };
        }
        Ok(Self { root, files })
    }

    /// The files that change when these bugs are put in, as they are then.
    ///
    /// # Errors
    /// When a bug does not fit, perhaps because one before it has taken its place.
    pub(super) fn patched(&self, bugs: &[&Bug]) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
        let mut changed: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::new();
        let source = |changed: &BTreeMap<PathBuf, Vec<u8>>, path: &Path| {
            let bytes = changed.get(path).or_else(|| self.files.get(path));
            let bytes = bytes.with_context(|| format!("there is no {}", path.display()))?;
            Ok::<_, anyhow::Error>(std::str::from_utf8(bytes)?.to_owned())
        };
        for bug in bugs {
            let path = Path::new(bug.file);
            let text = source(&changed, path).with_context(|| bug.name)?;
            changed.insert(path.to_owned(), bug.patch(&text)?.into_bytes());
        }
        if bugs.iter().any(|bug| bug.is_switched()) {
            let path = Path::new("driver/src/lib.rs");
            let text = source(&changed, path)? + SWITCHES;
            changed.insert(path.to_owned(), text.into_bytes());
        }
        Ok(changed)
    }

    /// Makes the copy what the workspace was, with `bugs` in it. A file that is right already is left alone and one that
    /// changes gets the present time, also when it gets its old content back: by its time cargo sees what to build again.
    ///
    /// # Errors
    /// When the copy cannot be written, or a bug does not fit.
    pub(super) fn lay(&self, bugs: &[&Bug]) -> Result<()> {
        let changed = self.patched(bugs)?;
        fs::create_dir_all(&self.root).with_context(|| self.root.display().to_string())?;
        self.remove_strangers(&self.root)?;
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

    /// What the workspace has no more, and what programs have left: cargo finds programs and tests by their place.
    fn remove_strangers(&self, folder: &Path) -> Result<()> {
        for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
            let entry = entry?;
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                self.remove_strangers(&path)?;
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

    const BUG: Bug = Bug {
        name: "one-is-two",
        file: "driver/src/a.rs",
        find: "1",
        replace: "2",
        what: "sums are wrong",
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
    fn a_bug_comes_and_goes_and_leaves_the_rest_alone() {
        let tree = tree("sabotage-lay");
        let file = tree.root.join(BUG.file);
        let manifest = tree.root.join("Cargo.toml");
        let changed = |path: &Path| -> SystemTime { path.metadata().unwrap().modified().unwrap() };
        tree.lay(&[]).unwrap();
        let before = changed(&manifest);
        for (bugs, text) in [(vec![&BUG], "a = 2"), (vec![], "a = 1")] {
            tree.lay(&bugs).unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), text);
            assert!(changed(&file) >= before);
        }
        assert_eq!(changed(&manifest), before);
        fs::remove_dir_all(&tree.root).unwrap();
    }

    #[test]
    fn bugs_with_switches_stand_beside_one_another_but_not_in_one_place() {
        let mut tree = tree("sabotage-together");
        tree.files
            .insert("driver/src/a.rs".into(), b"a = 1; b = 3".to_vec());
        tree.files
            .insert("driver/src/lib.rs".into(), b"mod a;".to_vec());
        let first = Bug {
            replace: "(1 + i($ON))",
            ..BUG
        };
        let second = Bug {
            name: "three-is-four",
            find: "3",
            replace: "(3 + i($ON))",
            ..BUG
        };
        let files = tree.patched(&[&first, &second]).unwrap();
        assert_eq!(
            std::str::from_utf8(&files[Path::new("driver/src/a.rs")]).unwrap(),
            r#"a = (1 + i(crate::sabotage("one-is-two"))); b = (3 + i(crate::sabotage("three-is-four")))"#
        );
        assert!(files[Path::new("driver/src/lib.rs")].ends_with(SWITCHES.as_bytes()));
        let in_the_way = Bug {
            find: "1;",
            ..second
        };
        assert!(tree.patched(&[&first, &in_the_way]).is_err());
        // Without a switch nothing asks for one.
        assert_eq!(tree.patched(&[&BUG]).unwrap().len(), 1);
    }

    #[test]
    fn what_does_not_belong_there_is_removed() {
        let tree = tree("sabotage-strangers");
        let left = tree.root.join("driver/src/bin/left.rs");
        fs::create_dir_all(left.parent().unwrap()).unwrap();
        fs::write(&left, "fn main() {}").unwrap();
        tree.lay(&[]).unwrap();
        assert!(!left.exists());
        fs::remove_dir_all(&tree.root).unwrap();
    }

    #[test]
    fn a_bug_of_a_file_that_has_gone_is_named() {
        let bug = Bug {
            file: "driver/src/b.rs",
            ..BUG
        };
        let error = tree("sabotage-gone").patched(&[&bug]).unwrap_err();
        let error = format!("{error:#}");
        assert!(
            error.contains(BUG.name) && error.contains(bug.file),
            "{error}"
        );
    }
}
