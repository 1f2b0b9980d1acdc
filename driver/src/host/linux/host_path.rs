//! Where a file of the host is, as seen from the driver: below another root, whose links mean places below that root.
//!
//! `/etc/iscsi` may be a link, and so may each file in it (NixOS: `/etc/iscsi/iscsid.conf` leads to `/etc/static` and on to
//! `/nix/store`). Followed from here, an absolute link would lead to a file of the driver's own container.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::nsenter::Root;

/// Where a file is, for as long as this is kept.
#[derive(Debug)]
pub(super) struct Place {
    /// As seen from here, its links not looked after.
    pub(super) path: PathBuf,
    /// Links do not lead out of it.
    within: Option<PathBuf>,
    /// The process below whose root it is must not be forgotten meanwhile.
    _below: Option<Root>,
}

/// A path that leads through a descriptor, if links had to be looked after.
#[derive(Debug)]
pub(super) struct Real {
    pub(super) path: PathBuf,
    _held: Option<OwnedFd>,
}

impl Place {
    /// `path` as it is.
    pub(super) fn plain(path: PathBuf) -> Self {
        Self {
            path,
            within: None,
            _below: None,
        }
    }

    /// `inside`, a path without a slash at its beginning, below `root`.
    pub(super) fn within(root: PathBuf, inside: &str, below: Option<Root>) -> Self {
        Self {
            path: root.join(inside),
            within: Some(root),
            _below: below,
        }
    }

    /// The file that the path leads to, its last part included.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn followed(&self) -> io::Result<Real> {
        self.opened(|root, inside| {
            let held = open_in(root, inside, OFlags::empty())?;
            Ok((through(&held), held))
        })
    }

    /// The name itself, which need not exist: what is made, replaced or removed.
    ///
    /// # Errors
    /// There is no such folder.
    pub(super) fn named(&self) -> io::Result<Real> {
        self.opened(|root, inside| {
            let folder = inside.parent().filter(|it| !it.as_os_str().is_empty());
            let held = open_in(root, folder.unwrap_or(Path::new(".")), OFlags::DIRECTORY)?;
            let name = inside.file_name().unwrap_or_default();
            Ok((through(&held).join(name), held))
        })
    }

    fn opened(
        &self,
        open: impl FnOnce(&OwnedFd, &Path) -> rustix::io::Result<(PathBuf, OwnedFd)>,
    ) -> io::Result<Real> {
        let plain = || Real {
            path: self.path.clone(),
            _held: None,
        };
        let Some(root) = &self.within else {
            return Ok(plain());
        };
        let inside = self.path.strip_prefix(root).unwrap_or(&self.path);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(root, flags, Mode::empty())?;
        match open(&root, inside) {
            Ok((path, held)) => Ok(Real {
                path,
                _held: Some(held),
            }),
            // Linux before 5.6, and seccomp rules of that age.
            Err(Errno::NOSYS | Errno::PERM) => Ok(plain()),
            Err(error) => Err(error.into()),
        }
    }
}

fn open_in(root: &OwnedFd, inside: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = flags | OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::openat2(root, inside, flags, Mode::empty(), ResolveFlags::IN_ROOT)
}

fn through(held: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()))
}
