//! Mount points: what is mounted where, and whether it is the volume's, stale or foreign. A foreign mount is never unmounted, and
//! a mount counts as stale only if its device is proven gone (design.md#identity-before-action and #unstage-needs-no-nas).

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::OnceCell as Once;

use super::Machine;
use crate::error::{Context as _, Error};
use crate::host::disk::{self, Block};
use crate::host::dm_multipath;
use crate::host::mount::{self, Line, Mount};
use crate::host::{DeviceNumber, Host, KernelFiles, Stat, if_present};

/// Major number of loop devices: their nodes in `/dev` always exist, so a node does not prove that the device is in use.
const LOOP_MAJOR: u64 = 7;
/// How many stacked mounts at one path are unmounted before the call gives up.
const MAX_STACKED_MOUNTS: usize = 16;

/// The uppermost mount at a path.
#[derive(Clone, Debug)]
pub(super) enum MountState {
    /// Nothing is mounted.
    Nothing,
    /// A mount of one of the volume's devices.
    Ours(Mount),
    /// A mount whose device the kernel no longer has.
    Gone(Mount),
    /// A mount of something else.
    Foreign(Mount),
}

/// The block device behind a mount.
enum Backing {
    Device(DeviceNumber),
    Vanished,
    NoDevice,
}

/// The kernel's lists of block devices, each read at most once per check of several mounts: there may be hundreds of both.
#[derive(Default)]
struct KernelDevices {
    present: Once<BTreeSet<DeviceNumber>>,
    /// Device-mapper devices by name.
    mapped: Once<BTreeMap<String, DeviceNumber>>,
}

impl<H: Host> Machine<H> {
    /// The entries of this mount namespace's table that match `wanted`.
    pub(super) async fn mounts(
        &self,
        wanted: impl Fn(&Line<'_>) -> bool + Send + 'static,
    ) -> Result<Vec<Mount>, Error> {
        let doing = "reading the mount table";
        let read =
            move |files: &dyn KernelFiles| mount::select(&files.read(mount::MOUNTINFO)?, &wanted);
        self.host.blocking(doing, read).await.context(doing)
    }

    /// `path` as the mount table would spell it. `None` if even its parent does not exist.
    ///
    /// # Errors
    /// `Refused` if the path is not below the kubelet's directory, if that is configured, or contains a symbolic link.
    pub(super) async fn resolve(&self, path: &str) -> Result<Option<String>, Error> {
        let resolved =
            if_present(self.host.resolve(path).await).context(format!("resolving {path}"))?;
        let (Some(dir), Some(real)) = (&self.kubelet_dir, &resolved) else {
            return Ok(resolved);
        };
        // The kubelet's directory itself may be a link.
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

    /// The uppermost mount at `point`; `ours` are the volume's devices.
    pub(super) async fn mount_state_at(
        &self,
        point: &str,
        ours: &[Block],
    ) -> Result<MountState, Error> {
        // A cheap check for the common case: reading the whole table takes longer the more is mounted. It may fail on a dead file
        // system.
        if matches!(self.host.is_mount_point(point).await, Ok(Some(false))) {
            return Ok(MountState::Nothing);
        }
        let at = point.to_owned();
        // Of several stacked mounts the last is the uppermost.
        let Some(visible) = self.mounts(move |line| line.is_at(&at)).await?.pop() else {
            return Ok(MountState::Nothing);
        };
        let kernel = KernelDevices::default();
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

    async fn backing(&self, mount: &Mount, kernel: &KernelDevices) -> Result<Backing, Error> {
        let doing = || format!("checking what is mounted at {}", mount.point);
        if mount.device_node().is_some() {
            // A deleted bind source need not be a device: it may be a file, as of a Secret that is mounted by `subPath` and was
            // changed.
            return Ok(match self.host.stat(&mount.point).await.context(doing())? {
                Stat::BlockDevice(_) if mount.is_deleted() => Backing::Vanished,
                Stat::BlockDevice(number) => Backing::Device(number),
                Stat::Directory | Stat::File(_) | Stat::Other => Backing::NoDevice,
            });
        }
        if mount.fs != "btrfs" {
            // Major 0 is for file systems without a device: tmpfs, overlay, nfs.
            return Ok(if mount.device.major == 0 {
                Backing::NoDevice
            } else {
                Backing::Device(mount.device)
            });
        }
        // btrfs has major 0, too. Its source names the device, and the name cannot be reused while it is mounted.
        if let Some(name) = mount.source.strip_prefix("/dev/mapper/") {
            // The node is usually a symbolic link, and may be missing in a container, so look the name up in sysfs.
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

    /// True if the kernel no longer has the device of a mount.
    async fn is_gone(
        &self,
        mount: &Mount,
        number: DeviceNumber,
        kernel: &KernelDevices,
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

    /// True if some mount is on a disk that the kernel no longer has. Loop devices are ignored: nothing tells whether they are
    /// ours.
    pub(super) async fn any_stale_mount(&self) -> Result<bool, Error> {
        let kernel = KernelDevices::default();
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

    /// The mount points of the whole devices, and bind mounts of the device nodes. Bind mounts of a directory (a pod's `subPath`)
    /// are left out: they are not publications.
    pub(super) async fn mount_points(&self, blocks: &[Block]) -> Result<Vec<String>, Error> {
        let whole = |mount: &Mount| mount.device_node().is_some() || mount.root == "/";
        self.mounts_of(blocks, whole).await
    }

    /// All mount points of the devices, `subPath` mounts included.
    pub(super) async fn all_mount_points(&self, blocks: &[Block]) -> Result<Vec<String>, Error> {
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
        let (mut points, kernel) = (Vec::new(), KernelDevices::default());
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

    /// Mounts of these devices, and those whose device the table alone does not tell.
    async fn mounts_that_may_be_of(&self, blocks: &[Block]) -> Result<Vec<Mount>, Error> {
        let blocks = blocks.to_vec();
        let doing = "reading the mount table";
        let read = move |files: &dyn KernelFiles| {
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
                // A source that is a present disk's kernel name can be ruled out by its name alone.
                let source = line.source();
                let name = source.strip_prefix("/dev/").unwrap_or(&source);
                blocks.iter().any(|block| block.name == name)
                    || !disks.get_or_init(names).contains(name)
            })
        };
        self.host.blocking(doing, read).await.context(doing)
    }

    /// Unmounts the uppermost mount at `point`.
    pub(super) async fn unmount(&self, point: &str) -> Result<(), Error> {
        self.run(&format!("unmounting {point}"), mount::unmount(point))
            .await
            .map(|_| ())
    }

    /// Unmounts the uppermost mount at `point`, whose device is gone; lazily if it is busy.
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

    /// Unmounts everything at `point` that is ours or has lost its device. Idempotent; a foreign mount is an error.
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

    /// Unmounts everything at `point` that has lost its device; returns what is uppermost then, never [`MountState::Gone`].
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

/// The error for a foreign mount.
pub(super) fn not_ours(mount: &Mount) -> Error {
    Error::Refused {
        what: format!("using {}", mount.point),
        seen: format!(
            "{} is mounted there, which is not this volume",
            mount.describe()
        ),
        remedy: "unmount it if it is not needed".to_owned(),
    }
}
