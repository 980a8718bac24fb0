//! Pure: one port's addresses, as networkd reads them.

use polder_site::{InterfaceName, PortAddress};

/// What DHCP's routes have at networkd; a way out that a person named comes before those.
const MEASURE: usize = 512;

/// The file for one port with addresses of its own. `place`: which of those ports it is; the ways out need measures that differ.
pub fn file(port: &InterfaceName, address: &PortAddress, place: usize) -> String {
    let has = |four: bool| address.addresses.iter().any(|own| own.ip.is_ipv4() == four);
    let dhcp = if has(true) { "no" } else { "ipv4" };
    let mut text = format!(
        "[Match]\nName={port}\nType=ether\n\n[Network]\nDHCP={dhcp}\nMulticastDNS=yes\nLLDP=no\n"
    );
    if address.gateways.iter().any(|gateway| gateway.is_ipv6()) {
        text += "IPv6AcceptRA=no\n";
    }
    for own in &address.addresses {
        text += &format!("Address={own}\n");
    }
    for dns in &address.dns {
        text += &format!("DNS={dns}\n");
    }
    for gateway in &address.gateways {
        text += &format!("\n[Route]\nGateway={gateway}\nMetric={}\n", MEASURE + place);
    }
    // A box without a network is still a box.
    text + "\n[Link]\nRequiredForOnline=no\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixed_address_becomes_a_file_for_networkd() {
        let file = |addresses: &str, gateways: &str, dns: &str| {
            let address = PortAddress::typed(addresses, gateways, dns).unwrap();
            file(&"enp1s0".parse().unwrap(), &address, 1)
        };
        assert_eq!(
            file("192.168.7.20/24", "192.168.7.1", "192.168.7.1"),
            "[Match]\nName=enp1s0\nType=ether\n\n\
             [Network]\nDHCP=no\nMulticastDNS=yes\nLLDP=no\nAddress=192.168.7.20/24\nDNS=192.168.7.1\n\n\
             [Route]\nGateway=192.168.7.1\nMetric=513\n\n\
             [Link]\nRequiredForOnline=no\n"
        );
        assert_eq!(
            file("192.168.7.20/24 fd00::7/64", "192.168.7.1 fe80::1", ""),
            "[Match]\nName=enp1s0\nType=ether\n\n\
             [Network]\nDHCP=no\nMulticastDNS=yes\nLLDP=no\nIPv6AcceptRA=no\n\
             Address=192.168.7.20/24\nAddress=fd00::7/64\n\n\
             [Route]\nGateway=192.168.7.1\nMetric=513\n\n\
             [Route]\nGateway=fe80::1\nMetric=513\n\n\
             [Link]\nRequiredForOnline=no\n"
        );
        // What is not fixed comes from the router.
        let six = file("fd00::7/64", "", "");
        assert!(six.contains("DHCP=ipv4\n") && !six.contains("IPv6AcceptRA"), "{six}");
    }
}
