use std::collections::{BTreeMap, BTreeSet};

use crate::{Cents, Entry, EntryId, Kind, Month, split};

/// Sums over all that was written down.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Books {
    /// What the fund has.
    pub fund: Cents,
    /// What each member has paid more than they owe; less than nothing where they owe.
    pub members: BTreeMap<i64, Cents>,
    /// What was taken back by another entry.
    pub corrected: BTreeSet<EntryId>,
}

impl Books {
    /// Of these entries.
    pub fn of<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Self {
        let mut books = Self::default();
        for entry in entries {
            let what = &entry.what;
            books.fund = books.fund + what.kind.to_fund(what.amount);
            if let Some(member) = what.member {
                let balance = books.members.entry(member).or_default();
                *balance = *balance + what.kind.to_member(what.amount);
            }
            books.corrected.extend(what.corrects);
        }
        books
    }

    /// What one member has; nothing where nothing was written down.
    pub fn of_member(&self, member: i64) -> Cents {
        self.members.get(&member).copied().unwrap_or_default()
    }
}

/// By what the cost of a month is split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Basis {
    /// Every member the same.
    Equally,
    /// By tokens that each used: all of them agreed to that.
    Usage(BTreeMap<i64, u64>),
}

/// One member's part of a month.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Who.
    pub member: i64,
    /// How much.
    pub amount: Cents,
}

/// Each member's part of what a month cost, as far as that was not split yet. By usage only if every one of them agreed for the
/// month, and something was used. Nothing where nothing is left to be split.
pub fn shares<'a>(
    entries: impl IntoIterator<Item = &'a Entry>,
    month: Month,
    members: &[i64],
    agreed: &BTreeSet<i64>,
    used: Option<&BTreeMap<i64, u64>>,
) -> (Basis, Vec<Share>) {
    let mut left = Cents(0);
    for entry in entries {
        let what = &entry.what;
        let for_it = what.month.unwrap_or(Month::of(what.day)) == month;
        left = match what.kind {
            Kind::Cost if for_it => left + what.amount,
            Kind::Share if for_it => left - what.amount,
            _ => left,
        };
    }
    let of = |member: &i64| used.and_then(|used| used.get(member)).copied().unwrap_or(0);
    let all_agree = !members.is_empty() && members.iter().all(|member| agreed.contains(member));
    let usage = used.is_some() && all_agree && members.iter().any(|member| of(member) > 0);
    let (basis, weights): (Basis, Vec<u64>) = match usage {
        true => {
            let used = members.iter().map(|member| (*member, of(member))).collect();
            (Basis::Usage(used), members.iter().map(of).collect())
        }
        false => (Basis::Equally, vec![1; members.len()]),
    };
    // Less than nothing is left where a cost was taken back after it was split: then it goes back.
    let parts = match left.0 {
        0 => Vec::new(),
        _ => split(left, &weights),
    };
    let parts = members.iter().zip(parts).map(|(member, amount)| Share { member: *member, amount });
    (basis, parts.filter(|share| share.amount != Cents(0)).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::NewEntry;

    fn day() -> jiff::civil::Date {
        "2026-11-27".parse().unwrap()
    }

    fn book(entries: &[NewEntry]) -> Vec<Entry> {
        let entry = |(n, what): (usize, &NewEntry)| Entry {
            id: EntryId(n as i64 + 1),
            what: what.clone(),
            by: 1,
            at: 0,
        };
        entries.iter().enumerate().map(entry).collect()
    }

    fn of(kind: Kind, member: Option<i64>, cents: i64) -> NewEntry {
        NewEntry::of(kind, day(), member, Cents(cents))
    }

    #[test]
    fn usage_counts_only_when_every_member_agreed() {
        let month = Month::of(day());
        let entries = book(&[of(Kind::Cost, None, 100)]);
        let used: BTreeMap<i64, u64> = [(1, 90), (2, 10)].into();
        let parts = |agreed: &[i64], used: Option<&BTreeMap<i64, u64>>| {
            let agreed = agreed.iter().copied().collect();
            let (_, parts) = shares(&entries, month, &[1, 2], &agreed, used);
            parts.into_iter().map(|share| share.amount.0).collect::<Vec<_>>()
        };
        assert_eq!(parts(&[1], Some(&used)), [50, 50]);
        assert_eq!(parts(&[1, 2], Some(&used)), [90, 10]);
        assert_eq!(parts(&[1, 2], None), [50, 50], "nothing is counted");
        assert_eq!(parts(&[1, 2], Some(&BTreeMap::new())), [50, 50], "nothing was used");
    }

    #[test]
    fn a_month_is_split_once_and_what_came_later_is_split_too() {
        let month = Month::of(day());
        let none = BTreeSet::new();
        let mut what = vec![of(Kind::Cost, None, 101)];
        let split = |what: &[NewEntry]| shares(&book(what), month, &[1, 2], &none, None).1;
        for share in split(&what) {
            what.push(of(Kind::Share, Some(share.member), share.amount.0));
        }
        assert_eq!(what.len(), 3);
        assert_eq!(split(&what), []);
        what.push(of(Kind::Cost, None, 9));
        assert_eq!(split(&what).iter().map(|s| s.amount.0).sum::<i64>(), 9);
        let other =
            NewEntry { month: Some("2026-10".parse().unwrap()), ..of(Kind::Cost, None, 50) };
        what.push(other);
        assert_eq!(split(&what).iter().map(|s| s.amount.0).sum::<i64>(), 9, "another month");
        what.push(book(&what)[0].taken_back(day(), String::new()));
        let back = split(&what);
        assert_eq!(
            back.iter().map(|s| s.amount.0).sum::<i64>(),
            9 - 101,
            "what was split goes back"
        );
        assert!(back.iter().all(|s| of(Kind::Share, Some(s.member), s.amount.0).check().is_ok()));
    }

    fn entries() -> impl Strategy<Value = Vec<NewEntry>> {
        let one = (0..5_usize, 1_i64..6, 1..Cents::MOST, any::<bool>()).prop_map(
            |(kind, member, cents, negative)| {
                let kind = Kind::ALL[kind];
                let cents = if kind == Kind::Fund && negative { -cents } else { cents };
                of(kind, kind.has_member().then_some(member), cents)
            },
        );
        prop::collection::vec(one, 0..40)
    }

    proptest! {
        #[test]
        fn sums_always_match(what in entries()) {
            let entries = book(&what);
            let books = Books::of(&entries);
            let sum = |kind: Kind| entries.iter().filter(|e| e.what.kind == kind).map(|e| e.what.amount).sum::<Cents>();
            prop_assert_eq!(books.fund, sum(Kind::Payment) + sum(Kind::Fund) - sum(Kind::Cost));
            let members: Cents = books.members.values().copied().sum();
            prop_assert_eq!(members, sum(Kind::Payment) - sum(Kind::Dues) - sum(Kind::Share));
        }

        #[test]
        fn what_is_taken_back_is_as_if_it_had_never_been(what in entries(), which in any::<prop::sample::Index>()) {
            prop_assume!(!what.is_empty());
            let entries = book(&what);
            let which = which.index(what.len());
            let mut after = what.clone();
            after.push(entries[which].taken_back(day(), String::new()));
            prop_assert!(after[what.len()].check().is_ok());
            let mut without = what.clone();
            without.remove(which);
            let (after, without) = (Books::of(&book(&after)), Books::of(&book(&without)));
            prop_assert_eq!(after.fund, without.fund);
            for member in 1..6 {
                prop_assert_eq!(after.of_member(member), without.of_member(member));
            }
        }

        #[test]
        fn a_month_splits_to_the_cent_by_whatever(
            what in entries(), members in prop::collection::btree_set(1_i64..9, 1..6),
            agreed in prop::collection::btree_set(1_i64..9, 0..9),
            used in prop::collection::btree_map(1_i64..9, any::<u64>(), 0..9),
        ) {
            let month = Month::of(day());
            let entries = book(&what);
            let members: Vec<i64> = members.into_iter().collect();
            let (_, parts) = shares(&entries, month, &members, &agreed, Some(&used));
            let sum = |kind: Kind| entries.iter().filter(|e| e.what.kind == kind).map(|e| e.what.amount).sum::<Cents>();
            let left = sum(Kind::Cost) - sum(Kind::Share);
            let given: Cents = parts.iter().map(|share| share.amount).sum();
            // Less than nothing goes back.
            prop_assert_eq!(given, left);
        }
    }
}
