//! Which layer needs what: the table that doctor judges a machine by.

use clap::ValueEnum;

/// A layer of tests, or another thing one may want to do here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Layer {
    /// All that `cargo test` runs
    Test,
    /// csi-sanity
    Sanity,
    /// Stories with block devices and mounts
    Node,
    /// The demo
    Demo,
    /// Stories of real iSCSI in virtual machines
    Vm,
    /// Other people's programs against dsm-sim
    Clients,
    /// Other drivers against dsm-sim
    Peers,
    /// The measurements
    Bench,
    /// The comparison with the CSI specification
    Spec,
    /// The Helm chart
    Chart,
    /// The hosted pipeline
    Workflows,
    /// Kubernetes' own storage suite
    External,
    /// The images of the programs
    Images,
    /// The images, started as the chart starts them
    Containers,
    /// Formatting and lints
    Lint,
    /// Every layer
    All,
}

/// One thing a machine has or has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// A cargo subcommand, with the rustup component that brings it.
    Component(&'static str, &'static str),
    /// The effective user is root.
    Root,
    /// Mounting is allowed; root in a plain container may not.
    SysAdmin,
    /// `/dev/loop-control` opens.
    LoopDevices,
    /// A Debian package, and its programs that are used.
    Programs(&'static str, &'static [&'static str]),
    /// A file system of the kernel.
    Filesystem(&'static str),
    /// A Go that can build what we pin, or fetch one that can.
    Go,
    /// csi-sanity in the pinned version.
    CsiSanity,
    /// `CAP_SYS_RESOURCE`.
    SysResource,
    /// The node's own iSCSI name.
    InitiatorName,
}

/// How much a layer wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Weight {
    /// Good to know; never in the way.
    Note,
    /// Indispensable for root. Without root, the tests that use it are skipped anyway.
    WithRoot,
    /// Indispensable.
    Must,
}

/// Everything, in the order in which doctor lists it.
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

/// Packages that only the virtual machines use.
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

/// Packages that only images are made with. Beside it an engine of our own wants dockerd, where none runs, and a base of our own
/// mmdebstrap, where no registry is in reach: whoever comes to that gets them.
const FOR_IMAGES: [&str; 1] = ["docker.io"];

/// Packages that only other people's programs use.
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
    Layer::External,
    Layer::Images,
    Layer::Containers,
    Layer::Lint,
];

impl Need {
    /// What doctor calls it.
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

    /// How much `layer` wants it; `None` when it does not care.
    pub(crate) fn weight(self, layer: Layer) -> Option<Weight> {
        use Layer::{
            All, Bench, Chart, Clients, Containers, Demo, External, Images, Lint, Node, Peers,
            Sanity, Spec, Test, Vm, Workflows,
        };
        if layer == All {
            return SINGLE
                .iter()
                .filter_map(|&single| self.weight(single))
                .max();
        }
        match self {
            Self::Component(..) => (layer == Lint).then_some(Weight::Must),
            Self::Go if matches!(layer, Spec | Chart | Workflows | External) => Some(Weight::Must),
            Self::Go | Self::CsiSanity => matches!(layer, Sanity | Peers).then_some(Weight::Must),
            // The guest has what the host has installed; it is root there, and brings its own kernel.
            // The tests of node-sim's target side start a tgtd; its initiator side is compared with the real iscsiadm.
            Self::Programs("tgt" | "open-iscsi", _) if layer == Test => Some(Weight::WithRoot),
            Self::Programs(package, _) if FOR_IMAGES.contains(&package) => {
                matches!(layer, Images | Containers).then_some(Weight::Must)
            }
            // It brings up the network of the engine.
            Self::Programs("iproute2", _) if layer == Containers => Some(Weight::Must),
            Self::Programs(package, _) if FOR_CLIENTS.contains(&package) => {
                (layer == Clients).then_some(Weight::Must)
            }
            Self::Programs(package, _) if FOR_VM.contains(&package) => {
                (layer == Vm).then_some(Weight::Must)
            }
            Self::Programs(..) if layer == Vm => Some(Weight::Must),
            Self::Root
            | Self::SysAdmin
            | Self::LoopDevices
            | Self::Programs(..)
            | Self::Filesystem(_) => match layer {
                Sanity | Node | Demo | Bench => Some(Weight::Must),
                // The driver's image brings its tools; the kernel is the machine's.
                Containers => (!matches!(self, Self::Programs(..))).then_some(Weight::Must),
                Test if self == Self::Root => Some(Weight::Note),
                Test => Some(Weight::WithRoot),
                Spec | Chart | Workflows | External | Images | Lint | Vm | Clients | Peers
                | All => None,
            },
            Self::SysResource | Self::InitiatorName => (!matches!(
                layer,
                Spec | Chart | Workflows | External | Images | Lint | Vm | Clients | Peers
            ))
            .then_some(Weight::Note),
        }
    }

    /// The layers that cannot do without it, for people.
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
    /// As it is typed.
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
    fn the_plain_tests_need_nothing_without_root() {
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
    fn what_one_layer_must_have_all_must_have() {
        assert_eq!(Need::Root.weight(Layer::All), Some(Weight::Must));
        assert_eq!(Need::Go.weight(Layer::All), Some(Weight::Must));
        assert_eq!(Need::SysResource.weight(Layer::All), Some(Weight::Note));
        assert_eq!(Need::Go.weight(Layer::Demo), None);
        assert_eq!(
            Need::Go.wanted_by(),
            "sanity peers spec chart workflows external"
        );
    }
}
