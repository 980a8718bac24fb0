//! How far the set-up has come, as plain data: one function, [`Wizard::next`], says what may
//! happen now. No I/O: see [`crate::routes`] for the shell around it.

use std::net::IpAddr;

use polder_control::RunId;
use polder_site::{BoxName, RecipeName};
use serde::{Deserialize, Serialize};

/// One idea, one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Show that you may: the one-time code from the machine itself.
    Claim,
    /// Look at what this machine is.
    Machine,
    /// Choose a model.
    Model,
    /// Bring it in.
    Import,
    /// Name the box and say who may reach it.
    Address,
    /// Say whether it lives off a battery when the mains is away.
    Power,
    /// Say whether there is a second way to the internet, and which is paid by its amount.
    Lines,
    /// Make the first member, a steward.
    Member,
    /// The wizard is over.
    Done,
}

impl Step {
    /// Every step that has a page to fill in, in order.
    pub const NUMBERED: [Self; 8] = [
        Self::Claim,
        Self::Machine,
        Self::Model,
        Self::Import,
        Self::Address,
        Self::Power,
        Self::Lines,
        Self::Member,
    ];

    /// What the page is called.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Claim => "Claim this box",
            Self::Machine => "This machine",
            Self::Model => "Choose a model",
            Self::Import => "Bring the model in",
            Self::Address => "Name and addresses",
            Self::Power => "When the mains goes away",
            Self::Lines => "The ways to the internet",
            Self::Member => "The first member",
            Self::Done => "Done",
        }
    }

    /// The same in a word or two, for a list.
    pub const fn in_short(self) -> &'static str {
        match self {
            Self::Claim => "Claim",
            Self::Machine => "Machine",
            Self::Model => "Model",
            Self::Import => "Import",
            Self::Address => "Name",
            Self::Power => "Battery",
            Self::Lines => "Lines",
            Self::Member => "You",
            Self::Done => "Done",
        }
    }

    /// Where its page is.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Claim => "/setup/claim",
            Self::Machine => "/setup/machine",
            Self::Model => "/setup/model",
            Self::Import => "/setup/import",
            Self::Address => "/setup/address",
            Self::Power => "/setup/power",
            Self::Lines => "/setup/lines",
            Self::Member => "/setup/member",
            Self::Done => "/",
        }
    }

    /// Its place among [`Self::NUMBERED`], from 1; `None` for [`Self::Done`].
    pub fn number(self) -> Option<usize> {
        Self::NUMBERED.iter().position(|step| *step == self).map(|index| index + 1)
    }
}

/// How far the set-up has come, and what was decided so far.
///
/// Where the person is follows from that: the first step whose condition does not hold. So nobody
/// is ever past a step that is not done, and the wizard is over exactly once, when the last
/// condition holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wizard {
    over: bool,
    claimed: bool,
    machine_seen: bool,
    recipe: Option<RecipeName>,
    run: Option<RunId>,
    served: Option<RecipeName>,
    wanted: Option<Address>,
    door_run: Option<RunId>,
    name: Option<BoxName>,
    // These came later than the first notes.
    #[serde(default)]
    power_run: Option<RunId>,
    #[serde(default)]
    power: bool,
    #[serde(default)]
    lines_run: Option<RunId>,
    #[serde(default)]
    lines: bool,
    member: Option<String>,
}

/// What the person wants the box to be called, and where it should answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Address {
    /// Its name.
    pub name: BoxName,
    /// Addresses to listen on.
    pub listen: Vec<IpAddr>,
    /// Other host names.
    pub names: Vec<String>,
}

/// Something that a person did, or that the box noticed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Somebody showed the code.
    Claimed,
    /// The person has seen the machine page.
    MachineSeen,
    /// The person chose a model.
    Chose(RecipeName),
    /// The supervisor began to import it.
    ImportBegan(RunId),
    /// It is there and runs.
    ImportDone(RunId),
    /// It is not there, and nothing works on it any more: cancelled, failed for good, forgotten.
    ImportStopped(RunId),
    /// The person said what the box is called and where it answers.
    Wants(Address),
    /// The supervisor began a part of that.
    DoorMoves(RunId),
    /// It could not be done; the person says something else, or the same again.
    DoorStuck,
    /// It is done: the box has the name and addresses that the person wants.
    Addressed,
    /// The supervisor began to listen to a UPS.
    PowerBegan(RunId),
    /// The person goes on from there: with that UPS, or without one.
    PowerSettled,
    /// The supervisor began to look after lines to the internet.
    LinesBegan(RunId),
    /// The person goes on from there: with those, or with the one that the machine has.
    LinesSettled,
    /// There is a first steward.
    MemberMade(String),
    /// Somebody at the machine opened the wizard again.
    Reopened,
}

/// Why an event cannot happen now. Each is a sentence for the person at the page.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A step before it is not done.
    #[error("that comes later: first finish the step \"{}\"", .0.title())]
    NotYet(Step),
    /// The choice cannot change under a running import.
    #[error("a model is being brought in just now; wait for it, or stop it first")]
    ImportRuns,
    /// News of an import that is not the one we wait for.
    #[error("that import is not the one the wizard waits for; load the page again")]
    OtherRun,
    /// The wizard is over.
    #[error(
        "this box is set up already; sign in to change something, or type at the machine: polder claim reopen"
    )]
    Over,
    /// Only a wizard that is over can be opened again.
    #[error("the set-up is not finished yet, so there is nothing to open again")]
    NotOver,
}

impl Default for Wizard {
    fn default() -> Self {
        Self::new()
    }
}

impl Wizard {
    /// A box that nobody has claimed.
    pub const fn new() -> Self {
        Self {
            over: false,
            claimed: false,
            machine_seen: false,
            recipe: None,
            run: None,
            served: None,
            wanted: None,
            door_run: None,
            name: None,
            power_run: None,
            power: false,
            lines_run: None,
            lines: false,
            member: None,
        }
    }

    /// A box that got its first steward without the wizard, from `polder up --yes`, or whose
    /// notes were lost after it was set up.
    pub fn set_up_elsewhere(steward: String) -> Self {
        Self { over: true, member: Some(steward), ..Self::new() }
    }

    /// Where the person is: the first step whose condition does not hold. Every earlier page may be
    /// looked at again, and what was decided there may be decided anew.
    pub fn step(&self) -> Step {
        if self.over {
            return Step::Done;
        }
        let conditions = [
            (Step::Claim, self.claimed),
            (Step::Machine, self.machine_seen),
            (Step::Model, self.recipe.is_some()),
            (Step::Import, self.is_served()),
            (Step::Address, self.name.is_some()),
            (Step::Power, self.power),
            (Step::Lines, self.lines),
            (Step::Member, self.member.is_some()),
        ];
        conditions.into_iter().find(|(_, holds)| !holds).map_or(Step::Done, |(step, _)| step)
    }
    /// The chosen model.
    pub const fn recipe(&self) -> Option<&RecipeName> {
        self.recipe.as_ref()
    }
    /// The import that was begun for it, while it is not known to be over.
    pub const fn run(&self) -> Option<RunId> {
        self.run
    }
    /// True when the chosen model is there and runs.
    pub fn is_served(&self) -> bool {
        self.recipe.is_some() && self.served == self.recipe
    }
    /// What the box should be called and where it should answer, while it is not known to.
    pub const fn wanted(&self) -> Option<&Address> {
        self.wanted.as_ref()
    }
    /// What the supervisor does about that.
    pub const fn door_run(&self) -> Option<RunId> {
        self.door_run
    }
    /// What the supervisor did, or does, about a UPS.
    pub const fn power_run(&self) -> Option<RunId> {
        self.power_run
    }
    /// What the supervisor did, or does, about lines to the internet.
    pub const fn lines_run(&self) -> Option<RunId> {
        self.lines_run
    }
    /// What the box was called here.
    pub const fn name(&self) -> Option<&BoxName> {
        self.name.as_ref()
    }
    /// The first steward.
    pub fn member(&self) -> Option<&str> {
        self.member.as_deref()
    }
    /// True on a box that was set up before and is gone through again.
    pub fn is_reopened(&self) -> bool {
        self.member.is_some() && !self.over
    }

    /// What the wizard is after this event, or why it cannot happen now.
    pub fn next(mut self, event: Event) -> Result<Self, Refusal> {
        if event == Event::Reopened {
            return self.reopened();
        }
        if self.over {
            return Err(Refusal::Over);
        }
        match event {
            Event::Claimed => self.claimed = true,
            Event::MachineSeen => {
                self.at_least(Step::Machine)?;
                self.machine_seen = true;
            }
            Event::Chose(recipe) => {
                self.at_least(Step::Model)?;
                if self.recipe.as_ref() != Some(&recipe) && self.run.is_some() {
                    return Err(Refusal::ImportRuns);
                }
                self.recipe = Some(recipe);
            }
            Event::ImportBegan(run) => {
                self.at_least(Step::Import)?;
                self.run = Some(run);
                self.served = None;
            }
            Event::ImportDone(run) => {
                self.waits_no_more(run)?;
                self.served = self.recipe.clone();
            }
            Event::ImportStopped(run) => self.waits_no_more(run)?,
            Event::Wants(address) => {
                self.at_least(Step::Address)?;
                (self.wanted, self.door_run, self.name) = (Some(address), None, None);
            }
            Event::DoorMoves(run) => {
                self.wants()?;
                self.door_run = Some(run);
            }
            Event::DoorStuck => {
                self.wants()?;
                (self.wanted, self.door_run) = (None, None);
            }
            Event::Addressed => {
                self.wants()?;
                self.name = self.wanted.take().map(|address| address.name);
                self.door_run = None;
            }
            Event::PowerBegan(run) => {
                self.at_least(Step::Power)?;
                (self.power_run, self.power) = (Some(run), false);
            }
            Event::PowerSettled => {
                self.at_least(Step::Power)?;
                self.power = true;
            }
            Event::LinesBegan(run) => {
                self.at_least(Step::Lines)?;
                (self.lines_run, self.lines) = (Some(run), false);
            }
            Event::LinesSettled => {
                self.at_least(Step::Lines)?;
                self.lines = true;
            }
            Event::MemberMade(member) => {
                self.at_least(Step::Member)?;
                self.member = Some(member);
            }
            Event::Reopened => unreachable!("handled before a wizard that is over refuses"),
        }
        self.over = self.step() == Step::Done;
        Ok(self)
    }

    /// What types cannot say about a stored state.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        if self.over && self.member.is_none() {
            return Err("they say that it is over, yet there is no first member");
        }
        if !self.over && self.step() == Step::Done {
            return Err("they say that everything is done, yet it is not over");
        }
        if self.door_run.is_some() && self.wanted.is_none() {
            return Err("they wait for a door that nobody opens");
        }
        if self.run.is_some() && (self.recipe.is_none() || self.is_served()) {
            return Err("they wait for an import that nobody needs");
        }
        Ok(())
    }

    fn reopened(self) -> Result<Self, Refusal> {
        if !self.over {
            return Err(Refusal::NotOver);
        }
        // The model and the members stay; everything a person confirms is confirmed again.
        Ok(Self { recipe: self.recipe, served: self.served, member: self.member, ..Self::new() })
    }

    fn at_least(&self, step: Step) -> Result<(), Refusal> {
        let here = self.step();
        if here < step { Err(Refusal::NotYet(here)) } else { Ok(()) }
    }

    fn wants(&self) -> Result<(), Refusal> {
        self.at_least(Step::Address)?;
        if self.wanted.is_none() { Err(Refusal::NotYet(Step::Address)) } else { Ok(()) }
    }

    fn waits_no_more(&mut self, run: RunId) -> Result<(), Refusal> {
        if self.run != Some(run) {
            return Err(Refusal::OtherRun);
        }
        self.run = None;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stored::Stored;
    use proptest::prelude::*;

    fn recipe(name: &str) -> RecipeName {
        name.parse().unwrap()
    }

    fn address(name: &str) -> Event {
        let listen = vec![[127, 0, 0, 1].into()];
        Event::Wants(Address { name: name.parse().unwrap(), listen, names: Vec::new() })
    }

    fn after(events: &[Event]) -> Wizard {
        events.iter().fold(Wizard::new(), |wizard, event| wizard.next(event.clone()).unwrap())
    }

    fn story() -> Vec<Event> {
        vec![
            Event::Claimed,
            Event::MachineSeen,
            Event::Chose(recipe("small")),
            Event::ImportBegan(RunId(1)),
            Event::ImportDone(RunId(1)),
            address("box"),
            Event::Addressed,
            Event::PowerSettled,
            Event::LinesSettled,
            Event::MemberMade("ada".into()),
        ]
    }

    #[test]
    fn the_whole_story_visits_every_step_in_order() {
        let mut wizard = Wizard::new();
        let mut steps = vec![wizard.step()];
        for event in story() {
            wizard = wizard.next(event).unwrap();
            steps.push(wizard.step());
        }
        steps.dedup();
        let mut all = Step::NUMBERED.to_vec();
        all.push(Step::Done);
        assert_eq!(steps, all);
    }

    #[test]
    fn no_event_but_the_next_ones_is_taken_before_its_step() {
        let story = story();
        for (done, _) in story.iter().enumerate() {
            let wizard = after(&story[..done]);
            for later in &story[done + 1..] {
                let refused = wizard.clone().next(later.clone());
                assert!(refused.is_err(), "{later:?} was taken at {:?}", wizard.step());
            }
        }
    }

    #[test]
    fn after_the_end_everything_is_refused_until_it_is_opened_again() {
        let over = after(&story());
        for event in story() {
            assert_eq!(over.clone().next(event), Err(Refusal::Over));
        }
        let again = over.next(Event::Reopened).unwrap();
        assert_eq!(again.step(), Step::Claim);
        assert!(again.is_reopened());
        assert_eq!(again.clone().next(Event::Reopened), Err(Refusal::NotOver));
        let mut again = again.next(Event::Claimed).unwrap().next(Event::MachineSeen).unwrap();
        // The model is still there, the first member too: only the name, the battery and the lines are asked for.
        assert_eq!(again.step(), Step::Address);
        again = again.next(address("other")).and_then(|w| w.next(Event::Addressed)).unwrap();
        again = again.next(Event::PowerSettled).and_then(|w| w.next(Event::LinesSettled)).unwrap();
        assert_eq!((again.step(), again.member()), (Step::Done, Some("ada")));
    }

    #[test]
    fn another_model_can_be_chosen_until_the_end_but_not_under_a_running_import() {
        let importing = after(&story()[..4]);
        assert_eq!(importing.clone().next(Event::Chose(recipe("big"))), Err(Refusal::ImportRuns));
        let stopped = importing.next(Event::ImportStopped(RunId(1))).unwrap();
        let other = stopped.next(Event::Chose(recipe("big"))).unwrap();
        assert_eq!((other.step(), other.run()), (Step::Import, None));

        let named = after(&story()[..9]);
        let other = named.next(Event::Chose(recipe("big"))).unwrap();
        assert_eq!(other.step(), Step::Import);
        let there = other
            .next(Event::ImportBegan(RunId(2)))
            .and_then(|w| w.next(Event::ImportDone(RunId(2))))
            .unwrap();
        assert_eq!(there.step(), Step::Member);
    }

    #[test]
    fn news_of_another_import_is_refused() {
        let importing = after(&story()[..4]);
        assert_eq!(importing.clone().next(Event::ImportDone(RunId(9))), Err(Refusal::OtherRun));
        assert_eq!(importing.next(Event::ImportStopped(RunId(9))), Err(Refusal::OtherRun));
    }

    fn any_event() -> impl Strategy<Value = Event> {
        let run = || (0..3_u64).prop_map(RunId);
        prop_oneof![
            Just(Event::Claimed),
            Just(Event::MachineSeen),
            prop_oneof![Just("small"), Just("big")].prop_map(|name| Event::Chose(recipe(name))),
            run().prop_map(Event::ImportBegan),
            run().prop_map(Event::ImportDone),
            run().prop_map(Event::ImportStopped),
            Just(address("box")),
            run().prop_map(Event::DoorMoves),
            Just(Event::DoorStuck),
            Just(Event::Addressed),
            run().prop_map(Event::PowerBegan),
            Just(Event::PowerSettled),
            run().prop_map(Event::LinesBegan),
            Just(Event::LinesSettled),
            "[a-z\"<\u{e9}]{1,6}".prop_map(Event::MemberMade),
            Just(Event::Reopened),
        ]
    }

    proptest! {
        #[test]
        fn whatever_happens_no_step_is_skipped_and_every_state_survives_being_stored(
            events in proptest::collection::vec(any_event(), 0..80)
        ) {
            let mut wizard = Wizard::new();
            // Kept apart from the machine's own books.
            let (mut claimed, mut seen, mut there, mut named) = (false, false, false, false);
            let (mut power, mut lines, mut member) = (false, false, false);
            let (mut ends, mut openings) = (0, 0);
            for event in events {
                let before = wizard.clone();
                let Ok(after) = wizard.clone().next(event.clone()) else { continue };
                match &event {
                    Event::Claimed => claimed = true,
                    Event::MachineSeen => seen = true,
                    Event::Chose(name) => there &= before.recipe() == Some(name) || after.is_served(),
                    Event::ImportBegan(_) => there = false,
                    Event::ImportDone(run) => there = before.run() == Some(*run),
                    Event::ImportStopped(_) => {}
                    Event::Wants(_) => named = false,
                    Event::DoorMoves(_) | Event::DoorStuck => {
                        prop_assert!(before.wanted().is_some());
                    }
                    Event::Addressed => named = true,
                    Event::PowerBegan(_) | Event::PowerSettled => {
                        prop_assert!(claimed && seen && there && named);
                        power = event == Event::PowerSettled;
                    }
                    Event::LinesBegan(_) | Event::LinesSettled => {
                        prop_assert!(claimed && seen && there && named && power);
                        lines = event == Event::LinesSettled;
                    }
                    Event::MemberMade(_) => {
                        prop_assert!(claimed && seen && there && named && power && lines && !member);
                        member = true;
                    }
                    Event::Reopened => {
                        prop_assert_eq!(before.step(), Step::Done);
                        (claimed, seen, named) = (false, false, false);
                        (power, lines) = (false, false);
                        openings += 1;
                    }
                }
                // Going back to a model that is served still counts as there.
                there = there || after.is_served();
                if after.step() == Step::Done && before.step() != Step::Done {
                    ends += 1;
                    prop_assert!(claimed && seen && there && named && power && lines && member);
                }
                prop_assert!(after.step() <= Step::Claim || claimed);
                prop_assert!(after.step() <= Step::Machine || seen);
                prop_assert!(after.step() <= Step::Import || after.is_served());
                prop_assert!(after.step() <= Step::Address || named);
                prop_assert!(after.step() <= Step::Power || power);
                prop_assert!(after.step() <= Step::Lines || lines);
                prop_assert!(after.step() <= Step::Member || member);
                prop_assert!(ends <= openings + 1);
                prop_assert_eq!(after.check(), Ok(()));
                let stored = Stored { wizard: after.clone(), notice: None };
                let steward = after.member().map(str::to_owned);
                prop_assert_eq!(Stored::read(Some(&stored.to_json()), steward.as_deref()), stored);
                wizard = after;
            }
        }
    }
}
