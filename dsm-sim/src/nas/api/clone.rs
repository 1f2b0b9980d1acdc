//! Cloning LUNs and snapshots: `clone`, `clone_snapshot`, `stop_clone`; dsm-web-api.md 4.9 and 4.10.

use crate::nas::state::lun::Family;
use serde_json::{Value, json};

use crate::nas::Nas;
use crate::nas::api::lun_write::check_name;
use crate::nas::call::Call;
use crate::nas::clock::Millis;
use crate::nas::code::{Code, Refusal};
use crate::nas::effect::{Effect, Environment, Image};
use crate::nas::state::lun::Lun;
use crate::nas::state::table::IndexKey;

/// A LUN to create as a clone.
struct CloneRequest<'a> {
    name: String,
    location: String,
    size: u64,
    from: Image,
    family: Family,
    source: &'a Lun,
    description: String,
}

impl Nas {
    // ASSUMED: a LUN that is itself still being cloned cannot be cloned (18990004); clones across volumes are copies.
    pub(crate) fn clone_lun(
        &mut self,
        now: Millis,
        call: &Call,
        env: &dyn Environment,
    ) -> Result<Value, Refusal> {
        let params = &call.params;
        for remote in ["dst_node_uuid", "dst_address"] {
            if params.string(remote).is_some_and(|value| !value.is_empty()) {
                return Err(Code::SanBadParameter.unsupported("a clone to another NAS"));
            }
        }
        let source = self.source(call)?.clone();
        let name = params.required("dst_lun_name")?;
        // Cinder omits the location.
        let location = params
            .string("dst_location")
            .filter(|path| !path.is_empty());
        let from = Image::Lun(source.uuid.clone());
        let uuid = self.create_clone(
            now,
            CloneRequest {
                name,
                location: location.unwrap_or_else(|| source.location.clone()),
                size: source.size,
                family: Family {
                    parent_lun_name: source.name.clone(),
                    parent_lun_uuid: source.uuid.clone(),
                    shared: env.allocated(&from),
                    ..Family::default()
                },
                from,
                source: &source,
                description: params.string("description").unwrap_or_default(),
            },
            env,
        )?;
        Ok(json!({"dst_lun_uuid": uuid}))
    }

    pub(crate) fn clone_snapshot(
        &mut self,
        now: Millis,
        call: &Call,
        env: &dyn Environment,
    ) -> Result<Value, Refusal> {
        let params = &call.params;
        let source = self.source(call)?.clone();
        let snapshot = self.snapshot(&params.required("snapshot_uuid")?)?.clone();
        // ASSUMED: a snapshot of another LUN is as unknown as one that does not exist.
        if snapshot.parent != source.uuid {
            return Err(Code::NoSuchSnapshot
                .because(format!("{} has no snapshot {}", source.name, snapshot.uuid)));
        }
        let name = params.required("cloned_lun_name")?;
        let from = Image::Snapshot(snapshot.uuid.clone());
        let uuid = self.create_clone(
            now,
            CloneRequest {
                name,
                location: source.location.clone(),
                size: snapshot.size,
                family: Family {
                    parent_lun_name: source.name.clone(),
                    parent_lun_uuid: source.uuid.clone(),
                    parent_snapshot_time: snapshot.time,
                    parent_snapshot_uuid: snapshot.uuid.clone(),
                    shared: env.allocated(&from),
                },
                from,
                source: &source,
                description: params.string("description").unwrap_or_default(),
            },
            env,
        )?;
        Ok(json!({"cloned_lun_uuid": uuid}))
    }

    /// Creates the clone. Its data is there at once; DSM keeps working, and keeps the clone locked, for a while.
    // ASSUMED: a clone keeps its source's type and attributes; the checks have the same order as in create.
    fn create_clone(
        &mut self,
        now: Millis,
        request: CloneRequest<'_>,
        env: &dyn Environment,
    ) -> Result<String, Refusal> {
        let CloneRequest {
            name,
            location,
            source,
            ..
        } = request;
        check_name(&name)?;
        if name.len() == crate::nas::api::lun_write::NAME_LIMIT {
            return Err(Code::BadName.because("a name of 255 characters"));
        }
        if source.is_cloning(now) {
            return Err(
                Code::SanBadParameter.because(format!("{} is still being cloned", source.name))
            );
        }
        let volume = self
            .state
            .volumes
            .get(&location)
            .ok_or_else(|| Code::BadLocation.because(format!("no volume {location}")))?;
        self.check_name_free(&name)?;
        self.check_lun_limit()?;
        source.kind.check_fits(volume.fs)?;
        volume.writable()?;
        let needs = if source.kind.is_thin() {
            // A reflink needs no space, a copy needs as much as there is data.
            let is_copy = !source.kind.is_btrfs() || location != source.location;
            if is_copy { request.family.shared } else { 0 }
        } else {
            request.size
        };
        if needs > self.free(volume, env) {
            return Err(Code::NoSpace.because(format!("{location} has no {needs} bytes free")));
        }
        let duration =
            self.config
                .timing
                .clone_duration(source.kind, source.size, request.family.shared);
        let lun = Lun {
            uuid: self.new_uuid(),
            lun_id: self.state.luns.free_number(),
            name,
            location,
            size: request.size,
            description: request.description,
            family: request.family,
            restored_time: 0,
            last_snapshot_id: 0,
            held: false,
            locked_until: now + duration,
            half_done_until: (duration > 0).then_some(now + duration),
            deleting_until: None,
            ..source.clone()
        };
        let uuid = lun.uuid.clone();
        self.finish_at(now + duration, &uuid);
        self.effect(Effect::Copy {
            from: request.from,
            to: Image::Lun(uuid.clone()),
        });
        self.state.luns.put(lun);
        Ok(uuid)
    }

    /// Stops all unfinished clones of a LUN and removes them.
    // ASSUMED: a success if there is none.
    pub(crate) fn stop_clone(&mut self, now: Millis, call: &Call) -> Result<(), Refusal> {
        let source = self.source(call)?.uuid.clone();
        let unfinished: Vec<String> = self
            .state
            .luns
            .find(&IndexKey::Lun(source))
            .filter(|lun| lun.is_cloning(now))
            .map(|lun| lun.uuid.clone())
            .collect();
        for uuid in unfinished {
            self.remove_lun(&uuid);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
