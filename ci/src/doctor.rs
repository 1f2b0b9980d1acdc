//! Is this machine ready? Looks, says what is missing and how to get it, and gets what it may.

mod install;
pub(crate) mod machine;
pub(crate) mod need;
mod probe;

use std::{collections::BTreeSet, fmt::Write as _, fs};

use anyhow::{Result, bail};

use crate::{context::Context, go, run::Step, table};
use machine::Distribution;
use need::{Layer, NEEDS, Need, Weight};
use probe::{Remedy, probe};

/// Prints the state of everything `layer` needs; with `fix`, installs what is missing first.
///
/// # Errors
/// When the layer cannot run here, and when an installation fails.
pub(crate) fn run(context: &Context, layer: Layer, fix: bool) -> Result<()> {
    let mut findings = look(context, layer);
    if fix {
        install_missing(context, &findings)?;
        findings = look(context, layer);
    }
    let distribution = distribution();
    println!("{}, layer {}\n", distribution.name, layer.name());
    let rows: Vec<[String; 4]> = findings
        .iter()
        .map(|finding| finding.row(context))
        .collect();
    println!(
        "{}",
        table::render(["state", "what", "indispensable for", "found"], &rows)
    );
    let missing: Vec<&Finding> = findings
        .iter()
        .filter(|finding| finding.blocks(context))
        .collect();
    if missing.is_empty() {
        println!("Ready for {}.", layer.name());
        let absent: Vec<Finding> = findings
            .into_iter()
            .filter(|finding| !finding.present)
            .collect();
        print!(
            "{}",
            cure(
                context,
                layer,
                &distribution,
                &absent.iter().collect::<Vec<_>>()
            )
        );
        return Ok(());
    }
    print!("{}", cure(context, layer, &distribution, &missing));
    bail!("not ready for {}: {} missing", layer.name(), missing.len())
}

/// Makes the machine ready for `layer`, or says what is missing before anything else has been done.
///
/// # Errors
/// When something indispensable is missing and may not, or cannot, be installed.
pub(crate) fn ready(context: &Context, layer: Layer) -> Result<()> {
    let findings = look(context, layer);
    if !findings.iter().any(|finding| finding.blocks(context)) {
        return Ok(());
    }
    if findings
        .iter()
        .any(|finding| finding.need == Need::Root && finding.blocks(context))
    {
        // Root installs whatever else is missing, so this is all there is to say, and it is said before anything is built.
        bail!(
            "{} needs root, for block devices and mounts. Type: {}",
            layer.name(),
            as_root(layer)
        );
    }
    install_missing(context, &findings)?;
    let findings = look(context, layer);
    let missing: Vec<&Finding> = findings
        .iter()
        .filter(|finding| finding.blocks(context))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = missing
        .iter()
        .map(|finding| format!("  {}: {}", finding.need.name(), finding.found))
        .collect();
    bail!(
        "{} cannot run here yet:\n{}\n{}",
        layer.name(),
        list.join("\n"),
        cure(context, layer, &distribution(), &missing).trim_end()
    )
}

/// Gets a program that is needed only sometimes, so that no layer asks for it beforehand.
///
/// # Errors
/// When it is missing and may not, or cannot, be installed.
pub(crate) fn provide(context: &Context, package: &'static str, program: &str) -> Result<()> {
    if context.find(program).is_some() {
        return Ok(());
    }
    let packages = BTreeSet::from([package]);
    if context.privileges.root && distribution().debian {
        install::packages(context, &packages)?;
    }
    if context.find(program).is_none() {
        let line = install::line(&packages, context.privileges.root);
        bail!("{program} is missing. On Debian or Ubuntu, type: {line}");
    }
    Ok(())
}

/// One need, as this machine meets it.
struct Finding {
    need: Need,
    weight: Weight,
    present: bool,
    found: String,
    remedy: Option<Remedy>,
}

impl Finding {
    fn blocks(&self, context: &Context) -> bool {
        !self.present
            && match self.weight {
                Weight::Must => true,
                Weight::WithRoot => context.privileges.root,
                Weight::Note => false,
            }
    }

    fn row(&self, context: &Context) -> [String; 4] {
        let state = match (self.present, self.blocks(context)) {
            (true, _) => "ok",
            (false, true) => "MISSING",
            (false, false) => "note",
        };
        [
            state.into(),
            self.need.name(),
            self.need.wanted_by(),
            self.found.clone(),
        ]
    }
}

fn look(context: &Context, layer: Layer) -> Vec<Finding> {
    let wanted = NEEDS
        .iter()
        .filter_map(|need| Some((*need, need.weight(layer)?)));
    wanted
        .map(|(need, weight)| match probe(context, need) {
            Ok(found) => Finding {
                need,
                weight,
                present: true,
                found,
                remedy: None,
            },
            Err((found, remedy)) => Finding {
                need,
                weight,
                present: false,
                found,
                remedy: Some(remedy),
            },
        })
        .collect()
}

fn distribution() -> Distribution {
    Distribution::parse(&fs::read_to_string("/etc/os-release").unwrap_or_default())
}

/// Installs what blocks, as far as this user may.
fn install_missing(context: &Context, findings: &[Finding]) -> Result<()> {
    let blocking = || findings.iter().filter(|finding| finding.blocks(context));
    let packages: BTreeSet<&str> = blocking()
        .filter_map(|finding| match finding.remedy {
            Some(Remedy::Package(package)) => Some(package),
            Some(Remedy::Command(_) | Remedy::Root | Remedy::Advice(_)) | None => None,
        })
        .collect();
    if context.privileges.root && distribution().debian {
        install::packages(context, &packages)?;
    }
    for finding in blocking() {
        match finding.need {
            Need::Component(_, component) if context.find("rustup").is_some() => {
                let title = format!("Installing {component}");
                Step::new(context, &format!("rustup component add {component}")).quiet(&title)?;
            }
            Need::CsiSanity => {
                if let Some(go) = go::Go::find(context) {
                    go.install_sanity(context)?;
                }
            }
            Need::Component(..)
            | Need::Root
            | Need::SysAdmin
            | Need::LoopDevices
            | Need::Programs(..)
            | Need::Filesystem(_)
            | Need::Go
            | Need::SysResource
            | Need::InitiatorName => {}
        }
    }
    Ok(())
}

/// The line to type for being root: with the caller's PATH, since sudo's own has no cargo when rustup installed it.
fn as_root(layer: Layer) -> String {
    format!("sudo -E env \"PATH=$PATH\" cargo ci {}", layer.name())
}

/// What to type, in one line where one line can do it.
fn cure(
    context: &Context,
    layer: Layer,
    distribution: &Distribution,
    missing: &[&Finding],
) -> String {
    let remedies: BTreeSet<&Remedy> = missing
        .iter()
        .filter_map(|finding| finding.remedy.as_ref())
        .collect();
    let mut packages = BTreeSet::new();
    let mut commands = Vec::new();
    let mut text = String::new();
    for remedy in &remedies {
        match remedy {
            Remedy::Package(package) => drop(packages.insert(*package)),
            Remedy::Command(command) => commands.push(command.clone()),
            Remedy::Root => drop(writeln!(
                text,
                "As root (installs what it lacks): {}",
                as_root(layer)
            )),
            Remedy::Advice(advice) => drop(writeln!(text, "Hint: {advice}.")),
        }
    }
    if !packages.is_empty() && !distribution.debian {
        let names: Vec<&str> = packages.iter().copied().collect();
        let _ = writeln!(
            text,
            "Install (Debian's names for the packages): {}",
            names.join(" ")
        );
    } else if !packages.is_empty() {
        commands.insert(0, install::line(&packages, context.privileges.root));
    }
    if commands.is_empty() {
        text
    } else {
        format!("Type: {}\n{text}", commands.join(" && "))
    }
}
