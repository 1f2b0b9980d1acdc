//! What `mkfs` writes at the beginning of a disk, as far as [`superblock`](crate::host::superblock) reads it.

use crate::host::superblock::{HEAD, INCOMPAT_64BIT, INCOMPAT_EXTENTS};
use crate::volume::{Bytes, FsType};

pub(crate) fn put(head: &mut [u8], at: usize, bytes: &[u8]) {
    head[at..at + bytes.len()].copy_from_slice(bytes);
}

/// The first bytes of a disk with a complete file system of `size`, as far as this module reads them.
pub(crate) fn head_of(kind: FsType, size: Bytes) -> Vec<u8> {
    let mut head = vec![0; HEAD.length];
    let blocks = size.0 / 4096;
    match kind {
        FsType::Ext4 => {
            put(
                &mut head,
                1024 + 0x04,
                &u32::try_from(blocks).unwrap().to_le_bytes(),
            );
            put(&mut head, 1024 + 0x18, &2_u32.to_le_bytes());
            put(&mut head, 1024 + 0x20, &32768_u32.to_le_bytes());
            put(&mut head, 1024 + 0x28, &8192_u32.to_le_bytes());
            put(&mut head, 1024 + 0x38, &0xEF53_u16.to_le_bytes());
            put(&mut head, 1024 + 0x58, &256_u16.to_le_bytes());
            put(
                &mut head,
                1024 + 0x60,
                &(INCOMPAT_EXTENTS | INCOMPAT_64BIT).to_le_bytes(),
            );
            put(&mut head, 1024 + 0xFE, &64_u16.to_le_bytes());
        }
        FsType::Xfs => {
            put(&mut head, 0, b"XFSB");
            put(&mut head, 4, &4096_u32.to_be_bytes());
            put(&mut head, 8, &blocks.to_be_bytes());
            put(&mut head, 84, &65536_u32.to_be_bytes());
        }
        FsType::Btrfs => {
            put(&mut head, 65536 + 64, b"_BHRfS_M");
            put(&mut head, 65536 + 112, &size.0.to_le_bytes());
            put(&mut head, 65536 + 136, &1_u64.to_le_bytes());
            put(&mut head, 65536 + 144, &4096_u32.to_le_bytes());
        }
    }
    head
}
