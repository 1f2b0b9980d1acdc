//! An image that is broken on purpose: whoever finds nothing wrong with it would find nothing wrong with a real one.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
};

use anyhow::{Context as _, Result, ensure};

use super::{IMAGES, engine::Engine, tag, try_programs};
use crate::context::Context;

/// The program that is broken, and an image that has it.
const PROGRAM: &str = "blockdev";
const IMAGE: &str = "node-sim";
/// How programs name what they want of their C library, up to its version.
const WANTS: &[u8] = b"GLIBC_2.";

/// Puts a program into an image of its own that wants another C library than there is, and expects that it is noticed.
///
/// # Errors
/// When it is not, or cannot be tried.
pub(super) fn must_be_refused(context: &Context, engine: &Engine<'_>) -> Result<()> {
    let image = IMAGES.iter().find(|image| image.name == IMAGE);
    let image = image.context("there is no such image")?;
    let healthy = context
        .find(PROGRAM)
        .with_context(|| format!("no {PROGRAM} on this machine"))?;
    let folder = context.target.join("images/broken");
    fs::create_dir_all(&folder)?;
    let broken = folder.join(PROGRAM);
    fs::write(&broken, of_another_library(&fs::read(&healthy)?)?)?;
    fs::set_permissions(&broken, Permissions::from_mode(0o755))?;
    let file = format!("FROM {}\nCOPY {PROGRAM} /usr/sbin/{PROGRAM}\n", tag(IMAGE));
    fs::write(folder.join("Dockerfile"), file)?;
    let broken = format!("{}-broken", tag(IMAGE));
    engine
        .build()?
        .args(&["--tag", &broken])
        .arg(&folder)
        .quiet("Building an image that is broken on purpose")?;
    let tried = try_programs(engine, image, &broken);
    engine.step("image rm").arg(&broken).output()?;
    let told = tried
        .err()
        .map(|refusal| format!("{refusal:#}"))
        .unwrap_or_default();
    ensure!(
        told.contains(PROGRAM) && told.contains("its loader says"),
        "an image with a {PROGRAM} that cannot start was not refused for that, but: {told:?}"
    );
    println!("A broken image is refused: {told}");
    Ok(())
}

/// A program that asks for versions of the C library that nobody has made: `GLIBC_9.` in place of `GLIBC_2.`.
fn of_another_library(program: &[u8]) -> Result<Vec<u8>> {
    let mut changed = program.to_vec();
    let places: Vec<usize> = (0..program.len().saturating_sub(WANTS.len()))
        .filter(|at| program[*at..].starts_with(WANTS))
        .collect();
    ensure!(!places.is_empty(), "it wants nothing of a C library");
    for at in places {
        changed[at + WANTS.len() - 2] = b'9';
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_that_it_wants_becomes_another() {
        let program = b"\0libc.so.6\0GLIBC_2.34\0GLIBC_2.2.5\0.text";
        let changed = of_another_library(program).unwrap();
        assert_eq!(changed, b"\0libc.so.6\0GLIBC_9.34\0GLIBC_9.2.5\0.text");
        assert!(of_another_library(b"static").is_err());
    }
}
