//! Kubernetes' own storage suite (`External.Storage` of its `e2e.test`) against our driver, on the cluster that the kubeconfig
//! names.
//!
//! ```text
//! e2e/k8s/testdriver.yaml ─▶ what the driver can do: the suite leaves out the rest
//! e2e/k8s/skips.yaml      ─▶ what is left out besides, with reasons
//! ```
//! The suite ignores keys that it does not know, so a typing error would be a test that is never run. `--check` therefore reads
//! from the suite's own source which keys and capabilities there are; that needs no cluster.

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
    run::Step,
};
use definition::Definition;
use progress::Progress;
use skips::Skip;
use source::Known;

/// Runs the suite on several specs at once, and those that want to be alone alone. The version that the suite is built with.
const GINKGO: Pinned = Pinned {
    name: "ginkgo",
    module: "github.com/onsi/ginkgo/v2",
    folder: "ginkgo",
    version: "v2.28.1",
};

/// The suite's release: the older of those that the chart is judged by, for it must fit both.
const RELEASE: &str = chart::RELEASES[0];

const DEFINITION: &str = "e2e/k8s/testdriver.yaml";
const SKIPS: &str = "e2e/k8s/skips.yaml";

/// How the names of the specs that are meant begin.
const SPECS: &str = "External Storage";

/// Arguments of the suite.
#[derive(Debug, Args)]
pub(crate) struct External {
    /// Only compare our files with the suite's source; needs no cluster
    #[arg(long)]
    check: bool,
    /// A StorageClass of the cluster whose volumes are tested, instead of the one in e2e/k8s
    #[arg(long, value_name = "NAME")]
    class: Option<String>,
    /// Only specs whose name matches this; may be given several times
    #[arg(long, value_name = "REGEX")]
    only: Vec<String>,
    /// So many specs at once
    #[arg(long, value_name = "N", default_value_t = External::PARALLEL)]
    parallel: u8,
    /// The e2e.test of a Kubernetes release, instead of building it
    #[arg(long, value_name = "PROGRAM")]
    e2e_test: Option<PathBuf>,
    /// The cluster; without it, the one that KUBECONFIG names
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// For e2e.test itself
    #[arg(last = true)]
    more: Vec<String>,
}

impl External {
    const PARALLEL: u8 = 4;
}

/// What can be known without a cluster.
///
/// # Errors
/// When our files say what the suite does not know, or leave open what it asks.
fn check(context: &Context) -> Result<()> {
    doctor::ready(context, Layer::External)?;
    let go = Go::find(context).context("no Go")?;
    prepared(context, &go).map(drop)
}

/// Runs the suite.
///
/// # Errors
/// See [`check`]; and when a spec fails, none runs, or a skip fits none.
pub(crate) fn run(context: &Context, external: &External) -> Result<()> {
    if external.check {
        return check(context);
    }
    doctor::ready(context, Layer::External)?;
    let go = Go::find(context).context("no Go")?;
    let (definition, skips) = prepared(context, &go)?;
    let program = match &external.e2e_test {
        // As everything here: ginkgo starts it in another folder.
        Some(program) => path::absolute(program)?,
        None => program::build(context, &go, RELEASE)?,
    };
    let folder = context.target.join("external");
    fs::create_dir_all(&folder)?;
    let file = folder.join("testdriver.json");
    fs::write(&file, definition.for_class(external.class.as_deref())?)?;
    let useless = useless(context, &program, &file, &skips)?;
    ensure!(
        useless.is_empty(),
        "{SKIPS} leaves out what is not there: {}",
        useless.join(", ")
    );
    let ginkgo = go.install(context, &GINKGO)?;
    let mut step = Step::new(context, &ginkgo.to_string_lossy())
        .args(&[
            "run",
            "--no-color",
            "--silence-skips",
            "-v",
            "--timeout",
            "4h",
            "--procs",
        ])
        .arg(external.parallel.to_string());
    for focus in external.focus() {
        step = step.arg("--focus").arg(focus);
    }
    for skip in &skips {
        step = step.arg("--skip").arg(&skip.pattern);
    }
    step = step
        .arg(&program)
        .arg("--")
        .arg(format!("-storage.testdriver={}", file.display()))
        // Where the definition's own file names begin.
        .arg(format!("-repo-root={}", context.root.display()))
        .arg(format!("-report-dir={}", folder.join("report").display()));
    if let Some(kubeconfig) = &external.kubeconfig {
        let kubeconfig = path::absolute(kubeconfig)?;
        step = step.arg(format!("-kubeconfig={}", kubeconfig.display()));
    }
    let (mut told, mut progress) = (None, Progress::default());
    // All of what it says, for whoever wants more than a line for each spec.
    let log = folder.join("log");
    let mut all = File::create(&log).with_context(|| log.display().to_string())?;
    let mut written = Ok(());
    let succeeded = step.args(&external.more).retell(|line| {
        told = skips::passed(line).or(told);
        if written.is_ok() {
            written = writeln!(all, "{line}");
        }
        progress.read(line)
    })?;
    written.with_context(|| log.display().to_string())?;
    ensure!(
        succeeded,
        "the suite failed: {} and {} tell which specs, and all that was said",
        folder.join("report").display(),
        log.display()
    );
    ensure!(told.is_some_and(|passed| passed > 0), "no spec was run");
    Ok(())
}

impl External {
    /// What the names of specs must match: any of these.
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

/// Our files, when they fit the suite.
fn prepared(context: &Context, go: &Go) -> Result<(Definition, Vec<Skip>)> {
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
        wrong.push(format!("StorageClass.FromFile: {class:?} is no file"));
    }
    for problem in &wrong {
        println!("external: {problem}");
    }
    println!(
        "Kubernetes {RELEASE} knows {} capabilities of a driver, ours has {}; {} skips; {} problems",
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

/// Skips that fit no spec: they have come too late, or say something else than they mean.
fn useless(
    context: &Context,
    program: &Path,
    definition: &Path,
    skips: &[Skip],
) -> Result<Vec<String>> {
    let listed = Step::new(context, &program.to_string_lossy())
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
    skips::useless(skips, &specs)
}
