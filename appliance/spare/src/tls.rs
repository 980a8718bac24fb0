//! TLS 1.3 alone, between two certificates that know each other byte for byte. No authority has a say.

use std::sync::{Arc, RwLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::identity::NAME;
use crate::{Certificate, Identity, SpareError};

/// Whose certificate is let in; none while nobody is paired.
pub(crate) type Pin = Arc<RwLock<Option<Certificate>>>;
/// Whose certificates are let in to hear that they are out.
pub(crate) type Out = Arc<RwLock<Vec<Certificate>>>;

/// The spare's side. A caller that shows the pinned certificate is let in as the main box, one of a former main box to hear that it is out,
/// one that shows none as a stranger, and one that shows another not at all.
pub(crate) fn server(identity: &Identity, pin: Pin, out: Out) -> Result<ServerConfig, SpareError> {
    let provider = provider();
    let checks = Pinned { pin, out, algorithms: provider.signature_verification_algorithms };
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(cannot)?
        .with_client_cert_verifier(Arc::new(checks))
        .with_single_cert(vec![identity.certificate().der().clone()], identity.key());
    let mut config = config.map_err(cannot)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Tickets would let a caller in again without asking whether it is still pinned.
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The main box's side, to a spare that is pinned.
pub(crate) fn client(identity: &Identity, pin: &Certificate) -> Result<ClientConfig, SpareError> {
    let pin = Arc::new(RwLock::new(Some(pin.clone())));
    let config = calling(Some(pin))?
        .with_client_auth_cert(vec![identity.certificate().der().clone()], identity.key());
    config.map_err(cannot)
}

/// To a spare that is not known yet: any certificate is taken, and proved afterwards.
pub(crate) fn stranger() -> Result<ClientConfig, SpareError> {
    Ok(calling(None)?.with_no_client_auth())
}

fn calling(
    pin: Option<Pin>,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, SpareError> {
    let provider = provider();
    let algorithms = provider.signature_verification_algorithms;
    let checks: Arc<dyn ServerCertVerifier> = match pin {
        Some(pin) => Arc::new(Pinned { pin, out: Out::default(), algorithms }),
        None => Arc::new(Anybody(algorithms)),
    };
    Ok(ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(cannot)?
        .dangerous()
        .with_custom_certificate_verifier(checks))
}

/// The name that is asked for; nobody goes by it.
pub(crate) fn name() -> ServerName<'static> {
    ServerName::try_from(NAME).expect("the literal is a host name")
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn cannot(error: Error) -> SpareError {
    SpareError::Certificate(error.to_string())
}

/// Takes one certificate, those of former main boxes, and no other.
#[derive(Debug)]
struct Pinned {
    pin: Pin,
    out: Out,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Pinned {
    fn check(&self, shown: &CertificateDer<'_>) -> Result<(), Error> {
        let pin = self.pin.read().expect("nothing panics while it holds this");
        let out = || {
            let out = self.out.read().expect("nothing panics while it holds this");
            out.iter().any(|former| former.der() == shown)
        };
        match pin.as_ref().is_some_and(|pin| pin.der() == shown) || out() {
            true => Ok(()),
            false => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(shown).map(|()| ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken on the link".to_owned()))
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, shown, signed, &self.algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Pinned {
    fn client_auth_mandatory(&self) -> bool {
        false
    }
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }
    fn verify_client_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(shown).map(|()| ClientCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken on the link".to_owned()))
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, shown, signed, &self.algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Takes whatever certificate is shown, as long as its owner has the key to it.
#[derive(Debug)]
struct Anybody(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken on the link".to_owned()))
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, shown, signed, &self.0)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
