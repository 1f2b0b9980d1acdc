use super::*;
use proto::csi::volume_capability::{AccessMode, BlockVolume, MountVolume, access_mode::Mode};
use tonic::Code;

fn mount(fs_type: &str, mode: Mode) -> csi::VolumeCapability {
    let mount = MountVolume {
        fs_type: fs_type.to_owned(),
        ..MountVolume::default()
    };
    csi::VolumeCapability {
        access_type: Some(AccessType::Mount(mount)),
        access_mode: Some(AccessMode { mode: mode.into() }),
    }
}

fn create(parameters: &[(&str, &str)], fs_type: &str) -> Result<CreateVolume, Error> {
    CreateVolume::read(&csi::CreateVolumeRequest {
        name: "pvc-1".to_owned(),
        volume_capabilities: vec![mount(fs_type, Mode::SingleNodeWriter)],
        parameters: parameters
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
        ..csi::CreateVolumeRequest::default()
    })
}

/// design.md#parameters
#[test]
fn the_storage_class_of_the_article_works() {
    let volume = create(
        &[
            ("location", "/volume1"),
            ("type", "BLUN"),
            ("csi.storage.k8s.io/pvc/name", "x"),
        ],
        "",
    )
    .unwrap();
    assert_eq!(volume.parameters.kind, LunType::Exactly("BLUN"));
    assert_eq!(volume.parameters.location.as_deref(), Some("/volume1"));
    let official = create(
        &[
            ("dsm", "10.0.0.5"),
            ("type", "thin"),
            ("protocol", "iscsi"),
            ("fsType", "XFS"),
        ],
        "xfs",
    )
    .unwrap();
    for class in [
        &[("fstype", "xfs"), ("formatOptions", "--nodiscard")][..],
        &[("fsType", "xfs"), ("fstype", "XFS")],
        &[("fsType", ""), ("fstype", "xfs")],
    ] {
        let volume = create(class, "").unwrap();
        assert_eq!(volume.parameters.fs_type, Some(FsType::Xfs), "{class:?}");
    }
    assert_eq!(official.parameters.kind.on("ext4"), "ADV");
    assert_eq!(official.parameters.fs_type, Some(FsType::Xfs));
}

/// design.md#parameters
#[test]
fn errors_name_unknown_and_contradicting_parameters() {
    for (parameters, fs_type, named) in [
        (&[("locatoin", "/volume1")][..], "", "location, type"),
        (&[("fsType", "xfs")], "ext4", "disagrees"),
        (&[("fsType", "zfs")], "", "zfs"),
        (&[("fstype", "xfs")], "ext4", "parameters[fstype]"),
        (
            &[("fsType", "ext4"), ("fstype", "xfs")],
            "",
            "make them equal",
        ),
        (
            &[("formatOptions", "-O bigalloc -C 65536")],
            "",
            "\"-O bigalloc\" is not allowed",
        ),
        (
            &[("formatOptions", "-m uuid=6f1c"), ("fsType", "xfs")],
            "",
            "same UUID",
        ),
        (&[("location", "/etc")], "", "/etc"),
        (&[("type", "blun")], "", "BLUN_THICK"),
        (&[("protocol", "smb")], "", "iscsi"),
    ] {
        let error = create(parameters, fs_type).unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(error.chain().contains(named), "{}", error.chain());
    }
}

#[test]
fn multi_node_is_for_raw_block() {
    let error = Capability::read(
        "volume_capability",
        Some(&mount("", Mode::MultiNodeMultiWriter)),
    )
    .unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    let block = csi::VolumeCapability {
        access_type: Some(AccessType::Block(BlockVolume {})),
        access_mode: Some(AccessMode {
            mode: Mode::MultiNodeMultiWriter.into(),
        }),
    };
    assert!(
        Capability::read("volume_capability", Some(&block))
            .unwrap()
            .multi_node()
    );
}

/// design.md#sizes
#[test]
fn impossible_ranges_are_rejected() {
    let read = |required_bytes, limit_bytes| {
        Range::read(Some(&csi::CapacityRange {
            required_bytes,
            limit_bytes,
        }))
        .map_err(|error| error.code())
    };
    assert_eq!(read(0, 0), Ok(Range::default()));
    assert_eq!(
        read(5, 0),
        Ok(Range {
            required: Bytes(5),
            limit: None
        })
    );
    assert_eq!(read(-1, 0), Err(Code::InvalidArgument));
    assert_eq!(read(0, -1), Err(Code::InvalidArgument));
    assert_eq!(read(5, 4), Err(Code::OutOfRange));
    assert_eq!(read(i64::MAX, 0), Err(Code::OutOfRange));
}

/// design.md#lun-names
#[test]
fn only_names_that_the_specification_bans_are_rejected() {
    for name in ["a_b", "with blanks", "ü/€", "tab\there", &"n".repeat(128)] {
        assert!(check_name(name).is_ok(), "{name}");
    }
    for name in ["bell\x07", "\0", "\u{85}", &"n".repeat(129)] {
        assert!(check_name(name).is_err(), "{name:?}");
    }
}

#[test]
fn the_digest_distinguishes_parameters() {
    let digest = |parameters, fs_type| create(parameters, fs_type).unwrap().parameters.digest();
    assert_eq!(
        digest(&[("fsType", "xfs")], ""),
        digest(&[("fsType", "XFS")], "xfs")
    );
    assert_ne!(
        digest(&[("fsType", "xfs")], ""),
        digest(&[("fsType", "ext4")], "")
    );
    assert_ne!(digest(&[("formatOptions", "-i 8192")], ""), digest(&[], ""));
}
