//! The keys with which the box signs who somebody is, in `STATE/pki/identity/keys.json`. RS256, which every client must know.
//!
//! ring signs, and cannot make such a key; the crate `rsa` makes it, and does nothing else with it (it is not as careful about
//! what its timing tells).

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use openidconnect::core::{CoreJsonWebKey, CoreJwsSigningAlgorithm};
use openidconnect::{JsonWebKeyId, PrivateSigningKey, SigningError};
use polder_pki::files;
use ring::rand::SystemRandom;
use ring::rsa::{KeyPair, PublicKeyComponents};
use ring::signature::{KeyPair as _, RSA_PKCS1_SHA256};
use rsa::pkcs8::EncodePrivateKey as _;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::OidcError;

const BITS: usize = 2048;
const DAY: i64 = 24 * 3600;
/// After this time another key is made.
const LIFE: i64 = 90 * DAY;
/// It is shown so long before it signs, so that every app knows it by then,
const BEFORE: i64 = DAY;
/// and the one before it so long after it signed last.
const AFTER: i64 = DAY;

/// The keys, read at first use.
pub struct Keys {
    folder: PathBuf,
    held: Mutex<Vec<Held>>,
}

/// A key as it is kept.
#[derive(Clone, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
struct Kept {
    /// Unix seconds.
    made_at: i64,
    /// PKCS#8, base64.
    key: String,
}

#[derive(Clone)]
struct Held {
    kept: Kept,
    signer: Arc<Signer>,
}

/// One key.
pub(crate) struct Signer {
    id: String,
    pair: KeyPair,
}

/// What is to be done with keys of these ages, the oldest first.
#[derive(Debug, PartialEq, Eq)]
struct Turn {
    /// Another one is due.
    make: bool,
    /// Which one signs, if there is one.
    signs: Option<usize>,
    /// So many of the oldest are shown no more.
    drop: usize,
}

fn turn(ages: &[i64]) -> Turn {
    let since = |age: i64| ages.iter().rposition(|a| *a >= age);
    // One made in a time to come was made while the clock was wrong.
    let make = ages.last().is_none_or(|age| *age >= LIFE || *age < -BEFORE);
    // The first one ever signs at once: there is nothing else.
    let signs = since(BEFORE).or(if ages.is_empty() { None } else { Some(0) });
    Turn { make, signs, drop: since(BEFORE + AFTER).unwrap_or(0) }
}

impl Keys {
    /// In this state folder; nothing is read or made yet.
    pub fn of(state: &Path) -> Self {
        Self { folder: state.join("pki").join("identity"), held: Mutex::default() }
    }

    /// The key that signs now, Unix seconds. Made if there is none. Blocks.
    pub(crate) fn signer(&self, now: i64) -> Result<Arc<Signer>, OidcError> {
        let held = self.turned(now)?;
        let ages: Vec<i64> = held.iter().map(|held| now - held.kept.made_at).collect();
        let signs = turn(&ages).signs.unwrap_or(0);
        Ok(held[signs].signer.clone())
    }

    /// What apps check signatures with, as a JSON Web Key Set. Blocks.
    pub fn public(&self, now: i64) -> Result<serde_json::Value, OidcError> {
        let held = self.turned(now)?;
        let keys: Vec<_> = held
            .iter()
            .map(|held| {
                let mut key = serde_json::json!(held.signer.as_verification_key());
                key["alg"] = "RS256".into();
                key
            })
            .collect();
        Ok(serde_json::json!({ "keys": keys }))
    }

    /// The keys, after whatever is due was done.
    fn turned(&self, now: i64) -> Result<MutexGuard<'_, Vec<Held>>, OidcError> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_empty() {
            *held = self.read()?;
        }
        let ages: Vec<i64> = held.iter().map(|held| now - held.kept.made_at).collect();
        let turn = turn(&ages);
        if turn.make || turn.drop > 0 {
            let mut next = held.clone();
            next.drain(..turn.drop);
            if turn.make {
                next.push(self.make(now)?);
            }
            self.write(&next)?;
            *held = next;
        }
        Ok(held)
    }

    fn path(&self) -> PathBuf {
        self.folder.join("keys.json")
    }

    fn make(&self, now: i64) -> Result<Held, OidcError> {
        log::info!("making a key to sign with who somebody is");
        let fail = |why: String| OidcError::Key { path: self.path(), why };
        let key = rsa::RsaPrivateKey::new(&mut rsa::rand_core::OsRng, BITS)
            .map_err(|error| fail(error.to_string()))?;
        let der = key.to_pkcs8_der().map_err(|error| fail(error.to_string()))?;
        let kept = Kept { made_at: now, key: STANDARD.encode(der.as_bytes()) };
        held(kept).ok_or_else(|| fail("ring does not take it".to_owned()))
    }

    /// A file that is not what we wrote is as good as none: apps ask for the new keys.
    fn read(&self) -> Result<Vec<Held>, OidcError> {
        let Some(text) = files::read(&self.path())? else { return Ok(Vec::new()) };
        let text = Zeroizing::new(text);
        let kept: Vec<Kept> = match serde_json::from_str(&text) {
            Ok(kept) => kept,
            Err(error) => {
                // Not the error itself: it may have a piece of a key in it.
                let (path, line) = (self.path(), error.line());
                log::warn!("{} cannot be read (line {line}); new keys are made", path.display());
                return Ok(Vec::new());
            }
        };
        Ok(kept.into_iter().filter_map(held).collect())
    }

    fn write(&self, held: &[Held]) -> Result<(), OidcError> {
        let kept: Vec<&Kept> = held.iter().map(|held| &held.kept).collect();
        let fail = |why: String| OidcError::Key { path: self.path(), why };
        let text = serde_json::to_string(&kept).map_err(|error| fail(error.to_string()))?;
        files::private_folder(&self.folder)?;
        Ok(files::write(&self.path(), &Zeroizing::new(text))?)
    }
}

fn held(kept: Kept) -> Option<Held> {
    let der = Zeroizing::new(STANDARD.decode(kept.key.as_bytes()).ok()?);
    let pair = KeyPair::from_pkcs8(&der).ok()?;
    let modulus = PublicKeyComponents::<Vec<u8>>::from(pair.public_key()).n;
    let digest = ring::digest::digest(&ring::digest::SHA256, &modulus);
    let id = digest.as_ref()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    Some(Held { kept, signer: Arc::new(Signer { id, pair }) })
}

impl PrivateSigningKey for Signer {
    type VerificationKey = CoreJsonWebKey;

    fn sign(&self, alg: &CoreJwsSigningAlgorithm, message: &[u8]) -> Result<Vec<u8>, SigningError> {
        if *alg != CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha256 {
            return Err(SigningError::UnsupportedAlg("only RS256".to_owned()));
        }
        let mut signature = vec![0; self.pair.public().modulus_len()];
        self.pair
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature)
            .map_err(|_| SigningError::CryptoError)?;
        Ok(signature)
    }

    fn as_verification_key(&self) -> CoreJsonWebKey {
        let PublicKeyComponents { n, e } =
            PublicKeyComponents::<Vec<u8>>::from(self.pair.public_key());
        CoreJsonWebKey::new_rsa(n, e, Some(JsonWebKeyId::new(self.id.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_shown_before_it_signs_and_after_it_signed() {
        let days = |ages: &[i64]| turn(&ages.iter().map(|age| age * DAY).collect::<Vec<_>>());
        let says = |make, signs, drop| Turn { make, signs, drop };
        assert_eq!(days(&[]), says(true, None, 0));
        assert_eq!(days(&[0]), says(false, Some(0), 0));
        assert_eq!(days(&[89]), says(false, Some(0), 0));
        assert_eq!(days(&[90]), says(true, Some(0), 0));
        assert_eq!(days(&[90, 0]), says(false, Some(0), 0));
        assert_eq!(days(&[91, 1]), says(false, Some(1), 0));
        assert_eq!(days(&[92, 2]), says(false, Some(1), 1));
        // The clock was in another year for a while.
        assert_eq!(days(&[10, -4000]), says(true, Some(0), 0));
        assert_eq!(days(&[10, -4000, 0]), says(false, Some(0), 0));
        assert_eq!(days(&[12, -4000, 2]), says(false, Some(2), 2));
        assert_eq!(days(&[-4000]), says(true, Some(0), 0));
    }

    #[test]
    fn a_year_of_keys_leaves_no_more_than_two_and_every_signature_can_be_checked() {
        // Pure: only ages, no keys.
        let (mut made, mut most) = (Vec::<i64>::new(), 0);
        for hour in 0..366 * 24 {
            let now = hour * 3600;
            let ages: Vec<i64> = made.iter().map(|at| now - at).collect();
            let turn = turn(&ages);
            made.drain(..turn.drop);
            if turn.make {
                made.push(now);
            }
            most = most.max(made.len());
            assert!(!made.is_empty());
        }
        assert_eq!(most, 2);
    }

    #[test]
    fn keys_are_private_stay_over_a_restart_and_a_broken_file_makes_new_ones() {
        let folder = tempfile::tempdir().unwrap();
        let now = 1_800_000_000;
        let first = Keys::of(folder.path()).signer(now).unwrap();
        let path = folder.path().join("pki/identity/keys.json");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = Keys::of(folder.path());
        assert_eq!(again.signer(now).unwrap().id, first.id);
        let text = again.public(now).unwrap().to_string();
        assert!(text.contains(&first.id) && !text.contains("\"d\""), "{text}");
        let signature = first.sign(&CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha256, b"x").unwrap();
        use openidconnect::JsonWebKey as _;
        let public = first.as_verification_key();
        let check = |message: &[u8]| {
            public.verify_signature(
                &CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha256,
                message,
                &signature,
            )
        };
        assert!(check(b"x").is_ok() && check(b"y").is_err());
        for broken in ["", "not json", "[{\"made_at\":1,\"key\":\"bm90IGEga2V5\"}]"] {
            std::fs::write(&path, broken).unwrap();
            assert_ne!(Keys::of(folder.path()).signer(now).unwrap().id, first.id);
        }
    }
}
