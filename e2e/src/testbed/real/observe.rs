//! Observes volumes by reading files only: the mount table, the host roots, `/sys/block`, and the folders of the NAS and of the
//! kubelets. Runs after each step, so it starts no programs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::machine::Machine;
use crate::harness::nas::Nas;
use crate::testbed::{Observation, ObservedMount, ObservedNode};

/// The backing files of the test bed's loop devices, by device name.
type Loops = BTreeMap<String, PathBuf>;

/// Adds the nodes and all leftovers to the NAS's part of the observation.
///
/// # Errors
/// A file cannot be read.
pub(super) fn observe(nas: &Nas, machines: &[Machine], seen: &mut Observation) -> Result<()> {
    let bed_folder = nas
        .folder()
        .parent()
        .context("the NAS's folder has no parent")?;
    let (loops, table) = (
        loops(bed_folder)?,
        fs::read_to_string("/proc/self/mountinfo")?,
    );
    let mut explained = BTreeSet::new();
    for machine in machines {
        let mut node = ObservedNode::default();
        sessions(machine, &mut node, &mut explained)?;
        mounts(machine, &table, &loops, &mut node);
        let kubelet = machine.home.join("kubelet");
        for volume in names(&kubelet)? {
            paths(&kubelet.join(volume), &table, &mut node.paths)?;
        }
        node.records = names(&machine.initiator.root().join("etc/iscsi/nodes"))?
            .into_iter()
            .collect();
        seen.nodes.push(node);
    }
    let unexplained = loops.iter().filter(|(name, _)| !explained.contains(*name));
    let devices = unexplained.map(|(name, file)| format!("/dev/{name} of {}", file.display()));
    seen.rest.extend(devices);
    leftovers(nas, seen)
}

fn leftovers(nas: &Nas, seen: &mut Observation) -> Result<()> {
    for file in names(&nas.folder().join("luns"))? {
        if !seen.luns.contains_key(file.trim_end_matches(".img")) {
            seen.rest.push(format!("file {file} without a LUN"));
        }
    }
    for file in names(&nas.targets())? {
        let iqn = file.trim_end_matches(".json").trim_end_matches(".sessions");
        if !seen.targets.contains_key(iqn) {
            seen.rest.push(format!("export {file} without a target"));
        }
    }
    Ok(())
}

fn loops(bed_folder: &Path) -> Result<Loops> {
    let mut found = Loops::new();
    for name in names(Path::new("/sys/block"))? {
        if !name.starts_with("loop") {
            continue;
        }
        let file = format!("/sys/block/{name}/loop/backing_file");
        if let Ok(backing) = fs::read_to_string(file) {
            let backing = PathBuf::from(backing.trim_end().trim_end_matches(" (deleted)"));
            if backing.starts_with(bed_folder) {
                found.insert(name, backing);
            }
        }
    }
    Ok(found)
}

fn sessions(
    machine: &Machine,
    node: &mut ObservedNode,
    explained: &mut BTreeSet<String>,
) -> Result<()> {
    let class = machine.initiator.root().join("sys/class/iscsi_session");
    for session in names(&class)? {
        let session = class.join(session);
        let target = fs::read_to_string(session.join("targetname"))?;
        node.sessions.push(target.trim_end().to_owned());
        let device = session.join("device");
        for target in names(&device)?
            .iter()
            .filter(|name| name.starts_with("target"))
        {
            let target = device.join(target);
            for unit in names(&target)?.iter().filter(|name| name.contains(':')) {
                disk(&target.join(unit), node, explained)?;
            }
        }
    }
    Ok(())
}

fn disk(unit: &Path, node: &mut ObservedNode, explained: &mut BTreeSet<String>) -> Result<()> {
    // Vital product data: four bytes, then the serial.
    let page = fs::read(unit.join("vpd_pg80"))?;
    let serial = String::from_utf8_lossy(page.get(4..).unwrap_or_default()).into_owned();
    for block in names(&unit.join("block"))? {
        let sectors = fs::read_to_string(format!("/sys/class/block/{block}/size"))?;
        node.disks
            .insert(serial.clone(), sectors.trim().parse::<u64>()? * 512);
        explained.insert(block);
    }
    Ok(())
}

/// The mounts below the kubelet's directory, the topmost at each mount point.
fn mounts(machine: &Machine, table: &str, loops: &Loops, node: &mut ObservedNode) {
    let kubelet = machine.home.join("kubelet");
    for line in table.lines() {
        let Some((point, seen)) = mount(line, loops) else {
            continue;
        };
        if Path::new(point).starts_with(&kubelet) {
            node.mount_count += 1;
            node.mounts.insert(point.to_owned(), seen);
        }
    }
}

/// Parses a line of the mount table: proc(5), `/proc/pid/mountinfo`.
fn mount<'a>(line: &'a str, loops: &Loops) -> Option<(&'a str, ObservedMount)> {
    let (before, after) = line.split_once(" - ")?;
    let mut mount_fields = before.split(' ').skip(3);
    let (root, point, options) = (
        mount_fields.next()?,
        mount_fields.next()?,
        mount_fields.next()?,
    );
    let mut source_fields = after.split(' ').skip(1);
    let (device, fs_options) = (source_fields.next()?, source_fields.next()?);
    let raw = root
        .strip_prefix('/')
        .filter(|name| name.starts_with("loop"));
    let name = raw.or_else(|| device.strip_prefix("/dev/"));
    let uuid = name.and_then(|name| loops.get(name)?.file_stem()?.to_str());
    let readonly = |options: &str| options.split(',').any(|option| option == "ro");
    let seen = ObservedMount {
        uuid: uuid.map(str::to_owned),
        raw: raw.is_some(),
        readonly: readonly(options) || readonly(fs_options),
    };
    Some((point, seen))
}

/// The paths in a volume's directory of the kubelet, without the staging path, which the kubelet makes, and without the content
/// of volumes.
fn paths(volume: &Path, table: &str, found: &mut BTreeSet<String>) -> Result<()> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let is_mounted = |path: &Path| {
        let point = text(path);
        table
            .lines()
            .any(|line| line.split(' ').nth(4) == Some(&point))
    };
    for name in names(volume)? {
        let path = volume.join(&name);
        if name != "staging" {
            found.insert(text(&path));
        }
        if !is_mounted(&path) && path.is_dir() {
            found.extend(names(&path)?.iter().map(|inner| text(&path.join(inner))));
        }
    }
    Ok(())
}

/// The names in a folder, without hidden files: those are locks, which stay.
fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(none) if none.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| folder.display().to_string()),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') {
            names.push(name);
        }
    }
    Ok(names)
}
