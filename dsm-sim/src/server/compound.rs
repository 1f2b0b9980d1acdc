//! `SYNO.Entry.Request`: many calls in one request. Source: dsm-web-api.md 1.2, rule 7.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use tokio::sync::oneshot;

use crate::nas::call::{Call, Reply};
use crate::nas::call::{envelope, refused};
use crate::nas::code::{Code, Refusal};
use crate::nas::params::{Params, missing};
use crate::server::{Outcome, Server, Started, Step, Turn};

/// The API's name.
pub(crate) const API: &str = "SYNO.Entry.Request";

/// Serves a compound. The journal has one entry per call, with the same request number. The compound itself has an entry only
/// if it is refused or hit by a fault as a whole.
// ASSUMED: the calls run in order, one after the other, even in `parallel` mode. Each call is atomic, but another request may
// run between two of them (at once, or while a call waits because of latency, a delay or a hang).
pub(crate) async fn serve(
    server: &Server,
    number: u64,
    call: &Call,
    client: &mut oneshot::Sender<Outcome>,
) -> Outcome {
    let hit = server.faults().hit_by_name(call);
    let mut started = Started::now(number, server.clock.now(), call, hit);
    if let Some(step) = server.before(&mut started, client).await {
        return step.outcome();
    }
    let outcome = match admit_and_parse(server, call) {
        Ok((calls, stop_when_error)) => run(server, number, &calls, stop_when_error, client).await,
        Err(refusal) => return server.after(started, refused(refusal)).await.outcome(),
    };
    let fault = started.fault();
    match (fault, outcome) {
        (None, outcome) | (Some(_), outcome @ (Outcome::Page(_) | Outcome::Cut)) => outcome,
        (Some(_), Outcome::Json { body, .. } | Outcome::Garbled(body)) => {
            let data = body.get("data").cloned();
            server
                .after(
                    started,
                    Reply {
                        answer: Ok(data),
                        cookie: None,
                        effects: BTreeSet::new(),
                    },
                )
                .await
                .outcome()
        }
    }
}

async fn run(
    server: &Server,
    number: u64,
    calls: &[Call],
    stop_when_error: bool,
    client: &mut oneshot::Sender<Outcome>,
) -> Outcome {
    let _turn = server.exclusive_turn().await;
    let settings = server.change_settings(|settings| settings.clone());
    let stops = stop_when_error && !settings.compounds_go_on;
    let mut results = Vec::new();
    let (mut failed, mut garbled) = (false, false);
    for call in calls {
        let reply = match server.step(number, call, Turn::Compound, client).await {
            Step::Answered(reply) => reply,
            Step::Garbled(reply) => {
                garbled = true;
                reply
            }
            Step::Page(status) => return Outcome::Page(status),
            // This call has taken effect; the calls after it are not made.
            Step::Cut => return Outcome::Cut,
        };
        failed |= reply.answer.is_err();
        results.push(result(call, &reply));
        if reply.answer.is_err() && stops {
            break;
        }
    }
    if settings.compound_fills_stopped {
        let stopped = Code::CompoundStopped.because("a call before it failed");
        let reply = refused(stopped);
        let rest = &calls[results.len()..];
        results.extend(rest.iter().map(|call| result(call, &reply)));
    }
    let body = json!({"data": {"has_fail": failed, "result": results}, "success": true});
    if garbled {
        Outcome::Garbled(body)
    } else {
        Outcome::Json { body, cookie: None }
    }
}

fn admit_and_parse(server: &Server, call: &Call) -> Result<(Vec<Call>, bool), Refusal> {
    let now = server.clock.now();
    server.nas().nas.check_call(now, call)?;
    parse(call)
}

/// The calls in the compound, and whether the first failure stops the rest.
pub(crate) fn parse(call: &Call) -> Result<(Vec<Call>, bool), Refusal> {
    let items = call
        .params
        .value("compound")
        .ok_or_else(|| missing("compound"))?;
    let items = items
        .as_array()
        .ok_or_else(|| Code::BadCompound.because("compound is not an array"))?;
    let stop = call
        .params
        .value("stop_when_error")
        .is_some_and(|value| value == Value::Bool(true));
    Ok((
        items
            .iter()
            .map(|item| inner(call, item))
            .collect::<Result<_, _>>()?,
        stop,
    ))
}

// ASSUMED: 113 for an entry that is not a call. Values are inline JSON, so each keeps its type: "3" is a string, 3 a number.
fn inner(outer: &Call, item: &Value) -> Result<Call, Refusal> {
    let invalid = || Code::BadCompound.because(format!("{item} is not a call"));
    let fields: &Map<String, Value> = item.as_object().ok_or_else(invalid)?;
    let text = |name: &str| {
        fields
            .get(name)
            .and_then(Value::as_str)
            .map(str::to_owned)
            .ok_or_else(invalid)
    };
    let version = match fields.get("version") {
        Some(Value::String(text)) => text.parse().ok(),
        other => other
            .and_then(Value::as_u64)
            .and_then(|number| u32::try_from(number).ok()),
    };
    let params: Params = fields
        .iter()
        .filter(|(name, _)| !matches!(name.as_str(), "api" | "method" | "version"))
        .map(|(name, value)| (name.as_str(), value.to_string()))
        .collect();
    Ok(Call {
        api: text("api")?,
        method: text("method")?,
        version: version.ok_or_else(invalid)?,
        params,
        caller: outer.caller.clone(),
    })
}

fn result(call: &Call, reply: &Reply) -> Value {
    let mut row = envelope(&reply.answer);
    row["api"] = json!(call.api);
    row["method"] = json!(call.method);
    row["version"] = json!(call.version);
    row
}
