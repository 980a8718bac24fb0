//! What a steward carries from a relay to a box: where it is, how it is known, and a secret.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

/// Letters of a pass's beginning.
const SCHEME: &str = "polder-relay://";
const SECRET_BYTES: usize = 32;
const LONGEST: usize = 512;

/// A box's pass for a relay. It is shown once, on the server; whoever has it can be called by the box's names there.
#[derive(Clone, PartialEq, Eq)]
pub struct Pass {
    /// The box, as the relay calls it.
    pub id: String,
    /// 256 bits.
    pub secret: [u8; SECRET_BYTES],
    /// Host name or address of the relay.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// SHA-256 of the relay's own certificate: no other authority has to know it.
    pub fingerprint: [u8; 32],
}

/// A text that is no pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is no pass of a relay; copy the whole line that `polder relay add` printed, from polder-relay:// to its end"
)]
pub struct PassError;

impl Pass {
    /// What a relay keeps of the secret.
    pub(crate) fn digest(secret: &[u8]) -> [u8; 32] {
        use sha2::Digest;
        sha2::Sha256::digest(secret).into()
    }
}

impl FromStr for Pass {
    type Err = PassError;

    fn from_str(text: &str) -> Result<Self, PassError> {
        let text = text.trim();
        if text.len() > LONGEST {
            return Err(PassError);
        }
        let rest = text.strip_prefix(SCHEME).ok_or(PassError)?;
        let (credential, rest) = rest.split_once('@').ok_or(PassError)?;
        let (id, secret) = credential.split_once(':').ok_or(PassError)?;
        let (address, fingerprint) = rest.split_once('#').ok_or(PassError)?;
        let (host, port) = address.rsplit_once(':').ok_or(PassError)?;
        let port: u16 = port.parse().map_err(|_| PassError)?;
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        let of_a_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':');
        if !is_id(id) || host.is_empty() || !host.chars().all(of_a_host) || port == 0 {
            return Err(PassError);
        }
        Ok(Self {
            id: id.to_owned(),
            secret: bytes(secret)?,
            host: host.to_owned(),
            port,
            fingerprint: bytes(fingerprint)?,
        })
    }
}

/// A name that a relay may give a box.
pub(crate) fn is_id(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=40).contains(&text.len()) && text.chars().all(inner)
}

fn bytes(text: &str) -> Result<[u8; 32], PassError> {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| PassError)?;
    bytes.try_into().map_err(|_| PassError)
}

impl fmt::Display for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = match self.host.contains(':') {
            true => format!("[{}]", self.host),
            false => self.host.clone(),
        };
        let text = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        write!(
            f,
            "{SCHEME}{}:{}@{host}:{}#{}",
            self.id,
            text(&self.secret),
            self.port,
            text(&self.fingerprint)
        )
    }
}

impl fmt::Debug for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pass({} at {}:{})", self.id, self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_pass_reads_as_it_was_written(
            id in "[a-z0-9-]{1,40}",
            host in "([a-z0-9.-]{1,60})|(2001:db8::[1-9])",
            port in 1..u16::MAX,
            secret: [u8; 32],
            fingerprint: [u8; 32],
        ) {
            let pass = Pass { id, secret, host, port, fingerprint };
            prop_assert_eq!(format!("  {pass}\n").parse::<Pass>(), Ok(pass));
        }

        #[test]
        fn whatever_is_pasted_is_a_pass_or_refused(text in ".{0,200}", cut in 0_usize..120) {
            let _ = text.parse::<Pass>();
            let whole = Pass { id: "oak".into(), secret: [1; 32], host: "r.example.org".into(), port: 443, fingerprint: [2; 32] };
            let whole = whole.to_string();
            let at = cut.min(whole.len() - 1);
            prop_assert_eq!(whole[..at].parse::<Pass>(), Err(PassError));
        }
    }

    #[test]
    fn a_pass_in_a_log_has_no_secret() {
        let pass = Pass {
            id: "oak".into(),
            secret: [7; 32],
            host: "r.example.org".into(),
            port: 443,
            fingerprint: [0; 32],
        };
        assert_eq!(format!("{pass:?}"), "Pass(oak at r.example.org:443)");
    }
}
