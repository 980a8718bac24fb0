//! What to do now: a pure function of what the UPS says, of what it said before, and of how far things have gone.
//!
//! Phases only go forward while the mains is away. When it comes back, the box goes back to [`PowerPhase::Mains`] from every
//! phase before the UPS was told, and from none after it. In between there is nothing: a box that has begun to stop
//! its parts either starts them all again or turns the machine off.

use std::time::Duration;

use polder_control::PowerPhase;
use polder_site::{PowerPlan, UpsRole};

use crate::reading::Reading;

/// When to do what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// On battery for this long, it saves.
    pub save_after: Duration,
    /// At this charge it stops.
    pub low_charge: u8,
    /// From this charge on engines may start.
    pub start_charge: u8,
    /// What its parts need at most to end properly.
    pub drain: Duration,
    /// What other machines have to leave upsd, after they were told; nothing where this box tells nobody.
    pub others: Duration,
    /// Between the last of them leaving upsd and its power going, beyond that: upsmon leaves before its machine has stopped.
    pub others_halt: Duration,
    /// What the machine itself needs to go down.
    pub halt: Duration,
    /// What the battery shall still last beyond all that.
    pub margin: Duration,
    /// A UPS on battery that is not heard of for this long may be empty.
    pub silence: Duration,
    /// A UPS that gives no figures is trusted on battery for this long.
    pub blind: Duration,
    /// "Low battery" against figures that say otherwise is believed after this long.
    pub doubt: Duration,
    /// The mains has to be back for this long before parts that were told to stop are started again.
    pub steady: Duration,
    /// After the box started, its battery is not tested for this long.
    pub settled: Duration,
    /// Nor before the mains was there for this long without a break.
    pub calm: Duration,
}

impl Rules {
    /// Those of a plan.
    pub fn of(plan: &PowerPlan) -> Self {
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        let told = |time: u32| match plan.role {
            UpsRole::Primary => seconds(time),
            UpsRole::Secondary => Duration::ZERO,
        };
        Self {
            save_after: seconds(plan.save_after),
            low_charge: plan.low_charge,
            start_charge: plan.start_charge,
            drain: seconds(45),
            others: told(plan.others),
            others_halt: told(plan.others_halt),
            halt: seconds(30),
            margin: seconds(plan.margin),
            silence: seconds(15),
            blind: seconds(120),
            doubt: seconds(30),
            steady: seconds(10),
            settled: seconds(24 * 3600),
            calm: seconds(3600),
        }
    }

    /// What stopping takes at most, from its first moment to the machine's last.
    pub fn stopping(&self) -> Duration {
        self.drain + self.waiting() + self.halt
    }

    /// What other machines have at most, from when they are told to when they are off.
    fn waiting(&self) -> Duration {
        self.others + self.others_halt
    }

    fn need(&self) -> Duration {
        self.stopping() + self.margin
    }
}

/// What is known about the UPS at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// What it said last; none before it was ever heard.
    pub last: Option<Reading>,
    /// Since when that is so: zero where it was heard just now.
    pub silent: Duration,
    /// For how long it has been on battery, without a break.
    pub on_battery: Duration,
    /// For how long the mains has been there, without a break.
    pub on_mains: Duration,
    /// For how long the UPS has called its battery low.
    pub low: Duration,
}

impl Seen {
    fn needs_battery(&self) -> bool {
        self.last.as_ref().is_some_and(|last| last.flags.needs_battery())
    }

    /// What the battery has left: its own count, less the time since it said so.
    pub fn left(&self) -> Option<Duration> {
        let runtime = self.last.as_ref()?.runtime?;
        Some(runtime.saturating_sub(self.silent))
    }
}

/// How far those have come who were asked to end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Done {
    /// For how long the box has been in this phase.
    pub in_phase: Duration,
    /// All parts that answer people have ended.
    pub drained: bool,
    /// Other machines that upsd still counts.
    pub others: u32,
    /// Since when there are none, where there were any; upsmon leaves before its machine has stopped.
    pub left: Option<Duration>,
}

/// Why a phase is what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The mains is there.
    Mains,
    /// Nothing was ever heard of the UPS.
    Unheard,
    /// The UPS is silent, and was on mains.
    SilentOnMains,
    /// It is on battery.
    Battery,
    /// It has been so for a while.
    Long,
    /// It lasts long enough for nothing but stopping.
    Runtime,
    /// So does its charge.
    Charge,
    /// It calls its battery low.
    Low,
    /// It calls its battery low, and its figures say otherwise.
    LowInDoubt,
    /// It is silent, and was on battery.
    SilentOnBattery,
    /// It gives no figures.
    Blind,
    /// Somebody else told everybody that the power goes.
    Forced,
    /// The mains is back, and has not been for long.
    Returning,
    /// Others are not done.
    Others,
    /// Everybody is done, or has had their time.
    Done,
}

/// What to do now.
pub fn decide(rules: &Rules, seen: &Seen, done: &Done, phase: PowerPhase) -> (PowerPhase, Why) {
    use PowerPhase::{Draining, Mains, OnBattery, PowerOff, Saving, TellSecondaries};
    match phase {
        PowerOff => return (PowerOff, Why::Done),
        TellSecondaries => {
            let nobody = done.others == 0 && done.left.is_none_or(|left| left >= rules.others_halt);
            let empty = seen.needs_battery() && seen.left().is_some_and(|left| left <= rules.halt);
            // Who has not left in time is not coming; who has left in time has all of its time to be off.
            let late = done.others > 0 && done.in_phase >= rules.others;
            let over = late || done.in_phase >= rules.waiting();
            return match nobody || empty || over {
                true => (PowerOff, Why::Done),
                false => (TellSecondaries, Why::Others),
            };
        }
        Mains | OnBattery | Saving | Draining => {}
    }
    let Some(last) = &seen.last else { return (phase, Why::Unheard) };
    let pressing = match last.flags.forced {
        true => Some(Why::Forced),
        false => pressing(rules, seen, last),
    };
    if phase == Draining {
        let over = done.drained || done.in_phase >= rules.drain;
        let short = seen.left().is_some_and(|left| left <= rules.waiting() + rules.halt);
        return match () {
            () if last.flags.forced && over => (TellSecondaries, Why::Forced),
            () if last.flags.forced => (Draining, Why::Forced),
            () if !last.flags.needs_battery() && seen.on_mains >= rules.steady => {
                (Mains, Why::Mains)
            }
            // What it said last is that the mains is there, and then it fell silent: a fault to be shown, and none to stay off for.
            () if !last.flags.needs_battery() && seen.silent >= rules.blind => {
                (Mains, Why::SilentOnMains)
            }
            () if !last.flags.needs_battery() => (Draining, Why::Returning),
            () if over || short => (TellSecondaries, Why::Done),
            () => (Draining, pressing.unwrap_or(Why::Long)),
        };
    }
    if last.flags.forced {
        return (Draining, Why::Forced);
    }
    if !last.flags.needs_battery() {
        let why = if seen.silent >= rules.silence { Why::SilentOnMains } else { Why::Mains };
        return (Mains, why);
    }
    if let Some(why) = pressing {
        return (Draining, why);
    }
    let saving = if last.flags.low {
        Some(Why::LowInDoubt)
    } else if seen.on_battery >= rules.save_after {
        Some(Why::Long)
    } else if seen.left().is_some_and(|left| left <= rules.need() * 2) {
        Some(Why::Runtime)
    } else {
        None
    };
    match (saving, phase) {
        (Some(why), _) => (Saving, why),
        (None, Saving) => (Saving, Why::Battery),
        (None, _) => (OnBattery, Why::Battery),
    }
}

/// Why a box on battery has to begin stopping now, if it has to. That a battery is low is never believed, or
/// disbelieved, on one word: UPSes were seen to say so at 60 %, and not to say so at all.
fn pressing(rules: &Rules, seen: &Seen, last: &Reading) -> Option<Why> {
    if !last.flags.needs_battery() {
        return None;
    }
    let left = seen.left();
    let comfortable =
        last.charge.is_some_and(|charge| charge > rules.low_charge.saturating_mul(2).min(50))
            && left.is_some_and(|left| left > rules.need() * 2);
    match () {
        () if seen.silent >= rules.silence => Some(Why::SilentOnBattery),
        () if left.is_some_and(|left| left <= rules.need()) => Some(Why::Runtime),
        () if last.charge.is_some_and(|charge| charge <= rules.low_charge) => Some(Why::Charge),
        () if last.flags.low && !(comfortable && seen.low < rules.doubt) => Some(Why::Low),
        () if left.is_none() && last.charge.is_none() && seen.on_battery >= rules.blind => {
            Some(Why::Blind)
        }
        () => None,
    }
}

/// Whether engines may start: not before the battery could carry the box through another cut. A UPS that says nothing
/// for a minute, or not how full it is, holds nobody up, unless it was last on battery.
pub fn may_start(rules: &Rules, seen: &Seen, waited: Duration) -> bool {
    const PATIENCE: Duration = Duration::from_secs(60);
    let Some(last) = &seen.last else { return waited >= PATIENCE };
    // What it said of its charge before it fell silent is no news any more.
    let charge = last.charge.filter(|_| seen.silent < PATIENCE);
    let full = charge.map_or(waited >= PATIENCE, |charge| charge >= rules.start_charge);
    full && !last.flags.needs_battery() && !last.flags.forced
}

/// What was heard of the UPS, put together over time.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    last: Option<Reading>,
    heard: Duration,
    battery_since: Option<Duration>,
    mains_since: Option<Duration>,
    low_since: Option<Duration>,
}

impl Memory {
    /// The UPS said this, now. Times count from anywhere, and only forward.
    pub fn hear(&mut self, now: Duration, reading: Reading) {
        let battery = reading.flags.needs_battery();
        keep(&mut self.battery_since, battery, now);
        keep(&mut self.mains_since, !battery, now);
        keep(&mut self.low_since, reading.flags.low, now);
        // The mains is not known to have been there while nothing was heard.
        if now.saturating_sub(self.heard) > GAP && self.last.is_some() {
            self.mains_since = self.mains_since.map(|_| now);
        }
        (self.last, self.heard) = (Some(reading), now);
    }

    /// What is known now.
    pub fn seen(&self, now: Duration) -> Seen {
        let since = |since: Option<Duration>| {
            since.map_or(Duration::ZERO, |since| now.saturating_sub(since))
        };
        let silent =
            if self.last.is_some() { now.saturating_sub(self.heard) } else { Duration::ZERO };
        Seen {
            last: self.last.clone(),
            silent,
            on_battery: since(self.battery_since),
            // What was not heard does not count for the mains.
            on_mains: since(self.mains_since).saturating_sub(silent),
            low: since(self.low_since),
        }
    }
}

/// Longer silences than this may hide a power cut.
const GAP: Duration = Duration::from_secs(5);

fn keep(since: &mut Option<Duration>, holds: bool, now: Duration) {
    *since = match (*since, holds) {
        (Some(since), true) => Some(since),
        (None, true) => Some(now),
        (_, false) => None,
    };
}
