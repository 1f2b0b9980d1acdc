//! `cargo ci mutants`: mutation testing of the search programs. Puts deliberate bugs (mutants) into a copy of the driver, one at
//! a time, and expects that a search program finds each.

mod mutants;
mod run;
mod tree;

use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;

use crate::{context::Context, table};
use mutants::{MUTANTS, Mutant};
use run::{Outcome, Runner};

/// Arguments of `cargo ci mutants`.
#[derive(Debug, Default, Args)]
pub(crate) struct Mutants {
    /// Only this mutant; may be given several times
    #[arg(long, value_name = "NAME")]
    pub(crate) only: Vec<String>,
    /// Only the first N mutants of the list, which are of different kinds
    #[arg(long, value_name = "N", conflicts_with = "only", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) sample: Option<u16>,
    /// List the mutants and their effects on a user, and exit
    #[arg(long)]
    pub(crate) list: bool,
}

impl Mutants {
    /// The selected mutants.
    ///
    /// # Errors
    /// When `--only` names an unknown mutant.
    fn chosen(&self) -> Result<Vec<&'static Mutant>> {
        let known = |name: &&String| MUTANTS.iter().any(|mutant| mutant.name == *name);
        if let Some(unknown) = self.only.iter().find(|name| !known(name)) {
            bail!("there is no mutant {unknown:?}: see cargo ci mutants --list");
        }
        let selected = |mutant: &&Mutant| {
            self.only.is_empty() || self.only.iter().any(|name| name == mutant.name)
        };
        let mutants = MUTANTS.iter().filter(selected);
        Ok(mutants
            .take(self.sample.map_or(MUTANTS.len(), usize::from))
            .collect())
    }
}

/// Runs the mutants. The workspace itself is not modified: the copy is in `target/mutants`.
///
/// # Errors
/// When a search program fails on the original driver, a mutant's patch no longer applies, or a mutant survives.
pub(crate) fn run(context: &Context, args: &Mutants) -> Result<()> {
    let mutants = args.chosen()?;
    if args.list {
        let row = |mutant: &&Mutant| [mutant.name, mutant.effect].map(str::to_owned);
        let rows: Vec<[String; 2]> = mutants.iter().map(row).collect();
        let header = ["mutant", "effect on a user"];
        print!("{}", table::render(header, &rows));
        return Ok(());
    }
    let mut runner = Runner::prepare(context)?;
    let groups = runner.groups(&mutants)?;
    let (mut rows, mut survived) = (Vec::new(), Vec::new());
    let first_is_switchable = groups[0].iter().all(|mutant| mutant.is_switchable());
    runner.rebuilds = groups.len() > 1 || !first_is_switchable;
    if !first_is_switchable {
        match runner.build(&[], "building the original driver")? {
            Some(error) => bail!("the original driver {error}"),
            None => runner.check_baseline(|_| true)?,
        }
    }
    for (index, group) in groups.iter().enumerate() {
        let title = format!("build {} of {}: {}", index + 1, groups.len(), names(group));
        let failed = runner.build(group, &title)?;
        // The baseline is checked once for all builds. If there is only this build, it is checked at the end, and only with the
        // programs that have killed a mutant.
        if index == 0 && first_is_switchable && runner.rebuilds && failed.is_none() {
            runner.check_baseline(|_| true)?;
        }
        for mutant in group {
            let (outcome, time) = match &failed {
                Some(error) => {
                    let evidence = error.clone();
                    (Outcome::Failed { evidence }, Duration::ZERO)
                }
                None => runner.try_mutant(mutant, mutant.name)?,
            };
            if !matches!(outcome, Outcome::Killed { .. }) {
                survived.push(*mutant);
            }
            let row = row(mutant, &outcome, time);
            println!("{}: {}", mutant.name, row[1]);
            rows.push(row);
        }
    }
    if !runner.rebuilds {
        runner.check_baseline(|program| rows.iter().any(|row| row[1] == program))?;
    }
    runner.restore()?;
    print_result(&rows, &survived);
    if !survived.is_empty() {
        let (number, logs) = (survived.len(), runner.logs.display());
        bail!("{number} mutants survived; the output of the programs is in {logs}");
    }
    Ok(())
}

fn names(mutants: &[&Mutant]) -> String {
    let names: Vec<&str> = mutants.iter().map(|mutant| mutant.name).collect();
    names.join(", ")
}

fn print_result(rows: &[[String; 4]], survived: &[&Mutant]) {
    let header = ["mutant", "killed by", "after", "evidence"];
    println!("\n{}", table::render(header, rows));
    for mutant in survived {
        println!(
            "{} in {} survived: {}",
            mutant.name, mutant.file, mutant.effect
        );
    }
    println!("killed {} of {}", rows.len() - survived.len(), rows.len());
}

/// Maximum width of the evidence column. The logs have the full text.
const EVIDENCE_WIDTH: usize = 110;

fn row(mutant: &Mutant, outcome: &Outcome, time: Duration) -> [String; 4] {
    let (by, evidence) = match outcome {
        Outcome::Killed { by, evidence } => (*by, evidence),
        Outcome::Survived { evidence } => ("SURVIVED", evidence),
        Outcome::Failed { evidence } => ("ERROR", evidence),
    };
    let evidence = evidence.chars().take(EVIDENCE_WIDTH).collect();
    let time = format!("{:.1} s", time.as_secs_f64());
    [mutant.name.to_owned(), by.to_owned(), time, evidence]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(args: &Mutants) -> Vec<&str> {
        args.chosen()
            .unwrap()
            .iter()
            .map(|mutant| mutant.name)
            .collect()
    }

    #[test]
    fn selects_all_mutants_or_a_sample_or_the_named_ones() {
        assert_eq!(chosen(&Mutants::default()).len(), MUTANTS.len());
        let sample = Mutants {
            sample: Some(4),
            ..Mutants::default()
        };
        assert_eq!(
            chosen(&sample),
            MUTANTS[..4]
                .iter()
                .map(|mutant| mutant.name)
                .collect::<Vec<_>>()
        );
        let only = Mutants {
            only: vec![MUTANTS[5].name.to_owned(), MUTANTS[2].name.to_owned()],
            ..Mutants::default()
        };
        assert_eq!(chosen(&only), [MUTANTS[2].name, MUTANTS[5].name]);
        let unknown = Mutants {
            only: vec!["no-such-mutant".to_owned()],
            ..Mutants::default()
        };
        assert!(
            unknown
                .chosen()
                .unwrap_err()
                .to_string()
                .contains("no-such-mutant")
        );
    }

    #[test]
    fn a_row_names_the_killer_and_fits_on_a_terminal() {
        let evidence = "x".repeat(EVIDENCE_WIDTH + 1);
        let caught = Outcome::Killed {
            by: "model",
            evidence,
        };
        let [name, by, time, evidence] = row(&MUTANTS[0], &caught, Duration::from_millis(1250));
        assert_eq!(
            (name.as_str(), by.as_str(), time.as_str()),
            (MUTANTS[0].name, "model", "1.2 s")
        );
        assert_eq!(evidence.len(), EVIDENCE_WIDTH);
        let survived = Outcome::Survived {
            evidence: String::new(),
        };
        assert_eq!(row(&MUTANTS[0], &survived, Duration::ZERO)[1], "SURVIVED");
    }
}
