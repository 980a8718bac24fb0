//! Sign-ins that were begun: who is on the way to the service, in which browser. In memory only: whoever is on the way while
//! the door restarts begins again.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use subtle::ConstantTimeEq;

use crate::Way;

/// Somebody may have to look for a telephone.
const FRESH: Duration = Duration::from_secs(600);
/// Of one address; its oldest is forgotten.
pub const MOST_FROM_ONE: usize = 32;
/// In all; the oldest is forgotten.
const MOST: usize = 4096;

/// Sign-ins that were begun, each with what its end is for.
pub struct Ways<T> {
    held: Mutex<HashMap<String, Begun<T>>>,
}

struct Begun<T> {
    way: Way,
    browser: String,
    from: String,
    at: Instant,
    purpose: T,
}

impl<T> Default for Ways<T> {
    fn default() -> Self {
        Self { held: Mutex::default() }
    }
}

impl<T> Ways<T> {
    /// Remembers a way. `browser` is what the cookie of the browser says that begins it, `from` the network that it is in.
    pub fn begin(&self, way: Way, browser: &str, from: &str, purpose: T) {
        let mut held = self.held();
        held.retain(|_, begun| begun.at.elapsed() < FRESH);
        if held.values().filter(|begun| begun.from == from).count() >= MOST_FROM_ONE {
            forget_oldest(&mut held, |begun| begun.from == from);
        }
        if held.len() >= MOST {
            forget_oldest(&mut held, |_| true);
        }
        let (browser, from, at) = (browser.to_owned(), from.to_owned(), Instant::now());
        held.insert(way.state().to_owned(), Begun { way, browser, from, at, purpose });
    }

    /// The way with this state, once, and only in the browser that began it. One that comes with another browser stays for
    /// the right one.
    pub fn end(&self, state: &str, browser: &str) -> Option<(Way, T)> {
        let mut held = self.held();
        let begun = held.get(state)?;
        let same: bool = begun.browser.as_bytes().ct_eq(browser.as_bytes()).into();
        if !same || browser.is_empty() {
            return None;
        }
        let begun = held.remove(state)?;
        (begun.at.elapsed() < FRESH).then_some((begun.way, begun.purpose))
    }

    fn held(&self) -> MutexGuard<'_, HashMap<String, Begun<T>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn forget_oldest<T>(held: &mut HashMap<String, Begun<T>>, which: impl Fn(&Begun<T>) -> bool) {
    let of = held.iter().filter(|(_, begun)| which(begun));
    if let Some(oldest) = of.min_by_key(|(_, begun)| begun.at).map(|(state, _)| state.clone()) {
        held.remove(&oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_is_ended_once_and_only_in_the_browser_that_began_it() {
        let ways = Ways::default();
        ways.begin(Way::for_tests("s"), "ada's", "home", 7);
        assert!(ways.end("s", "mallory's").is_none());
        assert!(ways.end("s", "").is_none());
        assert!(ways.end("other", "ada's").is_none());
        assert_eq!(ways.end("s", "ada's").unwrap().1, 7);
        assert!(ways.end("s", "ada's").is_none());
        // A browser without a cookie began nothing.
        ways.begin(Way::for_tests("t"), "", "home", 8);
        assert!(ways.end("t", "").is_none());
    }

    #[test]
    fn whoever_begins_many_pushes_out_only_their_own() {
        let ways = Ways::default();
        ways.begin(Way::for_tests("ada"), "ada's", "home", ());
        for number in 0..2 * MOST_FROM_ONE {
            ways.begin(Way::for_tests(&number.to_string()), "m", "elsewhere", ());
        }
        assert_eq!(ways.held().len(), MOST_FROM_ONE + 1);
        assert!(ways.end("ada", "ada's").is_some());
        for number in 0..MOST + 10 {
            let from = number.to_string();
            ways.begin(Way::for_tests(&format!("x{number}")), "m", &from, ());
        }
        assert_eq!(ways.held().len(), MOST);
    }
}
