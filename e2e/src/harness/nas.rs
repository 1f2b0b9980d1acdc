//! dsm-sim as a process, and a client of its control API.

mod others;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::harness::process::Process;
use crate::harness::until::until;

/// The key that CHAP secrets are derived from.
pub const CHAP_KEY: &str = "planted-key-of-the-controllers-1234";
/// The password of the simulated NAS's one account, `admin`.
pub const PASSWORD: &str = "planted-secret-5bd1";

/// The settings of a simulated NAS.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `none`, `loop`, `tgt` or `lio`.
    pub export: &'static str,
    /// The portals of its targets.
    pub portals: Vec<String>,
    /// `instant` or `ds918`.
    pub latency: &'static str,
    /// `PATH=FILESYSTEM:SIZE`.
    pub volumes: Vec<&'static str>,
    /// More arguments of `dsm-sim serve`.
    pub more: Vec<&'static str>,
    /// It also holds foreign objects: see `others`.
    pub shared: bool,
    /// And a volume has crashed that holds no LUN of the driver's.
    pub crashed: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            export: "none",
            portals: vec!["127.0.0.1:3260".to_owned()],
            latency: "instant",
            volumes: vec!["/volume1=btrfs:20TiB", "/volume2=ext4:2TiB"],
            more: Vec::new(),
            shared: false,
            crashed: false,
        }
    }
}

/// A running dsm-sim.
#[derive(Debug)]
pub struct Nas {
    process: Process,
    folder: PathBuf,
    settings: Settings,
    /// Base URL of its Web API.
    pub api: String,
    /// Base URL of its control API.
    pub control: String,
    http: reqwest::Client,
}

/// A call in the NAS's journal.
#[derive(Clone, Debug, Deserialize)]
pub struct Entry {
    /// Position in the journal.
    pub seq: u64,
    /// Number of the HTTP request that carried it.
    pub request: u64,
    /// For instance `SYNO.Core.ISCSI.LUN`.
    pub api: String,
    /// For instance `set`.
    pub method: String,
    /// Its parameters, without secrets.
    #[serde(default)]
    pub params: Value,
    /// DSM's error code, if any.
    pub code: Option<u32>,
    /// The injected fault that hit it, if any.
    #[serde(default)]
    pub fault: Option<String>,
    /// How long the NAS took, in microseconds.
    #[serde(default)]
    pub micros: u64,
}

impl Entry {
    /// For instance `LUN.set`.
    pub fn short(&self) -> String {
        format!(
            "{}.{}",
            self.api.rsplit('.').next().unwrap_or_default(),
            self.method
        )
    }

    /// A login or logout, which is not counted for any CSI call.
    pub fn is_session(&self) -> bool {
        self.api == "SYNO.API.Auth"
    }
}

/// Request counters of a NAS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Counters {
    /// HTTP requests.
    pub requests: u64,
    /// Bytes of query strings and request bodies.
    pub received: u64,
    /// Bytes of reply bodies.
    pub sent: u64,
    /// Calls by method: one request may carry several.
    pub calls: BTreeMap<String, u64>,
}

impl Counters {
    /// Bytes received and sent.
    pub fn bytes(&self) -> u64 {
        self.received + self.sent
    }

    /// Calls of all methods.
    pub fn all_calls(&self) -> u64 {
        self.calls.values().sum()
    }
}

#[derive(Deserialize)]
struct Endpoints {
    api: String,
    control: String,
    https: Option<String>,
}

impl Nas {
    /// Starts dsm-sim with its state in `folder/nas`.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn start(folder: &Path, settings: Settings) -> Result<Self> {
        let folder = folder.join("nas");
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("password"), PASSWORD)?;
        std::fs::write(folder.join("chap-key"), CHAP_KEY)?;
        let process = spawn(&folder, &settings, &[ANY_PORT, ANY_PORT].map(str::to_owned))?;
        let mut nas = Self {
            process,
            folder,
            settings,
            api: String::new(),
            control: String::new(),
            http: client()?,
        };
        nas.await_endpoints().await?;
        nas.add_foreign_objects().await?;
        Ok(nas)
    }

    /// Kills it, as a power cut does, and restarts it with the same state and addresses.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn restart(&mut self) -> Result<()> {
        self.kill();
        let address = |url: &str| url.trim_start_matches("http://").to_owned();
        let listen = [address(&self.api), address(&self.control)];
        let _ = std::fs::remove_file(self.folder.join("endpoints.json"));
        self.process = spawn(&self.folder, &self.settings, &listen)?;
        // The old client may hold connections that it does not know to be dead.
        self.http = client()?;
        self.await_endpoints().await
    }

    /// Its settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Kills it, as a power cut does. [`Nas::restart`] brings it back.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// The process, to be frozen and thawed.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Shuts it down, as an administrator does: its exports end too. Returns whether it ended with success.
    ///
    /// # Errors
    /// It does not end in time.
    pub async fn shut_down(&mut self) -> Result<bool> {
        self.process.terminate().await
    }

    async fn await_endpoints(&mut self) -> Result<()> {
        let file = self.folder.join("endpoints.json");
        until(
            "dsm-sim listens",
            async || self.process.check().map(|()| file.exists()),
            |listens| *listens,
        )
        .await?;
        let endpoints: Endpoints = serde_json::from_slice(&std::fs::read(file)?)?;
        (self.api, self.control) = (endpoints.api, endpoints.control);
        Ok(())
    }

    /// Base URL of its Web API over HTTPS.
    ///
    /// # Errors
    /// It was started without HTTPS.
    pub fn https(&self) -> Result<String> {
        let file = self.folder.join("endpoints.json");
        let endpoints: Endpoints = serde_json::from_slice(&std::fs::read(file)?)?;
        endpoints.https.context("no HTTPS")
    }

    /// Its counters since the start or the last reset.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn counters(&self) -> Result<Counters> {
        let answer = self.get_control("counters").await?;
        Ok(serde_json::from_value(answer)?)
    }

    /// Puts it in the state after a restart: for `for_ms`, it lists no LUNs and targets.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn boot(&self, for_ms: u64) -> Result<()> {
        let boot = json!({"loading": "absent", "for_ms": for_ms});
        self.send(self.post("boot", &boot)?).await.map(drop)
    }

    /// Advances its clock.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn advance(&self, ms: u64) -> Result<()> {
        let by = json!({"advance_ms": ms});
        self.send(self.post("clock", &by)?).await.map(drop)
    }

    /// The name of its latency profile.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn latency(&self) -> Result<String> {
        let answer = self.get_control("latency").await?;
        Ok(answer["profile"].as_str().context("profile")?.to_owned())
    }

    /// The file with the key that CHAP secrets are derived from.
    pub fn chap_key_file(&self) -> PathBuf {
        self.folder.join("chap-key")
    }

    /// The file with the account's password.
    pub fn password_file(&self) -> PathBuf {
        self.folder.join("password")
    }

    /// The folder where its targets are exported for node-sim.
    pub fn targets(&self) -> PathBuf {
        self.folder.join("targets")
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Resident memory, in KiB.
    ///
    /// # Errors
    /// It has ended.
    pub fn resident_kib(&self) -> Result<u64> {
        self.process.resident_kib()
    }

    /// GET from its control API.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn get_control(&self, path: &str) -> Result<Value> {
        self.send(self.http.get(self.control_url(path))).await
    }

    /// Its complete state without sessions; equal values mean that nothing has changed.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn state(&self) -> Result<Value> {
        let mut state = self.get_control("state").await?;
        // A login changes no data.
        state
            .as_object_mut()
            .context("state is an object")?
            .remove("sessions");
        Ok(state)
    }

    /// Its LUNs, without those of [`others`].
    ///
    /// # Errors
    /// It does not answer.
    pub async fn luns(&self) -> Result<Vec<Value>> {
        let state = self.state().await?;
        let luns = state["luns"].as_array().context("luns")?.iter();
        Ok(luns
            .filter(|row| !others::is_foreign(row))
            .cloned()
            .collect())
    }

    /// Its targets.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn targets_now(&self) -> Result<Vec<Value>> {
        Ok(self.state().await?["targets"]
            .as_array()
            .context("targets")?
            .clone())
    }

    /// The calls since `since`, and the next position.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn journal(&self, since: u64) -> Result<(Vec<Entry>, u64)> {
        let answer = self.get_control(&format!("journal?since={since}")).await?;
        let next = answer["next"].as_u64().context("next")?;
        Ok((serde_json::from_value(answer["entries"].clone())?, next))
    }

    /// Injects a fault: `kind` as in `{"kind":"refuse","code":18990002}`, from the `nth` call on, for `times` calls.
    ///
    /// # Errors
    /// It does not answer, or knows no such fault.
    pub async fn fault(
        &self,
        api: &str,
        method: &str,
        nth: u64,
        times: u64,
        kind: Value,
    ) -> Result<()> {
        let rule = json!({"api": api, "method": method, "nth": nth, "times": times, "fault": kind});
        self.send(self.post("faults", &rule)?).await.map(drop)
    }

    /// The number of calls that have matched each injected fault.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn fault_matches(&self) -> Result<Vec<u64>> {
        let answer = self.get_control("faults").await?;
        let rules = answer["faults"].as_array().context("faults")?;
        Ok(rules
            .iter()
            .map(|rule| rule["seen"].as_u64().unwrap_or_default())
            .collect())
    }

    /// Resets the NAS: no LUNs, targets, sessions, faults, and an empty journal.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn reset(&self) -> Result<()> {
        self.send(self.post("reset", &json!({}))?).await?;
        self.add_foreign_objects().await
    }

    /// Removes all faults; calls that hang are answered.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn clear_faults(&self) -> Result<()> {
        self.send(self.http.delete(self.control_url("faults")))
            .await
            .map(drop)
    }

    /// Makes a foreign LUN and returns its uuid.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub async fn foreign_lun(&self, name: &str, size: i64) -> Result<String> {
        let lun = json!({"name": name, "size": size, "location": "/volume1", "type": "BLUN", "description": "somebody else's"});
        let answer = self.send(self.post("luns", &lun)?).await?;
        Ok(answer["uuid"].as_str().context("uuid")?.to_owned())
    }

    /// Changes fields of a LUN without a DSM call.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub async fn patch_lun(&self, uuid: &str, fields: &Value) -> Result<()> {
        self.patch(&format!("luns/{uuid}"), fields).await.map(drop)
    }

    /// Changes fields of a NAS volume, for instance `status`.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub async fn patch_volume(&self, name: &str, fields: &Value) -> Result<()> {
        self.patch(&format!("volumes/{name}"), fields)
            .await
            .map(drop)
    }

    /// Adds foreign LUNs.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub async fn seed(&self, luns: usize) -> Result<()> {
        self.send(self.post("seed", &json!({"luns": luns}))?)
            .await
            .map(drop)
    }

    /// Changes settings until it ends or is reset.
    ///
    /// # Errors
    /// It does not answer, or knows no such setting.
    pub async fn patch_settings(&self, fields: &Value) -> Result<()> {
        self.patch("settings", fields).await.map(drop)
    }

    /// POST to its control API.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub async fn change_setting(&self, path: &str, body: &Value) -> Result<Value> {
        self.send(self.post(path, body)?).await
    }

    /// Ends all its Web API sessions.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn expire_sessions(&self) -> Result<()> {
        self.send(self.post("sessions/expire", &json!({}))?)
            .await
            .map(drop)
    }

    /// Logs in to the Web API as an administrator would.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn session(&self) -> Result<Session<'_>> {
        let login = [
            ("api", "SYNO.API.Auth"),
            ("version", "6"),
            ("method", "login"),
            ("account", "admin"),
            ("passwd", PASSWORD),
            ("format", "sid"),
        ];
        let url = format!("{}/webapi/auth.cgi", self.api);
        let answer = self.send(self.http.post(url).form(&login)).await?;
        let sid = answer["data"]["sid"].as_str().context("no sid")?;
        Ok(Session {
            nas: self,
            sid: sid.to_owned(),
        })
    }

    /// Logs in to the Web API and makes one call. Returns the whole reply, with `success` and `error`.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn dsm(&self, call: &[(&str, &str)]) -> Result<Value> {
        self.session().await?.ask(call).await
    }

    fn control_url(&self, path: &str) -> String {
        format!("{}/{path}", self.control)
    }

    /// PATCH to its control API: merges fields into the existing ones.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub async fn patch(&self, path: &str, fields: &Value) -> Result<Value> {
        let request = self
            .http
            .patch(self.control_url(path))
            .header("content-type", "application/json");
        self.send(request.body(serde_json::to_vec(fields)?)).await
    }

    fn post(&self, path: &str, body: &Value) -> Result<reqwest::RequestBuilder> {
        Ok(self
            .http
            .post(self.control_url(path))
            .header("content-type", "application/json")
            .body(serde_json::to_vec(body)?))
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Value> {
        let response = request.send().await.context("sending to dsm-sim")?;
        let (status, body) = (response.status(), response.bytes().await?);
        ensure!(
            status.is_success(),
            "dsm-sim answered {status}: {}",
            String::from_utf8_lossy(&body)
        );
        if body.is_empty() {
            Ok(Value::Null)
        } else {
            Ok(serde_json::from_slice(&body)?)
        }
    }
}

/// A Web API session of an administrator.
#[derive(Debug)]
pub struct Session<'a> {
    nas: &'a Nas,
    /// Its session id.
    pub sid: String,
}

impl Session<'_> {
    /// Makes a call. Returns the whole reply, with `success` and `error`.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn ask(&self, call: &[(&str, &str)]) -> Result<Value> {
        let url = format!("{}/webapi/entry.cgi", self.nas.api);
        let request = self
            .nas
            .http
            .post(url)
            .header("cookie", format!("id={}", self.sid));
        self.nas.send(request.form(call)).await
    }

    /// Makes a call that must succeed. Returns its `data`.
    ///
    /// # Errors
    /// It is refused.
    pub async fn call(&self, api: &str, method: &str, params: &[(&str, &str)]) -> Result<Value> {
        let control = [("api", api), ("version", "1"), ("method", method)];
        let mut answer = self.ask(&[&control, params].concat()).await?;
        ensure!(answer["success"] == true, "{api} {method}: {answer}");
        Ok(answer["data"].take())
    }
}

fn client() -> Result<reqwest::Client> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    // Plain HTTP: skip reading the system's CA certificates, hundreds of files.
    let http = reqwest::Client::builder().no_proxy().tls_certs_only([]);
    Ok(http.build()?)
}

/// The system chooses the port.
const ANY_PORT: &str = "127.0.0.1:0";

fn spawn(folder: &Path, settings: &Settings, listen: &[String; 2]) -> Result<Process> {
    let state = folder.to_string_lossy().into_owned();
    let password = folder.join("password").to_string_lossy().into_owned();
    let mut args = vec![
        "serve",
        "--listen",
        &listen[0],
        "--control",
        &listen[1],
        "--state-dir",
        &state,
        "--password-file",
        &password,
    ];
    args.extend(["--export", settings.export, "--latency", settings.latency]);
    args.extend(
        settings
            .volumes
            .iter()
            .flat_map(|volume| ["--volume", volume]),
    );
    args.extend(
        settings
            .portals
            .iter()
            .flat_map(|portal| ["--portal", portal]),
    );
    args.extend(others::arguments(settings));
    args.extend(&settings.more);
    Process::start("dsm-sim", args, &folder.join("dsm-sim.log"), None)
}
