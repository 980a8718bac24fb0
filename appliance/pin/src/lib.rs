//! Knows whoever is at the other end of TLS by the certificate itself, for parts that no authority speaks for.
//!
//! Names, dates and issuers have no say: the bytes of the certificate are the only rule, and the other end has to have the key to it.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::client::WantsClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::WantsServerCert;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct, DistinguishedName, Error,
    ServerConfig, SignatureScheme, SupportedProtocolVersion,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest, Sha256};

/// Whom one end of a connection knows.
#[derive(Clone)]
pub struct Known(Rule);

type Judge = dyn Fn(&CertificateDer<'_>) -> bool + Send + Sync;

#[derive(Clone)]
enum Rule {
    Fingerprint([u8; 32]),
    By(Arc<Judge>),
    Anybody,
}

impl Known {
    /// Whoever shows the certificate with this fingerprint, SHA-256 of its DER.
    pub fn fingerprint(fingerprint: [u8; 32]) -> Self {
        Self(Rule::Fingerprint(fingerprint))
    }

    /// Whoever shows this certificate.
    pub fn certificate(certificate: &CertificateDer<'_>) -> Self {
        Self::fingerprint(fingerprint(certificate))
    }

    /// Whoever shows a certificate that this says yes to. It is asked at every handshake, so that it may change its mind.
    pub fn by(is: impl Fn(&CertificateDer<'_>) -> bool + Send + Sync + 'static) -> Self {
        Self(Rule::By(Arc::new(is)))
    }

    /// Anybody who has the key to the certificate that they show: to look at it, or where they are proved by something else.
    /// Nothing secret goes over such a connection before that.
    pub fn anybody() -> Self {
        Self(Rule::Anybody)
    }

    fn is(&self, shown: &CertificateDer<'_>) -> bool {
        match &self.0 {
            Rule::Fingerprint(pinned) => fingerprint(shown) == *pinned,
            Rule::By(is) => is(shown),
            Rule::Anybody => true,
        }
    }
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Rule::Fingerprint(_) => f.write_str("Known::fingerprint"),
            Rule::By(_) => f.write_str("Known::by"),
            Rule::Anybody => f.write_str("Known::anybody"),
        }
    }
}

/// Which versions of TLS are spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Versions {
    /// 1.3 alone: between our own parts.
    Only13,
    /// 1.2 as well: where the other end may be somebody else's.
    Both,
}

static ONLY13: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS13];

impl Versions {
    fn list(self) -> &'static [&'static SupportedProtocolVersion] {
        match self {
            Self::Only13 => &ONLY13,
            Self::Both => rustls::ALL_VERSIONS,
        }
    }
}

/// The side that calls, and knows whom. What it shows of itself is said next.
pub fn calling(
    whom: Known,
    versions: Versions,
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, Error> {
    let pinned = Arc::new(Pinned::new(whom));
    Ok(ClientConfig::builder_with_provider(pinned.provider.clone())
        .with_protocol_versions(versions.list())?
        .dangerous()
        .with_custom_certificate_verifier(pinned))
}

/// The side that is called. Whoever shows no certificate is let in as a stranger, whoever shows an unknown one is not.
pub fn called(
    by: Known,
    versions: Versions,
) -> Result<ConfigBuilder<ServerConfig, WantsServerCert>, Error> {
    let pinned = Arc::new(Pinned::new(by));
    Ok(ServerConfig::builder_with_provider(pinned.provider.clone())
        .with_protocol_versions(versions.list())?
        .with_client_cert_verifier(pinned))
}

/// SHA-256 of a certificate's DER.
pub fn fingerprint(certificate: &[u8]) -> [u8; 32] {
    Sha256::digest(certificate).into()
}

/// Whether a handshake failed because the other end is not the one that is known.
pub fn is_stranger(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    inner.is_some_and(|error| *error == stranger())
}

/// The other end hears "access denied".
fn stranger() -> Error {
    CertificateError::ApplicationVerificationFailure.into()
}

/// Both of rustls's verifiers.
#[derive(Debug)]
struct Pinned {
    known: Known,
    provider: Arc<CryptoProvider>,
}

impl Pinned {
    fn new(known: Known) -> Self {
        Self { known, provider: Arc::new(rustls::crypto::ring::default_provider()) }
    }

    fn check(&self, shown: &CertificateDer<'_>) -> Result<(), Error> {
        match self.known.is(shown) {
            true => Ok(()),
            false => Err(stranger()),
        }
    }

    fn signed12(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, shown, signed, algorithms)
    }

    fn signed13(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, shown, signed, algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
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
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed12(message, shown, signed)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed13(message, shown, signed)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
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
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed12(message, shown, signed)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed13(message, shown, signed)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

#[cfg(test)]
mod tests;
