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
    while !box_.run(switch).await.steps.iter().any(loads) {
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
