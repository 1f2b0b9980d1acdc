//! Validation of the node service's requests: bad input is refused before anything is done.

use proto::csi::volume_capability::{
    AccessMode, AccessType, BlockVolume, MountVolume, access_mode::Mode,
};
use tonic::Code;

use super::*;
use crate::host::fake::{NODE, UUID};

fn id() -> String {
    format!("nas1/{UUID}")
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "the field of the message is an Option"
)]
fn mounted(fs_type: &str, flags: &[&str], mode: Mode) -> Option<csi::VolumeCapability> {
    let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
    let mount = MountVolume {
        fs_type: fs_type.to_owned(),
        mount_flags: flags,
        ..MountVolume::default()
    };
    Some(csi::VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Mount(mount)),
    })
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "the field of the message is an Option"
)]
fn raw(mode: Mode) -> Option<csi::VolumeCapability> {
    Some(csi::VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Block(BlockVolume {})),
    })
}

fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

fn context() -> PublishContext {
    let uuid = UUID.parse().unwrap();
    let iqn = crate::publication::Iqn::without_nonce(&uuid, &NodeId::derive(NODE, "iqn.x"));
    PublishContext {
        portals: vec!["10.0.0.5:3260".parse().unwrap()],
        iqn,
        lun: 1,
        uuid,
        auth: None,
        chap: None,
    }
}

fn stage() -> csi::NodeStageVolumeRequest {
    csi::NodeStageVolumeRequest {
        volume_id: id(),
        publish_context: context().to_map(),
        staging_target_path: "/staging".to_owned(),
        volume_capability: mounted("", &[], Mode::SingleNodeWriter),
        ..csi::NodeStageVolumeRequest::default()
    }
}

fn publish() -> csi::NodePublishVolumeRequest {
    csi::NodePublishVolumeRequest {
        volume_id: id(),
        publish_context: context().to_map(),
        staging_target_path: "/staging".to_owned(),
        target_path: "/pods/1".to_owned(),
        volume_capability: mounted("", &[], Mode::SingleNodeWriter),
        ..csi::NodePublishVolumeRequest::default()
    }
}

#[track_caller]
fn fails<T: std::fmt::Debug>(read: Result<T, Error>, code: Code, cause: &str) {
    let error = read.unwrap_err();
    assert_eq!(error.code(), code, "{error}");
    assert!(
        error.chain().contains(cause),
        "{error} does not name {cause}"
    );
}

fn staged(change: impl FnOnce(&mut csi::NodeStageVolumeRequest)) -> Result<Stage, Error> {
    let mut message = stage();
    change(&mut message);
    Stage::read(&message)
}

fn published(change: impl FnOnce(&mut csi::NodePublishVolumeRequest)) -> Result<Publish, Error> {
    let mut message = publish();
    change(&mut message);
    Publish::read(&message)
}

#[test]
fn a_good_stage_is_understood() {
    let request = staged(|_| {}).unwrap();
    assert_eq!(
        (request.staging.as_str(), &request.context),
        ("/staging", &context())
    );
    assert_eq!(
        request.intent,
        Intent {
            mode: VolumeMode::FileSystem {
                fs: FsType::Ext4,
                flags: vec![]
            },
            readonly: false,
            shared: false
        }
    );
    let tidy = staged(|m| m.staging_target_path = "/a//b/".to_owned()).unwrap();
    assert_eq!(tidy.staging, "/a/b");
}

#[test]
fn missing_fields_come_first() {
    const MISSING: Code = Code::InvalidArgument;
    fails(
        staged(|m| m.volume_id = String::new()),
        MISSING,
        "volume_id",
    );
    fails(
        staged(|m| m.staging_target_path = String::new()),
        MISSING,
        "staging_target_path",
    );
    fails(
        staged(|m| m.volume_capability = None),
        MISSING,
        "volume_capability",
    );
    fails(
        staged(|m| m.volume_capability.as_mut().unwrap().access_type = None),
        MISSING,
        "access_type",
    );
    fails(
        staged(|m| m.publish_context.clear()),
        MISSING,
        "publish_context",
    );
    fails(
        staged(|m| (m.volume_id, m.volume_capability) = ("foreign".to_owned(), None)),
        MISSING,
        "volume_capability",
    );
    fails(
        published(|m| (m.volume_id, m.target_path) = ("foreign".to_owned(), String::new())),
        MISSING,
        "target_path",
    );
    fails(
        published(|m| m.volume_capability = None),
        MISSING,
        "volume_capability",
    );
    fails(
        Unstage::read(&csi::NodeUnstageVolumeRequest {
            volume_id: "foreign".to_owned(),
            ..Default::default()
        }),
        MISSING,
        "staging_target_path",
    );
    fails(
        Unpublish::read(&csi::NodeUnpublishVolumeRequest {
            volume_id: "foreign".to_owned(),
            ..Default::default()
        }),
        MISSING,
        "target_path",
    );
    fails(
        Stats::read(&csi::NodeGetVolumeStatsRequest {
            volume_path: "some/path".to_owned(),
            ..Default::default()
        }),
        MISSING,
        "volume_id",
    );
    fails(
        Stats::read(&csi::NodeGetVolumeStatsRequest {
            volume_id: "foreign".to_owned(),
            ..Default::default()
        }),
        MISSING,
        "volume_path",
    );
    fails(
        Expand::read(&csi::NodeExpandVolumeRequest {
            volume_id: id(),
            ..Default::default()
        }),
        MISSING,
        "volume_path",
    );
    // CSI v1.12 has a different code for this one.
    fails(
        published(|m| m.staging_target_path = String::new()),
        Code::FailedPrecondition,
        "staging_target_path",
    );
}

/// design.md#volume-handle
#[test]
fn ids_that_we_never_issued() {
    for foreign in [
        "x",
        UUID,
        &format!("nas1/../{UUID}"),
        "nas1/name",
        &format!("NAS/{UUID}"),
    ] {
        let foreign = foreign.to_owned();
        fails(
            staged(|m| m.volume_id.clone_from(&foreign)),
            Code::NotFound,
            "volume",
        );
        fails(
            published(|m| m.volume_id.clone_from(&foreign)),
            Code::NotFound,
            "volume",
        );
        let path = || "/some/path".to_owned();
        fails(
            Unstage::read(&csi::NodeUnstageVolumeRequest {
                volume_id: foreign.clone(),
                staging_target_path: path(),
            }),
            Code::NotFound,
            "volume",
        );
        fails(
            Stats::read(&csi::NodeGetVolumeStatsRequest {
                volume_id: foreign.clone(),
                volume_path: path(),
                ..Default::default()
            }),
            Code::NotFound,
            "volume",
        );
        fails(
            Expand::read(&csi::NodeExpandVolumeRequest {
                volume_id: foreign.clone(),
                volume_path: path(),
                ..Default::default()
            }),
            Code::NotFound,
            "volume",
        );
        let unpublish = Unpublish::read(&csi::NodeUnpublishVolumeRequest {
            volume_id: foreign,
            target_path: path(),
        })
        .unwrap();
        assert_eq!(unpublish.volume, None);
    }
    let relative = csi::NodeGetVolumeStatsRequest {
        volume_id: id(),
        volume_path: "some/path".to_owned(),
        ..Default::default()
    };
    fails(Stats::read(&relative), Code::NotFound, "not absolute");
}

#[test]
fn ambiguous_paths_are_refused() {
    let long = format!("/{}", "x".repeat(5000));
    for (path, cause) in [
        ("relative/path", "absolute"),
        ("/", "root"),
        ("//", "root"),
        ("/a/../b", ".."),
        ("/..", ".."),
        ("/a/./b", ".."),
        ("/a\0b", "control"),
        ("/a\nb", "control"),
        (long.as_str(), "4000"),
    ] {
        let path = path.to_owned();
        fails(
            staged(|m| m.staging_target_path.clone_from(&path)),
            Code::InvalidArgument,
            cause,
        );
        fails(
            published(|m| m.target_path.clone_from(&path)),
            Code::InvalidArgument,
            cause,
        );
        fails(
            published(|m| m.staging_target_path.clone_from(&path)),
            Code::InvalidArgument,
            cause,
        );
        fails(
            Unstage::read(&csi::NodeUnstageVolumeRequest {
                volume_id: id(),
                staging_target_path: path.clone(),
            }),
            Code::InvalidArgument,
            cause,
        );
        fails(
            Unpublish::read(&csi::NodeUnpublishVolumeRequest {
                volume_id: id(),
                target_path: path,
            }),
            Code::InvalidArgument,
            cause,
        );
    }
    fails(
        published(|m| m.target_path = "/staging/".to_owned()),
        Code::InvalidArgument,
        "another path",
    );
    assert!(staged(|m| m.staging_target_path = "/pods/ü with blanks/..x".to_owned()).is_ok());
}

/// design.md#parameters
#[test]
fn the_file_system_type_comes_from_capability_or_context() {
    let fs = |asked: &str, made: &[(&str, &str)]| {
        let request = staged(|m| {
            m.volume_capability = mounted(asked, &[], Mode::SingleNodeWriter);
            m.volume_context = map(made);
        })?;
        Ok(match request.intent.mode {
            VolumeMode::FileSystem { fs, .. } => fs,
            VolumeMode::Device => unreachable!("a file system was requested"),
        })
    };
    assert_eq!(fs("", &[]).unwrap(), FsType::Ext4);
    assert_eq!(fs("XFS", &[]).unwrap(), FsType::Xfs);
    assert_eq!(fs("", &[("fsType", "btrfs")]).unwrap(), FsType::Btrfs);
    assert_eq!(
        fs(
            "xfs",
            &[
                ("fsType", "Xfs"),
                ("storage.kubernetes.io/csiProvisionerIdentity", "x")
            ]
        )
        .unwrap(),
        FsType::Xfs
    );
    fails(
        fs("xfs", &[("fsType", "ext4")]),
        Code::InvalidArgument,
        "disagrees",
    );
    fails(fs("ntfs", &[]), Code::InvalidArgument, "ntfs");
    fails(fs("", &[("fsType", "zfs")]), Code::InvalidArgument, "zfs");
    fails(
        fs("", &[("formatOptions", "-S /dev/sda")]),
        Code::InvalidArgument,
        "-S",
    );
}

#[test]
fn access_modes() {
    let intent =
        |capability| staged(|m| m.volume_capability = capability).map(|request| request.intent);
    let shared = |mode| intent(raw(mode)).unwrap().shared;
    assert!(
        !shared(Mode::SingleNodeWriter)
            && !shared(Mode::SingleNodeSingleWriter)
            && !shared(Mode::SingleNodeReaderOnly)
    );
    assert!(
        shared(Mode::SingleNodeMultiWriter)
            && shared(Mode::MultiNodeMultiWriter)
            && shared(Mode::MultiNodeReaderOnly)
    );
    let reader = intent(mounted("xfs", &["noatime"], Mode::SingleNodeReaderOnly)).unwrap();
    assert!(reader.readonly);
    assert_eq!(
        reader.mode,
        VolumeMode::FileSystem {
            fs: FsType::Xfs,
            flags: vec!["noatime".to_owned(), "ro".to_owned()]
        }
    );
    fails(
        intent(mounted("", &[], Mode::MultiNodeMultiWriter)),
        Code::InvalidArgument,
        "one node",
    );
    fails(
        intent(mounted("", &[], Mode::Unknown)),
        Code::InvalidArgument,
        "access_mode",
    );
    fails(
        intent(mounted("", &["bind"], Mode::SingleNodeWriter)),
        Code::InvalidArgument,
        "bind",
    );
    fails(
        intent(mounted("", &["a b"], Mode::SingleNodeWriter)),
        Code::InvalidArgument,
        "mount_flags",
    );
    // This is what Kubernetes sends for a pod with `readOnly: true` on a claim of volumeMode Block.
    for mode in [Mode::SingleNodeWriter, Mode::SingleNodeReaderOnly] {
        let asked = published(|m| (m.readonly, m.volume_capability) = (true, raw(mode)));
        assert!(asked.unwrap().readonly);
    }
}

/// design.md#portals
#[test]
fn publish_contexts_belong_to_the_volume_and_the_node() {
    for (key, value) in [
        ("portals", ""),
        ("portals", "nas.local"),
        ("iqn", "/etc/passwd"),
        ("lun", "-1"),
        ("lun", "70000"),
        ("uuid", "x"),
    ] {
        fails(
            staged(|m| drop(m.publish_context.insert(key.to_owned(), value.to_owned()))),
            Code::InvalidArgument,
            key,
        );
    }
    let other = "00000000-f296-4d4b-b712-a85c139f9dac";
    fails(
        staged(|m| {
            m.publish_context
                .insert("uuid".to_owned(), other.to_owned());
        }),
        Code::InvalidArgument,
        "uuid",
    );
    let request = staged(|_| {}).unwrap();
    assert!(request.must_be_for(&NodeId::derive(NODE, "iqn.x")).is_ok());
    fails(
        request.must_be_for(&NodeId::derive("worker-2", "iqn.x")),
        Code::InvalidArgument,
        "worker-2",
    );
    fails(
        request.must_be_for(&NodeId::derive(NODE, "iqn.y")),
        Code::InvalidArgument,
        "initiator",
    );
}

/// design.md#node-expansion-is-always-required
#[test]
fn an_expansion_needs_only_volume_and_path() {
    let read = |staging: &str, capability| {
        let message = csi::NodeExpandVolumeRequest {
            volume_id: id(),
            volume_path: "/staging".to_owned(),
            staging_target_path: staging.to_owned(),
            volume_capability: capability,
            ..Default::default()
        };
        Expand::read(&message).unwrap()
    };
    assert_eq!(read("", None).range, Range::default());
    assert!(!read("", None).may_be_staged_device && read("/staging", None).may_be_staged_device);
    assert!(read("", raw(Mode::SingleNodeWriter)).may_be_staged_device);
    assert!(!read("/staging", mounted("", &[], Mode::SingleNodeWriter)).may_be_staged_device);
    let sized = |required_bytes, limit_bytes| {
        let capacity_range = Some(csi::CapacityRange {
            required_bytes,
            limit_bytes,
        });
        Expand::read(&csi::NodeExpandVolumeRequest {
            volume_id: id(),
            volume_path: "/s".to_owned(),
            capacity_range,
            ..Default::default()
        })
    };
    fails(sized(-1, 0), Code::InvalidArgument, "required_bytes");
    fails(sized(2, 1), Code::OutOfRange, "limit_bytes");
}
