//! Inside the first machine: tells the stories one after the other, each in a world of its own.

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::harness::process;
use e2e::vm::guest::{OUT, report};
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use serde::{Deserialize, Serialize};

use crate::Choice;
use crate::scene::{Export, Scene};
use crate::stories::{self, Story};

/// The first machine: NAS, controller and a node.
pub(crate) const FIRST: &str = "worker-1";
/// The second: another node.
pub(crate) const SECOND: &str = "worker-2";
/// Where the second does what it is asked.
pub(crate) const SECOND_SERVES: &str = "10.79.0.2:7000";
/// No story takes longer on a machine of this kind, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(1200);

/// The stories of loop devices that are told here unless others are asked for: many a kernel refuses what they need. `cargo ci
/// node` tells all of them; some take minutes, and tell nothing else here.
const REFUSED_ELSEWHERE: [&str; 4] = [
    "expand::ext4",
    "expand::a_mounted_ext4_that_may_not_grow",
    "expand::a_volume_grows_through_its_staging_path",
    "full_filesystem::a_full_ext4_grows_under",
];
/// Stories of loop devices at a time.
const AT_A_TIME: usize = 3;

/// What the host is told, a line of JSON each.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// How far the machine has come.
    Note(String),
    /// A story was told: what was seen, or why it failed.
    Story {
        name: String,
        seconds: f64,
        outcome: Result<String, String>,
    },
    /// That was all.
    Done,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Note(note) => f.write_str(note),
            Self::Story {
                name,
                seconds,
                outcome: Ok(seen),
            } => write!(f, "ok      {seconds:6.1} s  {name}: {seen}"),
            Self::Story {
                name,
                seconds,
                outcome: Err(why),
            } => write!(f, "FAILED  {seconds:6.1} s  {name}: {why}"),
            Self::Done => f.write_str("done"),
        }
    }
}

fn tell(report_: &Report) -> Result<()> {
    report(&serde_json::to_string(report_)?)
}

/// Who is there to tell stories.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cast {
    /// How the NAS exports its LUNs.
    pub(crate) export: Export,
    /// There is a second machine.
    pub(crate) second: bool,
}

impl Cast {
    /// All of them; first those that wait most.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        [true, false]
            .into_iter()
            .flat_map(|second| Export::ALL.map(|export| Self { export, second }))
    }

    /// `lio` alone, `lio-2` with a second machine.
    pub(crate) fn name(self) -> String {
        let export = self.export.name();
        if self.second {
            format!("{export}-2")
        } else {
            export.to_owned()
        }
    }

    fn stories(self, choice: &Choice) -> impl Iterator<Item = &'static Story> {
        stories::ALL.iter().filter(move |story| {
            let wanted = if choice.only.is_empty() {
                story.unasked.contains(&self.export)
            } else {
                choice.wants(&name(self.export, story))
            };
            story.second == self.second && wanted
        })
    }
}

/// These have something to tell.
pub(crate) fn has_stories(cast: Cast, choice: &Choice) -> bool {
    cast.stories(choice).next().is_some() || tells_loop_plane(cast, choice)
}

/// One machine is enough for what needs no iSCSI.
fn tells_loop_plane(cast: Cast, choice: &Choice) -> bool {
    cast.export == Export::Lio
        && !cast.second
        && choice.node_tests.is_some()
        && (choice.only.is_empty() || choice.only.iter().any(|part| part.starts_with("loop")))
}

fn name(export: Export, story: &Story) -> String {
    format!("{}/{}", export.name(), story.name)
}

pub(crate) async fn run(cast: Cast, choice: &Choice) -> Result<()> {
    let uptime = std::fs::read_to_string("/proc/uptime")?;
    tell(&Report::Note(format!(
        "{}: modules, network and daemons after {} s",
        cast.name(),
        uptime.split(' ').next().unwrap_or_default()
    )))?;
    for story in cast.stories(choice) {
        one(cast, story, choice).await?;
    }
    if let Some(tests) = choice
        .node_tests
        .as_ref()
        .filter(|_| tells_loop_plane(cast, choice))
    {
        loop_plane(tests, choice).await?;
    }
    tell(&Report::Done)
}

async fn one(cast: Cast, story: &Story, choice: &Choice) -> Result<()> {
    let (name, started) = (name(cast.export, story), Instant::now());
    let seed = choice.seed.unwrap_or_default();
    let outcome = match Scene::set(cast, choice.cases, seed).await {
        Err(error) => Err(format!("{error:#}")),
        Ok(mut scene) => {
            let told = std::panic::AssertUnwindSafe(tokio::time::timeout(
                PATIENCE,
                (story.tell)(&mut scene),
            ))
            .catch_unwind();
            let outcome = match told.await {
                Ok(Ok(Ok(words))) => scene
                    .strike()
                    .await
                    .map(|()| words)
                    .map_err(|error| format!("{error:#}")),
                Ok(Ok(Err(error))) => Err(format!("{error:#}")),
                Ok(Err(_)) => Err(format!("not told in {PATIENCE:?}")),
                Err(_) => Err("it panicked".to_owned()),
            };
            if outcome.is_err() || choice.keep_logs {
                scene
                    .keep_logs(&Path::new(OUT).join(name.replace('/', "-")))
                    .await;
            }
            if outcome.is_err() {
                scene.clear().await;
            }
            outcome
        }
    };
    tell(&Report::Story {
        name,
        seconds: started.elapsed().as_secs_f64(),
        outcome,
    })
}

/// The stories of loop devices, on a kernel that lets a mounted ext4 grow. Several at a time: they mostly wait for processes.
async fn loop_plane(tests: &Path, choice: &Choice) -> Result<()> {
    let (_, listed) = process::suite(tests, ["--list", "--format=terse"])?;
    let names: Vec<&str> = listed
        .lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .filter(|name| {
            if choice.only.is_empty() {
                REFUSED_ELSEWHERE.iter().any(|part| name.contains(part))
            } else {
                choice.wants(&format!("loop/{name}"))
            }
        })
        .collect();
    ensure!(!names.is_empty(), "no such stories: {listed}");
    let tell_one = async |name: &str| {
        let (program, test, started) = (tests.to_owned(), name.to_owned(), Instant::now());
        let told = tokio::task::spawn_blocking(move || {
            process::suite(&program, ["--exact", &test, "--nocapture"])
        });
        let (passed, printed) = told.await??;
        let outcome = if !passed {
            std::fs::write(
                Path::new(OUT).join(format!("loop-{}.log", name.replace("::", "-"))),
                &printed,
            )?;
            Err(why(&printed))
        } else if printed.contains("SKIP: ") {
            Err("skipped".to_owned())
        } else {
            Ok(String::new())
        };
        tell(&Report::Story {
            name: format!("loop/{name}"),
            seconds: started.elapsed().as_secs_f64(),
            outcome,
        })
    };
    futures::stream::iter(names)
        .map(Ok)
        .try_for_each_concurrent(AT_A_TIME, tell_one)
        .await
}

/// The first panic's words.
fn why(printed: &str) -> String {
    let mut lines = printed
        .lines()
        .skip_while(|line| !line.contains("panicked at"));
    let words: Vec<&str> = lines.by_ref().take(4).collect();
    words.join(" ")
}
