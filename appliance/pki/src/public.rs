//! A certificate that somebody else signed, for names that the world knows.

use std::sync::Arc;

use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::authority;
use crate::decide::{self, Validity};

/// A chain of certificates with its key, ready to be served.
#[derive(Debug, Clone)]
pub struct PublicChain {
    names: Vec<String>,
    issuer: String,
    validity: Validity,
    served: Arc<CertifiedKey>,
}

impl PublicChain {
    /// From PEM: the certificates, the box's own first, and its key. `None` where that is not what the text has.
    pub fn from_pem(text: &str) -> Option<Self> {
        let chain: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<_, _>>().ok()?;
        let own = chain.first()?;
        let key = authority::key_in(text)?;
        if !authority::belong_together(own, &key) {
            return None;
        }
        let (_, certificate) = X509Certificate::from_der(own).ok()?;
        let mut names = Vec::new();
        for name in &certificate.subject_alternative_name().ok()??.value.general_names {
            if let GeneralName::DNSName(host) = name {
                names.push(host.to_ascii_lowercase());
            }
        }
        names.sort();
        let issuer = certificate.issuer();
        let said = issuer.iter_organization().chain(issuer.iter_common_name()).next();
        let issuer = said.and_then(|part| part.as_str().ok()).unwrap_or("an authority").to_owned();
        let validity = authority::validity(&certificate);
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let signer = rustls::crypto::ring::sign::any_supported_type(&der).ok()?;
        let served = Arc::new(CertifiedKey::new(chain, signer));
        Some(Self { names, issuer, validity, served })
    }

    /// Host names that it speaks for, sorted; a star stands for one label.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Who signed it, as it calls itself.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// How long it lasts.
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// The box's own certificate.
    pub fn own(&self) -> &CertificateDer<'static> {
        // `from_pem` takes no empty chain.
        &self.served.cert[0]
    }

    /// Does it speak for this host, in lower case?
    pub fn covers(&self, host: &str) -> bool {
        covers(&self.names, host)
    }

    pub(crate) fn served_at(&self, host: &str, now: i64) -> Option<Arc<CertifiedKey>> {
        // A wrong clock says nothing about age. A certificate that is over is worse than one of the box's own.
        let over = decide::plausible(now) && now > self.validity.until;
        (!over && self.covers(host)).then(|| self.served.clone())
    }
}

fn covers(names: &[String], host: &str) -> bool {
    let below = host.split_once('.').map_or("", |(_, rest)| rest);
    names.iter().any(|name| name == host || name.strip_prefix("*.").is_some_and(|n| n == below))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_one_label_and_not_for_none_or_two() {
        let names = ["*.gpu.example".to_owned(), "box.example".to_owned()];
        assert!(covers(&names, "box.example"));
        assert!(covers(&names, "wiki.gpu.example"));
        for not in ["gpu.example", "a.wiki.gpu.example", "wiki.box.example", "example", ""] {
            assert!(!covers(&names, not), "{not}");
        }
    }
}
