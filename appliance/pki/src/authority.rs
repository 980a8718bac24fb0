//! One certificate authority: its key, its certificate, and how it comes to be.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use sha2::{Digest, Sha256};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::decide::{self, AuthorityFacts, Validity};
use crate::{Names, PkiError, files};

/// The authority's certificate, as members need to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ca {
    /// Where it is on this machine.
    pub file: PathBuf,
    /// The certificate, PEM.
    pub pem: String,
    /// Its SHA-256, `AB:CD:…`, for reading aloud.
    pub fingerprint: String,
}

/// An authority that can sign.
pub(crate) struct Authority {
    pub(crate) facts: AuthorityFacts,
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) pem: String,
    pub(crate) issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes one for these names and writes it to `path`: certificate and key in one file, so that
    /// they cannot come apart.
    pub(crate) fn make(path: &Path, names: &Names, now: i64) -> Result<Self, PkiError> {
        let key = KeyPair::generate()?;
        let id: String = hex(&Sha256::digest(key.public_key_raw())[..4]).replace(':', "");
        let params = params(names, decide::authority_validity(now), &id.to_lowercase());
        let pem = params.self_signed(&key)?.pem();
        files::write(path, &format!("{pem}{}", key.serialize_pem()))?;
        Self::read(path)?.ok_or_else(|| PkiError::Damaged {
            path: path.to_owned(),
            why: "it vanished just after it was written".to_owned(),
        })
    }

    /// Reads one; `None` if there is no such file.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>, PkiError> {
        let Some(text) = files::read(path)? else { return Ok(None) };
        let damaged = |why: &str| PkiError::Damaged { path: path.to_owned(), why: why.to_owned() };
        let certificate = CertificateDer::from_pem_slice(text.as_bytes())
            .map_err(|_| damaged("it has no certificate"))?;
        let key = key_in(&text).ok_or_else(|| damaged("it has no private key"))?;
        let facts = facts(&certificate).ok_or_else(|| damaged("its certificate is unreadable"))?;
        if !belong_together(&certificate, &key) {
            return Err(damaged("key and certificate do not belong together"));
        }
        let pem = certificate_part(&text);
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        Ok(Some(Self { facts, certificate, pem, issuer }))
    }

    pub(crate) fn fingerprint(&self) -> String {
        hex(&Sha256::digest(&self.certificate))
    }
}

fn params(names: &Names, validity: Validity, id: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    // The id keeps apart two boxes of one name, and two authorities of one box.
    params
        .distinguished_name
        .push(DnType::CommonName, format!("Polder box {} ({id})", names.spoken()));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    // No e-mail, no code signing: the name limit below does not cover those kinds of names.
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let hosts = names.hosts.iter().cloned().map(GeneralSubtree::DnsName);
    let addresses = names.addresses.iter().map(|ip| {
        let whole = if ip.is_ipv4() { 32 } else { 128 };
        GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(*ip, whole))
    });
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: hosts.chain(addresses).collect(),
        excluded_subtrees: Vec::new(),
    });
    set_validity(&mut params, validity);
    params
}

/// rcgen wants another crate's date type; this is the way to one without naming that crate.
pub(crate) fn set_validity(params: &mut CertificateParams, validity: Validity) {
    let seconds = |s: i64| std::time::Duration::from_secs(u64::try_from(s).unwrap_or(0));
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + seconds(validity.from);
    params.not_after = epoch + seconds(validity.until);
}

/// The private key in a PEM text that also has certificates.
pub(crate) fn key_in(text: &str) -> Option<KeyPair> {
    let begin = text.find("-----BEGIN PRIVATE KEY-----")?;
    KeyPair::from_pem(&text[begin..]).ok()
}

/// The certificate in a PEM text, without the key that follows it.
pub(crate) fn certificate_part(text: &str) -> String {
    let end = text.find("-----BEGIN PRIVATE KEY-----").unwrap_or(text.len());
    text[..end].to_owned()
}

pub(crate) fn belong_together(certificate: &CertificateDer<'_>, key: &KeyPair) -> bool {
    X509Certificate::from_der(certificate)
        .is_ok_and(|(_, c)| c.public_key().subject_public_key.data == key.public_key_raw())
}

fn facts(certificate: &CertificateDer<'_>) -> Option<AuthorityFacts> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let constraints = certificate.name_constraints().ok()??.value;
    let (mut hosts, mut addresses) = (Vec::new(), Vec::new());
    for subtree in constraints.permitted_subtrees.iter().flatten() {
        match &subtree.base {
            GeneralName::DNSName(name) => hosts.push((*name).to_owned()),
            // An address and its mask, both of one length; ours are whole addresses.
            GeneralName::IPAddress(bytes) => {
                addresses.extend(address(&bytes[..bytes.len() / 2]));
            }
            _ => return None,
        }
    }
    Some(AuthorityFacts {
        subject: certificate.subject().to_string(),
        hosts,
        addresses,
        validity: validity(&certificate),
    })
}

pub(crate) fn validity(certificate: &X509Certificate<'_>) -> Validity {
    let validity = certificate.validity();
    Validity { from: validity.not_before.timestamp(), until: validity.not_after.timestamp() }
}

pub(crate) fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(":")
}
