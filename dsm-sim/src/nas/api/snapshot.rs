//! Snapshots of LUNs: `take_snapshot`, `list_snapshot`, `get_snapshot`, `delete_snapshot`, `restore_snapshot`; dsm-web-api.md
//! 4.10. For cloning a snapshot see `clone`.

use crate::nas::state::snapshot::Snapshot;
use serde_json::{Value, json};

use crate::nas::Nas;
use crate::nas::call::{Answer, Call};
use crate::nas::clock::Millis;
use crate::nas::code::{Code, Refusal};
use crate::nas::effect::{Effect, Image};
use crate::nas::params::{Additional, missing};
use crate::nas::state::lun::Lun;
use crate::nas::state::table::IndexKey;

/// Maximum length of a name in characters; any characters are allowed. Measured by jt.
const NAME_LIMIT: usize = 256;

impl Snapshot {
    /// The row of `list_snapshot` and `get_snapshot`, without additional fields. The keys are those that democratic #374 and N4S4
    /// recorded.
    fn json(&self, lun: &Lun) -> Value {
        json!({
            "create_time": self.time,
            "description": self.description,
            "is_app_consistent": self.is_app_consistent,
            "is_user_locked": self.is_locked,
            "mapped_size": 0,
            "name": self.name,
            "parent_lun_id": lun.lun_id,
            "parent_uuid": self.parent,
            "root_path": lun.location,
            "snapshot_id": self.snapshot_id,
            "snapshot_time": self.time,
            "status": "Healthy",
            "taken_by": self.taken_by,
            "total_size": self.size,
            // Recorded: 2 for BLUN, 1 for ADV.
            "type": if lun.kind.is_btrfs() { 2 } else { 1 },
            "uuid": self.uuid,
            // ASSUMED: another uuid that no client reads, so any will do.
            "version": self.uuid,
        })
    }

    /// The row in a LUN's `snapshot_info`, where `status` is an object.
    pub(crate) fn info(&self, lun: &Lun) -> Value {
        let mut row = self.json(lun);
        row["status"] = json!({"progress": {"percent": -1, "step": "waiting"}, "type": "Healthy"});
        row
    }

    /// Adds the requested additional fields.
    // ASSUMED: a snapshot is ready when its call returns, so it is never locked by an action; democratic's long list of other
    // names is harmless because unknown names are ignored.
    fn put_additional(&self, row: &mut Value, additional: &Additional) {
        if additional.has("is_action_locked") {
            row["is_action_locked"] = json!(false);
        }
        if additional.has("locked_app_keys") {
            row["locked_app_keys"] = json!(self.locked_app_keys);
        }
        if additional.has("is_worm_locked") {
            row["is_worm_locked"] = json!(self.is_worm_locked);
        }
    }
}

impl Nas {
    // ASSUMED: names longer than 256 characters are refused like a bad LUN name; only shorter ones were tried. A locked LUN can
    // be snapshotted.
    pub(crate) fn take_snapshot(&mut self, now: Millis, call: &Call) -> Result<Value, Refusal> {
        let params = &call.params;
        let mut lun = self.source(call)?.clone();
        if !lun.dev_attribs.can_snapshot() {
            return Err(Code::BadLunType.because(format!("{} has can_snapshot 0", lun.name)));
        }
        let taken = self.snapshots_of(&lun.uuid).count();
        if taken >= self.settings.snapshots_per_lun {
            return Err(Code::TooManySnapshots.because(format!("{} has {taken}", lun.name)));
        }
        self.volume_of(&lun)
            .map_or(Ok(()), crate::nas::state::volume::Volume::writable)?;
        lun.last_snapshot_id += 1;
        let name = params
            .string("snapshot_name")
            .filter(|name| !name.is_empty());
        let name = name.unwrap_or_else(|| self.snapshot_name(&lun));
        if name.chars().count() > NAME_LIMIT {
            return Err(Code::BadName.because("a snapshot's name has at most 256 characters"));
        }
        if self.snapshots_of(&lun.uuid).any(|other| other.name == name) {
            return Err(Code::SnapshotNameExists.because(format!("{} has {name}", lun.name)));
        }
        let taken_by = params.string("taken_by").filter(|by| !by.is_empty());
        let snapshot = Snapshot {
            uuid: self.new_uuid(),
            parent: lun.uuid.clone(),
            snapshot_id: lun.last_snapshot_id,
            name,
            description: params.string("description").unwrap_or_default(),
            taken_by: taken_by.unwrap_or_else(|| "webapi".to_owned()),
            is_locked: params.boolean("is_locked"),
            is_app_consistent: params.boolean("is_app_consistent"),
            is_worm_locked: false,
            locked_app_keys: Vec::new(),
            time: now / 1_000,
            size: lun.size,
        };
        let data = json!({"snapshot_id": snapshot.snapshot_id, "snapshot_uuid": snapshot.uuid});
        self.effect(Effect::Copy {
            from: Image::Lun(lun.uuid.clone()),
            to: Image::Snapshot(snapshot.uuid.clone()),
        });
        self.state.snapshots.put(snapshot);
        self.state.luns.put(lun);
        Ok(data)
    }

    /// The default name `SnapShot-N`, as recorded; names that are already in use are skipped.
    fn snapshot_name(&self, lun: &Lun) -> String {
        let taken: Vec<&str> = self
            .snapshots_of(&lun.uuid)
            .map(|snapshot| snapshot.name.as_str())
            .collect();
        // One candidate more than there are names: at least one is free.
        (lun.last_snapshot_id..)
            .take(taken.len() + 1)
            .map(|n| format!("SnapShot-{n}"))
            .find(|name| !taken.contains(&name.as_str()))
            .unwrap_or_default()
    }

    pub(crate) fn list_snapshots(&self, call: &Call) -> Result<Value, Refusal> {
        let lun = self.source(call)?;
        let additional = call.params.additional()?;
        let rows: Vec<Value> = self
            .snapshots_of(&lun.uuid)
            .map(|snapshot| {
                let mut row = snapshot.json(lun);
                snapshot.put_additional(&mut row, &additional);
                row
            })
            .collect();
        Ok(json!({"count": rows.len(), "snapshots": rows}))
    }

    pub(crate) fn get_snapshot(&self, call: &Call) -> Result<Value, Refusal> {
        let additional = call.params.additional()?;
        let snapshot = self.snapshot(&call.params.required("snapshot_uuid")?)?;
        let lun = self.existing_lun(&snapshot.parent)?;
        let mut row = snapshot.json(lun);
        snapshot.put_additional(&mut row, &additional);
        Ok(json!({"snapshot": row}))
    }

    /// Both forms: `snapshot_uuid="…"`, and `snapshot_uuids=[…]`, which succeeds and lists the failures (N4S4).
    // ASSUMED: a lock protects from DSM's own rotation, not from this call; democratic deletes snapshots that it has locked. And
    // 18990540 in the list form for any reason: the only code that was recorded there.
    pub(crate) fn delete_snapshots(&mut self, call: &Call) -> Answer {
        let params = &call.params;
        if let Some(uuid) = params
            .string("snapshot_uuid")
            .filter(|uuid| !uuid.is_empty())
        {
            self.snapshot(&uuid)?;
            self.drop_snapshot(&uuid);
            return Ok(None);
        }
        let uuids = params
            .strings("snapshot_uuids", Code::BadShape)?
            .ok_or_else(|| missing("snapshot_uuid"))?;
        let mut failed = Vec::new();
        for uuid in uuids {
            if self.snapshot(&uuid).is_ok() {
                self.drop_snapshot(&uuid);
            } else {
                failed.push(json!({uuid: Code::SnapshotNotDeleted as u32}));
            }
        }
        Ok(Some(Value::Array(failed)))
    }

    /// Restores a LUN from a snapshot. Its uuid and its newer snapshots stay; its initiators are logged out.
    // ASSUMED: an unknown snapshot of an existing LUN is 18990532, as everywhere else. The LUN gets the size that it had then. A
    // locked LUN cannot be restored (18990531 does not fit; 18990004 is the nearest to "not now").
    pub(crate) fn restore_snapshot(&mut self, now: Millis, call: &Call) -> Result<(), Refusal> {
        // Measured by jt: 18990508 without src_lun_uuid; 18990505 if that is not a uuid, before the snapshot is looked up.
        if call.params.raw("src_lun_uuid").is_none() {
            return Err(Code::SanMissingParameter.because("src_lun_uuid is missing"));
        }
        let mut lun = self.source(call)?.clone();
        let uuid = call.params.required("snapshot_uuid")?;
        let snapshot = self
            .state
            .snapshots
            .get(&uuid)
            .filter(|snapshot| snapshot.parent == lun.uuid)
            .ok_or_else(|| {
                Code::NoSuchSnapshot.because(format!("{} has no snapshot {uuid}", lun.name))
            })?;
        if lun.is_action_locked(now) {
            return Err(Code::SanBadParameter.because(format!("{} is locked", lun.name)));
        }
        self.volume_of(&lun)
            .map_or(Ok(()), crate::nas::state::volume::Volume::writable)?;
        lun.size = snapshot.size;
        lun.restored_time = now / 1_000;
        lun.locked_until = now + self.config.timing.lock_after_create;
        self.effect(Effect::Copy {
            from: Image::Snapshot(uuid),
            to: Image::Lun(lun.uuid.clone()),
        });
        for id in self.targets_of(&lun.uuid) {
            self.effect(Effect::Export(id));
        }
        self.state.luns.put(lun);
        Ok(())
    }

    /// The LUN in `src_lun_uuid`: by uuid or by name.
    pub(crate) fn source(&self, call: &Call) -> Result<&Lun, Refusal> {
        let key = call.params.required("src_lun_uuid")?;
        self.find_lun(&key)
            .ok()
            .filter(|lun| lun.deleting_until.is_none())
            .ok_or_else(|| self.no_such_lun(&key))
    }

    /// The snapshot with this uuid.
    pub(crate) fn snapshot(&self, uuid: &str) -> Result<&Snapshot, Refusal> {
        self.state
            .snapshots
            .get(&uuid.to_owned())
            .filter(|snapshot| self.existing_lun(&snapshot.parent).is_ok())
            .ok_or_else(|| Code::NoSuchSnapshot.because(format!("no snapshot {uuid}")))
    }

    /// A LUN's snapshots, oldest first.
    pub(crate) fn snapshots_of(&self, uuid: &str) -> impl Iterator<Item = &Snapshot> {
        let mut all: Vec<&Snapshot> = self
            .state
            .snapshots
            .find(&IndexKey::Lun(uuid.to_owned()))
            .collect();
        all.sort_by_key(|snapshot| snapshot.snapshot_id);
        all.into_iter()
    }

    /// Locks a snapshot as immutable or for a package; no call of the Web API does that.
    pub(crate) fn lock_snapshot(&mut self, uuid: &str, worm: bool, app_key: Option<&str>) {
        if let Some(mut snapshot) = self.state.snapshots.get(&uuid.to_owned()).cloned() {
            snapshot.is_worm_locked |= worm;
            snapshot.locked_app_keys.extend(app_key.map(str::to_owned));
            self.state.snapshots.put(snapshot);
        }
    }

    /// Removes a snapshot for good.
    pub(crate) fn drop_snapshot(&mut self, uuid: &str) {
        if self.state.snapshots.remove(&uuid.to_owned()).is_some() {
            self.effect(Effect::Discard(Image::Snapshot(uuid.to_owned())));
        }
    }
}

#[cfg(test)]
mod tests;
