//! dm-multipath maps, read from sysfs. A map is one block device over all paths to a LUN.
//!
//! ```text
//! /sys/class/block/dm-0/{dev,size,ro}
//!                      /dm/{name,uuid}       mpatha, mpath-36001405…
//!                      /slaves/{sdb,sdc}
//! ```

use std::collections::{BTreeMap, BTreeSet};

use super::disk::{self, BLOCK, Block, Disk, list, text};
use super::kernel_names::{NameSource, Names};
use super::{DeviceNumber, HostError, KernelFiles, if_present};
use crate::volume::LunUuid;

/// A multipath map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    /// The map's block device, through which the volume is used.
    pub block: Block,
    /// The device-mapper name, as in `/dev/mapper`: the WWID or an alias.
    pub name: String,
    /// The WWID, by which multipathd identifies the LUN.
    pub wwid: String,
    /// The kernel names of its paths; empty if all have been logged out.
    pub paths: Vec<String>,
}

/// Prefix of the device-mapper uuid of a multipath map.
const UUID_PREFIX: &str = "mpath-";
/// Prefix of the kernel names of device-mapper devices.
const DM_PREFIX: &str = "dm-";

/// The uuids of the device-mapper devices. A device without a uuid may be given one later, once.
pub fn uuids() -> Names {
    Names::new(NameSource {
        dir: BLOCK,
        prefix: DM_PREFIX,
        file: "dm/uuid",
        is_name: |uuid| !uuid.is_empty(),
    })
}

/// The multipath maps over any of `disks`, and those with one of these WWIDs that have no path.
///
/// # Errors
/// sysfs cannot be read.
pub fn maps_over(
    files: &dyn KernelFiles,
    uuids: &Names,
    disks: &[Disk],
    wwids: &[String],
) -> Result<Vec<Map>, HostError> {
    let mut devices: BTreeSet<String> = named(files, uuids, wwids)?.into_iter().collect();
    for disk in disks {
        let holders = if_present(list(files, &format!("{}/holders", disk.block.dir)))?;
        let holders = holders.into_iter().flatten();
        devices.extend(holders.filter(|name| name.starts_with(DM_PREFIX)));
    }
    let ours = |name: &String| disks.iter().any(|disk| disk.block.name == *name);
    let mut maps = Vec::new();
    for device in devices {
        let map = read(files, device)?;
        maps.extend(map.filter(|map| {
            map.paths.iter().any(ours) || map.paths.is_empty() && wwids.contains(&map.wwid)
        }));
    }
    Ok(maps)
}

/// The multipath maps with one of these WWIDs, whatever their paths.
///
/// # Errors
/// sysfs cannot be read.
pub fn with_wwid(
    files: &dyn KernelFiles,
    uuids: &Names,
    wwids: &[String],
) -> Result<Vec<Map>, HostError> {
    let mut maps = Vec::new();
    for device in named(files, uuids, wwids)? {
        maps.extend(read(files, device)?.filter(|map| wwids.contains(&map.wwid)));
    }
    Ok(maps)
}

fn named(
    files: &dyn KernelFiles,
    uuids: &Names,
    wwids: &[String],
) -> Result<Vec<String>, HostError> {
    uuids.find(files, |uuid| {
        let wwid = uuid.strip_prefix(UUID_PREFIX);
        wwid.is_some_and(|wwid| wwids.iter().any(|one| one == wwid))
    })
}

/// Reads a device-mapper device. `None` if it is not a multipath map, or was removed between two reads.
fn read(files: &dyn KernelFiles, device: String) -> Result<Option<Map>, HostError> {
    let dir = format!("{BLOCK}/{device}");
    let uuid = if_present(text(files, &format!("{dir}/dm/uuid")))?;
    let name = if_present(text(files, &format!("{dir}/dm/name")))?;
    let number = disk::device_number(files, &dir)?;
    let wwid = uuid
        .as_deref()
        .and_then(|uuid| uuid.strip_prefix(UUID_PREFIX));
    let (Some(wwid), Some(name), Some(number)) = (wwid, name, number) else {
        return Ok(None);
    };
    Ok(Some(Map {
        wwid: wwid.to_owned(),
        name,
        paths: if_present(list(files, &format!("{dir}/slaves")))?.unwrap_or_default(),
        block: Block {
            name: device,
            number,
            dir,
        },
    }))
}

/// The numbers of all device-mapper devices, by their device-mapper names.
///
/// # Errors
/// sysfs cannot be read.
pub fn numbers(files: &dyn KernelFiles) -> Result<BTreeMap<String, DeviceNumber>, HostError> {
    let mut numbers = BTreeMap::new();
    for device in list(files, BLOCK)? {
        if !device.starts_with(DM_PREFIX) {
            continue;
        }
        let dir = format!("{BLOCK}/{device}");
        let name = if_present(text(files, &format!("{dir}/dm/name")))?;
        numbers.extend(name.zip(disk::device_number(files, &dir)?));
    }
    Ok(numbers)
}

/// The WWIDs that a LUN can have: an NAA identifier (hence the 3) with LIO's vendor id, filled up with the start of the unit
/// serial number, in which Synology replaces hyphens with `d` (measured, two samples) and a stock LIO omits them.
pub fn wwids(uuid: &LunUuid) -> [String; 2] {
    let of = |serial: String| format!("36001405{}", &serial[..25]);
    let uuid = uuid.as_str().to_ascii_lowercase();
    [of(uuid.replace('-', "d")), of(uuid.replace('-', ""))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fake::{Fake, UUID};

    #[test]
    fn a_wwid_follows_from_the_uuid() {
        let [synology, lio] = wwids(&UUID.parse().unwrap());
        assert_eq!(synology, "3600140513a3cd1edf296d4d4bdb712da");
        assert_eq!(lio, "3600140513a3cd1ef2964d4bb712a85c1");
    }

    #[tokio::test]
    async fn maps_are_found_with_their_paths() {
        let fake = Fake::with_lun();
        let (uuids, own) = (uuids(), wwids(&UUID.parse().unwrap()));
        fake.start_multipathd();
        fake.log_in_at("10.0.0.5:3260");
        fake.log_in_at("10.0.1.5:3260");
        let disks = disk::disks(&fake, 1).unwrap();
        assert!(maps_over(&fake, &uuids, &disks, &own).unwrap().is_empty());
        fake.make_map();
        let [map] = maps_over(&fake, &uuids, &disks, &[])
            .unwrap()
            .try_into()
            .unwrap();
        assert_eq!(
            (map.name.as_str(), map.block.node().as_str()),
            ("mpatha", "/dev/dm-0")
        );
        assert_eq!(map.paths, ["sdb", "sdc"]);
        assert!(own.contains(&map.wwid));
        assert_eq!(
            with_wwid(&fake, &uuids, &own).unwrap(),
            std::slice::from_ref(&map)
        );
        // A map that has paths is not the volume's by its WWID alone.
        assert!(maps_over(&fake, &uuids, &[], &own).unwrap().is_empty());
        let numbers = numbers(&fake).unwrap();
        assert_eq!(numbers, [("mpatha".to_owned(), map.block.number)].into());
    }
}
