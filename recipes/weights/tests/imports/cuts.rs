//! An import may be cut at any point: then it goes on, and little comes twice.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::SeqCst;

use polder_recipes::Recipe;
use polder_weights::{CancelFlag, Event, Origin, Store, WeightsError};
use proptest::prelude::*;

use crate::common::*;
use crate::server::Server;

const SIZE: u64 = 400_000;
/// What a cut may cost: the chunks that were not yet written down, those on their way, and what the
/// server had put on the wire.
const COST: u64 = (8 + 3 + 3) * (16 << 10) + 3 * 65_536;

#[derive(Debug, Clone, Copy)]
enum Cut {
    Cancel,
    Panic,
}

/// Imports and cuts it at the n-th event. Whether it came through.
fn cut_at(store: &Store, recipe: &Recipe, from: &Origin, at: usize, how: Cut) -> bool {
    let cancel = CancelFlag::default();
    let mut count = 0;
    let mut observer = |_: Event| {
        count += 1;
        if count == at {
            match how {
                Cut::Cancel => cancel.cancel(),
                Cut::Panic => std::panic::resume_unwind(Box::new("cut")),
            }
        }
    };
    let import = AssertUnwindSafe(|| store.import(recipe, from, &mut observer, &cancel));
    match catch_unwind(import) {
        Ok(Ok(_)) => true,
        Ok(Err(WeightsError::Cancelled)) | Err(_) => false,
        Ok(Err(why)) => panic!("{why}"),
    }
}

/// A cut at the very last event finds the model in place; at any other, nothing of it.
fn assert_whole_if_visible(store: &Store, recipe: &Recipe, files: &[(&str, &[u8])]) {
    if store.model_folder(recipe).is_some() {
        assert_model(store, recipe, files);
    }
}

fn cuts() -> impl Strategy<Value = Vec<(usize, Cut)>> {
    let cut = prop_oneof![Just(Cut::Cancel), Just(Cut::Panic)];
    proptest::collection::vec((1usize..120, cut), 1..4)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_download_that_is_cut_anywhere_goes_on(cuts in cuts(), server_cuts in prop_oneof![Just(0u64), 4_000u64..40_000]) {
        let state = tempfile::tempdir().unwrap();
        let (model, small) = (bytes(1, SIZE as usize), bytes(2, 3_000));
        let server = Server::start(&[("/m.gguf", &model), ("/config.json", &small)]);
        server.is.cut_after.store(server_cuts, SeqCst);
        let recipe = recipe(&server.url, vec![spec("m.gguf", &model), spec("config.json", &small)]);
        let store = store(state.path());
        let mut failed = 0;
        for (at, how) in cuts {
            if cut_at(&store, &recipe, &Origin::AsTheRecipeSays, at, how) {
                break;
            }
            failed += 1;
            assert_whole_if_visible(&store, &recipe, &[("m.gguf", &model), ("config.json", &small)]);
        }
        import(&store, &recipe, &Origin::AsTheRecipeSays).unwrap();
        assert_model(&store, &recipe, &[("m.gguf", &model), ("config.json", &small)]);
        let twice = server.sent().saturating_sub(SIZE + 3_000);
        prop_assert!(twice <= 20 + failed * COST, "{twice} bytes came twice after {failed} cuts");
    }

    #[test]
    fn a_copy_that_is_cut_anywhere_goes_on(cuts in cuts(), pinned in any::<bool>()) {
        let state = tempfile::tempdir().unwrap();
        let disk = tempfile::tempdir().unwrap();
        let (a, b) = (bytes(1, 3 << 20), bytes(2, 5 << 20));
        let files: [(&str, &[u8]); 2] = [("a.gguf", &a), ("b.gguf", &b)];
        for (name, bytes) in files {
            std::fs::write(disk.path().join(name), bytes).unwrap();
        }
        let specs = files.into_iter().map(|(name, bytes)| if pinned { spec(name, bytes) } else { unpinned(name) });
        let recipe = recipe("http://unused", specs.collect());
        let from = Origin::Folder(disk.path().into());
        let store = store(state.path());
        for (at, how) in cuts {
            if cut_at(&store, &recipe, &from, at / 6 + 1, how) {
                break;
            }
            assert_whole_if_visible(&store, &recipe, &files);
        }
        import(&store, &recipe, &from).unwrap();
        assert_model(&store, &recipe, &files);
    }
}

#[test]
fn a_cut_download_brings_only_what_is_missing() {
    let (state, model) = (tempfile::tempdir().unwrap(), bytes(1, 4 << 20));
    let server = Server::start(&[("/m.gguf", &model)]);
    let recipe = recipe(&server.url, vec![spec("m.gguf", &model)]);
    let store = store(state.path());
    let cancel = CancelFlag::default();
    let mut stop = |event: Event| match event {
        Event::Progress(progress) if progress.done > 3 << 20 => cancel.cancel(),
        _ => {}
    };
    store.import(&recipe, &Origin::AsTheRecipeSays, &mut stop, &cancel).unwrap_err();
    let before = server.sent();
    let (imported, events) = import(&store, &recipe, &Origin::AsTheRecipeSays).unwrap();
    assert!(server.sent() - before < (1 << 20) + COST, "{} bytes came", server.sent() - before);
    assert!(imported.brought < (1 << 20) + COST);
    let first = events.iter().find_map(|event| match event {
        Event::Progress(progress) if progress.done > 0 => Some(progress.done),
        _ => None,
    });
    assert!(first > Some(2 << 20), "the bar goes on where it was: {first:?}");
    assert_model(&store, &recipe, &[("m.gguf", &model)]);
}

/// The same function is the process that is killed: it runs itself again to be it.
#[test]
fn a_process_that_is_killed_leaves_what_it_had_for_the_next() {
    const CHILD: &str = "POLDER_TEST_KILLED";
    let model = bytes(1, 4 << 20);
    if let Some(told) = std::env::var_os(CHILD) {
        let told = told.into_string().unwrap();
        let (folder, url) = told.split_once('|').unwrap();
        let store = store(std::path::Path::new(folder));
        let recipe = recipe(url, vec![spec("m.gguf", &model)]);
        import(&store, &recipe, &Origin::AsTheRecipeSays).unwrap();
        return;
    }
    let state = tempfile::tempdir().unwrap();
    let server = Server::start(&[("/m.gguf", &model)]);
    *server.is.slow.lock().unwrap() = std::time::Duration::from_millis(2);
    let name = "cuts::a_process_that_is_killed_leaves_what_it_had_for_the_next";
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name])
        .env(CHILD, format!("{}|{}", state.path().display(), server.url))
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    while server.sent() < 2 << 20 {
        assert_eq!(child.try_wait().unwrap(), None, "it ended before it could be killed");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let recipe = recipe(&server.url, vec![spec("m.gguf", &model)]);
    let store = store(state.path());
    assert_eq!(store.model_folder(&recipe), None);
    let (imported, _) = import(&store, &recipe, &Origin::AsTheRecipeSays).unwrap();
    assert_model(&store, &recipe, &[("m.gguf", &model)]);
    assert!(imported.brought < (2 << 20) + COST, "{} bytes came again", imported.brought);
}

#[test]
fn a_partial_file_that_rotted_is_refused_and_then_brought_anew() {
    let (state, model) = (tempfile::tempdir().unwrap(), bytes(1, 1 << 20));
    let server = Server::start(&[("/m.gguf", &model)]);
    let recipe = recipe(&server.url, vec![spec("m.gguf", &model)]);
    let store = store(state.path());
    assert!(!cut_at(&store, &recipe, &Origin::AsTheRecipeSays, 60, Cut::Cancel));
    let part = store.root().join(format!("partial/{}.part", digest(&model)));
    let rotted: Vec<_> = std::fs::read(&part).unwrap().iter().map(|byte| byte ^ 1).collect();
    std::fs::write(&part, rotted).unwrap();
    let said = import(&store, &recipe, &Origin::AsTheRecipeSays).unwrap_err();
    assert!(matches!(said, WeightsError::WrongBytes { .. }), "{said}");
    import(&store, &recipe, &Origin::AsTheRecipeSays).unwrap();
    assert_model(&store, &recipe, &[("m.gguf", &model)]);
}

#[test]
fn a_journal_of_nonsense_only_costs_the_bytes() {
    let (state, model) = (tempfile::tempdir().unwrap(), bytes(1, 1 << 20));
    let server = Server::start(&[("/m.gguf", &model)]);
    let recipe = recipe(&server.url, vec![spec("m.gguf", &model)]);
    let store = store(state.path());
    assert!(!cut_at(&store, &recipe, &Origin::AsTheRecipeSays, 60, Cut::Cancel));
    let journal = store.root().join(format!("partial/{}.journal", digest(&model)));
    assert!(journal.exists());
    std::fs::write(&journal, "{\"version\": 1").unwrap();
    import(&store, &recipe, &Origin::AsTheRecipeSays).unwrap();
    assert_model(&store, &recipe, &[("m.gguf", &model)]);
}
