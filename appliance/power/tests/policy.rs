//! What the box does in histories of power cuts that nobody thought of.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall stop")]

use std::time::Duration;

use polder_power::PowerPhase::{self, *};
use polder_power::policy::{Done, Memory, Rules, Seen, Why, decide, may_start};
use polder_power::reading::{Flags, Reading};
use polder_site::PowerPlan;
use proptest::prelude::*;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn rules() -> Rules {
    Rules::of(&PowerPlan::of("ups@localhost".parse().unwrap()))
}

/// A stretch of time in which nothing changes.
#[derive(Debug, Clone)]
struct Stretch {
    seconds: u64,
    mains: bool,
    /// Whether upsd tells anything.
    heard: bool,
    /// Whether the UPS says LB, right or wrong.
    low: bool,
}

#[derive(Debug, Clone)]
struct World {
    stretches: Vec<Stretch>,
    /// Seconds that the battery lasts at first, and when it is full.
    lasts: u64,
    tells_runtime: bool,
    tells_charge: bool,
    others: u32,
    /// How long parts and other machines take to end.
    drains_in: u64,
    others_in: u64,
}

fn world() -> impl Strategy<Value = World> {
    let stretch =
        (1u64..400, any::<bool>(), 0u8..5, 0u8..8).prop_map(|(seconds, mains, heard, low)| {
            Stretch { seconds, mains, heard: heard > 0, low: low == 0 }
        });
    (proptest::collection::vec(stretch, 1..12), 300u64..3000, 0u32..3, 0u64..90, 0u64..120, 0u8..4)
        .prop_map(|(stretches, lasts, others, drains_in, others_in, tells)| World {
            stretches,
            lasts,
            // A UPS that gives no figures at all cannot be promised anything about.
            tells_runtime: tells != 1,
            tells_charge: tells != 2,
            others,
            drains_in,
            others_in,
        })
}

/// One second of a history.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Second {
    before: PowerPhase,
    after: PowerPhase,
    why: Why,
    mains: bool,
    heard: bool,
    left: u64,
}

/// Lives through it, second by second; ends when the machine is off or the battery empty.
fn live(world: &World, rules: &Rules) -> Vec<Second> {
    let (mut memory, mut phase, mut entered) = (Memory::default(), Mains, 0);
    let (mut left, mut now, mut mains) = (world.lasts as f64, 0u64, true);
    let mut seconds_lived = Vec::new();
    for stretch in &world.stretches {
        // A cut that nobody tells of cannot be known: it begins when upsd is heard again.
        mains = stretch.mains || (mains && !stretch.heard);
        for _ in 0..stretch.seconds {
            left = if mains { (left + 0.2).min(world.lasts as f64) } else { left - 1.0 };
            if left <= 0.0 {
                return seconds_lived;
            }
            if stretch.heard {
                let charge = (left * 100.0 / world.lasts as f64) as u8;
                let flags = Flags {
                    on_mains: mains,
                    on_battery: !mains,
                    low: stretch.low,
                    ..Flags::default()
                };
                memory.hear(
                    seconds(now),
                    Reading {
                        flags,
                        charge: world.tells_charge.then_some(charge),
                        runtime: world.tells_runtime.then(|| seconds(left as u64)),
                        ..Reading::default()
                    },
                );
            }
            let seen = memory.seen(seconds(now));
            loop {
                let in_phase = now - entered;
                let gone = in_phase >= world.others_in;
                let done = Done {
                    in_phase: seconds(in_phase),
                    drained: phase == Draining && in_phase >= world.drains_in,
                    others: if gone { 0 } else { world.others },
                    left: (gone && world.others > 0).then(|| seconds(in_phase - world.others_in)),
                };
                let (after, why) = decide(rules, &seen, &done, phase);
                seconds_lived.push(Second {
                    before: phase,
                    after,
                    why,
                    mains,
                    heard: stretch.heard,
                    left: left as u64,
                });
                if after == PowerOff {
                    return seconds_lived;
                }
                if after == phase {
                    break;
                }
                (phase, entered) = (after, now);
            }
            now += 1;
        }
    }
    seconds_lived
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_point_of_no_return_is_never_passed_on_mains_and_never_undone(world in world()) {
        for second in live(&world, &rules()) {
            let Second { before, after, mains, heard, .. } = second;
            if after == TellSecondaries && before < TellSecondaries {
                prop_assert!(!(mains && heard), "{second:?}");
                prop_assert_eq!(before, Draining);
            }
            if before.is_final() {
                prop_assert!(after >= before, "{second:?}");
            }
        }
    }

    #[test]
    fn a_box_that_began_to_stop_either_stops_or_starts_everything_again(world in world()) {
        for second in live(&world, &rules()) {
            let Second { before, after, mains, heard, why, .. } = second;
            if before == Draining {
                prop_assert!(matches!(after, Draining | Mains | TellSecondaries), "{second:?}");
            }
            if after < before {
                // A UPS that is silent for two minutes said last that the mains is there.
                let silent = why == Why::SilentOnMains && !heard;
                prop_assert!(after == Mains && (mains && heard || silent), "went back on battery: {second:?}");
            }
        }
    }

    #[test]
    fn a_battery_that_tells_what_it_has_never_runs_out_under_a_running_box(world in world()) {
        prop_assume!(world.tells_runtime);
        let rules = rules();
        let lived = live(&world, &rules);
        let last = lived.last().unwrap();
        // The history ended, or the machine was told to go down with what that takes still there.
        let enough = rules.halt.as_secs() - 1;
        prop_assert!(last.left > 1 || last.after == PowerOff, "{last:?}");
        if last.after == PowerOff {
            prop_assert!(last.left >= enough, "{last:?}");
        }
    }

    #[test]
    fn charge_alone_is_enough_where_it_means_enough(mut world in world()) {
        // Three tenths of the charge are more than stopping takes.
        world.lasts += 600;
        world.tells_charge = true;
        world.tells_runtime = false;
        let rules = rules();
        let lived = live(&world, &rules);
        let last = lived.last().unwrap();
        prop_assert!(last.left > 1 || last.after == PowerOff, "{last:?}");
    }
}

fn reading(status: &str, charge: u8, runtime: u64) -> Reading {
    Reading {
        flags: Flags::parse(status),
        charge: Some(charge),
        runtime: Some(seconds(runtime)),
        ..Reading::default()
    }
}

fn heard(reading: Reading) -> Seen {
    Seen { last: Some(reading), ..Seen::default() }
}

fn now(seen: &Seen, phase: PowerPhase) -> (PowerPhase, Why) {
    decide(&rules(), seen, &Done::default(), phase)
}

#[test]
fn a_cut_is_told_at_once_and_saved_on_after_a_while() {
    let mut seen = heard(reading("OB DISCHRG", 99, 3600));
    assert_eq!(now(&seen, Mains), (OnBattery, Why::Battery));
    seen.on_battery = seconds(30);
    assert_eq!(now(&seen, OnBattery), (Saving, Why::Long));
    assert_eq!(now(&heard(reading("OL CHRG", 60, 900)), Saving), (Mains, Why::Mains));
}

#[test]
fn low_battery_at_sixty_percent_is_doubted_for_a_while_and_then_believed() {
    let mut seen = heard(reading("OB LB", 62, 3000));
    assert_eq!(now(&seen, OnBattery), (Saving, Why::LowInDoubt));
    seen.low = seconds(30);
    assert_eq!(now(&seen, Saving), (Draining, Why::Low));
    let bare = Reading { flags: Flags::parse("OB LB"), ..Reading::default() };
    assert_eq!(now(&heard(bare), Mains), (Draining, Why::Low));
    // An old battery says the one thing and not the other.
    assert_eq!(now(&heard(reading("OB LB", 90, 100)), Mains), (Draining, Why::Runtime));
    assert_eq!(now(&heard(reading("OB", 25, 3000)), Mains), (Draining, Why::Charge));
    assert_eq!(now(&heard(reading("OL LB CHRG", 5, 60)), Mains), (Mains, Why::Mains));
}

#[test]
fn a_ups_that_is_silent_on_battery_counts_as_empty_and_on_mains_does_not() {
    let mut seen = heard(reading("OB", 90, 3000));
    seen.silent = seconds(14);
    assert_eq!(now(&seen, Saving).0, Saving);
    seen.silent = seconds(15);
    assert_eq!(now(&seen, Saving), (Draining, Why::SilentOnBattery));
    let mut seen = heard(reading("OL", 100, 3000));
    seen.silent = seconds(100_000);
    assert_eq!(now(&seen, Mains), (Mains, Why::SilentOnMains));
    assert_eq!(now(&Seen::default(), Mains), (Mains, Why::Unheard));
}

#[test]
fn mains_that_comes_back_while_parts_end_is_believed_after_ten_seconds() {
    let mut seen = heard(reading("OL CHRG", 28, 300));
    let drained = Done { drained: true, in_phase: seconds(300), ..Done::default() };
    let decide = |seen: &Seen| decide(&rules(), seen, &drained, Draining);
    seen.on_mains = seconds(9);
    assert_eq!(decide(&seen), (Draining, Why::Returning));
    seen.on_mains = seconds(10);
    assert_eq!(decide(&seen), (Mains, Why::Mains));
}

#[test]
fn a_ups_that_falls_silent_just_after_the_mains_came_back_keeps_no_box_off() {
    let mut memory = Memory::default();
    memory.hear(seconds(0), reading("OB LB", 20, 60));
    memory.hear(seconds(100), reading("OL CHRG", 20, 60));
    memory.hear(seconds(103), reading("OL CHRG", 20, 60));
    let drained = Done { drained: true, in_phase: seconds(300), ..Done::default() };
    let at = |now| decide(&rules(), &memory.seen(seconds(now)), &drained, Draining);
    assert_eq!(at(103), (Draining, Why::Returning));
    assert_eq!(at(103 + 119), (Draining, Why::Returning), "it may be on battery again");
    assert_eq!(at(103 + 120), (Mains, Why::SilentOnMains));
    // Nor do its engines wait for a charge that nobody tells them.
    assert!(may_start(&rules(), &memory.seen(seconds(103 + 120)), seconds(9999)));
    assert!(!may_start(&rules(), &memory.seen(seconds(103)), seconds(9999)));
    // One that was last heard on battery is not believed to be on mains, however long that is ago.
    let mut memory = Memory::default();
    memory.hear(seconds(0), reading("OB LB", 20, 60));
    let seen = memory.seen(seconds(9999));
    assert_eq!(decide(&rules(), &seen, &drained, Draining).0, TellSecondaries);
    assert!(!may_start(&rules(), &seen, seconds(9999)));
}

#[test]
fn what_somebody_else_forces_goes_on_though_the_mains_is_back() {
    let seen = heard(reading("FSD OL CHRG", 100, 3600));
    assert_eq!(now(&seen, Mains), (Draining, Why::Forced));
    let drained = Done { drained: true, ..Done::default() };
    assert_eq!(decide(&rules(), &seen, &drained, Draining), (TellSecondaries, Why::Forced));
}

#[test]
fn others_are_waited_for_until_they_have_stopped_and_not_only_left() {
    let (rules, seen) = (rules(), heard(reading("FSD OB", 25, 300)));
    let decide = |others, left: Option<u64>, in_phase| {
        let done =
            Done { others, left: left.map(seconds), in_phase: seconds(in_phase), drained: true };
        decide(&rules, &seen, &done, TellSecondaries).0
    };
    assert_eq!(decide(1, None, 5), TellSecondaries);
    assert_eq!(decide(0, Some(5), 10), TellSecondaries, "it has left and still stops");
    assert_eq!(decide(0, Some(20), 25), PowerOff);
    assert_eq!(decide(0, None, 0), PowerOff, "there never was one");
    assert_eq!(decide(1, None, 60), PowerOff, "nobody holds it up for ever");
    assert_eq!(decide(0, Some(1), 60), TellSecondaries, "it left in its last second");
    assert_eq!(decide(0, Some(1), 80), PowerOff, "it comes and goes");
}

#[test]
fn a_machine_that_needs_two_minutes_to_be_off_has_them_and_the_box_stops_that_much_sooner() {
    let mut plan = PowerPlan::of("ups@localhost".parse().unwrap());
    let usual = Rules::of(&plan).stopping();
    plan.others_halt = 120;
    let slow = Rules::of(&plan);
    assert_eq!(slow.stopping(), usual + seconds(100));
    let seen = heard(reading("FSD OB", 25, 3000));
    let left = |left| {
        let done = Done { in_phase: seconds(150), left: Some(seconds(left)), ..Done::default() };
        decide(&slow, &seen, &done, TellSecondaries).0
    };
    assert_eq!((left(119), left(120)), (TellSecondaries, PowerOff));
    // Not longer than the battery lasts.
    let empty = heard(reading("FSD OB LB", 1, 20));
    let done = Done { left: Some(seconds(1)), ..Done::default() };
    assert_eq!(decide(&slow, &empty, &done, TellSecondaries).0, PowerOff);
}

#[test]
fn engines_wait_for_a_battery_that_could_carry_them_through_another_cut() {
    let may = |seen: &Seen, waited| may_start(&rules(), seen, seconds(waited));
    assert!(!may(&heard(reading("OL CHRG", 39, 100)), 9999));
    assert!(may(&heard(reading("OL CHRG", 40, 100)), 0));
    assert!(!may(&heard(reading("OB", 90, 100)), 0));
    assert!(!may(&Seen::default(), 59));
    assert!(may(&Seen::default(), 60), "a broken UPS costs nobody the box");
}

#[test]
fn a_silence_may_hide_a_cut_and_does_not_count_as_mains() {
    let mut memory = Memory::default();
    memory.hear(seconds(0), reading("OL", 100, 100));
    memory.hear(seconds(4), reading("OL", 100, 100));
    assert_eq!(memory.seen(seconds(4)).on_mains, seconds(4));
    memory.hear(seconds(100), reading("OL", 100, 100));
    assert_eq!(memory.seen(seconds(100)).on_mains, seconds(0));
    assert_eq!(memory.seen(seconds(103)).silent, seconds(3));
}

#[test]
fn answers_that_do_not_end_hold_nothing_up_and_a_machine_that_goes_down_is_not_called_back() {
    let slow = Done { in_phase: rules().drain, ..Done::default() };
    let seen = heard(reading("OB", 29, 3000));
    assert_eq!(decide(&rules(), &seen, &slow, Draining), (TellSecondaries, Why::Done));
    assert_eq!(now(&seen, Draining), (Draining, Why::Charge));
    for status in ["OL", "OB", "FSD OL"] {
        assert_eq!(now(&heard(reading(status, 100, 3000)), PowerOff), (PowerOff, Why::Done));
    }
}
