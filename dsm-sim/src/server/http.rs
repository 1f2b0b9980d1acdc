//! HTTP routes of the Web API: decodes requests into calls and encodes outcomes as HTTP responses. Source: dsm-web-api.md 1.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, Path, RawQuery, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::map_response;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use futures::stream;

use crate::nas::call::{Call, Caller};
use crate::nas::code::{Code, Refusal};
use crate::nas::params::{Params, unquoted};
use crate::server::listener::Peer;
use crate::server::{Outcome, Request, Server};

/// Recorded by democratic #374 and #497 and home-assistant/core #103627. `Transfer-Encoding: chunked` comes from the
/// body being a stream.
const HEADERS: [(&str, &str); 10] = [
    (
        "cache-control",
        "max-age=0, no-cache, no-store, must-revalidate",
    ),
    ("connection", "keep-alive"),
    ("content-type", "application/json; charset=\"UTF-8\""),
    ("expires", "0"),
    ("keep-alive", "timeout=20"),
    ("pragma", "no-cache"),
    ("server", "nginx"),
    ("vary", "Accept-Encoding"),
    ("x-content-type-options", "nosniff"),
    ("x-xss-protection", "1; mode=block"),
];
/// The P3P header (compact privacy policy) of a login's response.
// ASSUMED: its value; only the header's name was recorded.
const P3P: &str = "CP=\"IDC DSP COR ADM DEVi TAIi PSA PSD IVAi IVDi CONi HIS OUR IND CNT\"";

/// The HSTS header of HTTPS responses.
// ASSUMED: half a year; only the header's name was recorded.
const HSTS: &str = "max-age=15768000";

/// The routes of the Web API.
pub(crate) fn router(server: Arc<Server>) -> Router {
    Router::new()
        .route("/webapi/{cgi}", get(plain).post(plain))
        .route("/webapi/{cgi}/{api}", get(named).post(named))
        .fallback(|| async { page(StatusCode::NOT_FOUND) })
        .with_state(server)
}

/// The same routes with the HSTS header, for HTTPS.
pub(crate) fn secured(router: Router) -> Router {
    router.layer(map_response(async |mut response: Response| {
        response.headers_mut().insert(
            header::STRICT_TRANSPORT_SECURITY,
            HeaderValue::from_static(HSTS),
        );
        response
    }))
}

async fn plain(
    State(server): State<Arc<Server>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Path(cgi): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    respond(server, &peer, &cgi, None, query.as_deref(), &headers, &body).await
}

async fn named(
    State(server): State<Arc<Server>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Path((cgi, api)): Path<(String, String)>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    respond(
        server,
        &peer,
        &cgi,
        Some(api),
        query.as_deref(),
        &headers,
        &body,
    )
    .await
}

async fn respond(
    server: Arc<Server>,
    peer: &Peer,
    cgi: &str,
    api: Option<String>,
    query: Option<&str>,
    headers: &HeaderMap,
    body: &Bytes,
) -> Response {
    // The old paths still work on DSM 7: dsm-web-api.md 2.
    if !matches!(
        cgi,
        "entry.cgi" | "query.cgi" | "auth.cgi" | "encryption.cgi"
    ) {
        return page(StatusCode::NOT_FOUND);
    }
    let received = query.map_or(0, str::len) + body.len();
    let call = decode(peer, cgi, api, query, headers, body);
    let outcome = Arc::clone(&server).serve(Request {
        call,
        client: peer.address.to_string(),
    });
    match outcome.await {
        Outcome::Json { body, cookie } => {
            let text = body.to_string();
            server.journal().add_traffic(received, text.len());
            json(text, cookie)
        }
        Outcome::Garbled(body) => {
            let mut text = body.to_string().into_bytes();
            text.truncate(text.len() / 2);
            json(text, None)
        }
        Outcome::Page(status) => {
            page(StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR))
        }
        Outcome::Cut => {
            peer.abort();
            StatusCode::NO_CONTENT.into_response()
        }
    }
}

/// Decodes the call in a request. Parameters may be in the query, in the form body, or in both.
fn decode(
    peer: &Peer,
    cgi: &str,
    path_api: Option<String>,
    query: Option<&str>,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Call, Refusal> {
    let mut form: Params = pairs(body).collect();
    let mut params: Params = pairs(query.unwrap_or_default().as_bytes()).collect();
    let caller = Caller {
        client: peer.address.ip(),
        query_sid: params.raw("_sid").map(unquoted),
        form_sid: form.take("_sid").map(|sid| unquoted(&sid)),
        cookie_sid: cookie(headers, "id"),
        token: None,
    };
    if caller.form_sid.is_some() && caller.query_sid.is_none() {
        // The journal shows it as a parameter, wherever it was sent.
        params.put("_sid", "");
    }
    // ASSUMED: if query and body disagree, the body wins.
    for (name, value) in form.iter() {
        params.put(name, value);
    }
    let in_header = headers
        .get("x-syno-token")
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);
    let caller = Caller {
        token: params.raw("SynoToken").map(unquoted).or(in_header),
        ..caller
    };
    let control = |params: &mut Params, name: &str| {
        params
            .take(name)
            .map(|raw| unquoted(&raw))
            .filter(|text| !text.is_empty())
    };
    let missing = |name: &str| Code::MissingControl.because(format!("{name} is missing"));
    let api = control(&mut params, "api")
        .or(path_api)
        .ok_or_else(|| missing("api"))?;
    let version = control(&mut params, "version").ok_or_else(|| missing("version"))?;
    let method = control(&mut params, "method").ok_or_else(|| missing("method"))?;
    let version = version
        .parse()
        .map_err(|_| Code::BadVersion.because(format!("version={version} is not a number")))?;
    // ASSUMED: each old path serves only the API that it is named after.
    let served = match cgi {
        "query.cgi" => api == "SYNO.API.Info",
        "auth.cgi" => api == "SYNO.API.Auth",
        "encryption.cgi" => api == "SYNO.API.Encryption",
        _ => true,
    };
    if !served {
        return Err(Code::NoSuchApi.because(format!("{api} is not at {cgi}")));
    }
    Ok(Call {
        api,
        method,
        version,
        params,
        caller,
    })
}

/// The pairs of a query or form body. The Content-Type is ignored: clients send none, or a wrong one.
fn pairs(text: &[u8]) -> impl Iterator<Item = (String, String)> {
    url::form_urlencoded::parse(text).map(|(name, value)| (name.into_owned(), value.into_owned()))
}

fn cookie(headers: &HeaderMap, name: &str) -> Option<String> {
    let cookies = headers
        .get_all(header::COOKIE)
        .into_iter()
        .filter_map(|value| value.to_str().ok());
    let mut pairs = cookies
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='));
    pairs
        .find(|pair| pair.0 == name)
        .map(|pair| pair.1.to_owned())
}

fn json(text: impl Into<Bytes>, cookie: Option<String>) -> Response {
    let body = Body::from_stream(stream::iter([Ok::<_, std::convert::Infallible>(
        text.into(),
    )]));
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        );
    }
    if let Some(cookie) = cookie.and_then(|cookie| HeaderValue::try_from(cookie).ok()) {
        headers.insert(header::SET_COOKIE, cookie);
        headers.insert(
            HeaderName::from_static("p3p"),
            HeaderValue::from_static(P3P),
        );
    }
    response
}

fn page(status: StatusCode) -> Response {
    let text = format!(
        "<html><head><title>{status}</title></head><body><h1>{status}</h1></body></html>\n"
    );
    (status, [(header::SERVER, "nginx")], Html(text)).into_response()
}
