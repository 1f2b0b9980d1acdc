//! `cargo ci k8s-conformance`: Kubernetes' own storage suite (`External.Storage` of its `e2e.test`) against our driver, on the
//! cluster of the kubeconfig.
//!
//! ```text
//! e2e/k8s/testdriver.yaml ─▶ the driver's capabilities: the suite skips specs that need others
//! e2e/k8s/skips.yaml      ─▶ further specs to skip, with reasons
//! ```
//! The suite ignores unknown keys, so a typo would silently skip tests. `--check` therefore reads the known keys and capabilities
//! from the suite's source, which needs no cluster.

mod definition;
mod program;
mod progress;
mod skips;
mod source;

use std::{
    fs::{self, File},
    io::Write as _,
    path::{self, Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::{
    chart,
    context::Context,
    doctor::{self, need::Layer},
    go::{Go, Pinned},
    run::Cmd,
};
use definition::Definition;
use progress::Progress;
use skips::Skip;
use source::Known;

/// The test runner, which runs specs in parallel, except serial ones. Its version must be the one that the suite is built with.
const GINKGO: Pinned = Pinned {
    name: "ginkgo",
    module: "github.com/onsi/ginkgo/v2",
    folder: "ginkgo",
    version: "v2.28.1",
};

/// The suite's release: the older of the two that the chart is validated for.
const RELEASE: &str = chart::RELEASES[0];

const DEFINITION: &str = "e2e/k8s/testdriver.yaml";
const SKIPS: &str = "e2e/k8s/skips.yaml";

/// Prefix of the names of the storage specs.
const SPECS: &str = "External Storage";

/// Arguments of the suite.
#[derive(Debug, Args)]
pub(crate) struct K8sConformance {
    /// Only check our configuration against the suite's source; needs no cluster
    #[arg(long)]
    check: bool,
    /// Test volumes of an existing StorageClass instead of the one in e2e/k8s
    #[arg(long, value_name = "NAME")]
    class: Option<String>,
    /// Only specs whose name matches this; may be given several times
    #[arg(long, value_name = "REGEX")]
    only: Vec<String>,
    /// Number of parallel specs
    #[arg(long, value_name = "N", default_value_t = K8sConformance::PARALLEL)]
    parallel: u8,
    /// Use this e2e.test instead of building it
    #[arg(long, value_name = "PROGRAM")]
    e2e_test: Option<PathBuf>,
    /// The kubeconfig of the cluster; KUBECONFIG by default
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Passed to e2e.test itself
    #[arg(last = true)]
    more: Vec<String>,
}

impl K8sConformance {
    const PARALLEL: u8 = 4;
}

/// Checks our configuration, without a cluster.
///
/// # Errors
/// When it has keys that the suite does not know, or lacks required ones.
fn check(context: &Context) -> Result<()> {
    doctor::ready(context, Layer::K8sConformance)?;
    let go = Go::find(context).context("no Go")?;
    load_and_check(context, &go).map(drop)
}

/// Runs the suite.
///
/// # Errors
/// See [`check`]; and when a spec fails, no spec runs, or a skip matches no spec.
pub(crate) fn run(context: &Context, args: &K8sConformance) -> Result<()> {
    if args.check {
        return check(context);
    }
    doctor::ready(context, Layer::K8sConformance)?;
    let go = Go::find(context).context("no Go")?;
    let (definition, skips) = load_and_check(context, &go)?;
    let program = match &args.e2e_test {
        // Absolute, because ginkgo starts it in another folder.
        Some(program) => path::absolute(program)?,
        None => program::build(context, &go, RELEASE)?,
    };
    let folder = context.target.join("k8s-conformance");
    fs::create_dir_all(&folder)?;
    let file = folder.join("testdriver.json");
    fs::write(&file, definition.for_class(args.class.as_deref())?)?;
    let unused_skips = unused_skips(context, &program, &file, &skips)?;
    ensure!(
        unused_skips.is_empty(),
        "{SKIPS} has patterns that match no spec: {}",
        unused_skips.join(", ")
    );
    let ginkgo = go.install(context, &GINKGO)?;
    let mut cmd = Cmd::new(context, &ginkgo.to_string_lossy())
        .args(&[
            "run",
            "--no-color",
            "--silence-skips",
            "-v",
            "--timeout",
            "4h",
            "--procs",
        ])
        .arg(args.parallel.to_string());
    for focus in args.focus() {
        cmd = cmd.arg("--focus").arg(focus);
    }
    for skip in &skips {
        cmd = cmd.arg("--skip").arg(&skip.pattern);
    }
    cmd = cmd
        .arg(&program)
        .arg("--")
        .arg(format!("-storage.testdriver={}", file.display()))
        // Relative paths in the definition start here.
        .arg(format!("-repo-root={}", context.root.display()))
        .arg(format!("-report-dir={}", folder.join("report").display()));
    if let Some(kubeconfig) = &args.kubeconfig {
        let kubeconfig = path::absolute(kubeconfig)?;
        cmd = cmd.arg(format!("-kubeconfig={}", kubeconfig.display()));
    }
    let (mut passed, mut progress) = (None, Progress::default());
    // The full output goes to a log; the terminal gets one line per spec.
    let log = folder.join("log");
    let mut all = File::create(&log).with_context(|| log.display().to_string())?;
    let mut written = Ok(());
    let succeeded = cmd.args(&args.more).filter_lines(|line| {
        passed = skips::passed(line).or(passed);
        if written.is_ok() {
            written = writeln!(all, "{line}");
        }
        progress.read(line)
    })?;
    written.with_context(|| log.display().to_string())?;
    ensure!(
        succeeded,
        "the suite failed, see the report in {} and the full output in {}",
        folder.join("report").display(),
        log.display()
    );
    ensure!(passed.is_some_and(|passed| passed > 0), "no spec ran");
    Ok(())
}

impl K8sConformance {
    /// Regular expressions for the names of the specs to run.
    fn focus(&self) -> Vec<String> {
        let ours = SPECS.replace(' ', ".");
        if self.only.is_empty() {
            return vec![ours];
        }
        self.only
            .iter()
            .map(|only| format!("{ours}.*({only})"))
            .collect()
    }
}

/// Loads our configuration, and checks it against the suite's source.
fn load_and_check(context: &Context, go: &Go) -> Result<(Definition, Vec<Skip>)> {
    let read = |name: &str| {
        let path = context.root.join(name);
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    };
    let module = go.module(context, chart::KUBERNETES, &format!("v{RELEASE}"))?;
    let suite = |file: &str| {
        let path = module.join("test/e2e/storage").join(file);
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    };
    let known = Known::read(
        &suite("external/external.go")?,
        &suite("framework/testdriver.go")?,
    )?;
    let definition = Definition::parse(&read(DEFINITION)?).context(DEFINITION)?;
    let skips = skips::parse(&read(SKIPS)?).context(SKIPS)?;
    let mut wrong = definition.problems(&known);
    wrong.extend(skips::problems(&skips));
    let class = definition.class_file();
    if !class.is_some_and(|file| context.root.join(file).is_file()) {
        wrong.push(format!("StorageClass.FromFile: there is no file {class:?}"));
    }
    for problem in &wrong {
        println!("k8s-conformance: {problem}");
    }
    println!(
        "Kubernetes {RELEASE} has {} driver capabilities, our driver has {} of them; {} skips; {} problems",
        known.capabilities.len(),
        definition.granted(),
        skips.len(),
        wrong.len()
    );
    ensure!(
        wrong.is_empty(),
        "{} problems with {DEFINITION} or {SKIPS}",
        wrong.len()
    );
    Ok((definition, skips))
}

/// Skips that match no spec: outdated or misspelled.
fn unused_skips(
    context: &Context,
    program: &Path,
    definition: &Path,
    skips: &[Skip],
) -> Result<Vec<String>> {
    let listed = Cmd::new(context, &program.to_string_lossy())
        .arg(format!("-storage.testdriver={}", definition.display()))
        .arg("-list-tests")
        .output()?;
    ensure!(listed.success, "{}{}", listed.stdout, listed.stderr);
    let specs: Vec<&str> = listed
        .stdout
        .lines()
        .filter(|line| line.contains(SPECS))
        .collect();
    ensure!(
        !specs.is_empty(),
        "{} has no spec of {SPECS}",
        program.display()
    );
    skips::unused(skips, &specs)
}
