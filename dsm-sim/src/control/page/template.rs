//! The templates' data as displayed text. Pure: no I/O.

use askama::Template;
use serde_json::Value;

use super::format::{Micros, Moment, Size, percent};
use super::snapshot::{LunRow, PageData, TablePage, TargetRow, VolumeRow};
use crate::nas::state::volume::FileSystem;
use crate::nas::timing::Latency;
use crate::server::fault::{ActiveRule, Fault};
use crate::server::journal::Entry;

/// The part of the page that is refreshed, without the journal.
#[derive(Template)]
#[template(path = "overview.html")]
pub(super) struct Overview {
    data: PageData,
    faults: Vec<ActiveRule>,
    settings: Vec<Setting>,
    latency: &'static str,
}

impl Overview {
    pub(super) fn new(data: PageData, faults: Vec<ActiveRule>, latency: Latency) -> Self {
        let settings = data.settings.as_object().into_iter().flatten();
        Self {
            settings: settings
                .map(|(name, value)| Setting::new(name, value))
                .collect(),
            latency: match latency {
                Latency::Instant => "instant",
                Latency::Ds918 => "ds918",
            },
            data,
            faults,
        }
    }

    fn clock(&self) -> Moment {
        Moment(self.data.now)
    }
}

impl PageData {
    fn luns_allowed(&self) -> String {
        allowed(self.max_luns)
    }

    fn targets_allowed(&self) -> String {
        allowed(self.max_targets)
    }
}

/// A model's limit as text.
fn allowed(most: usize) -> String {
    if most == usize::MAX {
        "any number".to_owned()
    } else {
        most.to_string()
    }
}

/// A setting of the NAS.
struct Setting {
    /// Its JSON name.
    key: String,
    label: String,
    value: Value,
}

impl Setting {
    fn new(key: &str, value: &Value) -> Self {
        let mut label = key.replace('_', " ");
        if let Some(first) = label.get_mut(..1) {
            first.make_ascii_uppercase();
        }
        Self {
            label: label
                .replace("Csrf", "CSRF")
                .replace(" ip ", " IP ")
                .replace(" lun ", " LUN "),
            key: key.to_owned(),
            value: value.clone(),
        }
    }
}

impl<T> TablePage<T> {
    /// Number of rows: `60`, or `1 of 60` with a search text.
    fn count(&self) -> String {
        if self.matching == self.total {
            self.total.to_string()
        } else {
            format!("{} of {}", self.matching, self.total)
        }
    }

    fn previous(&self) -> Option<usize> {
        self.page.checked_sub(1)
    }

    fn next(&self) -> Option<usize> {
        Some(self.page + 1).filter(|&page| page < self.pages)
    }
}

impl VolumeRow {
    fn fs(&self) -> &'static str {
        match self.volume.fs {
            FileSystem::Btrfs => "btrfs",
            FileSystem::Ext4 => "ext4",
        }
    }

    fn size(&self) -> Size {
        Size(self.volume.size)
    }

    fn used(&self) -> Size {
        Size(self.volume.size.saturating_sub(self.free))
    }

    fn free(&self) -> Size {
        Size(self.free)
    }

    fn percent(&self) -> u64 {
        percent(self.used().0, self.volume.size)
    }
}

impl LunRow {
    fn size(&self) -> Size {
        Size(self.lun.size)
    }

    fn allocated(&self) -> Size {
        Size(self.allocated)
    }

    fn percent(&self) -> u64 {
        percent(self.allocated, self.lun.size)
    }

    fn kind(&self) -> String {
        let name = self.lun.kind.name();
        name.as_str().unwrap_or_default().to_owned()
    }

    /// Labels for unusual states.
    fn labels(&self) -> Vec<&str> {
        let mut labels = Vec::new();
        if self.lun.status != "normal" {
            labels.push(self.lun.status.as_str());
        }
        match (self.lun.deleting_until.is_some(), self.cloning, self.locked) {
            (true, ..) => labels.push("being deleted"),
            (_, true, _) => labels.push("being cloned"),
            (.., true) => labels.push("locked"),
            (false, false, false) => {}
        }
        labels
    }

    fn parent(&self) -> &str {
        &self.lun.family.parent_lun_name
    }
}

impl TargetRow {
    fn auth(&self) -> &'static str {
        match self.auth_type {
            0 => "none",
            1 => "CHAP",
            _ => "mutual CHAP",
        }
    }

    fn most_sessions(&self) -> String {
        match self.max_sessions {
            0 => "any".to_owned(),
            most => most.to_string(),
        }
    }
}

/// Suffix of a fault that comes after the effect.
fn after_effect(after: bool) -> &'static str {
    if after { " after the effect" } else { "" }
}

impl ActiveRule {
    /// The fault as text.
    fn does(&self) -> String {
        match self.rule.fault {
            Fault::Refuse { code, after } => format!("refuse with {code}{}", after_effect(after)),
            Fault::LoseReply => "lose the reply".to_owned(),
            Fault::LoseCall => "lose the call".to_owned(),
            Fault::Delay { ms } => format!("delay by {ms} ms"),
            Fault::Hang => "hang".to_owned(),
            Fault::Garble => "garble the reply".to_owned(),
            Fault::Http { status, after } => format!("HTTP {status}{}", after_effect(after)),
        }
    }

    /// The calls that it hits, as text.
    fn hits(&self) -> String {
        let (nth, times) = (self.rule.nth.max(1), self.rule.times);
        match times {
            0 => format!("from call {nth} on"),
            1 => format!("call {nth}"),
            _ => format!("calls {nth} to {}", nth.saturating_add(times - 1)),
        }
    }

    /// Whether it has hit all its calls.
    fn is_over(&self) -> bool {
        let last = self.rule.nth.max(1).saturating_add(self.rule.times);
        self.rule.times > 0 && self.rule.seen.saturating_add(1) >= last
    }
}

/// Rows of the journal, newest first.
#[derive(Template)]
#[template(path = "journal.html")]
pub(super) struct Lines {
    next: u64,
    lines: Vec<Line>,
}

impl Lines {
    pub(super) fn new(next: u64, entries: Vec<Entry>) -> Self {
        let lines = entries.into_iter().rev().map(Line).collect();
        Self { next, lines }
    }
}

/// A row of the journal: one call.
struct Line(Entry);

impl Line {
    fn at(&self) -> Moment {
        Moment(self.0.at)
    }

    /// API name without the prefix `SYNO.`.
    fn api(&self) -> &str {
        self.0.api.strip_prefix("SYNO.").unwrap_or(&self.0.api)
    }

    fn took(&self) -> Micros {
        Micros(self.0.micros)
    }

    fn is_hanging(&self) -> bool {
        self.0.fault == Some("hang") && self.0.micros == 0 && self.0.note.is_none()
    }

    /// The parameters on one line, without the session id.
    fn params(&self) -> String {
        let shown = |(name, value): (&String, &String)| format!("{name}={value}");
        let own = self.0.params.iter().filter(|(name, _)| *name != "_sid");
        own.map(shown).collect::<Vec<_>>().join("  ")
    }
}
