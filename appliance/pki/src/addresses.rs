//! The machine's own addresses, as the kernel tells in /proc/self/net (which a process that sees
//! only processes in /proc has as well).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A certificate with hundreds of addresses would help nobody.
const MOST: usize = 16;
/// `IFA_F_TEMPORARY`: privacy addresses that change daily.
const TEMPORARY: u32 = 0x01;

/// The addresses by which other machines may reach this one, without loopback, link-local and
/// short-lived ones. Empty where the kernel does not tell.
pub fn machine_addresses() -> Vec<IpAddr> {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let mut found: Vec<IpAddr> =
        v4(&read("/proc/self/net/fib_trie")).into_iter().map(IpAddr::V4).collect();
    found.extend(v6(&read("/proc/self/net/if_inet6")).into_iter().map(IpAddr::V6));
    found.sort();
    found.dedup();
    found.truncate(MOST);
    found
}

/// In the routing trie a leaf `|-- A.B.C.D` is followed by `/32 host LOCAL` if it is our own.
fn v4(trie: &str) -> Vec<Ipv4Addr> {
    let mut found = Vec::new();
    let mut leaf = None;
    for line in trie.lines() {
        let line = line.trim();
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = address.parse::<Ipv4Addr>().ok();
        } else if line.starts_with("/32 host LOCAL") {
            found.extend(leaf.filter(|ip| !ip.is_loopback() && !ip.is_link_local()));
        }
    }
    found
}

/// One line per address: 32 hex digits, interface, prefix, scope, flags (hex), name.
fn v6(table: &str) -> Vec<Ipv6Addr> {
    let address = |line: &str| {
        let mut fields = line.split_whitespace();
        let digits = fields.next().filter(|digits| digits.len() == 32)?;
        let flags = u32::from_str_radix(fields.nth(3)?, 16).ok()?;
        let ip = Ipv6Addr::from(u128::from_str_radix(digits, 16).ok()?);
        let lasting = flags & TEMPORARY == 0;
        (lasting && !ip.is_loopback() && !ip.is_unicast_link_local()).then_some(ip)
    };
    table.lines().filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_addresses_are_read_from_the_routing_trie() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     \
            +-- 192.168.1.0/24 2 0 2\n        |-- 192.168.1.0\n           /24 link UNICAST\n        \
            |-- 192.168.1.7\n           /32 host LOCAL\n        |-- 192.168.1.255\n           \
            /32 link BROADCAST\n     |-- 127.0.0.1\n        /32 host LOCAL\n";
        assert_eq!(v4(trie), [Ipv4Addr::new(192, 168, 1, 7)]);
    }

    #[test]
    fn link_local_temporary_and_loopback_addresses_are_left_out() {
        let table = "fe80000000000000021122fffe334455 02 40 20 80 eth0\n\
            20010db8000000000000000000000007 02 40 00 00 eth0\n\
            20010db80000000000000000000000ff 02 40 00 01 eth0\n\
            00000000000000000000000000000001 01 80 10 80 lo\n\
            garbage\n";
        assert_eq!(v6(table), ["2001:db8::7".parse::<Ipv6Addr>().unwrap()]);
    }
}
