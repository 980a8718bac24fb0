//! A takeover has begun on a spare and is not in place: nothing else is begun there, and what goes on makes way.

use polder_spare::{Folders, Identity, Lease, Peer};
use polder_takeover::{Side, Term};

use super::*;

/// As a takeover leaves it that was cut off after its term had begun; the part that would go on with it is not there.
fn begun(state: &Path) {
    let other = tempfile::tempdir().unwrap();
    let folders = Folders::of(state);
    let certificate = Identity::of_box(&Folders::of(other.path())).unwrap().certificate().clone();
    let peer = Peer {
        side: polder_spare::Side::Spare,
        name: "oak".to_owned(),
        certificate,
        address: None,
        paired_at: 1,
        settled: true,
    };
    peer.keep(&folders).unwrap();
    Term { highest: 2, ..Term::first(Side::Spare) }.keep(state).unwrap();
    Lease::read(&folders).raise().unwrap();
    let mut lease = Lease::read(&folders);
    lease.raise_to(2).unwrap();
    assert_eq!(lease.raise().unwrap(), 3);
}

/// It is left to the main box, in a term above.
fn left(state: &Path) {
    let mut term = Term::read(state).unwrap().unwrap();
    assert!(term.begin(3) && term.leave() == Some(4));
    term.keep(state).unwrap();
}

async fn refused(box_: &Box_) -> String {
    let change = SiteChange::Rename("birch".parse().unwrap());
    match box_.ask(Request::Apply { change, by: ada() }).await {
        Reply::Refused(why) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_on_makes_way_for_a_takeover_that_has_begun_and_a_model_that_comes_in_pauses() {
    let box_ = Box_::new(&[]).await;
    box_.serve("m1").await;
    box_.shelf.import_ms.store(60_000, Ordering::SeqCst);
    let recipe = "m3".parse().unwrap();
    let import = Request::Import { recipe, from: ImportSource::Recipe, by: ada() };
    let Reply::Accepted(import) = box_.ask(import).await else { panic!() };
    box_.shelf.imported.lock().unwrap().insert("m2".parse().unwrap());
    behave(box_.state.path(), "engine-fast", "load 60000");
    let switch = box_.apply(serve("m2")).await;
    // It says how far it is, so that it has read how slow it is to be.
    let loads = |step: &StepState| matches!(step, StepState::Running(Some(_)));
    let asked = Instant::now();
    loop {
        let run = box_.run(switch).await;
        if run.steps.iter().any(loads) {
            break;
        }
        assert_eq!(run.state, RunState::Running, "it is over before it loads");
        assert!(asked.elapsed() < Duration::from_secs(30), "still {run:?}");
        sleep(Duration::from_millis(10)).await;
    }
    behave(box_.state.path(), "engine-fast", "");

    begun(box_.state.path());
    let RunState::Failed(why) = box_.until_over(switch).await.state else { panic!() };
    assert!(why.contains("made way for a takeover"), "{why}");
    assert_eq!(waits(&box_, import).await, "waiting for the takeover that has begun here");
    let ready = |s: &BoxStatus| s.engines[0].part.state == PartState::Ready;
    assert_eq!(box_.until(ready).await.engines[0].recipe.as_str(), "m1");
    let why = refused(&box_).await;
    assert!(why.contains("nobody serves until it is in place"), "{why}");

    // From the first moment of the next start too.
    let box_ = box_.restarted().await;
    let why = refused(&box_).await;
    assert!(why.contains("nobody serves until it is in place"), "{why}");
    waits(&box_, import).await;
    box_.shelf.import_ms.store(10, Ordering::SeqCst);
    left(box_.state.path());
    assert_eq!(box_.until_over(import).await.state, RunState::Done);
    let rename = SiteChange::Rename("birch".parse().unwrap());
    assert_eq!(box_.until_over(box_.apply(rename).await).await.state, RunState::Done);
    box_.over().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_was_cut_off_waits_where_people_see_it_and_takes_its_place_only_when_it_goes_on()
 {
    let box_ = Box_::new(&[]).await;
    box_.serve("m1").await;
    box_.shelf.imported.lock().unwrap().insert("m2".parse().unwrap());
    behave(box_.state.path(), "engine-fast", "load 60000");
    let switch = box_.apply(serve("m2")).await;
    // The power goes, and comes back on a spare that was taking over just then.
    let state = box_.state.path().to_owned();
    let box_ = box_.restarted_after(|| begun(&state)).await;
    assert_eq!(box_.run(switch).await.state, RunState::Running);
    // It can be stopped there; what nobody has stopped goes on.
    assert_eq!(box_.ask(Request::Cancel(switch)).await, Reply::Done);
    assert_eq!(box_.until_over(switch).await.state, RunState::Cancelled);
    let box_ = box_.restarted().await;
    left(box_.state.path());
    behave(box_.state.path(), "engine-fast", "");
    let rename = SiteChange::Rename("birch".parse().unwrap());
    let begun = Instant::now();
    // A look of the supervisor later the box takes changes again.
    let renamed = loop {
        match box_.ask(Request::Apply { change: rename.clone(), by: ada() }).await {
            Reply::Accepted(run) => break run,
            other => assert!(begun.elapsed() < Duration::from_secs(30), "{other:?}"),
        }
        sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(box_.until_over(renamed).await.state, RunState::Done);
    box_.over().await;
}
