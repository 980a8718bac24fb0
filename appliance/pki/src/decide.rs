//! When another certificate or another authority is due. Pure: facts in, reason out.

use std::fmt;
use std::net::IpAddr;

use crate::names::is_narrow;
use crate::{Clock, Names};

const DAY: i64 = 86_400;

/// No clock that runs is earlier than the day this was written, 2026-11-01: a machine whose clock
/// battery is empty starts in 1970.
pub const CLOCK_FLOOR: i64 = 1_793_491_200;
/// How long an authority lasts.
pub const AUTHORITY_DAYS: i64 = 3_650;
/// How long a certificate lasts.
pub const LEAF_DAYS: i64 = 90;
/// How long a certificate lasts that was made while the clock was wrong. Apple's systems take no
/// private certificate of more than 825 days.
pub const PROVISIONAL_DAYS: i64 = 825;
/// Members' clocks may be behind by this much.
const CLOCK_SKEW: i64 = DAY;

/// From when until when, in Unix seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// First second.
    pub from: i64,
    /// Last second.
    pub until: i64,
}

/// What an authority's certificate says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorityFacts {
    /// Its unique name.
    pub subject: String,
    /// Host names that it may speak for (and names below them).
    pub hosts: Vec<String>,
    /// Addresses that it may speak for.
    pub addresses: Vec<IpAddr>,
    /// How long it lasts.
    pub validity: Validity,
}

/// What a served certificate says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafFacts {
    /// Who signed it.
    pub issuer: String,
    /// Whom it speaks for.
    pub names: Names,
    /// How long it lasts.
    pub validity: Validity,
}

/// Why another authority is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthorityDue {
    /// There is none.
    None,
    /// The box has a name that no authority it has may speak for.
    Outside(String),
    /// The one it has may speak for names without a dot, and so for whole top-level domains.
    TooWide,
    /// The ones it has are about to end.
    Ends,
    /// The ones it has were made while the clock was ahead, and no device takes them before that day.
    Future,
}

/// Why another certificate is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeafDue {
    /// There is none that can be read.
    None,
    /// Another authority signs now.
    OtherAuthority,
    /// The box has other names or addresses.
    OtherNames,
    /// Two thirds of its life are over.
    Age,
    /// It was made while the clock was wrong, and the clock is right now.
    Provisional,
    /// By this clock it is not good yet, and nobody knows which of the two times was wrong.
    Early,
}

impl fmt::Display for LeafDue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "there was none",
            Self::OtherAuthority => "another authority signs now",
            Self::OtherNames => "the box has other names or addresses",
            Self::Age => "the old one was near its end",
            Self::Provisional => "the old one was made while the clock was wrong",
            Self::Early => {
                "the clock went back, and until somebody tells the time this one is good by both times"
            }
        })
    }
}

/// Is this a time at which a running clock could be?
pub fn plausible(now: i64) -> bool {
    now >= CLOCK_FLOOR
}

/// How long an authority made now lasts.
pub fn authority_validity(now: i64) -> Validity {
    let now = now.max(CLOCK_FLOOR);
    Validity { from: now - CLOCK_SKEW, until: now + AUTHORITY_DAYS * DAY }
}

/// How long a certificate made now by this authority lasts; never longer than its authority. `held` is the one before it.
///
/// While the clock is wrong the true time is unknown, but not before the floor and not before the authority was made, so
/// the certificate begins there and lasts as long as browsers bear; it is replaced as soon as the clock is right. After a
/// clock went back it is good by the time before and, as far as that is possible, by the time after.
pub fn leaf_validity(clock: Clock, authority: Validity, held: Option<Validity>) -> Validity {
    let wrong = is_wrong(clock.now, authority);
    let now = clock.now.max(CLOCK_FLOOR).max(authority.from + CLOCK_SKEW);
    let early = held.filter(|held| !clock.told && held.from > clock.now);
    let days = if wrong || early.is_some() { PROVISIONAL_DAYS } else { LEAF_DAYS };
    let (mut from, mut until) = (now - CLOCK_SKEW, now + days * DAY);
    if let Some(held) = early {
        until = held.until.max(from + PROVISIONAL_DAYS * DAY);
        from = until - PROVISIONAL_DAYS * DAY;
    }
    Validity { from: from.max(authority.from), until: until.min(authority.until) }
}

/// A clock that says a time before its authority was made, and that nobody told the time, says nothing: that authority is
/// known to have been there.
fn is_wrong(now: i64, authority: Validity) -> bool {
    !plausible(now) || now < authority.from
}

impl AuthorityFacts {
    /// May it speak for this host? A name permits itself and everything below it (RFC 5280).
    pub fn permits_host(&self, host: &str) -> bool {
        self.hosts.iter().any(|base| {
            host.strip_suffix(base.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        })
    }

    /// The part of these names that it may speak for.
    pub fn permitted(&self, names: &Names) -> Names {
        Names {
            hosts: names.hosts.iter().filter(|host| self.permits_host(host)).cloned().collect(),
            addresses: names
                .addresses
                .iter()
                .filter(|address| self.addresses.contains(address))
                .copied()
                .collect(),
        }
    }

    /// May it speak for nothing that could be a whole top-level domain?
    fn is_narrow(&self) -> bool {
        self.hosts.iter().all(|host| is_narrow(host))
    }

    fn ends_soon(&self, now: i64) -> bool {
        plausible(now) && self.validity.until - now < LEAF_DAYS * DAY
    }

    /// Not while the clock is wrong: then nobody knows.
    fn is_of_the_future(&self, now: i64) -> bool {
        plausible(now) && now < self.validity.from
    }
}

/// Which of the box's authorities (oldest first) signs now, or why another one is needed.
///
/// Only names count. An address that came later (a new lease from the router) is left out of the
/// certificate rather than making every member install another authority. Nor does anybody have to because the clock went
/// back behind the day on which it was made, unless it is known that the clock was wrong then and is right now.
pub fn choose_authority(
    authorities: &[AuthorityFacts],
    names: &Names,
    clock: Clock,
) -> Result<usize, AuthorityDue> {
    let now = clock.now;
    let good = |a: &AuthorityFacts| !a.ends_soon(now) && !a.is_of_the_future(now);
    let lasting = || authorities.iter().enumerate().rev().filter(|(_, a)| good(a));
    let speaks_for_all = |a: &AuthorityFacts| names.hosts.iter().all(|host| a.permits_host(host));
    if let Some((index, _)) = lasting().find(|(_, a)| a.is_narrow() && speaks_for_all(a)) {
        return Ok(index);
    }
    // The oldest of them is the one that members are likely to have.
    let fits = |a: &AuthorityFacts| a.is_narrow() && speaks_for_all(a) && a.is_of_the_future(now);
    if let Some(index) = authorities.iter().position(fits).filter(|_| !clock.told) {
        return Ok(index);
    }
    Err(match (authorities.is_empty(), lasting().next()) {
        (true, _) => AuthorityDue::None,
        (false, None) if authorities.iter().all(|a| a.is_of_the_future(now)) => {
            AuthorityDue::Future
        }
        (false, None) => AuthorityDue::Ends,
        (false, Some((_, newest))) if !newest.is_narrow() => AuthorityDue::TooWide,
        (false, Some((_, newest))) => AuthorityDue::Outside(
            names.hosts.iter().find(|host| !newest.permits_host(host)).cloned().unwrap_or_default(),
        ),
    })
}

/// Why the served certificate must be replaced, if it must.
pub fn leaf_due(
    leaf: Option<&LeafFacts>,
    authority: &AuthorityFacts,
    names: &Names,
    clock: Clock,
) -> Option<LeafDue> {
    let now = clock.now;
    let Some(leaf) = leaf else { return Some(LeafDue::None) };
    if leaf.issuer != authority.subject {
        return Some(LeafDue::OtherAuthority);
    }
    if leaf.names != authority.permitted(names) {
        return Some(LeafDue::OtherNames);
    }
    // A wrong clock says nothing about age: what there is stays.
    if is_wrong(now, authority.validity) {
        return None;
    }
    let Validity { from, until } = leaf.validity;
    let (provisional, early) = (until - from > (LEAF_DAYS + 2) * DAY, from > now);
    let aged = now - from >= (until - from) / 3 * 2;
    match (provisional, clock.told) {
        (true, true) => Some(LeafDue::Provisional),
        (false, false) if early => Some(LeafDue::Early),
        (false, true) if early => Some(LeafDue::Age),
        _ => aged.then_some(LeafDue::Age),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = CLOCK_FLOOR + 400 * DAY;

    fn names(hosts: &[&str], addresses: &[&str]) -> Names {
        Names {
            hosts: hosts.iter().map(|h| (*h).to_owned()).collect(),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        }
    }
    fn authority(hosts: &[&str]) -> AuthorityFacts {
        AuthorityFacts {
            subject: "one".into(),
            hosts: hosts.iter().map(|h| (*h).to_owned()).collect(),
            addresses: vec!["127.0.0.1".parse().unwrap()],
            validity: authority_validity(NOW),
        }
    }
    fn leaf(authority: &AuthorityFacts, names: &Names, made: i64) -> LeafFacts {
        LeafFacts {
            issuer: authority.subject.clone(),
            names: authority.permitted(names),
            validity: leaf_validity(made.into(), authority.validity, None),
        }
    }

    #[test]
    fn a_name_permits_itself_and_what_is_below_it_and_nothing_that_only_ends_alike() {
        let a = authority(&["oak.local"]);
        assert!(a.permits_host("oak.local"));
        assert!(a.permits_host("chat.oak.local"));
        assert!(!a.permits_host("soak.local"));
        assert!(!a.permits_host("local"));
        assert!(!a.permits_host(""));
    }

    #[test]
    fn a_certificate_is_replaced_after_two_thirds_of_its_life() {
        let (a, n) = (authority(&["oak.local"]), names(&["oak.local"], &["127.0.0.1"]));
        let young = leaf(&a, &n, NOW);
        assert_eq!(leaf_due(Some(&young), &a, &n, NOW.into()), None);
        assert_eq!(leaf_due(Some(&young), &a, &n, (NOW + 58 * DAY).into()), None);
        assert_eq!(leaf_due(Some(&young), &a, &n, (NOW + 61 * DAY).into()), Some(LeafDue::Age));
        assert_eq!(leaf_due(Some(&young), &a, &n, (NOW + 500 * DAY).into()), Some(LeafDue::Age));
    }

    #[test]
    fn a_certificate_made_in_1970_is_good_today_and_goes_when_the_clock_is_right() {
        let (mut a, n) = (authority(&["oak.local"]), names(&["oak.local"], &[]));
        a.validity = authority_validity(0);
        let early = leaf(&a, &n, 0);
        assert!(early.validity.from < CLOCK_FLOOR && early.validity.until > NOW);
        assert_eq!(leaf_due(Some(&early), &a, &n, 10.into()), None);
        assert_eq!(leaf_due(Some(&early), &a, &n, NOW.into()), Some(LeafDue::Provisional));
    }

    #[test]
    fn a_clock_that_falls_back_to_1970_throws_nothing_away() {
        let (a, n) = (authority(&["oak.local"]), names(&["oak.local"], &[]));
        assert_eq!(leaf_due(Some(&leaf(&a, &n, NOW)), &a, &n, 0.into()), None);
        assert_eq!(choose_authority(&[a], &n, 0.into()), Ok(0));
    }

    #[test]
    fn a_new_address_is_left_out_but_a_new_name_needs_another_authority() {
        let a = authority(&["localhost", "oak.local"]);
        let moved = names(&["localhost", "oak.local"], &["10.0.0.9", "127.0.0.1"]);
        assert_eq!(choose_authority(std::slice::from_ref(&a), &moved, NOW.into()), Ok(0));
        assert_eq!(a.permitted(&moved).addresses, names(&[], &["127.0.0.1"]).addresses);
        let renamed = names(&["elm.local", "localhost"], &[]);
        assert_eq!(
            choose_authority(&[a], &renamed, NOW.into()),
            Err(AuthorityDue::Outside("elm.local".into()))
        );
    }

    #[test]
    fn a_box_that_gets_its_old_name_back_gets_its_old_authority_back() {
        let all = [authority(&["oak.local"]), authority(&["elm.local"])];
        assert_eq!(choose_authority(&all, &names(&["oak.local"], &[]), NOW.into()), Ok(0));
        assert_eq!(choose_authority(&all, &names(&["elm.local"], &[]), NOW.into()), Ok(1));
        assert_eq!(
            choose_authority(&[], &names(&["elm.local"], &[]), NOW.into()),
            Err(AuthorityDue::None)
        );
    }

    #[test]
    fn an_authority_that_may_speak_for_a_whole_domain_of_the_internet_signs_no_more() {
        let wide = authority(&["garden", "garden.local", "localhost"]);
        let wanted = names(&["garden.local", "localhost"], &[]);
        assert_eq!(
            choose_authority(std::slice::from_ref(&wide), &wanted, NOW.into()),
            Err(AuthorityDue::TooWide)
        );
        let narrow = authority(&["garden.local", "localhost"]);
        assert_eq!(choose_authority(&[wide, narrow], &wanted, NOW.into()), Ok(1));
    }

    #[test]
    fn a_clock_that_was_years_ahead_for_a_moment_costs_nobody_their_trust() {
        let (now, n) = (authority(&["oak.local"]), names(&["oak.local"], &[]));
        // A clock battery that thinks it is 2046 has another one made.
        let ahead = NOW + 20 * 365 * DAY;
        assert_eq!(
            choose_authority(std::slice::from_ref(&now), &n, ahead.into()),
            Err(AuthorityDue::Ends)
        );
        let later = AuthorityFacts { validity: authority_validity(ahead), ..now.clone() };
        assert_eq!(choose_authority(&[now.clone(), later.clone()], &n, ahead.into()), Ok(1));
        // Put right, members' devices have the first one and take the other one not before 2046.
        assert_eq!(choose_authority(&[now.clone(), later.clone()], &n, NOW.into()), Ok(0));
        assert_eq!(choose_authority(&[now, later.clone()], &n, 0.into()), Ok(1));
        // A box that was first started with such a clock.
        assert_eq!(choose_authority(&[later], &n, NOW.into()), Err(AuthorityDue::Future));
    }

    /// Untold, as a machine is that just started without a network.
    fn untold(now: i64) -> Clock {
        Clock { now, told: false }
    }

    #[test]
    fn a_clock_that_goes_back_costs_nobody_their_trust() {
        let n = names(&["oak.local"], &[]);
        let (a, year) = (authority(&["oak.local"]), 365 * DAY);
        let made = leaf(&a, &n, NOW + 2 * year);
        let (a, good) = (std::slice::from_ref(&a), |l: Validity, at| l.from <= at && at < l.until);
        // Behind the day on which the authority was made: everything stays, however often it is looked at.
        assert_eq!(choose_authority(a, &n, untold(NOW - 36 * 3_600)), Ok(0));
        assert_eq!(choose_authority(a, &n, untold(NOW - year)), Ok(0));
        assert_eq!(leaf_due(Some(&made), &a[0], &n, untold(NOW - year)), None);
        // What is made all the same is good from then on.
        let lost = leaf_validity(untold(NOW - year), a[0].validity, None);
        assert!(good(lost, NOW) && good(lost, NOW + 2 * year), "{lost:?}");
        // After that day: one that is good by both times, once.
        let back = untold(NOW + year);
        assert_eq!(leaf_due(Some(&made), &a[0], &n, back), Some(LeafDue::Early));
        let both = leaf_validity(back, a[0].validity, Some(made.validity));
        assert!(good(both, NOW + year) && good(both, NOW + 2 * year), "{both:?}");
        assert!(both.until - both.from <= PROVISIONAL_DAYS * DAY);
        let both = LeafFacts { validity: both, ..made.clone() };
        assert_eq!(leaf_due(Some(&both), &a[0], &n, back), None);
        assert_eq!(
            leaf_due(Some(&both), &a[0], &n, (NOW + 2 * year).into()),
            Some(LeafDue::Provisional)
        );
        // Years further back than a certificate may last: by the time that was.
        let far = leaf_validity(
            untold(NOW),
            a[0].validity,
            Some(leaf(&a[0], &n, NOW + 6 * year).validity),
        );
        assert!(good(far, NOW + 6 * year) && !good(far, NOW), "{far:?}");
        let far = LeafFacts { validity: far, ..made };
        assert_eq!(leaf_due(Some(&far), &a[0], &n, untold(NOW)), None);
        // Told, there is no doubt.
        assert_eq!(choose_authority(a, &n, (NOW - year).into()), Err(AuthorityDue::Future));
    }

    #[test]
    fn an_authority_near_its_end_is_followed_by_another_in_time() {
        let a = authority(&["oak.local"]);
        let late = a.validity.until - 30 * DAY;
        assert_eq!(
            choose_authority(&[a], &names(&["oak.local"], &[]), late.into()),
            Err(AuthorityDue::Ends)
        );
    }
}
