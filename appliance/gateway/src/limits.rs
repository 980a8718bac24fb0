//! How much anybody may ask of the door at once, and for how long.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::peer::is_this_machine;

/// Every bound of the door. The defaults are for a collective of 50; tests shorten them.
#[derive(Debug, Clone)]
pub struct Limits {
    /// For the first byte, and again for the TLS handshake.
    pub handshake: Duration,
    /// For a whole request head; also how long an HTTP/1.1 connection may idle between requests.
    pub head: Duration,
    /// How long an HTTP/2 connection may idle.
    pub idle: Duration,
    /// How long a client may take nothing of what it asked for.
    pub stall: Duration,
    /// Bytes of a request head (HTTP/1.1 buffer, HTTP/2 header list).
    pub head_bytes: usize,
    /// Headers of a request.
    pub headers: usize,
    /// Bytes of a request's path and query.
    pub uri_bytes: usize,
    /// Bytes of a request's body.
    pub body_bytes: u64,
    /// A body may take this long whatever its size,
    pub body_grace: Duration,
    /// and beyond that must come at this many bytes per second.
    pub body_rate: u64,
    /// Bytes of API bodies in memory at once, all requests together.
    pub buffered_bytes: usize,
    /// Threads that connections live on, each on one.
    pub threads: usize,
    /// Requests at once on one HTTP/2 connection.
    pub streams: u32,
    /// Connections at once.
    pub connections: usize,
    /// Of those, kept for this machine and for addresses that a steward signed in from.
    pub kept: usize,
    /// Connections at once from one address (IPv6: one /64), this machine excepted.
    pub per_address: usize,
    /// How long a request waits for an engine that is starting.
    pub patience: Duration,
    /// How long running requests get when the door closes.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(5),
            head: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            stall: Duration::from_secs(60),
            head_bytes: 64 << 10,
            headers: 100,
            uri_bytes: 8 << 10,
            body_bytes: 32 << 20,
            body_grace: Duration::from_secs(10),
            body_rate: 4 << 10,
            buffered_bytes: 512 << 20,
            // More are of no use to 50 people.
            threads: std::thread::available_parallelism().map_or(1, |n| n.get().min(4)),
            streams: 64,
            connections: 1024,
            kept: 32,
            per_address: 128,
            patience: Duration::from_secs(30),
            drain: Duration::from_secs(30),
        }
    }
}

impl Limits {
    /// When a body of which this much has come must have more to show.
    pub fn body_deadline(&self, received: u64) -> Duration {
        let millis = received.saturating_mul(1000) / self.body_rate.max(1);
        self.body_grace + Duration::from_millis(millis)
    }
}

/// Why a connection got no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoPlace {
    /// Its address has as many as one may have.
    Address,
    /// The box has as many as it takes.
    Full,
}

/// How many addresses are remembered as stewards'.
const MOST_FAVOURED: usize = 64;
/// For how long.
const FAVOUR: Duration = Duration::from_secs(12 * 3600);

/// Connections that are open, by address.
pub(crate) struct Places {
    all: usize,
    kept: usize,
    per_address: usize,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    total: usize,
    by_net: HashMap<IpAddr, usize>,
    favoured: HashMap<IpAddr, Instant>,
}

impl Places {
    /// No connections yet.
    pub(crate) fn new(limits: &Limits) -> Arc<Self> {
        Arc::new(Self {
            all: limits.connections,
            kept: limits.kept.min(limits.connections),
            per_address: limits.per_address,
            held: Mutex::default(),
        })
    }

    /// Takes a place for a connection from `ip` until the answer is dropped.
    pub(crate) fn take(self: &Arc<Self>, ip: IpAddr) -> Result<Place, NoPlace> {
        let net = net_of(ip);
        let here = is_this_machine(ip);
        let mut held = self.held();
        let from_net = held.by_net.get(&net).copied().unwrap_or(0);
        if !here && from_net >= self.per_address {
            return Err(NoPlace::Address);
        }
        let favoured = here || held.favoured.get(&net).is_some_and(|at| at.elapsed() < FAVOUR);
        let open = if favoured { self.all } else { self.all - self.kept };
        if held.total >= open {
            return Err(NoPlace::Full);
        }
        held.total += 1;
        *held.by_net.entry(net).or_default() += 1;
        drop(held);
        Ok(Place { places: self.clone(), net })
    }

    /// A steward signed in from here: the kept places are for them too, for half a day.
    pub(crate) fn favour(&self, ip: IpAddr) {
        let mut held = self.held();
        if held.favoured.len() >= MOST_FAVOURED
            && let Some(oldest) =
                held.favoured.iter().min_by_key(|(_, at)| **at).map(|(net, _)| *net)
        {
            held.favoured.remove(&oldest);
        }
        held.favoured.insert(net_of(ip), Instant::now());
    }

    /// Connections that are open.
    pub(crate) fn taken(&self) -> usize {
        self.held().total
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place; dropping it frees it.
pub(crate) struct Place {
    places: Arc<Places>,
    net: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.places.held();
        held.total -= 1;
        if let Some(count) = held.by_net.get_mut(&self.net) {
            *count -= 1;
            if *count == 0 {
                held.by_net.remove(&self.net);
            }
        }
    }
}

/// What one person can easily have: one IPv4 address, or one IPv6 /64.
fn net_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) if !v6.is_loopback() => {
            IpAddr::V6(Ipv6Addr::from(u128::from(v6) & !u128::from(u64::MAX)))
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places() -> Arc<Places> {
        Places::new(&Limits { connections: 10, kept: 3, per_address: 4, ..Limits::default() })
    }
    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }
    fn take(places: &Arc<Places>, from: &str, count: usize) -> Vec<Place> {
        (0..count).map_while(|_| places.take(ip(from)).ok()).collect()
    }

    #[test]
    fn one_address_gets_its_share_and_leaves_room_for_another() {
        let places = places();
        assert_eq!(take(&places, "10.0.0.1", 9).len(), 4);
        let held = take(&places, "10.0.0.1", 9);
        assert_eq!(held.len(), 4, "dropped places are free again");
        assert_eq!(places.take(ip("10.0.0.1")).err(), Some(NoPlace::Address));
        assert!(places.take(ip("10.0.0.2")).is_ok());
    }

    #[test]
    fn the_last_places_are_for_this_machine_and_for_stewards() {
        let places = places();
        let _held: Vec<_> =
            (1..=4).flat_map(|n| take(&places, &format!("10.0.0.{n}"), 4)).collect();
        assert_eq!(places.taken(), 7);
        assert_eq!(places.take(ip("10.0.1.1")).err(), Some(NoPlace::Full));
        let _here = places.take(ip("127.0.0.1")).unwrap_or_else(|_| panic!("kept for us"));
        places.favour(ip("10.0.1.1"));
        let _steward = places.take(ip("10.0.1.1")).unwrap_or_else(|_| panic!("kept for them"));
    }

    #[test]
    fn a_whole_ipv6_subnet_counts_as_one_address() {
        let places = places();
        let _held: Vec<_> =
            (1..=4).flat_map(|n| take(&places, &format!("2001:db8::{n}"), 1)).collect();
        assert_eq!(places.take(ip("2001:db8::99")).err(), Some(NoPlace::Address));
        assert!(places.take(ip("2001:db8:0:1::99")).is_ok());
    }

    #[test]
    fn favours_are_bounded() {
        let places = places();
        for n in 0..200u8 {
            places.favour(IpAddr::from([10, 0, 9, n]));
        }
        assert_eq!(places.held().favoured.len(), MOST_FAVOURED);
    }

    #[test]
    fn a_slow_body_is_too_slow_and_a_large_one_gets_its_time() {
        let limits = Limits { body_rate: 1000, ..Limits::default() };
        assert_eq!(limits.body_deadline(0), limits.body_grace);
        assert_eq!(limits.body_deadline(60_000), limits.body_grace + Duration::from_secs(60));
        assert!(limits.body_deadline(u64::MAX) > Duration::from_secs(3600));
    }
}
