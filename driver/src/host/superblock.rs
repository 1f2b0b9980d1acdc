//! Parses the superblocks of ext4, xfs and btrfs, complete or left behind by an interrupted `mkfs`. Pure.
//!
//! Sources: the kernel's `fs/ext4/ext4.h` (`struct ext4_super_block`), `fs/xfs/libxfs/xfs_format.h` (`struct xfs_dsb`),
//! `include/uapi/linux/btrfs_tree.h` (`struct btrfs_super_block`). What an interrupted `mkfs` leaves behind was seen by killing
//! it: ext4 has no magic until the end, xfs sets `sb_inprogress`, btrfs has a temporary magic.

use super::Span;
use super::fs_limits::{Btrfs, Ext4, Xfs};
use crate::volume::{Bytes, FsType};

/// The part of a disk that holds all three superblocks: ext4's at 1 KiB, xfs's at 0, btrfs's at 64 KiB.
pub const HEAD: Span = Span {
    offset: 0,
    length: 128 << 10,
};

/// A superblock found on a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Superblock {
    /// Of a complete file system.
    Complete(Geometry),
    /// Of an unfinished file system: its `mkfs` was interrupted.
    Unfinished(FsType),
}

/// The size of a file system, and what determines how far it can grow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Geometry {
    /// ext4.
    Ext4(Ext4),
    /// xfs.
    Xfs(Xfs),
    /// btrfs.
    Btrfs(Btrfs),
}

impl Geometry {
    /// The file system's type.
    pub fn kind(&self) -> FsType {
        match self {
            Self::Ext4(_) => FsType::Ext4,
            Self::Xfs(_) => FsType::Xfs,
            Self::Btrfs(_) => FsType::Btrfs,
        }
    }

    /// The size of the file system in bytes.
    pub fn size(&self) -> Bytes {
        match self {
            Self::Ext4(ext4) => ext4.size(),
            Self::Xfs(xfs) => xfs.size(),
            Self::Btrfs(btrfs) => btrfs.size,
        }
    }

    /// True if it is at least as large as `mkfs` would make it on a device of this size. `mkfs` may leave a larger unused tail
    /// than growth does.
    pub fn is_as_made_for(&self, device: Bytes) -> bool {
        match self {
            Self::Xfs(xfs) => xfs.is_as_made_for(device),
            Self::Ext4(_) | Self::Btrfs(_) => self.fills(device),
        }
    }

    /// True if a tool can grow it while it is unmounted: ext4 only, and not with bigalloc.
    pub fn grows_unmounted(&self) -> bool {
        matches!(self, Self::Ext4(ext4) if !ext4.bigalloc)
    }

    /// True if it cannot grow any further on a device of this size.
    pub fn fills(&self, device: Bytes) -> bool {
        match self {
            Self::Ext4(ext4) => ext4.fills(device),
            Self::Xfs(xfs) => xfs.fills(device),
            Self::Btrfs(btrfs) => btrfs.fills(device),
        }
    }
}

/// Every superblock in a disk's first [`HEAD`] bytes. If there are several, all but one are leftovers.
pub fn read(head: &[u8]) -> Vec<Superblock> {
    [ext4(head), xfs(head), btrfs(head)]
        .into_iter()
        .flatten()
        .collect()
}

/// Reads integers at fixed offsets; `None` beyond the end.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..at + N)?.try_into().ok()
    }

    fn le16(&self, at: usize) -> Option<u16> {
        self.bytes(at).map(u16::from_le_bytes)
    }

    fn le32(&self, at: usize) -> Option<u32> {
        self.bytes(at).map(u32::from_le_bytes)
    }

    fn le64(&self, at: usize) -> Option<u64> {
        self.bytes(at).map(u64::from_le_bytes)
    }

    fn be32(&self, at: usize) -> Option<u32> {
        self.bytes(at).map(u32::from_be_bytes)
    }

    fn be64(&self, at: usize) -> Option<u64> {
        self.bytes(at).map(u64::from_be_bytes)
    }
}

/// `EXT4_FEATURE_INCOMPAT_EXTENTS`: without it this is ext2 or ext3.
pub(super) const INCOMPAT_EXTENTS: u32 = 0x40;
/// `EXT4_FEATURE_RO_COMPAT_BIGALLOC`: blocks are allocated in clusters.
pub(super) const RO_COMPAT_BIGALLOC: u32 = 0x200;
/// `EXT4_FEATURE_INCOMPAT_64BIT`: block numbers have a high half, and the superblock has the size of a group descriptor.
pub(super) const INCOMPAT_64BIT: u32 = 0x80;

fn ext4(head: &[u8]) -> Option<Superblock> {
    let sb = Fields(head.get(1024..)?);
    if sb.le16(0x38)? != 0xEF53 || sb.le32(0x60)? & INCOMPAT_EXTENTS == 0 {
        return None;
    }
    let is_64bit = sb.le32(0x60)? & INCOMPAT_64BIT != 0;
    let high = if is_64bit { sb.le32(0x150)? } else { 0 };
    let geometry = Ext4 {
        blocks: u64::from(high) << 32 | u64::from(sb.le32(0x04)?),
        block_size: 1024_u64
            .checked_shl(sb.le32(0x18)?)
            .filter(|size| (1024..=65536).contains(size))?,
        first_block: u64::from(sb.le32(0x14)?),
        blocks_per_group: u64::from(sb.le32(0x20)?),
        inodes_per_group: u64::from(sb.le32(0x28)?),
        inode_size: u64::from(sb.le16(0x58)?),
        descriptor_size: if is_64bit {
            u64::from(sb.le16(0xFE)?)
        } else {
            32
        },
        reserved_descriptor_blocks: u64::from(sb.le16(0xCE)?),
        bigalloc: sb.le32(0x64)? & RO_COMPAT_BIGALLOC != 0,
    };
    // mke2fs writes this block last, after everything else is on the disk.
    let sane = geometry.blocks > 0
        && geometry.blocks_per_group > 0
        && geometry.inode_size > 0
        && geometry.descriptor_size > 0;
    Some(if sane {
        Superblock::Complete(Geometry::Ext4(geometry))
    } else {
        Superblock::Unfinished(FsType::Ext4)
    })
}

fn xfs(head: &[u8]) -> Option<Superblock> {
    let sb = Fields(head);
    if sb.bytes(0)? != *b"XFSB" {
        return None;
    }
    let [in_progress] = sb.bytes(126)?;
    let geometry = Xfs {
        block_size: u64::from(sb.be32(4)?),
        blocks: sb.be64(8)?,
        blocks_per_group: u64::from(sb.be32(84)?),
    };
    let sane = geometry.block_size > 0 && geometry.blocks > 0 && geometry.blocks_per_group > 0;
    Some(if in_progress == 0 && sane {
        Superblock::Complete(Geometry::Xfs(geometry))
    } else {
        Superblock::Unfinished(FsType::Xfs)
    })
}

fn btrfs(head: &[u8]) -> Option<Superblock> {
    let sb = Fields(head.get(64 << 10..)?);
    let magic: [u8; 8] = sb.bytes(64)?;
    if magic == *b"!BHRfS_M" {
        return Some(Superblock::Unfinished(FsType::Btrfs));
    }
    if magic != *b"_BHRfS_M" {
        return None;
    }
    let geometry = Btrfs {
        size: Bytes(sb.le64(112)?),
        sector: u64::from(sb.le32(144)?),
    };
    // The driver makes single-device file systems only; it does not recognize others as its own.
    let sane = sb.le64(136)? == 1 && geometry.size.0 > 0 && geometry.sector > 0;
    Some(if sane {
        Superblock::Complete(Geometry::Btrfs(geometry))
    } else {
        Superblock::Unfinished(FsType::Btrfs)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fake::{head_of, put};

    #[test]
    fn complete_superblocks_have_a_size() {
        for kind in [FsType::Ext4, FsType::Xfs, FsType::Btrfs] {
            let found = read(&head_of(kind, Bytes::gib(3)));
            let [Superblock::Complete(geometry)] = found.as_slice() else {
                panic!("{kind}: {found:?}")
            };
            assert_eq!((geometry.kind(), geometry.size()), (kind, Bytes::gib(3)));
            assert!(
                geometry.fills(Bytes::gib(3)) && !geometry.fills(Bytes::gib(4)),
                "{kind}"
            );
        }
    }

    /// design.md#identity-before-action
    #[test]
    fn unfinished_superblocks_are_recognized() {
        let mut xfs = head_of(FsType::Xfs, Bytes::GIB);
        xfs[126] = 1;
        assert_eq!(read(&xfs), [Superblock::Unfinished(FsType::Xfs)]);
        let mut btrfs = head_of(FsType::Btrfs, Bytes::GIB);
        btrfs[65536 + 64] = b'!';
        assert_eq!(read(&btrfs), [Superblock::Unfinished(FsType::Btrfs)]);
        let mut ext4 = head_of(FsType::Ext4, Bytes::GIB);
        put(&mut ext4, 1024 + 0x04, &[0; 4]);
        assert_eq!(read(&ext4), [Superblock::Unfinished(FsType::Ext4)]);
    }

    #[test]
    fn ext3_and_a_blank_disk_have_no_superblock() {
        let mut ext3 = head_of(FsType::Ext4, Bytes::GIB);
        put(&mut ext3, 1024 + 0x60, &0_u32.to_le_bytes());
        assert_eq!(read(&ext3), []);
        assert_eq!(read(&vec![0; HEAD.length]), []);
        assert_eq!(read(&[]), []);
        let both = [
            &head_of(FsType::Xfs, Bytes::GIB)[..1024],
            &head_of(FsType::Ext4, Bytes::GIB)[1024..],
        ]
        .concat();
        assert_eq!(read(&both).len(), 2);
    }
}
