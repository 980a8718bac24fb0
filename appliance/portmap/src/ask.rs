//! Asks, within limits, and notes in the book what may come of it.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use crate::book::{Asked, Book, Unput};
use crate::pcp::{self, Answer, Nonce};
use crate::upnp::{self, Action, Control, Said};
use crate::way::{MOST_STRAYS, Way, act, exchange, search};

/// For everything that one router is asked, in all protocols: one that stalls in the middle of its pages holds nobody up for longer.
pub(crate) const WHOLE: Duration = Duration::from_secs(10);
/// Between two looks for what comes late.
const LATE: Duration = Duration::from_millis(50);
/// Ports that are tried at a router that says that one is taken, after the one that was wanted.
const OTHERS: [u16; 4] = [8443, 10_443, 20_443, 40_443];

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    /// This machine's port, and the one outside if it can be had.
    pub port: u16,
    /// For how many seconds.
    pub seconds: u32,
    /// The same in every question about this port, also after a restart: a router lets nobody else change it.
    pub nonce: Nonce,
}

impl Wish {
    /// What a router's list of ports calls it: which box it is, so that it takes no other one's port for its own.
    pub fn called(&self) -> String {
        let digits: String = self.nonce[..4].iter().map(|byte| format!("{byte:02x}")).collect();
        format!("Polder {digits}")
    }
}

/// How a router was spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Speech {
    /// RFC 6887.
    Pcp,
    /// RFC 6886.
    NatPmp,
    /// An Internet Gateway Device.
    Upnp,
}

impl Speech {
    /// As it is called.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pcp => "PCP",
            Self::NatPmp => "NAT-PMP",
            Self::Upnp => "UPnP",
        }
    }
}

/// A port that a router gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// By which protocol.
    pub speech: Speech,
    /// The address outside, as the router says.
    pub address: Ipv4Addr,
    /// The port outside.
    pub port: u16,
    /// Seconds until it takes it back, from [`Self::at`]; 0 for never.
    pub lifetime: u32,
    /// Its clock, where the protocol has one.
    pub epoch: Option<u32>,
    /// When it said so.
    pub at: Instant,
    control: Option<Control>,
}

impl Mapping {
    /// Whether less than half of its time is over.
    pub fn is_fresh(&self) -> bool {
        self.lifetime == 0 || self.at.elapsed().as_secs() * 2 < self.lifetime.into()
    }

    /// Whether the router may have taken it back.
    pub fn is_over(&self) -> bool {
        self.lifetime != 0 && self.at.elapsed().as_secs() >= self.lifetime.into()
    }
}

/// No port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The router says no.
    #[error("the router {router} refuses ({}): {why}", speech.name())]
    Refused {
        /// Which.
        router: Ipv4Addr,
        /// In which protocol.
        speech: Speech,
        /// In words.
        why: String,
    },
    /// It says nothing.
    #[error(
        "the router {0} does not answer when it is asked for a port: it knows none of PCP, NAT-PMP and UPnP, or they are switched off in its settings"
    )]
    Silent(Ipv4Addr),
    /// It could not be asked.
    #[error("the router {0} could not be asked: {1}")]
    Unasked(Ipv4Addr, String),
}

/// What came of one protocol.
enum Heard {
    Given(Mapping),
    Refused(Speech, String),
    Silence,
}

/// Asks for a port, or again for the one of `before`, which renews it: first as it was heard last, else in every protocol that there
/// is. Takes ten seconds at most. What may be open afterwards, and where this is given up in the middle, is in the book.
pub async fn ask(
    way: &Way,
    wish: &Wish,
    before: Option<&Mapping>,
    book: &Book,
) -> Result<Mapping, Refusal> {
    ask_within(WHOLE, way, wish, before, book).await
}

async fn ask_within(
    whole: Duration,
    way: &Way,
    wish: &Wish,
    before: Option<&Mapping>,
    book: &Book,
) -> Result<Mapping, Refusal> {
    let mut speeches = [Speech::Pcp, Speech::NatPmp, Speech::Upnp];
    speeches.sort_by_key(|speech| before.is_none_or(|before| before.speech != *speech));
    let (mut refused, mut broken) = (None, None);
    let (until, mut late) = (Instant::now() + whole, Vec::new());
    for speech in speeches {
        if book.is_closed() {
            break;
        }
        let before = before.filter(|before| before.speech == speech);
        let asking = async {
            match speech {
                Speech::Pcp => pcp(way, wish, before, book, &mut late).await,
                Speech::NatPmp => natpmp(way, wish, before, book, &mut late).await,
                Speech::Upnp => upnp(way, wish, before, book).await,
            }
        };
        let heard = match timeout_at(until, asking).await {
            Ok(heard) => heard,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "it takes too long to answer")),
        };
        match heard {
            Ok(Heard::Given(mapping)) => return Ok(mapping),
            Ok(Heard::Refused(speech, why)) => {
                refused.get_or_insert(Refusal::Refused { router: way.router, speech, why });
            }
            Ok(Heard::Silence) => {}
            // A router that has closed the port says so; that is silence in words.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => broken = Some(Refusal::Unasked(way.router, error.to_string())),
        }
    }
    // One that takes its time over a no has not been silent.
    if refused.is_none() && !book.is_closed() {
        match hear_late(&late, wish, book, until).await {
            Some(Heard::Given(mapping)) => return Ok(mapping),
            Some(Heard::Refused(speech, why)) => {
                refused = Some(Refusal::Refused { router: way.router, speech, why });
            }
            Some(Heard::Silence) | None => {}
        }
    }
    Err(refused.or(broken).unwrap_or(Refusal::Silent(way.router)))
}

/// A question over UDP that was not answered in time: where it would be, and what was known of the port before it.
struct Late(Speech, UdpSocket, Option<Asked>);

/// What comes to such questions until then.
async fn hear_late(late: &[Late], wish: &Wish, book: &Book, until: Instant) -> Option<Heard> {
    let mut bytes = [0; pcp::LONGEST + 1];
    let mut strays = 0;
    while !late.is_empty() && strays < MOST_STRAYS {
        for Late(speech, socket, before) in late {
            let Ok(count) = socket.try_recv(&mut bytes) else { continue };
            strays += 1;
            let message = &bytes[..count];
            let answer = match speech {
                Speech::Pcp => pcp::pcp_answer(message, wish.port, &wish.nonce),
                _ => pcp::pmp_answer(message, wish.port),
            };
            match answer {
                Some(Answer::Given(given)) if *speech == Speech::Pcp => {
                    return Some(by_pcp(given, book));
                }
                Some(Answer::Refused(number)) => {
                    book.refused(*speech, wish.port, before.clone());
                    let why = pcp::why(*speech == Speech::NatPmp, number).to_owned();
                    return Some(Heard::Refused(*speech, why));
                }
                _ => {}
            }
        }
        if Instant::now() >= until {
            return None;
        }
        tokio::time::sleep(LATE).await;
    }
    None
}

/// What is noted before a question.
fn asked(speech: Speech, outside: u16, seconds: u32) -> Asked {
    Asked { speech, outside, seconds, given: false, at: Instant::now(), control: None }
}

/// Nobody wants it any more, or it must not be asked for.
fn unput(speech: Speech, why: &Unput) -> Heard {
    match why {
        Unput::Closed => Heard::Silence,
        Unput::Unwritten(_) => Heard::Refused(speech, why.to_string()),
    }
}

/// A router that has closed the port to which a question went does not answer it later.
fn heard_by_nobody(book: &Book, speech: Speech, known: &Option<Asked>) -> impl FnOnce(&io::Error) {
    move |error| {
        if error.kind() == io::ErrorKind::ConnectionRefused {
            book.refused(speech, 0, known.clone());
        }
    }
}

async fn pcp(
    way: &Way,
    wish: &Wish,
    before: Option<&Mapping>,
    book: &Book,
    late: &mut Vec<Late>,
) -> io::Result<Heard> {
    let outside = before.map_or(wish.port, |before| before.port);
    let message = pcp::pcp_request(way.own, wish.port, outside, wish.seconds, &wish.nonce);
    let read = |bytes: &[u8]| pcp::pcp_answer(bytes, wish.port, &wish.nonce);
    let known = match book.ask(asked(Speech::Pcp, outside, wish.seconds)) {
        Ok(known) => known,
        Err(why) => return Ok(unput(Speech::Pcp, &why)),
    };
    let (answer, socket) = exchange(way, &message, read).await.inspect_err(heard_by_nobody(
        book,
        Speech::Pcp,
        &known,
    ))?;
    Ok(match answer {
        Some(Answer::Given(given)) => by_pcp(given, book),
        Some(Answer::Refused(number)) => {
            book.refused(Speech::Pcp, outside, known);
            Heard::Refused(Speech::Pcp, pcp::why(false, number).to_owned())
        }
        Some(_) => {
            book.refused(Speech::Pcp, outside, known);
            Heard::Silence
        }
        None => {
            late.push(Late(Speech::Pcp, socket, known));
            Heard::Silence
        }
    })
}

fn by_pcp(given: pcp::Given, book: &Book) -> Heard {
    book.given(Speech::Pcp, given.port, given.lifetime.max(1));
    match given.address.filter(|ip| !ip.is_unspecified() && given.port != 0) {
        Some(address) => Heard::Given(mapping(Speech::Pcp, given, address)),
        None => Heard::Refused(Speech::Pcp, pcp::why(false, 7).to_owned()),
    }
}

async fn natpmp(
    way: &Way,
    wish: &Wish,
    before: Option<&Mapping>,
    book: &Book,
    late: &mut Vec<Late>,
) -> io::Result<Heard> {
    let read = |bytes: &[u8]| pcp::pmp_answer(bytes, wish.port);
    let refused = |number| Heard::Refused(Speech::NatPmp, pcp::why(true, number).to_owned());
    let (answer, socket) = exchange(way, &pcp::pmp_address_request(), read).await?;
    let address = match answer {
        Some(Answer::Address { address, .. }) if !address.is_unspecified() => address,
        Some(Answer::Address { .. }) => return Ok(refused(3)),
        Some(Answer::Refused(number)) => return Ok(refused(number)),
        Some(_) => return Ok(Heard::Silence),
        None => {
            // Nothing was asked for yet.
            late.push(Late(Speech::NatPmp, socket, book.known(Speech::NatPmp)));
            return Ok(Heard::Silence);
        }
    };
    let outside = before.map_or(wish.port, |before| before.port);
    let message = pcp::pmp_request(wish.port, outside, wish.seconds);
    let known = match book.ask(asked(Speech::NatPmp, outside, wish.seconds)) {
        Ok(known) => known,
        Err(why) => return Ok(unput(Speech::NatPmp, &why)),
    };
    let (answer, socket) = exchange(way, &message, read).await.inspect_err(heard_by_nobody(
        book,
        Speech::NatPmp,
        &known,
    ))?;
    Ok(match answer {
        Some(Answer::Given(given)) => {
            book.given(Speech::NatPmp, given.port, given.lifetime.max(1));
            Heard::Given(mapping(Speech::NatPmp, given, address))
        }
        Some(Answer::Refused(number)) => {
            book.refused(Speech::NatPmp, outside, known);
            refused(number)
        }
        Some(_) => {
            book.refused(Speech::NatPmp, outside, known);
            Heard::Silence
        }
        None => {
            late.push(Late(Speech::NatPmp, socket, known));
            Heard::Silence
        }
    })
}

fn mapping(speech: Speech, given: pcp::Given, address: Ipv4Addr) -> Mapping {
    Mapping {
        speech,
        address,
        port: given.port,
        // Whoever gives for no time at all is asked again soon.
        lifetime: given.lifetime.max(1),
        epoch: Some(given.epoch),
        at: Instant::now(),
        control: None,
    }
}

async fn upnp(way: &Way, wish: &Wish, before: Option<&Mapping>, book: &Book) -> io::Result<Heard> {
    let refused = |number| Ok(Heard::Refused(Speech::Upnp, upnp::why(number).to_owned()));
    let known = before.and_then(|before| before.control.clone());
    let answers = async |control: &Control| act(way, control, Action::Address).await;
    let (control, said) = match known {
        // Where it was last; found anew when it is there no more.
        Some(control) => match answers(&control).await {
            Ok(Some(said)) => (control, Some(said)),
            _ => return Box::pin(upnp(way, wish, None, book)).await,
        },
        None => {
            let Some(control) = search(way).await? else { return Ok(Heard::Silence) };
            let said = answers(&control).await?;
            (control, said)
        }
    };
    let address = match said {
        Some(Said::Address(address)) if !address.is_unspecified() => address,
        Some(Said::Refused(number)) => return refused(number),
        Some(_) => {
            return Ok(Heard::Refused(Speech::Upnp, pcp::why(false, 7).to_owned()));
        }
        None => return Ok(Heard::Silence),
    };
    let (to, called) = (SocketAddrV4::new(way.own, wish.port), wish.called());
    let first = before.map_or(wish.port, |before| before.port);
    let mut last = upnp::TAKEN;
    let both = [wish.seconds, 0];
    let mut times = &both[..];
    for outside in std::iter::once(first).chain(OTHERS.into_iter().filter(|port| *port != first)) {
        // Some routers give a port to whoever asks last.
        let ours = match act(way, &control, Action::Who { outside }).await? {
            Some(Said::Who(who, _)) if who.ip() != to.ip() => {
                // It is theirs now, whatever was given before.
                book.refused(Speech::Upnp, outside, None);
                continue;
            }
            Some(Said::Who(who, _)) => who == to,
            _ => false,
        };
        let kept = before.filter(|before| ours && before.port == outside && before.is_fresh());
        if let Some(before) = kept {
            return Ok(Heard::Given(Mapping { address, ..before.clone() }));
        }
        for &seconds in times {
            let next =
                Asked { control: Some(control.clone()), ..asked(Speech::Upnp, outside, seconds) };
            let known = match book.ask(next) {
                Ok(known) => known,
                Err(why) => return Ok(unput(Speech::Upnp, &why)),
            };
            match act(way, &control, Action::Add { outside, to, seconds, called: &called }).await? {
                Some(Said::Done) => {
                    book.given(Speech::Upnp, outside, seconds);
                    return Ok(Heard::Given(Mapping {
                        speech: Speech::Upnp,
                        address,
                        port: outside,
                        lifetime: seconds,
                        epoch: None,
                        at: Instant::now(),
                        control: Some(control),
                    }));
                }
                Some(Said::Refused(number)) => {
                    book.refused(Speech::Upnp, outside, known);
                    last = number;
                    // Some that know no end say only that they could not, or that what they were told is wrong.
                    if seconds == 0 || !upnp::may_want_no_end(number) {
                        break;
                    }
                    times = match number {
                        upnp::ONLY_FOR_EVER => &both[1..],
                        // Asked for ever once at most: who refuses that too has another reason.
                        _ => &both[..1],
                    };
                }
                _ => return Ok(Heard::Silence),
            }
        }
        // Who gives nobody a port gives no other one either.
        if last == 606 {
            break;
        }
    }
    refused(last)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::sync::{Arc, Mutex};

    use super::*;

    const NONCE: Nonce = [7; 12];

    /// A router at an address of this machine's own.
    fn way(router: [u8; 4]) -> Way {
        let own = Ipv4Addr::LOCALHOST;
        Way { device: "lo".into(), mark: 0, own, router: router.into() }
    }

    fn book() -> Book {
        Book::new(|_| Ok(()))
    }

    fn wish() -> Wish {
        Wish { port: 8443, seconds: 1200, nonce: NONCE }
    }

    /// Says that it speaks UPnP, and has its pages answered.
    fn upnp_router(router: [u8; 4], page: impl Fn(TcpStream, &str) + Send + 'static) {
        let pages = TcpListener::bind((Ipv4Addr::from(router), 0)).unwrap();
        let port = pages.local_addr().unwrap().port();
        let found = UdpSocket::bind((Ipv4Addr::from(router), upnp::SEARCH.port())).unwrap();
        std::thread::spawn(move || {
            let mut bytes = [0; 2048];
            while let Ok((_, from)) = found.recv_from(&mut bytes) {
                let at = Ipv4Addr::from(router);
                let said = format!("HTTP/1.1 200 OK\r\nLOCATION: http://{at}:{port}/it\r\n\r\n");
                let _ = found.send_to(said.as_bytes(), from);
            }
        });
        std::thread::spawn(move || {
            for mut stream in pages.incoming().flatten() {
                let mut asked = Vec::new();
                let mut bytes = [0; 4096];
                while !asked.windows(4).any(|end| end == b"\r\n\r\n")
                    || (asked.starts_with(b"POST") && !asked.ends_with(b"Envelope>\r\n"))
                {
                    match stream.read(&mut bytes) {
                        Ok(0) | Err(_) => break,
                        Ok(count) => asked.extend_from_slice(&bytes[..count]),
                    }
                }
                let asked = String::from_utf8_lossy(&asked).into_owned();
                page(stream, &asked);
            }
        });
    }

    fn answers(mut stream: TcpStream, page: &str) {
        let text = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{page}",
            page.len()
        );
        let _ = stream.write_all(text.as_bytes());
    }

    const DESCRIBED: &str = "<root><device><serviceList><service>\
        <serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>\
        <controlURL>/do</controlURL></service></serviceList></device></root>";

    fn body(words: &str) -> String {
        format!("<Envelope><Body>{words}</Body></Envelope>")
    }

    const ADDRESS: &str = "<GetExternalIPAddressResponse><NewExternalIPAddress>203.0.113.5</NewExternalIPAddress></GetExternalIPAddressResponse>";

    #[tokio::test]
    async fn a_router_that_stalls_holds_nobody_up_for_longer_than_one_deadline() {
        // Each page comes just before nobody would wait for it any more, and every port is another device's.
        upnp_router([127, 0, 77, 1], |stream, asked| {
            if asked.starts_with("GET") {
                return answers(stream, DESCRIBED);
            }
            std::thread::sleep(Duration::from_millis(700));
            let fault =
                |number: u16| body(&format!("<Fault><errorCode>{number}</errorCode></Fault>"));
            match asked {
                asked if asked.contains("GetExternalIPAddress") => answers(stream, &body(ADDRESS)),
                asked if asked.contains("GetSpecific") => answers(stream, &fault(upnp::NO_SUCH)),
                _ => answers(stream, &fault(upnp::TAKEN)),
            }
        });
        let (begun, whole) = (Instant::now(), Duration::from_millis(2500));
        let (way, wish) = (way([127, 0, 77, 1]), wish());
        let refusal = ask_within(whole, &way, &wish, None, &book()).await.unwrap_err();
        assert!(refusal.to_string().contains("it takes too long to answer"), "{refusal}");
        // All of its pages would have taken eight seconds.
        assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn a_router_that_could_not_for_a_while_is_asked_once_for_ever() {
        for (at, number, given) in
            [(2, 402, true), (3, 501, true), (4, 725, true), (5, 501, false), (6, 606, false)]
        {
            let asked: Arc<Mutex<Vec<u32>>> = Arc::default();
            let heard = asked.clone();
            upnp_router([127, 0, 77, at], move |stream, asked| {
                if asked.starts_with("GET") {
                    return answers(stream, DESCRIBED);
                }
                let fault =
                    |number: u16| body(&format!("<Fault><errorCode>{number}</errorCode></Fault>"));
                let said = match asked {
                    asked if asked.contains("GetExternalIPAddress") => body(ADDRESS),
                    asked if asked.contains("GetSpecific") => fault(upnp::NO_SUCH),
                    asked => {
                        let seconds = asked.split("<NewLeaseDuration>").nth(1).unwrap();
                        let seconds = seconds.split('<').next().unwrap().parse().unwrap();
                        heard.lock().unwrap().push(seconds);
                        match seconds {
                            0 if given => body("<AddPortMappingResponse></AddPortMappingResponse>"),
                            _ => fault(number),
                        }
                    }
                };
                answers(stream, &said);
            });
            let answer = ask(&way([127, 0, 77, at]), &wish(), None, &book()).await;
            let asked = asked.lock().unwrap().clone();
            match answer {
                Ok(mapping) => {
                    assert!(given && mapping.lifetime == 0 && mapping.speech == Speech::Upnp);
                    assert_eq!(asked, [1200, 0], "{number}");
                }
                Err(refusal) => {
                    assert!(!given && matches!(refusal, Refusal::Refused { .. }), "{refusal}");
                    let for_ever = asked.iter().filter(|seconds| **seconds == 0).count();
                    assert_eq!(for_ever, usize::from(number != 606), "{asked:?}");
                }
            }
        }
    }

    #[tokio::test]
    async fn a_router_that_takes_its_time_over_a_no_was_not_silent() {
        let router = UdpSocket::bind(("127.0.77.9", pcp::PORT)).unwrap();
        std::thread::spawn(move || {
            let mut bytes = [0; 200];
            while let Ok((count, from)) = router.recv_from(&mut bytes) {
                if (count, bytes[0]) != (60, 2) {
                    continue;
                }
                let mut answer = bytes[..60].to_vec();
                // Not authorised, three seconds later.
                (answer[1], answer[3]) = (0x81, 2);
                let router = router.try_clone().unwrap();
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_secs(3));
                    let _ = router.send_to(&answer, from);
                });
            }
        });
        let refusal = ask(&way([127, 0, 77, 9]), &wish(), None, &book()).await.unwrap_err();
        let said = matches!(refusal, Refusal::Refused { speech: Speech::Pcp, .. });
        assert!(said, "{refusal}");
    }

    #[tokio::test]
    async fn a_yes_that_comes_after_the_question_was_given_up_is_known_and_given_back() {
        let router = UdpSocket::bind(("127.0.77.10", pcp::PORT)).unwrap();
        let holds: Arc<Mutex<Option<bool>>> = Arc::default();
        let held = holds.clone();
        std::thread::spawn(move || {
            let mut bytes = [0; 200];
            while let Ok((count, from)) = router.recv_from(&mut bytes) {
                if (count, bytes[0]) != (60, 2) {
                    continue;
                }
                let mut answer = bytes[..60].to_vec();
                answer[1] |= 0x80;
                let router = router.try_clone().unwrap();
                if bytes[4..8] == [0; 4] {
                    *held.lock().unwrap() = Some(false);
                    let _ = router.send_to(&answer, from);
                } else if held.lock().unwrap().is_none() {
                    let held = held.clone();
                    std::thread::spawn(move || {
                        std::thread::sleep(Duration::from_secs(3));
                        held.lock().unwrap().get_or_insert(true);
                    });
                }
            }
        });
        let (way, wish, book) = (way([127, 0, 77, 10]), wish(), book());
        let asked = ask_within(Duration::from_millis(2500), &way, &wish, None, &book).await;
        assert!(asked.is_err() && holds.lock().unwrap().is_none());
        assert_eq!(book.open().len(), 1);
        let begun = Instant::now();
        while holds.lock().unwrap().is_none() {
            assert!(begun.elapsed() < Duration::from_secs(20));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        crate::give_back(&way, &wish, &book).await;
        assert_eq!(*holds.lock().unwrap(), Some(false));
    }
}
