//! Passwords, and web addresses that are as good as one: `STATE/health/secrets.toml`, 0600.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use polder_control::AlertSecret;
use polder_site::write_durably;

use crate::alerts::check_address;
use crate::memory::private_folder;

/// No password is longer.
const LONGEST: usize = 2000;

/// What is kept secret for telling stewards.
#[derive(Clone, Default, PartialEq)]
pub(crate) struct Secrets(BTreeMap<AlertSecret, String>);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({:?})", self.0.keys())
    }
}

impl Secrets {
    pub(crate) fn read(state: &Path) -> Result<Self, String> {
        let path = path(state);
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                // The parser's own words would quote the line.
                let read = toml::from_str(&text);
                read.map(Self).map_err(|_| {
                    format!("{} cannot be read; write it anew on the page Health", path.display())
                })
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(format!("{} cannot be read: {e}", path.display())),
        }
    }

    pub(crate) fn get(&self, secret: AlertSecret) -> Option<&str> {
        self.0.get(&secret).map(String::as_str)
    }

    pub(crate) fn kept(&self) -> Vec<AlertSecret> {
        self.0.keys().copied().collect()
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &str> {
        self.0.values().map(String::as_str)
    }

    /// Keeps one, or with an empty value forgets it; on the disk when this returns.
    pub(crate) fn keep(
        &mut self,
        state: &Path,
        secret: AlertSecret,
        value: &str,
    ) -> Result<(), String> {
        let value = value.trim();
        let url = matches!(
            secret,
            AlertSecret::WebhookUrl | AlertSecret::NtfyUrl | AlertSecret::DeadManUrl
        );
        if value.len() > LONGEST || value.chars().any(char::is_control) {
            return Err("that is too long or has characters that nobody can type".to_owned());
        }
        if url && !value.is_empty() {
            check_address(value)?;
        }
        let mut next = self.clone();
        match value {
            "" => drop(next.0.remove(&secret)),
            value => drop(next.0.insert(secret, value.to_owned())),
        }
        let text =
            toml::to_string(&next.0).map_err(|_| "a secret cannot be written down".to_owned())?;
        let kept = private_folder(state).and_then(|_| write_durably(&path(state), text.as_bytes()));
        kept.map_err(|e| format!("{} cannot be written: {e}", path(state).display()))?;
        *self = next;
        Ok(())
    }
}

fn path(state: &Path) -> PathBuf {
    state.join("health").join("secrets.toml")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_secret_is_kept_for_its_owner_only_and_forgotten_when_asked() {
        let state = tempfile::tempdir().unwrap();
        let mut secrets = Secrets::read(state.path()).unwrap();
        secrets.keep(state.path(), AlertSecret::MailPassword, "hunter2 \"x\"").unwrap();
        secrets.keep(state.path(), AlertSecret::NtfyUrl, "https://ntfy.sh/oak-7f3a").unwrap();
        let mode = std::fs::metadata(path(state.path())).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let read = Secrets::read(state.path()).unwrap();
        assert_eq!(read, secrets);
        assert_eq!(read.get(AlertSecret::MailPassword), Some("hunter2 \"x\""));
        assert!(!format!("{read:?}").contains("hunter2"));
        secrets.keep(state.path(), AlertSecret::MailPassword, "").unwrap();
        assert_eq!(Secrets::read(state.path()).unwrap().kept(), [AlertSecret::NtfyUrl]);
    }

    #[test]
    fn an_address_that_is_none_is_refused_and_a_broken_file_does_not_quote_itself() {
        let state = tempfile::tempdir().unwrap();
        let mut secrets = Secrets::default();
        let refused = secrets.keep(state.path(), AlertSecret::WebhookUrl, "http://example.org/x");
        assert!(refused.unwrap_err().contains("https://"));
        private_folder(state.path()).unwrap();
        std::fs::write(path(state.path()), "mail-password = hunter2").unwrap();
        assert!(!Secrets::read(state.path()).unwrap_err().contains("hunter2"));
    }
}
