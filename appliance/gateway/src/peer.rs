//! Who is at the other end of a connection.

use std::net::{IpAddr, SocketAddr};

/// The other end of the connection that a request came by. In every request's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its address; IPv4 in IPv6 is written as IPv4.
    pub remote: SocketAddr,
    /// The address it reached us at.
    pub local: SocketAddr,
    /// True over TLS.
    pub tls: bool,
}

impl Peer {
    /// A browser or an `ssh -L` on this very machine.
    pub fn is_this_machine(&self) -> bool {
        is_this_machine(self.remote.ip())
    }

    /// On a network that is not the internet: loopback, private, link-local or unique-local.
    pub fn is_local_network(&self) -> bool {
        is_local_network(self.remote.ip())
    }
}

/// 127.0.0.1 and ::1 alone: the rest of 127/8 is nobody's browser and gets no privilege.
pub fn is_this_machine(ip: IpAddr) -> bool {
    ip == IpAddr::from([127, 0, 0, 1]) || ip == IpAddr::V6(std::net::Ipv6Addr::LOCALHOST)
}

/// Loopback, private (RFC 1918), link-local, or unique-local (RFC 4193).
pub fn is_local_network(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_private() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

/// Writes IPv4 in IPv6 as IPv4.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_two_loopback_addresses_are_this_machine() {
        for (text, expected) in
            [("127.0.0.1", true), ("::1", true), ("127.0.0.2", false), ("10.0.0.1", false)]
        {
            assert_eq!(is_this_machine(text.parse().unwrap()), expected, "{text}");
        }
    }

    #[test]
    fn public_addresses_are_not_a_local_network() {
        for (text, expected) in [
            ("192.168.1.4", true),
            ("172.31.0.1", true),
            ("169.254.1.1", true),
            ("::ffff:10.1.1.1", true),
            ("fd00::1", true),
            ("fe80::1", true),
            ("172.32.0.1", false),
            ("8.8.8.8", false),
            ("2001:db8::1", false),
        ] {
            assert_eq!(is_local_network(text.parse().unwrap()), expected, "{text}");
        }
    }
}
