use serde_json::{Value, json};

use crate::Latency;
use crate::nas::effect::{Effect, Image};
use crate::nas::model::Generation;
use crate::nas::tests::{GIB, LUN, NasFixture};

const MIB: u64 = 1 << 20;
const LOCKED: &str = r#"["is_action_locked","allocated_size","family_config"]"#;

fn slow() -> NasFixture {
    NasFixture::with(Latency::Ds918.timing(), Generation::Seven)
}

/// Clones `a`. Returns the clone's uuid.
#[track_caller]
fn clone(sim: &mut NasFixture, more: &[(&str, &str)]) -> String {
    let mut params = vec![("src_lun_uuid", "a"), ("dst_lun_name", "b")];
    params.extend_from_slice(more);
    let data = sim.ok(LUN, "clone", &params);
    data["dst_lun_uuid"].as_str().unwrap().to_owned()
}

/// Takes a snapshot of `a` and clones it. Returns the clone's uuid.
#[track_caller]
fn clone_snapshot(sim: &mut NasFixture, name: &str) -> String {
    let taken = sim.ok(LUN, "take_snapshot", &[("src_lun_uuid", "a")]);
    let snapshot = taken["snapshot_uuid"].as_str().unwrap().to_owned();
    let params = [
        ("src_lun_uuid", "a"),
        ("snapshot_uuid", &*snapshot),
        ("cloned_lun_name", name),
    ];
    let data = sim.ok(LUN, "clone_snapshot", &params);
    data["cloned_lun_uuid"].as_str().unwrap().to_owned()
}

fn volume(sim: &mut NasFixture, field: &str) -> u64 {
    let params = [("volume_path", "/volume1")];
    let data = sim.ok("SYNO.Core.Storage.Volume", "get", &params);
    data["volume"][field].as_str().unwrap().parse().unwrap()
}

#[test]
fn a_clone_is_an_independent_lun_with_its_sources_data() {
    let mut sim = NasFixture::new();
    let source = sim.lun("a", "BLUN", GIB);
    let params = [
        ("src_lun_uuid", "a"),
        ("dst_lun_name", "b"),
        ("is_same_pool", "true"),
        ("clone_type", "CINDER"),
        ("description", "copied"),
    ];
    let reply = sim.call(LUN, 1, "clone", &params);
    let data = reply.answer.unwrap().unwrap();
    let uuid = data["dst_lun_uuid"].as_str().unwrap().to_owned();
    assert!(reply.effects.contains(&Effect::Copy {
        from: Image::Lun(source.clone()),
        to: Image::Lun(uuid.clone()),
    }));
    let lun = sim.get(&uuid, LOCKED);
    for (name, want) in [
        ("name", json!("b")),
        ("size", json!(GIB)),
        ("location", json!("/volume1")),
        ("description", json!("copied")),
        ("is_action_locked", json!(false)),
        ("type_str", json!("BLUN")),
    ] {
        assert_eq!(lun[name], want, "{name}");
    }
    let family = json!({"parent_lun_name": "a", "parent_lun_uuid": source, "parent_snapshot_time": 0,
                        "parent_snapshot_uuid": ""});
    assert_eq!(lun["family_config"], family);
    assert_eq!(sim.code(LUN, "delete", &[("uuid", &source)]), 0);
    assert_eq!(sim.get(&uuid, LOCKED)["size"], GIB);
}

#[test]
fn a_clone_is_locked_until_its_data_is_copied() {
    // Behaviour 2 of dsm-web-api.md section 11: nothing for an empty LUN, 3.5 s for 512 MiB.
    for (written, takes) in [(0, 0), (512 * MIB, 3_584_u64)] {
        let mut sim = slow();
        sim.lun("a", "BLUN", GIB);
        sim.now += 10_000;
        sim.written = written;
        let uuids = [clone(&mut sim, &[]), clone_snapshot(&mut sim, "c")];
        for uuid in uuids {
            let mut locked = |after: u64| {
                sim.now += after;
                let lun = sim.get(&uuid, LOCKED);
                sim.now -= after;
                lun["is_action_locked"].clone()
            };
            assert_eq!(locked(0), takes > 0);
            assert_eq!(locked(takes.saturating_sub(1)), takes > 0);
            assert_eq!(locked(takes), false);
        }
    }
}

#[test]
fn a_thick_clone_takes_longer_than_the_official_driver_waits() {
    // Behaviour 2 of dsm-web-api.md section 11.
    let mut sim = slow();
    sim.lun("a", "BLUN_THICK", 10 * GIB);
    let uuid = clone(&mut sim, &[]);
    sim.now += 20_000;
    assert_eq!(sim.get(&uuid, LOCKED)["is_action_locked"], true);
}

#[test]
fn shared_blocks_count_in_every_clone_and_use_no_space() {
    // Behaviour 12 of dsm-web-api.md section 11; a clone from a snapshot was measured to start with 0.
    let mut sim = NasFixture::new();
    sim.lun("a", "BLUN", GIB);
    sim.written = 512 * MIB;
    let free = volume(&mut sim, "size_free_byte");
    let (of_lun, of_snapshot) = (clone(&mut sim, &[]), clone_snapshot(&mut sim, "c"));
    let allocated =
        |sim: &mut NasFixture, uuid: &str| sim.get(uuid, LOCKED)["allocated_size"].clone();
    assert_eq!(allocated(&mut sim, &of_lun), 512 * MIB);
    assert_eq!(allocated(&mut sim, &of_snapshot), 0);
    assert_eq!(volume(&mut sim, "size_free_byte"), free);
    // Blocks written from now on are not shared.
    sim.target("t");
    for uuid in ["a", &of_lun, &of_snapshot] {
        let uuid = sim.nas.find_lun(uuid).unwrap().uuid.clone();
        sim.ok(LUN, "map_target", &[("uuid", &uuid), ("target_ids", "[1]")]);
    }
    sim.written = 600 * MIB;
    assert_eq!(allocated(&mut sim, &of_snapshot), 88 * MIB);
    assert_eq!(free - volume(&mut sim, "size_free_byte"), 3 * 88 * MIB);
}

#[test]
fn a_full_volume_has_no_space_for_a_thick_clone() {
    // Behaviour 11 of dsm-web-api.md section 11.
    let mut sim = NasFixture::new();
    sim.lun("a", "BLUN_THICK", 60 * GIB);
    let params = [("src_lun_uuid", "a"), ("dst_lun_name", "b")];
    assert_eq!(sim.code(LUN, "clone", &params), 18_990_002);
    let effects = sim.call(LUN, 1, "clone", &params).effects;
    assert!(effects.is_empty(), "{effects:?}");
}

#[test]
fn a_clone_is_refused_like_a_create() {
    let mut sim = NasFixture::new();
    sim.lun("a", "BLUN", GIB);
    for (params, code) in [
        (vec![("dst_lun_name", "a")], 18_990_538),
        (vec![("dst_lun_name", "a_b")], 18_990_503),
        (
            vec![("dst_lun_name", "b"), ("dst_location", "/volume9")],
            18_990_501,
        ),
        (
            vec![("dst_lun_name", "b"), ("dst_location", "/volume2")],
            18_990_318,
        ),
        (
            vec![("dst_lun_name", "b"), ("src_lun_uuid", "gone")],
            18_990_505,
        ),
        (
            vec![("dst_lun_name", "b"), ("dst_address", "10.0.0.2")],
            18_990_004,
        ),
        (vec![], 114),
    ] {
        let mut all = vec![("src_lun_uuid", "a")];
        all.extend_from_slice(&params);
        assert_eq!(sim.code(LUN, "clone", &all), code, "{params:?}");
    }
    for n in 0..3 {
        clone(&mut sim, &[("dst_lun_name", &format!("b{n}"))]);
    }
    let params = [("src_lun_uuid", "a"), ("dst_lun_name", "b9")];
    assert_eq!(
        sim.code(LUN, "clone", &params),
        18_990_541,
        "a DS423 holds 4"
    );
}

#[test]
fn a_clone_of_a_snapshot_has_the_size_of_the_snapshot() {
    let mut sim = NasFixture::new();
    let source = sim.lun("a", "BLUN", GIB);
    let taken = sim.ok(LUN, "take_snapshot", &[("src_lun_uuid", "a")]);
    let snapshot = taken["snapshot_uuid"].as_str().unwrap().to_owned();
    let grow = [("uuid", &*source), ("new_size", &(2 * GIB).to_string())];
    sim.ok(LUN, "set", &grow);
    let of = |lun: &str, snapshot: &str| {
        [
            ("src_lun_uuid".to_owned(), lun.to_owned()),
            ("snapshot_uuid".to_owned(), snapshot.to_owned()),
            ("cloned_lun_name".to_owned(), "b".to_owned()),
        ]
    };
    let call = |sim: &mut NasFixture, params: &[(String, String)]| {
        let params: Vec<(&str, &str)> = params.iter().map(|(n, v)| (&**n, &**v)).collect();
        sim.call(LUN, 1, "clone_snapshot", &params).answer
    };
    let wrong = call(&mut sim, &of("a", "gone")).unwrap_err();
    assert_eq!(wrong.code, 18_990_532);
    sim.lun("other", "BLUN", GIB);
    let wrong = call(&mut sim, &of("other", &snapshot)).unwrap_err();
    assert_eq!(wrong.code, 18_990_532);
    let data = call(&mut sim, &of("a", &snapshot)).unwrap().unwrap();
    let uuid = data["cloned_lun_uuid"].as_str().unwrap();
    let lun = sim.get(uuid, LOCKED);
    assert_eq!(lun["size"], GIB);
    assert_eq!(lun["family_config"]["parent_snapshot_uuid"], *snapshot);
    // Behaviour 8 of dsm-web-api.md section 11: the source may be deleted.
    let uuid = uuid.to_owned();
    assert_eq!(
        sim.code(LUN, "delete_snapshot", &[("snapshot_uuid", &snapshot)]),
        0
    );
    assert_eq!(sim.code(LUN, "delete", &[("uuid", &source)]), 0);
    assert_eq!(sim.get(&uuid, LOCKED)["size"], GIB);
}

#[test]
fn an_unfinished_clone_can_be_stopped() {
    let mut sim = slow();
    sim.lun("a", "BLUN", GIB);
    sim.now += 10_000;
    sim.written = 512 * MIB;
    let stop = |sim: &mut NasFixture| sim.code(LUN, "stop_clone", &[("src_lun_uuid", "a")]);
    let exists = |sim: &mut NasFixture, uuid: &str| sim.code(LUN, "get", &[("uuid", uuid)]) == 0;
    let done = clone(&mut sim, &[]);
    sim.now += 10_000;
    let unfinished = clone(&mut sim, &[("dst_lun_name", "c")]);
    assert_eq!(stop(&mut sim), 0);
    assert_eq!(
        (exists(&mut sim, &done), exists(&mut sim, &unfinished)),
        (true, false)
    );
    assert_eq!(stop(&mut sim), 0, "nothing to stop");
}

#[test]
fn a_restart_removes_only_unfinished_clones() {
    let mut sim = slow();
    sim.lun("a", "BLUN", GIB);
    sim.now += 10_000;
    sim.written = 512 * MIB;
    let done = clone(&mut sim, &[]);
    sim.now += 10_000;
    let unfinished = clone(&mut sim, &[("dst_lun_name", "c")]);
    sim.nas
        .restore(sim.now, &["/volume1=btrfs:100GiB".parse().unwrap()])
        .unwrap();
    let left: Vec<Value> = sim
        .nas
        .luns_by_number()
        .map(|lun| json!(lun.uuid))
        .collect();
    assert!(
        left.contains(&json!(done)) && !left.contains(&json!(unfinished)),
        "{left:?}"
    );
}
