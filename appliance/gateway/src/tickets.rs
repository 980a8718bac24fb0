//! Who is known at which app. In memory only: after a restart of the door a browser is led round by
//! the box's page once more and notices nothing.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use polder_members::{MembersError, Secret};
use polder_site::AppName;

/// How long a ticket is good, in seconds.
pub(crate) const TICKET_SECONDS: u8 = 60;
/// Nobody needs more tickets, or known browsers, than this.
const MOST: usize = 4096;

/// Tickets to apps, and what became of them.
#[derive(Default)]
pub(crate) struct Tickets {
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    tickets: HashMap<String, Ticket>,
    known: HashMap<String, Known>,
}

struct Ticket {
    app: AppName,
    /// The browser that was sent.
    way: Secret,
    session: Secret,
    at: Instant,
}

struct Known {
    app: AppName,
    /// On the box: what ends that, ends this.
    session: Secret,
    at: Instant,
}

impl Tickets {
    /// A ticket to `app` for the holder of `session`, in the browser that holds `way`.
    pub(crate) fn issue(
        &self,
        app: &AppName,
        way: &str,
        session: &Secret,
    ) -> Result<Secret, MembersError> {
        let number = Secret::random()?;
        let mut held = self.held();
        held.tickets.retain(|_, ticket| ticket.is_fresh());
        make_room(&mut held.tickets, |ticket| ticket.at);
        let (app, way, session) = (app.clone(), Secret::new(way.to_owned()), session.clone());
        let ticket = Ticket { app, way, session, at: Instant::now() };
        held.tickets.insert(number.expose().to_owned(), ticket);
        Ok(number)
    }

    /// Takes a ticket, once, and gives what its browser is known by from now on.
    pub(crate) fn redeem(&self, ticket: &str, app: &AppName, way: &str) -> Option<Secret> {
        let mut held = self.held();
        let ticket = held.tickets.remove(ticket)?;
        if !ticket.is_fresh() || ticket.app != *app || ticket.way.expose() != way {
            return None;
        }
        let token = Secret::random().ok()?;
        make_room(&mut held.known, |known| known.at);
        let known = Known { app: ticket.app, session: ticket.session, at: Instant::now() };
        held.known.insert(token.expose().to_owned(), known);
        Some(token)
    }

    /// The session on the box of a browser that is known at `app`.
    pub(crate) fn session_behind(&self, token: &str, app: &AppName) -> Option<Secret> {
        let held = self.held();
        held.known.get(token).filter(|known| known.app == *app).map(|known| known.session.clone())
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    fn is_fresh(&self) -> bool {
        self.at.elapsed() < Duration::from_secs(TICKET_SECONDS.into())
    }
}

fn make_room<T>(map: &mut HashMap<String, T>, at: impl Fn(&T) -> Instant) {
    if map.len() >= MOST
        && let Some(oldest) = map.iter().min_by_key(|(_, t)| at(t)).map(|(key, _)| key.clone())
    {
        map.remove(&oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_good_once_for_one_app_and_one_browser() {
        let tickets = Tickets::default();
        let (wiki, pad): (AppName, AppName) = ("wiki".parse().unwrap(), "pad".parse().unwrap());
        let session = Secret::new("s".into());
        let issue = || tickets.issue(&wiki, "way", &session).unwrap().expose().to_owned();
        assert!(tickets.redeem(&issue(), &pad, "way").is_none());
        assert!(tickets.redeem(&issue(), &wiki, "another").is_none());
        let ticket = issue();
        let known = tickets.redeem(&ticket, &wiki, "way").unwrap();
        assert!(tickets.redeem(&ticket, &wiki, "way").is_none());
        assert_eq!(tickets.session_behind(known.expose(), &wiki).unwrap().expose(), "s");
        assert!(tickets.session_behind(known.expose(), &pad).is_none());
        assert!(tickets.session_behind("x", &wiki).is_none());
    }

    #[test]
    fn tickets_are_bounded() {
        let tickets = Tickets::default();
        for _ in 0..MOST + 10 {
            tickets.issue(&"wiki".parse().unwrap(), "w", &Secret::new("s".into())).unwrap();
        }
        assert_eq!(tickets.held().tickets.len(), MOST);
    }
}
