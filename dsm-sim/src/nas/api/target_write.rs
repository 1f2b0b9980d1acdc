//! Changing targets: `create`, `set`, `delete`, `enable`, `disable`, `map_lun`, `unmap_lun`; dsm-web-api.md 5.

use serde_json::{Value, json};

use crate::nas::Nas;
use crate::nas::api::target::NameCheck;
use crate::nas::call::Call;
use crate::nas::code::{Code, Refusal};
use crate::nas::effect::{Effect, Environment};
use crate::nas::params::{Params, missing};
use crate::nas::state::table::IndexKey;
use crate::nas::state::target::Target;

/// The segment sizes that a target accepts, in bytes.
const SEGMENT_SIZES: [u64; 4] = [4096, 8192, 65536, 262_144];
const NAME_LIMIT: usize = 255;
/// RFC 7143's limit for an iSCSI name, in bytes.
const IQN_LIMIT: usize = 223;

impl Nas {
    pub(crate) fn create_target(&mut self, call: &Call) -> Result<Value, Refusal> {
        for name in ["name", "iqn"] {
            call.params.raw(name).ok_or_else(|| missing(name))?;
        }
        let blank = Target::blank();
        let mut target = self.with_params(blank, &call.params)?;
        if self.state.targets.len() >= self.config.model.max_targets {
            return Err(Code::TooManyTargets.because(format!(
                "a {} holds {} targets",
                self.config.model.name, self.config.model.max_targets
            )));
        }
        // DSM reuses the numbers of deleted targets.
        target.target_id = self.state.targets.free_number();
        let data = json!({"target_id": target.target_id});
        self.put_target(target);
        Ok(data)
    }

    pub(crate) fn change_target(
        &mut self,
        call: &Call,
        method: &str,
        env: &dyn Environment,
    ) -> Result<(), Refusal> {
        // ASSUMED: only `get` accepts names. The official driver was seen to look up by name, and to send the number in all calls
        // that change a target; so a client that deletes by name is refused at once.
        let names = if self.settings.target_names_in_changes {
            NameCheck::Accepted
        } else {
            NameCheck::Refused
        };
        let mut target = self.find_target(call, names)?.clone();
        let id = target.target_id;
        match method {
            "set" => target = self.with_params(target, &call.params)?,
            "enable" => target.enabled = true,
            // ASSUMED: disabling keeps live sessions and rejects new logins.
            "disable" => target.enabled = false,
            "delete" => {
                self.delete_target(id, env);
                return Ok(());
            }
            _ => return self.map_luns(id, call, method),
        }
        self.put_target(target);
        Ok(())
    }

    /// A target with a call's parameters applied, if they are valid.
    // ASSUMED: the order of the checks.
    fn with_params(&self, mut target: Target, params: &Params) -> Result<Target, Refusal> {
        let id = target.target_id;
        let another_has = |index_key: IndexKey| {
            let mut found = self.state.targets.find(&index_key);
            found.any(|other| other.target_id != id)
        };
        if let Some(name) = params.string("name") {
            check_name(&name)?;
            if another_has(IndexKey::Name(name.clone())) {
                return Err(Code::TargetNameExists.because(format!("there is a target {name}")));
            }
            target.name = name;
        }
        if let Some(iqn) = params.string("iqn") {
            check_iqn(&iqn)?;
            if another_has(IndexKey::Iqn(iqn.clone())) {
                return Err(
                    Code::IqnExists.because(format!("there is a target with the IQN {iqn}"))
                );
            }
            target.iqn = iqn;
        }
        put_auth(&mut target, params)?;
        // ASSUMED: 120 for impossible session counts and segment sizes; any number of sessions is legal, and a limit below the
        // current number ends none.
        if let Some(sessions) = params.number("max_sessions", Code::BadParameter)? {
            target.max_sessions = sessions;
        }
        for (name, field) in [
            ("max_recv_seg_bytes", &mut target.max_recv_seg_bytes),
            ("max_send_seg_bytes", &mut target.max_send_seg_bytes),
        ] {
            if let Some(bytes) = params.number(name, Code::BadParameter)? {
                if !SEGMENT_SIZES.contains(&bytes) {
                    return Err(Code::BadParameter
                        .because(format!("{name}={bytes} is none of {SEGMENT_SIZES:?}")));
                }
                *field = bytes;
            }
        }
        for (name, field) in [
            ("has_header_checksum", &mut target.has_header_checksum),
            ("has_data_checksum", &mut target.has_data_checksum),
        ] {
            if let Some(value) = params.value(name) {
                *field = value.as_bool().ok_or_else(|| {
                    Code::BadParameter.because(format!("{name}={value} is not a boolean"))
                })?;
            }
        }
        Ok(target)
    }

    /// Stores a new or changed target.
    pub(crate) fn put_target(&mut self, target: Target) {
        // The sessions of a deleted target with this IQN now belong to this one.
        self.lingering.remove(&target.iqn);
        let old = self.state.targets.get(&target.target_id);
        if old == Some(&target) {
            return;
        }
        if let Some(iqn) = old
            .map(|old| old.iqn.clone())
            .filter(|iqn| *iqn != target.iqn)
        {
            self.effect(Effect::Unexport(iqn));
        }
        self.effect(Effect::Export(target.target_id));
        self.state.targets.put(target);
    }

    fn map_luns(&mut self, id: u32, call: &Call, method: &str) -> Result<(), Refusal> {
        let uuids = call
            .params
            .strings("lun_uuids", Code::BadShape)?
            .ok_or_else(|| missing("lun_uuids"))?;
        // ASSUMED: one unknown LUN refuses the whole call.
        for uuid in &uuids {
            self.existing_lun(uuid)?;
            if method == "map_lun" {
                self.check_loadable(uuid)?;
            }
        }
        for uuid in &uuids {
            match method {
                "map_lun" => self.map(id, uuid),
                _ => self.unmap(id, uuid),
            }
        }
        Ok(())
    }

    /// Maps a LUN to a target under the lowest free index from 1, measured by jt. Idempotent.
    // ASSUMED: mapping a LUN that is already mapped is a success.
    pub(crate) fn map(&mut self, id: u32, uuid: &str) {
        let Some(mut target) = self.state.targets.get(&id).cloned() else {
            return;
        };
        if target.maps(uuid) {
            return;
        }
        if let Some(index) = (1..=u16::MAX).find(|index| !target.luns.contains_key(index)) {
            target.luns.insert(index, uuid.to_owned());
            self.put_target(target);
        }
    }

    /// Unmaps a LUN from a target. Idempotent.
    pub(crate) fn unmap(&mut self, id: u32, uuid: &str) {
        if let Some(mut target) = self.state.targets.get(&id).cloned() {
            target.luns.retain(|_, mapped| mapped != uuid);
            self.put_target(target);
        }
    }
}

// ASSUMED: a target's name has the characters of a LUN's name, and blanks (the factory's target is "Synology iSCSI Target").
fn check_name(name: &str) -> Result<(), Refusal> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | ':' | '\\' | ' ');
    if name.is_empty() || name.len() > NAME_LIMIT || !name.chars().all(legal) {
        return Err(Code::BadTargetName.because(format!("{name:?} is not a legal target name")));
    }
    Ok(())
}

// ASSUMED: 18990004 for an invalid iSCSI name; a client's table calls the code "bad parameter".
fn check_iqn(iqn: &str) -> Result<(), Refusal> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | ':');
    if !iqn.starts_with("iqn.") || iqn.len() > IQN_LIMIT || !iqn.chars().all(legal) {
        return Err(Code::SanBadParameter.because(format!("{iqn:?} is not a legal IQN")));
    }
    Ok(())
}

// ASSUMED: CHAP requires a name and a password of 12 to 16 characters, as DSM's page says; mutual CHAP requires both pairs.
fn put_auth(target: &mut Target, params: &Params) -> Result<(), Refusal> {
    if let Some(kind) = params.number("auth_type", Code::BadAuthType)? {
        if kind > 2 {
            return Err(Code::BadAuthType.because(format!("auth_type={kind} is none of 0, 1, 2")));
        }
        target.auth_type = kind;
    }
    for (name, field) in [
        ("user", &mut target.user),
        ("password", &mut target.password),
        ("mutual_user", &mut target.mutual_user),
        ("mutual_password", &mut target.mutual_password),
    ] {
        if let Some(value) = params.string(name) {
            *field = value;
        }
    }
    let valid_pair =
        |user: &str, password: &str| !user.is_empty() && (12..=16).contains(&password.len());
    let valid = match target.auth_type {
        0 => true,
        1 => valid_pair(&target.user, &target.password),
        _ => {
            valid_pair(&target.user, &target.password)
                && valid_pair(&target.mutual_user, &target.mutual_password)
        }
    };
    if valid {
        Ok(())
    } else {
        Err(Code::BadAuthData.because("CHAP wants a name and a password of 12 to 16 characters"))
    }
}

#[cfg(test)]
mod tests;
