use std::sync::{Condvar, Mutex, PoisonError};

use argon2::Argon2;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};

use crate::MembersError;

/// Passwords hashed at once: each takes 19 MiB and about 30 ms of one core.
const AT_ONCE: usize = 2;
/// Callers that may wait for their turn; more are sent away, so that a flood cannot hold threads.
const WAITING: usize = 32;
/// Hash of nothing anybody knows, with the present parameters: checked for unknown names, so that
/// they take as long as known ones.
const NOBODY: &str = "$argon2id$v=19$m=19456,t=2,p=1$cG9sZGVyLW5vYm9keS0wMA$2dTH0ecrz1T0pDg2a/X3qDkVJxPEbZ4yLtrXwSgd3wY";

/// argon2id with 19 MiB and two passes (the library's default, which is OWASP's first choice),
/// a few at a time.
pub(crate) struct Hashing {
    /// (working, waiting)
    places: Mutex<(usize, usize)>,
    freed: Condvar,
}

impl Hashing {
    pub(crate) fn new() -> Self {
        Self { places: Mutex::new((0, 0)), freed: Condvar::new() }
    }

    /// Checks the length and hashes.
    pub(crate) fn hash(&self, password: &str) -> Result<String, MembersError> {
        check(password)?;
        let _place = self.place()?;
        Argon2::default()
            .hash_password(password.as_bytes())
            .map(|hash| hash.to_string())
            .map_err(|e| MembersError::Random(e.to_string()))
    }

    /// Is it the password behind `stored`? `None`, for somebody who does not exist or has no
    /// password, takes as long and is false.
    pub(crate) fn verify(
        &self,
        password: &str,
        stored: Option<&str>,
    ) -> Result<bool, MembersError> {
        let _place = self.place()?;
        // Hashing what could never have been set would only cost time; what is too long is cut
        // off before, in the same way for everyone.
        let password: String = password.chars().take(LONGEST + 1).collect();
        let same = Argon2::default().verify_password(password.as_bytes(), stored.unwrap_or(NOBODY));
        Ok(same.is_ok() && stored.is_some())
    }

    fn place(&self) -> Result<Place<'_>, MembersError> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if places.0 >= AT_ONCE {
            if places.1 >= WAITING {
                return Err(MembersError::Busy);
            }
            places.1 += 1;
            while places.0 >= AT_ONCE {
                places = self.freed.wait(places).unwrap_or_else(PoisonError::into_inner);
            }
            places.1 -= 1;
        }
        places.0 += 1;
        Ok(Place(self))
    }
}

struct Place<'a>(&'a Hashing);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.places.lock().unwrap_or_else(PoisonError::into_inner).0 -= 1;
        self.0.freed.notify_one();
    }
}

const SHORTEST: usize = 10;
const LONGEST: usize = 200;

fn check(password: &str) -> Result<(), MembersError> {
    let count = password.chars().count();
    if count < SHORTEST {
        return Err(MembersError::Field(format!(
            "the password is too short; use at least {SHORTEST} signs, such as four words in a row"
        )));
    }
    if count > LONGEST {
        return Err(MembersError::Field(format!(
            "the password is too long; use at most {LONGEST} signs"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_known_again_and_another_is_not() {
        let hashing = Hashing::new();
        let stored = hashing.hash("four words in a row").unwrap();
        assert!(stored.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{stored}");
        assert!(hashing.verify("four words in a row", Some(&stored)).unwrap());
        assert!(!hashing.verify("four words in a raw", Some(&stored)).unwrap());
    }

    #[test]
    fn a_name_that_nobody_has_costs_a_whole_hash_too() {
        let parsed = argon2::password_hash::phc::PasswordHash::new(NOBODY).unwrap();
        assert_eq!(parsed.params.to_string(), "m=19456,t=2,p=1");
        // A stored form that cannot be read fails at once instead of after a hash.
        let hashing = Hashing::new();
        let start = std::time::Instant::now();
        assert!(!hashing.verify("four words in a row", Some("nonsense")).unwrap());
        let unreadable = start.elapsed();
        let start = std::time::Instant::now();
        assert!(!hashing.verify("four words in a row", None).unwrap());
        assert!(start.elapsed() > unreadable * 10);
    }

    #[test]
    fn passwords_too_short_or_too_long_are_refused_with_the_length_to_use() {
        let hashing = Hashing::new();
        assert!(hashing.hash("short").unwrap_err().to_string().contains("10"));
        assert!(hashing.hash(&"x".repeat(201)).unwrap_err().to_string().contains("200"));
    }

    #[test]
    fn a_flood_of_sign_ins_is_sent_away_instead_of_holding_threads() {
        let hashing = Hashing::new();
        *hashing.places.lock().unwrap() = (AT_ONCE, WAITING);
        assert!(matches!(hashing.verify("x", None), Err(MembersError::Busy)));
    }
}
