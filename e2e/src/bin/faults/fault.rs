//! The faults of the matrix, and the volumes and modes that each applies to. No I/O.

use e2e::model::step::{Kind, NasCall, NasFault};
use e2e::testbed::CommandFault;
use e2e::testbed::pool::TestBedPool;
use serde::{Serialize, Serializer};

/// How a volume is expanded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ExpandMode {
    /// While a pod uses it.
    Online,
    /// While it is detached; then it is published to a pod.
    Offline,
}

impl ExpandMode {
    pub(crate) const ALL: [Self; 2] = [Self::Online, Self::Offline];

    /// Its name in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Offline => "offline",
        }
    }
}

/// A command on a node, or a write to sysfs that replaces one.
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
    /// The part of the command line by which a fault matches it. `None`: no such command is run.
    pub(crate) fn text(self, kind: Kind, pool: &impl TestBedPool) -> Option<&'static str> {
        match (self, kind) {
            (Self::Rescan, _) => Some(pool.rescan_pattern()),
            (Self::Scan, _) => pool.scan_pattern(),
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FaultKind {
    /// Every call of this kind to the NAS.
    Nas(NasCall, NasFault),
    /// The NAS has space for a smaller expansion only.
    Full,
    /// The LUN is locked.
    Locked,
    /// The NAS restarts, and loads its LUNs in this state.
    Loading(&'static str),
    /// All Web API sessions expire; and optionally logins fail.
    Expired { logins_are_lost: bool },
    /// Every run of a tool.
    Host(Tool, CommandFault),
    /// The driver lacks the capability to grow a mounted ext4.
    Incapable,
    /// The plugin is killed while the resize tool is running: before it has done anything, or after.
    Dies(CommandFault),
    /// The node loses power after the LUN was expanded.
    Reboot,
    /// All processes of the driver restart after the LUN was expanded.
    Restart,
    /// The file system is read-only, for this pod or for all.
    ReadOnly,
}

/// A row of the matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    /// The name in reports.
    pub(crate) name: &'static str,
    pub(crate) what: FaultKind,
    /// The volume contents that it applies to.
    pub(crate) kinds: &'static [Kind],
    /// The expansion modes that it applies to.
    pub(crate) ways: &'static [ExpandMode],
    /// Whether it starts before the volume is taken from its pod.
    pub(crate) early: bool,
    /// Whether the driver lacks the capability to grow a mounted ext4 throughout.
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
const WITH_QUERY: &[Kind] = &[Kind::Xfs, Kind::Btrfs];
const ONLINE: &[ExpandMode] = &[ExpandMode::Online];
const OFFLINE: &[ExpandMode] = &[ExpandMode::Offline];

const fn fault(name: &'static str, what: FaultKind) -> Fault {
    Fault {
        name,
        what,
        kinds: ALL,
        ways: &ExpandMode::ALL,
        early: false,
        incapable: false,
    }
}

const fn nas(name: &'static str, on: NasCall, nas_fault: NasFault) -> Fault {
    fault(name, FaultKind::Nas(on, nas_fault))
}

const fn host(name: &'static str, tool: Tool, command_fault: CommandFault) -> Fault {
    fault(name, FaultKind::Host(tool, command_fault))
}

impl Fault {
    const fn of(self, kinds: &'static [Kind]) -> Self {
        Self { kinds, ..self }
    }

    const fn only(self, ways: &'static [ExpandMode]) -> Self {
        Self { ways, ..self }
    }

    /// Starts while a volume is taken from its pod.
    const fn early(self) -> Self {
        Self {
            early: true,
            ways: OFFLINE,
            ..self
        }
    }

    /// For an unmounted ext4.
    const fn unmounted(self) -> Self {
        Self {
            incapable: true,
            kinds: EXT4,
            ways: OFFLINE,
            ..self
        }
    }
}

const SET: NasCall = NasCall::LunSet;
const GET: NasCall = NasCall::LunGet;

const fn refused(code: u32, after: bool) -> NasFault {
    NasFault::Refuse { code, after }
}

const fn http(after: bool) -> NasFault {
    NasFault::Http { status: 502, after }
}

/// Faults of the NAS.
const NAS_FAULTS: &[Fault] = &[
    nas("LUN.set is lost", SET, NasFault::LoseCall),
    nas("the reply to LUN.set is lost", SET, NasFault::LoseReply),
    nas("LUN.set is refused (117)", SET, refused(117, false)),
    nas(
        "LUN.set is done, and refused (117)",
        SET,
        refused(117, true),
    ),
    nas("LUN.set is garbled", SET, NasFault::Garble),
    nas("LUN.set: HTTP 502", SET, http(false)),
    nas("LUN.set is done: HTTP 502", SET, http(true)),
    nas("LUN.set hangs", SET, NasFault::Hang),
    nas("LUN.set is slow", SET, NasFault::Delay(4_000)),
    nas("LUN.get is lost", GET, NasFault::LoseCall),
    nas("the reply to LUN.get is lost", GET, NasFault::LoseReply),
    nas("LUN.get is refused (117)", GET, refused(117, false)),
    nas("LUN.get denies the LUN", GET, refused(18_990_531, false)),
    nas("LUN.get is garbled", GET, NasFault::Garble),
    nas("LUN.get: HTTP 502", GET, http(false)),
    nas("LUN.get hangs", GET, NasFault::Hang),
    nas("LUN.get is slow", GET, NasFault::Delay(4_000)),
    fault("the NAS is full", FaultKind::Full),
    fault("the LUN is locked", FaultKind::Locked),
    fault("the NAS restarts, busy", FaultKind::Loading("busy")),
    fault(
        "the NAS restarts, half loaded",
        FaultKind::Loading("partial"),
    ),
    fault(
        "the NAS restarts, nothing loaded",
        FaultKind::Loading("absent"),
    ),
    fault(
        "sessions expire",
        FaultKind::Expired {
            logins_are_lost: false,
        },
    ),
    fault(
        "sessions expire, logins are lost",
        FaultKind::Expired {
            logins_are_lost: true,
        },
    ),
];

/// Faults of the node's commands.
const COMMAND_FAULTS: &[Fault] = &[
    host("rescan fails", Tool::Rescan, CommandFault::Fails).only(ONLINE),
    host(
        "rescan does nothing",
        Tool::Rescan,
        CommandFault::DoesNothing,
    )
    .only(ONLINE),
    host("the scan for a disk fails", Tool::Scan, CommandFault::Fails).only(OFFLINE),
    host(
        "the scan for a disk does nothing",
        Tool::Scan,
        CommandFault::DoesNothing,
    )
    .only(OFFLINE),
    host("the resize tool fails", Tool::Resize, CommandFault::Fails).of(FS),
    host("the resize tool hangs", Tool::Resize, CommandFault::Hangs).of(FS),
    host(
        "the resize tool works, then hangs",
        Tool::Resize,
        CommandFault::HangsAfterwards,
    )
    .of(FS),
    host(
        "the resize tool says garbage",
        Tool::Resize,
        CommandFault::SaysGarbage,
    )
    .of(FS),
    host(
        "the resize tool does nothing, exits 0",
        Tool::Resize,
        CommandFault::DoesNothing,
    )
    .of(FS),
    host(
        "the resize tool works, exits 1",
        Tool::Resize,
        CommandFault::FailsAfterwards,
    )
    .of(FS),
    host("the size query fails", Tool::Query, CommandFault::Fails).of(WITH_QUERY),
    host(
        "the size query says garbage",
        Tool::Query,
        CommandFault::SaysGarbage,
    )
    .of(WITH_QUERY),
    host("e2fsck hangs", Tool::Check, CommandFault::Hangs).unmounted(),
    host(
        "umount before e2fsck does nothing",
        Tool::Umount,
        CommandFault::DoesNothing,
    )
    .unmounted(),
    host(
        "resize2fs, unmounted, does nothing",
        Tool::Resize,
        CommandFault::DoesNothing,
    )
    .unmounted(),
    host(
        "resize2fs, unmounted, fails",
        Tool::Resize,
        CommandFault::Fails,
    )
    .unmounted(),
    host("mount fails", Tool::Mount, CommandFault::Fails).only(OFFLINE),
    host("mount does nothing", Tool::Mount, CommandFault::DoesNothing).only(OFFLINE),
    host(
        "mount works, exits 1",
        Tool::Mount,
        CommandFault::FailsAfterwards,
    )
    .only(OFFLINE),
    host("umount fails", Tool::Umount, CommandFault::Fails).early(),
    host(
        "umount does nothing",
        Tool::Umount,
        CommandFault::DoesNothing,
    )
    .early(),
    host("blkid fails", Tool::Probe, CommandFault::Fails)
        .of(FS)
        .only(OFFLINE),
    host("blkid says garbage", Tool::Probe, CommandFault::SaysGarbage)
        .of(FS)
        .only(OFFLINE),
    host("login fails", Tool::Login, CommandFault::Fails).only(OFFLINE),
    host("login does nothing", Tool::Login, CommandFault::DoesNothing).only(OFFLINE),
    host(
        "login works, exits 1",
        Tool::Login,
        CommandFault::FailsAfterwards,
    )
    .only(OFFLINE),
    host("logout fails", Tool::Logout, CommandFault::Fails).early(),
    host(
        "logout does nothing",
        Tool::Logout,
        CommandFault::DoesNothing,
    )
    .early(),
];

/// Faults of the driver, and properties of the node.
const DRIVER_FAULTS: &[Fault] = &[
    fault("no CAP_SYS_RESOURCE", FaultKind::Incapable)
        .of(EXT4)
        .only(ONLINE),
    fault(
        "the plugin dies before the resize tool works",
        FaultKind::Dies(CommandFault::Hangs),
    )
    .of(FS),
    fault(
        "the plugin dies after it",
        FaultKind::Dies(CommandFault::HangsAfterwards),
    )
    .of(FS),
    fault("the node reboots between the halves", FaultKind::Reboot),
    fault("the driver restarts between the halves", FaultKind::Restart),
    fault("the file system is read-only", FaultKind::ReadOnly).of(FS),
];

/// All rows of the matrix.
pub(crate) fn all() -> impl Iterator<Item = Fault> {
    NAS_FAULTS
        .iter()
        .chain(COMMAND_FAULTS)
        .chain(DRIVER_FAULTS)
        .copied()
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
