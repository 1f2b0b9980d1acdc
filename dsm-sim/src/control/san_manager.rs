//! Endpoints that do to targets and LUNs what a user does in SAN Manager, behind the client's back. They do not appear in the
//! journal, which contains only Web API calls.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::change::{conflict, ui_call};
use super::{Body, Problem, Shared};
use crate::nas::Nas;
use crate::nas::clock::Millis;
use crate::nas::code::Refusal;
use crate::nas::effect::Environment;
use crate::nas::state::table::IndexKey;

const TARGET_ACTIONS: &str = "delete, disable, enable, rename, map, unmap and create";
const LUN_ACTIONS: &str = "rename, describe, snapshot, unsnapshot and delete";

/// The target to change, and the parameters of the action.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TargetAction {
    iqn: Option<String>,
    target_id: Option<u32>,
    /// The LUN to map or unmap.
    lun_uuid: Option<String>,
    /// Name of the new target, or new name of an existing one.
    name: Option<String>,
}

/// The LUN to change, and the parameters of the action.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LunAction {
    uuid: Option<String>,
    /// New name of the LUN, or name of the snapshot.
    name: Option<String>,
    /// New description of the LUN, or description of the snapshot.
    description: Option<String>,
    /// Whether the snapshot is locked.
    #[serde(default)]
    locked: bool,
    /// Whether the snapshot is immutable.
    #[serde(default)]
    worm_locked: bool,
    /// The package that locks the snapshot.
    app_key: Option<String>,
    /// The snapshot to delete.
    snapshot_uuid: Option<String>,
}

pub(crate) async fn act_on_target(
    State(control): Shared,
    Path(name): Path<String>,
    action: Body<TargetAction>,
) -> Result<Json<Value>, Problem> {
    let action = action?.0;
    control
        .change(|nas, environment| nas.change_target_by_user(&name, &action, environment))?
        .map(Json)
}

pub(crate) async fn act_on_lun(
    State(control): Shared,
    Path(name): Path<String>,
    action: Body<LunAction>,
) -> Result<Json<Value>, Problem> {
    let (now, action) = (control.now(), action?.0);
    control
        .change(|nas, environment| nas.change_lun_by_user(now, &name, &action, environment))?
        .map(Json)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Lingering {
    iqn: String,
}

/// Ends the sessions of a deleted target, for a test that simulates the initiators itself.
pub(crate) async fn forget(
    State(control): Shared,
    which: Body<Lingering>,
) -> Result<Json<Value>, Problem> {
    let iqn = which?.0.iqn;
    if control.change(|nas, _| nas.drop_lingering(&iqn))? {
        return Ok(Json(json!({})));
    }
    Err(Problem::new(
        StatusCode::NOT_FOUND,
        format!("no deleted target {iqn} has sessions; GET /state lists them"),
    ))
}

impl Nas {
    fn change_target_by_user(
        &mut self,
        name: &str,
        action: &TargetAction,
        environment: &dyn Environment,
    ) -> Result<Value, Problem> {
        if name == "create" {
            return self.create_target_by_user(action);
        }
        let id = self.target_of(action)?;
        match name {
            "delete" => self.delete_target(id, environment),
            "enable" | "disable" => self.switch_target(id, name == "enable"),
            "rename" => self.rename_target(id, action, environment)?,
            "map" | "unmap" => self.map_by_user(id, action, name == "map")?,
            _ => {
                return Err(Problem::new(
                    StatusCode::NOT_FOUND,
                    format!("unknown action {name} for a target; there are {TARGET_ACTIONS}"),
                ));
            }
        }
        Ok(json!({}))
    }

    /// The number of the target that is named by IQN or number.
    fn target_of(&self, action: &TargetAction) -> Result<u32, Problem> {
        let targets = &self.state.targets;
        let found = match (&action.iqn, action.target_id) {
            (Some(iqn), None) => targets.find(&IndexKey::Iqn(iqn.clone())).next(),
            (None, Some(id)) => targets.get(&id),
            _ => return Err(missing("either iqn or target_id")),
        };
        found.map(|target| target.target_id).ok_or_else(|| {
            Problem::new(
                StatusCode::NOT_FOUND,
                "no such target; GET /state lists them",
            )
        })
    }

    fn create_target_by_user(&mut self, action: &TargetAction) -> Result<Value, Problem> {
        let name = action.name.as_ref().ok_or_else(|| missing("name"))?;
        let default_iqn = format!("iqn.2000-01.com.synology:{name}");
        let iqn = action.iqn.as_ref().unwrap_or(&default_iqn);
        let params = [
            ("name", json!(name).to_string()),
            ("iqn", json!(iqn).to_string()),
            ("max_sessions", json!(0).to_string()),
        ];
        let call = ui_call("SYNO.Core.ISCSI.Target", "create", params);
        let mut reply = self
            .create_target(&call)
            .map_err(|refusal| conflict(&refusal))?;
        reply["iqn"] = json!(iqn);
        Ok(reply)
    }

    /// Renames a target; its IQN stays.
    fn rename_target(
        &mut self,
        id: u32,
        action: &TargetAction,
        environment: &dyn Environment,
    ) -> Result<(), Problem> {
        let name = action.name.as_ref().ok_or_else(|| missing("name"))?;
        let params = [
            ("target_id", json!(id.to_string()).to_string()),
            ("name", json!(name).to_string()),
        ];
        let call = ui_call("SYNO.Core.ISCSI.Target", "set", params);
        self.change_target(&call, "set", environment)
            .map_err(|refusal| conflict(&refusal))
    }

    /// Makes the calls that SAN Manager makes, with all their checks.
    fn change_lun_by_user(
        &mut self,
        now: Millis,
        name: &str,
        action: &LunAction,
        environment: &dyn Environment,
    ) -> Result<Value, Problem> {
        let quoted = |what: &str, value: &Option<String>| {
            let value = value.as_ref().ok_or_else(|| missing(what))?;
            Ok::<_, Problem>(json!(value).to_string())
        };
        let uuid = quoted("uuid", &action.uuid);
        let text = |value: &Option<String>| json!(value.clone().unwrap_or_default()).to_string();
        let (method, params) = match name {
            "rename" => {
                let params = vec![("uuid", uuid?), ("new_name", quoted("name", &action.name)?)];
                ("set", params)
            }
            "describe" => {
                let description = quoted("description", &action.description)?;
                ("set", vec![("uuid", uuid?), ("description", description)])
            }
            "snapshot" => {
                let params = vec![
                    ("src_lun_uuid", uuid?),
                    ("snapshot_name", text(&action.name)),
                    ("description", text(&action.description)),
                    ("is_locked", json!(action.locked).to_string()),
                    ("taken_by", json!("user").to_string()),
                ];
                ("take_snapshot", params)
            }
            "unsnapshot" => {
                let snapshot = quoted("snapshot_uuid", &action.snapshot_uuid)?;
                ("delete_snapshot", vec![("snapshot_uuid", snapshot)])
            }
            "delete" => ("delete", vec![("uuid", uuid?)]),
            _ => {
                return Err(Problem::new(
                    StatusCode::NOT_FOUND,
                    format!("unknown action {name} for a LUN; there are {LUN_ACTIONS}"),
                ));
            }
        };
        let call = ui_call("SYNO.Core.ISCSI.LUN", method, params);
        let reply = self.lun_call(now, &call, environment);
        let reply = reply.map_err(|refusal| conflict(&refusal))?;
        let reply = reply.unwrap_or(json!({}));
        if let Some(snapshot) = reply["snapshot_uuid"].as_str() {
            self.lock_snapshot(snapshot, action.worm_locked, action.app_key.as_deref());
        }
        Ok(reply)
    }

    fn switch_target(&mut self, id: u32, enabled: bool) {
        if let Some(mut target) = self.state.targets.get(&id).cloned() {
            target.enabled = enabled;
            self.put_target(target);
        }
    }

    fn map_by_user(&mut self, id: u32, action: &TargetAction, mapped: bool) -> Result<(), Problem> {
        let uuid = action
            .lun_uuid
            .as_ref()
            .ok_or_else(|| missing("lun_uuid"))?;
        let known: Result<_, Refusal> = self.existing_lun(uuid);
        known.map_err(|refusal| conflict(&refusal))?;
        if mapped {
            self.map(id, uuid);
        } else {
            self.unmap(id, uuid);
        }
        Ok(())
    }
}

fn missing(what: &str) -> Problem {
    Problem::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        format!("{what} is missing"),
    )
}
