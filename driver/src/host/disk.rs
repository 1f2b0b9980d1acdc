//! Disks of iSCSI sessions, read from sysfs: find them, wait for them, rescan them, take them offline.
//!
//! ```text
//! /sys/class/iscsi_session/session3/{targetname,state}
//!                                  /device/target4:0:0/4:0:0:1/{state,vpd_pg80,rescan,block/sdb/{dev,size,ro}}
//! /sys/class/iscsi_connection/connection3:0/{persistent_address,persistent_port}
//! /sys/class/block/sdb/dev
//! ```
//! sysfs is a cache: after a rescan it is current, before that it may be out of date (design.md#identity-before-action).

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::time::Duration;

use super::{DeviceNumber, Host, HostError, KernelFiles, Stat, if_present};
use crate::volume::Bytes;

pub(super) const SESSIONS: &str = "/sys/class/iscsi_session";
pub(super) const BLOCK: &str = "/sys/class/block";
const FILE_SYSTEMS: &str = "/sys/fs";
/// Time between two polls.
const POLL: Duration = Duration::from_millis(100);

/// A block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The kernel's device name: `sdb`, `dm-0`.
    pub name: String,
    /// The device number.
    pub number: DeviceNumber,
    pub(super) dir: String,
}

impl Block {
    /// The path of the device node: `/dev/sdb`.
    pub fn node(&self) -> String {
        format!("/dev/{}", self.name)
    }

    /// The size, as cached by the kernel.
    ///
    /// # Errors
    /// The file cannot be read.
    pub async fn size(&self, host: &impl Host) -> Result<Bytes, HostError> {
        let (file, doing) = (format!("{}/size", self.dir), self.measuring());
        host.blocking(&doing, move |files| size(files, &file)).await
    }

    fn measuring(&self) -> String {
        format!("measuring {}", self.name)
    }

    /// True if the block device itself is write-protected.
    ///
    /// # Errors
    /// The file cannot be read.
    pub async fn is_protected(&self, host: &impl Host) -> Result<bool, HostError> {
        let file = format!("{}/ro", self.dir);
        let doing = format!("looking at {}", self.name);
        let protected = host.blocking(&doing, move |files| number(files, &file));
        Ok(protected.await? != 0)
    }
}

/// A SCSI disk: the volume itself, or one path to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The number of its session.
    pub session: u32,
    /// The logical unit number.
    pub lun: u16,
    /// The block device.
    pub block: Block,
    unit: String,
}

impl Disk {
    /// The unit serial number (VPD page 0x80), as cached by the kernel. `None` if the target gave none.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn serial(&self, files: &dyn KernelFiles) -> Result<Option<String>, HostError> {
        serial(files, &self.unit)
    }

    /// State, size and serial number, as cached by the kernel.
    ///
    /// # Errors
    /// A file cannot be read.
    pub async fn condition(&self, host: &impl Host) -> Result<Condition, HostError> {
        let (disk, doing) = (self.clone(), format!("looking at {}", self.block.node()));
        let look = move |files: &dyn KernelFiles| {
            Ok(Condition {
                running: disk.state(files)?.is_none_or(|state| state == "running"),
                size: size(files, &format!("{}/size", disk.block.dir))?,
                serial: disk.serial(files)?,
            })
        };
        host.blocking(&doing, look).await
    }

    /// True if the SCSI device's state is `running`, or is not shown.
    ///
    /// # Errors
    /// The file cannot be read.
    pub async fn is_running(&self, host: &impl Host) -> Result<bool, HostError> {
        let state = self.state_now(host).await?;
        Ok(state.is_none_or(|state| state == "running"))
    }

    fn state(&self, files: &dyn KernelFiles) -> Result<Option<String>, HostError> {
        if_present(text(files, &format!("{}/state", self.unit)))
    }

    async fn state_now(&self, host: &impl Host) -> Result<Option<String>, HostError> {
        let (disk, doing) = (self.clone(), format!("looking at {}", self.block.node()));
        host.blocking(&doing, move |files| disk.state(files)).await
    }

    /// Takes the SCSI device offline: from now on all its I/O fails, whether or not the target answers. False: its state did not
    /// change.
    ///
    /// # Errors
    /// The write did not return in time, or the state cannot be read.
    pub async fn take_offline(&self, host: &impl Host) -> Result<bool, HostError> {
        // Without the newline the kernel does not recognize the state (EINVAL, seen with Linux 6.1).
        let written = write_sysfs(host, &format!("{}/state", self.unit), "offline\n").await;
        // The kernel refuses the change for a disk that is blocked or transport-offline: then the state decides.
        if let Err(hung @ HostError::DeadlineExceeded { .. }) = written {
            return Err(hung);
        }
        self.is_offline(host).await
    }

    /// True if the SCSI device is offline, so that all I/O fails.
    ///
    /// # Errors
    /// The file cannot be read.
    pub async fn is_offline(&self, host: &impl Host) -> Result<bool, HostError> {
        let state = self.state_now(host).await?;
        Ok(state.is_some_and(|state| state == "offline" || state == "transport-offline"))
    }

    /// Rescans the SCSI device: the kernel reads its size and serial number from the target again.
    ///
    /// # Errors
    /// The write did not return in time, or failed.
    pub async fn rescan(&self, host: &impl Host) -> Result<SysfsWrite, HostError> {
        write_sysfs(host, &format!("{}/rescan", self.unit), "1").await
    }
}

/// State, size and serial number of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// See [`Disk::is_running`].
    pub running: bool,
    /// 0 if the LUN is no longer mapped.
    pub size: Bytes,
    /// The unit serial number; `None` if the target gave none.
    pub serial: Option<String>,
}

/// The result of a write to a sysfs file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SysfsWrite {
    /// The kernel accepted the write, whether or not the target answered.
    Accepted,
    /// Since 6.6 Linux rescans only a running disk: this one is offline or blocked.
    NotRunning,
    /// This process may not write to the file (a container with a read-only `/sys`), or it does not exist (node-sim's tree).
    NotAllowed,
}

/// Writes to a sysfs file that triggers an action of the kernel.
///
/// # Errors
/// The write did not return in time, or failed with an error that is not a [`SysfsWrite`].
pub async fn write_sysfs(
    host: &impl Host,
    file: &str,
    text: &str,
) -> Result<SysfsWrite, HostError> {
    use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem, WouldBlock};
    let written = host.write_attribute(file, text).await;
    match &written {
        Err(HostError::Absent { .. }) => return Ok(SysfsWrite::NotAllowed),
        Err(HostError::Io { source, .. })
            if matches!(source.kind(), ReadOnlyFilesystem | PermissionDenied) =>
        {
            return Ok(SysfsWrite::NotAllowed);
        }
        Err(HostError::Io { source, .. }) if source.kind() == WouldBlock => {
            return Ok(SysfsWrite::NotRunning);
        }
        Ok(()) | Err(_) => {}
    }
    written.map(|()| SysfsWrite::Accepted)
}

/// The unit serial number of any SCSI disk, by its kernel name; `None` if it has none, is not a SCSI disk or does not exist.
///
/// # Errors
/// The file cannot be read.
pub fn serial_of(files: &dyn KernelFiles, name: &str) -> Result<Option<String>, HostError> {
    serial(files, &format!("{BLOCK}/{name}/device"))
}

fn serial(files: &dyn KernelFiles, unit: &str) -> Result<Option<String>, HostError> {
    let page = if_present(files.read(&format!("{unit}/vpd_pg80")))?;
    Ok(page.as_deref().and_then(parse_serial))
}

/// VPD page 0x80: `00 80 len_hi len_lo serial`. Some targets pad the serial with spaces or zeros.
fn parse_serial(page: &[u8]) -> Option<String> {
    let [_, 0x80, high, low, serial @ ..] = page else {
        return None;
    };
    let serial = serial.get(..usize::from(u16::from_be_bytes([*high, *low])))?;
    let serial = std::str::from_utf8(serial).ok()?.trim_matches(['\0', ' ']);
    (!serial.is_empty()).then(|| serial.to_owned())
}

/// sysfs counts in units of 512 bytes, whatever the disk's logical block size.
fn size(files: &dyn KernelFiles, path: &str) -> Result<Bytes, HostError> {
    Ok(Bytes(number(files, path)?.saturating_mul(512)))
}

fn number(files: &dyn KernelFiles, path: &str) -> Result<u64, HostError> {
    let text = text(files, path)?;
    text.parse().map_err(|_| HostError::Unparsable {
        what: path.to_owned(),
        seen: text,
    })
}

/// The number of the device with this directory; `None` if it has just been removed.
pub(super) fn device_number(
    files: &dyn KernelFiles,
    dir: &str,
) -> Result<Option<DeviceNumber>, HostError> {
    let path = format!("{dir}/dev");
    let Some(seen) = if_present(text(files, &path))? else {
        return Ok(None);
    };
    match DeviceNumber::parse(&seen) {
        Some(number) => Ok(Some(number)),
        None => Err(HostError::Unparsable { what: path, seen }),
    }
}

pub(super) fn text(files: &dyn KernelFiles, path: &str) -> Result<String, HostError> {
    Ok(String::from_utf8_lossy(&files.read(path)?)
        .trim()
        .to_owned())
}

/// The names in a directory.
///
/// # Errors
/// It cannot be read.
pub fn list(files: &dyn KernelFiles, path: &str) -> Result<Vec<String>, HostError> {
    let entries = files.entries(path)?;
    Ok(entries.into_iter().map(|entry| entry.name).collect())
}

/// The disks of a session, in order of their logical unit numbers. Empty if the session no longer exists.
///
/// # Errors
/// sysfs cannot be read.
pub fn disks(files: &dyn KernelFiles, session: u32) -> Result<Vec<Disk>, HostError> {
    let device = format!("{SESSIONS}/session{session}/device");
    let mut disks = Vec::new();
    for target in if_present(list(files, &device))?.unwrap_or_default() {
        if !target.starts_with("target") {
            continue;
        }
        let addresses = if_present(list(files, &format!("{device}/{target}")))?;
        for address in addresses.unwrap_or_default() {
            let Some(lun) = parse_address(&address) else {
                continue;
            };
            let unit = format!("{device}/{target}/{address}");
            let names = if_present(list(files, &format!("{unit}/block")))?;
            for name in names.unwrap_or_default() {
                let dir = format!("{unit}/block/{name}");
                if let Some(number) = device_number(files, &dir)? {
                    disks.push(Disk {
                        session,
                        lun,
                        block: Block { name, number, dir },
                        unit: unit.clone(),
                    });
                }
            }
        }
    }
    disks.sort_unstable_by_key(|disk| disk.lun);
    Ok(disks)
}

/// The logical unit number in `host:channel:target:lun`.
fn parse_address(text: &str) -> Option<u16> {
    let parts: Vec<&str> = text.split(':').collect();
    let [host, channel, target, lun] = parts.as_slice() else {
        return None;
    };
    [host, channel, target]
        .iter()
        .all(|part| part.parse::<u32>().is_ok())
        .then(|| lun.parse().ok())?
}

/// The kernel's names of all block devices.
///
/// # Errors
/// sysfs cannot be read.
pub fn names(files: &dyn KernelFiles) -> Result<HashSet<String>, HostError> {
    Ok(list(files, BLOCK)?.into_iter().collect())
}

/// The device numbers of all block devices.
///
/// # Errors
/// sysfs cannot be read, in whole or in part: then no device is proven absent.
pub fn present_devices(files: &dyn KernelFiles) -> Result<BTreeSet<DeviceNumber>, HostError> {
    let mut present = BTreeSet::new();
    for name in list(files, BLOCK)? {
        present.extend(device_number(files, &format!("{BLOCK}/{name}"))?);
    }
    Ok(present)
}

/// The `holders` of the device or of one of its partitions: `dm-1 (vg-data)`, `md127`.
///
/// # Errors
/// sysfs cannot be read.
pub fn holders(files: &dyn KernelFiles, block: &Block) -> Result<Vec<String>, HostError> {
    let inside = if_present(list(files, &block.dir))?.unwrap_or_default();
    let parts = inside.iter().filter(|name| name.starts_with(&block.name));
    let folders = std::iter::once(format!("{}/holders", block.dir))
        .chain(parts.map(|part| format!("{}/{part}/holders", block.dir)));
    let mut holders = Vec::new();
    for folder in folders {
        for name in if_present(list(files, &folder))?.unwrap_or_default() {
            let dm_name = text(files, &format!("{BLOCK}/{name}/dm/name"));
            holders.push(match if_present(dm_name)? {
                Some(dm_name) => format!("{name} ({dm_name})"),
                None => name,
            });
        }
    }
    Ok(holders)
}

/// True if a file system on the device is mounted in any mount namespace. `/sys/fs` lists mounted ext4 and xfs by their device's
/// name, and the devices of each mounted btrfs.
///
/// # Errors
/// sysfs cannot be read.
pub async fn is_mounted_anywhere(host: &impl Host, block: &Block) -> Result<bool, HostError> {
    let (name, doing) = (
        block.name.clone(),
        format!("checking whether {} is mounted", block.name),
    );
    let look = move |files: &dyn KernelFiles| {
        for fs in ["ext4", "xfs"] {
            let names = if_present(list(files, &format!("{FILE_SYSTEMS}/{fs}")))?;
            if names.unwrap_or_default().contains(&name) {
                return Ok(true);
            }
        }
        let all = if_present(list(files, &format!("{FILE_SYSTEMS}/btrfs")))?;
        for id in all.unwrap_or_default() {
            let devices = format!("{FILE_SYSTEMS}/btrfs/{id}/devices");
            let names = if_present(list(files, &devices))?;
            if names.unwrap_or_default().contains(&name) {
                return Ok(true);
            }
        }
        Ok(false)
    };
    host.blocking(&doing, look).await
}

/// Polls until `poll` returns `Some`; `None` after `limit`.
///
/// # Errors
/// Those of `poll`.
pub async fn poll_until<T, F>(
    host: &impl Host,
    limit: Duration,
    mut poll: impl FnMut() -> F + Send,
) -> Result<Option<T>, HostError>
where
    F: Future<Output = Result<Option<T>, HostError>> + Send,
    T: Send,
{
    for _ in 0..limit.as_millis() / POLL.as_millis() {
        if let Some(found) = poll().await? {
            return Ok(Some(found));
        }
        host.pause(POLL).await;
    }
    poll().await
}

/// Waits until the disk of logical unit `lun` has a size and a node in `/dev`, and can be opened.
///
/// # Errors
/// sysfs or `/dev` cannot be read.
pub async fn wait_for_disk(
    host: &impl Host,
    session: u32,
    lun: u16,
    limit: Duration,
) -> Result<Option<Disk>, HostError> {
    let doing = format!("looking for the disk of session {session}");
    poll_until(host, limit, || async {
        let look = move |files: &dyn KernelFiles| {
            let mut disks = disks(files, session)?.into_iter();
            let Some(disk) = disks.find(|disk| disk.lun == lun) else {
                return Ok(None);
            };
            let has_size = size(files, &format!("{}/size", disk.block.dir))? > Bytes(0);
            let running = disk.state(files)?.is_none_or(|state| state == "running");
            Ok(has_size.then_some((disk, running)))
        };
        let Some((disk, running)) = host.blocking(&doing, look).await? else {
            return Ok(None);
        };
        let node = disk.block.node();
        let stat = if_present(host.stat(&node).await)?;
        let has_node = stat == Some(Stat::BlockDevice(disk.block.number));
        // A disk that is not running can never be opened, so do not wait for that.
        let ready = has_node && (!running || host.can_open(&node).await?);
        Ok(ready.then_some(disk))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fake::{Fake, UUID};
    use crate::host::session::{sessions, target_names};

    #[test]
    fn the_serial_number_is_parsed_from_its_vpd_page() {
        let page = |serial: &str| {
            [
                &[0, 0x80, 0, u8::try_from(serial.len()).unwrap()],
                serial.as_bytes(),
            ]
            .concat()
        };
        assert_eq!(parse_serial(&page(UUID)).as_deref(), Some(UUID));
        assert_eq!(
            parse_serial(&page(&format!("  {UUID} \0\0"))).as_deref(),
            Some(UUID)
        );
        assert_eq!(parse_serial(&page("")), None);
        assert_eq!(parse_serial(&page("abc")[..5]), None, "cut short");
        assert_eq!(parse_serial(&[0, 0x83, 0, 1, b'x']), None, "another page");
        assert_eq!(parse_serial(&[]), None);
    }

    #[test]
    fn a_scsi_address_has_four_numbers() {
        assert_eq!(parse_address("4:0:0:1"), Some(1));
        for other in ["4:0:0", "power", "a:0:0:1", "4:0:0:x", "4:0:0:1:2"] {
            assert_eq!(parse_address(other), None, "{other}");
        }
    }

    #[tokio::test]
    async fn sessions_and_disks_are_found() {
        let fake = Fake::with_lun();
        assert!(
            sessions(&fake, &target_names(), |_| true)
                .unwrap()
                .is_empty()
        );
        fake.log_in();
        let [session] = sessions(&fake, &target_names(), |_| true)
            .unwrap()
            .try_into()
            .unwrap();
        assert!(session.alive && session.target == fake.iqn().as_str());
        assert_eq!(session.portal, Some("10.0.0.5:3260".parse().unwrap()));
        let disk = wait_for_disk(&fake, session.id, 1, Duration::from_secs(1))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(
            (
                disk.block.node().as_str(),
                disk.block.number.to_string().as_str()
            ),
            ("/dev/sdb", "8:16")
        );
        assert_eq!(disk.serial(&fake).unwrap().as_deref(), Some(UUID));
        assert_eq!(disk.block.size(&fake).await.unwrap(), Bytes::GIB);
        assert!(present_devices(&fake).unwrap().contains(&disk.block.number));
        assert_eq!(
            wait_for_disk(&fake, session.id, 2, Duration::from_secs(1))
                .await
                .unwrap(),
            None
        );
    }
}
