//! Which engine the name of a model leads to, and for whom: names of the collective's own first, then models, then slots. While a
//! model is on trial, it is there for those who were chosen and for nobody else.

use jiff::Timestamp;
use polder_control::{BoxStatus, EngineStatus};
use polder_members::Trying;
use polder_site::{EngineName, Stage};

use crate::engines::EngineRefusal;

/// Seconds after which somebody may try again where nothing says when.
const SOON: u64 = 60;
/// Most that anybody is told to wait.
const LONGEST: u64 = 86_400;

/// The engine that a name leads to, for somebody who tries the model on trial, or does not.
pub(crate) fn resolve<'a>(
    status: &'a BoxStatus,
    trying: Option<Trying>,
    model: Option<&str>,
    now: Timestamp,
) -> Result<&'a EngineStatus, EngineRefusal> {
    let site = &status.site;
    if status.engines.is_empty() {
        return Err(EngineRefusal::NoEngine);
    }
    let Some(model) = model else { return unnamed(status, trying, now) };
    let alias = site.aliases.iter().find(|(alias, _)| alias.as_str() == model);
    if let Some((_, slot)) = alias {
        return behind(status, slot, trying, now);
    }
    let named = |engine: &&EngineStatus| engine.recipe.as_str() == model;
    let slot = |engine: &&EngineStatus| engine.name.as_str() == model;
    let open = |engine: &&EngineStatus| is_open(status, engine, trying);
    let find =
        |is: &dyn Fn(&&EngineStatus) -> bool| status.engines.iter().find(|e| open(e) && is(e));
    if let Some(engine) = find(&named).or_else(|| find(&slot)) {
        return Ok(engine);
    }
    if status.engines.iter().any(|engine| named(&engine) || slot(&engine)) {
        return Err(EngineRefusal::OnTrial { asked: short(model) });
    }
    let parked = site.succession.as_ref().and_then(|s| Some((s.parked.as_ref()?, s)));
    if let Some((parked, succession)) = parked
        && (parked.recipe.as_str() == model
            || succession.parked_name(site).is_some_and(|slot| slot.as_str() == model))
    {
        return Err(away(status, model, now));
    }
    let have: Vec<String> = names(status, trying).into_iter().map(|(name, _)| name).collect();
    Err(EngineRefusal::UnknownModel { asked: short(model), have: have.join(", ") })
}

/// Every name that somebody may ask for, each with its engine: the collective's own names first.
pub(crate) fn names(status: &BoxStatus, trying: Option<Trying>) -> Vec<(String, &EngineStatus)> {
    let now = Timestamp::now();
    let aliases = status.site.aliases.iter().filter_map(|(alias, slot)| {
        behind(status, slot, trying, now).ok().map(|engine| (alias.to_string(), engine))
    });
    let mut all: Vec<(String, &EngineStatus)> = aliases.collect();
    for engine in status.engines.iter().filter(|engine| is_open(status, engine, trying)) {
        let known =
            |all: &[(String, &EngineStatus)], name: &str| all.iter().any(|(n, _)| n == name);
        if !known(&all, engine.recipe.as_str()) {
            all.push((engine.recipe.to_string(), engine));
        } else if !known(&all, engine.name.as_str()) {
            all.push((engine.name.to_string(), engine));
        }
    }
    all
}

/// The engine behind one of the collective's own names.
fn behind<'a>(
    status: &'a BoxStatus,
    slot: &EngineName,
    trying: Option<Trying>,
    now: Timestamp,
) -> Result<&'a EngineStatus, EngineRefusal> {
    let at = |slot: &EngineName| status.engines.iter().find(|engine| engine.name == *slot);
    let candidate = status.site.succession.as_ref().filter(|s| s.from == *slot);
    let candidate = candidate.and_then(|s| at(s.on_trial()?));
    if let (Some(engine), Some(Trying { under_alias: true })) = (candidate, trying) {
        return Ok(engine);
    }
    at(slot).ok_or_else(|| away(status, slot.as_str(), now))
}

/// May somebody use this engine at all?
fn is_open(status: &BoxStatus, engine: &EngineStatus, trying: Option<Trying>) -> bool {
    let on_trial = status.site.succession.as_ref().and_then(|s| s.on_trial());
    on_trial != Some(&engine.name) || trying.is_some()
}

/// A request that names no model: the only one there is, leaving out what comes or goes.
fn unnamed(
    status: &BoxStatus,
    trying: Option<Trying>,
    now: Timestamp,
) -> Result<&EngineStatus, EngineRefusal> {
    let aside = status.site.succession.as_ref().map(|s| match s.stage {
        Stage::Switched => &s.from,
        Stage::Trial | Stage::Announced => &s.to,
    });
    let mut usual = status.engines.iter().filter(|engine| Some(&engine.name) != aside);
    match (usual.next(), usual.next()) {
        (Some(only), None) => Ok(only),
        (None, _) => Err(away(status, "of this box", now)),
        _ => {
            let have: Vec<String> = names(status, trying).into_iter().map(|(n, _)| n).collect();
            Err(EngineRefusal::ModelNeeded { have: have.join(", ") })
        }
    }
}

/// What does not run while another one is tried in its place, or since another one took its place.
fn away(status: &BoxStatus, model: &str, now: Timestamp) -> EngineRefusal {
    let until = status.site.succession.as_ref().and_then(|s| s.hours_until(now));
    let left = until.map(|until| until.as_second().saturating_sub(now.as_second()));
    let retry_after = left.and_then(|left| u64::try_from(left).ok()).unwrap_or(SOON);
    EngineRefusal::Away { model: short(model), retry_after: retry_after.clamp(1, LONGEST) }
}

fn short(name: &str) -> String {
    name.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use polder_control::{PartState, PartStatus};
    use polder_site::{EngineSlot, Site, SuccessionStep as S, TrialHours};

    use super::*;

    fn status(site: Site) -> BoxStatus {
        let part = PartStatus { state: PartState::Ready, restarts: 0, pid: None };
        let engine = |(name, slot): (&EngineName, &EngineSlot)| EngineStatus {
            name: name.clone(),
            recipe: slot.recipe.clone(),
            socket: "/nowhere".into(),
            part: part.clone(),
            note: None,
        };
        let engines = site.engines.iter().map(engine).collect();
        BoxStatus {
            supply: None,
            safe: false,
            closed: None,
            others: Vec::new(),
            gateway: part.clone(),
            engines,
            site,
        }
    }

    fn begun(beside: bool) -> Site {
        let mut site = Site::unclaimed(8443);
        let slot = |recipe: &str| EngineSlot::serving(recipe.parse().unwrap());
        site.engines.insert("fast".parse().unwrap(), slot("old"));
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let hours = TrialHours { from: at(100), until: at(200) };
        let begin = S::Begin {
            alias: "house".parse().unwrap(),
            from: "fast".parse().unwrap(),
            slot: slot("new"),
            beside,
            hours: (!beside).then_some(hours).into_iter().collect(),
        };
        site.stepped(&begin).unwrap()
    }

    const NOW: i64 = 150;
    const BY_NAME: Option<Trying> = Some(Trying { under_alias: false });
    const BY_ALIAS: Option<Trying> = Some(Trying { under_alias: true });

    fn led(
        status: &BoxStatus,
        trying: Option<Trying>,
        model: &str,
    ) -> Result<String, EngineRefusal> {
        let model = Some(model).filter(|model| !model.is_empty());
        let engine = resolve(status, trying, model, Timestamp::from_second(NOW).unwrap())?;
        Ok(engine.recipe.to_string())
    }

    #[test]
    fn a_model_on_trial_is_there_for_who_was_chosen_and_under_the_usual_name_for_who_asked_for_that()
     {
        let trial = status(begun(true));
        let refused = || Err(EngineRefusal::OnTrial { asked: "new".into() });
        for (trying, house, new) in [
            (None, "old", refused()),
            (BY_NAME, "old", Ok("new".to_owned())),
            (BY_ALIAS, "new", Ok("new".to_owned())),
        ] {
            assert_eq!(led(&trial, trying, "house").as_deref(), Ok(house), "{trying:?}");
            assert_eq!(led(&trial, trying, "new"), new, "{trying:?}");
            assert_eq!(led(&trial, trying, "old").as_deref(), Ok("old"));
            assert_eq!(led(&trial, trying, "").as_deref(), Ok("old"));
        }
        let ids = |trying| names(&trial, trying).into_iter().map(|(n, _)| n).collect::<Vec<_>>();
        assert_eq!(ids(None), ["house", "old"]);
        assert_eq!(ids(BY_NAME), ["house", "old", "new"]);
        let by_slot = led(&trial, None, "fast-2");
        assert_eq!(by_slot, Err(EngineRefusal::OnTrial { asked: "fast-2".into() }));
    }

    #[test]
    fn after_the_switch_everybody_has_the_new_one_and_the_former_by_its_own_name() {
        let switched = status(begun(true).stepped(&S::Switch).unwrap());
        for trying in [None, BY_NAME, BY_ALIAS] {
            assert_eq!(led(&switched, trying, "house").as_deref(), Ok("new"));
            assert_eq!(led(&switched, trying, "").as_deref(), Ok("new"));
            assert_eq!(led(&switched, trying, "old").as_deref(), Ok("old"));
        }
        // Somebody who had it under the usual name goes back with everybody.
        let back = status(switched.site.stepped(&S::Return).unwrap());
        assert_eq!(led(&back, None, "house").as_deref(), Ok("old"));
    }

    #[test]
    fn at_the_hours_of_a_trial_the_others_hear_when_their_model_is_back() {
        let during =
            status(begun(false).stepped(&S::HoursBegin { until: Timestamp::MAX }).unwrap());
        let away = |model: &str| Err(EngineRefusal::Away { model: model.into(), retry_after: 50 });
        assert_eq!(led(&during, None, "house"), away("fast"));
        assert_eq!(led(&during, None, "old"), away("old"));
        assert_eq!(led(&during, None, ""), away("of this box"));
        assert_eq!(led(&during, BY_ALIAS, "house").as_deref(), Ok("new"));
        assert!(matches!(led(&during, None, "new"), Err(EngineRefusal::OnTrial { .. })));
    }

    #[test]
    fn without_names_of_its_own_a_box_knows_models_and_slots() {
        let mut site = Site::unclaimed(8443);
        assert_eq!(led(&status(site.clone()), None, "x"), Err(EngineRefusal::NoEngine));
        for (slot, recipe) in [("fast", "small"), ("slow", "small")] {
            let serving = EngineSlot::serving(recipe.parse().unwrap());
            site.engines.insert(slot.parse().unwrap(), serving);
        }
        let two = status(site);
        assert_eq!(led(&two, None, "slow").as_deref(), Ok("small"));
        let have = "small, slow".to_owned();
        assert_eq!(led(&two, None, ""), Err(EngineRefusal::ModelNeeded { have: have.clone() }));
        let unknown = EngineRefusal::UnknownModel { asked: "gpt-4o".into(), have };
        assert_eq!(led(&two, None, "gpt-4o"), Err(unknown));
    }
}
