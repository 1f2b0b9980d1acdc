//! The persistent state of the NAS: one table for each kind of object. `storage::store` saves it.

pub(crate) mod account;
pub(crate) mod allocation;
pub(crate) mod boot;
pub(crate) mod lun;
pub(crate) mod lun_type;
pub(crate) mod snapshot;
pub(crate) mod table;
pub(crate) mod target;
pub(crate) mod volume;

use serde::{Deserialize, Serialize};

use crate::nas::effect::Image;
use crate::nas::state::account::Device;
use crate::nas::state::lun::Lun;
use crate::nas::state::snapshot::Snapshot;
use crate::nas::state::table::{Change, Table};
use crate::nas::state::target::Target;
use crate::nas::state::volume::Volume;

/// Everything that survives a restart.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    /// By uuid.
    pub(crate) luns: Table<Lun>,
    /// By uuid.
    pub(crate) snapshots: Table<Snapshot>,
    /// By number.
    pub(crate) targets: Table<Target>,
    /// By path.
    pub(crate) volumes: Table<Volume>,
    /// By token.
    pub(crate) devices: Table<Device>,
}

/// The difference between the last commit and now; one line of the state log.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Changes {
    #[serde(skip_serializing_if = "Change::is_empty")]
    luns: Change<Lun>,
    #[serde(skip_serializing_if = "Change::is_empty")]
    snapshots: Change<Snapshot>,
    #[serde(skip_serializing_if = "Change::is_empty")]
    targets: Change<Target>,
    #[serde(skip_serializing_if = "Change::is_empty")]
    volumes: Change<Volume>,
    #[serde(skip_serializing_if = "Change::is_empty")]
    devices: Change<Device>,
}

impl Changes {
    pub(crate) fn is_empty(&self) -> bool {
        self.luns.is_empty()
            && self.snapshots.is_empty()
            && self.targets.is_empty()
            && self.volumes.is_empty()
            && self.devices.is_empty()
    }
}

impl State {
    /// Whether the LUN or snapshot of this image exists.
    pub(crate) fn has(&self, image: &Image) -> bool {
        match image {
            Image::Lun(uuid) => self.luns.get(uuid).is_some(),
            Image::Snapshot(uuid) => self.snapshots.get(uuid).is_some(),
        }
    }

    /// The changes since the last commit.
    pub(crate) fn changes(&self) -> Changes {
        Changes {
            luns: self.luns.change(),
            snapshots: self.snapshots.change(),
            targets: self.targets.change(),
            volumes: self.volumes.change(),
            devices: self.devices.change(),
        }
    }

    /// Accepts the changes as committed.
    pub(crate) fn commit(&mut self) {
        self.luns.commit();
        self.snapshots.commit();
        self.targets.commit();
        self.volumes.commit();
        self.devices.commit();
    }

    /// Reverts to the last commit. [`State::changes`] then returns the reverse changes, so that the log can follow.
    pub(crate) fn undo(&mut self) {
        self.luns.undo();
        self.snapshots.undo();
        self.targets.undo();
        self.volumes.undo();
        self.devices.undo();
    }

    /// Replays changes that an earlier process committed.
    pub(crate) fn apply(&mut self, changes: Changes) {
        self.luns.apply(changes.luns);
        self.snapshots.apply(changes.snapshots);
        self.targets.apply(changes.targets);
        self.volumes.apply(changes.volumes);
        self.devices.apply(changes.devices);
    }
}
