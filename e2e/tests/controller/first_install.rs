//! First installs, each from a common mistake to a working volume: the driver's error says what to do, and no pod or
//! claim has to be deleted.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::harness::nas::{PASSWORD, Settings};
use e2e::harness::test_cluster::{Plan, TestCluster};
use e2e::harness::test_volume::{Content, TestVolume};
use e2e::testbed::TestBed as _;
use e2e::testbed::memory::run;
use e2e::{GIB, MIB};
use futures::future::join_all;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};
use tonic::Code;

use super::common::{AUTH, Csi, NODE_A, refused};

/// Retries as a CO does until its volume is created, formatted, mounted and expanded; returns how long that took.
fn recovers_after(
    mistake: serde_json::Value,
    words: &[&str],
    remedy: &serde_json::Value,
) -> Result<Duration> {
    run(2, async |bed| {
        bed.post_control("/sessions/expire", json!({})).await?;
        bed.post_control("/accounts", mistake).await?;
        let clients = bed.clients(0, 0);
        let try_create =
            async || TestVolume::create(&clients, "first", GIB, Content::Fs("ext4")).await;
        for _ in 0..5 {
            refused(try_create().await, Code::Unavailable, words);
            // sleep: as a provisioner does between two tries; time is simulated.
            sleep(Duration::from_secs(10)).await;
        }
        bed.post_control("/accounts", remedy.clone()).await?;
        let fixed_at = Instant::now();
        let mut volume = loop {
            match try_create().await {
                Ok(volume) => break volume,
                Err(status) => ensure!(
                    fixed_at.elapsed() < Duration::from_secs(3_600),
                    "it does not recover: {}",
                    status.message()
                ),
            }
            // sleep: as above.
            sleep(Duration::from_secs(10)).await;
        };
        let took = fixed_at.elapsed();
        volume.attach(&clients).await?;
        volume.expand_lun(&clients, 2 * GIB).await?;
        volume.expand_on_node(&clients, 2 * GIB).await?;
        volume.detach(&clients).await?;
        volume.delete(&clients).await?;
        Ok(took)
    })
}

#[test]
fn an_account_without_rights_is_put_into_administrators() -> Result<()> {
    let account = |administrator: bool| json!({"name": "admin", "password": PASSWORD, "administrator": administrator});
    let words = ["402", "group administrators", "next try at", "kubectl"];
    let took = recovers_after(account(false), &words, &account(true))?;
    ensure!(took <= Duration::from_secs(300), "{took:?}");
    Ok(())
}

#[test]
fn a_password_rotated_in_the_driver_before_the_nas_waits_for_it() -> Result<()> {
    let account = |password: &str| json!({"name": "admin", "password": password});
    let words = ["400", "on the NAS", "next try at"];
    let took = recovers_after(account("the old one"), &words, &account(PASSWORD))?;
    ensure!(took <= Duration::from_secs(900), "{took:?}");
    Ok(())
}

/// Every caller that waits for a NAS that hangs gets the cause, before its sidecar's timeout.
#[test]
fn a_nas_that_hangs_at_the_login_fails_every_call_soon() -> Result<()> {
    run(2, async |bed| {
        bed.post_control("/sessions/expire", json!({})).await?;
        let hang = json!({"api": AUTH, "method": "login", "times": 0, "fault": {"kind": "hang"}});
        bed.post_control("/faults", hang).await?;
        let clients = bed.clients(0, 0);
        let started = Instant::now();
        let try_create = async |name: String| {
            let answer = TestVolume::create(&clients, &name, GIB, Content::Block).await;
            refused(answer, Code::Unavailable, &["Auth.login", "no answer"]);
        };
        join_all((0..3).map(|number| try_create(format!("pvc-{number}")))).await;
        let took = started.elapsed();
        ensure!(took <= Duration::from_secs(31), "{took:?}");
        bed.clear_faults().await
    })
}

/// After the account is fixed and the controller restarted, there is no wait.
#[tokio::test]
async fn a_fixed_account_is_tried_at_once_after_a_restart() -> Result<()> {
    let mut cluster = Plan::controller().start().await?;
    for (mistake, code) in [
        (
            json!({"name": "admin", "password": PASSWORD, "administrator": false}),
            "402",
        ),
        (json!({"name": "admin", "password": "the old one"}), "400"),
    ] {
        cluster.nas.change_setting("accounts", &mistake).await?;
        cluster.nas.expire_sessions().await?;
        for _ in 0..3 {
            let answer = Csi::of(&cluster.plugin).create("first", GIB).await;
            refused(answer, Code::Unavailable, &[code, "next try at"]);
        }
        let right = json!({"name": "admin", "password": PASSWORD});
        cluster.nas.change_setting("accounts", &right).await?;
        cluster.restart_driver().await?;
        works(&Csi::of(&cluster.plugin)).await?;
    }
    Ok(())
}

/// Create, publish and delete a volume through the controller.
async fn works(csi: &Csi) -> Result<()> {
    let id = csi.create("first", GIB).await?;
    csi.publish(&id, NODE_A).await?;
    ensure!(csi.expand(&id, GIB + MIB).await? == GIB + MIB);
    csi.unpublish(&id, NODE_A).await?;
    csi.delete(&id).await?;
    Ok(())
}

/// A NAS that serves this certificate over HTTPS.
async fn nas_with(
    certificate: &str,
    key: &KeyPair,
    files: &std::path::Path,
) -> Result<TestCluster> {
    let write = |name: &str, text: &str| {
        let path = files.join(name);
        std::fs::write(&path, text)?;
        Ok::<&'static str, std::io::Error>(path.to_string_lossy().into_owned().leak())
    };
    let certificate = write("cert.pem", certificate)?;
    let key = write("key.pem", &key.serialize_pem())?;
    let more = vec![
        "--https",
        "127.0.0.1:0",
        "--tls-cert",
        certificate,
        "--tls-key",
        key,
    ];
    let nas = Settings {
        more,
        ..Settings::default()
    };
    Plan {
        nas,
        ..Plan::controller()
    }
    .start()
    .await
}

/// Sets `url` and these lines in the values, which restarts the controller.
async fn configured(
    cluster: &TestCluster,
    url: &str,
    lines: &str,
) -> Result<(e2e::harness::plugin::Plugin, Csi)> {
    let text = format!("url: {}", cluster.nas.api);
    let plugin = cluster
        .another_driver("second", |settings| {
            let with = format!("url: {url}\n    {lines}");
            settings.config = settings.config.replace(&text, with.trim_end());
        })
        .await?;
    let csi = Csi::of(&plugin);
    Ok((plugin, csi))
}

/// The text between `from` and `to` in an error message.
fn between<'a>(text: &'a str, from: &str, to: &str) -> Result<&'a str> {
    let rest = text.split_once(from).with_context(|| text.to_owned())?.1;
    Ok(rest.split_once(to).with_context(|| text.to_owned())?.0)
}

#[tokio::test]
async fn dsm_s_own_certificate_is_trusted_under_its_name_or_by_its_key() -> Result<()> {
    let files = tempfile::tempdir()?;
    let mut params = CertificateParams::new([])?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer_key = KeyPair::generate()?;
    let authority = params.self_signed(&issuer_key)?.pem();
    let issuer = Issuer::new(params, issuer_key);
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(["synology".to_owned()])?.signed_by(&key, &issuer)?;
    let cluster = nas_with(&certificate.pem(), &key, files.path()).await?;
    let https = cluster.nas.https()?;
    let ca = files.path().join("ca.crt");
    std::fs::write(&ca, authority)?;
    let ca = format!("ca_file: {}", ca.display());

    let (_plugin, csi) = configured(&cluster, &https, &ca).await?;
    let refusal = csi.create("first", GIB).await.expect_err("another name");
    refused(
        Err::<(), _>(refusal.clone()),
        Code::Unavailable,
        &["is not trusted", "synology"],
    );
    let line = between(refusal.message(), "write ", " below")?;
    let head: String = refusal.message().chars().take(200).collect();
    ensure!(head.contains(line), "the remedy must come early: {head}");
    let (_plugin, csi) = configured(&cluster, &https, &format!("{ca}\n    {line}")).await?;
    works(&csi).await?;

    // The authority's certificate is not available: pin the key instead.
    let (_plugin, csi) = configured(&cluster, &https, "").await?;
    let refusal = csi
        .create("first", GIB)
        .await
        .expect_err("an unknown authority");
    let line = format!(
        "tls_pins: {}]",
        between(refusal.message(), "tls_pins: ", "]")?
    );
    let (_plugin, csi) = configured(&cluster, &https, &line).await?;
    works(&csi).await?;
    // A server with another key is not this NAS.
    let other = format!("tls_pins: ['sha256//{}']", "A".repeat(43) + "=");
    let (_plugin, csi) = configured(&cluster, &https, &other).await?;
    refused(
        csi.create("first", GIB).await,
        Code::Unavailable,
        &["none of tls_pins"],
    );
    Ok(())
}

#[tokio::test]
async fn a_self_signed_certificate_of_openssl_works_as_ca_file() -> Result<()> {
    let files = tempfile::tempdir()?;
    let mut params = CertificateParams::new([])?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?.pem();
    let cluster = nas_with(&certificate, &key, files.path()).await?;
    let https = cluster.nas.https()?;
    let (_plugin, csi) = configured(&cluster, &https, "").await?;
    refused(
        csi.create("first", GIB).await,
        Code::Unavailable,
        &["not trusted", "this very"],
    );
    let ca = format!("ca_file: {}", files.path().join("cert.pem").display());
    let (_plugin, csi) = configured(&cluster, &https, &ca).await?;
    works(&csi).await?;
    // An https URL with the plain HTTP port gets a specific error, too.
    let wrong = cluster.nas.api.replace("http://", "https://");
    let (_plugin, csi) = configured(&cluster, &wrong, &ca).await?;
    refused(
        csi.create("first", GIB).await,
        Code::Unavailable,
        &["speaks no TLS", "5001"],
    );
    // A file without a certificate is rejected at startup.
    let key = format!("ca_file: {}", files.path().join("key.pem").display());
    let refusal = configured(&cluster, &https, &key)
        .await
        .err()
        .context("no certificate in it")?;
    let log = std::fs::read_to_string(cluster.folder().join("second/driver.log"))?;
    ensure!(
        log.contains("key.pem holds no certificate"),
        "{refusal}: {log}"
    );
    Ok(())
}

/// A web server that sends this response to every request, once it has read the request.
async fn web_server(answer: String) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let answer = answer.replacen("\r\n", "\r\nConnection: close\r\n", 1);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut received = Vec::new();
                while !received.windows(9).any(|end| end == b"token=yes") {
                    if !matches!(stream.read_buf(&mut received).await, Ok(1..)) {
                        return;
                    }
                }
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    Ok(url)
}

#[tokio::test]
async fn plain_http_that_is_sent_to_https_says_which_url_to_write() -> Result<()> {
    let files = tempfile::tempdir()?;
    let mut params = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()])?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?.pem();
    let cluster = nas_with(&certificate, &key, files.path()).await?;
    let https = cluster.nas.https()?;
    for status in ["301 Moved Permanently", "307 Temporary Redirect"] {
        let moved = format!(
            "HTTP/1.1 {status}\r\nLocation: {https}/webapi/auth.cgi\r\nContent-Length: 0\r\n\r\n"
        );
        let (_plugin, csi) = configured(&cluster, &web_server(moved).await?, "").await?;
        let refusal = csi.create("first", GIB).await.expect_err("a redirection");
        let url = between(refusal.message(), "write url: ", " into")?;
        ensure!(url == https, "{url}");
        let ca = format!("ca_file: {}", files.path().join("cert.pem").display());
        let (_plugin, csi) = configured(&cluster, url, &ca).await?;
        works(&csi).await?;
    }
    // The HTTPS port itself, as nginx responds there to plain HTTP.
    let bad = "HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\nno".to_owned();
    let port = web_server(bad).await?;
    let (_plugin, csi) = configured(&cluster, &port, "").await?;
    let secure = format!("url: {}", port.replace("http://", "https://"));
    refused(
        csi.create("first", GIB).await,
        Code::Unavailable,
        &[&secure],
    );
    Ok(())
}

#[tokio::test]
async fn plain_http_over_a_network_needs_an_option() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let refusal = configured(&cluster, "http://nas.example:5000", "").await;
    ensure!(refusal.is_err(), "the password would be sent in the clear");
    let log = || std::fs::read_to_string(cluster.folder().join("second/driver.log"));
    ensure!(log()?.contains("plain_http: true"), "{}", log()?);
    let (_plugin, csi) =
        configured(&cluster, "http://nas.invalid:5000", "plain_http: true").await?;
    refused(
        csi.create("first", GIB).await,
        Code::Unavailable,
        &["cannot be reached"],
    );
    ensure!(log()?.contains("in the clear"), "{}", log()?);
    Ok(())
}

/// A server that is not the NAS cannot make the driver's memory grow.
#[tokio::test]
async fn an_endless_answer_is_not_read_to_its_end() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let long = format!("{{\"success\":true,\"data\":[{}0]}}", "[],".repeat(5 << 20));
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{long}",
        long.len()
    );
    let (mut plugin, csi) = configured(&cluster, &web_server(answer).await?, "").await?;
    let endless = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{}",
        1_u64 << 40,
        " ".repeat(32 << 20)
    );
    refused(
        csi.create("first", GIB).await,
        Code::Unavailable,
        &["not a DSM answer"],
    );
    let grown = plugin.process.peak_kib()?;
    ensure!(grown < 96 << 10, "15 MiB of small values took {grown} KiB");
    let (other, csi) = configured(&cluster, &web_server(endless).await?, "").await?;
    refused(
        csi.create("first", GIB).await,
        Code::Unavailable,
        &["16 MiB"],
    );
    let grown = other.process.peak_kib()?;
    ensure!(grown < 96 << 10, "an endless answer took {grown} KiB");
    ensure!(plugin.process.terminate().await?);
    Ok(())
}
