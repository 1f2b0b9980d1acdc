//! What is mounted where, and whose it is. Nothing is unmounted that is provably not ours, and nothing is taken for stale
//! that is not proven to be (design.md#identity-before-action and #unstage-needs-no-nas).

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::OnceCell as Once;

use super::Machine;
use crate::error::{Context as _, Error};
use crate::host::disk::{self, Block};
use crate::host::dm_multipath;
use crate::host::mount::{self, Line, Mount};
use crate::host::{DeviceNumber, Host, KernelFiles, Stat, if_present};

/// Loop devices: their nodes in `/dev` outlive what was attached to them, so a node proves nothing.
const LOOP_MAJOR: u64 = 7;
/// Mounts piled up at one path; more is not an accident.
const MAX_STACKED_MOUNTS: usize = 16;

/// What is visible at a path.
#[derive(Clone, Debug)]
pub(super) enum MountState {
    /// Nothing is mounted.
    Nothing,
    /// A mount of one of the devices asked about.
    Ours(Mount),
    /// A mount whose device the kernel no longer has.
    Gone(Mount),
    /// A mount of something else.
    Foreign(Mount),
}

/// What a mount shows.
enum Backing {
    Device(DeviceNumber),
    Vanished,
    NoDevice,
}

/// What the kernel says of its block devices, asked at most once for all mounts that are looked at together: there may be
/// hundreds of both.
#[derive(Default)]
struct Kernel {
    present: Once<BTreeSet<DeviceNumber>>,
    /// By the names that device-mapper gives them.
    mapped: Once<BTreeMap<String, DeviceNumber>>,
}

impl<H: Host> Machine<H> {
    /// Those of this mount namespace's table that are wanted.
    pub(super) async fn mounts(
        &self,
        wanted: impl Fn(&Line<'_>) -> bool + Send + 'static,
    ) -> Result<Vec<Mount>, Error> {
        let doing = "reading the mount table";
        let look =
            move |files: &dyn KernelFiles| mount::select(&files.read(mount::MOUNTINFO)?, &wanted);
        self.host.blocking(doing, look).await.context(doing)
    }

    /// `path` as the mount table would spell it. `None` when even its parent does not exist.
    ///
    /// Where it is known which directory is the CO's, nothing outside of it is looked at or touched, and no link leads out of it.
    pub(super) async fn resolve(&self, path: &str) -> Result<Option<String>, Error> {
        let resolved =
            if_present(self.host.resolve(path).await).context(format!("resolving {path}"))?;
        let (Some(dir), Some(real)) = (&self.kubelet_dir, &resolved) else {
            return Ok(resolved);
        };
        // The directory itself may be a link.
        let inside = self.host.resolve(&format!("{dir}/x")).await;
        let inside = inside.context(format!("resolving {dir}"))?;
        let base = inside.strip_suffix("/x").unwrap_or(&inside);
        let rest = path.strip_prefix(dir.as_str());
        let seen = match rest.filter(|rest| rest.starts_with('/')) {
            None => format!("it is not below {dir}"),
            Some(rest) if *real == format!("{base}{rest}") => return Ok(resolved),
            Some(_) => format!("a symbolic link in it leads to {real}"),
        };
        Err(Error::Refused {
            what: format!("using {path}"),
            seen,
            remedy: "name a path below the kubelet's directory and without symbolic links (the chart's kubeletDir, the driver's --kubelet-dir)".to_owned(),
        })
    }

    /// What is visible at `point`, where `ours` are the devices of the volume.
    pub(super) async fn mount_state_at(
        &self,
        point: &str,
        ours: &[Block],
    ) -> Result<MountState, Error> {
        // The whole table takes the kernel longer the more is mounted, and mostly there is nothing. Of a dead file system it may not tell.
        if matches!(self.host.is_mount_point(point).await, Ok(Some(false))) {
            return Ok(MountState::Nothing);
        }
        let at = point.to_owned();
        // Of several the last is visible.
        let Some(visible) = self.mounts(move |line| line.is_at(&at)).await?.pop() else {
            return Ok(MountState::Nothing);
        };
        let kernel = Kernel::default();
        Ok(match self.backing(&visible, &kernel).await? {
            Backing::Vanished => MountState::Gone(visible),
            Backing::Device(number) if ours.iter().any(|block| block.number == number) => {
                MountState::Ours(visible)
            }
            Backing::Device(number) if self.is_gone(&visible, number, &kernel).await? => {
                MountState::Gone(visible)
            }
            Backing::Device(_) | Backing::NoDevice => MountState::Foreign(visible),
        })
    }

    /// The block device that a mount shows.
    async fn backing(&self, mount: &Mount, kernel: &Kernel) -> Result<Backing, Error> {
        let doing = || format!("looking at what is mounted at {}", mount.point);
        if mount.device_node().is_some() {
            // A file below it may be deleted and be no device at all: a Secret that is mounted by `subPath` and was changed since.
            return Ok(match self.host.stat(&mount.point).await.context(doing())? {
                Stat::BlockDevice(_) if mount.is_deleted() => Backing::Vanished,
                Stat::BlockDevice(number) => Backing::Device(number),
                Stat::Directory | Stat::File(_) | Stat::Other => Backing::NoDevice,
            });
        }
        if mount.fs != "btrfs" {
            // Major 0 is invented for file systems without a device: tmpfs, overlay, nfs.
            return Ok(if mount.device.major == 0 {
                Backing::NoDevice
            } else {
                Backing::Device(mount.device)
            });
        }
        // btrfs has an invented number too. Its device's name cannot be given to another one while it is mounted.
        if let Some(name) = mount.source.strip_prefix("/dev/mapper/") {
            // Usually a symbolic link, and not always there in a container.
            let mapped = kernel
                .mapped
                .get_or_try_init(|| self.host.blocking("listing maps", dm_multipath::numbers))
                .await;
            let number = mapped.context(doing())?.get(name);
            return Ok(number.copied().map_or(Backing::Vanished, Backing::Device));
        }
        Ok(
            match if_present(self.host.stat(&mount.source).await).context(doing())? {
                Some(Stat::BlockDevice(number)) => Backing::Device(number),
                None => Backing::Vanished,
                Some(Stat::Directory | Stat::File(_) | Stat::Other) => Backing::NoDevice,
            },
        )
    }

    /// True when the kernel no longer has the device of a mount.
    async fn is_gone(
        &self,
        mount: &Mount,
        number: DeviceNumber,
        kernel: &Kernel,
    ) -> Result<bool, Error> {
        let doing = || format!("looking for the device {number} of {}", mount.point);
        let present = kernel
            .present
            .get_or_try_init(|| self.host.blocking("listing disks", disk::present_devices))
            .await;
        if present.context(doing())?.contains(&number) {
            return Ok(false);
        }
        let node = if_present(self.host.stat(&mount.source).await).context(doing())?;
        Ok(number.major == LOOP_MAJOR || node != Some(Stat::BlockDevice(number)))
    }

    /// True when some mount here shows a disk that the kernel no longer has. Loop devices are left out: without a disk to
    /// compare them with, they could be anybody's.
    pub(super) async fn any_stale_mount(&self) -> Result<bool, Error> {
        let kernel = Kernel::default();
        let of_device =
            |line: &Line<'_>| line.source().starts_with("/dev/") || line.device_node().is_some();
        for mount in self.mounts(of_device).await? {
            let stale = match self.backing(&mount, &kernel).await? {
                Backing::Vanished => true,
                Backing::NoDevice => false,
                Backing::Device(number) => {
                    number.major != LOOP_MAJOR && self.is_gone(&mount, number, &kernel).await?
                }
            };
            if stale {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Where the devices are mounted as a whole, or bound as devices. A part bound elsewhere (a pod's `subPath`) is not a
    /// publication of its own.
    pub(super) async fn uses(&self, blocks: &[Block]) -> Result<Vec<String>, Error> {
        let whole = |mount: &Mount| mount.device_node().is_some() || mount.root == "/";
        self.mounts_of(blocks, whole).await
    }

    /// Where the devices are mounted or bound, parts of them included.
    pub(super) async fn shows(&self, blocks: &[Block]) -> Result<Vec<String>, Error> {
        self.mounts_of(blocks, |_| true).await
    }

    async fn mounts_of(
        &self,
        blocks: &[Block],
        counts: impl Fn(&Mount) -> bool,
    ) -> Result<Vec<String>, Error> {
        if blocks.is_empty() {
            return Ok(vec![]);
        }
        let (mut points, kernel) = (Vec::new(), Kernel::default());
        for mount in self.mounts_that_may_be_of(blocks).await? {
            if counts(&mount)
                && let Backing::Device(number) = self.backing(&mount, &kernel).await?
                && blocks.iter().any(|block| block.number == number)
            {
                points.push(mount.point);
            }
        }
        Ok(points)
    }

    /// Mounts that show one of these devices, or of which the table alone does not tell what they show.
    async fn mounts_that_may_be_of(&self, blocks: &[Block]) -> Result<Vec<Mount>, Error> {
        let blocks = blocks.to_vec();
        let doing = "reading the mount table";
        let look = move |files: &dyn KernelFiles| {
            let table = files.read(mount::MOUNTINFO)?;
            let disks = OnceCell::new();
            let names = || disk::names(files).unwrap_or_default();
            mount::select(&table, |line| {
                if let Some(name) = line.device_node() {
                    return blocks.iter().any(|block| block.name == name);
                }
                if line.fs != "btrfs" {
                    return blocks.iter().any(|block| block.number == line.device);
                }
                // Where it was mounted from a disk by the kernel's own name for it, that name is no other's.
                let source = line.source();
                let name = source.strip_prefix("/dev/").unwrap_or(&source);
                blocks.iter().any(|block| block.name == name)
                    || !disks.get_or_init(names).contains(name)
            })
        };
        self.host.blocking(doing, look).await.context(doing)
    }

    /// Unmounts what is visible at `point`.
    pub(super) async fn unmount(&self, point: &str) -> Result<(), Error> {
        self.run(&format!("unmounting {point}"), mount::unmount(point))
            .await
            .map(|_| ())
    }

    /// Unmounts what is visible at `point` and has lost its device, even if somebody still looks at it.
    async fn unmount_gone(&self, point: &str) -> Result<(), Error> {
        if self.unmount(point).await.is_ok() {
            return Ok(());
        }
        self.run(
            &format!("unmounting {point} from its lost device"),
            mount::unmount_lazily(point),
        )
        .await
        .map(|_| ())
    }

    /// Unmounts everything at `point` that is ours or has lost its device, and refuses to touch anything else.
    pub(super) async fn clear(&self, point: &str, ours: &[Block]) -> Result<(), Error> {
        for _ in 0..MAX_STACKED_MOUNTS {
            match self.mount_state_at(point, ours).await? {
                MountState::Nothing => return Ok(()),
                MountState::Ours(_) => self.unmount(point).await?,
                MountState::Gone(_) => self.unmount_gone(point).await?,
                MountState::Foreign(mount) => return Err(not_ours(&mount)),
            }
        }
        Err(Error::Unverified {
            what: format!("unmounting {point}"),
            seen: "something is still mounted there".to_owned(),
        })
    }

    /// Removes mounts at `point` that have lost their device, and tells what is visible then.
    pub(super) async fn clear_gone(
        &self,
        point: &str,
        ours: &[Block],
    ) -> Result<MountState, Error> {
        for _ in 0..MAX_STACKED_MOUNTS {
            match self.mount_state_at(point, ours).await? {
                MountState::Gone(mount) => {
                    tracing::warn!(
                        point,
                        lost = mount.describe(),
                        "removing a mount whose device is gone"
                    );
                    self.unmount_gone(point).await?;
                }
                other @ (MountState::Nothing | MountState::Ours(_) | MountState::Foreign(_)) => {
                    return Ok(other);
                }
            }
        }
        Err(Error::Unverified {
            what: format!("unmounting {point}"),
            seen: "something is still mounted there".to_owned(),
        })
    }
}

/// Somebody else's mount is in the way.
pub(super) fn not_ours(mount: &Mount) -> Error {
    Error::Refused {
        what: format!("using {}", mount.point),
        seen: format!(
            "{} is mounted there, which is not this volume",
            mount.describe()
        ),
        remedy: "unmount it if it may go".to_owned(),
    }
}
