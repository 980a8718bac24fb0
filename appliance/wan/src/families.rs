//! IPv4 and IPv6 of one uplink: which of them is dead while the other is well, and where its traffic goes meanwhile. Pure.

use std::collections::VecDeque;

use crate::Time;
use crate::policy::Policy;
use crate::uplink::Condition;

/// Of one family, in one round of probes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Heard {
    /// Targets that were asked.
    pub asked: usize,
    /// Those that answered.
    pub answered: usize,
}

/// As many targets of a family must be asked before their silence says something about the family, and not about a target.
const ENOUGH: usize = 2;
/// A family that dies again and again is watched for at most so many times longer.
const MOST_DOUBLINGS: u32 = 8;

/// What is known of both families of one uplink. At most one of them is dead: where neither answers, the uplink is silent.
#[derive(Debug, Clone, Default)]
pub(crate) struct Families {
    each: [One; 2],
}

#[derive(Debug, Clone, Default)]
struct One {
    dead: bool,
    /// Rounds in a row.
    answered: u32,
    unanswered: u32,
    /// When it died, oldest first.
    deaths: VecDeque<Time>,
}

impl Families {
    /// What came of a round.
    pub(crate) fn take(&mut self, heard: [Heard; 2], policy: &Policy, now: Time) {
        for (at, Heard { asked, answered }) in heard.into_iter().enumerate() {
            let other_is_well = heard[1 - at].answered > 0 && !self.each[1 - at].dead;
            let one = &mut self.each[at];
            while one.deaths.front().is_some_and(|at| now.saturating_sub(*at) > policy.memory) {
                one.deaths.pop_front();
            }
            if asked == 0 {
                // It is not there at all: nothing of it is dead, and nothing answers.
                (one.dead, one.answered, one.unanswered) = (false, 0, 0);
            } else if answered > 0 {
                one.unanswered = 0;
                one.answered = one.answered.saturating_add(1);
                if one.answered >= one.proof(policy) {
                    one.dead = false;
                }
            } else {
                one.answered = 0;
                if other_is_well && asked >= ENOUGH && !one.dead {
                    one.unanswered = one.unanswered.saturating_add(1);
                    if one.unanswered >= policy.down_after {
                        one.dead = true;
                        one.deaths.push_back(now);
                    }
                }
            }
        }
    }

    /// IPv4, IPv6.
    pub(crate) fn dead(&self) -> [bool; 2] {
        [self.each[0].dead, self.each[1].dead]
    }

    /// Whether it answers here just now.
    fn lives(&self, six: bool) -> bool {
        let one = &self.each[usize::from(six)];
        !one.dead && one.answered > 0
    }

    /// Whether it was dead lately, and is not any more.
    pub(crate) fn came_back(&self, six: bool) -> bool {
        let one = &self.each[usize::from(six)];
        !one.dead && !one.deaths.is_empty()
    }

    /// Whether the next round should come soon: one of them may be dead.
    pub(crate) fn hurries(&self, policy: &Policy) -> bool {
        self.each.iter().any(|one| !one.dead && (1..policy.down_after).contains(&one.unanswered))
    }
}

impl One {
    /// Rounds that must be answered before it is not dead any more.
    fn proof(&self, policy: &Policy) -> u32 {
        let doublings = u32::try_from(self.deaths.len().saturating_sub(1)).unwrap_or(u32::MAX);
        policy.up_after << doublings.min(MOST_DOUBLINGS)
    }
}

/// By which uplinks IPv4 and IPv6 go out. The one in use has both; a family that is dead there goes by the best other uplink at which
/// it answers, the preferred one of equals, and stays where there is none. What the one in use never had stays unreachable: programs
/// take the other family, and nothing is spent on a spare.
pub(crate) fn ways(in_use: usize, uplinks: &[(Condition, &Families)]) -> [usize; 2] {
    [false, true].map(|six| {
        if !uplinks[in_use].1.dead()[usize::from(six)] {
            return in_use;
        }
        let fits = |n: &usize| {
            let (condition, families) = &uplinks[*n];
            *n != in_use && *condition >= Condition::Poor && families.lives(six)
        };
        // max_by_key gives the last of equals.
        let others = (0..uplinks.len()).rev().filter(fits);
        others.max_by_key(|n| uplinks[*n].0).unwrap_or(in_use)
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn heard(four: usize, six: usize) -> [Heard; 2] {
        [four, six].map(|answered| Heard { asked: 2, answered })
    }

    /// What is known after these rounds, a second each.
    fn after(rounds: &[[Heard; 2]]) -> Families {
        let mut families = Families::default();
        for (second, heard) in (0..).zip(rounds) {
            families.take(*heard, &Policy::default(), Duration::from_secs(second));
        }
        families
    }

    #[test]
    fn a_family_is_dead_after_three_rounds_in_which_the_other_one_answers_and_back_after_five() {
        let died = [[heard(2, 2); 2].to_vec(), [heard(1, 0); 3].to_vec()].concat();
        assert_eq!(after(&died[..4]).dead(), [false, false]);
        assert!(after(&died[..4]).hurries(&Policy::default()));
        assert_eq!(after(&died).dead(), [false, true]);
        let back = [died.clone(), [heard(2, 1); 4].to_vec()].concat();
        assert_eq!(after(&back).dead(), [false, true]);
        let back = [back, vec![heard(2, 1)]].concat();
        assert_eq!(after(&back).dead(), [false, false]);
        // Each time that it dies it is watched for longer.
        let again = [back, [heard(2, 0); 3].to_vec(), [heard(2, 2); 9].to_vec()].concat();
        assert_eq!(after(&again).dead(), [false, true]);
        assert_eq!(after(&[again, vec![heard(2, 2)]].concat()).dead(), [false, false]);
    }

    #[test]
    fn silence_of_everything_of_one_target_or_of_what_is_not_there_kills_no_family() {
        assert_eq!(after(&[heard(0, 0); 9]).dead(), [false, false]);
        let one_target = [Heard { asked: 2, answered: 2 }, Heard { asked: 1, answered: 0 }];
        assert_eq!(after(&[one_target; 9]).dead(), [false, false]);
        let none = [Heard { asked: 2, answered: 2 }, Heard::default()];
        assert_eq!(after(&[none; 9]).dead(), [false, false]);
        let gone = [[heard(2, 0); 3].to_vec(), vec![none]].concat();
        assert_eq!(after(&gone).dead(), [false, false]);
    }

    #[test]
    fn what_is_dead_goes_by_the_best_other_way_at_which_it_answers_and_else_stays() {
        let (well, half, four) = (after(&[heard(2, 2)]), after(&[heard(2, 0); 3]), {
            after(&[[Heard { asked: 2, answered: 2 }, Heard::default()]])
        });
        let of = |in_use, list: &[(Condition, &Families)]| ways(in_use, list);
        let (good, poor, silent) = (Condition::Good, Condition::Poor, Condition::Silent);
        assert_eq!(of(0, &[(good, &well), (good, &well)]), [0, 0]);
        assert_eq!(of(0, &[(good, &half), (good, &well)]), [0, 1]);
        assert_eq!(of(0, &[(good, &half), (good, &four)]), [0, 0]);
        assert_eq!(of(0, &[(good, &half), (silent, &well)]), [0, 0]);
        assert_eq!(of(1, &[(poor, &well), (good, &half), (good, &well)]), [1, 2]);
        assert_eq!(of(2, &[(good, &well), (good, &well), (good, &half)]), [2, 0]);
        // What the one in use never had is nobody's loss.
        assert_eq!(of(0, &[(good, &four), (good, &well)]), [0, 0]);
    }

    fn a_round() -> impl Strategy<Value = [Heard; 2]> {
        let one = || {
            (0..4usize, 0..4usize)
                .prop_map(|(asked, answered)| Heard { asked, answered: answered.min(asked) })
        };
        [one(), one()]
    }

    proptest! {
        #[test]
        fn at_most_one_family_is_dead_and_no_family_goes_where_it_does_not_answer(
            stories in prop::collection::vec(prop::collection::vec(a_round(), 0..60), 1..4), in_use in 0..4usize,
        ) {
            let all: Vec<Families> = stories.iter().map(|story| after(story)).collect();
            let seen: Vec<_> = all.iter().map(|families| (Condition::Good, families)).collect();
            let in_use = in_use % all.len();
            for families in &all {
                prop_assert!(families.dead() != [true, true]);
            }
            for (six, way) in [false, true].into_iter().zip(ways(in_use, &seen)) {
                let dead = all[in_use].dead()[usize::from(six)];
                prop_assert!(way == in_use || (dead && all[way].lives(six)));
            }
        }
    }
}
