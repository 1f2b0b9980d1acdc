//! Runs the stories one after the other, and checks after each that nothing is left.

use std::cell::RefCell;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use futures::FutureExt as _;

use crate::co::Co;
use crate::scene::Scene;
use crate::stories::Story;
use crate::times::Times;

/// Timeout of a story.
const STORY_TIMEOUT: Duration = Duration::from_secs(900);

/// How many lines of each evidence file are printed.
const MAX_LINES: usize = 12;

/// Runs the stories that match `only` (all of them by default), prints their summaries and the table of times.
///
/// # Errors
/// A story fails or leaves something behind.
pub(crate) async fn run<C: Co>(
    co: C,
    stories: &[Story<C>],
    only: &[String],
    folder: &Path,
) -> Result<()> {
    let selected: Vec<&Story<C>> = stories
        .iter()
        .filter(|story| only.is_empty() || only.iter().any(|part| story.name.contains(part)))
        .collect();
    ensure!(!selected.is_empty(), "no such story");
    let scene = Scene {
        co,
        times: RefCell::new(Times::default()),
    };
    let mut failed = 0;
    for story in &selected {
        let began = Instant::now();
        let result = one(&scene, story, folder).await;
        let seconds = format!("{:.1}", began.elapsed().as_secs_f64());
        let (status, summary) = match &result {
            Ok(summary) => ("ok", summary.clone()),
            Err(error) => {
                failed += 1;
                ("FAILED", format!("{error:#}"))
            }
        };
        println!("{status:6} {seconds:>6} s  {}: {summary}", story.name);
    }
    let times = scene.times.borrow();
    if !times.is_empty() {
        println!("{}", times.table());
    }
    if failed > 0 {
        bail!(
            "{failed} of {} stories failed; the evidence is in {}",
            selected.len(),
            folder.display()
        );
    }
    println!("{} stories", selected.len());
    Ok(())
}

async fn one<C: Co>(scene: &Scene<C>, story: &Story<C>, folder: &Path) -> Result<String> {
    let result =
        AssertUnwindSafe(tokio::time::timeout(STORY_TIMEOUT, (story.run)(scene))).catch_unwind();
    let result = match result.await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(anyhow::anyhow!("not finished within {STORY_TIMEOUT:?}")),
        Err(_) => Err(anyhow::anyhow!("it panicked")),
    };
    let result = match result {
        Ok(summary) => nothing_left(scene).await.map(|()| summary),
        Err(error) => Err(error),
    };
    if result.is_err() {
        let evidence = folder.join(story.name.replace('/', "-"));
        let printed = scene
            .co
            .evidence(&evidence)
            .await
            .and_then(|()| print_evidence(&evidence));
        if let Err(error) = printed {
            println!("no evidence: {error:#}");
        }
        if let Err(error) = scene.co.clear().await {
            println!("cleaning up failed: {error:#}");
        }
    }
    result
}

/// Prints the end of each text file: events, calls, logs. The JSON files are only kept in the folder.
fn print_evidence(evidence: &Path) -> Result<()> {
    for file in std::fs::read_dir(evidence)? {
        let file = file?.path();
        if file.extension().is_some_and(|kind| kind == "json") {
            continue;
        }
        let text = std::fs::read_to_string(&file)?;
        let lines: Vec<&str> = text.lines().collect();
        let last = &lines[lines.len().saturating_sub(MAX_LINES)..];
        println!("-- {}\n{}", file.display(), last.join("\n"));
    }
    Ok(())
}

/// Waits until nothing of the story is left.
async fn nothing_left<C: Co>(scene: &Scene<C>) -> Result<()> {
    if scene.co.nodes().await?.is_empty() {
        // The driver was uninstalled, and the story has checked the leftovers.
        return Ok(());
    }
    let poll = async || scene.co.leftovers().await;
    scene.until("nothing is left", poll, Vec::is_empty).await?;
    Ok(())
}
