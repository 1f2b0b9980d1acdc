//! Unusual but legal calls that must work, each made twice, because a CO retries calls with an unknown outcome.

use e2e::harness::test_cluster::TestCluster;
use e2e::harness::test_volume::{at_least, storage_class};
use e2e::{GIB, MIB};
use proto::csi;
use proto::csi::volume_capability::access_mode::Mode;

use crate::call::Answer;
use crate::fixture::{created, uuid};
use crate::request::*;
use crate::table::{Tally, nothing_to_do, row};

/// Names, sizes and parameters of `CreateVolume`, with the expected size of the volume.
#[rustfmt::skip] // One row per line.
fn volumes() -> Vec<(&'static str, csi::CreateVolumeRequest, i64)> {
    let sized = |name, required, limit| create_sized(name, required, limit);
    let parameter = |name, key, value| create_and(name, key, value);
    vec![
        ("underscores", create("my_volume_1"), GIB),
        ("blanks", create("two  blanks "), GIB),
        ("nothing but a blank", create(" "), GIB),
        ("128 characters", create(&"n".repeat(128)), GIB),
        ("127 of the same characters", create(&"n".repeat(127)), GIB),
        ("128 bytes of Unicode", create(&"é".repeat(64)), GIB),
        ("Unicode", create("Büro ☂ 東京"), GIB),
        ("slashes", create("a/b/../c"), GIB),
        ("dots", create(".."), GIB),
        ("a minus", create("--help"), GIB),
        ("a tab and quotes", create("tab\there \"quoted\" 'twice' \\"), GIB),
        ("lower case", create("case"), GIB),
        ("the same in upper case", create("CASE"), GIB),
        ("a uuid", create(UUID), GIB),
        ("what a description looks like", create("x parameters=y name=z"), GIB),
        ("no range", modified(create("no-range"), |r| r.capacity_range = None), GIB),
        ("an empty range", sized("empty-range", 0, 0), GIB),
        ("one byte", sized("one-byte", 1, 0), GIB),
        ("a limit alone", sized("limit-alone", 0, 5 * GIB), GIB),
        ("both ends alike", sized("exactly", 3 * GIB, 3 * GIB), 3 * GIB),
        ("no whole MiB", sized("rounded", GIB + 1, 2 * GIB), GIB + MIB),
        ("no parameters", create_with("bare", []), GIB),
        ("no location", create_with("anywhere", [("type", "thin")]), GIB),
        ("thick, anywhere", create_with("thick-anywhere", [("type", "thick")]), GIB),
        ("thin on ext4", create_with("thin-ext4", [("location", "/volume2"), ("type", "thin")]), GIB),
        ("thick on ext4", create_with("thick-ext4", [("location", "/volume2"), ("type", "FILE")]), GIB),
        ("the official driver's words", create_with("official", [("dsm", "127.0.0.1"), ("type", "thin"), ("protocol", "iSCSI"), ("location", "/volume1")]), GIB),
        ("the NAS by its name", parameter("by-name", "nas", "nas1"), GIB),
        ("Kubernetes' own keys", parameter("k8s", "csi.storage.k8s.io/pvc/name", "claim"), GIB),
        ("an unknown key of Kubernetes", parameter("k8s-new", "csi.storage.k8s.io/anything/at/all", ""), GIB),
        ("a file system in odd case", parameter("odd-case", "fsType", "eXt4"), GIB),
        ("an empty file system", parameter("empty-fs", "fsType", ""), GIB),
        ("options for mkfs", parameter("options", "formatOptions", "-i 8192 -m 1"), GIB),
        ("a mount flag", modified(create("flag"), |r| r.volume_capabilities = vec![flagged("noatime")]), GIB),
        ("several capabilities", modified(create("several"), |r| r.volume_capabilities = vec![of_type("ext4"), of_type(""), mounted(Mode::SingleNodeReaderOnly)]), GIB),
        ("a raw device for many", modified(create("raw"), |r| r.volume_capabilities = vec![device(Mode::MultiNodeMultiWriter)]), GIB),
        ("unneeded secrets", modified(create("secrets"), |r| r.secrets = map([("password", "x")])), GIB),
    ]
}

/// Creates, publishes, expands, unpublishes and deletes each volume, every call twice.
pub(crate) async fn life_cycles(cluster: &TestCluster, tally: &mut Tally) {
    let mut ids = Vec::new();
    for (name, request, size) in volumes() {
        let Some(Answer::CreateVolume(answer)) = tally.twice(cluster, name, request).await else {
            continue;
        };
        let volume = answer.volume.unwrap_or_default();
        tally.check(volume.capacity_bytes == size, || {
            format!(
                "CreateVolume, {name}: {} bytes, not {size}",
                volume.capacity_bytes
            )
        });
        ids.push((name, volume.volume_id));
    }
    let mut different: Vec<&String> = ids.iter().map(|(_, id)| id).collect();
    different.sort_unstable();
    different.dedup();
    tally.check(different.len() == ids.len(), || {
        format!("some names share a volume: {ids:?}")
    });
    for (name, id) in &ids {
        tally.twice(cluster, name, delete(id)).await;
    }
}

/// Each mutating call twice, and calls that look wrong but are legal.
pub(crate) async fn calls(cluster: &TestCluster, tally: &mut Tally) {
    let id = created(cluster, create("calls")).await.unwrap();
    tally
        .twice(
            cluster,
            "a static volume with an empty volume_context",
            publish(&id, NODE),
        )
        .await;
    tally.twice(cluster, "growth", expand(&id, 2 * GIB)).await;
    let mode = Mode::SingleNodeMultiWriter;
    tally
        .twice(
            cluster,
            "growth with a capability",
            modified(expand(&id, 2 * GIB), |r| {
                r.volume_capability = Some(mounted(mode));
            }),
        )
        .await;
    expanded(cluster, tally, "less than it has", expand(&id, 1), 2 * GIB).await;
    expanded(
        cluster,
        tally,
        "a limit alone",
        expand_within(&id, 0, 2 * GIB),
        2 * GIB,
    )
    .await;
    expanded(
        cluster,
        tally,
        "both ends alike",
        expand_within(&id, 3 * GIB, 3 * GIB),
        3 * GIB,
    )
    .await;
    expanded(
        cluster,
        tally,
        "no whole MiB",
        expand_within(&id, 3 * GIB + 1, 4 * GIB),
        3 * GIB + MIB,
    )
    .await;
    tally
        .twice(cluster, "the node that has it", unpublish(&id, NODE))
        .await;
    let rows = vec![
        nothing_to_do("a node that never had it", unpublish(&id, OTHER_NODE)),
        nothing_to_do("no node, and not published", unpublish(&id, "")),
        nothing_to_do(
            "a page with a token of a volume that is gone",
            list(1, UUID),
        ),
        nothing_to_do("the largest page", list(i32::MAX, "")),
        nothing_to_do(
            "room in a place that does not exist",
            capacity([("location", "/volume99")]),
        ),
        nothing_to_do(
            "room on a NAS that is not configured",
            capacity([("nas", "nas9")]),
        ),
    ];
    tally.refused(cluster, rows).await;
    let provisioned = [
        ("storage.kubernetes.io/csiProvisionerIdentity", "x"),
        ("fsType", "EXT4"),
    ];
    let question = modified(validate(&id), |r| {
        r.parameters = storage_class();
        r.volume_context = map(provisioned);
    });
    if let Some(answer) = tally
        .twice(cluster, "all that a provisioner adds", question)
        .await
    {
        tally.check(answer.unconfirmed().is_none(), || {
            format!("not confirmed: {answer:?}")
        });
    }
    tally.twice(cluster, "a volume", delete(&id)).await;
}

async fn expanded(
    cluster: &TestCluster,
    tally: &mut Tally,
    name: &'static str,
    request: csi::ControllerExpandVolumeRequest,
    size: i64,
) {
    if let Some(Answer::ControllerExpandVolume(answer)) = tally.twice(cluster, name, request).await
    {
        let result = (answer.capacity_bytes, answer.node_expansion_required);
        tally.check(result == (size, true), || {
            format!("ControllerExpandVolume, {name}: {answer:?}, not {size}")
        });
    }
}

/// A failed expansion is retried with a smaller size.
pub(crate) async fn smaller_retry(cluster: &TestCluster, tally: &mut Tally) {
    let thick = create_with("retry", [("location", "/volume1"), ("type", "BLUN_THICK")]);
    let id = created(cluster, thick).await.unwrap();
    tally
        .refused(
            cluster,
            vec![row(
                "far too much",
                expand(&id, 30 << 40),
                tonic::Code::OutOfRange,
                ["at once", "ask for less"],
            )],
        )
        .await;
    expanded(
        cluster,
        tally,
        "less, after it failed",
        expand(&id, 2 * GIB),
        2 * GIB,
    )
    .await;
    tally
        .twice(cluster, "what could not grow", delete(&id))
        .await;
}

/// A raw device on two nodes, unpublished from all of them at once.
pub(crate) async fn many_nodes(cluster: &TestCluster, tally: &mut Tally) {
    let shared = || device(Mode::MultiNodeMultiWriter);
    let id = created(
        cluster,
        modified(create("many"), |r| r.volume_capabilities = vec![shared()]),
    )
    .await
    .unwrap();
    for node in [NODE, OTHER_NODE] {
        let request = modified(publish(&id, node), |r| r.volume_capability = Some(shared()));
        tally
            .twice(cluster, "a raw device on several nodes", request)
            .await;
    }
    if let Some(Answer::ControllerGetVolume(answer)) =
        tally.twice(cluster, "who has it", get(&id)).await
    {
        let nodes = answer.status.unwrap_or_default().published_node_ids;
        tally.check(nodes == [NODE, OTHER_NODE], || {
            format!("published to {nodes:?}")
        });
    }
    tally
        .twice(cluster, "no node: from all", unpublish(&id, ""))
        .await;
    tally
        .twice(cluster, "a volume that many had", delete(&id))
        .await;
}

/// The NAS was renamed; volumes with the old name still work.
pub(crate) async fn alias(cluster: &TestCluster, tally: &mut Tally) {
    let id = created(cluster, create("renamed")).await.unwrap();
    let renamed = cluster.another_driver("renamed", |settings| {
        settings.config = settings
            .config
            .replace("name: nas1", "name: nas2\n    aliases: [nas1]");
    });
    let renamed = renamed.await.unwrap();
    for (name, call) in [
        ("an alias: whether it exists", get(&id).into()),
        ("an alias: publication", publish(&id, NODE).into()),
        (
            "an alias: growth",
            modified(expand(&id, 0), |r| {
                r.capacity_range = Some(at_least(2 * GIB));
            })
            .into(),
        ),
        ("an alias: withdrawal", unpublish(&id, NODE).into()),
        ("the new name", get(&format!("nas2/{}", uuid(&id))).into()),
        ("an alias: deletion", delete(&id).into()),
    ] {
        tally.twice_by(cluster, &renamed, name, call).await;
    }
}
