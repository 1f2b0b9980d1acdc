use std::collections::BTreeSet;

use serde_json::json;

use crate::nas::effect::Effect;
use crate::nas::model::Generation;
use crate::nas::tests::{GIB, LUN, NasFixture, TARGET};

fn create(sim: &mut NasFixture, overrides: &[(&str, &str)]) -> u32 {
    let mut params = vec![("name", "x"), ("iqn", "iqn.2000-01.com.synology:x")];
    params.extend_from_slice(overrides);
    sim.code(TARGET, "create", &params)
}

#[test]
fn create_refuses_each_bad_parameter_with_its_code() {
    let long = format!("iqn.2000-01.com.synology:{}", "a".repeat(200));
    for (overrides, code) in [
        (vec![("name", "")], 18_990_700),
        (vec![("name", "a_b")], 18_990_700),
        (vec![("iqn", "x")], 18_990_004),
        (vec![("iqn", "iqn.2000-01.com.synology:a b")], 18_990_004),
        (vec![("iqn", &*long)], 18_990_004),
        (vec![("auth_type", "3")], 18_990_702),
        (vec![("auth_type", "none")], 18_990_702),
        (vec![("auth_type", "1")], 18_990_708),
        (
            vec![("auth_type", "1"), ("user", "u"), ("password", "short")],
            18_990_708,
        ),
        (
            vec![
                ("auth_type", "2"),
                ("user", "u"),
                ("password", "123456789012"),
            ],
            18_990_708,
        ),
        (vec![("max_sessions", "many")], 120),
        (vec![("max_recv_seg_bytes", "5")], 120),
        (vec![("has_data_checksum", "5")], 120),
    ] {
        let mut sim = NasFixture::new();
        assert_eq!(create(&mut sim, &overrides), code, "{overrides:?}");
        assert!(
            sim.nas.state.targets.len() == 0,
            "{overrides:?} left a target behind"
        );
    }
    let mut sim = NasFixture::new();
    assert_eq!(sim.code(TARGET, "create", &[("name", "x")]), 114);
    assert_eq!(
        sim.code(TARGET, "create", &[("iqn", "iqn.2000-01.x:x")]),
        114
    );
}

#[test]
fn create_accepts_what_clients_send() {
    for overrides in [
        vec![
            ("name", "Synology iSCSI Target"),
            ("auth_type", "0"),
            ("max_sessions", "0"),
        ],
        vec![
            ("auth_type", "1"),
            ("user", "u"),
            ("password", "123456789012"),
            ("chap", "true"),
            ("password_confirm", "x"),
        ],
        vec![
            ("auth_type", "2"),
            ("user", "u"),
            ("password", "123456789012"),
            ("mutual_user", "m"),
            ("mutual_password", "abcdefghijkl"),
        ],
        vec![
            ("has_header_checksum", "true"),
            ("has_data_checksum", "false"),
            ("max_recv_seg_bytes", "4096"),
        ],
    ] {
        let mut sim = NasFixture::new();
        assert_eq!(create(&mut sim, &overrides), 0, "{overrides:?}");
        let target = sim.ok(TARGET, "get", &[("target_id", "\"1\"")])["target"].clone();
        assert_eq!(
            (&target["password"], &target["mutual_password"]),
            (&json!(""), &json!("")),
            "passwords come back empty"
        );
    }
}

#[test]
fn names_and_iqns_are_unique_and_numbers_are_reused() {
    // Behaviour 14 of dsm-web-api.md section 11.
    let mut sim = NasFixture::new();
    assert_eq!((sim.target("a"), sim.target("b")), (1, 2));
    assert_eq!(create(&mut sim, &[("name", "a")]), 18_990_744);
    assert_eq!(
        create(&mut sim, &[("iqn", "iqn.2000-01.com.synology:b")]),
        18_990_745
    );
    assert_eq!(
        sim.code(TARGET, "set", &[("target_id", "\"1\""), ("name", "b")]),
        18_990_744
    );
    assert_eq!(
        sim.code(
            TARGET,
            "set",
            &[
                ("target_id", "\"1\""),
                ("iqn", "iqn.2000-01.com.synology:b")
            ]
        ),
        18_990_745
    );
    assert_eq!(create(&mut sim, &[]), 18_990_542, "the model's limit");
    sim.ok(TARGET, "delete", &[("target_id", "\"1\"")]);
    assert_eq!(sim.target("c"), 1);
}

#[test]
fn target_ids_are_json_strings_and_only_get_accepts_names() {
    let mut sim = NasFixture::new();
    sim.target("alpha");
    for (id, code) in [
        ("\"1\"", 0),
        ("\"alpha\"", 0),
        ("alpha", 0),
        ("1", 18_990_710),
        ("\"2\"", 18_990_710),
        ("[1]", 18_990_710),
    ] {
        assert_eq!(
            sim.code(TARGET, "get", &[("target_id", id)]),
            code,
            "get {id}"
        );
    }
    assert_eq!(sim.code(TARGET, "get", &[]), 114);
    for method in ["set", "enable", "disable", "map_lun", "unmap_lun", "delete"] {
        for id in ["\"alpha\"", "1", "\"2\""] {
            let params = [("target_id", id), ("lun_uuids", "[]")];
            assert_eq!(
                sim.code(TARGET, method, &params),
                18_990_710,
                "{method} {id}"
            );
        }
    }
    sim.nas.settings.target_names_in_changes = true;
    assert_eq!(sim.code(TARGET, "delete", &[("target_id", "\"alpha\"")]), 0);
}

#[test]
fn the_lowest_free_index_is_taken() {
    // Behaviour 15 of dsm-web-api.md section 11.
    let mut sim = NasFixture::new();
    let id = sim.target("t");
    let uuids: Vec<String> = ["a", "b", "c"]
        .iter()
        .map(|name| sim.lun(name, "BLUN", GIB))
        .collect();
    let quoted = format!("\"{id}\"");
    let map = |sim: &mut NasFixture, method: &str, uuid: &str| {
        sim.ok(
            TARGET,
            method,
            &[
                ("target_id", &quoted),
                ("lun_uuids", &format!("[\"{uuid}\"]")),
            ],
        );
        sim.nas
            .state
            .targets
            .get(&id)
            .unwrap()
            .luns
            .keys()
            .copied()
            .collect::<Vec<_>>()
    };
    map(&mut sim, "map_lun", &uuids[0]);
    assert_eq!(map(&mut sim, "map_lun", &uuids[1]), [1, 2]);
    assert_eq!(
        map(&mut sim, "map_lun", &uuids[1]),
        [1, 2],
        "mapping twice changes nothing"
    );
    assert_eq!(map(&mut sim, "unmap_lun", &uuids[0]), [2]);
    assert_eq!(map(&mut sim, "map_lun", &uuids[2]), [1, 2]);
    assert_eq!(sim.nas.state.targets.get(&id).unwrap().luns[&1], uuids[2]);
    let gone = [("target_id", &*quoted), ("lun_uuids", "[\"gone\"]")];
    assert_eq!(sim.code(TARGET, "map_lun", &gone), 18_990_505);
}

#[test]
fn deleting_a_target_leaves_its_luns() {
    // Behaviours 6 and 7 of dsm-web-api.md section 11.
    let mut sim = NasFixture::new();
    sim.target("t");
    let uuid = sim.lun("a", "BLUN", GIB);
    sim.ok(LUN, "map_target", &[("uuid", &uuid), ("target_ids", "[1]")]);
    let effects = sim
        .call(TARGET, 1, "delete", &[("target_id", "\"1\"")])
        .effects;
    assert_eq!(
        effects,
        BTreeSet::from([Effect::Unexport("iqn.2000-01.com.synology:t".to_owned())])
    );
    assert_eq!(sim.get(&uuid, "[\"is_mapped\"]")["is_mapped"], false);
}

#[test]
fn a_new_iqn_is_a_new_export() {
    let mut sim = NasFixture::new();
    sim.target("t");
    let effects = sim
        .call(
            TARGET,
            1,
            "set",
            &[
                ("target_id", "\"1\""),
                ("iqn", "iqn.2000-01.com.synology:u"),
            ],
        )
        .effects;
    assert_eq!(
        effects,
        BTreeSet::from([
            Effect::Unexport("iqn.2000-01.com.synology:t".to_owned()),
            Effect::Export(1)
        ])
    );
    assert_eq!(
        sim.call(TARGET, 1, "enable", &[("target_id", "\"1\"")])
            .effects,
        BTreeSet::new(),
        "it is enabled already"
    );
    assert_eq!(
        sim.call(TARGET, 1, "disable", &[("target_id", "\"1\"")])
            .effects,
        BTreeSet::from([Effect::Export(1)])
    );
    let target = sim.ok(
        TARGET,
        "get",
        &[("target_id", "\"1\""), ("additional", "[\"status\"]")],
    )["target"]
        .clone();
    assert_eq!(
        (&target["status"], &target["is_enabled"]),
        (&json!("offline"), &json!(false))
    );
}

#[test]
fn lists_filter_by_lun() {
    let mut sim = NasFixture::new();
    sim.target("t");
    sim.target("u");
    let uuid = sim.lun("a", "BLUN", GIB);
    sim.ok(LUN, "map_target", &[("uuid", &uuid), ("target_ids", "[2]")]);
    let rows = |sim: &mut NasFixture, params: &[(&str, &str)]| {
        sim.ok(TARGET, "list", params)["targets"]
            .as_array()
            .unwrap()
            .len()
    };
    assert_eq!(rows(&mut sim, &[]), 2);
    assert_eq!(rows(&mut sim, &[("lun_uuid", &uuid)]), 1);
    assert_eq!(rows(&mut sim, &[("lun_uuid", "\"gone\"")]), 0);
}

#[test]
fn dsm_6_has_the_access_list_on_the_target() {
    let mut sim = NasFixture::with(crate::nas::timing::Timing::default(), Generation::Six);
    sim.target("t");
    let row = sim.ok(TARGET, "list", &[("additional", "[\"acls\"]")])["targets"][0].clone();
    assert!(
        row.get("is_default_target").is_none() && row["acls"].is_array(),
        "{row}"
    );
}
