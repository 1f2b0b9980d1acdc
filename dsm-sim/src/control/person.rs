//! Knobs that do to targets and LUNs what a person does in SAN Manager, behind a client's back. As with LUNs of somebody else,
//! nothing of it is in the journal: that has what came in by the Web API.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::change::{by_hand, refused};
use super::{Body, Problem, Shared};
use crate::nas::Nas;
use crate::nas::clock::Millis;
use crate::nas::code::Refusal;
use crate::nas::effect::Environment;
use crate::nas::state::table::IndexKey;

const ACTS: &str = "delete, disable, enable, rename, map, unmap and create";
const LUN_ACTS: &str = "rename, describe, snapshot, unsnapshot and delete";

/// What is done to which target.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Act {
    iqn: Option<String>,
    target_id: Option<u32>,
    /// What to map or unmap.
    lun_uuid: Option<String>,
    /// Of a new target, or the new one of an old target.
    name: Option<String>,
}

/// What is done to which LUN.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LunAct {
    uuid: Option<String>,
    /// Its new name, or that of a snapshot.
    name: Option<String>,
    /// Its new description, or that of a snapshot.
    description: Option<String>,
    /// Whether a snapshot is locked.
    #[serde(default)]
    locked: bool,
    /// Whether it is immutable.
    #[serde(default)]
    worm_locked: bool,
    /// The package that needs it.
    app_key: Option<String>,
    /// Of the snapshot that is deleted.
    snapshot_uuid: Option<String>,
}

pub(crate) async fn act(
    State(control): Shared,
    Path(name): Path<String>,
    act: Body<Act>,
) -> Result<Json<Value>, Problem> {
    let act = act?.0;
    control
        .change(|nas, outside| nas.by_person(&name, &act, outside))?
        .map(Json)
}

pub(crate) async fn act_on_lun(
    State(control): Shared,
    Path(name): Path<String>,
    act: Body<LunAct>,
) -> Result<Json<Value>, Problem> {
    let (now, act) = (control.now(), act?.0);
    control
        .change(|nas, outside| nas.lun_by_person(now, &name, &act, outside))?
        .map(Json)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Lingering {
    iqn: String,
}

/// Ends the sessions of a deleted target, for who plays the initiators and knows that they have ended.
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
        format!("no target {iqn} lingers; GET /state lists them"),
    ))
}

impl Nas {
    fn by_person(
        &mut self,
        name: &str,
        act: &Act,
        outside: &dyn Environment,
    ) -> Result<Value, Problem> {
        if name == "create" {
            return self.create_by_person(act);
        }
        let id = self.meant(act)?;
        match name {
            "delete" => self.delete_target(id, outside),
            "enable" | "disable" => self.switch_target(id, name == "enable"),
            "rename" => self.rename_target(id, act, outside)?,
            "map" | "unmap" => self.map_by_person(id, act, name == "map")?,
            _ => {
                return Err(Problem::new(
                    StatusCode::NOT_FOUND,
                    format!("nobody can {name} a target; there are {ACTS}"),
                ));
            }
        }
        Ok(json!({}))
    }

    /// The number of the target that is meant.
    fn meant(&self, act: &Act) -> Result<u32, Problem> {
        let targets = &self.state.targets;
        let found = match (&act.iqn, act.target_id) {
            (Some(iqn), None) => targets.find(&IndexKey::Iqn(iqn.clone())).next(),
            (None, Some(id)) => targets.get(&id),
            _ => return Err(unsaid("either iqn or target_id")),
        };
        found.map(|target| target.target_id).ok_or_else(|| {
            Problem::new(
                StatusCode::NOT_FOUND,
                "no such target; GET /state lists them",
            )
        })
    }

    fn create_by_person(&mut self, act: &Act) -> Result<Value, Problem> {
        let name = act.name.as_ref().ok_or_else(|| unsaid("name"))?;
        let usual = format!("iqn.2000-01.com.synology:{name}");
        let iqn = act.iqn.as_ref().unwrap_or(&usual);
        let params = [
            ("name", json!(name).to_string()),
            ("iqn", json!(iqn).to_string()),
            ("max_sessions", json!(0).to_string()),
        ];
        let call = by_hand("SYNO.Core.ISCSI.Target", "create", params);
        let mut made = self
            .create_target(&call)
            .map_err(|refusal| refused(&refusal))?;
        made["iqn"] = json!(iqn);
        Ok(made)
    }

    /// The name of a target; its IQN stays.
    fn rename_target(
        &mut self,
        id: u32,
        act: &Act,
        outside: &dyn Environment,
    ) -> Result<(), Problem> {
        let name = act.name.as_ref().ok_or_else(|| unsaid("name"))?;
        let params = [
            ("target_id", json!(id.to_string()).to_string()),
            ("name", json!(name).to_string()),
        ];
        let call = by_hand("SYNO.Core.ISCSI.Target", "set", params);
        self.change_target(&call, "set", outside)
            .map_err(|refusal| refused(&refusal))
    }

    /// Through the calls that SAN Manager makes, with all their checks.
    fn lun_by_person(
        &mut self,
        now: Millis,
        name: &str,
        act: &LunAct,
        outside: &dyn Environment,
    ) -> Result<Value, Problem> {
        let quoted = |what: &str, value: &Option<String>| {
            let value = value.as_ref().ok_or_else(|| unsaid(what))?;
            Ok::<_, Problem>(json!(value).to_string())
        };
        let uuid = quoted("uuid", &act.uuid);
        let text = |value: &Option<String>| json!(value.clone().unwrap_or_default()).to_string();
        let (method, params) = match name {
            "rename" => {
                let params = vec![("uuid", uuid?), ("new_name", quoted("name", &act.name)?)];
                ("set", params)
            }
            "describe" => {
                let description = quoted("description", &act.description)?;
                ("set", vec![("uuid", uuid?), ("description", description)])
            }
            "snapshot" => {
                let params = vec![
                    ("src_lun_uuid", uuid?),
                    ("snapshot_name", text(&act.name)),
                    ("description", text(&act.description)),
                    ("is_locked", json!(act.locked).to_string()),
                    ("taken_by", json!("user").to_string()),
                ];
                ("take_snapshot", params)
            }
            "unsnapshot" => {
                let snapshot = quoted("snapshot_uuid", &act.snapshot_uuid)?;
                ("delete_snapshot", vec![("snapshot_uuid", snapshot)])
            }
            "delete" => ("delete", vec![("uuid", uuid?)]),
            _ => {
                return Err(Problem::new(
                    StatusCode::NOT_FOUND,
                    format!("nobody can {name} a LUN; there are {LUN_ACTS}"),
                ));
            }
        };
        let call = by_hand("SYNO.Core.ISCSI.LUN", method, params);
        let made = self.lun_call(now, &call, outside);
        let made = made.map_err(|refusal| refused(&refusal))?;
        let made = made.unwrap_or(json!({}));
        if let Some(snapshot) = made["snapshot_uuid"].as_str() {
            self.lock_snapshot(snapshot, act.worm_locked, act.app_key.as_deref());
        }
        Ok(made)
    }

    fn switch_target(&mut self, id: u32, enabled: bool) {
        if let Some(mut target) = self.state.targets.get(&id).cloned() {
            target.enabled = enabled;
            self.put_target(target);
        }
    }

    fn map_by_person(&mut self, id: u32, act: &Act, mapped: bool) -> Result<(), Problem> {
        let uuid = act.lun_uuid.as_ref().ok_or_else(|| unsaid("lun_uuid"))?;
        let known: Result<_, Refusal> = self.living_lun(uuid);
        known.map_err(|refusal| refused(&refusal))?;
        if mapped {
            self.map(id, uuid);
        } else {
            self.unmap(id, uuid);
        }
        Ok(())
    }
}

fn unsaid(what: &str) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, format!("say {what}"))
}
