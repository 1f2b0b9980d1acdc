//! Reading volumes, and their free space: `SYNO.Core.Storage.Volume`, dsm-web-api.md 7.

use crate::nas::state::volume::SpaceReturn;
use crate::nas::state::volume::Volume;
use crate::nas::state::volume::volume_number;

use serde_json::{Value, json};

use crate::nas::Nas;
use crate::nas::call::{Answer, Call};
use crate::nas::clock::Millis;
use crate::nas::code::{Code, Refusal};
use crate::nas::effect::Environment;
use crate::nas::model::Generation;

impl Volume {
    fn json(&self, nas: &Nas, env: &dyn Environment) -> Value {
        let used = nas.used_by_luns(self, env);
        let mut row = json!({
            "container": self.container,
            "display_name": format!("Volume {}", volume_number(&self.path).unwrap_or_default()),
            "eppool_used_byte": used.to_string(),
            "fs_type": self.fs,
            "location": self.location.as_ref().unwrap_or(&self.container),
            "raid_type": "raid_1",
            "readonly": self.status == "read_only",
            "single_volume": true,
            "size_free_byte": nas.free_with_used(self, used).to_string(),
            "size_total_byte": self.size.to_string(),
            "status": nas.boot_status().unwrap_or(&self.status),
            "volume_id": volume_number(&self.path).unwrap_or_default(),
            "volume_path": self.path,
        });
        self.leave_out(&mut row);
        row
    }

    /// Removes the fields in `without` from a row.
    fn leave_out(&self, row: &mut Value) {
        if let Some(row) = row.as_object_mut() {
            row.retain(|name, _| !self.without.contains(name));
        }
    }
}

impl Nas {
    /// Free bytes of a volume.
    pub(crate) fn free(&self, volume: &Volume, env: &dyn Environment) -> u64 {
        self.free_with_used(volume, self.used_by_luns(volume, env))
    }

    /// Free bytes of a volume whose LUNs use this many bytes.
    fn free_with_used(&self, volume: &Volume, used: u64) -> u64 {
        let returning = self
            .pending_space
            .iter()
            .filter(|row| row.volume == volume.path)
            .map(|row| row.bytes)
            .fold(0, u64::saturating_add);
        volume
            .size
            .saturating_sub(used)
            .saturating_sub(volume.used_elsewhere)
            .saturating_sub(returning)
    }

    /// Schedules when the space of a deleted LUN becomes free.
    pub(crate) fn return_space_at(&mut self, at: Millis, volume: String, bytes: u64) {
        self.pending_space.push(SpaceReturn { at, volume, bytes });
    }

    /// Frees the space that is due.
    pub(crate) fn tick_volumes(&mut self, now: Millis) {
        self.pending_space.retain(|row| now < row.at);
    }

    pub(crate) fn volume_call(&self, call: &Call, env: &dyn Environment) -> Answer {
        match call.method.as_str() {
            "list" => Ok(Some(self.list_volumes(env))),
            _ => self.get_volume(call, env).map(Some),
        }
    }

    fn list_volumes(&self, env: &dyn Environment) -> Value {
        let own = self.state.volumes.values();
        let own = own.map(|volume| self.listed_volume(volume, env));
        let volumes: Vec<Value> = self.odd_volumes().into_iter().chain(own).collect();
        json!({"offset": 0, "total": volumes.len(), "volumes": volumes})
    }

    // DSM 6 as recorded in jparklab's volume_test.go, where a list has no eppool_used_byte.
    // ASSUMED: the values of the fields that DSM 7 adds, and that its list keeps eppool_used_byte; only names were written down.
    fn listed_volume(&self, volume: &Volume, env: &dyn Environment) -> Value {
        let mut row = volume.json(self, env);
        row["atime_checked"] = json!(false);
        row["atime_opt"] = json!("relatime");
        row["crashed"] = json!(volume.status == "crashed");
        row["description"] = json!("");
        row["pool_path"] = json!("reuse_1");
        match self.config.generation {
            Generation::Six => {
                row.as_object_mut()
                    .map(|row| row.remove("eppool_used_byte"));
            }
            Generation::Seven => {
                row["deduped"] = json!(false);
                row["is_encrypted"] = json!(false);
                row["volume_attribute"] = json!("generic");
                row["volume_quota_status"] = json!("v2");
            }
        }
        volume.leave_out(&mut row);
        row
    }

    fn get_volume(&self, call: &Call, env: &dyn Environment) -> Result<Value, Refusal> {
        let path = call.params.required("volume_path")?;
        if let Some(volume) = self.state.volumes.get(&path) {
            return Ok(json!({"volume": volume.json(self, env)}));
        }
        // Measured: an unknown /volumeN is 117; anything that is not a volume path is a success without a volume.
        match volume_number(&path) {
            Some(_) => Err(Code::Busy.because(format!("no volume {path}"))),
            None => Ok(json!({})),
        }
    }
}
