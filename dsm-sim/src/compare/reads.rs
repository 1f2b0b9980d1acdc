//! The read-only calls of `dsm-sim diff`, and the session that sends them. Requests are built only here, from a [`Read`], a
//! login or a logout: a caller cannot name an API or a method.

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use crate::compare::upstream::Upstream;

/// A call that changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// All APIs with their versions.
    Info,
    /// Model, firmware and hardware.
    SystemInfo,
    /// All volumes.
    Volumes,
    /// The first volume.
    Volume,
    /// All LUNs, with all `additional` fields.
    Luns,
    /// The first LUN.
    Lun,
    /// All targets.
    Targets,
    /// The first target.
    Target,
    /// The snapshots of the first LUN.
    Snapshots,
    /// Nodes of a replication.
    Nodes,
    /// Host groups.
    Hosts,
    /// Network interfaces.
    Interfaces,
    /// CPU, memory, disk and network utilization.
    Utilization,
    /// Volumes, pools and disks as in Storage Manager.
    Storage,
    /// Session settings.
    Security,
}

/// The first objects of the lists, to be read one by one.
#[derive(Clone, Debug, Default)]
pub struct Found {
    volume: Option<String>,
    lun: Option<String>,
    target: Option<u64>,
}

const LUN_EXTRAS: &str = r#"["is_action_locked","is_mapped","extent_size","allocated_size","status","allow_bkpobj","flashcache_status","family_config","snapshot_info"]"#;
const LUN_TYPES: &str = r#"["BLOCK","FILE","THIN","ADV","SINK","CINDER","CINDER_BLUN","CINDER_BLUN_THICK","BLUN","BLUN_THICK","BLUN_SINK","BLUN_THICK_SINK"]"#;
const TARGET_EXTRAS: &str = r#"["mapped_lun","acls","connected_sessions","status"]"#;

impl Read {
    /// All reads. A list comes before the reads of its objects.
    pub const ALL: [Self; 15] = [
        Self::Info,
        Self::SystemInfo,
        Self::Volumes,
        Self::Volume,
        Self::Luns,
        Self::Lun,
        Self::Targets,
        Self::Target,
        Self::Snapshots,
        Self::Nodes,
        Self::Hosts,
        Self::Interfaces,
        Self::Utilization,
        Self::Storage,
        Self::Security,
    ];

    /// API name: `SYNO.Core.ISCSI.LUN`.
    pub fn api(self) -> &'static str {
        match self {
            Self::Info => "SYNO.API.Info",
            Self::SystemInfo => "SYNO.Core.System",
            Self::Volumes | Self::Volume => "SYNO.Core.Storage.Volume",
            Self::Luns | Self::Lun | Self::Snapshots => "SYNO.Core.ISCSI.LUN",
            Self::Targets | Self::Target => "SYNO.Core.ISCSI.Target",
            Self::Nodes => "SYNO.Core.ISCSI.Node",
            Self::Hosts => "SYNO.Core.ISCSI.Host",
            Self::Interfaces => "SYNO.Core.Network.Interface",
            Self::Utilization => "SYNO.Core.System.Utilization",
            Self::Storage => "SYNO.Storage.CGI.Storage",
            Self::Security => "SYNO.Core.Security.DSM",
        }
    }

    /// Method name: `list`.
    pub fn method(self) -> &'static str {
        match self {
            Self::Info => "query",
            Self::SystemInfo => "info",
            Self::Volumes
            | Self::Luns
            | Self::Targets
            | Self::Nodes
            | Self::Hosts
            | Self::Interfaces => "list",
            Self::Volume | Self::Lun | Self::Target | Self::Utilization | Self::Security => "get",
            Self::Snapshots => "list_snapshot",
            Self::Storage => "load_info",
        }
    }

    /// The parameters; `None` if the NAS has no such object.
    fn params(self, found: &Found) -> Option<Vec<(&'static str, String)>> {
        let quoted = |text: &String| json!(text).to_string();
        Some(match self {
            Self::Info => vec![("query", "all".to_owned())],
            Self::Volumes => vec![
                ("offset", "0".to_owned()),
                ("limit", "-1".to_owned()),
                ("location", "all".to_owned()),
            ],
            Self::Volume => vec![("volume_path", found.volume.clone()?)],
            Self::Luns => vec![
                ("types", LUN_TYPES.to_owned()),
                ("additional", LUN_EXTRAS.to_owned()),
            ],
            Self::Lun => vec![
                ("uuid", quoted(found.lun.as_ref()?)),
                ("additional", LUN_EXTRAS.to_owned()),
            ],
            Self::Targets => vec![("additional", TARGET_EXTRAS.to_owned())],
            Self::Target => vec![
                ("target_id", format!("\"{}\"", found.target?)),
                ("additional", TARGET_EXTRAS.to_owned()),
            ],
            Self::Snapshots => vec![("src_lun_uuid", quoted(found.lun.as_ref()?))],
            Self::SystemInfo
            | Self::Nodes
            | Self::Hosts
            | Self::Interfaces
            | Self::Utilization
            | Self::Storage
            | Self::Security => Vec::new(),
        })
    }
}

impl Found {
    fn learn(&mut self, read: Read, reply: &Value) {
        let data = &reply["data"];
        if read == Read::Volumes {
            let path = data["volumes"][0]["volume_path"].as_str();
            self.volume = path.map(str::to_owned);
        } else if read == Read::Luns {
            self.lun = data["luns"][0]["uuid"].as_str().map(str::to_owned);
        } else if read == Read::Targets {
            self.target = data["targets"][0]["target_id"].as_u64();
        }
    }
}

/// The replies, one for each of [`Read::ALL`].
pub(super) struct Answers(Vec<(Read, Value)>);

impl Answers {
    /// The reply; null if the NAS has no such object.
    pub(super) fn of(&self, read: Read) -> &Value {
        let answer = self.0.iter().find(|answer| answer.0 == read);
        answer.map_or(&Value::Null, |answer| &answer.1)
    }
}

/// A logged-in session.
pub(super) struct Session<'a> {
    http: reqwest::Client,
    nas: &'a Upstream,
    sid: String,
    token: Option<String>,
}

impl<'a> Session<'a> {
    pub(super) async fn login(
        nas: &'a Upstream,
        account: &str,
        password: &str,
    ) -> anyhow::Result<Self> {
        let mut session = Self {
            http: nas.client()?,
            nas,
            sid: String::new(),
            token: None,
        };
        let login = [
            ("account", account.to_owned()),
            ("passwd", password.to_owned()),
            ("format", "sid".to_owned()),
            ("enable_syno_token", "yes".to_owned()),
        ];
        let reply = session.send("SYNO.API.Auth", 6, "login", &login).await?;
        let Some(sid) = reply["data"]["sid"].as_str() else {
            bail!("the login was refused with code {}", reply["error"]["code"]);
        };
        sid.clone_into(&mut session.sid);
        session.token = reply["data"]["synotoken"].as_str().map(str::to_owned);
        Ok(session)
    }

    pub(super) async fn read_all(&self) -> anyhow::Result<Answers> {
        let mut found = Found::default();
        let mut answers = Vec::new();
        for read in Read::ALL {
            let reply = match read.params(&found) {
                Some(params) => self.send(read.api(), 1, read.method(), &params).await?,
                None => Value::Null,
            };
            found.learn(read, &reply);
            answers.push((read, reply));
        }
        Ok(Answers(answers))
    }

    pub(super) async fn logout(self) -> anyhow::Result<()> {
        self.send("SYNO.API.Auth", 6, "logout", &[]).await?;
        Ok(())
    }

    // The session id is sent as a cookie: some NASes accept no _sid in a form (jt), and a query ends up in logs.
    async fn send(
        &self,
        api: &'static str,
        version: u32,
        method: &'static str,
        params: &[(&str, String)],
    ) -> anyhow::Result<Value> {
        let version = version.to_string();
        let mut form = vec![("api", api), ("version", &version), ("method", method)];
        form.extend(params.iter().map(|(name, value)| (*name, value.as_str())));
        // These have their own paths on DSM 6, which still work on DSM 7.
        let cgi = match api {
            "SYNO.API.Info" => "query.cgi",
            "SYNO.API.Auth" => "auth.cgi",
            _ => "entry.cgi",
        };
        let mut request = self.http.post(self.nas.at(&format!("/webapi/{cgi}")));
        if !self.sid.is_empty() {
            request = request.header("cookie", format!("id={}", self.sid));
        }
        if let Some(token) = &self.token {
            request = request.header("x-syno-token", token);
        }
        let call = || format!("{api} {method}");
        let request = request.timeout(std::time::Duration::from_secs(60));
        let reply = request.form(&form).send().await.with_context(call)?;
        let status = reply.status();
        ensure!(
            status.is_success(),
            "{} failed with HTTP status {status}",
            call()
        );
        let text = reply.text().await.with_context(call)?;
        serde_json::from_str(&text).with_context(|| format!("the reply to {} is not JSON", call()))
    }
}
