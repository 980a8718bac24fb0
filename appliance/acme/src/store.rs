//! What is kept in `STATE/pki/public`: each file whole or not there, and nobody else's to read.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use instant_acme::AccountCredentials;
use polder_control::{SecretName, SecretText};
use polder_pki::{PkiError, PublicChain, files};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::decide::{Hint, Tries};
use crate::prove::Shown;

/// The folder.
#[derive(Debug, Clone)]
pub(crate) struct Folder(PathBuf);

pub(crate) type Secrets = BTreeMap<SecretName, SecretText>;

/// Secrets that came with a wish, for when the box is told to have it so; an empty text is to be forgotten then.
#[derive(Serialize, Deserialize)]
pub(crate) struct Waiting {
    /// The wish, as [`Diary::asked`] has it.
    pub(crate) asked: String,
    pub(crate) secrets: Secrets,
}

/// The account with an authority: its key, which is kept before the authority hears of it, and what it answered.
#[derive(Serialize, Deserialize)]
pub(crate) struct Account {
    pub(crate) directory: String,
    /// The account of the authority's that it is bound to.
    #[serde(default)]
    pub(crate) bound_to: Option<String>,
    /// PKCS#8, base64; of an account that may not be there yet.
    pub(crate) key: Option<String>,
    pub(crate) credentials: Option<AccountCredentials>,
}

/// An order that was begun.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) directory: String,
    pub(crate) names: Vec<String>,
    pub(crate) url: String,
    /// Unix seconds.
    pub(crate) since: i64,
    /// The key that the certificate will have, PEM.
    pub(crate) key: String,
    /// What was shown for it, to be removed when it is over.
    #[serde(default)]
    pub(crate) proofs: Vec<Shown>,
}

/// How it went.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Diary {
    #[serde(default)]
    pub(crate) tries: Tries,
    #[serde(default)]
    pub(crate) hint: Option<Hint>,
    /// The last failure, in words.
    #[serde(default)]
    pub(crate) why: Option<String>,
    /// What was asked for then: failures with another wish count no more.
    #[serde(default)]
    pub(crate) asked: String,
    /// Of whom.
    #[serde(default)]
    pub(crate) directory: String,
    /// Whether somebody wants it renewed although it is not old.
    #[serde(default)]
    pub(crate) renew: bool,
    /// When the certificate that there is was obtained, by this machine's clock, Unix seconds.
    #[serde(default)]
    pub(crate) obtained: Option<i64>,
}

impl Folder {
    /// In this state folder, made if need be.
    pub(crate) fn open(state: &Path) -> Result<Self, PkiError> {
        let pki = state.join("pki");
        let folder = pki.join("public");
        files::private_folder(&pki)?;
        files::private_folder(&folder)?;
        Ok(Self(folder))
    }

    pub(crate) fn secrets(&self) -> Result<Secrets, PkiError> {
        Ok(self.read("secrets.json")?.unwrap_or_default())
    }

    pub(crate) fn keep_secrets(&self, secrets: &Secrets) -> Result<(), PkiError> {
        self.write("secrets.json", secrets)
    }

    pub(crate) fn waiting(&self) -> Result<Option<Waiting>, PkiError> {
        self.read("secrets-next.json")
    }

    pub(crate) fn keep_waiting(&self, waiting: &Waiting) -> Result<(), PkiError> {
        self.write("secrets-next.json", waiting)
    }

    pub(crate) fn forget_waiting(&self) -> Result<(), PkiError> {
        self.remove("secrets-next.json")
    }

    pub(crate) fn account(
        &self,
        directory: &str,
        bound_to: Option<&str>,
    ) -> Result<Option<Account>, PkiError> {
        let account = self.read::<Account>("account.json")?;
        Ok(account.filter(|a| a.directory == directory && a.bound_to.as_deref() == bound_to))
    }

    pub(crate) fn keep_account(&self, account: &Account) -> Result<(), PkiError> {
        self.write("account.json", account)
    }

    pub(crate) fn forget_account(&self) -> Result<(), PkiError> {
        self.remove("account.json")
    }

    pub(crate) fn order(&self) -> Result<Option<Order>, PkiError> {
        self.read("order.json")
    }

    pub(crate) fn keep_order(&self, order: &Order) -> Result<(), PkiError> {
        self.write("order.json", order)
    }

    pub(crate) fn forget_order(&self) -> Result<(), PkiError> {
        self.remove("order.json")
    }

    pub(crate) fn diary(&self) -> Result<Diary, PkiError> {
        Ok(self.read("diary.json")?.unwrap_or_default())
    }

    pub(crate) fn keep_diary(&self, diary: &Diary) -> Result<(), PkiError> {
        self.write("diary.json", diary)
    }

    /// The certificate with its key, and who signed it. One that cannot be read is as good as none: another can be had.
    pub(crate) fn chain(&self) -> Result<Option<(String, PublicChain)>, PkiError> {
        let text = files::read(&self.path("certificate.pem"))?;
        Ok(text.and_then(|text| {
            let from = text.lines().next()?.strip_prefix(FROM)?.to_owned();
            Some((from, PublicChain::from_pem(&text)?))
        }))
    }

    pub(crate) fn keep_chain(&self, directory: &str, pem: &str) -> Result<(), PkiError> {
        files::write(&self.path("certificate.pem"), &format!("{FROM}{directory}\n{pem}"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A file that is not what we wrote is as good as none: all that is in these can be had again.
    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, PkiError> {
        let Some(text) = files::read(&self.path(name))? else { return Ok(None) };
        match serde_json::from_str(&text) {
            Ok(read) => Ok(Some(read)),
            Err(error) => {
                // Not the error itself: it may have a piece of a secret in it.
                log::warn!(
                    "{} cannot be read (line {}) and is left out of account",
                    self.path(name).display(),
                    error.line()
                );
                Ok(None)
            }
        }
    }

    fn write(&self, name: &str, what: &impl Serialize) -> Result<(), PkiError> {
        let path = self.path(name);
        let text = serde_json::to_string(what)
            .map_err(|error| PkiError::Write { path: path.clone(), source: error.into() })?;
        files::write(&path, &text)
    }

    fn remove(&self, name: &str) -> Result<(), PkiError> {
        let path = self.path(name);
        let synced = || fs::File::open(&self.0).and_then(|folder| folder.sync_all());
        match fs::remove_file(&path).and_then(|()| synced()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(PkiError::Write { path, source: error })
            }
            _ => Ok(()),
        }
    }
}

/// How a certificate's file begins; PEM may have words before it.
const FROM: &str = "# signed by way of ";

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn files_are_private_and_a_damaged_one_is_as_good_as_none() {
        let state = tempfile::tempdir().unwrap();
        let folder = Folder::open(state.path()).unwrap();
        let secrets = Secrets::from([(SecretName::Hook, SecretText::new(" ada:secret\n"))]);
        folder.keep_secrets(&secrets).unwrap();
        assert_eq!(folder.secrets().unwrap(), secrets);
        assert_eq!(secrets[&SecretName::Hook].expose(), "ada:secret");
        let path = state.path().join("pki/public/secrets.json");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let parent = fs::metadata(path.parent().unwrap()).unwrap();
        assert_eq!(parent.permissions().mode() & 0o777, 0o700);
        fs::write(&path, "{\"hook\":").unwrap();
        assert!(folder.secrets().unwrap().is_empty());
        assert!(!format!("{secrets:?}").contains("secret\""), "{secrets:?}");
        assert!(folder.forget_order().is_ok(), "one that is not there is forgotten");
        fs::write(state.path().join("pki/public/certificate.pem"), "x").unwrap();
        assert!(folder.chain().unwrap().is_none());
    }
}
