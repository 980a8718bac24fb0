//! A fixed address, as networkd is told about it.

use std::net::IpAddr;
use std::str::FromStr;

use serde::Deserialize;

/// An address that does not come from a router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// The box's own.
    pub address: IpAddr,
    /// How many of its bits are the network's.
    pub prefix: u8,
    /// The way out, where there is one.
    pub gateway: Option<IpAddr>,
    /// Who is asked for names.
    pub dns: Vec<IpAddr>,
}

/// Why it cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
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
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Written {
    address: String,
    gateway: Option<String>,
    #[serde(default)]
    dns: Vec<String>,
}

impl TryFrom<Written> for Network {
    type Error = NetworkError;

    fn try_from(written: Written) -> Result<Self, NetworkError> {
        let wrong = || NetworkError::Address(written.address.clone());
        let (address, prefix) = written.address.trim().split_once('/').ok_or_else(wrong)?;
        let address = IpAddr::from_str(address).map_err(|_| wrong())?;
        let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
        if prefix == 0 || prefix > bits(&address) {
            return Err(wrong());
        }
        if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
            return Err(NetworkError::NotOwn(address));
        }
        let bare = |text: &String| {
            text.trim().parse::<IpAddr>().map_err(|_| NetworkError::Bare(text.clone()))
        };
        let gateway = written.gateway.as_ref().map(bare).transpose()?;
        if let Some(gateway) = gateway.filter(|gateway| !near(&address, prefix, gateway)) {
            return Err(NetworkError::Gateway(gateway));
        }
        let dns = written.dns.iter().map(bare).collect::<Result<_, _>>()?;
        Ok(Self { address, prefix, gateway, dns })
    }
}

fn bits(address: &IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// Whether two addresses are in one network. Routers of IPv6 may have an address of the link alone.
fn near(own: &IpAddr, prefix: u8, other: &IpAddr) -> bool {
    match (own, other) {
        (IpAddr::V4(own), IpAddr::V4(other)) => {
            let mask = u32::MAX << (32 - u32::from(prefix));
            own.to_bits() & mask == other.to_bits() & mask
        }
        (IpAddr::V6(own), IpAddr::V6(other)) => {
            let mask = u128::MAX << (128 - u32::from(prefix));
            other.is_unicast_link_local() || own.to_bits() & mask == other.to_bits() & mask
        }
        _ => false,
    }
}

impl Network {
    /// A file for networkd that comes before the image's own.
    pub fn file(&self) -> String {
        let mut text = format!(
            "[Match]\nKind=!*\nType=ether\n\n[Network]\nMulticastDNS=yes\nLLDP=no\nAddress={}/{}\n",
            self.address, self.prefix
        );
        if let Some(gateway) = self.gateway {
            text += &format!("Gateway={gateway}\n");
        }
        for dns in &self.dns {
            text += &format!("DNS={dns}\n");
        }
        text + "\n[Link]\nRequiredForOnline=no\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(address: &str, gateway: Option<&str>) -> Result<Network, NetworkError> {
        let written = Written {
            address: address.into(),
            gateway: gateway.map(str::to_owned),
            dns: vec!["192.168.7.1".into()],
        };
        Network::try_from(written)
    }

    #[test]
    fn a_fixed_address_becomes_a_file_for_networkd() {
        let network = network("192.168.7.20/24", Some("192.168.7.1")).unwrap();
        assert_eq!(
            network.file(),
            "[Match]\nKind=!*\nType=ether\n\n[Network]\nMulticastDNS=yes\nLLDP=no\nAddress=192.168.7.20/24\n\
             Gateway=192.168.7.1\nDNS=192.168.7.1\n\n[Link]\nRequiredForOnline=no\n"
        );
    }

    #[test]
    fn an_address_that_cannot_work_is_refused_with_what_is_wrong() {
        assert!(network("fd00::7/64", Some("fe80::1")).is_ok());
        let wrong = |address, gateway| network(address, gateway).unwrap_err();
        assert_eq!(wrong("192.168.7.20", None), NetworkError::Address("192.168.7.20".into()));
        assert_eq!(wrong("192.168.7.20/33", None), NetworkError::Address("192.168.7.20/33".into()));
        assert_eq!(wrong("127.0.0.1/8", None), NetworkError::NotOwn("127.0.0.1".parse().unwrap()));
        let far = "192.168.8.1".parse().unwrap();
        assert_eq!(wrong("192.168.7.20/24", Some("192.168.8.1")), NetworkError::Gateway(far));
        assert_eq!(wrong("192.168.7.20/24", Some("router")), NetworkError::Bare("router".into()));
    }
}
