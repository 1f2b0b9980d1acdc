//! Requests as a CO sends them, and functions to make them invalid.

use std::collections::HashMap;

use e2e::GIB;
use e2e::harness::test_volume::{Content, at_least, capability, create_request};
use proto::csi;
use proto::csi::volume_capability::AccessType;
use proto::csi::volume_capability::access_mode::Mode;

/// A uuid that no LUN has.
pub(crate) const UUID: &str = "0f5a1c9e-0000-4000-8000-000000000000";
/// A node that is not this one.
pub(crate) const NODE: &str = "worker-7:0123abcd";
/// Another such node.
pub(crate) const OTHER_NODE: &str = "worker-8:89ab4567";

/// The id of a volume of the configured NAS that does not exist.
pub(crate) fn no_such_volume() -> String {
    format!("nas1/{UUID}")
}

/// A well-formed volume id with a NAS that is not configured.
pub(crate) fn other_nas() -> String {
    format!("nas9/{UUID}")
}

/// Ids that the driver can never have issued: other formats, path traversal, hostile strings.
pub(crate) fn foreign_ids() -> Vec<(&'static str, String)> {
    vec![
        ("a word", "some-volume".to_owned()),
        ("a bare uuid", UUID.to_owned()),
        ("a LUN's name", "nas1/csi-pvc-1".to_owned()),
        ("a path upwards", format!("nas1/../{UUID}")),
        ("a path", "/etc/passwd".to_owned()),
        ("a slash", "/".to_owned()),
        ("no NAS", format!("/{UUID}")),
        ("more behind it", format!("nas1/{UUID}/..")),
        ("upper case", format!("nas1/{}", UUID.to_uppercase())),
        ("a NAS in upper case", format!("NAS1/{UUID}")),
        ("NUL", format!("nas1/{UUID}\0")),
        ("a line end", format!("nas1/{UUID}\n")),
        ("100 kB", "x".repeat(100_000)),
    ]
}

/// Returns the request with a change.
pub(crate) fn modified<T>(mut request: T, change: impl FnOnce(&mut T)) -> T {
    change(&mut request);
    request
}

/// A map of strings.
pub(crate) fn map<const N: usize>(entries: [(&str, &str); N]) -> HashMap<String, String> {
    entries
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

pub(crate) fn range(required_bytes: i64, limit_bytes: i64) -> csi::CapacityRange {
    csi::CapacityRange {
        required_bytes,
        limit_bytes,
    }
}

/// An ext4 with this access mode.
pub(crate) fn mounted(mode: Mode) -> csi::VolumeCapability {
    capability(Content::Fs("ext4"), mode)
}

/// This file system, with a single writer.
pub(crate) fn of_type(fs_type: &'static str) -> csi::VolumeCapability {
    capability(Content::Fs(fs_type), Mode::SingleNodeWriter)
}

/// ext4 with a single writer and a mount flag.
pub(crate) fn flagged(flag: &str) -> csi::VolumeCapability {
    modified(of_type("ext4"), |capability| {
        if let Some(AccessType::Mount(mount)) = &mut capability.access_type {
            mount.mount_flags.push(flag.to_owned());
        }
    })
}

/// A raw device with this access mode.
pub(crate) fn device(mode: Mode) -> csi::VolumeCapability {
    capability(Content::Block, mode)
}

/// Capabilities that every RPC must reject, with the expected words of the error.
#[rustfmt::skip] // One row per line.
pub(crate) fn bad_capabilities() -> Vec<(&'static str, csi::VolumeCapability, Vec<&'static str>)> {
    let of_mode = |number| {
        modified(of_type("ext4"), |capability| {
            capability.access_mode.get_or_insert_default().mode = number;
        })
    };
    let one_node = "belongs to one node at a time";
    vec![
        (
            "a capability without access type",
            modified(of_type("ext4"), |c| c.access_type = None),
            vec!["missing", "access_type must be block or mount"],
        ),
        (
            "a capability without access mode",
            modified(of_type("ext4"), |c| c.access_mode = None),
            vec!["missing", "access_mode must be set"],
        ),
        (
            "access mode UNKNOWN",
            of_mode(0),
            vec!["access_mode", "UNKNOWN", "choose one of the access modes"],
        ),
        (
            "an access mode that CSI has not",
            of_mode(99),
            vec!["access_mode", "99", "choose one of the access modes"],
        ),
        (
            "a file system for many writers",
            mounted(Mode::MultiNodeMultiWriter),
            vec!["access_mode", "MULTI_NODE_MULTI_WRITER", one_node],
        ),
        (
            "a file system for many readers",
            mounted(Mode::MultiNodeReaderOnly),
            vec!["access_mode", "MULTI_NODE_READER_ONLY", one_node],
        ),
        (
            "a file system for readers and a writer",
            mounted(Mode::MultiNodeSingleWriter),
            vec!["access_mode", "MULTI_NODE_SINGLE_WRITER", one_node],
        ),
        (
            "a file system that the driver does not make",
            of_type("ntfs"),
            vec!["fs_type", "ntfs", "use ext4, xfs or btrfs"],
        ),
        (
            "a path for a file system",
            of_type("../ext4"),
            vec!["fs_type", "../ext4", "use ext4, xfs or btrfs"],
        ),
    ]
}

/// `CreateVolume` with 1 GiB, ext4 and the article's StorageClass.
pub(crate) fn create(name: &str) -> csi::CreateVolumeRequest {
    create_request(name, GIB, Content::Fs("ext4"))
}

/// `create` with only these parameters.
pub(crate) fn create_with<const N: usize>(
    name: &str,
    parameters: [(&str, &str); N],
) -> csi::CreateVolumeRequest {
    modified(create(name), |request| request.parameters = map(parameters))
}

/// `create` with the article's parameters and one more.
pub(crate) fn create_and(name: &str, key: &str, value: &str) -> csi::CreateVolumeRequest {
    modified(create(name), |request| {
        drop(request.parameters.insert(key.to_owned(), value.to_owned()));
    })
}

/// `create` with this size range.
pub(crate) fn create_sized(name: &str, required: i64, limit: i64) -> csi::CreateVolumeRequest {
    modified(create(name), |request| {
        request.capacity_range = Some(range(required, limit));
    })
}

pub(crate) fn delete(id: &str) -> csi::DeleteVolumeRequest {
    csi::DeleteVolumeRequest {
        volume_id: id.to_owned(),
        ..Default::default()
    }
}

pub(crate) fn publish(id: &str, node: &str) -> csi::ControllerPublishVolumeRequest {
    let (volume_id, node_id) = (id.to_owned(), node.to_owned());
    csi::ControllerPublishVolumeRequest {
        volume_id,
        node_id,
        volume_capability: Some(of_type("ext4")),
        ..Default::default()
    }
}

pub(crate) fn unpublish(id: &str, node: &str) -> csi::ControllerUnpublishVolumeRequest {
    csi::ControllerUnpublishVolumeRequest {
        volume_id: id.to_owned(),
        node_id: node.to_owned(),
        ..Default::default()
    }
}

pub(crate) fn validate(id: &str) -> csi::ValidateVolumeCapabilitiesRequest {
    csi::ValidateVolumeCapabilitiesRequest {
        volume_id: id.to_owned(),
        volume_capabilities: vec![of_type("ext4")],
        ..Default::default()
    }
}

pub(crate) fn get(id: &str) -> csi::ControllerGetVolumeRequest {
    csi::ControllerGetVolumeRequest {
        volume_id: id.to_owned(),
    }
}

pub(crate) fn expand(id: &str, required: i64) -> csi::ControllerExpandVolumeRequest {
    csi::ControllerExpandVolumeRequest {
        volume_id: id.to_owned(),
        capacity_range: Some(at_least(required)),
        ..Default::default()
    }
}

/// Secrets that every RPC must reject, with the expected words of the error, which must not contain a value.
#[rustfmt::skip] // One row per line.
pub(crate) fn bad_secrets() -> Vec<(&'static str, HashMap<String, String>, Vec<&'static str>)> {
    const USER: (&str, &str) = ("node.session.auth.username", "alice");
    const PASSWORD: &str = "node.session.auth.password";
    const PASSWORD_IN: &str = "node.session.auth.password_in";
    const USER_IN: (&str, &str) = ("node.session.auth.username_in", "nas");
    const GOOD: (&str, &str) = (PASSWORD, "planted-12345");
    vec![
        ("a name without password", map([USER]), vec!["secrets[node.session.auth.password]", "missing"]),
        ("a password without name", map([GOOD]), vec!["secrets[node.session.auth.username]", "missing"]),
        ("a password of 11 characters", map([USER, (PASSWORD, "planted-123")]), vec!["secrets[node.session.auth.password]", "12 to 16 characters"]),
        ("a password of 17 characters", map([USER, (PASSWORD, "planted-123456789")]), vec!["secrets[node.session.auth.password]", "12 to 16 characters"]),
        ("a password with a line end", map([USER, (PASSWORD, "planted-12345\n")]), vec!["secrets[node.session.auth.password]", "line end"]),
        ("a name with a blank", map([("node.session.auth.username", "al ice"), GOOD]), vec!["secrets[node.session.auth.username]", "blanks"]),
        ("half of the mutual pair", map([USER, GOOD, USER_IN]), vec!["secrets[node.session.auth.password_in]", "missing"]),
        ("mutual CHAP alone", map([USER_IN, (PASSWORD_IN, "planted-67890")]), vec!["secrets[node.session.auth.username]", "the initiator's pair"]),
        ("one password for both", map([USER, GOOD, USER_IN, (PASSWORD_IN, GOOD.1)]), vec!["secrets[node.session.auth.password_in]", "another password"]),
        ("a key of another driver", map([USER, GOOD, ("chapPassword", "planted-12345")]), vec!["secrets[chapPassword]", "leave it out", PASSWORD]),
    ]
}

/// `ControllerExpandVolume` with both limits of the range.
pub(crate) fn expand_within(
    id: &str,
    required: i64,
    limit: i64,
) -> csi::ControllerExpandVolumeRequest {
    csi::ControllerExpandVolumeRequest {
        capacity_range: Some(range(required, limit)),
        ..expand(id, 0)
    }
}

pub(crate) fn list(max_entries: i32, starting_token: &str) -> csi::ListVolumesRequest {
    csi::ListVolumesRequest {
        max_entries,
        starting_token: starting_token.to_owned(),
    }
}

pub(crate) fn capacity<const N: usize>(parameters: [(&str, &str); N]) -> csi::GetCapacityRequest {
    csi::GetCapacityRequest {
        parameters: map(parameters),
        ..Default::default()
    }
}

pub(crate) fn unstage(id: &str, staging: &str) -> csi::NodeUnstageVolumeRequest {
    csi::NodeUnstageVolumeRequest {
        volume_id: id.to_owned(),
        staging_target_path: staging.to_owned(),
    }
}

pub(crate) fn node_unpublish(id: &str, target: &str) -> csi::NodeUnpublishVolumeRequest {
    csi::NodeUnpublishVolumeRequest {
        volume_id: id.to_owned(),
        target_path: target.to_owned(),
    }
}

pub(crate) fn stats(id: &str, path: &str) -> csi::NodeGetVolumeStatsRequest {
    csi::NodeGetVolumeStatsRequest {
        volume_id: id.to_owned(),
        volume_path: path.to_owned(),
        staging_target_path: String::new(),
    }
}

pub(crate) fn node_expand(id: &str, path: &str, required: i64) -> csi::NodeExpandVolumeRequest {
    let (volume_id, volume_path) = (id.to_owned(), path.to_owned());
    csi::NodeExpandVolumeRequest {
        volume_id,
        volume_path,
        capacity_range: Some(at_least(required)),
        ..Default::default()
    }
}
