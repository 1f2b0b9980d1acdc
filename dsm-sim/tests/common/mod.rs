//! A simulator in this process, and a client for it.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use dsm_sim::{Builder, DsmSim};
use serde_json::{Value, json};

/// LUNs.
pub const LUN: &str = "SYNO.Core.ISCSI.LUN";
/// Targets.
pub const TARGET: &str = "SYNO.Core.ISCSI.Target";
/// Logins.
pub const AUTH: &str = "SYNO.API.Auth";

/// A simulator, and somebody logged in to it.
pub struct Sim {
    /// The simulator.
    pub nas: DsmSim,
    /// Talks HTTP.
    pub http: reqwest::Client,
    /// The session.
    pub sid: String,
}

/// A client. The TLS provider is only there because reqwest asks for one.
pub fn client() -> reqwest::ClientBuilder {
    // Only the first of several installs succeeds, and any will do.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy()
}

impl Sim {
    /// With the defaults.
    pub async fn new() -> Self {
        Self::with(DsmSim::builder()).await
    }

    /// As asked for.
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

    /// A login with the default account.
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

    /// The Web API's entry.
    pub fn entry(&self) -> String {
        format!("{}/webapi/entry.cgi", self.nas.api())
    }

    /// Posts a form and reads the JSON answer.
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

    /// Calls a method of version 1 in the session; the whole answer.
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

    /// Makes a LUN; its uuid.
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

    /// Makes a target; its number, quoted as the API wants it.
    pub async fn target(&self, name: &str) -> String {
        let iqn = format!("iqn.2000-01.com.synology:{name}");
        let reply = self
            .call(TARGET, "create", &[("name", name), ("iqn", &iqn)])
            .await;
        format!("\"{}\"", ok(&reply)["target_id"])
    }

    /// The code of a call, 0 for a success.
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

    /// Any request to the control port; it must succeed.
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

    /// Sets a fault.
    pub async fn fault(&self, api: &str, method: &str, fault: Value) {
        self.post(
            "/faults",
            json!({"api": api, "method": method, "fault": fault}),
        )
        .await;
    }

    /// What persists.
    pub async fn state(&self) -> Value {
        self.get("/state").await
    }
}

/// The code of an answer, 0 for a success.
pub fn code(reply: &Value) -> u64 {
    if reply["success"] == true {
        0
    } else {
        reply["error"]["code"].as_u64().unwrap()
    }
}

/// The data of an answer that must be a success.
#[track_caller]
pub fn ok(reply: &Value) -> Value {
    assert_eq!(reply["success"], true, "{reply}");
    reply["data"].clone()
}

/// The program with these arguments.
pub fn program(args: &[&str]) -> Command {
    #[expect(
        clippy::disallowed_methods,
        reason = "some tests are about the program, and end what they start"
    )]
    let mut command = Command::new(env!("CARGO_BIN_EXE_dsm-sim"));
    command.args(args);
    command
}

/// What a program that was started says about where it listens. The file of a killed one does not count.
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

/// Waits until `probe` finds what it looks for, with a bound.
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

/// Lets the other side do something.
pub async fn pause(ms: u64) {
    // sleep: between two looks at a condition, or before a look at something that must not happen.
    tokio::time::sleep(Duration::from_millis(ms)).await;
}
