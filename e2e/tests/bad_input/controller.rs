//! Table rows for the controller service.

use anyhow::Result;
use e2e::GIB;
use e2e::harness::test_cluster::TestCluster;
use proto::csi;
use proto::csi::volume_capability::access_mode::Mode;
use tonic::Code::{
    self, Aborted, AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, OutOfRange,
    ResourceExhausted, Unavailable, Unimplemented,
};

use crate::fixture::{Fixture, created, uuid};
use crate::request::*;
use crate::table::{Row, nothing_to_do, row};

const TIB: i64 = 1 << 40;
const NO_SUCH_ID: [&str; 2] = [
    "does not exist",
    "ids of this driver have the form <nas>/<lun uuid>",
];
const NO_SUCH_NAS: [&str; 3] = ["volume nas9/", "no nas named \"nas9\"", "add it there"];
const NO_MARK: [&str; 3] = [
    "somebodys",
    "lacks the owner tag of csi.synology.com",
    "touches its own LUNs only",
];
const NO_SUCH_LUN: [&str; 2] = [UUID, "the NAS has no LUN"];

/// `CreateVolume`: invalid requests.
#[rustfmt::skip] // One row per line.
pub(crate) fn create_messages() -> Vec<Row> {
    let refused = |name, request, says: &[&str]| row(name, request, InvalidArgument, says);
    let parameter = |name, key: &str, value: &str, remedy: &str| {
        let key_in_message = format!("parameters[{key}]");
        row(name, create_and("new", key, value), InvalidArgument, [&key_in_message, value, remedy])
    };
    let sized = |name, required, limit, code, says: &[&str]| row(name, create_sized("new", required, limit), code, says);
    let source = csi::VolumeContentSource { r#type: Some(csi::volume_content_source::Type::Snapshot(csi::volume_content_source::SnapshotSource { snapshot_id: "s".to_owned() })) };
    let clone = csi::VolumeContentSource { r#type: Some(csi::volume_content_source::Type::Volume(csi::volume_content_source::VolumeSource { volume_id: no_such_volume() })) };
    let mut rows = vec![
        refused("no name", create(""), &["name is missing", "give the volume a name"]),
        refused("129 characters", create(&"n".repeat(129)), &["name", "nnn", "at most 128 bytes"]),
        refused("a bell in the name", create("ring\x07"), &["name", "ring\\u{7}", "no control characters"]),
        refused("NUL in the name", create("nul\0"), &["name", "nul\\0", "no control characters"]),
        refused("a control character of Unicode in the name", create("next\u{85}line"), &["name", "\\u{85}", "no control characters"]),
        refused("no capability", modified(create("new"), |r| r.volume_capabilities.clear()), &["volume_capabilities is missing", "how the volume is to be used"]),
        refused("a snapshot as source", modified(create("new"), |r| r.volume_content_source = Some(source)), &["volume_content_source", "leave it out"]),
        refused("a volume as source", modified(create("new"), |r| r.volume_content_source = Some(clone)), &["volume_content_source", "leave it out"]),
        refused("mutable parameters", modified(create("new"), |r| r.mutable_parameters = map([("iops", "5")])), &["mutable_parameters", "leave it out"]),
        sized("a negative size", -1, 0, InvalidArgument, &["capacity_range.required_bytes", "-1", "not negative"]),
        sized("a negative limit", 0, i64::MIN, InvalidArgument, &["capacity_range.limit_bytes", "-9223372036854775808", "not negative"]),
        sized("a limit below the requirement", 2 * GIB, GIB, OutOfRange, &["required_bytes 2 GiB", "limit_bytes 1 GiB", "raise the limit"]),
        sized("8 EiB", i64::MAX, 0, OutOfRange, &["required_bytes 9223372036854775807 bytes", "ask for less"]),
        sized("2 EiB", 1 << 61, 0, OutOfRange, &["required_bytes 2097152 TiB", "ask for less"]),
        sized("less than the smallest LUN", 1, GIB - 1, OutOfRange, &["limit_bytes 1073741823 bytes", "at least 1 GiB", "raise limit_bytes"]),
        sized("no whole block fits", GIB + 1, GIB + 2, OutOfRange, &["limit_bytes 1073741826 bytes", "1073742336 bytes", "raise limit_bytes"]),
        parameter("an unknown parameter", "locatoin", "/volume1", "known are location, type, fsType"),
        parameter("a parameter in another case", "FSTYPE", "ext4", "known are location, type, fsType"),
        parameter("nearly a key of Kubernetes", "csi.storage.k8s.io", "x", "known are location"),
        parameter("a location outside the volumes", "location", "/etc", "for instance /volume1"),
        parameter("a location that leaves the volume", "location", "/volume1/../etc", "for instance /volume1"),
        parameter("a location without number", "location", "/volume", "for instance /volume1"),
        parameter("an empty location", "location", "", "for instance /volume1"),
        refused("a location with a line end", create_and("new", "location", "/volume1\n"), &["parameters[location]", "/volume1\\n", "for instance /volume1"]),
        parameter("a type in lower case", "type", "blun", "BLUN_THICK"),
        parameter("a LUN on a whole pool", "type", "BLOCK", "thin, thick or one of DSM's"),
        parameter("an empty type", "type", "", "thin, thick or one of DSM's"),
        parameter("a file system that the driver does not make", "fsType", "zfs", "use ext4, xfs or btrfs"),
        parameter("another file system than the capability's", "fsType", "xfs", "disagrees with the fs_type ext4"),
        parameter("another protocol", "protocol", "smb", "iscsi"),
        parameter("an empty protocol", "protocol", "", "iscsi"),
        parameter("an illegal name of a NAS", "nas", "NAS 1", "the driver's configuration"),
        parameter("a floor in per cent", "minFreeSpace", "10%", "for instance 10Gi"),
        parameter("a floor in bytes", "minFreeSpace", "1073741824", "for instance 10Gi"),
        parameter("an option that discards", "formatOptions", "-E discard", "mkfs.ext4"),
        parameter("an option that names another device", "formatOptions", "-J device=/dev/sda", "mkfs.ext4"),
        parameter("a command for a shell", "formatOptions", "; reboot", "mkfs.ext4"),
        parameter("an option that rules growth out", "formatOptions", "-O bigalloc -C 65536", "cannot grow"),
        parameter("an option that gives all volumes one UUID", "formatOptions", "-U 3c6a9c1e-54b0-4a7a-8d3c-1d8a1f9b3a11", "same UUID"),
        parameter("an option that no node could mount", "formatOptions", "-b 65536", "leave it out"),
        refused("two capabilities that disagree", modified(create("new"), |r| r.volume_capabilities.push(of_type("xfs"))), &["mount.fs_type", "ext4", "xfs", "make them equal"]),
        refused("a mount flag that stops the node", modified(create("new"), |r| r.volume_capabilities = vec![flagged("errors=panic")]), &["mount_flags", "errors=panic", "errors=remount-ro"]),
        refused("mount flags that contradict one another", modified(create("new"), |r| r.volume_capabilities = vec![flagged("noatime,relatime")]), &["mount_flags", "relatime", "contradicts"]),
        refused("a mount flag of propagation", modified(create("new"), |r| r.volume_capabilities = vec![flagged("unbindable")]), &["mount_flags", "unbindable", "leave it out"]),
        refused("a mount flag that leads elsewhere", modified(create("new"), |r| r.volume_capabilities = vec![flagged("loop=/dev/sda")]), &["mount_flags", "loop=/dev/sda", "it names no path"]),
        refused("a 100 kB parameter", create_and("new", "type", &"x".repeat(100_000)), &["parameters[type]", "xxx", "thin, thick"]),
    ];
    rows.extend(bad_capabilities().into_iter().map(|(name, capability, says)| {
        let request = modified(create("new"), |r| r.volume_capabilities = vec![of_type("ext4"), capability]);
        row(name, request, InvalidArgument, [&["volume_capabilities"], &says[..]].concat())
    }));
    rows
}

/// `CreateVolume`: requests that the state of the NAS does not allow.
#[rustfmt::skip] // One row per line.
pub(crate) fn create_state() -> Vec<Row> {
    let exists = |name, request, says: &[&str]| row(name, request, AlreadyExists, [&["exists already and differs"], says].concat());
    let idle = |change: fn(&mut csi::CreateVolumeRequest)| modified(create("idle"), change);
    let located = |request: csi::CreateVolumeRequest, location: &str, kind: &str| modified(request, |r| r.parameters = map([("location", location), ("type", kind)]));
    let whole = |location, kind, size| located(create_sized("new", size, 0), location, kind);
    vec![
        row("a NAS that is not configured", create_and("new", "nas", "nas9"), FailedPrecondition, ["\"nas9\"", "configured are: nas1"]),
        row("an address that is not configured", create_and("new", "dsm", "10.9.9.9"), FailedPrecondition, ["10.9.9.9", "configured are: nas1"]),
        row("a location that does not exist", located(create("new"), "/volume99", "BLUN"), InvalidArgument, ["parameters[location]", "/volume99", "name another"]),
        row("the same, type left to the driver", located(create("new"), "/volume99", "thin"), InvalidArgument, ["parameters[location]", "/volume99", "name another"]),
        row("BLUN on ext4", located(create("new"), "/volume2", "BLUN"), InvalidArgument, ["parameters[type]", "\"BLUN\"", "needs btrfs", "choose another type or location"]),
        row("no space for a thick LUN", whole("/volume1", "BLUN_THICK", 30 * TIB), ResourceExhausted, ["csi-new of 30 TiB", "30 TiB at once", "ask for less", "minFreeSpace"]),
        row("no space for a thick LUN on ext4", whole("/volume2", "thick", 3 * TIB), ResourceExhausted, ["csi-new of 3 TiB", "3 TiB at once", "ask for less", "minFreeSpace"]),
        exists("a LUN of this name without our mark", create("taken"), &["csi-taken", "somebody else's", "a LUN of this driver"]),
        exists("a LUN of this name of another volume", create("misnamed"), &["csi-misnamed", "name=another", "\"misnamed\""]),
        exists("the same name, larger", create_sized("idle", 2 * GIB, 0), &["csi-idle", "it has 1 GiB", "at least 2 GiB"]),
        row("the same name, a limit below it", create_sized("idle", 1, GIB - 1), OutOfRange, ["at least 1 GiB", "raise limit_bytes"]),
        exists("the same name, another location", located(create("idle"), "/volume2", "ADV"), &["csi-idle", "/volume1", "/volume2"]),
        exists("the same name, another type", located(create("idle"), "/volume1", "BLUN_THICK"), &["csi-idle", "type BLUN", "type BLUN_THICK"]),
        exists("the same name, another file system", idle(|r| r.volume_capabilities = vec![of_type("xfs")]), &["csi-idle", "fsType"]),
        exists("the same name, other options", idle(|r| drop(r.parameters.insert("formatOptions".to_owned(), "-i 8192".to_owned()))), &["csi-idle", "formatOptions"]),
        row("the same name, still being made", create("locked"), Aborted, ["\"locked\"", "is_action_locked true", "try again later"]),
        row("the same name, crashed", create("crashed"), Aborted, ["\"crashed\"", "status \"crashed\"", "try again later"]),
    ]
}

/// `DeleteVolume`.
#[rustfmt::skip] // One row per line.
pub(crate) fn delete_rows(fixture: &Fixture) -> Vec<Row> {
    let mut rows = vec![
        row("no id", delete(""), InvalidArgument, ["volume_id is missing", "name the volume"]),
        row("a NAS that is not configured", delete(&other_nas()), FailedPrecondition, NO_SUCH_NAS),
        row("a LUN without our mark", delete(&fixture.unmarked), FailedPrecondition, NO_MARK),
        row("a published volume", delete(&fixture.published), FailedPrecondition, ["deletion of volume nas1/", NODE, "unpublish it there first"]),
        row("a volume with a foreign mapping", delete(&fixture.exported), FailedPrecondition, ["iqn.2025-01.org.example:theirs", "not this driver's"]),
        row("a locked volume", delete(&fixture.locked), Aborted, [uuid(&fixture.locked), "is_action_locked true", "try again later"]),
        nothing_to_do("a volume that is gone", delete(&no_such_volume())),
    ];
    rows.extend(foreign_ids().into_iter().map(|(name, id)| nothing_to_do(name, delete(&id))));
    rows
}

/// `ControllerPublishVolume` and `ControllerUnpublishVolume`.
#[rustfmt::skip] // One row per line.
pub(crate) fn publish_rows(fixture: &Fixture) -> Vec<Row> {
    let idle = |change: fn(&mut csi::ControllerPublishVolumeRequest)| modified(publish(&fixture.idle, NODE), change);
    let node = |name, id: &str| row(name, publish(&fixture.idle, id), NotFound, ["node", id, "NodeGetInfo", "<node name>:<8 hexadecimal digits>"]);
    let mut rows = vec![
        row("no id", publish("", NODE), InvalidArgument, ["volume_id is missing", "name the volume"]),
        row("no node", publish(&fixture.idle, ""), InvalidArgument, ["node_id is missing", "as NodeGetInfo does"]),
        row("no capability", idle(|r| r.volume_capability = None), InvalidArgument, ["volume_capability is missing", "how the volume is to be used"]),
        row("no capability for an id that is not ours", modified(publish("x", NODE), |r| r.volume_capability = None), InvalidArgument, ["volume_capability is missing"]),
        row("read-only", idle(|r| r.readonly = true), InvalidArgument, ["readonly", "true", "set it in NodePublishVolume"]),
        node("a node of another driver", "worker-1"),
        node("a node in upper case", "Worker-1:0123abcd"),
        node("a node that is a path", "../worker-1:0123abcd"),
        node("a node with a blank", "worker 1:0123abcd"),
        node("a hash that is too short", "worker-1:0123abc"),
        row("a NAS that is not configured", publish(&other_nas(), NODE), FailedPrecondition, NO_SUCH_NAS),
        row("a volume that does not exist", publish(&no_such_volume(), NODE), NotFound, NO_SUCH_LUN),
        row("a LUN without our mark", publish(&fixture.unmarked, NODE), FailedPrecondition, NO_MARK),
        row("a locked volume", publish(&fixture.locked, NODE), Aborted, [uuid(&fixture.locked), "is_action_locked true", "try again later"]),
        row("a second node", publish(&fixture.published, OTHER_NODE), FailedPrecondition, [OTHER_NODE, "it is published to node worker-7:0123abcd", "ControllerUnpublishVolume"]),
        row(
            "a raw device for several nodes, published as a file system",
            modified(publish(&fixture.published, OTHER_NODE), |r| r.volume_capability = Some(device(Mode::SingleNodeWriter))),
            FailedPrecondition,
            ["it is published to node worker-7:0123abcd"],
        ),
        row("a volume with a foreign mapping", publish(&fixture.exported, NODE), FailedPrecondition, ["iqn.2025-01.org.example:theirs", "unmap it there in SAN Manager"]),
        row("unpublishing without id", unpublish("", NODE), InvalidArgument, ["volume_id is missing", "name the volume"]),
        row("unpublishing on a NAS that is not configured", unpublish(&other_nas(), NODE), FailedPrecondition, NO_SUCH_NAS),
        nothing_to_do("unpublishing from another node", unpublish(&fixture.published, OTHER_NODE)),
        nothing_to_do("unpublishing from a node of another driver", unpublish(&fixture.published, "worker-7")),
        nothing_to_do("unpublishing from a path", unpublish(&fixture.published, "../worker-7:0123abcd")),
        nothing_to_do("unpublishing a volume that is gone", unpublish(&no_such_volume(), NODE)),
        nothing_to_do("unpublishing a volume that is gone, from all nodes", unpublish(&no_such_volume(), "")),
        nothing_to_do("unpublishing a volume with a foreign mapping", unpublish(&fixture.exported, "")),
    ];
    rows.extend(foreign_ids().into_iter().map(|(name, id)| row(name, publish(&id, NODE), NotFound, NO_SUCH_ID)));
    rows.extend(foreign_ids().into_iter().map(|(name, id)| nothing_to_do(name, unpublish(&id, NODE))));
    rows.extend(bad_secrets().into_iter().map(|(name, bad, says)| {
        row(name, modified(publish(&fixture.idle, NODE), |r| r.secrets = bad), InvalidArgument, says)
    }));
    rows.extend(bad_capabilities().into_iter().map(|(name, capability, says)| {
        let request = modified(publish(&fixture.idle, NODE), |r| r.volume_capability = Some(capability));
        row(name, request, InvalidArgument, [&["volume_capability"], &says[..]].concat())
    }));
    rows
}

/// `ControllerExpandVolume`.
#[rustfmt::skip] // One row per line.
pub(crate) fn expand_rows(fixture: &Fixture) -> Vec<Row> {
    let idle = |name, required, limit, code, says: &[&str]| row(name, expand_within(&fixture.idle, required, limit), code, says);
    let mut rows = vec![
        row("no id", expand("", GIB), InvalidArgument, ["volume_id is missing", "name the volume"]),
        row("no range", modified(expand(&fixture.idle, 0), |r| r.capacity_range = None), InvalidArgument, ["capacity_range is missing", "required_bytes"]),
        idle("an empty range", 0, 0, InvalidArgument, &["capacity_range is missing", "required_bytes"]),
        idle("a negative size", -GIB, 0, InvalidArgument, &["capacity_range.required_bytes", "-1073741824", "not negative"]),
        idle("a negative limit", GIB, -1, InvalidArgument, &["capacity_range.limit_bytes", "-1", "not negative"]),
        idle("a limit below the requirement", 3 * GIB, 2 * GIB, OutOfRange, &["required_bytes 3 GiB", "limit_bytes 2 GiB", "raise the limit"]),
        idle("8 EiB", i64::MAX, 0, OutOfRange, &["required_bytes 9223372036854775807 bytes", "ask for less"]),
        idle("the present size is above the limit", 1, GIB / 2, OutOfRange, &["limit_bytes 512 MiB", "has 1 GiB already", "do not shrink"]),
        idle("the present size is above a limit alone", 0, GIB - 1, OutOfRange, &["limit_bytes 1073741823 bytes", "has 1 GiB already"]),
        idle("no whole block fits", GIB + 1, GIB + 2, OutOfRange, &["1073742336 bytes", "raise limit_bytes"]),
        row("a NAS that is not configured", expand(&other_nas(), GIB), FailedPrecondition, NO_SUCH_NAS),
        row("a volume that does not exist", expand(&no_such_volume(), GIB), NotFound, NO_SUCH_LUN),
        row("a LUN without our mark", expand(&fixture.unmarked, 2 * GIB), FailedPrecondition, NO_MARK),
        row("a LUN without our mark, to its own size", expand(&fixture.unmarked, GIB), FailedPrecondition, NO_MARK),
        row("a locked volume", expand(&fixture.locked, 2 * GIB), Aborted, [uuid(&fixture.locked), "is_action_locked true", "try again later"]),
        row("a crashed volume", expand(&fixture.crashed, 2 * GIB), Aborted, [uuid(&fixture.crashed), "status \"crashed\"", "try again later"]),
        row("no space", expand(&fixture.thick, 30 * TIB), OutOfRange, [uuid(&fixture.thick), "to 30 TiB", "at once", "ask for less", "min_free_space"]),
    ];
    rows.extend(foreign_ids().into_iter().map(|(name, id)| row(name, expand(&id, GIB), NotFound, NO_SUCH_ID)));
    rows.extend(bad_capabilities().into_iter().map(|(name, capability, says)| {
        let request = modified(expand(&fixture.idle, 2 * GIB), |r| r.volume_capability = Some(capability));
        row(name, request, InvalidArgument, [&["volume_capability"], &says[..]].concat())
    }));
    rows
}

/// Read-only calls: `ValidateVolumeCapabilities`, `ControllerGetVolume`, `ListVolumes`, `GetCapacity`.
#[rustfmt::skip] // One row per line.
pub(crate) fn query_rows(fixture: &Fixture) -> Vec<Row> {
    let idle = |change: fn(&mut csi::ValidateVolumeCapabilitiesRequest)| modified(validate(&fixture.idle), change);
    let parameters = |entries: &[(&str, &str)]| entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let with_parameters = |entries| modified(validate(&fixture.idle), |r| r.parameters = parameters(entries));
    let room = |name, key: &str, value: &str, remedy: &str| row(name, capacity([(key, value)]), InvalidArgument, [key, value, remedy]);
    let mut rows = vec![
        row("no id", validate(""), InvalidArgument, ["volume_id is missing", "name the volume"]),
        row("no capability", idle(|r| r.volume_capabilities.clear()), InvalidArgument, ["volume_capabilities is missing"]),
        row("no capability for an id that is not ours", modified(validate("x"), |r| r.volume_capabilities.clear()), InvalidArgument, ["volume_capabilities is missing"]),
        row("a NAS that is not configured", validate(&other_nas()), FailedPrecondition, NO_SUCH_NAS),
        row("a volume that does not exist", validate(&no_such_volume()), NotFound, NO_SUCH_LUN),
        row("a LUN without our mark", validate(&fixture.unmarked), FailedPrecondition, NO_MARK),
        row("an unknown parameter", with_parameters(&[("locatoin", "x")]), Code::Ok, ["parameters[locatoin]", "known are"]),
        row("an illegal parameter", with_parameters(&[("type", "blun")]), Code::Ok, ["parameters[type]", "blun", "BLUN_THICK"]),
        row("mutable parameters", idle(|r| r.mutable_parameters = map([("iops", "5")])), Code::Ok, ["mutable_parameters", "leave it out"]),
        row("another file system than the volume's", idle(|r| r.volume_context = map([("fsType", "xfs")])), Code::Ok, ["fsType", "xfs", "disagrees", "ext4"]),
        row("no id", get(""), InvalidArgument, ["volume_id is missing", "name the volume"]),
        row("a NAS that is not configured", get(&other_nas()), FailedPrecondition, NO_SUCH_NAS),
        row("a volume that does not exist", get(&no_such_volume()), NotFound, NO_SUCH_LUN),
        row("a LUN without our mark", get(&fixture.unmarked), FailedPrecondition, NO_MARK),
        row("a negative count", list(-1, ""), InvalidArgument, ["max_entries", "-1", "not negative"]),
        row("the least count", list(i32::MIN, ""), InvalidArgument, ["max_entries", "-2147483648", "not negative"]),
        row("a token that is none", list(0, "invalid-token"), Aborted, ["starting_token", "invalid-token", "list again from the start"]),
        row("a handle as token", list(1, &fixture.idle), Aborted, ["starting_token", &fixture.idle, "list again from the start"]),
        row("a token with NUL", list(0, "\0"), Aborted, ["starting_token", "\\0", "list again from the start"]),
        row("a 100 kB token", list(0, &"x".repeat(100_000)), Aborted, ["starting_token", "xxx", "list again from the start"]),
        room("an unknown parameter", "locatoin", "/volume1", "known are"),
        room("an illegal location", "location", "/volume1/x", "for instance /volume1"),
        room("an illegal type", "type", "BLOCK", "thin, thick"),
        room("an illegal file system", "fsType", "ntfs", "use ext4, xfs or btrfs"),
        room("another protocol", "protocol", "nfs", "iscsi"),
    ];
    rows.extend(foreign_ids().into_iter().map(|(name, id)| row(name, validate(&id), NotFound, NO_SUCH_ID)));
    rows.extend(foreign_ids().into_iter().map(|(name, id)| row(name, get(&id), NotFound, NO_SUCH_ID)));
    for (name, capability, says) in bad_capabilities() {
        // An incomplete capability is an error; a complete but unsupported one is simply not confirmed.
        let code = if says[0] == "missing" { InvalidArgument } else { Code::Ok };
        let words = [&["volume_capabilities"], &says[..]].concat();
        rows.push(row(name, modified(validate(&fixture.idle), |r| r.volume_capabilities = vec![capability.clone()]), code, &words));
        rows.push(row(name, modified(capacity([]), |r| r.volume_capabilities = vec![capability]), InvalidArgument, words));
    }
    rows
}

/// RPCs that this driver does not support.
#[rustfmt::skip] // One row per line.
pub(crate) fn unsupported_rows() -> Vec<Row> {
    vec![
        row("not offered", csi::CreateSnapshotRequest::default(), Unimplemented, ["CreateSnapshot", "not among the capabilities"]),
        row("not offered", csi::DeleteSnapshotRequest::default(), Unimplemented, ["DeleteSnapshot", "not among the capabilities"]),
        row("not offered", csi::ListSnapshotsRequest::default(), Unimplemented, ["ListSnapshots", "not among the capabilities"]),
        row("not offered", csi::GetSnapshotRequest::default(), Unimplemented, ["GetSnapshot", "not among the capabilities"]),
        row("not offered", csi::ControllerModifyVolumeRequest::default(), Unimplemented, ["ControllerModifyVolume", "not among the capabilities"]),
    ]
}

/// A NAS that has reached its limits of LUNs and targets.
#[rustfmt::skip] // One row per line.
pub(crate) async fn too_many(small: &TestCluster) -> Result<Vec<Row>> {
    let mut ids = Vec::new();
    for name in ["a", "b", "c", "d"] {
        ids.push(created(small, create(name)).await?);
    }
    for id in &ids[..2] {
        small.plugin.controller().controller_publish_volume(publish(id, NODE)).await?;
    }
    let many_luns = ["csi-e of 1 GiB", "18990541", "as many LUNs as its model allows", "delete LUNs that nobody needs"];
    let many_targets = ["creating target iqn.", "18990542", "as many iSCSI targets as its model allows", "unpublish others"];
    Ok(vec![
        row("one LUN too many", create("e"), ResourceExhausted, many_luns),
        row("one target too many", publish(&ids[2], NODE), ResourceExhausted, many_targets),
        row("a second node when there is no target left", publish(&ids[0], OTHER_NODE), FailedPrecondition, [OTHER_NODE, "it is published to node worker-7:0123abcd", "ControllerUnpublishVolume"]),
    ])
}

/// A NAS whose volumes have crashed.
#[rustfmt::skip] // One row per line.
pub(crate) fn broken() -> Vec<Row> {
    vec![
        row("a volume that seems to be gone", delete(&no_such_volume()), Unavailable, [UUID, "/volume1", "\"crashed\"", "try again later"]),
        row("a volume anywhere", create_with("new", []), Aborted, ["NAS nas1", "none of its volumes takes a LUN", "try again later"]),
        row("a volume on a broken one", create_with("new", [("location", "/volume1"), ("type", "thin")]), Unavailable, ["csi-new of 1 GiB", "/volume1 of NAS nas1", "cannot read its space information"]),
    ]
}
