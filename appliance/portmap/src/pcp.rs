//! The messages of PCP (RFC 6887) and of NAT-PMP (RFC 6886), which share a port and tell each other apart by the first byte. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where a router listens for both.
pub const PORT: u16 = 5351;
/// No answer of either is longer (RFC 6887, 7).
pub const LONGEST: usize = 1100;

/// What tells one's own mappings from others'.
pub type Nonce = [u8; 12];

const PCP: u8 = 2;
const MAP: u8 = 1;
const TCP: u8 = 6;
const ANSWER: u8 = 0x80;
/// NAT-PMP: the address outside, a port for TCP.
const ADDRESS: u8 = 0;
const MAP_TCP: u8 = 2;

/// What a router gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Given {
    /// Seconds until it takes it back.
    pub lifetime: u32,
    /// Seconds since it began to count what it gives: less than before where it was started again.
    pub epoch: u32,
    /// The port outside.
    pub port: u16,
    /// The address outside, where the message has it.
    pub address: Option<Ipv4Addr>,
}

/// What an answer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Yes.
    Given(Given),
    /// NAT-PMP's address outside.
    Address {
        /// The router's.
        address: Ipv4Addr,
        /// As in [`Given`].
        epoch: u32,
    },
    /// No, and the protocol's number for why.
    Refused(u16),
    /// It speaks another version.
    OtherVersion,
}

/// A request for a port, for `lifetime` seconds; for 0 it is given back.
pub fn pcp_request(
    own: Ipv4Addr,
    port: u16,
    outside: u16,
    lifetime: u32,
    nonce: &Nonce,
) -> [u8; 60] {
    let mut message = [0; 60];
    message[0] = PCP;
    message[1] = MAP;
    message[4..8].copy_from_slice(&lifetime.to_be_bytes());
    message[8..24].copy_from_slice(&own.to_ipv6_mapped().octets());
    message[24..36].copy_from_slice(nonce);
    message[36] = TCP;
    message[40..42].copy_from_slice(&port.to_be_bytes());
    message[42..44].copy_from_slice(&outside.to_be_bytes());
    message[44..60].copy_from_slice(&Ipv4Addr::UNSPECIFIED.to_ipv6_mapped().octets());
    message
}

/// An answer to [`pcp_request`]; nothing where it is none to this one.
pub fn pcp_answer(message: &[u8], port: u16, nonce: &Nonce) -> Option<Answer> {
    if message.len() > LONGEST {
        return None;
    }
    // A router that knows NAT-PMP only says so in its own words: version 0, result 1.
    if let [0, operation, 0, 1, ..] = message
        && operation & ANSWER != 0
    {
        return Some(Answer::OtherVersion);
    }
    let [PCP, operation, _, result, ..] = *message else {
        return None;
    };
    if operation != MAP | ANSWER || message.len() < 24 {
        return None;
    }
    if result == 1 {
        return Some(Answer::OtherVersion);
    }
    let map = message.get(24..60)?;
    let ours = map[..12] == nonce[..] && map[12] == TCP && two(map, 16) == port;
    if !ours {
        return None;
    }
    if result != 0 {
        return Some(Answer::Refused(result.into()));
    }
    let mut address = [0; 16];
    address.copy_from_slice(&map[20..36]);
    let IpAddr::V4(address) = IpAddr::V6(Ipv6Addr::from(address)).to_canonical() else {
        return None;
    };
    let given = Given {
        lifetime: four(message, 4),
        epoch: four(message, 8),
        port: two(map, 18),
        address: Some(address),
    };
    // What is given back has no port any more.
    (given.port != 0 || given.lifetime == 0).then_some(Answer::Given(given))
}

/// NAT-PMP: which address do you have outside?
pub fn pmp_address_request() -> [u8; 2] {
    [0, ADDRESS]
}

/// NAT-PMP: a port, for `lifetime` seconds; for 0 it is given back.
pub fn pmp_request(port: u16, outside: u16, lifetime: u32) -> [u8; 12] {
    let mut message = [0; 12];
    message[1] = MAP_TCP;
    message[4..6].copy_from_slice(&port.to_be_bytes());
    message[6..8].copy_from_slice(&(if lifetime == 0 { 0 } else { outside }).to_be_bytes());
    message[8..12].copy_from_slice(&lifetime.to_be_bytes());
    message
}

/// An answer to either; nothing where it is none.
pub fn pmp_answer(message: &[u8], port: u16) -> Option<Answer> {
    let [0, operation, ..] = *message else { return None };
    if message.len() < 8 || message.len() > LONGEST {
        return None;
    }
    let refused = match two(message, 2) {
        0 => None,
        1 => Some(Answer::OtherVersion),
        why => Some(Answer::Refused(why)),
    };
    let epoch = four(message, 4);
    match operation ^ ANSWER {
        ADDRESS => refused.or_else(|| {
            let octets: [u8; 4] = message.get(8..12)?.try_into().ok()?;
            Some(Answer::Address { address: octets.into(), epoch })
        }),
        MAP_TCP => refused.or_else(|| {
            let map = message.get(8..16)?;
            let (lifetime, outside) = (four(map, 4), two(map, 2));
            let given = Given { lifetime, epoch, port: outside, address: None };
            (two(map, 0) == port && (outside != 0 || lifetime == 0)).then_some(Answer::Given(given))
        }),
        _ => None,
    }
}

/// Why a router refuses, in words; the numbers of both protocols.
pub fn why(natpmp: bool, number: u16) -> &'static str {
    match (natpmp, number) {
        (_, 2) => {
            "it gives nobody a port, or not this one; look for “PCP”, “NAT-PMP” or “UPnP” in its settings"
        }
        (true, 3) | (false, 7) => "it has no connection to the internet itself just now",
        (true, 4) | (false, 8) => "it has no more ports to give just now",
        (false, 10) => "this machine already has as many ports as it gives anybody",
        (false, 11) => "the port is taken, by the router itself or by another device",
        (false, 12) => "another router stands between it and this box",
        _ => "it does not say why",
    }
}

/// Whether a router was started again between two of its answers, and forgot what it gave: by what it counted and what went by
/// here, in seconds (RFC 6887, 8.5).
pub fn started_again(before: u32, now: u32, elapsed: u64) -> bool {
    let (before, now) = (u64::from(before), u64::from(now));
    if now + 1 < before {
        return true;
    }
    let theirs = now.saturating_sub(before);
    elapsed + 2 < theirs - theirs / 16 || theirs + 2 < elapsed - elapsed / 16
}

fn two(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |b| u16::from_be_bytes([b[0], b[1]]))
}

fn four(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NONCE: Nonce = [7; 12];

    /// What a router makes of a request that it grants.
    fn granted(request: &[u8; 60]) -> Vec<u8> {
        let mut answer = request.to_vec();
        answer[1] |= ANSWER;
        answer[4..8].copy_from_slice(&600u32.to_be_bytes());
        answer[8..24].fill(0);
        answer[8..12].copy_from_slice(&99u32.to_be_bytes());
        answer[42..44].copy_from_slice(&8443u16.to_be_bytes());
        answer[56..60].copy_from_slice(&[203, 0, 113, 5]);
        answer
    }

    #[test]
    fn a_port_that_a_router_gives_is_read_and_one_that_somebody_else_was_given_is_not() {
        let request = pcp_request("192.168.1.7".parse().unwrap(), 443, 443, 1200, &NONCE);
        assert_eq!(
            (request[0], request[1], &request[18..24]),
            (2, 1, &[255, 255, 192, 168, 1, 7][..])
        );
        let answer = granted(&request);
        let address = Some(Ipv4Addr::new(203, 0, 113, 5));
        let given = Given { lifetime: 600, epoch: 99, port: 8443, address };
        assert_eq!(pcp_answer(&answer, 443, &NONCE), Some(Answer::Given(given)));
        assert_eq!(pcp_answer(&answer, 444, &NONCE), None);
        assert_eq!(pcp_answer(&answer, 443, &[8; 12]), None);
        assert_eq!(pcp_answer(&answer[..59], 443, &NONCE), None);
        assert_eq!(pcp_answer(&request, 443, &NONCE), None, "its own question, come back");
        let mut no = answer.clone();
        no[3] = 2;
        assert_eq!(pcp_answer(&no, 443, &NONCE), Some(Answer::Refused(2)));
        assert_eq!(
            pcp_answer(&[0, 0x81, 0, 1, 0, 0, 0, 0], 443, &NONCE),
            Some(Answer::OtherVersion)
        );
        let mut long = answer;
        long.resize(LONGEST + 4, 0);
        assert_eq!(pcp_answer(&long, 443, &NONCE), None);
    }

    #[test]
    fn the_older_protocol_says_the_address_and_the_port_apart() {
        assert_eq!(pmp_request(443, 443, 0)[6..8], [0, 0], "given back");
        let address = [0, 128, 0, 0, 0, 0, 0, 9, 203, 0, 113, 5];
        let seen = Answer::Address { address: Ipv4Addr::new(203, 0, 113, 5), epoch: 9 };
        assert_eq!(pmp_answer(&address, 443), Some(seen));
        assert_eq!(pmp_answer(&address[..11], 443), None);
        let port = [0, 130, 0, 0, 0, 0, 0, 9, 1, 187, 32, 251, 0, 0, 2, 88];
        let given = Given { lifetime: 600, epoch: 9, port: 8443, address: None };
        assert_eq!(pmp_answer(&port, 443), Some(Answer::Given(given)));
        assert_eq!(pmp_answer(&port, 444), None);
        assert_eq!(pmp_answer(&[0, 130, 0, 2, 0, 0, 0, 9], 443), Some(Answer::Refused(2)));
        assert_eq!(pmp_answer(&[0, 130, 0, 1, 0, 0, 0, 9], 443), Some(Answer::OtherVersion));
        assert!(why(true, 2).contains("UPnP") && why(false, 77).contains("does not say"));
    }

    #[test]
    fn a_router_that_counts_from_the_beginning_was_started_again() {
        assert!(!started_again(100, 160, 60));
        assert!(!started_again(100, 162, 60), "clocks differ a little");
        assert!(started_again(100, 3, 60));
        assert!(started_again(100, 110, 600), "it counts again, and has come past where it was");
        assert!(started_again(100, 1000, 60));
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_left(bytes in prop::collection::vec(any::<u8>(), 0..1200)) {
            let _ = (pcp_answer(&bytes, 443, &NONCE), pmp_answer(&bytes, 443));
        }

        #[test]
        fn whatever_is_counted_is_judged(a: u32, b: u32, c in 0..u64::from(u32::MAX)) {
            let _ = started_again(a, b, c);
            prop_assert!(!started_again(a, a.saturating_add(60), 60) || a > u32::MAX - 60);
        }
    }
}
