//! Builds the programs that go into images. They are linked statically (`ci/images/rustc`), so that the age of an image's C
//! library does not matter.
//!
//! Two checks: the ELF file must not name a loader, and the program's output in the image must not be a loader error. A loader
//! that finds too old a C library exits with 1, like some healthy programs that print their version, so the exit code is not
//! enough.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    context::Context,
    run::{Cmd, Output},
    testing::build_optimized,
};

/// Messages of a loader that cannot start a program, whatever its exit code.
const LOADER_ERRORS: [&str; 4] = [
    "error while loading shared libraries",
    "' not found (required by ",
    "cannot open shared object file",
    "no version information available",
];

/// The type of the program header that names the loader (`PT_INTERP`).
const INTERPRETER: u32 = 3;

/// Builds these programs, and returns their folder.
///
/// # Errors
/// When one does not compile, or is not linked statically.
pub(super) fn build(context: &Context, names: &[&str]) -> Result<PathBuf> {
    build_optimized(context, names).context(
        "if the linker does not find -lc, install the static C library: \
         libc6-dev (Debian, Ubuntu) or glibc-static (Fedora)",
    )?;
    let folder = context.target.join("release");
    for name in names {
        let path = folder.join(name);
        let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
        must_be_static(&path, &bytes)?;
    }
    Ok(folder)
}

/// The C library that is linked into the programs, as `NAME VERSION`.
///
/// # Errors
/// When `getconf` does not report it.
pub(super) fn c_library(context: &Context) -> Result<String> {
    let version = Cmd::new(context, "getconf GNU_LIBC_VERSION").output()?;
    let version = version.stdout.trim().to_owned();
    ensure!(
        version.starts_with("glibc "),
        "`getconf GNU_LIBC_VERSION` does not name the C library that is linked into the programs: {version:?}"
    );
    Ok(version)
}

fn must_be_static(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(loader) = loader(bytes).with_context(|| path.display().to_string())? {
        bail!(
            "{} needs the loader {loader}, and thus a C library that an image may not have: it must be linked statically",
            path.display()
        );
    }
    Ok(())
}

/// The loader named in a 64-bit little-endian ELF file; `None` if it is static.
///
/// # Errors
/// When it is not such a file.
fn loader(program: &[u8]) -> Result<Option<String>> {
    ensure!(
        program.starts_with(b"\x7fELF\x02\x01"),
        "not a 64-bit little-endian ELF file"
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

/// Checks that a program started, from its output when asked for its version. `code` is its expected exit code.
///
/// # Errors
/// The reason why it did not start.
pub(super) fn has_started(output: &Output, code: i32) -> Result<()> {
    let text = format!("{}{}", output.stdout, output.stderr);
    let text = text.trim();
    if let Some(line) = text
        .lines()
        .find(|line| LOADER_ERRORS.iter().any(|sign| line.contains(sign)))
    {
        bail!("its loader says: {line}");
    }
    ensure!(
        output.code == Some(code),
        "exit code {:?}, expected {code}: {text}",
        output.code
    );
    ensure!(!text.is_empty(), "it printed nothing, not even its version");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file with these program headers, each a type and its content.
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
    fn a_program_with_a_loader_is_refused() {
        let own = program(&[(1, "code"), (2, "dynamic")]);
        assert!(must_be_static(Path::new("a"), &own).is_ok());
        let shared = program(&[(1, "code"), (3, "/lib64/ld-linux-x86-64.so.2\0")]);
        let error = must_be_static(Path::new("a/synology-csi"), &shared).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("a/synology-csi") && error.contains("/lib64/ld-linux-x86-64.so.2, and"),
            "{error}"
        );
    }

    #[test]
    fn a_file_that_is_not_elf_is_an_error() {
        let whole = program(&[(1, "code"), (3, "/lib/ld.so\0")]);
        for bad in [&b"#!/bin/sh\n"[..], &whole[..60], &whole[..130]] {
            assert!(must_be_static(Path::new("a"), bad).is_err());
        }
    }

    /// Tests find programs through these variables. Some shells drop them because of the hyphen in their names.
    #[test]
    fn the_rustc_wrapper_passes_on_variables_with_a_hyphen() {
        let context = Context::read().unwrap();
        let wrapper = context.root.join("ci/images/rustc");
        let cmd = Cmd::new(&context, &format!("{} env", wrapper.display()));
        let output = cmd.env("CARGO_BIN_EXE_synology-csi", "here").output();
        assert!(
            output
                .unwrap()
                .stdout
                .contains("CARGO_BIN_EXE_synology-csi=here")
        );
    }

    fn output(code: Option<i32>, stdout: &str, stderr: &str) -> Output {
        Output {
            success: code == Some(0),
            code,
            timed_out: false,
            stdout: stdout.to_owned(),
            stderr: stderr.to_owned(),
        }
    }

    /// The arguments are some of those that cargo passes to rustc.
    #[test]
    fn only_our_programs_are_linked_statically() {
        let context = Context::read().unwrap();
        let passed_on = |arguments: &str| {
            let wrapper = context.root.join("ci/images/rustc");
            let cmd = Cmd::new(&context, &format!("{} echo", wrapper.display()));
            cmd.arg(arguments).output().unwrap().stdout
        };
        // All arguments in one word: `echo` shows what the wrapper adds.
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
    fn a_program_has_started_if_its_output_and_exit_code_are_as_expected() {
        assert!(has_started(&output(Some(0), "mount 2.38\n", ""), 0).is_ok());
        assert!(has_started(&output(Some(1), "", "Usage: resize2fs …\n"), 1).is_ok());
        for (bad, code) in [
            (output(Some(127), "", "exec: not found\n"), 0),
            (output(Some(1), "", "Usage: …\n"), 0),
            (output(None, "", ""), 0),
            (output(Some(0), "", " \n"), 0),
        ] {
            assert!(has_started(&bad, code).is_err(), "{bad:?}");
        }
    }

    /// Messages of the loaders of glibc and musl. Healthy programs may end with the same exit codes.
    #[test]
    fn loader_errors_are_detected_whatever_the_exit_code() {
        for text in [
            "node-sim: /lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.39' not found (required by node-sim)\n",
            "mount: error while loading shared libraries: libmount.so.1: cannot open shared object file: No such file or directory\n",
        ] {
            for code in [0, 1] {
                let error = has_started(&output(Some(code), "", text), code).unwrap_err();
                assert!(error.to_string().contains(text.trim()), "{error}");
            }
        }
    }
}
