//! What a box does with a seed when it starts: it keeps one at its first start, and gives networkd its address
//! at every start.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::path::{Path, PathBuf};

use crate::{Seed, SeedError};

/// What is kept of the seed in the box's state.
pub const KEPT: &str = "seed.toml";
/// There is one as soon as a box has been started; from then on it is its members' and no file's.
const SITE: &str = "site.toml";
/// The port that its address is for, once that is known.
pub const BOUND: &str = "seed.port";
/// The longest file of the state folder that is read here: a site has instructions in it.
const LONGEST: u64 = 4 << 20;

/// The seed could not be followed.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// What it says.
    #[error(transparent)]
    Seed(#[from] SeedError),
    /// What networkd is told.
    #[error(transparent)]
    Give(#[from] polder_address::GiveError),
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

/// Keeps the seed at `from` in `state`, if this is a box's first start, and writes what the box's ports get into `networks`.
pub fn take(state: &Path, from: &Path, networks: &Path) -> Result<Option<Seed>, TakeError> {
    let kept = state.join(KEPT);
    let keeping = match kept.exists() || state.join(SITE).exists() {
        true => Ok(()),
        false => keep(state, from, &kept),
    };
    // A seed that cannot be followed takes nothing away from what the site says.
    let given = crate::ports(state).or_else(|error| match error {
        TakeError::Seed(_) => crate::port::of_site(state),
        other => Err(other),
    })?;
    polder_address::give(networks, &given)?;
    keeping?;
    read(&kept)?.map(|text| Ok(Seed::parse(&text)?)).transpose()
}

/// Only a seed that can be followed is kept: a bad one would stand in the way of a better one.
fn keep(state: &Path, from: &Path, kept: &Path) -> Result<(), TakeError> {
    let Some(text) = read(from)? else { return Ok(()) };
    Seed::parse(&text)?;
    replace(state, kept, &text)
}

/// Root writes into somebody else's folder, and leaves it theirs.
pub(crate) fn replace(state: &Path, path: &Path, text: &str) -> Result<(), TakeError> {
    let error = |source| TakeError::File { act: "write", path: path.to_owned(), source };
    let partial = path.with_extension("partial");
    let write = || {
        use std::io::Write;
        // Never through a link that lies there.
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
        fs::rename(&partial, path)?;
        fs::File::open(state)?.sync_all()
    };
    write().map_err(error)
}

/// A file of this folder, if it is there: no link, and no longer than one that Polder writes.
pub(crate) fn read(path: &Path) -> Result<Option<String>, TakeError> {
    let fail = |source| TakeError::File { act: "read", path: path.to_owned(), source };
    let opened = fs::File::options()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(fail(source)),
    };
    let mut text = String::new();
    file.take(LONGEST).read_to_string(&mut text).map_err(fail)?;
    Ok(Some(text))
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
        fs::write(&from, SEED.replace("[network]", "[network]\nport = \"enp1s0\"")).unwrap();
        let seed = take(&state, &from, &networks).unwrap().unwrap();
        assert_eq!(seed.name.unwrap().as_str(), "meadow");
        assert!(crate::bind(&state, Path::new("/nowhere")).unwrap());
        fs::remove_dir_all(&networks).unwrap();
        fs::remove_file(&from).unwrap();
        take(&state, &from, &networks).unwrap();
        let file = networks.join("70-polder-port-enp1s0.network");
        assert!(fs::read_to_string(&file).unwrap().contains("Address=192.168.7.20/24"));
        // A kept seed that nobody can read any more takes nothing away from what the site says.
        fs::write(state.join(KEPT), "version = 9").unwrap();
        fs::write(state.join(SITE), "[ports.enp2s0]\naddresses = [\"10.0.0.5/8\"]\n").unwrap();
        assert!(matches!(take(&state, &from, &networks), Err(TakeError::Seed(_))));
        assert!(!file.exists() && networks.join("70-polder-port-enp2s0.network").exists());
    }

    #[test]
    fn a_seed_that_is_put_on_a_box_later_changes_nothing() {
        let (_folder, state, from, networks) = folders();
        fs::write(state.join(SITE), "").unwrap();
        fs::write(&from, SEED).unwrap();
        assert_eq!(take(&state, &from, &networks).unwrap(), None);
        assert!(!state.join(KEPT).exists());
        assert_eq!(fs::read_dir(&networks).unwrap().count(), 0);
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
