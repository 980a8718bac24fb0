//! A relay's folder: its key, and which boxes may hold lines under which names.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use crate::pass::{Pass, is_id};

/// Names that a box may have at a relay.
const MOST_NAMES: usize = 32;

/// See the module.
#[derive(Debug, Clone)]
pub struct Register {
    folder: PathBuf,
}

/// `relay.toml`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Known {
    #[serde(default)]
    boxes: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    names: Vec<String>,
    /// SHA-256 of the secret, base64url.
    secret: String,
}

/// Something about a relay's folder.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// Reading or writing.
    #[error("could not use {}: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Not what was written there.
    #[error("{} is damaged ({why}); correct it, or move it away and add the boxes again", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A box cannot be called so.
    #[error("{0:?} is no name for a box here; take up to 40 of a-z, 0-9 and -")]
    Id(String),
    /// No host name.
    #[error("{0:?} is no host name that callers could ask for")]
    Name(String),
    /// How many names.
    #[error("a box needs 1 to 32 names that callers ask for, such as oak.relay.example.org")]
    Count,
    /// Another box has it.
    #[error("{name} is the box {of}'s name already; remove that box first, or choose another")]
    Taken {
        /// The name.
        name: String,
        /// Whose it is.
        of: String,
    },
    /// No such box.
    #[error("no box is called {0} here; `polder relay list` says which there are")]
    Unknown(String),
    /// The key.
    #[error("the relay's own certificate could not be made: {0}")]
    Key(String),
}

impl Register {
    /// Opens the folder, and makes it with a key of its own where there is none.
    pub fn open(folder: &Path) -> Result<Self, RegisterError> {
        let this = Self { folder: folder.to_owned() };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|source| RegisterError::File { path: folder.to_owned(), source })?;
        if !this.certificate_path().exists() {
            let names = vec!["polder-relay".to_owned()];
            let made = rcgen::generate_simple_self_signed(names)
                .map_err(|error| RegisterError::Key(error.to_string()))?;
            this.write(&this.key_path(), &made.signing_key.serialize_pem())?;
            this.write(&this.certificate_path(), &made.cert.pem())?;
        }
        Ok(this)
    }

    /// The relay's own certificate and key; of no use for any box's name.
    pub(crate) fn identity(
        &self,
    ) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), RegisterError> {
        let damaged = |path: PathBuf, why: String| RegisterError::Damaged { path, why };
        let certificate = self.read(&self.certificate_path())?.unwrap_or_default();
        let key = self.read(&self.key_path())?.unwrap_or_default();
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes())
            .map_err(|error| damaged(self.certificate_path(), error.to_string()))?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
            .map_err(|error| damaged(self.key_path(), error.to_string()))?;
        Ok((certificate, key))
    }

    /// Lets a box hold lines under these names, and comes back with its pass, for a relay that is reached at `host` and `port`.
    pub fn add(
        &self,
        id: &str,
        names: &[String],
        (host, port): (&str, u16),
    ) -> Result<Pass, RegisterError> {
        if !is_id(id) {
            return Err(RegisterError::Id(id.to_owned()));
        }
        let names = hosts(names)?;
        let mut known = self.known()?;
        for (of, entry) in known.boxes.iter().filter(|(of, _)| *of != id) {
            if let Some(name) = names.iter().find(|name| entry.names.contains(name)) {
                return Err(RegisterError::Taken { name: name.clone(), of: of.clone() });
            }
        }
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(|error| RegisterError::Key(error.to_string()))?;
        let (certificate, _) = self.identity()?;
        let pass = Pass {
            id: id.to_owned(),
            secret,
            host: host.to_owned(),
            port,
            fingerprint: Pass::digest(&certificate),
        };
        let secret = BASE64_URL_SAFE_NO_PAD.encode(Pass::digest(&secret));
        known.boxes.insert(id.to_owned(), Entry { names, secret });
        self.keep(&known)?;
        Ok(pass)
    }

    /// Takes a box's pass away; a relay that runs ends its lines in seconds.
    pub fn remove(&self, id: &str) -> Result<(), RegisterError> {
        let mut known = self.known()?;
        known.boxes.remove(id).ok_or_else(|| RegisterError::Unknown(id.to_owned()))?;
        self.keep(&known)
    }

    /// Every box and its names.
    pub fn list(&self) -> Result<Vec<(String, Vec<String>)>, RegisterError> {
        let known = self.known()?;
        Ok(known.boxes.into_iter().map(|(id, entry)| (id, entry.names)).collect())
    }

    pub(crate) fn known(&self) -> Result<Known, RegisterError> {
        let path = self.folder.join("relay.toml");
        let text = self.read(&path)?.unwrap_or_default();
        toml::from_str(&text).map_err(|error| {
            let why = error.message().to_owned();
            RegisterError::Damaged { path, why }
        })
    }

    fn keep(&self, known: &Known) -> Result<(), RegisterError> {
        let text = toml::to_string(known).expect("names and texts are TOML");
        self.write(&self.folder.join("relay.toml"), &text)
    }

    fn key_path(&self) -> PathBuf {
        self.folder.join("relay.key")
    }

    fn certificate_path(&self) -> PathBuf {
        self.folder.join("relay.crt")
    }

    fn read(&self, path: &Path) -> Result<Option<String>, RegisterError> {
        match fs::read_to_string(path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(RegisterError::File { path: path.to_owned(), source }),
        }
    }

    /// Whole or not at all, and nobody else's to read.
    fn write(&self, path: &Path, text: &str) -> Result<(), RegisterError> {
        let beside = path.with_extension("new");
        let write = || {
            match fs::remove_file(&beside) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&beside, path)?;
            File::open(&self.folder)?.sync_all()
        };
        write().map_err(|source| RegisterError::File { path: path.to_owned(), source })
    }
}

impl Known {
    /// The names of a box that brings the right secret.
    pub(crate) fn admit(&self, id: &str, secret: &[u8]) -> Option<Vec<String>> {
        let entry = self.boxes.get(id)?;
        let kept = BASE64_URL_SAFE_NO_PAD.decode(&entry.secret).ok()?;
        bool::from(kept.ct_eq(&Pass::digest(secret))).then(|| entry.names.clone())
    }

    /// Whose name that is.
    pub(crate) fn box_of(&self, name: &str) -> Option<&str> {
        let found = self.boxes.iter().find(|(_, entry)| entry.names.iter().any(|n| n == name));
        found.map(|(id, _)| id.as_str())
    }

    /// Whether this box may still hold lines with what it brought when it came.
    pub(crate) fn still(&self, id: &str, secret: &[u8]) -> bool {
        self.admit(id, secret).is_some()
    }
}

fn hosts(names: &[String]) -> Result<Vec<String>, RegisterError> {
    if names.is_empty() || names.len() > MOST_NAMES {
        return Err(RegisterError::Count);
    }
    let mut all: Vec<String> = Vec::new();
    for name in names {
        let host = name.to_ascii_lowercase();
        let label = |label: &str| {
            let inner = |c: char| c.is_ascii_alphanumeric() || c == '-';
            (1..=63).contains(&label.len()) && label.chars().all(inner)
        };
        let is_address = host.parse::<std::net::IpAddr>().is_ok();
        if host.len() > 253 || is_address || !host.contains('.') || !host.split('.').all(label) {
            return Err(RegisterError::Name(name.clone()));
        }
        if !all.contains(&host) {
            all.push(host);
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_box_is_known_by_its_secret_until_it_is_removed_or_added_anew() {
        let folder = tempfile::tempdir().unwrap();
        let register = Register::open(&folder.path().join("relay")).unwrap();
        let pass =
            register.add("oak", &names(&["Oak.example.org"]), ("r.example.org", 443)).unwrap();
        let known = register.known().unwrap();
        assert_eq!(known.admit("oak", &pass.secret), Some(names(&["oak.example.org"])));
        assert_eq!(known.admit("oak", &[0; 32]), None);
        assert_eq!(known.admit("elm", &pass.secret), None);
        assert_eq!(known.box_of("oak.example.org"), Some("oak"));
        let again =
            register.add("oak", &names(&["oak.example.org"]), ("r.example.org", 443)).unwrap();
        let known = register.known().unwrap();
        assert!(!known.still("oak", &pass.secret) && known.still("oak", &again.secret));
        register.remove("oak").unwrap();
        assert!(register.known().unwrap().box_of("oak.example.org").is_none());
        assert!(register.remove("oak").is_err());
    }

    #[test]
    fn the_folder_has_no_secret_of_a_box_and_nobody_else_reads_it() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let register = Register::open(folder.path()).unwrap();
        let pass =
            register.add("oak", &names(&["oak.example.org"]), ("r.example.org", 443)).unwrap();
        let secret = BASE64_URL_SAFE_NO_PAD.encode(pass.secret);
        for entry in fs::read_dir(folder.path()).unwrap() {
            let path = entry.unwrap().path();
            assert!(!fs::read_to_string(&path).unwrap().contains(&secret), "{}", path.display());
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        // A second start is the same relay.
        let (certificate, _) = Register::open(folder.path()).unwrap().identity().unwrap();
        assert_eq!(Pass::digest(&certificate), pass.fingerprint);
    }

    #[test]
    fn names_belong_to_one_box_and_are_names() {
        let folder = tempfile::tempdir().unwrap();
        let register = Register::open(folder.path()).unwrap();
        let at = ("r.example.org", 443);
        register.add("oak", &names(&["oak.example.org", "wiki.oak.example.org"]), at).unwrap();
        let error = register.add("elm", &names(&["OAK.example.org"]), at).unwrap_err();
        assert!(error.to_string().contains("oak.example.org is the box oak's name"), "{error}");
        for bad in [&[][..], &["oak"], &["192.0.2.1"], &["a..b"], &["a b.org"]] {
            assert!(register.add("elm", &names(bad), at).is_err(), "{bad:?}");
        }
        assert!(register.add("E LM", &names(&["elm.example.org"]), at).is_err());
        assert_eq!(register.list().unwrap().len(), 1);
    }
}
