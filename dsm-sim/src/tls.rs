//! HTTPS: the certificate that the simulator shows, given or made once and kept. It knows nothing of connections but
//! how they are greeted (`stream`).

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

/// The names that a made certificate is always for.
const LOCAL: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
const CA: &str = "ca.pem";
const CERT: &str = "cert.pem";
const KEY: &str = "key.pem";

/// Where HTTPS listens, and what it shows.
#[derive(Clone, Debug)]
pub struct Https {
    /// Port 0 takes any free port.
    pub listen: SocketAddr,
    /// What clients are shown.
    pub certificate: Certificate,
}

impl Default for Https {
    /// Any free port, and a certificate for this machine that is kept in the state folder.
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

/// Where the certificate comes from.
#[derive(Clone, Debug)]
pub enum Certificate {
    /// Made once by a private authority, and kept: `ca.pem` (what clients trust), `cert.pem` and `key.pem` in `dir`. The
    /// authority's own key is thrown away, so it signs nothing else ever.
    SelfSigned {
        /// The folder, made when missing; `tls` in the state folder unless told otherwise.
        dir: Option<PathBuf>,
        /// Names and addresses besides localhost, 127.0.0.1 and ::1.
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

/// Why there is no HTTPS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file or folder cannot be read or written.
    #[error("cannot use {path}")]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{path} holds no {wanted} in PEM form")]
    Pem {
        /// The file.
        path: PathBuf,
        /// A certificate, or a key.
        wanted: &'static str,
        /// What is wrong with it.
        #[source]
        source: pem::Error,
    },
    /// The files are fine, each by itself.
    #[error("{cert} and {key} do not make a server's certificate")]
    Mismatch {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
        /// Why not.
        #[source]
        source: rustls::Error,
    },
    /// The kept certificate was made for other names.
    #[error("{path} is not for {name}: remove {CA}, {CERT} and {KEY} there to have new ones made")]
    NotFor {
        /// The certificate.
        path: PathBuf,
        /// What it should be for.
        name: String,
    },
    /// A certificate cannot be for that.
    #[error("\"{0}\" is neither a host name nor an address")]
    NoName(String),
    /// No certificate can be made.
    #[error("cannot make a certificate")]
    Make(#[source] rcgen::Error),
}

/// A certificate that is ready to be shown.
pub(crate) struct Identity {
    pub(crate) acceptor: TlsAcceptor,
    /// The authority to trust, when it was made here.
    pub(crate) ca: Option<PathBuf>,
}

impl Certificate {
    /// Reads the certificate, and makes it before that when it is to be made and not there yet.
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
                Some(dir) => kept(dir, names),
                None => kept(&state_dir.join("tls"), names),
            },
        }
    }
}

fn kept(dir: &Path, more: &[String]) -> Result<Identity, TlsError> {
    let names: Vec<String> = LOCAL
        .map(str::to_owned)
        .into_iter()
        .chain(more.iter().cloned())
        .collect();
    if let Some(name) = names.iter().find(|name| server_name(name).is_none()) {
        return Err(TlsError::NoName(name.clone()));
    }
    fs::create_dir_all(dir).map_err(wrong(dir))?;
    // Two simulators that start at once must not mix their files.
    let lock = File::open(dir).map_err(wrong(dir))?;
    lock.lock().map_err(wrong(dir))?;
    let (cert, ca) = (dir.join(CERT), dir.join(CA));
    // It is written last, so where it is the others are too.
    if !cert.exists() {
        make(dir, &names)?;
    }
    check_names(&cert, names)?;
    // Clients will ask for it; a missing one is better told now.
    certificates(&ca)?;
    Ok(Identity {
        acceptor: acceptor(&cert, &dir.join(KEY))?,
        ca: Some(ca),
    })
}

fn make(dir: &Path, names: &[String]) -> Result<(), TlsError> {
    let [ca, cert, key] = pem(names).map_err(TlsError::Make)?;
    write(dir, KEY, &key, 0o600)?;
    write(dir, CA, &ca, 0o644)?;
    write(dir, CERT, &cert, 0o644)
}

/// An authority, a certificate signed by it, and that certificate's key.
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
    write().map_err(wrong(&path))
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

/// All certificates of a file, which are at least one.
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

fn wrong(path: &Path) -> impl Fn(io::Error) -> TlsError {
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
