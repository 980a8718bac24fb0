//! Members outside: the lines that the box holds to a relay, over each of its uplinks, and who comes over them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use polder_control::{
    BoxStatus, OutsideLine, OutsideSeen, PortState, Sockets, UplinkStatus, WanRequest, wan_asked,
};
use polder_pki::Keeper;
use polder_reach::dial::{Caller, Doors, Knock, LineState, Rank, Tried, Via, hold};
use polder_reach::{Pass, Place};
use polder_site::{InterfaceName, Site};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

use crate::connection::Host;

/// How often routers are looked at, where nothing else happens.
const LOOK: Duration = Duration::from_secs(5);

/// What the box knows of its relay, and how its lines are.
#[derive(Debug)]
pub(crate) struct Outside {
    file: PathBuf,
    pass: watch::Sender<Option<Pass>>,
    lines: watch::Sender<BTreeMap<Via, LineState>>,
    /// Since when those are broken that are.
    broken: Mutex<BTreeMap<Via, Instant>>,
    /// Where a relay should knock, for each line.
    knocks: Mutex<BTreeMap<Via, Knock>>,
    /// Where somebody wants callers to come in over IPv6.
    six_wanted: Mutex<BTreeSet<Via>>,
}

impl Outside {
    /// Reads the pass, where a steward has given one.
    pub(crate) fn open(state: &Path) -> Self {
        let file = state.join("relay.pass");
        let pass = match fs::read_to_string(&file) {
            Ok(text) => {
                text.parse().inspect_err(|error| log::error!("{}: {error}", file.display())).ok()
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                log::error!("could not read {}: {error}", file.display());
                None
            }
        };
        let (pass, lines) = (watch::Sender::new(pass), watch::Sender::default());
        let (broken, knocks, six_wanted) = Default::default();
        Self { file, pass, lines, broken, knocks, six_wanted }
    }

    /// The relay's host and port, where there is one.
    pub(crate) fn relay(&self) -> Option<(String, u16)> {
        self.pass.borrow().as_ref().map(|pass| (pass.host.clone(), pass.port))
    }

    /// How each line is.
    pub(crate) fn lines(&self) -> BTreeMap<Via, LineState> {
        self.lines.borrow().clone()
    }

    /// For whoever looks after the box's health.
    pub(crate) fn seen(&self) -> OutsideSeen {
        let Some((relay, _)) = self.relay() else { return OutsideSeen::default() };
        let line = |(via, state): (Via, LineState)| {
            let mapped = self.knock(&via).doors().and_then(|doors| doors.mapped);
            let since = lock(&self.broken).get(&via).map(Instant::elapsed).unwrap_or_default();
            let (broken, shut, six) = match state {
                LineState::Broken { why } => (Some((since.as_secs(), why)), None, false),
                LineState::Held { place, tried, seen, .. } => {
                    let six = seen.ip().to_canonical().is_ipv6();
                    let wanted = !six || lock(&self.six_wanted).contains(&via);
                    (None, shut(place, tried, mapped).filter(|_| wanted), six)
                }
                LineState::Calling => (None, None, false),
            };
            let interface = match via {
                Via::Any => None,
                Via::Interface(name) => Some(name),
            };
            OutsideLine { interface, broken, shut, six }
        };
        OutsideSeen { relay: Some(relay), lines: self.lines().into_iter().map(line).collect() }
    }

    /// Keeps a pass, and calls with it; or forgets it, and hangs up.
    pub(crate) fn keep(&self, pass: Option<Pass>) -> io::Result<()> {
        match &pass {
            Some(pass) => {
                polder_pki::files::write(&self.file, &pass.to_string())
                    .map_err(io::Error::other)?;
            }
            None => match fs::remove_file(&self.file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            },
        }
        self.pass.send_replace(pass);
        Ok(())
    }

    /// Holds a line over every uplink while there is a pass, until the door closes. A line whose uplink stays is left alone
    /// when another comes or goes: whoever is being answered over it notices nothing.
    pub(crate) async fn follow(
        self: Arc<Self>,
        host: Host,
        mut status: watch::Receiver<Arc<BoxStatus>>,
        tracker: TaskTracker,
    ) {
        let mut passes = self.pass.subscribe();
        loop {
            let pass = passes.borrow_and_update().clone();
            self.lines.send_replace(BTreeMap::new());
            lock(&self.broken).clear();
            let mut held: BTreeMap<Via, (Rank, JoinSet<()>)> = BTreeMap::new();
            loop {
                let ways = ways(&status.borrow_and_update().site);
                held.retain(|via, _| ways.contains(via));
                lock(&self.broken).retain(|via, _| ways.contains(via));
                self.lines.send_if_modified(|lines| {
                    let before = lines.len();
                    lines.retain(|via, _| ways.contains(via));
                    lines.len() != before
                });
                for (rank, via) in pass.iter().flat_map(|_| ways.iter().enumerate()) {
                    let line = held.entry(via.clone()).or_default();
                    line.0.set(u8::try_from(rank).unwrap_or(u8::MAX));
                    let (Some(pass), true) = (pass.clone(), line.1.is_empty()) else { continue };
                    let (this, rank, via) = (self.clone(), line.0.clone(), via.clone());
                    let (host, tracker, knock) = (host.clone(), tracker.clone(), self.knock(&via));
                    line.1.spawn(async move {
                        let told = |state| this.told(&via, state);
                        let take = move |caller| come_in(&host, &tracker, caller);
                        hold(&pass, &via, &rank, &knock, told, take).await;
                    });
                }
                // A status comes with every change of any part; only other uplinks matter here.
                let other_ways = async {
                    while status.changed().await.is_ok() {
                        if self::ways(&status.borrow().site) != ways {
                            return;
                        }
                    }
                    std::future::pending().await
                };
                tokio::select! {
                    () = host.closing.cancelled() => {
                        // Nobody new comes in, and who is being answered over a line keeps it until the door is closed for good.
                        host.closed.cancelled().await;
                        return;
                    }
                    changed = passes.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return,
                    },
                    () = other_ways => {}
                }
            }
        }
    }

    fn knock(&self, via: &Via) -> Knock {
        lock(&self.knocks).entry(via.clone()).or_default().clone()
    }

    /// Tells whoever looks after the uplinks by which addresses a relay sees them, and the relay at which ports to knock.
    pub(crate) async fn look_at_routers(
        self: Arc<Self>,
        sockets: Sockets,
        keeper: Arc<Keeper>,
        status: watch::Receiver<Arc<BoxStatus>>,
    ) {
        let mut lines = self.lines.subscribe();
        loop {
            let site = status.borrow().site.clone();
            let mut ports = BTreeMap::new();
            let seen = WanRequest::Seen(seen(&lines.borrow_and_update()));
            let uplinks = match site.uplinks.is_empty() {
                true => Some(Vec::new()),
                false => wan_asked(&sockets, &seen).await.map(|said| said.uplinks),
            };
            // Where nobody says how the uplinks are, it is as it was a moment ago.
            if let Some(uplinks) = uplinks {
                *lock(&self.six_wanted) = six_wanted(&site, &uplinks, goes_out_by_four);
                ports.extend(uplinks.into_iter().filter_map(|uplink| {
                    let Some(PortState::Mapped { port, .. }) = uplink.port else { return None };
                    Some((Via::Interface(uplink.interface.as_str().to_owned()), port))
                }));
            }
            for via in ways(&site) {
                let (own, mapped) = (site.door.port, ports.get(&via).copied());
                let fingerprint = keeper.shown_without_a_name();
                self.knock(&via).set(Some(Doors { own, mapped, fingerprint }));
            }
            let other = tokio::time::timeout(LOOK, lines.changed());
            if matches!(other.await, Ok(Err(_))) {
                return;
            }
            // Lines that come and go say so many times at once.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    fn told(&self, via: &Via, state: LineState) {
        match &state {
            LineState::Calling => {}
            LineState::Held { .. } => drop(lock(&self.broken).remove(via)),
            LineState::Broken { .. } => {
                lock(&self.broken).entry(via.clone()).or_insert_with(Instant::now);
            }
        }
        self.lines.send_if_modified(|lines| {
            let before = lines.get(via);
            match (&state, before) {
                _ if before == Some(&state) => return false,
                (LineState::Held { tried, .. }, Some(LineState::Held { tried: before, .. }))
                    if tried != before =>
                {
                    if let Some(Tried { port, open }) = tried {
                        let how = if *open { "came through" } else { "did not come through" };
                        log::info!(via:? = via; "a call from outside at port {port} {how}");
                    }
                }
                (LineState::Held { .. }, _) => {
                    log::info!(via:? = via; "members outside can come in")
                }
                (LineState::Broken { why }, before)
                    if !matches!(before, Some(LineState::Broken { .. })) =>
                {
                    log::warn!(via:? = via; "{why}");
                }
                _ => {}
            }
            // A line that is called again is still broken to whoever looks.
            let waits =
                matches!((&state, before), (LineState::Calling, Some(LineState::Broken { .. })));
            if !waits {
                lines.insert(via.clone(), state.clone());
            }
            !waits
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The port at which the relay knocked in vain, where somebody meant it to be open. Behind a router that nobody asked it is shut as it should be.
fn shut(place: Place, tried: Option<Tried>, mapped: Option<u16>) -> Option<u16> {
    let port = tried.filter(|tried| !tried.open)?.port;
    let meant = match place {
        Place::Public => true,
        Place::Router => mapped == Some(port),
        Place::Provider => false,
    };
    meant.then_some(port)
}

/// Over which uplinks somebody wants callers to come in by IPv6: those whose router is to be asked, and those that have no other address. Elsewhere nobody
/// asked for it: a firewall before everybody's own addresses is what routers have, and the relay leads members in. Where the site names no uplinks, the
/// machine itself is the one that has an address or not.
fn six_wanted(site: &Site, uplinks: &[UplinkStatus], four: impl Fn() -> bool) -> BTreeSet<Via> {
    if site.uplinks.is_empty() {
        return if four() { BTreeSet::new() } else { [Via::Any].into() };
    }
    let only_six = |uplink: &UplinkStatus| {
        !uplink.addresses.is_empty() && uplink.addresses.iter().all(|ip| ip.is_ipv6())
    };
    let asked = site.uplinks.values().filter(|uplink| uplink.ask_router).map(|u| &u.interface);
    let only = uplinks.iter().filter(|uplink| only_six(uplink)).map(|uplink| &uplink.interface);
    asked.chain(only).map(|name| Via::Interface(name.as_str().to_owned())).collect()
}

/// Whether this machine has a way to the internet by IPv4. It sends nothing: a socket that is led somewhere only looks for the way there.
fn goes_out_by_four() -> bool {
    // An address of a documentation, which is reached by the default route where there is one.
    let somewhere = (Ipv4Addr::new(192, 0, 2, 1), 9);
    UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|s| s.connect(somewhere)).is_ok()
}

/// By which address a relay sees what leaves through an interface.
fn seen(lines: &BTreeMap<Via, LineState>) -> BTreeMap<InterfaceName, IpAddr> {
    let of = |(via, state): (&Via, &LineState)| match (via, state) {
        (Via::Interface(name), LineState::Held { seen, .. }) => {
            Some((name.parse().ok()?, seen.ip()))
        }
        _ => None,
    };
    lines.iter().filter_map(of).collect()
}

/// Over which uplinks lines are held: each that the site names, so that one is there when another fails. Callers are wanted over
/// the first: those that cost nothing by the amount come before the others, and then in the order of the site.
fn ways(site: &Site) -> Vec<Via> {
    let mut uplinks: Vec<_> = site.uplinks.values().collect();
    uplinks.sort_by_key(|uplink| (uplink.metered, uplink.order, uplink.interface.as_str()));
    let interface = |uplink: &polder_site::Uplink| uplink.interface.as_str().to_owned();
    let ways: Vec<Via> = uplinks.into_iter().map(|u| Via::Interface(interface(u))).collect();
    if ways.is_empty() { vec![Via::Any] } else { ways }
}

fn come_in(host: &Host, tracker: &TaskTracker, caller: Caller) {
    if host.closing.is_cancelled() {
        return;
    }
    let place = match host.gateway.places.take(caller.remote.ip()) {
        Ok(place) => place,
        Err(why) => {
            host.gateway.tally.refused(why);
            return;
        }
    };
    host.gateway.tally.connection();
    let (host, seat) = (host.clone(), host.workers.seat());
    let runtime = seat.runtime().clone();
    let conversation = async move {
        let closed = host.closed.clone();
        tokio::select! {
            biased;
            () = host.converse_from_outside(caller) => {}
            () = closed.cancelled() => {}
        }
        drop((place, seat));
    };
    tracker.spawn_on(conversation, &runtime);
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_pass_is_kept_for_nobody_else_to_read_until_it_is_taken_away() {
        let folder = tempfile::tempdir().unwrap();
        let pass = Pass {
            id: "oak".into(),
            secret: [3; 32],
            host: "r.example.org".into(),
            port: 443,
            fingerprint: [4; 32],
        };
        Outside::open(folder.path()).keep(Some(pass)).unwrap();
        let file = folder.path().join("relay.pass");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let outside = Outside::open(folder.path());
        assert_eq!(outside.relay(), Some(("r.example.org".into(), 443)));
        outside.keep(None).unwrap();
        outside.keep(None).unwrap();
        assert!(outside.relay().is_none() && !file.exists());
        fs::write(&file, "polder-relay://half").unwrap();
        assert!(Outside::open(folder.path()).relay().is_none());
    }

    #[test]
    fn a_knock_in_vain_is_told_where_somebody_meant_the_door_to_be_open() {
        let tried = |port, open| Some(Tried { port, open });
        assert_eq!(shut(Place::Public, tried(443, false), None), Some(443));
        assert_eq!(shut(Place::Public, tried(443, true), None), None);
        assert_eq!(shut(Place::Public, None, None), None);
        assert_eq!(shut(Place::Router, tried(8443, false), Some(8443)), Some(8443));
        assert_eq!(shut(Place::Router, tried(443, false), None), None, "nobody asked the router");
        assert_eq!(shut(Place::Provider, tried(443, false), None), None);
    }

    #[test]
    fn a_firewall_before_ipv6_is_told_where_somebody_wants_callers_there_and_nowhere_else() {
        let folder = tempfile::tempdir().unwrap();
        let outside = Outside::open(folder.path());
        let pass = Pass {
            id: "oak".into(),
            secret: [3; 32],
            host: "r.example.org".into(),
            port: 443,
            fingerprint: [4; 32],
        };
        outside.keep(Some(pass)).unwrap();
        let via = Via::Interface("enp1s0".into());
        let shut = |seen: &str| {
            let state = LineState::Held {
                names: Vec::new(),
                seen: seen.parse().unwrap(),
                place: Place::Public,
                tried: Some(Tried { port: 443, open: false }),
            };
            outside.told(&via, state);
            let line = outside.seen().lines.remove(0);
            (line.shut, line.six)
        };
        let mut site = Site::unclaimed(8443);
        let uplink = polder_site::Uplink {
            interface: "enp1s0".parse().unwrap(),
            order: 1,
            metered: false,
            ask_router: false,
            targets: Vec::new(),
        };
        site.uplinks.insert("glass".parse().unwrap(), uplink);
        let says = |addresses: &[&str]| UplinkStatus {
            name: "glass".parse().unwrap(),
            interface: "enp1s0".parse().unwrap(),
            metered: false,
            in_use: true,
            state: polder_control::UplinkState::Good,
            for_seconds: 1,
            loss_percent: 0,
            delay_ms: None,
            lost_lately: 0,
            addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
            silent_targets: Vec::new(),
            port: None,
            dead: None,
            stands_in: None,
        };
        let mut want = |ask_router: bool, addresses: &[&str]| {
            site.uplinks.values_mut().for_each(|uplink| uplink.ask_router = ask_router);
            *lock(&outside.six_wanted) = six_wanted(&site, &[says(addresses)], || true);
        };
        let (four, six) = ("203.0.113.7:40000", "[2001:db8::7]:40000");
        want(false, &["192.168.1.7", "2001:db8::7"]);
        assert_eq!(shut(six), (None, true), "nobody asked for it");
        assert_eq!(shut(four), (Some(443), false));
        want(true, &["192.168.1.7", "2001:db8::7"]);
        assert_eq!(shut(six), (Some(443), true));
        want(false, &["2001:db8::7"]);
        assert_eq!(shut(six), (Some(443), true), "there is no other way in");
    }

    #[test]
    fn a_box_that_names_no_uplinks_wants_callers_by_ipv6_where_the_machine_has_nothing_else() {
        let site = Site::unclaimed(8443);
        assert_eq!(six_wanted(&site, &[], || false), [Via::Any].into());
        assert_eq!(six_wanted(&site, &[], || true), BTreeSet::new());
    }

    #[test]
    fn a_line_is_held_over_every_uplink_and_callers_are_wanted_where_they_cost_nothing() {
        let mut site = Site::unclaimed(8443);
        assert_eq!(ways(&site), [Via::Any]);
        let uplink = |interface: &str, order, metered| polder_site::Uplink {
            interface: interface.parse().unwrap(),
            order,
            metered,
            ask_router: false,
            targets: Vec::new(),
        };
        site.uplinks.insert("mobile".parse().unwrap(), uplink("wwan0", 1, true));
        site.uplinks.insert("fibre".parse().unwrap(), uplink("enp2s0", 2, false));
        site.uplinks.insert("dsl".parse().unwrap(), uplink("enp1s0", 3, false));
        let all = ["enp2s0", "enp1s0", "wwan0"].map(|name| Via::Interface(name.into()));
        assert_eq!(ways(&site), all);
    }
}
