//! The data of the LUNs: one sparse file each, `luns/<uuid>.img`, of exactly the LUN's size.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::lun::Lun;
use crate::store::sync_dir;

/// The folder of the files.
#[derive(Debug)]
pub(crate) struct Backstore {
    dir: PathBuf,
}

impl Backstore {
    /// Opens the folder, and makes it when it is missing.
    ///
    /// # Errors
    /// It can be neither found nor made.
    pub(crate) fn open(state_dir: &Path) -> io::Result<Self> {
        // An absolute path, because it is told to others: loop devices and iSCSI targets.
        let dir = std::path::absolute(state_dir)?.join("luns");
        fs::create_dir_all(&dir)?;
        Ok(Self { dir })
    }

    /// The file of a LUN.
    pub(crate) fn path(&self, uuid: &str) -> PathBuf {
        self.dir.join(format!("{uuid}.img"))
    }

    /// Makes the file, or gives it this size; what is in it stays.
    ///
    /// # Errors
    /// The disk is full, or a file of this size cannot be.
    pub(crate) fn size(&self, uuid: &str, size: u64) -> io::Result<()> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.path(uuid))?;
        if file.metadata()?.len() != size {
            file.set_len(size)?;
        }
        file.sync_all()?;
        sync_dir(&self.dir)
    }

    /// Removes the file of a LUN that is gone.
    ///
    /// # Errors
    /// It is there and cannot be removed.
    pub(crate) fn discard(&self, uuid: &str) -> io::Result<()> {
        match fs::remove_file(self.path(uuid)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Bytes on disk; 0 when there is no file.
    pub(crate) fn allocated(&self, uuid: &str) -> u64 {
        fs::metadata(self.path(uuid)).map_or(0, |meta| meta.blocks() * 512)
    }

    /// Makes the files follow the state, after a crash at any moment: files without a LUN go, missing ones come, and
    /// each gets its LUN's size. A file that is too long was grown for a call that nobody got an answer to.
    ///
    /// # Errors
    /// The folder cannot be read, or a file cannot be made right.
    pub(crate) fn align(&self, luns: &BTreeMap<String, Lun>) -> io::Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let uuid = path
                .file_stem()
                .and_then(|stem| stem.to_str())
                .unwrap_or_default();
            if !luns.contains_key(uuid) {
                tracing::info!(path = %path.display(), "removing a file that belongs to no LUN");
                fs::remove_file(&path)?;
            }
        }
        luns.values()
            .try_for_each(|lun| self.size(&lun.uuid, lun.size))
    }
}
