use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A certificate that the world trusts, for names that the world knows: who signs it, and how it is proved that the
/// names are the box's. Secrets are not here: see `STATE/pki/public`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicCertificate {
    /// For which names. Each is one that the door answers to, below one, or all directly below one (`*.NAME`).
    pub names: Vec<PublicName>,
    /// Who signs it: the web address of an ACME directory.
    pub directory: DirectoryUrl,
    /// The key's number of an account that the authority gave, where it demands one (external account binding).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// An e-mail address that the authority may write to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contact: Option<String>,
    /// Certificates, PEM, by which the directory and the hook are to be trusted as well; for a private authority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// The names are proved by records that the box writes into their zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns_update: Option<DnsUpdate>,
    /// They are proved by records that a web service writes for the box.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns_hook: Option<DnsHook>,
}

/// How a box proves that a name is its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof<'a> {
    /// The authority asks the box itself, at port 80 of the name. Where the site says nothing else.
    Http,
    /// A record in the DNS, which the box writes there (RFC 2136).
    DnsUpdate(&'a DnsUpdate),
    /// A record in the DNS, for which the box asks a web service.
    DnsHook(&'a DnsHook),
}

impl PublicCertificate {
    /// How it is proved. A site never names two ways.
    pub fn proof(&self) -> Proof<'_> {
        match (&self.dns_update, &self.dns_hook) {
            (Some(update), _) => Proof::DnsUpdate(update),
            (None, Some(hook)) => Proof::DnsHook(hook),
            (None, None) => Proof::Http,
        }
    }
}

/// Where the box may write records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsUpdate {
    /// The primary server of the zone: an address or a name, and a port if it is not 53.
    pub server: HostPort,
    /// The zone.
    pub zone: String,
    /// What the key is called there; hmac-sha256.
    pub key: String,
    /// Seconds that the zone's other servers have to take it over.
    #[serde(default = "usual_wait")]
    pub wait: u16,
}

/// A web service that writes records, in lego's `httpreq` way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsHook {
    /// Its address; `/present` and `/cleanup` are put behind it.
    pub url: DirectoryUrl,
    /// Seconds that the zone's servers have to take it over.
    #[serde(default = "usual_wait")]
    pub wait: u16,
}

fn usual_wait() -> u16 {
    20
}

/// A name that the world may know.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicName(String);

/// A web address, over TLS only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DirectoryUrl(String);

/// `HOST`, `HOST:PORT` or an address with or without one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostPort(String);

/// Something about a public certificate that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Not a name of the world.
    #[error(
        "{0:?} is not a name that the world can know; write one as in gpu.example.org, or *.gpu.example.org for all names below it"
    )]
    Name(String),
    /// Not an address.
    #[error(
        "{0:?} is not an address over TLS; write it whole, as in https://acme-v02.api.letsencrypt.org/directory, without a name or password"
    )]
    Url(String),
    /// Not a server.
    #[error("{0:?} is not a DNS server; write its name or address, and its port if it is not 53")]
    Server(String),
}

impl PublicName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Does it stand for all names directly below [`PublicName::base`]?
    pub fn is_wildcard(&self) -> bool {
        self.0.starts_with("*.")
    }

    /// Without the star.
    pub fn base(&self) -> &str {
        self.0.strip_prefix("*.").unwrap_or(&self.0)
    }
}

impl FromStr for PublicName {
    type Err = CertificateError;

    fn from_str(given: &str) -> Result<Self, CertificateError> {
        let refuse = || CertificateError::Name(given.chars().take(80).collect());
        let name = given.to_ascii_lowercase();
        let base = name.strip_prefix("*.").unwrap_or(&name);
        let label = |l: &str| {
            (1..=63).contains(&l.len())
                && l.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
                && !l.starts_with('-')
                && !l.ends_with('-')
        };
        let last = base.rsplit('.').next().unwrap_or_default();
        // Of the network's own names, only the box's authority may speak.
        let own = ["local", "localhost"].contains(&last);
        let number = last.bytes().all(|c| c.is_ascii_digit());
        let labels = base.contains('.') && base.split('.').all(label);
        if base.len() > 240 || !labels || own || number {
            return Err(refuse());
        }
        Ok(Self(name))
    }
}

impl DirectoryUrl {
    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DirectoryUrl {
    type Err = CertificateError;

    fn from_str(given: &str) -> Result<Self, CertificateError> {
        let refuse = || CertificateError::Url(given.chars().take(80).collect());
        let rest = given.strip_prefix("https://").ok_or_else(refuse)?;
        let host = rest.split('/').next().unwrap_or_default();
        let plain = |c: u8| c.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:/[]".contains(&c);
        if host.is_empty() || given.len() > 300 || !given.bytes().all(plain) {
            return Err(refuse());
        }
        Ok(Self(given.to_owned()))
    }
}

impl HostPort {
    /// With the port, as sockets are opened by.
    pub fn with_port(&self, usual: u16) -> String {
        let text = &self.0;
        match text.parse::<std::net::IpAddr>() {
            Ok(std::net::IpAddr::V6(ip)) => format!("[{ip}]:{usual}"),
            Ok(_) => format!("{text}:{usual}"),
            Err(_) if text.contains(':') => text.clone(),
            Err(_) => format!("{text}:{usual}"),
        }
    }
}

impl FromStr for HostPort {
    type Err = CertificateError;

    fn from_str(given: &str) -> Result<Self, CertificateError> {
        let refuse = || CertificateError::Server(given.chars().take(80).collect());
        let address = given.parse::<std::net::IpAddr>().is_ok()
            || given.parse::<std::net::SocketAddr>().is_ok_and(|a| a.port() != 0);
        let (host, port) = given.split_once(':').unwrap_or((given, "53"));
        let named = !host.is_empty()
            && given.len() <= 255
            && host.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'.')
            && host.bytes().any(|c| c.is_ascii_alphabetic())
            && port.bytes().all(|c| c.is_ascii_digit())
            && port.parse::<u16>().is_ok_and(|port| port != 0);
        if address || named { Ok(Self(given.to_owned())) } else { Err(refuse()) }
    }
}

macro_rules! as_text {
    ($type:ident) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl TryFrom<String> for $type {
            type Error = CertificateError;
            fn try_from(given: String) -> Result<Self, CertificateError> {
                given.parse()
            }
        }
        impl From<$type> for String {
            fn from(this: $type) -> String {
                this.0
            }
        }
    };
}

as_text!(PublicName);
as_text!(DirectoryUrl);
as_text!(HostPort);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_name_is_one_that_the_world_can_know() {
        for good in ["gpu.example.org", "*.gpu.example.org", "xn--bcher-kva.example", "a.lan"] {
            assert_eq!(good.parse::<PublicName>().unwrap().as_str(), good);
        }
        assert_eq!("GPU.Example.org".parse::<PublicName>().unwrap().as_str(), "gpu.example.org");
        for bad in [
            "",
            "box",
            "box.local",
            "x.localhost",
            "10.0.0.1",
            "*.org.",
            "*.*.a.b",
            "a.*.b",
            "*.x",
            "-a.b",
            "a b.c",
            "a..b",
            "::1",
            "a.b\n",
        ] {
            assert!(bad.parse::<PublicName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_directory_is_over_tls_and_without_a_password() {
        assert!("https://127.0.0.1:14000/dir".parse::<DirectoryUrl>().is_ok());
        for bad in
            ["", "http://a.b/dir", "https://", "https://u:p@a.b/", "https://a.b/?x", "ftp://a"]
        {
            assert!(bad.parse::<DirectoryUrl>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_dns_server_has_the_usual_port_unless_it_says_another() {
        let at = |text: &str| text.parse::<HostPort>().unwrap().with_port(53);
        assert_eq!(at("192.0.2.1"), "192.0.2.1:53");
        assert_eq!(at("192.0.2.1:5353"), "192.0.2.1:5353");
        assert_eq!(at("2001:db8::1"), "[2001:db8::1]:53");
        assert_eq!(at("[2001:db8::1]:54"), "[2001:db8::1]:54");
        assert_eq!(at("ns1.example.org"), "ns1.example.org:53");
        assert_eq!(at("ns1.example.org:54"), "ns1.example.org:54");
        for bad in ["", ":53", "ns1:0", "ns1:x", "a b", "ns1:53:1", "192.0.2.1:0", "u@ns1", "300.1"]
        {
            assert!(bad.parse::<HostPort>().is_err(), "{bad:?}");
        }
    }
}
