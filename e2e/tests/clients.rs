//! Third-party programs, unmodified, against dsm-sim: they were not written for it, so they do not share our wrong assumptions.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use e2e::harness::nas::{Nas, PASSWORD, Settings};
use e2e::harness::process;
use e2e::harness::skip::skip;

#[path = "clients/browser.rs"]
mod browser;

/// The Python in which `cargo ci clients` has installed the libraries of N4S4 and Home Assistant.
fn python() -> Option<PathBuf> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the variable that cargo ci hands to this test"
    )]
    let named = std::env::var("CLIENTS_PYTHON");
    named.ok().map(PathBuf::from).filter(|path| path.is_file())
}

#[tokio::test(flavor = "multi_thread")]
async fn outsider_n4s4_lives_a_whole_life() -> Result<()> {
    let Some(python) = python() else {
        skip(
            "outsider_n4s4_lives_a_whole_life",
            "N4S4's library is not installed: cargo ci clients installs it",
        );
        return Ok(());
    };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/n4s4.py");
    for dsm in ["7.2", "6.2"] {
        let folder = tempfile::tempdir()?;
        let settings = Settings {
            more: vec!["--dsm", dsm, "--https", "127.0.0.1:0"],
            ..Settings::default()
        };
        let nas = Nas::start(folder.path(), settings).await?;
        let https = nas.https()?;
        let generation = &dsm[..1];
        for (address, more) in [(&nas.api, None), (&https, Some("--https"))] {
            let address = address.split_once("://").context("a URL")?.1;
            let args = [script, address, "--password", PASSWORD, "--dsm", generation];
            let (succeeded, output) = process::suite(&python, args.into_iter().chain(more))?;
            ensure!(succeeded, "DSM {dsm} at {address}: {output}");
            ensure!(output.trim_end().ends_with("logout"), "{output}");
            let state = nas.state().await?;
            assert_eq!(state["luns"], serde_json::json!([]), "DSM {dsm}");
            assert_eq!(state["targets"], serde_json::json!([]), "DSM {dsm}");
        }
    }
    Ok(())
}

/// The 160-bit secret of a second factor.
const OTP_SECRET: &str = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP";

#[tokio::test(flavor = "multi_thread")]
async fn outsider_home_assistant_takes_the_nas() -> Result<()> {
    let Some(python) = python() else {
        skip(
            "outsider_home_assistant_takes_the_nas",
            "Home Assistant's library is not installed: cargo ci clients installs it",
        );
        return Ok(());
    };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/home_assistant.py");
    // It does not request a CSRF token, and works with CSRF protection if it gets one anyway.
    let csrf = vec!["--csrf", "--setting", "token_unasked=true"];
    let otp = vec!["--otp-secret", OTP_SECRET];
    for dsm in ["7.2", "6.2"] {
        for more in [Vec::new(), csrf.clone(), otp.clone()] {
            let folder = tempfile::tempdir()?;
            let settings = Settings {
                more: [vec!["--dsm", dsm, "--https", "127.0.0.1:0"], more.clone()].concat(),
                ..Settings::default()
            };
            let nas = Nas::start(folder.path(), settings).await?;
            let https = nas.https()?;
            let secure = more.is_empty();
            let address = if secure { &https } else { &nas.api };
            let address = address.split_once("://").context("a URL")?.1;
            let mut args = vec![
                script,
                address,
                "--password",
                PASSWORD,
                "--control",
                &nas.control,
            ];
            args.extend(secure.then_some("--https"));
            if more == otp {
                args.extend(otp.clone());
            }
            let (succeeded, output) = process::suite(&python, args)?;
            ensure!(succeeded, "DSM {dsm} {more:?}: {output}");
            ensure!(output.trim_end().ends_with("logout"), "{output}");
            let journal = nas.journal(0).await?.1;
            let calls = format!("{journal:?}");
            ensure!(!calls.contains(PASSWORD), "a password in the journal");
        }
    }
    Ok(())
}
