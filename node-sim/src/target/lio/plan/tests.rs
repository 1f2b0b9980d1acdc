use std::collections::BTreeMap;

use super::*;
use crate::target::{Chap, Credential};

pub(in super::super) const IQN: &str = "iqn.2000-01.com.synology:t";
pub(in super::super) const SERIAL: &str = "13a3cd1e-f296-4d4b-b712-a85c139f9dac";
const GROUP: &str = "iscsi/iqn.2000-01.com.synology:t/tpgt_1";

pub(in super::super) fn unit() -> LogicalUnit {
    LogicalUnit {
        file: "/luns/1.img".into(),
        serial: SERIAL.into(),
        naa: String::new(),
        vendor: "SYNOLOGY".into(),
        product: "Storage".into(),
        revision: "4.0".into(),
        unmap: true,
        write_cache: true,
    }
}

pub(in super::super) fn target() -> Target {
    Target {
        iqn: IQN.into(),
        enabled: true,
        max_sessions: 0,
        portals: vec![
            "10.9.0.1:3260".parse().unwrap(),
            "[2001:db8::1]:3260".parse().unwrap(),
        ],
        luns: BTreeMap::from([(1, unit())]),
        chap: Some(Chap {
            user: "joe".into(),
            password: "secretsecret".into(),
            mutual: Some(Credential {
                user: "nas".into(),
                password: "othersecret1".into(),
            }),
        }),
    }
}

/// The actual state after `target()` was created.
fn made() -> ConfigfsState {
    let text = |pairs: &[(&str, &str)]| {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    };
    ConfigfsState {
        enabled: true,
        attribs: text(&[
            ("authentication", "1"),
            ("generate_node_acls", "1"),
            ("cache_dynamic_acls", "1"),
            ("demo_mode_write_protect", "0"),
            ("login_timeout", "15"),
        ]),
        auth: text(&[
            ("authenticate_target", "1"),
            ("userid", "joe"),
            ("password", "secretsecret"),
            ("userid_mutual", "nas"),
            ("password_mutual", "othersecret1"),
        ]),
        luns: BTreeMap::from([(1, Some(SERIAL.to_owned()))]),
        portals: target().portals.into_iter().collect(),
    }
}

/// The operations as lines, values of writes included, `GROUP` as `G`.
fn lines(ops: &[Op]) -> Vec<String> {
    let line = |op: &Op| {
        let value = match op {
            Op::Write(_, value) | Op::Try(_, value) => format!(" {value}"),
            Op::Mkdir(_) | Op::Rmdir(_) | Op::Link { .. } | Op::Unlink(_) => String::new(),
        };
        format!("{op:?}{value}").replace(GROUP, "G")
    };
    ops.iter().map(line).collect()
}

#[test]
fn a_new_target_opens_last() {
    let ops = super::target(&target(), None, Portals::Open);
    assert_eq!(
        lines(&ops),
        [
            "mkdir iscsi",
            "mkdir iscsi/iqn.2000-01.com.synology:t",
            "mkdir G",
            "write to G/attrib/generate_node_acls 1",
            "write to G/attrib/cache_dynamic_acls 1",
            "write to G/attrib/demo_mode_write_protect 0",
            "write to G/auth/userid joe",
            "write to G/auth/password secretsecret",
            "write to G/auth/userid_mutual nas",
            "write to G/auth/password_mutual othersecret1",
            "write to G/attrib/authentication 1",
            "mkdir G/lun/lun_1",
            "link G/lun/lun_1/13a3cd1e-f296-4d4b-b712-a85c139f9dac to core/iblock_3260/13a3cd1e-f296-4d4b-b712-a85c139f9dac",
            "write to G/enable 1",
            "mkdir G/np/10.9.0.1:3260",
            "mkdir G/np/[2001:db8::1]:3260",
        ]
    );
    let closed = super::target(&target(), None, Portals::Keep);
    assert_eq!(closed, ops[..14]);
    assert!(!format!("{ops:?}").contains("secret"));
}

#[test]
fn nothing_to_do_if_the_state_is_as_desired() {
    for portals in [Portals::Keep, Portals::Open] {
        assert_eq!(super::target(&target(), Some(&made()), portals), []);
    }
}

#[test]
fn chap_is_turned_off_before_the_secrets_are_removed() {
    let bare = Target {
        chap: None,
        ..target()
    };
    let ops = super::target(&bare, Some(&made()), Portals::Open);
    assert_eq!(
        lines(&ops),
        [
            "write to G/attrib/authentication 0",
            "write to G/auth/userid NULL",
            "write to G/auth/password NULL",
            "write to G/auth/userid_mutual NULL",
            "write to G/auth/password_mutual NULL",
        ]
    );
    let mut shown = made();
    shown.attribs.insert("authentication".into(), "0".into());
    for value in shown.auth.values_mut() {
        *value = "NULL".into();
    }
    assert_eq!(super::target(&bare, Some(&shown), Portals::Open), []);
}

#[test]
fn a_disabled_target_has_no_portals_and_keeps_its_sessions() {
    let disabled = Target {
        enabled: false,
        ..target()
    };
    let ops = super::target(&disabled, Some(&made()), Portals::Open);
    assert_eq!(
        lines(&ops),
        ["rmdir G/np/10.9.0.1:3260", "rmdir G/np/[2001:db8::1]:3260"]
    );
}

#[test]
fn another_unit_at_the_same_index_replaces_the_old_one() {
    let mut changed = target();
    changed.luns.get_mut(&1).unwrap().serial = "other".into();
    let mut shown = made();
    // A LUN that was unfinished when the simulator was killed.
    shown.luns.insert(2, None);
    assert_eq!(
        lines(&super::target(&changed, Some(&shown), Portals::Open)),
        [
            "unlink G/lun/lun_1/13a3cd1e-f296-4d4b-b712-a85c139f9dac",
            "rmdir G/lun/lun_1",
            "rmdir G/lun/lun_2",
            "mkdir G/lun/lun_1",
            "link G/lun/lun_1/other to core/iblock_3260/other",
        ]
    );
}

#[test]
fn removal_drops_sessions_first_and_goes_from_the_leaves_up() {
    assert_eq!(
        lines(&removal(IQN, &made())),
        [
            "rmdir G/np/10.9.0.1:3260",
            "rmdir G/np/[2001:db8::1]:3260",
            "write to G/enable 0",
            "unlink G/lun/lun_1/13a3cd1e-f296-4d4b-b712-a85c139f9dac",
            "rmdir G/lun/lun_1",
            "rmdir G",
            "rmdir iscsi/iqn.2000-01.com.synology:t",
        ]
    );
}

#[test]
fn names_that_are_paths_are_refused() {
    check(&target()).unwrap();
    for name in ["", "../core", "a/b", ".", "a b"] {
        let evil = Target {
            iqn: name.into(),
            ..target()
        };
        assert!(check(&evil).is_err(), "{name}");
        let mut evil = target();
        evil.luns.get_mut(&1).unwrap().serial = name.into();
        assert!(check(&evil).is_err(), "{name}");
    }
}
