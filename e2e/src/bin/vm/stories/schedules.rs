//! Never the wrong disk, in random schedules: the NAS changes what it exports while a CO keeps calling.

use anyhow::{Context as _, Result, ensure};
use e2e::GIB;
use e2e::harness::test_volume::TestVolume;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use tonic::{Code, Status};

use crate::scene::Scene;

/// The possible steps.
#[derive(Clone, Copy, Debug)]
enum Step {
    Swap,
    SwapBack,
    TargetGone,
    TargetBack,
    Stage,
    Publish,
    Expand,
    Unpublish,
    Unstage,
}

/// The weight of each step.
const STEPS: [(Step, u32); 9] = [
    (Step::Swap, 4),
    (Step::SwapBack, 3),
    (Step::TargetGone, 1),
    (Step::TargetBack, 1),
    (Step::Stage, 3),
    (Step::Publish, 3),
    (Step::Expand, 4),
    (Step::Unpublish, 1),
    (Step::Unstage, 1),
];

/// What the NAS exports in place of the volume's LUN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Volume,
    Impostor,
    Nothing,
}

/// Random schedules, one after the other, each starting with a volume in use.
struct Schedules<'a> {
    scene: &'a Scene,
    volume: TestVolume,
    impostor: TestVolume,
    place: Place,
    /// The target was deleted since the volume was attached, so the device is dead.
    dead: bool,
    /// Whether a pod uses the volume.
    used: bool,
    granted: u32,
    refused: u32,
}

/// Checks that a device that the driver returns as the volume's always has the volume's mark.
pub(crate) async fn schedules(scene: &mut Scene) -> Result<String> {
    let (volume, impostor) = (scene.marked("pvc-1").await?, scene.marked("pvc-2").await?);
    let mut run = Schedules {
        scene,
        volume: volume.volume.clone(),
        impostor: impostor.volume.clone(),
        place: Place::Volume,
        dead: false,
        used: false,
        granted: 0,
        refused: 0,
    };
    run.use_volume().await?;
    for case in 0..scene.cases {
        let seed = scene.seed.wrapping_add(u64::from(case));
        let mut random = SmallRng::seed_from_u64(seed);
        let count = random.random_range(2..6);
        let steps = STEPS.choose_weighted_iter(&mut random, |(_, weight)| *weight)?;
        let steps: Vec<Step> = steps.take(count).map(|(step, _)| *step).collect();
        run.run_steps(&steps)
            .await
            .with_context(|| format!("--seed {seed} --cases 1: {steps:?}"))?;
    }
    run.detach().await?;
    let Schedules {
        granted, refused, ..
    } = run;
    volume.snapshot.ensure_unchanged()?;
    scene.remove_marked(volume).await?;
    scene.remove_marked(impostor).await?;
    Ok(format!(
        "{} schedules: {granted} times the right disk, {refused} times refused, the wrong one never; both LUNs untouched",
        scene.cases
    ))
}

impl Schedules<'_> {
    /// Runs the steps. Afterwards the NAS exports the right LUN, and the driver must recover by itself.
    async fn run_steps(&mut self, steps: &[Step]) -> Result<()> {
        for step in steps {
            self.run_step(*step)
                .await
                .with_context(|| format!("{step:?}"))?;
        }
        if self.dead {
            // A pod that holds a dead disk open must be restarted by an administrator.
            self.detach().await?;
        }
        self.export_volume().await?;
        self.use_volume()
            .await
            .context("after the export was restored")
    }

    async fn run_step(&mut self, step: Step) -> Result<()> {
        let cluster = &self.scene.cluster;
        let answer = match step {
            Step::Swap if self.place == Place::Volume => {
                self.place = Place::Impostor;
                return self.scene.swap(&self.volume, &self.impostor).await;
            }
            Step::SwapBack if self.place == Place::Impostor => return self.export_volume().await,
            Step::TargetBack if self.place == Place::Nothing => return self.export_volume().await,
            Step::TargetGone if self.place != Place::Nothing => {
                (self.place, self.dead) = (Place::Nothing, true);
                return Ok(self.volume.unpublish(cluster).await?);
            }
            Step::Swap | Step::SwapBack | Step::TargetGone | Step::TargetBack => return Ok(()),
            Step::Stage => self.volume.stage(cluster).await,
            Step::Publish => {
                let published = self.volume.node_publish(cluster).await;
                self.used |= published.is_ok();
                published
            }
            Step::Expand => self.volume.expand_on_node(cluster, GIB).await.map(drop),
            Step::Unpublish => {
                self.used = false;
                return Ok(self.volume.node_unpublish(cluster).await?);
            }
            Step::Unstage => return self.detach().await,
        };
        self.check(answer)
    }

    fn check(&mut self, answer: Result<(), Status>) -> Result<()> {
        let Err(status) = answer else {
            self.granted += 1;
            ensure!(
                self.place == Place::Volume,
                "success, although the NAS exports {:?}",
                self.place
            );
            return self.scene.must_show(&self.volume);
        };
        self.refused += 1;
        let known = matches!(
            status.code(),
            Code::FailedPrecondition | Code::NotFound | Code::Unavailable | Code::Aborted
        );
        ensure!(known, "{status}");
        Ok(())
    }

    async fn export_volume(&mut self) -> Result<()> {
        match std::mem::replace(&mut self.place, Place::Volume) {
            Place::Volume => Ok(()),
            Place::Impostor => self.scene.swap_back(&self.volume, &self.impostor).await,
            Place::Nothing => Ok(self.volume.publish(&self.scene.cluster).await?),
        }
    }

    async fn detach(&mut self) -> Result<()> {
        (self.dead, self.used) = (false, false);
        self.volume.node_unpublish(&self.scene.cluster).await?;
        Ok(self.volume.unstage(&self.scene.cluster).await?)
    }

    /// What was refused before succeeds now.
    async fn use_volume(&mut self) -> Result<()> {
        let cluster = &self.scene.cluster;
        if self.used {
            self.volume.expand_on_node(cluster, GIB).await?;
        } else {
            self.volume.stage(cluster).await?;
            self.volume.node_publish(cluster).await?;
            self.used = true;
        }
        self.scene.must_show(&self.volume)
    }
}
