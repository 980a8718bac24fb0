use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Who is told where the box is, whenever it goes out another way: one of the two. Secrets are not here: see `STATE/uplinks/secret`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DynamicDns {
    /// A web service, which is asked for this address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hook: Option<HookUrl>,
    /// A zone that the box may change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<DnsZone>,
}

/// A zone, and what is to be changed in it (RFC 2136).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsZone {
    /// The box's own name in it.
    pub name: DnsName,
    /// The zone.
    pub zone: DnsName,
    /// Its primary server: a name or an IPv4 address, and a port if it is not 53.
    pub server: String,
    /// What the key is called there; hmac-sha256.
    pub key: DnsName,
}

/// The web address of a service that keeps a name up to date. In it `{ip4}` and `{ip6}` stand for the box's public addresses,
/// and `{secret}` for what only the service may know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HookUrl(String);

/// A name with at least one dot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DnsName(String);

/// Something that nobody could be told by.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DynamicDnsError {
    /// Not an address.
    #[error(
        "{0:?} is not the web address of a service that keeps names up to date; write it whole, as in https://dyn.example.org/update?ip={{ip4}}, with {{secret}} in place of a password"
    )]
    Hook(String),
    /// Not a name.
    #[error("{0:?} is not a name in the DNS; write it whole, as in gpu.example.org")]
    Name(String),
    /// Not a server.
    #[error(
        "{0:?} is not a DNS server; write its name or IPv4 address, and its port if it is not 53"
    )]
    Server(String),
    /// Both ways, or none.
    #[error("site.toml: dynamic_dns names {0}; name one of hook and zone, or leave it out")]
    Ways(&'static str),
    /// The name is not in the zone.
    #[error("site.toml: dynamic_dns: {0} is not in the zone {1}; name the zone that it is in")]
    Outside(DnsName, DnsName),
}

impl DynamicDns {
    /// Checks what types cannot say.
    pub(crate) fn check(&self) -> Result<(), DynamicDnsError> {
        match (&self.hook, &self.zone) {
            (Some(_), Some(_)) => Err(DynamicDnsError::Ways("both a hook and a zone")),
            (None, None) => Err(DynamicDnsError::Ways("neither a hook nor a zone")),
            (None, Some(zone)) => zone.check(),
            (Some(_), None) => Ok(()),
        }
    }
}

impl DnsZone {
    fn check(&self) -> Result<(), DynamicDnsError> {
        let (host, port) = self.server.split_once(':').unwrap_or((&self.server, "53"));
        let letters = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'.';
        let port_fits = port.parse::<u16>().is_ok_and(|port| port != 0);
        if host.is_empty() || host.len() > 253 || !host.bytes().all(letters) || !port_fits {
            return Err(DynamicDnsError::Server(self.server.chars().take(80).collect()));
        }
        let below = self.name.0.strip_suffix(&self.zone.0);
        match below.is_some_and(|rest| rest.is_empty() || rest.ends_with('.')) {
            true => Ok(()),
            false => Err(DynamicDnsError::Outside(self.name.clone(), self.zone.clone())),
        }
    }

    /// The server with its port.
    pub fn server_and_port(&self) -> String {
        match self.server.contains(':') {
            true => self.server.clone(),
            false => format!("{}:53", self.server),
        }
    }
}

impl HookUrl {
    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whom the certificate must name, the port, and what is asked for there.
    pub fn parts(&self) -> (&str, u16, &str) {
        let rest = self.0.strip_prefix("https://").unwrap_or_default();
        let (authority, path) = rest.find(['/', '?']).map_or((rest, "/"), |at| rest.split_at(at));
        let (host, port) = authority.split_once(':').unwrap_or((authority, "443"));
        (host, port.parse().unwrap_or(443), path)
    }
}

impl FromStr for HookUrl {
    type Err = DynamicDnsError;

    fn from_str(given: &str) -> Result<Self, DynamicDnsError> {
        let refuse = || DynamicDnsError::Hook(given.chars().take(80).collect());
        let rest = given.strip_prefix("https://").ok_or_else(refuse)?;
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        let (host, port) = authority.split_once(':').unwrap_or((authority, "443"));
        let letters = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'.';
        let plain = |c: u8| c.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:/?{}".contains(&c);
        let port_fits = port.parse::<u16>().is_ok_and(|port| port != 0);
        let fits = !host.is_empty() && given.len() <= 300 && port_fits;
        match fits && host.bytes().all(letters) && rest.bytes().all(plain) {
            true => Ok(Self(given.to_owned())),
            false => Err(refuse()),
        }
    }
}

impl DnsName {
    /// As text, in small letters.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DnsName {
    type Err = DynamicDnsError;

    fn from_str(given: &str) -> Result<Self, DynamicDnsError> {
        let name = given.to_ascii_lowercase();
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_')
        };
        match name.len() <= 240 && name.split('.').all(label) {
            true => Ok(Self(name)),
            false => Err(DynamicDnsError::Name(given.chars().take(80).collect())),
        }
    }
}

macro_rules! text {
    ($type:ident) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl TryFrom<String> for $type {
            type Error = DynamicDnsError;
            fn try_from(given: String) -> Result<Self, DynamicDnsError> {
                given.parse()
            }
        }
        impl From<$type> for String {
            fn from(it: $type) -> String {
                it.0
            }
        }
    };
}
text!(HookUrl);
text!(DnsName);

#[cfg(test)]
mod tests {
    use crate::Site;

    fn site(dns: &str) -> Result<Site, String> {
        let text = format!("{}\n[dynamic_dns]\n{dns}", Site::unclaimed(8443).to_toml());
        Site::from_toml(&text).map_err(|error| error.to_string())
    }

    const ZONE: &str = "[dynamic_dns.zone]\nname = \"GPU.example.org\"\nzone = \"example.org\"\nserver = \"ns1.example.org\"\nkey = \"box\"\n";

    #[test]
    fn a_site_names_a_service_or_a_zone_and_not_both() {
        let hook = "hook = \"https://dyn.example.org:8443/up?ip={ip4}&k={secret}\"\n";
        let dns = site(hook).unwrap().dynamic_dns.unwrap();
        let hook_url = dns.hook.unwrap();
        assert_eq!(hook_url.parts(), ("dyn.example.org", 8443, "/up?ip={ip4}&k={secret}"));
        let dns = site(ZONE).unwrap().dynamic_dns.unwrap().zone.unwrap();
        assert_eq!(
            (dns.name.as_str(), dns.server_and_port()),
            ("gpu.example.org", "ns1.example.org:53".into())
        );
        for (bad, says) in [
            ("", "neither"),
            (&format!("{hook}{ZONE}"), "both"),
            (&ZONE.replace("zone = \"example.org\"", "zone = \"ample.org\""), "is not in the zone"),
            (&ZONE.replace("ns1.example.org", "a b"), "is not a DNS server"),
            ("hook = \"http://dyn.example.org/\"", "web address of a service"),
            ("hook = \"https://ada:pw@dyn.example.org/\"", "web address of a service"),
            ("hook = \"https://dyn.example.org/\\r\\nx\"", "web address of a service"),
        ] {
            let why = site(bad).unwrap_err();
            assert!(why.contains(says), "{bad}: {why}");
        }
    }
}
