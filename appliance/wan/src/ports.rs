//! Keeps the ports that routers pass on, for the uplinks of which the site says so: asked for, asked about again and again, given back.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use polder_control::PortState;
use polder_portmap::{Mapping, Way, Wish, ask, give_back};
use polder_site::UplinkName;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::dynamic_dns::{is_public, is_shared};
use crate::routing::{Link, within};

/// For how long a port is asked for. It goes on being passed to this address for as long, should the box be gone without a word.
const LIFETIME: u32 = 1200;
/// A router that refuses or is silent is asked less and less often, at most by this; at once where its uplink changed.
const SELDOM: Duration = Duration::from_secs(900);
/// A question that is under way when nobody wants the port any more is heard to its end for so long: what comes of it is given back.
const LATE: Duration = Duration::from_secs(1);
/// At the end ports are given back for so long.
const PARTING: Duration = Duration::from_secs(3);

/// What there is to ask of an uplink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Question {
    /// Its router, for this port.
    Router(Way, u16),
    /// Nobody: it is public itself.
    NotNeeded,
    /// Nobody: there is none.
    NoRouter,
}

/// What there is to ask of an uplink as it is now.
pub(crate) fn question(link: &Link, device: &str, mark: u32, port: u16) -> Question {
    let four = |ip: &IpAddr| match ip {
        IpAddr::V4(four) => Some(*four),
        IpAddr::V6(_) => None,
    };
    let router = link.gateway(false).and_then(|gateway| gateway.via).as_ref().and_then(four);
    let (Some(router), true) = (router, link.carrier) else { return Question::NoRouter };
    if link.addresses.iter().any(|ip| ip.is_ipv4() && is_public(*ip)) {
        return Question::NotNeeded;
    }
    // Of several addresses the one that the router knows.
    let beside = |ip: &Ipv4Addr| {
        let on_wire = link.near.iter().filter(|near| near.via.is_none()).map(|near| near.to);
        let mut on_wire = on_wire.filter(|net| within((*ip).into(), *net));
        on_wire.any(|net| within(router.into(), net))
    };
    let own: Vec<Ipv4Addr> = link.addresses.iter().filter_map(four).collect();
    match own.iter().find(|ip| beside(ip)).or(own.first()) {
        Some(own) => {
            Question::Router(Way { device: device.to_owned(), mark, own: *own, router }, port)
        }
        None => Question::NoRouter,
    }
}

/// What a port that was given is worth.
fn state(mapping: &Mapping) -> PortState {
    let (address, port) = (mapping.address, mapping.port);
    match is_public(address.into()) {
        true => PortState::Mapped { by: mapping.speech.name().to_owned(), address, port },
        false => PortState::Useless { address, port },
    }
}

/// The address by which the internet knows an uplink whose own ones are private, as far as that is known and leads here: what its
/// router says before what somebody outside sees. A provider's translation leads nowhere.
pub(crate) fn outside(
    link: &Link,
    port: Option<&PortState>,
    seen: Option<IpAddr>,
) -> Option<Ipv4Addr> {
    if link.addresses.iter().any(|ip| ip.is_ipv4() && is_public(*ip)) {
        return None;
    }
    match (port, seen.map(|ip| ip.to_canonical())) {
        (Some(PortState::Mapped { address, .. }), _) => Some(*address),
        (Some(PortState::Useless { .. }), _) => None,
        (_, Some(IpAddr::V4(seen))) => {
            let shared = link.addresses.iter().any(|ip| is_shared(*ip));
            (!shared && is_public(seen.into())).then_some(seen)
        }
        _ => None,
    }
}

/// Who asks a router through an interface, one after the other: a port that is given back late takes none along that was asked for meanwhile,
/// which to the router is the same one.
type Turns = Arc<Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>>;

/// The uplinks whose routers are asked, and what came of it.
pub(crate) struct Ports {
    questions: BTreeMap<UplinkName, watch::Sender<Question>>,
    keeping: JoinSet<()>,
    states: watch::Sender<BTreeMap<UplinkName, PortState>>,
    seen: watch::Receiver<BTreeMap<UplinkName, PortState>>,
    check: Duration,
    turns: Turns,
}

impl Ports {
    /// None yet; asked about again after `check`.
    pub(crate) fn new(check: Duration) -> Self {
        let (states, seen) = watch::channel(BTreeMap::new());
        let turns = Turns::default();
        Self { questions: BTreeMap::new(), keeping: JoinSet::new(), states, seen, check, turns }
    }

    /// Asks these, and no others any more.
    pub(crate) fn want(&mut self, wanted: BTreeMap<UplinkName, Question>) {
        // Whoever keeps a port gives it back when its sender is gone.
        self.questions.retain(|name, _| wanted.contains_key(name));
        while self.keeping.try_join_next().is_some() {}
        for (name, question) in wanted {
            match self.questions.get(&name) {
                Some(known) => drop(known.send_if_modified(|known| {
                    let other = *known != question;
                    *known = question;
                    other
                })),
                None => {
                    let (send, questions) = watch::channel(question);
                    self.questions.insert(name.clone(), send);
                    let (states, check) = (self.states.clone(), self.check);
                    self.keeping.spawn(keep(name, questions, states, check, self.turns.clone()));
                }
            }
        }
        let questions = &self.questions;
        self.states.send_if_modified(|states| {
            let before = states.len();
            states.retain(|name, _| questions.contains_key(name));
            states.len() != before
        });
    }

    /// Comes back when something came of a question.
    pub(crate) async fn changed(&mut self) {
        // The other end is here as well.
        let _ = self.seen.changed().await;
    }

    /// What came of each.
    pub(crate) fn states(&self) -> BTreeMap<UplinkName, PortState> {
        self.states.borrow().clone()
    }

    /// Gives everything back.
    pub(crate) async fn end(mut self) {
        self.questions.clear();
        let all = async { while self.keeping.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(PARTING, all).await;
    }
}

/// Keeps the port of one uplink until nobody asks for it any more.
async fn keep(
    name: UplinkName,
    mut questions: watch::Receiver<Question>,
    states: watch::Sender<BTreeMap<UplinkName, PortState>>,
    check: Duration,
    turns: Turns,
) {
    loop {
        let question = questions.borrow_and_update().clone();
        let tell = |state: PortState| tell(&states, &name, state);
        let ended = match question {
            Question::NotNeeded => {
                tell(PortState::NotNeeded);
                questions.changed().await.is_err()
            }
            Question::NoRouter => {
                tell(PortState::NoRouter);
                questions.changed().await.is_err()
            }
            Question::Router(way, port) => {
                let wish = Wish { port, seconds: LIFETIME, nonce: nonce(&way.device) };
                let mut given = None;
                tell(PortState::Asking);
                let turn = {
                    let mut turns = turns.lock().unwrap_or_else(PoisonError::into_inner);
                    turns.entry(way.device.clone()).or_default().clone()
                };
                let _turn = turn.lock().await;
                let changed =
                    ask_and_ask_again(&way, &wish, &mut given, &tell, check, &mut questions).await;
                if let Some(mapping) = given {
                    let heard = give_back(&way, &wish, &mapping).await;
                    let how = match (heard, mapping.lifetime) {
                        (true, _) => "is given back",
                        (false, 0) => {
                            "could not be given back, and the router gave it for ever; remove it in the router's settings"
                        }
                        (false, _) => "could not be given back; it ends by itself",
                    };
                    log::info!("{name}: port {} {how}", mapping.port);
                }
                changed.is_err()
            }
        };
        if ended {
            return;
        }
    }
}

async fn ask_and_ask_again(
    way: &Way,
    wish: &Wish,
    given: &mut Option<Mapping>,
    tell: &impl Fn(PortState),
    check: Duration,
    questions: &mut watch::Receiver<Question>,
) -> Result<(), watch::error::RecvError> {
    let mut pause = check;
    loop {
        let before = given.clone();
        let asking = ask(way, wish, before.as_ref());
        tokio::pin!(asking);
        let answer = tokio::select! {
            answer = &mut asking => answer,
            changed = questions.changed() => {
                if let Ok(Ok(mapping)) = tokio::time::timeout(LATE, asking).await {
                    *given = Some(mapping);
                }
                return changed;
            }
        };
        match answer {
            Ok(mapping) => {
                if let Some(before) = given.as_ref()
                    && let (Some(then), Some(now)) = (before.epoch, mapping.epoch)
                    && polder_portmap::pcp::started_again(
                        then,
                        now,
                        (mapping.at - before.at).as_secs(),
                    )
                {
                    log::info!("the router {} was started again, and was asked anew", way.router);
                }
                let half = Duration::from_secs((mapping.lifetime / 2).into());
                pause = if mapping.lifetime == 0 { check } else { check.min(half) };
                tell(state(&mapping));
                *given = Some(mapping);
            }
            // Who does not answer just now, or cannot be asked, may still pass callers on.
            Err(polder_portmap::Refusal::Silent(_) | polder_portmap::Refusal::Unasked(..))
                if given.as_ref().is_some_and(|m| !m.is_over()) =>
            {
                pause = check;
            }
            Err(refusal) => {
                pause = if given.take().is_some() { check } else { (pause * 2).min(SELDOM) };
                tell(PortState::Refused { why: refusal.to_string() });
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause.max(Duration::from_millis(500))) => {}
            changed = questions.changed() => return changed,
        }
    }
}

fn tell(
    states: &watch::Sender<BTreeMap<UplinkName, PortState>>,
    name: &UplinkName,
    state: PortState,
) {
    states.send_if_modified(|states| {
        if states.get(name) == Some(&state) {
            return false;
        }
        if state != PortState::Asking {
            log::info!("{name}: {}", state.sentence());
        }
        states.insert(name.clone(), state);
        true
    });
}

/// The same after every restart, and another one on each machine and interface: a router gives a port that it passes on already only
/// to whoever says the same again. It is no secret that guards anything: whoever is in the house's network may ask its router too.
fn nonce(device: &str) -> polder_portmap::pcp::Nonce {
    let machine = std::fs::read("/etc/machine-id").unwrap_or_default();
    let text = [b"polder port ", device.as_bytes(), b" ", &machine[..]].concat();
    let digest = ring::digest::digest(&ring::digest::SHA256, &text);
    let mut nonce = [0; 12];
    nonce.copy_from_slice(&digest.as_ref()[..12]);
    nonce
}

#[cfg(test)]
mod tests {
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
        assert_eq!(asked(&both), Question::Router(way("192.168.1.7"), 443));
        assert_eq!(asked(&link(&["100.64.0.9"])), Question::Router(way("100.64.0.9"), 443));
        assert_eq!(asked(&link(&["198.51.100.4"])), Question::NotNeeded);
        assert_eq!(asked(&link(&["2001:db8::1"])), Question::NoRouter);
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
        assert_eq!(
            of(&home, Some(&useless), seen),
            None,
            "the provider's translation is before it"
        );
        assert_eq!(of(&home, None, Some(ip("10.0.0.1"))), None);
        assert_eq!(of(&home, None, Some(ip("2001:db8::9"))), None);
        assert_eq!(of(&link(&["100.64.0.9"]), None, seen), None);
        assert_eq!(of(&link(&["198.51.100.4"]), None, seen), None, "it has one of its own");
        assert_eq!(of(&home, None, None), None);
        assert_eq!(nonce("a"), nonce("a"));
        assert_ne!(nonce("a"), nonce("b"));
    }
}
