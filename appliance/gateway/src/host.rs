//! Which host a request is for, and whether that is us. Pure.
//!
//! A page of another site can make a browser send requests to this box under that site's own name
//! (DNS rebinding). So a request must say exactly one host, and it must be one of the box's names or
//! addresses.

use std::net::IpAddr;

use http::header::HOST;
use http::{HeaderMap, Uri};
use polder_site::Site;

/// A host as a request names it: lower case, without port or final dot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestHost {
    /// A name, or an address without brackets.
    pub name: String,
    /// The port, where the request names one.
    pub port: Option<u16>,
}

/// Why a request's host is not acceptable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostRefusal {
    /// None at all.
    #[error("the request names no host; send one Host header")]
    Missing,
    /// More than one, or two that differ.
    #[error("the request names more than one host; send one Host header")]
    Several,
    /// Not a host name or address.
    #[error("the request's Host header is not a host name or address")]
    Malformed,
    /// Not ours.
    #[error(
        "this box is not called {0:?}; use one of its own names, or have a steward add this one to the box's names"
    )]
    Unknown(String),
}

/// The one host that a request names: the Host header and, where the request line has one, the
/// authority there, which must not differ.
pub fn request_host(uri: &Uri, headers: &HeaderMap) -> Result<RequestHost, HostRefusal> {
    let mut values = headers.get_all(HOST).iter();
    let header = values.next();
    if values.next().is_some() {
        return Err(HostRefusal::Several);
    }
    let header = header.map(|value| parse_host(value.as_bytes())).transpose()?;
    let line = uri.authority().map(|a| parse_host(a.as_str().as_bytes())).transpose()?;
    match (header, line) {
        (None, None) => Err(HostRefusal::Missing),
        (Some(one), None) | (None, Some(one)) => Ok(one),
        (Some(one), Some(other)) if one == other => Ok(one),
        (Some(_), Some(_)) => Err(HostRefusal::Several),
    }
}

/// Reads `name`, `name:port`, `1.2.3.4:port` or `[::1]:port`; nothing else.
pub fn parse_host(text: &[u8]) -> Result<RequestHost, HostRefusal> {
    let text = std::str::from_utf8(text).map_err(|_| HostRefusal::Malformed)?;
    let (name, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, rest) = rest.split_once(']').ok_or(HostRefusal::Malformed)?;
            let address: std::net::Ipv6Addr =
                address.parse().map_err(|_| HostRefusal::Malformed)?;
            (address.to_string(), rest)
        }
        None => {
            let end = text.find(':').unwrap_or(text.len());
            let name = text[..end].strip_suffix('.').unwrap_or(&text[..end]);
            let fits = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'.';
            let labels = name.split('.').all(|label| !label.is_empty());
            if !labels || name.len() > 253 || !name.bytes().all(fits) {
                return Err(HostRefusal::Malformed);
            }
            (name.to_ascii_lowercase(), &text[end..])
        }
    };
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => None,
        Some(digits) if digits.bytes().all(|c| c.is_ascii_digit()) => {
            Some(digits.parse().map_err(|_| HostRefusal::Malformed)?)
        }
        _ => return Err(HostRefusal::Malformed),
    };
    Ok(RequestHost { name, port })
}

impl RequestHost {
    /// Is this one of the box's own names, or the address that the connection came in at? The port is
    /// free: people forward ports.
    pub fn is_known(&self, site: &Site, local: IpAddr) -> Result<(), HostRefusal> {
        let address = self.name.parse::<IpAddr>().ok();
        let known = match address {
            Some(address) => {
                address.is_loopback()
                    || address == local
                    || site.door.names.iter().any(|name| name.parse() == Ok(address))
            }
            None => site.answers_to(&self.name),
        };
        if known { Ok(()) } else { Err(HostRefusal::Unknown(self.name.chars().take(80).collect())) }
    }

    /// `localhost`, 127.0.0.1 or ::1.
    pub fn is_localhost(&self) -> bool {
        matches!(self.name.as_str(), "localhost" | "127.0.0.1" | "::1")
    }

    /// True for a name, false for an address.
    pub fn is_name(&self) -> bool {
        self.name.parse::<IpAddr>().is_err()
    }
}

impl std::fmt::Display for RequestHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.name.contains(':') {
            true => write!(f, "[{}]", self.name)?,
            false => f.write_str(&self.name)?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ask(uri: &str, hosts: &[&str]) -> Result<String, HostRefusal> {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(HOST, host.parse().unwrap());
        }
        request_host(&uri.parse().unwrap(), &headers).map(|host| host.to_string())
    }

    #[test]
    fn exactly_one_host_is_taken() {
        assert_eq!(ask("/", &["Oak.local:8443"]), Ok("oak.local:8443".into()));
        assert_eq!(ask("/", &["oak.local."]), Ok("oak.local".into()));
        assert_eq!(ask("/", &[]), Err(HostRefusal::Missing));
        assert_eq!(ask("/", &["oak.local", "oak.local"]), Err(HostRefusal::Several));
        assert_eq!(ask("http://oak.local/", &["oak.local"]), Ok("oak.local".into()));
        assert_eq!(ask("http://evil/", &["oak.local"]), Err(HostRefusal::Several));
        assert_eq!(ask("http://oak.local:1/", &["oak.local:2"]), Err(HostRefusal::Several));
    }

    #[test]
    fn odd_hosts_are_malformed() {
        for bad in [
            "",
            " ",
            "a b",
            "a,b",
            "user@oak.local",
            "oak.local/",
            "oak.local:",
            "oak.local:x",
            "oak.local:99999",
            "oak.local:+1",
            "[::1",
            "[::1]x",
            "[oak]",
            "::1",
            "o%61k",
            "öak",
            "..",
            "oak.local:1:2",
            "_oak",
        ] {
            assert_eq!(parse_host(bad.as_bytes()), Err(HostRefusal::Malformed), "{bad:?}");
        }
    }

    #[test]
    fn only_the_boxs_own_names_and_addresses_are_known() {
        let mut site = Site::unclaimed(8443);
        site.name = "oak".parse().unwrap();
        site.door.names = vec!["203.0.113.9".into()];
        let local: IpAddr = "192.168.1.5".parse().unwrap();
        let known =
            |host: &str| parse_host(host.as_bytes()).unwrap().is_known(&site, local).is_ok();
        for good in
            ["oak.local", "OAK.local:443", "192.168.1.5", "127.0.0.1", "[::1]:8443", "203.0.113.9"]
        {
            assert!(known(good), "{good}");
        }
        for bad in ["evil.example", "soak.local", "x.oak.local", "192.168.1.6", "local"] {
            assert!(!known(bad), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_taken_reads_the_same_again(text in "\\PC{0,40}") {
            if let Ok(host) = parse_host(text.as_bytes()) {
                prop_assert_eq!(parse_host(host.to_string().as_bytes()), Ok(host));
            }
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse_host(&bytes);
        }
    }
}
