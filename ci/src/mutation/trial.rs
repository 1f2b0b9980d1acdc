//! One bug at a time: build the programs of the properties with it, and run them until one notices.

use std::{
    fs,
    io::ErrorKind,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{
    bugs::{Bug, SWITCH},
    tree::Tree,
};
use crate::{
    context::Context,
    run::{Output, Step},
};

/// The programs of the properties, quickest first; all of them live in the crate e2e.
const PROGRAMS: [(&str, &str); 4] = [
    ("interleaved", "--cases 300 --seed 1"),
    ("faults", "--plane memory"),
    ("model", "--cases 1500 --seed 1 --shrink 0"),
    ("crash", "--plane memory"),
];
/// Where the effects upon a real machine are.
const HOST: &str = "driver/src/host/linux/";
/// A program that takes longer hangs; each takes one to three minutes when all is well, also beside others.
const LIMIT: Duration = Duration::from_secs(900);

/// What one program makes of one driver.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Every property holds.
    Holds,
    /// One does not, in the program's words.
    Broken(String),
    /// It did not come to an end.
    Hangs,
    /// It could not do its work, in its words.
    Failed(String),
}

impl Verdict {
    /// Exit code 0: all hold; 1: one is broken, and the last line says which; anything else is a failure of the program.
    fn of(output: &Output) -> Self {
        match output.code {
            _ if output.overran => Self::Hangs,
            Some(0) => Self::Holds,
            Some(1) => Self::Broken(last_line(output)),
            Some(code) => Self::Failed(format!("exit code {code}: {}", last_line(output))),
            None => Self::Failed(format!("ended by a signal: {}", last_line(output))),
        }
    }
}

/// The last words, of whichever stream has any.
fn last_line(output: &Output) -> String {
    let streams = [&output.stderr, &output.stdout];
    let mut lines = streams.iter().flat_map(|text| text.lines().rev());
    let last = lines.find(|line| !line.trim().is_empty());
    last.map_or_else(
        || "it said nothing".to_owned(),
        |line| line.trim().to_owned(),
    )
}

/// What became of one bug.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// A property was broken.
    Caught {
        /// The program that noticed.
        by: &'static str,
        /// In its words.
        evidence: String,
    },
    /// All programs ran, and none noticed.
    Missed {
        /// What each of them did.
        evidence: String,
    },
    /// Nobody knows whether the properties would have noticed.
    Failed {
        /// Why.
        evidence: String,
    },
}

/// Where bugs are tried.
#[derive(Debug)]
pub(super) struct Trial<'a> {
    context: &'a Context,
    tree: Tree,
    build: PathBuf,
    /// What programs said that did not say that all is well.
    pub(super) logs: PathBuf,
    /// More than one build is to come.
    pub(super) builds_again: bool,
}

impl<'a> Trial<'a> {
    /// The copy of the workspace and what programs said lie in `target/sabotage`. It is built where the workspace is, so that
    /// other people's crates are there already; ours have another path, and so another place.
    ///
    /// # Errors
    /// When the workspace cannot be read.
    pub(super) fn prepare(context: &'a Context) -> Result<Self> {
        let folder = context.target.join("sabotage");
        let trial = Self {
            context,
            tree: Tree::read(context, folder.join("tree"))?,
            build: context.target.clone(),
            logs: folder.join("logs"),
            builds_again: true,
        };
        if trial.logs.exists() {
            fs::remove_dir_all(&trial.logs)?;
        }
        fs::create_dir_all(&trial.logs)?;
        Ok(trial)
    }

    /// Every one of `bugs` fits the driver. Answers them in groups, each of them one build: those that can be switched on go together
    /// as far as they stand in different places, any other is by itself.
    ///
    /// # Errors
    /// Names the one that does not fit.
    pub(super) fn groups<'b>(&self, bugs: &[&'b Bug]) -> Result<Vec<Vec<&'b Bug>>> {
        let mut groups: Vec<Vec<&Bug>> = Vec::new();
        for bug in bugs {
            self.tree.patched(&[bug])?;
            let together = |group: &&mut Vec<&'b Bug>| {
                let all = [group.as_slice(), &[bug]].concat();
                all.iter().all(|bug| bug.is_switched()) && self.tree.patched(&all).is_ok()
            };
            match groups.iter_mut().find(together) {
                Some(group) => group.push(bug),
                None => groups.push(vec![bug]),
            }
        }
        Ok(groups)
    }

    /// Builds the programs with a group of bugs, which [`Trial::groups`] has answered, or with none.
    ///
    /// # Errors
    /// When the copy cannot be written or cargo not be started. What does not compile is an answer: cargo's first error.
    pub(super) fn build(&self, bugs: &[&Bug], title: &str) -> Result<Option<String>> {
        self.tree.lay(bugs)?;
        let built = self.compile(title)?;
        if built.success {
            return Ok(None);
        }
        let name = bugs.first().map_or("as-it-is", |bug| bug.name);
        self.log(name, "build", &built)?;
        let error = built.stderr.lines().find(|line| line.starts_with("error"));
        Ok(Some(format!(
            "does not compile: {}",
            error.unwrap_or_default()
        )))
    }

    /// The driver as it is has every property in the words of these programs: else they would catch everything. What is built has no
    /// bug, or only such as are not switched on.
    ///
    /// # Errors
    /// When a program says or does anything else.
    pub(super) fn must_hold(&self, asked: impl Fn(&str) -> bool) -> Result<()> {
        for program in PROGRAMS.into_iter().filter(|program| asked(program.0)) {
            let verdict = self.run(program, "as-it-is", None, "the driver as it is")?;
            if verdict != Verdict::Holds {
                bail!(
                    "`{} {}` must pass before there is any bug: {verdict:?}; all it said is in {}",
                    program.0,
                    program.1,
                    self.logs.display()
                );
            }
        }
        Ok(())
    }

    /// Tries one bug that is built; answers also how long the programs ran. The progress line shows `title`.
    ///
    /// # Errors
    /// When a program cannot be started.
    pub(super) fn of(&self, bug: &Bug, title: &str) -> Result<(Outcome, Duration)> {
        let began = Instant::now();
        Ok((self.notice(bug, title)?, began.elapsed()))
    }

    /// Makes the copy what the workspace is, and removes the programs.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn restore(&self) -> Result<()> {
        self.tree.lay(&[])?;
        // Nobody shall start a program with a bug in it by mistake.
        for (program, _) in PROGRAMS {
            match fs::remove_file(self.build.join("release").join(program)) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    fn notice(&self, bug: &Bug, title: &str) -> Result<Outcome> {
        let mut others = Vec::new();
        for program in PROGRAMS {
            let by = program.0;
            match self.run(program, bug.name, Some(bug), title)? {
                Verdict::Broken(evidence) => return Ok(Outcome::Caught { by, evidence }),
                Verdict::Failed(evidence) => {
                    let evidence = format!("{by}: {evidence}");
                    return Ok(Outcome::Failed { evidence });
                }
                Verdict::Holds => others.push(format!("{by} holds")),
                Verdict::Hangs => others.push(format!("{by} hangs")),
            }
        }
        if bug.file.starts_with(HOST) {
            match self.unit_tests(bug, title)? {
                Verdict::Broken(evidence) => {
                    let by = "unit tests";
                    return Ok(Outcome::Caught { by, evidence });
                }
                verdict @ (Verdict::Holds | Verdict::Hangs | Verdict::Failed(_)) => {
                    others.push(format!("unit tests: {verdict:?}"));
                }
            }
        }
        let evidence = others.join(", ");
        Ok(Outcome::Missed { evidence })
    }

    /// What the driver does to a real machine no program of the properties has: they bring machines of their own.
    fn unit_tests(&self, bug: &Bug, title: &str) -> Result<Verdict> {
        let mut step = self
            .cargo("test", "-p driver --lib host::linux")
            .env(SWITCH, bug.name);
        let output = step.watch(&format!("{title}: unit tests"))?;
        self.log(bug.name, "unit-tests", &output)?;
        // What cargo says when a test fails.
        Ok(match output.code {
            Some(101) => Verdict::Broken(last_line(&output)),
            _ => Verdict::of(&output),
        })
    }

    /// A cargo that builds the copy, in the workspace's own folder and so with the workspace's settings (`.cargo/config.toml`): below
    /// the copy it would find those of both, and build all crates anew.
    fn cargo(&self, command: &str, arguments: &str) -> Step {
        let manifest = self.tree.root.join("Cargo.toml");
        Step::new(
            self.context,
            &format!("cargo {command} --locked --manifest-path"),
        )
        .arg(manifest)
        .args(&arguments.split(' ').collect::<Vec<_>>())
        .env("CARGO_TARGET_DIR", &self.build)
    }

    fn compile(&self, title: &str) -> Result<Output> {
        let mut step = self
            .cargo("build", "--release --workspace")
            // The same crates again and again; all others are there already. One build alone is quicker without.
            .env(
                "CARGO_INCREMENTAL",
                if self.builds_again { "1" } else { "0" },
            );
        for (program, _) in PROGRAMS {
            step = step.arg("--bin").arg(program);
        }
        step.watch(title)
    }

    fn run(
        &self,
        (program, arguments): (&str, &str),
        name: &str,
        on: Option<&Bug>,
        title: &str,
    ) -> Result<Verdict> {
        let path = self.build.join("release").join(program);
        // In a group of its own it would not hear of a Ctrl-C, and a bug may keep it busy for ever.
        let mut step = Step::new(self.context, "setpriv --pdeathsig KILL")
            .arg(path)
            .args(&arguments.split(' ').collect::<Vec<_>>())
            .env(SWITCH, on.map_or("", |bug| bug.name))
            .directory(&self.tree.root)
            .within(LIMIT);
        let output = step.watch(&format!("{title}: {program}"))?;
        let verdict = Verdict::of(&output);
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
            overran: false,
            stdout: stdout.to_owned(),
            stderr: stderr.to_owned(),
        }
    }

    #[test]
    fn only_exit_code_1_is_a_broken_property() {
        let of = |code| Verdict::of(&output(code, "seed 1\n", "case 7\nno volume shrinks\n \n"));
        assert_eq!(of(Some(0)), Verdict::Holds);
        assert_eq!(of(Some(1)), Verdict::Broken("no volume shrinks".to_owned()));
        for code in [Some(2), Some(101), None] {
            assert!(matches!(of(code), Verdict::Failed(_)), "{code:?}");
        }
    }

    #[test]
    fn evidence_is_the_last_line_of_whichever_stream_has_one() {
        let verdict = Verdict::of(&output(Some(1), "seed 1\nno volume shrinks\n", "\n"));
        assert_eq!(verdict, Verdict::Broken("no volume shrinks".to_owned()));
        let silent = Verdict::of(&output(Some(1), "", ""));
        assert_eq!(silent, Verdict::Broken("it said nothing".to_owned()));
    }

    #[test]
    fn who_was_killed_at_the_deadline_has_noticed_nothing() {
        let killed = Output {
            overran: true,
            ..output(None, "", "no volume shrinks\n")
        };
        assert_eq!(Verdict::of(&killed), Verdict::Hangs);
    }
}
