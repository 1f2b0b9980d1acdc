//! One login for all calls, cached login failures, and no secrets in logs, errors or URLs: design.md#one-login.

use anyhow::{Context as _, Result};
use e2e::GIB;
use e2e::harness::nas::{Nas, PASSWORD, Settings};
use e2e::harness::test_cluster::Plan;
use e2e::harness::until::until;
use futures::future::join_all;
use serde_json::json;
use tonic::Code;

use super::common::{AUTH, Csi, LUN, NO_UUID, NODE_A, refuse, refused};
use super::transport::wiretap;

async fn logins(nas: &Nas) -> Result<usize> {
    Ok(nas
        .journal(0)
        .await?
        .0
        .iter()
        .filter(|entry| entry.api == AUTH && entry.method == "login")
        .count())
}

/// design.md#one-login
#[tokio::test]
async fn one_login_serves_all_waiting_calls() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let made = join_all((0..20).map(|n| csi.create_owned(format!("pvc-{n}"))))
        .await
        .into_iter()
        .collect::<Result<Vec<_>, _>>()?;
    assert_eq!(logins(&cluster.nas).await?, 1);
    cluster.nas.expire_sessions().await?;
    let seen = join_all(made.iter().map(|id| csi.get(id))).await;
    assert!(
        seen.iter()
            .all(|answer| matches!(answer, Ok((size, _)) if *size == GIB)),
        "{seen:?}"
    );
    assert_eq!(logins(&cluster.nas).await?, 2);
    // Session unknown, timed out, ended by another login, or without token: each is renewed once.
    for (round, code) in [(3, 119), (4, 106), (5, 107), (6, 105)] {
        cluster.nas.fault(LUN, "get", 1, 1, refuse(code)).await?;
        assert_eq!(csi.get(&made[0]).await?.0, GIB);
        assert_eq!(logins(&cluster.nas).await?, round, "{code}");
    }
    Ok(())
}

/// design.md#one-login
#[tokio::test]
async fn a_call_is_repeated_once_after_a_login_and_no_more() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    csi.create("pvc-1", GIB).await?;
    cluster.nas.fault(LUN, "list", 1, 0, refuse(119)).await?;
    refused(csi.list(0, "").await, Code::Unavailable, &["119"]);
    assert_eq!(logins(&cluster.nas).await?, 2);
    Ok(())
}

/// design.md#one-login
#[tokio::test]
async fn a_wrong_password_is_tried_once_per_process_and_twice_in_all() -> Result<()> {
    let mut cluster = Plan::controller().start().await?;
    std::fs::write(cluster.nas.password_file(), "wrong")?;
    for restarts in 0..4 {
        let csi = Csi::of(&cluster.plugin);
        join_all((0..10).map(|n| csi.create_owned(format!("pvc-{n}")))).await;
        refused(
            csi.delete(&format!("nas1/{NO_UUID}")).await,
            Code::Unavailable,
            &["\"admin\"", "400", "next try at"],
        );
        refused(csi.list(0, "").await, Code::Unavailable, &["password"]);
        // A third failure would block the address for a day.
        let tried = 2.min(restarts + 1);
        assert_eq!(
            logins(&cluster.nas).await?,
            tried,
            "after {restarts} restarts"
        );
        cluster
            .plugin
            .process
            .check()
            .context("a failed login ends nothing")?;
        cluster.restart_driver().await?;
    }
    let remembered = std::fs::read_to_string(cluster.folder().join("refused.json"))?;
    assert!(!remembered.contains("wrong"), "{remembered}");
    // An administrator takes more than five minutes. Another wrong password is one more attempt.
    cluster.nas.advance(360_000).await?;
    std::fs::write(cluster.nas.password_file(), "wrong-too\n")?;
    let csi = Csi::of(&cluster.plugin);
    for _ in 0..3 {
        refused(csi.create("pvc-1", GIB).await, Code::Unavailable, &["400"]);
    }
    assert_eq!(logins(&cluster.nas).await?, 3);
    // Once the password is fixed it works without a restart, and the address was never blocked.
    std::fs::write(cluster.nas.password_file(), format!("{PASSWORD}\n"))?;
    csi.create("pvc-1", GIB).await?;
    assert_eq!(logins(&cluster.nas).await?, 4);
    cluster.restart_driver().await?;
    Csi::of(&cluster.plugin).create("pvc-1", GIB).await?;
    Ok(())
}

/// design.md#one-login
#[tokio::test]
async fn a_login_that_fails_for_another_reason_is_tried_again() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    // DSM is being upgraded; a proxy responds; the connection is lost: none of them means that the password is wrong.
    for failure in [
        refuse(498),
        json!({"kind": "http", "status": 502}),
        json!({"kind": "garble"}),
        json!({"kind": "lose_reply"}),
    ] {
        cluster
            .nas
            .fault(AUTH, "login", 1, 1, failure.clone())
            .await?;
        refused(csi.list(0, "").await, Code::Unavailable, &[]);
        csi.list(0, "").await.with_context(|| failure.to_string())?;
        cluster.nas.expire_sessions().await?;
    }
    // A blocked address is not retried for a while.
    cluster.nas.fault(AUTH, "login", 1, 0, refuse(407)).await?;
    let before = logins(&cluster.nas).await?;
    for _ in 0..5 {
        refused(
            csi.list(0, "").await,
            Code::Unavailable,
            &["407", "block list"],
        );
    }
    assert_eq!(logins(&cluster.nas).await?, before + 1);
    Ok(())
}

/// design.md#one-login
#[tokio::test]
async fn csrf_protection_and_strict_session_ids_are_no_obstacle() -> Result<()> {
    for more in [
        vec!["--csrf"],
        vec!["--strict-sid"],
        vec!["--csrf", "--strict-sid"],
        vec!["--dsm", "6", "--csrf"],
    ] {
        let nas = Settings {
            more: more.clone(),
            ..Settings::default()
        };
        let cluster = Plan {
            nas,
            ..Plan::controller()
        }
        .start()
        .await?;
        let csi = Csi::of(&cluster.plugin);
        let id = csi.create("pvc-1", GIB).await?;
        csi.publish(&id, NODE_A).await?;
        csi.expand(&id, 2 * GIB).await?;
        csi.unpublish(&id, NODE_A).await?;
        csi.delete(&id).await?;
        assert_eq!(logins(&cluster.nas).await?, 1, "{more:?}");
    }
    Ok(())
}

/// design.md#one-login
#[tokio::test]
async fn the_session_is_ended_on_exit() -> Result<()> {
    let mut cluster = Plan::controller().start().await?;
    Csi::of(&cluster.plugin).list(0, "").await?;
    assert!(cluster.plugin.process.terminate().await?);
    let entries = cluster.nas.journal(0).await?.0;
    let logout = entries.last().context("calls")?;
    assert_eq!(
        (logout.short().as_str(), logout.code),
        ("Auth.logout", None)
    );
    Ok(())
}

/// The quoted value after `key`.
fn quoted<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.split_once(&format!("\"{key}\":\""))?
        .1
        .split('"')
        .next()
}

/// design.md#one-login
#[tokio::test]
async fn no_secret_is_in_logs_errors_or_urls() -> Result<()> {
    let nas = Settings {
        more: vec!["--csrf"],
        ..Settings::default()
    };
    let cluster = Plan {
        nas,
        ..Plan::controller()
    }
    .start()
    .await?;
    let (url, traffic) = wiretap(&cluster.nas.api, |_| {}).await?;
    let mut plugin = cluster
        .another_driver("tapped", |settings| {
            settings.config = settings.config.replace(&cluster.nas.api, &url);
            settings.log_level = "trace,h2=trace".to_owned();
        })
        .await?;
    let csi = Csi::of(&plugin);
    let id = csi.create("pvc-1", GIB).await?;
    cluster.nas.expire_sessions().await?;
    csi.publish(&id, NODE_A).await?;
    let mut outputs = String::new();
    for failure in [
        json!({"kind": "garble"}),
        json!({"kind": "lose_reply"}),
        json!({"kind": "http", "status": 500}),
    ] {
        cluster.nas.expire_sessions().await?;
        cluster.nas.fault(AUTH, "login", 1, 1, failure).await?;
        outputs += csi.get(&id).await.expect_err("no login").message();
    }
    std::fs::write(cluster.nas.password_file(), "wrong-secret-77aa")?;
    cluster.nas.expire_sessions().await?;
    outputs += csi.get(&id).await.expect_err("no login").message();
    std::fs::write(cluster.nas.password_file(), PASSWORD)?;
    csi.unpublish(&id, NODE_A).await?;
    csi.delete(&id).await?;
    assert!(plugin.process.terminate().await?);
    let log = std::fs::read_to_string(cluster.folder().join("tapped").join("driver.log"))?;
    assert!(
        log.contains("TRACE") && log.contains("DSM call"),
        "the log is at its most verbose level"
    );
    outputs += &log;
    let traffic = String::from_utf8_lossy(&traffic.lock().expect("not poisoned")).into_owned();
    let mut secrets = vec![PASSWORD.to_owned(), "wrong-secret-77aa".to_owned()];
    for answer in traffic.split("\r\n\r\n") {
        secrets.extend(
            ["sid", "synotoken"]
                .iter()
                .filter_map(|key| quoted(answer, key))
                .map(str::to_owned),
        );
    }
    assert!(
        secrets.len() >= 8,
        "sid and token of several logins: {}",
        secrets.len()
    );
    let urls: Vec<&str> = traffic
        .split("\r\n")
        .filter(|line| line.starts_with("POST ") || line.starts_with("GET "))
        .collect();
    assert!(urls.len() > 10);
    for secret in &secrets {
        assert!(
            !outputs.contains(secret.as_str()),
            "{secret:?} is in the log or in an answer: {:?}",
            outputs.lines().find(|line| line.contains(secret.as_str()))
        );
        assert!(
            traffic.contains(secret.as_str())
                && urls.iter().all(|url| !url.contains(secret.as_str())),
            "{secret:?} is in a URL"
        );
    }
    let refusals =
        std::fs::read_to_string(cluster.folder().join("refused.json")).unwrap_or_default();
    assert!(
        secrets
            .iter()
            .all(|secret| !refusals.contains(secret.as_str())),
        "{refusals}"
    );
    Ok(())
}

/// design.md#one-login
#[tokio::test]
async fn a_driver_whose_nas_comes_back_needs_no_restart() -> Result<()> {
    let mut cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("pvc-1", GIB).await?;
    cluster.nas.restart().await?;
    until(
        "the NAS answers again",
        async || Ok(csi.get(&id).await.is_ok()),
        |ok| *ok,
    )
    .await?;
    assert_eq!(
        logins(&cluster.nas).await?,
        1,
        "the NAS starts with a new journal"
    );
    Ok(())
}
