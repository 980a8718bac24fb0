use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

/// A bucket that fills with time and is paid from, and that may go below empty: what a request
/// cost in tokens is known only after it, and a debt then makes the next one wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bucket {
    level: f64,
    at: i64,
}

impl Bucket {
    pub(crate) fn full(size: f64, now: i64) -> Self {
        Self { level: size, at: now }
    }

    /// Lets time pass. A clock that was set back stops the filling for that moment only.
    fn fill(&mut self, size: f64, per_minute: f64, now: i64) {
        let minutes = (now - self.at).max(0) as f64 / 60_000.0;
        self.level = (self.level + minutes * per_minute).min(size);
        self.at = now;
    }

    /// Is there at least `need`? If not: the seconds until there is.
    pub(crate) fn has(
        &mut self,
        need: f64,
        size: f64,
        per_minute: f64,
        now: i64,
    ) -> Result<(), u64> {
        self.fill(size, per_minute, now);
        if self.level >= need {
            return Ok(());
        }
        let seconds = (need - self.level) / per_minute.max(1e-9) * 60.0;
        Err((seconds.ceil() as u64).clamp(1, 24 * 3600))
    }

    pub(crate) fn pay(&mut self, cost: f64) {
        self.level -= cost;
    }
}

/// One bucket per key, of which only those not full are kept, and never more than a bound.
pub(crate) struct KeyedBuckets<K> {
    size: f64,
    per_minute: f64,
    buckets: Mutex<HashMap<K, Bucket>>,
}

/// More than this many addresses at once is an attack; forgetting the oldest debts then is fine,
/// because a limit over all of them stands behind.
const MOST: usize = 10_000;

impl<K: Hash + Eq> KeyedBuckets<K> {
    pub(crate) fn new(size: f64, per_minute: f64) -> Self {
        Self { size, per_minute, buckets: Mutex::default() }
    }

    /// Takes one, or says how many seconds to wait.
    pub(crate) fn take(&self, key: K, now: i64) -> Result<(), u64> {
        let (size, rate) = (self.size, self.per_minute);
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= MOST && !buckets.contains_key(&key) {
            buckets.retain(|_, bucket| bucket.has(size, size, rate, now).is_err());
            if buckets.len() >= MOST {
                buckets.clear();
            }
        }
        let bucket = buckets.entry(key).or_insert(Bucket::full(size, now));
        bucket.has(1.0, size, rate, now)?;
        bucket.pay(1.0);
        Ok(())
    }

    /// Forgets what was taken: the person proved who they are.
    pub(crate) fn forgive(&self, key: &K) {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

/// Whom to count as one: an IPv4 address, or the /64 that one IPv6 customer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Net(IpAddr);

impl Net {
    pub(crate) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(v6) if !v6.is_loopback() => {
                Self(IpAddr::V6((v6.to_bits() >> 64 << 64).into()))
            }
            other => Self(other),
        }
    }
    pub(crate) fn is_this_machine(&self) -> bool {
        self.0.is_loopback()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_debt_is_waited_off_at_the_rate_of_filling() {
        let mut bucket = Bucket::full(100.0, 0);
        assert_eq!(bucket.has(1.0, 100.0, 100.0, 0), Ok(()));
        bucket.pay(250.0);
        assert_eq!(bucket.has(1.0, 100.0, 100.0, 0), Err(91));
        assert_eq!(bucket.has(1.0, 100.0, 100.0, 91_000), Ok(()));
    }

    #[test]
    fn a_clock_set_back_does_not_stop_the_bucket_from_filling_afterwards() {
        let mut bucket = Bucket::full(10.0, 10_000_000);
        bucket.pay(10.0);
        assert!(bucket.has(1.0, 10.0, 60.0, 0).is_err());
        assert_eq!(bucket.has(1.0, 10.0, 60.0, 1000), Ok(()));
    }

    #[test]
    fn one_address_being_slowed_down_does_not_slow_another() {
        let buckets = KeyedBuckets::new(2.0, 1.0);
        let (a, b) = (Net::of("10.0.0.1".parse().unwrap()), Net::of("10.0.0.2".parse().unwrap()));
        assert!(buckets.take(a, 0).is_ok() && buckets.take(a, 0).is_ok());
        assert_eq!(buckets.take(a, 0), Err(60));
        assert!(buckets.take(b, 0).is_ok());
        buckets.forgive(&a);
        assert!(buckets.take(a, 0).is_ok());
    }

    #[test]
    fn addresses_of_one_ipv6_customer_count_as_one() {
        let net = |a: &str| Net::of(a.parse().unwrap());
        assert_eq!(net("2001:db8::1"), net("2001:db8::ffff:1"));
        assert_ne!(net("2001:db8::1"), net("2001:db8:0:1::1"));
        assert_eq!(net("::ffff:10.0.0.1"), net("10.0.0.1"));
    }

    #[test]
    fn a_flood_of_addresses_does_not_grow_the_table_without_bound() {
        let buckets = KeyedBuckets::new(2.0, 1.0);
        for i in 0..25_000u32 {
            let _ = buckets.take(i, 0);
        }
        assert!(buckets.buckets.lock().unwrap().len() <= MOST);
    }
}
