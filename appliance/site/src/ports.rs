use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::uplinks::InterfaceName;

/// Network ports about whose addresses somebody decided, by the system's names. A port that is not here asks a router.
pub type Ports = BTreeMap<InterfaceName, PortAddress>;

/// How one port gets its addresses, on the image. Elsewhere the machine's own system has them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PortAddress {
    /// Its own, with the lengths of their networks; none where a router is asked (DHCP). Necessary, so that no mistyped key takes a
    /// port's address away.
    pub addresses: Vec<OwnAddress>,
    /// The ways out: at most one for each family.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<IpAddr>,
    /// Who is asked for names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<IpAddr>,
}

/// Of addresses, gateways or name servers: nobody types more.
const MOST: usize = 8;
/// Ports, all together.
const MOST_PORTS: usize = 16;

/// Why it cannot work. Each is one sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressFault {
    /// Not an address with a length.
    #[error("{0:?} is not an address with the length of its network, such as 192.168.1.10/24")]
    Address(String),
    /// Not an address.
    #[error("{0:?} is not an address, such as 192.168.1.1")]
    Bare(String),
    /// An address that cannot be a machine's.
    #[error("{0} cannot be a machine's own address")]
    NotOwn(IpAddr),
    /// Elsewhere.
    #[error("the gateway {0} is not in the box's own network")]
    Gateway(IpAddr),
    /// The box itself.
    #[error("the gateway {0} is the port's own address; the gateway is the router's")]
    OwnGateway(IpAddr),
    /// Two ways out of one family.
    #[error("there are two gateways for one kind of address; name one for IPv4 and one for IPv6")]
    TwoGateways,
    /// Two ports with one address.
    #[error("the ports {0} and {1} have the same address {2}; each needs its own")]
    Twice(InterfaceName, InterfaceName, IpAddr),
    /// Too many.
    #[error(
        "that is too much: at most {MOST} addresses, gateways and name servers, and {MOST_PORTS} ports"
    )]
    TooMany,
    /// Not this part of the document.
    #[error("what site.toml says of ports cannot be read: {0}")]
    Format(String),
}

impl PortAddress {
    /// Of what a person types: addresses with their lengths, gateways and name servers, each apart from the next by spaces or commas. No address
    /// means that a router is asked.
    pub fn typed(addresses: &str, gateways: &str, dns: &str) -> Result<Self, AddressFault> {
        let bare = |text: &str| words(text).map(bare).collect::<Result<Vec<_>, _>>();
        let addresses = words(addresses).map(str::parse).collect::<Result<_, _>>()?;
        let typed = Self { addresses, gateways: bare(gateways)?, dns: bare(dns)? };
        typed.check()?;
        Ok(typed)
    }

    /// Of one line, as it is typed at the machine: addresses with their lengths first, then the router, then name servers.
    pub fn line(typed: &str) -> Result<Self, AddressFault> {
        let (with, without): (Vec<&str>, Vec<&str>) =
            words(typed).partition(|word| word.contains('/'));
        let addresses: Vec<OwnAddress> =
            with.into_iter().map(str::parse).collect::<Result<_, _>>()?;
        let mut line = Self { addresses, ..Self::default() };
        if line.addresses.is_empty() {
            return Err(AddressFault::Address(typed.trim().chars().take(60).collect()));
        }
        for word in without {
            let ip = bare(word)?;
            let first = !line.gateways.iter().any(|known| known.is_ipv4() == ip.is_ipv4());
            if first && line.is_near(&ip) { line.gateways.push(ip) } else { line.dns.push(ip) }
        }
        line.check()?;
        Ok(line)
    }

    /// Whether a router is asked.
    pub fn by_dhcp(&self) -> bool {
        self.addresses.is_empty()
    }

    /// Checks what types cannot say.
    pub fn check(&self) -> Result<(), AddressFault> {
        if [self.addresses.len(), self.gateways.len(), self.dns.len()].iter().any(|n| *n > MOST) {
            return Err(AddressFault::TooMany);
        }
        if let Some(own) =
            self.gateways.iter().find(|ip| self.addresses.iter().any(|a| a.ip == **ip))
        {
            return Err(AddressFault::OwnGateway(*own));
        }
        if let Some(far) = self.gateways.iter().find(|gateway| !self.is_near(gateway)) {
            return Err(AddressFault::Gateway(*far));
        }
        let of = |four: bool| self.gateways.iter().filter(|ip| ip.is_ipv4() == four).count();
        if of(true) > 1 || of(false) > 1 {
            return Err(AddressFault::TwoGateways);
        }
        match self.dns.iter().find(|ip| ip.is_unspecified() || ip.is_multicast()) {
            Some(ip) => Err(AddressFault::Bare(ip.to_string())),
            None => Ok(()),
        }
    }

    fn is_near(&self, other: &IpAddr) -> bool {
        self.addresses.iter().any(|own| near(own, other))
    }
}

/// For people: what the port gets.
impl fmt::Display for PortAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |items: Vec<String>| items.join(" and ");
        if self.by_dhcp() {
            return f.write_str("whatever address a router gives it");
        }
        let addresses = self.addresses.iter().map(ToString::to_string).collect();
        f.write_str(&list(addresses))?;
        if !self.gateways.is_empty() {
            let gateways = self.gateways.iter().map(ToString::to_string).collect();
            write!(f, ", with the router {}", list(gateways))?;
        }
        if !self.dns.is_empty() {
            let dns = self.dns.iter().map(ToString::to_string).collect();
            write!(f, ", asking {} for names", list(dns))?;
        }
        Ok(())
    }
}

/// Checks all ports of a site.
pub(crate) fn check(ports: &Ports) -> Result<(), AddressFault> {
    if ports.len() > MOST_PORTS {
        return Err(AddressFault::TooMany);
    }
    for (n, (name, port)) in ports.iter().enumerate() {
        port.check()?;
        for (other, beside) in ports.iter().skip(n + 1) {
            let own = |ip: &&OwnAddress| beside.addresses.iter().any(|b| b.ip == ip.ip);
            if let Some(twice) = port.addresses.iter().find(own) {
                return Err(AddressFault::Twice(name.clone(), other.clone(), twice.ip));
            }
        }
    }
    Ok(())
}

/// The ports alone, of a site's text: for whoever gives ports their addresses and needs to believe nothing else of it.
pub fn ports_of(site: &str) -> Result<Ports, AddressFault> {
    #[derive(Deserialize)]
    struct Only {
        #[serde(default)]
        ports: Ports,
    }
    let only: Only = toml::from_str(site).map_err(|error| {
        AddressFault::Format(error.message().replace('\n', " ").chars().take(200).collect())
    })?;
    check(&only.ports)?;
    Ok(only.ports)
}

/// An address of a machine's own, with how many of its bits are the network's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct OwnAddress {
    /// The address.
    pub ip: IpAddr,
    /// Bits of it.
    pub length: u8,
}

impl FromStr for OwnAddress {
    type Err = AddressFault;

    fn from_str(given: &str) -> Result<Self, AddressFault> {
        let wrong = || AddressFault::Address(given.chars().take(60).collect());
        let (ip, length) = given.trim().split_once('/').ok_or_else(wrong)?;
        let ip = IpAddr::from_str(ip).map_err(|_| wrong())?;
        let digits = length.bytes().all(|c| c.is_ascii_digit());
        let length: u8 = length.parse().ok().filter(|_| digits).ok_or_else(wrong)?;
        if length == 0 || length > bits(&ip) {
            return Err(wrong());
        }
        let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
        if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || broadcast {
            return Err(AddressFault::NotOwn(ip));
        }
        Ok(Self { ip, length })
    }
}

impl fmt::Display for OwnAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.length)
    }
}

impl TryFrom<String> for OwnAddress {
    type Error = AddressFault;
    fn try_from(given: String) -> Result<Self, AddressFault> {
        given.parse()
    }
}

impl From<OwnAddress> for String {
    fn from(address: OwnAddress) -> Self {
        address.to_string()
    }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split([' ', ',', ';', '\n', '\r', '\t']).filter(|word| !word.is_empty())
}

fn bare(text: &str) -> Result<IpAddr, AddressFault> {
    text.parse().map_err(|_| AddressFault::Bare(text.chars().take(60).collect()))
}

fn bits(address: &IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// Whether two addresses are in one network. Routers of IPv6 may have an address of the link alone.
fn near(own: &OwnAddress, other: &IpAddr) -> bool {
    match (own.ip, other) {
        (IpAddr::V4(ip), IpAddr::V4(other)) => {
            let mask = u32::MAX << (32 - u32::from(own.length));
            ip.to_bits() & mask == other.to_bits() & mask
        }
        (IpAddr::V6(ip), IpAddr::V6(other)) => {
            let mask = u128::MAX << (128 - u32::from(own.length));
            other.is_unicast_link_local() || ip.to_bits() & mask == other.to_bits() & mask
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Site, SiteChange};

    #[test]
    fn an_address_for_each_family_is_kept_and_a_box_without_any_writes_nothing_about_them() {
        let site = Site::unclaimed(8443);
        assert!(!site.to_toml().contains("ports"));
        let address =
            PortAddress::typed("192.168.7.20/24, fd00::7/64", "192.168.7.1 fe80::1", "9.9.9.9");
        let (port, address) = ("enp1s0".parse().unwrap(), address.unwrap());
        assert_eq!(
            address.to_string(),
            "192.168.7.20/24 and fd00::7/64, with the router 192.168.7.1 and fe80::1, asking 9.9.9.9 for names"
        );
        let next = SiteChange::Port { port, address }.applied_to(&site);
        next.check().unwrap();
        assert_eq!(Site::from_toml(&next.to_toml()).unwrap(), next);
        assert_eq!(ports_of(&next.to_toml()).unwrap(), next.ports);
        assert_eq!(ports_of("anything = 1\n").unwrap(), Ports::new());
    }

    #[test]
    fn what_is_typed_at_the_machine_is_one_line() {
        let line = |typed: &str| PortAddress::line(typed);
        let whole = line(" 192.168.7.20/24 192.168.7.1 9.9.9.9 ").unwrap();
        assert_eq!(whole, PortAddress::typed("192.168.7.20/24", "192.168.7.1", "9.9.9.9").unwrap());
        let router_is_asked = line("10.0.0.5/8 10.0.0.1 10.0.0.2").unwrap();
        assert_eq!((router_is_asked.gateways.len(), router_is_asked.dns.len()), (1, 1));
        assert!(line("192.168.7.20/24").unwrap().gateways.is_empty());
        for (typed, fault) in [
            ("", AddressFault::Address(String::new())),
            ("192.168.7.20", AddressFault::Address("192.168.7.20".into())),
            ("192.168.7.20/33", AddressFault::Address("192.168.7.20/33".into())),
            ("192.168.7.20/24 router", AddressFault::Bare("router".into())),
        ] {
            assert_eq!(line(typed), Err(fault), "{typed}");
        }
    }

    #[test]
    fn what_cannot_work_is_refused_with_what_is_wrong() {
        let fault = |a: &str, g: &str, d: &str| PortAddress::typed(a, g, d).unwrap_err();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(fault("127.0.0.1/8", "", ""), AddressFault::NotOwn(ip("127.0.0.1")));
        assert_eq!(fault("255.255.255.255/8", "", ""), AddressFault::NotOwn(ip("255.255.255.255")));
        let far = fault("192.168.7.20/24", "192.168.8.1", "");
        assert_eq!(far, AddressFault::Gateway(ip("192.168.8.1")));
        let own = fault("192.168.7.20/24", "192.168.7.20", "");
        assert_eq!(own, AddressFault::OwnGateway(ip("192.168.7.20")));
        let two = fault("10.0.0.5/8", "10.0.0.1 10.0.0.2", "");
        assert_eq!(two, AddressFault::TwoGateways);
        assert_eq!(fault("10.0.0.5/+8", "", ""), AddressFault::Address("10.0.0.5/+8".into()));
        assert_eq!(fault("10.0.0.5/8", "", "::"), AddressFault::Bare("::".into()));
        let many: String = (1..=9).map(|n| format!("10.0.0.{n}/8 ")).collect();
        assert_eq!(fault(&many, "", ""), AddressFault::TooMany);
        // A router is asked for the way out, too.
        assert!(matches!(fault("", "10.0.0.1", ""), AddressFault::Gateway(_)));

        let port = PortAddress::line("10.0.0.5/8").unwrap();
        let both = ["a0", "b0"].map(|name| (name.parse().unwrap(), port.clone()));
        assert!(matches!(check(&both.into()), Err(AddressFault::Twice(..))));
        for text in ["ports = 3", "[ports.\"a b\"]\naddresses = []", "[ports.a0]\naddreses = []"] {
            let said = ports_of(text).unwrap_err().to_string();
            assert!(said.contains("cannot be read") && !said.contains('\n'), "{said}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_line_becomes_more_than_addresses(typed in "(\\PC|\n){0,80}") {
            if let Ok(address) = PortAddress::line(&typed) {
                let text = address.to_string();
                proptest::prop_assert!(!text.contains('\n') && !text.contains('['));
            }
        }
    }
}
