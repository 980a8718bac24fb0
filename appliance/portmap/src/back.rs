//! Gives back what a router gave, or may give yet.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use tokio::time::timeout;

use crate::ask::{Speech, WHOLE, Wish};
use crate::book::{Asked, Book};
use crate::pcp::{self, Answer};
use crate::upnp::{self, Action, Control, Said};
use crate::way::{Way, act, exchange, search};

/// For the giving back of one port, once.
const ONCE: Duration = Duration::from_secs(2);
/// For one port that was left open before: two pages.
const SETTLING: Duration = Duration::from_secs(4);
/// What became of a port that is not wanted any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The router says that it is closed.
    Closed,
    /// The router says that it leads to another place by now: it was left alone, and is somebody else's.
    Elsewhere,
    /// It may be open, or become so: a question about it was not answered yet, or this one was not.
    Open,
}

/// Gives back all that may be open by this book, once; what is known to be over then is in it no more. Whoever asks again until nothing is
/// left meets a yes that comes late too: what was asked and not answered counts as over ten seconds after the question at the earliest.
pub async fn give_back(way: &Way, wish: &Wish, book: &Book) -> Vec<Asked> {
    give_back_where(way, wish, book, |_| true).await
}

async fn give_back_where(
    way: &Way,
    wish: &Wish,
    book: &Book,
    which: impl Fn(&Asked) -> bool,
) -> Vec<Asked> {
    let mut open = book.open();
    open.retain(which);
    // What was given before what was only asked for, should somebody not wait.
    open.sort_by_key(|asked| !asked.given);
    let (pages, packets): (Vec<_>, Vec<_>) =
        open.into_iter().partition(|asked| asked.speech == Speech::Upnp);
    let settled = |asked: &Asked| asked.given || asked.at.elapsed() >= WHOLE;
    let by_pages = async {
        for asked in pages {
            if by_page(way, wish, &asked, settled(&asked)).await {
                book.ended(&asked);
            }
        }
    };
    let by_packets = async {
        for asked in packets {
            let settled = settled(&asked);
            if by_packet(way, wish, asked.speech).await && settled {
                book.ended(&asked);
            }
        }
    };
    tokio::join!(by_pages, by_packets);
    book.open()
}

impl Book {
    /// Gives back what is open beside the port that was given, as where a router gave another one before. What was asked for over UDP is left: to
    /// some routers it is the same port as the one that is wanted; it ends by itself, or with that one.
    pub async fn only(&self, way: &Way, wish: &Wish, outside: u16) -> Vec<Asked> {
        let other = |asked: &Asked| asked.speech == Speech::Upnp && asked.outside != outside;
        give_back_where(way, wish, self, other).await
    }
}

/// Whether the router says that it is closed. A port that is not open is closed again, and it says so too.
async fn by_packet(way: &Way, wish: &Wish, speech: Speech) -> bool {
    let pcp = speech == Speech::Pcp;
    let message = match pcp {
        true => pcp::pcp_request(way.own, wish.port, 0, 0, &wish.nonce).to_vec(),
        false => pcp::pmp_request(wish.port, 0, 0).to_vec(),
    };
    let read = |bytes: &[u8]| match pcp {
        true => pcp::pcp_answer(bytes, wish.port, &wish.nonce),
        false => pcp::pmp_answer(bytes, wish.port),
    };
    // A yes to the question before may come first, and is none to this one.
    let read = |bytes: &[u8]| match read(bytes) {
        Some(Answer::Given(given)) => (given.lifetime == 0).then_some(true),
        Some(_) => Some(false),
        None => None,
    };
    let asking = exchange(way, &message, read);
    matches!(timeout(ONCE, asking).await, Ok(Ok((Some(true), _))))
}

async fn by_page(way: &Way, wish: &Wish, asked: &Asked, settled: bool) -> bool {
    let Some(known) = &asked.control else { return true };
    let to = SocketAddrV4::new(way.own, wish.port);
    let closing = async {
        match close(way, known, asked.outside, to, asked.given).await {
            Ok(closed) => closed,
            // Its pages may be elsewhere since it was started again.
            Err(_) => match search(way).await {
                Ok(Some(found)) if is_same(known.id.as_deref(), &found) => {
                    close(way, &found, asked.outside, to, asked.given).await.unwrap_or(Closed::No)
                }
                _ => Closed::No,
            },
        }
    };
    match timeout(ONCE, closing).await.unwrap_or(Closed::No) {
        Closed::Now | Closed::Others => true,
        Closed::Before => settled,
        Closed::No => false,
    }
}

/// What a router says of a port that it is to close.
enum Closed {
    /// It did.
    Now,
    /// There was none.
    Before,
    /// It leads elsewhere by now.
    Others,
    /// It did not.
    No,
}

/// Closes it where it still leads here. Where the router does not say whom it leads to, only what it gave this box is closed (`given`).
async fn close(
    way: &Way,
    control: &Control,
    outside: u16,
    to: SocketAddrV4,
    given: bool,
) -> io::Result<Closed> {
    match act(way, control, Action::Who { outside }).await? {
        Some(Said::Who(who, _)) if who == to => {}
        Some(Said::Who(..)) => return Ok(Closed::Others),
        Some(Said::Refused(upnp::NO_SUCH)) => return Ok(Closed::Before),
        _ if given => {}
        _ => return Ok(Closed::No),
    }
    Ok(match act(way, control, Action::Delete { outside }).await? {
        Some(Said::Done) => Closed::Now,
        Some(Said::Refused(upnp::NO_SUCH)) => Closed::Before,
        _ => Closed::No,
    })
}

/// A port that a router may hold open for ever, as far as that has to be known in another life of this box.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Debt {
    /// The router's address then.
    pub router: Ipv4Addr,
    /// What it says that it is, where it says so.
    pub id: Option<String>,
    /// This machine's address and port then.
    pub to: SocketAddrV4,
    /// The port outside.
    pub outside: u16,
    /// What the router's list was told to call it ([`Wish::called`]), where that is known.
    pub called: Option<String>,
}

/// Whom to ask about ports that were left open before; nobody where the router does not let itself be found, within 2.5 seconds.
pub async fn creditor(way: &Way) -> Option<Control> {
    search(way).await.ok().flatten()
}

/// Gives back what was left open before, if this is the router that it was left at and the port is still the one that was left. Another router
/// that has the same address, as after a move, keeps what it has: the port there may lead to somebody else's machine.
pub async fn settle(way: &Way, found: &Control, debt: &Debt) -> Ending {
    if found.id != debt.id {
        return Ending::Open;
    }
    let settling = async {
        let which = Action::Who { outside: debt.outside };
        match act(way, found, which).await.ok()?? {
            Said::Who(to, called) => match debt.still(to, called.as_deref()) {
                Still::Ours => {}
                Still::Elsewhere => return Some(Ending::Elsewhere),
                Still::Unsure => return None,
            },
            Said::Refused(upnp::NO_SUCH) => return Some(Ending::Closed),
            _ => return None,
        }
        let closing = Action::Delete { outside: debt.outside };
        matches!(act(way, found, closing).await.ok()??, Said::Done | Said::Refused(upnp::NO_SUCH))
            .then_some(Ending::Closed)
    };
    timeout(SETTLING, settling).await.ok().flatten().unwrap_or(Ending::Open)
}

/// What a port that a router has is to a debt.
#[derive(Debug, PartialEq, Eq)]
enum Still {
    /// It is that one.
    Ours,
    /// It leads to another place, at the router that was meant: what was left there is gone.
    Elsewhere,
    /// It may be that one: it leads to the same place under another name, or the router has no name of its own, and may be another one.
    Unsure,
}

impl Debt {
    /// It is this one where it leads to the same place, and is called the same. Some routers forget what it was told to call it, and an older
    /// version noted only that it was called after Polder; then the router itself has to be known by its name.
    fn still(&self, to: SocketAddrV4, called: Option<&str>) -> Still {
        let named = self.id.is_some();
        let same = match (&self.called, called) {
            (Some(ours), Some(called)) => ours == called,
            (None, Some(called)) => named && called.starts_with("Polder"),
            (_, None) => named,
        };
        match (to == self.to, same) {
            (true, true) => Still::Ours,
            (false, _) if named => Still::Elsewhere,
            _ => Still::Unsure,
        }
    }
}

/// Whether it may be the router that is meant: one that does not say what it is may.
fn is_same(id: Option<&str>, found: &Control) -> bool {
    id.is_none_or(|id| found.id.as_deref() == Some(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_only_known_again_by_where_it_leads_and_what_it_is_called_or_at_a_router_with_a_name()
     {
        let to: SocketAddrV4 = "192.168.1.7:443".parse().unwrap();
        let other: SocketAddrV4 = "192.168.1.8:443".parse().unwrap();
        let debt = |id: Option<&str>, called: Option<&str>| Debt {
            router: [192, 168, 1, 1].into(),
            id: id.map(str::to_owned),
            to,
            outside: 443,
            called: called.map(str::to_owned),
        };
        let (named, ours) = (Some("uuid:a"), Some("Polder 07070707"));
        for (debt, to, called, still) in [
            (debt(named, ours), to, ours, Still::Ours),
            (debt(named, ours), to, None, Still::Ours),
            (debt(named, ours), to, Some("Camera"), Still::Unsure),
            (debt(named, ours), other, ours, Still::Elsewhere),
            (debt(named, ours), other, None, Still::Elsewhere),
            // Written down by an older version.
            (debt(named, None), to, Some("Polder"), Still::Ours),
            (debt(named, None), to, Some("Polder 07070707"), Still::Ours),
            (debt(named, None), to, None, Still::Ours),
            (debt(named, None), to, Some("Camera"), Still::Unsure),
            (debt(None, ours), to, ours, Still::Ours),
            (debt(None, ours), to, Some("Polder 01010101"), Still::Unsure),
            (debt(None, ours), to, None, Still::Unsure),
            (debt(None, ours), other, ours, Still::Unsure),
            (debt(None, None), to, Some("Polder"), Still::Unsure),
        ] {
            assert_eq!(debt.still(to, called), still, "{debt:?} {to} {called:?}");
        }
    }
}
