//! `dsm-sim diff`: sends the same calls to a NAS and to a simulator of its model and release, and reports where the shapes of
//! the replies differ. It can only send [`Read`]s, so it cannot change anything.

use anyhow::Context;
use serde::Serialize;
use serde_json::Value;

pub use super::reads::{Found, Read};

use crate::compare::fixture;
use crate::compare::json_shape::{self, Difference, Kind};
use crate::compare::reads::{self, Session};
use crate::compare::upstream::{TlsTrust, Upstream};
use crate::instance::running::DsmSim;
use crate::nas::model::{Dsm, Model};

/// Result of a comparison.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Model and firmware that the NAS reports.
    pub nas: [String; 2],
    /// Model and firmware that were simulated.
    pub simulated: [String; 2],
    /// What could not be compared, and why.
    pub notes: Vec<String>,
    /// Each call with its differences.
    pub calls: Vec<Compared>,
}

/// One call that was sent to both.
#[derive(Debug, Serialize)]
pub struct Compared {
    /// `SYNO.Core.ISCSI.LUN list`.
    pub call: String,
    /// Differences between the two replies.
    pub differences: Vec<Difference>,
}

impl Report {
    /// Whether anything differs.
    pub fn differs(&self) -> bool {
        self.calls.iter().any(|call| !call.differences.is_empty())
    }
}

/// Compares a NAS with a simulator of its release and model that has one LUN, one target and one snapshot.
///
/// # Errors
/// A request or a login fails.
pub async fn diff(nas: &Upstream, account: &str, password: &str) -> anyhow::Result<Report> {
    let session = Session::login(nas, account, password)
        .await
        .with_context(|| format!("cannot log in to {}", nas.url))?;
    let answers = session.read_all().await;
    // Log out even if a call failed.
    let logout = session.logout().await;
    let answers = answers?;
    logout?;
    let system_info = |key: &str| {
        let value = &answers.of(Read::SystemInfo)["data"][key];
        value.as_str().unwrap_or_default().to_owned()
    };
    let mut notes = Vec::new();
    let identity = [system_info("model"), system_info("firmware_ver")];
    let (dsm, model) = (
        release(&identity[1], &mut notes),
        known_model(&identity[0], &mut notes),
    );
    let ours = simulated(dsm, model).await?;
    let calls = Read::ALL
        .map(|read| compared(read, answers.of(read), ours.of(read), &mut notes))
        .into_iter()
        .flatten()
        .collect();
    Ok(Report {
        nas: identity,
        simulated: [model.name.to_owned(), dsm.firmware.to_owned()],
        notes,
        calls,
    })
}

async fn simulated(dsm: Dsm, model: Model) -> anyhow::Result<reads::Answers> {
    let sim = DsmSim::builder().dsm(dsm).model(model).start().await?;
    let at = Upstream {
        url: sim.api().parse()?,
        trust: TlsTrust::Platform,
    };
    fixture::populate(&sim).await?;
    Session::login(&at, "admin", "admin")
        .await?
        .read_all()
        .await
}

fn compared(
    read: Read,
    nas: &Value,
    simulated: &Value,
    notes: &mut Vec<String>,
) -> Option<Compared> {
    let call = format!("{} {}", read.api(), read.method());
    if nas.is_null() {
        notes.push(format!("{call}: not asked, the NAS has no such object"));
        return None;
    }
    let found = if read == Read::Info {
        versions(nas, simulated)
    } else {
        json_shape::compare(nas, simulated)
    };
    let mut differences = Vec::new();
    for difference in found {
        // The number of rows depends on the use of the NAS, not on DSM.
        if let Kind::Rows { .. } = difference.kind {
            notes.push(format!("{call}: {difference}; rows not compared"));
        } else {
            differences.push(difference);
        }
    }
    Some(Compared { call, differences })
}

/// Compares the `SYNO.API.Info` entries of the APIs that both have: a NAS has hundreds that are not simulated.
fn versions(nas: &Value, simulated: &Value) -> Vec<Difference> {
    let mut found = Vec::new();
    for (name, ours) in simulated["data"].as_object().into_iter().flatten() {
        let Some(theirs) = nas["data"].get(name) else {
            continue;
        };
        for key in ["minVersion", "maxVersion", "path"] {
            if theirs[key] != ours[key] {
                found.push(Difference {
                    at: format!(".data.{name}.{key}"),
                    kind: Kind::Value {
                        recorded: theirs[key].to_string(),
                        simulated: ours[key].to_string(),
                    },
                });
            }
        }
    }
    found
}

/// The release to simulate: that of the NAS, or the nearest one.
fn release(firmware: &str, notes: &mut Vec<String>) -> Dsm {
    let reported = major_minor(firmware);
    let distance = |dsm: &Dsm| {
        let (known, reported) = (major_minor(dsm.firmware), reported.0 * 10 + reported.1);
        (known.0 * 10 + known.1).abs_diff(reported)
    };
    let nearest = Dsm::all()
        .into_iter()
        .min_by_key(distance)
        .unwrap_or_default();
    if major_minor(nearest.firmware) != reported {
        notes.push(format!(
            "\"{firmware}\" is not simulated; compared with {}",
            nearest.firmware
        ));
    }
    nearest
}

/// Major and minor version: `(7, 2)` of `DSM 7.2.1-69057 Update 5`.
fn major_minor(firmware: &str) -> (u32, u32) {
    let mut parts = firmware
        .split(|c: char| !c.is_ascii_digit())
        .filter(|part| !part.is_empty())
        .map(|part| part.parse().unwrap_or_default());
    (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    )
}

fn known_model(name: &str, notes: &mut Vec<String>) -> Model {
    name.parse().unwrap_or_else(|_| {
        let model = Model::default();
        notes.push(format!(
            "the limits of \"{name}\" are not known; compared with a {}",
            model.name
        ));
        model
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_release_is_simulated_and_noted() {
        for (firmware, simulated, noted) in [
            ("DSM 7.2.1-69057 Update 5", "7.2", false),
            ("DSM 7.2.2-72806", "7.2", false),
            ("DSM 6.2.4-25556", "6.2", false),
            ("DSM 6.1.7", "6.2", true),
            ("DSM 7.9-1", "7.4", true),
            ("DSM 8.0-1", "7.4", true),
        ] {
            let mut notes = Vec::new();
            assert_eq!(
                release(firmware, &mut notes).version,
                simulated,
                "{firmware}"
            );
            assert_eq!(!notes.is_empty(), noted, "{firmware}: {notes:?}");
        }
    }
}
