//! Disk content of the fake machine, and the superblocks that its `mkfs` writes, as far as
//! [`superblock`](crate::host::superblock) parses them.

use super::{BLOCK, Machine};
use crate::host::Span;
use crate::host::superblock::{
    self, HEAD, INCOMPAT_64BIT, INCOMPAT_EXTENTS, RO_COMPAT_BIGALLOC, Superblock,
};
use crate::volume::{Bytes, FsType};

pub(crate) fn put(head: &mut [u8], at: usize, bytes: &[u8]) {
    head[at..at + bytes.len()].copy_from_slice(bytes);
}

/// The first [`HEAD`] bytes of a disk with a complete file system of `size`, with the fields that the driver parses.
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

impl super::Fake {
    /// Makes the ext4 on a LUN one that no tool can grow (bigalloc). False: there is no ext4.
    pub fn make_unresizable(&self, serial: &str) -> bool {
        let mut machine = self.machine();
        let is_ext4 = matches!(machine.file_system(serial), Some((FsType::Ext4, _)));
        if is_ext4 {
            machine.write(serial, 1024 + 0x64, &RO_COMPAT_BIGALLOC.to_le_bytes());
        }
        is_ext4
    }
}

impl Machine {
    /// True after [`Fake::make_unresizable`](super::Fake::make_unresizable).
    pub(super) fn is_unresizable(&self, serial: &str) -> bool {
        match superblock::read(&self.read(serial, HEAD)).as_slice() {
            [Superblock::Complete(geometry)] => {
                geometry.kind() == FsType::Ext4 && !geometry.grows_unmounted()
            }
            _ => false,
        }
    }

    pub(super) fn write(&mut self, serial: &str, offset: u64, bytes: &[u8]) {
        let mut all = self.content.lock().unwrap();
        let content = all.entry(serial.to_owned()).or_default();
        let mut at = offset;
        while at < offset + bytes.len() as u64 {
            let done = usize::try_from(at - offset).unwrap();
            let within = usize::try_from(at % BLOCK as u64).unwrap();
            let count = (BLOCK - within).min(bytes.len() - done);
            let block = content
                .entry(at / BLOCK as u64)
                .or_insert_with(|| vec![0; BLOCK]);
            block[within..within + count].copy_from_slice(&bytes[done..done + count]);
            at += count as u64;
        }
    }

    pub(super) fn read(&self, serial: &str, span: Span) -> Vec<u8> {
        let mut bytes = vec![0; span.length];
        let first = span.offset / BLOCK as u64;
        let blocks = first..first + (span.length / BLOCK) as u64;
        let all = self.content.lock().unwrap();
        for (number, block) in all
            .get(serial)
            .into_iter()
            .flat_map(|content| content.range(blocks.clone()))
        {
            let at = usize::try_from(number - first).unwrap() * BLOCK;
            bytes[at..at + BLOCK].copy_from_slice(block);
        }
        bytes
    }

    pub(super) fn file_system(&self, serial: &str) -> Option<(FsType, Bytes)> {
        match superblock::read(&self.read(serial, superblock::HEAD)).as_slice() {
            [Superblock::Complete(geometry)] => Some((geometry.kind(), geometry.size())),
            _ => None,
        }
    }
}
