//! What is on the fake machine's LUNs.

use super::{BLOCK, World};
use crate::host::Span;
use crate::host::superblock::{self, Superblock};
use crate::volume::{Bytes, FsType};

impl World {
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
