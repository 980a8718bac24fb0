use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Another web app on this machine. The door asks its visitors who they are, and tells the app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct App {
    /// Where it listens.
    pub upstream: Upstream,
    /// Who may go there. Nothing stands for it: a mistyped key must not open an app to everybody.
    pub open_to: Audience,
}

/// Who may use an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Audience {
    /// Everybody who may sign in.
    #[default]
    Members,
    /// Stewards only.
    Stewards,
}

/// Where an app listens: on this machine, because what goes there is not encrypted and says who
/// somebody is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Upstream {
    /// `http://127.0.0.1:3000`
    Loopback(SocketAddr),
    /// `unix:/run/wiki.sock`
    Unix(PathBuf),
}

/// Not a place where an app may be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a place on this machine where an app can be; write http://127.0.0.1:PORT or unix:/PATH"
)]
pub struct UpstreamError(String);

impl Upstream {
    /// Its port, if it has one.
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Loopback(address) => Some(address.port()),
            Self::Unix(_) => None,
        }
    }
}

impl FromStr for Upstream {
    type Err = UpstreamError;

    fn from_str(given: &str) -> Result<Self, UpstreamError> {
        let refuse = || UpstreamError(given.chars().take(80).collect());
        if let Some(path) = given.strip_prefix("unix:") {
            let plain =
                path.starts_with('/') && path.len() <= 100 && !path.contains(char::is_control);
            return plain.then(|| Self::Unix(path.into())).ok_or_else(refuse);
        }
        let rest = given.strip_prefix("http://").ok_or_else(refuse)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let address: SocketAddr = rest.parse().map_err(|_| refuse())?;
        let here = address.ip().is_loopback() && address.port() != 0;
        here.then_some(Self::Loopback(address)).ok_or_else(refuse)
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loopback(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl TryFrom<String> for Upstream {
    type Error = UpstreamError;
    fn try_from(given: String) -> Result<Self, UpstreamError> {
        given.parse()
    }
}

impl From<Upstream> for String {
    fn from(upstream: Upstream) -> Self {
        upstream.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_is_on_this_machine_or_nowhere() {
        for good in
            ["http://127.0.0.1:3000", "http://[::1]:80", "http://127.8.0.1:1", "unix:/run/a.sock"]
        {
            assert_eq!(good.parse::<Upstream>().unwrap().to_string(), good);
        }
        assert_eq!("http://127.0.0.1:3/".parse(), "http://127.0.0.1:3".parse::<Upstream>());
        for bad in [
            "",
            "http://192.168.1.7:3000",
            "http://0.0.0.0:3000",
            "http://localhost:3000",
            "http://127.0.0.1",
            "http://127.0.0.1:0",
            "http://127.0.0.1:80/admin",
            "http://127.0.0.1:80@evil.example",
            "https://127.0.0.1:443",
            "unix:relative.sock",
            "unix:",
            "/run/a.sock",
        ] {
            let error = bad.parse::<Upstream>().unwrap_err().to_string();
            assert!(error.contains("on this machine"), "{bad}");
        }
    }
}
