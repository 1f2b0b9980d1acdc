//! Is a disk blank? The samples that are read before `mkfs` may write to it (design.md#identity-before-action). Pure.
//!
//! blkid's low-level probe finds signatures; these samples find data without a signature (a raw database, an encrypted disk, a
//! file system whose first blocks were destroyed). All of them must be readable and zero.

use super::Span;
use crate::volume::Bytes;

const MIB: u64 = 1 << 20;
/// Offsets of backup superblocks, in MiB: btrfs at 64 MiB and 256 GiB, ext4 at the start of its groups 1, 3, 5, 7, 9, 25 and 27
/// (128 MiB each with 4 KiB blocks).
const BACKUP_SUPERBLOCKS_MIB: [u64; 9] = [
    64,
    256 << 10,
    128,
    3 * 128,
    5 * 128,
    7 * 128,
    9 * 128,
    25 * 128,
    27 * 128,
];
/// Bytes read at the beginning and at the end: partition tables, RAID and LVM metadata, file system headers.
const ENDS: u64 = 4 * MIB;
/// Bytes of a sample elsewhere.
const SAMPLE: u64 = 64 << 10;
/// Number of evenly spaced samples: the gap between two is 1/256 of the disk.
const SPREAD: u64 = 256;

/// The spans to read of a disk of `size`, in order, none beyond the end.
pub fn samples(size: Bytes) -> Vec<Span> {
    let size = size.0;
    // In pieces of a sample's size: the process would never return the memory of a larger buffer to the system.
    let ends = [0, size.saturating_sub(ENDS)];
    let ends = ends
        .into_iter()
        .flat_map(|end| (0..ENDS / SAMPLE).map(move |piece| (end + piece * SAMPLE, SAMPLE)));
    // These include the quarters of the disk, where xfs puts its second to fourth superblock.
    let spread = (1..SPREAD).map(|part| (size / SPREAD * part, SAMPLE));
    let backups = BACKUP_SUPERBLOCKS_MIB.iter().map(|mib| (mib * MIB, SAMPLE));
    let mut spans: Vec<Span> = ends
        .chain(spread)
        .chain(backups)
        .filter_map(|part| whole_blocks(size, part))
        .collect();
    spans.sort_by_key(|span| span.offset);
    spans.dedup();
    spans
}

/// Rounds down to whole 4 KiB blocks within the disk. A LUN is a multiple of 1 MiB, so no tail is lost.
fn whole_blocks(size: u64, (offset, length): (u64, u64)) -> Option<Span> {
    let start = offset / 4096 * 4096;
    let end = start.saturating_add(length).min(size / 4096 * 4096);
    (start < end).then(|| Span {
        offset: start,
        length: usize::try_from(end - start).expect("a sample is at most 64 KiB"),
    })
}

/// True if every byte is zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; 4096] = [0; 4096];
    bytes
        .chunks(ZEROS.len())
        .all(|chunk| chunk == &ZEROS[..chunk.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// design.md#identity-before-action
    #[test]
    fn samples_cover_ends_backup_superblocks_and_the_middle() {
        for size in [
            Bytes::gib(1),
            Bytes::mib(3001),
            Bytes::gib(10),
            Bytes(2 << 40),
            Bytes(4096),
            Bytes(5000),
            Bytes(0),
        ] {
            let samples = samples(size);
            let covers = |at: u64| {
                samples
                    .iter()
                    .any(|span| span.offset <= at && at < span.offset + span.length as u64)
            };
            assert!(
                samples
                    .iter()
                    .all(|span| span.offset + span.length as u64 <= size.0
                        && span.length % 4096 == 0)
            );
            assert!(samples.iter().all(|span| span.offset % 4096 == 0));
            if size >= Bytes::GIB {
                for at in [
                    0,
                    1024,
                    65536,
                    size.0 - 1,
                    size.0 - (1 << 20),
                    64 << 20,
                    128 << 20,
                    size.0 / 2,
                    size.0 / 4 * 3,
                ] {
                    assert!(covers(at), "{at} of {size}");
                }
                let read: usize = samples.iter().map(|span| span.length).sum();
                assert!(read < 40 << 20, "{read} bytes is too much to read");
            }
            if size.0 > 300 << 30 {
                assert!(covers(256 << 30));
            }
        }
        assert!(samples(Bytes(0)).is_empty());
    }

    #[test]
    fn zero_is_zero() {
        assert!(is_zero(&[0; 512]) && is_zero(&[]));
        assert!(!is_zero(&[0, 0, 1]));
        let mut last = vec![0; 10_000];
        last[9_999] = 1;
        assert!(!is_zero(&last) && is_zero(&last[..9_999]));
    }
}
