//! Image files of LUNs and snapshots, all sparse: `luns/<uuid>.img`, exactly as large as the LUN, and `snapshots/<uuid>.img`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use node_sim::sparse;
use node_sim::target::loopdev;

use crate::nas::effect::Image;
use crate::nas::state::State;

/// The directories of the image files.
#[derive(Clone, Debug)]
pub(crate) struct Backstore {
    luns: PathBuf,
    snapshots: PathBuf,
}

impl Backstore {
    /// Opens the directories, and creates missing ones.
    ///
    /// # Errors
    /// A directory cannot be created.
    pub(crate) fn open(state_dir: &Path) -> io::Result<Self> {
        // Absolute paths, because loop devices and iSCSI targets get them.
        let dir = std::path::absolute(state_dir)?;
        let store = Self {
            luns: dir.join("luns"),
            snapshots: dir.join("snapshots"),
        };
        fs::create_dir_all(&store.luns)?;
        fs::create_dir_all(&store.snapshots)?;
        Ok(store)
    }

    /// The path of an image file.
    pub(crate) fn path(&self, image: &Image) -> PathBuf {
        match image {
            Image::Lun(uuid) => self.luns.join(format!("{uuid}.img")),
            Image::Snapshot(uuid) => self.snapshots.join(format!("{uuid}.img")),
        }
    }

    /// Creates a LUN's image file or resizes it; its content stays.
    ///
    /// # Errors
    /// The disk is full, or the file system does not support this size.
    pub(crate) fn ensure_size(&self, uuid: &str, size: u64) -> io::Result<()> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.path(&Image::Lun(uuid.to_owned())))?;
        if file.metadata()?.len() != size {
            file.set_len(size)?;
        }
        Ok(())
    }

    /// Copies an image over another, with this size. Atomic: the old image stays until the copy is complete. The copy is a new
    /// file, so whoever has the old one open must reopen it.
    ///
    /// # Errors
    /// The disk is full, or the source cannot be read.
    pub(crate) fn copy(&self, from: &Image, to: &Image, size: u64) -> io::Result<()> {
        let path = self.path(to);
        // `align` removes it after a kill.
        let temporary = path.with_extension("new");
        let result = (|| {
            let (from, to) = (File::open(self.path(from))?, File::create(&temporary)?);
            sparse::copy(&from, &to)?;
            to.set_len(size)?;
            fs::rename(&temporary, &path)
        })();
        if result.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        result
    }

    /// Deletes an image file. Idempotent.
    ///
    /// # Errors
    /// The file exists and cannot be deleted.
    pub(crate) fn discard(&self, image: &Image) -> io::Result<()> {
        match fs::remove_file(self.path(image)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Bytes allocated on disk; 0 if there is no file.
    pub(crate) fn allocated(&self, image: &Image) -> u64 {
        fs::metadata(self.path(image)).map_or(0, |meta| meta.blocks() * 512)
    }

    /// Makes the files match the state after a crash at any point: deletes orphaned files, creates missing ones, and resizes each
    /// LUN's. A file that is too long was grown for a call that was never answered.
    ///
    /// # Errors
    /// A directory cannot be read, or a file cannot be repaired.
    pub(crate) fn align(&self, state: &State) -> io::Result<()> {
        type ToImage = fn(String) -> Image;
        for (dir, image) in [
            (&self.luns, Image::Lun as ToImage),
            (&self.snapshots, Image::Snapshot),
        ] {
            for entry in fs::read_dir(dir)? {
                let path = entry?.path();
                loopdev::clear_immutable(&path)?;
                let stem = path.file_stem().and_then(|stem| stem.to_str());
                let image = image(stem.unwrap_or_default().to_owned());
                if !state.has(&image) || self.path(&image) != path {
                    tracing::info!(path = %path.display(), "removing an orphaned image file");
                    fs::remove_file(&path)?;
                }
            }
        }
        for lun in state.luns.values() {
            self.ensure_size(&lun.uuid, lun.size)?;
        }
        Ok(())
    }
}
