//! Who may turn knobs, and look at them. The control port has no login, so a web page that somebody has open must not reach it:
//! browsers let any page send forms anywhere, but say where they come from, and ask before they send JSON or a DELETE. A page
//! whose own name was made to lead here after it was loaded may read, too, as far as its browser knows; but its requests are
//! for that name, and not for an address.

use std::net::IpAddr;

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::uri::{Authority, Uri};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Problem;

/// The names, besides addresses and localhost, under which the port may be asked.
pub(super) type Names = Arc<[String]>;

/// Refuses what may come from a web page of somebody else.
pub(super) async fn check_origin(
    State(names): State<Names>,
    request: Request,
    next: Next,
) -> Response {
    let host = asked(&request);
    match decide(request.method(), request.headers(), host.as_deref(), &names) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

/// Which host a request is for, as far as it says.
fn asked(request: &Request) -> Option<String> {
    let header = request.headers().get(header::HOST);
    let header = header.map(|host| String::from_utf8_lossy(host.as_bytes()).into_owned());
    header.or_else(|| request.uri().authority().map(ToString::to_string))
}

fn decide(
    method: &Method,
    headers: &HeaderMap,
    host: Option<&str>,
    names: &[String],
) -> Result<(), Problem> {
    let fixed = |host: &str| {
        host.parse::<Authority>()
            .is_ok_and(|host| is_fixed(&host, names))
    };
    // Browsers always say it.
    if let Some(host) = host
        && !fixed(host)
    {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            format!(
                "this is not {host}: ask for its address or for localhost, or start it with --control-name {host}"
            ),
        ));
    }
    if method.is_safe() {
        return Ok(());
    }
    if let Some(origin) = headers.get(header::ORIGIN)
        && !is_own(origin, host)
    {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            "this comes from a web page of another origin",
        ));
    }
    // A DELETE has no body to describe; no page sends one to another host without asking first, and nobody answers.
    let kind = headers.get(header::CONTENT_TYPE);
    if kind.map_or(method != Method::DELETE, |kind| !is_json(kind)) {
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "say Content-Type: application/json, which no form of a web page can",
        ));
    }
    Ok(())
}

/// Whether a page of this origin was served by the host that the request is for.
fn is_own(origin: &HeaderValue, host: Option<&str>) -> bool {
    let origin = origin
        .to_str()
        .ok()
        .and_then(|text| text.parse::<Uri>().ok());
    let authority = origin.as_ref().and_then(Uri::authority);
    authority
        .zip(host)
        .is_some_and(|(authority, host)| authority.as_str().eq_ignore_ascii_case(host))
}

/// A name of somebody else's may be made to lead here after its page was loaded; an address cannot.
fn is_fixed(host: &Authority, names: &[String]) -> bool {
    let name = host.host().trim_matches(['[', ']']);
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok()
        || names.iter().any(|own| own.eq_ignore_ascii_case(name))
}

fn is_json(kind: &HeaderValue) -> bool {
    let essence = kind.to_str().ok().and_then(|text| text.split(';').next());
    essence.is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(method: &Method, headers: &[(&'static str, &'static str)], want: Option<u16>) {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, HeaderValue::from_static(value));
        }
        let host = map.get("host").and_then(|host| host.to_str().ok());
        let refused = decide(method, &map, host, &["nas.lab".to_owned()]).err();
        assert_eq!(
            refused.map(|problem| problem.into_response().status().as_u16()),
            want,
            "{method} {headers:?}"
        );
    }

    #[test]
    fn nothing_is_read_under_a_name_that_somebody_else_may_point_here() {
        for (host, want) in [
            ("127.0.0.1:5080", None),
            ("[::1]:5080", None),
            ("LocalHost", None),
            ("nas.lab:5080", None),
            ("evil.example:5080", Some(403)),
            ("localhost.evil.example", Some(403)),
            ("127.0.0.1.evil.example:5080", Some(403)),
            ("", Some(403)),
        ] {
            for method in [Method::GET, Method::HEAD] {
                check(&method, &[("host", host)], want);
            }
        }
        // A program of old; no browser.
        check(&Method::GET, &[], None);
    }

    #[test]
    fn forms_and_strangers_are_turned_away() {
        let json = ("content-type", "application/json");
        let host = ("host", "127.0.0.1:5080");
        check(&Method::GET, &[("origin", "http://evil.example")], None);
        check(&Method::POST, &[json], None);
        check(
            &Method::PATCH,
            &[("content-type", "Application/JSON; charset=utf-8")],
            None,
        );
        for kind in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=application/json",
            "",
        ] {
            check(&Method::POST, &[("content-type", kind)], Some(415));
            check(&Method::DELETE, &[("content-type", kind)], Some(415));
        }
        check(&Method::POST, &[], Some(415));
        check(&Method::PATCH, &[], Some(415));
        check(&Method::DELETE, &[], None);
        let own = ("origin", "http://127.0.0.1:5080");
        check(&Method::POST, &[json, host, own], None);
        for origin in [
            "http://evil.example",
            "http://127.0.0.1:5081",
            "http://127.0.0.1",
            "null",
            "",
        ] {
            check(&Method::POST, &[json, host, ("origin", origin)], Some(403));
            check(&Method::DELETE, &[host, ("origin", origin)], Some(403));
        }
        check(&Method::POST, &[json, own], Some(403));
        for (host, origin, want) in [
            ("localhost:5080", "http://localhost:5080", None),
            ("[::1]:5080", "http://[::1]:5080", None),
            // A name that was made to lead here after its page was loaded.
            ("evil.example:5080", "http://evil.example:5080", Some(403)),
        ] {
            check(
                &Method::POST,
                &[json, ("host", host), ("origin", origin)],
                want,
            );
        }
    }
}
