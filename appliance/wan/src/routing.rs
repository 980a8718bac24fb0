//! What the kernel's rules and tables should be, as plain data: [`wanted`] says it, [`difference`] how to get there.

use std::collections::BTreeSet;
use std::net::IpAddr;

/// The first routing table of ours holds what is in use; those after it belong to the uplinks, in their order.
pub const TABLE: u32 = 51_900;
/// The mark of the first uplink's probes; the next one has the next.
pub const MARK: u32 = 0x706f_0001;
/// Our rules have these priorities, well before `main`'s 32766.
pub const RULES: std::ops::Range<u32> = 5_190..5_200;
/// Routes in our tables come from us: what `ip route` shows as `proto 112`.
pub const PROTOCOL: u8 = 112;

const PROBES: u32 = 5_190;
const OWN_SUBNETS: u32 = 5_191;
const NEAR: u32 = 5_192;
const FROM: u32 = 5_193;
const IN_USE: u32 = 5_194;
/// The system's own table, which we read and never write.
const MAIN: u32 = 254;
/// Behind whatever else there is in a table.
const LAST: u32 = u32::MAX - 1;

/// A subnet: where it begins, and how many bits are fixed.
pub type Subnet = (IpAddr, u8);

/// An uplink's interface as the system has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// Its number; 0 where there is no such interface.
    pub index: u32,
    /// It is switched on.
    pub up: bool,
    /// Its cable is in.
    pub carrier: bool,
    /// How often it was put in, as the system counts: whoever looks late still sees that it was out in between.
    pub lit: u32,
    /// Its addresses that may be used from afar.
    pub addresses: BTreeSet<IpAddr>,
    /// Who passes on, per family, as `main` says; the best one first. Nobody where the other end takes everything.
    pub gateways: Vec<Gateway>,
    /// What else `main` says about this interface.
    pub near: BTreeSet<Near>,
}

/// A way to everywhere.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gateway {
    /// Smaller is better.
    pub metric: u32,
    /// Of IPv6.
    pub six: bool,
    /// Who passes on.
    pub via: Option<IpAddr>,
    /// What `main` wants to be the sender.
    pub source: Option<IpAddr>,
}

/// Something that an interface leads to, other than everywhere.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Near {
    /// What.
    pub to: Subnet,
    /// Behind whom; on the wire itself without one.
    pub via: Option<IpAddr>,
}

impl Link {
    /// The best way out of a family.
    pub fn gateway(&self, six: bool) -> Option<&Gateway> {
        self.gateways.iter().filter(|gateway| gateway.six == six).min()
    }

    /// Whether it can lead anywhere at all with what it has: an address and a gateway of one family.
    pub fn is_configured(&self) -> bool {
        [false, true].into_iter().any(|six| self.speaks(six))
    }

    /// The same for one family.
    pub fn speaks(&self, six: bool) -> bool {
        self.addresses.iter().any(|a| a.is_ipv6() == six) && self.gateway(six).is_some()
    }

    /// Whether somebody is on the wire itself: what is there does not depend on whether the uplink leads anywhere.
    pub fn is_near(&self, address: IpAddr) -> bool {
        let on_wire = self.near.iter().filter(|near| near.via.is_none());
        on_wire.map(|near| near.to).any(|subnet| within(address, subnet))
    }
}

/// Whether an address is in a subnet.
pub fn within(address: IpAddr, (net, bits): Subnet) -> bool {
    let same = |a: u128, b: u128, width: u8| {
        let shift = u32::from(width.saturating_sub(bits));
        a.checked_shr(shift).unwrap_or(0) == b.checked_shr(shift).unwrap_or(0)
    };
    match (address.to_canonical(), net) {
        (IpAddr::V4(a), IpAddr::V4(b)) => same(u32::from(a).into(), u32::from(b).into(), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => same(a.into(), b.into(), 128),
        _ => false,
    }
}

/// A rule of ours: whose packets are looked up in which table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Of IPv6.
    pub six: bool,
    /// Smaller comes first.
    pub priority: u32,
    /// Only packets with this mark.
    pub mark: Option<u32>,
    /// Only packets from this address.
    pub from: Option<IpAddr>,
    /// Where.
    pub table: u32,
    /// Ways to everywhere in that table do not count.
    pub near_only: bool,
}

/// A route in a table of ours.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Of IPv6.
    pub six: bool,
    /// In which table.
    pub table: u32,
    /// Whereto; everywhere without one.
    pub to: Option<Subnet>,
    /// Smaller comes first.
    pub metric: u32,
    /// How.
    pub how: How,
}

/// How packets go on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum How {
    /// Through an interface.
    Out {
        /// Its number.
        link: u32,
        /// To whom there; on the wire itself without one.
        via: Option<IpAddr>,
        /// With this sender, where nothing else was said.
        source: Option<IpAddr>,
    },
    /// Not at all, and the sender is told.
    Unreachable,
}

impl Route {
    /// A table has one route for each of these: what is written under it replaces what was there.
    pub fn place(&self) -> (bool, u32, Option<Subnet>, u32) {
        (self.six, self.table, self.to, self.metric)
    }
}

/// All of ours in the system.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Routing {
    /// The rules.
    pub rules: BTreeSet<Rule>,
    /// The routes.
    pub routes: BTreeSet<Route>,
}

/// What should be there, with these uplinks in their order, of which one is in use for each family: IPv4, then IPv6.
///
/// Probes find their uplink by their mark, answers theirs by the address that they come from, and everything else the one in use;
/// what is near comes first for all but probes. Behind each table packets end, so that nothing that is meant for one uplink leaks out
/// through another.
pub fn wanted(links: &[Link], in_use: [usize; 2]) -> Routing {
    let mut routing = Routing::default();
    let Routing { rules, routes } = &mut routing;
    if links.is_empty() {
        return routing;
    }
    for six in [false, true] {
        let rule = |priority, table| Rule {
            six,
            priority,
            mark: None,
            from: None,
            table,
            near_only: false,
        };
        rules.insert(Rule { near_only: true, ..rule(NEAR, MAIN) });
        rules.insert(rule(IN_USE, TABLE));
        routes.insert(Route { six, table: TABLE, to: None, metric: LAST, how: How::Unreachable });
        for (place, link) in (0u32..).zip(links) {
            let table = TABLE + 1 + place;
            rules.insert(Rule { mark: Some(MARK + place), ..rule(PROBES, table) });
            for from in link.addresses.iter().filter(|a| a.is_ipv6() == six) {
                let from = Some(*from);
                rules.insert(Rule { from, near_only: true, ..rule(OWN_SUBNETS, table) });
                rules.insert(Rule { from, ..rule(FROM, table) });
            }
            routes.insert(Route { six, table, to: None, metric: LAST, how: How::Unreachable });
            if !link.up {
                continue;
            }
            let out = |via, source| How::Out { link: link.index, via, source };
            for near in link.near.iter().filter(|near| near.to.0.is_ipv6() == six) {
                let how = out(near.via, None);
                routes.insert(Route { six, table, to: Some(near.to), metric: 1, how });
            }
            if let Some(gateway) = link.gateway(six) {
                let how = out(gateway.via, gateway.source);
                routes.insert(Route { six, table, to: None, metric: 1, how: how.clone() });
                if place as usize == in_use[usize::from(six)] {
                    routes.insert(Route { six, table: TABLE, to: None, metric: 1, how });
                }
            }
        }
    }
    routing
}

/// One thing to do to the system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Write a route, over what is in its place.
    Route(Route),
    /// Take a route away.
    NoRoute(Route),
    /// Add a rule.
    Rule(Rule),
    /// Take a rule away.
    NoRule(Rule),
}

/// What makes `have` into `want`: what is in use first, because people wait for it; nothing points at a table before that is
/// filled, and nothing is emptied before nothing points at it.
pub fn difference(have: &Routing, want: &Routing) -> Vec<Act> {
    let mut acts = Vec::new();
    let missing = want.routes.difference(&have.routes);
    // Tables sort with the one in use first.
    let mut missing: Vec<&Route> = missing.collect();
    missing.sort_by_key(|route| (route.table, route.how == How::Unreachable));
    acts.extend(missing.into_iter().cloned().map(Act::Route));
    acts.extend(want.rules.difference(&have.rules).cloned().map(Act::Rule));
    acts.extend(have.rules.difference(&want.rules).cloned().map(Act::NoRule));
    let places: BTreeSet<_> = want.routes.iter().map(Route::place).collect();
    let gone = have.routes.difference(&want.routes).filter(|r| !places.contains(&r.place()));
    acts.extend(gone.cloned().map(Act::NoRoute));
    acts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn fibre() -> Link {
        let gateway =
            |via: &str, six| Gateway { metric: 1024, six, via: Some(ip(via)), source: None };
        Link {
            index: 2,
            up: true,
            carrier: true,
            lit: 1,
            addresses: [ip("192.0.2.7"), ip("2001:db8::7")].into(),
            gateways: vec![gateway("192.0.2.1", false), gateway("fe80::1", true)],
            near: [Near { to: (ip("192.0.2.0"), 24), via: None }].into(),
        }
    }

    fn mobile() -> Link {
        let gateway =
            Gateway { metric: 1024, six: false, via: Some(ip("100.64.0.1")), source: None };
        Link {
            index: 3,
            addresses: [ip("100.64.0.9")].into(),
            gateways: vec![gateway],
            near: [Near { to: (ip("100.64.0.0"), 24), via: None }].into(),
            ..fibre()
        }
    }

    /// Where a packet goes, by the rules, as the kernel would look it up; `main` leads to nowhere near.
    fn way(routing: &Routing, to: &str, from: Option<&str>, mark: Option<u32>) -> How {
        let (to, from) = (ip(to), from.map(ip));
        for rule in routing.rules.iter().filter(|rule| rule.six == to.is_ipv6()) {
            if rule.mark.is_some_and(|m| Some(m) != mark)
                || rule.from.is_some_and(|f| Some(f) != from)
            {
                continue;
            }
            let fits = |route: &&Route| {
                let to_it = route.to.is_none_or(|subnet| within(to, subnet));
                route.table == rule.table && route.six == rule.six && to_it
            };
            let longest =
                |r: &&Route| (r.to.map_or(0, |(_, bits)| bits), std::cmp::Reverse(r.metric));
            let found = routing.routes.iter().filter(fits).max_by_key(longest);
            if let Some(route) = found
                && !(rule.near_only && route.to.is_none())
            {
                return route.how.clone();
            }
        }
        panic!("it would go on to main: {to} {from:?} {mark:?}");
    }

    #[test]
    fn probes_answers_and_everything_else_find_their_own_way_and_never_anothers() {
        let routing = wanted(&[fibre(), mobile()], [0; 2]);
        let link = |how: How| match how {
            How::Out { link, .. } => link,
            How::Unreachable => 0,
        };
        let way = |to, from, mark| link(way(&routing, to, from, mark));
        assert_eq!(way("9.9.9.9", None, None), 2);
        assert_eq!(way("9.9.9.9", None, Some(MARK + 1)), 3);
        assert_eq!(way("9.9.9.9", Some("100.64.0.9"), None), 3);
        assert_eq!(way("2620:fe::fe", None, None), 2);
        // Who has no IPv6 sends nothing through somebody else who has.
        assert_eq!(way("2620:fe::fe", None, Some(MARK + 1)), 0);
        assert_eq!(way("192.0.2.9", Some("192.0.2.7"), None), 2);

        let routing = wanted(&[fibre(), mobile()], [1; 2]);
        assert!(matches!(
            super::tests::way(&routing, "9.9.9.9", None, None),
            How::Out { link: 3, .. }
        ));
        assert_eq!(super::tests::way(&routing, "2620:fe::fe", None, None), How::Unreachable);
    }

    #[test]
    fn a_family_that_goes_out_elsewhere_takes_nothing_of_the_other_along() {
        let mut other = fibre();
        other.index = 9;
        let (before, after) =
            (wanted(&[fibre(), other.clone()], [0; 2]), wanted(&[fibre(), other], [0, 1]));
        let acts = difference(&before, &after);
        assert!(
            matches!(acts[..], [Act::Route(Route { table: TABLE, six: true, .. })]),
            "{acts:?}"
        );
        assert!(matches!(way(&after, "2620:fe::fe", None, None), How::Out { link: 9, .. }));
        assert!(matches!(way(&after, "9.9.9.9", None, None), How::Out { link: 2, .. }));
        assert!(matches!(way(&after, "2620:fe::fe", None, Some(MARK)), How::Out { link: 2, .. }));
    }

    #[test]
    fn a_switch_is_one_act_for_each_family() {
        let (before, after) =
            (wanted(&[fibre(), fibre()], [0; 2]), wanted(&[fibre(), mobile()], [0; 2]));
        assert_ne!(before, after);
        let mut other = fibre();
        other.index = 9;
        let (before, after) =
            (wanted(&[fibre(), other.clone()], [0; 2]), wanted(&[fibre(), other], [1; 2]));
        let acts = difference(&before, &after);
        assert_eq!(acts.len(), 2, "{acts:?}");
        assert!(acts.iter().all(|act| matches!(act, Act::Route(Route { table: TABLE, .. }))));
    }

    #[test]
    fn an_interface_that_is_gone_leaves_its_table_with_a_wall_only() {
        let routing = wanted(&[Link::default(), mobile()], [0; 2]);
        assert_eq!(way(&routing, "9.9.9.9", None, None), How::Unreachable);
        assert_eq!(way(&routing, "9.9.9.9", None, Some(MARK)), How::Unreachable);
        assert_eq!(wanted(&[], [0; 2]), Routing::default());
    }

    #[test]
    fn subnets_are_told_apart_to_the_bit() {
        assert!(within(ip("192.0.2.255"), (ip("192.0.2.0"), 24)));
        assert!(!within(ip("192.0.3.0"), (ip("192.0.2.0"), 24)));
        assert!(within(ip("::ffff:192.0.2.1"), (ip("192.0.2.0"), 24)));
        assert!(within(ip("8.8.8.8"), (ip("0.0.0.0"), 0)) && within(ip("::1"), (ip("::"), 0)));
        assert!(!within(ip("::1"), (ip("0.0.0.0"), 0)));
    }

    fn a_link() -> impl Strategy<Value = Link> {
        (0..4u32, any::<bool>(), 0..3u8, 0..3u8).prop_map(|(index, up, addresses, gateways)| {
            let mut link = Link { index, up, carrier: up, ..Link::default() };
            link.addresses.extend((0..addresses).map(|n| IpAddr::from([10, index as u8, n, 2])));
            let via = |n: u8| Some(IpAddr::from([10, index as u8, n, 1]));
            let gateway =
                |n| Gateway { metric: u32::from(n), six: false, via: via(n), source: None };
            link.gateways.extend((0..gateways).map(gateway));
            link
        })
    }

    proptest! {
        #[test]
        fn what_is_done_makes_one_into_the_other(
            before in prop::collection::vec(a_link(), 0..4), after in prop::collection::vec(a_link(), 0..4),
            used in (0..4usize, 0..4usize),
        ) {
            let (mut have, want) = (wanted(&before, [used.0; 2]), wanted(&after, [used.1; 2]));
            for act in difference(&have, &want) {
                match act {
                    Act::Route(route) => {
                        have.routes.retain(|r| r.place() != route.place());
                        have.routes.insert(route);
                    }
                    Act::NoRoute(route) => prop_assert!(have.routes.remove(&route)),
                    Act::Rule(rule) => prop_assert!(have.rules.insert(rule)),
                    Act::NoRule(rule) => prop_assert!(have.rules.remove(&rule)),
                }
                // A table that a rule leads to always ends in a wall.
                for rule in have.rules.iter().filter(|rule| rule.table != MAIN) {
                    let wall = |r: &Route| r.table == rule.table && r.how == How::Unreachable;
                    prop_assert!(have.routes.iter().any(wall), "{:?}", rule);
                }
            }
            prop_assert_eq!(have, want);
        }
    }
}
