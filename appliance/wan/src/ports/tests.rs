mod late;

use super::*;
use crate::routing::{Gateway, Near};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn link(addresses: &[&str]) -> Link {
    Link {
        index: 2,
        up: true,
        carrier: true,
        lit: 0,
        addresses: addresses.iter().map(|a| ip(a)).collect(),
        gateways: vec![Gateway {
            metric: 1,
            six: false,
            via: Some(ip("192.168.1.1")),
            source: None,
        }],
        near: [Near { to: (ip("192.168.1.0"), 24), via: None }].into(),
    }
}

#[test]
fn a_router_is_asked_for_the_address_that_it_knows_and_a_public_uplink_needs_none() {
    let asked = |link: &Link| question(link, "up1", 5, 443);
    let way = |own: &str| Way {
        device: "up1".into(),
        mark: 5,
        own: own.parse().unwrap(),
        router: "192.168.1.1".parse().unwrap(),
    };
    let both = link(&["10.9.9.9", "192.168.1.7", "fd00::1"]);
    assert_eq!(asked(&both), Question::Router(way("192.168.1.7"), 443, 0));
    assert_eq!(asked(&link(&["100.64.0.9"])), Question::Router(way("100.64.0.9"), 443, 0));
    assert_eq!(asked(&link(&["198.51.100.4"])), Question::NotNeeded);
    assert_eq!(asked(&link(&["2001:db8::1"])), Question::NoRouter);
    let lit_again = asked(&Link { lit: 1, ..both.clone() });
    assert_ne!(lit_again, asked(&both), "its cable was dark between two looks");
    assert_eq!(asked(&Link { gateways: Vec::new(), ..both.clone() }), Question::NoRouter);
    assert_eq!(asked(&Link { carrier: false, ..both }), Question::NoRouter);
}

#[test]
fn the_internet_knows_an_uplink_by_what_its_router_says_or_somebody_outside_sees() {
    let mapped = |address: &str| PortState::Mapped {
        by: "PCP".into(),
        address: address.parse().unwrap(),
        port: 443,
    };
    let useless = PortState::Useless { address: "100.64.3.3".parse().unwrap(), port: 443 };
    let (home, seen) = (link(&["192.168.1.7"]), Some(ip("203.0.113.9")));
    let of = |link: &Link, port: Option<&PortState>, seen| {
        outside(link, port, seen).map(|ip| ip.to_string())
    };
    assert_eq!(of(&home, Some(&mapped("203.0.113.5")), seen).as_deref(), Some("203.0.113.5"));
    assert_eq!(of(&home, None, seen).as_deref(), Some("203.0.113.9"));
    assert_eq!(of(&home, Some(&useless), seen), None, "the provider's translation is before it");
    assert_eq!(of(&home, None, Some(ip("10.0.0.1"))), None);
    assert_eq!(of(&home, None, Some(ip("2001:db8::9"))), None);
    assert_eq!(of(&link(&["100.64.0.9"]), None, seen), None);
    assert_eq!(of(&link(&["198.51.100.4"]), None, seen), None, "it has one of its own");
    assert_eq!(of(&home, None, None), None);
    assert_eq!(nonce("a"), nonce("a"));
    assert_ne!(nonce("a"), nonce("b"));
}
