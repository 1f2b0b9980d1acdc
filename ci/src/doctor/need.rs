//! What each task needs: the table behind `cargo ci doctor`.

use clap::ValueEnum;

/// A layer of tests, or another task with needs of its own. The value names are those of the tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Layer {
    /// All that `cargo test` runs
    Test,
    /// csi-sanity
    Sanity,
    /// The node tests with block devices and mounts
    Node,
    /// The demo
    Demo,
    /// The stories with real iSCSI in virtual machines
    Vm,
    /// Third-party clients of dsm-sim
    Clients,
    /// The comparison with other drivers
    Peers,
    /// The benchmarks
    Bench,
    /// The comparison with the CSI specification
    Spec,
    /// The Helm chart
    Chart,
    /// The hosted pipeline
    Workflows,
    /// Kubernetes' storage conformance suite
    #[value(name = "k8s-conformance", alias = "external")]
    K8sConformance,
    /// The images of the programs
    Images,
    /// The images, run as by the chart
    Containers,
    /// Formatting and lints
    Lint,
    /// Every layer
    All,
}

/// A property of the machine, or a program, that layers need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// A cargo subcommand, and the rustup component that provides it.
    Component(&'static str, &'static str),
    /// The effective user is root.
    Root,
    /// `CAP_SYS_ADMIN`, to mount. Root in an unprivileged container lacks it.
    SysAdmin,
    /// `/dev/loop-control` can be opened.
    LoopDevices,
    /// A Debian package, and those of its programs that we use.
    Programs(&'static str, &'static [&'static str]),
    /// Kernel support for a file system.
    Filesystem(&'static str),
    /// A Go that can build the pinned programs, or fetch a Go that can.
    Go,
    /// csi-sanity in the pinned version.
    CsiSanity,
    /// `CAP_SYS_RESOURCE`.
    SysResource,
    /// The node's iSCSI initiator name.
    InitiatorName,
}

/// How strongly a layer needs something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Weight {
    /// Optional: reported, but not required.
    Note,
    /// Required as root. Without root, the tests that use it are skipped anyway.
    WithRoot,
    /// Required.
    Must,
}

/// All needs, in the order of doctor's table.
pub(crate) const NEEDS: &[Need] = &[
    Need::Component("fmt", "rustfmt"),
    Need::Component("clippy", "clippy"),
    Need::Root,
    Need::SysAdmin,
    Need::LoopDevices,
    Need::Programs(
        "e2fsprogs",
        &["mkfs.ext4", "e2fsck", "resize2fs", "dumpe2fs"],
    ),
    Need::Programs("xfsprogs", &["mkfs.xfs", "xfs_growfs"]),
    Need::Programs("btrfs-progs", &["mkfs.btrfs", "btrfs"]),
    Need::Programs("util-linux", &["blkid", "blockdev"]),
    Need::Programs("mount", &["mount", "umount", "losetup"]),
    Need::Programs("qemu-system-x86", &["qemu-system-x86_64"]),
    Need::Programs("dpkg", &["dpkg-deb"]),
    Need::Programs("xz-utils", &["xz"]),
    Need::Programs("apt", &["apt-get"]),
    Need::Programs("kmod", &["modprobe", "depmod"]),
    Need::Programs("udev", &["udevadm"]),
    Need::Programs("iproute2", &["ip"]),
    Need::Programs("procps", &["pkill", "pgrep"]),
    Need::Programs("open-iscsi", &["iscsiadm", "iscsid"]),
    Need::Programs("tgt", &["tgtd", "tgtadm"]),
    Need::Programs("multipath-tools", &["multipathd", "multipath"]),
    Need::Programs("chromium", &["chromium"]),
    Need::Programs("chromium-driver", &["chromedriver"]),
    Need::Programs("virtualenv", &["virtualenv"]),
    Need::Programs("docker.io", &["docker"]),
    Need::Filesystem("ext4"),
    Need::Filesystem("xfs"),
    Need::Filesystem("btrfs"),
    Need::Go,
    Need::CsiSanity,
    Need::SysResource,
    Need::InitiatorName,
];

/// Packages that are needed only for the virtual machines.
const FOR_VM: [&str; 11] = [
    "qemu-system-x86",
    "dpkg",
    "xz-utils",
    "apt",
    "kmod",
    "udev",
    "iproute2",
    "procps",
    "open-iscsi",
    "tgt",
    "multipath-tools",
];

/// Packages that are needed only to build images. dockerd, if no engine runs, and mmdebstrap, if no registry is reachable, are
/// installed on demand.
const FOR_IMAGES: [&str; 1] = ["docker.io"];

/// Packages that are needed only for third-party clients.
const FOR_CLIENTS: [&str; 3] = ["chromium", "chromium-driver", "virtualenv"];

const SINGLE: [Layer; 15] = [
    Layer::Test,
    Layer::Sanity,
    Layer::Node,
    Layer::Demo,
    Layer::Vm,
    Layer::Clients,
    Layer::Peers,
    Layer::Bench,
    Layer::Spec,
    Layer::Chart,
    Layer::Workflows,
    Layer::K8sConformance,
    Layer::Images,
    Layer::Containers,
    Layer::Lint,
];

impl Need {
    /// The name in doctor's table.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Component(subcommand, _) => format!("cargo {subcommand}"),
            Self::Root => "root".into(),
            Self::SysAdmin => "CAP_SYS_ADMIN".into(),
            Self::LoopDevices => "loop devices".into(),
            Self::Programs(package, _) => package.into(),
            Self::Filesystem(filesystem) => format!("{filesystem} in the kernel"),
            Self::Go => "go".into(),
            Self::CsiSanity => "csi-sanity".into(),
            Self::SysResource => "CAP_SYS_RESOURCE".into(),
            Self::InitiatorName => "initiator name".into(),
        }
    }

    /// How strongly `layer` needs it; `None` if it does not.
    pub(crate) fn weight(self, layer: Layer) -> Option<Weight> {
        use Layer::{
            All, Bench, Chart, Clients, Containers, Demo, Images, K8sConformance, Lint, Node,
            Peers, Sanity, Spec, Test, Vm, Workflows,
        };
        if layer == All {
            return SINGLE
                .iter()
                .filter_map(|&single| self.weight(single))
                .max();
        }
        match self {
            Self::Component(..) => (layer == Lint).then_some(Weight::Must),
            Self::Go if matches!(layer, Spec | Chart | Workflows | K8sConformance) => {
                Some(Weight::Must)
            }
            Self::Go | Self::CsiSanity => matches!(layer, Sanity | Peers).then_some(Weight::Must),
            // The tests of node-sim's target side start a tgtd; those of its initiator side compare it with the real iscsiadm.
            Self::Programs("tgt" | "open-iscsi", _) if layer == Test => Some(Weight::WithRoot),
            Self::Programs(package, _) if FOR_IMAGES.contains(&package) => {
                matches!(layer, Images | Containers).then_some(Weight::Must)
            }
            // To bring up the loopback interface of the private engine.
            Self::Programs("iproute2", _) if layer == Containers => Some(Weight::Must),
            Self::Programs(package, _) if FOR_CLIENTS.contains(&package) => {
                (layer == Clients).then_some(Weight::Must)
            }
            Self::Programs(package, _) if FOR_VM.contains(&package) => {
                (layer == Vm).then_some(Weight::Must)
            }
            // The guest uses the programs that are installed on the host. It runs as root, with its own kernel.
            Self::Programs(..) if layer == Vm => Some(Weight::Must),
            Self::Root
            | Self::SysAdmin
            | Self::LoopDevices
            | Self::Programs(..)
            | Self::Filesystem(_) => match layer {
                Sanity | Node | Demo | Bench => Some(Weight::Must),
                // The driver's image contains the tools; the kernel is the machine's.
                Containers => (!matches!(self, Self::Programs(..))).then_some(Weight::Must),
                Test if self == Self::Root => Some(Weight::Note),
                Test => Some(Weight::WithRoot),
                Spec | Chart | Workflows | K8sConformance | Images | Lint | Vm | Clients
                | Peers | All => None,
            },
            Self::SysResource | Self::InitiatorName => (!matches!(
                layer,
                Spec | Chart | Workflows | K8sConformance | Images | Lint | Vm | Clients | Peers
            ))
            .then_some(Weight::Note),
        }
    }

    /// The names of the layers that require it, for doctor's table.
    pub(crate) fn wanted_by(self) -> String {
        let wanting = |layer: &Layer| {
            self.weight(*layer)
                .is_some_and(|weight| weight > Weight::Note)
        };
        let names: Vec<String> = SINGLE
            .iter()
            .filter(|layer| wanting(layer))
            .map(|layer| layer.name())
            .collect();
        names.join(" ")
    }
}

impl Layer {
    /// The name on the command line.
    pub(crate) fn name(self) -> String {
        self.to_possible_value()
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tests_need_nothing_without_root() {
        for need in NEEDS {
            assert_ne!(
                need.weight(Layer::Test),
                Some(Weight::Must),
                "{}",
                need.name()
            );
        }
    }

    #[test]
    fn layer_all_needs_what_any_layer_needs() {
        assert_eq!(Need::Root.weight(Layer::All), Some(Weight::Must));
        assert_eq!(Need::Go.weight(Layer::All), Some(Weight::Must));
        assert_eq!(Need::SysResource.weight(Layer::All), Some(Weight::Note));
        assert_eq!(Need::Go.weight(Layer::Demo), None);
        assert_eq!(
            Need::Go.wanted_by(),
            "sanity peers spec chart workflows k8s-conformance"
        );
    }
}
