//! The decision table: mount, format or refuse.

use super::*;
use crate::host::fake::head_of;

const SIZE: Bytes = Bytes::gib(2);

fn uuid() -> LunUuid {
    "00000000-f296-4d4b-b712-a85c139f9dac".parse().unwrap()
}

fn found(kind: &str) -> Probe {
    Probe::Found(kind.to_owned())
}

fn complete(fs: FsType, size: Bytes) -> Vec<Superblock> {
    superblock::read(&head_of(fs, size))
}

#[track_caller]
fn check(probe: Probe, superblocks: Vec<Superblock>, marker: Seen, want: &Next) {
    let contents = Contents {
        probe,
        superblocks,
        marker,
    };
    let next = contents.decide(FsType::Ext4, SIZE);
    match (&next, want) {
        (Next::Refuse(seen, _), Next::Refuse(part, _)) => {
            assert!(seen.contains(part.as_str()), "{seen}");
        }
        _ => assert_eq!(&next, want, "{contents:?}"),
    }
}

fn refuse(part: &str) -> Next {
    Next::Refuse(part.to_owned(), "")
}

/// design.md#identity-before-action
#[test]
fn a_complete_file_system_is_mounted() {
    check(
        found("ext4"),
        complete(FsType::Ext4, SIZE),
        Seen::None,
        &Next::Mount,
    );
    check(
        found("ext4"),
        complete(FsType::Ext4, Bytes::GIB),
        Seen::None,
        &Next::Mount,
    );
    check(
        found("ext4"),
        complete(FsType::Ext4, SIZE),
        Seen::Other(uuid()),
        &Next::Mount,
    );
    check(
        found("ext4"),
        complete(FsType::Ext4, SIZE),
        Seen::Ours,
        &Next::EraseMarker,
    );
    check(
        found("ext4"),
        complete(FsType::Ext4, Bytes::gib(3)),
        Seen::None,
        &refuse("only 2 GiB"),
    );
}

/// design.md#identity-before-action
#[test]
fn only_our_own_interrupted_format_is_restarted() {
    check(Probe::Nothing, vec![], Seen::Ours, &Next::Format);
    for fs in [FsType::Ext4, FsType::Xfs, FsType::Btrfs] {
        let begun = || vec![Superblock::Begun(fs)];
        check(Probe::Nothing, begun(), Seen::Ours, &Next::Format);
        check(found(fs.as_str()), begun(), Seen::Ours, &Next::Format);
        check(Probe::Nothing, begun(), Seen::None, &refuse("incomplete"));
        check(
            Probe::Nothing,
            begun(),
            Seen::Other(uuid()),
            &refuse("another volume"),
        );
    }
    check(
        found("ext4"),
        vec![Superblock::Begun(FsType::Ext4)],
        Seen::None,
        &refuse("damaged ext4"),
    );
    check(
        Probe::Nothing,
        vec![],
        Seen::Other(uuid()),
        &refuse("00000000-f296"),
    );
    check(
        found("xfs"),
        complete(FsType::Xfs, SIZE),
        Seen::Ours,
        &refuse("xfs, not ext4"),
    );
}

/// design.md#identity-before-action
#[test]
fn nothing_else_is_formatted() {
    check(Probe::Nothing, vec![], Seen::None, &Next::FormatIfBlank);
    check(
        Probe::Nothing,
        complete(FsType::Ext4, SIZE),
        Seen::None,
        &refuse("damaged"),
    );
    for (probe, superblocks) in [
        (found("xfs"), complete(FsType::Xfs, SIZE)),
        (found("btrfs"), complete(FsType::Btrfs, SIZE)),
        (found("ext3"), vec![]),
        (found("swap"), vec![]),
        (found("LVM2_member"), vec![]),
        (found("crypto_LUKS"), vec![]),
        (found("gpt partition table"), vec![]),
        (Probe::Several, vec![]),
        (Probe::Several, complete(FsType::Ext4, SIZE)),
    ] {
        for marker in [Seen::None, Seen::Other(uuid())] {
            check(
                probe.clone(),
                superblocks.clone(),
                marker,
                &refuse("it holds"),
            );
        }
    }
    check(
        found("LVM2_member"),
        vec![],
        Seen::Ours,
        &refuse("LVM2_member"),
    );
    check(Probe::Several, vec![], Seen::Ours, &refuse("several"));
    let two = [complete(FsType::Ext4, SIZE), complete(FsType::Xfs, SIZE)].concat();
    check(found("ext4"), two, Seen::None, &refuse("damaged ext4"));
}
