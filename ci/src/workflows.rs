//! `cargo ci workflows`: checks the GitHub workflows in `.github/workflows` with actionlint and our own rules.
//!
//! Workflows cannot be run locally, so everything that can be checked statically is checked: each task and option exists in
//! [`crate::Cli`], and actions and images are pinned by hash.

mod call;
mod rule;

use std::{ffi::OsStr, fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::{
    all,
    context::Context,
    doctor::{self, need::Layer},
    go::{Go, Pinned},
    k8s::nodes,
    run::Cmd,
};

const ACTIONLINT: Pinned = Pinned {
    name: "actionlint",
    module: "github.com/rhysd/actionlint",
    folder: "cmd/actionlint",
    version: "v1.7.12",
};

/// Checks all workflows.
///
/// # Errors
/// When there is no workflow, or one has a problem.
pub(crate) fn run(context: &Context) -> Result<()> {
    doctor::ready(context, Layer::Workflows)?;
    let go = Go::find(context).context("no Go")?;
    let files = files(context)?;
    ensure!(!files.is_empty(), ".github/workflows has no workflow");
    let rows = all::names();
    let mut wrong = lint(context, &go, &files)?;
    let mut texts = String::new();
    for file in &files {
        let name = file.strip_prefix(&context.root).unwrap_or(file);
        let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let mut found = rule::breaches(&text, &rows)?;
        found.extend(nodes::breaches(&text));
        texts.push_str(&text);
        wrong.extend(
            found
                .iter()
                .map(|breach| format!("{}: {breach}", name.display())),
        );
    }
    wrong.extend(nodes::untried(&texts));
    let kind = go.module(context, nodes::KIND.module, nodes::KIND.version)?;
    let source = kind.join("pkg/apis/config/defaults/image.go");
    nodes::check_default_image(
        &fs::read_to_string(&source).with_context(|| source.display().to_string())?,
    )?;
    for problem in &wrong {
        println!("workflows: {problem}");
    }
    println!("{} workflows, {} problems", files.len(), wrong.len());
    ensure!(
        wrong.is_empty(),
        "{} problems with the workflows",
        wrong.len()
    );
    Ok(())
}

/// The paths of all workflows, sorted.
fn files(context: &Context) -> Result<Vec<PathBuf>> {
    let folder = context.root.join(".github/workflows");
    let mut files = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|end| end == OsStr::new("yml") || end == OsStr::new("yaml"))
        {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// actionlint's findings, one line each. Without shellcheck and pyflakes, which not every machine has.
fn lint(context: &Context, go: &Go, files: &[PathBuf]) -> Result<Vec<String>> {
    let program = go.install(context, &ACTIONLINT)?;
    let output = Cmd::new(context, &program.to_string_lossy())
        .args(&["-no-color", "-oneline", "-shellcheck=", "-pyflakes="])
        .args(files)
        .output()?;
    // Exit code 1 means findings; anything else, a failure of actionlint.
    ensure!(
        matches!(output.code, Some(0 | 1)),
        "actionlint: {}",
        output.stderr
    );
    Ok(output.stdout.lines().map(str::to_owned).collect())
}
