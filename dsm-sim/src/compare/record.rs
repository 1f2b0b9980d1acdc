//! `dsm-sim record`: a proxy between a client and a NAS that forwards every call and records the exchanges, redacted, in the
//! format of `proto/dsm`.

use parking_lot::Mutex;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, ensure};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use serde_json::{Map, Value, json};

use super::known::is_api;
use super::redact::Redactor;
use crate::compare::upstream::Upstream;

/// Headers that are not forwarded: hop-by-hop headers, and the one that would make the NAS compress its replies.
const NOT_FORWARDED: [HeaderName; 7] = [
    header::HOST,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::TE,
    header::UPGRADE,
    header::ACCEPT_ENCODING,
];

#[derive(Debug)]
struct Proxy {
    upstream: Upstream,
    http: reqwest::Client,
    recording: Mutex<Recording>,
}

/// The routes of the proxy, for `axum::serve`: everything below `/webapi`. The directory `out` must be empty.
///
/// # Errors
/// The directory cannot be used, or the CA file cannot be read.
pub fn proxy(upstream: Upstream, out: &Path) -> anyhow::Result<Router> {
    std::fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let empty = std::fs::read_dir(out)?.next().is_none();
    ensure!(empty, "{} is not empty", out.display());
    let mut redactor = Redactor::new()?;
    if let Some(host) = upstream.url.host_str() {
        redactor.learn(&[&json!({"hostname": host})])?;
    }
    let recording = Mutex::new(Recording {
        out: out.to_owned(),
        redactor,
        exchanges: Vec::new(),
    });
    let http = upstream.client()?;
    let proxy = Arc::new(Proxy {
        upstream,
        http,
        recording,
    });
    Ok(Router::new()
        .route("/webapi/{*path}", any(forward))
        .with_state(proxy))
}

async fn forward(
    State(proxy): State<Arc<Proxy>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let (status, reply_headers, reply) =
        match proxy.send(method, &uri, &headers, body.clone()).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::error!("the NAS did not answer: {error:#}");
                return StatusCode::BAD_GATEWAY.into_response();
            }
        };
    if let Some(exchange) = Exchange::read(&uri, &headers, &body, &reply) {
        let mut recording = proxy.recording.lock();
        if let Err(error) = recording.add(exchange) {
            tracing::error!("cannot record an exchange: {error:#}");
        }
    } else {
        tracing::warn!(
            "not recorded: {} {status} is not an API call with a JSON reply",
            uri.path()
        );
    }
    let mut response = Response::new(Body::from(reply));
    *response.status_mut() = status;
    *response.headers_mut() = reply_headers;
    response
}

impl Proxy {
    async fn send(
        &self,
        method: Method,
        uri: &Uri,
        headers: &HeaderMap,
        body: Bytes,
    ) -> anyhow::Result<(StatusCode, HeaderMap, Bytes)> {
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let request = self
            .http
            .request(method, self.upstream.at(path))
            .headers(forwarded(headers))
            .body(body);
        let reply = request.send().await?;
        let (status, headers) = (reply.status(), forwarded(reply.headers()));
        Ok((status, headers, reply.bytes().await?))
    }
}

fn forwarded(headers: &HeaderMap) -> HeaderMap {
    let mut headers = headers.clone();
    for name in NOT_FORWARDED {
        headers.remove(name);
    }
    headers.remove("keep-alive");
    headers
}

/// A call and its reply.
#[derive(Debug)]
struct Exchange {
    api: String,
    method: String,
    request: Value,
    reply: Value,
    /// Session ids, tokens and cookies. The redactor learns them; they are never written.
    session: Value,
}

impl Exchange {
    /// `None` if the request is not an API call or the reply is not JSON.
    fn read(uri: &Uri, headers: &HeaderMap, body: &[u8], reply: &[u8]) -> Option<Self> {
        let reply = serde_json::from_slice(reply).ok()?;
        let query = uri.query().unwrap_or_default().as_bytes();
        let pairs = url::form_urlencoded::parse(query).chain(url::form_urlencoded::parse(body));
        let mut params: Map<String, Value> = pairs
            .map(|(name, value)| (name.into_owned(), Value::from(value.into_owned())))
            .collect();
        let mut control = |name: &str| {
            let value = params.remove(name)?;
            Some(value.as_str()?.trim_matches('"').to_owned())
        };
        // The API may also be the last part of the path: entry.cgi/SYNO.API.Auth.
        let api = control("api").or_else(|| uri.path().split('/').nth(3).map(str::to_owned))?;
        let version: u32 = control("version")?.parse().ok()?;
        let method = control("method")?;
        let (sid, token) = (control("_sid"), control("SynoToken"));
        let session = session(sid.as_deref(), token.as_deref(), headers);
        let request = json!({"api": api, "version": version, "method": method, "params": params});
        Some(Self {
            api,
            method,
            request,
            reply,
            session,
        })
    }
}

fn session(sid: Option<&str>, token: Option<&str>, headers: &HeaderMap) -> Value {
    let text = |name: &str| {
        let values = headers.get_all(name).into_iter();
        values
            .filter_map(|value| value.to_str().ok().map(str::to_owned))
            .collect::<Vec<_>>()
    };
    let cookies = text("cookie");
    // Every cookie identifies a session or a device.
    let cookies: Vec<&str> = cookies
        .iter()
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.split_once('=').map(|pair| pair.1.trim()))
        .collect();
    json!({"sid": [sid, cookies], "synotoken": [token, text("x-syno-token")]})
}

#[derive(Debug)]
struct Recording {
    out: PathBuf,
    redactor: Redactor,
    exchanges: Vec<Exchange>,
}

impl Recording {
    /// Records an exchange. If it reveals a new secret, earlier exchanges are rewritten without it.
    fn add(&mut self, exchange: Exchange) -> anyhow::Result<()> {
        let sources = [
            &exchange.session,
            &exchange.request["params"],
            &exchange.reply,
        ];
        let new = self.redactor.learn(&sources)?;
        self.exchanges.push(exchange);
        let first = if new { 0 } else { self.exchanges.len() - 1 };
        for index in first..self.exchanges.len() {
            self.write(index)?;
        }
        Ok(())
    }

    fn write(&mut self, index: usize) -> anyhow::Result<()> {
        let Exchange {
            api,
            method,
            request,
            reply,
            ..
        } = &self.exchanges[index];
        let mut note = format!("Call {}. Session id and token are left out.", index + 1);
        let (mut params, mut reply) = (request["params"].clone(), reply.clone());
        if !is_api(api) {
            note += " So are parameters and data: this API is not on the list of recorded APIs.";
            params = json!({});
            if let Value::Object(reply) = &mut reply {
                reply.remove("data");
            }
        }
        let request = json!({
            "api": self.redactor.text(api),
            "version": request["version"],
            "method": self.redactor.text(method),
            "params": self.redactor.redact(&params),
        });
        let text = serde_json::to_string_pretty(&json!({
            "source": "a recording of a NAS through a proxy",
            "note": note,
            "grade": "R",
            "request": request,
            "reply": self.redactor.redact(&reply),
        }))?;
        let path = self.out.join(file_name(index, &request));
        std::fs::write(&path, text + "\n").with_context(|| path.display().to_string())
    }
}

/// `0007_lun_create.json`. It stays the same on each rewrite, since names of APIs and methods are not secret.
fn file_name(index: usize, request: &Value) -> String {
    let word = |name: &str| {
        let text = request[name].as_str().unwrap_or_default();
        let last = text.rsplit('.').next().unwrap_or_default();
        let word = last
            .chars()
            .filter(|c| c.is_ascii_alphanumeric() || *c == '_');
        word.take(40).collect::<String>().to_ascii_lowercase()
    };
    format!("{:04}_{}_{}.json", index + 1, word("api"), word("method"))
}
