//! LUNs as they are and as answers show them: `SYNO.Core.ISCSI.LUN` `list` and `get`, dsm-api.md 4.3 and 4.4.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::clock::Millis;
use crate::code::{Code, Refusal};
use crate::decode::Additional;
use crate::lun_type::{DevAttribs, LunType};
use crate::model::Dsm;
use crate::nas::{Answer, Call, Nas, Outside};

/// A LUN.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(clippy::struct_field_names, reason = "lun_id is what DSM calls it")]
pub(crate) struct Lun {
    pub(crate) uuid: String,
    pub(crate) name: String,
    /// NAS-wide; not the SCSI LUN number.
    pub(crate) lun_id: u32,
    /// Bytes.
    pub(crate) size: u64,
    pub(crate) kind: LunType,
    pub(crate) location: String,
    pub(crate) description: String,
    pub(crate) dev_attribs: DevAttribs,
    pub(crate) direct_io_pattern: u64,
    pub(crate) status: String,
    /// Locked by the control port, until it is released there.
    pub(crate) held: bool,
    /// Locked by DSM's own work until then.
    #[serde(skip)]
    pub(crate) locked_until: Millis,
    /// Deleted, and gone at that moment.
    pub(crate) dying: Option<Millis>,
}

impl Lun {
    /// Bytes that it takes on its volume.
    // ASSUMED: a thick LUN reports its whole size as allocated.
    pub(crate) fn allocated(&self, outside: &dyn Outside) -> u64 {
        if self.kind.is_thin() {
            outside.allocated(&self.uuid)
        } else {
            self.size
        }
    }

    fn is_action_locked(&self, now: Millis) -> bool {
        self.held || self.dying.is_some() || now < self.locked_until
    }

    /// What persists, for the control port.
    pub(crate) fn dump(&self, now: Millis) -> Value {
        json!({
            "uuid": self.uuid,
            "name": self.name,
            "lun_id": self.lun_id,
            "size": self.size,
            "type": self.kind.name(),
            "location": self.location,
            "description": self.description,
            "dev_attribs": self.dev_attribs.list(Dsm::Seven),
            "direct_io_pattern": self.direct_io_pattern,
            "status": self.status,
            "is_action_locked": self.is_action_locked(now),
        })
    }
}

/// The form of an answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    List,
    Get,
}

impl Nas {
    pub(crate) fn lun_call(&mut self, now: Millis, call: &Call, outside: &dyn Outside) -> Answer {
        match call.method.as_str() {
            "list" => self.list_luns(now, call, outside).map(Some),
            "get" => self.get_lun(now, call, outside).map(Some),
            "create" => self.create_lun(now, call, outside).map(Some),
            "set" => self.set_lun(call, outside).map(|()| None),
            "delete" => self.delete_luns(now, call, outside),
            "map_target" => self.map_target(call).map(|()| None),
            _ => self.unmap_target(call).map(|()| None),
        }
    }

    /// All LUNs in the order they are listed in.
    // ASSUMED: lists are ordered by lun_id.
    pub(crate) fn luns_by_number(&self) -> impl Iterator<Item = &Lun> {
        let mut luns: Vec<&Lun> = self.state.luns.values().collect();
        luns.sort_by_key(|lun| lun.lun_id);
        luns.into_iter()
    }

    /// The LUN with this uuid or, as `get` and `set` allow, of this name.
    pub(crate) fn find_lun(&self, key: &str) -> Result<&Lun, Refusal> {
        let lun = self
            .state
            .luns
            .get(key)
            .or_else(|| self.state.luns.values().find(|lun| lun.name == key));
        lun.ok_or_else(|| self.no_such_lun(key))
    }

    pub(crate) fn no_such_lun(&self, key: &str) -> Refusal {
        Refusal {
            code: self.settings.missing_lun_code,
            why: format!("no LUN {key}"),
        }
    }

    // `offset` and `limit` are ignored, measured: all LUNs come back, without a total.
    fn list_luns(&self, now: Millis, call: &Call, outside: &dyn Outside) -> Result<Value, Refusal> {
        let additional = call.params.additional()?;
        let location = call.params.string("location");
        let types = call
            .params
            .strings("types", Code::BadShape)?
            .map(|names| parse_types(&names))
            .transpose()?;
        let wanted = |lun: &&Lun| {
            types.as_ref().is_none_or(|types| types.contains(&lun.kind))
                && location
                    .as_ref()
                    .is_none_or(|location| *location == lun.location)
        };
        let luns: Vec<Value> = self
            .luns_by_number()
            .filter(wanted)
            .map(|lun| self.lun_json(lun, now, &additional, outside, Form::List))
            .collect();
        Ok(json!({"luns": luns}))
    }

    fn get_lun(&self, now: Millis, call: &Call, outside: &dyn Outside) -> Result<Value, Refusal> {
        let key = call.params.required("uuid")?;
        let additional = call.params.additional()?;
        // ASSUMED: an empty uuid is a bad one, not a missing LUN.
        if key.is_empty() {
            return Err(Code::BadLunUuid.because("uuid is empty"));
        }
        let lun = self.find_lun(&key)?;
        let mut data = json!({"lun": self.lun_json(lun, now, &additional, outside, Form::Get)});
        if additional.has("import_status") {
            data["import_done"] = json!(0);
            // Recorded (N4S4): what DSM says when there is no import.
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

    fn lun_json(
        &self,
        lun: &Lun,
        now: Millis,
        additional: &Additional,
        outside: &dyn Outside,
        form: Form,
    ) -> Value {
        let mut row = json!({
            "block_size": 512,
            "create_from": "",
            "description": lun.description,
            "dev_attribs": lun.dev_attribs.list(self.config.dsm),
            "dev_attribs_bitmap": lun.dev_attribs.bitmap(),
            "dev_config": "",
            "dev_qos": {"dev_limit": 0, "dev_reservation": 0, "dev_weight": 0, "iops_enable": 0},
            "direct_io_pattern": lun.direct_io_pattern,
            "location": lun.location,
            "lun_id": lun.lun_id,
            "name": lun.name,
            "restored_time": 0,
            "size": lun.size,
            "type": lun.kind.bits(),
            "uuid": lun.uuid,
            "vpd_unit_sn": lun.uuid,
        });
        if self.config.dsm == Dsm::Seven {
            row["type_str"] = lun.kind.name();
            if form == Form::List {
                row["retention"] = Value::Null;
                row["scheduled_task"] = json!([]);
            }
        }
        // ASSUMED: `get` always says how many snapshots there may be; the one recording asked for everything.
        if form == Form::Get {
            row["max_snapshot_count"] = json!(256);
        }
        if form == Form::Get && additional.has("sync_progress") {
            put_sync(&mut row);
        }
        self.put_additional(&mut row, lun, now, additional, outside, form);
        row
    }

    fn put_additional(
        &self,
        row: &mut Value,
        lun: &Lun,
        now: Millis,
        additional: &Additional,
        outside: &dyn Outside,
        form: Form,
    ) {
        if additional.has("allocated_size") {
            row["allocated_size"] = json!(lun.allocated(outside));
        }
        if additional.has("status") {
            row["status"] = json!(lun.status);
        }
        if additional.has("is_action_locked") {
            row["is_action_locked"] = json!(lun.is_action_locked(now));
        }
        if additional.has("is_mapped") {
            row["is_mapped"] = json!(
                self.state
                    .targets
                    .values()
                    .any(|target| target.maps(&lun.uuid))
            );
        }
        if additional.has("extent_size") {
            row["extent_size"] = json!(0);
        }
        if additional.has("flashcache_status") {
            row["flashcache_status"] = json!("no_cache");
            row["flashcache_id"] = json!(-1);
        }
        if additional.has("family_config") {
            row["family_config"] = json!({"parent_lun_name": "", "parent_lun_uuid": "", "parent_snapshot_time": 0, "parent_snapshot_uuid": ""});
        }
        if additional.has("snapshot_info") && form == Form::List {
            row["snapshots"] = json!([]);
        }
        if additional.has("is_bound") && form == Form::Get {
            row["is_bound"] = json!(false);
        }
        if additional.has("is_vhost_mapped") && form == Form::Get {
            row["is_vhost_mapped"] = json!(false);
        }
        // ASSUMED: the access list of a LUN that nobody restricted lets the default initiator read and write.
        if additional.has("acls") && self.config.dsm == Dsm::Seven {
            row["acls"] =
                json!([{"iqn": "iqn.2000-01.com.synology:default.acl", "permission": "rw"}]);
        }
    }
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
