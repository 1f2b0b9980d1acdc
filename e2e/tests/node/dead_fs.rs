//! File systems that die under their pods, and those that come damaged: with the real kernel and the real tools.

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
    /// The kernel finds an error, as of a disk that has lied.
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

    /// What is wrong, by NodeGetVolumeStats.
    async fn condition(&self) -> Option<String> {
        let told = self.node(self.volume.stats(&self.cluster)).await.unwrap();
        let condition = told.volume_condition.unwrap();
        condition.abnormal.then_some(condition.message)
    }
}

/// Nothing that a pod asks for is answered with OK, and nothing for good; once the pod has ended, the next one has all that was
/// written.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_file_system_is_mounted_anew_for_the_next_pod() {
    for content in [EXT4, XFS] {
        let test = "dead_fs::a_dead_file_system_is_mounted_anew_for_the_next_pod";
        let Some(mut story) = Story::begin(test, GIB, content).await else {
            return;
        };
        story.attach().await;
        let data = story.write("before");
        assert_eq!(story.condition().await, None);
        story.kill_file_system();
        assert!(File::create(story.volume.target.join("later")).is_err());

        let told = story.condition().await.unwrap();
        assert!(told.contains("dead"), "{told}");
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
        // The kubelet believes it to be staged.
        story.node_publish().await.unwrap();
        story.must_hold(&data);
        story.write("later");
        assert_eq!(story.condition().await, None);
        // And the same where it does stage.
        story.node_unpublish().await.unwrap();
        story.kill_file_system();
        story.stage().await.unwrap();
        story.node_publish().await.unwrap();
        story.must_hold(&data);
        story.end().await;
    }
}

/// It can be let go at any time.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_file_system_can_be_let_go() {
    for content in [EXT4, XFS] {
        let test = "dead_fs::a_dead_file_system_can_be_let_go";
        let Some(mut story) = Story::begin(test, GIB, content).await else {
            return;
        };
        story.attach().await;
        story.kill_file_system();
        story.end().await;
    }
}

/// An ext4 that says that it has errors is repaired before it is mounted, if that is safe; else it is not mounted, and the way out is
/// told.
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
    // It says that it has errors, and has none.
    edit(&file(&story), "ssv state 2");
    story.attach().await;
    story.must_hold(&data);
    story.detach().await;

    // A directory is lost with all that was in it.
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
    // It says by its exit that it has repaired something.
    run("e2fsck", ["-f", "-y", &*path]).unwrap_err();
    run("e2fsck", ["-f", "-n", &*path]).unwrap();
    story.stage().await.unwrap();
    story.node_publish().await.unwrap();
    story.must_hold(&data);
    story.end().await;
}

/// mount(8) says the same of everything that it cannot mount; the kernel knows better.
#[tokio::test(flavor = "multi_thread")]
async fn a_mount_that_fails_says_what_the_kernel_said() {
    let test = "dead_fs::a_mount_that_fails_says_what_the_kernel_said";
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
    // Made by a system of the future.
    run("debugfs", ["-w", "-R", "feature FEATURE_I30", &*file]).unwrap();
    story.publish().await;
    let refused = story.stage().await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    if File::open("/dev/kmsg").is_ok() {
        let told = refused.message();
        assert!(told.contains("unsupported optional features"), "{told}");
    }
    // debugfs does not open it any more.
    disk.write_all_at(&superblock, 1024).unwrap();
    disk.sync_all().unwrap();
    story.stage().await.unwrap();
    story.node_publish().await.unwrap();
    story.end().await;
}

/// Devices and rights on a tenant's file system mean nothing, unless an option says so.
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
