//! How cost scales: with volumes on a node, node records, concurrent callers, LUNs, and time. Compare the ratios; absolute
//! times depend on this machine.

mod burst;
mod calls;
mod list;
mod memory;
mod meter;
mod soak;
mod start;

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::{Cli, Part};

/// The results; parts that were not measured are omitted.
#[derive(Default, Serialize)]
pub(crate) struct Growth {
    #[serde(skip_serializing_if = "Option::is_none")]
    calls: Option<calls::Measured>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    start: Vec<start::Start>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    memory: Vec<memory::Moment>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    burst: Vec<burst::Burst>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    list: Vec<list::Listed>,
    #[serde(skip_serializing_if = "Option::is_none")]
    soak: Option<soak::Soak>,
}

impl Growth {
    pub(crate) fn is_empty(&self) -> bool {
        self.calls.is_none()
            && self.start.is_empty()
            && self.memory.is_empty()
            && self.burst.is_empty()
            && self.list.is_empty()
            && self.soak.is_none()
    }
}

/// Runs the requested measurements; `node`: this is root, so the node half can run.
///
/// # Errors
/// Something does not start, or a call fails unexpectedly.
pub(crate) async fn measure(cli: &Cli, node: bool) -> Result<Growth> {
    let sizes = |sample: &'static [usize], whole: &'static [usize]| {
        if cli.sample { sample } else { whole }
    };
    let seconds = |asked: Option<u64>| asked.unwrap_or(if cli.sample { 5 } else { 60 });
    let mut growth = Growth::default();
    if cli.part.has(Part::Calls) && node {
        let (sizes, rounds) = (sizes(&[1, 20], &[1, 20, 60, 120]), sizes(&[3], &[10])[0]);
        growth.calls = Some(calls::measure(sizes, rounds).await?);
    }
    if cli.part.has(Part::Start) && node {
        growth.start = start::measure(sizes(&[0, 20], &[0, 50, 200])).await?;
    }
    if cli.part.has(Part::Memory) {
        growth.memory = memory::measure(node, seconds(cli.idle)).await?;
    }
    if cli.part.has(Part::Burst) {
        growth.burst = burst::measure(sizes(&[10], &[10, 50, 200])).await?;
    }
    if cli.part.has(Part::List) {
        growth.list = list::measure(sizes(&[100, 500], &[100, 1_000, 5_000])).await?;
    }
    if cli.part.has(Part::Soak) {
        growth.soak = Some(match cli.lives {
            Some(lives) => soak::lives(lives).await?,
            None => soak::seconds(node, seconds(cli.soak)).await?,
        });
    }
    Ok(growth)
}

/// Prints human-readable tables.
pub(crate) fn print(growth: &Growth) {
    if let Some(calls) = &growth.calls {
        calls::print(calls);
    }
    if !growth.start.is_empty() {
        start::print(&growth.start);
    }
    if !growth.memory.is_empty() {
        memory::print(&growth.memory);
    }
    if !growth.burst.is_empty() {
        burst::print(&growth.burst);
    }
    if !growth.list.is_empty() {
        list::print(&growth.list);
    }
    if let Some(soak) = &growth.soak {
        soak::print(soak);
    }
}

/// A table in which all columns but the first are numbers.
fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// `×1.5`, or empty if there is no baseline.
fn ratio(now: f64, first: f64) -> String {
    if first > 0.0 {
        format!("×{:.1}", now / first)
    } else {
        String::new()
    }
}

fn mib(kib: u64) -> String {
    format!(
        "{:.1}",
        f64::from(u32::try_from(kib).unwrap_or(u32::MAX)) / 1024.0
    )
}

/// Prints progress of a long measurement.
fn progress(text: &str) {
    println!("… {text}");
}
