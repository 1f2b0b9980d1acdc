//! `cargo ci tidy`: the house rules that no compiler checks.

mod circle;
mod citation;
mod command;
mod dependency;
mod documented;
mod dsm;
mod link;
mod markdown;
mod source;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{chart, context::Context, run::Cmd};
use source::File;

/// The top level of the repository, except dotfiles and build output.
const TOP: [&str; 10] = [
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "ci",
    "driver",
    "dsm-sim",
    "e2e",
    "node-sim",
    "proto",
];

/// Lists the assumptions about a NAS, then all violations of the rules.
///
/// # Errors
/// When a rule is violated.
pub(crate) fn run(context: &Context) -> Result<()> {
    let metadata = Cmd::new(
        context,
        "cargo metadata --locked --format-version 1 --no-deps --offline",
    )
    .output()?;
    if !metadata.success {
        bail!("cargo metadata: {}", metadata.stderr);
    }
    let mut breaches = dependency::breaches(&metadata.stdout)?;
    breaches.extend(top_level(&entries(&context.root)?));

    let files = read_tree(&context.root)?;
    for file in &files {
        breaches.extend(source::breaches(file, &context.root));
    }
    breaches.extend(source::command_breaches(&files));
    breaches.extend(documented::breaches(&files));
    breaches.extend(circle::breaches(&files));
    breaches.extend(citation::breaches(&files));
    breaches.extend(link::breaches(&files));
    breaches.extend(command::breaches(&files));

    let assumed: Vec<String> = files.iter().flat_map(source::assumed).collect();
    println!(
        "{} assumptions to verify first on a real NAS:",
        assumed.len()
    );
    for assumption in &assumed {
        println!("  {assumption}");
    }
    let coverage = dsm::coverage(&files);
    for line in coverage.lines() {
        println!("{line}");
    }
    breaches.extend(coverage.breaches);
    match chart::stale_manifests(context)? {
        Some(stale) => breaches.extend(stale),
        None => println!(
            "the plain manifests were not compared with the chart: helm is not installed (cargo ci chart installs it)"
        ),
    }
    for breach in &breaches {
        println!("tidy: {breach}");
    }
    println!(
        "{} files checked, {} violations",
        files.len(),
        breaches.len()
    );
    if !breaches.is_empty() {
        bail!("{} violations of the house rules", breaches.len());
    }
    Ok(())
}

fn entries(directory: &Path) -> Result<BTreeSet<String>> {
    let read = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    read.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

fn top_level(entries: &BTreeSet<String>) -> Vec<String> {
    let ours = |name: &&String| !name.starts_with('.') && *name != "target";
    let extra = entries
        .iter()
        .filter(ours)
        .filter(|name| !TOP.contains(&name.as_str()));
    let missing = TOP.iter().filter(|name| !entries.contains(**name));
    extra
        .map(|name| format!("{name}: does not belong at the top of the repository"))
        .chain(missing.map(|name| format!("{name}: missing from the top of the repository")))
        .collect()
}

/// All text files below the root, sorted by relative path.
fn read_tree(root: &Path) -> Result<Vec<File>> {
    let mut files = Vec::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for name in entries(&directory)? {
            let path = directory.join(&name);
            if path.is_symlink() || name == ".git" || name == "target" {
                continue;
            }
            if path.is_dir() {
                directories.push(path);
            } else if let Some(text) = read_text(&path)? {
                let path = path.strip_prefix(root).unwrap_or(&path).to_owned();
                files.push(File { path, text });
            }
        }
    }
    files.sort_by(|left, right| left.path.cmp(&right.path));
    Ok(files)
}

/// A file's text; `None` if it is not UTF-8.
fn read_text(path: &PathBuf) -> Result<Option<String>> {
    let bytes = fs::read(path).with_context(|| path.display().to_string())?;
    Ok(String::from_utf8(bytes).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_top_level_is_exact() {
        let mut entries: BTreeSet<String> = TOP.iter().map(|name| (*name).to_owned()).collect();
        entries.extend([".git".to_owned(), "target".to_owned()]);
        assert!(top_level(&entries).is_empty());
        entries.remove("LICENSE");
        entries.insert("notes.txt".to_owned());
        let breaches = top_level(&entries);
        assert_eq!(breaches.len(), 2);
        assert!(breaches[0].starts_with("notes.txt") && breaches[1].starts_with("LICENSE"));
    }
}
