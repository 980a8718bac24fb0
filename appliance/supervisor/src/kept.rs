//! What engines keep of conversations on disk, in `kv/NAME`: a folder for each engine of the site, and nothing of those
//! that are gone.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use polder_site::{EngineName, Site};

/// Where an engine keeps it.
pub fn kept_by(state: &Path, engine: &EngineName) -> PathBuf {
    state.join("kv").join(engine.as_str())
}

/// Makes the folders that are missing, since a locked-up engine cannot, and erases those of engines that the site does not
/// name. Whatever fails is in the log, and done when the supervisor starts again or the site changes.
pub(crate) fn tidy(state: &Path, site: &Site) {
    for engine in site.engines.keys() {
        let folder = kept_by(state, engine);
        if let Err(error) = DirBuilder::new().recursive(true).mode(0o700).create(&folder) {
            log::error!("could not make {}: {error}", folder.display());
        }
    }
    let folders = match fs::read_dir(state.join("kv")) {
        Ok(folders) => folders,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => return log::error!("could not look at what engines keep: {error}"),
    };
    for folder in folders.flatten() {
        let name = folder.file_name();
        let named = name.to_str().and_then(|name| name.parse::<EngineName>().ok());
        // What has a name that no engine can have is not ours.
        if named.is_some_and(|name| !site.engines.contains_key(&name))
            && let Err(error) = polder_kv::erase(&folder.path())
        {
            log::error!("could not erase what a former engine kept: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_engine_of_the_site_has_a_folder_and_what_a_former_one_kept_is_erased() {
        let state = tempfile::tempdir().unwrap();
        let mut site = Site::unclaimed(1);
        tidy(state.path(), &site);
        assert!(!state.path().join("kv").exists());
        let slot = |recipe: &str| polder_site::EngineSlot {
            recipe: recipe.parse().unwrap(),
            kind: Default::default(),
        };
        for name in ["fast", "slow"] {
            site.engines.insert(name.parse().unwrap(), slot("tiny"));
        }
        tidy(state.path(), &site);
        let folder = |name: &str| state.path().join("kv").join(name);
        fs::create_dir(folder("fast").join("keys")).unwrap();
        fs::write(folder("fast").join("keys/0123456789abcdef01234567"), "secret").unwrap();
        fs::create_dir(folder("Not an engine")).unwrap();
        site.engines.remove(&"fast".parse::<EngineName>().unwrap());
        tidy(state.path(), &site);
        assert!(!folder("fast").exists());
        assert!(folder("slow").is_dir() && folder("Not an engine").is_dir());
    }
}
