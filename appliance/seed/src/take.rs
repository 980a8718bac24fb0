//! What a box does with a seed when it starts: it keeps one at its first start, and gives networkd its address
//! at every start.

use std::fs;
use std::io;
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::path::{Path, PathBuf};

use crate::{Seed, SeedError};

/// What is kept of the seed in the box's state.
pub const KEPT: &str = "seed.toml";
/// There is one as soon as a box has been started; from then on it is its members' and no file's.
const SITE: &str = "site.toml";
/// Before the image's own.
const NETWORK: &str = "70-polder-seed.network";

/// The seed could not be followed.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// What it says.
    #[error(transparent)]
    Seed(#[from] SeedError),
    /// A file.
    #[error("could not {act} {}", path.display())]
    File {
        /// `read` or `write`.
        act: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Keeps the seed at `from` in `state`, if this is a box's first start, and writes what the kept one says of the
/// network into `networks`.
pub fn take(state: &Path, from: &Path, networks: &Path) -> Result<Option<Seed>, TakeError> {
    let kept = state.join(KEPT);
    if !kept.exists() && !state.join(SITE).exists() {
        keep(state, from, &kept)?;
    }
    let Some(text) = read(&kept)? else { return Ok(None) };
    let seed = Seed::parse(&text)?;
    if let Some(network) = &seed.network {
        let path = networks.join(NETWORK);
        let error = |source| TakeError::File { act: "write", path: path.clone(), source };
        fs::create_dir_all(networks).map_err(error)?;
        fs::write(&path, network.file()).map_err(error)?;
    }
    Ok(Some(seed))
}

/// Only a seed that can be followed is kept: a bad one would stand in the way of a better one.
fn keep(state: &Path, from: &Path, kept: &Path) -> Result<(), TakeError> {
    let Some(text) = read(from)? else { return Ok(()) };
    Seed::parse(&text)?;
    let error = |source| TakeError::File { act: "write", path: kept.to_owned(), source };
    let partial = kept.with_extension("partial");
    let write = || {
        use std::io::Write;
        // Root writes into somebody else's folder: never through a link that lies there.
        match fs::remove_file(&partial) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file =
            fs::File::options().write(true).create_new(true).mode(0o600).open(&partial)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        // It is the box's own like everything beside it.
        let owner = fs::metadata(state)?;
        use std::os::unix::fs::MetadataExt;
        chown(&partial, Some(owner.uid()), Some(owner.gid()))?;
        fs::rename(&partial, kept)?;
        fs::File::open(state)?.sync_all()
    };
    write().map_err(error)
}

fn read(path: &Path) -> Result<Option<String>, TakeError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TakeError::File { act: "read", path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: &str = "version = 1\nname = \"meadow\"\n[network]\naddress = \"192.168.7.20/24\"\n";

    fn folders() -> (tempfile::TempDir, PathBuf, PathBuf, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let (state, from, networks) = (at("state"), at("seed"), at("networks"));
        fs::create_dir(&state).unwrap();
        (folder, state, from, networks)
    }

    #[test]
    fn a_link_that_lies_in_the_way_is_not_followed() {
        let (folder, state, from, networks) = folders();
        let other = folder.path().join("other");
        fs::write(&other, "somebody else's").unwrap();
        std::os::unix::fs::symlink(&other, state.join("seed.partial")).unwrap();
        fs::write(&from, SEED).unwrap();
        assert!(take(&state, &from, &networks).unwrap().is_some());
        assert_eq!(fs::read_to_string(&other).unwrap(), "somebody else's");
    }

    #[test]
    fn a_box_keeps_the_seed_of_its_first_start_and_has_its_address_at_every_start() {
        let (_folder, state, from, networks) = folders();
        fs::write(&from, SEED).unwrap();
        let seed = take(&state, &from, &networks).unwrap().unwrap();
        assert_eq!(seed.name.unwrap().as_str(), "meadow");
        fs::remove_dir_all(&networks).unwrap();
        fs::remove_file(&from).unwrap();
        take(&state, &from, &networks).unwrap();
        assert!(fs::read_to_string(networks.join(NETWORK)).unwrap().contains("192.168.7.20/24"));
    }

    #[test]
    fn a_seed_that_is_put_on_a_box_later_changes_nothing() {
        let (_folder, state, from, networks) = folders();
        fs::write(state.join(SITE), "").unwrap();
        fs::write(&from, SEED).unwrap();
        assert_eq!(take(&state, &from, &networks).unwrap(), None);
        assert!(!networks.exists());
    }

    #[test]
    fn a_bad_seed_is_not_kept() {
        let (_folder, state, from, networks) = folders();
        fs::write(&from, "version = 9").unwrap();
        assert!(matches!(take(&state, &from, &networks), Err(TakeError::Seed(_))));
        fs::write(&from, SEED).unwrap();
        assert!(take(&state, &from, &networks).unwrap().is_some());
    }
}
