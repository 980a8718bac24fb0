use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::names::UplinkName;

/// The ways out to the internet, by name.
pub type Uplinks = BTreeMap<UplinkName, Uplink>;

/// One way out. Its address, and who passes on what it sends, come from DHCP or from whoever configured the interface: the box
/// only reads them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uplink {
    /// The network interface, as the system calls it.
    pub interface: InterfaceName,
    /// Of several that work, the one with the smallest number is used.
    pub order: u8,
    /// Somebody pays for what goes through it, or only so much may: large transfers wait. Always written: see `unknown.rs`.
    #[serde(default)]
    pub metered: bool,
    /// Its router is asked to let callers from the internet in at the door's port.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ask_router: bool,
    /// Who is asked whether the uplink leads anywhere; without any, [`Uplink::usual_targets`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<Target>,
}

/// What an uplink is on the whole: more targets than these would be asked every second.
const MOST_TARGETS: usize = 6;
/// Uplinks, all together: each has routing rules of its own.
const MOST_UPLINKS: usize = 8;

impl Uplink {
    /// Public name servers of two operators, over IPv4 and IPv6: a connection to them is opened and closed, nothing is asked.
    pub fn usual_targets() -> Vec<Target> {
        ["1.1.1.1:443", "9.9.9.9:443", "[2606:4700:4700::1111]:443", "[2620:fe::fe]:443"]
            .map(|target| target.parse().expect("the literals are targets"))
            .into()
    }

    /// The same uplink, whatever its router is asked for.
    pub fn without_router(&self) -> Self {
        Self { ask_router: false, ..self.clone() }
    }

    /// The targets that are asked.
    pub fn probed(&self) -> Vec<Target> {
        if self.targets.is_empty() { Self::usual_targets() } else { self.targets.clone() }
    }
}

/// Uplinks that no box can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UplinksError {
    /// Two are the same interface.
    #[error(
        "site.toml: the uplinks {0} and {1} have the same interface {2}; two uplinks need two interfaces"
    )]
    SameInterface(UplinkName, UplinkName, InterfaceName),
    /// Two are as much preferred.
    #[error(
        "site.toml: the uplinks {0} and {1} have the same order {2}; give the one that you prefer a smaller number"
    )]
    SameOrder(UplinkName, UplinkName, u8),
    /// One target that is away would be taken for an uplink that is.
    #[error(
        "site.toml: the uplink {0} has {1} targets; name 2 to {MOST_TARGETS}, or none for the usual ones"
    )]
    Targets(UplinkName, usize),
    /// Too many.
    #[error("site.toml: there are {0} uplinks, and {MOST_UPLINKS} are the most; remove some")]
    TooMany(usize),
}

/// Checks what types cannot say.
pub(crate) fn check(uplinks: &Uplinks) -> Result<(), UplinksError> {
    if uplinks.len() > MOST_UPLINKS {
        return Err(UplinksError::TooMany(uplinks.len()));
    }
    for (n, (name, uplink)) in uplinks.iter().enumerate() {
        let count = uplink.targets.len();
        if count == 1 || count > MOST_TARGETS {
            return Err(UplinksError::Targets(name.clone(), count));
        }
        for (other, beside) in uplinks.iter().skip(n + 1) {
            let both = (name.clone(), other.clone());
            if beside.interface == uplink.interface {
                return Err(UplinksError::SameInterface(both.0, both.1, uplink.interface.clone()));
            }
            if beside.order == uplink.order {
                return Err(UplinksError::SameOrder(both.0, both.1, uplink.order));
            }
        }
    }
    Ok(())
}

/// A network interface, such as `enp1s0`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InterfaceName(String);

/// Not the name of an interface.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not the name of a network interface; it looks like enp1s0, and `ip link` lists those there are"
)]
pub struct InterfaceNameError(String);

impl InterfaceName {
    /// As the system writes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InterfaceName {
    type Err = InterfaceNameError;

    fn from_str(given: &str) -> Result<Self, InterfaceNameError> {
        // What the kernel takes: dev_valid_name(), less what nobody would write.
        let plain = |c: u8| c.is_ascii_alphanumeric() || b"-_.@".contains(&c);
        let taken = (1..=15).contains(&given.len())
            && given.bytes().all(plain)
            && !matches!(given, "." | ".." | "lo");
        match taken {
            true => Ok(Self(given.to_owned())),
            false => Err(InterfaceNameError(given.chars().take(40).collect())),
        }
    }
}

/// Somebody who is asked whether an uplink leads anywhere.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Target {
    written: String,
    kind: TargetKind,
}

/// How a target is asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TargetKind {
    /// A connection is opened and closed.
    Tcp(SocketAddr),
    /// A page is asked for, from somebody with a certificate: a hotel's sign-in page or a modem that answers for others is found out.
    Https {
        /// Whom the certificate must name.
        host: String,
        /// Usually 443.
        port: u16,
        /// Beginning with a slash.
        path: String,
    },
}

/// Not a target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} cannot be asked whether an uplink works; write an address with a port, as in 9.9.9.9:443 or [2620:fe::fe]:443, or a web address, as in https://example.org/"
)]
pub struct TargetError(String);

impl Target {
    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.written
    }

    /// How it is asked.
    pub fn kind(&self) -> &TargetKind {
        &self.kind
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(given: &str) -> Result<Self, TargetError> {
        let refuse = || TargetError(given.chars().take(80).collect());
        let kind = match given.strip_prefix("https://") {
            Some(rest) => https(rest).ok_or_else(refuse)?,
            None => TargetKind::Tcp(given.parse().map_err(|_| refuse())?),
        };
        let nowhere = |ip: IpAddr| ip.is_unspecified() || ip.is_multicast() || ip.is_loopback();
        if let TargetKind::Tcp(at) = &kind
            && (at.port() == 0 || nowhere(at.ip()))
        {
            return Err(refuse());
        }
        Ok(Self { written: given.to_owned(), kind })
    }
}

/// `HOST[:PORT][/PATH]` without a name, a password or anything that a header could be made of.
fn https(rest: &str) -> Option<TargetKind> {
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            (host, port.strip_prefix(':').or(port.is_empty().then_some("443"))?)
        }
        None => authority.split_once(':').unwrap_or((authority, "443")),
    };
    let word = |c: u8| c.is_ascii_alphanumeric() || b"-.:".contains(&c);
    let plain = |c: u8| c.is_ascii_graphic() && c != b'#';
    let port = port.parse().ok().filter(|port| *port != 0)?;
    let fits = !host.is_empty() && host.len() <= 253 && rest.len() <= 300;
    (fits && host.bytes().all(word) && path.bytes().all(plain)).then(|| TargetKind::Https {
        host: host.to_owned(),
        port,
        path: path.to_owned(),
    })
}

macro_rules! text {
    ($type:ident, $error:ident) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
        impl TryFrom<String> for $type {
            type Error = $error;
            fn try_from(given: String) -> Result<Self, $error> {
                given.parse()
            }
        }
        impl From<$type> for String {
            fn from(it: $type) -> String {
                it.to_string()
            }
        }
    };
}
text!(InterfaceName, InterfaceNameError);
text!(Target, TargetError);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Site, SiteChange};

    fn site(uplinks: &str) -> Result<Site, String> {
        let text = format!("{}\n{uplinks}", Site::unclaimed(8443).to_toml());
        Site::from_toml(&text).map_err(|error| error.to_string())
    }

    const TWO: &str = r#"
        [uplinks.fibre]
        interface = "enp1s0"
        order = 1
        [uplinks.mobile]
        interface = "wwan0"
        order = 2
        metered = true
        targets = ["9.9.9.9:443", "https://example.org/up"]
    "#;

    #[test]
    fn two_uplinks_are_read_and_a_box_without_any_writes_nothing_about_them() {
        let site = site(TWO).unwrap();
        let [(_, fibre), (_, mobile)] = &site.uplinks.iter().collect::<Vec<_>>()[..] else {
            panic!("{:?}", site.uplinks)
        };
        assert_eq!(
            (fibre.interface.as_str(), fibre.metered, fibre.probed().len()),
            ("enp1s0", false, 4)
        );
        assert_eq!((mobile.order, mobile.metered, mobile.probed().len()), (2, true, 2));
        assert_eq!(Site::from_toml(&site.to_toml()).unwrap(), site);
        assert!(!Site::unclaimed(1).to_toml().contains("uplinks"));
        assert!(!site.to_toml().contains("ask_router"), "off, and so not written");
        let ask = |name: &str, ask| SiteChange::AskRouter { uplink: name.parse().unwrap(), ask };
        let asking = ask("fibre", true).applied_to(&site);
        assert!(asking.uplinks[&"fibre".parse().unwrap()].ask_router);
        assert_eq!(Site::from_toml(&asking.to_toml()).unwrap(), asking);
        assert_eq!(ask("fibre", false).applied_to(&asking), site);
        assert_eq!(ask("moon", true).applied_to(&site), site);
    }

    #[test]
    fn what_no_box_can_have_is_refused_with_what_to_do() {
        for (right, wrong, says) in [
            ("wwan0", "enp1s0", "same interface enp1s0"),
            ("order = 2", "order = 1", "same order 1"),
            (", \"https://example.org/up\"", "", "name 2 to 6"),
            ("wwan0", "a name with spaces", "`ip link` lists"),
            ("9.9.9.9:443", "9.9.9.9", "as in 9.9.9.9:443"),
            ("metered = true", "meterd = true", "uplinks.mobile.metered"),
        ] {
            let error = site(&TWO.replace(right, wrong)).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn targets_are_addresses_or_pages_and_nothing_that_could_be_misread() {
        for good in [
            "1.2.3.4:1",
            "[::2]:443",
            "https://a.example",
            "https://a:8443/x?y",
            "https://[fd00::1]:8/",
        ] {
            let target: Target = good.parse().unwrap();
            assert_eq!(target.to_string(), good);
        }
        let long = format!("https://{}", "a".repeat(300));
        for bad in [
            "",
            "1.2.3.4",
            "1.2.3.4:0",
            "0.0.0.0:443",
            "127.0.0.1:443",
            "example.org:443",
            "http://a/",
            "https://",
            "https:///",
            "https://a:0/",
            "https://a:b/",
            "https://ada:pw@a/",
            "https://a/ b",
            "https://a/\r\nx: y",
            "https://[zz]/",
            "https://[::1/",
            long.as_str(),
        ] {
            assert!(bad.parse::<Target>().is_err(), "{bad:?}");
        }
    }
}
