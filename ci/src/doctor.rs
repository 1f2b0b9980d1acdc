//! `cargo ci doctor`: checks what a task needs, reports what is missing and how to install it, and installs what it can.

mod install;
pub(crate) mod machine;
pub(crate) mod need;
mod probe;

use std::{collections::BTreeSet, fmt::Write as _, fs};

use anyhow::{Result, bail};

use crate::{context::Context, go, run::Cmd, table};
use machine::Distribution;
use need::{Layer, NEEDS, Need, Weight};
use probe::{Remedy, probe};

/// Prints the state of everything that `layer` needs; with `fix`, first installs what is missing.
///
/// # Errors
/// When the layer cannot run on this machine, or an installation fails.
pub(crate) fn run(context: &Context, layer: Layer, fix: bool) -> Result<()> {
    let mut findings = probe_all(context, layer);
    if fix {
        install_missing(context, &findings)?;
        findings = probe_all(context, layer);
    }
    let distribution = distribution();
    println!("{}, layer {}\n", distribution.name, layer.name());
    let rows: Vec<[String; 4]> = findings
        .iter()
        .map(|finding| finding.row(context))
        .collect();
    println!(
        "{}",
        table::render(["state", "what", "required by", "found"], &rows)
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
            instructions(
                context,
                layer,
                &distribution,
                &absent.iter().collect::<Vec<_>>()
            )
        );
        return Ok(());
    }
    print!("{}", instructions(context, layer, &distribution, &missing));
    bail!("not ready for {}: {} missing", layer.name(), missing.len())
}

/// Installs what `layer` needs, or fails with a list of what is missing. Every task calls this first.
///
/// # Errors
/// When something required is missing and cannot be installed.
pub(crate) fn ready(context: &Context, layer: Layer) -> Result<()> {
    let findings = probe_all(context, layer);
    if !findings.iter().any(|finding| finding.blocks(context)) {
        return Ok(());
    }
    if findings
        .iter()
        .any(|finding| finding.need == Need::Root && finding.blocks(context))
    {
        // As root, the task installs everything else, so being root is the only thing to ask for.
        bail!(
            "{} needs root, for block devices and mounts. Type: {}",
            layer.name(),
            as_root(layer)
        );
    }
    install_missing(context, &findings)?;
    let findings = probe_all(context, layer);
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
        instructions(context, layer, &distribution(), &missing).trim_end()
    )
}

/// Installs a program that a layer needs only sometimes, and that is therefore not among its needs.
///
/// # Errors
/// When it is missing and cannot be installed.
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

/// The state of one need on this machine.
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

fn probe_all(context: &Context, layer: Layer) -> Vec<Finding> {
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

/// Installs the missing needs that block the layer, as far as this user is allowed to.
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
                Cmd::new(context, &format!("rustup component add {component}"))
                    .run_quietly(&title)?;
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

/// The command to run a task as root, with the caller's PATH: sudo's own lacks a cargo that rustup installed.
fn as_root(layer: Layer) -> String {
    format!("sudo -E env \"PATH=$PATH\" cargo ci {}", layer.name())
}

/// The commands that install what is missing, in one line if possible.
fn instructions(
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
