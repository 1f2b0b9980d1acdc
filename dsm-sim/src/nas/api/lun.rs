//! Reading LUNs: `SYNO.Core.ISCSI.LUN` `list` and `get`, and the rows that they return; dsm-web-api.md 4.3 and 4.4.

use crate::nas::state::lun::Lun;
use serde_json::{Value, json};

use crate::nas::Nas;
use crate::nas::call::{Answer, Call};
use crate::nas::clock::Millis;
use crate::nas::code::{Code, Refusal};
use crate::nas::effect::Environment;
use crate::nas::model::Generation;
use crate::nas::params::Additional;
use crate::nas::state::lun_type::LunType;
use crate::nas::state::table::IndexKey;
use crate::nas::state::volume::Volume;

/// Which method a row is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    List,
    Get,
}

impl Nas {
    pub(crate) fn lun_call(&mut self, now: Millis, call: &Call, env: &dyn Environment) -> Answer {
        match call.method.as_str() {
            "list" => self.list_luns(now, call, env).map(Some),
            "get" => self.get_lun(now, call, env).map(Some),
            "create" => self.create_lun(now, call, env).map(Some),
            "set" => self.set_lun(call, env).map(|()| None),
            "delete" => self.delete_luns(now, call, env),
            "map_target" => self.map_target(call).map(|()| None),
            "unmap_target" => self.unmap_target(call).map(|()| None),
            "clone" => self.clone_lun(now, call, env).map(Some),
            "stop_clone" => self.stop_clone(now, call).map(|()| None),
            "take_snapshot" => self.take_snapshot(now, call).map(Some),
            "list_snapshot" => self.list_snapshots(call).map(Some),
            "get_snapshot" => self.get_snapshot(call).map(Some),
            "delete_snapshot" => self.delete_snapshots(call),
            "restore_snapshot" => self.restore_snapshot(now, call).map(|()| None),
            _ => self.clone_snapshot(now, call, env).map(Some),
        }
    }

    /// All LUNs, in the order of lists.
    // ASSUMED: lists are ordered by lun_id.
    pub(crate) fn luns_by_number(&self) -> impl Iterator<Item = &Lun> {
        let mut luns: Vec<&Lun> = self.state.luns.values().collect();
        luns.sort_by_key(|lun| lun.lun_id);
        luns.into_iter()
    }

    /// The LUN with this uuid or, as `get` and `set` allow, with this name.
    pub(crate) fn find_lun(&self, key: &str) -> Result<&Lun, Refusal> {
        let key = key.to_owned();
        let lun = self
            .state
            .luns
            .get(&key)
            .or_else(|| self.state.luns.find(&IndexKey::Name(key.clone())).next());
        lun.filter(|lun| self.is_shown(lun))
            .ok_or_else(|| self.no_such_lun(&key))
    }

    /// Whether the NAS currently shows the LUN: it is loaded, and its volume does not hide it.
    pub(crate) fn is_shown(&self, lun: &Lun) -> bool {
        self.is_loaded(lun.lun_id) && !self.volume_of(lun).is_some_and(|volume| volume.hides_luns)
    }

    /// The volume that a LUN is on.
    pub(crate) fn volume_of(&self, lun: &Lun) -> Option<&Volume> {
        self.state.volumes.get(&lun.location)
    }

    /// The refusal for an unknown LUN. The code depends on the key: a well-formed uuid, or anything else.
    pub(crate) fn no_such_lun(&self, key: &str) -> Refusal {
        let code = if is_uuid(key) {
            self.settings.missing_lun_code
        } else {
            self.settings.unknown_lun_name_code
        };
        Refusal {
            code,
            why: format!("no LUN {key}"),
            errors: None,
        }
    }

    // `offset` and `limit` are ignored, measured: all LUNs come back, without a total.
    fn list_luns(&self, now: Millis, call: &Call, env: &dyn Environment) -> Result<Value, Refusal> {
        let additional = call.params.additional()?;
        let location = call.params.string("location");
        let types = call
            .params
            .strings("types", Code::BadShape)?
            .map(|names| parse_types(&names))
            .transpose()?;
        let wanted = |lun: &&Lun| {
            self.is_shown(lun)
                && (lun.deleting_until.is_none() || self.settings.deleted_luns_stay_listed)
                && types.as_ref().is_none_or(|types| types.contains(&lun.kind))
                && location
                    .as_ref()
                    .is_none_or(|location| *location == lun.location)
        };
        // Malformed rows come first: a client that stops there sees none of the real ones.
        let mut luns = match &types {
            Some(types) if !types.contains(&LunType::Blun) => Vec::new(),
            Some(_) | None => self.odd_luns(now, &additional, env, location.as_deref()),
        };
        luns.extend(
            self.luns_by_number()
                .filter(wanted)
                .map(|lun| self.lun_json(lun, now, &additional, env, Form::List))
                .map(|row| self.cut_row(row, "size")),
        );
        Ok(json!({"luns": luns}))
    }

    fn get_lun(&self, now: Millis, call: &Call, env: &dyn Environment) -> Result<Value, Refusal> {
        let key = call.params.required("uuid")?;
        let additional = call.params.additional()?;
        // ASSUMED: an empty uuid is a bad one, not a missing LUN.
        if key.is_empty() {
            return Err(Code::BadLunUuid.because("uuid is empty"));
        }
        let lun = self.find_lun(&key)?;
        if lun.deleting_until.is_some() && !self.settings.deleted_luns_answer_get {
            return Err(self.no_such_lun(&key));
        }
        let mut data = json!({"lun": self.lun_json(lun, now, &additional, env, Form::Get)});
        if additional.has("import_status") {
            data["import_done"] = json!(0);
            // Recorded (N4S4): DSM's value if there is no import.
            data["import_errno"] = json!(18_990_593);
            data["import_total"] = json!(0);
        }
        if additional.has("sync_progress") {
            put_sync(&mut data);
        }
        if additional.has("whitelist") {
            data["whitelist"] = json!(["0.0.0.0", "0.0.0.0"]);
        }
        Ok(data)
    }

    pub(crate) fn lun_json(
        &self,
        lun: &Lun,
        now: Millis,
        additional: &Additional,
        env: &dyn Environment,
        form: Form,
    ) -> Value {
        let mut row = json!({
            "block_size": 512,
            "create_from": "",
            "description": lun.description,
            "dev_attribs": lun.dev_attribs.list(self.config.generation),
            "dev_attribs_bitmap": lun.dev_attribs.bitmap(),
            "dev_config": "",
            "dev_qos": {"dev_limit": 0, "dev_reservation": 0, "dev_weight": 0, "iops_enable": 0},
            "direct_io_pattern": lun.direct_io_pattern,
            "location": lun.location,
            "lun_id": lun.lun_id,
            "name": lun.name,
            "restored_time": lun.restored_time,
            "size": lun.size,
            "type": lun.kind.bits(),
            "uuid": lun.uuid,
            "vpd_unit_sn": lun.uuid,
        });
        if self.config.generation == Generation::Seven {
            row["type_str"] = lun.kind.name();
            if form == Form::List {
                row["retention"] = Value::Null;
                row["scheduled_task"] = json!([]);
            }
        }
        // ASSUMED: `get` always has `max_snapshot_count`; the only recording requested every field.
        if form == Form::Get {
            row["max_snapshot_count"] = json!(self.settings.snapshots_per_lun);
        }
        if form == Form::Get && additional.has("sync_progress") {
            put_sync(&mut row);
        }
        self.put_additional(&mut row, lun, now, additional, env, form);
        row
    }

    fn put_additional(
        &self,
        row: &mut Value,
        lun: &Lun,
        now: Millis,
        additional: &Additional,
        env: &dyn Environment,
        form: Form,
    ) {
        if additional.has("allocated_size") {
            row["allocated_size"] = json!(lun.allocated(env));
        }
        if additional.has("status") {
            let healthy = lun.status == "normal";
            row["status"] = json!(if healthy {
                &self.settings.lun_status
            } else {
                &lun.status
            });
        }
        if additional.has("is_action_locked") {
            row["is_action_locked"] = json!(lun.is_action_locked(now));
        }
        if additional.has("is_mapped") {
            row["is_mapped"] = json!(!self.targets_of(&lun.uuid).is_empty());
        }
        if additional.has("extent_size") {
            row["extent_size"] = json!(0);
        }
        if additional.has("flashcache_status") {
            row["flashcache_status"] = json!("no_cache");
            row["flashcache_id"] = json!(-1);
        }
        if additional.has("family_config") {
            row["family_config"] = lun.family.json();
        }
        if additional.has("snapshot_info") && form == Form::List {
            row["snapshots"] = self
                .snapshots_of(&lun.uuid)
                .map(|snapshot| snapshot.info(lun))
                .collect();
        }
        if additional.has("is_bound") && form == Form::Get {
            row["is_bound"] = json!(false);
        }
        if additional.has("is_vhost_mapped") && form == Form::Get {
            row["is_vhost_mapped"] = json!(false);
        }
        // ASSUMED: the access list of an unrestricted LUN lets the default initiator read and write.
        if additional.has("acls") && self.config.generation == Generation::Seven {
            row["acls"] =
                json!([{"iqn": "iqn.2000-01.com.synology:default.acl", "permission": "rw"}]);
        }
    }
}

/// 8-4-4-4-12 hex digits. The parser accepts other forms, too.
fn is_uuid(key: &str) -> bool {
    key.len() == 36 && uuid::Uuid::try_parse(key).is_ok()
}

fn parse_types(names: &[String]) -> Result<Vec<LunType>, Refusal> {
    names
        .iter()
        .map(|name| {
            LunType::named(name)
                .ok_or_else(|| Code::BadTypesFilter.because(format!("types: {name}")))
        })
        .collect()
}

fn put_sync(object: &mut Value) {
    for name in ["sync_done", "sync_errno", "sync_total"] {
        object[name] = json!(0);
    }
}
