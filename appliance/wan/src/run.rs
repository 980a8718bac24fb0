use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use polder_control::{Family, PortState, WanStatus};
use polder_site::{InterfaceName, TargetKind, Uplink, UplinkName, Uplinks};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::Time;
use crate::families::Heard;
use crate::machine::{Decision, Event, Machine, Why};
use crate::netlink::{Netlink, NetlinkError};
use crate::owed::Owed;
use crate::policy::Policy;
use crate::ports::{self, Ports, Question};
use crate::probe::{self, Pages, Way};
use crate::routing::{self, Link, MARK, Routing};
use crate::sockets::{self, Connection};
use crate::status;

/// What is not told by the kernel is seen at this pace: whether somebody uses the way out, what others did to our rules.
const LOOK: Duration = Duration::from_secs(5);
/// The address of a name is asked for again after this time.
const NAMES: Duration = Duration::from_secs(600);

/// What the part needs.
pub struct Options {
    /// When an uplink counts as what.
    pub policy: Policy,
    /// What pages are asked with.
    pub pages: Pages,
    /// The uplinks; others from the moment that others are sent.
    pub uplinks: watch::Receiver<Uplinks>,
    /// The door's port, which routers are asked to pass on where the site says so; none while the box does not serve.
    pub door: watch::Receiver<Option<u16>>,
    /// The state folder, where it is remembered what routers hold open for ever.
    pub state: PathBuf,
    /// By which address somebody outside sees what leaves through an interface.
    pub seen: watch::Receiver<BTreeMap<InterfaceName, IpAddr>>,
    /// How they are, for whoever wants to know.
    pub status: watch::Sender<WanStatus>,
    /// The uplink in use whenever it changed and was seen to work, with its addresses.
    pub announce: mpsc::UnboundedSender<Announcement>,
}

/// Where the box is reached now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// Through which uplink.
    pub uplink: UplinkName,
    /// Its addresses, and those of another one where a family goes out there.
    pub addresses: Vec<IpAddr>,
    /// By which the internet knows its router, where it has no public IPv4 address itself.
    pub router: Option<Ipv4Addr>,
}

/// Looks after the uplinks until `told`. Leaves the machine's routing as it was before.
pub async fn run(mut options: Options, told: impl Future<Output = ()>) -> Result<(), NetlinkError> {
    let mut keeper = Keeper::new(&mut options)?;
    keeper.look().await?;
    tokio::pin!(told);
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let tick = keeper.machine.next_tick().map(|at| keeper.began + at);
        let tick = tick.unwrap_or_else(|| Instant::now() + LOOK);
        tokio::select! {
            () = &mut told => break,
            changed = keeper.options.uplinks.changed() => match changed {
                Ok(()) => {
                    keeper.follow_site();
                    keeper.look().await?;
                }
                Err(_) => break,
            },
            Ok(()) = keeper.options.door.changed() => keeper.ask_routers(),
            Ok(()) = keeper.options.seen.changed() => keeper.tell_of_routers(),
            () = keeper.ports.changed() => keeper.tell_of_routers(),
            () = keeper.netlink.changed() => keeper.look().await?,
            Some((generation, event)) = keeper.heard.recv() => {
                if generation == keeper.generation {
                    let now = keeper.now();
                    let decisions = keeper.machine.take(event, now);
                    keeper.follow(decisions).await;
                }
            }
            () = tokio::time::sleep_until(tick) => {
                let now = keeper.now();
                let decisions = keeper.machine.tick(now);
                keeper.follow(decisions).await;
            }
            _ = looks.tick() => {
                keeper.look().await?;
                keeper.see_who_is_there().await;
            }
        }
        keeper.tell();
    }
    keeper.leave().await;
    Ok(())
}

/// The addresses of names, and when they were asked for.
type Names = BTreeMap<String, (Instant, Vec<IpAddr>)>;

struct Keeper<'a> {
    options: &'a mut Options,
    netlink: Netlink,
    began: Instant,
    machine: Machine,
    /// Results of older machines are not for this one.
    generation: u64,
    uplinks: Vec<(UplinkName, Uplink)>,
    links: Vec<Link>,
    /// All addresses of this machine.
    local: BTreeSet<IpAddr>,
    have: Routing,
    why: Why,
    trouble: Option<String>,
    ports: Ports,
    /// By which address the internet knew each router last.
    routers: BTreeMap<UplinkName, Ipv4Addr>,
    /// What was announced last.
    announced: Option<Announcement>,
    results: mpsc::UnboundedSender<(u64, Event)>,
    heard: mpsc::UnboundedReceiver<(u64, Event)>,
    names: Arc<Mutex<Names>>,
}

impl<'a> Keeper<'a> {
    fn new(options: &'a mut Options) -> Result<Self, NetlinkError> {
        let (results, heard) = mpsc::unbounded_channel();
        let mut keeper = Self {
            netlink: Netlink::open()?,
            began: Instant::now(),
            machine: Machine::new(options.policy.clone(), &[], Time::ZERO),
            generation: 0,
            uplinks: Vec::new(),
            links: Vec::new(),
            local: BTreeSet::new(),
            have: Routing::default(),
            why: Why::Start,
            trouble: None,
            ports: Ports::new(options.policy.port_check, Owed::read(&options.state)),
            routers: BTreeMap::new(),
            announced: None,
            results,
            heard,
            names: Arc::default(),
            options,
        };
        keeper.begin_anew();
        Ok(keeper)
    }

    fn now(&self) -> Time {
        self.began.elapsed()
    }

    /// Who only wants another router asked keeps everything that is known of the uplinks.
    fn follow_site(&mut self) {
        let next = self.options.uplinks.borrow_and_update().clone();
        let same = next.len() == self.uplinks.len()
            && self.uplinks.iter().all(|(name, known)| {
                let next = next.get(name).map(Uplink::without_router);
                next.is_some_and(|next| next == known.without_router())
            });
        if !same {
            return self.begin_anew();
        }
        for (name, known) in &mut self.uplinks {
            known.ask_router = next.get(name).is_some_and(|next| next.ask_router);
        }
    }

    /// Asks those routers that the site says, as their uplinks are now.
    fn ask_routers(&mut self) {
        let door = *self.options.door.borrow_and_update();
        let (mut wanted, mut routers) = (BTreeMap::new(), Vec::new());
        for (place, (name, uplink)) in self.uplinks.iter().enumerate() {
            let (link, device) = (&self.links[place], uplink.interface.as_str());
            let question = ports::question(link, device, mark(place), door.unwrap_or_default());
            if let Question::Router(way, ..) = &question {
                routers.push(way.clone());
            }
            if door.is_some() && uplink.ask_router {
                wanted.insert(name.clone(), question);
            }
        }
        self.ports.want(wanted, routers);
        self.tell_of_routers();
    }

    /// Says again where the box is when only its router is somewhere else.
    fn tell_of_routers(&mut self) {
        let (states, seen) = (self.ports.states(), self.options.seen.borrow_and_update().clone());
        for (place, (name, uplink)) in self.uplinks.iter().enumerate() {
            let seen = seen.get(&uplink.interface).copied();
            match (ports::outside(&self.links[place], states.get(name), seen), states.get(name)) {
                (Some(now), _) => {
                    self.routers.insert(name.clone(), now);
                }
                // What somebody outside saw was the provider's translation, as the router knows now.
                (None, Some(PortState::Useless { .. })) => {
                    self.routers.remove(name);
                }
                (None, _) => {}
            }
        }
        if let Some(before) = &self.announced
            && let Some(now) = self.announcement(self.machine.in_use().0)
            && now.uplink == before.uplink
            && now.router.is_some()
            && now.router != before.router
        {
            log::info!("the router of {} is known as {:?} now", now.uplink, now.router);
            self.announce(now);
        }
    }

    fn announcement(&self, uplink: usize) -> Option<Announcement> {
        let name = self.uplinks.get(uplink)?.0.clone();
        let of = |six: bool| {
            let link = &self.links[self.machine.ways()[usize::from(six)]];
            link.addresses.iter().copied().filter(move |ip| ip.is_ipv6() == six)
        };
        let addresses = of(false).chain(of(true)).collect();
        let four = self.uplinks.get(self.machine.ways()[0]).map(|(name, _)| name);
        let router = four.and_then(|name| self.routers.get(name)).copied();
        Some(Announcement { uplink: name, addresses, router })
    }

    fn announce(&mut self, now: Announcement) {
        self.announced = Some(now.clone());
        // Nobody may want to know.
        let _ = self.options.announce.send(now);
    }

    /// Other uplinks: nothing that is known says anything about them.
    fn begin_anew(&mut self) {
        let uplinks = self.options.uplinks.borrow_and_update().clone();
        self.uplinks = uplinks.into_iter().collect();
        self.uplinks.sort_by_key(|(_, uplink)| uplink.order);
        let metered: Vec<bool> = self.uplinks.iter().map(|(_, u)| u.metered).collect();
        self.machine = Machine::new(self.options.policy.clone(), &metered, self.now());
        self.generation += 1;
        self.links = vec![Link::default(); self.uplinks.len()];
        self.routers.clear();
        self.announced = None;
        self.why = Why::Start;
    }

    /// Reads what the system has, and tells the machine what is new.
    async fn look(&mut self) -> Result<(), NetlinkError> {
        let mut observed = self.netlink.observe().await?;
        self.have = observed.routing;
        self.local = observed.links.values().flat_map(|l| l.addresses.iter().copied()).collect();
        let mut decisions = Vec::new();
        let mut gone = BTreeSet::new();
        for place in 0..self.uplinks.len() {
            let interface = self.uplinks[place].1.interface.as_str();
            let next = observed.links.remove(interface).unwrap_or_default();
            let before = std::mem::replace(&mut self.links[place], next);
            let next = &self.links[place];
            gone.extend(before.addresses.difference(&self.local).copied());
            let now = self.began.elapsed();
            if before.carrier != next.carrier {
                let event = Event::Carrier { uplink: place, up: next.carrier };
                decisions.extend(self.machine.take(event, now));
            }
            if (&before.addresses, &before.gateways) != (&next.addresses, &next.gateways) {
                self.routers.remove(&self.uplinks[place].0);
                let event = Event::Address { uplink: place, there: next.is_configured() };
                decisions.extend(self.machine.take(event, now));
            }
        }
        self.follow(decisions).await;
        self.ask_routers();
        if !gone.is_empty() {
            let local = &self.local;
            let orphaned =
                |c: &Connection| gone.contains(&c.here.ip()) && !local.contains(&c.there.ip());
            end_all("addresses that are gone", orphaned);
        }
        Ok(())
    }

    /// Does what was decided: first the way out, then everything that may wait a moment.
    async fn follow(&mut self, decisions: Vec<Decision>) {
        for decision in &decisions {
            if let Decision::Use { uplink, why } = decision {
                self.why = *why;
                let (name, _) = &self.uplinks[*uplink];
                log::info!("going out through {name}: {}", status::words(*why));
            }
        }
        self.reconcile().await;
        for decision in decisions {
            match decision {
                Decision::Use { .. } => {}
                Decision::CutOff(uplink) => self.cut_off(uplink, |_| true),
                Decision::Lead { six, uplink } => {
                    let name = &self.uplinks[uplink].0;
                    log::info!("{} goes out through {name} now", Family::of(six).name());
                }
                Decision::CutOffFamily { six, uplink } => {
                    self.cut_off(uplink, |c| c.here.ip().to_canonical().is_ipv6() == six);
                }
                Decision::Probe { uplink, round } => self.probe(uplink, round),
                Decision::Announce(uplink) => {
                    if let Some(now) = self.announcement(uplink) {
                        self.announce(now);
                    }
                }
            }
        }
    }

    /// Makes the kernel's rules and tables what they should be.
    async fn reconcile(&mut self) {
        let want = routing::wanted(&self.links, self.machine.ways());
        let mut trouble = None;
        for act in routing::difference(&self.have, &want) {
            if let Err(error) = self.netlink.apply(&act).await {
                trouble.get_or_insert(error.to_string());
            }
        }
        if trouble != self.trouble
            && let Some(why) = &trouble
        {
            log::warn!("{why}");
        }
        // Tried again when the system is looked at next.
        self.trouble = trouble;
        self.have = want;
    }

    fn probe(&self, uplink: usize, round: u64) {
        let (_, it) = &self.uplinks[uplink];
        let speaks = [false, true].map(|six| self.links[uplink].speaks(six));
        let way = Way { mark: mark(uplink), device: it.interface.to_string() };
        let (pages, patience) = (self.options.pages.clone(), self.options.policy.patience);
        let probes = it.probed().into_iter().map(|target| {
            let known = self.addresses_of(target.kind());
            let at = probe::place(target.kind(), &known, |six| speaks[usize::from(six)]);
            let (way, pages) = (way.clone(), pages.clone());
            at.map(|at| async move {
                let asked = probe::ask(target.kind(), at, &way, &pages);
                let answer = match tokio::time::timeout(patience, asked).await {
                    Ok(Ok(delay)) => Some(delay),
                    Ok(Err(error)) => {
                        log::debug!("{target} through {}: {error}", way.device);
                        None
                    }
                    Err(_) => None,
                };
                (usize::from(at.is_ipv6()), answer)
            })
        });
        let probes: Vec<_> = probes.flatten().collect();
        let (results, generation) = (self.results.clone(), self.generation);
        tokio::spawn(async move {
            let begun = Instant::now();
            let asked = futures_util::future::join_all(probes).await;
            // What is refused at once is asked no more often than what is silent.
            if asked.iter().all(|(_, answer)| answer.is_none()) {
                tokio::time::sleep_until(begun + patience).await;
            }
            let mut heard = [Heard::default(); 2];
            for (family, answer) in &asked {
                heard[*family].asked += 1;
                heard[*family].answered += usize::from(answer.is_some());
            }
            let delays = asked.into_iter().map(|(_, answer)| answer).collect();
            let event = Event::Probed { uplink, round, results: delays, heard };
            let _ = results.send((generation, event));
        });
    }

    /// What is known of a name; asked for anew beside, now and then.
    fn addresses_of(&self, target: &TargetKind) -> Vec<IpAddr> {
        let TargetKind::Https { host, port, .. } = target else { return Vec::new() };
        if host.parse::<IpAddr>().is_ok() {
            return Vec::new();
        }
        let mut names = self.names.lock().expect("nothing panics while it holds the names");
        let known = names.get(host).cloned();
        if known.as_ref().is_none_or(|(asked, _)| asked.elapsed() > NAMES) {
            let before = known.clone().map_or_else(Vec::new, |(_, list)| list);
            names.insert(host.clone(), (Instant::now(), before));
            let (all, host, port) = (self.names.clone(), host.clone(), *port);
            tokio::spawn(async move {
                let found: Vec<IpAddr> = match tokio::net::lookup_host((host.as_str(), port)).await
                {
                    Ok(list) => list.map(|at| at.ip()).collect(),
                    Err(_) => Vec::new(),
                };
                let mut all = all.lock().expect("nothing panics while it holds the names");
                match found.is_empty() {
                    // What was known is kept; asked again soon.
                    true => all.retain(|name, (_, list)| *name != host || !list.is_empty()),
                    false => drop(all.insert(host, (Instant::now(), found))),
                }
            });
        }
        known.map_or_else(Vec::new, |(_, list)| list)
    }

    fn cut_off(&self, uplink: usize, which: impl Fn(&Connection) -> bool) {
        let (link, local) = (&self.links[uplink], &self.local);
        let hangs = |connection: &Connection| which(connection) && hangs(connection, link, local);
        end_all(self.uplinks[uplink].0.as_str(), hangs);
    }

    /// Whether anybody would notice if the way out changed.
    async fn see_who_is_there(&mut self) {
        if !self.machine.wants_to_know_busy() {
            return;
        }
        let (place, _) = self.machine.in_use();
        let probed: BTreeSet<IpAddr> = self.probed_addresses().map(|at| at.ip()).collect();
        let (link, local) = (&self.links[place], &self.local);
        let list = sockets::list().unwrap_or_default();
        let busy = list
            .iter()
            .any(|c| c.established && hangs(c, link, local) && !probed.contains(&c.there.ip()));
        let now = self.now();
        let decisions = self.machine.take(Event::Busy(busy), now);
        self.follow(decisions).await;
    }

    fn probed_addresses(&self) -> impl Iterator<Item = SocketAddr> {
        let targets = self.uplinks.iter().flat_map(|(_, uplink)| uplink.probed());
        targets.filter_map(|target| {
            probe::place(target.kind(), &self.addresses_of(target.kind()), |_| true)
        })
    }

    fn tell(&mut self) {
        let mut status = status::status(
            &self.machine,
            &self.uplinks,
            &self.links,
            self.why,
            self.trouble.clone(),
            self.now(),
        );
        let mut ports = self.ports.states();
        for uplink in &mut status.uplinks {
            uplink.port = ports.remove(&uplink.name);
        }
        self.options.status.send_replace(status);
    }

    /// The machine's own routes are good enough for whoever looks after nothing.
    async fn leave(&mut self) {
        // While there is still a way to each router.
        std::mem::replace(&mut self.ports, Ports::new(LOOK, Owed::default())).end().await;
        match self.netlink.observe().await {
            Ok(observed) => self.have = observed.routing,
            Err(error) => log::warn!("{error}"),
        }
        self.uplinks.clear();
        self.links.clear();
        self.reconcile().await;
    }
}

/// The mark of an uplink's own packets.
fn mark(place: usize) -> u32 {
    MARK + u32::try_from(place).expect("there are few uplinks")
}

/// Whether a connection goes nowhere when the uplink does not: what is on its wire still answers, as long as the wire is there.
fn hangs(connection: &Connection, link: &Link, local: &BTreeSet<IpAddr>) -> bool {
    let (here, there) = (connection.here.ip(), connection.there.ip());
    let ours = link.addresses.contains(&here) && !local.contains(&there);
    ours && !(link.carrier && link.is_near(there))
}

/// Ends connections: without that, whoever waits at one would wait for a quarter of an hour.
fn end_all(whose: &str, which: impl Fn(&Connection) -> bool) {
    let list = sockets::list().unwrap_or_else(|error| {
        log::warn!("could not list connections, so that some may hang: {error}");
        Vec::new()
    });
    let (mut ended, mut failed) = (0, None);
    for connection in list.iter().filter(|connection| which(connection)) {
        match sockets::destroy(connection) {
            Ok(there) => ended += usize::from(there),
            Err(error) => failed = Some(error),
        }
    }
    if ended > 0 {
        log::info!("ended {ended} connections that hung on {whose}");
    }
    if let Some(error) = failed {
        log::warn!("could not end every connection that hangs on {whose}: {error}");
    }
}
