use polder_recipes::{FileSpec, Recipe, Source};
use polder_weights::{Event, Options, Origin, Store, WeightsError};

use crate::common::*;
use crate::server::Server;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const INDEX: &str =
    r#"{"metadata": {}, "weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}"#;

struct Repo {
    server: Server,
    shards: [Vec<u8>; 2],
}

/// A sharded repository with what does not belong in a model beside it.
fn repo() -> Repo {
    let shards = [bytes(1, 70_000), bytes(2, 50_000)];
    let server = Server::start(&[]);
    let repo = Repo { server, shards };
    repo.set("main", "config.json", "{}".as_bytes());
    repo.set(COMMIT, "config.json", "{}".as_bytes());
    repo.set(COMMIT, "model.safetensors.index.json", INDEX.as_bytes());
    repo.set(COMMIT, "m-1.safetensors", &repo.shards[0]);
    repo.set(COMMIT, "m-2.safetensors", &repo.shards[1]);
    repo.list("main", COMMIT, &repo.shards[0]);
    repo.list(COMMIT, COMMIT, &repo.shards[0]);
    repo
}

impl Repo {
    fn set(&self, revision: &str, name: &str, bytes: &[u8]) {
        let path = format!("/owner/name/resolve/{revision}/{name}");
        self.server.is.files.lock().unwrap().insert(path, bytes.to_vec());
    }
    fn list(&self, revision: &str, commit: &str, first: &[u8]) {
        let list = format!(
            r#"{{"sha": "{commit}", "siblings": [
                {{"rfilename": "README.md", "size": 3}},
                {{"rfilename": "config.json", "size": 2}},
                {{"rfilename": "pytorch_model.bin", "size": 3}},
                {{"rfilename": "model.safetensors.index.json", "size": {}}},
                {{"rfilename": "m-1.safetensors", "size": {}, "lfs": {{"sha256": "{}", "size": {}}}}},
                {{"rfilename": "m-2.safetensors", "size": 50000}}
            ]}}"#,
            INDEX.len(),
            first.len(),
            digest(first),
            first.len()
        );
        let path = format!("/api/models/owner/name/revision/{revision}?blobs=true");
        self.server.is.files.lock().unwrap().insert(path, list.into_bytes());
    }
    fn store(&self, folder: &std::path::Path) -> Store {
        let options = Options { hub_endpoint: Some(self.server.url.clone()), ..quick() };
        Store::open_with(folder.join("weights"), options).unwrap()
    }
}

fn recipe(revision: &str, files: Vec<FileSpec>) -> Recipe {
    let (repo, revision) = ("owner/name".into(), revision.into());
    Recipe::of_files("tiny", "Tiny", Source::HuggingFace { repo, revision }, files)
}

#[test]
fn a_repository_gives_its_shards_and_is_pinned_to_its_commit() {
    let (state, repo) = (tempfile::tempdir().unwrap(), repo());
    let store = repo.store(state.path());
    let recipe = recipe("main", Vec::new());
    let (imported, events) = import(&store, &recipe, &Origin::AsTheRecipeSays).unwrap();
    let names: Vec<_> = imported.manifest.files.iter().map(|file| file.name.as_str()).collect();
    let wanted =
        ["model.safetensors.index.json", "m-1.safetensors", "m-2.safetensors", "config.json"];
    assert_eq!(names, wanted);
    assert_eq!(imported.manifest.commit.as_deref(), Some(COMMIT));
    assert_eq!(events.iter().filter(|e| matches!(e, Event::Pinned { .. })).count(), 4);
    assert_model(
        &store,
        &recipe,
        &[("m-1.safetensors", &repo.shards[0]), ("m-2.safetensors", &repo.shards[1])],
    );
}

#[test]
fn a_branch_that_moved_on_does_not_change_a_pinned_model() {
    let (state, repo) = (tempfile::tempdir().unwrap(), repo());
    let store = repo.store(state.path());
    let recipe = recipe("main", Vec::new());
    let (imported, _) = import(&store, &recipe, &Origin::AsTheRecipeSays).unwrap();
    let other = bytes(9, 70_000);
    repo.list("main", &"f".repeat(40), &other);
    let blob = imported.folder.join("m-1.safetensors").canonicalize().unwrap();
    std::fs::remove_file(blob).unwrap();
    import(&store, &recipe, &Origin::AsTheRecipeSays).unwrap();
    assert_model(&store, &recipe, &[("m-1.safetensors", &repo.shards[0])]);
}

#[test]
fn a_server_that_rewrites_a_pinned_commit_is_refused_with_both_digests() {
    let (state, repo) = (tempfile::tempdir().unwrap(), repo());
    let store = repo.store(state.path());
    let recipe = recipe("main", Vec::new());
    let (imported, _) = import(&store, &recipe, &Origin::AsTheRecipeSays).unwrap();
    let other = bytes(9, 70_000);
    repo.list(COMMIT, COMMIT, &other);
    let blob = imported.folder.join("m-1.safetensors").canonicalize().unwrap();
    std::fs::remove_file(blob).unwrap();
    let sent = repo.server.sent();
    let said = import(&store, &recipe, &Origin::AsTheRecipeSays).unwrap_err();
    let WeightsError::PinChanged { file, pinned, found, .. } = &said else { panic!("{said}") };
    assert_eq!(file, "m-1.safetensors");
    assert_eq!((*pinned, **found), (digest(&repo.shards[0]), digest(&other)));
    assert!(repo.server.sent() - sent < 5_000, "it was refused by the list alone");
}

#[test]
fn bytes_that_are_not_those_of_the_servers_own_list_are_refused() {
    let (state, repo) = (tempfile::tempdir().unwrap(), repo());
    repo.set(COMMIT, "m-1.safetensors", &bytes(9, 70_000));
    let store = repo.store(state.path());
    let said = import(&store, &recipe("main", Vec::new()), &Origin::AsTheRecipeSays).unwrap_err();
    assert!(said.to_string().contains("the server's own list names"), "{said}");
}

#[test]
fn a_pinned_recipe_needs_no_list() {
    let (state, repo) = (tempfile::tempdir().unwrap(), repo());
    let store = repo.store(state.path());
    let recipe = recipe(COMMIT, vec![spec("m-1.safetensors", &repo.shards[0])]);
    import(&store, &recipe, &Origin::AsTheRecipeSays).unwrap();
    let asked = repo.server.is.asked.lock().unwrap().clone();
    assert!(asked.iter().all(|path| !path.starts_with("/api/")), "{asked:?}");
}

#[test]
fn a_machine_without_an_endpoint_is_told_which_setting_to_make() {
    let state = tempfile::tempdir().unwrap();
    let recipe = recipe("main", Vec::new());
    let said = import(&store(state.path()), &recipe, &Origin::AsTheRecipeSays).unwrap_err();
    assert!(matches!(said, WeightsError::NoEndpoint { .. }), "{said}");
    assert!(said.to_string().contains("POLDER_HF_ENDPOINT"), "{said}");
}

#[test]
fn a_list_that_is_too_long_or_no_list_is_refused() {
    let (state, repo) = (tempfile::tempdir().unwrap(), repo());
    let store = repo.store(state.path());
    let path = "/api/models/owner/name/revision/main?blobs=true";
    for list in [b"<html>".to_vec(), vec![b' '; (16 << 20) + 2]] {
        repo.server.is.files.lock().unwrap().insert(path.into(), list);
        let said = import(&store, &recipe("main", Vec::new()), &Origin::AsTheRecipeSays);
        let said = said.unwrap_err();
        assert!(matches!(said, WeightsError::Server { .. }), "{said}");
    }
}
