use std::fs;
use std::time::Duration;

use polder_recipes::Recipe;
use polder_weights::{CancelFlag, Event, Options, Origin, STALE, Store, WeightsError};

use crate::common::*;
use crate::server::Server;

/// A store with two models that share a file.
fn two_models(state: &std::path::Path) -> (Store, Recipe, Recipe) {
    let (shared, own) = (bytes(1, 20_000), bytes(2, 30_000));
    let disk = tempfile::tempdir().unwrap();
    fs::write(disk.path().join("shared.gguf"), &shared).unwrap();
    fs::write(disk.path().join("own.gguf"), &own).unwrap();
    let one = recipe("http://unused", vec![spec("shared.gguf", &shared)]);
    let files = vec![spec("shared.gguf", &shared), spec("own.gguf", &own)];
    let two = Recipe { name: "two".into(), files, ..one.clone() };
    let store = store(state);
    for recipe in [&one, &two] {
        import(&store, recipe, &Origin::Folder(disk.path().into())).unwrap();
    }
    (store, one, two)
}

fn blobs(store: &Store) -> usize {
    fs::read_dir(store.root().join("blobs/sha256")).unwrap().count()
}

fn verify(store: &Store) -> polder_weights::Verified {
    store.verify(None, &mut |_| {}, &CancelFlag::default()).unwrap()
}

#[test]
fn what_is_imported_is_listed() {
    let state = tempfile::tempdir().unwrap();
    let (store, ..) = two_models(state.path());
    let list = store.list().unwrap();
    let names: Vec<_> = list.iter().map(|m| (m.recipe.as_str(), m.bytes())).collect();
    assert_eq!(names, [("tiny", 20_000), ("two", 50_000)]);
    assert!(!list[0].pinned_here);
}

#[test]
fn verify_reads_every_blob_once_and_finds_them_good() {
    let state = tempfile::tempdir().unwrap();
    let (store, ..) = two_models(state.path());
    let verified = verify(&store);
    assert_eq!((verified.good, verified.bytes, verified.damage.len()), (2, 50_000, 0));
}

#[test]
fn a_damaged_blob_is_named_for_every_model_and_no_longer_served() {
    let state = tempfile::tempdir().unwrap();
    let (store, one, two) = two_models(state.path());
    let blob = store.model_folder(&one).unwrap().join("shared.gguf").canonicalize().unwrap();
    let mut damaged = fs::read(&blob).unwrap();
    damaged[5] ^= 4;
    fs::remove_file(&blob).unwrap();
    fs::write(&blob, &damaged).unwrap();
    assert!(store.model_folder(&one).is_some(), "a look at the size does not see it");
    let verified = verify(&store);
    let named: Vec<_> = verified.damage.iter().map(|d| (&d.recipe[..], &d.file[..])).collect();
    assert_eq!(named, [("tiny", "shared.gguf"), ("two", "shared.gguf")]);
    assert!(verified.damage[0].to_string().contains(&digest(&damaged).to_string()));
    assert_eq!((store.model_folder(&one), store.model_folder(&two)), (None, None));
    assert!(store.gc(STALE).unwrap().bytes > 0, "the damaged bytes are given back");
    assert_eq!(verify(&store).damage[0].why, "is gone");
}

#[test]
fn verify_of_one_model_names_it_when_it_is_not_here() {
    let state = tempfile::tempdir().unwrap();
    let said = store(state.path()).verify(Some("none"), &mut |_| {}, &CancelFlag::default());
    assert!(said.unwrap_err().to_string().contains("\"none\""));
}

#[test]
fn gc_keeps_what_a_manifest_names_and_removes_the_rest() {
    let state = tempfile::tempdir().unwrap();
    let (store, one, two) = two_models(state.path());
    assert_eq!(store.gc(STALE).unwrap(), Default::default());
    store.remove("two").unwrap();
    assert_eq!(store.model_folder(&two), None);
    let collected = store.gc(STALE).unwrap();
    assert_eq!(collected.blobs, 1);
    assert!(collected.bytes >= 30_000, "{collected:?}");
    assert_eq!(blobs(&store), 1);
    assert!(store.model_folder(&one).is_some());
}

#[test]
fn gc_keeps_a_fresh_cut_import_and_takes_a_stale_one() {
    let (state, model) = (tempfile::tempdir().unwrap(), bytes(1, 200_000));
    let server = Server::start(&[("/a.gguf", &model[..50_000]), ("/b.gguf", &model)]);
    let recipe =
        recipe(&server.url, vec![spec("a.gguf", &model[..50_000]), spec("b.gguf", &model)]);
    let store = store(state.path());
    let cancel = CancelFlag::default();
    let mut stop = |event: Event| match event {
        Event::Progress(progress) if progress.done > 150_000 => cancel.cancel(),
        _ => {}
    };
    store.import(&recipe, &Origin::AsTheRecipeSays, &mut stop, &cancel).unwrap_err();
    assert_eq!(store.gc(STALE).unwrap(), Default::default());
    assert_eq!(blobs(&store), 1, "the file that is whole is kept for the import to go on");
    let sent = server.sent();
    let collected = store.gc(Duration::ZERO).unwrap();
    assert_eq!(collected.blobs, 1);
    assert!(collected.leftovers >= 3, "{collected:?}");
    import(&store, &recipe, &Origin::AsTheRecipeSays).unwrap();
    assert_eq!(server.sent() - sent, 250_002, "everything came again");
}

#[test]
fn gc_removes_nothing_while_a_manifest_cannot_be_read() {
    let state = tempfile::tempdir().unwrap();
    let (store, ..) = two_models(state.path());
    fs::write(store.root().join("manifests/two.toml"), "recipe = ").unwrap();
    let said = store.gc(Duration::ZERO).unwrap_err();
    assert!(matches!(said, WeightsError::Manifest { .. }), "{said}");
    assert_eq!(blobs(&store), 2);
}

#[test]
fn a_second_import_waits_and_gc_is_told_while_one_runs() {
    let (state, model) = (tempfile::tempdir().unwrap(), bytes(1, 200_000));
    let server = Server::start(&[("/m.gguf", &model)]);
    let recipe = recipe(&server.url, vec![spec("m.gguf", &model)]);
    let first = store(state.path());
    let impatient = Options { wait_for_others: false, ..quick() };
    let impatient = Store::open_with(state.path().join("weights"), impatient).unwrap();
    let (started, has_started) = std::sync::mpsc::channel();
    let (go, may_go_on) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        // The first stands still in the middle until the second says that it waits.
        let mut stood = false;
        let mut stand = move |event| {
            let moving = matches!(event, Event::Progress(progress) if progress.done > 0);
            if moving && !std::mem::replace(&mut stood, true) {
                started.send(()).unwrap();
                may_go_on.recv().unwrap();
            }
        };
        let (first, recipe) = (&first, &recipe);
        scope.spawn(move || {
            first.import(recipe, &Origin::AsTheRecipeSays, &mut stand, &CancelFlag::default())
        });
        has_started.recv().unwrap();
        assert!(matches!(first.gc(Duration::ZERO), Err(WeightsError::Busy { .. })));
        assert!(matches!(first.remove("tiny"), Err(WeightsError::Busy { .. })));
        let refused = import(&impatient, recipe, &Origin::AsTheRecipeSays).unwrap_err();
        assert!(matches!(refused, WeightsError::Busy { .. }), "{refused}");
        let mut told = |event| {
            if event == Event::Waiting {
                go.send(()).unwrap();
            }
        };
        let second = store(state.path());
        let second =
            second.import(recipe, &Origin::AsTheRecipeSays, &mut told, &CancelFlag::default());
        assert_eq!(second.unwrap().brought, 0, "the first one brought it");
    });
}

#[test]
fn removing_a_model_also_forgets_its_pin() {
    let state = tempfile::tempdir().unwrap();
    let disk = tempfile::tempdir().unwrap();
    let recipe = recipe("http://unused", vec![unpinned("m.gguf")]);
    let store = store(state.path());
    let from = Origin::Folder(disk.path().into());
    fs::write(disk.path().join("m.gguf"), "one").unwrap();
    import(&store, &recipe, &from).unwrap();
    fs::write(disk.path().join("m.gguf"), "two").unwrap();
    assert!(matches!(import(&store, &recipe, &from), Err(WeightsError::PinChanged { .. })));
    store.remove("tiny").unwrap();
    import(&store, &recipe, &from).unwrap();
    assert_model(&store, &recipe, &[("m.gguf", b"two")]);
}
