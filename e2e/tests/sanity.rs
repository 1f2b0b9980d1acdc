//! csi-sanity, the conformance suite of the Kubernetes CSI project, against the shipped driver: with a NAS that responds
//! instantly, with realistic response times, and with a NAS that others use, too. The driver's capabilities select the specs;
//! there is no skip list.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use e2e::harness::process;
use e2e::harness::skip::{needs_root, skip};
use e2e::harness::test_cluster::{Plan, TestCluster};

/// Specs that need capabilities which design.md#capabilities does not advertise: snapshots, group snapshots, clones, volume
/// modification, snapshot metadata. If this number changes, different specs are tested.
const SKIPPED: usize = 38;

/// The summary line of the suite.
#[derive(Debug, PartialEq)]
struct Summary {
    passed: usize,
    failed: usize,
    pending: usize,
    skipped: usize,
}

impl Summary {
    /// Reads `FAIL! -- 40 Passed | 2 Failed | 1 Pending | 40 Skipped`.
    fn read(printed: &str) -> Option<Self> {
        let line = printed
            .lines()
            .rev()
            .find(|line| line.contains(" Passed |"))?;
        let number = |word: &str| {
            let before = line
                .split(" | ")
                .find(|part| part.trim_end().ends_with(word))?;
            before
                .trim_end()
                .strip_suffix(word)?
                .split_whitespace()
                .next_back()?
                .parse()
                .ok()
        };
        Some(Self {
            passed: number("Passed")?,
            failed: number("Failed")?,
            pending: number("Pending")?,
            skipped: number("Skipped")?,
        })
    }
}

#[test]
fn a_summary_is_read() {
    let printed = "Ran 52 of 91 Specs in 9.1 seconds\nFAIL! -- 50 Passed | 2 Failed | 1 Pending | 38 Skipped\n--- FAIL\n";
    assert_eq!(
        Summary::read(printed),
        Some(Summary {
            passed: 50,
            failed: 2,
            pending: 1,
            skipped: 38
        })
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn conforms_with_instant_answers() -> Result<()> {
    conforms("conforms_with_instant_answers", Plan::with_node()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn conforms_with_the_answers_of_a_real_nas() -> Result<()> {
    conforms(
        "conforms_with_the_answers_of_a_real_nas",
        Plan::with_node().slow(),
    )
    .await
}

/// The NAS has a degraded volume, a crashed one, foreign rows that fit no client's types, and a locked snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn conforms_with_others_on_the_nas() -> Result<()> {
    conforms(
        "conforms_with_others_on_the_nas",
        Plan::with_node().shared(),
    )
    .await
}

#[expect(
    clippy::print_stdout,
    reason = "the figures that cargo ci sanity is asked for"
)]
async fn conforms(test: &str, plan: Plan) -> Result<()> {
    if needs_root(test) {
        return Ok(());
    }
    let Some(suite) = suite() else {
        skip(
            test,
            "csi-sanity is not installed: cargo ci sanity installs it",
        );
        return Ok(());
    };
    let cluster = plan.start().await?;
    let (succeeded, printed) = process::suite(&suite, arguments(&cluster)?)?;
    let summary = Summary::read(&printed);
    println!("{test}: {summary:?}");
    assert!(succeeded, "{printed}");
    let summary = summary.context("csi-sanity ends with a summary")?;
    assert_eq!((summary.failed, summary.skipped), (0, SKIPPED), "{printed}");
    assert_eq!(cluster.leftovers().await?, Vec::<String>::new());
    Ok(())
}

fn suite() -> Option<PathBuf> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the variable that cargo ci hands to this test"
    )]
    let named = std::env::var("CSI_SANITY");
    named.ok().map(PathBuf::from).filter(|path| path.is_file())
}

fn arguments(cluster: &TestCluster) -> Result<Vec<String>> {
    let path = |name: &str| cluster.folder().join(name).to_string_lossy().into_owned();
    std::fs::write(
        cluster.folder().join("parameters.yaml"),
        "location: /volume1\ntype: BLUN\n",
    )?;
    Ok(vec![
        format!("--csi.endpoint=unix://{}", cluster.plugin.socket.display()),
        format!("--csi.stagingdir={}", path("sanity-staging")),
        format!("--csi.mountdir={}", path("sanity-mount")),
        format!("--csi.testvolumeparameters={}", path("parameters.yaml")),
        // The defaults, which the spec names mention: 10 GiB, expanded to 20 GiB.
        "--ginkgo.no-color".to_owned(),
        "--ginkgo.seed=1".to_owned(),
    ])
}
