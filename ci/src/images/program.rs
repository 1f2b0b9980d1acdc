//! The programs that go into images. They are linked statically: the C library of the machine that builds them is part of them, so that
//! it does not matter how old that of the image is (`ci/images/rustc`).
//!
//! Two looks make sure of it: at the file, which must not ask for a loader, and at what a program says in its image. A loader that
//! finds too old a C library ends with 1, as many a healthy program does that was asked for its version, so codes are not enough.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    context::Context,
    run::{Output, Step},
    testing::build_optimized,
};

/// What a loader says when it cannot start a program, whatever code it ends with.
const LOADER: [&str; 4] = [
    "error while loading shared libraries",
    "' not found (required by ",
    "cannot open shared object file",
    "no version information available",
];

/// The type of a program header that names a loader (`PT_INTERP`).
const INTERPRETER: u32 = 3;

/// Builds the programs of these names; the folder that they are in.
///
/// # Errors
/// When one does not compile, or is not static.
pub(super) fn build(context: &Context, names: &[&str]) -> Result<PathBuf> {
    build_optimized(context, names).context(
        "where the linker misses -lc, the C library's archive is not there: \
         it is in libc6-dev (Debian, Ubuntu) or glibc-static (Fedora)",
    )?;
    let folder = context.target.join("release");
    for name in names {
        let path = folder.join(name);
        let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
        must_be_static(&path, &bytes)?;
    }
    Ok(folder)
}

/// The C library that becomes part of the programs, as `NAME VERSION`.
///
/// # Errors
/// When the machine does not tell.
pub(super) fn c_library(context: &Context) -> Result<String> {
    let told = Step::new(context, "getconf GNU_LIBC_VERSION").output()?;
    let told = told.stdout.trim().to_owned();
    ensure!(
        told.starts_with("glibc "),
        "`getconf GNU_LIBC_VERSION` does not tell which C library is linked into the programs: {told:?}"
    );
    Ok(told)
}

fn must_be_static(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(loader) = loader(bytes).with_context(|| path.display().to_string())? {
        bail!(
            "{} asks for the loader {loader}, and with it for a C library that an image may not have: it must be linked statically",
            path.display()
        );
    }
    Ok(())
}

/// The loader that a program for a 64-bit little-endian processor asks for.
///
/// # Errors
/// When it is no such program.
fn loader(program: &[u8]) -> Result<Option<String>> {
    ensure!(
        program.starts_with(b"\x7fELF\x02\x01"),
        "no program for a 64-bit little-endian processor"
    );
    let number = |at: usize, size: usize| -> Result<usize> {
        let bytes = program.get(at..at + size).context("it is cut off")?;
        let value = bytes
            .iter()
            .rev()
            .fold(0_u64, |value, byte| (value << 8) | u64::from(*byte));
        Ok(usize::try_from(value)?)
    };
    // e_phoff, e_phentsize and e_phnum; of each program header p_type, p_offset and p_filesz.
    let (first, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    for header in (0..count).map(|index| first + index * size) {
        if number(header, 4)? == INTERPRETER as usize {
            let (at, length) = (number(header + 8, 8)?, number(header + 32, 8)?);
            let name = program.get(at..at + length).context("it is cut off")?;
            let name = String::from_utf8_lossy(name);
            return Ok(Some(name.trim_end_matches('\0').to_owned()));
        }
    }
    Ok(None)
}

/// Whether a program has started, by what it said when it was asked for its version. `code` is what it ends with then.
///
/// # Errors
/// Why not.
pub(super) fn has_started(said: &Output, code: i32) -> Result<()> {
    let words = format!("{}{}", said.stdout, said.stderr);
    let words = words.trim();
    if let Some(line) = words
        .lines()
        .find(|line| LOADER.iter().any(|sign| line.contains(sign)))
    {
        bail!("its loader says: {line}");
    }
    ensure!(
        said.code == Some(code),
        "it ended with {:?} and not {code}: {words}",
        said.code
    );
    ensure!(!words.is_empty(), "it said nothing, not even its version");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program with these program headers, each a type and what it points to.
    fn program(headers: &[(u32, &str)]) -> Vec<u8> {
        let mut bytes = b"\x7fELF\x02\x01".to_vec();
        bytes.resize(64, 0);
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = u8::try_from(headers.len()).unwrap();
        let mut data: Vec<u8> = Vec::new();
        let start = 64 + 56 * headers.len();
        for (kind, content) in headers {
            let mut header = vec![0; 56];
            header[..4].copy_from_slice(&kind.to_le_bytes());
            let at = u64::try_from(start + data.len()).unwrap();
            header[8..16].copy_from_slice(&at.to_le_bytes());
            header[32..40].copy_from_slice(&(content.len() as u64).to_le_bytes());
            data.extend(content.as_bytes());
            bytes.extend(header);
        }
        bytes.extend(data);
        bytes
    }

    #[test]
    fn a_program_that_asks_for_a_loader_is_refused_by_its_name() {
        let own = program(&[(1, "code"), (2, "dynamic")]);
        assert!(must_be_static(Path::new("a"), &own).is_ok());
        let shared = program(&[(1, "code"), (3, "/lib64/ld-linux-x86-64.so.2\0")]);
        let told = must_be_static(Path::new("a/synology-csi"), &shared).unwrap_err();
        let told = told.to_string();
        assert!(
            told.contains("a/synology-csi") && told.contains("/lib64/ld-linux-x86-64.so.2, and"),
            "{told}"
        );
    }

    #[test]
    fn what_is_no_program_is_an_error_and_not_static() {
        let whole = program(&[(1, "code"), (3, "/lib/ld.so\0")]);
        for bad in [&b"#!/bin/sh\n"[..], &whole[..60], &whole[..130]] {
            assert!(must_be_static(Path::new("a"), bad).is_err());
        }
    }

    /// Tests find programs by variables that a plain shell drops, because of the hyphen in their names.
    #[test]
    fn the_compiler_hears_where_programs_are() {
        let context = Context::read().unwrap();
        let wrapper = context.root.join("ci/images/rustc");
        let step = Step::new(&context, &format!("{} env", wrapper.display()));
        let told = step.env("CARGO_BIN_EXE_synology-csi", "here").output();
        assert!(
            told.unwrap()
                .stdout
                .contains("CARGO_BIN_EXE_synology-csi=here")
        );
    }

    fn said(code: Option<i32>, stdout: &str, stderr: &str) -> Output {
        Output {
            success: code == Some(0),
            code,
            overran: false,
            stdout: stdout.to_owned(),
            stderr: stderr.to_owned(),
        }
    }

    /// What cargo asks the compiler, and what it tells it to build.
    #[test]
    fn only_programs_of_ours_are_linked_statically() {
        let context = Context::read().unwrap();
        let passed_on = |arguments: &str| {
            let wrapper = context.root.join("ci/images/rustc");
            let step = Step::new(&context, &format!("{} echo", wrapper.display()));
            step.arg(arguments).output().unwrap().stdout
        };
        // One word is enough to see what is added.
        for name in super::super::names() {
            let line = format!(
                "--crate-name {} --edition=2024 src/main.rs --crate-type bin --emit=link",
                name.replace('-', "_")
            );
            let program = passed_on(&line);
            assert!(
                program.trim().ends_with(" -Ctarget-feature=+crt-static"),
                "{program}"
            );
        }
        for other in [
            "--crate-name e2e --edition=2024 src/bin/vm/main.rs --crate-type bin --emit=link",
            "--crate-name dsm_sim --edition=2024 src/main.rs --emit=link --test",
            "--crate-name build_script_build --edition=2024 build.rs --crate-type bin --emit=link",
            "- --crate-name ___ --print=file-names --crate-type bin --crate-type proc-macro",
            "--crate-name driver --edition=2024 src/lib.rs --crate-type lib --emit=link",
        ] {
            assert_eq!(passed_on(other).trim(), other);
        }
    }

    #[test]
    fn a_program_has_started_when_it_tells_its_version_and_ends_as_it_does() {
        assert!(has_started(&said(Some(0), "mount 2.38\n", ""), 0).is_ok());
        assert!(has_started(&said(Some(1), "", "Usage: resize2fs …\n"), 1).is_ok());
        for (bad, code) in [
            (said(Some(127), "", "exec: not found\n"), 0),
            (said(Some(1), "", "Usage: …\n"), 0),
            (said(None, "", ""), 0),
            (said(Some(0), "", " \n"), 0),
        ] {
            assert!(has_started(&bad, code).is_err(), "{bad:?}");
        }
    }

    /// As the loaders of glibc and of musl say it; their codes are those of healthy programs, too.
    #[test]
    fn a_loader_that_gives_up_is_seen_whatever_its_code() {
        for words in [
            "node-sim: /lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.39' not found (required by node-sim)\n",
            "mount: error while loading shared libraries: libmount.so.1: cannot open shared object file: No such file or directory\n",
        ] {
            for code in [0, 1] {
                let told = has_started(&said(Some(code), "", words), code).unwrap_err();
                assert!(told.to_string().contains(words.trim()), "{told}");
            }
        }
    }
}
