//! Changing LUNs: `create`, `set`, `delete`, `map_target`, `unmap_target`; dsm-web-api.md 4.5 to 4.8 and 4.11.

use serde_json::{Value, json};

use crate::nas::Nas;
use crate::nas::api::target;
use crate::nas::call::{Answer, Call};
use crate::nas::clock::Millis;
use crate::nas::code::{Code, Refusal};
use crate::nas::effect::{Effect, Environment, Image};
use crate::nas::params::{Params, missing};
use crate::nas::state::lun::Family;
use crate::nas::state::lun::Lun;
use crate::nas::state::lun_type::{DevAttribs, LunType};
use crate::nas::state::table::IndexKey;

/// A name of this length is created and reported as a failure; a longer one is refused. Measured by jt.
pub(crate) const NAME_LIMIT: usize = 255;

impl Nas {
    // ASSUMED: the order of the checks: each parameter, then the uniqueness of the name, the model's limit, the type on this file
    // system, space.
    pub(crate) fn create_lun(
        &mut self,
        now: Millis,
        call: &Call,
        env: &dyn Environment,
    ) -> Result<Value, Refusal> {
        let params = &call.params;
        let name = params.required("name")?;
        check_name(&name)?;
        let kind = params.required("type")?;
        let mut kind = LunType::named(&kind)
            .ok_or_else(|| Code::BadLunType.because(format!("type={kind}")))?;
        let location = params.required("location")?;
        let volume = self
            .state
            .volumes
            .get(&location)
            .ok_or_else(|| Code::BadLocation.because(format!("no volume {location}")))?;
        if !self.settings.cinder_on_btrfs_refused {
            kind = kind.for_file_system(volume.fs);
        }
        let size = params
            .number("size", Code::BadSize)?
            .ok_or_else(|| missing("size"))?;
        if size == 0 {
            return Err(Code::BadSize.because("size is 0"));
        }
        if params
            .string("src_lun_file")
            .is_some_and(|file| !file.is_empty())
        {
            return Err(Code::SanBadParameter.unsupported("a LUN made from an image file"));
        }
        let dev_attribs = {
            let default = DevAttribs::default_for(kind, self.settings.adv_can_snapshot);
            self.with_attributes(default, kind, params)?
        };
        let direct_io_pattern = io_policy(params)?.unwrap_or(0);
        self.check_name_free(&name)?;
        self.check_lun_limit()?;
        kind.check_fits(volume.fs)?;
        volume.writable()?;
        // ASSUMED: a thin LUN may exceed the volume's free space without limit.
        if !kind.is_thin() && size > self.free(volume, env) {
            return Err(
                Code::NoSpace.because(format!("{location} has no {size} bytes for a thick LUN"))
            );
        }
        let description = params.string("description").unwrap_or_default();
        let lun = Lun {
            uuid: self.new_uuid(),
            // ASSUMED: the lowest free number, as for targets and mappings.
            lun_id: self.state.luns.free_number(),
            status: "normal".to_owned(),
            held: false,
            locked_until: now + self.config.timing.lock_after_create,
            half_done_until: None,
            deleting_until: None,
            family: Family::default(),
            restored_time: 0,
            last_snapshot_id: 0,
            name,
            size,
            kind,
            location,
            description,
            dev_attribs,
            direct_io_pattern,
        };
        let data = json!({"lun_id": lun.lun_id, "uuid": lun.uuid});
        let at_limit = lun.name.len() == NAME_LIMIT;
        self.effect(Effect::File(lun.uuid.clone()));
        self.state.luns.put(lun);
        if at_limit {
            return Err(
                Code::NameAtLimit.because("a name of 255 characters: the LUN exists all the same")
            );
        }
        Ok(data)
    }

    /// A random uuid for a new LUN or snapshot.
    pub(crate) fn new_uuid(&mut self) -> String {
        uuid::Builder::from_random_bytes(rand::RngExt::random(&mut self.rng))
            .into_uuid()
            .to_string()
    }

    pub(crate) fn check_lun_limit(&self) -> Result<(), Refusal> {
        let model = self.config.model;
        if self.state.luns.len() >= model.max_luns {
            return Err(Code::TooManyLuns
                .because(format!("a {} holds {} LUNs", model.name, model.max_luns)));
        }
        Ok(())
    }

    pub(crate) fn check_name_free(&self, name: &str) -> Result<(), Refusal> {
        let index_key = IndexKey::Name(name.to_owned());
        if self.state.luns.find(&index_key).next().is_some() {
            return Err(Code::LunNameExists.because(format!("there is a LUN {name}")));
        }
        Ok(())
    }

    /// Grows or renames a LUN, or changes its description or attributes. All or nothing: a refused value leaves everything
    /// unchanged.
    // ASSUMED: a locked LUN may be set; DSM was only seen to accept a delete while a LUN is locked.
    pub(crate) fn set_lun(&mut self, call: &Call, env: &dyn Environment) -> Result<(), Refusal> {
        let params = &call.params;
        let key = params.required("uuid")?;
        let mut lun = self.find_lun(&key)?.clone();
        // ASSUMED: to all methods but list and get, a LUN that is being deleted no longer exists.
        if lun.deleting_until.is_some() {
            return Err(self.no_such_lun(&key));
        }
        if let Some(size) = params.number("new_size", Code::BadSize)? {
            self.check_growth(&lun, size, env)?;
            lun.size = size;
        }
        if let Some(name) = params.string("new_name").filter(|name| *name != lun.name) {
            check_name(&name)?;
            // ASSUMED: renaming to 255 characters is refused outright; only create was tried.
            if name.len() == NAME_LIMIT {
                return Err(Code::BadName.because("a name of 255 characters"));
            }
            self.check_name_free(&name)?;
            lun.name = name;
        }
        if params
            .string("new_type")
            .is_some_and(|kind| LunType::named(&kind) != Some(lun.kind))
        {
            return Err(Code::BadLunType.unsupported("a change of a LUN's type"));
        }
        if params
            .string("new_location")
            .is_some_and(|location| location != lun.location)
        {
            return Err(Code::BadLocation.unsupported("a move of a LUN to another volume"));
        }
        lun.dev_attribs = self.with_attributes(lun.dev_attribs, lun.kind, params)?;
        lun.direct_io_pattern = io_policy(params)?.unwrap_or(lun.direct_io_pattern);
        if let Some(description) = params.string("description") {
            lun.description = description;
        }
        self.put_lun(lun);
        Ok(())
    }

    fn check_growth(&self, lun: &Lun, size: u64, env: &dyn Environment) -> Result<(), Refusal> {
        let Some(growth) = size.checked_sub(lun.size) else {
            return Err(Refusal {
                code: self.settings.shrink_code,
                why: format!("{size} is less than the present size {}", lun.size),
                errors: None,
            });
        };
        let Some(volume) = self.state.volumes.get(&lun.location) else {
            return Ok(());
        };
        if growth > 0 {
            volume.writable()?;
        }
        let needs_space = !lun.kind.is_thin() || self.settings.thin_growth_needs_space;
        if needs_space && growth > self.free(volume, env) {
            let why = format!("{} has no {growth} bytes more", lun.location);
            return Err(Code::NoSpace.because(why));
        }
        Ok(())
    }

    /// Stores a changed LUN.
    pub(crate) fn put_lun(&mut self, lun: Lun) {
        let old = self.state.luns.get(&lun.uuid);
        if old == Some(&lun) {
            return;
        }
        let resized = old.is_none_or(|old| old.size != lun.size);
        let attributes_changed = old.is_none_or(|old| old.dev_attribs != lun.dev_attribs);
        if resized {
            self.effect(Effect::File(lun.uuid.clone()));
        }
        if resized || attributes_changed {
            // The export has to learn the new size or attributes.
            for id in self.targets_of(&lun.uuid) {
                self.effect(Effect::Export(id));
            }
        }
        self.state.luns.put(lun);
    }

    /// Both forms: `uuid="…"`, and `uuid=""` with `uuids=[…]`. Mapped LUNs are deleted, too, along with their mappings.
    pub(crate) fn delete_luns(
        &mut self,
        now: Millis,
        call: &Call,
        env: &dyn Environment,
    ) -> Answer {
        let uuid = call.params.string("uuid").unwrap_or_default();
        if !uuid.is_empty() {
            return self.delete_lun(now, &uuid, env).map(|()| None);
        }
        let uuids = call
            .params
            .strings("uuids", Code::BadShape)?
            .ok_or_else(|| missing("uuid"))?;
        // ASSUMED: the list form succeeds and lists the failures, as delete_snapshot's list form was recorded to.
        let mut failed = Vec::new();
        for uuid in uuids {
            if let Err(refusal) = self.delete_lun(now, &uuid, env) {
                failed.push(json!({uuid: refusal.code}));
            }
        }
        Ok(if failed.is_empty() {
            None
        } else {
            Some(Value::Array(failed))
        })
    }

    // ASSUMED: by uuid only, not by name; a second delete of a LUN that is still being deleted is refused as "no such LUN".
    fn delete_lun(
        &mut self,
        now: Millis,
        uuid: &str,
        env: &dyn Environment,
    ) -> Result<(), Refusal> {
        let mut timing = self.config.timing;
        if !self.settings.deleted_luns_stay_listed {
            timing.delete_duration = 0;
        }
        let mut lun = self.existing_lun(uuid)?.clone();
        let (location, used) = (lun.location.clone(), lun.used_bytes(env));
        lun.deleting_until = Some(now + timing.delete_duration);
        self.finish_at(now + timing.delete_duration, uuid);
        self.state.luns.put(lun);
        for id in self.targets_of(uuid) {
            self.unmap(id, uuid);
        }
        if timing.space_return_delay > 0 {
            let at = now + timing.delete_duration + timing.space_return_delay;
            self.return_space_at(at, location, used);
        }
        self.tick(now);
        Ok(())
    }

    /// The numbers of the targets that map a LUN.
    pub(crate) fn targets_of(&self, uuid: &str) -> Vec<u32> {
        let mapping = self.state.targets.find(&IndexKey::Lun(uuid.to_owned()));
        mapping.map(|target| target.target_id).collect()
    }

    /// Removes a LUN for good, along with its snapshots.
    pub(crate) fn remove_lun(&mut self, uuid: &str) {
        for id in self.targets_of(uuid) {
            self.unmap(id, uuid);
        }
        self.unmap_lingering(uuid);
        let snapshots: Vec<String> = self
            .snapshots_of(uuid)
            .map(|snapshot| snapshot.uuid.clone())
            .collect();
        for snapshot in snapshots {
            self.drop_snapshot(&snapshot);
        }
        if self.state.luns.remove(&uuid.to_owned()).is_some() {
            self.effect(Effect::Discard(Image::Lun(uuid.to_owned())));
        }
    }

    /// The LUN with this uuid, unless it is being deleted.
    pub(crate) fn existing_lun(&self, uuid: &str) -> Result<&Lun, Refusal> {
        self.state
            .luns
            .get(&uuid.to_owned())
            .filter(|lun| lun.deleting_until.is_none() && self.is_shown(lun))
            .ok_or_else(|| self.no_such_lun(uuid))
    }

    /// Adds mappings. Idempotent.
    // ASSUMED: one unknown target refuses the whole call; map and unmap accept only uuids, not names.
    pub(crate) fn map_target(&mut self, call: &Call) -> Result<(), Refusal> {
        let (uuid, targets) = self.mapping_params(call)?;
        self.check_loadable(&uuid)?;
        for id in targets {
            self.map(id, &uuid);
        }
        Ok(())
    }

    /// Removes the given mappings, and no others.
    // ASSUMED: a missing mapping is a success.
    pub(crate) fn unmap_target(&mut self, call: &Call) -> Result<(), Refusal> {
        let (uuid, targets) = self.mapping_params(call)?;
        for id in targets {
            self.unmap(id, &uuid);
        }
        Ok(())
    }

    fn with_attributes(
        &self,
        current: DevAttribs,
        kind: LunType,
        params: &Params,
    ) -> Result<DevAttribs, Refusal> {
        let thin = self.settings.thin_can_snapshot;
        // The official driver (v1.1.1) sends null if its StorageClass does not set attributes.
        params
            .value("dev_attribs")
            .filter(|requested| !requested.is_null())
            .map_or(Ok(current), |requested| {
                current.with(kind, &requested, thin)
            })
    }

    /// If `adv_unmappable_on_7_0` is on, refuses to map an ADV LUN on DSM 7.0, which DSM cannot load: recorded in official #23.
    pub(crate) fn check_loadable(&self, uuid: &str) -> Result<(), Refusal> {
        let lun = self.existing_lun(uuid)?;
        let unmappable = self.settings.adv_unmappable_on_7_0 && self.config.dsm.version == "7.0";
        if lun.kind == LunType::Adv && unmappable {
            return Err(Code::LoadFailed.because(format!("{} is in load fail", lun.name)));
        }
        Ok(())
    }

    fn mapping_params(&self, call: &Call) -> Result<(String, Vec<u32>), Refusal> {
        let uuid = call.params.required("uuid")?;
        let ids = call
            .params
            .value("target_ids")
            .ok_or_else(|| missing("target_ids"))?;
        let ids = ids
            .as_array()
            .ok_or_else(|| Code::BadShape.because("target_ids is not an array"))?;
        self.existing_lun(&uuid)?;
        let known = |id: &Value| {
            target::number(id)
                .filter(|id| self.is_loaded(*id) && self.state.targets.get(id).is_some())
        };
        let ids: Option<Vec<u32>> = ids.iter().map(known).collect();
        Ok((
            uuid,
            ids.ok_or_else(|| {
                Code::BadTargetId.because("target_ids names a target that is not there")
            })?,
        ))
    }
}

/// Letters, digits, `-`, `.`, `:` and `\`; at most 255. Measured by jt with 33 characters.
// ASSUMED: ASCII letters only.
pub(crate) fn check_name(name: &str) -> Result<(), Refusal> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | ':' | '\\');
    if name.is_empty() || name.len() > NAME_LIMIT || !name.chars().all(legal) {
        return Err(Code::BadName.because(format!("{name:?} is not a legal LUN name")));
    }
    Ok(())
}

fn io_policy(params: &Params) -> Result<Option<u64>, Refusal> {
    match params.number("direct_io_pattern", Code::BadIoPolicy)? {
        Some(other) if other != 0 && other != 3 => {
            Err(Code::BadIoPolicy.because(format!("direct_io_pattern={other} is neither 0 nor 3")))
        }
        policy => Ok(policy),
    }
}

#[cfg(test)]
mod tests;
