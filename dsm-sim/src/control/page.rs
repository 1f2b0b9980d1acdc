//! The web page of the control port: shows the objects of the NAS and the journal. It is rendered on the server; a small script
//! refreshes its parts. The NAS is not locked while a page is rendered.
//!
//! The templates are askama's: plain HTML, checked at compile time. Every value is escaped, except for the two parts, which are
//! templates themselves.

use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;

use askama::Template;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;

use crate::nas::api::info;
use crate::server::journal::filter::{self, Filter};
use crate::server::{Server, run_blocking};
use disk_usage::Usage;
use snapshot::Wanted;
use template::{Lines, Overview};

mod disk_usage;
mod format;
mod snapshot;
mod template;

/// Maximum number of calls on the page. The filter searches all entries of the journal.
const MAX_LINES: usize = 300;

/// Security headers: only this server's scripts and styles are loaded, whatever gets into the page, and it cannot be framed.
const HEADERS: [(HeaderName, &str); 5] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; connect-src 'self'; img-src data:; script-src 'self'; style-src 'self'; base-uri 'none'; \
         form-action 'self'; frame-ancestors 'none'",
    ),
    (header::CACHE_CONTROL, "no-store"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::VARY, "Accept"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
];

/// Shared state of the routes.
#[derive(Debug)]
struct Page {
    server: Arc<Server>,
    /// The list of endpoints, for clients other than browsers.
    endpoints: &'static str,
    usage: Mutex<Usage>,
}

type Shared = State<Arc<Page>>;

/// The routes of the page. A client that does not accept HTML gets the list of endpoints, as JSON.
pub(crate) fn router(server: Arc<Server>, endpoints: &'static str) -> Router {
    let page = Page {
        server,
        endpoints,
        usage: Mutex::default(),
    };
    Router::new()
        .route("/", get(front))
        .route("/page/overview", get(overview))
        .route("/page/journal", get(journal))
        .route(
            "/page.css",
            get(|| async { file("text/css", include_str!("page/page.css")) }),
        )
        .route(
            "/page.js",
            get(|| async { file("text/javascript", include_str!("page/page.js")) }),
        )
        .with_state(Arc::new(page))
}

#[derive(Template)]
#[template(path = "page.html")]
struct Front {
    wanted: Wanted,
    filter: Filter,
    apis: Vec<(&'static str, &'static [&'static str])>,
    overview: Overview,
    lines: Lines,
}

impl Front {
    /// The methods of all APIs, without duplicates.
    fn methods(&self) -> BTreeSet<&'static str> {
        let all = self.apis.iter().flat_map(|api| api.1);
        all.copied().collect()
    }
}

async fn front(
    State(page): Shared,
    headers: HeaderMap,
    Query(wanted): Query<Wanted>,
    Query(filter): Query<Filter>,
) -> Response {
    if !wants_html(&headers) {
        return Json(json!({"knobs": page.endpoints})).into_response();
    }
    let lines = page.lines(&filter, 0);
    let overview = page.overview(&wanted);
    html(&Front {
        wanted,
        filter,
        apis: info::simulated(page.server.nas().nas.config.generation).collect(),
        overview,
        lines,
    })
}

async fn overview(State(page): Shared, Query(wanted): Query<Wanted>) -> Response {
    html(&page.overview(&wanted))
}

#[derive(serde::Deserialize)]
struct Since {
    #[serde(default)]
    since: u64,
}

async fn journal(
    State(page): Shared,
    Query(Since { since }): Query<Since>,
    Query(filter): Query<Filter>,
) -> Response {
    html(&page.lines(&filter, since))
}

impl Page {
    fn overview(&self, wanted: &Wanted) -> Overview {
        // This reads files and runs programs that list sessions, so it must not block other requests.
        let data = run_blocking(|| {
            let mut usage = self.usage.lock();
            snapshot::take(&self.server, &mut usage, wanted)
        });
        let faults = self.server.faults().rules().to_vec();
        Overview::new(data, faults, self.server.latency())
    }

    fn lines(&self, filter: &Filter, since: u64) -> Lines {
        let (next, entries) = filter::newest(|| self.server.journal(), filter, since, MAX_LINES);
        Lines::new(next, entries)
    }
}

fn wants_html(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).into_iter();
    accepted
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.contains("text/html"))
}

fn html(template: &impl Template) -> Response {
    match template.render() {
        Ok(text) => (with_headers(), Html(text)).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

fn file(kind: &'static str, text: &'static str) -> Response {
    let mut headers = with_headers();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    (headers, text).into_response()
}

fn with_headers() -> HeaderMap {
    HEADERS
        .into_iter()
        .map(|(name, value)| (name, HeaderValue::from_static(value)))
        .collect()
}
