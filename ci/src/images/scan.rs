//! Scans the files of an image: size, packages, setuid files and shells.

use std::{
    fs::{self, File},
    path::Path,
};

use anyhow::{Context as _, Result};
use tar::{Archive, EntryType};

use super::engine::Engine;
use crate::context::Context;

/// The list of packages that `ci/images/collect` writes.
const PACKAGES: &str = "usr/share/doc/packages";
const SHELLS: [&str; 9] = [
    "ash", "bash", "busybox", "csh", "dash", "ksh", "sh", "tcsh", "zsh",
];

/// The contents of an image.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Content {
    /// Total size of its files.
    pub(super) bytes: u64,
    /// Number of its files.
    pub(super) files: usize,
    /// `NAME VERSION` of each package.
    pub(super) packages: Vec<String>,
    /// Files with the setuid or setgid bit.
    pub(super) setuid: Vec<String>,
    pub(super) shells: Vec<String>,
}

impl Content {
    /// Scans an image of the engine.
    ///
    /// # Errors
    /// When it cannot be exported or read.
    pub(super) fn of(context: &Context, engine: &Engine<'_>, image: &str) -> Result<Self> {
        let file = context.target.join("images/content.tar");
        let created = engine.docker("create").arg(image).output()?;
        let container = created.stdout.trim();
        let exported = engine.docker("export --output").arg(&file).arg(container);
        let result = exported
            .run_quietly(&format!("Scanning {image}"))
            .and_then(|()| Self::read(Archive::new(File::open(&file)?)));
        engine.docker("rm").arg(container).output()?;
        fs::remove_file(&file)?;
        result
    }

    fn read(mut archive: Archive<impl std::io::Read>) -> Result<Self> {
        let mut content = Self::default();
        for entry in archive.entries()? {
            let mut entry = entry?;
            let path = entry.path()?.into_owned();
            let (path_text, mode) = (path.display().to_string(), entry.header().mode()?);
            let name = path.file_name().and_then(|name| name.to_str());
            let kind = entry.header().entry_type();
            if kind == EntryType::Directory {
                continue;
            }
            // Symbolic links count too: those of busybox are shells.
            if name.is_some_and(|name| SHELLS.contains(&name)) && is_program(&path) {
                content.shells.push(path_text.clone());
            }
            if kind != EntryType::Regular {
                continue;
            }
            content.files += 1;
            content.bytes += entry.size();
            if mode & 0o6000 != 0 {
                content.setuid.push(path_text);
            }
            if path == Path::new(PACKAGES) {
                let text = std::io::read_to_string(&mut entry).context(PACKAGES)?;
                content.packages = text.lines().map(str::to_owned).collect();
            }
        }
        Ok(content)
    }
}

fn is_program(path: &Path) -> bool {
    let folder = path.parent().and_then(Path::file_name);
    folder.is_some_and(|folder| folder == "bin" || folder == "sbin")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tar::{Builder, Header};

    fn add(to: &mut Builder<Vec<u8>>, path: &str, mode: u32, text: &str) {
        let mut header = Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(mode);
        to.append_data(&mut header, path, text.as_bytes()).unwrap();
    }

    #[test]
    fn shells_setuid_files_and_packages_are_found() {
        let mut image = Builder::new(Vec::new());
        add(&mut image, "usr/bin/mount", 0o4755, "mount");
        add(&mut image, "usr/bin/blkid", 0o755, "blkid");
        add(&mut image, PACKAGES, 0o644, "mount 1\nutil-linux 2\n");
        add(&mut image, "usr/share/doc/sh", 0o644, "");
        let mut link = Header::new_gnu();
        link.set_entry_type(EntryType::Symlink);
        link.set_size(0);
        link.set_mode(0o777);
        image.append_link(&mut link, "usr/bin/sh", "dash").unwrap();
        let bytes = image.into_inner().unwrap();
        let content = Content::read(Archive::new(&bytes[..])).unwrap();
        assert_eq!(
            content,
            Content {
                bytes: 31,
                files: 4,
                packages: vec!["mount 1".to_owned(), "util-linux 2".to_owned()],
                setuid: vec!["usr/bin/mount".to_owned()],
                shells: vec!["usr/bin/sh".to_owned()],
            }
        );
    }
}
