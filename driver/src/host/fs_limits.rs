//! Does a file system fill its device? (design.md#expansion-is-read-back) Pure.
//!
//! A file system cannot use every last byte: it grows by blocks, and a new allocation group must be worth its own overhead.
//! "Fills" means that the unused tail is smaller than the minimum that this file system can add. One type per file system;
//! `tests/growth.rs` compares them, MiB by MiB, with the real tools.

use crate::volume::Bytes;

/// The fields of an ext4 superblock that determine its size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ext4 {
    /// The size in blocks.
    pub blocks: u64,
    /// Bytes per block.
    pub block_size: u64,
    /// The first block of the first group: 1 with blocks of 1 KiB, otherwise 0.
    pub first_block: u64,
    /// Blocks per group.
    pub blocks_per_group: u64,
    /// Inodes per group.
    pub inodes_per_group: u64,
    /// Bytes per inode.
    pub inode_size: u64,
    /// Bytes per group descriptor.
    pub descriptor_size: u64,
    /// Blocks reserved after each copy of the descriptors, so that the descriptors can grow (resize inode).
    pub reserved_descriptor_blocks: u64,
    /// The file system allocates clusters of blocks, and `resize2fs` does not grow it.
    pub bigalloc: bool,
}

impl Ext4 {
    /// The size in bytes.
    pub fn size(&self) -> Bytes {
        Bytes(self.blocks.saturating_mul(self.block_size))
    }

    /// True if it is at least as large as `resize2fs` would make it on a device of this size.
    pub fn fills(&self, device: Bytes) -> bool {
        self.blocks >= self.largest(device)
    }

    /// The size in blocks that `resize2fs` and `mke2fs` choose: the whole device, without a last group that would hold little
    /// more than its own bitmaps, inodes and backup superblock (e2fsprogs, `resize/main.c`, `adjust_new_size`).
    fn largest(&self, device: Bytes) -> u64 {
        const MIN_DATA_BLOCKS: u64 = 50;
        let blocks = device.0 / self.block_size;
        let tail = blocks.saturating_sub(self.first_block) % self.blocks_per_group;
        let group = blocks.saturating_sub(self.first_block) / self.blocks_per_group;
        if tail != 0 && tail < self.overhead(group).saturating_add(MIN_DATA_BLOCKS) {
            blocks - tail
        } else {
            blocks
        }
    }

    /// Metadata blocks of a group.
    fn overhead(&self, group: u64) -> u64 {
        let inode_blocks = self
            .inodes_per_group
            .saturating_mul(self.inode_size)
            .div_ceil(self.block_size);
        let descriptor_blocks = group
            .saturating_add(1)
            .saturating_mul(self.descriptor_size)
            .div_ceil(self.block_size);
        let copy = if has_superblock(group) {
            1 + descriptor_blocks + self.reserved_descriptor_blocks
        } else {
            0
        };
        2 + inode_blocks.saturating_add(copy)
    }
}

/// With `sparse_super`, one of the pinned features: groups 0 and 1 and the powers of 3, 5 and 7.
fn has_superblock(group: u64) -> bool {
    let is_power_of = |base: u64| {
        std::iter::successors(Some(1), |power: &u64| power.checked_mul(base))
            .find(|power| *power >= group)
            == Some(group)
    };
    group <= 1 || [3, 5, 7].into_iter().any(is_power_of)
}

/// The fields of an xfs superblock that determine its size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Xfs {
    /// The size in blocks.
    pub blocks: u64,
    /// Bytes per block.
    pub block_size: u64,
    /// Blocks per allocation group.
    pub blocks_per_group: u64,
}

impl Xfs {
    /// The size in bytes.
    pub fn size(&self) -> Bytes {
        Bytes(self.blocks.saturating_mul(self.block_size))
    }

    /// True if it is at least as large as the kernel would make it on a device of this size: the whole device, without a last
    /// allocation group of less than 64 blocks (`XFS_MIN_AG_BLOCKS`).
    pub fn fills(&self, device: Bytes) -> bool {
        const SMALLEST_GROUP: u64 = 64;
        self.blocks >= self.largest(device, SMALLEST_GROUP)
    }

    /// True if it is at least as large as `mkfs.xfs` would make it on a device of this size: without a last allocation group of
    /// less than 16 MiB (`XFS_AG_MIN_BYTES`), which the kernel would add.
    pub fn is_as_made_for(&self, device: Bytes) -> bool {
        const SMALLEST_GROUP_BYTES: u64 = 16 << 20;
        self.blocks >= self.largest(device, SMALLEST_GROUP_BYTES / self.block_size)
    }

    /// The size in blocks, without a last allocation group of less than `smallest_group` blocks.
    fn largest(&self, device: Bytes, smallest_group: u64) -> u64 {
        let blocks = device.0 / self.block_size;
        let tail = blocks % self.blocks_per_group;
        if tail < smallest_group {
            blocks - tail
        } else {
            blocks
        }
    }
}

/// The fields of a btrfs superblock that determine its size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Btrfs {
    /// The size in bytes, on its only device.
    pub size: Bytes,
    /// Bytes per sector.
    pub sector: u64,
}

impl Btrfs {
    /// True if less than one sector is unused.
    pub fn fills(&self, device: Bytes) -> bool {
        self.size.0 >= device.0 / self.sector * self.sector
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ext4(mib: u64) -> Ext4 {
        Ext4 {
            blocks: mib * 256,
            block_size: 4096,
            first_block: 0,
            blocks_per_group: 32768,
            inodes_per_group: 8192,
            inode_size: 256,
            descriptor_size: 64,
            reserved_descriptor_blocks: 127,
            bigalloc: false,
        }
    }

    /// design.md#expansion-is-read-back
    #[test]
    fn ext4_does_not_grow_into_one_or_two_mib() {
        for (fs, device, fills) in [
            (1024, 1024, true),
            (1024, 1025, true),
            (1024, 1026, true),
            (1024, 1027, false),
            (1027, 1027, true),
            // Within a group every block can be added.
            (1027, 1028, false),
            (1024, 1024 + 128, false),
            (1152, 1154, true),
            // 25 is a power of 5, so this group has a backup superblock and must be larger.
            (3200, 3202, true),
            (3200, 3203, false),
            (10240, 15360, false),
        ] {
            assert_eq!(
                ext4(fs).fills(Bytes::mib(device)),
                fills,
                "{fs} MiB on {device} MiB"
            );
        }
        let many_reserved = Ext4 {
            reserved_descriptor_blocks: 400,
            ..ext4(3200)
        };
        assert!(many_reserved.fills(Bytes::mib(3203)) && !many_reserved.fills(Bytes::mib(3204)));
    }

    #[test]
    fn backup_superblocks_are_in_the_groups_of_sparse_super() {
        let with: Vec<u64> = (0..130).filter(|group| has_superblock(*group)).collect();
        assert_eq!(with, [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125]);
    }

    /// design.md#expansion-is-read-back
    #[test]
    fn xfs_does_not_grow_into_64_kib() {
        let xfs = |mib: u64| Xfs {
            blocks: mib * 256,
            block_size: 4096,
            blocks_per_group: 65536,
        };
        assert!(xfs(1024).fills(Bytes::mib(1024)));
        assert!(xfs(1024).fills(Bytes((1024 << 20) + (64 << 10))));
        assert!(xfs(1024).fills(Bytes((1024 << 20) + (252 << 10))));
        assert!(!xfs(1024).fills(Bytes((1024 << 20) + (256 << 10))));
        assert!(!xfs(1024).fills(Bytes::mib(1025)));
        assert!(
            !xfs(1025).fills(Bytes(Bytes::mib(1025).0 + 4096)),
            "within a group every block can be added"
        );
    }

    /// design.md#expansion-is-read-back
    #[test]
    fn mkfs_xfs_leaves_out_a_small_last_group_which_the_kernel_adds() {
        let xfs = |blocks_per_group: u64| Xfs {
            blocks: 1024 * 256,
            block_size: 4096,
            blocks_per_group,
        };
        let small_tail = Bytes::mib(1024 + 15);
        assert!(xfs(65536).is_as_made_for(small_tail) && !xfs(65536).fills(small_tail));
        assert!(!xfs(65536).is_as_made_for(Bytes::mib(1024 + 16)));
        // Within a group mkfs takes every block.
        assert!(!xfs(65537).is_as_made_for(small_tail));
    }

    /// design.md#expansion-is-read-back
    #[test]
    fn btrfs_uses_every_sector() {
        let btrfs = Btrfs {
            size: Bytes::GIB,
            sector: 4096,
        };
        assert!(btrfs.fills(Bytes::GIB) && btrfs.fills(Bytes(Bytes::GIB.0 + 4095)));
        assert!(!btrfs.fills(Bytes(Bytes::GIB.0 + 4096)) && !btrfs.fills(Bytes::mib(1025)));
    }
}
