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
    model: &ReferenceModel,
    test_volumes: &BTreeMap<u8, TestVolume>,
    foreign: &Observation,
    bed: &impl TestBed,
    seen: &Observation,
) -> Result<()> {
    let known: Vec<(&Volume, &TestVolume)> = model
        .volumes
        .iter()
        .filter_map(|(number, volume)| Some((volume, test_volumes.get(number)?)))
        .collect();
    luns(&known, foreign, seen)?;
    targets(&known, foreign, seen)?;
    for (volume, test_volume) in known.iter().filter(|(volume, _)| volume.foreign_data) {
        let intact = volume.kind == Kind::Raw || bed.is_foreign_data_intact(test_volume)?;
        ensure!(
            intact,
            "{}: the foreign data on its LUN is gone",
            test_volume.name
        );
    }
    for (number, node) in seen.nodes.iter().enumerate() {
        let on_this_node: Vec<(&Volume, &TestVolume)> = known
            .iter()
            .filter(|(volume, _)| volume.published == Some(number))
            .copied()
            .collect();
        on_node(&on_this_node, seen, number)?;
        for (volume, test_volume) in on_this_node {
            if volume.staged {
                size(volume, test_volume, node, number, bed)?;
            }
            if let (true, Some(data)) = (volume.node_published, volume.data) {
                let read = bed.read(test_volume, number)?;
                ensure!(
                    read == data,
                    "{}: read {read}, written was {data}",
                    test_volume.name
                );
            }
        }
    }
    ensure!(seen.rest.is_empty(), "left over: {}", seen.rest.join(", "));
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
            left.push(on("hidden mounts", &node.mount_count.to_string()));
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
    let expected: BTreeMap<String, u64> = known
        .iter()
        .map(|(volume, test_volume)| (test_volume.uuid().to_owned(), volume.size.unsigned_abs()))
        .collect();
    ensure!(
        sizes == expected,
        "our LUNs are {sizes:?}, expected {expected:?}"
    );
    let of_others = |seen: &Observation| -> BTreeMap<String, ObservedLun> {
        let luns = seen.luns.clone().into_iter();
        luns.filter(|(_, lun)| !lun.ours).collect()
    };
    let (before, now) = (of_others(foreign), of_others(seen));
    ensure!(before == now, "foreign LUNs were {before:?}, are {now:?}");
    Ok(())
}

fn targets(
    known: &[(&Volume, &TestVolume)],
    foreign: &Observation,
    seen: &Observation,
) -> Result<()> {
    // A publication's target has a new name each time: only its LUN, its node and their number matter.
    let published = known.iter().filter_map(|(volume, test_volume)| {
        volume.published?;
        // The node's id at the time of the publication: it may have been reinstalled since.
        let publication = (test_volume.uuid().to_owned(), test_volume.node_id.clone());
        Some((Some(publication), vec![test_volume.uuid().to_owned()]))
    });
    let of_others = foreign.targets.values().map(|luns| (None, luns.clone()));
    let mut expected: Vec<_> = published.chain(of_others).collect();
    let mut found: Vec<_> = seen
        .targets
        .iter()
        .map(|(iqn, luns)| (publication(iqn), luns.clone()))
        .collect();
    expected.sort_unstable();
    found.sort_unstable();
    ensure!(
        found == expected,
        "targets are {:?}, expected publications {expected:?}",
        seen.targets
    );
    let unchanged = |(iqn, luns): (&String, &Vec<String>)| seen.targets.get(iqn) == Some(luns);
    ensure!(
        foreign.targets.iter().all(unchanged),
        "foreign targets were {:?}, are {:?}",
        foreign.targets,
        seen.targets
    );
    Ok(())
}

fn on_node(volumes: &[(&Volume, &TestVolume)], seen: &Observation, number: usize) -> Result<()> {
    let node = &seen.nodes[number];
    let staged = volumes.iter().filter(|(volume, _)| volume.staged);
    let expected: BTreeSet<String> = staged
        .flat_map(|(_, test_volume)| seen.publications(test_volume.uuid(), &test_volume.node_id))
        .collect();
    let mut sessions = node.sessions.clone();
    sessions.sort_unstable();
    ensure!(
        sessions.iter().eq(expected.iter()),
        "sessions of node {number} are {sessions:?}, expected {expected:?}"
    );
    ensure!(
        node.records == expected,
        "records of node {number} are {:?}, expected {expected:?}",
        node.records
    );
    let mut mounts = BTreeMap::new();
    let mut paths = BTreeSet::new();
    for (volume, test_volume) in volumes {
        let mount = ObservedMount {
            uuid: Some(test_volume.uuid().to_owned()),
            raw: test_volume.content == Content::Block,
            readonly: false,
        };
        let target = test_volume.target.to_string_lossy().into_owned();
        if volume.staged && test_volume.content != Content::Block {
            mounts.insert(
                test_volume.staging.to_string_lossy().into_owned(),
                mount.clone(),
            );
        }
        if volume.node_published {
            let readonly = volume.readonly;
            mounts.insert(target.clone(), ObservedMount { readonly, ..mount });
        }
        if volume.node_published || volume.stale {
            paths.insert(target);
        }
    }
    ensure!(
        node.mounts == mounts && node.mount_count == mounts.len(),
        "mounts of node {number} are {} in all, {:?}; expected {mounts:?}",
        node.mount_count,
        node.mounts
    );
    ensure!(
        node.paths == paths,
        "paths of node {number} are {:?}, expected {paths:?}",
        node.paths
    );
    Ok(())
}

/// The device has at least the promised size and at most that of the LUN; its file system fills the promised size.
fn size(
    volume: &Volume,
    test_volume: &TestVolume,
    node: &ObservedNode,
    number: usize,
    bed: &impl TestBed,
) -> Result<()> {
    let (promised, size) = (volume.promised.unsigned_abs(), volume.size.unsigned_abs());
    let disk = node
        .disks
        .get(test_volume.uuid())
        .copied()
        .unwrap_or_default();
    ensure!(
        (promised..=size).contains(&disk),
        "{}: the device on node {number} has {disk} bytes; {promised} are promised, the LUN has {size}",
        test_volume.name
    );
    let filled = volume
        .unresizable
        .map_or(promised, |max| promised.min(max.unsigned_abs()));
    ensure!(
        bed.fs_fills_device(test_volume, number, filled)?,
        "{}: the file system on node {number} does not fill the promised {filled} bytes",
        test_volume.name
    );
    Ok(())
}
