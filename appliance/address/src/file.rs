//! Pure: one port's addresses, as networkd reads them.

use std::collections::BTreeSet;

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

/// A place for each of these ports: the one that it has, so that a port that comes or goes changes nobody else's way out, and the lowest that is free for one that
/// is new. `had`: the ports' files as they are.
pub(crate) fn places(
    ports: &[&InterfaceName],
    had: impl Fn(&InterfaceName) -> Option<String>,
) -> Vec<usize> {
    let mut taken = BTreeSet::new();
    let kept: Vec<Option<usize>> = ports
        .iter()
        .map(|port| place_in(&had(port)?).filter(|place| taken.insert(*place)))
        .collect();
    let free = |place: &usize| !taken.contains(place);
    let mut free = (0..).filter(free);
    kept.into_iter().map(|place| place.or_else(|| free.next()).unwrap_or_default()).collect()
}

/// The place that a file was written for, if it has a way out.
fn place_in(text: &str) -> Option<usize> {
    let measure = text.lines().find_map(|line| line.strip_prefix("Metric="))?.parse::<usize>();
    // All of ours come before DHCP's.
    measure.ok()?.checked_sub(MEASURE).filter(|place| *place < MEASURE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ports_way_out_keeps_its_measure_whoever_comes_and_goes() {
        let names: Vec<InterfaceName> =
            ["enp1s0", "enp2s0", "enp3s0"].iter().map(|name| name.parse().unwrap()).collect();
        let all: Vec<&InterfaceName> = names.iter().collect();
        let with = |port: &InterfaceName, measures: [Option<usize>; 3]| {
            let at = names.iter().position(|name| name == port)?;
            Some(format!("[Route]\nGateway=10.0.0.1\nMetric={}\n", measures[at]?))
        };
        let of = |had: [Option<usize>; 3]| places(&all, |port| with(port, had));
        assert_eq!(of([None; 3]), [0, 1, 2]);
        // The first is new, and comes before the others by name.
        assert_eq!(of([None, Some(512), Some(513)]), [2, 0, 1]);
        assert_eq!(of([None, Some(513), None]), [0, 1, 2]);
        // Two of the same, and what we never write, are none.
        assert_eq!(of([Some(513), Some(513), Some(1024)]), [1, 0, 2]);
        assert_eq!(of([Some(5), Some(usize::MAX), Some(512)]), [1, 2, 0]);
        assert_eq!(places(&all[1..], |port| with(port, [Some(512), Some(513), Some(514)])), [1, 2]);
    }

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
