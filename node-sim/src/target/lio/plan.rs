//! PURE: computes the operations from the actual to the desired state of LIO, in an order that is safe to interrupt.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;

use super::configfs::{BACKSTORES, Backstore, ConfigfsState, Op};
use crate::target::{LogicalUnit, Target};

/// Demo mode: any initiator may log in and write. The kernel caches its ACL, so that it also sees LUNs that are mapped later.
const ATTRIBS: [(&str, &str); 3] = [
    ("generate_node_acls", "1"),
    ("cache_dynamic_acls", "1"),
    ("demo_mode_write_protect", "0"),
];

/// Whether to open portals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Portals {
    /// Keep open portals that should be open; open no others.
    Keep,
    /// Open all portals that should be open.
    Open,
}

/// Refuses names that are not a valid single file name.
pub(super) fn check(target: &Target) -> io::Result<()> {
    let plain = |name: &str| {
        !name.is_empty()
            && name.len() <= 223
            && !name.starts_with('.')
            && name
                .bytes()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b':'))
    };
    let names = std::iter::once(&target.iqn).chain(target.luns.values().map(|unit| &unit.serial));
    match names.into_iter().find(|name| !plain(name)) {
        None => Ok(()),
        Some(name) => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{name:?}: a name may have only letters, digits, '-', '.' and ':'"),
        )),
    }
}

/// The operations from the actual state (`None`: no such target) to `target`. Empty if they are equal.
pub(super) fn target(target: &Target, state: Option<&ConfigfsState>, portals: Portals) -> Vec<Op> {
    let group = group(&target.iqn);
    let mut ops = Vec::new();
    let blank = ConfigfsState::default();
    let state = state.unwrap_or(&blank);
    if *state == blank {
        ops.push(Op::Mkdir("iscsi".to_owned()));
        ops.push(Op::Mkdir(format!("iscsi/{}", target.iqn)));
        ops.push(Op::Mkdir(group.clone()));
    }
    let attrib = |name: &str, value: &str| {
        let differs = state.attribs.get(name).is_none_or(|now| now != value);
        differs.then(|| Op::Write(format!("{group}/attrib/{name}"), value.to_owned()))
    };
    ops.extend(
        ATTRIBS
            .iter()
            .filter_map(|(name, value)| attrib(name, value)),
    );
    // Set the secrets before authentication is required, and remove them after it is no longer required.
    let secrets = secrets(target, state, &group);
    if target.chap.is_some() {
        ops.extend(secrets);
        ops.extend(attrib("authentication", "1"));
    } else {
        ops.extend(attrib("authentication", "0"));
        ops.extend(secrets);
    }
    ops.extend(luns(target, state, &group));
    if !state.enabled {
        ops.push(Op::Write(format!("{group}/enable"), "1".to_owned()));
    }
    let wanted: BTreeSet<SocketAddr> = if target.enabled {
        target.portals.iter().copied().collect()
    } else {
        BTreeSet::new()
    };
    for portal in state.portals.difference(&wanted) {
        ops.push(Op::Rmdir(format!("{group}/np/{portal}")));
    }
    if portals == Portals::Open {
        for portal in wanted.difference(&state.portals) {
            ops.push(Op::Mkdir(format!("{group}/np/{portal}")));
        }
    }
    ops
}

fn secrets(target: &Target, state: &ConfigfsState, group: &str) -> Vec<Op> {
    let chap = target.chap.as_ref();
    let mutual = chap.and_then(|chap| chap.mutual.as_ref());
    let wanted = [
        ("userid", chap.map(|chap| &chap.user)),
        ("password", chap.map(|chap| &chap.password)),
        ("userid_mutual", mutual.map(|mutual| &mutual.user)),
        ("password_mutual", mutual.map(|mutual| &mutual.password)),
    ];
    wanted
        .into_iter()
        .filter_map(|(name, value)| {
            // The kernel uses the word NULL for "none", in writes and reads.
            let now = state.auth.get(name).map(String::as_str);
            let now = now.filter(|now| !matches!(*now, "" | "NULL"));
            (now != value.map(String::as_str)).then(|| {
                let value = value.map_or("NULL", String::as_str).to_owned();
                Op::Write(format!("{group}/auth/{name}"), value)
            })
        })
        .collect()
}

fn luns(target: &Target, state: &ConfigfsState, group: &str) -> Vec<Op> {
    let mut ops = Vec::new();
    let wanted = |lun: &u16| target.luns.get(lun).map(|unit| &unit.serial);
    for (lun, backstore) in &state.luns {
        if wanted(lun).is_none() || backstore.as_ref() != wanted(lun) {
            ops.extend(lun_removal(group, *lun, backstore.as_deref()));
        }
    }
    for (lun, unit) in &target.luns {
        let serial = &unit.serial;
        if state.luns.get(lun) != Some(&Some(serial.clone())) {
            ops.push(Op::Mkdir(format!("{group}/lun/lun_{lun}")));
            ops.push(Op::Link {
                at: format!("{group}/lun/lun_{lun}/{serial}"),
                to: format!("{BACKSTORES}/{serial}"),
            });
        }
    }
    ops
}

fn lun_removal(group: &str, lun: u16, backstore: Option<&str>) -> Vec<Op> {
    let folder = format!("{group}/lun/lun_{lun}");
    backstore
        .map(|name| Op::Unlink(format!("{folder}/{name}")))
        .into_iter()
        .chain([Op::Rmdir(folder.clone())])
        .collect()
}

/// Removes a target: first new sessions are refused, then existing ones are dropped, then the rest is removed from the leaves up.
pub(super) fn removal(iqn: &str, state: &ConfigfsState) -> Vec<Op> {
    let group = group(iqn);
    let mut ops: Vec<Op> = state
        .portals
        .iter()
        .map(|portal| Op::Rmdir(format!("{group}/np/{portal}")))
        .collect();
    if state.enabled {
        ops.push(Op::Write(format!("{group}/enable"), "0".to_owned()));
    }
    for (lun, backstore) in &state.luns {
        ops.extend(lun_removal(&group, *lun, backstore.as_deref()));
    }
    ops.push(Op::Rmdir(group));
    ops.push(Op::Rmdir(format!("iscsi/{iqn}")));
    ops
}

/// Creates a backstore on a block device.
pub(super) fn backstore(unit: &LogicalUnit, device: &str) -> Vec<Op> {
    let dir = format!("{BACKSTORES}/{}", unit.serial);
    let write = |file: &str, value: &str| Op::Write(format!("{dir}/{file}"), value.to_owned());
    let attempt = |file: &str, value: &str| Op::Try(format!("{dir}/{file}"), value.to_owned());
    vec![
        Op::Mkdir(BACKSTORES.to_owned()),
        Op::Mkdir(dir.clone()),
        write("control", &format!("udev_path={device}")),
        write("udev_path", device),
        write("wwn/vpd_unit_serial", &unit.serial),
        attempt("wwn/vendor_id", &unit.vendor),
        attempt("wwn/product_id", &unit.product),
        attempt("wwn/revision", &unit.revision),
        write("enable", "1"),
        attempt("attrib/emulate_tpu", if unit.unmap { "1" } else { "0" }),
    ]
}

/// True if this is the correct backstore of the unit.
pub(super) fn is_backstore(unit: &LogicalUnit, device: &str, state: Option<&Backstore>) -> bool {
    state
        .is_some_and(|state| state.enabled && state.device == device && state.serial == unit.serial)
}

/// Removes a backstore.
pub(super) fn backstore_removal(serial: &str) -> Vec<Op> {
    vec![Op::Rmdir(format!("{BACKSTORES}/{serial}"))]
}

fn group(iqn: &str) -> String {
    format!("iscsi/{iqn}/tpgt_1")
}

#[cfg(test)]
pub(super) mod tests;
