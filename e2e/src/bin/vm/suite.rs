//! Inside the first machine: tells the stories one after the other, each in a world of its own.

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::process;
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
const PATIENCE: Duration = Duration::from_secs(600);

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

/// The machines with this export have something to tell.
pub(crate) fn has_stories(export: Export, choice: &Choice) -> bool {
    let mut names = stories::ALL.iter().map(|story| name(export, story));
    names.any(|name| choice.wants(&name)) || tells_loop_plane(export, choice)
}

/// One pair of machines is enough for what needs no iSCSI.
fn tells_loop_plane(export: Export, choice: &Choice) -> bool {
    export == Export::Lio
        && choice.node_tests.is_some()
        && (choice.only.is_empty() || choice.only.iter().any(|part| part.starts_with("loop")))
}

fn name(export: Export, story: &Story) -> String {
    format!("{}/{}", export.name(), story.name)
}

pub(crate) async fn run(export: Export, choice: &Choice) -> Result<()> {
    let uptime = std::fs::read_to_string("/proc/uptime")?;
    tell(&Report::Note(format!(
        "{}: modules, network and daemons after {} s",
        export.name(),
        uptime.split(' ').next().unwrap_or_default()
    )))?;
    for story in stories::ALL {
        if choice.wants(&name(export, story)) {
            one(export, story, choice).await?;
        }
    }
    if let Some(tests) = choice
        .node_tests
        .as_ref()
        .filter(|_| tells_loop_plane(export, choice))
    {
        loop_plane(tests, choice).await?;
    }
    tell(&Report::Done)
}

async fn one(export: Export, story: &Story, choice: &Choice) -> Result<()> {
    let (name, started) = (name(export, story), Instant::now());
    let seed = choice.seed.unwrap_or_default();
    let outcome = match Scene::set(export, choice.cases, seed).await {
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
        .filter(|name| choice.wants(&format!("loop/{name}")))
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
