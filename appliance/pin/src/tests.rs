//! Whole handshakes in memory, with the pinned end, a stranger and a thief.

use std::sync::atomic::{AtomicBool, Ordering};

use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConnection, ServerConnection};
use rustls_pki_types::PrivateKeyDer;

use super::*;

const VERSIONS: [Versions; 2] = [Versions::Only13, Versions::Both];

/// A certificate and its key.
struct Somebody {
    certificate: CertificateDer<'static>,
    key: rcgen::KeyPair,
}

impl Somebody {
    fn new() -> Self {
        Self::with(rcgen::KeyPair::generate().unwrap())
    }
    /// For a name that nobody asks for, and over since the last century.
    fn with(key: rcgen::KeyPair) -> Self {
        let mut asked = rcgen::CertificateParams::new(vec!["nobody.example".to_owned()]).unwrap();
        asked.not_before = rcgen::date_time_ymd(1980, 1, 1);
        asked.not_after = rcgen::date_time_ymd(1999, 1, 1);
        let certificate = asked.self_signed(&key).unwrap().der().clone();
        Self { certificate, key }
    }
    /// Who got at this certificate, which is public, and not at its key.
    fn thief(&self) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        Self { certificate: self.certificate.clone(), key }
    }
    fn shows(&self) -> Arc<Shows> {
        let key = PrivateKeyDer::try_from(self.key.serialize_der()).unwrap();
        let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
        // Made without asking whether the two belong together.
        Arc::new(Shows(Arc::new(CertifiedKey::new(vec![self.certificate.clone()], key))))
    }
}

#[derive(Debug)]
struct Shows(Arc<CertifiedKey>);

impl ResolvesServerCert for Shows {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

impl ResolvesClientCert for Shows {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
    fn has_certs(&self) -> bool {
        true
    }
}

/// A handshake to its end: what the side that failed first says, or the certificate that the caller showed.
fn meet(
    client: ClientConfig,
    server: ServerConfig,
) -> Result<Option<CertificateDer<'static>>, Error> {
    let name = ServerName::try_from("localhost").unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    for _ in 0..10 {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        let mut bytes = bytes.as_slice();
        while !bytes.is_empty() {
            server.read_tls(&mut bytes).unwrap();
            server.process_new_packets()?;
        }
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        let mut bytes = bytes.as_slice();
        while !bytes.is_empty() {
            client.read_tls(&mut bytes).unwrap();
            client.process_new_packets()?;
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok(server.peer_certificates().map(|shown| shown[0].clone().into_owned()))
}

fn answers(who: &Somebody, versions: Versions) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions.list())
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(who.shows())
}

fn calls(whom: Known, versions: Versions) -> ClientConfig {
    calling(whom, versions).unwrap().with_no_client_auth()
}

fn door(by: Known, versions: Versions) -> ServerConfig {
    called(by, versions).unwrap().with_cert_resolver(Somebody::new().shows())
}

fn comes(who: &Somebody, versions: Versions) -> ClientConfig {
    calling(Known::anybody(), versions).unwrap().with_client_cert_resolver(who.shows())
}

#[test]
fn a_server_is_known_by_its_certificate_whatever_its_name_and_its_dates_say() {
    for versions in VERSIONS {
        let spare = Somebody::new();
        let fingerprint = fingerprint(&spare.certificate);
        let server = || answers(&spare, versions);
        meet(calls(Known::fingerprint(fingerprint), versions), server()).unwrap();
        meet(calls(Known::certificate(&spare.certificate), versions), server()).unwrap();
        meet(calls(Known::anybody(), versions), server()).unwrap();
    }
}

#[test]
fn a_server_with_another_certificate_is_a_stranger_even_with_the_same_key() {
    for versions in VERSIONS {
        let spare = Somebody::new();
        let known = || Known::certificate(&spare.certificate);
        let other = meet(calls(known(), versions), answers(&Somebody::new(), versions));
        assert_eq!(other, Err(stranger()));
        let again = Somebody::with(rcgen::KeyPair::try_from(spare.key.serialize_der()).unwrap());
        assert_ne!(again.certificate, spare.certificate);
        assert_eq!(meet(calls(known(), versions), answers(&again, versions)), Err(stranger()));
    }
}

#[test]
fn a_server_that_shows_the_certificate_without_having_its_key_is_refused() {
    for server in VERSIONS {
        let thief = Somebody::new().thief();
        for known in [Known::certificate(&thief.certificate), Known::anybody()] {
            let seen = meet(calls(known, Versions::Both), answers(&thief, server));
            assert_eq!(seen, Err(CertificateError::BadSignature.into()), "{server:?}");
        }
    }
    // And by the older version.
    let thief = Somebody::new().thief();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let old = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(thief.shows());
    let seen = meet(calls(Known::certificate(&thief.certificate), Versions::Both), old);
    assert_eq!(seen, Err(CertificateError::BadSignature.into()));
}

#[test]
fn a_caller_is_known_by_its_certificate_and_one_without_is_a_stranger_who_may_speak() {
    for versions in VERSIONS {
        let main = Somebody::new();
        let known = || Known::certificate(&main.certificate);
        let shown = meet(comes(&main, versions), door(known(), versions)).unwrap();
        assert_eq!(shown, Some(main.certificate.clone()));
        let none = meet(calls(Known::anybody(), versions), door(known(), versions)).unwrap();
        assert_eq!(none, None);
        let other = meet(comes(&Somebody::new(), versions), door(known(), versions));
        assert_eq!(other, Err(stranger()));
        let thief = meet(comes(&main.thief(), versions), door(known(), versions));
        assert_eq!(thief, Err(CertificateError::BadSignature.into()));
    }
}

#[test]
fn who_is_known_is_asked_at_every_handshake() {
    let main = Somebody::new();
    let paired = Arc::new(AtomicBool::new(true));
    let (certificate, asked) = (main.certificate.clone(), paired.clone());
    let known = Known::by(move |shown| asked.load(Ordering::Relaxed) && *shown == certificate);
    let meets =
        || meet(comes(&main, Versions::Only13), door(known.clone(), Versions::Only13)).map(drop);
    assert_eq!(meets(), Ok(()));
    paired.store(false, Ordering::Relaxed);
    assert_eq!(meets(), Err(stranger()));
}

#[test]
fn between_our_own_parts_the_older_version_is_not_spoken() {
    let spare = Somebody::new();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let old = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(spare.shows());
    let known = Known::certificate(&spare.certificate);
    assert!(meet(calls(known.clone(), Versions::Only13), old.clone()).is_err());
    meet(calls(known, Versions::Both), old).unwrap();
}

#[test]
fn being_a_stranger_is_told_from_a_cable_that_broke() {
    assert!(is_stranger(&io::Error::new(io::ErrorKind::InvalidData, stranger())));
    assert!(!is_stranger(&io::Error::other(Error::HandshakeNotComplete)));
    assert!(!is_stranger(&io::Error::from(io::ErrorKind::ConnectionReset)));
}
