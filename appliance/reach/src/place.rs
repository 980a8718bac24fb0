//! Where on the internet an uplink ends, told by its own address and the one that a relay sees. Pure.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

/// Can an uplink be called from outside?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// It has a public address of its own. A firewall may still be before it.
    Public,
    /// A router of one's own is before it, which can be told to let callers in.
    Router,
    /// The provider's address translation is before it: nobody can call.
    Provider,
}

/// `own` is the address that the connection left from, `seen` the one that it came from at the relay.
pub fn place(own: IpAddr, seen: IpAddr) -> Place {
    let (own, seen) = (own.to_canonical(), seen.to_canonical());
    if own == seen && !is_shared(own) && !is_private(own) {
        return Place::Public;
    }
    match is_shared(own) || is_shared(seen) {
        true => Place::Provider,
        // Whether the router before it is the last one cannot be told from here.
        false => Place::Router,
    }
}

/// RFC 6598: what providers put their customers behind.
fn is_shared(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V4(ip) if ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64)
}

fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_private() || ip.is_loopback() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

/// An address that gives whoever has it no privilege of a local network, whatever a relay says of a caller.
pub(crate) fn from_outside(ip: IpAddr) -> IpAddr {
    let ip = ip.to_canonical();
    match is_private(ip) || ip.is_unspecified() || ip.is_multicast() {
        true => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        false => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_uplink_is_public_behind_a_router_or_behind_its_provider() {
        for (own, seen, expected) in [
            ("203.0.113.7", "203.0.113.7", Place::Public),
            ("::ffff:203.0.113.7", "203.0.113.7", Place::Public),
            ("2001:db8::7", "2001:db8::7", Place::Public),
            ("192.168.1.4", "203.0.113.7", Place::Router),
            ("192.168.1.4", "192.168.1.4", Place::Router),
            ("fd00::4", "2001:db8::7", Place::Router),
            ("100.64.0.9", "203.0.113.7", Place::Provider),
            ("100.127.255.9", "100.127.255.9", Place::Provider),
            ("192.168.8.2", "100.64.3.3", Place::Provider),
            ("100.128.0.1", "100.128.0.1", Place::Public),
        ] {
            assert_eq!(
                place(own.parse().unwrap(), seen.parse().unwrap()),
                expected,
                "{own} {seen}"
            );
        }
    }

    #[test]
    fn a_caller_whom_a_relay_calls_local_is_nobody() {
        for lie in ["127.0.0.1", "::1", "192.168.1.9", "::ffff:10.0.0.1", "fe80::1", "0.0.0.0"] {
            assert_eq!(from_outside(lie.parse().unwrap()), IpAddr::from([0, 0, 0, 0]), "{lie}");
        }
        assert_eq!(from_outside("203.0.113.9".parse().unwrap()), IpAddr::from([203, 0, 113, 9]));
    }
}
