//! The suite's program, built from the module that Kubernetes is published as.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use crate::{chart::KUBERNETES, context::Context, go::Go, run::Step};

/// Builds `e2e.test` of a release, such as `1.36.3`, unless it is there: a quarter of an hour on two processors.
///
/// # Errors
/// When something cannot be fetched or built.
pub(super) fn build(context: &Context, go: &Go, release: &str) -> Result<PathBuf> {
    let program = context.tools().join(format!("{release}.e2e.test"));
    if is_of(context, &program, release) {
        return Ok(program);
    }
    let source = go.module(context, KUBERNETES, &format!("v{release}"))?;
    let file = source.join("go.mod");
    let theirs = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let folder = context.target.join("external/build");
    fs::create_dir_all(&folder)?;
    fs::create_dir_all(context.tools())?;
    fs::write(folder.join("go.mod"), module(&theirs, release)?)?;
    let step = go.step(context)?.directory(&folder);
    step.env("CGO_ENABLED", "0")
        // -vet=off: go would look through all of Kubernetes for faults, too, which takes longer than to build it.
        .args(&["test", "-c", "-vet=off", "-mod=mod", "-trimpath"])
        .arg("-ldflags")
        .arg(format!(
            "-s -w -X k8s.io/component-base/version.gitVersion=v{release}"
        ))
        .arg("-o")
        .arg(&program)
        .arg(format!("{KUBERNETES}/test/e2e"))
        .quiet(&format!("Building e2e.test {release}"))?;
    ensure!(
        is_of(context, &program, release),
        "{} does not tell that it is of {release}",
        program.display()
    );
    Ok(program)
}

fn is_of(context: &Context, program: &Path, release: &str) -> bool {
    let asked = Step::new(context, &program.to_string_lossy())
        .arg("--version")
        .output();
    asked.is_ok_and(|said| said.success && said.stdout.contains(&format!("v{release}")))
}

/// A module that requires theirs. Theirs replaces its parts by folders that are not published with it; the parts are
/// published as modules of their own, whose versions begin with 0.
fn module(theirs: &str, release: &str) -> Result<String> {
    let rest = release.split_once('.').context("a release has dots")?.1;
    let mut text = format!("module external\n\ngo 1.26\n\nrequire {KUBERNETES} v{release}\n\n");
    let parts = theirs
        .lines()
        .filter_map(|line| line.trim().split_once(" => ./staging/"));
    for (part, _) in parts {
        let part = part.trim_start_matches("replace ");
        let _ = writeln!(text, "replace {part} => {part} v0.{rest}");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_taken_in_the_versions_that_they_are_published_in() {
        let theirs = "module k8s.io/kubernetes\n\nrequire k8s.io/api v0.0.0\n\nreplace (\n\
                      \tk8s.io/api => ./staging/src/k8s.io/api\n\texample.org/x => example.org/y v1.0.0\n)\n\
                      replace k8s.io/metrics => ./staging/src/k8s.io/metrics\n";
        assert_eq!(
            module(theirs, "1.36.3").unwrap(),
            "module external\n\ngo 1.26\n\nrequire k8s.io/kubernetes v1.36.3\n\n\
             replace k8s.io/api => k8s.io/api v0.36.3\nreplace k8s.io/metrics => k8s.io/metrics v0.36.3\n"
        );
        assert!(module(theirs, "one").is_err());
    }
}
