//! The real NAS that `diff` and `record` talk to: its URL, and how its certificate is verified.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use url::Url;

/// Address of a real NAS, and how to trust it.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// Base URL: `https://nas:5001`.
    pub url: Url,
    /// How its certificate is verified.
    pub trust: TlsTrust,
}

/// How the certificate of a NAS is verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsTrust {
    /// By the CAs that this machine trusts.
    Platform,
    /// By the CAs in this PEM file only.
    File(PathBuf),
    /// Not at all: a man in the middle can read the password.
    Insecure,
}

impl Upstream {
    /// A client that follows no redirects and uses no proxy.
    pub(crate) fn client(&self) -> anyhow::Result<reqwest::Client> {
        // Only the first install in a process succeeds, which is enough.
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
                let cas = reqwest::Certificate::from_pem_bundle(&pem)
                    .with_context(|| format!("{} holds no certificate", path.display()))?;
                client.tls_certs_only(cas)
            }
        };
        Ok(client.build()?)
    }

    /// The URL of a path, query included, on this NAS.
    pub(crate) fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url.as_str().trim_end_matches('/'))
    }
}
