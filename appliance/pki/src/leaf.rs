//! The certificate that the box serves.

use std::path::Path;
use std::sync::Arc;

use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::authority::{self, Authority};
use crate::decide::{self, LeafFacts};
use crate::{Names, PkiError, files};

/// A certificate ready to be served.
pub(crate) struct Leaf {
    pub(crate) facts: LeafFacts,
    pub(crate) served: Arc<CertifiedKey>,
}

impl Leaf {
    /// Has `authority` sign one for as much of `names` as it may, and writes it to `path`.
    pub(crate) fn make(
        path: &Path,
        authority: &Authority,
        names: &Names,
        now: i64,
    ) -> Result<Self, PkiError> {
        let key = KeyPair::generate()?;
        let permitted = authority.facts.permitted(names);
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, permitted.spoken());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        for host in &permitted.hosts {
            params.subject_alt_names.push(SanType::DnsName(host.as_str().try_into()?));
        }
        params
            .subject_alt_names
            .extend(permitted.addresses.iter().copied().map(SanType::IpAddress));
        let validity = decide::leaf_validity(now, authority.facts.validity);
        authority::set_validity(&mut params, validity);
        let pem = params.signed_by(&key, &authority.issuer)?.pem();
        let text = format!("{pem}{}", key.serialize_pem());
        files::write(path, &text)?;
        Self::from_text(&text).ok_or_else(|| PkiError::Damaged {
            path: path.to_owned(),
            why: "the certificate just made cannot be read".to_owned(),
        })
    }

    /// Reads one. Whatever is wrong with it, another one can be made: so `None`.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>, PkiError> {
        Ok(files::read(path)?.and_then(|text| Self::from_text(&text)))
    }

    fn from_text(text: &str) -> Option<Self> {
        let certificate = CertificateDer::from_pem_slice(text.as_bytes()).ok()?;
        let key = authority::key_in(text)?;
        if !authority::belong_together(&certificate, &key) {
            return None;
        }
        let facts = facts(&certificate)?;
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let signer = rustls::crypto::ring::sign::any_supported_type(&der).ok()?;
        let served = Arc::new(CertifiedKey::new(vec![certificate], signer));
        Some(Self { facts, served })
    }
}

fn facts(certificate: &CertificateDer<'_>) -> Option<LeafFacts> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let mut names = Names::default();
    for name in &certificate.subject_alternative_name().ok()??.value.general_names {
        match name {
            GeneralName::DNSName(host) => names.hosts.push((*host).to_owned()),
            GeneralName::IPAddress(bytes) => names.addresses.extend(authority::address(bytes)),
            _ => return None,
        }
    }
    names.hosts.sort();
    names.addresses.sort();
    Some(LeafFacts {
        issuer: certificate.issuer().to_string(),
        names,
        validity: authority::validity(&certificate),
    })
}
