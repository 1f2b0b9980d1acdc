//! A driver that is killed. It is stateless, so at whichever step it dies the CO retries the call, and nothing is lost
//! and nothing left over (design.md#unstage-needs-no-nas, #expansion-is-read-back and #one-operation-per-volume).

use std::time::Duration;

use e2e::GIB;
use e2e::harness::skip::can_grow_mounted_ext4;
use e2e::harness::test_volume::Content;
use e2e::harness::until::until;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tonic::{Code, Status};

use crate::story::Story;
use e2e::interceptor::{CommandInterceptor, StopAt};

/// The calls of a volume's life cycle that act on the node.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    Stage,
    NodePublish,
    GrowNode(i64),
    NodeUnpublish,
    Unstage,
}

impl Story {
    async fn run(&self, step: Step) -> Result<(), Status> {
        match step {
            Step::Stage => self.stage().await,
            Step::NodePublish => self.node_publish().await,
            Step::GrowNode(size) => self
                .grow_node(size)
                .await
                .map(|seen| assert_eq!(seen, size)),
            Step::NodeUnpublish => self.node_unpublish().await,
            Step::Unstage => self.unstage().await,
        }
    }

    async fn restart(&mut self) {
        self.cluster.restart_driver().await.unwrap();
    }

    /// Runs a step in which the driver is killed at its `nth` host command, then repeats it with a new driver process.
    /// Returns the command, or `None` if the step ended before its `nth` command.
    async fn kill_and_repeat(
        &mut self,
        interceptor: &CommandInterceptor,
        step: Step,
        nth: usize,
        when: StopAt,
    ) -> Option<String> {
        interceptor.arm(nth, when).unwrap();
        let stopped = tokio::select! {
            result = self.run(step) => {
                result.unwrap();
                None
            }
            stopped = interceptor.held() => Some(stopped.unwrap()),
        };
        interceptor.disarm().unwrap();
        let stopped = stopped?;
        self.cluster.plugin.process.kill();
        stopped.kill();
        self.restart().await;
        if let Err(status) = self.run(step).await {
            panic!(
                "{step:?} after a kill at {} ({nth}, {when:?}): {status}",
                stopped.program
            );
        }
        Some(stopped.program)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_life_cycle_with_a_new_driver_before_each_step() {
    for content in Content::ALL {
        let test = "crash::a_life_cycle_with_a_new_driver_before_each_step";
        let Some(mut story) = Story::begin(test, GIB, content).await else {
            return;
        };
        story.restart().await;
        story.publish().await;
        story.restart().await;
        story.stage().await.unwrap();
        story.restart().await;
        story.node_publish().await.unwrap();
        story.restart().await;
        let data = story.write("before");
        story.grow_lun(2 * GIB).await;
        story.restart().await;
        if content == Content::Fs("ext4") && !can_grow_mounted_ext4() {
            story.detach().await;
            story.restart().await;
            story.attach().await;
        }
        story.grow_node(2 * GIB).await.unwrap();
        story.restart().await;
        story.must_have(2 * GIB);
        story.must_hold(&data);
        story.node_unpublish().await.unwrap();
        story.restart().await;
        story.unstage().await.unwrap();
        story.restart().await;
        story.volume.unpublish(&story.cluster).await.unwrap();
        story.restart().await;
        story.volume.delete(&story.cluster).await.unwrap();
        story.restart().await;
        story.must_leave_nothing().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_each_host_command_of_an_xfs() {
    killed_at_each_host_command(
        "crash::killed_at_each_host_command_of_an_xfs",
        Content::Fs("xfs"),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_each_host_command_of_a_btrfs() {
    killed_at_each_host_command(
        "crash::killed_at_each_host_command_of_a_btrfs",
        Content::Fs("btrfs"),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_each_host_command_of_an_ext4() {
    killed_at_each_host_command(
        "crash::killed_at_each_host_command_of_an_ext4",
        Content::Fs("ext4"),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_each_host_command_of_a_raw_device() {
    killed_at_each_host_command(
        "crash::killed_at_each_host_command_of_a_raw_device",
        Content::Block,
    )
    .await;
}

/// The driver is killed before the first command of each step, after it, in the middle of it, before the second, and so on.
async fn killed_at_each_host_command(test: &str, content: Content) {
    let Some(mut story) = Story::begin(test, GIB, content).await else {
        return;
    };
    let interceptor = story.interceptor();
    let mut seen = Vec::new();
    let (mut size, mut random) = (GIB, SmallRng::seed_from_u64(7));
    story.attach().await;
    let data = story.write("before");
    for kind in [
        |_| StopAt::Before,
        |_| StopAt::After,
        |micros| StopAt::During(micros),
    ] as [fn(u32) -> StopAt; 3]
    {
        for step in [
            Step::GrowNode(0),
            Step::NodeUnpublish,
            Step::Unstage,
            Step::Stage,
            Step::NodePublish,
        ] {
            for nth in 1.. {
                let when = kind(random.random_range(0..8_000));
                let step = story.prepare(step, &mut size).await;
                let Some(program) = story.kill_and_repeat(&interceptor, step, nth, when).await
                else {
                    break;
                };
                seen.push(program);
                story.revert(step).await;
            }
        }
        story.must_have(size);
        story.must_hold(&data);
    }
    story.end().await;
    must_have_stopped_at(content, &seen);
}

impl Story {
    /// Ensures that the step has work to do.
    async fn prepare(&self, step: Step, size: &mut i64) -> Step {
        match step {
            Step::GrowNode(_)
                if self.volume.content != Content::Fs("ext4") || can_grow_mounted_ext4() =>
            {
                *size += GIB / 4;
                self.grow_lun(*size).await;
                Step::GrowNode(*size)
            }
            // An expansion that was not done while mounted is done when the volume is staged again.
            Step::Stage => {
                *size += GIB / 4;
                self.grow_lun(*size).await;
                step
            }
            Step::GrowNode(_) => Step::GrowNode(*size),
            Step::NodeUnpublish | Step::Unstage | Step::NodePublish => step,
        }
    }

    /// Reverts the step so that it can be repeated. `GrowNode` has work to do each time without that.
    async fn revert(&self, step: Step) {
        match step {
            Step::GrowNode(_) => {}
            Step::NodeUnpublish => self.node_publish().await.unwrap(),
            Step::Unstage => self.stage().await.unwrap(),
            Step::Stage => self.unstage().await.unwrap(),
            Step::NodePublish => self.node_unpublish().await.unwrap(),
        }
    }
}

/// The driver is killed at a random time, and the commands it had started keep running. Like a kubelet, the test repeats the step
/// until it succeeds; until then no error code may be final.
#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment() {
    const SEED: u64 = 1202;
    for content in Content::ALL {
        let test = "crash::killed_at_any_moment";
        let Some(mut story) = Story::begin(test, GIB, content).await else {
            return;
        };
        let (mut size, mut random) = (GIB, SmallRng::seed_from_u64(SEED));
        story.attach().await;
        let data = story.write("before");
        for round in 0..3 {
            for step in [
                Step::GrowNode(0),
                Step::NodeUnpublish,
                Step::Unstage,
                Step::Stage,
                Step::NodePublish,
            ] {
                let step = story.prepare(step, &mut size).await;
                let delay = Duration::from_micros(random.random_range(0..150_000));
                eprintln!(
                    "seed {SEED}, round {round}: {} {step:?}, killed after {delay:?}",
                    content.name()
                );
                let _ = tokio::time::timeout(delay, story.run(step)).await;
                story.restart().await;
                let repeat = async || Ok(story.run(step).await);
                let done = until("the step is done", repeat, |result| match result {
                    Ok(()) => true,
                    Err(status) => {
                        let code = status.code();
                        assert!(
                            matches!(code, Code::Aborted | Code::Unavailable),
                            "{step:?}: {status}"
                        );
                        false
                    }
                });
                done.await.unwrap().unwrap();
            }
            story.must_have(size);
            story.must_hold(&data);
        }
        story.end().await;
    }
}

/// Checks that the interceptor stopped the driver at every relevant program.
fn must_have_stopped_at(content: Content, seen: &[String]) {
    let grow: &[&str] = match content.name() {
        "ext4" => &["blkid", "mount", "umount", "resize2fs"],
        "xfs" => &["blkid", "mount", "umount", "xfs_growfs", "xfs_spaceman"],
        "btrfs" => &["blkid", "mount", "umount", "btrfs"],
        _ => &["mount", "umount"],
    };
    for program in grow.iter().chain(&["iscsiadm"]) {
        assert!(
            seen.iter().any(|met| met == program),
            "the driver was never stopped at {program}, only at {seen:?}"
        );
    }
}
