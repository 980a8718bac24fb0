//! Two boxes, the link between them, and everything that can happen, in every order: nobody revoked is ever let in again, never do
//! both serve, and nobody is left without a box that serves because a takeover was cut off.

use std::collections::BTreeSet;
use std::time::Duration;

use polder_takeover::{
    Begun, Given, Heard, LEASE, Next, Side, Silence, Stand, Term, allowed, next_of, stand,
};
use proptest::prelude::*;

/// What was begun has somebody who serves after so many seconds, and what follows of a restore.
const BOUND: u64 = 330;
/// Between two looks.
const LOOK: u64 = 3;

/// What a state folder holds of the collective: which keys it would let in no more.
type Revoked = BTreeSet<u32>;

/// A main box. What is on its disk outlives everything; the rest is of one life of its supervisor, or of one boot.
#[derive(Clone)]
struct Main {
    disk: Term,
    revoked: Revoked,
    up: bool,
    heard: Option<u64>,
    failed: bool,
    goes_on: bool,
    /// When it last stamped that it serves; lost with the boot.
    stamp: Option<u64>,
    /// What the spare answered when it was asked what it leaves to this box.
    left: Option<u64>,
}

#[derive(Clone)]
struct Spare {
    disk: Term,
    revoked: Revoked,
    up: bool,
    /// What it has of the main box: its last backup.
    backup: Revoked,
    /// What it was told at once.
    tombs: Revoked,
    last: Option<u64>,
    began: u64,
    yields: bool,
    /// The last term that it began itself, on its disk.
    took: Option<u64>,
    /// A run that has raised the term and not put the state in place yet.
    placing: bool,
    /// How often that came to nothing in this life, and when it last did.
    failed: u32,
    failed_at: u64,
    given_backup: Option<Revoked>,
    /// It is the main box for good, and tells the former one so.
    for_good: bool,
}

#[derive(Clone)]
struct World {
    now: u64,
    linked: bool,
    main: Main,
    spare: Spare,
    next_key: u32,
    /// Revoked by somebody on the box that served, and told to whoever is promised to know.
    gone: Revoked,
    /// Restored on the main box, not in place yet.
    incoming: Option<(Given, Revoked)>,
    /// Once the spare is the main box for good: it, and a spare of its own that it is paired with.
    next: Option<Box<World>>,
}

#[derive(Debug, Clone)]
enum Event {
    Wait(u64),
    Link(bool),
    Beat,
    MainProcess(bool),
    MainPowerCut,
    SpareProcess(bool),
    Backup,
    Revoke,
    TakeOver {
        dead: bool,
    },
    /// The same with a power cut between the two files that say that a term began.
    TakeOverCutOff {
        dead: bool,
    },
    Place,
    GiveUpPlacing,
    /// The spare looks at what it began: it goes on with it, or leaves it to the main box.
    Tend,
    /// A main box whose door is closed asks what is left to it, and goes by the answer.
    AskLeft,
    GoOnAsLeft,
    GiveBack,
    Fetch,
    PlaceAtMain,
    PutBack,
    SayAlone,
    RestoreOlder,
    /// The spare that stands in is the main box from now on, and gets a spare of its own.
    BecomeMain,
    /// The same between the box that is the main box for good and its own spare.
    Next(Box<Event>),
}

impl World {
    fn new(yields: bool) -> Self {
        let disk = Term { yields, ..Term::first(Side::Main) };
        let (revoked, backup, tombs) = (Revoked::new(), Revoked::new(), Revoked::new());
        let main = Main {
            disk,
            revoked: revoked.clone(),
            up: true,
            heard: None,
            failed: false,
            goes_on: false,
            stamp: None,
            left: None,
        };
        let spare = Spare {
            disk: Term::first(Side::Spare),
            revoked,
            up: true,
            backup,
            tombs,
            last: None,
            began: 0,
            yields: false,
            took: None,
            placing: false,
            failed: 0,
            failed_at: 0,
            given_backup: None,
            for_good: false,
        };
        Self {
            next: None,
            now: 0,
            linked: true,
            main,
            spare,
            next_key: 0,
            gone: Revoked::new(),
            incoming: None,
        }
    }

    fn main_stand(&self) -> Stand {
        let ago = self.main.heard.map(|at| Duration::from_secs(self.now - at));
        let Main { failed, goes_on, .. } = self.main;
        stand(&self.main.disk, &Heard { ago, failed, goes_on })
    }
    fn main_serves(&self) -> bool {
        self.main.up && self.main_stand() == Stand::Serves
    }
    fn spare_serves(&self) -> bool {
        !self.spare.for_good
            && self.spare.up
            && stand(&self.spare.disk, &Heard::default()) == Stand::Serves
    }

    /// The main box asks; the spare hears and answers.
    fn beat(&mut self) {
        if !self.main.up {
            return;
        }
        if !(self.linked && self.spare.up) {
            self.main.failed = true;
            return;
        }
        let asked = self.now;
        // It is told by its revoked certificate, for as long as that box lives.
        self.main.disk.retired |= self.spare.for_good;
        self.spare.last = Some(self.now);
        self.spare.yields = self.main.disk.yields;
        self.main.disk.heard(self.spare.disk.highest);
        // What was revoked while the two did not hear each other comes now, and counts where it comes to as well.
        if !self.spare.for_good {
            self.spare.tombs.extend(&self.main.revoked);
            self.gone.extend(&self.main.revoked);
            if self.spare.disk.stands_in() {
                self.spare.revoked.extend(&self.spare.tombs);
            }
        }
        (self.main.heard, self.main.failed) = (Some(asked), false);
    }

    /// Seconds since the main box was last heard: after a start only what was since then is known.
    fn silence(&self, dead: bool) -> Silence {
        let since = self.now - self.spare.last.unwrap_or(0).max(self.spare.began);
        let Spare { yields, .. } = self.spare;
        Silence { since: Duration::from_secs(since), yields, said_dead: dead }
    }

    /// It was heard a moment ago, in this life of the spare.
    fn main_is_there(&self) -> bool {
        self.spare.last.is_some_and(|at| at >= self.spare.began && self.now - at < 10)
    }

    fn is_begun(&self) -> bool {
        !self.spare.for_good && self.spare.disk.is_begun(self.spare.took)
    }

    /// What was begun and is not in place: the look that a spare takes every second.
    fn tend(&mut self) {
        if !(self.spare.up && self.is_begun() && !self.spare.placing) {
            return;
        }
        let begun = Begun {
            failed: self.spare.failed,
            since: Duration::from_secs(self.now - self.spare.failed_at),
            listened: Duration::from_secs(self.now - self.spare.began),
            waited: Duration::ZERO,
            there: self.main_is_there(),
            may_leave: self.spare.disk.may_leave(),
        };
        match next_of(&begun) {
            Next::GoesOn => self.spare.placing = true,
            Next::Leaves => drop(self.spare.disk.leave()),
            Next::Waits => {}
        }
    }

    /// A main box that serves writes down that it does.
    fn stamp(&mut self) {
        if self.main_serves() {
            self.main.stamp = Some(self.now);
        }
    }

    fn happens(&mut self, event: &Event) {
        self.stamp();
        match event {
            Event::Wait(seconds) => {
                self.now += seconds;
                self.stamp();
                if let Some(next) = &mut self.next {
                    next.happens(event);
                }
            }
            Event::Next(event) => {
                let Some(next) = &mut self.next else { return };
                // Of all events only time is one for everybody.
                if !matches!(**event, Event::Wait(_)) {
                    next.happens(event);
                }
            }
            Event::BecomeMain if self.spare_serves() => self.become_main(),
            // A process or a power cut of it is an event of its own world.
            Event::SpareProcess(_) if self.spare.for_good => {}
            // That machine is another one's main box now, and takes part here only by what it answers.
            Event::TakeOver { .. }
            | Event::TakeOverCutOff { .. }
            | Event::Place
            | Event::Tend
            | Event::GiveBack
            | Event::PutBack
            | Event::Backup
            | Event::Fetch
                if self.spare.for_good => {}
            Event::Link(up) => self.linked = *up,
            Event::Beat => self.beat(),
            Event::MainProcess(false) => self.main.up = false,
            Event::MainProcess(true) if !self.main.up => {
                let soon = |at: u64| self.now - at <= LEASE.as_secs();
                let goes_on = self.main.stamp.is_some_and(soon);
                (self.main.up, self.main.goes_on) = (true, goes_on);
                (self.main.heard, self.main.failed, self.main.left) = (None, false, None);
            }
            Event::MainPowerCut => (self.main.up, self.main.stamp) = (false, None),
            Event::SpareProcess(up) => {
                if *up && !self.spare.up {
                    (self.spare.began, self.spare.failed) = (self.now, 0);
                    // The first look hears what the other file says.
                    self.spare.took.map(|took| self.spare.disk.heard(took));
                }
                // A run that was cut off is none any more.
                (self.spare.up, self.spare.placing) = (*up, self.spare.placing && *up);
            }
            Event::Backup if self.linked && self.spare.up && self.main_serves() => {
                self.spare.backup = self.main.revoked.clone();
            }
            Event::Revoke => self.revoke(),
            Event::TakeOver { dead } if self.spare.up && !self.spare.placing => {
                // A steward who says so has looked.
                let off = !self.main.up && self.main.stamp.is_none_or(|at| self.now - at > 60);
                if allowed(&self.spare.disk, "oak", &self.silence(*dead && off)).is_ok() {
                    self.spare.took = Some(self.spare.disk.raise());
                    (self.spare.placing, self.spare.failed) = (true, 0);
                }
            }
            Event::TakeOverCutOff { dead } if self.spare.up && !self.spare.placing => {
                let off = !self.main.up && self.main.stamp.is_none_or(|at| self.now - at > 60);
                if allowed(&self.spare.disk, "oak", &self.silence(*dead && off)).is_ok() {
                    self.spare.took = Some(self.spare.disk.highest + 1);
                    self.spare.up = false;
                }
            }
            // Whoever came back meanwhile and has what the backup lacks is never fought.
            Event::Place
                if self.spare.up
                    && self.spare.placing
                    && self.main_is_there()
                    && self.spare.disk.may_leave() =>
            {
                self.happens(&Event::GiveUpPlacing);
            }
            Event::Place if self.spare.up && self.spare.placing => {
                let began = self.spare.took.unwrap_or_default();
                assert!(self.spare.disk.begin(began), "it takes over in a term that is over");
                assert!(self.spare.disk.leaves().is_none());
                self.spare.disk = self.spare.disk.serving();
                self.spare.revoked = &self.spare.backup | &self.spare.tombs;
                self.spare.placing = false;
            }
            Event::GiveUpPlacing if self.spare.placing => {
                self.spare.placing = false;
                (self.spare.failed, self.spare.failed_at) = (self.spare.failed + 1, self.now);
            }
            Event::Tend => self.tend(),
            Event::AskLeft
                if self.main.up
                    && self.linked
                    && self.spare.up
                    && !self.spare.for_good
                    && self.main_stand() == Stand::Fenced =>
            {
                self.main.left = self.spare.disk.leaves();
            }
            Event::GoOnAsLeft if self.main.up => {
                let left = self.main.left.take();
                if let Some(next) = left.and_then(|left| self.main.disk.going_on(left)) {
                    self.main.disk = next;
                }
            }
            Event::GiveBack if self.spare_serves() => {
                self.spare.given_backup = Some(self.spare.revoked.clone());
                self.spare.disk.give("x".to_owned());
            }
            Event::Fetch if self.main.up && self.linked && self.spare.up => {
                let given = self.spare.disk.given.clone();
                self.incoming = given.zip(self.spare.given_backup.clone()).or(self.incoming.take());
            }
            Event::PlaceAtMain => {
                if let Some((given, revoked)) = self.incoming.take()
                    && let Some(term) = self.main.disk.taking(&given)
                {
                    self.main.disk = term;
                    // No state that is put in place takes away what this box knows to be revoked.
                    self.main.revoked.extend(revoked);
                    // The supervisor begins anew, and has heard nobody in this life.
                    (self.main.heard, self.main.failed, self.main.goes_on) = (None, false, false);
                    self.main.stamp = None;
                }
            }
            Event::PutBack
                if self.spare.disk.given.is_some() && self.main_serves() && self.linked =>
            {
                self.spare.backup = self.main.revoked.clone();
                self.spare.disk = self.spare.disk.resting(String::new());
            }
            // Somebody at the machine, who knows that the spare does not serve.
            Event::SayAlone
                if self.main.up
                    && matches!(self.main_stand(), Stand::Asks | Stand::Waits)
                    && !self.spare.disk.theirs
                    && !self.spare.for_good
                    && !self.spare.placing
                    && !self.is_begun()
                    && self.spare.disk.highest == self.main.disk.highest
                    && !self.main.disk.yields =>
            {
                self.main.goes_on = true;
            }
            // A backup of long ago is restored on the main box; the tombstones its spare has are applied.
            Event::RestoreOlder if self.main.up => {
                self.main.revoked = self.spare.tombs.clone();
                (self.main.heard, self.main.goes_on, self.main.stamp) = (None, false, None);
            }
            _ => {}
        }
    }

    /// As the pair ends for it: the term of the two is forgotten, and the one with its new spare is another.
    fn become_main(&mut self) {
        let mut next = Self::new(false);
        next.now = self.now;
        (next.next_key, next.gone) = (self.next_key, self.gone.clone());
        next.main.revoked = self.spare.revoked.clone();
        // It was alone until now, and nobody can have taken over from it.
        next.main.goes_on = true;
        next.spare.revoked = self.spare.revoked.clone();
        (next.spare.backup, next.spare.tombs) = (self.gone.clone(), self.gone.clone());
        next.spare.began = self.now;
        self.spare.for_good = true;
        self.spare.placing = false;
        self.next = Some(Box::new(next));
    }

    fn revoke(&mut self) {
        let key = self.next_key;
        if self.spare_serves() {
            self.next_key += 1;
            self.spare.revoked.insert(key);
            self.spare.tombs.insert(key);
            self.gone.insert(key);
        } else if self.main_serves() && self.linked && self.spare.up {
            // It counts as told when the spare has it on disk.
            self.next_key += 1;
            self.main.revoked.insert(key);
            self.spare.tombs.insert(key);
            self.gone.insert(key);
        } else if self.main_serves() {
            // Nobody else knows of it yet.
            self.next_key += 1;
            self.main.revoked.insert(key);
        }
    }

    /// How many boxes serve the collective, of all that ever did.
    fn serving(&self) -> usize {
        let next = self.next.as_ref().map_or(0, |next| next.serving());
        usize::from(self.main_serves()) + usize::from(self.spare_serves()) + next
    }

    /// Whether somebody serves in the end, once everybody is on and nobody does anything but what boxes do by themselves; with
    /// `main` off where it is off.
    fn settles(&self, main: bool) -> bool {
        let mut world = self.clone();
        world.happens(&Event::SpareProcess(true));
        match main {
            true => {
                world.happens(&Event::Link(true));
                world.happens(&Event::MainProcess(true));
            }
            false => world.happens(&Event::MainProcess(false)),
        }
        let looks = [
            Event::Wait(LOOK),
            Event::Beat,
            Event::AskLeft,
            Event::GoOnAsLeft,
            Event::Tend,
            Event::Place,
            Event::Fetch,
            Event::PlaceAtMain,
        ];
        for _ in 0..BOUND / LOOK {
            looks.iter().for_each(|event| world.happens(event));
            assert!(world.serving() <= 1);
            if world.serving() == 1 {
                return true;
            }
        }
        false
    }

    /// What was begun and cut off is left to nobody.
    fn check_in_the_end(&self) -> Result<(), TestCaseError> {
        let (one, other) = (&self.main.disk, &self.spare.disk);
        if let Some(next) = &self.next {
            return next.check_in_the_end();
        }
        prop_assert!(self.settles(true), "both are on, and nobody serves: {one:?} {other:?}");
        // One that was heard a moment ago is left to serve: if it goes off just then, it is as it was before anybody asked the spare.
        if self.is_begun() && !self.main_is_there() {
            prop_assert!(self.settles(false), "the spare does not go on: {one:?} {other:?}");
        }
        Ok(())
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let (main, spare) = (self.main_serves(), self.spare_serves());
        let (one, other) = (&self.main.disk, &self.spare.disk);
        prop_assert!(self.serving() <= 1, "{} serve: {one:?} {other:?}", self.serving());
        if let Some(next) = &self.next {
            next.check()?;
            prop_assert!(!main && !spare, "a box that is out serves: {one:?} {other:?}");
        }
        for key in &self.gone {
            prop_assert!(!main || self.main.revoked.contains(key), "the main box lets {key} in");
            prop_assert!(!spare || self.spare.revoked.contains(key), "the spare lets {key} in");
        }
        Ok(())
    }
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => Just(Event::BecomeMain),
        30 => plain_event(),
        20 => plain_event().prop_map(|event| Event::Next(Box::new(event))),
        2 => Just(Event::Next(Box::new(Event::BecomeMain))),
    ]
}

fn plain_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0u64..90).prop_map(Event::Wait),
        2 => any::<bool>().prop_map(Event::Link),
        6 => Just(Event::Beat),
        2 => any::<bool>().prop_map(Event::MainProcess),
        1 => Just(Event::MainPowerCut),
        2 => any::<bool>().prop_map(Event::SpareProcess),
        2 => Just(Event::Backup),
        3 => Just(Event::Revoke),
        4 => any::<bool>().prop_map(|dead| Event::TakeOver { dead }),
        2 => any::<bool>().prop_map(|dead| Event::TakeOverCutOff { dead }),
        4 => Just(Event::Place),
        2 => Just(Event::GiveUpPlacing),
        2 => Just(Event::Tend),
        2 => Just(Event::AskLeft),
        2 => Just(Event::GoOnAsLeft),
        3 => Just(Event::GiveBack),
        3 => Just(Event::Fetch),
        3 => Just(Event::PlaceAtMain),
        2 => Just(Event::PutBack),
        1 => Just(Event::SayAlone),
        1 => Just(Event::RestoreOlder),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn in_every_order_of_events_nobody_revoked_comes_in_and_never_do_both_serve(
        yields: bool,
        events in prop::collection::vec(event(), 1..90),
    ) {
        let mut world = World::new(yields);
        for event in &events {
            world.happens(event);
            world.check()?;
        }
        world.check_in_the_end()?;
    }
}

/// The way it is meant: nobody who reads the test above could otherwise be sure that anything happens in it.
#[test]
fn the_main_box_dies_its_spare_takes_over_and_gives_back() {
    use Event::{
        Backup, Beat, Fetch, GiveBack, MainPowerCut, MainProcess, Place, PlaceAtMain, PutBack,
        Revoke, TakeOver, Wait,
    };
    let mut world = World::new(false);
    let happen = |world: &mut World, events: &[Event]| {
        for event in events {
            world.happens(event);
            world.check().unwrap();
        }
    };
    assert!(!world.main_serves(), "it has not asked yet");
    happen(&mut world, &[Beat]);
    assert!(world.main_serves());
    happen(&mut world, &[Backup, Revoke, MainPowerCut, Wait(70), TakeOver { dead: false }, Place]);
    assert!(!world.spare_serves(), "silence alone was enough");
    happen(&mut world, &[TakeOver { dead: true }, Place, Revoke]);
    assert!(world.spare_serves() && world.spare.revoked.len() == 2);
    happen(&mut world, &[MainProcess(true), Wait(99), Beat]);
    assert_eq!(world.main_stand(), Stand::Fenced);
    happen(&mut world, &[GiveBack, Fetch, PlaceAtMain]);
    assert_eq!(world.main_stand(), Stand::Asks);
    happen(&mut world, &[Beat]);
    assert!(world.main_serves() && world.main.revoked.len() == 2);
    happen(&mut world, &[PutBack]);
    assert!(!world.spare.disk.theirs);
}

/// The spare offers what it gave back until it has its own state again.
#[test]
fn a_main_box_that_took_its_state_back_does_not_take_it_once_more() {
    use Event::{
        Backup, Beat, Fetch, GiveBack, MainPowerCut, MainProcess, Place, PlaceAtMain, Revoke,
        TakeOver, Wait,
    };
    let mut world = World::new(false);
    for event in [
        &[Beat, Backup, MainPowerCut, Wait(70), TakeOver { dead: true }, Place][..],
        &[MainProcess(true), Beat, GiveBack, Fetch, PlaceAtMain, Beat],
        &[Fetch, Revoke, PlaceAtMain, Beat],
    ]
    .concat()
    {
        world.happens(&event);
        world.check().unwrap();
    }
    assert!(world.main_serves() && world.main.revoked.len() == 1);
}

/// The main box is lost, its spare stays, gets a spare of its own, is lost too, and the first one comes back after years.
#[test]
fn a_box_that_is_gone_for_good_never_serves_again_not_even_when_everybody_else_is_away() {
    use Event::{
        Backup, Beat, BecomeMain, Link, MainPowerCut, MainProcess, Next, Place, RestoreOlder,
        SayAlone, TakeOver, Wait,
    };
    let mut world = World::new(false);
    let next = |event| Next(Box::new(event));
    let mut happen = |events: &[Event]| {
        for event in events {
            world.happens(event);
            world.check().unwrap();
        }
        world.serving()
    };
    happen(&[Beat, Backup, MainPowerCut, Wait(70), TakeOver { dead: true }, Place]);
    assert_eq!(happen(&[BecomeMain]), 1);
    assert_eq!(happen(&[next(Beat), next(Backup)]), 1);
    assert_eq!(happen(&[MainProcess(true), Beat]), 1, "it is back, and hears that it is out");
    assert_eq!(happen(&[next(MainPowerCut), Wait(70)]), 0);
    assert_eq!(happen(&[next(TakeOver { dead: true }), next(Place)]), 1);
    // Nobody is there any more who could tell it, and it knows.
    assert_eq!(happen(&[Link(false), MainPowerCut, MainProcess(true), Beat, SayAlone]), 1);
    assert_eq!(happen(&[RestoreOlder, SayAlone]), 1);
    assert_eq!(world.main_stand(), Stand::Retired);
}
