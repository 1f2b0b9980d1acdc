//! The release of kind, the images of nodes that it names, and the cluster's configuration.

use anyhow::{Context as _, Result, ensure};

use crate::go::Pinned;

/// What makes clusters.
pub(crate) const KIND: Pinned = Pinned {
    name: "kind",
    module: "sigs.k8s.io/kind",
    folder: "",
    version: "v0.33.0",
};

/// The images of nodes that this release of kind was published with, by Kubernetes' minor release. A digest belongs to one release of
/// kind: the same version of Kubernetes has another digest with another release, and may not start with it.
const NODES: [(&str, &str); 2] = [
    (
        "1.36",
        "kindest/node:v1.36.4@sha256:099e049362a1526b2db71494e1947aae99bd16290d7c895f2b7ea312e3cbfaed",
    ),
    ("1.37", DEFAULT),
];

/// The one that this release of kind takes when it is not told which.
pub(super) const DEFAULT: &str =
    "kindest/node:v1.37.0@sha256:a1ed56cfb0e7b93589bdf97c8cd566405a265939e3620fc4f5de89adff580ae5";

/// How the names of kind's images begin.
const NAME: &str = "kindest/node:";

/// What is wrong with the images of nodes that a workflow names: others than those of the release of kind that is pinned.
pub(crate) fn breaches(workflow: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (index, line) in workflow.lines().enumerate() {
        let Some(at) = line.find(NAME) else { continue };
        let image = line[at..]
            .split([' ', '"', '\'', '}', ','])
            .next()
            .unwrap_or_default();
        if !NODES.iter().any(|(_, known)| *known == image) {
            found.push(format!(
                "line {}: {image} is not of kind {}: ci/src/k8s/nodes.rs lists those that are",
                index + 1,
                KIND.version
            ));
        }
    }
    found
}

/// The releases of Kubernetes that no workflow tries; `workflows` are their texts together.
pub(crate) fn untried(workflows: &str) -> Vec<String> {
    let untried = NODES.iter().filter(|(_, image)| !workflows.contains(image));
    untried
        .map(|(release, image)| {
            format!("no workflow tries Kubernetes {release} ({image} of ci/src/k8s/nodes.rs)")
        })
        .collect()
}

/// kind's configuration, for kubelets that take cgroup v1 or, as they are by themselves, refuse it.
///
/// # Errors
/// The configuration has no place for it.
pub(super) fn configuration(text: &str, cgroup_v1: bool) -> Result<String> {
    const PLACE: &str = "    syncFrequency: 1s\n";
    if !cgroup_v1 {
        return Ok(text.to_owned());
    }
    ensure!(
        text.matches(PLACE).count() == 1,
        "e2e/k8s/kind.yaml has not one syncFrequency: 1s for its kubelets"
    );
    Ok(text.replace(PLACE, &format!("{PLACE}    failCgroupV1: false\n")))
}

/// The image that kind itself takes by default, from its source (`pkg/apis/config/defaults/image.go`), is the one of the list.
///
/// # Errors
/// When it is another: the list is of another release.
pub(crate) fn must_be_of(source: &str) -> Result<()> {
    let mut lines = source.lines();
    let image = lines.find_map(|line| line.strip_prefix("const Image = \"")?.strip_suffix('"'));
    let image = image.context("kind's source names no image of nodes")?;
    ensure!(
        image == DEFAULT,
        "kind {} takes {image}, and ci/src/k8s/nodes.rs says {DEFAULT}",
        KIND.version
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIGURATION: &str = include_str!("../../../e2e/k8s/kind.yaml");

    #[test]
    fn each_image_is_of_the_release_that_it_is_listed_under() {
        for (release, image) in NODES {
            assert!(image.starts_with(&format!("{NAME}v{release}.")), "{image}");
            let digest = image.split_once("@sha256:").unwrap().1;
            assert!(digest.len() == 64 && digest.bytes().all(|it| it.is_ascii_hexdigit()));
        }
    }

    #[test]
    fn images_of_another_release_of_kind_are_breaches() {
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
    fn the_source_of_another_release_is_noticed() {
        let source = format!("// Image\nconst Image = \"{DEFAULT}\"\n");
        assert!(must_be_of(&source).is_ok());
        assert!(must_be_of(&source.replace("v1.37", "v1.38")).is_err());
        assert!(must_be_of("package defaults\n").is_err());
    }

    #[test]
    fn kubelets_look_each_second_and_take_cgroup_v1_only_when_told() {
        let kubelet = |text: &str| -> serde_json::Value {
            let whole: serde_json::Value = serde_yaml_ng::from_str(text).unwrap();
            serde_yaml_ng::from_str(whole["kubeadmConfigPatches"][0].as_str().unwrap()).unwrap()
        };
        let plain = kubelet(&configuration(CONFIGURATION, false).unwrap());
        assert_eq!(plain["kind"], "KubeletConfiguration");
        assert_eq!(plain["syncFrequency"], "1s");
        assert!(plain.get("failCgroupV1").is_none());
        let told = kubelet(&configuration(CONFIGURATION, true).unwrap());
        assert_eq!(
            (&told["syncFrequency"], &told["failCgroupV1"]),
            (&"1s".into(), &false.into())
        );
        assert!(configuration("kind: Cluster\n", true).is_err());
    }

    /// Whoever has the host's /dev has no systemd that changes it.
    #[test]
    fn no_node_with_the_hosts_devices_gives_them_modes_of_its_own() {
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
