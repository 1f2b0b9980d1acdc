//! Endpoints that change LUNs and volumes behind the client's back, as another user of DSM would.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Body, Problem, Shared};
use crate::nas::Nas;
use crate::nas::call::{Call, Caller};
use crate::nas::code::Refusal;
use crate::nas::effect::{Effect, Environment};
use crate::nas::params::Params;
use crate::nas::state::table::Row;
use crate::nas::state::volume::{FileSystem, VolumeSpec};

/// A foreign LUN to create. Defaults are those of SAN Manager.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewLun {
    name: String,
    size: Option<u64>,
    location: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    description: String,
}

pub(crate) async fn make_lun(
    State(control): Shared,
    lun: Body<NewLun>,
) -> Result<Json<Value>, Problem> {
    let (now, lun) = (control.now(), lun?.0);
    let uuid = control
        .change(|nas, environment| nas.create_foreign_lun(now, lun, environment))?
        .map_err(|refusal| conflict(&refusal))?;
    Ok(Json(json!({"uuid": uuid})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Seed {
    luns: usize,
}

/// Creates many foreign LUNs, so that lists get long.
pub(crate) async fn seed(State(control): Shared, seed: Body<Seed>) -> Result<Json<Value>, Problem> {
    let (now, count) = (control.now(), seed?.0.luns);
    let uuids = control.change(|nas, environment| {
        let first = nas.state.luns.len();
        let lun = |n| NewLun {
            name: format!("foreign-{n}"),
            size: None,
            location: None,
            kind: None,
            description: "made by /seed".to_owned(),
        };
        (first..first + count)
            .map(|n| nas.create_foreign_lun(now, lun(n), environment))
            .collect::<Result<Vec<_>, _>>()
    })?;
    Ok(Json(
        json!({"uuids": uuids.map_err(|refusal| conflict(&refusal))?}),
    ))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LunPatch {
    description: Option<String>,
    status: Option<String>,
    is_action_locked: Option<bool>,
    size: Option<u64>,
    name: Option<String>,
}

pub(crate) async fn patch_lun(
    State(control): Shared,
    Path(uuid): Path<String>,
    patch: Body<LunPatch>,
) -> Result<Json<Value>, Problem> {
    let patch = patch?.0;
    let found = control.change(|nas, _| {
        let mut lun = nas.state.luns.get(&uuid)?.clone();
        lun.description = patch.description.unwrap_or(lun.description);
        lun.status = patch.status.unwrap_or(lun.status);
        lun.held = patch.is_action_locked.unwrap_or(lun.held);
        lun.size = patch.size.unwrap_or(lun.size);
        lun.name = patch.name.unwrap_or(lun.name);
        nas.put_lun(lun);
        Some(())
    })?;
    found.map(|()| Json(json!({}))).ok_or_else(|| {
        Problem::new(
            StatusCode::NOT_FOUND,
            format!("no LUN {uuid}; GET /state lists them"),
        )
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VolumePatch {
    status: Option<String>,
    free: Option<u64>,
    /// `internal` or `external`.
    container: Option<String>,
    /// The `location` field of its rows, if it is to differ from `container`.
    location: Option<String>,
    /// Fields that are missing in its rows.
    without: Option<Vec<String>>,
    /// Whether its LUNs are unknown: in no list, and not found by uuid.
    hides_luns: Option<bool>,
}

pub(crate) async fn patch_volume(
    State(control): Shared,
    Path(name): Path<String>,
    patch: Body<VolumePatch>,
) -> Result<Json<Value>, Problem> {
    let patch = patch?.0;
    let at = format!("/{name}");
    let found = control.change(|nas, environment| nas.patch_volume(&at, &patch, environment))?;
    found.map(|()| Json(json!({}))).ok_or_else(|| {
        Problem::new(
            StatusCode::NOT_FOUND,
            format!("no volume {at}; GET /state lists them"),
        )
    })
}

/// The call that DSM's web UI makes for a user.
pub(super) fn ui_call(
    api: &str,
    method: &str,
    params: impl IntoIterator<Item = (&'static str, String)>,
) -> Call {
    Call {
        api: api.to_owned(),
        method: method.to_owned(),
        version: 1,
        params: Params::from_iter(params),
        caller: Caller {
            client: std::net::Ipv4Addr::LOCALHOST.into(),
            query_sid: None,
            form_sid: None,
            cookie_sid: None,
            token: None,
        },
    }
}

pub(super) fn conflict(refusal: &Refusal) -> Problem {
    Problem::new(
        StatusCode::CONFLICT,
        format!("{}: {}", refusal.code, refusal.why),
    )
}

impl Nas {
    /// Removes everything: a fresh NAS with these volumes.
    pub(crate) fn reset(&mut self, volumes: impl Iterator<Item = VolumeSpec>) {
        let targets: Vec<u32> = self.state.targets.values().map(Row::key).collect();
        for id in targets {
            if let Some(target) = self.state.targets.remove(&id) {
                self.effect(Effect::Unexport(target.iqn));
            }
        }
        self.drop_all_lingering();
        let luns: Vec<String> = self.state.luns.values().map(Row::key).collect();
        for uuid in luns {
            self.remove_lun(&uuid);
        }
        let old: Vec<String> = self.state.volumes.values().map(Row::key).collect();
        for path in old {
            self.state.volumes.remove(&path);
        }
        for spec in volumes {
            self.state.volumes.put(spec.into());
        }
        let devices: Vec<String> = self.state.devices.values().map(Row::key).collect();
        for token in devices {
            self.state.devices.remove(&token);
        }
        self.pending_space.clear();
        self.boot = None;
        self.auth.forget_sessions();
        self.auth.clear_auto_block();
    }

    fn create_foreign_lun(
        &mut self,
        now: u64,
        lun: NewLun,
        environment: &dyn Environment,
    ) -> Result<String, Refusal> {
        let volume = lun.location.as_ref().map_or_else(
            || self.state.volumes.values().next(),
            |path| self.state.volumes.get(path),
        );
        let default_type = match volume.map(|volume| volume.fs) {
            Some(FileSystem::Ext4) => "ADV",
            Some(FileSystem::Btrfs) | None => "BLUN",
        };
        let location = lun
            .location
            .or(volume.map(|volume| volume.path.clone()))
            .unwrap_or_default();
        let params = [
            ("name", json!(lun.name).to_string()),
            ("size", lun.size.unwrap_or(1 << 30).to_string()),
            ("type", lun.kind.unwrap_or_else(|| default_type.to_owned())),
            ("location", json!(location).to_string()),
            ("description", json!(lun.description).to_string()),
        ];
        let call = ui_call("SYNO.Core.ISCSI.LUN", "create", params);
        let data = self.create_lun(now, &call, environment)?;
        let uuid = data["uuid"].as_str().unwrap_or_default().to_owned();
        // A foreign LUN is not locked as a new one would be: it looks old.
        if let Some(mut lun) = self.state.luns.get(&uuid).cloned() {
            lun.locked_until = 0;
            self.state.luns.put(lun);
        }
        Ok(uuid)
    }

    fn patch_volume(
        &mut self,
        at: &str,
        patch: &VolumePatch,
        environment: &dyn Environment,
    ) -> Option<()> {
        let mut volume = self.state.volumes.get(&at.to_owned())?.clone();
        if let Some(status) = &patch.status {
            volume.status.clone_from(status);
        }
        if let Some(container) = &patch.container {
            volume.container.clone_from(container);
        }
        if patch.location.is_some() {
            volume.location.clone_from(&patch.location);
        }
        if let Some(without) = &patch.without {
            volume.without.clone_from(without);
        }
        volume.hides_luns = patch.hides_luns.unwrap_or(volume.hides_luns);
        if let Some(free) = patch.free {
            self.pending_space.retain(|row| row.volume != at);
            let for_luns = self.used_by_luns(&volume, environment);
            volume.used_elsewhere = volume.size.saturating_sub(for_luns).saturating_sub(free);
        }
        self.state.volumes.put(volume);
        Some(())
    }
}
