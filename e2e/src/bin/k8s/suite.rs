//! Tells the stories one after the other, and looks after each whether something is left.

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

/// No story takes longer, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(900);

/// Lines of each file of evidence that are printed.
const SHOWN: usize = 12;

/// Tells those that are `only` wanted (all of them by default), prints what was seen, and the table of times.
///
/// # Errors
/// When one fails or leaves something behind.
pub(crate) async fn run<C: Co>(
    co: C,
    stories: &[Story<C>],
    only: &[String],
    folder: &Path,
) -> Result<()> {
    let wanted: Vec<&Story<C>> = stories
        .iter()
        .filter(|story| only.is_empty() || only.iter().any(|part| story.name.contains(part)))
        .collect();
    ensure!(!wanted.is_empty(), "there is no such story");
    let scene = Scene {
        co,
        times: RefCell::new(Times::default()),
    };
    let mut failed = 0;
    for story in &wanted {
        let began = Instant::now();
        let told = one(&scene, story, folder).await;
        let seconds = format!("{:.1}", began.elapsed().as_secs_f64());
        let (how, words) = match &told {
            Ok(words) => ("ok", words.clone()),
            Err(error) => {
                failed += 1;
                ("FAILED", format!("{error:#}"))
            }
        };
        println!("{how:6} {seconds:>6} s  {}: {words}", story.name);
    }
    let times = scene.times.borrow();
    if !times.is_empty() {
        println!("{}", times.table());
    }
    if failed > 0 {
        bail!(
            "{failed} of {} stories failed; what was to be seen then is in {}",
            wanted.len(),
            folder.display()
        );
    }
    println!("{} stories", wanted.len());
    Ok(())
}

async fn one<C: Co>(scene: &Scene<C>, story: &Story<C>, folder: &Path) -> Result<String> {
    let told = AssertUnwindSafe(tokio::time::timeout(PATIENCE, (story.tell)(scene))).catch_unwind();
    let told = match told.await {
        Ok(Ok(told)) => told,
        Ok(Err(_)) => Err(anyhow::anyhow!("not told in {PATIENCE:?}")),
        Err(_) => Err(anyhow::anyhow!("it panicked")),
    };
    let told = match told {
        Ok(words) => nothing_left(scene).await.map(|()| words),
        Err(error) => Err(error),
    };
    if told.is_err() {
        let evidence = folder.join(story.name.replace('/', "-"));
        let shown = scene
            .co
            .evidence(&evidence)
            .await
            .and_then(|()| show(&evidence));
        if let Err(error) = shown {
            println!("no evidence: {error:#}");
        }
        if let Err(error) = scene.co.clear().await {
            println!("not all could be cleared away: {error:#}");
        }
    }
    told
}

/// Prints the end of what is written line by line: events, calls, logs. The rest is for whoever opens the folder.
fn show(evidence: &Path) -> Result<()> {
    for file in std::fs::read_dir(evidence)? {
        let file = file?.path();
        if file.extension().is_some_and(|kind| kind == "json") {
            continue;
        }
        let text = std::fs::read_to_string(&file)?;
        let lines: Vec<&str> = text.lines().collect();
        let last = &lines[lines.len().saturating_sub(SHOWN)..];
        println!("-- {}\n{}", file.display(), last.join("\n"));
    }
    Ok(())
}

/// What a story has made goes with it; some of that takes its time.
async fn nothing_left<C: Co>(scene: &Scene<C>) -> Result<()> {
    if scene.co.nodes().await?.is_empty() {
        // The driver was uninstalled, and the story has looked.
        return Ok(());
    }
    let look = async || scene.co.leftovers().await;
    scene.until("nothing is left", look, Vec::is_empty).await?;
    Ok(())
}
