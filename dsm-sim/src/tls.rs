//! HTTPS: the server certificate, which is given as files, or generated once and kept. The TLS connection is in `stream`.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::ParsedCertificate;
use tempfile::NamedTempFile;
use tokio_rustls::TlsAcceptor;

pub(crate) mod stream;

/// Names that every generated certificate covers.
const LOCAL: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
const CA: &str = "ca.pem";
const CERT: &str = "cert.pem";
const KEY: &str = "key.pem";

/// Listen address and certificate of HTTPS.
#[derive(Clone, Debug)]
pub struct Https {
    /// Port 0 takes any free port.
    pub listen: SocketAddr,
    /// Server certificate.
    pub certificate: Certificate,
}

impl Default for Https {
    /// Any free port of 127.0.0.1, and a generated certificate for localhost that is kept in the state directory.
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            certificate: Certificate::SelfSigned {
                dir: None,
                names: Vec::new(),
            },
        }
    }
}

/// Source of the server certificate.
#[derive(Clone, Debug)]
pub enum Certificate {
    /// Generated once, signed by a private CA, and kept: `ca.pem` (what clients trust), `cert.pem` and `key.pem` in `dir`. The
    /// CA's own key is discarded, so that it can sign nothing else.
    SelfSigned {
        /// Directory, created if missing. Default: `tls` in the state directory.
        dir: Option<PathBuf>,
        /// Names and addresses in addition to localhost, 127.0.0.1 and ::1.
        names: Vec<String>,
    },
    /// PEM files: the certificate with its chain, and its key.
    Files {
        /// The server's certificate first.
        cert: PathBuf,
        /// PKCS#8, PKCS#1 or SEC1.
        key: PathBuf,
    },
}

/// Why HTTPS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file or directory cannot be read or written.
    #[error("cannot use {path}")]
    File {
        /// The file or directory.
        path: PathBuf,
        /// The I/O error.
        #[source]
        source: io::Error,
    },
    /// A file does not contain what it should.
    #[error("{path} holds no {wanted} in PEM form")]
    Pem {
        /// The file.
        path: PathBuf,
        /// A certificate, or a key.
        wanted: &'static str,
        /// The parser's error.
        #[source]
        source: pem::Error,
    },
    /// Each file is valid, but they do not belong together.
    #[error("{cert} and {key} do not make a server's certificate")]
    Mismatch {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
        /// The error of rustls.
        #[source]
        source: rustls::Error,
    },
    /// The kept certificate does not cover this name.
    #[error("{path} is not for {name}: remove {CA}, {CERT} and {KEY} there to have new ones made")]
    NotFor {
        /// The certificate.
        path: PathBuf,
        /// The name that it should cover.
        name: String,
    },
    /// Not a name that a certificate can cover.
    #[error("\"{0}\" is neither a host name nor an address")]
    NoName(String),
    /// The certificate cannot be generated.
    #[error("cannot generate a certificate")]
    Make(#[source] rcgen::Error),
}

/// A loaded server certificate.
pub(crate) struct Identity {
    pub(crate) acceptor: TlsAcceptor,
    /// The CA file to trust, if the certificate was generated.
    pub(crate) ca: Option<PathBuf>,
}

impl Certificate {
    /// Loads the certificate, and generates it first if necessary.
    ///
    /// # Errors
    /// [`TlsError`] names the file.
    pub(crate) fn open(&self, state_dir: &Path) -> Result<Identity, TlsError> {
        match self {
            Self::Files { cert, key } => Ok(Identity {
                acceptor: acceptor(cert, key)?,
                ca: None,
            }),
            Self::SelfSigned { dir, names } => match dir {
                Some(dir) => load_or_generate(dir, names),
                None => load_or_generate(&state_dir.join("tls"), names),
            },
        }
    }
}

fn load_or_generate(dir: &Path, extra_names: &[String]) -> Result<Identity, TlsError> {
    let names: Vec<String> = LOCAL
        .map(str::to_owned)
        .into_iter()
        .chain(extra_names.iter().cloned())
        .collect();
    if let Some(name) = names.iter().find(|name| server_name(name).is_none()) {
        return Err(TlsError::NoName(name.clone()));
    }
    fs::create_dir_all(dir).map_err(file_error(dir))?;
    // Lock: two simulators that start at the same time must not mix their files.
    let lock = File::open(dir).map_err(file_error(dir))?;
    lock.lock().map_err(file_error(dir))?;
    let (cert, ca) = (dir.join(CERT), dir.join(CA));
    // The certificate is written last, so if it exists the other files do too.
    if !cert.exists() {
        generate(dir, &names)?;
    }
    check_names(&cert, names)?;
    // Clients need the CA file: report a missing one now.
    certificates(&ca)?;
    Ok(Identity {
        acceptor: acceptor(&cert, &dir.join(KEY))?,
        ca: Some(ca),
    })
}

fn generate(dir: &Path, names: &[String]) -> Result<(), TlsError> {
    let [ca, cert, key] = pem(names).map_err(TlsError::Make)?;
    write(dir, KEY, &key, 0o600)?;
    write(dir, CA, &ca, 0o644)?;
    write(dir, CERT, &cert, 0o644)
}

/// Generates a CA, a certificate signed by it, and that certificate's key: PEM, in this order.
fn pem(names: &[String]) -> Result<[String; 3], rcgen::Error> {
    let mut params = CertificateParams::new([])?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
        .distinguished_name
        .push(DnType::CommonName, "dsm-sim's private CA");
    let issuer_key = KeyPair::generate()?;
    let ca = params.self_signed(&issuer_key)?.pem();
    let issuer = Issuer::new(params, issuer_key);

    let mut params = CertificateParams::new(names)?;
    params
        .distinguished_name
        .push(DnType::CommonName, "dsm-sim");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let cert = params.signed_by(&key, &issuer)?.pem();
    Ok([ca, cert, key.serialize_pem()])
}

fn write(dir: &Path, name: &str, text: &str, mode: u32) -> Result<(), TlsError> {
    let path = dir.join(name);
    let write = || {
        let mut file = NamedTempFile::new_in(dir)?;
        file.write_all(text.as_bytes())?;
        file.as_file()
            .set_permissions(Permissions::from_mode(mode))?;
        file.persist(&path)?;
        Ok(())
    };
    write().map_err(file_error(&path))
}

fn check_names(cert: &Path, names: Vec<String>) -> Result<(), TlsError> {
    let chain = certificates(cert)?;
    let parsed = chain
        .first()
        .and_then(|first| ParsedCertificate::try_from(first).ok());
    for name in names {
        let fits = server_name(&name)
            .zip(parsed.as_ref())
            .is_some_and(|(name, cert)| rustls::client::verify_server_name(cert, &name).is_ok());
        if !fits {
            let path = cert.to_owned();
            return Err(TlsError::NotFor { path, name });
        }
    }
    Ok(())
}

fn server_name(text: &str) -> Option<ServerName<'_>> {
    ServerName::try_from(text).ok()
}

fn acceptor(cert: &Path, key: &Path) -> Result<TlsAcceptor, TlsError> {
    let chain = certificates(cert)?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(not_pem(key, "private key"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|config| config.with_no_client_auth().with_single_cert(chain, secret))
        .map_err(|source| TlsError::Mismatch {
            cert: cert.to_owned(),
            key: key.to_owned(),
            source,
        })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// All certificates of a file; an error if there is none.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wanted = "certificate";
    let found = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(not_pem(path, wanted))?;
    if found.is_empty() {
        return Err(not_pem(path, wanted)(pem::Error::NoItemsFound));
    }
    Ok(found)
}

fn file_error(path: &Path) -> impl Fn(io::Error) -> TlsError {
    let path = path.to_owned();
    move |source| TlsError::File {
        path: path.clone(),
        source,
    }
}

fn not_pem(path: &Path, wanted: &'static str) -> impl Fn(pem::Error) -> TlsError {
    let path = path.to_owned();
    move |source| {
        let path = path.clone();
        if let pem::Error::Io(source) = source {
            TlsError::File { path, source }
        } else {
            TlsError::Pem {
                path,
                wanted,
                source,
            }
        }
    }
}
