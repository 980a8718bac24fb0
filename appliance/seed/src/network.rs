//! A fixed address, and the port that it is for.

use std::fmt;
use std::str::FromStr;

use polder_site::{AddressFault, InterfaceName, PortAddress};
use serde::Deserialize;

/// An address that does not come from a router. It is only the beginning: whatever the site says of the port later counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// The port that it is for; the first with a cable in it where none is named.
    pub port: Option<Wanted>,
    /// What the port gets.
    pub address: PortAddress,
}

/// How a seed names a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// As the system calls it.
    Name(InterfaceName),
    /// By the number that its maker gave it, in small letters.
    Hardware(String),
}

/// Why it cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// Its addresses.
    #[error(transparent)]
    Address(#[from] AddressFault),
    /// Neither a name nor a number.
    #[error(
        "{0:?} is neither a port's name, such as enp1s0, nor the number on its card, such as 52:54:00:12:34:56"
    )]
    Port(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Written {
    address: String,
    gateway: Option<String>,
    #[serde(default)]
    dns: Vec<String>,
    port: Option<String>,
}

impl TryFrom<Written> for Network {
    type Error = NetworkError;

    fn try_from(written: Written) -> Result<Self, NetworkError> {
        let Written { address, gateway, dns, port } = written;
        let fixed = PortAddress::typed(&address, &gateway.unwrap_or_default(), &dns.join(" "))?;
        if fixed.by_dhcp() {
            return Err(AddressFault::Address(address).into());
        }
        Ok(Self { port: port.map(|port| port.trim().parse()).transpose()?, address: fixed })
    }
}

impl FromStr for Wanted {
    type Err = NetworkError;

    fn from_str(given: &str) -> Result<Self, NetworkError> {
        let pairs: Vec<&str> = given.split([':', '-']).collect();
        let pair = |pair: &&str| pair.len() == 2 && pair.bytes().all(|c| c.is_ascii_hexdigit());
        if pairs.len() == 6 && pairs.iter().all(pair) {
            return Ok(Self::Hardware(pairs.join(":").to_ascii_lowercase()));
        }
        let refuse = |_| NetworkError::Port(given.chars().take(40).collect());
        given.parse().map(Self::Name).map_err(refuse)
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "the port {name}"),
            Self::Hardware(number) => write!(f, "the port with the number {number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(address: &str, gateway: &str, port: Option<&str>) -> Result<Network, NetworkError> {
        Network::try_from(Written {
            address: address.into(),
            gateway: Some(gateway.to_owned()).filter(|gateway| !gateway.is_empty()),
            dns: vec!["192.168.7.1".into()],
            port: port.map(str::to_owned),
        })
    }

    #[test]
    fn an_address_may_be_for_a_port_by_its_name_or_its_number() {
        let by = |port| network("192.168.7.20/24", "192.168.7.1", port).map(|n| n.port);
        assert_eq!(by(None), Ok(None));
        assert_eq!(by(Some(" enp2s0 ")), Ok(Some(Wanted::Name("enp2s0".parse().unwrap()))));
        let number = Wanted::Hardware("52:54:00:ab:cd:ef".into());
        for written in ["52:54:00:AB:cd:ef", "52-54-00-AB-CD-EF"] {
            assert_eq!(by(Some(written)), Ok(Some(number.clone())));
        }
        assert_eq!(by(Some("en*")), Err(NetworkError::Port("en*".into())));
    }

    #[test]
    fn an_address_that_cannot_work_is_refused_with_what_is_wrong() {
        assert!(network("fd00::7/64", "fe80::1", None).is_ok());
        let wrong = |address, gateway| match network(address, gateway, None) {
            Err(NetworkError::Address(fault)) => fault,
            other => panic!("{other:?}"),
        };
        for bare in ["192.168.7.20", "192.168.7.20/33", ""] {
            assert_eq!(wrong(bare, ""), AddressFault::Address(bare.into()));
        }
        assert_eq!(wrong("127.0.0.1/8", ""), AddressFault::NotOwn("127.0.0.1".parse().unwrap()));
        let far = "192.168.8.1".parse().unwrap();
        assert_eq!(wrong("192.168.7.20/24", "192.168.8.1"), AddressFault::Gateway(far));
        assert_eq!(wrong("192.168.7.20/24", "router"), AddressFault::Bare("router".into()));
    }
}
