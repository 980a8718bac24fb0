//! Routers that take their time, and boxes that have gone by then: nothing stays open that nobody wants.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use super::*;

/// A router at an address of this machine's own. What it does late it does when something was seen, and not when some time is over.
#[derive(Clone)]
struct Router {
    at: Ipv4Addr,
    says_yes: Yes,
    /// Whether it gives ports only for ever, and says that as 501.
    for_ever: bool,
    /// Whether it says what tells it from every other one.
    named: bool,
    said: Arc<(Mutex<Said>, Condvar)>,
}

/// When a router does what it is asked.
#[derive(Clone, Copy, PartialEq)]
enum Yes {
    AtOnce,
    /// Never, until it is told to.
    NoUntilTold,
    /// When it is told to.
    Told,
    /// When it is asked to take the port back; whoever asks that hears first that there is none.
    WhenItIsTakenBack,
}

#[derive(Default)]
struct Said {
    asked: usize,
    granted: usize,
    told: bool,
    holds: BTreeMap<u16, Held>,
}

/// A port that it passes on.
#[derive(Debug, Clone, PartialEq)]
struct Held {
    to: SocketAddrV4,
    seconds: u32,
    called: String,
}

impl Router {
    fn new(last: u8, says_yes: Yes) -> Self {
        let at = [127, 0, 78, last].into();
        Self { at, says_yes, for_ever: false, named: true, said: Arc::default() }
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.0.lock().unwrap()
    }

    /// Waits for its turn to say yes; the test that forgets it ends with it.
    fn waits(&self) {
        if matches!(self.says_yes, Yes::Told | Yes::WhenItIsTakenBack) {
            drop(self.said.1.wait_while(self.said(), |said| !said.told).unwrap());
        }
    }

    /// Now it may say yes.
    fn tell(&self) {
        self.said().told = true;
        self.said.1.notify_all();
    }

    /// Somebody asks it to take a port back, or whose it is: it said no, and gives it now.
    fn is_asked_back(&self) {
        if self.says_yes == Yes::WhenItIsTakenBack && self.said().asked > 0 {
            self.tell();
            drop(self.said.1.wait_while(self.said(), |said| said.granted == 0).unwrap());
        }
    }

    fn way(&self) -> Way {
        let own = Ipv4Addr::LOCALHOST;
        Way { device: "lo".into(), mark: 0, own, router: self.at }
    }

    fn speaks_upnp(self) -> Self {
        let pages = TcpListener::bind((self.at, 0)).unwrap();
        let location = format!("http://{}:{}/", self.at, pages.local_addr().unwrap().port());
        let found = UdpSocket::bind((self.at, 1900)).unwrap();
        std::thread::spawn(move || {
            let mut bytes = [0; 2048];
            while let Ok((_, from)) = found.recv_from(&mut bytes) {
                let said = format!("HTTP/1.1 200 OK\r\nLOCATION: {location}\r\n\r\n");
                let _ = found.send_to(said.as_bytes(), from);
            }
        });
        let router = self.clone();
        std::thread::spawn(move || {
            for stream in pages.incoming().flatten() {
                let router = router.clone();
                std::thread::spawn(move || router.page(stream));
            }
        });
        self
    }

    fn page(&self, mut stream: TcpStream) {
        let (mut asked, mut bytes) = (String::new(), [0; 4096]);
        while !asked.ends_with("\r\n\r\n") && !asked.ends_with("Envelope>\r\n") {
            match stream.read(&mut bytes) {
                Ok(count) if count > 0 => asked += &String::from_utf8_lossy(&bytes[..count]),
                _ => return,
            }
        }
        let page = self.answer(&asked);
        let length = page.len();
        let head =
            format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
        // Whoever asked may be gone, and what was done is done.
        let _ = stream.write_all((head + &page).as_bytes());
    }

    fn answer(&self, asked: &str) -> String {
        let word = |name: &str| {
            let value = asked.split(&format!("<{name}>")).nth(1)?;
            Some(value.split('<').next()?.to_owned())
        };
        let of = |name: &str| word(name)?.parse::<u32>().ok();
        let outside = u16::try_from(of("NewExternalPort").unwrap_or_default()).unwrap();
        let fault = |number: u16| format!("<a><errorCode>{number}</errorCode></a>");
        if asked.starts_with("GET") {
            let name = format!("<UDN>uuid:{}</UDN>", self.at);
            return format!(
                "<root><device>{}<service>\
                 <serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>\
                 <controlURL>/do</controlURL></service></device></root>",
                if self.named { &name } else { "" }
            );
        }
        if asked.contains("GetExternalIPAddress") {
            return "<a><GetExternalIPAddressResponse/><NewExternalIPAddress>11.7.0.5</NewExternalIPAddress></a>".into();
        }
        if asked.contains("GetSpecific") {
            let held = self.said().holds.get(&outside).cloned();
            self.is_asked_back();
            return held.map_or_else(
                || fault(714),
                |held| {
                    format!(
                        "<a><GetSpecificPortMappingEntryResponse/><NewInternalClient>{}</NewInternalClient>\
                         <NewInternalPort>{}</NewInternalPort>\
                         <NewPortMappingDescription>{}</NewPortMappingDescription></a>",
                        held.to.ip(),
                        held.to.port(),
                        held.called
                    )
                },
            );
        }
        if asked.contains("DeletePortMapping") {
            return match self.said().holds.remove(&outside) {
                Some(_) => "<DeletePortMappingResponse/>".into(),
                None => fault(714),
            };
        }
        let seconds = of("NewLeaseDuration").unwrap();
        if self.for_ever && seconds != 0 {
            return fault(501);
        }
        self.said().asked += 1;
        if self.says_yes == Yes::NoUntilTold && !self.said().told {
            return fault(606);
        }
        self.waits();
        let ip = word("NewInternalClient").unwrap().parse().unwrap();
        let port = of("NewInternalPort").unwrap().try_into().unwrap();
        let called = word("NewPortMappingDescription").unwrap();
        self.grants(outside, Held { to: SocketAddrV4::new(ip, port), seconds, called });
        "<AddPortMappingResponse/>".into()
    }

    fn grants(&self, outside: u16, held: Held) {
        let mut said = self.said();
        said.granted += 1;
        said.holds.insert(outside, held);
        self.said.1.notify_all();
    }

    fn speaks_pcp(self) -> Self {
        let socket = UdpSocket::bind((self.at, polder_portmap::pcp::PORT)).unwrap();
        let router = self.clone();
        std::thread::spawn(move || {
            let mut bytes = [0; 200];
            while let Ok((count, from)) = socket.recv_from(&mut bytes) {
                if (count, bytes[0]) != (60, 2) {
                    continue;
                }
                let mut answer = bytes[..60].to_vec();
                answer[1] |= 0x80;
                answer[8..24].fill(0);
                if answer[4..8] == [0; 4] {
                    router.said().holds.remove(&8443);
                    let _ = socket.send_to(&answer, from);
                    router.is_asked_back();
                    continue;
                }
                router.said().asked += 1;
                let (router, socket) = (router.clone(), socket.try_clone().unwrap());
                std::thread::spawn(move || {
                    router.waits();
                    let to = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8443);
                    router.grants(8443, Held { to, seconds: 1200, called: String::new() });
                    let _ = socket.send_to(&answer, from);
                });
            }
        });
        self
    }

    /// Asked, and not answered yet.
    async fn is_asked(&self) {
        until("a question", || self.said().asked > 0).await;
    }

    /// What it passes on: from which port, and whereto.
    fn holds(&self) -> BTreeMap<u16, Held> {
        self.said().holds.clone()
    }

    fn granted(&self) -> usize {
        self.said().granted
    }
}

async fn until(what: &str, look: impl Fn() -> bool) {
    let begun = Instant::now();
    while !look() {
        assert!(begun.elapsed() < Duration::from_secs(60), "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn one(router: &Router) -> BTreeMap<UplinkName, Question> {
    [("u1".parse().unwrap(), Question::Router(router.way(), 8443, 1))].into()
}

fn ports(owed: Owed) -> Ports {
    let mut ports = Ports::new(Duration::from_secs(60), owed);
    ports.patience.late = Duration::from_millis(500);
    ports.patience.never = Duration::from_secs(6);
    ports
}

/// Asked for, and given up while the router thinks.
async fn given_up(router: Router) {
    let mut ports = ports(Owed::default());
    if router.says_yes == Yes::Told {
        ports.patience.late = Duration::from_secs(60);
    }
    ports.want(one(&router), Vec::new());
    router.is_asked().await;
    assert_eq!(router.granted(), 0);
    ports.want(BTreeMap::new(), Vec::new());
    if router.says_yes == Yes::Told {
        router.tell();
    }
    while ports.keeping.join_next().await.is_some() {}
    assert!(router.granted() > 0, "it has not said yes yet");
    assert_eq!(router.holds(), BTreeMap::new());
}

#[tokio::test]
async fn a_yes_that_comes_when_nobody_wants_the_port_any_more_is_given_back() {
    tokio::join!(
        given_up(Router::new(1, Yes::Told).speaks_upnp()),
        // Later than a page is waited for.
        given_up(Router::new(2, Yes::WhenItIsTakenBack).speaks_upnp()),
        given_up(Router::new(3, Yes::WhenItIsTakenBack).speaks_pcp()),
    );
}

#[tokio::test]
async fn at_the_end_a_slow_router_is_waited_for_and_no_longer_than_the_part_is() {
    let router = Router::new(4, Yes::Told).speaks_upnp();
    let mut slow = ports(Owed::default());
    (slow.patience.late, slow.patience.parting) =
        (Duration::from_secs(60), Duration::from_secs(60));
    slow.want(one(&router), Vec::new());
    router.is_asked().await;
    tokio::join!(slow.end(), async { router.tell() });
    assert_eq!((router.granted(), router.holds()), (1, BTreeMap::new()));

    let never = Router::new(5, Yes::Told).speaks_upnp();
    let mut stuck = ports(Owed::default());
    stuck.patience = Patience { parting: Duration::from_millis(200), ..stuck.patience };
    stuck.patience.late = Duration::from_secs(3600);
    stuck.want(one(&never), Vec::new());
    never.is_asked().await;
    // Without an end of its own it would hear that page to its end, and there is none.
    let ended = tokio::time::timeout(Duration::from_secs(60), stuck.end()).await;
    assert!(ended.is_ok() && never.granted() == 0);
}

/// The supervisor waits for eight seconds for a part that ends: see `PARTING`.
const _: () = assert!(PARTING.as_secs() < 8 && LATE.as_secs() + 2 < PARTING.as_secs());

/// Where it leads whom, in words.
fn leads(router: &Router) -> Vec<String> {
    router.holds().iter().map(|(outside, held)| format!("{outside} to {}", held.to)).collect()
}

/// What is known of it after it was asked.
async fn answered(ports: &mut Ports) -> PortState {
    while ports.states().values().all(|state| *state == PortState::Asking) {
        ports.changed().await;
    }
    ports.states().into_values().next().unwrap()
}

#[tokio::test]
async fn a_router_that_refused_is_asked_again_soon_at_first() {
    let router = Router::new(11, Yes::NoUntilTold).speaks_upnp();
    let mut ports = ports(Owed::default());
    ports.patience.soon = Duration::from_millis(100);
    ports.want(one(&router), Vec::new());
    assert!(matches!(answered(&mut ports).await, PortState::Refused { .. }));
    // It was just switched on and gives ports only now. What it is asked every minute for it is not asked for less often than that.
    router.tell();
    while !matches!(answered(&mut ports).await, PortState::Mapped { .. }) {
        let changed = tokio::time::timeout(Duration::from_secs(50), ports.changed()).await;
        changed.expect("it is asked again sooner than in a minute");
    }
    ports.end().await;
}

fn written(state: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read(state.join("uplinks/owed.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

#[tokio::test]
async fn a_port_that_was_given_for_ever_is_given_back_by_the_box_that_starts_again() {
    let state = tempfile::tempdir().unwrap();
    let router = Router { for_ever: true, ..Router::new(6, Yes::AtOnce) }.speaks_upnp();
    let mut before = ports(Owed::read(state.path()));
    before.want(one(&router), Vec::new());
    answered(&mut before).await;
    assert_eq!(leads(&router), ["8443 to 127.0.0.1:8443"]);
    assert_eq!(written(state.path()).len(), 1);
    // The power goes.
    before.keeping.shutdown().await;
    drop(before);

    // Whoever wants it still has it, and it is still written down.
    let mut after = ports(Owed::read(state.path()));
    after.want(one(&router), vec![router.way()]);
    answered(&mut after).await;
    assert_eq!(leads(&router), ["8443 to 127.0.0.1:8443"]);
    assert!(!written(state.path()).is_empty());
    after.keeping.shutdown().await;
    drop(after);

    // Another router that has the address of the one at which it was left, as after a move, is asked nothing.
    let path = state.path().join("uplinks/owed.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("uuid:127.0.78.6", "uuid:of-another")).unwrap();
    let mut elsewhere = ports(Owed::read(state.path()));
    elsewhere.want(BTreeMap::new(), vec![router.way()]);
    while elsewhere.keeping.join_next().await.is_some() {}
    assert_eq!((router.holds().len(), written(state.path()).is_empty()), (1, false));

    // Back at the first, nobody wants it any more.
    std::fs::write(&path, text).unwrap();
    let mut last = ports(Owed::read(state.path()));
    last.want(BTreeMap::new(), vec![router.way()]);
    while last.keeping.join_next().await.is_some() {}
    assert_eq!(router.holds(), BTreeMap::new());
    assert!(written(state.path()).is_empty());
}

#[tokio::test]
async fn what_cannot_be_written_down_is_not_asked_for_for_ever() {
    let state = tempfile::tempdir().unwrap();
    // No folder can be made where a file is.
    std::fs::write(state.path().join("uplinks"), "").unwrap();
    let router = Router { for_ever: true, ..Router::new(7, Yes::AtOnce) }.speaks_upnp();
    let mut ports = ports(Owed::read(state.path()));
    ports.want(one(&router), Vec::new());
    let state = answered(&mut ports).await;
    assert!(state.sentence().contains("could not be written down"), "{state:?}");
    assert_eq!(router.granted(), 0);
}

/// A box that was given a port for ever and lost its power: what its folder says, and what the router has.
async fn left_open(state: &Path, router: &Router) {
    let mut before = ports(Owed::read(state));
    before.want(one(router), Vec::new());
    answered(&mut before).await;
    assert_eq!(leads(router), ["8443 to 127.0.0.1:8443"]);
    before.keeping.shutdown().await;
}

/// The same box with another lease.
fn with_another_lease(router: &Router) -> BTreeMap<UplinkName, Question> {
    let way = Way { own: [127, 0, 0, 9].into(), ..router.way() };
    [("u1".parse().unwrap(), Question::Router(way, 8443, 1))].into()
}

#[tokio::test]
async fn what_is_owed_is_paid_before_a_port_is_asked_for_in_a_new_life() {
    let state = tempfile::tempdir().unwrap();
    let router = Router { for_ever: true, ..Router::new(8, Yes::AtOnce) }.speaks_upnp();
    left_open(state.path(), &router).await;
    // Otherwise the port that it left open would be another device's, and it would be given another one.
    let mut after = ports(Owed::read(state.path()));
    after.want(with_another_lease(&router), Vec::new());
    let said = answered(&mut after).await;
    assert!(matches!(said, PortState::Mapped { port: 8443, .. }), "{said:?}");
    assert_eq!(leads(&router), ["8443 to 127.0.0.9:8443"]);
    let written = written(state.path());
    assert_eq!(written.len(), 1, "{written:?}");
    assert_eq!(written[0]["to"], "127.0.0.9:8443");
    after.keeping.shutdown().await;
}

#[tokio::test]
async fn at_a_router_without_a_name_only_what_this_box_called_by_its_own_name_is_closed() {
    let state = tempfile::tempdir().unwrap();
    let nameless = |last| Router { named: false, ..Router::new(last, Yes::AtOnce) };
    let router = Router { for_ever: true, ..nameless(9) }.speaks_upnp();
    left_open(state.path(), &router).await;
    let pay = async |router: &Router| {
        let mut after = ports(Owed::read(state.path()));
        after.want(BTreeMap::new(), vec![router.way()]);
        while after.keeping.join_next().await.is_some() {}
    };
    // In another house, behind a router of the same address, the same port leads to the same address, which is somebody's camera.
    let ours = router.holds()[&8443].clone();
    let camera = Held { called: "Camera".into(), ..ours.clone() };
    router.said().holds.insert(8443, camera.clone());
    pay(&router).await;
    assert_eq!(router.holds()[&8443], camera);
    assert_eq!(written(state.path()).len(), 1, "it is still owed where it was left");
    // Or another Polder box.
    let other = Held { called: "Polder 00000000".into(), ..ours.clone() };
    router.said().holds.insert(8443, other.clone());
    pay(&router).await;
    assert_eq!(router.holds()[&8443], other);
    // At home.
    router.said().holds.insert(8443, ours);
    pay(&router).await;
    assert_eq!(router.holds(), BTreeMap::new());
    assert!(written(state.path()).is_empty());
}

#[tokio::test]
async fn what_comes_to_be_owed_while_something_is_paid_is_neither_lost_nor_left_for_long() {
    let state = tempfile::tempdir().unwrap();
    let router = Router { for_ever: true, ..Router::new(10, Yes::AtOnce) }.speaks_upnp();
    left_open(state.path(), &router).await;
    let path = state.path().join("uplinks/owed.json");
    let text = std::fs::read_to_string(&path).unwrap();
    // Another one, that was asked for from where it was before.
    let held = router.holds()[&8443].clone();
    let more = Held { to: "127.0.0.5:8443".parse().unwrap(), ..held };
    router.said().holds.insert(20_443, more);
    let mut port: serde_json::Value =
        serde_json::from_str::<Vec<serde_json::Value>>(&text).unwrap().remove(0);
    let first = port.clone();
    (port["outside"], port["to"]) = (20_443.into(), "127.0.0.5:8443".into());
    let both = serde_json::to_vec(&vec![first, port]).unwrap();
    std::fs::write(&path, both).unwrap();

    let owed = Owed::read(state.path());
    let dues = owed.dues(router.at);
    // Wanted again before its turn to be paid has come: that one is left, and the other is paid.
    let wish = Wish { port: 8443, seconds: 1200, nonce: nonce("lo") };
    let (way, book) = (router.way(), owed.book(&router.way(), &wish));
    polder_portmap::ask(&way, &wish, None, &book).await.unwrap();
    assert!(owed.pay(&way, &dues).await);
    assert_eq!(leads(&router), ["8443 to 127.0.0.1:8443"]);
    assert!(owed.dues(router.at).are_none());
    assert!(!written(state.path()).is_empty());
    // And when nobody wants it any more it is owed again, which is another thing than before.
    drop(book);
    owed.let_go(&way, 8443);
    assert!(!owed.dues(router.at).are_none());
    let mut ports = ports(owed);
    let paid = Paid { way: way.clone(), dues, again: Instant::now() + SELDOM };
    lock(&ports.paid).insert("lo".into(), paid);
    ports.want(BTreeMap::new(), vec![way]);
    while ports.keeping.join_next().await.is_some() {}
    assert_eq!(router.holds(), BTreeMap::new());
    assert!(written(state.path()).is_empty());
}

/// What a box owes to this router, as an older version wrote it down, and the router has it.
fn owes(state: &Path, router: &Router) -> Held {
    let at = router.at;
    let port =
        format!(r#"[{{"router":"{at}","id":"uuid:{at}","to":"127.0.0.1:8443","outside":8443}}]"#);
    std::fs::create_dir(state.join("uplinks")).unwrap();
    std::fs::write(state.join("uplinks/owed.json"), port).unwrap();
    let to = "127.0.0.1:8443".parse().unwrap();
    let held = Held { to, seconds: 0, called: "Polder".into() };
    router.said().holds.insert(8443, held.clone());
    held
}

#[tokio::test]
async fn a_router_that_is_not_up_yet_is_asked_soon_again_to_take_back_what_is_owed() {
    let state = tempfile::tempdir().unwrap();
    let router = Router::new(12, Yes::AtOnce);
    owes(state.path(), &router);
    let mut ports = Ports::new(Duration::ZERO, Owed::read(state.path()));
    ports.want(BTreeMap::new(), vec![router.way()]);
    while ports.keeping.join_next().await.is_some() {}
    assert_eq!(router.holds().len(), 1);
    let router = router.speaks_upnp();
    ports.want(BTreeMap::new(), vec![router.way()]);
    while ports.keeping.join_next().await.is_some() {}
    assert_eq!(router.holds(), BTreeMap::new());
    assert!(written(state.path()).is_empty());
}

#[tokio::test]
async fn what_leads_here_under_another_name_is_still_owed_and_what_leads_elsewhere_is_forgotten() {
    let state = tempfile::tempdir().unwrap();
    let router = Router::new(13, Yes::AtOnce).speaks_upnp();
    let ours = owes(state.path(), &router);
    let camera = Held { called: "Camera".into(), ..ours };
    let elsewhere = Held { to: "127.0.0.5:8443".parse().unwrap(), ..camera.clone() };
    for (held, owed) in [(camera, 1), (elsewhere, 0)] {
        router.said().holds.insert(8443, held.clone());
        let mut ports = ports(Owed::read(state.path()));
        ports.want(BTreeMap::new(), vec![router.way()]);
        while ports.keeping.join_next().await.is_some() {}
        assert_eq!(router.holds()[&8443], held);
        assert_eq!(written(state.path()).len(), owed, "{held:?}");
    }
}
