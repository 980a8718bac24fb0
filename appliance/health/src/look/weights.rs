//! Spot checks: whether the files of models are there, and now and then whether one of them is still what was imported.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use polder_weights::{CancelFlag, Manifest, Store};
use sha2::{Digest, Sha256};

use crate::seen::DamagedFile;

/// Read at once, and then paused, so that a spot check does not take the disk from those who wait for an answer.
const PIECE: usize = 4 << 20;
const PAUSE: Duration = Duration::from_millis(20);

/// Files that are not there, or not as long as they were. Costs a look at each name.
pub(crate) fn missing(folder: &Path) -> Result<Vec<DamagedFile>, String> {
    let Some(store) = open(folder)? else { return Ok(Vec::new()) };
    let manifests = store.list().map_err(|e| e.to_string())?;
    let mut damaged = Vec::new();
    for (manifest, file) in manifests.iter().flat_map(|m| m.files.iter().map(move |f| (m, f))) {
        let blob = folder.join("blobs/sha256").join(file.sha256.to_string());
        let there = std::fs::metadata(&blob).is_ok_and(|about| about.len() == file.size);
        let Ok(recipe) = manifest.recipe.parse() else { continue };
        if !there {
            // What a check took away because it was wrong.
            let aside = folder.join("partial").join(format!("damaged-{}", file.sha256));
            let gone = !aside.exists() && !blob.exists();
            damaged.push(DamagedFile { recipe, file: file.name.clone(), gone });
        }
    }
    Ok(damaged)
}

/// Reads the file that comes after `last` in the order of all files, slowly, and says which it was. One that is not what was
/// imported is taken away together with every other wrong one of its model, so that nothing serves it.
pub(crate) fn spot_check(folder: &Path, last: &str) -> Result<Option<String>, String> {
    let Some(store) = open(folder)? else { return Ok(None) };
    let mut manifests = store.list().map_err(|e| e.to_string())?;
    manifests.sort_by(|a, b| a.recipe.cmp(&b.recipe));
    let Some((manifest, name, mark)) = next(&manifests, last) else { return Ok(None) };
    let file = manifest.files.iter().find(|file| file.name == name);
    let file = file.ok_or("a file that was just named is not there")?;
    let blob = folder.join("blobs/sha256").join(file.sha256.to_string());
    match digest(&blob) {
        Ok(found) if found == file.sha256.to_string() => {}
        Ok(_) => {
            log::error!("{name} of {} is not what was imported any more", manifest.recipe);
            let verified =
                store.verify(Some(&manifest.recipe), &mut |_| {}, &CancelFlag::default());
            verified.map_err(|e| e.to_string())?;
        }
        // That it is gone is seen without reading it.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(format!("{name} of {} cannot be read: {e}", manifest.recipe)),
    }
    Ok(Some(mark))
}

fn open(folder: &Path) -> Result<Option<Store>, String> {
    // Looking must not make a store.
    folder
        .join("manifests")
        .is_dir()
        .then(|| Store::open(folder).map_err(|e| e.to_string()))
        .transpose()
}

/// The file after the one that was looked at last; the first one again after all.
fn next<'a>(manifests: &'a [Manifest], last: &str) -> Option<(&'a Manifest, &'a str, String)> {
    let all = || {
        manifests.iter().flat_map(|manifest| {
            manifest.files.iter().map(move |file| {
                let mark = format!("{}/{}", manifest.recipe, file.name);
                (manifest, file.name.as_str(), mark)
            })
        })
    };
    let after = all().filter(|(_, _, mark)| mark.as_str() > last).min_by(|a, b| a.2.cmp(&b.2));
    after.or_else(|| all().min_by(|a, b| a.2.cmp(&b.2)))
}

fn digest(path: &Path) -> std::io::Result<String> {
    let (mut file, mut hash) = (std::fs::File::open(path)?, Sha256::new());
    let mut piece = vec![0; PIECE];
    loop {
        let length = file.read(&mut piece)?;
        if length == 0 {
            return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect());
        }
        hash.update(&piece[..length]);
        if length == PIECE {
            std::thread::sleep(PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// A store with one model of two files, as an import leaves it.
    fn store(folder: &Path) -> [std::path::PathBuf; 2] {
        for name in ["manifests", "blobs/sha256", "partial", "models"] {
            std::fs::create_dir_all(folder.join(name)).unwrap();
        }
        let files = [("a.gguf", b"one".as_slice()), ("b.gguf", b"two")];
        let mut manifest = String::from(
            "recipe = \"tiny\"\nsource = \"a folder\"\nimported = \"2026-11-26T20:00:00Z\"\npinned_here = true\n",
        );
        for (name, bytes) in files {
            let digest = hex(bytes);
            manifest += &format!(
                "[[file]]\nname = \"{name}\"\nsize = {}\nsha256 = \"{digest}\"\n",
                bytes.len()
            );
            std::fs::write(folder.join("blobs/sha256").join(digest), bytes).unwrap();
        }
        std::fs::write(folder.join("manifests/tiny.toml"), manifest).unwrap();
        files.map(|(_, bytes)| folder.join("blobs/sha256").join(hex(bytes)))
    }

    #[test]
    fn every_file_has_its_turn_and_one_flipped_byte_is_found_and_taken_away() {
        let folder = tempfile::tempdir().unwrap();
        let [one, _] = store(folder.path());
        let mut mark = String::new();
        for expected in ["tiny/a.gguf", "tiny/b.gguf", "tiny/a.gguf"] {
            mark = spot_check(folder.path(), &mark).unwrap().unwrap();
            assert_eq!(mark, expected);
        }
        assert_eq!(missing(folder.path()).unwrap(), []);
        std::fs::write(&one, b"onE").unwrap();
        assert_eq!(missing(folder.path()).unwrap(), []);
        spot_check(folder.path(), "tiny/b.gguf").unwrap();
        let damaged = missing(folder.path()).unwrap();
        assert_eq!(
            (damaged.len(), damaged[0].file.as_str(), damaged[0].gone),
            (1, "a.gguf", false)
        );
        assert!(!one.exists());
    }

    #[test]
    fn a_file_that_is_gone_is_seen_without_reading_and_no_store_is_made() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(missing(folder.path()).unwrap(), []);
        assert_eq!(spot_check(folder.path(), "").unwrap(), None);
        assert!(folder.path().read_dir().unwrap().next().is_none());
        let [_, two] = store(folder.path());
        std::fs::remove_file(two).unwrap();
        assert!(missing(folder.path()).unwrap()[0].gone);
    }
}
