//! dm-multipath maps as sysfs shows them: one block device over all paths to a LUN.
//!
//! ```text
//! /sys/class/block/dm-0/{dev,size,ro}
//!                      /dm/{name,uuid}       mpatha, mpath-36001405…
//!                      /slaves/{sdb,sdc}
//! ```

use std::collections::BTreeMap;

use super::disk::{self, BLOCK, Block, text};
use super::{DeviceNumber, Host, HostError, if_present};
use crate::volume::LunUuid;

/// A multipath map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    /// What the volume is used through.
    pub block: Block,
    /// device-mapper's name, which is in `/dev/mapper`: the WWID or an alias.
    pub name: String,
    /// What multipathd knows the LUN by.
    pub wwid: String,
    /// The kernel names of its paths; none when all have been logged out.
    pub paths: Vec<String>,
}

/// All multipath maps of this node.
///
/// # Errors
/// sysfs cannot be read.
pub async fn maps(host: &impl Host) -> Result<Vec<Map>, HostError> {
    let mut maps = Vec::new();
    for device in host.list(BLOCK).await? {
        if !device.starts_with("dm-") {
            continue;
        }
        let dir = format!("{BLOCK}/{device}");
        // A map may go between two readings.
        let uuid = if_present(text(host, &format!("{dir}/dm/uuid")).await)?;
        let name = if_present(text(host, &format!("{dir}/dm/name")).await)?;
        let number = disk::device_number(host, &dir).await?;
        let wwid = uuid.as_deref().and_then(|uuid| uuid.strip_prefix("mpath-"));
        let (Some(wwid), Some(name), Some(number)) = (wwid, name, number) else {
            continue;
        };
        maps.push(Map {
            wwid: wwid.to_owned(),
            name,
            paths: if_present(host.list(&format!("{dir}/slaves")).await)?.unwrap_or_default(),
            block: Block {
                name: device,
                number,
                dir,
            },
        });
    }
    Ok(maps)
}

/// The numbers of all devices of device-mapper, by the names that it gives them.
///
/// # Errors
/// sysfs cannot be read.
pub async fn numbers(host: &impl Host) -> Result<BTreeMap<String, DeviceNumber>, HostError> {
    let mut numbers = BTreeMap::new();
    for device in host.list(BLOCK).await? {
        if !device.starts_with("dm-") {
            continue;
        }
        let dir = format!("{BLOCK}/{device}");
        let name = if_present(text(host, &format!("{dir}/dm/name")).await)?;
        numbers.extend(name.zip(disk::device_number(host, &dir).await?));
    }
    Ok(numbers)
}

/// The WWIDs that a LUN can have: an NAA identifier (hence the 3) of LIO's vendor, filled up with the beginning of the unit
/// serial, in which Synology writes hyphens as `d` (measured, two samples) and a stock LIO leaves them out.
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
        assert!(maps(&fake).await.unwrap().is_empty());
        fake.start_multipathd();
        fake.log_in_at("10.0.0.5:3260");
        fake.log_in_at("10.0.1.5:3260");
        fake.make_map();
        let [map] = maps(&fake).await.unwrap().try_into().unwrap();
        assert_eq!(
            (map.name.as_str(), map.block.node().as_str()),
            ("mpatha", "/dev/dm-0")
        );
        assert_eq!(map.paths, ["sdb", "sdc"]);
        assert!(wwids(&UUID.parse().unwrap()).contains(&map.wwid));
        let numbers = numbers(&fake).await.unwrap();
        assert_eq!(numbers, [("mpatha".to_owned(), map.block.number)].into());
    }
}
