//! Builds the search programs with a mutant, and runs them until one finds it.

use std::{
    fs,
    io::ErrorKind,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{
    mutants::{ACTIVE_VARIABLE, Mutant},
    tree::Tree,
};
use crate::{
    context::Context,
    run::{Cmd, Output},
};

/// The search programs of the crate e2e, fastest first.
const PROGRAMS: [(&str, &str); 4] = [
    ("interleaved", "--cases 300 --seed 1"),
    ("faults", "--testbed memory"),
    ("model", "--cases 1500 --seed 1 --shrink 0"),
    ("crash", "--testbed memory"),
];
/// The driver's sources with side effects on a real machine.
const HOST_SOURCES: &str = "driver/src/host/linux/";
/// A program that takes longer hangs. Normally each takes one to three minutes, even in parallel to other tasks.
const TIMEOUT: Duration = Duration::from_secs(900);

/// The result of one search program on one driver.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// All properties hold.
    Holds,
    /// A property is violated: the last line of output.
    Broken(String),
    /// It timed out.
    Hangs,
    /// The program failed for another reason: exit status and last line of output.
    Failed(String),
}

impl Verdict {
    /// Exit code 0: all properties hold; 1: the last line names the violated property; anything else: the program failed.
    fn try_mutant(output: &Output) -> Self {
        match output.code {
            _ if output.timed_out => Self::Hangs,
            Some(0) => Self::Holds,
            Some(1) => Self::Broken(last_line(output)),
            Some(code) => Self::Failed(format!("exit code {code}: {}", last_line(output))),
            None => Self::Failed(format!("ended by a signal: {}", last_line(output))),
        }
    }
}

/// The last non-empty line of stderr, else of stdout.
fn last_line(output: &Output) -> String {
    let streams = [&output.stderr, &output.stdout];
    let mut lines = streams.iter().flat_map(|text| text.lines().rev());
    let last = lines.find(|line| !line.trim().is_empty());
    last.map_or_else(|| "no output".to_owned(), |line| line.trim().to_owned())
}

/// The result of one mutant.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// A program found it.
    Killed {
        /// The program.
        by: &'static str,
        /// The program's last line of output.
        evidence: String,
    },
    /// No program found it.
    Survived {
        /// The result of each program.
        evidence: String,
    },
    /// A build or a program failed.
    Failed {
        /// The reason.
        evidence: String,
    },
}

/// Builds and runs mutants in a copy of the workspace.
#[derive(Debug)]
pub(super) struct Runner<'a> {
    context: &'a Context,
    tree: Tree,
    build: PathBuf,
    /// The folder for the output of programs that did not succeed.
    pub(super) logs: PathBuf,
    /// More than one build will follow, so that incremental compilation pays off.
    pub(super) rebuilds: bool,
}

impl<'a> Runner<'a> {
    /// The copy of the workspace and the logs are in `target/mutants`. The copy is built in the workspace's own target directory,
    /// to reuse the compiled dependencies. Our crates have another path there, so cargo keeps both builds apart.
    ///
    /// # Errors
    /// When the workspace cannot be read.
    pub(super) fn prepare(context: &'a Context) -> Result<Self> {
        let folder = context.target.join("mutants");
        let runner = Self {
            context,
            tree: Tree::read(context, folder.join("tree"))?,
            build: context.target.clone(),
            logs: folder.join("logs"),
            rebuilds: true,
        };
        if runner.logs.exists() {
            fs::remove_dir_all(&runner.logs)?;
        }
        fs::create_dir_all(&runner.logs)?;
        Ok(runner)
    }

    /// Checks that all patches apply, and groups the mutants by build: switchable mutants are built together unless their patches
    /// overlap, any other is built separately.
    ///
    /// # Errors
    /// When a patch does not apply.
    pub(super) fn groups<'b>(&self, mutants: &[&'b Mutant]) -> Result<Vec<Vec<&'b Mutant>>> {
        let mut groups: Vec<Vec<&Mutant>> = Vec::new();
        for mutant in mutants {
            self.tree.patched(&[mutant])?;
            let together = |group: &&mut Vec<&'b Mutant>| {
                let all = [group.as_slice(), &[mutant]].concat();
                all.iter().all(|mutant| mutant.is_switchable()) && self.tree.patched(&all).is_ok()
            };
            match groups.iter_mut().find(together) {
                Some(group) => group.push(mutant),
                None => groups.push(vec![mutant]),
            }
        }
        Ok(groups)
    }

    /// Builds the programs with a group of mutants from [`Runner::groups`], or with none. Returns cargo's first error if it does
    /// not compile.
    ///
    /// # Errors
    /// When the copy cannot be written, or cargo cannot be started.
    pub(super) fn build(&self, mutants: &[&Mutant], title: &str) -> Result<Option<String>> {
        self.tree.write_copy(mutants)?;
        let built = self.compile(title)?;
        if built.success {
            return Ok(None);
        }
        let name = mutants.first().map_or("original", |mutant| mutant.name);
        self.log(name, "build", &built)?;
        let error = built.stderr.lines().find(|line| line.starts_with("error"));
        Ok(Some(format!(
            "does not compile: {}",
            error.unwrap_or_default()
        )))
    }

    /// Checks that the selected programs succeed on the original driver; otherwise they would "kill" every mutant. The current
    /// build must have no mutants, or only switchable ones.
    ///
    /// # Errors
    /// When a program does not succeed.
    pub(super) fn check_baseline(&self, selected: impl Fn(&str) -> bool) -> Result<()> {
        for program in PROGRAMS.into_iter().filter(|program| selected(program.0)) {
            let verdict = self.run(program, "original", None, "the original driver")?;
            if verdict != Verdict::Holds {
                bail!(
                    "`{} {}` must pass on the original driver: {verdict:?}; its output is in {}",
                    program.0,
                    program.1,
                    self.logs.display()
                );
            }
        }
        Ok(())
    }

    /// Runs the programs on one mutant of the current build. Returns the outcome and the time. `title` is for the progress line.
    ///
    /// # Errors
    /// When a program cannot be started.
    pub(super) fn try_mutant(&self, mutant: &Mutant, title: &str) -> Result<(Outcome, Duration)> {
        let start = Instant::now();
        Ok((self.find_killer(mutant, title)?, start.elapsed()))
    }

    /// Removes the mutants from the copy, and deletes the programs.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn restore(&self) -> Result<()> {
        self.tree.write_copy(&[])?;
        // Programs with mutants must not be started by mistake.
        for (program, _) in PROGRAMS {
            match fs::remove_file(self.build.join("release").join(program)) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    fn find_killer(&self, mutant: &Mutant, title: &str) -> Result<Outcome> {
        let mut results = Vec::new();
        for program in PROGRAMS {
            let by = program.0;
            match self.run(program, mutant.name, Some(mutant), title)? {
                Verdict::Broken(evidence) => return Ok(Outcome::Killed { by, evidence }),
                Verdict::Failed(evidence) => {
                    let evidence = format!("{by}: {evidence}");
                    return Ok(Outcome::Failed { evidence });
                }
                Verdict::Holds => results.push(format!("{by} holds")),
                Verdict::Hangs => results.push(format!("{by} hangs")),
            }
        }
        if mutant.file.starts_with(HOST_SOURCES) {
            match self.unit_tests(mutant, title)? {
                Verdict::Broken(evidence) => {
                    let by = "unit tests";
                    return Ok(Outcome::Killed { by, evidence });
                }
                verdict @ (Verdict::Holds | Verdict::Hangs | Verdict::Failed(_)) => {
                    results.push(format!("unit tests: {verdict:?}"));
                }
            }
        }
        let evidence = results.join(", ");
        Ok(Outcome::Survived { evidence })
    }

    /// The search programs use a fake host, so only unit tests cover the code for a real machine.
    fn unit_tests(&self, mutant: &Mutant, title: &str) -> Result<Verdict> {
        let mut cmd = self
            .cargo("test", "-p driver --lib host::linux")
            .env(ACTIVE_VARIABLE, mutant.name);
        let output = cmd.output_with_progress(&format!("{title}: unit tests"))?;
        self.log(mutant.name, "unit-tests", &output)?;
        // cargo's exit code if a test fails.
        Ok(match output.code {
            Some(101) => Verdict::Broken(last_line(&output)),
            _ => Verdict::try_mutant(&output),
        })
    }

    /// A cargo command for the copy. It runs in the workspace's own folder: in the copy's, cargo would apply the
    /// `.cargo/config.toml` of both, and rebuild all crates.
    fn cargo(&self, command: &str, arguments: &str) -> Cmd {
        let manifest = self.tree.root.join("Cargo.toml");
        Cmd::new(
            self.context,
            &format!("cargo {command} --locked --manifest-path"),
        )
        .arg(manifest)
        .args(&arguments.split(' ').collect::<Vec<_>>())
        .env("CARGO_TARGET_DIR", &self.build)
    }

    fn compile(&self, title: &str) -> Result<Output> {
        let mut cmd = self
            .cargo("build", "--release --workspace")
            // Only our crates are rebuilt for each group. A single build is faster without.
            .env("CARGO_INCREMENTAL", if self.rebuilds { "1" } else { "0" });
        for (program, _) in PROGRAMS {
            cmd = cmd.arg("--bin").arg(program);
        }
        cmd.output_with_progress(title)
    }

    fn run(
        &self,
        (program, arguments): (&str, &str),
        name: &str,
        active: Option<&Mutant>,
        title: &str,
    ) -> Result<Verdict> {
        let path = self.build.join("release").join(program);
        // pdeathsig, because Ctrl-C does not reach a separate process group, and a mutant may loop forever.
        let mut cmd = Cmd::new(self.context, "setpriv --pdeathsig KILL")
            .arg(path)
            .args(&arguments.split(' ').collect::<Vec<_>>())
            .env(ACTIVE_VARIABLE, active.map_or("", |mutant| mutant.name))
            .current_dir(&self.tree.root)
            .timeout(TIMEOUT);
        let output = cmd.output_with_progress(&format!("{title}: {program}"))?;
        let verdict = Verdict::try_mutant(&output);
        if verdict != Verdict::Holds {
            self.log(name, program, &output)?;
        }
        Ok(verdict)
    }

    fn log(&self, name: &str, what: &str, output: &Output) -> Result<()> {
        let path = self.logs.join(format!("{name}-{what}.log"));
        let text = format!("{}{}", output.stdout, output.stderr);
        fs::write(&path, text).with_context(|| path.display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(code: Option<i32>, stdout: &str, stderr: &str) -> Output {
        Output {
            success: code == Some(0),
            code,
            timed_out: false,
            stdout: stdout.to_owned(),
            stderr: stderr.to_owned(),
        }
    }

    #[test]
    fn only_exit_code_1_is_a_broken_property() {
        let try_mutant =
            |code| Verdict::try_mutant(&output(code, "seed 1\n", "case 7\nno volume shrinks\n \n"));
        assert_eq!(try_mutant(Some(0)), Verdict::Holds);
        assert_eq!(
            try_mutant(Some(1)),
            Verdict::Broken("no volume shrinks".to_owned())
        );
        for code in [Some(2), Some(101), None] {
            assert!(matches!(try_mutant(code), Verdict::Failed(_)), "{code:?}");
        }
    }

    #[test]
    fn evidence_is_the_last_line_of_stderr_or_stdout() {
        let verdict = Verdict::try_mutant(&output(Some(1), "seed 1\nno volume shrinks\n", "\n"));
        assert_eq!(verdict, Verdict::Broken("no volume shrinks".to_owned()));
        let without_output = Verdict::try_mutant(&output(Some(1), "", ""));
        assert_eq!(without_output, Verdict::Broken("no output".to_owned()));
    }

    #[test]
    fn a_program_that_timed_out_hangs_whatever_its_output() {
        let killed = Output {
            timed_out: true,
            ..output(None, "", "no volume shrinks\n")
        };
        assert_eq!(Verdict::try_mutant(&killed), Verdict::Hangs);
    }
}
