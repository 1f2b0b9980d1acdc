use serde_json::{Value, json};

use crate::nas::effect::{Effect, Image};
use crate::nas::tests::{GIB, LUN, NasFixture, TARGET};

/// Takes a snapshot. Returns its uuid.
#[track_caller]
fn take(sim: &mut NasFixture, lun: &str, more: &[(&str, &str)]) -> String {
    let mut params = vec![("src_lun_uuid", lun)];
    params.extend_from_slice(more);
    let data = sim.ok(LUN, "take_snapshot", &params);
    data["snapshot_uuid"].as_str().unwrap().to_owned()
}

fn list(sim: &mut NasFixture, lun: &str) -> Vec<Value> {
    let data = sim.ok(LUN, "list_snapshot", &[("src_lun_uuid", lun)]);
    let rows = data["snapshots"].as_array().unwrap().clone();
    assert_eq!(data["count"], rows.len());
    rows
}

#[test]
fn a_snapshot_without_a_name_gets_one() {
    // Behaviour 17 of dsm-web-api.md section 11.
    let mut sim = NasFixture::new();
    let lun = sim.lun("a", "BLUN", GIB);
    take(&mut sim, "a", &[("snapshot_name", "SnapShot-2")]);
    take(&mut sim, &lun, &[]);
    take(&mut sim, &lun, &[("snapshot_name", "")]);
    let names: Vec<Value> = list(&mut sim, &lun)
        .iter()
        .map(|row| row["name"].clone())
        .collect();
    assert_eq!(names, ["SnapShot-2", "SnapShot-3", "SnapShot-4"]);
    let ids: Vec<Value> = list(&mut sim, "a")
        .iter()
        .map(|row| row["snapshot_id"].clone())
        .collect();
    assert_eq!(ids, [1, 2, 3]);
}

#[test]
fn a_snapshot_is_shown_as_it_was_taken() {
    let mut sim = NasFixture::new();
    let lun = sim.lun("a", "BLUN", GIB);
    sim.now = 1_234_999;
    let params = [
        ("snapshot_name", "\"日 本/ 1\""),
        ("description", "id-7"),
        ("taken_by", "me"),
        ("is_locked", "true"),
        ("is_app_consistent", "True"),
    ];
    let uuid = take(&mut sim, &lun, &params);
    let asked = [
        ("snapshot_uuid", &*uuid),
        ("additional", r#"["status","is_action_locked"]"#),
    ];
    let got = sim.ok(LUN, "get_snapshot", &asked)["snapshot"].clone();
    for (name, want) in [
        ("name", json!("日 本/ 1")),
        ("description", json!("id-7")),
        ("taken_by", json!("me")),
        ("is_user_locked", json!(true)),
        ("is_app_consistent", json!(true)),
        ("create_time", json!(1_234)),
        ("total_size", json!(GIB)),
        ("parent_uuid", json!(lun)),
        ("root_path", json!("/volume1")),
        ("status", json!("Healthy")),
        ("is_action_locked", json!(false)),
    ] {
        assert_eq!(got[name], want, "{name}");
    }
    // Within a LUN the status is an object.
    let listed = sim.ok(LUN, "list", &[("additional", r#"["snapshot_info"]"#)]);
    let row = &listed["luns"][0]["snapshots"][0];
    assert_eq!(
        (&row["uuid"], &row["status"]["type"]),
        (&json!(uuid), &json!("Healthy"))
    );
}

#[test]
fn names_are_unique_in_their_lun_only() {
    // Behaviour 14 of dsm-web-api.md section 11.
    let mut sim = NasFixture::new();
    sim.lun("a", "BLUN", GIB);
    sim.lun("b", "BLUN", GIB);
    take(&mut sim, "a", &[("snapshot_name", "s")]);
    take(&mut sim, "b", &[("snapshot_name", "s")]);
    let again = [("src_lun_uuid", "a"), ("snapshot_name", "s")];
    assert_eq!(sim.code(LUN, "take_snapshot", &again), 18_990_513);
    for (length, code) in [(256, 0), (257, 18_990_503)] {
        let name = "é".repeat(length);
        let params = [("src_lun_uuid", "a"), ("snapshot_name", &*name)];
        assert_eq!(sim.code(LUN, "take_snapshot", &params), code, "{length}");
    }
}

#[test]
fn a_lun_that_cannot_be_snapshotted_is_refused() {
    let mut sim = NasFixture::new();
    sim.lun("thick", "BLUN_THICK", GIB);
    let take =
        |sim: &mut NasFixture, lun: &str| sim.code(LUN, "take_snapshot", &[("src_lun_uuid", lun)]);
    assert_eq!(take(&mut sim, "thick"), 18_990_500, "can_snapshot is 0");
    assert_eq!(take(&mut sim, "gone"), 18_990_505);
    assert_eq!(sim.code(LUN, "take_snapshot", &[]), 114);
    sim.lun("a", "BLUN", GIB);
    sim.nas.settings.snapshots_per_lun = 2;
    assert_eq!([0, 0, 18_990_543], [(); 3].map(|()| take(&mut sim, "a")));
}

#[test]
fn snapshots_are_deleted_one_by_one_or_by_list() {
    let mut sim = NasFixture::new();
    let lun = sim.lun("a", "BLUN", GIB);
    let uuids = [(); 3].map(|()| take(&mut sim, &lun, &[("is_locked", "true")]));
    let one = [("snapshot_uuid", &*uuids[0]), ("deleted_by", "me")];
    let reply = sim.call(LUN, 1, "delete_snapshot", &one);
    assert_eq!(reply.answer, Ok(None), "a lock does not prevent the delete");
    assert!(
        reply
            .effects
            .contains(&Effect::Discard(Image::Snapshot(uuids[0].clone())))
    );
    assert_eq!(sim.code(LUN, "delete_snapshot", &one), 18_990_532);
    let several = json!([uuids[0], uuids[1]]).to_string();
    let failed = sim.ok(LUN, "delete_snapshot", &[("snapshot_uuids", &several)]);
    assert_eq!(failed, json!([{ &*uuids[0]: 18_990_540 }]));
    let several = json!([uuids[2]]).to_string();
    let failed = sim.ok(LUN, "delete_snapshot", &[("snapshot_uuids", &several)]);
    assert_eq!(failed, json!([]));
    assert_eq!(list(&mut sim, &lun), Vec::<Value>::new());
    assert_eq!(sim.code(LUN, "delete_snapshot", &[]), 114);
    assert_eq!(
        sim.code(LUN, "get_snapshot", &[("snapshot_uuid", &uuids[1])]),
        18_990_532
    );
}

#[test]
fn deleting_a_lun_deletes_its_snapshots() {
    // Behaviour 8 of dsm-web-api.md section 11.
    let mut sim = NasFixture::new();
    let lun = sim.lun("a", "BLUN", GIB);
    let snapshot = take(&mut sim, &lun, &[]);
    let reply = sim.call(LUN, 1, "delete", &[("uuid", &lun)]);
    assert_eq!(reply.answer, Ok(None));
    for image in [Image::Lun(lun.clone()), Image::Snapshot(snapshot.clone())] {
        assert!(reply.effects.contains(&Effect::Discard(image)));
    }
    let of_lun = [("src_lun_uuid", &*lun)];
    assert_eq!(sim.code(LUN, "list_snapshot", &of_lun), 18_990_531);
    let it = [("snapshot_uuid", &*snapshot)];
    assert_eq!(sim.code(LUN, "get_snapshot", &it), 18_990_532);
}

#[test]
fn a_restore_brings_the_lun_back_and_logs_its_initiators_out() {
    // Behaviour 20 of dsm-web-api.md section 11; exporting the target again ends its sessions.
    let mut sim = NasFixture::new();
    let lun = sim.lun("a", "BLUN", GIB);
    let first = take(&mut sim, &lun, &[]);
    let second = take(&mut sim, &lun, &[]);
    sim.target("t");
    sim.ok(LUN, "map_target", &[("uuid", &lun), ("target_ids", "[1]")]);
    let grow = [("uuid", &*lun), ("new_size", &(2 * GIB).to_string())];
    sim.ok(LUN, "set", &grow);
    assert_eq!(sim.get(&lun, "[]")["restored_time"], 0);
    sim.now = 1_234_000;
    let params = [("src_lun_uuid", &*lun), ("snapshot_uuid", &first)];
    let reply = sim.call(LUN, 1, "restore_snapshot", &params);
    assert_eq!(reply.answer, Ok(None));
    let copy = Effect::Copy {
        from: Image::Snapshot(first.clone()),
        to: Image::Lun(lun.clone()),
    };
    assert!(reply.effects.contains(&copy) && reply.effects.contains(&Effect::Export(1)));
    let now = sim.get(&lun, "[]");
    assert_eq!(
        (&now["size"], &now["restored_time"], &now["uuid"]),
        (&json!(GIB), &json!(1_234), &json!(lun))
    );
    let left: Vec<Value> = list(&mut sim, &lun)
        .iter()
        .map(|row| row["uuid"].clone())
        .collect();
    assert_eq!(left, [first, second], "newer snapshots stay");
    let target = [("target_id", "\"1\""), ("additional", r#"["mapped_lun"]"#)];
    let mapped = &sim.ok(TARGET, "get", &target)["target"]["mapped_luns"];
    assert_eq!(mapped[0]["lun_uuid"], *lun);
}

#[test]
fn a_restore_reports_what_is_missing() {
    const UNKNOWN: &str = "0f5a1c9e-0000-4000-8000-000000000000";
    let mut sim = NasFixture::new();
    sim.lun("a", "BLUN", GIB);
    sim.lun("b", "BLUN", GIB);
    let of_b = take(&mut sim, "b", &[]);
    for (params, code) in [
        (vec![("snapshot_uuid", &*of_b)], 18_990_508),
        (
            vec![("src_lun_uuid", "a"), ("snapshot_uuid", "gone")],
            18_990_532,
        ),
        (
            vec![("src_lun_uuid", "a"), ("snapshot_uuid", &*of_b)],
            18_990_532,
        ),
        (
            vec![("src_lun_uuid", "gone"), ("snapshot_uuid", &*of_b)],
            18_990_505,
        ),
        (
            vec![("src_lun_uuid", UNKNOWN), ("snapshot_uuid", &*of_b)],
            18_990_531,
        ),
    ] {
        let got = sim.code(LUN, "restore_snapshot", &params);
        assert_eq!(got, code, "{params:?}");
    }
    // There is no other method for it, measured by jt.
    assert_eq!(sim.code(LUN, "revert_snapshot", &[]), 103);
}

#[test]
fn snapshots_do_not_block_growth() {
    // Behaviour 10 of dsm-web-api.md section 11.
    let mut sim = NasFixture::new();
    let lun = sim.lun("a", "BLUN", GIB);
    let snapshot = take(&mut sim, &lun, &[]);
    let grow = [("uuid", &*lun), ("new_size", &(2 * GIB).to_string())];
    assert_eq!(sim.code(LUN, "set", &grow), 0);
    let got = sim.ok(LUN, "get_snapshot", &[("snapshot_uuid", &snapshot)]);
    assert_eq!(got["snapshot"]["total_size"], GIB);
}
