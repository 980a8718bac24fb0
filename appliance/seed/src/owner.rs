//! The owner's key: whoever has its other half may make a new box theirs, and nobody else.

use std::fmt;
use std::str::FromStr;

use ring::agreement::{self, ECDH_P256, EphemeralPrivateKey};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

/// Bytes of a point as browsers write it: both halves, uncompressed.
const POINT: usize = 65;
/// Bytes of a signature as browsers write it.
const SIGNATURE: usize = 64;

/// The public half, ECDSA on P-256: what every browser can make and sign with.
#[derive(Clone, PartialEq, Eq)]
pub struct OwnerKey([u8; POINT]);

/// Not a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the owner's key is not one that seed.html makes")]
pub struct NotAKey;

impl OwnerKey {
    /// Whether the other half signed `text`. `signature` is 128 hex digits.
    pub fn signed(&self, text: &str, signature: &str) -> bool {
        let Some(signature) = bytes::<SIGNATURE>(signature) else { return false };
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &self.0);
        key.verify(text.as_bytes(), &signature).is_ok()
    }
}

impl FromStr for OwnerKey {
    type Err = NotAKey;

    /// From 130 hex digits. A box with a key that is none could never be claimed, so it is tried here.
    fn from_str(text: &str) -> Result<Self, NotAKey> {
        let point = bytes::<POINT>(text).ok_or(NotAKey)?;
        let other = EphemeralPrivateKey::generate(&ECDH_P256, &SystemRandom::new());
        let theirs = agreement::UnparsedPublicKey::new(&ECDH_P256, &point);
        let on_the_curve = other.and_then(|key| agreement::agree_ephemeral(key, &theirs, |_| ()));
        on_the_curve.map(|()| Self(point)).map_err(|_| NotAKey)
    }
}

impl fmt::Debug for OwnerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnerKey(")?;
        self.0[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("…)")
    }
}

/// What the owner signs to make a box theirs: for this box, by its authority's fingerprint, and this once.
pub fn claim_text(fingerprint: &str, challenge: &str) -> String {
    format!("Polder: this box is mine.\nIts authority: {fingerprint}\nIts challenge: {challenge}\n")
}

fn bytes<const N: usize>(hex: &str) -> Option<[u8; N]> {
    let digits = hex.as_bytes();
    if digits.len() != 2 * N || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};

    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn pair() -> (EcdsaKeyPair, OwnerKey) {
        let (random, kind) = (SystemRandom::new(), &ECDSA_P256_SHA256_FIXED_SIGNING);
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(kind, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(kind, pkcs8.as_ref(), &random).unwrap();
        let key = hex(pair.public_key().as_ref()).parse().unwrap();
        (pair, key)
    }

    fn sign(pair: &EcdsaKeyPair, text: &str) -> String {
        hex(pair.sign(&SystemRandom::new(), text.as_bytes()).unwrap().as_ref())
    }

    #[test]
    fn only_the_other_half_proves_an_owner_and_only_for_this_box_and_this_once() {
        let ((mine, key), (other, _)) = (pair(), pair());
        let text = claim_text("AB:CD", "c1");
        let signature = sign(&mine, &text);
        assert!(key.signed(&text, &signature));
        assert!(!key.signed(&text, &sign(&other, &text)));
        assert!(!key.signed(&claim_text("AB:CE", "c1"), &signature));
        assert!(!key.signed(&claim_text("AB:CD", "c2"), &signature));
        for broken in ["", "00", &signature[2..], &signature.replace('0', "g")] {
            assert!(!key.signed(&text, broken), "{broken}");
        }
    }

    #[test]
    fn a_key_that_no_signature_could_fit_is_refused_at_once() {
        let (_, key) = pair();
        let right = hex(&key.0);
        assert!(right.parse::<OwnerKey>().is_ok());
        let off_the_curve =
            format!("{}{}", &right[..128], if right.ends_with("00") { "01" } else { "00" });
        for wrong in ["", "04", &right[2..], &off_the_curve, &"0".repeat(130)] {
            assert_eq!(wrong.parse::<OwnerKey>(), Err(NotAKey), "{wrong}");
        }
    }
}
