//! A full file system that grows under a pod which keeps writing.

use std::fs::File;
use std::io::{ErrorKind, Write as _};

use e2e::GIB;
use e2e::harness::skip::{can_grow_mounted_ext4, skip};
use e2e::harness::test_volume::Content;
use nix::fcntl::{FallocateFlags, fallocate};
use sha2::{Digest as _, Sha256};

use crate::story::{Data, Story};
use e2e::harness::inspect;
use e2e::harness::writer::Writer;

/// Space left for data whose checksum is compared; more would take too long in a debug build.
const DATA_SPACE: i64 = 24 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_full_xfs_grows_under_a_writer() {
    grows_under_a_writer(
        "full_filesystem::a_full_xfs_grows_under_a_writer",
        Content::Fs("xfs"),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_btrfs_grows_under_a_writer() {
    grows_under_a_writer(
        "full_filesystem::a_full_btrfs_grows_under_a_writer",
        Content::Fs("btrfs"),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_ext4_grows_under_a_writer() {
    const TEST: &str = "full_filesystem::a_full_ext4_grows_under_a_writer";
    if can_grow_mounted_ext4() {
        grows_under_a_writer(TEST, Content::Fs("ext4")).await;
    } else {
        skip(
            TEST,
            "CAP_SYS_RESOURCE is missing: the kernel refuses to grow a mounted ext4",
        );
    }
}

async fn grows_under_a_writer(test: &str, content: Content) {
    let Some(mut story) = Story::begin(test, GIB, content).await else {
        return;
    };
    story.attach().await;
    let data = story.write("before");
    let writer = Writer::start(&story.volume.path().join("log")).unwrap();
    writer.must_keep_writing().await.unwrap();
    let brim = story.fill_completely();
    writer.must_meet_full_disk().await.unwrap();

    story.grow_lun(2 * GIB).await;
    writer.must_meet_full_disk().await.unwrap();
    assert_eq!(story.grow_node(2 * GIB).await.unwrap(), 2 * GIB);

    writer.must_keep_writing().await.unwrap();
    story.must_have(2 * GIB);
    story.must_hold(&data);
    story.must_hold(&brim);
    writer.must_keep_writing().await.unwrap();
    writer.stop().unwrap();
    story.end().await;
}

/// On a machine where a mounted ext4 cannot grow the writer has to pause; otherwise the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_ext4_grows_between_two_pods() {
    let test = "full_filesystem::a_full_ext4_grows_between_two_pods";
    let Some(mut story) = Story::begin(test, GIB, Content::Fs("ext4")).await else {
        return;
    };
    story.attach().await;
    let data = story.write("before");
    let writer = Writer::start(&story.volume.path().join("log")).unwrap();
    let brim = story.fill_completely();
    writer.must_meet_full_disk().await.unwrap();
    writer.stop().unwrap();

    story.detach().await;
    story
        .volume
        .expand_lun(&story.cluster, 2 * GIB)
        .await
        .unwrap();
    story.attach().await;

    story.must_have(2 * GIB);
    story.must_hold(&data);
    story.must_hold(&brim);
    let writer = Writer::start(&story.volume.path().join("log")).unwrap();
    writer.must_keep_writing().await.unwrap();
    writer.stop().unwrap();
    story.end().await;
}

impl Story {
    /// Leaves no free space: most of it is only allocated, and the last part holds data.
    fn fill_completely(&self) -> Data {
        let pod = self.volume.path();
        let room = inspect::df("avail", &pod).unwrap() - DATA_SPACE;
        let ballast = File::create(pod.join("ballast")).unwrap();
        fallocate(&ballast, FallocateFlags::empty(), 0, room).unwrap();

        let mut file = File::create(pod.join("brim")).unwrap();
        let (mut hasher, mut bytes) = (Sha256::new(), 0);
        // Large pieces first, then smaller ones.
        for piece in [1 << 20, 64 << 10, 4 << 10] {
            let chunk: Vec<u8> = b"to the brim, and not a byte more "
                .iter()
                .copied()
                .cycle()
                .take(piece)
                .collect();
            loop {
                match file.write(&chunk) {
                    Ok(written) => {
                        hasher.update(&chunk[..written]);
                        bytes += written as u64;
                    }
                    Err(full) if full.kind() == ErrorKind::StorageFull => break,
                    Err(error) => panic!("filling the volume: {error}"),
                }
            }
        }
        file.sync_all().unwrap();
        assert!(bytes > 0, "there was no room from the start");
        Data {
            file: Some("brim"),
            bytes,
            sha256: hex::encode(hasher.finalize()),
        }
    }
}
