//! `dsm-sim record` in front of a second simulator: every call is forwarded and recorded, and no secret is.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;
use std::path::Path;

use common::{AUTH, LUN, TARGET, client, ok};
use dsm_sim::compare::json_shape::compare;
use dsm_sim::compare::record;
use dsm_sim::{DsmSim, Https, TlsTrust, Upstream};
use serde::Deserialize;
use serde_json::{Map, Value, json};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Exchange {
    source: String,
    note: String,
    grade: String,
    request: Request,
    reply: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    api: String,
    version: u32,
    method: String,
    params: Map<String, Value>,
}

const ACCOUNT: &str = "grace.hopper";
const PASSWORD: &str = "Pa\"ss w\\örd&1=2";
const PORTAL: &str = "10.77.3.21:3260";

/// A client that keeps all replies.
struct Client {
    http: reqwest::Client,
    base: String,
    sid: String,
    replies: Vec<Value>,
}

impl Client {
    async fn call(&mut self, api: &str, method: &str, params: &[(&str, &str)]) -> Value {
        let version = if api == AUTH { "7" } else { "1" };
        let mut form = vec![("api", api), ("version", version), ("method", method)];
        form.extend_from_slice(params);
        let url = format!("{}/webapi/entry.cgi?_sid={}", self.base, self.sid);
        let reply = self.http.post(url).form(&form).send().await.unwrap();
        assert_eq!(reply.status(), 200);
        assert_eq!(reply.headers()["x-content-type-options"], "nosniff");
        let reply: Value = serde_json::from_str(&reply.text().await.unwrap()).unwrap();
        self.replies.push(reply.clone());
        reply
    }
}

async fn recorder(nas: &DsmSim, out: &Path) -> String {
    let upstream = Upstream {
        url: nas.https().unwrap().parse().unwrap(),
        trust: TlsTrust::File(nas.ca_file().unwrap().to_owned()),
    };
    let router = record::proxy(upstream, out).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async { axum::serve(listener, router).await.unwrap() });
    base
}

/// Runs a session that contains all kinds of secrets; returns the secrets.
async fn session(client: &mut Client) -> Vec<String> {
    let login = [
        ("account", ACCOUNT),
        ("passwd", PASSWORD),
        ("enable_syno_token", "yes"),
    ];
    // Before the login, so that the redactor does not know the account yet when it records this call.
    let early = [("query", ACCOUNT)];
    client.call("SYNO.API.Info", "query", &early).await;
    let login = ok(&client.call(AUTH, "login", &login).await);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    client.sid = text(&login["sid"]);
    let description = format!("lun of {ACCOUNT} at 10.77.3.99");
    let quoted = json!(description).to_string();
    let create = [
        ("name", "\"one\""),
        ("description", quoted.as_str()),
        ("type", "BLUN"),
        ("location", "/volume1"),
        ("size", "1073741824"),
        (
            "dev_attribs",
            r#"[{"dev_attrib":"can_snapshot","enable":1}]"#,
        ),
    ];
    let uuid = text(&ok(&client.call(LUN, "create", &create).await)["uuid"]);
    let quoted = json!(uuid).to_string();
    let target = [
        ("name", "t"),
        ("iqn", "iqn.2000-01.com.synology:vault.t-1"),
        ("auth_type", "2"),
        ("user", "chapuser77"),
        ("password", "chap\\\"secret42"),
        ("mutual_user", "mutual88"),
        ("mutual_password", "\"mutual-sec99\""),
    ];
    let target = ok(&client.call(TARGET, "create", &target).await);
    let ids = format!("[{}]", target["target_id"]);
    let map = [("uuid", quoted.as_str()), ("target_ids", &ids)];
    ok(&client.call(LUN, "map_target", &map).await);
    let snapshot = [
        ("src_lun_uuid", quoted.as_str()),
        ("snapshot_name", "\"s\""),
        ("taken_by", "\"us\""),
    ];
    ok(&client.call(LUN, "take_snapshot", &snapshot).await);
    let of = [("src_lun_uuid", quoted.as_str())];
    ok(&client.call(LUN, "list_snapshot", &of).await);
    client.call(LUN, "list", &[]).await;
    client.call(TARGET, "list", &[]).await;
    client.call("SYNO.Core.System", "info", &[]).await;
    let network = [("type", "network")];
    let network = ok(&client.call("SYNO.Core.System", "info", &network).await);
    client
        .call("SYNO.Core.Network.Interface", "list", &[])
        .await;
    client.call(AUTH, "logout", &[]).await;
    let mut secrets = vec![ACCOUNT.to_owned(), PASSWORD.to_owned(), uuid];
    secrets.extend([
        client.sid.clone(),
        text(&login["synotoken"]),
        text(&login["device_id"]),
        text(&network["hostname"]),
        text(&network["nif"][0]["mac"]),
    ]);
    secrets.extend(
        [
            "chapuser77",
            "secret42",
            "mutual88",
            "mutual-sec99",
            "vault",
            "10.77.3.21",
            "10.77.3.99",
            "SIM0000000001",
        ]
        .map(str::to_owned),
    );
    secrets
}

fn forms(secret: &str) -> BTreeSet<String> {
    let escape = |text: &str| {
        let json = json!(text).to_string();
        json[1..json.len() - 1].to_owned()
    };
    let form: String = url::form_urlencoded::byte_serialize(secret.as_bytes()).collect();
    let percent = form.replace('+', "%20");
    let escaped = escape(secret);
    let twice = escape(&escaped);
    [secret.to_owned(), escaped, twice, form, percent].into()
}

#[tokio::test]
async fn every_call_is_forwarded_and_no_secret_is_recorded() {
    let out = tempfile::tempdir().unwrap();
    let nas = DsmSim::builder()
        .account(ACCOUNT, PASSWORD)
        .portals([PORTAL.parse().unwrap()])
        .https(Https::default())
        .start()
        .await
        .unwrap();
    let base = recorder(&nas, out.path()).await;
    let http = client().build().unwrap();
    let mut client = Client {
        http,
        base,
        sid: String::new(),
        replies: Vec::new(),
    };
    let secrets = session(&mut client).await;
    assert_eq!(nas.journal().len(), client.replies.len());

    let mut paths: Vec<_> = std::fs::read_dir(out.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    assert_eq!(paths.len(), client.replies.len());
    let mut all = String::new();
    for (path, reply) in paths.iter().zip(&client.replies) {
        let text = std::fs::read_to_string(path).unwrap();
        let exchange: Exchange = serde_json::from_str(&text).unwrap();
        assert!(!exchange.source.is_empty() && !exchange.note.is_empty());
        assert_eq!(exchange.grade, "R");
        let request = &exchange.request;
        assert!(request.version > 0 && !request.api.is_empty() && !request.method.is_empty());
        assert!(request.params.values().all(Value::is_string), "{text}");
        assert_eq!(compare(&exchange.reply, reply), [], "{}", path.display());
        all += path.to_str().unwrap();
        all += &text;
    }
    for secret in secrets {
        for form in forms(&secret) {
            let at = all.to_lowercase().find(&form.to_lowercase());
            assert!(at.is_none(), "{form}: {}", &all[at.unwrap()..][..60]);
        }
    }
    // The same original has the same replacement, alone and inside other text.
    let (account, address) = ("account-0001", "198.18.0.");
    assert!(
        all.contains(&format!("\"account\": \"{account}\"")),
        "{all}"
    );
    assert!(
        all.contains(&format!("lun of {account} at {address}")),
        "{all}"
    );
    assert!(all.contains(&format!("\"query\": \"{account}\"")), "{all}");
    assert!(all.contains("iqn.2000-01.com.synology:name-0001"));
}

#[tokio::test]
async fn a_directory_that_is_not_empty_is_refused() {
    let out = tempfile::tempdir().unwrap();
    std::fs::write(out.path().join("mine"), "mine").unwrap();
    let upstream = Upstream {
        url: "http://127.0.0.1:1".parse().unwrap(),
        trust: TlsTrust::Platform,
    };
    let error = record::proxy(upstream, out.path()).unwrap_err();
    assert!(error.to_string().contains("is not empty"));
}

/// A fake NAS that always returns the same reply.
async fn fake_nas(reply: Value) -> String {
    let answer = move || {
        let reply = reply.clone();
        async move { axum::Json(reply) }
    };
    let router = axum::Router::new().route("/webapi/{*path}", axum::routing::any(answer));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async { axum::serve(listener, router).await.unwrap() });
    base
}

/// Fields that are not on the allowlist, each with a secret as its value.
const UNKNOWN_FIELDS: [&str; 24] = [
    "enc_passwd",
    "passphrase",
    "chap_password",
    "access_token",
    "refreshToken",
    "private_key",
    "apiKey",
    "client_secret",
    "otpSeed",
    "recovery_code",
    "psk",
    "wifi_pwd",
    "cookie",
    "pin",
    "mfa_code",
    "value",
    "answer",
    "phone",
    "contact",
    "note_to_self",
    "ssid",
    "license",
    "owner",
    "mobile",
];

#[tokio::test]
async fn values_of_unknown_fields_are_not_recorded() {
    let secret = |n: usize| format!("planted-{n:02}-secret");
    let fields = |list: &[&str], at: usize| -> Map<String, Value> {
        let pairs = list.iter().enumerate();
        pairs
            .map(|(n, name)| ((*name).to_owned(), Value::from(secret(at + n))))
            .collect()
    };
    let flat = fields(&UNKNOWN_FIELDS, 0);
    let nested =
        json!({"list": [{"deep": flat}], "secret": {"name": secret(50)}, "serial": 99_887_766});
    let text = json!(flat).to_string();
    let reply = json!({
        "data": {"luns": [flat], "nested": nested, "text": text, "odd_number": 55_443_322, "is_fine": true, "name": "kept"},
        "success": true,
    });
    for (api, full) in [(LUN, true), ("SYNO.Core.User", false)] {
        let out = tempfile::tempdir().unwrap();
        let upstream = Upstream {
            url: fake_nas(reply.clone()).await.parse().unwrap(),
            trust: TlsTrust::Platform,
        };
        let router = record::proxy(upstream, out.path()).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async { axum::serve(listener, router).await.unwrap() });
        let compound =
            json!([{"api": "SYNO.Core.User", "method": "get", "version": 1, "name": secret(60)}]);
        let mut params: Vec<(String, String)> = fields(&UNKNOWN_FIELDS, 100)
            .into_iter()
            .map(|(name, value)| (name, value.as_str().unwrap().to_owned()))
            .collect();
        params.push(("name".to_owned(), "kept".to_owned()));
        params.push(("code".to_owned(), secret(70)));
        params.push(("compound".to_owned(), compound.to_string()));
        let params: Vec<(&str, &str)> = params
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        assert_eq!(
            ask(&base, api, &params).await,
            reply,
            "all of it is forwarded"
        );
        let file = std::fs::read_dir(out.path()).unwrap().next().unwrap();
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        for leak in ["planted", "55443322", "99887766"] {
            let at = text.find(leak);
            assert!(at.is_none(), "{api}: {}", &text[at.unwrap()..][..40]);
        }
        let written: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(written["reply"]["success"], true);
        assert_eq!(written["reply"]["data"]["name"] == "kept", full, "{text}");
        assert_eq!(written["request"]["params"]["name"] == "kept", full);
        if full {
            let differences = compare(&written["reply"], &reply);
            assert_eq!(differences, [], "names and types are kept");
            assert_eq!(written["reply"]["data"]["is_fine"], true);
        }
    }
}

/// Makes a call with these parameters; its reply.
async fn ask(base: &str, api: &str, params: &[(&str, &str)]) -> Value {
    let mut form = vec![("api", api), ("version", "1"), ("method", "get")];
    form.extend_from_slice(params);
    let url = format!("{base}/webapi/entry.cgi");
    let http = client().build().unwrap();
    let reply = http.post(url).form(&form).send().await.unwrap();
    serde_json::from_str(&reply.text().await.unwrap()).unwrap()
}
