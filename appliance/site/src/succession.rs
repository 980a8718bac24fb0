//! A change of model: another model comes beside the one that serves, a few members try it, its time is announced, one name is
//! switched, and the former model stays until a steward lets it go.
//!
//! Everything here is a pure function of the site, and a step is one rewrite of it: a power cut leaves the site before the step or
//! the one after, and either is a box that serves. A step that was done is done again without an effect.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::document::{EngineSlot, Site};
use crate::names::{EngineName, ModelAlias};

/// A change of model that is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Succession {
    /// The name that members' programs use; it is what is switched.
    pub alias: ModelAlias,
    /// The slot of the model that is to be replaced.
    pub from: EngineName,
    /// The slot of the one that replaces it.
    pub to: EngineName,
    /// How far it is.
    pub stage: Stage,
    /// Both run at once. Otherwise one of them does, and the other one's slot is in `parked`.
    pub beside: bool,
    /// When the name is switched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
    /// When the new one is tried in the place of the old one, where both do not fit beside each other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hours: Vec<TrialHours>,
    /// What does not run just now, of the two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parked: Option<EngineSlot>,
}

/// How far a change of model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Members whom a steward chose try the new one.
    Trial,
    /// The same, and everybody knows when the name is switched.
    Announced,
    /// The name leads to the new one. The former one can have it back.
    Switched,
}

/// A span in which the new model runs in the place of the old one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrialHours {
    /// Its beginning.
    pub from: Timestamp,
    /// Its end.
    pub until: Timestamp,
}

/// What may be done about a change of model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SuccessionStep {
    /// Another model comes, for a trial.
    Begin {
        /// The name that is to be switched; made where there is none of that name.
        alias: ModelAlias,
        /// The slot whose model is to be replaced.
        from: EngineName,
        /// What comes.
        slot: EngineSlot,
        /// Beside the old one, or in its place at certain hours.
        beside: bool,
        /// Those hours.
        hours: Vec<TrialHours>,
    },
    /// The name is switched then.
    Announce {
        /// When.
        at: Timestamp,
    },
    /// It is not switched then.
    Withdraw,
    /// Hours of the trial begin: the new model runs in the place of the old one.
    HoursBegin {
        /// They end then.
        until: Timestamp,
    },
    /// Hours of the trial are over.
    HoursEnd {
        /// All that ended before.
        until: Timestamp,
    },
    /// The name leads to the new model.
    Switch,
    /// The name leads to the former model again; the new one is on trial as before.
    Return,
    /// The former model goes. Its weights stay on the disk.
    LetGo,
    /// The new model goes; nothing was switched.
    CallOff,
}

/// Why a step cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SuccessionError {
    /// Another one is under way.
    #[error(
        "the model behind {0} is being changed already; end that on the page \"Change the model\" first"
    )]
    Busy(ModelAlias),
    /// There is nothing to go on with.
    #[error("no change of model is under way; begin one on the page \"Change the model\"")]
    None,
    /// The slot is not there.
    #[error("there is no engine {0} whose model could be replaced")]
    NoEngine(EngineName),
    /// The name leads elsewhere.
    #[error(
        "the name {alias} leads to the engine {to}; choose another name, or replace that one's model"
    )]
    Elsewhere {
        /// The name.
        alias: ModelAlias,
        /// Where it leads.
        to: EngineName,
    },
    /// Hours are for models that do not fit beside each other.
    #[error(
        "a trial beside the old model needs no hours, and one in its place needs some that do not overlap"
    )]
    Hours,
    /// It has happened.
    #[error("the name {0} was switched already; return to the former model, or let it go")]
    Switched(ModelAlias),
    /// It has not happened.
    #[error("the name {0} was not switched yet, so that there is no former model to let go")]
    NotSwitched(ModelAlias),
}

impl Succession {
    /// The slot that only those may use who try it, or nobody any more when the name is switched.
    pub fn on_trial(&self) -> Option<&EngineName> {
        (self.stage != Stage::Switched).then_some(&self.to)
    }

    /// Where the name leads.
    pub fn serves(&self) -> &EngineName {
        match self.stage {
            Stage::Switched => &self.to,
            Stage::Trial | Stage::Announced => &self.from,
        }
    }

    /// The slot that is not in `engines` now.
    pub fn parked_name(&self, site: &Site) -> Option<&EngineName> {
        self.parked.as_ref()?;
        [&self.from, &self.to].into_iter().find(|name| !site.engines.contains_key(*name))
    }

    /// When the hours end that are running.
    pub fn hours_until(&self, now: Timestamp) -> Option<Timestamp> {
        self.hours.iter().find(|h| h.from <= now && now < h.until).map(|h| h.until)
    }
}

impl Site {
    /// The site after a step of a change of model.
    pub fn stepped(&self, step: &SuccessionStep) -> Result<Self, SuccessionError> {
        use SuccessionStep as S;
        let mut next = self.clone();
        let Some(now) = &self.succession else {
            return match step {
                S::Begin { .. } => self.begun(step),
                S::Withdraw | S::Return | S::LetGo | S::CallOff | S::HoursEnd { .. } => Ok(next),
                S::Announce { .. } | S::HoursBegin { .. } | S::Switch => Err(SuccessionError::None),
            };
        };
        let mut then = now.clone();
        let switched = now.stage == Stage::Switched;
        match step {
            S::Begin { alias, from, slot, .. } => {
                let candidate = self.engines.get(&now.to).or(now.parked.as_ref());
                let same = now.alias == *alias && now.from == *from && candidate == Some(slot);
                return if same { Ok(next) } else { Err(SuccessionError::Busy(now.alias.clone())) };
            }
            S::Announce { .. } if switched => {
                return Err(SuccessionError::Switched(now.alias.clone()));
            }
            S::Announce { at } => {
                then.stage = Stage::Announced;
                then.at = Some(*at);
            }
            S::Withdraw if switched => return Ok(next),
            S::Withdraw => {
                then.stage = Stage::Trial;
                then.at = None;
            }
            S::HoursBegin { .. } | S::HoursEnd { .. } if switched || now.beside => return Ok(next),
            S::HoursBegin { .. } => then.run(&mut next, &now.to),
            S::HoursEnd { until } => {
                then.hours.retain(|hours| hours.until > *until);
                then.run(&mut next, &now.from);
            }
            S::Switch if switched => return Ok(next),
            S::Switch => {
                then.stage = Stage::Switched;
                then.at = None;
                then.hours.clear();
                then.run(&mut next, &now.to);
                next.lead(&now.from, &now.to);
            }
            S::Return if !switched => return Ok(next),
            S::Return => {
                then.stage = Stage::Trial;
                then.run(&mut next, &now.from);
                next.lead(&now.to, &now.from);
            }
            S::LetGo if !switched => {
                return Err(SuccessionError::NotSwitched(now.alias.clone()));
            }
            S::LetGo => {
                next.engines.remove(&now.from);
                next.succession = None;
                return Ok(next);
            }
            S::CallOff if switched => return Err(SuccessionError::Switched(now.alias.clone())),
            S::CallOff => {
                then.run(&mut next, &now.from);
                next.engines.remove(&now.to);
                next.succession = None;
                return Ok(next);
            }
        }
        next.succession = Some(then);
        Ok(next)
    }

    fn begun(&self, step: &SuccessionStep) -> Result<Self, SuccessionError> {
        let SuccessionStep::Begin { alias, from, slot, beside, hours } = step else {
            return Err(SuccessionError::None);
        };
        if !self.engines.contains_key(from) {
            return Err(SuccessionError::NoEngine(from.clone()));
        }
        if let Some(to) = self.aliases.get(alias).filter(|to| *to != from) {
            return Err(SuccessionError::Elsewhere { alias: alias.clone(), to: to.clone() });
        }
        if *beside != hours.is_empty() || !in_order(hours) {
            return Err(SuccessionError::Hours);
        }
        let mut next = self.clone();
        let to = self.free_slot(from);
        next.aliases.insert(alias.clone(), from.clone());
        if *beside {
            next.engines.insert(to.clone(), slot.clone());
        }
        next.succession = Some(Succession {
            alias: alias.clone(),
            from: from.clone(),
            to,
            stage: Stage::Trial,
            beside: *beside,
            at: None,
            hours: hours.clone(),
            parked: (!beside).then(|| slot.clone()),
        });
        Ok(next)
    }

    /// A name for a slot after this one: `fast-2` after `fast`, `fast-3` after that.
    fn free_slot(&self, after: &EngineName) -> EngineName {
        let base = match after.as_str().rsplit_once('-') {
            Some((base, number)) if number.bytes().all(|c| c.is_ascii_digit()) => base,
            _ => after.as_str(),
        };
        let base = base[..base.len().min(26)].trim_end_matches('-');
        let taken = |name: &str| {
            self.engines.keys().any(|engine| engine.as_str() == name)
                || self.aliases.keys().any(|alias| alias.as_str() == name)
        };
        let names = (2_u32..).map(|number| format!("{base}-{number}"));
        let mut names = names.filter(|name| !taken(name)).filter_map(|name| name.parse().ok());
        names.next().expect("there are more numbers than engines")
    }

    /// Every name that led to one slot leads to another.
    fn lead(&mut self, from: &EngineName, to: &EngineName) {
        self.aliases.values_mut().filter(|slot| *slot == from).for_each(|slot| *slot = to.clone());
    }

    /// The step that is due by the clock, if one is.
    pub fn succession_due(&self, now: Timestamp) -> Option<SuccessionStep> {
        let under_way = self.succession.as_ref()?;
        if under_way.stage == Stage::Switched {
            return None;
        }
        if under_way.at.is_some_and(|at| at <= now) {
            return Some(SuccessionStep::Switch);
        }
        match (under_way.hours_until(now), under_way.parked_name(self)) {
            (Some(until), Some(parked)) if *parked == under_way.to => {
                Some(SuccessionStep::HoursBegin { until })
            }
            (None, Some(parked)) if *parked == under_way.from => {
                Some(SuccessionStep::HoursEnd { until: now })
            }
            _ => None,
        }
    }

    /// What the site is after a step that failed: as before, but for what would have the box try the same again by itself. A trial that
    /// cannot be ended stays ended: the model that serves is started again and again in any case.
    pub fn after_failed(&self, step: &SuccessionStep, before: &Self) -> Self {
        let mut back = before.clone();
        match (step, &mut back.succession) {
            (SuccessionStep::HoursEnd { .. }, _) => return self.clone(),
            (SuccessionStep::Switch, Some(under_way)) if under_way.stage == Stage::Announced => {
                under_way.stage = Stage::Trial;
                under_way.at = None;
            }
            (SuccessionStep::HoursBegin { until }, Some(under_way)) => {
                under_way.hours.retain(|hours| hours.until > *until);
            }
            _ => {}
        }
        let mut site = self.clone();
        (site.engines, site.aliases, site.succession) =
            (back.engines, back.aliases, back.succession);
        site
    }

    /// What no step brings about, and a text editor may.
    pub(crate) fn check_succession(&self) -> Result<(), String> {
        let parked = self.succession.as_ref().and_then(|under_way| under_way.parked_name(self));
        for (alias, to) in &self.aliases {
            if !self.engines.contains_key(to) && parked != Some(to) {
                return Err(format!(
                    "aliases.{alias} leads to the engine {to}, which is not there; remove the name first, or have it lead to another engine"
                ));
            }
        }
        let Some(s) = &self.succession else { return Ok(()) };
        let here = [&s.from, &s.to].map(|name| self.engines.contains_key(name));
        let fault = if s.from == s.to {
            "from and to are the same engine"
        } else if self.aliases.get(&s.alias) != Some(s.serves()) {
            "its name is not in aliases, or leads to another engine than its stage says"
        } else if s.beside != s.parked.is_none() {
            "parked has a slot where both models run, or none where only one does"
        } else if s.beside && here != [true, true] {
            "one of its engines is gone"
        } else if !s.beside && here[0] == here[1] {
            "of its two engines exactly one must run"
        } else if (s.stage == Stage::Announced) != s.at.is_some() {
            "at is there where nothing is announced, or is lacking where something is"
        } else if !in_order(&s.hours) {
            "its hours overlap or end before they begin"
        } else {
            return Ok(());
        };
        Err(format!(
            "succession: {fault}; end the change of model on its page before you change its engines or names"
        ))
    }
}

impl Succession {
    /// Has one of the two run, and parks the other one, where they do not run both.
    fn run(&mut self, site: &mut Site, which: &EngineName) {
        if self.beside || site.engines.contains_key(which) {
            return;
        }
        let other = if *which == self.from { &self.to } else { &self.from };
        let comes = self.parked.take();
        self.parked = site.engines.remove(other);
        if let Some(slot) = comes {
            site.engines.insert(which.clone(), slot);
        }
    }
}

/// Most spans of hours that may be announced.
const MOST_HOURS: usize = 20;

fn in_order(hours: &[TrialHours]) -> bool {
    hours.len() <= MOST_HOURS
        && hours.iter().all(|h| h.from < h.until)
        && hours.windows(2).all(|pair| pair[0].until <= pair[1].from)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::change::SiteChange;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn serving() -> Site {
        let mut site = Site::unclaimed(8443);
        let slot = EngineSlot::serving("old".parse().unwrap());
        site.engines.insert("fast".parse().unwrap(), slot);
        site
    }

    fn begin(beside: bool) -> SuccessionStep {
        let hours = match beside {
            true => Vec::new(),
            false => vec![TrialHours { from: at(100), until: at(200) }],
        };
        SuccessionStep::Begin {
            alias: "house".parse().unwrap(),
            from: "fast".parse().unwrap(),
            slot: EngineSlot::serving("new".parse().unwrap()),
            beside,
            hours,
        }
    }

    fn running(site: &Site) -> Vec<String> {
        site.engines.values().map(|slot| slot.recipe.to_string()).collect()
    }

    fn house(site: &Site) -> &str {
        let to = &site.aliases[&"house".parse().unwrap()];
        site.engines.get(to).map_or("parked", |slot| slot.recipe.as_str())
    }

    #[test]
    fn a_name_moves_to_the_new_model_and_back_and_the_old_one_stays_until_it_is_let_go() {
        use SuccessionStep as S;
        let site = serving().stepped(&begin(true)).unwrap();
        assert_eq!((running(&site), house(&site)), (vec!["old".into(), "new".into()], "old"));
        let announced = site.stepped(&S::Announce { at: at(500) }).unwrap();
        assert_eq!(announced.succession_due(at(499)), None);
        assert_eq!(announced.succession_due(at(500)), Some(S::Switch));
        let switched = announced.stepped(&S::Switch).unwrap();
        assert_eq!((running(&switched).len(), house(&switched)), (2, "new"));
        assert_eq!(switched.succession_due(at(900)), None);
        let back = switched.stepped(&S::Return).unwrap();
        assert_eq!((house(&back), back.succession.as_ref().unwrap().stage), ("old", Stage::Trial));
        let over = back.stepped(&S::CallOff).unwrap();
        assert_eq!(
            (running(&over), house(&over), over.succession.is_some()),
            (vec!["old".into()], "old", false)
        );
        let gone = switched.stepped(&S::LetGo).unwrap();
        assert_eq!((running(&gone), house(&gone)), (vec!["new".into()], "new"));
        // The next one gets another slot, and the name is the same.
        let again = gone.stepped(&S::Begin {
            alias: "house".parse().unwrap(),
            from: "fast-2".parse().unwrap(),
            slot: EngineSlot::serving("newer".parse().unwrap()),
            beside: true,
            hours: Vec::new(),
        });
        assert_eq!(again.unwrap().succession.unwrap().to.as_str(), "fast-3");
    }

    #[test]
    fn where_both_do_not_fit_the_new_one_is_tried_at_its_hours_and_exactly_one_runs() {
        use SuccessionStep as S;
        let site = serving().stepped(&begin(false)).unwrap();
        assert_eq!((running(&site), site.succession_due(at(50))), (vec!["old".into()], None));
        let due = site.succession_due(at(150)).unwrap();
        let during = site.stepped(&due).unwrap();
        assert_eq!((running(&during), house(&during)), (vec!["new".into()], "parked"));
        assert_eq!(during.succession_due(at(199)), None);
        let after = during.stepped(&during.succession_due(at(200)).unwrap()).unwrap();
        assert_eq!((running(&after), house(&after)), (vec!["old".into()], "old"));
        assert_eq!(after.succession_due(at(201)), None, "its hours are over for good");
        let switched = during.stepped(&S::Switch).unwrap();
        assert_eq!((running(&switched), house(&switched)), (vec!["new".into()], "new"));
        assert_eq!(
            switched.succession.as_ref().unwrap().parked.as_ref().unwrap().recipe.as_str(),
            "old"
        );
        let back = switched.stepped(&S::Return).unwrap();
        assert_eq!((running(&back), house(&back)), (vec!["old".into()], "old"));
    }

    #[test]
    fn a_switch_that_failed_is_not_tried_again_by_itself() {
        use SuccessionStep as S;
        let before = serving().stepped(&begin(true)).unwrap();
        let before = before.stepped(&S::Announce { at: at(500) }).unwrap();
        let after = before.stepped(&S::Switch).unwrap();
        let back = after.after_failed(&S::Switch, &before);
        assert_eq!((house(&back), back.succession_due(at(600))), ("old", None));
        let before = serving().stepped(&begin(false)).unwrap();
        let step = before.succession_due(at(150)).unwrap();
        let back = before.stepped(&step).unwrap().after_failed(&step, &before);
        assert_eq!((running(&back), back.succession_due(at(150))), (vec!["old".into()], None));
    }

    #[test]
    fn what_no_step_can_do_says_why() {
        use SuccessionStep as S;
        let none = serving();
        assert_eq!(none.stepped(&S::Switch), Err(SuccessionError::None));
        assert_eq!(none.stepped(&S::LetGo).as_ref(), Ok(&none));
        let trial = none.stepped(&begin(true)).unwrap();
        assert!(matches!(trial.stepped(&S::LetGo), Err(SuccessionError::NotSwitched(_))));
        let switched = trial.stepped(&S::Switch).unwrap();
        assert!(matches!(switched.stepped(&S::CallOff), Err(SuccessionError::Switched(_))));
        assert!(matches!(trial.stepped(&begin(false)), Err(SuccessionError::Busy(_)) | Ok(_)));
        let gone = SiteChange::RemoveEngine("fast".parse().unwrap()).applied_to(&trial);
        let why = gone.check().unwrap_err().to_string();
        assert!(why.contains("aliases.house leads to the engine fast"), "{why}");
        let gone = SiteChange::RemoveEngine("fast-2".parse().unwrap()).applied_to(&trial);
        let why = gone.check().unwrap_err().to_string();
        assert!(why.contains("one of its engines is gone"), "{why}");
    }

    fn steps() -> impl Strategy<Value = SuccessionStep> {
        use SuccessionStep as S;
        prop_oneof![
            any::<bool>().prop_map(begin),
            (0_i64..1000).prop_map(|s| S::Announce { at: at(s) }),
            Just(S::Withdraw),
            (0_i64..1000).prop_map(|s| S::HoursBegin { until: at(s) }),
            (0_i64..1000).prop_map(|s| S::HoursEnd { until: at(s) }),
            Just(S::Switch),
            Just(S::Return),
            Just(S::LetGo),
            Just(S::CallOff),
        ]
    }

    proptest! {
        #[test]
        fn whatever_is_pressed_the_site_is_one_that_a_box_can_be_and_the_name_has_one_model_behind_it(
            presses in prop::collection::vec(steps(), 0..24), cut in any::<bool>(),
        ) {
            let mut site = serving();
            for step in presses {
                let Ok(next) = site.stepped(&step) else { continue };
                prop_assert!(next.check().is_ok(), "{step:?}: {:?}", next.check());
                prop_assert_eq!(next.stepped(&step), Ok(next.clone()), "again: {:?}", step);
                prop_assert_eq!(&Site::from_toml(&next.to_toml()).unwrap(), &next);
                let failed = next.after_failed(&step, &site);
                prop_assert!(failed.check().is_ok(), "{step:?} failed: {:?}", failed.check());
                // A power cut leaves one of the two, and each serves something.
                site = if cut { failed } else { next };
                prop_assert!(!site.engines.is_empty());
            }
        }

        #[test]
        fn the_clock_alone_never_goes_round_in_circles(presses in prop::collection::vec(steps(), 0..12), now in 0_i64..1000) {
            let mut site = serving();
            for step in presses {
                if let Ok(next) = site.stepped(&step) { site = next; }
            }
            let mut due = 0;
            while let Some(step) = site.succession_due(at(now)) {
                site = site.stepped(&step).unwrap();
                due += 1;
                prop_assert!(due <= 3, "{site:?}");
            }
        }
    }
}
