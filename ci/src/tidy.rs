//! House rules that no compiler checks.

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

use crate::{chart, context::Context, run::Step};
use source::File;

/// What lies at the top of the repository, dot-files and build output apart.
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

/// Lists what is assumed about a NAS, then every breach of the rules.
///
/// # Errors
/// When there is a breach.
pub(crate) fn run(context: &Context) -> Result<()> {
    let metadata = Step::new(
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
    println!("{} assumptions to try first on a real NAS:", assumed.len());
    for mark in &assumed {
        println!("  {mark}");
    }
    let proof = dsm::proof(&files);
    for line in proof.lines() {
        println!("{line}");
    }
    breaches.extend(proof.breaches);
    match chart::stale_manifests(context)? {
        Some(stale) => breaches.extend(stale),
        None => println!(
            "the plain manifests were not compared with the chart: no helm yet (cargo ci chart installs it)"
        ),
    }
    for breach in &breaches {
        println!("tidy: {breach}");
    }
    println!(
        "{} files looked at, {} breaches",
        files.len(),
        breaches.len()
    );
    if !breaches.is_empty() {
        bail!("{} breaches of the house rules", breaches.len());
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

/// Every text file below the root, by its path from there, in order.
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

/// A file's text; `None` for one that is no text.
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
