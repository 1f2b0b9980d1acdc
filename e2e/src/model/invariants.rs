//! Compares the reference model with the observation. Pure, except for file systems and their data, which only the test bed can
//! read.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};

use super::reference_model::{ReferenceModel, Volume};
use super::step::Kind;
use crate::harness::test_volume::{Content, TestVolume};
use crate::testbed::{Observation, ObservedLun, ObservedMount, ObservedNode, TestBed, publication};

/// The observed state must be that of the model, without anything that belongs to no volume.
///
/// # Errors
/// The first difference.
pub fn check(
    book: &ReferenceModel,
    lives: &BTreeMap<u8, TestVolume>,
    foreign: &Observation,
    plane: &impl TestBed,
    seen: &Observation,
) -> Result<()> {
    let known: Vec<(&Volume, &TestVolume)> = book
        .volumes
        .iter()
        .filter_map(|(number, volume)| Some((volume, lives.get(number)?)))
        .collect();
    luns(&known, foreign, seen)?;
    targets(&known, foreign, seen)?;
    for (volume, life) in known.iter().filter(|(volume, _)| volume.foreign_data) {
        let kept = volume.kind == Kind::Raw || plane.is_foreign_data_intact(life)?;
        ensure!(
            kept,
            "{}: what somebody had written to its LUN is gone",
            life.name
        );
    }
    for (number, node) in seen.nodes.iter().enumerate() {
        let here: Vec<(&Volume, &TestVolume)> = known
            .iter()
            .filter(|(volume, _)| volume.published == Some(number))
            .copied()
            .collect();
        on_node(&here, seen, number)?;
        for (volume, life) in here {
            if volume.staged {
                grown(volume, life, node, number, plane)?;
            }
            if let (true, Some(data)) = (volume.node_published, volume.data) {
                let read = plane.read(life, number)?;
                ensure!(
                    read == data,
                    "{}: {read} is read where {data} was written",
                    life.name
                );
            }
        }
    }
    ensure!(seen.rest.is_empty(), "left: {}", seen.rest.join(", "));
    Ok(())
}

/// Everything that is left once all volumes are deleted, as text.
pub fn leftovers(foreign: &Observation, seen: &Observation) -> Vec<String> {
    let mut left: Vec<String> = seen.rest.clone();
    let luns = seen
        .luns
        .iter()
        .filter(|(uuid, _)| !foreign.luns.contains_key(*uuid));
    left.extend(luns.map(|(uuid, lun)| format!("LUN {} ({uuid})", lun.name)));
    let targets = seen
        .targets
        .keys()
        .filter(|iqn| !foreign.targets.contains_key(*iqn));
    left.extend(targets.map(|iqn| format!("target {iqn}")));
    for (number, node) in seen.nodes.iter().enumerate() {
        let on = |what: &str, name: &str| format!("{what} {name} of node {number}");
        left.extend(node.sessions.iter().map(|iqn| on("session", iqn)));
        left.extend(node.records.iter().map(|iqn| on("record", iqn)));
        left.extend(node.disks.keys().map(|uuid| on("disk", uuid)));
        left.extend(node.mounts.keys().map(|point| on("mount", point)));
        left.extend(node.paths.iter().map(|path| on("path", path)));
        if node.mount_count > node.mounts.len() {
            left.push(on("mounts that are hidden", &node.mount_count.to_string()));
        }
    }
    left
}

fn luns(known: &[(&Volume, &TestVolume)], foreign: &Observation, seen: &Observation) -> Result<()> {
    let sizes: BTreeMap<String, u64> = seen
        .luns
        .iter()
        .filter(|(_, lun)| lun.ours)
        .map(|(uuid, lun)| (uuid.clone(), lun.size))
        .collect();
    let wanted: BTreeMap<String, u64> = known
        .iter()
        .map(|(volume, life)| (life.uuid().to_owned(), volume.size.unsigned_abs()))
        .collect();
    ensure!(
        sizes == wanted,
        "LUNs of ours are {sizes:?}, volumes {wanted:?}"
    );
    let of_others = |seen: &Observation| -> BTreeMap<String, ObservedLun> {
        let luns = seen.luns.clone().into_iter();
        luns.filter(|(_, lun)| !lun.ours).collect()
    };
    let (before, now) = (of_others(foreign), of_others(seen));
    ensure!(before == now, "LUNs of others were {before:?}, are {now:?}");
    Ok(())
}

fn targets(
    known: &[(&Volume, &TestVolume)],
    foreign: &Observation,
    seen: &Observation,
) -> Result<()> {
    // A publication's target has a new name each time: only its LUN, its node and their number matter.
    let published = known.iter().filter_map(|(volume, life)| {
        volume.published?;
        // The node's id at the time of the publication: it may have been reinstalled since.
        let of = (life.uuid().to_owned(), life.node_id.clone());
        Some((Some(of), vec![life.uuid().to_owned()]))
    });
    let of_others = foreign.targets.values().map(|luns| (None, luns.clone()));
    let mut wanted: Vec<_> = published.chain(of_others).collect();
    let mut there: Vec<_> = seen
        .targets
        .iter()
        .map(|(iqn, luns)| (publication(iqn), luns.clone()))
        .collect();
    wanted.sort_unstable();
    there.sort_unstable();
    ensure!(
        there == wanted,
        "targets are {:?}, publications {wanted:?}",
        seen.targets
    );
    let kept = |(iqn, luns): (&String, &Vec<String>)| seen.targets.get(iqn) == Some(luns);
    ensure!(
        foreign.targets.iter().all(kept),
        "targets of others were {:?}, are {:?}",
        foreign.targets,
        seen.targets
    );
    Ok(())
}

fn on_node(here: &[(&Volume, &TestVolume)], seen: &Observation, number: usize) -> Result<()> {
    let node = &seen.nodes[number];
    let staged = here.iter().filter(|(volume, _)| volume.staged);
    let wanted: BTreeSet<String> = staged
        .flat_map(|(_, life)| seen.publications(life.uuid(), &life.node_id))
        .collect();
    let mut sessions = node.sessions.clone();
    sessions.sort_unstable();
    ensure!(
        sessions.iter().eq(wanted.iter()),
        "sessions of node {number} are {sessions:?}, staged is {wanted:?}"
    );
    ensure!(
        node.records == wanted,
        "records of node {number} are {:?}, staged is {wanted:?}",
        node.records
    );
    let mut mounts = BTreeMap::new();
    let mut paths = BTreeSet::new();
    for (volume, life) in here {
        let shown = ObservedMount {
            uuid: Some(life.uuid().to_owned()),
            raw: life.content == Content::Block,
            readonly: false,
        };
        let target = life.target.to_string_lossy().into_owned();
        if volume.staged && life.content != Content::Block {
            mounts.insert(life.staging.to_string_lossy().into_owned(), shown.clone());
        }
        if volume.node_published {
            let readonly = volume.readonly;
            mounts.insert(target.clone(), ObservedMount { readonly, ..shown });
        }
        if volume.node_published || volume.stale {
            paths.insert(target);
        }
    }
    ensure!(
        node.mounts == mounts && node.mount_count == mounts.len(),
        "mounts of node {number} are {} in all, {:?}; should be {mounts:?}",
        node.mount_count,
        node.mounts
    );
    ensure!(
        node.paths == paths,
        "paths of node {number} are {:?}, should be {paths:?}",
        node.paths
    );
    Ok(())
}

/// The device has at least the promised size and at most that of the LUN; its file system fills the promised size.
fn grown(
    volume: &Volume,
    life: &TestVolume,
    node: &ObservedNode,
    number: usize,
    plane: &impl TestBed,
) -> Result<()> {
    let (promised, size) = (volume.promised.unsigned_abs(), volume.size.unsigned_abs());
    let disk = node.disks.get(life.uuid()).copied().unwrap_or_default();
    ensure!(
        (promised..=size).contains(&disk),
        "{}: the device on node {number} has {disk} bytes, promised are {promised}, the LUN has {size}",
        life.name
    );
    let filled = volume
        .unresizable
        .map_or(promised, |stiff| promised.min(stiff.unsigned_abs()));
    ensure!(
        plane.fs_fills_device(life, number, filled)?,
        "{}: the file system on node {number} does not fill the {filled} bytes that were promised",
        life.name
    );
    Ok(())
}
