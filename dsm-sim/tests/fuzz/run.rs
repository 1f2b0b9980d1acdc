//! Sends the steps of a fuzz case and checks the replies.

use std::collections::BTreeSet;

use reqwest::header::{ACCEPT_ENCODING, CONTENT_TYPE, COOKIE, HeaderValue};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use url::form_urlencoded::byte_serialize;

use super::step::{Call, Sent, Session, Step};
use crate::common::{AUTH, Sim, client};

/// The only refusal with an effect: behaviour 24 of dsm-web-api.md section 11.
const NAME_AT_LIMIT: u64 = 18_990_068;
/// HTTP statuses of requests that are not calls. DSM itself replies with 200.
const NO_CALL: [u16; 6] = [400, 404, 405, 413, 414, 431];

/// Maximum body size in bytes; axum's default.
const MAX_BODY: usize = 2 << 20;

/// Counters of a run.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Requests.
    pub(crate) sent: u64,
    /// Successful calls.
    pub(crate) succeeded: u64,
    /// Calls refused by the API.
    pub(crate) refused: u64,
    /// Requests that are not calls.
    pub(crate) no_call: u64,
    /// Methods that succeeded.
    pub(crate) reached: BTreeSet<String>,
}

/// A case in progress.
pub(crate) struct Run<'a> {
    sim: &'a Sim,
    /// Opens a new connection for each request, since a request that is refused half-way closes its connection.
    http: reqwest::Client,
    sid: String,
    state: Value,
}

impl<'a> Run<'a> {
    /// Runs a case on a fresh NAS.
    pub(crate) async fn of(sim: &'a Sim, steps: &[Step], tally: &mut Tally) -> Result<(), String> {
        sim.post("/reset", json!({})).await;
        let login = sim.login().await;
        let mut run = Self {
            sim,
            http: client().pool_max_idle_per_host(0).build().unwrap(),
            sid: login["data"]["sid"]
                .as_str()
                .ok_or("no session")?
                .to_owned(),
            state: state(sim).await,
        };
        for step in steps {
            tally.sent += 1;
            let result = match step {
                Step::Call(call, sent) => run.send(call, sent, tally).await,
                Step::Compound(calls, sent) => {
                    let inner: Vec<Value> =
                        calls.iter().map(|call| call.inner(&run.state)).collect();
                    run.send(&compound(&inner), sent, tally).await
                }
                Step::Bytes(bytes) => run.send_raw(bytes).await,
            };
            result.map_err(|why| format!("{why}\nafter {step:?}"))?;
        }
        Ok(())
    }

    async fn send(&mut self, call: &Call, sent: &Sent, tally: &mut Tally) -> Result<(), String> {
        let reply = self.request(call, sent).send().await;
        // The server closes the connection on a body that is too long, and its reply may be lost.
        let reply = match reply {
            Err(_) if sent.tail.len() > MAX_BODY => return self.unchanged().await,
            reply => reply.map_err(|error| format!("no reply: {error:?}"))?,
        };
        let status = reply.status().as_u16();
        let json_type = reply
            .headers()
            .get(CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
        let body = reply
            .bytes()
            .await
            .map_err(|error| format!("no body: {error:?}"))?;
        let after = state(self.sim).await;
        let may_change = if status != 200 {
            tally.no_call += 1;
            if !NO_CALL.contains(&status) {
                return Err(format!("status {status}"));
            }
            false
        } else if sent.http == "HEAD" {
            // The call is carried out, but the reply has no body.
            true
        } else {
            let answer: Value = serde_json::from_slice(&body).map_err(|error| {
                format!("not JSON: {error}: {}", String::from_utf8_lossy(&body))
            })?;
            let may_change = check_reply(&answer, json_type, tally)?;
            if answer["success"] == true {
                tally.reached.insert(call.method.clone());
            }
            may_change
        };
        if !may_change && after != self.state {
            return Err(format!(
                "refused, but changed the state\nbefore {}\nafter  {after}\nanswer {}",
                self.state,
                String::from_utf8_lossy(&body)
            ));
        }
        self.state = after;
        // Log in again after a logout, or the rest of the case would only be refused.
        if call.api == AUTH
            && call.method == "logout"
            && let Some(sid) = self.sim.login().await["data"]["sid"].as_str()
        {
            sid.clone_into(&mut self.sid);
        }
        Ok(())
    }

    fn request(&self, call: &Call, sent: &Sent) -> reqwest::RequestBuilder {
        let control = |text: &str| {
            if sent.quoted {
                json!(text).to_string()
            } else {
                text.to_owned()
            }
        };
        let mut pairs: Vec<(String, Vec<u8>)> = [
            ("api", &call.api),
            ("version", &call.version),
            ("method", &call.method),
        ]
        .into_iter()
        .filter(|(_, text)| !text.is_empty())
        .map(|(name, text)| (name.to_owned(), control(text).into_bytes()))
        .collect();
        pairs.extend(
            call.params
                .iter()
                .map(|(name, wire)| (name.clone(), wire.bytes(&self.state))),
        );
        let sid = match sent.session {
            Session::Wrong => "wrong",
            Session::Cookie | Session::Param | Session::Nowhere => &self.sid,
        };
        if matches!(sent.session, Session::Param | Session::Wrong) {
            pairs.push(("_sid".to_owned(), sid.into()));
        }
        let in_query = |at: usize| sent.http == "GET" || sent.in_query >> (at % 32) & 1 == 1;
        let encode = |wanted: bool| {
            let chosen = pairs.iter().enumerate().filter(|(at, (_, value))| {
                // Servers limit the length of the request line.
                (in_query(*at) && value.len() < 4_000) == wanted
            });
            let pair = |(_, (name, value)): (usize, &(String, Vec<u8>))| {
                let name: String = byte_serialize(name.as_bytes()).collect();
                format!("{name}={}", byte_serialize(value).collect::<String>())
            };
            chosen.map(pair).collect::<Vec<_>>().join("&")
        };
        let url = format!(
            "{}/webapi/{}?{}",
            self.sim.nas.api(),
            sent.path,
            encode(true)
        );
        let method = reqwest::Method::from_bytes(sent.http.as_bytes()).unwrap();
        let body = [encode(false).as_bytes(), &sent.tail].concat();
        let mut request = self.http.request(method, url).body(body);
        if let Some(kind) = sent.kind {
            request = request.header(CONTENT_TYPE, kind);
        }
        if matches!(sent.session, Session::Cookie) {
            request = request.header(COOKIE, format!("stay_login=1; id={sid}"));
        }
        for (name, value) in &sent.headers {
            // These two headers change the HTTP exchange itself.
            if *name != "expect" && *name != ACCEPT_ENCODING.as_str() {
                request = request.header(*name, HeaderValue::from_bytes(value).unwrap());
            }
        }
        request
    }

    /// Sends raw bytes: the server must survive, and nothing must change.
    async fn send_raw(&mut self, bytes: &[u8]) -> Result<(), String> {
        let address = self.sim.nas.api().trim_start_matches("http://");
        let mut stream = tokio::net::TcpStream::connect(address)
            .await
            .map_err(|error| error.to_string())?;
        // The server may close the connection before it has read everything; only its reply matters.
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        let mut reply = Vec::new();
        let _ = stream.read_to_end(&mut reply).await;
        let text = String::from_utf8_lossy(&reply);
        // 505 is "HTTP Version Not Supported", which is correct.
        if text.starts_with("HTTP/1.1 5") && !text.starts_with("HTTP/1.1 505") {
            return Err(text.into_owned());
        }
        self.unchanged().await
    }

    async fn unchanged(&self) -> Result<(), String> {
        let after = state(self.sim).await;
        if after != self.state {
            return Err(format!(
                "an invalid request changed the state\nbefore {}\nafter  {after}",
                self.state
            ));
        }
        Ok(())
    }
}

/// Checks a reply. Returns whether its call may have changed something.
fn check_reply(answer: &Value, json_type: bool, tally: &mut Tally) -> Result<bool, String> {
    if !json_type {
        return Err("JSON without its content type".to_owned());
    }
    match answer["success"].as_bool() {
        Some(true) => {
            tally.succeeded += 1;
            Ok(true)
        }
        Some(false) => {
            tally.refused += 1;
            let code = answer["error"]["code"]
                .as_u64()
                .ok_or("a refusal without a code")?;
            Ok(code == NAME_AT_LIMIT)
        }
        None => Err(format!("no envelope: {answer}")),
    }
}

fn compound(inner: &[Value]) -> Call {
    use super::wire::Wire;
    Call {
        api: "SYNO.Entry.Request".to_owned(),
        version: "2".to_owned(),
        method: "request".to_owned(),
        params: vec![("compound".to_owned(), Wire::Json(json!(inner)))],
    }
}

/// The persistent state without the number of sessions: a login is not a change.
async fn state(sim: &Sim) -> Value {
    let mut state = sim.state().await;
    state.as_object_mut().unwrap().remove("sessions");
    state
}
