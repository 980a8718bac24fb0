use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use polder_recipes::{FileSpec, Recipe, Source};
use polder_weights::{CancelFlag, Event, Origin, Phase, WeightsError};

use crate::common::*;

fn disk(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let disk = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = disk.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    disk
}

#[test]
fn a_model_on_a_disk_is_imported_and_shown_under_its_own_names() {
    let (state, model) = (tempfile::tempdir().unwrap(), bytes(1, 100_000));
    let disk = disk(&[("m.gguf", &model), ("sub/config.json", b"{}")]);
    let recipe =
        recipe("http://unused", vec![spec("m.gguf", &model), spec("sub/config.json", b"{}")]);
    let store = store(state.path());
    let (imported, events) = import(&store, &recipe, &Origin::Folder(disk.path().into())).unwrap();
    assert_model(&store, &recipe, &[("m.gguf", &model), ("sub/config.json", b"{}")]);
    assert_eq!(imported.brought, 100_002);
    assert_eq!(phases(&events), [Phase::CheckingSpace, Phase::Copying, Phase::Done]);
    let blob = fs::metadata(imported.folder.join("m.gguf")).unwrap();
    assert_eq!(blob.permissions().mode() & 0o222, 0, "blobs are read-only");
    assert_eq!(fs::read_dir(store.root().join("partial")).unwrap().count(), 0);
}

#[test]
fn the_store_can_be_moved_because_its_links_are_relative() {
    let (state, model) = (tempfile::tempdir().unwrap(), bytes(1, 1000));
    let disk = disk(&[("m.gguf", &model)]);
    let recipe = recipe("http://unused", vec![spec("m.gguf", &model)]);
    import(&store(state.path()), &recipe, &Origin::Folder(disk.path().into())).unwrap();
    fs::rename(state.path().join("weights"), state.path().join("moved")).unwrap();
    fs::rename(state.path().join("moved"), state.path().join("weights")).unwrap();
    assert_model(&store(state.path()), &recipe, &[("m.gguf", &model)]);
}

#[test]
fn a_second_import_copies_nothing_and_needs_no_source() {
    let (state, model) = (tempfile::tempdir().unwrap(), bytes(1, 100_000));
    let disk = disk(&[("m.gguf", &model)]);
    let from = Origin::Folder(disk.path().into());
    let recipe = recipe("http://unused", vec![spec("m.gguf", &model)]);
    let store = store(state.path());
    let (first, _) = import(&store, &recipe, &from).unwrap();
    let blob = |folder: &std::path::Path| fs::metadata(folder.join("m.gguf")).unwrap();
    let before = blob(&first.folder);
    drop(disk);
    let (second, events) = import(&store, &recipe, &from).unwrap();
    assert_eq!(second.brought, 0);
    let after = blob(&second.folder);
    assert_eq!((before.ino(), before.mtime_nsec()), (after.ino(), after.mtime_nsec()));
    assert!(!phases(&events).contains(&Phase::Copying), "{events:?}");
}

#[test]
fn two_recipes_with_the_same_file_share_one_blob() {
    let (state, model) = (tempfile::tempdir().unwrap(), bytes(1, 5000));
    let disk = disk(&[("m.gguf", &model)]);
    let from = Origin::Folder(disk.path().into());
    let one = recipe("http://unused", vec![spec("m.gguf", &model)]);
    let mut two = recipe("http://unused", vec![spec("other.gguf", &model)]);
    two.name = "other".into();
    let store = store(state.path());
    import(&store, &one, &from).unwrap();
    let (second, _) = import(&store, &two, &from).unwrap();
    assert_eq!(second.brought, 0);
    assert_model(&store, &two, &[("other.gguf", &model)]);
    assert_eq!(fs::read_dir(store.root().join("blobs/sha256")).unwrap().count(), 1);
}

#[test]
fn a_flipped_byte_is_refused_with_the_file_and_both_digests() {
    let (state, model) = (tempfile::tempdir().unwrap(), bytes(1, 100_000));
    let mut wrong = model.clone();
    wrong[77_777] ^= 1;
    let disk = disk(&[("m.gguf", &wrong)]);
    let recipe = recipe("http://unused", vec![spec("m.gguf", &model)]);
    let store = store(state.path());
    let said = import(&store, &recipe, &Origin::Folder(disk.path().into())).unwrap_err();
    assert!(matches!(said, WeightsError::WrongBytes { .. }), "{said}");
    let said = said.to_string();
    for part in
        ["m.gguf", &digest(&model).to_string(), &digest(&wrong).to_string(), "use another source"]
    {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    assert_nothing_visible(&store, &recipe);
    fs::write(disk.path().join("m.gguf"), &model).unwrap();
    import(&store, &recipe, &Origin::Folder(disk.path().into())).unwrap();
    assert_model(&store, &recipe, &[("m.gguf", &model)]);
}

#[test]
fn a_file_of_the_wrong_size_is_refused_before_it_is_copied() {
    let (state, model) = (tempfile::tempdir().unwrap(), bytes(1, 1000));
    let disk = disk(&[("m.gguf", &model[..999])]);
    let recipe = recipe("http://unused", vec![spec("m.gguf", &model)]);
    let said = import(&store(state.path()), &recipe, &Origin::Folder(disk.path().into()));
    let said = said.unwrap_err().to_string();
    assert!(said.contains("it has 999 bytes, it should have 1000"), "{said}");
}

#[test]
fn a_model_larger_than_the_disk_is_refused_with_both_numbers() {
    let state = tempfile::tempdir().unwrap();
    let mut huge = spec("m.gguf", b"x");
    huge.size = Some(1 << 60);
    let recipe = recipe("http://127.0.0.1:9", vec![huge]);
    let said = import(&store(state.path()), &recipe, &Origin::AsTheRecipeSays).unwrap_err();
    assert!(matches!(said, WeightsError::NoSpace { .. }), "{said}");
    assert!(said.to_string().contains("tiny needs 1152.9 PB more"), "{said}");
}

#[test]
fn a_folder_that_is_gone_or_lacks_a_file_is_named() {
    let state = tempfile::tempdir().unwrap();
    let recipe = recipe("http://unused", vec![spec("m.gguf", b"x")]);
    let store = store(state.path());
    let said = import(&store, &recipe, &Origin::Folder("/no/such/disk".into())).unwrap_err();
    assert!(said.to_string().contains("/no/such/disk"), "{said}");
    let empty = disk(&[]);
    let said = import(&store, &recipe, &Origin::Folder(empty.path().into())).unwrap_err();
    assert!(said.to_string().starts_with("m.gguf is not in "), "{said}");
}

#[test]
fn a_disk_that_is_pulled_out_is_named_and_the_copy_goes_on_later() {
    let (state, one, two) = (tempfile::tempdir().unwrap(), bytes(1, 9 << 20), bytes(2, 50_000));
    let disk = disk(&[("one.gguf", &one), ("two.gguf", &two)]);
    let away = disk.path().with_extension("away");
    let recipe = recipe("http://unused", vec![spec("one.gguf", &one), spec("two.gguf", &two)]);
    let store = store(state.path());
    let from = Origin::Folder(disk.path().into());
    let mut pull = |event: Event| match event {
        Event::Progress(progress) if progress.done > 1 << 20 && disk.path().exists() => {
            fs::rename(disk.path(), &away).unwrap();
        }
        _ => {}
    };
    let said = store.import(&recipe, &from, &mut pull, &CancelFlag::default()).unwrap_err();
    assert!(matches!(said, WeightsError::SourceGone { .. }), "{said}");
    assert!(said.to_string().contains("two.gguf"), "{said}");
    fs::rename(&away, disk.path()).unwrap();
    let (imported, _) = import(&store, &recipe, &from).unwrap();
    assert_eq!(imported.brought, 50_000, "the file that was whole is not copied again");
    assert_model(&store, &recipe, &[("one.gguf", &one), ("two.gguf", &two)]);
}

#[test]
fn a_file_that_shrinks_while_it_is_copied_is_refused() {
    let (state, model) = (tempfile::tempdir().unwrap(), bytes(1, 9 << 20));
    let disk = disk(&[("m.gguf", &model)]);
    let file = fs::File::options().write(true).open(disk.path().join("m.gguf")).unwrap();
    let recipe = recipe("http://unused", vec![unpinned("m.gguf")]);
    let store = store(state.path());
    let mut shrink = |event: Event| match event {
        Event::Progress(progress) if progress.done > 1 << 20 => file.set_len(2 << 20).unwrap(),
        _ => {}
    };
    let from = Origin::Folder(disk.path().into());
    let said = store.import(&recipe, &from, &mut shrink, &CancelFlag::default()).unwrap_err();
    assert!(said.to_string().contains("changed while it was copied"), "{said}");
    assert_nothing_visible(&store, &recipe);
}

#[test]
fn a_lost_view_is_made_again_without_any_source() {
    let (state, model) = (tempfile::tempdir().unwrap(), bytes(1, 1000));
    let disk = disk(&[("m.gguf", &model)]);
    let recipe = recipe("http://127.0.0.1:1", vec![spec("m.gguf", &model)]);
    let store = store(state.path());
    let (imported, _) = import(&store, &recipe, &Origin::Folder(disk.path().into())).unwrap();
    fs::remove_dir_all(imported.folder).unwrap();
    assert_model(&store, &recipe, &[("m.gguf", &model)]);
}

#[test]
fn a_recipe_that_names_other_bytes_now_is_not_served_the_old_ones() {
    let (state, old, new) = (tempfile::tempdir().unwrap(), bytes(1, 1000), bytes(2, 1000));
    let disk = disk(&[("m.gguf", &old)]);
    let from = Origin::Folder(disk.path().into());
    let store = store(state.path());
    import(&store, &recipe("http://unused", vec![spec("m.gguf", &old)]), &from).unwrap();
    let newer = recipe("http://unused", vec![spec("m.gguf", &new)]);
    assert_eq!(store.model_folder(&newer), None);
    fs::write(disk.path().join("m.gguf"), &new).unwrap();
    import(&store, &newer, &from).unwrap();
    assert_model(&store, &newer, &[("m.gguf", &new)]);
    assert_eq!(store.gc(polder_weights::STALE).unwrap().blobs, 1);
}

#[test]
fn hostile_names_in_a_recipe_touch_nothing() {
    let state = tempfile::tempdir().unwrap();
    let store = store(state.path());
    for name in ["../../evil", "/etc/evil", "a/../../evil", ""] {
        let recipe = recipe("http://unused", vec![spec(name, b"x")]);
        let said = import(&store, &recipe, &Origin::Folder("/".into())).unwrap_err();
        assert!(matches!(said, WeightsError::Name { .. }), "{said}");
        assert_eq!(store.model_folder(&recipe), None);
    }
    let mut named = recipe("http://unused", vec![spec("x.gguf", b"x")]);
    named.name = "../evil".into();
    assert!(matches!(
        import(&store, &named, &Origin::Folder("/".into())).unwrap_err(),
        WeightsError::Name { .. }
    ));
    assert_eq!(store.model_folder(&named), None);
    let pickle = recipe("http://unused", vec![spec("pytorch_model.bin", b"x")]);
    let said = import(&store, &pickle, &Origin::Folder("/".into())).unwrap_err();
    assert!(matches!(said, WeightsError::Pickle { .. }), "{said}");
}

fn any_model() -> Recipe {
    let (repo, revision) = ("a/b".into(), "main".into());
    Recipe::of_files("tiny", "Tiny", Source::HuggingFace { repo, revision }, Vec::<FileSpec>::new())
}

#[test]
fn the_first_import_of_an_unpinned_recipe_pins_it_and_says_so() {
    let (state, model) = (tempfile::tempdir().unwrap(), bytes(1, 50_000));
    let disk = disk(&[("model.safetensors", &model), ("config.json", b"{}"), ("notes.md", b"no")]);
    let from = Origin::Folder(disk.path().into());
    let store = store(state.path());
    let (imported, events) = import(&store, &any_model(), &from).unwrap();
    assert!(imported.manifest.pinned_here);
    let pinned: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            Event::Pinned { file, sha256, .. } => Some((file.as_str(), *sha256)),
            _ => None,
        })
        .collect();
    assert_eq!(pinned, [("model.safetensors", digest(&model)), ("config.json", digest(b"{}"))]);
    assert!(!imported.folder.join("notes.md").exists());
    let (again, events) = import(&store, &any_model(), &from).unwrap();
    assert_eq!(again.brought, 0);
    assert!(!events.iter().any(|event| matches!(event, Event::Pinned { .. })));
}

#[test]
fn a_later_change_of_an_unpinned_model_is_refused_with_both_digests() {
    let (state, model) = (tempfile::tempdir().unwrap(), bytes(1, 50_000));
    let disk = disk(&[("model.safetensors", &model), ("config.json", b"{}")]);
    let from = Origin::Folder(disk.path().into());
    let store = store(state.path());
    let (imported, _) = import(&store, &any_model(), &from).unwrap();
    let other = bytes(2, 50_000);
    fs::write(disk.path().join("model.safetensors"), &other).unwrap();
    let refused = |said: WeightsError| {
        assert!(matches!(said, WeightsError::PinChanged { .. }), "{said}");
        for part in ["model.safetensors", &digest(&model).to_string(), &digest(&other).to_string()]
        {
            assert!(said.to_string().contains(part), "{part} is not in {said}");
        }
    };
    refused(import(&store, &any_model(), &from).unwrap_err());
    assert_model(&store, &any_model(), &[("model.safetensors", &model)]);
    // Neither does a lost blob open the door.
    fs::remove_file(fs::canonicalize(imported.folder.join("model.safetensors")).unwrap()).unwrap();
    assert_eq!(store.model_folder(&any_model()), None);
    refused(import(&store, &any_model(), &from).unwrap_err());
    assert_eq!(store.model_folder(&any_model()), None);
    fs::write(disk.path().join("model.safetensors"), &model).unwrap();
    import(&store, &any_model(), &from).unwrap();
    assert_model(&store, &any_model(), &[("model.safetensors", &model)]);
}

#[test]
fn a_cut_import_of_an_unpinned_model_holds_only_for_its_own_source() {
    let (state, model, other) =
        (tempfile::tempdir().unwrap(), bytes(1, 9 << 20), bytes(2, 9 << 20));
    let first = disk(&[("a.gguf", b"first"), ("b.gguf", &model)]);
    let second = disk(&[("a.gguf", b"second"), ("b.gguf", &other)]);
    let recipe = recipe("http://unused", vec![unpinned("a.gguf"), unpinned("b.gguf")]);
    let store = store(state.path());
    let cut = || {
        let cancel = CancelFlag::default();
        let mut stop = |event: Event| match event {
            Event::Progress(progress) if progress.done > 1 << 20 => cancel.cancel(),
            _ => {}
        };
        let from = Origin::Folder(first.path().into());
        store.import(&recipe, &from, &mut stop, &cancel).unwrap_err()
    };
    assert!(matches!(cut(), WeightsError::Cancelled));
    fs::write(first.path().join("a.gguf"), "other").unwrap();
    let said = cut();
    assert!(matches!(said, WeightsError::Cancelled), "the file that is here is not read: {said}");
    let (imported, _) = import(&store, &recipe, &Origin::Folder(second.path().into())).unwrap();
    assert_eq!(imported.brought, 6 + (9 << 20));
    assert_model(&store, &recipe, &[("a.gguf", b"second"), ("b.gguf", &other)]);
}

#[test]
fn another_boxs_store_on_a_disk_is_a_source() {
    let (state, model) = (tempfile::tempdir().unwrap(), bytes(1, 50_000));
    let theirs = disk(&[(&format!("blobs/sha256/{}", digest(&model)), &model)]);
    let recipe = recipe("http://unused", vec![spec("m.gguf", &model)]);
    let store = store(state.path());
    import(&store, &recipe, &Origin::Folder(theirs.path().into())).unwrap();
    assert_model(&store, &recipe, &[("m.gguf", &model)]);
}
