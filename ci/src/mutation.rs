//! Do the properties catch bugs? Puts deliberate bugs into a copy of the driver, one at a time, and expects that a program
//! of the properties notices each of them.

mod bugs;
mod tree;
mod trial;

use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;

use crate::{context::Context, table};
use bugs::{BUGS, Bug};
use trial::{Outcome, Trial};

/// Arguments of the sabotage.
#[derive(Debug, Default, Args)]
pub(crate) struct Sabotage {
    /// Only this bug; may be given several times
    #[arg(long, value_name = "NAME")]
    pub(crate) only: Vec<String>,
    /// Only the first so many of the list, which are of all kinds
    #[arg(long, value_name = "N", conflicts_with = "only", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) sample: Option<u16>,
    /// Print the bugs and what a user would suffer from each, and stop
    #[arg(long)]
    pub(crate) list: bool,
}

impl Sabotage {
    /// The bugs that are meant.
    ///
    /// # Errors
    /// Names one that is none.
    fn chosen(&self) -> Result<Vec<&'static Bug>> {
        let known = |name: &&String| BUGS.iter().any(|bug| bug.name == *name);
        if let Some(unknown) = self.only.iter().find(|name| !known(name)) {
            bail!("there is no bug {unknown:?}: see cargo ci sabotage --list");
        }
        let meant =
            |bug: &&Bug| self.only.is_empty() || self.only.iter().any(|name| name == bug.name);
        let bugs = BUGS.iter().filter(meant);
        Ok(bugs
            .take(self.sample.map_or(BUGS.len(), usize::from))
            .collect())
    }
}

/// Tries the bugs. The workspace itself is not touched: all happens in `target/sabotage`.
///
/// # Errors
/// When a property does not hold without any bug, a bug does not fit the source any more, or one is not caught.
pub(crate) fn run(context: &Context, sabotage: &Sabotage) -> Result<()> {
    let bugs = sabotage.chosen()?;
    if sabotage.list {
        let row = |bug: &&Bug| [bug.name, bug.what].map(str::to_owned);
        let rows: Vec<[String; 2]> = bugs.iter().map(row).collect();
        let header = ["bug", "what a user would suffer"];
        print!("{}", table::render(header, &rows));
        return Ok(());
    }
    let mut trial = Trial::prepare(context)?;
    let groups = trial.groups(&bugs)?;
    let (mut rows, mut escaped) = (Vec::new(), Vec::new());
    let first_is_switched = groups[0].iter().all(|bug| bug.is_switched());
    trial.builds_again = groups.len() > 1 || !first_is_switched;
    if !first_is_switched {
        match trial.build(&[], "building the driver as it is")? {
            Some(error) => bail!("the driver as it is {error}"),
            None => trial.must_hold(|_| true)?,
        }
    }
    for (index, group) in groups.iter().enumerate() {
        let title = format!("build {} of {}: {}", index + 1, groups.len(), names(group));
        let failed = trial.build(group, &title)?;
        // Once for all builds; where there is only this one, it is known at its end which programs must.
        if index == 0 && first_is_switched && trial.builds_again && failed.is_none() {
            trial.must_hold(|_| true)?;
        }
        for bug in group {
            let (outcome, time) = match &failed {
                Some(error) => {
                    let evidence = error.clone();
                    (Outcome::Failed { evidence }, Duration::ZERO)
                }
                None => trial.of(bug, bug.name)?,
            };
            if !matches!(outcome, Outcome::Caught { .. }) {
                escaped.push(*bug);
            }
            let row = row(bug, &outcome, time);
            println!("{}: {}", bug.name, row[1]);
            rows.push(row);
        }
    }
    if !trial.builds_again {
        trial.must_hold(|program| rows.iter().any(|row| row[1] == program))?;
    }
    trial.restore()?;
    print_result(&rows, &escaped);
    if !escaped.is_empty() {
        let (number, logs) = (escaped.len(), trial.logs.display());
        bail!("{number} bugs were not caught; what the programs said is in {logs}");
    }
    Ok(())
}

fn names(bugs: &[&Bug]) -> String {
    let names: Vec<&str> = bugs.iter().map(|bug| bug.name).collect();
    names.join(", ")
}

fn print_result(rows: &[[String; 4]], escaped: &[&Bug]) {
    let header = ["bug", "caught by", "after", "evidence"];
    println!("\n{}", table::render(header, rows));
    for bug in escaped {
        println!("{} in {} was not caught: {}", bug.name, bug.file, bug.what);
    }
    println!("caught {} of {}", rows.len() - escaped.len(), rows.len());
}

/// The width that is left for evidence on a wide terminal; all of it is in the logs.
const EVIDENCE: usize = 110;

fn row(bug: &Bug, outcome: &Outcome, time: Duration) -> [String; 4] {
    let (by, evidence) = match outcome {
        Outcome::Caught { by, evidence } => (*by, evidence),
        Outcome::Missed { evidence } => ("NOBODY", evidence),
        Outcome::Failed { evidence } => ("ERROR", evidence),
    };
    let evidence = evidence.chars().take(EVIDENCE).collect();
    let time = format!("{:.1} s", time.as_secs_f64());
    [bug.name.to_owned(), by.to_owned(), time, evidence]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(sabotage: &Sabotage) -> Vec<&str> {
        sabotage
            .chosen()
            .unwrap()
            .iter()
            .map(|bug| bug.name)
            .collect()
    }

    #[test]
    fn all_bugs_are_meant_or_a_sample_or_those_that_are_named() {
        assert_eq!(chosen(&Sabotage::default()).len(), BUGS.len());
        let sample = Sabotage {
            sample: Some(4),
            ..Sabotage::default()
        };
        assert_eq!(
            chosen(&sample),
            BUGS[..4].iter().map(|bug| bug.name).collect::<Vec<_>>()
        );
        let only = Sabotage {
            only: vec![BUGS[5].name.to_owned(), BUGS[2].name.to_owned()],
            ..Sabotage::default()
        };
        assert_eq!(chosen(&only), [BUGS[2].name, BUGS[5].name]);
        let unknown = Sabotage {
            only: vec!["no-such-bug".to_owned()],
            ..Sabotage::default()
        };
        assert!(
            unknown
                .chosen()
                .unwrap_err()
                .to_string()
                .contains("no-such-bug")
        );
    }

    #[test]
    fn a_row_tells_who_noticed_and_is_no_wider_than_a_terminal() {
        let evidence = "x".repeat(EVIDENCE + 1);
        let caught = Outcome::Caught {
            by: "model",
            evidence,
        };
        let [name, by, time, evidence] = row(&BUGS[0], &caught, Duration::from_millis(1250));
        assert_eq!(
            (name.as_str(), by.as_str(), time.as_str()),
            (BUGS[0].name, "model", "1.2 s")
        );
        assert_eq!(evidence.len(), EVIDENCE);
        let missed = Outcome::Missed {
            evidence: String::new(),
        };
        assert_eq!(row(&BUGS[0], &missed, Duration::ZERO)[1], "NOBODY");
    }
}
