//! The kernel's side: reads interfaces, addresses and routes, writes our own rules and tables, and hears of changes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use futures_channel::mpsc::UnboundedReceiver;
use futures_util::{StreamExt, TryStreamExt};
use rtnetlink::packet_core::NetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteNextHop, RouteProtocol,
    RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Handle, IpVersion, MulticastGroup, RouteMessageBuilder};

use crate::routing::{Act, Gateway, How, Link, Near, PROTOCOL, RULES, Route, Routing, Rule, TABLE};

/// The kernel did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No socket to talk to it.
    #[error("could not open a line to the kernel's routing: {0}")]
    Open(std::io::Error),
    /// It did not tell.
    #[error("could not read the system's {what}: {source}")]
    Read {
        /// What was asked for.
        what: &'static str,
        /// Why not.
        source: rtnetlink::Error,
    },
    /// It did not let us.
    #[error(
        "could not change the routing ({act}): {source}; this part needs the right to administer the network (CAP_NET_ADMIN)"
    )]
    Write {
        /// What was to be done.
        act: String,
        /// Why it was not.
        source: rtnetlink::Error,
    },
}

/// A line to the kernel.
pub struct Netlink {
    handle: Handle,
    news: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, rtnetlink::sys::SocketAddr)>,
}

/// What was read in one go.
#[derive(Debug, Default)]
pub struct Observed {
    /// Interfaces by name.
    pub links: BTreeMap<String, Link>,
    /// What is there of ours.
    pub routing: Routing,
}

impl Netlink {
    /// Opens it; within a runtime.
    pub fn open() -> Result<Self, NetlinkError> {
        use MulticastGroup::{
            Ipv4Ifaddr, Ipv4Route, Ipv4Rule, Ipv6Ifaddr, Ipv6Route, Ipv6Rule, Link,
        };
        let groups = [Link, Ipv4Ifaddr, Ipv6Ifaddr, Ipv4Route, Ipv6Route, Ipv4Rule, Ipv6Rule];
        let (connection, handle, news) =
            rtnetlink::new_multicast_connection(&groups).map_err(NetlinkError::Open)?;
        tokio::spawn(connection);
        Ok(Self { handle, news })
    }

    /// Comes back when something changed; what, is to be read anew. News that came at once are taken together.
    pub async fn changed(&mut self) {
        if self.news.next().await.is_none() {
            // The connection ended; whoever looks now and then still sees everything.
            std::future::pending::<()>().await;
        }
        while let Ok(_more) = self.news.try_recv() {}
    }

    /// Reads everything.
    pub async fn observe(&self) -> Result<Observed, NetlinkError> {
        let read = |what| move |source| NetlinkError::Read { what, source };
        let mut observed = Observed::default();
        let mut links: BTreeMap<u32, (String, Link)> = BTreeMap::new();
        let mut list = self.handle.link().get().execute();
        while let Some(message) = list.try_next().await.map_err(read("interfaces"))? {
            let name = message.attributes.iter().find_map(|a| match a {
                LinkAttribute::IfName(name) => Some(name.clone()),
                _ => None,
            });
            let flags = message.header.flags;
            let up = flags.contains(LinkFlags::Up);
            let carrier = up && flags.contains(LinkFlags::LowerUp);
            let index = message.header.index;
            let lit = message.attributes.iter().find_map(|a| match a {
                LinkAttribute::CarrierUpCount(times) => Some(*times),
                _ => None,
            });
            let lit = lit.unwrap_or_default();
            let link = Link { index, up, carrier, lit, ..Link::default() };
            links.extend(name.map(|name| (index, (name, link))));
        }
        let mut list = self.handle.address().get().execute();
        while let Some(message) = list.try_next().await.map_err(read("addresses"))? {
            let mut local = None;
            let mut usable = !message.header.flags.contains(AddressHeaderFlags::Tentative);
            for attribute in &message.attributes {
                match attribute {
                    AddressAttribute::Local(address) => local = Some(*address),
                    AddressAttribute::Address(address) => local = local.or(Some(*address)),
                    AddressAttribute::Flags(flags) => {
                        usable &=
                            !flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed);
                    }
                    _ => {}
                }
            }
            if let Some((_, link)) = links.get_mut(&message.header.index)
                && usable
            {
                link.addresses.extend(local.filter(|address| reaches_far(*address)));
            }
        }
        for six in [false, true] {
            let all = match six {
                false => RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
                true => RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
            };
            let mut list = self.handle.route().get(all).execute();
            while let Some(message) = list.try_next().await.map_err(read("routes"))? {
                sort(&message, six, &mut links, &mut observed.routing.routes);
            }
            let version = if six { IpVersion::V6 } else { IpVersion::V4 };
            let mut list = self.handle.rule().get(version).execute();
            while let Some(message) = list.try_next().await.map_err(read("rules"))? {
                observed.routing.rules.extend(rule(&message, six));
            }
        }
        observed.links = links.into_values().collect();
        Ok(observed)
    }

    /// Does one thing. What is there already, or gone already, is as good.
    pub async fn apply(&self, act: &Act) -> Result<(), NetlinkError> {
        let done = match act {
            Act::Route(route) => {
                self.handle.route().add(route_message(route)).replace().execute().await
            }
            Act::NoRoute(route) => self.handle.route().del(route_message(route)).execute().await,
            Act::Rule(rule) => {
                let mut request = self.handle.rule().add();
                *request.message_mut() = rule_message(rule);
                request.execute().await
            }
            Act::NoRule(rule) => self.handle.rule().del(rule_message(rule)).execute().await,
        };
        done.or_else(|source| match (act, errno(&source)) {
            (Act::Rule(_), Some(EEXIST)) => Ok(()),
            (Act::NoRoute(_) | Act::NoRule(_), Some(ENOENT | ESRCH)) => Ok(()),
            _ => Err(NetlinkError::Write { act: format!("{act:?}"), source }),
        })
    }
}

const ENOENT: i32 = 2;
const ESRCH: i32 = 3;
const EEXIST: i32 = 17;

fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.code.map(|code| -code.get()),
        _ => None,
    }
}

/// Not an address of this wire or this machine alone.
fn reaches_far(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(four) => !four.is_loopback() && !four.is_link_local(),
        IpAddr::V6(six) => !six.is_loopback() && !six.is_unicast_link_local(),
    }
}

fn address(route: &RouteAddress) -> Option<IpAddr> {
    match route {
        RouteAddress::Inet(four) => Some(IpAddr::V4(*four)),
        RouteAddress::Inet6(six) => Some(IpAddr::V6(*six)),
        _ => None,
    }
}

/// A route belongs to `main`, which tells about interfaces, or to a table of ours, or is none of our business.
fn sort(
    message: &RouteMessage,
    six: bool,
    links: &mut BTreeMap<u32, (String, Link)>,
    ours: &mut BTreeSet<Route>,
) {
    let (mut table, mut metric, mut link, mut via, mut source, mut to) =
        (u32::from(message.header.table), 0, 0, None, None, None);
    let mut hops: &[RouteNextHop] = &[];
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(number) => metric = *number,
            RouteAttribute::Oif(number) => link = *number,
            RouteAttribute::Gateway(gateway) => via = address(gateway),
            RouteAttribute::PrefSource(prefered) => source = address(prefered),
            RouteAttribute::Destination(destination) => to = address(destination),
            RouteAttribute::MultiPath(list) => hops = list,
            _ => {}
        }
    }
    let bits = message.header.destination_prefix_length;
    let to = to.filter(|_| bits > 0).map(|to| (to, bits));
    let kind = message.header.kind;
    if (TABLE..TABLE + 32).contains(&table) {
        let how = match kind {
            RouteType::Unicast => How::Out { link, via, source },
            _ => How::Unreachable,
        };
        ours.insert(Route { six, table, to, metric, how });
        return;
    }
    if table != 254 || kind != RouteType::Unicast {
        return;
    }
    let mut tell = |link: u32, via: Option<IpAddr>| {
        let Some((_, link)) = links.get_mut(&link) else { return };
        match to {
            None => link.gateways.push(Gateway { metric, six, via, source }),
            Some(to) if reaches_far(to.0) => drop(link.near.insert(Near { to, via })),
            Some(_) => {}
        }
    };
    if hops.is_empty() {
        tell(link, via);
    }
    for hop in hops {
        let via = hop.attributes.iter().find_map(|a| match a {
            RouteAttribute::Gateway(gateway) => address(gateway),
            _ => None,
        });
        tell(hop.interface_index, via);
    }
}

fn rule(message: &RuleMessage, six: bool) -> Option<Rule> {
    let (mut table, mut priority) = (u32::from(message.header.table), 0);
    let (mut mark, mut from, mut near_only) = (None, None, false);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Table(number) => table = *number,
            RuleAttribute::Priority(number) => priority = *number,
            RuleAttribute::FwMark(number) => mark = Some(*number),
            RuleAttribute::Source(address) => from = Some(*address),
            RuleAttribute::SuppressPrefixLen(bits) => near_only = *bits == 0,
            _ => {}
        }
    }
    RULES.contains(&priority).then_some(Rule { six, priority, mark, from, table, near_only })
}

fn rule_message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = if rule.six { AddressFamily::Inet6 } else { AddressFamily::Inet };
    message.header.action = RuleAction::ToTable;
    let attributes = &mut message.attributes;
    attributes.push(RuleAttribute::Priority(rule.priority));
    attributes.push(RuleAttribute::Table(rule.table));
    attributes.extend(rule.mark.map(RuleAttribute::FwMark));
    if let Some(from) = rule.from {
        message.header.src_len = if rule.six { 128 } else { 32 };
        attributes.push(RuleAttribute::Source(from));
    }
    if rule.near_only {
        attributes.push(RuleAttribute::SuppressPrefixLen(0));
    }
    attributes.push(RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)));
    message
}

fn route_message(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family =
        if route.six { AddressFamily::Inet6 } else { AddressFamily::Inet };
    message.header.protocol = RouteProtocol::Other(PROTOCOL);
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Table(route.table));
    attributes.push(RouteAttribute::Priority(route.metric));
    if let Some((to, bits)) = route.to {
        message.header.destination_prefix_length = bits;
        attributes.push(RouteAttribute::Destination(to.into()));
    }
    match &route.how {
        How::Unreachable => message.header.kind = RouteType::Unreachable,
        How::Out { link, via, source } => {
            attributes.push(RouteAttribute::Oif(*link));
            attributes.extend(source.map(|source| RouteAttribute::PrefSource(source.into())));
            match via {
                Some(via) => {
                    attributes.push(RouteAttribute::Gateway((*via).into()));
                    // The kernel need not find the way to it: `main` said so.
                    message.header.flags = RouteFlags::Onlink;
                }
                None if !route.six => message.header.scope = RouteScope::Link,
                None => {}
            }
        }
    }
    message
}
