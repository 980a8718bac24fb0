//! The API keys of servers elsewhere: one private file, `STATE/upstreams/secrets.json`, which the gateway alone writes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use polder_control::SecretText;
use polder_pki::{PkiError, files};
use polder_site::{EngineName, UpstreamName};

/// Longer is no key.
const LONGEST: usize = 4096;

/// Whose key it is.
#[derive(Debug, Clone, Copy)]
pub enum Holder<'a> {
    /// A server elsewhere's.
    Upstream(&'a UpstreamName),
    /// That of a server that serves a slot of this box.
    Engine(&'a EngineName),
    /// User and password for a registry of container images, by its host as images name it: see [`login`].
    Registry(&'a str),
}

impl Holder<'_> {
    /// Names have no slash in them.
    fn entry(self) -> String {
        match self {
            Self::Upstream(name) => name.to_string(),
            Self::Engine(name) => format!("engine/{name}"),
            Self::Registry(host) => format!("registry/{host}"),
        }
    }
}

/// The keys of a box.
#[derive(Debug, Clone)]
pub struct Secrets(PathBuf);

/// Something about the file of keys.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// It could not be read or written.
    #[error(transparent)]
    File(#[from] PkiError),
    /// It holds something else.
    #[error("{} is not a list of keys (line {line}); remove it and put the keys in again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        line: usize,
    },
    /// Not a key.
    #[error(
        "that is no API key: it is longer than any, or has a sign in it that cannot be sent; copy it once more"
    )]
    NoKey,
    /// Not a user and a password.
    #[error(
        "a registry wants a user without a colon, and a password in one line; neither may be empty"
    )]
    NoLogin,
}

/// User and password as a registry is told them: in base64, so that a password may have any sign in it. A user has no colon.
pub fn login(user: &str, password: &SecretText) -> Result<SecretText, SecretsError> {
    let plain = |text: &str| !text.is_empty() && !text.contains(char::is_control);
    if !plain(user) || user.contains(':') || !plain(password.expose()) {
        return Err(SecretsError::NoLogin);
    }
    let both = format!("{user}:{}", password.expose());
    Ok(SecretText::new(&STANDARD.encode(both)))
}

impl Secrets {
    /// Those of the box in this state folder.
    pub fn of(state: &Path) -> Self {
        Self(state.join("upstreams").join("secrets.json"))
    }

    /// The key, if there is one.
    pub fn get(&self, of: Holder<'_>) -> Result<Option<SecretText>, SecretsError> {
        Ok(self.all()?.remove(&of.entry()))
    }

    /// The registries that a user and a password are kept for.
    pub fn registries(&self) -> Result<BTreeSet<String>, SecretsError> {
        let all = self.all()?;
        let hosts = all.keys().filter_map(|entry| entry.strip_prefix("registry/"));
        Ok(hosts.map(str::to_owned).collect())
    }

    /// Keeps a key; an empty one forgets the one there is.
    pub fn keep(&self, of: Holder<'_>, key: &SecretText) -> Result<(), SecretsError> {
        let text = key.expose();
        if text.len() > LONGEST || !text.bytes().all(|c| c.is_ascii_graphic()) {
            return Err(SecretsError::NoKey);
        }
        let mut all = self.all()?;
        match text.is_empty() {
            true => drop(all.remove(&of.entry())),
            false => drop(all.insert(of.entry(), key.clone())),
        }
        if let Some(folder) = self.0.parent() {
            files::private_folder(folder)?;
        }
        let text = serde_json::to_string(&all).expect("names and texts are JSON");
        Ok(files::write(&self.0, &text)?)
    }

    fn all(&self) -> Result<BTreeMap<String, SecretText>, SecretsError> {
        let Some(text) = files::read(&self.0)? else { return Ok(BTreeMap::new()) };
        // Not the error itself: it may have a piece of a key in it.
        serde_json::from_str(&text)
            .map_err(|error| SecretsError::Damaged { path: self.0.clone(), line: error.line() })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn keys_are_private_and_each_is_its_holders_alone() {
        let state = tempfile::tempdir().unwrap();
        let secrets = Secrets::of(state.path());
        let name: UpstreamName = "cloud".parse().unwrap();
        let slot: EngineName = "cloud".parse().unwrap();
        assert!(secrets.get(Holder::Upstream(&name)).unwrap().is_none());
        secrets.keep(Holder::Upstream(&name), &SecretText::new(" sk-one\n")).unwrap();
        secrets.keep(Holder::Engine(&slot), &SecretText::new("sk-two")).unwrap();
        assert_eq!(secrets.get(Holder::Upstream(&name)).unwrap().unwrap().expose(), "sk-one");
        assert_eq!(secrets.get(Holder::Engine(&slot)).unwrap().unwrap().expose(), "sk-two");
        let path = state.path().join("upstreams/secrets.json");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        secrets.keep(Holder::Upstream(&name), &SecretText::new("")).unwrap();
        assert!(secrets.get(Holder::Upstream(&name)).unwrap().is_none());
        assert!(secrets.get(Holder::Engine(&slot)).unwrap().is_some());
    }

    #[test]
    fn a_user_and_a_password_are_kept_for_one_registry_as_it_is_told_them() {
        let state = tempfile::tempdir().unwrap();
        let secrets = Secrets::of(state.path());
        let password = SecretText::new("a heron, stands: in reeds");
        let both = login("house", &password).unwrap();
        assert_eq!(STANDARD.decode(both.expose()).unwrap(), b"house:a heron, stands: in reeds");
        secrets.keep(Holder::Registry("registry.lan:5000"), &both).unwrap();
        assert_eq!(secrets.get(Holder::Registry("registry.lan:5000")).unwrap(), Some(both));
        assert_eq!(secrets.get(Holder::Registry("registry.lan")).unwrap(), None);
        let slot: EngineName = "fast".parse().unwrap();
        secrets.keep(Holder::Engine(&slot), &SecretText::new("sk-two")).unwrap();
        assert_eq!(secrets.registries().unwrap(), ["registry.lan:5000".to_owned()].into());
        for (user, password) in [("", "x"), ("a:b", "x"), ("a", ""), ("a", "x\ny"), ("a\r", "x")] {
            let refused = login(user, &SecretText::new(password)).unwrap_err().to_string();
            assert!(refused.contains("a user without a colon"), "{user:?} {password:?}");
        }
    }

    #[test]
    fn what_is_no_key_is_refused_and_a_damaged_file_says_nothing_of_its_keys() {
        let state = tempfile::tempdir().unwrap();
        let secrets = Secrets::of(state.path());
        let name: UpstreamName = "cloud".parse().unwrap();
        for bad in ["a b", "a\r\nx-evil: 1", &"x".repeat(LONGEST + 1)] {
            let kept = secrets.keep(Holder::Upstream(&name), &SecretText::new(bad));
            assert!(matches!(kept, Err(SecretsError::NoKey)), "{bad}");
        }
        secrets.keep(Holder::Upstream(&name), &SecretText::new("sk-one")).unwrap();
        std::fs::write(state.path().join("upstreams/secrets.json"), "{\"cloud\":\"sk-one").unwrap();
        let says = secrets.get(Holder::Upstream(&name)).unwrap_err().to_string();
        assert!(says.contains("put the keys in again") && !says.contains("sk-one"), "{says}");
    }
}
