use std::fs;
use std::path::Path;
use std::time::Duration;

use polder_recipes::{Digest, FileSpec, Recipe, Source};
use polder_weights::{CancelFlag, Event, Imported, Options, Origin, Phase, Store, WeightsError};
use sha2::Digest as _;

/// Options for loopback: small chunks, no patience.
pub(crate) fn quick() -> Options {
    Options {
        connections: 3,
        chunk: 16 << 10,
        tries: 5,
        first_wait: Duration::from_millis(1),
        longest_wait: Duration::from_millis(4),
        stall: Duration::from_secs(5),
        tell_every: Duration::ZERO,
        ..Options::default()
    }
}

pub(crate) fn store(folder: &Path) -> Store {
    Store::open_with(folder.join("weights"), quick()).unwrap()
}

/// Bytes that are the same in every run and compress badly.
pub(crate) fn bytes(seed: u32, count: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9).wrapping_add(1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    (0..count).map(|_| next()).collect()
}

pub(crate) fn digest(bytes: &[u8]) -> Digest {
    Digest::from_bytes(sha2::Sha256::digest(bytes).into())
}

pub(crate) fn spec(name: &str, bytes: &[u8]) -> FileSpec {
    let (size, sha256) = (Some(bytes.len() as u64), Some(digest(bytes)));
    FileSpec { name: name.into(), size, sha256, parts: Vec::new() }
}

pub(crate) fn unpinned(name: &str) -> FileSpec {
    FileSpec { name: name.into(), size: None, sha256: None, parts: Vec::new() }
}

pub(crate) fn recipe(base: &str, files: Vec<FileSpec>) -> Recipe {
    Recipe::of_files("tiny", "Tiny", Source::Web { base: base.into() }, files)
}

pub(crate) fn import(
    store: &Store,
    recipe: &Recipe,
    from: &Origin,
) -> Result<(Imported, Vec<Event>), WeightsError> {
    let mut events = Vec::new();
    let imported =
        store.import(recipe, from, &mut |event| events.push(event), &CancelFlag::default())?;
    Ok((imported, events))
}

/// The files of a model as an engine sees them are exactly these.
pub(crate) fn assert_model(store: &Store, recipe: &Recipe, files: &[(&str, &[u8])]) {
    let folder = store.model_folder(recipe).expect("the model is in place");
    for (name, bytes) in files {
        assert!(fs::read(folder.join(name)).unwrap() == *bytes, "{name} has other bytes");
    }
}

/// Nothing can be served and no blob is there.
pub(crate) fn assert_nothing_visible(store: &Store, recipe: &Recipe) {
    assert_eq!(store.model_folder(recipe), None);
    assert_eq!(fs::read_dir(store.root().join("blobs/sha256")).unwrap().count(), 0);
    assert_eq!(store.list().unwrap(), []);
}

pub(crate) fn phases(events: &[Event]) -> Vec<Phase> {
    let mut phases: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            Event::Progress(progress) => Some(progress.phase),
            _ => None,
        })
        .collect();
    phases.dedup();
    phases
}
