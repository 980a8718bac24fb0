//! Keeps the ports that routers pass on, for the uplinks of which the site says so: asked for, asked about again and again, given back.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use polder_control::PortState;
use polder_portmap::{Book, Mapping, Way, Wish, ask, give_back};
use polder_site::UplinkName;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::dynamic_dns::{is_public, is_shared};
use crate::owed::{Dues, Owed};
use crate::routing::{Link, within};

/// For how long a port is asked for. It goes on being passed to this address for as long, should the box be gone without a word.
const LIFETIME: u32 = 1200;
/// A router that refuses or is silent is asked again after this, and then less and less often: one that was just switched on gives ports a while
/// after its cable is lit. At once where its uplink changed.
const SOON: Duration = Duration::from_secs(5);
/// Never more often than this.
const LEAST: Duration = Duration::from_millis(500);
/// At most so seldom.
const SELDOM: Duration = Duration::from_secs(900);
/// What is owed is paid within this time before a router is asked for anything, or later.
const PAYING: Duration = Duration::from_secs(12);
/// A question by UPnP that is under way when nobody wants the port any more is heard to its end for so long, as long as one page of a router may
/// take: only its answer says whether there is something to give back.
const LATE: Duration = Duration::from_secs(4);
/// A port that may be given yet is asked back so often, until it cannot be given any more.
const AGAIN: Duration = Duration::from_secs(1);
/// What was not answered so long after it was asked is never given.
const NEVER: Duration = Duration::from_secs(10);
/// At the end ports are given back for so long: a page that is late, two seconds for giving back what it says, and one to spare. Whoever ends
/// this part waits for eight (the supervisor's patience).
const PARTING: Duration = Duration::from_secs(7);

/// What there is to ask of an uplink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Question {
    /// Its router, for this port. Another one where the cable was dark for a moment, by how often it was lit.
    Router(Way, u16, u32),
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
            let way = Way { device: device.to_owned(), mark, own: *own, router };
            Question::Router(way, port, link.lit)
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

/// For how long routers are waited for when nobody wants a port any more; shorter where tests wait too.
#[derive(Clone, Copy)]
struct Patience {
    soon: Duration,
    late: Duration,
    never: Duration,
    parting: Duration,
}

/// The uplinks whose routers are asked, and what came of it.
pub(crate) struct Ports {
    questions: BTreeMap<UplinkName, watch::Sender<Question>>,
    keeping: JoinSet<()>,
    states: watch::Sender<BTreeMap<UplinkName, PortState>>,
    seen: watch::Receiver<BTreeMap<UplinkName, PortState>>,
    check: Duration,
    patience: Patience,
    turns: Turns,
    owed: Owed,
    /// Whose routers were asked to take back what is owed, by interface.
    paid: Arc<Mutex<BTreeMap<String, Paid>>>,
}

/// Which router was asked to take back what, and when it is asked the same again.
struct Paid {
    way: Way,
    dues: Dues,
    again: Instant,
}

impl Paid {
    fn is(&self, way: &Way, dues: &Dues) -> bool {
        (&self.way, &self.dues) == (way, dues)
    }
}

impl Ports {
    /// None yet; asked about again after `check`.
    pub(crate) fn new(check: Duration, owed: Owed) -> Self {
        let (states, seen) = watch::channel(BTreeMap::new());
        Self {
            questions: BTreeMap::new(),
            keeping: JoinSet::new(),
            states,
            seen,
            check,
            patience: Patience { soon: SOON, late: LATE, never: NEVER, parting: PARTING },
            turns: Turns::default(),
            owed,
            paid: Arc::default(),
        }
    }

    /// Asks these, and no others any more. To the other routers that there are it gives back what was left open before.
    pub(crate) fn want(&mut self, wanted: BTreeMap<UplinkName, Question>, routers: Vec<Way>) {
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
                    let keeper = Keeper {
                        name,
                        questions,
                        states: self.states.clone(),
                        check: self.check,
                        patience: self.patience,
                        turns: self.turns.clone(),
                        owed: self.owed.clone(),
                    };
                    self.keeping.spawn(keeper.keep());
                }
            }
        }
        self.pay(routers);
        let questions = &self.questions;
        self.states.send_if_modified(|states| {
            let before = states.len();
            states.retain(|name, _| questions.contains_key(name));
            states.len() != before
        });
    }

    /// Whoever keeps a port of a router also gives back to it what is not wanted.
    fn pay(&mut self, routers: Vec<Way>) {
        let asked = |way: &Way| {
            let mut all = self.questions.values().map(|question| question.borrow().clone());
            all.any(|question| matches!(question, Question::Router(asked, ..) if asked == *way))
        };
        let now = Instant::now();
        let mut paid = lock(&self.paid);
        let due = |way: &Way, dues: &Dues| {
            paid.get(&way.device).is_none_or(|paid| !paid.is(way, dues) || paid.again <= now)
        };
        let with_dues = |way: Way| (self.owed.dues(way.router), way);
        let due: Vec<(Dues, Way)> = routers
            .into_iter()
            .map(with_dues)
            .filter(|(dues, way)| !dues.are_none() && !asked(way) && due(way, dues))
            .collect();
        for (dues, way) in due {
            let note = Paid { way: way.clone(), dues: dues.clone(), again: now + SELDOM };
            paid.insert(way.device.clone(), note);
            let (turn, owed) = (turn(&self.turns, &way.device), self.owed.clone());
            let (paid, check) = (self.paid.clone(), self.check);
            self.keeping.spawn(async move {
                let _turn = turn.lock().await;
                if owed.pay(&way, &dues).await {
                    return;
                }
                // One that is not there yet, as after a power cut, is asked again with the next look at it.
                let mut paid = lock(&paid);
                if let Some(paid) = paid.get_mut(&way.device).filter(|paid| paid.is(&way, &dues)) {
                    paid.again = Instant::now() + check;
                }
            });
        }
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
        let _ = tokio::time::timeout(self.patience.parting, all).await;
    }
}

/// The turn of one interface.
fn turn(turns: &Turns, device: &str) -> Arc<tokio::sync::Mutex<()>> {
    lock(turns).entry(device.to_owned()).or_default().clone()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps the port of one uplink until nobody asks for it any more.
struct Keeper {
    name: UplinkName,
    questions: watch::Receiver<Question>,
    states: watch::Sender<BTreeMap<UplinkName, PortState>>,
    check: Duration,
    patience: Patience,
    turns: Turns,
    owed: Owed,
}

type Gone = watch::error::RecvError;

impl Keeper {
    async fn keep(mut self) {
        // Until whoever asks is gone.
        while self.keep_this().await.is_ok() {}
    }

    /// Comes back when it is another question.
    async fn keep_this(&mut self) -> Result<(), Gone> {
        let question = self.questions.borrow_and_update().clone();
        let (way, port) = match question {
            Question::NotNeeded => {
                self.tell(PortState::NotNeeded);
                return self.questions.changed().await;
            }
            Question::NoRouter => {
                self.tell(PortState::NoRouter);
                return self.questions.changed().await;
            }
            Question::Router(way, port, _) => (way, port),
        };
        let wish = Wish { port, seconds: LIFETIME, nonce: nonce(&way.device) };
        self.tell(PortState::Asking);
        let turn = turn(&self.turns, &way.device);
        let _turn = tokio::select! {
            turn = turn.lock() => turn,
            changed = self.questions.changed() => return changed,
        };
        let book = self.owed.book(&way, &wish);
        let changed = self.ask_and_ask_again(&way, &wish, &book).await;
        self.take_back(&way, &wish, &book).await;
        self.owed.let_go(&way, port);
        changed
    }

    async fn ask_and_ask_again(&mut self, way: &Way, wish: &Wish, book: &Book) -> Result<(), Gone> {
        let soon = self.patience.soon.min(self.check);
        let (mut pause, mut refused) = (soon, false);
        let mut given: Option<Mapping> = None;
        let mut paid: Option<(Dues, Instant)> = None;
        loop {
            // First, so that the port that is asked for is not one that this box itself left open to where it was before.
            let dues = self.owed.dues(way.router);
            let pays = !dues.are_none()
                && paid.as_ref().is_none_or(|(b, at)| *b != dues || at.elapsed() >= SELDOM);
            if pays {
                let paying = tokio::time::timeout(PAYING, self.owed.pay(way, &dues));
                let there = tokio::select! {
                    there = paying => there.unwrap_or(true),
                    changed = self.questions.changed() => return changed,
                };
                // One that is not there yet is asked again with the next question, unless it never says that it is one.
                if there || given.is_some() {
                    paid = Some((self.owed.dues(way.router), Instant::now()));
                }
            }
            let before = given.clone();
            let asking = ask(way, wish, before.as_ref(), book);
            tokio::pin!(asking);
            let answer = tokio::select! {
                answer = &mut asking => answer,
                changed = self.questions.changed() => {
                    book.close();
                    // Whatever it says is in the book.
                    if book.hears() {
                        let _ = tokio::time::timeout(self.patience.late, asking).await;
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
                        log::info!(
                            "the router {} was started again, and was asked anew",
                            way.router
                        );
                    }
                    let half = Duration::from_secs((mapping.lifetime / 2).into());
                    pause = match mapping.lifetime {
                        0 => self.check,
                        _ => self.check.min(half),
                    };
                    refused = false;
                    self.tell(state(&mapping));
                    given = Some(mapping);
                }
                // Who does not answer just now, or cannot be asked, may still pass callers on.
                Err(polder_portmap::Refusal::Silent(_) | polder_portmap::Refusal::Unasked(..))
                    if given.as_ref().is_some_and(|m| !m.is_over()) =>
                {
                    pause = self.check;
                }
                Err(refusal) => {
                    let lost = given.take().is_some();
                    pause = if lost || !refused { soon } else { (pause * 2).min(SELDOM) };
                    refused = true;
                    self.tell(PortState::Refused { why: refusal.to_string() });
                }
            }
            let rest = async {
                let _left = match &given {
                    Some(mapping) => book.only(way, wish, mapping.port).await,
                    // What is answered after all would be a yes that nobody hears.
                    None => give_back(way, wish, book).await,
                };
                tokio::time::sleep(pause.max(LEAST)).await;
            };
            tokio::select! {
                () = rest => {}
                changed = self.questions.changed() => return changed,
            }
        }
    }

    /// Gives back what may be open, again and again until nothing can come any more.
    async fn take_back(&self, way: &Way, wish: &Wish, book: &Book) {
        book.close();
        let open = book.open();
        loop {
            let begun = Instant::now();
            let left = give_back(way, wish, book).await;
            if left.iter().all(|asked| begun >= asked.at + self.patience.never) {
                return self.say_what_became(&open, &left);
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    fn say_what_became(&self, open: &[polder_portmap::Asked], left: &[polder_portmap::Asked]) {
        // Nobody was told of what was only asked for.
        for asked in open.iter().filter(|asked| asked.given) {
            let is_left = |left: &&polder_portmap::Asked| {
                (left.speech, left.outside) == (asked.speech, asked.outside)
            };
            let how = match left.iter().find(is_left) {
                None => "is given back",
                Some(left) if left.is_for_ever() => {
                    "could not be given back, and the router gave it for ever; it is asked again when it is seen again, or remove it in its settings"
                }
                Some(_) => "could not be given back; it ends by itself",
            };
            log::info!("{}: port {} {how}", self.name, asked.outside);
        }
    }

    fn tell(&self, state: PortState) {
        tell(&self.states, &self.name, state);
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
mod tests;
