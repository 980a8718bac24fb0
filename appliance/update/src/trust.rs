//! Whom a box believes: the keys that are in its image.

use std::fs;
use std::io::Cursor;
use std::path::Path;

use minisign::{PublicKey, PublicKeyBox, SignatureBox};

use crate::manifest::LONGEST;
use crate::{Manifest, Refusal, UpdateError};

/// Where an image has its keys. A new image may bring others: that is how keys are changed.
pub const KEYS: &str = "/usr/lib/polder/keys/update";

/// The public keys whose holders may sign updates.
#[derive(Debug)]
pub struct Keys(Vec<PublicKey>);

impl Keys {
    /// Every `*.pub` in this folder; none where there is no folder.
    pub fn in_folder(folder: &Path) -> Result<Self, UpdateError> {
        let entries = match fs::read_dir(folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self(Vec::new()));
            }
            other => other.map_err(UpdateError::file("read", folder))?,
        };
        let mut keys = Vec::new();
        for entry in entries {
            let path = entry.map_err(UpdateError::file("read", folder))?.path();
            if path.extension().is_none_or(|ending| ending != "pub") {
                continue;
            }
            let text = fs::read_to_string(&path).map_err(UpdateError::file("read", &path))?;
            let key = PublicKeyBox::from_string(&text).and_then(PublicKeyBox::into_public_key);
            keys.push(key.map_err(|error| {
                UpdateError::Disk(format!("{} is no key: {error}", path.display()))
            })?);
        }
        Ok(Self(keys))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The manifest of this text, if the holder of any of the keys signed it.
    pub fn believe(&self, text: &str, signature: &str) -> Result<Manifest, Refusal> {
        if self.0.is_empty() {
            return Err(Refusal::NoKeys);
        }
        if text.len() > LONGEST || signature.len() > LONGEST {
            return Err(Refusal::Unreadable("it is too long to be one".to_owned()));
        }
        let signature = SignatureBox::from_string(signature)
            .map_err(|error| Refusal::Signature(error.to_string()))?;
        let signed = |key: &PublicKey| {
            let reader = Cursor::new(text.as_bytes());
            minisign::verify(key, &signature, reader, true, false, false)
        };
        let mut why = String::new();
        for key in &self.0 {
            match signed(key) {
                Ok(()) => return Manifest::parse(text),
                Err(error) => why = error.to_string(),
            }
        }
        Err(Refusal::Signature(why))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use minisign::KeyPair;

    use super::*;
    use crate::manifest::tests::manifest;

    pub(crate) fn pair() -> KeyPair {
        KeyPair::generate_unencrypted_keypair().unwrap()
    }

    pub(crate) fn signature(pair: &KeyPair, text: &str) -> String {
        let reader = Cursor::new(text.as_bytes());
        minisign::sign(Some(&pair.pk), &pair.sk, reader, Some("file"), None).unwrap().into_string()
    }

    pub(crate) fn keys(pairs: &[&KeyPair]) -> Keys {
        Keys(pairs.iter().map(|pair| pair.pk.clone()).collect())
    }

    #[test]
    fn what_any_of_the_keys_signed_is_believed() {
        let (old, new) = (pair(), pair());
        let text = manifest("0.2.0").to_text();
        let both = keys(&[&old, &new]);
        for pair in [&old, &new] {
            assert_eq!(both.believe(&text, &signature(pair, &text)).unwrap(), manifest("0.2.0"));
        }
    }

    #[test]
    fn unsigned_wrongly_signed_and_changed_texts_are_refused() {
        let (ours, theirs) = (pair(), pair());
        let text = manifest("0.2.0").to_text();
        let keys_ = keys(&[&ours]);
        let refused =
            |text: &str, signature: &str| keys_.believe(text, signature).unwrap_err().to_string();
        assert!(refused(&text, "").contains("not signed"), "{}", refused(&text, ""));
        assert!(refused(&text, &signature(&theirs, &text)).contains("not signed"));
        let changed = text.replace("0.2.0", "0.3.0");
        assert!(refused(&changed, &signature(&ours, &text)).contains("not signed"));
        let good = signature(&ours, &text);
        assert!(refused(&text, &good[..good.len() / 2]).contains("not signed"));
        let none = keys(&[]).believe(&text, &good).unwrap_err().to_string();
        assert!(none.contains("no keys"), "{none}");
    }

    #[test]
    fn keys_are_read_from_their_folder_and_what_is_none_is_named() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Keys::in_folder(&folder.path().join("none")).unwrap().count(), 0);
        let public = pair().pk.to_box().unwrap().to_string();
        fs::write(folder.path().join("2026.pub"), public).unwrap();
        fs::write(folder.path().join("README"), "x").unwrap();
        assert_eq!(Keys::in_folder(folder.path()).unwrap().count(), 1);
        fs::write(folder.path().join("bad.pub"), "x").unwrap();
        let error = Keys::in_folder(folder.path()).unwrap_err().to_string();
        assert!(error.contains("bad.pub"), "{error}");
    }
}
