use std::time::Duration;

use crate::Time;
use crate::families::{self, Heard};
use crate::policy::Policy;
use crate::uplink::{Condition, Uplink};
use crate::window::Quality;

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The cable is in, or out; or the interface is not there.
    Carrier {
        /// Which uplink, by its place in the order.
        uplink: usize,
        /// In.
        up: bool,
    },
    /// The uplink has an address and somebody who passes on, or not; said again when they are others.
    Address {
        /// Which uplink.
        uplink: usize,
        /// It has.
        there: bool,
    },
    /// A round of probes is over.
    Probed {
        /// Which uplink.
        uplink: usize,
        /// The round, as [`Decision::Probe`] numbered it.
        round: u64,
        /// Per target the delay, or nothing where it was lost. Empty where nothing could be asked.
        results: Vec<Option<Duration>>,
        /// The same counted for IPv4 and IPv6.
        heard: [Heard; 2],
    },
    /// Whether anybody uses the way out that is in use.
    Busy(bool),
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Send a probe to every target of this uplink.
    Probe {
        /// Which uplink.
        uplink: usize,
        /// To be told again with the results.
        round: u64,
    },
    /// New connections go out here from now on.
    Use {
        /// Which uplink.
        uplink: usize,
        /// Why.
        why: Why,
    },
    /// End the connections that hang on this uplink: they would hang for minutes otherwise.
    CutOff(usize),
    /// Of one family, new connections go out here from now on; the other one stays where it is.
    Lead {
        /// IPv6.
        six: bool,
        /// By which uplink.
        uplink: usize,
    },
    /// End the connections of one family that hang on this uplink.
    CutOffFamily {
        /// IPv6.
        six: bool,
        /// Which uplink.
        uplink: usize,
    },
    /// The world should know where the box is now.
    Announce(usize),
}

/// Why another uplink is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The box starts.
    Start,
    /// The one before is in this condition.
    Lost(Condition),
    /// This one is preferred, and good again.
    Preferred,
}

/// One uplink as people may see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// How it is.
    pub condition: Condition,
    /// Since when.
    pub since: Time,
    /// What its last rounds were like.
    pub quality: Quality,
    /// How often it was lost within the policy's memory.
    pub flaps: usize,
    /// Targets that never answer while others do.
    pub away: Vec<usize>,
    /// Whether nobody answers over IPv4, or over IPv6, while the other is well.
    pub dead: [bool; 2],
}

/// Decides which of several uplinks is used. Uplinks are named by their place in the order in which they are preferred. Time
/// goes forward and is told with every call.
#[derive(Debug, Clone)]
pub struct Machine {
    policy: Policy,
    uplinks: Vec<Uplink>,
    in_use: usize,
    /// By which uplink IPv4 and IPv6 go out.
    ways: [usize; 2],
    since: Time,
    busy: bool,
    /// Nothing was said about the way out in use yet.
    unannounced: bool,
    /// Connections hang on these, and there was no better way out so far.
    to_cut: Vec<bool>,
    rounds: u64,
    started: bool,
}

impl Machine {
    /// A machine for uplinks of which nothing is known yet, and whether each is metered. The first is in use.
    pub fn new(policy: Policy, metered: &[bool], now: Time) -> Self {
        let metered = if metered.is_empty() { &[false] } else { metered };
        let count = metered.len();
        Self {
            uplinks: metered.iter().map(|metered| Uplink::new(&policy, *metered, now)).collect(),
            policy,
            in_use: 0,
            ways: [0, 0],
            since: now,
            busy: true,
            unannounced: true,
            to_cut: vec![false; count],
            rounds: 0,
            started: false,
        }
    }

    /// Takes in what happened.
    pub fn take(&mut self, event: Event, now: Time) -> Vec<Decision> {
        let mut decisions = Vec::new();
        let before: Vec<Condition> = self.uplinks.iter().map(Uplink::condition).collect();
        match event {
            Event::Carrier { uplink, up } => {
                if let Some(it) = self.uplinks.get_mut(uplink) {
                    it.set_carrier(up, &self.policy, now);
                }
            }
            Event::Address { uplink, there } => {
                if let Some(it) = self.uplinks.get_mut(uplink) {
                    it.set_address(there, &self.policy, now);
                    self.unannounced |= there && uplink == self.in_use;
                }
            }
            Event::Probed { uplink, round, results, heard } => {
                if let Some(it) = self.uplinks.get_mut(uplink)
                    && let Some((_, begun)) = it.round.take_if(|(under_way, _)| *under_way == round)
                {
                    it.take(&results, heard, &self.policy, now);
                    let spare = uplink != self.in_use;
                    it.next_round = (begun + it.pace(spare, &self.policy)).max(now);
                    let answered = results.iter().any(Option::is_some);
                    if answered && uplink == self.in_use && self.unannounced {
                        self.unannounced = false;
                        decisions.push(Decision::Announce(uplink));
                    }
                }
            }
            Event::Busy(busy) => self.busy = busy,
        }
        for (uplink, before) in before.into_iter().enumerate() {
            let now = self.uplinks[uplink].condition();
            if now <= Condition::Silent && now < before {
                self.to_cut[uplink] = true;
            } else if now > Condition::Silent {
                self.to_cut[uplink] = false;
            }
        }
        self.settle(now, &mut decisions);
        decisions
    }

    /// Does what only time decides.
    pub fn tick(&mut self, now: Time) -> Vec<Decision> {
        let mut decisions = Vec::new();
        self.settle(now, &mut decisions);
        decisions
    }

    /// When [`tick`](Self::tick) should be called, if nothing happens before.
    pub fn next_tick(&self) -> Option<Time> {
        let idle = |u: &&Uplink| u.can_probe() && u.round.is_none();
        let rounds = self.uplinks.iter().filter(idle).map(|u| u.next_round);
        rounds.chain(self.returning().map(|(_, when)| when)).min()
    }

    /// The uplink that is used, and since when.
    pub fn in_use(&self) -> (usize, Time) {
        (self.in_use, self.since)
    }

    /// By which uplinks IPv4 and IPv6 go out: the one that is used, unless a family is dead there and lives at another one.
    pub fn ways(&self) -> [usize; 2] {
        self.ways
    }

    /// Whether it matters that anybody uses the way out: a better one waits.
    pub fn wants_to_know_busy(&self) -> bool {
        self.returning().is_some()
    }

    /// The preferred uplink to which the box will go back, and when, if all stays as it is.
    pub fn returning(&self) -> Option<(usize, Time)> {
        let current = self.uplinks[self.in_use].condition();
        let good = |(_, u): &(usize, &Uplink)| u.condition() == Condition::Good;
        let (place, better) = self.uplinks.iter().enumerate().take(self.in_use).find(good)?;
        let hold = self.policy.hold_after(better.flaps(), !self.busy);
        (current == Condition::Good).then_some((place, better.since + hold))
    }

    /// How an uplink is.
    pub fn view(&self, uplink: usize) -> Option<View> {
        let it = self.uplinks.get(uplink)?;
        Some(View {
            condition: it.condition(),
            since: it.since,
            quality: it.quality(&self.policy),
            flaps: it.flaps(),
            away: it.away(&self.policy),
            dead: it.families.dead(),
        })
    }

    fn settle(&mut self, now: Time, decisions: &mut Vec<Decision>) {
        for uplink in &mut self.uplinks {
            uplink.forget(&self.policy, now);
        }
        self.choose(now, decisions);
        self.lead(decisions);
        self.hasten(now);
        // Where a better way is in use, nothing should hang on a worse one.
        if self.uplinks[self.in_use].condition() > Condition::Silent {
            for uplink in 0..self.uplinks.len() {
                if uplink != self.in_use && std::mem::take(&mut self.to_cut[uplink]) {
                    decisions.push(Decision::CutOff(uplink));
                }
            }
        }
        for uplink in 0..self.uplinks.len() {
            let it = &mut self.uplinks[uplink];
            if it.can_probe() && it.round.is_none() && it.next_round <= now {
                self.rounds += 1;
                it.round = Some((self.rounds, now));
                decisions.push(Decision::Probe { uplink, round: self.rounds });
            }
        }
    }

    /// While the one in use is not as it should be, what is known of the others must be fresh.
    fn hasten(&mut self, now: Time) {
        if self.uplinks[self.in_use].condition() != Condition::Good {
            for uplink in &mut self.uplinks {
                uplink.next_round = uplink.next_round.min(now + self.policy.interval);
            }
        }
    }

    /// Leads a family that is dead here out by another uplink, and back.
    fn lead(&mut self, decisions: &mut Vec<Decision>) {
        let seen: Vec<_> = self.uplinks.iter().map(|u| (u.condition(), &u.families)).collect();
        let ways = families::ways(self.in_use, &seen);
        for six in [false, true] {
            let (before, now) = (self.ways[usize::from(six)], ways[usize::from(six)]);
            let apart = |way| way != self.in_use;
            // Where the whole box goes another way, that was said.
            if before == now || !(apart(now) || self.uplinks[now].families.came_back(six)) {
                continue;
            }
            decisions.push(Decision::Lead { six, uplink: now });
            self.unannounced = true;
            if self.uplinks[self.in_use].families.dead()[usize::from(six)] {
                decisions.push(Decision::CutOffFamily { six, uplink: self.in_use });
            }
        }
        self.ways = ways;
    }

    fn choose(&mut self, now: Time, decisions: &mut Vec<Decision>) {
        let current = self.uplinks[self.in_use].condition();
        // Of equals the preferred one; max_by_key would give the last.
        let best = (0..self.uplinks.len()).rev().max_by_key(|n| self.uplinks[*n].condition());
        let best = best.expect("there is at least one uplink");
        if self.uplinks[best].condition() > current {
            let why = if self.started { Why::Lost(current) } else { Why::Start };
            self.go(best, why, now, decisions);
        } else if let Some((preferred, when)) = self.returning()
            && when <= now
        {
            self.go(preferred, Why::Preferred, now, decisions);
        } else if !self.started && current > Condition::NoAddress {
            decisions.push(Decision::Use { uplink: self.in_use, why: Why::Start });
        }
        self.started |= self.uplinks[self.in_use].condition() > Condition::NoAddress;
    }

    fn go(&mut self, uplink: usize, why: Why, now: Time, decisions: &mut Vec<Decision>) {
        self.in_use = uplink;
        self.since = now;
        self.unannounced = true;
        // Asked again about the new way out.
        self.busy = true;
        decisions.push(Decision::Use { uplink, why });
    }
}
