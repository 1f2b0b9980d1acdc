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
fn check(probe: Probe, superblocks: Vec<Superblock>, marker: MarkerState, want: &Next) {
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
        MarkerState::None,
        &Next::Mount,
    );
    check(
        found("ext4"),
        complete(FsType::Ext4, Bytes::GIB),
        MarkerState::None,
        &Next::Mount,
    );
    check(
        found("ext4"),
        complete(FsType::Ext4, SIZE),
        MarkerState::Other(uuid()),
        &Next::Mount,
    );
    check(
        found("ext4"),
        complete(FsType::Ext4, SIZE),
        MarkerState::Ours,
        &Next::EraseMarker,
    );
    check(
        found("ext4"),
        complete(FsType::Ext4, Bytes::gib(3)),
        MarkerState::None,
        &refuse("only 2 GiB"),
    );
}

/// design.md#identity-before-action
#[test]
fn only_our_own_interrupted_format_is_restarted() {
    check(Probe::Nothing, vec![], MarkerState::Ours, &Next::Format);
    for fs in [FsType::Ext4, FsType::Xfs, FsType::Btrfs] {
        let begun = || vec![Superblock::Unfinished(fs)];
        check(Probe::Nothing, begun(), MarkerState::Ours, &Next::Format);
        check(
            found(fs.as_str()),
            begun(),
            MarkerState::Ours,
            &Next::Format,
        );
        check(
            Probe::Nothing,
            begun(),
            MarkerState::None,
            &refuse("incomplete"),
        );
        check(
            Probe::Nothing,
            begun(),
            MarkerState::Other(uuid()),
            &refuse("another volume"),
        );
    }
    check(
        found("ext4"),
        vec![Superblock::Unfinished(FsType::Ext4)],
        MarkerState::None,
        &refuse("damaged ext4"),
    );
    check(
        Probe::Nothing,
        vec![],
        MarkerState::Other(uuid()),
        &refuse("00000000-f296"),
    );
    check(
        found("xfs"),
        complete(FsType::Xfs, SIZE),
        MarkerState::Ours,
        &refuse("xfs, not ext4"),
    );
}

/// design.md#identity-before-action
#[test]
fn nothing_else_is_formatted() {
    check(
        Probe::Nothing,
        vec![],
        MarkerState::None,
        &Next::FormatIfBlank,
    );
    check(
        Probe::Nothing,
        complete(FsType::Ext4, SIZE),
        MarkerState::None,
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
        for marker in [MarkerState::None, MarkerState::Other(uuid())] {
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
        MarkerState::Ours,
        &refuse("LVM2_member"),
    );
    check(
        Probe::Several,
        vec![],
        MarkerState::Ours,
        &refuse("several"),
    );
    let two = [complete(FsType::Ext4, SIZE), complete(FsType::Xfs, SIZE)].concat();
    check(
        found("ext4"),
        two,
        MarkerState::None,
        &refuse("damaged ext4"),
    );
}
