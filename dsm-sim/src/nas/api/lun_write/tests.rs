use std::collections::BTreeSet;

use crate::Latency;
use crate::nas::effect::{Effect, Image};
use crate::nas::model::Generation;
use crate::nas::tests::{GIB, LUN, NasFixture, TARGET};

/// The code of a create with valid parameters, overridden by these.
fn create(sim: &mut NasFixture, overrides: &[(&str, &str)]) -> u32 {
    let mut params = vec![
        ("name", "x"),
        ("type", "BLUN"),
        ("location", "/volume1"),
        ("size", "1073741824"),
    ];
    params.extend_from_slice(overrides);
    sim.code(LUN, "create", &params)
}

#[test]
fn create_refuses_each_bad_parameter_with_its_code() {
    let long = "a".repeat(256);
    for (overrides, code) in [
        (vec![("name", "a_b")], 18_990_503),
        (vec![("name", "a b")], 18_990_503),
        (vec![("name", "a/b")], 18_990_503),
        (vec![("name", "")], 18_990_503),
        (vec![("name", &*long)], 18_990_503),
        (vec![("type", "blun")], 18_990_500),
        (vec![("type", "SINK")], 18_990_500),
        (vec![("location", "/volume9")], 18_990_501),
        (vec![("location", "volume1")], 18_990_501),
        (vec![("size", "0")], 18_990_502),
        (vec![("size", "-5")], 18_990_502),
        (vec![("size", "1GiB")], 18_990_502),
        (vec![("size", "\"5\"")], 18_990_502),
        (
            vec![("dev_attribs", "[{\"dev_attrib\":\"x\",\"enable\":1}]")],
            18_990_622,
        ),
        (vec![("dev_attribs", "nonsense")], 18_990_622),
        (vec![("direct_io_pattern", "1")], 18_990_635),
        (vec![("type", "BLUN"), ("location", "/volume2")], 18_990_318),
        (vec![("type", "BLOCK")], 18_991_205),
        (
            vec![("type", "BLUN_THICK"), ("size", "107374182401")],
            18_990_002,
        ),
    ] {
        let mut sim = NasFixture::new();
        assert_eq!(create(&mut sim, &overrides), code, "{overrides:?}");
        assert!(
            sim.nas.state.luns.len() == 0,
            "{overrides:?} left a LUN behind"
        );
    }
    for name in ["name", "type", "location", "size"] {
        let params = [
            ("name", "x"),
            ("type", "BLUN"),
            ("location", "/volume1"),
            ("size", "5"),
        ];
        let params: Vec<_> = params.into_iter().filter(|pair| pair.0 != name).collect();
        assert_eq!(
            NasFixture::new().code(LUN, "create", &params),
            114,
            "without {name}"
        );
    }
}

#[test]
fn create_accepts_what_dsm_accepts() {
    let name_200 = "a".repeat(200);
    for overrides in [
        vec![("name", "A-1.b:c\\d")],
        vec![("name", "\"quoted\"")],
        vec![("name", &*name_200)],
        vec![("size", "1")],
        vec![("dev_attribs", "null")],
        vec![("size", "1073741825")],
        vec![("size", "9007199254740993")],
        vec![("type", "ADV"), ("location", "/volume2")],
        vec![("type", "THIN"), ("location", "\"/volume2\"")],
        vec![("type", "FILE"), ("location", "/volume2")],
        vec![("type", "\"BLUN_THICK\""), ("size", "107374182400")],
        vec![
            ("direct_io_pattern", "3"),
            ("dev_attribs", "[]"),
            ("description", "raw words"),
            ("unknown", "{}"),
        ],
    ] {
        let mut sim = NasFixture::new();
        assert_eq!(create(&mut sim, &overrides), 0, "{overrides:?}");
        assert_eq!(sim.nas.state.luns.len(), 1);
    }
}

#[test]
fn a_name_of_255_characters_is_created_and_reported_as_a_failure() {
    // Behaviour 24 of dsm-web-api.md section 11.
    let mut sim = NasFixture::new();
    let name = "a".repeat(255);
    let reply = sim.call(
        LUN,
        1,
        "create",
        &[
            ("name", &name),
            ("type", "BLUN"),
            ("location", "/volume1"),
            ("size", "5"),
        ],
    );
    assert_eq!(reply.answer.unwrap_err().code, 18_990_068);
    assert!(matches!(reply.effects.first(), Some(Effect::File(_))));
    assert_eq!(sim.get(&name, "[]")["size"], 5);
}

#[test]
fn names_are_unique_on_the_nas() {
    // Behaviour 14 of dsm-web-api.md section 11.
    let mut sim = NasFixture::new();
    sim.lun("a", "BLUN", GIB);
    assert_eq!(
        create(
            &mut sim,
            &[("name", "a"), ("type", "ADV"), ("location", "/volume2")]
        ),
        18_990_538
    );
    sim.lun("b", "BLUN", GIB);
    assert_eq!(
        sim.code(LUN, "set", &[("uuid", "b"), ("new_name", "a")]),
        18_990_538
    );
    assert_eq!(
        sim.code(LUN, "set", &[("uuid", "b"), ("new_name", "b")]),
        0,
        "it may keep its own name"
    );
}

#[test]
fn the_model_limits_the_number_of_luns() {
    let mut sim = NasFixture::new();
    for name in ["a", "b", "c", "d"] {
        sim.lun(name, "BLUN", GIB);
    }
    assert_eq!(create(&mut sim, &[]), 18_990_541);
}

#[test]
fn thick_luns_need_space_and_thin_ones_do_not() {
    // Behaviour 11 of dsm-web-api.md section 11.
    let mut sim = NasFixture::new();
    sim.lun("thin", "BLUN", 500 * GIB);
    let thick = sim.lun("thick", "BLUN_THICK", 60 * GIB);
    assert_eq!(
        create(
            &mut sim,
            &[("type", "BLUN_THICK"), ("size", &(41 * GIB).to_string())]
        ),
        18_990_002
    );
    assert_eq!(
        sim.code(
            LUN,
            "set",
            &[("uuid", &thick), ("new_size", &(101 * GIB).to_string())]
        ),
        18_990_002
    );
    assert_eq!(sim.get(&thick, "[]")["size"], 60 * GIB);
    assert_eq!(
        sim.code(
            LUN,
            "set",
            &[("uuid", &thick), ("new_size", &(100 * GIB).to_string())]
        ),
        0
    );
    assert_eq!(
        sim.code(
            LUN,
            "set",
            &[("uuid", "thin"), ("new_size", &(900 * GIB).to_string())]
        ),
        0
    );
    let volume = sim.ok(
        "SYNO.Core.Storage.Volume",
        "get",
        &[("volume_path", "/volume1")],
    )["volume"]
        .clone();
    assert_eq!(
        (&volume["size_free_byte"], &volume["eppool_used_byte"]),
        (&"0".into(), &(100 * GIB).to_string().into())
    );
}

#[test]
fn a_lun_never_shrinks_and_its_own_size_is_fine() {
    // Behaviour 9 of dsm-web-api.md section 11.
    let mut sim = NasFixture::new();
    let uuid = sim.lun("a", "BLUN", 10 * GIB);
    let shrink = [
        ("uuid", &*uuid),
        ("new_size", "1073741824"),
        ("new_name", "b"),
        ("description", "changed"),
    ];
    assert_eq!(sim.code(LUN, "set", &shrink), 18_990_502);
    assert_eq!(sim.get(&uuid, "[]")["name"], "a", "nothing is changed");
    assert_eq!(
        sim.code(
            LUN,
            "set",
            &[("uuid", &uuid), ("new_size", &(10 * GIB).to_string())]
        ),
        0
    );
}

#[test]
fn a_mapped_lun_grows() {
    // Behaviour 10 of dsm-web-api.md section 11.
    let mut sim = NasFixture::new();
    let uuid = sim.lun("a", "BLUN", 10 * GIB);
    sim.target("t");
    sim.ok(LUN, "map_target", &[("uuid", &uuid), ("target_ids", "[1]")]);
    let reply = sim.call(
        LUN,
        1,
        "set",
        &[("uuid", &uuid), ("new_size", &(15 * GIB).to_string())],
    );
    // Its target is exported again: some backends must be informed of the new file size.
    assert_eq!(
        reply.effects,
        BTreeSet::from([Effect::File(uuid.clone()), Effect::Export(1)])
    );
    assert_eq!(sim.get(&uuid, "[]")["size"], 15 * GIB);
}

#[test]
fn set_describes_renames_and_changes_attributes() {
    let mut sim = NasFixture::new();
    let uuid = sim.lun("a", "BLUN", GIB);
    let set = [
        ("uuid", "a"),
        ("new_name", "b"),
        ("description", "{\"json\": \"kept as it came\"}"),
        (
            "dev_attribs",
            "[{\"dev_attrib\": \"emulate_tpu\", \"enable\": 1}]",
        ),
    ];
    assert_eq!(sim.code(LUN, "set", &set), 0);
    let lun = sim.get(&uuid, "[]");
    assert_eq!(
        (&lun["name"], &lun["dev_attribs_bitmap"]),
        (&"b".into(), &31.into())
    );
    assert_eq!(lun["description"], "{\"json\": \"kept as it came\"}");
    assert_eq!(
        sim.code(LUN, "set", &[("uuid", "nobody"), ("new_size", "5")]),
        18_990_505
    );
    assert_eq!(
        sim.code(LUN, "set", &[("uuid", "b"), ("new_type", "BLUN_THICK")]),
        18_990_500
    );
    assert_eq!(
        sim.code(LUN, "set", &[("uuid", "b"), ("new_location", "/volume2")]),
        18_990_501
    );
}

#[test]
fn a_new_lun_is_locked_for_a_while_and_may_be_deleted_meanwhile() {
    // Behaviour 1 of dsm-web-api.md section 11.
    let mut sim = NasFixture::with(Latency::Ds918.timing(), Generation::Seven);
    let uuid = sim.lun("a", "BLUN", GIB);
    let locked = |sim: &mut NasFixture| {
        sim.get(&uuid, "[\"is_action_locked\",\"status\"]")["is_action_locked"].clone()
    };
    assert_eq!(locked(&mut sim), true);
    sim.now += 1_200;
    assert_eq!(locked(&mut sim), false);
    let other = sim.lun("b", "BLUN", GIB);
    assert_eq!(sim.code(LUN, "delete", &[("uuid", &other)]), 0);
}

#[test]
fn a_deleted_lun_is_listed_for_a_while() {
    // Behaviours 3 and 13 of dsm-web-api.md section 11.
    let mut sim = NasFixture::with(Latency::Ds918.timing(), Generation::Seven);
    sim.nas.settings.deleted_luns_stay_listed = true;
    let uuid = sim.lun("a", "BLUN_THICK", 40 * GIB);
    assert_eq!(sim.code(LUN, "delete", &[("uuid", &uuid)]), 0);
    let list = [("additional", "[\"is_action_locked\"]")];
    let listed = sim.ok(LUN, "list", &list)["luns"].take();
    assert_eq!(listed[0]["is_action_locked"], true);
    // `get` does not find it from the start: jt relies on that on a DS918+.
    assert_eq!(sim.code(LUN, "get", &[("uuid", &uuid)]), 18_990_531);
    for (method, params) in [
        ("delete", vec![("uuid", &*uuid)]),
        ("set", vec![("uuid", &*uuid), ("new_size", "99999999999")]),
        ("map_target", vec![("uuid", &*uuid), ("target_ids", "[]")]),
    ] {
        assert_eq!(sim.code(LUN, method, &params), 18_990_531, "{method}");
    }
    assert_eq!(
        create(&mut sim, &[("name", "a")]),
        18_990_538,
        "the name is not free yet"
    );
    sim.now += 2_000;
    let reply = sim.call(LUN, 1, "get", &[("uuid", &uuid)]);
    assert_eq!(reply.answer.unwrap_err().code, 18_990_531);
    assert_eq!(
        reply.effects,
        BTreeSet::from([Effect::Discard(Image::Lun(uuid))])
    );
    assert_eq!(
        create(
            &mut sim,
            &[("type", "BLUN_THICK"), ("size", &(70 * GIB).to_string())]
        ),
        18_990_002,
        "its space is not back"
    );
    sim.now += 60_000;
    assert_eq!(
        create(
            &mut sim,
            &[("type", "BLUN_THICK"), ("size", &(70 * GIB).to_string())]
        ),
        0
    );
}

#[test]
fn a_mapped_lun_may_be_deleted_and_its_mappings_vanish() {
    // Behaviour 5 of dsm-web-api.md section 11.
    let mut sim = NasFixture::new();
    let uuid = sim.lun("a", "BLUN", GIB);
    sim.target("t");
    sim.ok(LUN, "map_target", &[("uuid", &uuid), ("target_ids", "[1]")]);
    let effects = sim.call(LUN, 1, "delete", &[("uuid", &uuid)]).effects;
    assert_eq!(
        effects,
        BTreeSet::from([Effect::Export(1), Effect::Discard(Image::Lun(uuid))])
    );
    let target = sim.ok(
        TARGET,
        "get",
        &[("target_id", "\"1\""), ("additional", "[\"mapped_lun\"]")],
    );
    assert_eq!(target["target"]["mapped_luns"], serde_json::json!([]));
}

#[test]
fn the_list_form_of_delete_names_what_failed() {
    let mut sim = NasFixture::new();
    let uuid = sim.lun("a", "BLUN", GIB);
    let uuids = format!("[\"{uuid}\", \"gone\"]");
    let answer = sim
        .call(LUN, 1, "delete", &[("uuid", "\"\""), ("uuids", &uuids)])
        .answer
        .unwrap();
    assert_eq!(answer, Some(serde_json::json!([{"gone": 18_990_505}])));
    assert_eq!(
        sim.code(LUN, "delete", &[("uuid", "a")]),
        18_990_505,
        "by uuid alone, not by name"
    );
    assert_eq!(sim.code(LUN, "delete", &[]), 114);
}

#[test]
fn mapping_adds_and_unmapping_removes_only_what_is_named() {
    let mut sim = NasFixture::new();
    let uuid = sim.lun("a", "BLUN", GIB);
    let ids = (sim.target("t"), sim.target("u"));
    assert_eq!(ids, (1, 2));
    let mapped = |sim: &NasFixture| {
        sim.nas
            .state
            .targets
            .values()
            .map(|target| target.maps(&uuid))
            .collect::<Vec<_>>()
    };
    sim.ok(
        LUN,
        "map_target",
        &[("uuid", &uuid), ("target_ids", "[\"1\"]")],
    );
    sim.ok(
        LUN,
        "map_target",
        &[("uuid", &uuid), ("target_ids", "[1, 2]")],
    );
    assert_eq!(mapped(&sim), [true, true]);
    sim.ok(
        LUN,
        "unmap_target",
        &[("uuid", &uuid), ("target_ids", "[1]")],
    );
    sim.ok(
        LUN,
        "unmap_target",
        &[("uuid", &uuid), ("target_ids", "[1]")],
    );
    assert_eq!(mapped(&sim), [false, true]);
    for (uuid, ids, code) in [
        ("gone", "[1]", 18_990_505),
        ("a", "[1]", 18_990_505),
        (&*uuid, "[1, 9]", 18_990_710),
        (&*uuid, "[\"t\"]", 18_990_710),
        (&*uuid, "1", 18_990_517),
    ] {
        assert_eq!(
            sim.code(LUN, "map_target", &[("uuid", uuid), ("target_ids", ids)]),
            code,
            "{uuid} {ids}"
        );
    }
    assert_eq!(mapped(&sim), [false, true], "a refused call maps nothing");
    assert_eq!(sim.code(LUN, "map_target", &[("uuid", &uuid)]), 114);
}

#[test]
fn a_broken_volume_takes_no_luns() {
    let mut sim = NasFixture::new();
    for (status, code) in [
        ("crashed", 18_990_327),
        ("read_only", 18_990_327),
        ("degrade", 0),
    ] {
        let volumes = &mut sim.nas.state.volumes;
        let mut volume = volumes.get(&"/volume1".to_owned()).unwrap().clone();
        volume.status = status.to_owned();
        volumes.put(volume);
        assert_eq!(create(&mut sim, &[]), code, "{status}");
    }
}

#[test]
fn lists_filter_by_type_and_volume() {
    let mut sim = NasFixture::new();
    sim.lun("a", "BLUN", GIB);
    sim.lun("b", "FILE", GIB);
    assert_eq!(
        create(
            &mut sim,
            &[("name", "c"), ("type", "ADV"), ("location", "/volume2")]
        ),
        0
    );
    let mut names = |params: &[(&str, &str)]| {
        let luns = sim.ok(LUN, "list", params)["luns"].clone();
        luns.as_array()
            .unwrap()
            .iter()
            .map(|lun| lun["name"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
            .concat()
    };
    assert_eq!(names(&[]), "abc");
    assert_eq!(names(&[("types", "[\"BLUN\", \"ADV\"]")]), "ac");
    assert_eq!(names(&[("types", "[]")]), "");
    assert_eq!(names(&[("location", "\"/volume2\"")]), "c");
    assert_eq!(
        names(&[("location", "/volume1"), ("offset", "1"), ("limit", "1")]),
        "ab"
    );
    assert_eq!(sim.code(LUN, "list", &[("types", "BLUN")]), 18_990_517);
    assert_eq!(sim.code(LUN, "list", &[("types", "[\"NO\"]")]), 18_990_619);
    assert_eq!(
        sim.code(LUN, "list", &[("additional", "\"[\\\"status\\\"]\"")]),
        18_990_517
    );
}

#[test]
fn get_accepts_a_uuid_or_a_name() {
    let mut sim = NasFixture::new();
    let uuid = sim.lun("a", "BLUN", GIB);
    assert_eq!(sim.get("a", "[]")["uuid"], *uuid);
    assert_eq!(sim.get(&format!("\"{uuid}\""), "[]")["name"], "a");
    assert!(
        sim.get("a", "[]").get("status").is_none(),
        "only when asked for"
    );
    assert_eq!(sim.code(LUN, "get", &[("uuid", "\"\"")]), 18_990_505);
    assert_eq!(sim.code(LUN, "get", &[]), 114);
}

#[test]
fn a_malformed_uuid_is_a_bad_uuid() {
    let mut sim = NasFixture::new();
    sim.lun("a", "BLUN", GIB);
    let unknown = "0f5a1c9e-0000-4000-8000-000000000000";
    // The string that jt sent to a DS918+: as long as a uuid, but not one.
    let probe = "00000000-0000-0000-0000-0000pveprobe";
    let code = |sim: &mut NasFixture, uuid: &str| sim.code(LUN, "get", &[("uuid", uuid)]);
    for (uuid, want) in [
        (unknown, 18_990_531),
        (&unknown.to_uppercase(), 18_990_531),
        (probe, 18_990_505),
        ("b", 18_990_505),
        (&unknown.replace('-', ""), 18_990_505),
    ] {
        assert_eq!(code(&mut sim, uuid), want, "{uuid}");
    }
    sim.nas.settings.missing_lun_code = 18_990_505;
    sim.nas.settings.unknown_lun_name_code = 18_990_531;
    assert_eq!(code(&mut sim, unknown), 18_990_505);
    assert_eq!(code(&mut sim, "b"), 18_990_531);
}

#[test]
fn dsm_6_shows_less() {
    // dsm-web-api.md 11.1.
    let mut sim = NasFixture::with(crate::nas::timing::Timing::default(), Generation::Six);
    sim.lun("a", "BLUN", GIB);
    let lun = sim.ok(LUN, "list", &[("additional", "[\"acls\"]")])["luns"][0].clone();
    assert!(
        ["type_str", "retention", "scheduled_task", "acls"]
            .iter()
            .all(|name| lun.get(name).is_none()),
        "{lun}"
    );
    assert_eq!(lun["dev_attribs"].as_array().unwrap().len(), 4);
}
