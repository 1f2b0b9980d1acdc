//! Negative test of the image checks: an image that is broken on purpose must fail them.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
};

use anyhow::{Context as _, Result, ensure};

use super::{IMAGES, engine::Engine, tag, try_programs};
use crate::context::Context;

/// The program to break, and an image that contains it.
const PROGRAM: &str = "blockdev";
const IMAGE: &str = "node-sim";
/// Prefix of the symbol versions that a program requires from glibc.
const VERSION_PREFIX: &[u8] = b"GLIBC_2.";

/// Builds an image with a program that requires a newer glibc, and checks that it is refused.
///
/// # Errors
/// When it is not refused, or cannot be built.
pub(super) fn must_be_refused(context: &Context, engine: &Engine<'_>) -> Result<()> {
    let image = IMAGES.iter().find(|image| image.name == IMAGE);
    let image = image.context("there is no such image")?;
    let healthy = context
        .find(PROGRAM)
        .with_context(|| format!("no {PROGRAM} on this machine"))?;
    let folder = context.target.join("images/broken");
    fs::create_dir_all(&folder)?;
    let broken = folder.join(PROGRAM);
    fs::write(&broken, with_other_libc(&fs::read(&healthy)?)?)?;
    fs::set_permissions(&broken, Permissions::from_mode(0o755))?;
    let file = format!("FROM {}\nCOPY {PROGRAM} /usr/sbin/{PROGRAM}\n", tag(IMAGE));
    fs::write(folder.join("Dockerfile"), file)?;
    let broken = format!("{}-broken", tag(IMAGE));
    engine
        .build()?
        .args(&["--tag", &broken])
        .arg(&folder)
        .run_quietly("Building an image that is broken on purpose")?;
    let result = try_programs(engine, image, &broken);
    engine.docker("image rm").arg(&broken).output()?;
    let error = result
        .err()
        .map(|refusal| format!("{refusal:#}"))
        .unwrap_or_default();
    ensure!(
        error.contains(PROGRAM) && error.contains("its loader says"),
        "an image with a {PROGRAM} that cannot start was not refused for that reason; the error is {error:?}"
    );
    println!("A broken image is refused: {error}");
    Ok(())
}

/// Makes a program require a nonexistent glibc: replaces `GLIBC_2.` by `GLIBC_9.`.
fn with_other_libc(program: &[u8]) -> Result<Vec<u8>> {
    let mut changed = program.to_vec();
    let offsets: Vec<usize> = (0..program.len().saturating_sub(VERSION_PREFIX.len()))
        .filter(|at| program[*at..].starts_with(VERSION_PREFIX))
        .collect();
    ensure!(!offsets.is_empty(), "the program requires no glibc version");
    for at in offsets {
        changed[at + VERSION_PREFIX.len() - 2] = b'9';
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_required_glibc_version_is_replaced() {
        let program = b"\0libc.so.6\0GLIBC_2.34\0GLIBC_2.2.5\0.text";
        let changed = with_other_libc(program).unwrap();
        assert_eq!(changed, b"\0libc.so.6\0GLIBC_9.34\0GLIBC_9.2.5\0.text");
        assert!(with_other_libc(b"static").is_err());
    }
}
