//! Pure: taking over, giving back and taking back, as steps that people see.

use polder_control::{Plan, Step};
use polder_site::RecipeName;
use serde::{Deserialize, Serialize};

use crate::{Choice, Permission};

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Bring the other box's last backup beside what is there.
    Fetch,
    /// See whether it is a whole box.
    Examine,
    /// Keep what is this machine's, and take out what was revoked since.
    Fit,
    /// Begin a new term, in which nobody serves yet.
    Raise,
    /// Put it in place and begin anew as that box.
    PutInPlace,
    /// Close the door, so that nothing is written that the last backup lacks.
    CloseDoor,
    /// Make the last backup.
    Save,
    /// Hand the state over under a new term.
    Hand,
    /// Wait until the other box serves.
    Await,
    /// Put this box's own former state in its place.
    PutBack,
    /// Send a model to the spare.
    Send(RecipeName),
    /// Write down that the main box is gone for good, and forget it.
    Retire,
    /// Write down that this box is the main box.
    WriteRole,
    /// Listen for the box that was the main box.
    Listen,
}

/// What a takeover is about, as it is when it is planned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// What the main box is called.
    pub main: String,
    /// What the spare is called.
    pub spare: String,
    /// Its last backup: name, and seconds of age.
    pub backup: (String, i64),
    /// The highest term so far.
    pub term: u64,
    /// Why it is allowed.
    pub permission: Permission,
    /// What is served.
    pub choices: Vec<Choice>,
    /// Keys and members that were revoked, as far as the spare was told.
    pub revoked: usize,
}

impl Facts {
    /// The term that the spare serves in. One that was begun is gone on with.
    fn next(&self) -> u64 {
        self.term + u64::from(self.permission != Permission::Begun)
    }

    /// Everything that somebody should know before, one sentence each.
    pub fn sentences(&self) -> Vec<String> {
        let Self { main, spare, backup: (backup, age), .. } = self;
        let mut all = vec![
            match self.permission {
                Permission::Silent => format!(
                    "{main} is silent, and stops serving by itself when it does not hear from its spare."
                ),
                Permission::Begun => format!(
                    "A takeover was cut off after its term had begun; {main} serves nothing any more, and this box goes on with it."
                ),
                Permission::SaidDead => format!(
                    "You say that {main} is off. If it runs somewhere all the same, turn it off first: members who reach it would get answers from both."
                ),
            },
            format!(
                "{spare} becomes {main} from the backup {backup}, which is {} old. What was changed there in that time is lost: new members, new keys, passwords, usage.",
                time(*age)
            ),
            match self.revoked {
                0 => {
                    "No key and no member was revoked that the backup could still have.".to_owned()
                }
                1 => "One key or member that was revoked is taken out of it.".to_owned(),
                n => format!("{n} keys and members that were revoked are taken out of it."),
            },
            format!(
                "Names, certificates, members and keys are those of {main}: nobody has to change anything. Addresses, uplinks, battery and disk are those of this machine."
            ),
        ];
        all.extend(self.choices.iter().map(|choice| match choice {
            Choice::Theirs(name, recipe) => format!("{name} serves {recipe}, as on {main}."),
            Choice::Own { name, slot, instead_of, why } => format!(
                "{name} serves {}, the smaller model of this machine, instead of {instead_of}: {why}.",
                slot.recipe
            ),
            Choice::Without(name, recipe, why) => format!("{name} does not serve {recipe}: {why}."),
        }));
        if self.choices.is_empty() {
            all.push(format!("{main} serves no model, so this box serves none either."));
        }
        all.push(format!(
            "Term {} begins. When the machine of {main} comes back it hears that its own term is over, serves nothing, and says so; giving back is one press on the page Takeover.",
            self.next()
        ));
        all
    }
}

/// What a spare does to become its main box.
pub fn takeover(facts: &Facts) -> (Plan, Vec<Action>) {
    let title = format!("Take over from {}", facts.main);
    let who = Who { other: &facts.main, term: facts.next() };
    let actions = [Action::Fetch, Action::Examine, Action::Fit, Action::Raise, Action::PutInPlace];
    who.plan(title, actions)
}

/// What a box that stands in does to give back. It is never stopped in its middle: see `Hand`.
pub fn give_back(main: &str, term: u64) -> (Plan, Vec<Action>) {
    let who = Who { other: main, term: term + 1 };
    let actions = [Action::CloseDoor, Action::Save, Action::Hand, Action::Await, Action::PutBack];
    who.plan(format!("Give back to {main}"), actions)
}

/// What the main box does with what its spare hands it.
pub fn receive(spare: &str, term: u64) -> (Plan, Vec<Action>) {
    let who = Who { other: spare, term };
    let actions = [Action::Fetch, Action::Examine, Action::Fit, Action::PutInPlace];
    who.plan(format!("Take back from {spare}"), actions)
}

/// What is so when a box that stands in is to be the main box for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForGood {
    /// What the main box is called.
    pub main: String,
    /// It can be heard now.
    pub there: bool,
    /// The highest term so far.
    pub term: u64,
    /// Where this box listens for it.
    pub port: u16,
    /// The folder with what this box was before.
    pub own: Option<String>,
    /// Its certificate is revoked already: what was cut off goes on.
    pub retired: bool,
}

impl ForGood {
    /// Everything that somebody should know before, one sentence each.
    pub fn sentences(&self) -> Vec<String> {
        let Self { main, port, .. } = self;
        let mut all = vec![
            format!("This box is {main} from now on, for good: the machine that was {main} is never given back to. What was changed there after its last backup is lost."),
            match self.there {
                true => "That machine can be heard just now. It hears at once that it is out; if it is not lost at all, give back to it instead.".to_owned(),
                false => format!("If that machine ever comes back, in years even, it asks this box before it serves, hears that it is out, and says so on its own page. It finds this box at the address at which it knows it, at port {port}; where it cannot ask, it serves nothing either, unless somebody at it says `polder spare serve-anyway`."),
            },
            "Its certificate opens nothing here any more, its backups included. It can be used again once it is made new.".to_owned(),
            "Its disk has the collective's keys and its certificate authority. If somebody may have taken it: give the relay a new pass, and let members make new keys.".to_owned(),
            "This box can have a spare of its own afterwards, and needs a place for its backups.".to_owned(),
        ];
        if let Some(own) = &self.own {
            all.push(format!("What this box was before it took over stays on its disk, in {own}, and nobody serves it."));
        }
        all
    }
}

/// What a box that stands in does to be the main box for good. After the first step there is no way back.
pub fn become_main(facts: &ForGood) -> (Plan, Vec<Action>) {
    let who = Who { other: &facts.main, term: facts.term };
    let title = format!("Be {} for good", facts.main);
    let (mut plan, mut actions) =
        who.plan(title, [Action::Retire, Action::WriteRole, Action::Listen]);
    if facts.retired {
        plan.steps.remove(0);
        actions.remove(0);
    }
    (plan, actions)
}

/// What a main box sends its spare: models by name, each with what people call it and its size.
pub fn send(spare: &str, models: Vec<(RecipeName, String, Option<String>)>) -> (Plan, Vec<Action>) {
    let step = |(_, title, size): &(RecipeName, String, Option<String>)| {
        let size = size.as_ref().map(|size| format!(" ({size})")).unwrap_or_default();
        let title =
            format!("Send {title}{size} to {spare}; what is there already is not sent again");
        Step { id: "send-model".to_owned(), title }
    };
    let steps = models.iter().map(step).collect();
    let title = format!("Send the models to {spare}");
    (Plan { title, steps }, models.into_iter().map(|(recipe, ..)| Action::Send(recipe)).collect())
}

struct Who<'a> {
    other: &'a str,
    term: u64,
}

impl Who<'_> {
    fn plan<const N: usize>(&self, title: String, actions: [Action; N]) -> (Plan, Vec<Action>) {
        let steps = actions.iter().map(|action| self.step(action)).collect();
        (Plan { title, steps }, actions.into())
    }

    fn step(&self, action: &Action) -> Step {
        let Self { other, term } = self;
        let (id, title) = match action {
            Action::Send(recipe) => ("send-model", format!("Send {recipe} to {other}")),
            Action::Retire => (
                "retire",
                format!("Write down that the machine that was {other} is gone for good: its certificate opens nothing here any more"),
            ),
            Action::WriteRole => (
                "write-role",
                "Write down that this box is the main box, and can have a spare of its own".to_owned(),
            ),
            Action::Listen => (
                "listen",
                "Listen for that machine, to tell it so if it ever comes back".to_owned(),
            ),
            Action::Fetch => (
                "fetch-backup",
                format!("Fetch the last backup of {other}; nothing of this box changes yet"),
            ),
            Action::Examine => (
                "examine-backup",
                "See whether it is a whole box: its database, its site, its keys".to_owned(),
            ),
            Action::Fit => (
                "fit",
                "Keep this machine's own addresses, uplinks and models, and take out what was revoked since".to_owned(),
            ),
            Action::Raise => (
                "raise-term",
                format!("Begin term {term}: from here on {other} serves nothing when it comes back"),
            ),
            Action::PutInPlace => (
                "put-in-place",
                "Put what this box was aside, the other one in its place, and open the door".to_owned(),
            ),
            Action::CloseDoor => (
                "close-door",
                "Close the door: members see a pause until the other box serves".to_owned(),
            ),
            Action::Save => ("save", "Make a last backup with everything that happened here".to_owned()),
            Action::Hand => (
                "hand-over",
                format!("Begin term {term} and hand it to {other}: this box serves no more"),
            ),
            Action::Await => ("await", format!("Wait until {other} has restored it and serves")),
            Action::PutBack => (
                "put-back",
                "Put this box's own former state back in its place, and be the spare again".to_owned(),
            ),
        };
        Step { id: id.to_owned(), title }
    }
}

fn time(seconds: i64) -> String {
    let many = |n: i64, one: &str| if n == 1 { format!("1 {one}") } else { format!("{n} {one}s") };
    match seconds.max(0) {
        s @ 0..=119 => many(s, "second"),
        s @ 120..=7199 => many(s / 60, "minute"),
        s @ 7200..=172_799 => many(s / 3600, "hour"),
        s => many(s / 86_400, "day"),
    }
}

#[cfg(test)]
mod tests {
    use polder_site::EngineSlot;

    use super::*;

    #[test]
    fn what_is_shown_is_as_written_down() {
        let facts = Facts {
            main: "oak".to_owned(),
            spare: "elm".to_owned(),
            backup: ("1a2b3c4d".to_owned(), 2280),
            term: 4,
            permission: Permission::SaidDead,
            choices: vec![
                Choice::Own {
                    name: "fast".parse().unwrap(),
                    slot: EngineSlot::serving("small".parse().unwrap()),
                    instead_of: "big".parse().unwrap(),
                    why: "its weights are not here".to_owned(),
                },
                Choice::Without(
                    "slow".parse().unwrap(),
                    "huge".parse().unwrap(),
                    "its weights are not here".to_owned(),
                ),
            ],
            revoked: 2,
        };
        let silent = Facts {
            permission: Permission::Silent,
            choices: vec![Choice::Theirs("fast".parse().unwrap(), "big".parse().unwrap())],
            revoked: 0,
            ..facts.clone()
        };
        let mut shown = String::new();
        for facts in [&facts, &silent] {
            shown += &format!("{}\n\n{}\n\n", facts.sentences().join("\n"), takeover(facts).0);
        }
        let model = ("big".parse().unwrap(), "Big".to_owned(), Some("30 GiB".to_owned()));
        let for_good = ForGood {
            main: "oak".to_owned(),
            there: false,
            term: 5,
            port: 8444,
            own: Some("before-restore-20261127T020000Z".to_owned()),
            retired: false,
        };
        let there = ForGood { there: true, own: None, retired: true, ..for_good.clone() };
        for facts in [&for_good, &there] {
            shown += &format!("{}\n\n{}\n\n", facts.sentences().join("\n"), become_main(facts).0);
        }
        for (plan, _) in [give_back("oak", 5), receive("elm", 6), send("elm", vec![model])] {
            shown += &format!("{plan}\n\n");
        }
        assert_eq!(shown, include_str!("plan.golden.txt"));
    }

    #[test]
    fn ages_read_as_people_say_them() {
        let said = [(-5, "0 seconds"), (1, "1 second"), (130, "2 minutes"), (7300, "2 hours")];
        for (seconds, words) in said {
            assert_eq!(time(seconds), words);
        }
    }
}
