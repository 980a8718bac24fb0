//! A box that came with an owner's key: there is no code to claim it with, only the key's other half.

use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use polder_members::{MembersError, Secret};
use polder_seed::{KEPT, OwnerKey, Seed, claim_text};

/// The key, and what has to be signed with its other half.
pub(crate) struct Owner {
    /// None where the seed cannot be read any more: then nobody is the owner, and there is no code either.
    key: Option<OwnerKey>,
    /// Another one after every claim and every start, so that no signature is good twice. One for everybody: a
    /// stranger who asks for it changes nothing for the owner.
    challenge: Mutex<Secret>,
}

impl Owner {
    /// What the seed in the state folder says, if there is one.
    pub(crate) fn of(state: &Path) -> Result<Option<Self>, MembersError> {
        let text = match std::fs::read_to_string(state.join(KEPT)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(|error| error.to_string()),
        };
        let key = match text.and_then(|text| Seed::parse(&text).map_err(|e| e.to_string())) {
            Ok(Seed { owner: None, .. }) => return Ok(None),
            Ok(Seed { owner, .. }) => owner,
            Err(error) => {
                log::error!("the box cannot be claimed, because its seed cannot be read: {error}");
                None
            }
        };
        Ok(Some(Self { key, challenge: Mutex::new(Secret::random()?) }))
    }

    /// What is to be signed for a box with this authority.
    pub(crate) fn text(&self, fingerprint: &str) -> String {
        let challenge = self.challenge.lock().unwrap_or_else(PoisonError::into_inner);
        claim_text(fingerprint, challenge.expose())
    }

    /// Whether this signature is the owner's. A good one is good once.
    pub(crate) fn proves(&self, fingerprint: &str, signature: &str) -> bool {
        let mut challenge = self.challenge.lock().unwrap_or_else(PoisonError::into_inner);
        let text = claim_text(fingerprint, challenge.expose());
        let good = self.key.as_ref().is_some_and(|key| key.signed(&text, signature));
        if good {
            match Secret::random() {
                Ok(next) => *challenge = next,
                Err(error) => {
                    log::error!("{error}");
                    return false;
                }
            }
        }
        good
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_that_cannot_be_read_any_more_opens_the_box_to_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let seed = folder.path().join(KEPT);
        assert!(Owner::of(folder.path()).unwrap().is_none());
        std::fs::write(&seed, "version = 1\nname = \"meadow\"\n").unwrap();
        assert!(Owner::of(folder.path()).unwrap().is_none());
        std::fs::write(&seed, "version = 9\n").unwrap();
        let owner = Owner::of(folder.path()).unwrap().unwrap();
        assert!(!owner.proves("AB", &"0".repeat(128)));
    }
}
