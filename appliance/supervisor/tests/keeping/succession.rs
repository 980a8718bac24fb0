//! A change of model: by the clock, through a power cut, and undone where the new one does not start.

use polder_site::{Stage, SuccessionStep, TrialHours};

use super::*;

fn step(step: SuccessionStep) -> SiteChange {
    SiteChange::Succession(step)
}

/// `m2` comes in the place of `m1`, behind the name `house`; both do not fit.
fn begin(hours: Vec<TrialHours>) -> SiteChange {
    let slot = EngineSlot::serving("m2".parse().unwrap());
    let (alias, from) = ("house".parse().unwrap(), "fast".parse().unwrap());
    step(SuccessionStep::Begin { alias, from, slot, beside: hours.is_empty(), hours })
}

fn in_seconds(from: i64, until: i64) -> TrialHours {
    let now = jiff::Timestamp::now();
    let at = |seconds| now + jiff::SignedDuration::from_secs(seconds);
    TrialHours { from: at(from), until: at(until) }
}

fn behind_house(status: &BoxStatus) -> Option<(String, PartState)> {
    let slot = status.site.aliases.get(&"house".parse().unwrap())?;
    let engine = status.engines.iter().find(|engine| engine.name == *slot)?;
    Some((engine.recipe.to_string(), engine.part.state.clone()))
}

fn is(model: &str, status: &BoxStatus) -> bool {
    behind_house(status) == Some((model.to_owned(), PartState::Ready))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_announced_switch_happens_by_itself_and_through_a_power_cut_leaves_one_model_whole() {
    let box_ = Box_::new(&[]).await;
    box_.serve("m1").await;
    // In a thousand hours, so that only the switch moves anything.
    let begun = box_.until_over(box_.apply(begin(vec![in_seconds(3_600_000, 3_603_600)])).await);
    assert_eq!(begun.await.state, RunState::Done);
    let status = box_.status().await;
    assert!(is("m1", &status), "{status:?}");
    assert_eq!(status.engines.len(), 1, "the new one is only brought in");
    behave(box_.state.path(), "engine-fast-2", "load 60000");
    let at = jiff::Timestamp::now();
    box_.until_over(box_.apply(step(SuccessionStep::Announce { at })).await).await;
    // The site names the new one, which loads: the middle of the switch.
    box_.until(|s| s.site.succession.as_ref().is_some_and(|s| s.stage == Stage::Switched)).await;
    behave(box_.state.path(), "engine-fast-2", "");
    let box_ = box_.again().await;
    let status = box_.until(|s| is("m2", s)).await;
    assert_eq!(status.engines.len(), 1, "{status:?}");
    let done = |runs: Vec<Run>| runs.iter().all(|run| run.state == RunState::Done);
    let Reply::Runs(runs) = box_.ask(Request::Runs).await else { panic!() };
    let begun = Instant::now();
    let mut all = done(runs);
    while !all && begun.elapsed() < Duration::from_secs(20) {
        sleep(Duration::from_millis(20)).await;
        let Reply::Runs(runs) = box_.ask(Request::Runs).await else { panic!() };
        all = done(runs);
    }
    assert!(all, "the run that was cut off went on to its end");
    let audit = box_.audit().await;
    assert!(audit.iter().any(|line| line.starts_with("the box asked for Switch")), "{audit:?}");
    // One press.
    box_.until_over(box_.apply(step(SuccessionStep::Return)).await).await;
    let status = box_.until(|s| is("m1", s)).await;
    assert_eq!(status.site.succession.as_ref().unwrap().stage, Stage::Trial);
    box_.until_over(box_.apply(step(SuccessionStep::CallOff)).await).await;
    assert!(is("m1", &box_.status().await));
    box_.over().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switch_to_a_model_that_does_not_start_is_undone_and_not_tried_again() {
    let box_ = Box_::new(&[("engine-fast-2", "not-with m2")]).await;
    box_.serve("m1").await;
    let hours = vec![in_seconds(3_600_000, 3_603_600)];
    box_.until_over(box_.apply(begin(hours)).await).await;
    let at = jiff::Timestamp::now();
    box_.until_over(box_.apply(step(SuccessionStep::Announce { at })).await).await;
    let failed = |runs: &[Run]| {
        runs.iter().find_map(|run| match &run.state {
            RunState::Failed(why) => Some(why.clone()),
            _ => None,
        })
    };
    let begun = Instant::now();
    let why = loop {
        let Reply::Runs(runs) = box_.ask(Request::Runs).await else { panic!() };
        if let Some(why) = failed(&runs) {
            break why;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{runs:?}");
        sleep(Duration::from_millis(20)).await;
    };
    assert!(
        why.contains("m2 does not fit") && why.ends_with("the model before it is back"),
        "{why}"
    );
    let status = box_.until(|s| is("m1", s)).await;
    let succession = status.site.succession.unwrap();
    assert_eq!((succession.stage, succession.at), (Stage::Trial, None));
    box_.over().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_its_hours_the_new_model_is_tried_in_the_place_of_the_old_one_which_then_comes_back() {
    let box_ = Box_::new(&[]).await;
    box_.serve("m1").await;
    box_.until_over(box_.apply(begin(vec![in_seconds(0, 4)])).await).await;
    let tried = |s: &BoxStatus| {
        s.engines.len() == 1
            && s.engines[0].recipe.as_str() == "m2"
            && s.engines[0].part.state == PartState::Ready
    };
    let during = box_.until(tried).await;
    assert_eq!(behind_house(&during), None, "the name waits for its model");
    let after = box_.until(|s| is("m1", s)).await;
    assert!(after.site.succession.unwrap().hours.is_empty());
    box_.over().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_each_other_the_old_model_serves_on_through_all_of_it() {
    let box_ = Box_::new(&[]).await;
    let mut slot = EngineSlot::serving("m1".parse().unwrap());
    slot.memory = Some("40 %".parse().unwrap());
    let serve = SiteChange::Engine { name: "fast".parse().unwrap(), slot };
    box_.until_over(box_.apply(serve).await).await;
    let first = box_.status().await.engines[0].part.pid;
    for change in [begin(Vec::new()), step(SuccessionStep::Switch), step(SuccessionStep::Return)] {
        let run = box_.until_over(box_.apply(change).await).await;
        assert_eq!(run.state, RunState::Done, "{run:?}");
        let status = box_.status().await;
        assert_eq!(status.engines.len(), 2);
        assert_eq!(status.engines[0].part.pid, first, "nothing was stopped");
    }
    // What takes part in a change of model is not removed behind its back.
    let change = SiteChange::RemoveEngine("fast".parse().unwrap());
    let Reply::Refused(why) = box_.ask(Request::Apply { change, by: ada() }).await else {
        panic!()
    };
    assert!(why.contains("leads to the engine fast"), "{why}");
    box_.over().await;
}
