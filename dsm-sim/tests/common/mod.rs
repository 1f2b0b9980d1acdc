//! A simulator in this process with a logged-in client, and helpers for tests.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use dsm_sim::{Builder, DsmSim};
use serde_json::{Value, json};

/// API of LUNs.
pub const LUN: &str = "SYNO.Core.ISCSI.LUN";
/// API of targets.
pub const TARGET: &str = "SYNO.Core.ISCSI.Target";
/// API of logins.
pub const AUTH: &str = "SYNO.API.Auth";

/// A simulator and a logged-in client.
pub struct Sim {
    /// The simulator.
    pub nas: DsmSim,
    /// HTTP client.
    pub http: reqwest::Client,
    /// Session id.
    pub sid: String,
}

/// An HTTP client. reqwest needs the TLS provider even without TLS.
pub fn client() -> reqwest::ClientBuilder {
    // Only the first install in a process succeeds, which is enough.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy()
}

impl Sim {
    /// Starts a simulator with the defaults.
    pub async fn new() -> Self {
        Self::with(DsmSim::builder()).await
    }

    /// Starts a configured simulator.
    pub async fn with(builder: Builder) -> Self {
        let mut sim = Self {
            nas: builder.start().await.unwrap(),
            http: client().build().unwrap(),
            sid: String::new(),
        };
        let login = sim.login().await;
        login["data"]["sid"]
            .as_str()
            .unwrap()
            .clone_into(&mut sim.sid);
        sim
    }

    /// Logs in with the default account; the whole reply.
    pub async fn login(&self) -> Value {
        self.form(&[
            ("api", AUTH),
            ("version", "6"),
            ("method", "login"),
            ("account", "admin"),
            ("passwd", "admin"),
            ("format", "sid"),
        ])
        .await
    }

    /// URL of the Web API.
    pub fn entry(&self) -> String {
        format!("{}/webapi/entry.cgi", self.nas.api())
    }

    /// Posts a form; the JSON reply.
    pub async fn form<N: AsRef<str>, V: AsRef<str>>(&self, pairs: &[(N, V)]) -> Value {
        let pairs: Vec<(&str, &str)> = pairs
            .iter()
            .map(|(name, value)| (name.as_ref(), value.as_ref()))
            .collect();
        let reply = self
            .http
            .post(self.entry())
            .form(&pairs)
            .send()
            .await
            .unwrap();
        serde_json::from_str(&reply.text().await.unwrap()).unwrap()
    }

    /// Calls a method of version 1 in the session; the whole reply.
    pub async fn call(&self, api: &str, method: &str, params: &[(&str, &str)]) -> Value {
        let mut pairs = vec![
            ("api", api),
            ("version", "1"),
            ("method", method),
            ("_sid", self.sid.as_str()),
        ];
        pairs.extend_from_slice(params);
        self.form(&pairs).await
    }

    /// Creates a LUN; its uuid.
    pub async fn lun(&self, name: &str, kind: &str, size: u64) -> String {
        let params = [
            ("name", &*json!(name).to_string()),
            ("type", kind),
            ("location", "/volume1"),
            ("size", &*size.to_string()),
        ];
        let reply = self.call(LUN, "create", &params).await;
        ok(&reply)["uuid"].as_str().unwrap().to_owned()
    }

    /// Creates a target; its number, quoted as the API needs it.
    pub async fn target(&self, name: &str) -> String {
        let iqn = format!("iqn.2000-01.com.synology:{name}");
        let reply = self
            .call(TARGET, "create", &[("name", name), ("iqn", &iqn)])
            .await;
        format!("\"{}\"", ok(&reply)["target_id"])
    }

    /// Makes a call; its error code, 0 for a success.
    pub async fn code(&self, api: &str, method: &str, params: &[(&str, &str)]) -> u64 {
        code(&self.call(api, method, params).await)
    }

    /// Gets from the control port.
    pub async fn get(&self, path: &str) -> Value {
        self.control(reqwest::Method::GET, path, None).await
    }

    /// Posts to the control port.
    pub async fn post(&self, path: &str, body: Value) -> Value {
        self.control(reqwest::Method::POST, path, Some(body)).await
    }

    /// Patches through the control port.
    pub async fn patch(&self, path: &str, body: Value) -> Value {
        self.control(reqwest::Method::PATCH, path, Some(body)).await
    }

    /// Sends a request to the control port, which must succeed.
    pub async fn control(&self, method: reqwest::Method, path: &str, body: Option<Value>) -> Value {
        let mut request = self
            .http
            .request(method, format!("{}{path}", self.nas.control()));
        if let Some(body) = body {
            request = request
                .header("content-type", "application/json")
                .body(body.to_string());
        }
        let reply = request.send().await.unwrap();
        let (status, text) = (reply.status(), reply.text().await.unwrap());
        assert!(status.is_success(), "{path}: {status} {text}");
        serde_json::from_str(&text).unwrap()
    }

    /// Adds a fault.
    pub async fn fault(&self, api: &str, method: &str, fault: Value) {
        self.post(
            "/faults",
            json!({"api": api, "method": method, "fault": fault}),
        )
        .await;
    }

    /// The persistent state.
    pub async fn state(&self) -> Value {
        self.get("/state").await
    }
}

/// The error code of a reply, 0 for a success.
pub fn code(reply: &Value) -> u64 {
    if reply["success"] == true {
        0
    } else {
        reply["error"]["code"].as_u64().unwrap()
    }
}

/// The data of a reply, which must be a success.
#[track_caller]
pub fn ok(reply: &Value) -> Value {
    assert_eq!(reply["success"], true, "{reply}");
    reply["data"].clone()
}

/// The dsm-sim program with these arguments.
pub fn program(args: &[&str]) -> Command {
    #[expect(
        clippy::disallowed_methods,
        reason = "some tests are about the program, and end what they start"
    )]
    let mut command = Command::new(env!("CARGO_BIN_EXE_dsm-sim"));
    command.args(args);
    command
}

/// Waits for `endpoints.json` of a started program. The file of a killed one is ignored.
pub async fn endpoints(child: &mut Child, dir: &Path) -> Value {
    let id = child.id();
    until("it comes up", async || {
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        let text = std::fs::read_to_string(dir.join("endpoints.json")).ok()?;
        serde_json::from_str::<Value>(&text)
            .ok()
            .filter(|endpoints| endpoints["pid"] == id)
    })
    .await
}

/// Polls `probe` until it returns a value, with a timeout.
pub async fn until<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "waited too long until {what}"
        );
        pause(2).await;
    }
}

/// Sleeps.
pub async fn pause(ms: u64) {
    // sleep: between two polls of a condition, or before checking that something has not happened.
    tokio::time::sleep(Duration::from_millis(ms)).await;
}
