//! The certificate that the box serves: one for whoever comes by a name, one for whoever comes by address.

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
use crate::decide::{LeafFacts, Validity};
use crate::{Names, PkiError, files};

/// A certificate ready to be served.
pub(crate) struct Leaf {
    pub(crate) facts: LeafFacts,
    pub(crate) served: Served,
}

/// One key, in two certificates.
#[derive(Clone)]
pub(crate) struct Served {
    /// Speaks for the names alone. Libraries that cannot check an authority's limit in addresses (BoringSSL, and so Claude
    /// Code) refuse every certificate below such an authority that has an address in it, and take one that has none.
    pub(crate) by_name: Arc<CertifiedKey>,
    /// Speaks for names and addresses.
    pub(crate) by_address: Arc<CertifiedKey>,
}

impl Leaf {
    /// Has `authority` sign one for as much of `names` as it may, and writes it to `path`.
    pub(crate) fn make(
        path: &Path,
        authority: &Authority,
        names: &Names,
        validity: Validity,
    ) -> Result<Self, PkiError> {
        let key = KeyPair::generate()?;
        let all = authority.facts.permitted(names);
        let hosts = Names { addresses: Vec::new(), ..all.clone() };
        let mut text = String::new();
        for names in [&all, &hosts] {
            text += &Self::params(names, validity)?.signed_by(&key, &authority.issuer)?.pem();
        }
        text += &key.serialize_pem();
        files::write(path, &text)?;
        Self::from_text(&text).ok_or_else(|| PkiError::Damaged {
            path: path.to_owned(),
            why: "the certificate just made cannot be read".to_owned(),
        })
    }

    fn params(permitted: &Names, validity: Validity) -> Result<CertificateParams, PkiError> {
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
        authority::set_validity(&mut params, validity);
        Ok(params)
    }

    /// Reads one. Whatever is wrong with it, another one can be made: so `None`.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>, PkiError> {
        Ok(files::read(path)?.and_then(|text| Self::from_text(&text)))
    }

    fn from_text(text: &str) -> Option<Self> {
        let mut certificates = CertificateDer::pem_slice_iter(text.as_bytes());
        let (all, hosts) = (certificates.next()?.ok()?, certificates.next()?.ok()?);
        let key = authority::key_in(text)?;
        if ![&all, &hosts].iter().all(|c| authority::belong_together(c, &key)) {
            return None;
        }
        let (facts, by_name) = (facts(&all)?, facts(&hosts)?);
        if by_name.names.hosts != facts.names.hosts || !by_name.names.addresses.is_empty() {
            return None;
        }
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let signer = rustls::crypto::ring::sign::any_supported_type(&der).ok()?;
        let served = Served {
            by_name: Arc::new(CertifiedKey::new(vec![hosts], signer.clone())),
            by_address: Arc::new(CertifiedKey::new(vec![all], signer)),
        };
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
