//! Replays every recorded exchange in `proto/dsm` against the simulator: same keys, JSON types and codes. The driver replays the
//! same files as a client, so a field that either side misreads fails a test.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;

use common::Sim;
use dsm_sim::compare::json_shape::compare;
use dsm_sim::{Dsm, DsmSim};
use serde::Deserialize;
use serde_json::{Map, Value};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Exchange {
    source: String,
    #[expect(dead_code, reason = "for people")]
    note: String,
    /// R recorded, C seen in code, M measured.
    grade: String,
    /// Generation of DSM; default 7.
    dsm: Option<u8>,
    /// Requests and settings that prepare the NAS.
    #[serde(default)]
    given: Vec<Given>,
    request: Value,
    reply: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    request: Option<Value>,
    /// The recorded uuid of the LUN or snapshot that this request creates.
    called: Option<String>,
    settings: Option<Value>,
}

#[tokio::test]
async fn every_exchange_has_the_recorded_shape() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/dsm");
    let mut failures = Vec::new();
    let mut count = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let exchange: Exchange = serde_json::from_str(&std::fs::read_to_string(&path).unwrap())
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(!exchange.source.is_empty(), "{name} has no source");
        assert!(
            matches!(exchange.grade.as_str(), "R" | "C" | "M"),
            "{name}: grade {}",
            exchange.grade
        );
        let live = replay(&exchange).await;
        let differences = compare(&exchange.reply, &live);
        failures.extend(
            differences
                .iter()
                .map(|difference| format!("{name}{difference}")),
        );
        count += 1;
    }
    assert!(count >= 40, "only {count} exchanges were found");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

async fn replay(exchange: &Exchange) -> Value {
    let volumes = [
        "/volume1=btrfs:2TiB",
        "/volume2=btrfs:2TiB",
        "/volume4=ext4:2TiB",
    ];
    let dsm: Dsm = exchange.dsm.unwrap_or(7).to_string().parse().unwrap();
    let volumes = volumes.map(|text| text.parse().unwrap());
    let sim = Sim::with(DsmSim::builder().dsm(dsm).volumes(volumes)).await;
    let mut uuids = Vec::new();
    for given in &exchange.given {
        if let Some(settings) = &given.settings {
            sim.patch("/settings", settings.clone()).await;
        }
        if let Some(request) = &given.request {
            let reply = send(&sim, request, &uuids).await;
            if let Some(called) = &given.called {
                let made = ["uuid", "snapshot_uuid"]
                    .into_iter()
                    .find_map(|name| reply["data"][name].as_str());
                uuids.push((called.clone(), made.unwrap().to_owned()));
            }
        }
    }
    send(&sim, &exchange.request, &uuids).await
}

async fn send(sim: &Sim, request: &Value, uuids: &[(String, String)]) -> Value {
    let mut text = request["params"].to_string();
    for (recorded, live) in uuids {
        text = text.replace(recorded, live);
    }
    let params: Map<String, Value> = serde_json::from_str(&text).unwrap();
    let mut pairs = vec![
        (
            "api".to_owned(),
            request["api"].as_str().unwrap().to_owned(),
        ),
        ("version".to_owned(), request["version"].to_string()),
        (
            "method".to_owned(),
            request["method"].as_str().unwrap().to_owned(),
        ),
    ];
    pairs.extend(
        params
            .into_iter()
            .map(|(name, value)| (name, value.as_str().unwrap().to_owned())),
    );
    if request["method"] != "login" && !pairs.iter().any(|pair| pair.0 == "_sid") {
        pairs.push(("_sid".to_owned(), sim.sid.clone()));
    }
    sim.form(&pairs).await
}
