//! Verification of the NAS's TLS certificate (CAs, pins, server name), and the remedy in the error if it is not trusted.
//!
//! A NAS may have a certificate of a public CA, of a private CA, DSM's default one for `synology`, or a self-signed one made with
//! openssl. Each of them is supported without disabling verification.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, OtherError,
    RootCertStore, SignatureScheme,
};
use rustls_platform_verifier::Verifier;
use sha2::{Digest as _, Sha256};

/// What is trusted in addition to the system's CAs.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// CA certificates, and server certificates that are trusted byte for byte.
    pub certificates: Vec<CertificateDer<'static>>,
    /// The host name that the certificate must be valid for, instead of the URL's host.
    pub server_name: Option<ServerName<'static>>,
    /// Pinned public keys. With pins, neither the issuer nor the name of the certificate is checked.
    pub pins: Vec<Pin>,
}

/// The SHA-256 of a certificate's public key (its `SubjectPublicKeyInfo`), as curl's `--pinnedpubkey` takes it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Pin([u8; 32]);

impl Pin {
    fn of(certificate: &CertificateDer<'_>) -> Result<Self, TlsError> {
        let key = ParsedCertificate::try_from(certificate)?.subject_public_key_info();
        Ok(Self(Sha256::digest(&key).into()))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256//{}", STANDARD.encode(self.0))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Pin {
    type Err = &'static str;

    /// `sha256//` and 44 characters of base64, as in curl, or 64 hexadecimal digits, optionally with colons, as openssl prints
    /// them.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bare = text.strip_prefix("sha256//").unwrap_or(text);
        let digits = bare.replace(':', "");
        let bytes = hex::decode(digits).ok();
        bytes
            .or_else(|| STANDARD.decode(bare).ok())
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or("give sha256// and the 44 characters of base64 that the refusal of a certificate shows")
    }
}

/// Why a certificate file is rejected.
#[derive(Debug, thiserror::Error)]
pub enum CertificateFileError {
    /// It cannot be read.
    #[error("{path} cannot be read")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It holds no certificate.
    #[error(
        "{path} holds no certificate in PEM form (-----BEGIN CERTIFICATE-----): convert another form with openssl x509 -inform der -in FILE -out FILE.pem"
    )]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A certificate in it cannot be parsed.
    #[error(
        "certificate {number} in {path} is damaged: fetch it again from the NAS (Control Panel, Security, Certificate)"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Which, from 1.
        number: usize,
        /// The parse error.
        #[source]
        source: TlsError,
    },
}

/// The certificates of a PEM file, at least one.
///
/// # Errors
/// [`CertificateFileError`].
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateFileError> {
    let text = std::fs::read(path).map_err(|source| CertificateFileError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    let empty = || CertificateFileError::Empty {
        path: path.to_owned(),
    };
    // Windows editors add a byte-order mark.
    let text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&text);
    let found = CertificateDer::pem_slice_iter(text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| empty())?;
    if found.is_empty() {
        return Err(empty());
    }
    for (index, certificate) in found.iter().enumerate() {
        RootCertStore::empty()
            .add(certificate.clone())
            .map_err(|source| CertificateFileError::Damaged {
                path: path.to_owned(),
                number: index + 1,
                source,
            })?;
    }
    Ok(found)
}

impl Trust {
    /// The TLS client configuration.
    ///
    /// # Errors
    /// There are no trusted certificates: neither CAs of the system nor others.
    pub(super) fn client(self) -> Result<ClientConfig, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        // With pins no CAs are needed, and a container may have none.
        let authorities = if self.pins.is_empty() {
            let extra = self.certificates.clone();
            Some(Verifier::new_with_extra_roots(extra, provider.clone())?)
        } else {
            None
        };
        let verifier = CertificateVerifier {
            trust: self,
            authorities,
            provider: provider.clone(),
        };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// Verifies the NAS's certificate during the TLS handshake.
#[derive(Debug)]
struct CertificateVerifier {
    trust: Trust,
    authorities: Option<Verifier>,
    provider: Arc<CryptoProvider>,
}

impl CertificateVerifier {
    /// Checks the validity period of a certificate that is trusted by itself: a pin replaces chain and name, and nothing else.
    fn verify_validity_period(
        &self,
        certificate: &CertificateDer<'_>,
        now: UnixTime,
    ) -> Result<(), TlsError> {
        let parsed = ParsedCertificate::try_from(certificate)?;
        let outcome = verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &RootCertStore::empty(),
            &[],
            now,
            self.provider.signature_verification_algorithms.all,
        );
        // The validity period is checked first; without CAs some later check always fails.
        match outcome {
            Err(TlsError::InvalidCertificate(
                error @ (CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. }
                | CertificateError::BadEncoding),
            )) => Err(error.into()),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn verify(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<(), TlsError> {
        let pin = Pin::of(certificate)?;
        if self.trust.pins.contains(&pin) {
            return self.verify_validity_period(certificate, now);
        }
        let Some(authorities) = &self.authorities else {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        };
        if self
            .trust
            .certificates
            .iter()
            .any(|known| known == certificate)
        {
            return self.verify_validity_period(certificate, now);
        }
        let name = self.trust.server_name.as_ref().unwrap_or(name);
        authorities
            .verify_server_cert(certificate, intermediates, name, ocsp, now)
            .map(drop)
    }
}

impl ServerCertVerifier for CertificateVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        match self.verify(certificate, intermediates, name, ocsp, now) {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err(TlsError::InvalidCertificate(problem)) => {
                let pin =
                    Pin::of(certificate).map_or_else(|_| String::new(), |pin| pin.to_string());
                let untrusted = Untrusted(remedy(&problem, &pin));
                let error = CertificateError::Other(OtherError(Arc::new(untrusted)));
                Err(error.into())
            }
            Err(error) => Err(error),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// An untrusted certificate: why, and the remedy.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Untrusted(String);

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "for any other problem these are the remedies"
)]
fn remedy(problem: &CertificateError, pin: &str) -> String {
    let verify = "verify it at the NAS first (driver/docs/tls.md)";
    match problem {
        CertificateError::NotValidForNameContext { presented, .. } => {
            let names: Vec<String> = presented.iter().map(|name| bare(name)).collect();
            let first = names.first().map_or("NAME", String::as_str);
            format!(
                "it is for {}: write tls_server_name: {first} below the NAS's url, or trust its key, tls_pins: [\"{pin}\"]; {verify}",
                if names.is_empty() { "no name at all".to_owned() } else { names.join(", ") }
            )
        }
        CertificateError::NotValidForName => format!(
            "it is for another name: write tls_server_name: NAME below the NAS's url, or trust its key, tls_pins: [\"{pin}\"]; {verify}"
        ),
        CertificateError::UnknownIssuer => format!(
            "no authority that is known has signed it: give that authority's (or this very one) as ca_file, or trust its key, tls_pins: [\"{pin}\"]; {verify}"
        ),
        CertificateError::ApplicationVerificationFailure => format!(
            "its key is none of tls_pins: if the NAS has got a new one, add \"{pin}\" there; {verify}"
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "it has expired: renew it on the NAS (Control Panel, Security, Certificate), or put the clock of this node right (timedatectl)".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "it is not valid yet: put the clocks of the NAS and of this node right (timedatectl)".to_owned()
        }
        CertificateError::BadSignature => format!(
            "its authority has the name of one that is known, and another key: give its own one as ca_file, or trust its key, tls_pins: [\"{pin}\"]; {verify}"
        ),
        // A self-signed certificate of openssl: rustls reports CaUsedAsEndEntity.
        CertificateError::Other(_) => format!(
            "it is an authority's, or of a form that is not read: give this very certificate as ca_file, or trust its key, tls_pins: [\"{pin}\"]; {verify}"
        ),
        other => format!(
            "{other}: give this very certificate as ca_file, or trust its key, tls_pins: [\"{pin}\"]; {verify}"
        ),
    }
}

/// Extracts the name: rustls prints names as `DnsName("synology")` and `IpAddress(10.0.0.5)`.
fn bare(name: &str) -> String {
    let inside = name.split_once('(').map_or(name, |(_, inside)| inside);
    inside.trim_matches(['"', '(', ')']).to_owned()
}

/// The TLS problem with a known remedy in the causes of `error`, if any.
pub(super) fn complaint(error: &(dyn std::error::Error + 'static)) -> Option<Complaint> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(Untrusted(text)) = error.downcast_ref() {
            return Some(Complaint::Untrusted(text.clone()));
        }
        if let Some(tls) = error.downcast_ref::<TlsError>() {
            if let TlsError::InvalidCertificate(CertificateError::Other(OtherError(untrusted))) =
                tls
            {
                return Some(Complaint::Untrusted(untrusted.to_string()));
            }
            let is_not_tls = matches!(tls, TlsError::InvalidMessage(_));
            return is_not_tls.then_some(Complaint::NoTls);
        }
        let inner = error.downcast_ref::<std::io::Error>();
        cause = match inner.and_then(std::io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

/// Why a TLS connection cannot be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Complaint {
    /// The certificate: why, and the remedy.
    Untrusted(String),
    /// The server does not speak TLS.
    NoTls,
}

#[cfg(test)]
mod tests;
