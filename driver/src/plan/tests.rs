use super::*;
use crate::dsm::lun::Kind;
use crate::dsm::target::Mapping;
use crate::request::{LunType, Parameters};
use proptest::prelude::*;
use tonic::Code;

const DRIVER: &str = "csi.synology.com";

fn uuid() -> LunUuid {
    "13a3cd1e-f296-4d4b-b712-a85c139f9dac".parse().unwrap()
}

fn asked(range: Range) -> CreateVolume {
    let parameters = Parameters {
        nas: None,
        dsm: None,
        location: Some("/volume1".to_owned()),
        kind: LunType::Exactly("BLUN"),
        kind_given: true,
        fs_type: None,
        format_options: None,
    };
    CreateVolume {
        name: "pvc-1".to_owned(),
        range,
        parameters,
    }
}

fn lun(asked: &CreateVolume) -> Lun {
    Lun {
        uuid: uuid().to_string(),
        name: "csi-pvc-1".to_owned(),
        size: Bytes::gib(10).0,
        location: "/volume1".to_owned(),
        description: asked.parameters.mark(&asked.name).description(DRIVER),
        kind: Kind::Number(263),
        type_str: Some("BLUN".to_owned()),
        status: Some("normal".to_owned()),
        is_action_locked: Some(false),
        is_mapped: Some(false),
    }
}

#[test]
fn choice_15_new_sizes() {
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
    assert_eq!(
        size((1 << 30) + 1, Some((1 << 30) + 2)),
        Err(Code::OutOfRange)
    );
}

#[test]
fn choice_13_a_smaller_expansion_is_done_already() {
    let plan = |required, limit: Option<Bytes>| {
        expand(Bytes::gib(10), &Range { required, limit }).map_err(|error| error.code())
    };
    assert_eq!(plan(Bytes::gib(5), None), Ok(Expand::Done(Bytes::gib(10))));
    assert_eq!(plan(Bytes::gib(10), None), Ok(Expand::Done(Bytes::gib(10))));
    assert_eq!(plan(Bytes::gib(15), None), Ok(Expand::Grow(Bytes::gib(15))));
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
    #[test]
    fn choice_13_no_plan_shrinks_or_leaves_the_range(present in 1_u64..1 << 50, required in 0_u64..1 << 50, limit in proptest::option::of(1_u64..1 << 50)) {
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

#[test]
fn choice_15_the_same_volume_is_adopted() {
    let volume = asked(Range {
        required: Bytes::gib(10),
        limit: None,
    });
    assert!(adopt(DRIVER, &lun(&volume), &volume).is_ok());
}

type Change = fn(&mut Lun);

#[test]
fn choice_15_another_volume_is_not() {
    let volume = asked(Range {
        required: Bytes::gib(10),
        limit: Some(Bytes::gib(10)),
    });
    let changes: [(&str, Change); 7] = [
        ("at least", |lun| lun.size -= 1),
        ("at most", |lun| lun.size += 1),
        ("/volume2", |lun| lun.location = "/volume2".to_owned()),
        ("ADV", |lun| lun.type_str = Some("ADV".to_owned())),
        ("mark", |lun| lun.description = "mine".to_owned()),
        ("pvc-2", |lun| {
            lun.description = lun.description.replace("pvc-1", "pvc-2");
        }),
        ("fsType", |lun| {
            lun.description = lun.description.replace("parameters=", "parameters=0");
        }),
    ];
    for (named, change) in changes {
        let mut other = lun(&volume);
        change(&mut other);
        let error = adopt(DRIVER, &other, &volume).unwrap_err();
        assert_eq!(error.code(), Code::AlreadyExists, "{named}");
        assert!(error.chain().contains(named), "{}", error.chain());
    }
}

#[test]
fn choice_18_a_locked_lun_is_not_handed_out() {
    let volume = asked(Range::default());
    for (locked, status) in [
        (Some(true), Some("normal")),
        (None, Some("normal")),
        (Some(false), Some("creating")),
        (Some(false), None),
    ] {
        let mut other = lun(&volume);
        (other.is_action_locked, other.status) = (locked, status.map(str::to_owned));
        assert_eq!(
            adopt(DRIVER, &other, &volume).unwrap_err().code(),
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

fn own() -> Iqn {
    Iqn::of_publication(&uuid(), &NodeId::derive("a", "i"))
}

fn other() -> Iqn {
    Iqn::of_publication(&uuid(), &NodeId::derive("b", "i"))
}

#[test]
fn choice_5_a_publication_is_judged_by_every_row() {
    let judge = |multi, targets: &[Target]| published(&uuid(), &own(), multi, targets);
    let (mine, theirs) = (target(own().as_str(), true), target(other().as_str(), true));
    assert_eq!(
        judge(false, std::slice::from_ref(&mine)),
        Published::Here(1)
    );
    assert!(matches!(judge(false, &[]), Published::NotHere(_)));
    assert!(matches!(
        judge(false, &[target(own().as_str(), false)]),
        Published::NotHere(_)
    ));
    assert!(matches!(
        judge(false, &[mine.clone(), theirs.clone()]),
        Published::Conflict { .. }
    ));
    assert_eq!(
        judge(true, &[mine.clone(), theirs.clone()]),
        Published::Here(1)
    );
    // Before anything is made: another node has it, or nobody.
    assert!(matches!(
        judge(false, std::slice::from_ref(&theirs)),
        Published::Conflict { .. }
    ));
    assert!(matches!(judge(true, &[theirs]), Published::NotHere(_)));
    // A target of another node that has yet to be mapped is a publication under way.
    assert!(matches!(
        judge(false, &[mine.clone(), target(other().as_str(), false)]),
        Published::Conflict { .. }
    ));
    let foreign = target("iqn.2000-01.com.synology:nas.default-target.1", true);
    assert!(matches!(
        judge(true, &[mine.clone(), foreign]),
        Published::Conflict { .. }
    ));
    // Rows about other LUNs say nothing, whatever the filter let through.
    let mut unrelated = target("iqn.2000-01.com.synology:nas.x", true);
    unrelated.mapped_luns[0].lun_uuid = "00000000-0000-0000-0000-000000000000".to_owned();
    assert_eq!(judge(false, &[unrelated, mine]), Published::Here(1));
}

#[test]
fn choice_19_a_holder_is_described() {
    let text = holders(&uuid(), &[target(other().as_str(), true)])[0].to_string();
    assert!(text.contains("node b:"), "{text}");
}
