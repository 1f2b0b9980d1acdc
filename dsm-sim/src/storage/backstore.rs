//! The data of LUNs and snapshots: one sparse file each, `luns/<uuid>.img` of exactly the LUN's size, and
//! `snapshots/<uuid>.img`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use node_sim::sparse;
use node_sim::target::loopdev;

use crate::nas::effect::Image;
use crate::nas::state::State;

/// The folders of the files.
#[derive(Clone, Debug)]
pub(crate) struct Backstore {
    luns: PathBuf,
    snapshots: PathBuf,
}

impl Backstore {
    /// Opens the folders, and makes them when they are missing.
    ///
    /// # Errors
    /// They can be neither found nor made.
    pub(crate) fn open(state_dir: &Path) -> io::Result<Self> {
        // Absolute paths, because they are told to others: loop devices and iSCSI targets.
        let dir = std::path::absolute(state_dir)?;
        let store = Self {
            luns: dir.join("luns"),
            snapshots: dir.join("snapshots"),
        };
        fs::create_dir_all(&store.luns)?;
        fs::create_dir_all(&store.snapshots)?;
        Ok(store)
    }

    /// The file of an image.
    pub(crate) fn path(&self, image: &Image) -> PathBuf {
        match image {
            Image::Lun(uuid) => self.luns.join(format!("{uuid}.img")),
            Image::Snapshot(uuid) => self.snapshots.join(format!("{uuid}.img")),
        }
    }

    /// Makes a LUN's file, or gives it this size; what is in it stays.
    ///
    /// # Errors
    /// The disk is full, or a file of this size cannot be.
    pub(crate) fn size(&self, uuid: &str, size: u64) -> io::Result<()> {
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

    /// Makes an image a copy of another, with this size. Until it is whole, the old one is there. The new one is another
    /// file, so whoever has the old one open must open it again.
    ///
    /// # Errors
    /// The disk is full, or the source cannot be read.
    pub(crate) fn copy(&self, from: &Image, to: &Image, size: u64) -> io::Result<()> {
        let path = self.path(to);
        // `align` removes it after a kill.
        let unfinished = path.with_extension("new");
        let copied = (|| {
            let (from, to) = (File::open(self.path(from))?, File::create(&unfinished)?);
            sparse::copy(&from, &to)?;
            to.set_len(size)?;
            fs::rename(&unfinished, &path)
        })();
        if copied.is_err() {
            let _ = fs::remove_file(&unfinished);
        }
        copied
    }

    /// Removes the file of something that is gone.
    ///
    /// # Errors
    /// It is there and cannot be removed.
    pub(crate) fn discard(&self, image: &Image) -> io::Result<()> {
        match fs::remove_file(self.path(image)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Bytes on disk; 0 when there is no file.
    pub(crate) fn allocated(&self, image: &Image) -> u64 {
        fs::metadata(self.path(image)).map_or(0, |meta| meta.blocks() * 512)
    }

    /// Makes the files follow the state, after a crash at any moment: files of nothing go, missing ones come, and
    /// each LUN's gets its size. A file that is too long was grown for a call that nobody got an answer to.
    ///
    /// # Errors
    /// A folder cannot be read, or a file cannot be made right.
    pub(crate) fn align(&self, state: &State) -> io::Result<()> {
        type Named = fn(String) -> Image;
        for (dir, image) in [
            (&self.luns, Image::Lun as Named),
            (&self.snapshots, Image::Snapshot),
        ] {
            for entry in fs::read_dir(dir)? {
                let path = entry?.path();
                loopdev::thaw(&path)?;
                let stem = path.file_stem().and_then(|stem| stem.to_str());
                let image = image(stem.unwrap_or_default().to_owned());
                if !state.has(&image) || self.path(&image) != path {
                    tracing::info!(path = %path.display(), "removing a file of nothing");
                    fs::remove_file(&path)?;
                }
            }
        }
        for lun in state.luns.values() {
            self.size(&lun.uuid, lun.size)?;
        }
        Ok(())
    }
}
