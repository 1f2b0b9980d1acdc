//! Whom the controller takes for the NAS: what is trusted of a TLS certificate, and what to type when it is not.
//!
//! A NAS shows a certificate of a well-known authority, of a private one, DSM's own for `synology`, or one that its owner made with
//! openssl. Each of them has a way here that does not end with switching the verification off.

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

/// What is trusted beside the system's authorities.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// Authorities, and certificates that are trusted as they are, byte for byte.
    pub certificates: Vec<CertificateDer<'static>>,
    /// The name that the certificate must be for, in the place of the address's.
    pub server_name: Option<ServerName<'static>>,
    /// Public keys. With these neither who signed the certificate nor its name matters.
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

    /// `sha256//` and 44 characters of base64, as curl has it, or 64 hexadecimal digits, perhaps with colons, as openssl prints them.
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

/// Why a file does not say whom to trust.
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
    /// It holds none.
    #[error(
        "{path} holds no certificate in PEM form (-----BEGIN CERTIFICATE-----): convert another form with openssl x509 -inform der -in FILE -out FILE.pem"
    )]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// One of them is none.
    #[error(
        "certificate {number} in {path} is damaged: fetch it again from the NAS (Control Panel, Security, Certificate)"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Which, from 1.
        number: usize,
        /// What is wrong with it.
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
    // Editors of Windows put a mark there.
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
    /// What a TLS client needs to know.
    ///
    /// # Errors
    /// There is nobody to trust: neither authorities of the system nor anything else.
    pub(super) fn client(self) -> Result<ClientConfig, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        // Who names keys needs no authorities, and a container may have none.
        let authorities = if self.pins.is_empty() {
            let extra = self.certificates.clone();
            Some(Verifier::new_with_extra_roots(extra, provider.clone())?)
        } else {
            None
        };
        let judge = CertificateVerifier {
            trust: self,
            authorities,
            provider: provider.clone(),
        };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(judge))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// Judges a certificate when a connection is made.
#[derive(Debug)]
struct CertificateVerifier {
    trust: Trust,
    authorities: Option<Verifier>,
    provider: Arc<CryptoProvider>,
}

impl CertificateVerifier {
    /// A certificate that is known by itself: a pin stands for chain and name, and for nothing else.
    fn in_time(&self, certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), TlsError> {
        let parsed = ParsedCertificate::try_from(certificate)?;
        let outcome = verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &RootCertStore::empty(),
            &[],
            now,
            self.provider.signature_verification_algorithms.all,
        );
        // Time is looked at first; without authorities it always ends with some other complaint.
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

    fn judge(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<(), TlsError> {
        let pin = Pin::of(certificate)?;
        if self.trust.pins.contains(&pin) {
            return self.in_time(certificate, now);
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
            return self.in_time(certificate, now);
        }
        let name = self.trust.server_name.as_ref().unwrap_or(name);
        authorities
            .verify_server_cert(certificate, between, name, ocsp, now)
            .map(drop)
    }
}

impl ServerCertVerifier for CertificateVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        match self.judge(certificate, between, name, ocsp, now) {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err(TlsError::InvalidCertificate(problem)) => {
                let pin =
                    Pin::of(certificate).map_or_else(|_| String::new(), |pin| pin.to_string());
                let told = Untrusted(remedy(&problem, &pin));
                let told = CertificateError::Other(OtherError(Arc::new(told)));
                Err(told.into())
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

/// A certificate that is not trusted: why, and what to type.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Untrusted(String);

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "whatever else is wrong with it, these are the ways out"
)]
fn remedy(problem: &CertificateError, pin: &str) -> String {
    let look = "look it up at the NAS first (driver/docs/tls.md)";
    match problem {
        CertificateError::NotValidForNameContext { presented, .. } => {
            let names: Vec<String> = presented.iter().map(|name| bare(name)).collect();
            let first = names.first().map_or("NAME", String::as_str);
            format!(
                "it is for {}: write tls_server_name: {first} below the NAS's url, or trust its key, tls_pins: [\"{pin}\"]; {look}",
                if names.is_empty() { "no name at all".to_owned() } else { names.join(", ") }
            )
        }
        CertificateError::NotValidForName => format!(
            "it is for another name: write tls_server_name: NAME below the NAS's url, or trust its key, tls_pins: [\"{pin}\"]; {look}"
        ),
        CertificateError::UnknownIssuer => format!(
            "no authority that is known has signed it: give that authority's (or this very one) as ca_file, or trust its key, tls_pins: [\"{pin}\"]; {look}"
        ),
        CertificateError::ApplicationVerificationFailure => format!(
            "its key is none of tls_pins: if the NAS has got a new one, add \"{pin}\" there; {look}"
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "it has expired: renew it on the NAS (Control Panel, Security, Certificate), or put the clock of this node right (timedatectl)".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "it is not valid yet: put the clocks of the NAS and of this node right (timedatectl)".to_owned()
        }
        CertificateError::BadSignature => format!(
            "its authority has the name of one that is known, and another key: give its own one as ca_file, or trust its key, tls_pins: [\"{pin}\"]; {look}"
        ),
        // As openssl makes it: rustls calls it CaUsedAsEndEntity.
        CertificateError::Other(_) => format!(
            "it is an authority's, or of a form that is not read: give this very certificate as ca_file, or trust its key, tls_pins: [\"{pin}\"]; {look}"
        ),
        other => format!(
            "{other}: give this very certificate as ca_file, or trust its key, tls_pins: [\"{pin}\"]; {look}"
        ),
    }
}

/// rustls shows names as `DnsName("synology")` and `IpAddress(10.0.0.5)`.
fn bare(name: &str) -> String {
    let inside = name.split_once('(').map_or(name, |(_, inside)| inside);
    inside.trim_matches(['"', '(', ')']).to_owned()
}

/// What to type when a TLS connection cannot be made for a reason that is known: found somewhere in the causes of `error`.
pub(super) fn complaint(error: &(dyn std::error::Error + 'static)) -> Option<Complaint> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(Untrusted(text)) = error.downcast_ref() {
            return Some(Complaint::Untrusted(text.clone()));
        }
        if let Some(tls) = error.downcast_ref::<TlsError>() {
            if let TlsError::InvalidCertificate(CertificateError::Other(OtherError(told))) = tls {
                return Some(Complaint::Untrusted(told.to_string()));
            }
            let spoke = matches!(tls, TlsError::InvalidMessage(_));
            return spoke.then_some(Complaint::NoTls);
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
    /// The certificate: why, and what to type.
    Untrusted(String),
    /// Who listens there does not speak TLS.
    NoTls,
}

#[cfg(test)]
mod tests;
