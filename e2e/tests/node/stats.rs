//! NodeGetVolumeStats, compared with the output of `df` and `blockdev`.

use e2e::GIB;
use e2e::harness::process::run;
use e2e::harness::test_volume::Content;
use e2e::harness::tools::device_bytes;
use proto::csi::VolumeUsage;
use proto::csi::volume_usage::Unit;
use tonic::Code;

use crate::story::Story;
use e2e::harness::inspect::df;

#[tokio::test(flavor = "multi_thread")]
async fn statistics_are_those_of_df() {
    for fs in ["ext4", "xfs", "btrfs"] {
        let test = "stats::statistics_are_those_of_df";
        let Some(mut story) = Story::begin(test, GIB, Content::Fs(fs)).await else {
            return;
        };
        story.attach().await;
        let empty = story.usage(Unit::Bytes).await.unwrap();
        let data = story.write("before");
        let pod = &story.volume.target;
        // btrfs updates its usage on commit.
        run("sync", ["--file-system".as_ref(), pod.as_os_str()]).unwrap();
        let bytes = story.usage(Unit::Bytes).await.unwrap();
        assert_eq!(bytes.total, df("size", pod).unwrap(), "{fs}");
        assert_eq!(bytes.available, df("avail", pod).unwrap(), "{fs}");
        assert_eq!(bytes.used, df("used", pod).unwrap(), "{fs}");
        let written = data.bytes.cast_signed();
        assert!(
            bytes.used >= empty.used + written,
            "{fs}: {bytes:?}, {empty:?} before"
        );
        match story.usage(Unit::Inodes).await {
            Some(inodes) => {
                assert_eq!(inodes.total, df("itotal", pod).unwrap(), "{fs}");
                assert_eq!(inodes.used, df("iused", pod).unwrap(), "{fs}");
                assert_eq!(inodes.available, df("iavail", pod).unwrap(), "{fs}");
            }
            None => assert_eq!(fs, "btrfs", "only btrfs has no number of inodes"),
        }
        story.detach().await;
        story
            .volume
            .expand_lun(&story.cluster, 2 * GIB)
            .await
            .unwrap();
        story.attach().await;
        assert!(
            story.usage(Unit::Bytes).await.unwrap().total > bytes.total + GIB / 2,
            "{fs}"
        );
        story.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn statistics_of_a_raw_device_are_its_size() {
    let test = "stats::statistics_of_a_raw_device_are_its_size";
    let Some(mut story) = Story::begin(test, GIB, Content::Block).await else {
        return;
    };
    story.attach().await;
    story.grow_lun(2 * GIB).await;
    for size in [GIB, 2 * GIB] {
        let seen = story.usage(Unit::Bytes).await.unwrap();
        assert_eq!((seen.total, seen.used, seen.available), (size, 0, 0));
        assert_eq!(device_bytes(&story.device()).unwrap(), size.unsigned_abs());
        assert_eq!(story.usage(Unit::Inodes).await, None);
        story.grow_node(2 * GIB).await.unwrap();
    }
    story.end().await;
}

/// A volume that is not there has no statistics.
#[tokio::test(flavor = "multi_thread")]
async fn statistics_of_a_missing_volume_are_refused() {
    let test = "stats::statistics_of_a_missing_volume_are_refused";
    let Some(mut story) = Story::begin(test, GIB, Content::Fs("ext4")).await else {
        return;
    };
    story.attach().await;
    story.node_unpublish().await.unwrap();
    let refused = story.node(story.volume.stats(&story.cluster)).await;
    assert_eq!(refused.unwrap_err().code(), Code::NotFound);
    // A directory of the node's own file system is not mistaken for the volume.
    std::fs::create_dir(&story.volume.target).unwrap();
    let refused = story.node(story.volume.stats(&story.cluster)).await;
    assert_eq!(refused.unwrap_err().code(), Code::NotFound);
    story.end().await;
}

impl Story {
    async fn usage(&self, unit: Unit) -> Option<VolumeUsage> {
        let answer = self.node(self.volume.stats(&self.cluster)).await.unwrap();
        let matches_unit = |usage: &VolumeUsage| usage.unit == i32::from(unit);
        answer.usage.into_iter().find(matches_unit)
    }
}
