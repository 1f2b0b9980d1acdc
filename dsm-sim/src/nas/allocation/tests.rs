use crate::nas::tests::{GIB, LUN, NasFixture};

/// A NAS with so many LUNs that no target maps, and one that a target does.
fn with_luns(count: usize) -> (NasFixture, String) {
    let mut bench = NasFixture::new();
    bench.nas.config.model = "unlimited".parse().unwrap();
    bench.target("t");
    let uuid = bench.lun("mapped", "BLUN", GIB);
    bench.ok(LUN, "map_target", &[("uuid", &uuid), ("target_ids", "[1]")]);
    for n in 0..count {
        bench.lun(&format!("lun-{n}"), "BLUN", GIB);
    }
    (bench, uuid)
}

/// How many files a call looks at.
fn looks(bench: &mut NasFixture, api: &str, method: &str, params: &[(&str, &str)]) -> usize {
    bench.ok(api, method, params);
    bench.looks
}

#[test]
fn no_call_but_lists_looks_at_more_files_where_there_are_more_luns() {
    let count = |luns| {
        let (mut bench, uuid) = with_luns(luns);
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
            looks(&mut bench, LUN, "create", &thick),
            looks(&mut bench, LUN, "set", &grow),
            looks(&mut bench, LUN, "clone", &clone),
            looks(&mut bench, "SYNO.Core.Storage.Volume", "get", &volume),
            looks(&mut bench, "SYNO.Core.Storage.Volume", "list", &[]),
            looks(&mut bench, "SYNO.Storage.CGI.Storage", "load_info", &[]),
            looks(&mut bench, LUN, "delete", &[("uuid", &uuid)]),
        ]
    };
    assert_eq!(count(10), count(500));
}

#[test]
fn a_file_that_an_initiator_writes_to_is_looked_at_each_time() {
    let (mut bench, uuid) = with_luns(3);
    let used = |bench: &mut NasFixture| {
        let get = [("volume_path", "/volume1")];
        let data = bench.ok("SYNO.Core.Storage.Volume", "get", &get);
        data["volume"]["eppool_used_byte"].clone()
    };
    assert_eq!(used(&mut bench), "0");
    for bytes in [GIB / 2, GIB / 4] {
        bench.by_lun.insert(uuid.clone(), bytes);
        assert_eq!(used(&mut bench), bytes.to_string());
    }
    bench.ok(
        LUN,
        "unmap_target",
        &[("uuid", &uuid), ("target_ids", "[1]")],
    );
    assert_eq!(used(&mut bench), (GIB / 4).to_string());
}

#[test]
fn thick_luns_are_never_looked_at_and_sums_do_not_overflow() {
    let mut bench = NasFixture::new();
    for uuid in ["a", "b"].map(|name| bench.lun(name, "BLUN_THICK", GIB)) {
        let mut lun = bench.nas.state.luns.get(&uuid).unwrap().clone();
        lun.size = u64::MAX - 1;
        bench.nas.put_lun(lun);
    }
    let get = [("volume_path", "/volume1")];
    let data = bench.ok("SYNO.Core.Storage.Volume", "get", &get);
    assert_eq!(data["volume"]["eppool_used_byte"], u64::MAX.to_string());
    assert_eq!(bench.looks, 0);
}
