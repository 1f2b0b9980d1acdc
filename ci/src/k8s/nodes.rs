//! The pinned release of kind, its node images, and the cluster configuration.

use anyhow::{Context as _, Result, ensure};

use crate::go::Pinned;

/// The tool that creates clusters.
pub(crate) const KIND: Pinned = Pinned {
    name: "kind",
    module: "sigs.k8s.io/kind",
    folder: "",
    version: "v0.33.0",
};

/// The node images of this kind release, by Kubernetes minor release. Each kind release has its own digests: the image of the
/// same Kubernetes version for another kind release may not start.
const NODES: [(&str, &str); 2] = [
    (
        "1.36",
        "kindest/node:v1.36.4@sha256:099e049362a1526b2db71494e1947aae99bd16290d7c895f2b7ea312e3cbfaed",
    ),
    ("1.37", DEFAULT),
];

/// The default node image of this kind release.
pub(super) const DEFAULT: &str =
    "kindest/node:v1.37.0@sha256:a1ed56cfb0e7b93589bdf97c8cd566405a265939e3620fc4f5de89adff580ae5";

/// Prefix of the names of kind's node images.
const IMAGE_PREFIX: &str = "kindest/node:";

/// Node images in a workflow that are not those of the pinned kind release.
pub(crate) fn breaches(workflow: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (index, line) in workflow.lines().enumerate() {
        let Some(at) = line.find(IMAGE_PREFIX) else {
            continue;
        };
        let image = line[at..]
            .split([' ', '"', '\'', '}', ','])
            .next()
            .unwrap_or_default();
        if !NODES.iter().any(|(_, known)| *known == image) {
            found.push(format!(
                "line {}: {image} is not a node image of kind {}, see ci/src/k8s/nodes.rs",
                index + 1,
                KIND.version
            ));
        }
    }
    found
}

/// Kubernetes releases that no workflow tests. `workflows` is the concatenated text of all workflows.
pub(crate) fn untried(workflows: &str) -> Vec<String> {
    let untried = NODES.iter().filter(|(_, image)| !workflows.contains(image));
    untried
        .map(|(release, image)| {
            format!("no workflow tests Kubernetes {release} ({image} of ci/src/k8s/nodes.rs)")
        })
        .collect()
}

/// kind's configuration, with `failCgroupV1: false` for the kubelets if `cgroup_v1`.
///
/// # Errors
/// When the configuration does not have the expected line.
pub(super) fn configuration(text: &str, cgroup_v1: bool) -> Result<String> {
    const ANCHOR: &str = "    syncFrequency: 1s\n";
    if !cgroup_v1 {
        return Ok(text.to_owned());
    }
    ensure!(
        text.matches(ANCHOR).count() == 1,
        "e2e/k8s/kind.yaml must have `syncFrequency: 1s` for its kubelets exactly once"
    );
    Ok(text.replace(ANCHOR, &format!("{ANCHOR}    failCgroupV1: false\n")))
}

/// Checks that [`DEFAULT`] is the default node image in kind's source (`pkg/apis/config/defaults/image.go`).
///
/// # Errors
/// When it is not: the list is that of another kind release.
pub(crate) fn check_default_image(source: &str) -> Result<()> {
    let mut lines = source.lines();
    let image = lines.find_map(|line| line.strip_prefix("const Image = \"")?.strip_suffix('"'));
    let image = image.context("kind's source names no default node image")?;
    ensure!(
        image == DEFAULT,
        "the default node image of kind {} is {image}, but ci/src/k8s/nodes.rs has {DEFAULT}",
        KIND.version
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIGURATION: &str = include_str!("../../../e2e/k8s/kind.yaml");

    #[test]
    fn each_image_is_listed_under_its_release() {
        for (release, image) in NODES {
            assert!(
                image.starts_with(&format!("{IMAGE_PREFIX}v{release}.")),
                "{image}"
            );
            let digest = image.split_once("@sha256:").unwrap().1;
            assert!(digest.len() == 64 && digest.bytes().all(|it| it.is_ascii_hexdigit()));
        }
    }

    #[test]
    fn images_of_another_kind_release_are_reported() {
        let good = format!("a: 1\nimage: {}\n", NODES[0].1);
        assert!(breaches(&good).is_empty());
        let other = good.replace("099e", "3489");
        let found = breaches(&other);
        assert!(
            found[0].starts_with("line 2: kindest/node:v1.36.4@sha256:3489"),
            "{found:?}"
        );
        assert_eq!(breaches("- {image: kindest/node:v1.36.4}").len(), 1);
        assert_eq!(untried(&good).len(), 1);
        assert!(untried(&good)[0].contains("1.37"));
        assert_eq!(untried(&format!("{good}{DEFAULT}")), Vec::<String>::new());
    }

    #[test]
    fn the_source_of_another_kind_release_is_an_error() {
        let source = format!("// Image\nconst Image = \"{DEFAULT}\"\n");
        assert!(check_default_image(&source).is_ok());
        assert!(check_default_image(&source.replace("v1.37", "v1.38")).is_err());
        assert!(check_default_image("package defaults\n").is_err());
    }

    #[test]
    fn kubelets_sync_each_second_and_accept_cgroup_v1_only_if_configured() {
        let kubelet = |text: &str| -> serde_json::Value {
            let whole: serde_json::Value = serde_yaml_ng::from_str(text).unwrap();
            serde_yaml_ng::from_str(whole["kubeadmConfigPatches"][0].as_str().unwrap()).unwrap()
        };
        let plain = kubelet(&configuration(CONFIGURATION, false).unwrap());
        assert_eq!(plain["kind"], "KubeletConfiguration");
        assert_eq!(plain["syncFrequency"], "1s");
        assert!(plain.get("failCgroupV1").is_none());
        let accepting = kubelet(&configuration(CONFIGURATION, true).unwrap());
        assert_eq!(
            (&accepting["syncFrequency"], &accepting["failCgroupV1"]),
            (&"1s".into(), &false.into())
        );
        assert!(configuration("kind: Cluster\n", true).is_err());
    }

    /// In nodes with the host's /dev, systemd must not change it.
    #[test]
    fn nodes_with_the_hosts_dev_mask_the_units_that_change_it() {
        let whole: serde_json::Value = serde_yaml_ng::from_str(CONFIGURATION).unwrap();
        let mut with_devices = 0;
        for node in whole["nodes"].as_array().unwrap() {
            let mounts = node["extraMounts"].as_array().cloned().unwrap_or_default();
            let from = |host: &str| -> Vec<String> {
                let those = mounts.iter().filter(|mount| mount["hostPath"] == host);
                those
                    .map(|it| it["containerPath"].as_str().unwrap().to_owned())
                    .collect()
            };
            if from("/dev").is_empty() {
                continue;
            }
            with_devices += 1;
            assert_eq!(
                from("/dev/null"),
                [
                    "/etc/tmpfiles.d/static-nodes-permissions.conf",
                    "/etc/systemd/system/systemd-tmpfiles-setup-dev.service",
                    "/etc/systemd/system/systemd-tmpfiles-setup-dev-early.service",
                    "/etc/systemd/system/systemd-journald-dev-log.socket",
                    "/etc/systemd/system/dev-hugepages.mount",
                    "/etc/systemd/system/dev-mqueue.mount",
                ]
            );
        }
        assert_eq!(with_devices, 2);
    }
}
