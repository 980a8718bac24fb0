use std::collections::VecDeque;

use crate::Time;
use crate::families::{Families, Heard};
use crate::policy::Policy;
use crate::window::{Quality, Window};

/// How an uplink is, from the worst to the best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Condition {
    /// Its cable is out, or its interface is not there.
    NoCarrier,
    /// It has no address, or nobody who passes on.
    NoAddress,
    /// No target answers.
    Silent,
    /// Targets answer again, not yet for long.
    Answering,
    /// Targets answer, but too much is lost or late.
    Poor,
    /// As it should be.
    Good,
}

/// One uplink: what is known of it, and what follows.
#[derive(Debug, Clone)]
pub(crate) struct Uplink {
    metered: bool,
    carrier: bool,
    address: bool,
    /// Nothing was answered, and not yet enough since.
    silent: bool,
    /// Too much was lost, and not yet little enough since; outlasts silence.
    poor: bool,
    answered: u32,
    unanswered: u32,
    pub(crate) families: Families,
    window: Window,
    /// Rounds since it became poor.
    since_poor: Window,
    condition: Condition,
    /// Since when the condition is what it is.
    pub(crate) since: Time,
    /// When it stopped being good, oldest first.
    losses: VecDeque<Time>,
    pub(crate) next_round: Time,
    /// A round that is under way, and when it began.
    pub(crate) round: Option<(u64, Time)>,
}

impl Uplink {
    pub(crate) fn new(policy: &Policy, metered: bool, now: Time) -> Self {
        Self {
            metered,
            carrier: false,
            address: false,
            // Innocent until three rounds say otherwise: a box that starts must not wait.
            silent: false,
            poor: false,
            answered: 0,
            unanswered: 0,
            families: Families::default(),
            window: Window::of(policy.window),
            since_poor: Window::of(policy.recovery),
            condition: Condition::NoCarrier,
            since: now,
            losses: VecDeque::new(),
            next_round: now,
            round: None,
        }
    }

    pub(crate) fn condition(&self) -> Condition {
        self.condition
    }

    /// Whether probes can be sent at all.
    pub(crate) fn can_probe(&self) -> bool {
        self.carrier && self.address
    }

    pub(crate) fn quality(&self, policy: &Policy) -> Quality {
        self.window.last(policy.window)
    }

    pub(crate) fn away(&self, policy: &Policy) -> Vec<usize> {
        self.window.away(policy.window)
    }

    /// How often it was lost lately.
    pub(crate) fn flaps(&self) -> usize {
        self.losses.len()
    }

    pub(crate) fn set_carrier(&mut self, up: bool, policy: &Policy, now: Time) {
        if self.carrier && !up {
            self.must_prove_itself(now);
        }
        self.carrier = up;
        self.settle(policy, now);
    }

    pub(crate) fn set_address(&mut self, there: bool, policy: &Policy, now: Time) {
        if self.address && !there {
            self.must_prove_itself(now);
        }
        self.address = there;
        self.settle(policy, now);
    }

    fn must_prove_itself(&mut self, now: Time) {
        self.silent = true;
        self.answered = 0;
        self.unanswered = 0;
        // What is still under way was sent before.
        self.round = None;
        self.next_round = now;
    }

    /// What came of one round of probes; whether it has anything to say about the uplink's being there.
    pub(crate) fn take(
        &mut self,
        results: &[Option<std::time::Duration>],
        heard: [Heard; 2],
        policy: &Policy,
        now: Time,
    ) {
        if results.is_empty() {
            return;
        }
        if results.iter().any(Option::is_some) {
            self.unanswered = 0;
            // Losses of the time when nothing was there say nothing about what is there now.
            if self.silent && self.answered == 0 {
                self.window.clear();
                self.since_poor.clear();
            }
            self.answered = self.answered.saturating_add(1);
        } else {
            self.answered = 0;
            self.unanswered = self.unanswered.saturating_add(1);
        }
        self.families.take(heard, policy, now);
        self.window.take(results);
        self.since_poor.take(results);
        if self.unanswered >= policy.down_after {
            self.silent = true;
        }
        if self.silent && self.answered >= policy.up_after {
            self.silent = false;
            // Five answered rounds with holes in them are not yet a good uplink.
            let proof = self.window.last(policy.window);
            self.poor |= proof.loss_percent() > policy.recover_percent;
        }
        self.judge(policy);
        self.settle(policy, now);
    }

    /// Whether too much is lost or late, with room between the limits for yes and for no.
    fn judge(&mut self, policy: &Policy) {
        let recent = self.window.last(policy.window);
        let percent = |n: usize, of: usize| n * 100 / of.max(1);
        let full = recent.rounds >= policy.window / 2;
        let lossy = percent(recent.lost, policy.window) >= policy.fail_percent as usize;
        let late = full && recent.delay.is_some_and(|delay| delay >= policy.fail_delay);
        if (lossy || late) && !self.silent {
            if !self.poor {
                self.since_poor.clear();
            }
            self.poor = true;
            return;
        }
        let healed = self.since_poor.last(policy.recovery);
        if self.poor
            && healed.rounds >= policy.recovery
            && healed.loss_percent() <= policy.recover_percent
            && healed.delay.is_some_and(|delay| delay <= policy.recover_delay)
        {
            self.poor = false;
        }
    }

    fn settle(&mut self, policy: &Policy, now: Time) {
        let next = match () {
            () if !self.carrier => Condition::NoCarrier,
            () if !self.address => Condition::NoAddress,
            () if self.silent && self.answered >= 2 => Condition::Answering,
            () if self.silent => Condition::Silent,
            () if self.poor => Condition::Poor,
            () => Condition::Good,
        };
        self.forget(policy, now);
        if next != self.condition {
            if self.condition == Condition::Good {
                self.losses.push_back(now);
            }
            self.condition = next;
            self.since = now;
        }
    }

    pub(crate) fn forget(&mut self, policy: &Policy, now: Time) {
        let old = |at: &Time| now.saturating_sub(*at) > policy.memory;
        while self.losses.front().is_some_and(old) {
            self.losses.pop_front();
        }
    }

    /// How long after the beginning of the last round the next one may begin. Somebody pays for probes of a metered uplink; while
    /// it is a spare that works, few do.
    pub(crate) fn pace(&self, spare: bool, policy: &Policy) -> std::time::Duration {
        match () {
            () if (self.unanswered > 0 && !self.silent) || self.families.hurries(policy) => {
                policy.patience
            }
            () if spare && self.metered && self.condition == Condition::Good => {
                policy.spare_interval
            }
            () => policy.interval,
        }
    }
}
