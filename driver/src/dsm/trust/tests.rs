use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConnection, ServerConfig, ServerConnection};

use super::*;

/// 2026-01-01.
const NOW: Duration = Duration::from_secs(1_767_225_600);

/// As `openssl req -x509` makes it: a CA certificate without subject alternative names.
fn self_signed(change: impl Fn(&mut CertificateParams)) -> (CertificateDer<'static>, KeyPair) {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    (params.self_signed(&key).unwrap().der().clone(), key)
}

/// DSM's default certificate: for `synology`, signed by an unknown CA; and that CA.
fn of_dsm() -> [CertificateDer<'static>; 2] {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer_key = KeyPair::generate().unwrap();
    let authority = params.self_signed(&issuer_key).unwrap().der().clone();
    let issuer = Issuer::new(params, issuer_key);
    let params = CertificateParams::new(["synology".to_owned()]).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap().der().clone();
    [certificate, authority]
}

/// Verifies this certificate for `nas.example`; returns the remedy if it is not trusted.
fn verify(trust: Trust, certificate: &CertificateDer<'_>) -> Result<(), String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    // A dummy CA instead of those of this machine.
    let dummy = self_signed(|_| {}).0;
    let known = trust.certificates.iter().cloned().chain([dummy]);
    let authorities = Verifier::new_with_extra_roots(known, provider.clone()).unwrap();
    let verifier = CertificateVerifier {
        authorities: trust.pins.is_empty().then_some(authorities),
        trust,
        provider,
    };
    let name = ServerName::try_from("nas.example").unwrap();
    let now = UnixTime::since_unix_epoch(NOW);
    let outcome = verifier.verify_server_cert(certificate, &[], &name, &[], now);
    outcome.map(drop).map_err(|error| match complaint(&error) {
        Some(Complaint::Untrusted(text)) => text,
        other => panic!("{error}: {other:?}"),
    })
}

fn pinned(certificate: &CertificateDer<'_>) -> Trust {
    Trust {
        pins: vec![Pin::of(certificate).unwrap()],
        ..Trust::default()
    }
}

fn trusting(certificate: &CertificateDer<'static>) -> Trust {
    Trust {
        certificates: vec![certificate.clone()],
        ..Trust::default()
    }
}

#[test]
fn dsms_default_certificate_is_trusted_by_its_name_or_its_key() {
    let [certificate, authority] = of_dsm();
    let pin = Pin::of(&certificate).unwrap().to_string();
    let refusal = verify(Trust::default(), &certificate).unwrap_err();
    assert!(
        refusal.contains(&format!("tls_pins: [\"{pin}\"]")),
        "{refusal}"
    );
    let refusal = verify(trusting(&authority), &certificate).unwrap_err();
    assert!(
        refusal.starts_with("it is for synology: write tls_server_name: synology"),
        "{refusal}"
    );
    let named = Trust {
        server_name: Some(ServerName::try_from("synology").unwrap()),
        ..trusting(&authority)
    };
    assert_eq!(verify(named.clone(), &certificate), Ok(()));
    // Another CA with the same name.
    let [_, namesake] = of_dsm();
    let refusal = verify(trusting(&namesake), &certificate).unwrap_err();
    assert!(refusal.contains("another key"), "{refusal}");
    // The name alone is not enough.
    let alone = Trust {
        certificates: vec![],
        ..named.clone()
    };
    verify(alone, &certificate).unwrap_err();
    let elsewhere = Trust {
        server_name: Some(ServerName::try_from("other").unwrap()),
        ..named
    };
    verify(elsewhere, &certificate).unwrap_err();
    assert_eq!(verify(pinned(&certificate), &certificate), Ok(()));
    let read = Trust {
        pins: vec![pin.parse().unwrap()],
        ..Trust::default()
    };
    assert_eq!(verify(read, &certificate), Ok(()));
}

#[test]
fn a_pin_replaces_chain_and_name_and_nothing_else() {
    let (old, _) = self_signed(|params| params.not_after = date_time_ymd(2025, 12, 31));
    let (early, _) = self_signed(|params| params.not_before = date_time_ymd(2026, 1, 2));
    for trust in [pinned(&old), trusting(&old)] {
        let refusal = verify(trust, &old).unwrap_err();
        assert!(refusal.contains("has expired"), "{refusal}");
    }
    for trust in [pinned(&early), trusting(&early)] {
        let refusal = verify(trust, &early).unwrap_err();
        assert!(refusal.contains("timedatectl"), "{refusal}");
    }
    let (one, _) = self_signed(|_| {});
    let (other, _) = self_signed(|_| {});
    let refusal = verify(pinned(&one), &other).unwrap_err();
    let seen = Pin::of(&other).unwrap().to_string();
    assert!(refusal.contains(&format!("add \"{seen}\"")), "{refusal}");
    let both = Trust {
        pins: vec![Pin::of(&one).unwrap(), Pin::of(&other).unwrap()],
        ..Trust::default()
    };
    for certificate in [&one, &other] {
        assert_eq!(verify(both.clone(), certificate), Ok(()));
    }
    // With pins, a certificate of a trusted CA is not accepted.
    let [certificate, authority] = of_dsm();
    let mut trust = pinned(&one);
    trust.certificates.push(authority);
    verify(trust, &certificate).unwrap_err();
}

#[test]
fn a_self_signed_certificate_is_trusted_byte_for_byte() {
    let (certificate, _) = self_signed(|_| {});
    let (twin, _) = self_signed(|_| {});
    assert_eq!(verify(trusting(&certificate), &certificate), Ok(()));
    verify(trusting(&certificate), &twin).unwrap_err();
    // An unknown one is refused with a remedy, whatever the error of rustls.
    let refusal = verify(Trust::default(), &certificate).unwrap_err();
    assert!(refusal.contains("as ca_file"), "{refusal}");
}

/// Presents a certificate with another key.
#[derive(Debug)]
struct StolenCertificate(Arc<CertifiedKey>);

impl ResolvesServerCert for StolenCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

fn handshake(
    certificate: CertificateDer<'static>,
    key: &KeyPair,
    trust: Trust,
) -> Result<(), TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let key = provider.key_provider.load_private_key(key).unwrap();
    let resolver = StolenCertificate(Arc::new(CertifiedKey::new(vec![certificate], key)));
    let server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(resolver));
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    let name = ServerName::try_from("nas.example").unwrap();
    let mut client = ClientConnection::new(Arc::new(trust.client().unwrap()), name).unwrap();
    for _ in 0..10 {
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        server.read_tls(&mut bytes.as_slice()).unwrap();
        let _ = server.process_new_packets();
        let mut bytes = Vec::new();
        server.write_tls(&mut bytes).unwrap();
        client.read_tls(&mut bytes.as_slice()).unwrap();
        client.process_new_packets()?;
    }
    assert!(!client.is_handshaking());
    Ok(())
}

#[test]
fn a_pinned_certificate_needs_its_private_key() {
    let (certificate, key) = self_signed(|_| {});
    let (_, another) = self_signed(|_| {});
    handshake(certificate.clone(), &key, pinned(&certificate)).unwrap();
    handshake(certificate.clone(), &key, trusting(&certificate)).unwrap();
    for trust in [pinned(&certificate), trusting(&certificate)] {
        let error = handshake(certificate.clone(), &another, trust).unwrap_err();
        assert!(
            matches!(
                error,
                TlsError::InvalidCertificate(CertificateError::BadSignature)
            ),
            "{error}"
        );
    }
}

#[test]
fn pins_are_read_in_the_forms_that_tools_print() {
    let pin = Pin([0xa5; 32]);
    let text = pin.to_string();
    let digits = "A5".repeat(32);
    let colons = ["A5"; 32].join(":");
    for form in [&*text, &text["sha256//".len()..], &digits, &colons] {
        assert_eq!(form.parse(), Ok(pin), "{form}");
    }
    for bad in ["", "sha256//", "sha1//AAAA", &digits[2..], "nonsense"] {
        assert!(bad.parse::<Pin>().unwrap_err().contains("base64"), "{bad}");
    }
}

#[test]
fn a_file_without_a_certificate_is_rejected_naming_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ca.crt");
    let refusal = || certificates(&path).unwrap_err().to_string();
    assert!(refusal().contains("cannot be read"));
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    for nothing in [
        Vec::new(),
        b"nonsense".to_vec(),
        key.serialize_pem().into_bytes(),
        certificate.der().to_vec(),
        certificate.pem().as_bytes()[..200].to_vec(),
    ] {
        std::fs::write(&path, nothing).unwrap();
        let text = refusal();
        assert!(
            text.contains("ca.crt") && text.contains("openssl x509"),
            "{text}"
        );
    }
    let damaged = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    std::fs::write(&path, format!("{}{damaged}", certificate.pem())).unwrap();
    assert!(refusal().starts_with("certificate 2 in"), "{}", refusal());
    std::fs::write(
        &path,
        format!("\u{feff}{}", certificate.pem().replace('\n', "\r\n")),
    )
    .unwrap();
    assert_eq!(certificates(&path).unwrap(), [certificate.der().clone()]);
}
