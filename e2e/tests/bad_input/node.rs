//! Table rows for the node service that need no device: invalid requests, and requests about missing objects.

use std::path::Path;

use e2e::GIB;
use e2e::harness::test_volume::{Content, capability};
use proto::csi;
use proto::csi::volume_capability::access_mode::Mode;
use tonic::Code::{FailedPrecondition, InvalidArgument, NotFound, OutOfRange};

use crate::request::*;
use crate::table::{Row, nothing_to_do, row};

const NO_SUCH_ID: [&str; 2] = [
    "does not exist",
    "ids of this driver have the form <nas>/<lun uuid>",
];

/// Valid values for requests to this node.
pub(crate) struct Node {
    /// From `NodeGetInfo`.
    pub(crate) id: String,
    /// An existing directory.
    pub(crate) staging: String,
    /// Does not exist; its parent does.
    pub(crate) target: String,
}

impl Node {
    /// With its staging path and the parent of its target path below `folder`, both created.
    pub(crate) fn at(folder: &Path, id: String) -> Self {
        let (staging, target) = (
            folder.join("kubelet/staging"),
            folder.join("kubelet/target"),
        );
        std::fs::create_dir_all(&staging).unwrap();
        Self {
            id,
            staging: text(&staging),
            target: text(&target),
        }
    }

    /// `NodeStageVolume` for a volume that is not published.
    pub(crate) fn stage(&self) -> csi::NodeStageVolumeRequest {
        let iqn = format!(
            "iqn.2000-01.com.synology:{}.{}",
            UUID.replace('-', ""),
            self.id
        );
        csi::NodeStageVolumeRequest {
            volume_id: no_such_volume(),
            publish_context: map([
                ("portals", "127.0.0.1:3260"),
                ("iqn", &iqn),
                ("lun", "1"),
                ("uuid", UUID),
            ]),
            staging_target_path: self.staging.clone(),
            volume_capability: Some(of_type("ext4")),
            ..Default::default()
        }
    }

    /// `NodePublishVolume` for a volume that is not staged.
    pub(crate) fn publish(&self) -> csi::NodePublishVolumeRequest {
        csi::NodePublishVolumeRequest {
            volume_id: no_such_volume(),
            publish_context: self.stage().publish_context,
            staging_target_path: self.staging.clone(),
            target_path: self.target.clone(),
            volume_capability: Some(of_type("ext4")),
            ..Default::default()
        }
    }
}

/// A path as a string, as requests contain it.
pub(crate) fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Paths that the driver must reject, with the expected words of the error.
#[rustfmt::skip] // One row per line.
fn bad_paths() -> Vec<(&'static str, String, Vec<&'static str>)> {
    vec![
        ("a relative path", "kubelet/volume".to_owned(), vec!["kubelet/volume", "use an absolute path"]),
        ("a path upwards", "/var/lib/../../etc".to_owned(), vec!["/var/lib/../../etc", "without . and .."]),
        ("a path that ends upwards", "/var/lib/..".to_owned(), vec!["/var/lib/..", "without . and .."]),
        ("the root", "/".to_owned(), vec!["\"/\"", "the root of the file system"]),
        ("the root, oddly", "///".to_owned(), vec!["\"///\"", "the root of the file system"]),
        ("NUL", "/var/lib\0/volume".to_owned(), vec!["/var/lib\\0/volume", "without control characters"]),
        ("a line end", "/var/lib\n/volume".to_owned(), vec!["/var/lib\\n/volume", "without control characters"]),
        ("a path of 100 kB", format!("/{}", "x/".repeat(50_000)), vec!["/x/x", "at most 4000 bytes"]),
    ]
}

/// `NodeStageVolume`.
#[rustfmt::skip] // One row per line.
pub(crate) fn stage_rows(node: &Node) -> Vec<Row> {
    let stage = |change: &dyn Fn(&mut csi::NodeStageVolumeRequest)| modified(node.stage(), change);
    let context = |name, key: &str, value: &str, remedy: &str| {
        let field = format!("publish_context[{key}]");
        row(name, stage(&|r| drop(r.publish_context.insert(key.to_owned(), value.to_owned()))), InvalidArgument, [&field, value, remedy])
    };
    let option = |name, fs_type, options: &str, word: &str| {
        let request = stage(&|r| {
            r.volume_capability = Some(of_type(fs_type));
            r.volume_context = map([("formatOptions", options)]);
        });
        row(name, request, InvalidArgument, ["volume_context[formatOptions]", word, "OPTION VALUE pairs"])
    };
    let flag = |name, flag: &str| row(name, stage(&|r| r.volume_capability = Some(flagged(flag))), InvalidArgument, ["volume_capability.mount.mount_flags", flag]);
    let other_lun = "0f5a1c9e-0000-4000-8000-000000000001";
    let other_node = format!("iqn.2000-01.com.synology:{}.{OTHER_NODE}", UUID.replace('-', ""));
    let remedy = "pass the publish_context that ControllerPublishVolume returned";
    let mut rows = vec![
        row("no id", stage(&|r| r.volume_id.clear()), InvalidArgument, ["volume_id is missing", "name the volume"]),
        row("no staging path", stage(&|r| r.staging_target_path.clear()), InvalidArgument, ["staging_target_path is missing", "directory to stage at"]),
        row("no capability", stage(&|r| r.volume_capability = None), InvalidArgument, ["volume_capability is missing", "how the volume is to be used"]),
        row("no capability for an id that is not ours", stage(&|r| (r.volume_id, r.volume_capability) = ("x".to_owned(), None)), InvalidArgument, ["volume_capability is missing"]),
        row("no publish_context", stage(&|r| r.publish_context.clear()), InvalidArgument, ["publish_context is missing", remedy]),
        context("a name as portal", "portals", "nas.example:3260", remedy),
        context("a command as portal", "portals", "127.0.0.1; reboot", remedy),
        context("a list of nothing", "portals", ",", remedy),
        context("an option as IQN", "iqn", "--logout", remedy),
        context("a path as IQN", "iqn", "iqn.2000-01.com.synology:../../etc", remedy),
        context("another node's publication", "iqn", &other_node, "what ControllerPublishVolume returned for it"),
        context("a foreign target", "iqn", "iqn.2025-01.org.example:theirs", "what ControllerPublishVolume returned for it"),
        context("a negative number", "lun", "-1", remedy),
        context("a number that SCSI has not", "lun", "70000", remedy),
        context("no number", "lun", "0x1", remedy),
        context("another LUN", "uuid", other_lun, remedy),
        context("no uuid", "uuid", "../../etc/passwd", remedy),
        row("another file system than the volume's", stage(&|r| r.volume_context = map([("fsType", "xfs")])), InvalidArgument, ["volume_context[fsType]", "xfs", "disagrees with the fs_type ext4"]),
        row("an unknown file system of the volume", stage(&|r| r.volume_context = map([("fsType", "ntfs")])), InvalidArgument, ["volume_context[fsType]", "ntfs", "use ext4, xfs or btrfs"]),
        option("a discard", "ext4", "-E discard", "discard"),
        option("a journal elsewhere", "ext4", "-J device=/dev/sda", "device=/dev/sda"),
        option("an offset", "ext4", "-E offset=1M", "offset=1M"),
        option("superblocks alone", "ext4", "-S", "-S"),
        option("a log elsewhere", "xfs", "-l logdev=/dev/sda", "logdev=/dev/sda"),
        option("a file", "xfs", "-d file,name=/etc/passwd", "/etc/passwd"),
        option("a folder to copy", "btrfs", "--rootdir /etc", "--rootdir"),
        option("another device", "btrfs", "/dev/sda", "/dev/sda"),
        option("a command", "ext4", "; reboot", ";"),
        option("a value missing", "ext4", "-i", "-i"),
        flag("a bind", "bind"),
        flag("a remount", "remount"),
        flag("another device", "loop=/dev/sda"),
        flag("a hook", "X-mount.mkdir"),
        flag("an option for mount itself", "-o"),
        flag("two words", "ro noatime"),
        row("a staging path that does not exist", stage(&|r| r.staging_target_path.push_str("/nowhere")), FailedPrecondition, ["kubelet/staging/nowhere", "does not exist", "must be an existing directory"]),
        row("a volume that is not published here", node.stage(), FailedPrecondition, ["logging in to iqn.2000-01.com.synology:", "127.0.0.1:3260", "still published to this node"]),
    ];
    for key in ["portals", "iqn", "lun", "uuid"] {
        rows.push(row("a key missing", stage(&|r| drop(r.publish_context.remove(key))), InvalidArgument, [&format!("publish_context[{key}]"), remedy]));
        rows.push(context("an empty value", key, "", remedy));
    }
    rows.extend(bad_paths().into_iter().map(|(name, path, says)| {
        row(name, stage(&|r| path.clone_into(&mut r.staging_target_path)), InvalidArgument, [&["staging_target_path"], &says[..]].concat())
    }));
    rows.extend(foreign_ids().into_iter().map(|(name, id)| row(name, stage(&|r| id.clone_into(&mut r.volume_id)), NotFound, NO_SUCH_ID)));
    rows.extend(bad_capabilities().into_iter().map(|(name, bad, says)| {
        row(name, stage(&|r| r.volume_capability = Some(bad.clone())), InvalidArgument, [&["volume_capability"], &says[..]].concat())
    }));
    rows.extend(bad_secrets().into_iter().map(|(name, bad, says)| {
        row(name, stage(&|r| r.secrets.clone_from(&bad)), InvalidArgument, says)
    }));
    let published = |auth: &str, secrets: &[(&str, &str)]| stage(&|r| {
        r.publish_context.insert("auth".to_owned(), auth.to_owned());
        r.secrets = secrets.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    });
    let chap = [("node.session.auth.username", "alice"), ("node.session.auth.password", "planted-12345")];
    let named = "csi.storage.k8s.io/node-stage-secret-name";
    rows.extend([
        row("no secrets for a volume with CHAP", published("chap", &[]), InvalidArgument, ["secrets", "published with CHAP", named]),
        row("secrets for a volume without CHAP", published("none", &chap), InvalidArgument, ["secrets", "published without CHAP", named]),
        row("half of the secrets for mutual CHAP", published("mutual", &chap), InvalidArgument, ["secrets", "one-way or mutual", named]),
        row("a kind of proof that iSCSI has not", published("kerberos", &chap), InvalidArgument, ["publish_context[auth]", "kerberos", "none, chap or mutual"]),
    ]);
    rows
}

/// `NodePublishVolume`.
#[rustfmt::skip] // One row per line.
pub(crate) fn publish_rows(node: &Node) -> Vec<Row> {
    let publish = |change: &dyn Fn(&mut csi::NodePublishVolumeRequest)| modified(node.publish(), change);
    let block = || Some(capability(Content::Block, Mode::SingleNodeWriter));
    let mut rows = vec![
        row("no id", publish(&|r| r.volume_id.clear()), InvalidArgument, ["volume_id is missing", "name the volume"]),
        row("no target path", publish(&|r| r.target_path.clear()), InvalidArgument, ["target_path is missing", "name the path to publish at"]),
        row("no capability", publish(&|r| r.volume_capability = None), InvalidArgument, ["volume_capability is missing", "how the volume is to be used"]),
        row("no staging path", publish(&|r| r.staging_target_path.clear()), FailedPrecondition, ["staging_target_path is missing", "stage the volume first"]),
        row("the staging path as target", publish(&|r| r.target_path.clone_from(&r.staging_target_path)), InvalidArgument, ["target_path", "kubelet/staging", "another path than staging_target_path"]),
        row("before it is staged", node.publish(), FailedPrecondition, ["logging in to iqn.2000-01.com.synology:", "still published to this node"]),
        row("a raw device before it is staged", publish(&|r| r.volume_capability = block()), FailedPrecondition, ["logging in to iqn.2000-01.com.synology:", "still published to this node"]),
        row("another file system than the volume's", publish(&|r| r.volume_context = map([("fsType", "xfs")])), InvalidArgument, ["volume_context[fsType]", "xfs", "disagrees with the fs_type ext4"]),
        row("a flag that leads elsewhere", publish(&|r| r.volume_capability = Some(flagged("loop"))), InvalidArgument, ["mount_flags", "loop", "leave it out"]),
    ];
    for (name, path, says) in bad_paths() {
        let at_target = [&["target_path"], &says[..]].concat();
        let at_staging = [&["staging_target_path"], &says[..]].concat();
        rows.push(row(name, publish(&|r| path.clone_into(&mut r.target_path)), InvalidArgument, at_target));
        rows.push(row(name, publish(&|r| path.clone_into(&mut r.staging_target_path)), InvalidArgument, at_staging));
    }
    rows.extend(foreign_ids().into_iter().map(|(name, id)| row(name, publish(&|r| id.clone_into(&mut r.volume_id)), NotFound, NO_SUCH_ID)));
    rows.extend(bad_capabilities().into_iter().map(|(name, bad, says)| {
        row(name, publish(&|r| r.volume_capability = Some(bad.clone())), InvalidArgument, [&["volume_capability"], &says[..]].concat())
    }));
    rows
}

/// `NodeUnstageVolume` and `NodeUnpublishVolume`.
#[rustfmt::skip] // One row per line.
pub(crate) fn unpublish_rows(node: &Node) -> Vec<Row> {
    let id = no_such_volume();
    let mut rows = vec![
        row("no id", unstage("", &node.staging), InvalidArgument, ["volume_id is missing", "name the volume"]),
        row("no staging path", unstage(&id, ""), InvalidArgument, ["staging_target_path is missing", "the directory that the volume is staged at"]),
        nothing_to_do("a volume that is not staged", unstage(&id, &node.staging)),
        nothing_to_do("a staging path that does not exist", unstage(&id, "/nowhere/at/all")),
        row("no id", node_unpublish("", &node.target), InvalidArgument, ["volume_id is missing", "name the volume"]),
        row("no target path", node_unpublish(&id, ""), InvalidArgument, ["target_path is missing", "name the path to unpublish"]),
        nothing_to_do("a volume that is not published", node_unpublish(&id, &node.target)),
        nothing_to_do("a target path whose parent does not exist", node_unpublish(&id, "/nowhere/at/all")),
    ];
    for (name, path, says) in bad_paths() {
        rows.push(row(name, unstage(&id, &path), InvalidArgument, [&["staging_target_path"], &says[..]].concat()));
        rows.push(row(name, node_unpublish(&id, &path), InvalidArgument, [&["target_path"], &says[..]].concat()));
    }
    for (name, id) in foreign_ids() {
        rows.push(row(name, unstage(&id, &node.staging), NotFound, NO_SUCH_ID));
        rows.push(nothing_to_do(name, node_unpublish(&id, &node.target)));
    }
    rows
}

/// `NodeGetVolumeStats` and `NodeExpandVolume`.
#[rustfmt::skip] // One row per line.
pub(crate) fn stats_and_expand_rows(node: &Node) -> Vec<Row> {
    let (id, staging) = (no_such_volume(), node.staging.as_str());
    let within = |required, limit| modified(node_expand(&id, staging, 0), |r| r.capacity_range = Some(range(required, limit)));
    let mut rows = vec![
        row("no id", stats("", staging), InvalidArgument, ["volume_id is missing", "name the volume"]),
        row("no path", stats(&id, ""), InvalidArgument, ["volume_path is missing", "published or staged"]),
        row("nothing is mounted there", stats(&id, staging), NotFound, [UUID, "kubelet/staging", "nothing is mounted there"]),
        row("a path that does not exist", stats(&id, "/nowhere/at/all"), NotFound, [UUID, "/nowhere/at/all", "does not exist"]),
        row("something else is mounted there", stats(&id, "/proc"), NotFound, [UUID, "/proc", "is mounted there"]),
        row("a relative path", stats(&id, "kubelet/staging"), NotFound, [UUID, "kubelet/staging", "not absolute"]),
        row("no id", node_expand("", staging, GIB), InvalidArgument, ["volume_id is missing", "name the volume"]),
        row("no path", node_expand(&id, "", GIB), InvalidArgument, ["volume_path is missing", "published or staged"]),
        row("nothing is mounted there", node_expand(&id, staging, GIB), NotFound, [UUID, "kubelet/staging", "nothing is mounted there"]),
        row("a path that does not exist", node_expand(&id, "/nowhere/at/all", GIB), NotFound, [UUID, "/nowhere/at/all", "does not exist"]),
        row("something else is mounted there", node_expand(&id, "/proc", GIB), NotFound, [UUID, "/proc", "is mounted there"]),
        row("a relative path", node_expand(&id, "kubelet/staging", GIB), NotFound, [UUID, "kubelet/staging", "not absolute"]),
        row("a negative size", within(-1, 0), InvalidArgument, ["capacity_range.required_bytes", "-1", "not negative"]),
        row("a negative limit", within(0, -1), InvalidArgument, ["capacity_range.limit_bytes", "-1", "not negative"]),
        row("a limit below the requirement", within(2 * GIB, GIB), OutOfRange, ["required_bytes 2 GiB", "limit_bytes 1 GiB", "raise the limit"]),
        row("8 EiB", within(i64::MAX, 0), OutOfRange, ["required_bytes 9223372036854775807 bytes", "ask for less"]),
    ];
    for (name, path, says) in bad_paths().into_iter().filter(|(_, path, _)| path.starts_with('/')) {
        let says = [&["volume_path"], &says[..]].concat();
        rows.push(row(name, stats(&id, &path), InvalidArgument, &says));
        rows.push(row(name, node_expand(&id, &path, GIB), InvalidArgument, says));
    }
    for (name, id) in foreign_ids() {
        rows.push(row(name, stats(&id, staging), NotFound, NO_SUCH_ID));
        rows.push(row(name, node_expand(&id, staging, GIB), NotFound, NO_SUCH_ID));
    }
    rows.extend(bad_capabilities().into_iter().map(|(name, bad, says)| {
        let request = modified(node_expand(&id, staging, GIB), |r| r.volume_capability = Some(bad));
        row(name, request, InvalidArgument, [&["volume_capability"], &says[..]].concat())
    }));
    rows
}

/// `NodeGetInfo` on a machine without an initiator name.
pub(crate) fn no_initiator() -> Vec<Row> {
    let words = [
        "/etc/iscsi/initiatorname.iscsi",
        "holds no InitiatorName",
        "systemctl start iscsid",
    ];
    vec![row(
        "no initiator",
        csi::NodeGetInfoRequest {},
        FailedPrecondition,
        words,
    )]
}
