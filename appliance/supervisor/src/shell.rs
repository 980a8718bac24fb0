//! The remote shell that a steward may open for a while: what is asked for, and whether it may be.

use std::path::Path;

use serde::{Deserialize, Serialize};
use ssh_key::{HashAlg, PublicKey};

/// What the shell's unit reads, in the state folder.
pub const OPEN_SHELL: &str = "shell/open.json";
/// No shell is open for longer; whoever needs more asks again.
pub const MOST_HOURS: u64 = 24;
/// Longer than any key.
const LONGEST: usize = 2000;

/// For whom a shell is open, and until when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShellOrder {
    /// The public key, as one line of OpenSSH without a comment.
    pub key: String,
    /// As `ssh-keygen -l` shows it.
    pub fingerprint: String,
    /// Unix seconds.
    pub until: u64,
}

impl ShellOrder {
    /// Of what a steward typed.
    pub(crate) fn of(typed: &str, hours: u64, now: u64) -> Result<Self, String> {
        if hours == 0 || hours > MOST_HOURS {
            return Err(format!("a shell is open for 1 to {MOST_HOURS} hours"));
        }
        let wrong = "that is no public key; paste the line of a file like id_ed25519.pub, which begins with ssh-ed25519, ssh-rsa or ecdsa";
        if typed.len() > LONGEST {
            return Err(wrong.to_owned());
        }
        let mut key = PublicKey::from_openssh(typed.trim()).map_err(|_| wrong.to_owned())?;
        let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
        key.set_comment("");
        // Written anew, so that nothing but the key is in the line: options would run programs or open doors.
        let key = key.to_openssh().map_err(|_| wrong.to_owned())?;
        Ok(Self { key: key.trim().to_owned(), fingerprint, until: now + hours * 3600 })
    }

    /// What is asked for in this state folder, if its time is not up.
    pub(crate) fn open(state: &Path, now: u64) -> Option<Self> {
        let order: Self =
            serde_json::from_slice(&std::fs::read(state.join(OPEN_SHELL)).ok()?).ok()?;
        (order.until > now).then_some(order)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKHEChAuBsR4tzFL0dEAVlzUk2R8MLnKvbjp4N4pd6TA";

    #[test]
    fn a_public_key_is_taken_without_its_comment_for_some_hours() {
        let order = ShellOrder::of(&format!("  {KEY} ada@laptop\n"), 2, 1000).unwrap();
        assert_eq!((order.key.as_str(), order.until), (KEY, 1000 + 7200));
        assert!(order.fingerprint.starts_with("SHA256:"), "{}", order.fingerprint);
    }

    #[test]
    fn what_is_more_or_less_than_a_key_is_refused() {
        for typed in [
            "",
            "ssh-ed25519",
            "ssh-ed25519 AAAA",
            &format!("command=\"reboot\" {KEY}"),
            &format!("{KEY}\n{KEY}"),
            "-----BEGIN OPENSSH PRIVATE KEY-----",
            &"x".repeat(3000),
        ] {
            let why = ShellOrder::of(typed, 1, 0).unwrap_err();
            assert!(why.contains("no public key"), "{typed}: {why}");
        }
        for hours in [0, 25] {
            assert!(ShellOrder::of(KEY, hours, 0).unwrap_err().contains("1 to 24 hours"));
        }
    }
}
