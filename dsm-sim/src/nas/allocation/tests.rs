use crate::nas::tests::{GIB, LUN, NasFixture};

/// A NAS with `count` unmapped LUNs and one mapped LUN. Returns the uuid of the mapped one, too.
fn with_luns(count: usize) -> (NasFixture, String) {
    let mut sim = NasFixture::new();
    sim.nas.config.model = "unlimited".parse().unwrap();
    sim.target("t");
    let uuid = sim.lun("mapped", "BLUN", GIB);
    sim.ok(LUN, "map_target", &[("uuid", &uuid), ("target_ids", "[1]")]);
    for n in 0..count {
        sim.lun(&format!("lun-{n}"), "BLUN", GIB);
    }
    (sim, uuid)
}

/// How many files a call reads the size of.
fn lookups(sim: &mut NasFixture, api: &str, method: &str, params: &[(&str, &str)]) -> usize {
    sim.ok(api, method, params);
    sim.lookups
}

#[test]
fn only_lists_read_more_files_if_there_are_more_luns() {
    let count = |luns| {
        let (mut sim, uuid) = with_luns(luns);
        let thick = [
            ("name", "thick"),
            ("type", "BLUN_THICK"),
            ("location", "/volume1"),
            ("size", "1073741824"),
        ];
        let grow = [("uuid", "thick"), ("new_size", "2147483648")];
        let clone = [("src_lun_uuid", "mapped"), ("dst_lun_name", "clone")];
        let volume = [("volume_path", "/volume1")];
        [
            lookups(&mut sim, LUN, "create", &thick),
            lookups(&mut sim, LUN, "set", &grow),
            lookups(&mut sim, LUN, "clone", &clone),
            lookups(&mut sim, "SYNO.Core.Storage.Volume", "get", &volume),
            lookups(&mut sim, "SYNO.Core.Storage.Volume", "list", &[]),
            lookups(&mut sim, "SYNO.Storage.CGI.Storage", "load_info", &[]),
            lookups(&mut sim, LUN, "delete", &[("uuid", &uuid)]),
        ]
    };
    assert_eq!(count(10), count(500));
}

#[test]
fn a_file_that_an_initiator_can_write_to_is_read_each_time() {
    let (mut sim, uuid) = with_luns(3);
    let used = |sim: &mut NasFixture| {
        let get = [("volume_path", "/volume1")];
        let data = sim.ok("SYNO.Core.Storage.Volume", "get", &get);
        data["volume"]["eppool_used_byte"].clone()
    };
    assert_eq!(used(&mut sim), "0");
    for bytes in [GIB / 2, GIB / 4] {
        sim.by_lun.insert(uuid.clone(), bytes);
        assert_eq!(used(&mut sim), bytes.to_string());
    }
    sim.ok(
        LUN,
        "unmap_target",
        &[("uuid", &uuid), ("target_ids", "[1]")],
    );
    assert_eq!(used(&mut sim), (GIB / 4).to_string());
}

#[test]
fn files_of_thick_luns_are_never_read_and_sums_do_not_overflow() {
    let mut sim = NasFixture::new();
    for uuid in ["a", "b"].map(|name| sim.lun(name, "BLUN_THICK", GIB)) {
        let mut lun = sim.nas.state.luns.get(&uuid).unwrap().clone();
        lun.size = u64::MAX - 1;
        sim.nas.put_lun(lun);
    }
    let get = [("volume_path", "/volume1")];
    let data = sim.ok("SYNO.Core.Storage.Volume", "get", &get);
    assert_eq!(data["volume"]["eppool_used_byte"], u64::MAX.to_string());
    assert_eq!(sim.lookups, 0);
}
