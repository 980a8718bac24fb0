//! How much work each member gets: as much as others in proportion to their weight, and first
//! whoever had least.
//!
//! Deficit round robin: each member has an account of the work done for them, divided by their weight, and a step's reading goes to
//! whoever is furthest behind. Those who are level take turns from step to step instead of each reading a little in every one: a
//! share, however small, walks over all of its own text's history, and twenty of them would do little else. Whoever was away comes back at most [`Accounts::credit`]
//! behind the one who waits longest, so that a question is read at once beside somebody's books, and
//! nobody can save up time.

use std::collections::HashMap;

use crate::request::MemberId;

#[derive(Debug, Clone, Copy)]
struct Account {
    used: f64,
    /// Steps in a row in which the member's answers did not go on.
    held: u8,
}

/// The work done for each member.
#[derive(Debug)]
pub(crate) struct Accounts {
    of: HashMap<MemberId, Account>,
    /// What the active member who is furthest behind has used; it never goes back.
    clock: f64,
    credit: f64,
}

impl Accounts {
    /// Nobody has used anything.
    pub(crate) fn new(credit: f64) -> Self {
        Self { of: HashMap::new(), clock: 0.0, credit }
    }

    /// These members have something to do now, and no others.
    pub(crate) fn settle<'a>(&mut self, active: impl Iterator<Item = &'a MemberId> + Clone) {
        let back = self.clock - self.credit;
        let (mut least, mut most) = (f64::INFINITY, f64::NEG_INFINITY);
        for member in active.clone() {
            let account = match self.of.get_mut(member) {
                Some(account) => account,
                None => self.of.entry(member.clone()).or_insert(Account { used: back, held: 0 }),
            };
            account.used = account.used.max(back);
            (least, most) = (least.min(account.used), most.max(account.used));
        }
        if most == f64::NEG_INFINITY {
            return;
        }
        // Where all of them were away, nobody is there to be behind of; the next one who comes is behind of them.
        let raise = (self.clock - most).max(0.0);
        if raise > 0.0 {
            for (member, account) in &mut self.of {
                if active.clone().any(|other| other == member) {
                    account.used += raise;
                }
            }
        }
        self.clock = self.clock.max(least + raise);
        // Whoever is further behind than anybody can come back need not be remembered.
        let gone = self.clock - self.credit;
        if self.of.values().any(|account| account.used <= gone) {
            let active: Vec<&MemberId> = active.collect();
            self.of.retain(|member, account| account.used > gone || active.contains(&member));
        }
    }

    /// Work done for a member, over their weight.
    pub(crate) fn used(&self, member: &MemberId) -> f64 {
        self.of.get(member).map_or(self.clock - self.credit, |account| account.used)
    }

    /// Work is done for an active member.
    pub(crate) fn spend(&mut self, member: &MemberId, work: f64, weight: f64) {
        if let Some(account) = self.of.get_mut(member) {
            account.used += work / weight;
        }
    }

    /// Whether a member's answers, which take `work` of a step of `step`, stand still in this step so
    /// that somebody who is behind by much is read sooner: only where it saves a good part of the step,
    /// and in at most [`MOST_HELD`] steps in a row.
    pub(crate) fn holds(&mut self, member: &MemberId, work: f64, step: f64, least: f64) -> bool {
        let credit = self.credit;
        let Some(account) = self.of.get_mut(member) else { return false };
        let holds =
            work > step / 4.0 && account.used > least + credit / 2.0 && account.held < MOST_HELD;
        account.held = if holds { account.held + 1 } else { 0 };
        holds
    }
}

/// An answer goes on at least in every so-and-so-many-and-first step.
const MOST_HELD: u8 = 3;

/// What one member could use of a step.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Demand {
    pub(crate) used: f64,
    pub(crate) weight: f64,
    /// Work that there is.
    pub(crate) need: f64,
    /// Work that they get.
    pub(crate) gets: f64,
}

/// Who reads in this step: those furthest behind, as many as there is work for, and whoever needs so little that it costs no turn.
/// A member who is passed over is further behind in the next step. A turn takes nobody further ahead than a whole step does a member of
/// the usual weight, so that whoever has a small share is not away for as long as it would take to make up for one.
pub(crate) fn turns(demands: &mut [Demand], budget: f64) {
    /// This part of a step's reading is little.
    const LITTLE: f64 = 1.0 / 16.0;
    let mut order: Vec<usize> = (0..demands.len()).collect();
    order.sort_by(|a, b| demands[*a].used.total_cmp(&demands[*b].used));
    let turn = |demand: &Demand| demand.need.min(budget * demand.weight);
    if demands.iter().map(turn).sum::<f64>() <= budget {
        return;
    }
    let mut covered = 0.0;
    for index in order {
        let demand = &mut demands[index];
        demand.need = match covered >= budget && demand.need > budget * LITTLE {
            true => 0.0,
            false => turn(demand),
        };
        covered += demand.need;
    }
}

/// Gives the budget to whoever is furthest behind, until they are level with the next, and so on.
pub(crate) fn fill(demands: &mut [Demand], mut budget: f64) {
    /// Differences that are only rounding.
    const LEVEL: f64 = 1e-6;
    let level = |d: &Demand| d.used + d.gets / d.weight;
    let open = |d: &Demand| d.need - d.gets > LEVEL;
    while budget > LEVEL {
        let least = demands.iter().filter(|d| open(d)).map(level).fold(f64::INFINITY, f64::min);
        if least == f64::INFINITY {
            return;
        }
        let behind = |d: &Demand| open(d) && level(d) <= least + LEVEL;
        let weights: f64 = demands.iter().filter(|d| behind(d)).map(|d| d.weight).sum();
        // As far as the next one's level, the first one's need, or the end of the budget.
        let next = demands.iter().filter(|d| open(d) && !behind(d)).map(level);
        let to_next = next.fold(f64::INFINITY, f64::min) - least;
        let needs = demands.iter().filter(|d| behind(d));
        let to_need = needs.map(|d| (d.need - d.gets) / d.weight).fold(f64::INFINITY, f64::min);
        let rise = to_next.min(to_need).min(budget / weights);
        let raised: Vec<bool> = demands.iter().map(behind).collect();
        for (demand, raised) in demands.iter_mut().zip(raised) {
            if raised {
                demand.gets += rise * demand.weight;
            }
        }
        budget -= rise * weights;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn demand(used: f64, weight: f64, need: f64) -> Demand {
        Demand { used, weight, need, gets: 0.0 }
    }

    fn filled(mut demands: Vec<Demand>, budget: f64) -> Vec<f64> {
        fill(&mut demands, budget);
        demands.iter().map(|d| (d.gets * 1e3).round() / 1e3).collect()
    }

    #[test]
    fn whoever_is_behind_gets_all_until_they_are_level() {
        let two = |behind| vec![demand(behind, 1.0, 1e9), demand(0.0, 1.0, 1e9)];
        assert_eq!(filled(two(-600.0), 512.0), [512.0, 0.0]);
        assert_eq!(filled(two(-100.0), 512.0), [306.0, 206.0]);
        assert_eq!(filled(two(0.0), 512.0), [256.0, 256.0]);
    }

    #[test]
    fn a_weight_of_two_gets_twice_as_much_and_what_nobody_needs_goes_to_others() {
        assert_eq!(
            filled(vec![demand(0.0, 2.0, 1e9), demand(0.0, 1.0, 1e9)], 300.0),
            [200.0, 100.0]
        );
        assert_eq!(
            filled(vec![demand(0.0, 1.0, 20.0), demand(9.0, 1.0, 1e9)], 300.0),
            [20.0, 280.0]
        );
        assert_eq!(filled(vec![demand(0.0, 1.0, 5.0)], 300.0), [5.0]);
    }

    #[test]
    fn those_who_are_level_read_one_after_the_other_and_a_short_prompt_beside_them() {
        let mut accounts = [0.0; 4];
        let needs = [5000.0, 5000.0, 5000.0, 3.0];
        let mut read = Vec::new();
        for _ in 0..3 {
            let mut demands: Vec<Demand> =
                accounts.iter().zip(needs).map(|(used, need)| demand(*used, 1.0, need)).collect();
            turns(&mut demands, 100.0);
            fill(&mut demands, 100.0);
            read.push(demands.iter().map(|d| d.gets.round()).collect::<Vec<_>>());
            for (used, demand) in accounts.iter_mut().zip(&demands) {
                *used += demand.gets;
            }
        }
        assert_eq!(read[0], [97.0, 0.0, 0.0, 3.0]);
        assert_eq!((read[1][1], read[2][2]), (97.0, 97.0));
        // What one does not need goes on to the next.
        let mut demands =
            [demand(0.0, 1.0, 30.0), demand(1.0, 1.0, 900.0), demand(2.0, 1.0, 900.0)];
        turns(&mut demands, 100.0);
        fill(&mut demands, 100.0);
        assert_eq!(demands.map(|d| d.gets), [30.0, 70.0, 0.0]);
    }

    proptest! {
        #[test]
        fn all_of_the_budget_is_given_and_nobody_is_passed_who_could_use_more(
            all in prop::collection::vec((-5000.0f64..5000.0, 0.2f64..5.0, 0.0f64..4000.0), 1..20),
            budget in 0.0f64..3000.0,
        ) {
            let mut demands: Vec<Demand> =
                all.into_iter().map(|(used, weight, need)| demand(used, weight, need)).collect();
            fill(&mut demands, budget);
            let given: f64 = demands.iter().map(|d| d.gets).sum();
            let need: f64 = demands.iter().map(|d| d.need).sum();
            prop_assert!((given - budget.min(need)).abs() < 0.01, "{} of {}", given, budget);
            let level = |d: &Demand| d.used + d.gets / d.weight;
            for got in demands.iter().filter(|d| d.gets > 0.01) {
                for other in demands.iter().filter(|d| d.need - d.gets > 0.01) {
                    prop_assert!(level(got) <= level(other) + 0.01);
                }
            }
        }

        #[test]
        fn over_time_members_who_always_want_more_get_work_by_their_weights(
            weights in prop::collection::vec(0.5f64..6.0, 2..8),
            late in 0usize..300,
        ) {
            let names: Vec<MemberId> =
                (0..weights.len()).map(|n| MemberId::new(format!("m{n}"))).collect();
            let mut accounts = Accounts::new(4096.0);
            let mut had = vec![0.0; weights.len()];
            let mut read = vec![0; weights.len()];
            for step in 0..4000 {
                // The first one comes later and must not get what was before.
                let from = usize::from(step < late);
                accounts.settle(names[from..].iter());
                let mut demands: Vec<Demand> = (from..weights.len())
                    .map(|n| demand(accounts.used(&names[n]), weights[n], 1e9))
                    .collect();
                turns(&mut demands, 512.0);
                fill(&mut demands, 512.0);
                for (n, d) in (from..).zip(&demands) {
                    accounts.spend(&names[n], d.gets, weights[n]);
                    if d.gets > 0.0 { read[n] = step; }
                    // Until the others have had as much as a turn gave: but while the first one comes, and is read until they are level.
                    let longest = weights.iter().sum::<f64>() as usize + 4;
                    let comes = (late..late + 200).contains(&step);
                    prop_assert!(comes || step - read[n] <= longest, "{} waits {}", n, step - read[n]);
                    if step >= late { had[n] += d.gets / weights[n]; }
                }
            }
            let (least, most) = had.iter().fold((f64::MAX, 0.0f64), |(a, b), h| (a.min(*h), b.max(*h)));
            // Apart by what they may come back with, by a step that the one with the least weight had alone, and by a turn of the other's.
            let step = 512.0 / weights.iter().copied().fold(f64::MAX, f64::min);
            prop_assert!(most - least < 4096.0 + step + 512.0 + 1.0, "{:?}", had);
        }
    }

    #[test]
    fn nobody_saves_up_more_than_the_credit_and_nobody_away_is_remembered_for_ever() {
        let (ada, bob) = (MemberId::new("ada"), MemberId::new("bob"));
        let mut accounts = Accounts::new(100.0);
        accounts.settle([&ada, &bob].into_iter());
        accounts.spend(&bob, 50.0, 1.0);
        accounts.settle([&ada].into_iter());
        accounts.spend(&ada, 1000.0, 1.0);
        accounts.settle([&ada].into_iter());
        assert_eq!(accounts.of.len(), 1);
        accounts.settle([&ada, &bob].into_iter());
        assert_eq!(accounts.used(&bob), accounts.used(&ada) - 100.0);
        // Who was away for a moment only comes back with what they owe.
        accounts.spend(&bob, 300.0, 1.0);
        let owes = accounts.used(&bob);
        accounts.settle([&ada].into_iter());
        accounts.settle([&ada, &bob].into_iter());
        assert_eq!(accounts.used(&bob), owes);
    }

    #[test]
    fn an_answer_stands_still_for_a_few_steps_and_only_where_that_saves_much() {
        let (ada, bob) = (MemberId::new("ada"), MemberId::new("bob"));
        let mut accounts = Accounts::new(100.0);
        accounts.settle([&ada].into_iter());
        accounts.spend(&ada, 500.0, 1.0);
        accounts.settle([&ada].into_iter());
        accounts.settle([&ada, &bob].into_iter());
        let least = accounts.used(&bob);
        let mut held = |work| accounts.holds(&ada, work, 512.0, least);
        assert!(!held(100.0));
        assert_eq!([0; 5].map(|_| held(200.0)), [true, true, true, false, true]);
        assert!(!accounts.holds(&bob, 200.0, 512.0, least));
    }
}
