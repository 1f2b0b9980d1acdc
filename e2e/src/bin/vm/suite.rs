//! Runs in the first VM: runs the stories one after the other, each in its own test cluster.

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::harness::process;
use e2e::vm::guest::{OUT, report};
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use serde::{Deserialize, Serialize};

use crate::Choice;
use crate::scene::Scene;
use crate::setup::{Export, Setup};
use crate::stories::{self, Story};

/// Timeout of a story, including on slow machines.
const STORY_TIMEOUT: Duration = Duration::from_secs(1200);

/// Stories with loop devices that run here by default, because many host kernels refuse them. `cargo ci node` runs all of them;
/// some take minutes and would add nothing here.
const LOOP_STORIES_BY_DEFAULT: [&str; 4] = [
    "expand::ext4",
    "expand::a_mounted_ext4_that_may_not_grow",
    "expand::a_volume_grows_through_its_staging_path",
    "full_filesystem::a_full_ext4_grows_under",
];
/// Number of concurrent stories with loop devices.
const CONCURRENCY: usize = 3;

/// What is reported to the host, as one line of JSON each.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// Progress.
    Note(String),
    /// The end of a story: what was observed, or why it failed.
    Story {
        name: String,
        seconds: f64,
        outcome: Result<String, String>,
    },
    /// The end of the run.
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
                outcome: Err(panic_message),
            } => write!(f, "FAILED  {seconds:6.1} s  {name}: {panic_message}"),
            Self::Done => f.write_str("done"),
        }
    }
}

fn send(message: &Report) -> Result<()> {
    report(&serde_json::to_string(message)?)
}

/// The selected stories of a setup.
fn stories_on(setup: Setup, choice: &Choice) -> impl Iterator<Item = &'static Story> {
    stories::ALL.iter().filter(move |story| {
        let selected = if choice.only.is_empty() {
            story.by_default.contains(&setup.export)
        } else {
            choice.wants(&name(setup.export, story))
        };
        story.second == setup.second && selected
    })
}

/// Whether any selected story runs on this setup.
pub(crate) fn has_stories(setup: Setup, choice: &Choice) -> bool {
    stories_on(setup, choice).next().is_some() || runs_loop_stories(setup, choice)
}

/// Stories that need no iSCSI run on a single VM.
fn runs_loop_stories(setup: Setup, choice: &Choice) -> bool {
    setup.export == Export::Lio
        && !setup.second
        && choice.node_tests.is_some()
        && (choice.only.is_empty() || choice.only.iter().any(|part| part.starts_with("loop")))
}

fn name(export: Export, story: &Story) -> String {
    format!("{}/{}", export.name(), story.name)
}

pub(crate) async fn run(setup: Setup, choice: &Choice) -> Result<()> {
    let uptime = std::fs::read_to_string("/proc/uptime")?;
    send(&Report::Note(format!(
        "{}: modules, network and daemons after {} s",
        setup.name(),
        uptime.split(' ').next().unwrap_or_default()
    )))?;
    for story in stories_on(setup, choice) {
        one(setup, story, choice).await?;
    }
    if let Some(tests) = choice
        .node_tests
        .as_ref()
        .filter(|_| runs_loop_stories(setup, choice))
    {
        loop_stories(tests, choice).await?;
    }
    send(&Report::Done)
}

async fn one(setup: Setup, story: &Story, choice: &Choice) -> Result<()> {
    let (name, started) = (name(setup.export, story), Instant::now());
    let seed = choice.seed.unwrap_or_default();
    let outcome = match Scene::start(setup, choice.cases, seed).await {
        Err(error) => Err(format!("{error:#}")),
        Ok(mut scene) => {
            let running = std::panic::AssertUnwindSafe(tokio::time::timeout(
                STORY_TIMEOUT,
                (story.run)(&mut scene),
            ))
            .catch_unwind();
            let outcome = match running.await {
                Ok(Ok(Ok(summary))) => scene
                    .teardown()
                    .await
                    .map(|()| summary)
                    .map_err(|error| format!("{error:#}")),
                Ok(Ok(Err(error))) => Err(format!("{error:#}")),
                Ok(Err(_)) => Err(format!("not finished within {STORY_TIMEOUT:?}")),
                Err(_) => Err("it panicked".to_owned()),
            };
            if outcome.is_err() || choice.keep_logs {
                scene
                    .keep_logs(&Path::new(OUT).join(name.replace('/', "-")))
                    .await;
            }
            if outcome.is_err() {
                scene.clean_up().await;
            }
            outcome
        }
    };
    send(&Report::Story {
        name,
        seconds: started.elapsed().as_secs_f64(),
        outcome,
    })
}

/// The stories with loop devices, on a kernel where a mounted ext4 can grow. Several in parallel: they mostly wait for processes.
async fn loop_stories(tests: &Path, choice: &Choice) -> Result<()> {
    let (_, listed) = process::suite(tests, ["--list", "--format=terse"])?;
    let names: Vec<&str> = listed
        .lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .filter(|name| {
            if choice.only.is_empty() {
                LOOP_STORIES_BY_DEFAULT
                    .iter()
                    .any(|part| name.contains(part))
            } else {
                choice.wants(&format!("loop/{name}"))
            }
        })
        .collect();
    ensure!(!names.is_empty(), "no such stories: {listed}");
    let run_one = async |name: &str| {
        let (program, test, started) = (tests.to_owned(), name.to_owned(), Instant::now());
        let running = tokio::task::spawn_blocking(move || {
            process::suite(&program, ["--exact", &test, "--nocapture"])
        });
        let (passed, printed) = running.await??;
        let outcome = if !passed {
            std::fs::write(
                Path::new(OUT).join(format!("loop-{}.log", name.replace("::", "-"))),
                &printed,
            )?;
            Err(panic_message(&printed))
        } else if printed.contains("SKIP: ") {
            Err("skipped".to_owned())
        } else {
            Ok(String::new())
        };
        send(&Report::Story {
            name: format!("loop/{name}"),
            seconds: started.elapsed().as_secs_f64(),
            outcome,
        })
    };
    futures::stream::iter(names)
        .map(Ok)
        .try_for_each_concurrent(CONCURRENCY, run_one)
        .await
}

/// The message of the first panic.
fn panic_message(printed: &str) -> String {
    let mut lines = printed
        .lines()
        .skip_while(|line| !line.contains("panicked at"));
    let summary: Vec<&str> = lines.by_ref().take(4).collect();
    summary.join(" ")
}
