//! HTTPS: generated, kept, given and invalid certificates; lost replies; clients without a TLS handshake.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::{LUN, Sim, client, code, ok};
use dsm_sim::{Builder, Certificate, DsmSim, Https};
use reqwest::{Client, Response};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn self_signed(dir: &Path, names: &[&str]) -> Builder {
    with(Certificate::SelfSigned {
        dir: Some(dir.to_owned()),
        names: names.iter().copied().map(str::to_owned).collect(),
    })
}

fn with(certificate: Certificate) -> Builder {
    DsmSim::builder().https(Https {
        certificate,
        ..Https::default()
    })
}

/// A client that trusts only this CA.
fn trusting(ca: &Path) -> Client {
    let ca = reqwest::Certificate::from_pem(&fs::read(ca).unwrap()).unwrap();
    client().tls_certs_only([ca]).build().unwrap()
}

async fn list(http: &Client, base: &str, sid: &str) -> reqwest::Result<Response> {
    let form = [
        ("api", LUN),
        ("version", "1"),
        ("method", "list"),
        ("_sid", sid),
    ];
    let url = format!("{base}/webapi/entry.cgi");
    http.post(url).form(&form).send().await
}

async fn json(response: Response) -> Value {
    serde_json::from_str(&response.text().await.unwrap()).unwrap()
}

fn https(nas: &DsmSim) -> &str {
    nas.https().unwrap()
}

#[tokio::test]
async fn https_and_http_serve_the_same_nas() {
    let dir = tempfile::tempdir().unwrap();
    let sim = Sim::with(self_signed(dir.path(), &["nas.test"])).await;
    let ca = sim.nas.ca_file().unwrap();
    assert_eq!(ca, dir.path().join("ca.pem"));
    let http = trusting(ca);
    sim.lun("one", "BLUN", 1 << 30).await;

    let secure = list(&http, https(&sim.nas), &sim.sid).await.unwrap();
    assert!(secure.headers().contains_key("strict-transport-security"));
    let plain = list(&http, sim.nas.api(), &sim.sid).await.unwrap();
    assert!(!plain.headers().contains_key("strict-transport-security"));
    let (secure, plain) = (json(secure).await, json(plain).await);
    assert_eq!(ok(&secure)["luns"][0]["name"], "one");
    assert_eq!(secure, plain);

    // The certificate is valid for each of its names, but only for clients that trust the CA.
    let at: url::Url = https(&sim.nas).parse().unwrap();
    let at = SocketAddr::from(([127, 0, 0, 1], at.port().unwrap()));
    for name in ["localhost", "nas.test"] {
        let client_of_name = client()
            .tls_certs_only([reqwest::Certificate::from_pem(&fs::read(ca).unwrap()).unwrap()])
            .resolve(name, at)
            .build()
            .unwrap();
        let base = format!("https://{name}:{}", at.port());
        assert_eq!(
            code(&json(list(&client_of_name, &base, &sim.sid).await.unwrap()).await),
            0,
            "{name}"
        );
    }
    let untrusting = client().tls_certs_only([]).build().unwrap();
    assert!(list(&untrusting, https(&sim.nas), &sim.sid).await.is_err());
}

#[tokio::test]
async fn a_lost_reply_also_aborts_a_tls_connection() {
    let dir = tempfile::tempdir().unwrap();
    let sim = Sim::with(self_signed(dir.path(), &[])).await;
    let http = trusting(&dir.path().join("ca.pem"));
    let form = [
        ("api", LUN),
        ("version", "1"),
        ("method", "create"),
        ("name", "lost"),
        ("type", "BLUN"),
        ("location", "/volume1"),
        ("size", "1073741824"),
        ("_sid", &sim.sid),
    ];
    sim.fault(LUN, "create", json!({"kind": "lose_reply"}))
        .await;
    let url = format!("{}/webapi/entry.cgi", https(&sim.nas));
    let lost = http.post(url).form(&form).send().await.unwrap_err();
    assert!(
        lost.is_request() && !lost.is_timeout() && !lost.is_connect(),
        "{lost:?}"
    );
    let luns = json(list(&http, https(&sim.nas), &sim.sid).await.unwrap()).await;
    assert_eq!(ok(&luns)["luns"][0]["name"], "lost", "the call took effect");
}

#[tokio::test]
async fn clients_without_a_handshake_block_no_other_client() {
    let dir = tempfile::tempdir().unwrap();
    let sim = Sim::with(self_signed(dir.path(), &[])).await;
    let http = trusting(&dir.path().join("ca.pem"));
    let at = https(&sim.nas).trim_start_matches("https://").to_owned();

    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(TcpStream::connect(&at).await.unwrap());
    }
    // The start of a handshake that is never continued.
    silent[0].write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap();
    let mut plain_http = TcpStream::connect(&at).await.unwrap();
    plain_http
        .write_all(b"GET /webapi/query.cgi HTTP/1.1\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    // The end of the connection may be an error or EOF.
    let _ = plain_http.read_to_end(&mut answer).await;
    assert!(
        !String::from_utf8_lossy(&answer).contains("HTTP"),
        "{answer:?}"
    );
    drop(TcpStream::connect(&at).await.unwrap());

    for _ in 0..3 {
        let luns = json(list(&http, https(&sim.nas), &sim.sid).await.unwrap()).await;
        assert_eq!(code(&luns), 0);
    }
    for mut silent in silent {
        let still = silent.read_u8();
        let soon = std::time::Duration::from_millis(1);
        assert!(
            tokio::time::timeout(soon, still).await.is_err(),
            "the connection is still open"
        );
    }
}

#[tokio::test]
async fn the_certificate_is_generated_once() {
    let dir = tempfile::tempdir().unwrap();
    let tls = dir.path().join("deep/tls");
    let read = || ["ca.pem", "cert.pem", "key.pem"].map(|name| fs::read(tls.join(name)).unwrap());
    drop(
        self_signed(&tls, &["nas.test", "192.0.2.7"])
            .start()
            .await
            .unwrap(),
    );
    let first = read();
    let mode = fs::metadata(tls.join("key.pem"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600, "{mode:o}");
    assert_eq!(fs::read_dir(&tls).unwrap().count(), 3);

    let sim = Sim::with(self_signed(&tls, &["nas.test"])).await;
    assert_eq!(read(), first);
    let http = trusting(&tls.join("ca.pem"));
    list(&http, https(&sim.nas), "").await.unwrap();
    drop(sim);

    // Files given by the user: here those that were just generated.
    let certificate = Certificate::Files {
        cert: tls.join("cert.pem"),
        key: tls.join("key.pem"),
    };
    let given = with(certificate).start().await.unwrap();
    assert_eq!(given.ca_file(), None);
    list(&http, https(&given), "").await.unwrap();
}

/// An error message with all its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}

#[tokio::test]
async fn an_invalid_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for (folder, names) in [("a", &["nas.test"][..]), ("b", &[])] {
        drop(self_signed(&at(folder), names).start().await.unwrap());
    }
    fs::write(at("text.pem"), "no certificate").unwrap();
    fs::write(at("torn.pem"), "-----BEGIN PRIVATE KEY-----\nMIGH\n").unwrap();
    let files = |cert: &str, key: &str| {
        with(Certificate::Files {
            cert: at(cert),
            key: at(key),
        })
    };
    let assert_error = async |nas: Builder, words: &[&str]| {
        let error = chain(&nas.start().await.unwrap_err());
        for word in words {
            assert!(error.contains(word), "{word} is not in: {error}");
        }
    };
    assert_error(
        files("a/cert.pem", "none.pem"),
        &["none.pem", "No such file"],
    )
    .await;
    assert_error(
        files("none.pem", "a/key.pem"),
        &["none.pem", "No such file"],
    )
    .await;
    assert_error(
        files("text.pem", "a/key.pem"),
        &["text.pem holds no certificate"],
    )
    .await;
    assert_error(
        files("a/cert.pem", "torn.pem"),
        &["torn.pem holds no private key"],
    )
    .await;
    assert_error(
        files("a/cert.pem", "a/cert.pem"),
        &["cert.pem holds no private key"],
    )
    .await;
    assert_error(
        files("a/cert.pem", "b/key.pem"),
        &["a/cert.pem", "b/key.pem"],
    )
    .await;
    assert_error(
        self_signed(&at("b"), &["nas.test"]),
        &["b/cert.pem is not for nas.test", "remove"],
    )
    .await;
    assert_error(
        self_signed(&at("c"), &["no name"]),
        &["\"no name\" is neither"],
    )
    .await;
    assert!(!at("c").exists(), "nothing is created for an invalid name");
    assert_error(self_signed(&at("text.pem"), &[]), &["text.pem"]).await;
    fs::remove_file(at("a/key.pem")).unwrap();
    assert_error(self_signed(&at("a"), &[]), &["a/key.pem"]).await;
    fs::remove_file(at("b/ca.pem")).unwrap();
    assert_error(self_signed(&at("b"), &[]), &["b/ca.pem"]).await;
}
