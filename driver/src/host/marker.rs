//! The `mkfs` marker: a block on the disk that proves that an unfinished file system is the driver's own unfinished `mkfs`
//! (design.md#identity-before-action). Pure.
//!
//! It is written and synced before `mkfs`, and erased and synced before the first mount. So a marker of this volume means that
//! the driver started this file system and never mounted it: it holds no user data.
//!
//! Its offset is 63 MiB, where the `mkfs` of ext4, xfs and btrfs with our pinned options write nothing (tried with disks of 1 GiB
//! to 8 TiB, see `tests/mkfs.rs`), just before btrfs's second superblock at 64 MiB. If other options make `mkfs` write there, it
//! overwrites the marker: then an interrupted `mkfs` needs manual repair, but no data is lost.

use sha2::{Digest, Sha256};

use super::Span;
use crate::volume::LunUuid;

/// The span of the marker: one block of 4 KiB, a multiple of every logical block size.
pub const PLACE: Span = Span {
    offset: 63 << 20,
    length: 4096,
};

const MAGIC: &[u8; 32] = b"csi.synology.com mkfs begun v1\r\n";
const UUID_END: usize = MAGIC.len() + 36;
const LENGTH: usize = UUID_END + 32;

/// The marker block of the volume `uuid`.
pub fn block(uuid: &LunUuid) -> Vec<u8> {
    let mut block = [MAGIC.as_slice(), uuid.as_str().as_bytes()].concat();
    block.extend(Sha256::digest(&block));
    block.resize(PLACE.length, 0);
    block
}

/// The block of zeros that erases a marker.
pub fn blank_block() -> Vec<u8> {
    vec![0; PLACE.length]
}

/// The result of [`read`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MarkerState {
    /// No marker.
    None,
    /// The marker of this volume.
    Ours,
    /// The marker of another volume.
    Other(LunUuid),
}

/// Reads the marker in the block at [`PLACE`].
pub fn read(block: &[u8], uuid: &LunUuid) -> MarkerState {
    let Some(marker) = block.get(..LENGTH) else {
        return MarkerState::None;
    };
    let (signed, checksum) = marker.split_at(UUID_END);
    if !signed.starts_with(MAGIC) || Sha256::digest(signed).as_slice() != checksum {
        return MarkerState::None;
    }
    match std::str::from_utf8(&signed[MAGIC.len()..])
        .ok()
        .and_then(|text| text.parse().ok())
    {
        Some(seen) if &seen == uuid => MarkerState::Ours,
        Some(seen) => MarkerState::Other(seen),
        None => MarkerState::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// design.md#identity-before-action
    #[test]
    fn a_marker_is_recognized_by_its_uuid_and_checksum() {
        let uuid: LunUuid = "13a3cd1e-f296-4d4b-b712-a85c139f9dac".parse().unwrap();
        let other: LunUuid = "00000000-f296-4d4b-b712-a85c139f9dac".parse().unwrap();
        let block = block(&uuid);
        assert_eq!(block.len(), 4096);
        assert_eq!(read(&block, &uuid), MarkerState::Ours);
        assert_eq!(read(&block, &other), MarkerState::Other(uuid.clone()));
        assert_eq!(read(&blank_block(), &uuid), MarkerState::None);
        assert_eq!(read(&block[..50], &uuid), MarkerState::None);
        for byte in 0..LENGTH {
            let mut torn = block.clone();
            torn[byte] ^= 1;
            assert_eq!(read(&torn, &uuid), MarkerState::None, "byte {byte}");
        }
    }
}
