//! The hosted pipeline in `.github/workflows`: what actionlint says of it, and rules of our own.
//!
//! A pipeline cannot be tried from here, so what can be known beforehand is checked: each task and each of its options is one of
//! [`crate::Cli`], and what comes from elsewhere is named by its content.

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
    run::Step,
};

const ACTIONLINT: Pinned = Pinned {
    name: "actionlint",
    module: "github.com/rhysd/actionlint",
    folder: "cmd/actionlint",
    version: "v1.7.12",
};

/// Judges every workflow.
///
/// # Errors
/// When there is none, or something is wrong with one.
pub(crate) fn run(context: &Context) -> Result<()> {
    doctor::ready(context, Layer::Workflows)?;
    let go = Go::find(context).context("no Go")?;
    let files = files(context)?;
    ensure!(!files.is_empty(), ".github/workflows holds no workflow");
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
    nodes::must_be_of(&fs::read_to_string(&source).with_context(|| source.display().to_string())?)?;
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

/// The workflows, in order.
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

/// What actionlint says, a line each. It could call programs that not every machine has; here it never does.
fn lint(context: &Context, go: &Go, files: &[PathBuf]) -> Result<Vec<String>> {
    let program = go.install(context, &ACTIONLINT)?;
    let said = Step::new(context, &program.to_string_lossy())
        .args(&["-no-color", "-oneline", "-shellcheck=", "-pyflakes="])
        .args(files)
        .output()?;
    // 1 tells that there are findings; anything else, that it could not look.
    ensure!(
        matches!(said.code, Some(0 | 1)),
        "actionlint: {}",
        said.stderr
    );
    Ok(said.stdout.lines().map(str::to_owned).collect())
}
