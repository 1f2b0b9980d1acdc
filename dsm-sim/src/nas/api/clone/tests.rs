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

/// Clones `a`; the clone's uuid.
#[track_caller]
fn clone(bench: &mut NasFixture, more: &[(&str, &str)]) -> String {
    let mut params = vec![("src_lun_uuid", "a"), ("dst_lun_name", "b")];
    params.extend_from_slice(more);
    let data = bench.ok(LUN, "clone", &params);
    data["dst_lun_uuid"].as_str().unwrap().to_owned()
}

/// Clones a snapshot of `a` that is taken for it; the clone's uuid.
#[track_caller]
fn clone_snapshot(bench: &mut NasFixture, name: &str) -> String {
    let taken = bench.ok(LUN, "take_snapshot", &[("src_lun_uuid", "a")]);
    let snapshot = taken["snapshot_uuid"].as_str().unwrap().to_owned();
    let params = [
        ("src_lun_uuid", "a"),
        ("snapshot_uuid", &*snapshot),
        ("cloned_lun_name", name),
    ];
    let data = bench.ok(LUN, "clone_snapshot", &params);
    data["cloned_lun_uuid"].as_str().unwrap().to_owned()
}

fn volume(bench: &mut NasFixture, field: &str) -> u64 {
    let params = [("volume_path", "/volume1")];
    let data = bench.ok("SYNO.Core.Storage.Volume", "get", &params);
    data["volume"][field].as_str().unwrap().parse().unwrap()
}

#[test]
fn a_clone_is_a_lun_of_its_own_with_its_sources_data() {
    let mut bench = NasFixture::new();
    let source = bench.lun("a", "BLUN", GIB);
    let params = [
        ("src_lun_uuid", "a"),
        ("dst_lun_name", "b"),
        ("is_same_pool", "true"),
        ("clone_type", "CINDER"),
        ("description", "copied"),
    ];
    let reply = bench.call(LUN, 1, "clone", &params);
    let data = reply.answer.unwrap().unwrap();
    let uuid = data["dst_lun_uuid"].as_str().unwrap().to_owned();
    assert!(reply.effects.contains(&Effect::Copy {
        from: Image::Lun(source.clone()),
        to: Image::Lun(uuid.clone()),
    }));
    let lun = bench.get(&uuid, LOCKED);
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
    assert_eq!(bench.code(LUN, "delete", &[("uuid", &source)]), 0);
    assert_eq!(bench.get(&uuid, LOCKED)["size"], GIB);
}

#[test]
fn a_clone_is_locked_until_its_data_is_copied() {
    // Behaviour 2 of dsm-web-api.md section 11: nothing for an empty LUN, 3.5 s for 512 MiB.
    for (written, takes) in [(0, 0), (512 * MIB, 3_584_u64)] {
        let mut bench = slow();
        bench.lun("a", "BLUN", GIB);
        bench.now += 10_000;
        bench.written = written;
        let uuids = [clone(&mut bench, &[]), clone_snapshot(&mut bench, "c")];
        for uuid in uuids {
            let mut locked = |after: u64| {
                bench.now += after;
                let lun = bench.get(&uuid, LOCKED);
                bench.now -= after;
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
    let mut bench = slow();
    bench.lun("a", "BLUN_THICK", 10 * GIB);
    let uuid = clone(&mut bench, &[]);
    bench.now += 20_000;
    assert_eq!(bench.get(&uuid, LOCKED)["is_action_locked"], true);
}

#[test]
fn shared_blocks_count_in_every_clone_and_take_no_space() {
    // Behaviour 12 of dsm-web-api.md section 11; a clone from a snapshot was measured to start with 0.
    let mut bench = NasFixture::new();
    bench.lun("a", "BLUN", GIB);
    bench.written = 512 * MIB;
    let free = volume(&mut bench, "size_free_byte");
    let (of_lun, of_snapshot) = (clone(&mut bench, &[]), clone_snapshot(&mut bench, "c"));
    let allocated =
        |bench: &mut NasFixture, uuid: &str| bench.get(uuid, LOCKED)["allocated_size"].clone();
    assert_eq!(allocated(&mut bench, &of_lun), 512 * MIB);
    assert_eq!(allocated(&mut bench, &of_snapshot), 0);
    assert_eq!(volume(&mut bench, "size_free_byte"), free);
    // What is written to them from now on is theirs.
    bench.target("t");
    for uuid in ["a", &of_lun, &of_snapshot] {
        let uuid = bench.nas.find_lun(uuid).unwrap().uuid.clone();
        bench.ok(LUN, "map_target", &[("uuid", &uuid), ("target_ids", "[1]")]);
    }
    bench.written = 600 * MIB;
    assert_eq!(allocated(&mut bench, &of_snapshot), 88 * MIB);
    assert_eq!(free - volume(&mut bench, "size_free_byte"), 3 * 88 * MIB);
}

#[test]
fn a_full_volume_takes_no_thick_clone() {
    // Behaviour 11 of dsm-web-api.md section 11.
    let mut bench = NasFixture::new();
    bench.lun("a", "BLUN_THICK", 60 * GIB);
    let params = [("src_lun_uuid", "a"), ("dst_lun_name", "b")];
    assert_eq!(bench.code(LUN, "clone", &params), 18_990_002);
    let effects = bench.call(LUN, 1, "clone", &params).effects;
    assert!(effects.is_empty(), "{effects:?}");
}

#[test]
fn a_clone_is_refused_like_a_create() {
    let mut bench = NasFixture::new();
    bench.lun("a", "BLUN", GIB);
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
        assert_eq!(bench.code(LUN, "clone", &all), code, "{params:?}");
    }
    for n in 0..3 {
        clone(&mut bench, &[("dst_lun_name", &format!("b{n}"))]);
    }
    let params = [("src_lun_uuid", "a"), ("dst_lun_name", "b9")];
    assert_eq!(
        bench.code(LUN, "clone", &params),
        18_990_541,
        "a DS423 holds 4"
    );
}

#[test]
fn a_clone_of_a_snapshot_has_the_size_of_then() {
    let mut bench = NasFixture::new();
    let source = bench.lun("a", "BLUN", GIB);
    let taken = bench.ok(LUN, "take_snapshot", &[("src_lun_uuid", "a")]);
    let snapshot = taken["snapshot_uuid"].as_str().unwrap().to_owned();
    let grow = [("uuid", &*source), ("new_size", &(2 * GIB).to_string())];
    bench.ok(LUN, "set", &grow);
    let of = |lun: &str, snapshot: &str| {
        [
            ("src_lun_uuid".to_owned(), lun.to_owned()),
            ("snapshot_uuid".to_owned(), snapshot.to_owned()),
            ("cloned_lun_name".to_owned(), "b".to_owned()),
        ]
    };
    let call = |bench: &mut NasFixture, params: &[(String, String)]| {
        let params: Vec<(&str, &str)> = params.iter().map(|(n, v)| (&**n, &**v)).collect();
        bench.call(LUN, 1, "clone_snapshot", &params).answer
    };
    let wrong = call(&mut bench, &of("a", "gone")).unwrap_err();
    assert_eq!(wrong.code, 18_990_532);
    bench.lun("other", "BLUN", GIB);
    let wrong = call(&mut bench, &of("other", &snapshot)).unwrap_err();
    assert_eq!(wrong.code, 18_990_532);
    let data = call(&mut bench, &of("a", &snapshot)).unwrap().unwrap();
    let uuid = data["cloned_lun_uuid"].as_str().unwrap();
    let lun = bench.get(uuid, LOCKED);
    assert_eq!(lun["size"], GIB);
    assert_eq!(lun["family_config"]["parent_snapshot_uuid"], *snapshot);
    // Behaviour 8 of dsm-web-api.md section 11: what it came from may go.
    let uuid = uuid.to_owned();
    assert_eq!(
        bench.code(LUN, "delete_snapshot", &[("snapshot_uuid", &snapshot)]),
        0
    );
    assert_eq!(bench.code(LUN, "delete", &[("uuid", &source)]), 0);
    assert_eq!(bench.get(&uuid, LOCKED)["size"], GIB);
}

#[test]
fn a_clone_can_be_stopped_while_it_is_made() {
    let mut bench = slow();
    bench.lun("a", "BLUN", GIB);
    bench.now += 10_000;
    bench.written = 512 * MIB;
    let stop = |bench: &mut NasFixture| bench.code(LUN, "stop_clone", &[("src_lun_uuid", "a")]);
    let there = |bench: &mut NasFixture, uuid: &str| bench.code(LUN, "get", &[("uuid", uuid)]) == 0;
    let done = clone(&mut bench, &[]);
    bench.now += 10_000;
    let half = clone(&mut bench, &[("dst_lun_name", "c")]);
    assert_eq!(stop(&mut bench), 0);
    assert_eq!(
        (there(&mut bench, &done), there(&mut bench, &half)),
        (true, false)
    );
    assert_eq!(stop(&mut bench), 0, "nothing to stop");
}

#[test]
fn a_restart_ends_a_clone_that_is_half_done_and_no_other() {
    let mut bench = slow();
    bench.lun("a", "BLUN", GIB);
    bench.now += 10_000;
    bench.written = 512 * MIB;
    let done = clone(&mut bench, &[]);
    bench.now += 10_000;
    let half = clone(&mut bench, &[("dst_lun_name", "c")]);
    bench
        .nas
        .restore(bench.now, &["/volume1=btrfs:100GiB".parse().unwrap()])
        .unwrap();
    let left: Vec<Value> = bench
        .nas
        .luns_by_number()
        .map(|lun| json!(lun.uuid))
        .collect();
    assert!(
        left.contains(&json!(done)) && !left.contains(&json!(half)),
        "{left:?}"
    );
}
