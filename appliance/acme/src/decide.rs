//! What to do next about the public certificate. Pure: what is there, and the time, in; one thing to do out.

use std::fmt;

use polder_pki::decide::{Validity, plausible};
use serde::{Deserialize, Serialize};

const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;
/// How long a certificate is thought to last before there is one.
const USUAL_LIFE: i64 = 90 * DAY;
/// An order that was begun longer ago is not gone on with; authorities keep them for a week.
const ORDER_LASTS: i64 = 6 * DAY;
/// However long an authority wants us to wait, somebody looks again after this.
const LONGEST_WAIT: i64 = 7 * DAY;

/// What the site asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Names, lower case.
    pub names: Vec<String>,
    /// Of whom.
    pub directory: String,
}

/// The certificate that there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Names that it speaks for.
    pub names: Vec<String>,
    /// Who signed it.
    pub directory: String,
    /// How long it lasts.
    pub validity: Validity,
    /// A number that is this certificate's own, so that boxes do not all renew in the same second.
    pub dice: u64,
}

/// An order that was begun and not finished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// What it is for.
    pub wanted: Wanted,
    /// When it was begun, Unix seconds.
    pub since: i64,
}

/// How it went so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tries {
    /// Failures since the last success or since something was changed.
    pub failed: u32,
    /// When the last one was, Unix seconds.
    pub last: i64,
    /// The authority wants nothing before this (`Retry-After`).
    pub not_before: Option<i64>,
}

/// What the authority said about renewing (ARI, RFC 9773).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hint {
    /// From when until when it wants the certificate renewed, if it says.
    pub window: Option<(i64, i64)>,
    /// When it is to be asked again.
    pub again: i64,
}

/// Everything that the decision is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Unix seconds.
    pub now: i64,
    /// What the site asks for; nothing on a box without public names.
    pub wanted: Option<Wanted>,
    /// What a steward has to give first, in words.
    pub lacks: Option<String>,
    /// What there is.
    pub held: Option<Held>,
    /// What was begun.
    pub pending: Option<Pending>,
    /// What was tried.
    pub tries: Tries,
    /// When what there is was obtained, by the clock of this machine, Unix seconds.
    pub obtained: Option<i64>,
    /// What the authority said about what there is; nothing before it was asked.
    pub hint: Option<Hint>,
}

/// Why a certificate is ordered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// There is none.
    None,
    /// The one there is does not speak for this name.
    Name(String),
    /// It is of another authority.
    Authority,
    /// It is old enough, or its authority wants it renewed.
    Age,
}

/// The next thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Nobody wants a public certificate.
    Nothing,
    /// A steward has to do something first; in words.
    Tell(String),
    /// Ask the authority when it wants the certificate renewed.
    AskHint,
    /// Order a certificate.
    Order(Reason),
    /// Go on with the order that was begun.
    Resume,
    /// Do nothing until then.
    Wait {
        /// Unix seconds.
        until: i64,
        /// What will be done then.
        then: Box<Next>,
    },
}

/// The decision.
pub fn decide(seen: &Observed) -> Next {
    let Some(wanted) = &seen.wanted else { return Next::Nothing };
    if !plausible(seen.now) {
        return Next::Tell(
            "the machine's clock is wrong, and certificates go by it; set the clock".into(),
        );
    }
    if let Some(lacks) = &seen.lacks {
        return Next::Tell(lacks.clone());
    }
    let life = seen.held.as_ref().map_or(USUAL_LIFE, |held| lasts(held.validity));
    let dice = seen.held.as_ref().map_or(0, |held| held.dice);
    let after_failures = may_try(&seen.tries, life, dice, seen.now);
    let at = |at: i64, next: Next| match at > seen.now {
        true => Next::Wait { until: at, then: Box::new(next) },
        false => next,
    };
    if seen.pending.as_ref().is_some_and(|order| goes_on(order, wanted, seen.now)) {
        return at(after_failures, Next::Resume);
    }
    let Some(held) = &seen.held else {
        return at(after_failures, Next::Order(Reason::None));
    };
    if let Some(name) = wanted.names.iter().find(|name| !held.names.contains(name)) {
        return at(after_failures, Next::Order(Reason::Name(name.clone())));
    }
    if held.directory != wanted.directory {
        return at(after_failures, Next::Order(Reason::Authority));
    }
    let window = seen.hint.as_ref().and_then(|hint| hint.window);
    let renewed = renew_at(held.validity, window, held.dice);
    if renewed <= seen.now {
        let rested =
            seen.obtained.map_or(seen.now, |obtained| rest_until(obtained, life, seen.now));
        return at(after_failures.max(rested), Next::Order(Reason::Age));
    }
    // A clock that went back must not silence us for years.
    let ask = seen.hint.as_ref().map_or(seen.now, |hint| hint.again.min(seen.now + DAY));
    match ask < renewed {
        true => at(ask, Next::AskHint),
        false => at(renewed, Next::Order(Reason::Age)),
    }
}

/// A certificate that is old as soon as it was signed means that the clock is ahead, or that the authority wants it renewed for ever: the
/// next one is not ordered before a part of its life has gone by on this machine too. Otherwise one order would follow the other, until the authority
/// takes none for a week.
fn rest_until(obtained: i64, life: i64, now: i64) -> i64 {
    // One from the future is one from before the clock was set.
    if obtained > now { now } else { obtained + (life / 24).min(DAY) }
}

fn goes_on(order: &Pending, wanted: &Wanted, now: i64) -> bool {
    order.wanted == *wanted && is_young(order.since, now)
}

/// May an order that was begun then still be gone on with?
pub(crate) fn is_young(since: i64, now: i64) -> bool {
    since <= now && now - since < ORDER_LASTS
}

fn lasts(validity: Validity) -> i64 {
    validity.until.saturating_sub(validity.from).max(1)
}

/// When a certificate is renewed: somewhere in the window that its authority names, or else when two thirds of its life are
/// over, however long that is; a little earlier by its dice. Never later than nine tenths of its life, whatever an authority says.
pub fn renew_at(validity: Validity, window: Option<(i64, i64)>, dice: u64) -> i64 {
    let life = lasts(validity);
    let throw = |range: i64| i64::try_from(dice % (range.unsigned_abs() + 1)).unwrap_or(0);
    let latest = validity.until.saturating_sub(life / 10).max(validity.from);
    match window {
        Some((from, until)) => {
            from.saturating_add(throw(until.saturating_sub(from).max(0))).min(latest)
        }
        None => (validity.until - life / 3).saturating_sub(throw(life / 30)).max(validity.from),
    }
}

/// When the authority may be troubled again after failures: after a hundredth of a certificate's life at first (5 minutes at
/// most), then four times as long each time, up to a twelfth of it (a day at most). So a long-lived certificate is tried for four times
/// in its first hour, which the limits of public authorities allow, and a short-lived one before it is over.
pub fn may_try(tries: &Tries, life: i64, dice: u64, now: i64) -> i64 {
    let asked = tries.not_before.unwrap_or(i64::MIN).min(now + LONGEST_WAIT);
    if tries.failed == 0 {
        return asked;
    }
    let first = (life / 100).clamp(5, 300);
    let most = (life / 12).clamp(first, DAY);
    let pause = first.saturating_mul(4i64.saturating_pow(tries.failed - 1)).min(most);
    let jitter = i64::try_from(dice % (pause.unsigned_abs() / 4 + 1)).unwrap_or(0);
    // A failure in the future is one from before the clock was set.
    (tries.last.min(now) + pause + jitter).max(asked)
}

/// When the authority is asked again about renewing: when it says, within reason.
pub fn ask_hint_again(now: i64, after_seconds: i64, life: i64) -> i64 {
    let shortest = (life / 100).clamp(30, HOUR);
    now + after_seconds.clamp(shortest, DAY)
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("there is none yet"),
            Self::Name(name) => write!(f, "the one there is does not speak for {name}"),
            Self::Authority => f.write_str("another authority is to sign it"),
            Self::Age => f.write_str("the one there is gets old"),
        }
    }
}

impl fmt::Display for Next {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("no public certificate is wanted"),
            Self::Tell(what) => f.write_str(what),
            Self::AskHint => {
                f.write_str("asks the authority when it wants the certificate renewed")
            }
            Self::Order(Reason::Age) => f.write_str("renews the certificate"),
            Self::Order(reason) => write!(f, "orders a certificate, because {reason}"),
            Self::Resume => f.write_str("goes on with the order that was begun"),
            Self::Wait { until, then } => write!(f, "{then}, at {}", date(*until)),
        }
    }
}

/// As people read it: `2027-01-24 06:11 UTC`.
pub fn date(seconds: i64) -> String {
    let date = jiff::Timestamp::from_second(seconds);
    date.map_or("an unknown time".to_owned(), |d| d.strftime("%Y-%m-%d %H:%M UTC").to_string())
}

#[cfg(test)]
mod tests {
    use polder_pki::decide::CLOCK_FLOOR;
    use proptest::prelude::*;

    use super::*;

    const NOW: i64 = CLOCK_FLOOR + 100 * DAY;

    fn wanted() -> Wanted {
        let names = vec!["gpu.example.org".to_owned()];
        Wanted { names, directory: "https://acme.example/dir".to_owned() }
    }

    fn held(from: i64, days: i64) -> Held {
        let Wanted { names, directory } = wanted();
        let validity = Validity { from, until: from + days * DAY };
        Held { names, directory, validity, dice: 0 }
    }

    fn fresh() -> Observed {
        Observed {
            now: NOW,
            wanted: Some(wanted()),
            lacks: None,
            held: None,
            pending: None,
            tries: Tries::default(),
            obtained: None,
            hint: None,
        }
    }

    fn steady() -> Observed {
        let hint = Some(Hint { window: None, again: NOW + DAY });
        Observed { held: Some(held(NOW - DAY, 90)), hint, ..fresh() }
    }

    /// What a year of hours at an authority costs whose certificates last so long, with the machine's clock ahead by so much in the
    /// second quarter, and the authority away for a day in the third: orders, questions about renewing, and whether members' devices met a
    /// certificate that was over.
    fn year(life: i64, ahead: i64) -> (u32, u32, bool) {
        let mut seen = fresh();
        let (mut orders, mut questions, mut over) = (0, 0, false);
        for hour in 0..366 * 24 {
            let right = NOW + hour * HOUR;
            let day = hour / 24;
            seen.now = if (91..182).contains(&day) { right + ahead } else { right };
            // What can be done at once is.
            for _ in 0..50 {
                match decide(&seen) {
                    Next::Order(_) | Next::Resume if day == 200 => {
                        let failed = seen.tries.failed + 1;
                        seen.tries = Tries { failed, last: seen.now, not_before: None };
                    }
                    Next::Order(_) | Next::Resume => {
                        orders += 1;
                        let validity = Validity { from: right - HOUR, until: right - HOUR + life };
                        seen.held =
                            Some(Held { validity, dice: right.unsigned_abs(), ..held(0, 1) });
                        (seen.tries, seen.hint) = (Tries::default(), None);
                        seen.obtained = Some(seen.now);
                    }
                    Next::AskHint => {
                        questions += 1;
                        let again = ask_hint_again(seen.now, 6 * HOUR, life);
                        seen.hint = Some(Hint { window: None, again });
                    }
                    _ => break,
                }
            }
            over |= seen.held.as_ref().is_none_or(|held| held.validity.until <= right);
        }
        (orders, questions, over)
    }

    #[test]
    fn in_a_year_every_certificate_is_renewed_in_time_and_no_authority_is_asked_too_often() {
        for days in [90, 47, 6] {
            let (made, asked, over) = year(days * DAY, 0);
            // At two thirds of their lives, a thirtieth earlier at most.
            let (least, most) = (366 * 3 / (days * 2), 366 * 30 / (days * 19) + 1);
            let made_so = i64::from(made);
            assert!(!over && (least..=most).contains(&made_so), "{days}: {made}");
            assert!(asked <= 366 * 4 + made, "{days}: {asked}");
        }
    }

    #[test]
    fn a_clock_that_is_ahead_for_a_quarter_orders_one_certificate_a_day_at_most() {
        for days in [90, 47, 6] {
            for ahead in [5, 70, 400] {
                let (made, _, over) = year(days * DAY, ahead * DAY);
                let usual = year(days * DAY, 0).0;
                let a_day = u32::try_from(91 * DAY / (days * DAY / 24).min(DAY)).unwrap();
                assert!(!over && made <= usual + a_day + 2, "{days} {ahead}: {made}");
            }
        }
    }

    #[test]
    fn the_decision_in_words() {
        let failed = |failed, not_before| Tries { failed, last: NOW - 60, not_before };
        let begun = |since| Some(Pending { wanted: wanted(), since });
        let mut other_name = steady();
        other_name.wanted.as_mut().unwrap().names.push("wiki.gpu.example.org".into());
        let mut other_authority = steady();
        other_authority.wanted.as_mut().unwrap().directory = "https://other.example/dir".into();
        let mut other_order = fresh();
        other_order.pending = begun(NOW - DAY);
        other_order.pending.as_mut().unwrap().wanted.names.clear();
        let window =
            |from, until| Some(Hint { window: Some((from, until)), again: NOW + 6 * HOUR });
        let cases = [
            ("no public names", Observed { wanted: None, ..fresh() }),
            ("a clock in 1970", Observed { now: 5, ..fresh() }),
            ("a secret is missing", Observed { lacks: Some("give the key".into()), ..fresh() }),
            ("the first time", fresh()),
            ("the first time, after a failure", Observed { tries: failed(1, None), ..fresh() }),
            ("after five failures", Observed { tries: failed(5, None), ..fresh() }),
            ("a rate limit", Observed { tries: failed(1, Some(NOW + 3 * HOUR)), ..fresh() }),
            ("a rate limit of years", Observed { tries: failed(1, Some(i64::MAX)), ..fresh() }),
            ("an order that was begun", Observed { pending: begun(NOW - HOUR), ..fresh() }),
            (
                "one that failed for want of a line",
                Observed { pending: begun(NOW - HOUR), tries: failed(1, None), ..fresh() },
            ),
            ("an order too old", Observed { pending: begun(NOW - 7 * DAY), ..fresh() }),
            ("an order for other names", other_order),
            ("a young certificate", steady()),
            ("one nobody asked about", Observed { hint: None, ..steady() }),
            ("two thirds over", Observed { held: Some(held(NOW - 61 * DAY, 90)), ..steady() }),
            ("long over", Observed { held: Some(held(NOW - 161 * DAY, 90)), ..steady() }),
            (
                "six days long, four over",
                Observed { held: Some(held(NOW - 4 * DAY, 6)), ..steady() },
            ),
            (
                "six days long, three over",
                Observed { held: Some(held(NOW - 3 * DAY, 6)), ..steady() },
            ),
            (
                "a window in the past",
                Observed { hint: window(NOW - 2 * DAY, NOW - DAY), ..steady() },
            ),
            (
                "a window in four hours",
                Observed { hint: window(NOW + 4 * HOUR, NOW + 5 * HOUR), ..steady() },
            ),
            (
                "a window after its end",
                Observed {
                    hint: window(NOW + 200 * DAY, NOW + 300 * DAY),
                    held: Some(held(NOW - 82 * DAY, 90)),
                    ..steady()
                },
            ),
            (
                "a renewal that fails",
                Observed {
                    held: Some(held(NOW - 61 * DAY, 90)),
                    tries: failed(2, None),
                    ..steady()
                },
            ),
            ("another name", other_name),
            ("another authority", other_authority),
        ];
        let said: String =
            cases.iter().map(|(case, seen)| format!("{case}: {}\n", decide(seen))).collect();
        assert_eq!(said, include_str!("decide.golden.txt"));
    }

    #[test]
    fn a_clock_that_goes_back_silences_nobody_for_years() {
        let mut seen = fresh();
        seen.tries = Tries { failed: 9, last: NOW + 900 * DAY, not_before: Some(NOW + 900 * DAY) };
        let Next::Wait { until, .. } = decide(&seen) else { panic!("{:?}", decide(&seen)) };
        assert!(until <= NOW + LONGEST_WAIT);
        let mut seen = steady();
        seen.hint = Some(Hint { window: None, again: NOW + 900 * DAY });
        let Next::Wait { until, .. } = decide(&seen) else { panic!("{:?}", decide(&seen)) };
        assert!(until <= NOW + DAY);
    }

    proptest! {
        #[test]
        fn every_certificate_is_renewed_while_it_lasts_however_long_that_is(
            from in 0..4_000_000_000i64,
            life in 1..2_000_000_000i64,
            dice: u64,
        ) {
            let validity = Validity { from, until: from + life };
            let at = renew_at(validity, None, dice);
            prop_assert!(at >= from + life * 6 / 10 - 1, "too early");
            prop_assert!(at <= from + life * 2 / 3 + 1, "later than two thirds");
        }

        #[test]
        fn whatever_window_an_authority_names_it_is_kept_to_unless_it_is_too_late(
            life in 1..2_000_000_000i64,
            from: i64,
            until: i64,
            dice: u64,
        ) {
            let validity = Validity { from: 1_800_000_000, until: 1_800_000_000 + life };
            let at = renew_at(validity, Some((from, until)), dice);
            prop_assert!(at <= validity.until);
            prop_assert!(at <= from.max(until) || at == from);
            let latest = validity.until - life / 10;
            prop_assert!(at >= from.min(latest));
        }

        #[test]
        fn pauses_grow_and_respect_what_was_asked_and_end(
            failed in 1..60u32,
            life in 60..400 * DAY,
            dice: u64,
            asked in proptest::option::of(-DAY..6 * DAY),
        ) {
            let tries = |failed| Tries { failed, last: NOW, not_before: asked.map(|a| NOW + a) };
            let at = may_try(&tries(failed), life, 0, NOW);
            prop_assert!(may_try(&tries(failed + 1), life, 0, NOW) >= at, "they shrink");
            let thrown = may_try(&tries(failed), life, dice, NOW);
            prop_assert!(thrown >= at);
            prop_assert!(thrown >= NOW + asked.unwrap_or(i64::MIN / 2));
            let most = (life / 12).clamp(5, DAY).max((life / 100).clamp(5, 300));
            prop_assert!(thrown <= (NOW + most + most / 4 + 1).max(NOW + asked.unwrap_or(0)));
        }

        #[test]
        fn a_renewal_that_fails_is_tried_again_before_the_certificate_is_over(
            life in HOUR..400 * DAY,
            failed in 1..60u32,
            dice: u64,
        ) {
            // As many tries as fit: the pause is at most an eighth of what is left at two thirds.
            let pause = may_try(&Tries { failed, last: NOW, not_before: None }, life, dice, NOW) - NOW;
            prop_assert!(pause * 3 <= life, "{pause} of {life}");
        }

        #[test]
        fn whatever_is_seen_something_is_decided_that_comes_within_reason(
            now in CLOCK_FLOOR..CLOCK_FLOOR + 4_000 * DAY,
            from in -4_000 * DAY..4_000 * DAY,
            life in 1..4_000 * DAY,
            window: Option<(i64, i64)>,
            again: i64,
            failed: u32,
            last: i64,
            not_before: Option<i64>,
        ) {
            let Wanted { names, directory } = wanted();
            let validity = Validity { from: now + from, until: now + from + life };
            let held = Some(Held { names, directory, validity, dice: again.unsigned_abs() });
            let tries = Tries { failed, last, not_before };
            let hint = Some(Hint { window, again });
            let next = decide(&Observed { now, held, tries, hint, ..fresh() });
            if let Next::Wait { until, then } = next {
                prop_assert!(until > now);
                let again = matches!(*then, Next::Wait { .. });
                prop_assert!(!again);
                prop_assert!(until - now <= LONGEST_WAIT + DAY);
            }
        }
    }
}
