use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::apps::Upstream;

/// A service on this machine that knows people by credentials which are not the box's own. The door
/// asks it who somebody is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verifier {
    /// Where it is asked.
    pub url: VerifierUrl,
    /// In which way.
    #[serde(default)]
    pub mode: VerifierMode,
}

/// The way in which a verifier is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VerifierMode {
    /// As nginx `auth_request` is usually set up: X-Original-URI and X-Original-Method.
    #[default]
    Nginx,
    /// As Caddy `forward_auth` and Traefik ForwardAuth do: X-Forwarded-Method, -Proto, -Host, -Uri
    /// and -For.
    Forward,
}

/// Where a verifier is asked: on this machine, because people's credentials go there in the clear.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VerifierUrl {
    upstream: Upstream,
    path: String,
}

/// Not a place where a verifier may be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a place on this machine where a verifier can be asked; write http://127.0.0.1:PORT/PATH or unix:/SOCKET:/PATH"
)]
pub struct VerifierUrlError(String);

impl VerifierUrl {
    /// Where it listens.
    pub fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// What it is asked for there: a path, and a query if there is one.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl FromStr for VerifierUrl {
    type Err = VerifierUrlError;

    fn from_str(given: &str) -> Result<Self, VerifierUrlError> {
        let refuse = || VerifierUrlError(given.chars().take(80).collect());
        // A socket's own path has slashes too: as in nginx, a colon ends it.
        let (place, path) = match given.strip_prefix("unix:") {
            Some(rest) => match rest.find(":/") {
                Some(at) => (&given[.."unix:".len() + at], &rest[at + 1..]),
                None => (given, "/"),
            },
            None => {
                let rest = given.strip_prefix("http://").ok_or_else(refuse)?;
                let at = given.len() - rest.len() + rest.find('/').unwrap_or(rest.len());
                (&given[..at], if at == given.len() { "/" } else { &given[at..] })
            }
        };
        let plain = |c: u8| c.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/%?".contains(&c);
        if path.len() > 500 || !path.bytes().all(plain) {
            return Err(refuse());
        }
        let upstream = place.parse().map_err(|_| refuse())?;
        Ok(Self { upstream, path: path.to_owned() })
    }
}

impl fmt::Display for VerifierUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.upstream {
            Upstream::Loopback(_) => write!(f, "{}{}", self.upstream, self.path),
            Upstream::Unix(_) => write!(f, "{}:{}", self.upstream, self.path),
        }
    }
}

impl TryFrom<String> for VerifierUrl {
    type Error = VerifierUrlError;
    fn try_from(given: String) -> Result<Self, VerifierUrlError> {
        given.parse()
    }
}

impl From<VerifierUrl> for String {
    fn from(url: VerifierUrl) -> Self {
        url.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verifier_is_asked_on_this_machine_or_nowhere() {
        for good in [
            "http://127.0.0.1:4180/oauth2/auth",
            "http://[::1]:80/",
            "http://127.0.0.1:9091/api/authz?x=%20",
            "unix:/run/a.sock:/auth",
        ] {
            assert_eq!(good.parse::<VerifierUrl>().unwrap().to_string(), good);
        }
        let short = |given: &str| given.parse::<VerifierUrl>().unwrap().to_string();
        assert_eq!(short("http://127.0.0.1:4180"), "http://127.0.0.1:4180/");
        assert_eq!(short("unix:/run/a.sock"), "unix:/run/a.sock:/");
        for bad in [
            "",
            "http://192.168.1.7:4180/auth",
            "http://0.0.0.0:4180/auth",
            "http://localhost:4180/auth",
            "http://127.0.0.1/auth",
            "http://127.0.0.1:0/auth",
            "http://127.0.0.1:80?auth",
            "http://127.0.0.1:80@evil.example/",
            "http://127.0.0.1:80/a b",
            "http://127.0.0.1:80/a#b",
            "http://127.0.0.1:80/a\r\nX: y",
            "https://127.0.0.1:443/auth",
            "unix:run/a.sock:/auth",
            "unix::/auth",
            "/auth",
        ] {
            let error = bad.parse::<VerifierUrl>().unwrap_err().to_string();
            assert!(error.contains("on this machine"), "{bad}");
        }
    }
}
