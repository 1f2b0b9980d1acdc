//! Resolves paths of host files from the driver's container: below another root, with symbolic links resolved within that root.
//!
//! `/etc/iscsi` may be a link, and so may each file in it (NixOS: `/etc/iscsi/iscsid.conf` links to `/etc/static` and on to
//! `/nix/store`). Without this, an absolute link would lead to a file of the driver's own container.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::nsenter::Root;

/// The path of a host file; valid as long as this value lives.
#[derive(Debug)]
pub(super) struct HostPath {
    /// The path as seen by the driver, with links unresolved.
    pub(super) path: PathBuf,
    /// The root that links must not leave.
    within: Option<PathBuf>,
    /// Keeps the process open whose root this is.
    _owner: Option<Root>,
}

/// A resolved path, which goes through an open descriptor (`/proc/self/fd/N`) if links had to be resolved within a root.
#[derive(Debug)]
pub(super) struct ResolvedPath {
    pub(super) path: PathBuf,
    _fd: Option<OwnedFd>,
}

impl HostPath {
    /// `path` as it is, without a root.
    pub(super) fn plain(path: PathBuf) -> Self {
        Self {
            path,
            within: None,
            _owner: None,
        }
    }

    /// `relative`, a path without a leading slash, below `root`.
    pub(super) fn within(root: PathBuf, relative: &str, owner: Option<Root>) -> Self {
        Self {
            path: root.join(relative),
            within: Some(root),
            _owner: owner,
        }
    }

    /// Resolves all links, including the last part of the path.
    ///
    /// # Errors
    /// The file does not exist.
    pub(super) fn follow_links(&self) -> io::Result<ResolvedPath> {
        self.resolve(|root, relative| {
            let fd = open_in(root, relative, OFlags::empty())?;
            Ok((fd_path(&fd), fd))
        })
    }

    /// Resolves the links of the directory only. The last part need not exist: it is the file to create, replace or remove.
    ///
    /// # Errors
    /// The directory does not exist.
    pub(super) fn without_last_link(&self) -> io::Result<ResolvedPath> {
        self.resolve(|root, relative| {
            let folder = relative.parent().filter(|it| !it.as_os_str().is_empty());
            let fd = open_in(root, folder.unwrap_or(Path::new(".")), OFlags::DIRECTORY)?;
            let name = relative.file_name().unwrap_or_default();
            Ok((fd_path(&fd).join(name), fd))
        })
    }

    fn resolve(
        &self,
        open: impl FnOnce(&OwnedFd, &Path) -> rustix::io::Result<(PathBuf, OwnedFd)>,
    ) -> io::Result<ResolvedPath> {
        let plain = || ResolvedPath {
            path: self.path.clone(),
            _fd: None,
        };
        let Some(root) = &self.within else {
            return Ok(plain());
        };
        let relative = self.path.strip_prefix(root).unwrap_or(&self.path);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(root, flags, Mode::empty())?;
        match open(&root, relative) {
            Ok((path, fd)) => Ok(ResolvedPath {
                path,
                _fd: Some(fd),
            }),
            // Linux before 5.6 has no openat2, and old seccomp profiles forbid it.
            Err(Errno::NOSYS | Errno::PERM) => Ok(plain()),
            Err(error) => Err(error.into()),
        }
    }
}

fn open_in(root: &OwnedFd, relative: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = flags | OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::openat2(root, relative, flags, Mode::empty(), ResolveFlags::IN_ROOT)
}

fn fd_path(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}
