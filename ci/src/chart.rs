//! `cargo ci chart`: renders the Helm chart in `driver/deploy` and validates the result.
//!
//! ```text
//! driver/deploy/tests/*.yaml ─▶ helm template ─▶ the case's expectations (case), rules for every object (rule)
//!                                     └────────▶ kubeconform, with the schemas of two Kubernetes releases (schema)
//! driver/deploy/manifests   ◀─ compared, or written with --write
//! driver/deploy/examples    ─▶ the same schemas, and the driver's parameters (example)
//! driver/deploy/chart/README.md ◀─ compared with values.yaml and values.schema.json (values)
//! ```
//! The schemas are generated from the OpenAPI documents in Kubernetes' Go module, so only the Go module proxy is needed, and only
//! once.

mod case;
mod cluster;
pub(crate) mod example;
mod rule;
mod schema;
mod values;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde_json::Value;

use crate::{
    context::Context,
    doctor::{self, need::Layer},
    go::{self, Go, Pinned},
    run::Cmd,
    table,
};
use case::Case;
use cluster::Cluster;
use example::Example;

const HELM: Pinned = Pinned {
    name: "helm",
    module: "helm.sh/helm/v3",
    folder: "cmd/helm",
    version: "v3.22.0",
};

const KUBECONFORM: Pinned = Pinned {
    name: "kubeconform",
    module: "github.com/yannh/kubeconform",
    folder: "cmd/kubeconform",
    version: "v0.8.0",
};

/// The Kubernetes releases whose schemas everything is validated against, the newest last.
pub(crate) const RELEASES: [&str; 2] = ["1.36.3", "1.37.2"];
/// The Go module of Kubernetes.
pub(crate) const KUBERNETES: &str = "k8s.io/kubernetes";

/// Kinds without a schema: those of the Prometheus operator, which are not part of Kubernetes. They are checked only by the
/// expectations of the cases.
const NO_SCHEMA: [&str; 2] = [
    "monitoring.coreos.com/v1/ServiceMonitor",
    "monitoring.coreos.com/v1/PodMonitor",
];

/// The Helm release and namespace of everything that is rendered.
const NAME: &str = "synology-csi";

/// The plain manifests, the values that each is rendered with, and the instructions at its top. Paths are below `driver/deploy`.
const MANIFESTS: [(&str, &str, &str); 2] = [
    (
        "manifests/synology-csi.yaml",
        "manifests/values.yaml",
        "# Replace the image and the NAS by your own, then: kubectl apply --filename FILE\n\
         # The controller's pod stays in ContainerCreating, and its events name what is missing, until these two Secrets exist:\n\
         #   kubectl -n synology-csi create secret generic nas1 --from-file=password=FILE\n\
         #   head -c 32 /dev/urandom | kubectl -n synology-csi create secret generic synology-csi-chap-key --from-file=key=/dev/stdin\n\
         # Never replace the second one: the CHAP passwords of all published volumes are derived from it. Keep a copy.\n",
    ),
    (
        "manifests/synology-csi-sim.yaml",
        "chart/values-sim.yaml",
        "# Replace the images by your own, then: kubectl apply --filename FILE\n",
    ),
];

/// Arguments of the chart's checks.
#[derive(Debug, Default, Args)]
pub(crate) struct Chart {
    /// Write the plain manifests instead of comparing them
    #[arg(long)]
    write: bool,
    /// Also validate everything on the API server of the cluster of KUBECONFIG, with a kubectl dry run that changes nothing;
    /// the driver must not be installed there, because the parameters of an existing StorageClass cannot be changed
    #[arg(long)]
    server: bool,
}

/// Lints and renders the chart, checks the rendered objects, and compares the plain manifests.
///
/// # Errors
/// When there is a problem, or a tool or a schema cannot be fetched.
pub(crate) fn run(context: &Context, chart: &Chart) -> Result<()> {
    doctor::ready(context, Layer::Chart)?;
    let go = Go::find(context).context("no Go")?;
    let checker = Checker::set_up(context, &go)?;
    checker.lint()?;
    if chart.write {
        checker.helm.write_manifests()?;
    }
    let mut wrong = checker.helm.stale()?;
    let (rows, failed) = checker.all_cases()?;
    println!(
        "{}",
        table::render(["values", "objects", "expectations", "result"], &rows)
    );
    wrong.extend(failed);
    let examples = examples(context)?;
    wrong.extend(example_problems(context, &examples)?);
    wrong.extend(readme_problems(context)?);
    wrong.extend(checker.validate(&examples)?);
    if chart.server {
        wrong.extend(checker.check_on_server()?);
    }
    for problem in &wrong {
        println!("chart: {problem}");
    }
    println!(
        "{} sets of values, {} examples, Kubernetes {}, {} problems",
        rows.len(),
        examples.len(),
        RELEASES.join(" and "),
        wrong.len()
    );
    ensure!(
        wrong.is_empty(),
        "{} problems with the chart; `cargo ci chart --write` fixes those of plain manifests",
        wrong.len()
    );
    Ok(())
}

/// The example manifests for users, sorted by path.
fn examples(context: &Context) -> Result<Vec<Example>> {
    let folder = context.root.join("driver/deploy").join(example::FOLDER);
    let mut examples = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "yaml") {
            let name = path.strip_prefix(&context.root).unwrap_or(&path);
            let name = name.display().to_string();
            let found = objects(&fs::read_to_string(&path)?).with_context(|| name.clone())?;
            examples.push((name, found));
        }
    }
    examples.sort_by(|left, right| left.0.cmp(&right.0));
    ensure!(
        !examples.is_empty(),
        "driver/deploy/examples has no manifest"
    );
    Ok(examples)
}

fn example_problems(context: &Context, examples: &[Example]) -> Result<Vec<String>> {
    let source = text(context, example::PARAMETERS)?;
    let mut wrong = example::breaches(examples, &example::parameters(&source));
    let [given, tested] = example::ARTICLE.map(|path| text(context, path));
    wrong.extend(example::article(&objects(&given?)?, &objects(&tested?)?));
    Ok(wrong)
}

/// Values that the chart's README does not describe, or describes wrongly.
fn readme_problems(context: &Context) -> Result<Vec<String>> {
    let schema = serde_json::from_str(&text(context, values::SCHEMA)?).context(values::SCHEMA)?;
    let given = serde_yaml_ng::from_str(&text(context, values::VALUES)?).context(values::VALUES)?;
    let readme = text(context, values::README)?;
    Ok(values::breaches(&readme, &schema, &given))
}

/// A file of the workspace.
fn text(context: &Context, path: &str) -> Result<String> {
    fs::read_to_string(context.root.join(path)).context(path.to_owned())
}

/// The pinned helm, built if missing.
///
/// # Errors
/// When it cannot be built.
pub(crate) fn helm(context: &Context, go: &Go) -> Result<PathBuf> {
    go.install(context, &HELM)
}

/// Plain manifests that differ from the rendered chart; `None` if no helm is installed.
///
/// # Errors
/// When the chart cannot be rendered.
pub(crate) fn stale_manifests(context: &Context) -> Result<Option<Vec<String>>> {
    go::installed(context, &HELM)
        .map(|program| Helm { context, program }.stale())
        .transpose()
}

struct Helm<'a> {
    context: &'a Context,
    program: PathBuf,
}

impl Helm<'_> {
    fn deploy(&self) -> PathBuf {
        self.context.root.join("driver/deploy")
    }

    /// Renders the chart. The inner error is helm's error message.
    fn render(
        &self,
        release: &str,
        values: &[PathBuf],
        cluster: Option<&Cluster>,
    ) -> Result<Result<String, String>> {
        let mut cmd = Cmd::new(self.context, &self.program.to_string_lossy())
            .args(&["template", NAME, "--namespace", NAME])
            .args(&["--kube-version", release])
            .arg(self.deploy().join("chart"));
        for file in values {
            cmd = cmd.arg("--values").arg(file);
        }
        if let Some(cluster) = cluster {
            cmd = cmd
                .args(&["--dry-run=server", "--kube-apiserver"])
                .arg(cluster.url())
                // Never send the credentials of a real cluster to this server.
                .env(
                    "KUBECONFIG",
                    self.context.target.join("chart/no-kubeconfig"),
                );
        }
        let output = cmd.output()?;
        Ok(if output.success {
            Ok(output.stdout)
        } else {
            Err(output.stderr)
        })
    }

    /// The expected text of a plain manifest.
    fn manifest(&self, values: &str, steps: &str) -> Result<String> {
        let file = self.deploy().join(values);
        let newest = RELEASES[RELEASES.len() - 1];
        let objects = self
            .render(newest, &[file], None)?
            .map_err(|refusal| anyhow::anyhow!("driver/deploy/{values}: {refusal}"))?;
        Ok(format!(
            "# Rendered from driver/deploy/chart with driver/deploy/{values} by `cargo ci chart --write`: do not edit.\n\
             {steps}\
             apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {NAME}\n  labels:\n    \
             # The node pods mount volumes on the host, which takes privileged containers.\n    \
             pod-security.kubernetes.io/enforce: privileged\n{objects}"
        ))
    }

    fn stale(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for (manifest, values, steps) in MANIFESTS {
            let is = fs::read_to_string(self.deploy().join(manifest)).unwrap_or_default();
            if is != self.manifest(values, steps)? {
                found.push(format!(
                    "driver/deploy/{manifest}: differs from the rendered chart: cargo ci chart --write"
                ));
            }
        }
        Ok(found)
    }

    fn write_manifests(&self) -> Result<()> {
        for (manifest, values, steps) in MANIFESTS {
            fs::write(self.deploy().join(manifest), self.manifest(values, steps)?)?;
        }
        Ok(())
    }
}

/// The tools, the schemas, and the folder for rendered manifests.
struct Checker<'a> {
    helm: Helm<'a>,
    kubeconform: PathBuf,
    folder: PathBuf,
}

impl<'a> Checker<'a> {
    fn set_up(context: &'a Context, go: &Go) -> Result<Self> {
        let folder = context.target.join("chart");
        for release in RELEASES {
            let schemas = schemas(&folder, release);
            if !schemas.join(schema::COMPLETE).is_file() {
                let module = go.module(context, KUBERNETES, &format!("v{release}"))?;
                schema::write(&module.join("api/openapi-spec/swagger.json"), &schemas)?;
            }
            let rendered = rendered(&folder, release);
            if rendered.exists() {
                fs::remove_dir_all(&rendered)?;
            }
            fs::create_dir_all(&rendered)?;
        }
        Ok(Self {
            helm: Helm {
                context,
                program: helm(context, go)?,
            },
            kubeconform: go.install(context, &KUBECONFORM)?,
            folder,
        })
    }

    /// `helm lint --strict` without values, and with each values file that we publish.
    fn lint(&self) -> Result<()> {
        let deploy = self.helm.deploy();
        for values in [
            None,
            Some("manifests/values.yaml"),
            Some("chart/values-sim.yaml"),
        ] {
            let mut cmd = Cmd::new(self.helm.context, &self.helm.program.to_string_lossy())
                .args(&["lint", "--strict", "--quiet", "--kube-version", RELEASES[0]])
                .arg(deploy.join("chart"));
            if let Some(values) = values {
                cmd = cmd.arg("--values").arg(deploy.join(values));
            }
            let output = cmd.output()?;
            if !output.success {
                bail!("helm lint: {}{}", output.stdout, output.stderr);
            }
        }
        Ok(())
    }

    /// A table row for each case, and all problems.
    fn all_cases(&self) -> Result<(Vec<[String; 4]>, Vec<String>)> {
        let cases = case::read_all(&self.helm.deploy().join("tests"))?;
        ensure!(!cases.is_empty(), "driver/deploy/tests has no case");
        let (mut rows, mut wrong) = (Vec::new(), Vec::new());
        for (name, case) in cases {
            let mut problems = Vec::new();
            let mut objects = 0;
            for release in RELEASES {
                let found = self.try_case(&name, &case, release)?;
                objects = found.objects;
                problems.extend(found.problems);
            }
            problems.sort();
            problems.dedup();
            let result = match (problems.is_empty(), case.refused.is_some()) {
                (true, true) => "refused, as expected",
                (true, false) => "as expected",
                (false, _) => "WRONG",
            };
            rows.push([
                name.clone(),
                objects.to_string(),
                case.expectations().to_string(),
                result.to_owned(),
            ]);
            wrong.extend(problems.iter().map(|problem| format!("{name}: {problem}")));
        }
        Ok((rows, wrong))
    }

    fn try_case(&self, name: &str, case: &Case, release: &str) -> Result<CaseResult> {
        let given = self.folder.join(format!("{name}.values.yaml"));
        fs::write(&given, serde_json::to_string(&case.values)?)?;
        let deploy = self.helm.deploy();
        let mut files = Vec::new();
        if !case.bare {
            files.push(deploy.join("manifests/values.yaml"));
        }
        files.extend(
            case.files
                .iter()
                .map(|file| deploy.join("chart").join(file)),
        );
        files.push(given);
        let cluster = case.there.as_ref().map(|secrets| {
            let secrets = secrets.iter().map(|(name, data)| {
                serde_json::json!({
                    "apiVersion": "v1", "kind": "Secret", "data": data,
                    "metadata": {"name": name, "namespace": NAME},
                })
            });
            Cluster::start(release, secrets.collect())
        });
        let cluster = cluster.transpose()?;
        let rendered_text = self.helm.render(release, &files, cluster.as_ref())?;
        match (rendered_text, &case.refused) {
            (Ok(_), Some(_)) => Ok(CaseResult::problem("helm accepted it")),
            (Err(output), Some(why)) if output.contains(why.as_str()) => Ok(CaseResult::default()),
            (Err(output), _) => Ok(CaseResult::problem(&format!(
                "helm refused it: {}",
                output.trim()
            ))),
            (Ok(text), None) => {
                let file = rendered(&self.folder, release).join(format!("{name}.yaml"));
                fs::write(file, &text)?;
                let objects = objects(&text)?;
                let mut problems = case.check(&objects);
                problems.extend(rule::breaches(&objects, NAME));
                Ok(CaseResult {
                    objects: objects.len(),
                    problems,
                })
            }
        }
    }

    /// Validates everything rendered, the plain manifests and the examples; and checks that the schemas reject an unknown field.
    fn validate(&self, examples: &[Example]) -> Result<Vec<String>> {
        let mut wrong = Vec::new();
        let deploy = self.helm.deploy();
        println!("Not validated by a schema: {}", NO_SCHEMA.join(", "));
        let unknown = self.folder.join("unknown-field.yaml");
        fs::write(&unknown, UNKNOWN_FIELD)?;
        for release in RELEASES {
            let mut paths = vec![rendered(&self.folder, release)];
            paths.extend(MANIFESTS.map(|(manifest, ..)| deploy.join(manifest)));
            let root = &self.helm.context.root;
            paths.extend(examples.iter().map(|(file, _)| root.join(file)));
            let (valid, output) = self.kubeconform(release, &paths)?;
            println!("Kubernetes {release}: {}", output.trim());
            if !valid {
                wrong.push(format!("Kubernetes {release} would reject some of it"));
            }
            if self.kubeconform(release, std::slice::from_ref(&unknown))?.0 {
                wrong.push(format!("the schemas of {release} accept an unknown field"));
            }
        }
        Ok(wrong)
    }

    /// Errors of an API server on a dry run of everything rendered. All objects are put into `default`, so that the server does
    /// not need their namespaces.
    fn check_on_server(&self) -> Result<Vec<String>> {
        let (mut wrong, mut sent) = (Vec::new(), 0);
        for file in fs::read_dir(rendered(&self.folder, RELEASES[0]))? {
            let file = file?.path();
            let mut items = objects(&fs::read_to_string(&file)?)?;
            items.retain(|object| {
                let text = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
                let kind = format!("{}/{}", text("apiVersion"), text("kind"));
                !NO_SCHEMA.contains(&kind.as_str())
            });
            for object in &mut items {
                if let Some(namespace) = object.pointer_mut("/metadata/namespace") {
                    *namespace = "default".into();
                }
            }
            sent += items.len();
            let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": items});
            let given = self.folder.join("shown.json");
            fs::write(&given, list.to_string())?;
            let cmd = Cmd::new(
                self.helm.context,
                "kubectl apply --dry-run=server --validate=strict --filename",
            );
            let output = cmd.arg(&given).output()?;
            if !output.success {
                let name = file.file_name().unwrap_or_default().to_string_lossy();
                wrong.push(format!("{name}: the server: {}", output.stderr.trim()));
            }
        }
        println!("{sent} objects validated by the API server");
        Ok(wrong)
    }

    fn kubeconform(&self, release: &str, paths: &[PathBuf]) -> Result<(bool, String)> {
        let location = schemas(&self.folder, release).join("{{.ResourceKind}}{{.KindSuffix}}.json");
        let cmd = Cmd::new(self.helm.context, &self.kubeconform.to_string_lossy())
            .args(&["-strict", "-summary", "-skip"])
            .arg(NO_SCHEMA.join(","))
            .arg("-schema-location")
            .arg(location)
            .args(paths);
        let output = cmd.output()?;
        Ok((output.success, output.stdout + &output.stderr))
    }
}

/// A misspelled field, which an API server would only warn about.
const UNKNOWN_FIELD: &str = "apiVersion: storage.k8s.io/v1\nkind: CSIDriver\nmetadata:\n  name: x\nspec:\n  attachRequire: true\n";

/// The result of a case.
#[derive(Debug, Default)]
struct CaseResult {
    objects: usize,
    problems: Vec<String>,
}

impl CaseResult {
    fn problem(text: &str) -> Self {
        Self {
            objects: 0,
            problems: vec![text.to_owned()],
        }
    }
}

fn schemas(folder: &Path, release: &str) -> PathBuf {
    folder.join(format!("schemas-{release}"))
}

fn rendered(folder: &Path, release: &str) -> PathBuf {
    folder.join(format!("rendered-{release}"))
}

/// The objects of a YAML text. Documents with only comments are skipped.
fn objects(text: &str) -> Result<Vec<Value>> {
    use serde::Deserialize as _;

    let mut objects = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        let object = Value::deserialize(document).context("not YAML")?;
        if !object.is_null() {
            objects.push(object);
        }
    }
    Ok(objects)
}
