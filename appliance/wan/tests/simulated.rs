//! The machine in simulated time: links that behave as a story says, years in a second.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use polder_wan::{Condition, Decision, Event, Heard, Machine, Policy, Why};
use proptest::prelude::*;

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// How a link is at some time.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Link {
    carrier: bool,
    address: bool,
    /// Of a hundred probes so many are lost.
    loss: u64,
    delay: Duration,
}

const WELL: Link = Link { carrier: true, address: true, loss: 0, delay: ms(20) };
const DEAD: Link = Link { loss: 100, ..WELL };
const UNPLUGGED: Link = Link { carrier: false, ..WELL };

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Coming {
    Change(usize, usize),
    Result(usize, u64, Vec<Option<Duration>>),
    Busy(bool),
}

/// Two links with their stories, and a log of what the machine decided.
struct World {
    machine: Machine,
    now: Duration,
    stories: Vec<Vec<(Duration, Link)>>,
    links: Vec<Link>,
    coming: BinaryHeap<Reverse<(Duration, u64, Coming)>>,
    numbers: u64,
    chance: u64,
    log: Vec<(Duration, Decision)>,
    conditions: Vec<Condition>,
}

impl World {
    fn of(stories: Vec<Vec<(Duration, Link)>>, busy: bool) -> Self {
        Self::under(Policy::default(), stories, busy)
    }

    fn under(policy: Policy, stories: Vec<Vec<(Duration, Link)>>, busy: bool) -> Self {
        // The last of several is a mobile one.
        let metered: Vec<bool> = (1..=stories.len()).map(|n| n > 1 && n == stories.len()).collect();
        let machine = Machine::new(policy, &metered, s(0));
        let links = vec![Link { carrier: false, address: false, ..WELL }; stories.len()];
        let mut world = Self {
            machine,
            now: s(0),
            stories,
            links,
            coming: BinaryHeap::new(),
            numbers: 0,
            chance: 0x9E37_79B9_7F4A_7C15,
            log: Vec::new(),
            conditions: Vec::new(),
        };
        for link in 0..world.stories.len() {
            for step in 0..world.stories[link].len() {
                world.later(world.stories[link][step].0, Coming::Change(link, step));
            }
        }
        // Who uses the way out is asked again and again.
        for second in (0..20_000).step_by(10) {
            world.later(s(second), Coming::Busy(busy));
        }
        world
    }

    fn later(&mut self, at: Duration, what: Coming) {
        self.numbers += 1;
        self.coming.push(Reverse((at, self.numbers, what)));
    }

    fn dice(&mut self) -> u64 {
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        self.chance % 100
    }

    fn until(&mut self, end: Duration) -> &mut Self {
        loop {
            let next = self.coming.peek().map(|Reverse((at, ..))| *at);
            let tick = self.machine.next_tick().map(|at| at.max(self.now));
            let Some(at) = next.into_iter().chain(tick).min().filter(|at| *at <= end) else {
                self.now = end;
                return self;
            };
            self.now = at;
            if next == Some(at) {
                let Reverse((_, _, what)) = self.coming.pop().unwrap();
                match what {
                    Coming::Busy(busy) => self.take(Event::Busy(busy)),
                    Coming::Result(uplink, round, results) => {
                        let heard = Default::default();
                        self.take(Event::Probed { uplink, round, results, heard });
                    }
                    Coming::Change(uplink, step) => {
                        let next = self.stories[uplink][step].1;
                        let before = std::mem::replace(&mut self.links[uplink], next);
                        if before.carrier != next.carrier {
                            self.take(Event::Carrier { uplink, up: next.carrier });
                        }
                        if before.address != next.address {
                            self.take(Event::Address { uplink, there: next.address });
                        }
                    }
                }
            } else {
                let decisions = self.machine.tick(at);
                self.follow(decisions);
            }
        }
    }

    fn take(&mut self, event: Event) {
        let decisions = self.machine.take(event, self.now);
        self.follow(decisions);
    }

    fn follow(&mut self, decisions: Vec<Decision>) {
        for decision in decisions {
            if let Decision::Probe { uplink, round } = decision {
                let link = self.links[uplink];
                let alive = link.carrier && link.address;
                let mut probe = || (alive && self.dice() >= link.loss).then_some(link.delay);
                let results = vec![probe(), probe()];
                let lost = results.contains(&None) || link.delay > ms(750);
                let took = if lost { ms(750) } else { link.delay };
                self.later(self.now + took, Coming::Result(uplink, round, results));
            } else {
                self.log.push((self.now, decision));
            }
        }
        let view = |n| self.machine.view(n).unwrap().condition;
        self.conditions = (0..self.links.len()).map(view).collect();
    }

    fn switches(&self) -> Vec<(Duration, usize, Why)> {
        let switch = |(at, decision): &(Duration, Decision)| match decision {
            Decision::Use { uplink, why } => Some((*at, *uplink, *why)),
            _ => None,
        };
        self.log.iter().filter_map(switch).filter(|(_, _, why)| *why != Why::Start).collect()
    }

    fn cuts(&self) -> Vec<(Duration, usize)> {
        let cut = |(at, decision): &(Duration, Decision)| match decision {
            Decision::CutOff(uplink) => Some((*at, *uplink)),
            _ => None,
        };
        self.log.iter().filter_map(cut).collect()
    }
}

/// Of both families, from a number.
fn heard(asked: u64, answered: u64) -> [Heard; 2] {
    [0, 2].map(|shift| {
        let of = |number: u64| (number >> shift) as usize % 4;
        Heard { asked: of(asked), answered: of(answered).min(of(asked)) }
    })
}

/// What a machine of two uplinks decided, each with what answers there in each second: IPv4 and IPv6, of two targets each.
fn families(
    seconds: u64,
    answers: impl Fn(usize, Duration) -> [bool; 2],
) -> (Machine, Vec<(Duration, Decision)>) {
    let mut machine = Machine::new(Policy::default(), &[false, false], s(0));
    let mut decisions = Vec::new();
    for uplink in [0, 1] {
        decisions.extend(machine.take(Event::Carrier { uplink, up: true }, s(0)));
        decisions.extend(machine.take(Event::Address { uplink, there: true }, s(0)));
    }
    let (mut log, mut coming, mut now) = (Vec::new(), Vec::new(), s(0));
    while now < s(seconds) {
        for decision in decisions.drain(..) {
            match decision {
                Decision::Probe { uplink, round } => {
                    let lives = answers(uplink, now);
                    let took = if lives == [true; 2] { ms(20) } else { ms(750) };
                    coming.push((now + took, uplink, round, lives));
                }
                other => log.push((now, other)),
            }
        }
        coming.sort();
        let next = coming.first().map(|(at, ..)| *at);
        let tick = machine.next_tick().map(|at| at.max(now));
        now = next.into_iter().chain(tick).min().unwrap().max(now + ms(1));
        decisions = match next {
            Some(at) if at <= now => {
                let (_, uplink, round, lives) = coming.remove(0);
                let one = |lives: bool| Heard { asked: 2, answered: 2 * usize::from(lives) };
                let results = lives.iter().flat_map(|lives| vec![lives.then_some(ms(20)); 2]);
                let results = results.collect();
                let heard = lives.map(one);
                machine.take(Event::Probed { uplink, round, results, heard }, now)
            }
            _ => machine.tick(now),
        };
    }
    (machine, log)
}

#[test]
fn a_family_that_dies_alone_goes_out_elsewhere_within_the_same_time_and_comes_back() {
    let dead = |now: Duration| (s(30)..s(60)).contains(&now);
    for six in [false, true] {
        let answers = |uplink: usize, now: Duration| match (uplink, six) {
            (0, false) => [!dead(now), true],
            (0, true) => [true, !dead(now)],
            _ => [true, true],
        };
        let (machine, log) = families(50, answers);
        assert_eq!(machine.in_use().0, 0, "the other one stays");
        assert_eq!(machine.ways(), if six { [0, 1] } else { [1, 0] });
        let moved: Vec<_> = log.iter().filter(|(at, _)| *at > s(29)).collect();
        let [
            (at, Decision::Lead { six: s1, uplink: 1 }),
            (_, Decision::CutOffFamily { six: s2, uplink: 0 }),
            (told, Decision::Announce(0)),
        ] = moved[..]
        else {
            panic!("{moved:?}")
        };
        assert_eq!((*s1, *s2), (six, six));
        assert!(*at < ms(33_500), "{at:?}");
        assert!(*told < ms(35_000), "{told:?}");
        let (machine, log) = families(80, answers);
        assert_eq!(machine.ways(), [0, 0]);
        let back: Vec<_> = log.iter().filter(|(at, _)| *at > s(59)).collect();
        assert!(
            matches!(back[..], [(_, Decision::Lead { uplink: 0, .. }), (_, Decision::Announce(0))]),
            "nobody is cut off on the way back: {back:?}"
        );
    }
}

#[test]
fn a_family_that_dies_everywhere_or_with_all_the_rest_is_nobodys_to_lead() {
    let led =
        |log: &[(Duration, Decision)]| log.iter().any(|(_, d)| matches!(d, Decision::Lead { .. }));
    let (machine, log) = families(60, |_, now| [true, now < s(30)]);
    assert!(machine.ways() == [0, 0] && !led(&log), "{log:?}");
    let (machine, log) = families(60, |uplink, now| [uplink == 1 || now < s(30); 2]);
    assert!(machine.in_use().0 == 1 && machine.ways() == [1, 1] && !led(&log), "{log:?}");
}

fn always(link: Link) -> Vec<(Duration, Link)> {
    vec![(s(0), link)]
}

#[test]
fn carrier_loss_switches_and_cuts_in_the_same_moment() {
    let mut world = World::of(vec![vec![(s(0), WELL), (s(30), UNPLUGGED)], always(WELL)], true);
    world.until(s(40));
    assert_eq!(world.switches(), [(s(30), 1, Why::Lost(Condition::NoCarrier))]);
    assert_eq!(world.cuts(), [(s(30), 0)]);
    // The world hears of it as soon as the new way out is seen to work.
    let told = |(_, d): &&(Duration, Decision)| matches!(d, Decision::Announce(1));
    let (at, _) = world.log.iter().find(told).unwrap();
    assert!(*at <= s(32), "{at:?}");
}

#[test]
fn a_dead_upstream_is_left_within_three_and_a_half_seconds_whenever_it_dies() {
    for phase in (0..1000).step_by(10) {
        let died = s(30) + ms(phase);
        let mut world = World::of(vec![vec![(s(0), WELL), (died, DEAD)], always(WELL)], true);
        world.until(s(40));
        let [(at, 1, Why::Lost(Condition::Silent))] = world.switches()[..] else {
            panic!("{:?}", world.log)
        };
        assert!(at - died < ms(3500), "after {:?}", at - died);
        assert!(at - died >= ms(2200), "a hiccup is no death: {:?}", at - died);
        assert_eq!(world.cuts(), [(at, 0)]);
    }
}

#[test]
fn a_gap_of_two_seconds_is_nothing() {
    for phase in (0..1000).step_by(50) {
        let at = s(30) + ms(phase);
        let story = vec![(s(0), WELL), (at, DEAD), (at + ms(1500), WELL)];
        let mut world = World::of(vec![story, always(WELL)], true);
        world.until(s(100));
        assert_eq!((world.switches(), world.cuts()), (vec![], vec![]));
    }
}

#[test]
fn five_flaps_are_one_switch_and_one_way_back_much_later() {
    for bad in [DEAD, UNPLUGGED] {
        let mut story = vec![(s(0), WELL)];
        for flap in 0..5 {
            story.push((s(20 + flap * 8), bad));
            story.push((s(24 + flap * 8), WELL));
        }
        let mut world = World::of(vec![story, always(WELL)], true);
        world.until(s(75));
        assert_eq!(world.switches().len(), 1, "{:?}", world.switches());
        assert!(world.cuts().iter().all(|(_, uplink)| *uplink == 0), "{:?}", world.cuts());
        let cuts = world.cuts().len();
        world.until(s(600));
        let [_, (back, 0, Why::Preferred)] = world.switches()[..] else {
            panic!("{:?}", world.switches())
        };
        assert!(back > s(56 + 60), "{back:?}");
        assert_eq!(world.cuts().len(), cuts, "nothing is cut on the way back");
    }
}

#[test]
fn the_way_back_is_longer_after_every_time() {
    let mut story = vec![(s(0), WELL)];
    for day in 0..6 {
        story.push((s(1000 + day * 500), DEAD));
        story.push((s(1010 + day * 500), WELL));
    }
    let mut world = World::of(vec![story, always(WELL)], true);
    world.until(s(20_000));
    let switches = world.switches();
    let stays: Vec<u64> = switches.chunks(2).map(|c| (c[1].0 - c[0].0).as_secs()).collect();
    assert!(stays.len() >= 3 && stays.is_sorted() && stays[2] > 2 * stays[0], "{stays:?}");
    // In the end it is back on the preferred one.
    assert_eq!(world.machine.in_use().0, 0);
}

#[test]
fn forty_percent_loss_leaves_and_stays_away() {
    let lossy = Link { loss: 40, ..WELL };
    let mut world = World::of(vec![vec![(s(0), WELL), (s(60), lossy)], always(WELL)], false);
    world.until(s(3600));
    let [(at, 1, Why::Lost(_))] = world.switches()[..] else { panic!("{:?}", world.switches()) };
    assert!(at < s(60 + 20), "{at:?}");
    assert!(world.cuts().iter().all(|(_, uplink)| *uplink == 0), "{:?}", world.cuts());
}

#[test]
fn two_percent_loss_is_not_worth_a_switch_and_a_delay_of_a_second_is() {
    let fair = Link { loss: 2, ..WELL };
    let mut world = World::of(vec![always(fair), always(WELL)], true);
    world.until(s(2 * 3600));
    assert_eq!(world.switches(), []);
    let late = Link { delay: ms(700), ..WELL };
    let mut world = World::of(vec![vec![(s(0), WELL), (s(60), late)], always(WELL)], true);
    world.until(s(120));
    assert_eq!(world.switches().len(), 1);
    assert_eq!(world.conditions[0], Condition::Poor);
}

#[test]
fn with_both_down_the_first_to_answer_is_used_at_once() {
    let first = vec![(s(0), WELL), (s(30), DEAD), (s(300), WELL)];
    let second = vec![(s(0), WELL), (s(50), UNPLUGGED), (s(200), WELL)];
    let mut world = World::of(vec![first, second], true);
    world.until(s(199));
    assert_eq!(world.switches().len(), 2, "{:?}", world.switches());
    world.until(s(204));
    assert_eq!(world.machine.in_use().0, 1, "{:?}", world.switches());
    // A dead way out is not cut off while there is no other one: it may come back.
    assert_eq!(world.cuts().iter().filter(|(at, _)| (s(55)..s(200)).contains(at)).count(), 0);
}

#[test]
fn without_anybody_on_the_other_one_the_way_back_is_quick_and_with_somebody_it_is_not() {
    let story = || vec![(s(0), WELL), (s(30), DEAD), (s(40), WELL)];
    for (busy, soonest, latest) in [(false, 58, 70), (true, 100, 112)] {
        let mut world = World::of(vec![story(), always(WELL)], busy);
        world.until(s(1000));
        let [_, (back, 0, Why::Preferred)] = world.switches()[..] else {
            panic!("{:?}", world.switches())
        };
        assert!((s(soonest)..s(latest)).contains(&back), "{busy}: {back:?}");
    }
}

#[test]
fn a_box_with_one_uplink_stays_with_it_and_cuts_nothing() {
    let mut world = World::of(vec![vec![(s(0), WELL), (s(30), DEAD), (s(60), WELL)]], true);
    world.until(s(100));
    assert_eq!((world.switches(), world.cuts()), (vec![], vec![]));
    assert_eq!(world.conditions, [Condition::Good]);
}

#[test]
fn a_lost_address_is_as_bad_as_a_lost_cable() {
    let bare = Link { address: false, ..WELL };
    let mut world = World::of(vec![vec![(s(0), WELL), (s(30), bare)], always(WELL)], true);
    world.until(s(31));
    assert_eq!(world.switches(), [(s(30), 1, Why::Lost(Condition::NoAddress))]);
    assert_eq!(world.cuts(), [(s(30), 0)]);
}

fn a_link() -> impl Strategy<Value = Link> {
    let loss = prop_oneof![Just(0), Just(100), 0..100u64];
    let delay = prop_oneof![Just(20), 1..1500u64];
    (any::<bool>(), prop::bool::weighted(0.8), loss, delay).prop_map(
        |(carrier, address, loss, delay)| Link { carrier, address, loss, delay: ms(delay) },
    )
}

fn a_story() -> impl Strategy<Value = Vec<(Duration, Link)>> {
    prop::collection::vec((0..300_000u64, a_link()), 0..30).prop_map(|steps| {
        let mut story: Vec<_> = steps.into_iter().map(|(at, link)| (ms(at), link)).collect();
        story.sort_by_key(|(at, _)| *at);
        story.insert(0, (s(0), WELL));
        story
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_it_never_moves_to_a_worse_uplink_and_ends_on_the_preferred_one(
        mut stories in prop::collection::vec(a_story(), 1..4),
        busy: bool,
    ) {
        for story in &mut stories {
            story.push((s(300), WELL));
        }
        // With a shorter memory, so that the end is soon to be seen.
        let policy = Policy { memory: s(300), longest_hold: s(300), ..Policy::default() };
        let mut world = World::under(policy, stories, busy);
        let mut seen = 0;
        let (mut used, mut at) = (0, s(0));
        while at < s(1000) {
            at += s(1);
            let before = world.conditions.clone();
            world.until(at);
            for (when, decision) in world.log[seen..].iter().cloned() {
                match decision {
                    Decision::Use { uplink, why } => {
                        // Never to itself, but to say so at the start.
                        prop_assert!(why == Why::Start || uplink != used, "{:?}", world.log);
                        if why == Why::Preferred {
                            prop_assert!(uplink < used);
                        }
                        used = uplink;
                    }
                    Decision::CutOff(uplink) => {
                        prop_assert_ne!(uplink, used, "at {:?}", when);
                        // One that was well and stays well has nobody cut off.
                        let well = |list: &[Condition]| list.get(uplink) == Some(&Condition::Good);
                        let changed = world.stories[uplink].iter().any(|(t, _)| *t + s(10) > when);
                        prop_assert!(changed || !(well(&before) && well(&world.conditions)));
                    }
                    Decision::Announce(uplink) => prop_assert_eq!(uplink, used),
                    Decision::Probe { .. } => unreachable!("not in the log"),
                    Decision::Lead { .. } | Decision::CutOffFamily { .. } => {
                        unreachable!("these links do not tell families apart")
                    }
                }
            }
            seen = world.log.len();
            prop_assert_eq!(world.machine.in_use().0, used);
            // With a good one there, nothing but a good one is in use.
            if world.conditions.contains(&Condition::Good) {
                prop_assert_eq!(world.conditions[used], Condition::Good);
            }
        }
        prop_assert_eq!(used, 0);
        prop_assert!(world.conditions.iter().all(|c| *c == Condition::Good), "{:?}", world.conditions);
    }

    #[test]
    fn links_that_come_and_go_all_the_time_are_not_followed_all_the_time(period in 1u64..40) {
        let mut story = vec![(s(0), WELL)];
        for n in 1..(3600 / period) {
            story.push((s(n * period), if n % 2 == 1 { DEAD } else { WELL }));
        }
        let mut world = World::of(vec![story, always(WELL)], true);
        world.until(s(3600));
        // The holds of an hour: 60 s, 120 s, 240 s, ...
        prop_assert!(world.switches().len() <= 12, "{}", world.switches().len());
    }

    #[test]
    fn events_in_any_order_break_nothing(
        events in prop::collection::vec((0..4usize, 0..5u8, 0..40u64, 0..3000u64), 0..200),
        uplinks in 0..4usize,
    ) {
        let mut machine = Machine::new(Policy::default(), &vec![true; uplinks], s(0));
        let (mut now, mut rounds) = (s(0), vec![0u64; 8]);
        for (uplink, kind, number, wait) in events {
            now += ms(wait);
            let event = match kind {
                0 => Event::Carrier { uplink, up: number % 2 == 0 },
                1 => Event::Address { uplink, there: number % 2 == 0 },
                2 => Event::Busy(number % 2 == 0),
                3 => Event::Probed { uplink, round: number, results: vec![None; number as usize % 4], heard: heard(number, 0) },
                _ => {
                    let results = vec![Some(ms(number)); number as usize % 4];
                    Event::Probed { uplink, round: rounds[uplink], results, heard: heard(number, number) }
                }
            };
            for decision in machine.take(event, now).into_iter().chain(machine.tick(now)) {
                if let Decision::Probe { uplink, round } = decision {
                    rounds[uplink] = round;
                }
            }
            prop_assert!(machine.in_use().0 < uplinks.max(1));
            prop_assert!(machine.ways().iter().all(|way| *way < uplinks.max(1)));
        }
    }
}
