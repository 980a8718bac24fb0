use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, SanType};
use ring::digest::{SHA256, digest};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};

use crate::{Folders, SpareError};

/// What every link certificate says that it is for. Nobody goes by that: certificates are compared byte for byte. Programs that go by names,
/// such as restic, come through a door of their own on this machine, so that `localhost` and its address are among them.
pub(crate) const NAME: &str = "spare.internal";
/// More is no certificate of ours.
const LARGEST: usize = 4096;

/// A link certificate, as it goes over the wire.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Certificate(CertificateDer<'static>);

impl Certificate {
    /// From the bytes that TLS carries.
    pub fn of(der: &CertificateDer<'_>) -> Self {
        Self(der.clone().into_owned())
    }
    /// The bytes.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.0
    }
    /// SHA-256 of them.
    pub fn digest(&self) -> [u8; 32] {
        let digest = digest(&SHA256, &self.0);
        digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
    }
    /// The first 64 bits of that, for two people to compare: `3f2a-9c01-77de-b402`.
    pub fn short(&self) -> String {
        let digest = self.digest();
        let groups: Vec<String> =
            digest[..8].chunks(2).map(|two| format!("{:02x}{:02x}", two[0], two[1])).collect();
        groups.join("-")
    }
    /// In PEM.
    pub fn pem(&self) -> String {
        let text = BASE64_STANDARD.encode(&self.0);
        let lines: Vec<&str> = text
            .as_bytes()
            .chunks(64)
            .map(|line| std::str::from_utf8(line).expect("base64 is ASCII"))
            .collect();
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Certificate({})", self.short())
    }
}

impl TryFrom<String> for Certificate {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        if text.len() > LARGEST * 2 {
            return Err("that is too long for a certificate".to_owned());
        }
        let der = BASE64_STANDARD.decode(text).map_err(|error| error.to_string())?;
        match der.is_empty() || der.len() > LARGEST {
            true => Err("that is no certificate".to_owned()),
            false => Ok(Self(der.into())),
        }
    }
}

impl From<Certificate> for String {
    fn from(certificate: Certificate) -> Self {
        BASE64_STANDARD.encode(&certificate.0)
    }
}

/// This box, on the link: a certificate that it made and signed itself, and the key to it. It lasts as long as the box; what counts is that
/// the other box has pinned it.
pub struct Identity {
    certificate: Certificate,
    key: PrivatePkcs8KeyDer<'static>,
}

impl Identity {
    /// The box's own, made at first use.
    pub fn of_box(folders: &Folders) -> Result<Self, SpareError> {
        let path = folders.identity();
        let pki = |error: polder_pki::PkiError| SpareError::Certificate(error.to_string());
        if let Some(text) = polder_pki::files::read(&path).map_err(pki)? {
            let damaged = |why: String| SpareError::Damaged { path: path.clone(), why };
            let certificate = CertificateDer::from_pem_slice(text.as_bytes())
                .map_err(|error| damaged(error.to_string()))?;
            let key = PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes())
                .map_err(|error| damaged(error.to_string()))?;
            return Ok(Self { certificate: Certificate(certificate), key });
        }
        let made = |error: rcgen::Error| SpareError::Certificate(error.to_string());
        let key = KeyPair::generate().map_err(made)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "Polder link");
        let name = |name: &str| name.try_into().map(SanType::DnsName).map_err(made);
        params.subject_alt_names = vec![
            name(NAME)?,
            name("localhost")?,
            SanType::IpAddress(std::net::Ipv4Addr::LOCALHOST.into()),
        ];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.self_signed(&key).map_err(made)?;
        polder_pki::files::private_folder(folders.own()).map_err(pki)?;
        let text = format!("{}{}", certificate.pem(), key.serialize_pem());
        polder_pki::files::write(&path, &text).map_err(pki)?;
        Ok(Self {
            certificate: Certificate::of(certificate.der()),
            key: PrivatePkcs8KeyDer::from(key.serialize_der()),
        })
    }

    /// What the other box pins.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key.clone_key())
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.certificate.short())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_box_makes_its_certificate_once_and_nobody_else_can_read_the_key() {
        let state = tempfile::tempdir().unwrap();
        let folders = Folders::of(state.path());
        let first = Identity::of_box(&folders).unwrap();
        let second = Identity::of_box(&folders).unwrap();
        assert_eq!(first.certificate(), second.certificate());
        let mode =
            |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(folders.own()), mode(&folders.identity())), (0o700, 0o600));
        let pem = first.certificate().pem();
        assert_eq!(
            &CertificateDer::from_pem_slice(pem.as_bytes()).unwrap(),
            first.certificate().der()
        );
        let text = String::from(first.certificate().clone());
        assert_eq!(&Certificate::try_from(text).unwrap(), first.certificate());
        assert!(Certificate::try_from("A".repeat(9000)).is_err());
        assert_eq!(first.certificate().short().len(), 19);
    }
}
