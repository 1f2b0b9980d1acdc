//! Protects the control port, which has no login, from web pages: CSRF and DNS rebinding. Browsers let any page send forms to
//! any host, but with an `Origin` header, and they send a CORS preflight before JSON or a DELETE. With DNS rebinding a page may
//! read replies, too, but its requests carry its own name in `Host`, not an address.

use std::net::IpAddr;

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::uri::{Authority, Uri};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Problem;

/// Accepted host names, in addition to IP addresses and localhost.
pub(super) type Names = Arc<[String]>;

/// Middleware: refuses requests that may come from a foreign web page.
pub(super) async fn check_origin(
    State(names): State<Names>,
    request: Request,
    next: Next,
) -> Response {
    let host = requested_host(&request);
    match decide(request.method(), request.headers(), host.as_deref(), &names) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

/// The host that a request is for: the `Host` header, or else the authority of the URI.
fn requested_host(request: &Request) -> Option<String> {
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
    let trusted = |host: &str| {
        host.parse::<Authority>()
            .is_ok_and(|host| is_trusted_host(&host, names))
    };
    // Browsers always send it.
    if let Some(host) = host
        && !trusted(host)
    {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            format!(
                "host {host} is not allowed: use the IP address or localhost, or start dsm-sim with --control-name {host}"
            ),
        ));
    }
    if method.is_safe() {
        return Ok(());
    }
    if let Some(origin) = headers.get(header::ORIGIN)
        && !is_same_origin(origin, host)
    {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            "the request comes from a web page of another origin",
        ));
    }
    // A DELETE has no body, hence no type. A browser sends a CORS preflight before it, which is never answered.
    let kind = headers.get(header::CONTENT_TYPE);
    if kind.map_or(method != Method::DELETE, |kind| !is_json(kind)) {
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "set Content-Type: application/json, which a form of a web page cannot",
        ));
    }
    Ok(())
}

/// Whether this origin is the host that the request is for.
fn is_same_origin(origin: &HeaderValue, host: Option<&str>) -> bool {
    let origin = origin
        .to_str()
        .ok()
        .and_then(|text| text.parse::<Uri>().ok());
    let authority = origin.as_ref().and_then(Uri::authority);
    authority
        .zip(host)
        .is_some_and(|(authority, host)| authority.as_str().eq_ignore_ascii_case(host))
}

/// Only these hosts are safe from DNS rebinding: IP addresses, localhost and the configured names.
fn is_trusted_host(host: &Authority, names: &[String]) -> bool {
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
    fn requests_for_unknown_host_names_are_refused() {
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
        // An HTTP/1.0 client without Host; not a browser.
        check(&Method::GET, &[], None);
    }

    #[test]
    fn forms_and_other_origins_are_refused() {
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
            // DNS rebinding.
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
