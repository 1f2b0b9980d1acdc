//! A volume's first stage: formatting a blank LUN, and crashes during that (design.md#identity-before-action and #mkfs-defaults).

use e2e::GIB;
use e2e::harness::process::run;
use e2e::harness::test_volume::{Content, TestVolume};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::story::Story;
use e2e::harness::inspect;
use e2e::interceptor::{CommandInterceptor, StopAt};

const EXT4: Content = Content::Fs("ext4");
const XFS: Content = Content::Fs("xfs");
const BTRFS: Content = Content::Fs("btrfs");
/// Large enough that `mkfs` takes noticeable time.
const LARGE: i64 = 1 << 40;

impl Story {
    /// Switches to a new volume, which is published and blank.
    async fn next_volume(&mut self, size: i64) {
        self.volume = TestVolume::create(&self.cluster, "pvc-1", size, self.volume.content)
            .await
            .unwrap();
        self.publish().await;
    }

    /// Runs the first stage; the driver is killed at the armed command, and stage is repeated with a new driver. Returns the
    /// command.
    async fn kill_in_first_stage(&mut self, interceptor: &CommandInterceptor) -> Option<String> {
        let stopped = tokio::select! {
            staged = self.stage() => {
                staged.unwrap();
                None
            }
            stopped = interceptor.held() => Some(stopped.unwrap()),
        };
        interceptor.disarm().unwrap();
        if let Some(stopped) = &stopped {
            self.cluster.plugin.process.kill();
            stopped.kill();
            self.cluster.restart_driver().await.unwrap();
            if let Err(status) = self.stage().await {
                panic!("stage after a kill at {}: {status}", stopped.program);
            }
        }
        stopped.map(|stopped| stopped.program)
    }

    /// Checks that written data persist and that fsck finds no error.
    async fn must_be_sound(&self, size: i64) {
        self.node_publish().await.unwrap();
        self.must_have(size);
        let data = self.write("first");
        let device = self.device();
        self.node_unpublish().await.unwrap();
        run("umount", [&self.volume.staging]).unwrap();
        let check: &[&str] = match self.volume.content.name() {
            "ext4" => &["e2fsck", "-f", "-n"],
            "xfs" => &["xfs_repair", "-n"],
            _ => &["btrfs", "check", "--readonly"],
        };
        let device = device.to_string_lossy();
        run(check[0], check[1..].iter().copied().chain([&*device])).unwrap();
        self.stage().await.unwrap();
        self.node_publish().await.unwrap();
        self.must_hold(&data);
    }

    async fn delete_volume(&self) {
        self.detach().await;
        self.volume.delete(&self.cluster).await.unwrap();
    }
}

/// design.md#identity-before-action
#[tokio::test(flavor = "multi_thread")]
async fn a_first_stage_of_ext4_survives_a_kill_at_each_host_command() {
    let test = "format::a_first_stage_of_ext4_survives_a_kill_at_each_host_command";
    killed_at_each_host_command(test, EXT4).await;
}

/// design.md#identity-before-action
#[tokio::test(flavor = "multi_thread")]
async fn a_first_stage_of_xfs_survives_a_kill_at_each_host_command() {
    let test = "format::a_first_stage_of_xfs_survives_a_kill_at_each_host_command";
    killed_at_each_host_command(test, XFS).await;
}

/// design.md#identity-before-action
#[tokio::test(flavor = "multi_thread")]
async fn a_first_stage_of_btrfs_survives_a_kill_at_each_host_command() {
    let test = "format::a_first_stage_of_btrfs_survives_a_kill_at_each_host_command";
    killed_at_each_host_command(test, BTRFS).await;
}

async fn killed_at_each_host_command(test: &str, content: Content) {
    let Some(mut story) = Story::begin(test, GIB, content).await else {
        return;
    };
    let interceptor = story.interceptor();
    let mut seen = Vec::new();
    for when in [StopAt::Before, StopAt::After] {
        for nth in 1.. {
            story.next_volume(GIB).await;
            interceptor.arm(nth, when).unwrap();
            let met = story.kill_in_first_stage(&interceptor).await;
            // Before the driver has read the disk, nothing can have happened to it.
            if met.as_deref() != Some("iscsiadm") {
                story.must_be_sound(GIB).await;
            }
            story.delete_volume().await;
            let Some(program) = met else { break };
            seen.push(program);
        }
    }
    story.end().await;
    for program in [
        "iscsiadm",
        "blkid",
        &format!("mkfs.{}", content.name()),
        "mount",
    ] {
        assert!(
            seen.iter().any(|met| met == program),
            "the driver was never stopped at {program}, only at {seen:?}"
        );
    }
}

/// design.md#identity-before-action
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_mkfs_is_repeated() {
    // About as long as each takes on this machine; a kill after its end is a valid test, too.
    for (content, longest) in [(EXT4, 250_000), (XFS, 15_000), (BTRFS, 100_000)] {
        let test = "format::a_killed_mkfs_is_repeated";
        let Some(mut story) = Story::begin(test, LARGE, content).await else {
            return;
        };
        let interceptor = story.interceptor();
        let mkfs = format!("mkfs.{}", content.name());
        let mut random = SmallRng::seed_from_u64(11);
        for _ in 0..5 {
            story.next_volume(LARGE).await;
            let when = StopAt::During(random.random_range(0..longest));
            eprintln!("killing {mkfs} {when:?}");
            interceptor.arm_for(&mkfs, when).unwrap();
            assert_eq!(
                story.kill_in_first_stage(&interceptor).await,
                Some(mkfs.clone())
            );
            story.must_be_sound(LARGE).await;
            story.delete_volume().await;
        }
        story.end().await;
    }
}

/// The driver dies and leaves an orphaned `mkfs` that has not started yet. When it starts, the volume is already in use.
/// design.md#identity-before-action
#[tokio::test(flavor = "multi_thread")]
async fn a_late_mkfs_of_a_dead_driver_does_no_harm() {
    for content in [EXT4, XFS, BTRFS] {
        let test = "format::a_late_mkfs_of_a_dead_driver_does_no_harm";
        let Some(mut story) = Story::begin(test, GIB, content).await else {
            return;
        };
        let interceptor = story.interceptor();
        story.publish().await;
        interceptor
            .arm_for(&format!("mkfs.{}", content.name()), StopAt::Before)
            .unwrap();
        let stopped = tokio::select! {
            staged = story.stage() => panic!("staged: {staged:?}"),
            stopped = interceptor.held() => stopped.unwrap(),
        };
        story.cluster.restart_driver().await.unwrap();
        story.stage().await.unwrap();
        story.node_publish().await.unwrap();
        let data = story.write("before");
        stopped.release().await.unwrap();
        story.must_hold(&data);
        story.detach().await;
        story.attach().await;
        story.must_hold(&data);
        story.end().await;
    }
}

/// `formatOptions` determine the properties of the file system.
/// design.md#mkfs-defaults
#[tokio::test(flavor = "multi_thread")]
async fn format_options_have_effect() {
    for (fs, options, tool, want) in [
        (
            "xfs",
            "-m reflink=1 -L reports",
            ["xfs_info"].as_slice(),
            "reflink=1",
        ),
        (
            "ext4",
            "-b 4096 -i 65536",
            &["dumpe2fs", "-h"],
            "Inode count:              16384\n",
        ),
        (
            "btrfs",
            "-n 32768",
            &["btrfs", "inspect-internal", "dump-super"],
            "nodesize\t\t32768\n",
        ),
    ] {
        let test = "format::format_options_have_effect";
        let class = [("formatOptions", options), ("fsType", fs)];
        let Some(mut story) = Story::begin_as(test, Content::Fs(fs), &class).await else {
            return;
        };
        story.attach().await;
        let output = story.run_tool(tool);
        assert!(output.contains(want), "no {want} in: {output}");
        story.must_have(GIB);
        story.end().await;
    }
}

/// Without `formatOptions` the file system has no feature that an older node's kernel could not mount.
/// design.md#mkfs-defaults
#[tokio::test(flavor = "multi_thread")]
async fn the_defaults_are_conservative() {
    for (content, tool, young) in [
        (
            XFS,
            ["xfs_info"].as_slice(),
            ["reflink=1", "bigtime=1", "nrext64=1", "rmapbt=1"].as_slice(),
        ),
        (
            EXT4,
            &["dumpe2fs", "-h"],
            &["metadata_csum_seed", "orphan_file", "casefold", "verity"],
        ),
        (
            BTRFS,
            &["btrfs", "inspect-internal", "dump-super"],
            &["BLOCK_GROUP_TREE", "RAID1C34", "ZONED"],
        ),
    ] {
        let test = "format::the_defaults_are_conservative";
        let Some(mut story) = Story::begin(test, GIB, content).await else {
            return;
        };
        story.attach().await;
        let output = story.run_tool(tool);
        for feature in young {
            assert!(!output.contains(feature), "{feature} in: {output}");
        }
        assert!(
            !inspect::options(&story.volume.target)
                .unwrap()
                .contains(&"ro".to_owned())
        );
        story.end().await;
    }
}

impl Story {
    fn run_tool(&self, tool: &[&str]) -> String {
        let device = self.device();
        let device = device.to_string_lossy();
        run(tool[0], tool[1..].iter().copied().chain([&*device])).unwrap()
    }
}
