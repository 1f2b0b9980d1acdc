//! Builds the suite's program, `e2e.test`, from Kubernetes' Go module.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use crate::{chart::KUBERNETES, context::Context, go::Go, run::Cmd};

/// Builds `e2e.test` of a release such as `1.36.3`, unless it is already there. It takes a quarter of an hour on two processors.
///
/// # Errors
/// When something cannot be downloaded or built.
pub(super) fn build(context: &Context, go: &Go, release: &str) -> Result<PathBuf> {
    let program = context.tools().join(format!("{release}.e2e.test"));
    if is_built_from(context, &program, release) {
        return Ok(program);
    }
    let source = go.module(context, KUBERNETES, &format!("v{release}"))?;
    let file = source.join("go.mod");
    let go_mod = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let folder = context.target.join("k8s-conformance/build");
    fs::create_dir_all(&folder)?;
    fs::create_dir_all(context.tools())?;
    fs::write(folder.join("go.mod"), module(&go_mod, release)?)?;
    let cmd = go.cmd(context)?.current_dir(&folder);
    cmd.env("CGO_ENABLED", "0")
        // -vet=off: go vet on all of Kubernetes takes longer than the build.
        .args(&["test", "-c", "-vet=off", "-mod=mod", "-trimpath"])
        .arg("-ldflags")
        .arg(format!(
            "-s -w -X k8s.io/component-base/version.gitVersion=v{release}"
        ))
        .arg("-o")
        .arg(&program)
        .arg(format!("{KUBERNETES}/test/e2e"))
        .run_quietly(&format!("Building e2e.test {release}"))?;
    ensure!(
        is_built_from(context, &program, release),
        "{} does not report the version {release}",
        program.display()
    );
    Ok(program)
}

fn is_built_from(context: &Context, program: &Path, release: &str) -> bool {
    let output = Cmd::new(context, &program.to_string_lossy())
        .arg("--version")
        .output();
    output.is_ok_and(|output| output.success && output.stdout.contains(&format!("v{release}")))
}

/// A go.mod that requires Kubernetes. Kubernetes' own go.mod replaces its staging modules by folders that are not part of the
/// published module. They are published as separate modules with the major version 0.
fn module(go_mod: &str, release: &str) -> Result<String> {
    let rest = release
        .split_once('.')
        .context("a release must have the form 1.N.N")?
        .1;
    let mut text = format!("module external\n\ngo 1.26\n\nrequire {KUBERNETES} v{release}\n\n");
    let parts = go_mod
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
    fn staging_modules_are_replaced_by_their_published_versions() {
        let go_mod = "module k8s.io/kubernetes\n\nrequire k8s.io/api v0.0.0\n\nreplace (\n\
                      \tk8s.io/api => ./staging/src/k8s.io/api\n\texample.org/x => example.org/y v1.0.0\n)\n\
                      replace k8s.io/metrics => ./staging/src/k8s.io/metrics\n";
        assert_eq!(
            module(go_mod, "1.36.3").unwrap(),
            "module external\n\ngo 1.26\n\nrequire k8s.io/kubernetes v1.36.3\n\n\
             replace k8s.io/api => k8s.io/api v0.36.3\nreplace k8s.io/metrics => k8s.io/metrics v0.36.3\n"
        );
        assert!(module(go_mod, "one").is_err());
    }
}
