use super::*;
use crate::dsm::lun::Kind;
use crate::dsm::target::{ConnectedSession, Mapping};
use crate::publication::Nonce;
use crate::request::{LunType, Parameters};
use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tonic::Code;

fn uuid() -> LunUuid {
    "13a3cd1e-f296-4d4b-b712-a85c139f9dac".parse().unwrap()
}

fn request(range: Range) -> CreateVolume {
    let parameters = Parameters {
        nas: None,
        dsm: None,
        location: Some("/volume1".to_owned()),
        kind: LunType::Exactly("BLUN"),
        kind_given: true,
        fs_type: None,
        format_options: None,
        flushes: None,
        floor: None,
        claim: (None, None),
    };
    CreateVolume {
        name: "pvc-1".to_owned(),
        range,
        parameters,
    }
}

fn owner() -> Owner {
    Owner::new("csi.synology.com".to_owned(), None)
}

fn lun(request: &CreateVolume) -> Lun {
    Lun {
        uuid: uuid().to_string(),
        name: "csi-pvc-1".to_owned(),
        size: Bytes::gib(10).0,
        location: "/volume1".to_owned(),
        description: owner().description(&request.name, &request.parameters.digest(), None, None),
        kind: Kind::Number(263),
        type_str: Some("BLUN".to_owned()),
        status: "normal".to_owned(),
        is_action_locked: Some(false),
        is_mapped: Some(false),
    }
}

/// design.md#sizes
#[test]
fn new_sizes() {
    let size = |required, limit: Option<u64>| {
        new_size(&Range {
            required: Bytes(required),
            limit: limit.map(Bytes),
        })
        .map_err(|error| error.code())
    };
    assert_eq!(size(0, None), Ok(Bytes::GIB));
    assert_eq!(size(1, None), Ok(Bytes::GIB));
    assert_eq!(size((1 << 30) + 1, None), Ok(Bytes::mib(1025)));
    assert_eq!(size(0, Some(1 << 29)), Err(Code::OutOfRange));
    // At the limit itself.
    assert_eq!(size(1 << 30, Some(1 << 30)), Ok(Bytes::GIB));
    assert_eq!(size(0, Some(1 << 30)), Ok(Bytes::GIB));
    assert_eq!(size((1 << 30) + 1, Some(1025 << 20)), Ok(Bytes::mib(1025)));
    // Exact sizes, of blocks of 4096 and of 512 bytes.
    let exact = 10_000_003_072;
    assert_eq!(size(exact, Some(exact)), Ok(Bytes(exact)));
    assert_eq!(
        size(10_000_000_000, Some(10_000_000_000)),
        Ok(Bytes(10_000_000_000))
    );
    assert_eq!(size(exact - 4095, Some(exact)), Ok(Bytes(exact)));
    assert_eq!(size(exact - 4095, Some(exact - 1)), Ok(Bytes(exact - 3584)));
    assert_eq!(
        size((1 << 30) + 1, Some((1 << 30) + 2)),
        Err(Code::OutOfRange)
    );
}

/// design.md#large-enough-already
#[test]
fn an_expansion_to_a_smaller_size_does_nothing() {
    let plan = |required, limit: Option<Bytes>| {
        expand(Bytes::gib(10), &Range { required, limit }).map_err(|error| error.code())
    };
    assert_eq!(plan(Bytes::gib(5), None), Ok(Expand::Done(Bytes::gib(10))));
    assert_eq!(plan(Bytes::gib(10), None), Ok(Expand::Done(Bytes::gib(10))));
    assert_eq!(plan(Bytes::gib(15), None), Ok(Expand::Grow(Bytes::gib(15))));
    // At the limit itself.
    for required in [5, 10] {
        let done = plan(Bytes::gib(required), Some(Bytes::gib(10)));
        assert_eq!(done, Ok(Expand::Done(Bytes::gib(10))));
    }
    let exact = Bytes(12_000_000_000);
    for (required, size) in [(Bytes::gib(15), Bytes::gib(15)), (exact, exact)] {
        assert_eq!(plan(required, Some(size)), Ok(Expand::Grow(size)));
    }
    assert_eq!(
        plan(Bytes::gib(5), Some(Bytes::gib(9))),
        Err(Code::OutOfRange)
    );
    assert_eq!(
        plan(
            Bytes(Bytes::gib(10).0 + 1),
            Some(Bytes(Bytes::gib(10).0 + 2))
        ),
        Err(Code::OutOfRange)
    );
}

proptest! {
    /// design.md#large-enough-already
    #[test]
    fn an_expansion_never_shrinks_and_stays_within_the_range(present in 1_u64..1 << 50, required in 0_u64..1 << 50, limit in proptest::option::of(1_u64..1 << 50)) {
        let range = Range { required: Bytes(required), limit: limit.map(Bytes) };
        match expand(Bytes(present), &range) {
            Ok(Expand::Done(size)) => prop_assert!(size.0 == present && size.0 >= required),
            Ok(Expand::Grow(size)) => {
                prop_assert!(size.0 > present && size.0 >= required);
                prop_assert!(limit.is_none_or(|limit| size.0 <= limit));
            }
            Err(error) => prop_assert_eq!(error.code(), Code::OutOfRange),
        }
    }
}

/// design.md#sizes
#[test]
fn the_same_volume_is_compatible() {
    let volume = request(Range {
        required: Bytes::gib(10),
        limit: None,
    });
    assert!(check_compatible(&owner(), &lun(&volume), &volume).is_ok());
}

type Change = fn(&mut Lun);

/// design.md#sizes
#[test]
fn another_volume_is_incompatible() {
    let volume = request(Range {
        required: Bytes::gib(10),
        limit: Some(Bytes::gib(10)),
    });
    let changes: [(&str, Change); 7] = [
        ("at least", |lun| lun.size -= 1),
        ("at most", |lun| lun.size += 1),
        ("/volume2", |lun| lun.location = "/volume2".to_owned()),
        ("ADV", |lun| lun.type_str = Some("ADV".to_owned())),
        ("owner tag", |lun| lun.description = "mine".to_owned()),
        ("that of another volume", |lun| {
            lun.description = lun.description.replace("n=", "n=0");
        }),
        ("fsType", |lun| {
            lun.description = lun.description.replace("p=", "p=0");
        }),
    ];
    for (named, change) in changes {
        let mut other = lun(&volume);
        change(&mut other);
        let error = check_compatible(&owner(), &other, &volume).unwrap_err();
        assert_eq!(error.code(), Code::AlreadyExists, "{named}");
        assert!(error.chain().contains(named), "{}", error.chain());
    }
}

/// design.md#sizes
#[test]
fn thin_and_thick_mean_one_of_two_lun_types() {
    for (kind, fitting) in [
        (LunType::Thin, ["BLUN", "ADV"]),
        (LunType::Thick, ["BLUN_THICK", "FILE"]),
        (LunType::Exactly("THIN"), ["THIN", "THIN"]),
    ] {
        let mut volume = request(Range::default());
        volume.parameters.kind = kind;
        volume.parameters.kind_given = true;
        for name in ["BLUN", "BLUN_THICK", "ADV", "FILE", "THIN"] {
            let mut other = lun(&volume);
            other.type_str = Some(name.to_owned());
            let compatible = check_compatible(&owner(), &other, &volume).is_ok();
            assert_eq!(
                compatible,
                fitting.contains(&name),
                "{name} for {:?}",
                volume.parameters.kind
            );
        }
    }
}

/// design.md#create-first
#[test]
fn a_locked_lun_is_not_returned() {
    let volume = request(Range::default());
    for (locked, status) in [
        (Some(true), "normal"),
        (None, "normal"),
        (Some(false), "creating"),
        (Some(false), "crashed"),
    ] {
        let mut other = lun(&volume);
        (other.is_action_locked, other.status) = (locked, status.to_owned());
        assert_eq!(
            check_compatible(&owner(), &other, &volume)
                .unwrap_err()
                .code(),
            Code::Aborted
        );
    }
}

fn target(iqn: &str, maps: bool) -> Target {
    let mapped_luns = if maps {
        vec![Mapping {
            lun_uuid: uuid().to_string(),
            mapping_index: 1,
        }]
    } else {
        Vec::new()
    };
    Target {
        target_id: 7,
        name: "t".to_owned(),
        iqn: iqn.to_owned(),
        is_enabled: Some(true),
        auth_type: Some(0),
        user: None,
        mutual_user: None,
        mapped_luns,
        connected_sessions: Vec::new(),
    }
}

fn node(name: &str) -> NodeId {
    NodeId::derive(name, "i")
}

fn iqn(node_name: &str, nonce: u64) -> Iqn {
    let mut random = StdRng::seed_from_u64(nonce);
    Iqn::of_publication(&uuid(), &node(node_name), &Nonce::draw(&mut random))
}

fn other() -> Iqn {
    iqn("b", 1)
}

/// design.md#one-target-per-publication
#[test]
fn a_publication_is_found_among_all_targets() {
    let counts = |multi, targets: &[Target]| {
        let seen = publication(&uuid(), &node("a"), multi, targets);
        (
            seen.exporting.len(),
            seen.unmapped.len(),
            seen.conflict.is_some(),
        )
    };
    let own = iqn("a", 1);
    let (mine, theirs) = (target(own.as_str(), true), target(other().as_str(), true));
    let unmapped = target(iqn("a", 2).as_str(), false);
    let old = target(Iqn::without_nonce(&uuid(), &node("a")).as_str(), true);
    let foreign = target("iqn.2000-01.com.synology:nas.default-target.1", true);
    // Targets of other LUNs are ignored.
    let mut unrelated = target("iqn.2000-01.com.synology:nas.x", true);
    unrelated.mapped_luns[0].lun_uuid = "00000000-0000-0000-0000-000000000000".to_owned();
    for (multi, targets, seen) in [
        (false, vec![], (0, 0, false)),
        (false, vec![&mine], (1, 0, false)),
        (false, vec![&old], (1, 0, false)),
        (false, vec![&unmapped], (0, 1, false)),
        (false, vec![&mine, &unmapped, &unrelated], (1, 1, false)),
        (false, vec![&mine, &theirs], (1, 0, true)),
        (true, vec![&mine, &theirs], (1, 0, false)),
        (false, vec![&theirs], (0, 0, true)),
        (true, vec![&theirs], (0, 0, false)),
        (true, vec![&mine, &foreign], (1, 0, true)),
        // A controller that has not mapped its target yet sees ours when it does, and backs off.
        (
            false,
            vec![&mine, &target(other().as_str(), false)],
            (1, 0, false),
        ),
    ] {
        let rows: Vec<Target> = targets.into_iter().cloned().collect();
        assert_eq!(counts(multi, &rows), seen, "{rows:?}");
    }
}

#[test]
fn of_several_targets_the_one_in_use_counts() {
    let [mut one, mut two] = [1, 2].map(|nonce| target(iqn("a", nonce).as_str(), true));
    let first = |targets: &[Target]| {
        let seen = publication(&uuid(), &node("a"), false, targets);
        seen.exporting[0].0.iqn.clone()
    };
    let least = one.iqn.clone().min(two.iqn.clone());
    assert_eq!(first(&[one.clone(), two.clone()]), least);
    for used in [&mut one, &mut two] {
        used.connected_sessions.push(ConnectedSession {
            iqn: "iqn.x".to_owned(),
            ip: String::new(),
        });
        let name = used.iqn.clone();
        let rows = [used.clone(), target(iqn("a", 3).as_str(), true)];
        assert_eq!(first(&rows), name);
    }
    let seen = |mine: &str| {
        let rows = [one.clone()];
        publication(&uuid(), &node("a"), false, &rows).has_another(&mine.parse().unwrap())
    };
    assert!(!seen(&one.iqn) && seen(&two.iqn));
}

/// design.md#deletevolume
#[test]
fn a_holder_is_described() {
    let text = holders(&uuid(), &[target(other().as_str(), true)])[0].to_string();
    assert!(text.contains("node b:"), "{text}");
}

#[test]
fn a_volume_is_chosen_that_supports_the_lun_type() {
    let volume = |path: &str, fs_type: &str, free: Option<u64>, more: serde_json::Value| {
        let mut row =
            serde_json::json!({"volume_path": path, "fs_type": fs_type, "status": "normal"});
        if let Some(free) = free {
            row["size_free_byte"] = free.to_string().into();
        }
        for (field, value) in more.as_object().unwrap() {
            row[field] = value.clone();
        }
        serde_json::from_value::<crate::dsm::location::Location>(row).unwrap()
    };
    let plain = || serde_json::json!({});
    let all = vec![
        volume("/volume1", "ext4", Some(9), plain()),
        volume(
            "/volume2",
            "btrfs",
            Some(5),
            serde_json::json!({"status": "attention"}),
        ),
        volume(
            "/volume3",
            "btrfs",
            Some(7),
            serde_json::json!({"location": "external"}),
        ),
        volume(
            "/volume4",
            "btrfs",
            None,
            serde_json::json!({"status": "crashed"}),
        ),
        volume(
            "/volume5",
            "btrfs",
            Some(6),
            serde_json::json!({"readonly": true}),
        ),
        volume("/volume6", "btrfs", None, plain()),
    ];
    let chosen = |kind: LunType, volumes: &[crate::dsm::location::Location]| {
        choose_location(volumes.to_vec(), &kind).map(|location| location.path)
    };
    for (kind, path) in [
        (LunType::Exactly("BLUN"), "/volume2"),
        (LunType::Exactly("BLUN_THICK"), "/volume2"),
        (LunType::Exactly("ADV"), "/volume1"),
        (LunType::Exactly("THIN"), "/volume1"),
        (LunType::Thin, "/volume1"),
    ] {
        assert_eq!(chosen(kind, &all).as_deref(), Some(path));
    }
    assert_eq!(chosen(LunType::Exactly("BLUN"), &all[2..5]), None);
    // Of volumes that do not report free space, any is better than none.
    assert_eq!(
        chosen(LunType::Thin, &all[4..]).as_deref(),
        Some("/volume6")
    );
}
