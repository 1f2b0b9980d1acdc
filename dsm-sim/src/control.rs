//! The control port: a second HTTP server, without a login, through which tests read and change the simulated NAS. JSON.

use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, patch, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::nas::Nas;
use crate::nas::clock::Millis;
use crate::nas::settings::Settings;
use crate::nas::state::account::Account;
use crate::nas::state::boot::{Boot, Loading};
use crate::nas::timing::Latency;
use crate::options::Builder;
use crate::server::fault::Rule;
use crate::server::journal::filter::{self, Filter};
use crate::server::{Server, run_blocking};

mod change;
mod origin_check;
pub(crate) mod page;
mod san_manager;

/// Shared state of the routes.
#[derive(Debug)]
pub(crate) struct Control {
    server: Arc<Server>,
    options: Builder,
}

type Shared = State<Arc<Control>>;
type Body<T> = Result<Json<T>, JsonRejection>;

/// An error reply of the control port: status and message.
#[derive(Debug)]
pub(crate) struct Problem(StatusCode, String);

impl Problem {
    pub(crate) fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self(status, text.into())
    }
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        Self(rejection.status(), rejection.body_text())
    }
}

impl From<std::io::Error> for Problem {
    fn from(error: std::io::Error) -> Self {
        Self(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the change could not be saved: {error}"),
        )
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (self.0, Json(json!({"error": self.1}))).into_response()
    }
}

const ROUTES: &str = "GET / (a page, for a browser), /state, /journal?since=SEQ&newest=N&text=WORDS&api=PART&failed=true&faulted=true, /counters, /faults, \
                      /targets/ID/sessions, /settings, /latency, /assumptions; POST /reset, /faults, /luns, /seed, /accounts, /sessions/expire, /sessions/move, /boot, /uptime, /clock, \
                      /san/targets/{delete,disable,enable,rename,map,unmap,create}, /san/luns/{rename,describe,snapshot,unsnapshot,delete}, \
                      /lingering/forget; \
                      PATCH /luns/UUID, /volumes/NAME, /settings, /latency; DELETE /faults, /faults/ID";

/// The routes of the control port.
pub(crate) fn router(server: Arc<Server>, options: Builder) -> Router {
    let page = page::router(Arc::clone(&server), ROUTES);
    let names: origin_check::Names = options.control_names.clone().into();
    Router::new()
        .route("/state", get(state))
        .route("/journal", get(journal))
        .route("/counters", get(counters))
        .route(
            "/assumptions",
            get(|| async { Json(crate::assumptions::all()) }),
        )
        .route("/reset", post(reset))
        .route("/faults", get(faults).post(add_fault).delete(clear_faults))
        .route("/faults/{id}", delete(remove_fault))
        .route("/targets/{id}/sessions", get(sessions))
        .route("/settings", get(settings).patch(patch_settings))
        .route("/luns", post(change::make_lun))
        .route("/luns/{uuid}", patch(change::patch_lun))
        .route("/seed", post(change::seed))
        .route("/san/targets/{act}", post(san_manager::act_on_target))
        .route("/san/luns/{act}", post(san_manager::act_on_lun))
        .route("/lingering/forget", post(san_manager::forget))
        .route("/volumes/{name}", patch(change::patch_volume))
        .route("/latency", get(latency).patch(patch_latency))
        .route("/accounts", post(put_account))
        .route("/sessions/expire", post(expire))
        .route("/sessions/move", post(move_clients))
        .route("/boot", post(boot))
        .route("/uptime", post(uptime))
        .route("/clock", post(clock))
        .fallback(|| async {
            Problem::new(
                StatusCode::NOT_FOUND,
                format!("no such endpoint; there are {ROUTES}"),
            )
        })
        .with_state(Arc::new(Control { server, options }))
        .merge(page)
        .layer(from_fn_with_state(names, origin_check::check_origin))
}

impl Control {
    /// Changes the NAS and makes the change durable.
    pub(crate) fn change<T>(
        &self,
        change: impl FnOnce(&mut Nas, &dyn crate::nas::effect::Environment) -> T,
    ) -> Result<T, Problem> {
        let now = self.server.clock.now();
        Ok(run_blocking(|| self.server.nas().change(now, change))?)
    }

    pub(crate) fn now(&self) -> crate::nas::clock::Millis {
        self.server.clock.now()
    }
}

async fn state(State(control): Shared) -> Result<Json<Value>, Problem> {
    let now = control.now();
    control.change(|nas, _| nas.dump(now)).map(Json)
}

#[derive(Deserialize)]
struct Since {
    #[serde(default)]
    since: u64,
    /// Return only this many of the newest entries; all if absent.
    newest: Option<usize>,
}

async fn journal(
    State(control): Shared,
    Query(Since { since, newest }): Query<Since>,
    Query(wanted): Query<Filter>,
) -> Json<Value> {
    let (next, entries) = if newest.is_none() && wanted.matches_all() {
        control.server.journal().since(since)
    } else {
        let most = newest.unwrap_or(usize::MAX);
        filter::newest(|| control.server.journal(), &wanted, since, most)
    };
    Json(json!({"next": next, "entries": entries}))
}

async fn counters(State(control): Shared) -> Json<Value> {
    let journal = control.server.journal();
    let (traffic, calls) = journal.counters();
    Json(json!({
        "requests": traffic.requests,
        "received": traffic.received,
        "sent": traffic.sent,
        "most_in_flight": traffic.most_in_flight,
        "calls": calls,
    }))
}

async fn reset(State(control): Shared) -> Result<Json<Value>, Problem> {
    run_blocking(|| control.server.reset(&control.options))?;
    Ok(Json(json!({})))
}

async fn faults(State(control): Shared) -> Json<Value> {
    Json(json!({"faults": control.server.faults().rules()}))
}

async fn add_fault(State(control): Shared, rule: Body<Rule>) -> Result<Json<Value>, Problem> {
    let rule = rule?.0;
    rule.check()
        .map_err(|why| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, why))?;
    let id = control.server.faults().add(rule);
    Ok(Json(json!({"id": id})))
}

/// Removes one fault. A call that hangs because of it continues.
async fn remove_fault(State(control): Shared, Path(id): Path<u64>) -> Result<Json<Value>, Problem> {
    if control.server.remove_fault(id) {
        Ok(Json(json!({})))
    } else {
        Err(Problem::new(
            StatusCode::NOT_FOUND,
            format!("no fault {id}; GET /faults lists them"),
        ))
    }
}

async fn clear_faults(State(control): Shared) -> Json<Value> {
    control.server.clear_faults();
    Json(json!({}))
}

/// The iSCSI sessions of a target.
async fn sessions(State(control): Shared, Path(id): Path<u32>) -> Result<Json<Value>, Problem> {
    let (iqn, sessions) = {
        let nas = control.server.nas();
        let iqn = nas
            .nas
            .state
            .targets
            .get(&id)
            .map(|target| target.iqn.clone());
        (iqn, nas.export.session_reader())
    };
    let iqn = iqn.ok_or_else(|| {
        Problem::new(
            StatusCode::NOT_FOUND,
            format!("no target {id}; GET /state lists them"),
        )
    })?;
    let rows: Vec<Value> = run_blocking(|| sessions.of(&[iqn]))
        .into_iter()
        .flatten()
        .map(|session| json!({"iqn": session.initiator, "ip": session.address}))
        .collect();
    Ok(Json(json!({"sessions": rows})))
}

async fn settings(State(control): Shared) -> Json<Settings> {
    Json(control.server.change_settings(|settings| settings.clone()))
}

/// Changes the given settings and keeps the others.
async fn patch_settings(
    State(control): Shared,
    patch: Body<Value>,
) -> Result<Json<Settings>, Problem> {
    let patch = patch?.0;
    control.server.change_settings(|settings| {
        *settings = settings
            .patched(patch)
            .map_err(|error| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()))?;
        Ok(Json(settings.clone()))
    })
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Profile {
    profile: Latency,
}

async fn latency(State(control): Shared) -> Json<Profile> {
    let profile = control.server.latency();
    Json(Profile { profile })
}

async fn patch_latency(
    State(control): Shared,
    wanted: Body<Profile>,
) -> Result<Json<Profile>, Problem> {
    let wanted = wanted?.0;
    control.server.set_latency(wanted.profile);
    Ok(Json(wanted))
}

/// Adds or changes an account.
async fn put_account(
    State(control): Shared,
    account: Body<Account>,
) -> Result<Json<Value>, Problem> {
    let account = account?.0;
    account
        .check()
        .map_err(|why| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, why))?;
    control.server.nas().nas.auth.put_account(account);
    Ok(Json(json!({})))
}

async fn expire(State(control): Shared) -> Json<Value> {
    control.server.nas().nas.auth.forget_sessions();
    Json(json!({}))
}

async fn move_clients(State(control): Shared) -> Json<Value> {
    control.server.nas().nas.auth.move_clients();
    Json(json!({}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Restart {
    loading: Loading,
    for_ms: Millis,
    /// Status of the volumes during the restart.
    status: Option<String>,
}

/// Simulates a restart of the NAS, as clients see it.
async fn boot(State(control): Shared, restart: Body<Restart>) -> Result<Json<Value>, Problem> {
    let Restart {
        loading,
        for_ms,
        status,
    } = restart?.0;
    let now = control.now();
    let boot = Boot {
        loading,
        until: now.saturating_add(for_ms),
        status,
    };
    control.change(|nas, _| nas.boot(now, boot))?;
    Ok(Json(json!({})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Uptime {
    seconds: u64,
}

/// Sets the uptime of the NAS, without any other effect of a restart.
async fn uptime(State(control): Shared, up: Body<Uptime>) -> Result<Json<Value>, Problem> {
    let (now, up) = (control.now(), up?.0.seconds.saturating_mul(1_000));
    control.change(|nas, _| nas.set_uptime(now, up))?;
    Ok(Json(json!({})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClockChange {
    advance_ms: u64,
}

async fn clock(State(control): Shared, advance: Body<ClockChange>) -> Result<Json<Value>, Problem> {
    control.server.clock.advance(advance?.0.advance_ms);
    Ok(Json(json!({"now_ms": control.now()})))
}
