//! Shared keys and what is signed with them (RFC 8945), HMAC-SHA256.

use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ring::hmac;

use crate::name::{Name, NameError};

/// How far two clocks may be apart, in seconds; RFC 8945 recommends it.
pub(crate) const FUDGE: u16 = 300;
pub(crate) const ALGORITHM: &str = "hmac-sha256";

/// A key that the zone's server has as well. Its secret shows in no `{:?}`.
#[derive(Clone)]
pub struct Key {
    pub(crate) name: Name,
    secret: hmac::Key,
}

/// Not a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Its name is none.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Its secret is not in base64, or too short to keep anybody out.
    #[error(
        "the secret of a DNS key is at least 16 bytes in base64, as in the line `secret \"…\";` that tsig-keygen prints; copy it from there"
    )]
    Secret,
}

impl Key {
    /// A key by its name and its secret in base64.
    pub fn new(name: &str, secret: &str) -> Result<Self, KeyError> {
        let bytes = BASE64_STANDARD.decode(secret.trim()).map_err(|_| KeyError::Secret)?;
        if bytes.len() < 16 {
            return Err(KeyError::Secret);
        }
        Ok(Self { name: name.parse()?, secret: hmac::Key::new(hmac::HMAC_SHA256, &bytes) })
    }

    /// Over a request, which has no TSIG record yet.
    pub(crate) fn sign(&self, message: &[u8], signed: &Signed) -> Vec<u8> {
        let mut context = hmac::Context::with_key(&self.secret);
        context.update(message);
        context.update(&self.variables(signed));
        context.sign().as_ref().to_vec()
    }

    /// Is this the server's signature under its answer to the request with that signature? `message` is the answer
    /// as it was before it was signed.
    pub(crate) fn verifies(
        &self,
        request: &[u8],
        message: &[u8],
        signed: &Signed,
        mac: &[u8],
    ) -> bool {
        let mut all = Vec::with_capacity(request.len() + message.len() + 64);
        all.extend_from_slice(&(request.len() as u16).to_be_bytes());
        all.extend_from_slice(request);
        all.extend_from_slice(message);
        all.extend_from_slice(&self.variables(signed));
        hmac::verify(&self.secret, &all, mac).is_ok()
    }

    /// What is signed beside the message: RFC 8945, 4.3.3.
    fn variables(&self, signed: &Signed) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        self.name.write(&mut out);
        // Class ANY, TTL 0.
        out.extend_from_slice(&[0, 255, 0, 0, 0, 0]);
        algorithm(&mut out);
        out.extend_from_slice(&signed.at.to_be_bytes()[2..]);
        out.extend_from_slice(&signed.fudge.to_be_bytes());
        out.extend_from_slice(&signed.error.to_be_bytes());
        out.extend_from_slice(&(signed.other.len() as u16).to_be_bytes());
        out.extend_from_slice(&signed.other);
        out
    }
}

pub(crate) fn algorithm(out: &mut Vec<u8>) {
    out.push(ALGORITHM.len() as u8);
    out.extend_from_slice(ALGORITHM.as_bytes());
    out.push(0);
}

/// What a signature says beside the message.
pub(crate) struct Signed {
    /// Unix seconds; 48 bits are sent.
    pub(crate) at: u64,
    pub(crate) fudge: u16,
    /// 0, or what was wrong with the request's signature.
    pub(crate) error: u16,
    pub(crate) other: Vec<u8>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key {{ name: {}, secret: (hidden) }}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

    #[test]
    fn a_secret_is_long_enough_base64_and_never_shows() {
        assert!(Key::new("polder", SECRET).is_ok());
        for bad in ["", "short", "AAAA", "not base64 at all!!"] {
            assert_eq!(Key::new("polder", bad).unwrap_err(), KeyError::Secret, "{bad}");
        }
        let shown = format!("{:?}", Key::new("polder.", SECRET).unwrap());
        assert_eq!(shown, "Key { name: polder, secret: (hidden) }");
    }
}
