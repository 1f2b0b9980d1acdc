//! What goes wrong while a volume grows, and with which volumes it can. Pure.

use e2e::grounds::Grounds;
use e2e::model::step::{Kind, On, Trouble};
use e2e::plane::Failing;
use serde::{Serialize, Serializer};

/// How a volume grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Way {
    /// While a pod uses it.
    Online,
    /// While nobody has it; then it is shown to a pod.
    Offline,
}

impl Way {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::Online, Self::Offline];

    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Offline => "offline",
        }
    }
}

/// A command of a node, or a change in sysfs that stands for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tool {
    Rescan,
    Scan,
    Resize,
    Query,
    Check,
    Mount,
    Umount,
    Probe,
    Login,
    Logout,
}

impl Tool {
    /// The part of its command line by which a fault finds it. `None`: nothing of the kind is run.
    pub(crate) fn text(self, kind: Kind, grounds: &impl Grounds) -> Option<&'static str> {
        match (self, kind) {
            (Self::Rescan, _) => Some(grounds.rescan()),
            (Self::Scan, _) => grounds.scan(),
            (Self::Resize, Kind::Ext4) => Some("resize2fs"),
            (Self::Resize, Kind::Xfs) => Some("xfs_growfs"),
            (Self::Resize, Kind::Btrfs) => Some("btrfs filesystem resize"),
            (Self::Query, Kind::Xfs) => Some("xfs_spaceman"),
            (Self::Query, Kind::Btrfs) => Some("btrfs filesystem show"),
            // The superblock is read without a tool.
            (Self::Query, Kind::Ext4) | (Self::Resize | Self::Query, Kind::Raw) => None,
            (Self::Check, _) => Some("e2fsck"),
            (Self::Mount, Kind::Raw) => Some("-o bind"),
            (Self::Mount, _) => Some("mount -t"),
            (Self::Umount, _) => Some("umount"),
            (Self::Probe, _) => Some("blkid"),
            (Self::Login, _) => Some("--login"),
            (Self::Logout, _) => Some("--logout"),
        }
    }
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// Every call of this kind to the NAS.
    Nas(On, Trouble),
    /// The NAS has room for a smaller growth only.
    Full,
    /// The LUN is locked.
    Locked,
    /// The NAS restarts, and loads its LUNs so.
    Loading(&'static str),
    /// All sessions of the Web API have ended; and logins are lost, or not.
    Expired { logins_are_lost: bool },
    /// Every run of a tool.
    Host(Tool, Failing),
    /// The driver may not grow an ext4 that is mounted.
    Incapable,
    /// The plugin is killed while the tool that resizes is at work: before it has done anything, or after.
    Dies(Failing),
    /// The node's power fails once the LUN has grown.
    Reboot,
    /// All processes of the driver restart once the LUN has grown.
    Restart,
    /// The file system may only be read, by this pod or by all.
    ReadOnly,
}

/// A line of the matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    /// In words.
    pub(crate) name: &'static str,
    pub(crate) what: What,
    /// With these volumes.
    pub(crate) kinds: &'static [Kind],
    /// On these ways.
    pub(crate) ways: &'static [Way],
    /// It begins before the volume is taken from its pod.
    pub(crate) early: bool,
    /// The driver may not grow an ext4 that is mounted, while all this goes on.
    pub(crate) incapable: bool,
}

impl Serialize for Fault {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.name.serialize(serializer)
    }
}

const ALL: &[Kind] = &Kind::ALL;
const FS: &[Kind] = &[Kind::Ext4, Kind::Xfs, Kind::Btrfs];
const EXT4: &[Kind] = &[Kind::Ext4];
const ASKED: &[Kind] = &[Kind::Xfs, Kind::Btrfs];
const ONLINE: &[Way] = &[Way::Online];
const OFFLINE: &[Way] = &[Way::Offline];

const fn fault(name: &'static str, what: What) -> Fault {
    Fault {
        name,
        what,
        kinds: ALL,
        ways: &Way::ALL,
        early: false,
        incapable: false,
    }
}

const fn nas(name: &'static str, on: On, trouble: Trouble) -> Fault {
    fault(name, What::Nas(on, trouble))
}

const fn host(name: &'static str, tool: Tool, failing: Failing) -> Fault {
    fault(name, What::Host(tool, failing))
}

impl Fault {
    const fn of(self, kinds: &'static [Kind]) -> Self {
        Self { kinds, ..self }
    }

    const fn only(self, ways: &'static [Way]) -> Self {
        Self { ways, ..self }
    }

    /// While a volume is taken from its pod.
    const fn early(self) -> Self {
        Self {
            early: true,
            ways: OFFLINE,
            ..self
        }
    }

    /// When an ext4 is grown unmounted.
    const fn unmounted(self) -> Self {
        Self {
            incapable: true,
            kinds: EXT4,
            ways: OFFLINE,
            ..self
        }
    }
}

const SET: On = On::LunSet;
const GET: On = On::LunGet;

const fn refused(code: u32, after: bool) -> Trouble {
    Trouble::Refuse { code, after }
}

const fn http(after: bool) -> Trouble {
    Trouble::Http { status: 502, after }
}

/// What befalls the NAS.
const NAS: &[Fault] = &[
    nas("LUN.set is lost", SET, Trouble::LoseCall),
    nas("the reply to LUN.set is lost", SET, Trouble::LoseReply),
    nas("LUN.set is refused (117)", SET, refused(117, false)),
    nas(
        "LUN.set is done, and refused (117)",
        SET,
        refused(117, true),
    ),
    nas("LUN.set is garbled", SET, Trouble::Garble),
    nas("LUN.set: HTTP 502", SET, http(false)),
    nas("LUN.set is done: HTTP 502", SET, http(true)),
    nas("LUN.set hangs", SET, Trouble::Hang),
    nas("LUN.set is slow", SET, Trouble::Delay(4_000)),
    nas("LUN.get is lost", GET, Trouble::LoseCall),
    nas("the reply to LUN.get is lost", GET, Trouble::LoseReply),
    nas("LUN.get is refused (117)", GET, refused(117, false)),
    nas("LUN.get denies the LUN", GET, refused(18_990_531, false)),
    nas("LUN.get is garbled", GET, Trouble::Garble),
    nas("LUN.get: HTTP 502", GET, http(false)),
    nas("LUN.get hangs", GET, Trouble::Hang),
    nas("LUN.get is slow", GET, Trouble::Delay(4_000)),
    fault("the NAS is full", What::Full),
    fault("the LUN is locked", What::Locked),
    fault("the NAS restarts, busy", What::Loading("busy")),
    fault("the NAS restarts, half loaded", What::Loading("partial")),
    fault("the NAS restarts, nothing loaded", What::Loading("absent")),
    fault(
        "sessions expire",
        What::Expired {
            logins_are_lost: false,
        },
    ),
    fault(
        "sessions expire, logins are lost",
        What::Expired {
            logins_are_lost: true,
        },
    ),
];

/// What befalls a node's commands.
const COMMANDS: &[Fault] = &[
    host("rescan fails", Tool::Rescan, Failing::Fails).only(ONLINE),
    host("rescan does nothing", Tool::Rescan, Failing::DoesNothing).only(ONLINE),
    host("the scan for a disk fails", Tool::Scan, Failing::Fails).only(OFFLINE),
    host(
        "the scan for a disk does nothing",
        Tool::Scan,
        Failing::DoesNothing,
    )
    .only(OFFLINE),
    host("the resize tool fails", Tool::Resize, Failing::Fails).of(FS),
    host("the resize tool hangs", Tool::Resize, Failing::Hangs).of(FS),
    host(
        "the resize tool works, then hangs",
        Tool::Resize,
        Failing::HangsAfterwards,
    )
    .of(FS),
    host(
        "the resize tool says garbage",
        Tool::Resize,
        Failing::SaysGarbage,
    )
    .of(FS),
    host(
        "the resize tool does nothing, exits 0",
        Tool::Resize,
        Failing::DoesNothing,
    )
    .of(FS),
    host(
        "the resize tool works, exits 1",
        Tool::Resize,
        Failing::FailsAfterwards,
    )
    .of(FS),
    host("the size query fails", Tool::Query, Failing::Fails).of(ASKED),
    host(
        "the size query says garbage",
        Tool::Query,
        Failing::SaysGarbage,
    )
    .of(ASKED),
    host("e2fsck hangs", Tool::Check, Failing::Hangs).unmounted(),
    host(
        "umount before e2fsck does nothing",
        Tool::Umount,
        Failing::DoesNothing,
    )
    .unmounted(),
    host(
        "resize2fs, unmounted, does nothing",
        Tool::Resize,
        Failing::DoesNothing,
    )
    .unmounted(),
    host("resize2fs, unmounted, fails", Tool::Resize, Failing::Fails).unmounted(),
    host("mount fails", Tool::Mount, Failing::Fails).only(OFFLINE),
    host("mount does nothing", Tool::Mount, Failing::DoesNothing).only(OFFLINE),
    host(
        "mount works, exits 1",
        Tool::Mount,
        Failing::FailsAfterwards,
    )
    .only(OFFLINE),
    host("umount fails", Tool::Umount, Failing::Fails).early(),
    host("umount does nothing", Tool::Umount, Failing::DoesNothing).early(),
    host("blkid fails", Tool::Probe, Failing::Fails)
        .of(FS)
        .only(OFFLINE),
    host("blkid says garbage", Tool::Probe, Failing::SaysGarbage)
        .of(FS)
        .only(OFFLINE),
    host("login fails", Tool::Login, Failing::Fails).only(OFFLINE),
    host("login does nothing", Tool::Login, Failing::DoesNothing).only(OFFLINE),
    host(
        "login works, exits 1",
        Tool::Login,
        Failing::FailsAfterwards,
    )
    .only(OFFLINE),
    host("logout fails", Tool::Logout, Failing::Fails).early(),
    host("logout does nothing", Tool::Logout, Failing::DoesNothing).early(),
];

/// What befalls the driver, and what a node is.
const OTHERS: &[Fault] = &[
    fault("no CAP_SYS_RESOURCE", What::Incapable)
        .of(EXT4)
        .only(ONLINE),
    fault(
        "the plugin dies before the resize tool works",
        What::Dies(Failing::Hangs),
    )
    .of(FS),
    fault(
        "the plugin dies after it",
        What::Dies(Failing::HangsAfterwards),
    )
    .of(FS),
    fault("the node reboots between the halves", What::Reboot),
    fault("the driver restarts between the halves", What::Restart),
    fault("the file system is read-only", What::ReadOnly).of(FS),
];

/// The whole matrix's lines.
pub(crate) fn all() -> impl Iterator<Item = Fault> {
    NAS.iter().chain(COMMANDS).chain(OTHERS).copied()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_told_apart() {
        let names: BTreeSet<&str> = all().map(|fault| fault.name).collect();
        assert_eq!(names.len(), all().count());
        assert!(names.len() >= 24);
    }
}
