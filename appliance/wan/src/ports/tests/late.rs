//! Routers that take their time, and boxes that have gone by then: nothing stays open that nobody wants.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::*;

/// A router at an address of this machine's own, which does each thing on its own time.
#[derive(Clone)]
struct Router {
    at: Ipv4Addr,
    /// How long it takes over a yes, and over taking one back.
    slow: [Duration; 2],
    /// Whether it gives ports only for ever, and says that as 501.
    for_ever: bool,
    said: Arc<Mutex<Said>>,
}

#[derive(Default)]
struct Said {
    asked: usize,
    granted: usize,
    holds: BTreeMap<u16, u32>,
}

impl Router {
    fn new(last: u8, slow: [u64; 2]) -> Self {
        let slow = slow.map(Duration::from_millis);
        Self { at: [127, 0, 78, last].into(), slow, for_ever: false, said: Arc::default() }
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
        let of = |name: &str| {
            let value = asked.split(&format!("<{name}>")).nth(1)?;
            value.split('<').next()?.parse::<u32>().ok()
        };
        let outside = u16::try_from(of("NewExternalPort").unwrap_or_default()).unwrap();
        let fault = |number: u16| format!("<a><errorCode>{number}</errorCode></a>");
        if asked.starts_with("GET") {
            return format!(
                "<root><device><UDN>uuid:{}</UDN><service>\
                 <serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>\
                 <controlURL>/do</controlURL></service></device></root>",
                self.at
            );
        }
        if asked.contains("GetExternalIPAddress") {
            return "<a><GetExternalIPAddressResponse/><NewExternalIPAddress>11.7.0.5</NewExternalIPAddress></a>".into();
        }
        if asked.contains("GetSpecific") {
            return match self.said.lock().unwrap().holds.contains_key(&outside) {
                true => "<a><GetSpecificPortMappingEntryResponse/><NewInternalClient>127.0.0.1</NewInternalClient><NewInternalPort>8443</NewInternalPort></a>".into(),
                false => fault(714),
            };
        }
        if asked.contains("DeletePortMapping") {
            std::thread::sleep(self.slow[1]);
            return match self.said.lock().unwrap().holds.remove(&outside) {
                Some(_) => "<DeletePortMappingResponse/>".into(),
                None => fault(714),
            };
        }
        let seconds = of("NewLeaseDuration").unwrap();
        if self.for_ever && seconds != 0 {
            return fault(501);
        }
        self.said.lock().unwrap().asked += 1;
        std::thread::sleep(self.slow[0]);
        self.grants(outside, seconds);
        "<AddPortMappingResponse/>".into()
    }

    fn grants(&self, outside: u16, seconds: u32) {
        let mut said = self.said.lock().unwrap();
        said.granted += 1;
        said.holds.insert(outside, seconds);
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
                    router.said.lock().unwrap().holds.remove(&8443);
                    let _ = socket.send_to(&answer, from);
                    continue;
                }
                router.said.lock().unwrap().asked += 1;
                let (router, socket) = (router.clone(), socket.try_clone().unwrap());
                std::thread::spawn(move || {
                    std::thread::sleep(router.slow[0]);
                    router.grants(8443, 1200);
                    let _ = socket.send_to(&answer, from);
                });
            }
        });
        self
    }

    /// Asked, and not answered yet.
    async fn is_asked(&self) {
        let begun = Instant::now();
        while self.said.lock().unwrap().asked == 0 {
            assert!(begun.elapsed() < Duration::from_secs(20), "it is not asked");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn holds(&self) -> BTreeMap<u16, u32> {
        self.said.lock().unwrap().holds.clone()
    }

    fn granted(&self) -> usize {
        self.said.lock().unwrap().granted
    }
}

fn one(router: &Router) -> BTreeMap<UplinkName, Question> {
    [("u1".parse().unwrap(), Question::Router(router.way(), 8443))].into()
}

fn ports(owed: Owed) -> Ports {
    let mut ports = Ports::new(Duration::from_secs(60), owed);
    ports.never = Duration::from_secs(6);
    ports
}

/// Asked for, and given up while the router thinks.
async fn given_up(router: Router) {
    let mut ports = ports(Owed::default());
    ports.want(one(&router), Vec::new());
    router.is_asked().await;
    assert_eq!(router.granted(), 0);
    ports.want(BTreeMap::new(), Vec::new());
    while ports.keeping.join_next().await.is_some() {}
    assert!(router.granted() > 0, "it has not said yes yet");
    assert_eq!(router.holds(), BTreeMap::new());
}

#[tokio::test]
async fn a_yes_that_comes_when_nobody_wants_the_port_any_more_is_given_back() {
    tokio::join!(
        given_up(Router::new(1, [2500, 0]).speaks_upnp()),
        // Later than a page is waited for.
        given_up(Router::new(2, [4600, 0]).speaks_upnp()),
        given_up(Router::new(3, [1500, 0]).speaks_pcp()),
    );
}

#[tokio::test]
async fn at_the_end_a_slow_router_is_waited_for_and_no_longer_than_the_part_is() {
    let router = Router::new(4, [3000, 1500]).speaks_upnp();
    let mut slow = ports(Owed::default());
    slow.want(one(&router), Vec::new());
    router.is_asked().await;
    let never = Router::new(5, [60_000, 0]).speaks_upnp();
    let mut stuck = ports(Owed::default());
    stuck.want(one(&never), Vec::new());
    never.is_asked().await;
    let begun = Instant::now();
    tokio::join!(slow.end(), stuck.end());
    // The supervisor's patience with a part that ends.
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert_eq!((router.granted(), router.holds()), (1, BTreeMap::new()));
}

fn written(state: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read(state.join("uplinks/owed.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

#[tokio::test]
async fn a_port_that_was_given_for_ever_is_given_back_by_the_box_that_starts_again() {
    let state = tempfile::tempdir().unwrap();
    let router = Router { for_ever: true, ..Router::new(6, [0, 0]) }.speaks_upnp();
    let mut before = ports(Owed::read(state.path()));
    before.want(one(&router), Vec::new());
    while before.states().values().all(|state| *state == PortState::Asking) {
        before.changed().await;
    }
    assert_eq!(router.holds(), [(8443, 0)].into());
    assert_eq!(written(state.path()).len(), 1);
    // The power goes.
    before.keeping.shutdown().await;
    drop(before);

    // Whoever wants it still has it, and it is still written down.
    let mut after = ports(Owed::read(state.path()));
    after.want(one(&router), vec![router.way()]);
    while after.states().values().all(|state| *state == PortState::Asking) {
        after.changed().await;
    }
    assert_eq!(router.holds(), [(8443, 0)].into());
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
    let router = Router { for_ever: true, ..Router::new(7, [0, 0]) }.speaks_upnp();
    let mut ports = ports(Owed::read(state.path()));
    ports.want(one(&router), Vec::new());
    while ports.states().values().all(|state| *state == PortState::Asking) {
        ports.changed().await;
    }
    let states: Vec<_> = ports.states().into_values().collect();
    assert!(states[0].sentence().contains("could not be written down"), "{states:?}");
    assert_eq!(router.granted(), 0);
}
