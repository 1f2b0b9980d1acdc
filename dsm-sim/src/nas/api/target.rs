//! Reading targets: `SYNO.Core.ISCSI.Target` `list` and `get`, and the rows that they return; dsm-web-api.md 5.

use crate::nas::state::target::Target;

use serde_json::{Value, json};

use crate::nas::Nas;
use crate::nas::call::{Answer, Call};
use crate::nas::code::{Code, Refusal};
use crate::nas::effect::Environment;
use crate::nas::model::Generation;
use crate::nas::params::{Additional, missing};
use crate::nas::state::table::IndexKey;

/// A target number in the arrays of `map_target`: a number, or a string that contains one.
pub(crate) fn number(value: &Value) -> Option<u32> {
    match value {
        Value::Number(number) => u32::try_from(number.as_u64()?).ok(),
        Value::String(text) => text.parse().ok(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Whether a call may give a target's name instead of its number.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum NameCheck {
    Accepted,
    Refused,
}

impl Nas {
    pub(crate) fn target_call(&mut self, call: &Call, env: &dyn Environment) -> Answer {
        match call.method.as_str() {
            "list" => self.list_targets(call, env).map(Some),
            "get" => self.get_target(call, env).map(Some),
            "create" => self.create_target(call).map(Some),
            method => self.change_target(call, method, env).map(|()| None),
        }
    }

    /// The target in a call's `target_id`.
    // ASSUMED: an unknown id is 18990710 like a bad one; 18990722 and 18990724 are only guesses in a client's table.
    pub(crate) fn find_target(&self, call: &Call, names: NameCheck) -> Result<&Target, Refusal> {
        let value = call
            .params
            .value("target_id")
            .ok_or_else(|| missing("target_id"))?;
        // Measured by jt: a bare number is refused, the same number in quotes is not.
        let text = value.as_str().ok_or_else(|| {
            Code::BadTargetId.because(format!("target_id={value} is not a JSON string"))
        })?;
        let targets = &self.state.targets;
        let by_number = text.parse().ok().and_then(|id| targets.get(&id));
        let by_name = || match names {
            NameCheck::Accepted => targets.find(&IndexKey::Name(text.to_owned())).next(),
            NameCheck::Refused => None,
        };
        by_number
            .or_else(by_name)
            .filter(|target| self.is_loaded(target.target_id))
            .ok_or_else(|| Code::BadTargetId.because(format!("no target {text}")))
    }

    // `offset` and `limit` are ignored, as in the list of LUNs.
    // ASSUMED: filtering by an unknown LUN finds nothing, without an error.
    fn list_targets(&self, call: &Call, env: &dyn Environment) -> Result<Value, Refusal> {
        let additional = call.params.additional()?;
        let lun = call.params.string("lun_uuid");
        let targets = &self.state.targets;
        let mut rows = match lun {
            Some(_) => Vec::new(),
            None => self.odd_targets(&additional, env),
        };
        let wanted: Box<dyn Iterator<Item = &Target>> = match lun {
            Some(uuid) => Box::new(targets.find(&IndexKey::Lun(uuid))),
            None => Box::new(targets.values()),
        };
        rows.extend(
            wanted
                .filter(|target| self.is_loaded(target.target_id))
                .map(|target| self.target_json(target, &additional, env, -1))
                .map(|row| self.cut_row(row, "mapped_luns")),
        );
        Ok(json!({"targets": rows}))
    }

    fn get_target(&self, call: &Call, env: &dyn Environment) -> Result<Value, Refusal> {
        let names = if self.settings.target_get_takes_names {
            NameCheck::Accepted
        } else {
            NameCheck::Refused
        };
        let target = self.find_target(call, names)?;
        let additional = call.params.additional()?;
        Ok(json!({"target": self.target_json(target, &additional, env, 0)}))
    }

    // The top-level `mapping_index` is -1 in a list and 0 in a get, recorded by N4S4. Passwords come back empty.
    pub(crate) fn target_json(
        &self,
        target: &Target,
        additional: &Additional,
        env: &dyn Environment,
        mapping_index: i32,
    ) -> Value {
        let mut row = json!({
            "auth_type": target.auth_type,
            "has_data_checksum": target.has_data_checksum,
            "has_header_checksum": target.has_header_checksum,
            "iqn": target.iqn,
            "is_enabled": target.enabled,
            "mapping_index": mapping_index,
            "max_recv_seg_bytes": target.max_recv_seg_bytes,
            "max_send_seg_bytes": target.max_send_seg_bytes,
            "max_sessions": target.max_sessions,
            "mutual_password": "",
            "mutual_user": target.mutual_user,
            "name": target.name,
            "network_portals": [{"interface_name": "all", "ip": "", "port": self.config.portal.port()}],
            "password": "",
            "target_id": target.target_id,
            "user": target.user,
        });
        if self.config.generation == Generation::Seven {
            row["is_default_target"] = json!(false);
        }
        if additional.has("mapped_lun") {
            row["mapped_luns"] = target.mapped_luns();
        }
        if additional.has("connected_sessions") {
            let session = |session: node_sim::target::Session| json!({"iqn": session.initiator, "ip": session.address.to_string()});
            row["connected_sessions"] =
                env.sessions(&target.iqn).into_iter().map(session).collect();
        }
        if additional.has("status") {
            row["status"] = json!(if target.enabled { "online" } else { "offline" });
        }
        if additional.has("acls") && self.config.generation == Generation::Six {
            row["acls"] =
                json!([{"iqn": "iqn.2000-01.com.synology:default.acl", "permission": "rw"}]);
        }
        row
    }
}
