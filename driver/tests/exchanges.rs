//! Replays every exchange in `proto/dsm` on the driver's side: the request that the driver would have sent, and what it parses
//! from the reply. dsm-sim replays the same files on the server side, so a field that either side misreads fails a test.
//!
//! A value may be JSON or raw text (dsm-web-api.md 1.2): both are equivalent, so parsed values are compared.

#![expect(clippy::unwrap_used, reason = "a panic shows where the test failed")]

#[path = "exchanges/nas.rs"]
mod nas;
#[path = "exchanges/session.rs"]
mod session;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use driver::chap::{Account, Chap};
use driver::dsm::location::{self, Location, LocationAnswer, LocationsAnswer};
use driver::dsm::lun::{self, CreatedLun, Kind, Lun, LunAnswer, LunsAnswer, NewLun};
use driver::dsm::reply::{self, NoData};
use driver::dsm::snapshot::{self, Snapshot, SnapshotsAnswer};
use driver::dsm::target::{self, CreatedTarget, Target, TargetAnswer, TargetsAnswer};
use driver::dsm::{Call, DsmError};
use driver::publication::Iqn;
use driver::volume::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// A recorded exchange. Its source and its setup are not needed here.
#[derive(Deserialize)]
struct Exchange {
    request: Request,
    reply: Value,
}

#[derive(Deserialize)]
struct Request {
    api: String,
    version: u8,
    method: String,
    params: BTreeMap<String, String>,
}

impl Exchange {
    fn all() -> BTreeMap<String, Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/dsm");
        let read = |path: &Path| {
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            let text = std::fs::read(path).unwrap();
            (
                name,
                serde_json::from_slice(&text)
                    .unwrap_or_else(|error| panic!("{}: {error}", path.display())),
            )
        };
        let entries = std::fs::read_dir(folder).unwrap();
        entries.map(|entry| read(&entry.unwrap().path())).collect()
    }

    /// A parameter, parsed.
    fn value(&self, name: &str) -> Value {
        parse_value(self.request.params.get(name).map_or("", String::as_str))
    }

    fn text(&self, name: &str) -> String {
        let value = self.value(name);
        value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned)
    }

    fn number(&self, name: &str) -> u64 {
        self.value(name)
            .as_u64()
            .unwrap_or_else(|| panic!("{name} is not a number"))
    }

    fn data(&self) -> &Value {
        &self.reply["data"]
    }
}

fn parse_value(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()))
}

/// The call that the driver would send instead of this recorded request. `None`: the driver never makes such a call.
fn call(exchange: &Exchange) -> Option<Call> {
    let Request { api, method, .. } = &exchange.request;
    let uuid = || exchange.text("uuid").parse().unwrap();
    Some(match (api.as_str(), method.as_str()) {
        ("SYNO.Core.ISCSI.LUN", "get") => lun::get(&exchange.text("uuid")),
        ("SYNO.Core.ISCSI.LUN", "list") => lun::list(),
        ("SYNO.Core.ISCSI.LUN", "create") => lun::create(&NewLun {
            name: exchange.text("name"),
            size: Bytes(exchange.number("size")),
            kind: exchange.text("type"),
            location: exchange.text("location"),
            description: exchange.text("description"),
            flushes: false,
        }),
        ("SYNO.Core.ISCSI.LUN", "set") => {
            lun::set_size(&uuid(), Bytes(exchange.number("new_size")))
        }
        ("SYNO.Core.ISCSI.LUN", "delete") => lun::delete(&uuid()),
        ("SYNO.Core.ISCSI.LUN", "list_snapshot") => {
            snapshot::list_of(&exchange.text("src_lun_uuid").parse().unwrap())
        }
        ("SYNO.Core.ISCSI.LUN", "map_target") => {
            lun::map_target(&uuid(), exchange.value("target_ids")[0].as_u64().unwrap())
        }
        ("SYNO.Core.ISCSI.Target", "list") if exchange.request.params.contains_key("lun_uuid") => {
            target::list_of(&exchange.text("lun_uuid").parse().unwrap())
        }
        ("SYNO.Core.ISCSI.Target", "list") => target::list(),
        ("SYNO.Core.ISCSI.Target", "get") => target::get(&exchange.text("target_id")),
        ("SYNO.Core.ISCSI.Target", "create") => target::create(
            &exchange.text("name"),
            &exchange.text("iqn").parse::<Iqn>().unwrap(),
            chap(exchange).as_ref(),
        ),
        ("SYNO.Core.ISCSI.Target", "set") if exchange.request.params.contains_key("auth_type") => {
            let id = exchange.text("target_id").parse().unwrap();
            target::set_auth(id, chap(exchange).as_ref())
        }
        ("SYNO.Core.ISCSI.Target", "delete") => {
            target::delete(exchange.text("target_id").parse().unwrap())
        }
        ("SYNO.Core.Storage.Volume", "list") => location::list(),
        ("SYNO.Core.Storage.Volume", "get") => location::get(&exchange.text("volume_path")),
        ("SYNO.Entry.Request", "request") => Call::sequence(&[
            Call::new("SYNO.Core.ISCSI.LUN", 1, "list"),
            Call::new("SYNO.Core.ISCSI.Target", 1, "get").with("target_id", "77"),
        ]),
        _ => return None,
    })
}

/// The CHAP credentials in a request that creates or changes a target.
fn chap(exchange: &Exchange) -> Option<Chap> {
    let account = |user, password| Account {
        user: exchange.text(user),
        password: exchange.text(password).into(),
    };
    match exchange.number("auth_type") {
        0 => None,
        kind => Some(Chap {
            initiator: account("user", "password"),
            target: (kind == 2).then(|| account("mutual_user", "mutual_password")),
        }),
    }
}

/// Exchanges whose request the driver would never send: what is wrong with it, or what the driver does instead. Their
/// replies are checked, too.
const NOT_SENT: [(&str, &str); 10] = [
    ("lun_create_bad_attribute", "no such attribute"),
    ("lun_create_official", "without attributes"),
    ("lun_delete_list_form", "one LUN at a time"),
    ("lun_list_additional_not_an_array", "an array"),
    ("lun_map_target_strings", "numbers"),
    ("lun_set_rename", "names never change"),
    ("no_such_version", "version 1"),
    ("target_create_bad_auth_data", "never without a password"),
    ("target_create_bad_auth_type", "0, 1 or 2"),
    ("target_get_bare_number", "in quotes"),
];
/// Parameters that the recorded clients send and the driver does not, and why.
const LEFT_OUT: [(&str, &str); 3] = [
    ("types", "a filter hides some LUNs"),
    ("direct_io_pattern", "the NAS's default"),
    ("_sid", "the client adds it"),
];
/// Parameters that the driver adds to what the recorded clients sent.
const ADDED: [&str; 4] = ["additional", "description", "dev_attribs", "max_sessions"];

#[test]
fn what_the_driver_sends_is_what_was_recorded() {
    let exchanges = Exchange::all();
    let mut sent = 0;
    for (name, _) in NOT_SENT {
        assert!(
            exchanges.contains_key(name),
            "{name} is in the list of exceptions and not in proto/dsm"
        );
    }
    for (name, exchange) in &exchanges {
        if NOT_SENT.iter().any(|(not_sent, _)| not_sent == name) {
            continue;
        }
        let Some(call) = call(exchange) else { continue };
        let differences = differences(exchange, &call, &askable(&exchanges, &exchange.request.api));
        assert!(differences.is_empty(), "{name}: {}", differences.join("; "));
        sent += 1;
    }
    assert!(
        sent >= 30,
        "only {sent} exchanges are of calls that the driver makes"
    );
}

/// All values of `additional` that some recorded client sent to this API.
fn askable(exchanges: &BTreeMap<String, Exchange>, api: &str) -> BTreeSet<String> {
    let lists = exchanges
        .values()
        .filter(|exchange| exchange.request.api == api)
        .map(|exchange| exchange.value("additional"));
    lists
        .flat_map(|list| list.as_array().cloned().unwrap_or_default())
        .filter_map(|name| name.as_str().map(str::to_owned))
        .collect()
}

fn differences(exchange: &Exchange, call: &Call, askable: &BTreeSet<String>) -> Vec<String> {
    let Request {
        api,
        version,
        method,
        params,
    } = &exchange.request;
    let mut form: BTreeMap<&str, String> = call.form().into_iter().collect();
    let mut differences = Vec::new();
    for (control, recorded) in [
        ("api", api.clone()),
        ("version", version.to_string()),
        ("method", method.clone()),
    ] {
        let sent = form.remove(control);
        if sent.as_ref() != Some(&recorded) {
            differences.push(format!(
                "{control} is {recorded}, the driver sends {sent:?}"
            ));
        }
    }
    let names: BTreeSet<&str> = params
        .keys()
        .map(String::as_str)
        .chain(form.keys().copied())
        .collect();
    for name in names {
        match (params.get(name), form.get(name)) {
            (Some(recorded), Some(sent)) => {
                let (recorded, sent) = (parse_value(recorded), parse_value(sent));
                let agree = match name {
                    // Requested fields: any that DSM is known to support.
                    "additional" => sent.as_array().is_some_and(|names| {
                        names
                            .iter()
                            .all(|name| name.as_str().is_some_and(|name| askable.contains(name)))
                    }),
                    // The recorded client wants both replies; the driver stops at the first error.
                    "stop_when_error" => recorded.is_boolean() && sent.is_boolean(),
                    _ => recorded == sent,
                };
                if !agree {
                    differences.push(format!("{name} is {recorded}, the driver sends {sent}"));
                }
            }
            (Some(recorded), None) if !LEFT_OUT.iter().any(|(left_out, _)| *left_out == name) => {
                differences.push(format!("the driver does not send {name}={recorded}"));
            }
            (None, Some(sent)) if !ADDED.contains(&name) => {
                differences.push(format!("the driver also sends {name}={sent}"));
            }
            _ => {}
        }
    }
    differences
}

#[test]
fn every_reply_is_read_as_it_was_recorded() {
    for (name, exchange) in Exchange::all() {
        let Some(seen) = parsed_by_driver(&exchange) else {
            continue;
        };
        match (seen, exchange.reply["error"]["code"].as_u64()) {
            (Ok(seen), None) => {
                let mut misread = Vec::new();
                compare("data", &seen, exchange.data(), &mut misread);
                assert!(misread.is_empty(), "{name}: {}", misread.join("; "));
            }
            (Err(error), Some(code)) => {
                let read = error.code().map(|code| u64::from(code.0));
                assert_eq!(read, Some(code), "{name}: {error}");
            }
            (Ok(seen), Some(code)) => {
                panic!("{name}: the driver reads {seen} where DSM refused with {code}")
            }
            (Err(error), None) => panic!("{name}: {error}"),
        }
    }
}

/// What the driver parses from a reply, with DSM's field names. `None`: the driver never makes such a call.
fn parsed_by_driver(exchange: &Exchange) -> Option<Result<Value, DsmError>> {
    fn parse<T: DeserializeOwned>(
        exchange: &Exchange,
        to_json: impl FnOnce(T) -> Value,
    ) -> Result<Value, DsmError> {
        reply::read::<T>(
            "the API",
            "the method",
            exchange.reply.to_string().as_bytes(),
        )
        .map(to_json)
    }
    let Request { api, method, .. } = &exchange.request;
    Some(match (api.as_str(), method.as_str()) {
        ("SYNO.Core.ISCSI.LUN", "get") => parse(
            exchange,
            |answer: LunAnswer| json!({"lun": lun_json(&answer.lun)}),
        ),
        ("SYNO.Core.ISCSI.LUN", "list") => parse(
            exchange,
            |answer: LunsAnswer| json!({"luns": answer.luns.readable.iter().map(lun_json).collect::<Vec<_>>()}),
        ),
        ("SYNO.Core.ISCSI.LUN", "create") => {
            parse(exchange, |answer: CreatedLun| json!({"uuid": answer.uuid}))
        }
        ("SYNO.Core.ISCSI.LUN", "list_snapshot") => parse(
            exchange,
            |answer: SnapshotsAnswer| json!({"snapshots": answer.snapshots.readable.iter().map(snapshot_json).collect::<Vec<_>>()}),
        ),
        ("SYNO.Core.ISCSI.Target", "get") => parse(
            exchange,
            |answer: TargetAnswer| json!({"target": target_json(&answer.target)}),
        ),
        ("SYNO.Core.ISCSI.Target", "list") => parse(
            exchange,
            |answer: TargetsAnswer| json!({"targets": answer.targets.readable.iter().map(target_json).collect::<Vec<_>>()}),
        ),
        ("SYNO.Core.ISCSI.Target", "create") => parse(
            exchange,
            |answer: CreatedTarget| json!({"target_id": answer.target_id}),
        ),
        ("SYNO.Core.Storage.Volume", "get") => parse(
            exchange,
            |answer: LocationAnswer| json!({"volume": answer.volume.as_ref().map(location_json)}),
        ),
        ("SYNO.Core.Storage.Volume", "list") => parse(
            exchange,
            |answer: LocationsAnswer| json!({"volumes": answer.volumes.readable.iter().map(location_json).collect::<Vec<_>>()}),
        ),
        ("SYNO.Core.ISCSI.LUN" | "SYNO.Core.ISCSI.Target" | "SYNO.No.Such.Api", _) => {
            parse(exchange, |_: NoData| json!({}))
        }
        _ => return None,
    })
}

fn lun_json(lun: &Lun) -> Value {
    let kind = match &lun.kind {
        Kind::Number(number) => json!(number),
        Kind::Name(name) => json!(name),
    };
    json!({
        "uuid": lun.uuid, "name": lun.name, "size": lun.size, "location": lun.location, "description": lun.description,
        "type": kind, "type_str": lun.type_str, "status": lun.status, "is_action_locked": lun.is_action_locked,
    })
}

fn snapshot_json(snapshot: &Snapshot) -> Value {
    json!({
        "name": snapshot.name, "description": snapshot.description, "create_time": snapshot.create_time,
        "is_user_locked": snapshot.is_user_locked, "is_worm_locked": snapshot.is_worm_locked,
        "locked_app_keys": snapshot.locked_app_keys,
    })
}

fn target_json(target: &Target) -> Value {
    let mapping = |mapping: &target::Mapping| json!({"lun_uuid": mapping.lun_uuid, "mapping_index": mapping.mapping_index});
    let session =
        |session: &target::ConnectedSession| json!({"iqn": session.iqn, "ip": session.ip});
    json!({
        "target_id": target.target_id, "name": target.name, "iqn": target.iqn, "is_enabled": target.is_enabled,
        "auth_type": target.auth_type, "user": target.user, "mutual_user": target.mutual_user,
        "mapped_luns": target.mapped_luns.iter().map(mapping).collect::<Vec<_>>(),
        "connected_sessions": target.connected_sessions.iter().map(session).collect::<Vec<_>>(),
    })
}

fn location_json(location: &Location) -> Value {
    json!({
        "volume_path": location.path, "fs_type": location.fs_type, "status": location.status, "readonly": location.readonly,
        "size_free_byte": location.free.map(|free| free.0.to_string()),
        "location": location.location, "container": location.container,
    })
}

/// Every field that the driver parses must equal the recorded one; a field that was not recorded must be null or empty.
fn compare(at: &str, read: &Value, recorded: &Value, misread: &mut Vec<String>) {
    match (read, recorded) {
        (Value::Object(read), recorded) => {
            for (name, read) in read {
                let nothing = read.is_null() || *read == json!("") || *read == json!([]);
                match recorded.get(name) {
                    Some(recorded) => compare(&format!("{at}.{name}"), read, recorded, misread),
                    None if nothing => {}
                    None => misread.push(format!("{at}.{name} is missing and read as {read}")),
                }
            }
        }
        (Value::Array(read), Value::Array(recorded)) if read.len() == recorded.len() => {
            for (index, (read, recorded)) in read.iter().zip(recorded).enumerate() {
                compare(&format!("{at}[{index}]"), read, recorded, misread);
            }
        }
        (read, recorded) if read == recorded => {}
        (read, recorded) => misread.push(format!("{at} is {recorded} and read as {read}")),
    }
}

#[test]
fn compare_finds_each_kind_of_misreading() {
    for (read, recorded, count) in [
        (
            json!({"size": 1}),
            json!({"size": 1, "allocated_size": 2}),
            0,
        ),
        (
            json!({"size": 2}),
            json!({"size": 1, "allocated_size": 2}),
            1,
        ),
        (json!({"status": null}), json!({"status": "normal"}), 1),
        (json!({"status": null, "description": ""}), json!({}), 0),
        (json!({"size": 0}), json!({}), 1),
        (json!({"luns": []}), json!({"luns": [{}]}), 1),
        (
            json!({"luns": [{"a": 1}, {"a": 2}]}),
            json!({"luns": [{"a": 1}, {"a": 3}]}),
            1,
        ),
    ] {
        let mut misread = Vec::new();
        compare("data", &read, &recorded, &mut misread);
        assert_eq!(misread.len(), count, "{read} {recorded}: {misread:?}");
    }
}

fn exchange(name: &str) -> Exchange {
    Exchange::all()
        .remove(name)
        .unwrap_or_else(|| panic!("no exchange {name}"))
}
