//! File systems that fail under their pods, and damaged ones: with the real kernel and the real tools.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use e2e::GIB;
use e2e::harness::process::run;
use e2e::harness::test_volume::Content;
use tonic::Code;

use crate::story::Story;
use e2e::harness::inspect;

const EXT4: Content = Content::Fs("ext4");
const XFS: Content = Content::Fs("xfs");

impl Story {
    /// Makes the kernel find a file system error, as if the disk had returned bad data.
    fn kill_file_system(&self) {
        if self.volume.content == XFS {
            let staging = self.volume.staging.to_string_lossy();
            run("xfs_io", ["-x", "-c", "shutdown", &*staging]).unwrap();
            return;
        }
        let device = self.device();
        let name = device.file_name().unwrap().to_string_lossy();
        fs::write(format!("/sys/fs/ext4/{name}/trigger_fs_error"), "1").unwrap();
    }

    /// The abnormal condition that NodeGetVolumeStats reports.
    async fn condition(&self) -> Option<String> {
        let reported = self.node(self.volume.stats(&self.cluster)).await.unwrap();
        let condition = reported.volume_condition.unwrap();
        condition.abnormal.then_some(condition.message)
    }
}

/// While the pod runs, no node call succeeds and no error is final. Once the pod has ended, the next pod finds all data that were
/// written.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_file_system_is_mounted_again_for_the_next_pod() {
    for content in [EXT4, XFS] {
        let test = "dead_fs::a_dead_file_system_is_mounted_again_for_the_next_pod";
        let Some(mut story) = Story::begin(test, GIB, content).await else {
            return;
        };
        story.attach().await;
        let data = story.write("before");
        assert_eq!(story.condition().await, None);
        story.kill_file_system();
        assert!(File::create(story.volume.target.join("later")).is_err());

        let reported = story.condition().await.unwrap();
        assert!(reported.contains("dead"), "{reported}");
        for refused in [
            story.stage().await,
            story.node_publish().await,
            story.grow_node(GIB).await.map(drop),
        ] {
            let status = refused.unwrap_err();
            assert_eq!(status.code(), Code::Aborted, "{status}");
            assert!(status.message().contains("delete the pods"), "{status}");
        }

        story.node_unpublish().await.unwrap();
        // The kubelet believes that the volume is staged.
        story.node_publish().await.unwrap();
        story.must_hold(&data);
        story.write("later");
        assert_eq!(story.condition().await, None);
        // And the same if it stages it again.
        story.node_unpublish().await.unwrap();
        story.kill_file_system();
        story.stage().await.unwrap();
        story.node_publish().await.unwrap();
        story.must_hold(&data);
        story.end().await;
    }
}

/// It can be unpublished and unstaged at any time.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_file_system_can_be_unstaged() {
    for content in [EXT4, XFS] {
        let test = "dead_fs::a_dead_file_system_can_be_unstaged";
        let Some(mut story) = Story::begin(test, GIB, content).await else {
            return;
        };
        story.attach().await;
        story.kill_file_system();
        story.end().await;
    }
}

/// An ext4 that is marked as having errors is repaired before it is mounted, if that is safe; otherwise it is not mounted, and
/// the error names the remedy.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_ext4_is_repaired_or_refused() {
    let test = "dead_fs::a_damaged_ext4_is_repaired_or_refused";
    let Some(mut story) = Story::begin(test, GIB, EXT4).await else {
        return;
    };
    story.attach().await;
    let data = story.write("before");
    let lost = story.volume.target.join("lost");
    fs::create_dir_all(lost.join("found")).unwrap();
    fs::write(lost.join("found/file"), "x").unwrap();
    story.detach().await;
    let file = |story: &Story| {
        let name = format!("luns/{}.img", story.volume.uuid());
        story.cluster.nas.folder().join(name)
    };
    let edit = |file: &Path, command: &str| {
        let file = file.to_string_lossy();
        run("debugfs", ["-w", "-R", command, &*file]).unwrap();
    };
    // Marked as having errors, but it has none.
    edit(&file(&story), "ssv state 2");
    story.attach().await;
    story.must_hold(&data);
    story.detach().await;

    // A directory is lost with all its files.
    edit(&file(&story), "clri /lost");
    edit(&file(&story), "ssv state 2");
    story.publish().await;
    for _ in 0..2 {
        let refused = story.stage().await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        for word in ["damage", "SAN Manager", "e2fsck -f"] {
            assert!(refused.message().contains(word), "{word}: {refused}");
        }
        assert!(
            story.volume.device(&story.cluster).is_err(),
            "it is logged out"
        );
    }
    let path = file(&story);
    let path = path.to_string_lossy();
    // The exit status says that it has repaired something.
    run("e2fsck", ["-f", "-y", &*path]).unwrap_err();
    run("e2fsck", ["-f", "-n", &*path]).unwrap();
    story.stage().await.unwrap();
    story.node_publish().await.unwrap();
    story.must_hold(&data);
    story.end().await;
}

/// mount(8) prints the same message for everything that it cannot mount; the kernel log has the cause.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_mount_reports_the_kernel_message() {
    let test = "dead_fs::a_failed_mount_reports_the_kernel_message";
    let Some(mut story) = Story::begin(test, GIB, EXT4).await else {
        return;
    };
    story.attach().await;
    story.detach().await;
    let name = format!("luns/{}.img", story.volume.uuid());
    let path = story.cluster.nas.folder().join(name);
    let file = path.to_string_lossy();
    let mut superblock = [0; 1024];
    let disk = File::options().read(true).write(true).open(&path).unwrap();
    disk.read_exact_at(&mut superblock, 1024).unwrap();
    // Created by a newer system.
    run("debugfs", ["-w", "-R", "feature FEATURE_I30", &*file]).unwrap();
    story.publish().await;
    let refused = story.stage().await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    if File::open("/dev/kmsg").is_ok() {
        let reported = refused.message();
        assert!(
            reported.contains("unsupported optional features"),
            "{reported}"
        );
    }
    // debugfs cannot open it any more.
    disk.write_all_at(&superblock, 1024).unwrap();
    disk.sync_all().unwrap();
    story.stage().await.unwrap();
    story.node_publish().await.unwrap();
    story.end().await;
}

/// Device files and setuid bits on a tenant's file system have no effect, unless a mount option allows them.
#[tokio::test(flavor = "multi_thread")]
async fn a_tenants_file_system_has_no_devices_and_gives_no_rights() {
    for fs in ["ext4", "xfs", "btrfs"] {
        let test = "dead_fs::a_tenants_file_system_has_no_devices_and_gives_no_rights";
        let Some(mut story) = Story::begin(test, GIB, Content::Fs(fs)).await else {
            return;
        };
        story.attach().await;
        let has = |story: &Story, option: &str| {
            let options = inspect::options(&story.volume.target).unwrap();
            options.contains(&option.to_owned())
        };
        assert!(has(&story, "nodev") && has(&story, "nosuid"), "{fs}");
        story.stage().await.unwrap();
        story.node_publish().await.unwrap();
        story.detach().await;
        story.volume.mount_flags = vec!["suid".to_owned(), "dev".to_owned()];
        story.attach().await;
        assert!(!has(&story, "nodev") && !has(&story, "nosuid"), "{fs}");
        story.end().await;
    }
}
