//! The scratch copy of the workspace, which bugs are put into.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use super::bugs::Bug;
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

    /// The source file that a bug belongs into, with the bug in it.
    ///
    /// # Errors
    /// When the bug does not fit it.
    pub(super) fn patched(&self, bug: &Bug) -> Result<String> {
        let bytes = self.files.get(Path::new(bug.file));
        let bytes = bytes.with_context(|| format!("{}: there is no {}", bug.name, bug.file))?;
        bug.patch(std::str::from_utf8(bytes).context(bug.file)?)
    }

    /// Makes the copy what the workspace was, with `bug` in it. A file that is right already is left alone and one that
    /// changes gets the present time, also when it gets its old content back: by its time cargo sees what to build again.
    ///
    /// # Errors
    /// When the copy cannot be written, or the bug does not fit.
    pub(super) fn lay(&self, bug: Option<&Bug>) -> Result<()> {
        fs::create_dir_all(&self.root).with_context(|| self.root.display().to_string())?;
        self.remove_strangers(&self.root)?;
        for (path, bytes) in &self.files {
            match bug.filter(|bug| path == Path::new(bug.file)) {
                Some(bug) => self.write(path, self.patched(bug)?.as_bytes())?,
                None => self.write(path, bytes)?,
            }
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
        tree.lay(None).unwrap();
        let before = changed(&manifest);
        for (bug, text) in [(Some(&BUG), "a = 2"), (None, "a = 1")] {
            tree.lay(bug).unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), text);
            assert!(changed(&file) >= before);
        }
        assert_eq!(changed(&manifest), before);
        fs::remove_dir_all(&tree.root).unwrap();
    }

    #[test]
    fn what_does_not_belong_there_is_removed() {
        let tree = tree("sabotage-strangers");
        let left = tree.root.join("driver/src/bin/left.rs");
        fs::create_dir_all(left.parent().unwrap()).unwrap();
        fs::write(&left, "fn main() {}").unwrap();
        tree.lay(None).unwrap();
        assert!(!left.exists());
        fs::remove_dir_all(&tree.root).unwrap();
    }

    #[test]
    fn a_bug_of_a_file_that_has_gone_is_named() {
        let bug = Bug {
            file: "driver/src/b.rs",
            ..BUG
        };
        let error = tree("sabotage-gone").patched(&bug).unwrap_err().to_string();
        assert!(
            error.contains(BUG.name) && error.contains(bug.file),
            "{error}"
        );
    }
}
