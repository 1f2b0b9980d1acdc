//! A NAS that is not simulated here: where it is, and whom to believe that it is the one.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use url::Url;

/// A NAS to talk to.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// `https://nas:5001`.
    pub url: Url,
    /// Whom to believe.
    pub trust: TlsTrust,
}

/// Who may vouch for the certificate of a NAS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsTrust {
    /// Whom this machine trusts.
    Platform,
    /// Just the authorities in this PEM file.
    File(PathBuf),
    /// Anybody: whoever sits between can read the password.
    Insecure,
}

impl Upstream {
    /// A client that follows no redirect and asks no proxy.
    pub(crate) fn client(&self) -> anyhow::Result<reqwest::Client> {
        // Only the first of several installs succeeds, and any will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(10));
        let client = match &self.trust {
            TlsTrust::Platform => client,
            TlsTrust::Insecure => client.tls_danger_accept_invalid_certs(true),
            TlsTrust::File(path) => {
                let pem = std::fs::read(path)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                let authorities = reqwest::Certificate::from_pem_bundle(&pem)
                    .with_context(|| format!("{} holds no certificate", path.display()))?;
                client.tls_certs_only(authorities)
            }
        };
        Ok(client.build()?)
    }

    /// The address of a path of the NAS, query included.
    pub(crate) fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url.as_str().trim_end_matches('/'))
    }
}
