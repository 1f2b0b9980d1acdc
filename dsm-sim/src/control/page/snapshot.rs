//! Copies what the page shows. This is the only place where the page holds the lock of the NAS, so it renders nothing and reads
//! no file while it does.

use node_sim::target::Session;
use serde::Deserialize;
use serde_json::Value;

use super::disk_usage::Usage;
use crate::nas::Nas;
use crate::nas::state::lun::Lun;
use crate::nas::state::snapshot::Snapshot;
use crate::nas::state::table::{IndexKey, Row, Table};
use crate::nas::state::target::Target;
use crate::nas::state::volume::Volume;
use crate::server::Server;

/// Rows per page.
const LUNS_PER_PAGE: usize = 25;
const TARGETS_PER_PAGE: usize = 15;
/// Maximum number of snapshots and mappings per row.
const MAX_NESTED: usize = 20;

/// Search texts and page numbers of the tables.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Wanted {
    /// Part of a LUN's name, uuid or description.
    pub(super) luns: String,
    /// From 0.
    pub(super) luns_page: usize,
    /// Part of a target's name or IQN.
    pub(super) targets: String,
    pub(super) targets_page: usize,
}

/// Everything that the page shows, except faults and journal.
#[derive(Debug)]
pub(super) struct PageData {
    pub(super) model: &'static str,
    pub(super) firmware: &'static str,
    pub(super) now: u64,
    pub(super) sessions: usize,
    pub(super) max_luns: usize,
    pub(super) max_targets: usize,
    /// By name.
    pub(super) settings: Value,
    pub(super) volumes: Vec<VolumeRow>,
    /// Whether the files of some LUNs have not been read yet, so that `used` is too low.
    pub(super) counting: bool,
    pub(super) luns: TablePage<LunRow>,
    pub(super) targets: TablePage<TargetRow>,
}

/// One page of a table.
#[derive(Debug)]
pub(super) struct TablePage<T> {
    pub(super) rows: Vec<T>,
    /// From 0.
    pub(super) page: usize,
    pub(super) pages: usize,
    pub(super) matching: usize,
    pub(super) total: usize,
}

#[derive(Debug)]
pub(super) struct VolumeRow {
    pub(super) volume: Volume,
    pub(super) free: u64,
}

#[derive(Debug)]
pub(super) struct LunRow {
    pub(super) lun: Lun,
    pub(super) allocated: u64,
    pub(super) locked: bool,
    pub(super) cloning: bool,
    /// Target number and name.
    pub(super) targets: Vec<(u32, String)>,
    /// The newest ones.
    pub(super) snapshots: Vec<Snapshot>,
    pub(super) snapshot_count: usize,
}

/// A target, without its secrets.
#[derive(Debug)]
pub(super) struct TargetRow {
    pub(super) id: u32,
    pub(super) name: String,
    pub(super) iqn: String,
    pub(super) enabled: bool,
    pub(super) auth_type: u64,
    pub(super) max_sessions: u64,
    /// Mapping index and name.
    pub(super) luns: Vec<(u16, String)>,
    pub(super) lun_count: usize,
    pub(super) sessions: Vec<Session>,
}

/// Copies the state of the NAS, then reads disk usage and sessions without its lock.
pub(super) fn take(server: &Server, usage: &mut Usage, wanted: &Wanted) -> PageData {
    let now = server.clock.now();
    let (mut data, due, files, watch) = {
        let mut durable = server.nas();
        // Finish the work that DSM has done by now. If that fails, the next call reports it.
        let _ = durable.change(now, |_, _| ());
        let nas = &durable.nas;
        let due = usage.due(nas.state.luns.values().map(|lun| &lun.uuid));
        let (files, watch) = (durable.backstore.clone(), durable.export.session_reader());
        (copy(nas, now, wanted), due, files, watch)
    };
    let shown: Vec<String> = data
        .luns
        .rows
        .iter()
        .map(|row| row.lun.uuid.clone())
        .collect();
    usage.visit(&due, &shown, &files);
    for row in &mut data.luns.rows {
        row.allocated = row.lun.allocated(usage);
    }
    let iqns: Vec<String> = data
        .targets
        .rows
        .iter()
        .map(|row| row.iqn.clone())
        .collect();
    for (row, sessions) in data.targets.rows.iter_mut().zip(watch.of(&iqns)) {
        row.sessions = sessions;
    }
    let durable = server.nas();
    data.counting = usage.len() < durable.nas.state.luns.len();
    for row in &mut data.volumes {
        row.free = durable.nas.free(&row.volume, usage);
    }
    data
}

fn copy(nas: &Nas, now: u64, wanted: &Wanted) -> PageData {
    let (state, config) = (&nas.state, &nas.config);
    let volumes = state.volumes.values().map(|volume| VolumeRow {
        volume: volume.clone(),
        free: 0,
    });
    PageData {
        model: config.model.name,
        firmware: config.dsm.firmware,
        now,
        sessions: nas.auth.sessions(),
        max_luns: config.model.max_luns,
        max_targets: config.model.max_targets,
        settings: serde_json::json!(nas.settings),
        volumes: volumes.collect(),
        counting: false,
        luns: luns(nas, now, wanted),
        targets: targets(nas, wanted),
    }
}

fn luns(nas: &Nas, now: u64, wanted: &Wanted) -> TablePage<LunRow> {
    let text = wanted.luns.trim();
    let takes = |lun: &Lun| {
        [&lun.name, &lun.uuid, &lun.description]
            .into_iter()
            .any(|field| contains(field, text))
    };
    table_page(
        &nas.state.luns,
        takes,
        wanted.luns_page,
        LUNS_PER_PAGE,
        |lun| {
            let targets = nas.state.targets.find(&IndexKey::Lun(lun.uuid.clone()));
            let snapshot_count = nas.snapshots_of(&lun.uuid).count();
            LunRow {
                lun: lun.clone(),
                allocated: 0,
                locked: lun.is_action_locked(now),
                cloning: lun.is_cloning(now),
                targets: targets
                    .take(MAX_NESTED)
                    .map(|target| (target.target_id, target.name.clone()))
                    .collect(),
                snapshots: nas
                    .snapshots_of(&lun.uuid)
                    .skip(snapshot_count.saturating_sub(MAX_NESTED))
                    .cloned()
                    .collect(),
                snapshot_count,
            }
        },
    )
}

fn targets(nas: &Nas, wanted: &Wanted) -> TablePage<TargetRow> {
    let text = wanted.targets.trim();
    let takes = |target: &Target| contains(&target.name, text) || contains(&target.iqn, text);
    let name = |uuid: &String| {
        let lun = nas.state.luns.get(uuid);
        lun.map_or_else(|| uuid.clone(), |lun| lun.name.clone())
    };
    table_page(
        &nas.state.targets,
        takes,
        wanted.targets_page,
        TARGETS_PER_PAGE,
        |target| TargetRow {
            id: target.target_id,
            name: target.name.clone(),
            iqn: target.iqn.clone(),
            enabled: target.enabled,
            auth_type: target.auth_type,
            max_sessions: target.max_sessions,
            luns: target
                .luns
                .iter()
                .take(MAX_NESTED)
                .map(|(&index, uuid)| (index, name(uuid)))
                .collect(),
            lun_count: target.luns.len(),
            sessions: Vec::new(),
        },
    )
}

/// One page of the rows that `takes` accepts, sorted by number.
fn table_page<R: Row, T>(
    table: &Table<R>,
    takes: impl Fn(&R) -> bool,
    page: usize,
    rows: usize,
    show: impl Fn(&R) -> T,
) -> TablePage<T> {
    let mut matching: Vec<&R> = table.values().filter(|row| takes(row)).collect();
    matching.sort_by_key(|row| row.number());
    let pages = matching.len().div_ceil(rows).max(1);
    let page = page.min(pages - 1);
    let on_page = matching.iter().skip(page * rows).take(rows);
    TablePage {
        rows: on_page.map(|row| show(row)).collect(),
        page,
        pages,
        matching: matching.len(),
        total: table.len(),
    }
}

/// Case-insensitive substring search. An empty `part` is always found.
fn contains(text: &str, part: &str) -> bool {
    part.is_empty() || text.to_lowercase().contains(&part.to_lowercase())
}
