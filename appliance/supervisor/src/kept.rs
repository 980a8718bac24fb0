//! What engines keep on disk: of conversations in `kv/NAME`, their packed weights in `packed/NAME`; what the slot of a container has unpacked in
//! `containers/slots/NAME`. Folders for each engine of the site, and nothing of those that are gone.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use polder_site::{EngineKind, EngineName, Site};
use polder_upstream::container::unpacked_by;
use polder_upstream::{open_up, remove_tree};

const CONVERSATIONS: &str = "kv";
const PACKED: &str = "packed";
const UNPACKED: &str = "containers/slots";

/// Where an engine keeps conversations.
pub fn kept_by(state: &Path, engine: &EngineName) -> PathBuf {
    state.join(CONVERSATIONS).join(engine.as_str())
}

/// Where an engine keeps its weights as it packed them.
pub fn packed_by(state: &Path, engine: &EngineName) -> PathBuf {
    state.join(PACKED).join(engine.as_str())
}

/// Makes the folders that are missing, since a locked-up engine cannot, and erases those of engines that the site does not
/// name. Whatever fails is in the log, and done when the supervisor starts again or the site changes.
pub(crate) fn tidy(state: &Path, site: &Site) {
    for folder in site.engines.keys().flat_map(|e| [kept_by(state, e), packed_by(state, e)]) {
        make(&folder);
    }
    let contained = |name: &EngineName| {
        site.engines.get(name).is_some_and(|slot| slot.kind == EngineKind::Container)
    };
    for engine in site.engines.keys().filter(|name| contained(name)) {
        make(&unpacked_by(state, engine));
    }
    // Nobody needs an image where another server serves the slot, and it is gigabytes.
    erase_former(&state.join(UNPACKED), contained, |folder| {
        polder_upstream::container::erase(folder).map_err(|error| error.to_string())
    });
    let named = |name: &EngineName| site.engines.contains_key(name);
    erase_former(&state.join(CONVERSATIONS), named, erase_conversations);
    erase_former(&state.join(PACKED), named, |folder| {
        remove_tree(folder).map(drop).map_err(|error| error.to_string())
    });
}

/// Keys first. An engine that was taken over may have shut its folders and keys, since it has the same user: they are opened, and it is tried once more. It
/// may also have made folders that are deeper than paths may be long: they are only removed, and not before the keys are overwritten.
fn erase_conversations(folder: &Path) -> Result<(), String> {
    let in_words = |error: polder_kv::OpenError| error.to_string();
    match polder_kv::erase(folder) {
        Err(polder_kv::OpenError::Folder { .. }) => {}
        done => return done.map_err(in_words),
    }
    let keys = folder.join("keys");
    for shut in [folder, &folder.join("lock"), &keys] {
        open_up(shut).map_err(|error| format!("{}: {error}", shut.display()))?;
    }
    if keys.symlink_metadata().is_ok_and(|about| about.is_dir()) {
        for key in fs::read_dir(&keys).into_iter().flatten().flatten() {
            open_up(&key.path()).map_err(|error| format!("{}: {error}", key.path().display()))?;
        }
    }
    match polder_kv::erase(folder) {
        Err(polder_kv::OpenError::Folder { .. }) if has_no_key(&keys) => {
            remove_tree(folder).map(drop).map_err(|error| error.to_string())
        }
        done => done.map_err(in_words),
    }
}

/// Whether there is certainly no key's file in it. A link in its place leads to somebody else's.
fn has_no_key(keys: &Path) -> bool {
    match keys.symlink_metadata() {
        Ok(about) if about.is_dir() => fs::read_dir(keys).is_ok_and(|mut all| {
            all.all(|entry| {
                entry.and_then(|entry| entry.file_type()).is_ok_and(|kind| kind.is_dir())
            })
        }),
        Ok(_) => true,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

fn make(folder: &Path) {
    if let Err(error) = DirBuilder::new().recursive(true).mode(0o700).create(folder) {
        log::error!("could not make {}: {error}", folder.display());
    }
}

fn erase_former(
    all: &Path,
    stays: impl Fn(&EngineName) -> bool,
    erase: impl Fn(&Path) -> Result<(), String>,
) {
    let folders = match fs::read_dir(all) {
        Ok(folders) => folders,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => return log::error!("could not look at what engines keep: {error}"),
    };
    for folder in folders.flatten() {
        let name = folder.file_name();
        let named = name.to_str().and_then(|name| name.parse::<EngineName>().ok());
        // What has a name that no engine can have is not ours.
        if named.is_some_and(|name| !stays(&name))
            && let Err(error) = erase(&folder.path())
        {
            log::error!("could not erase what a former engine kept: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Folders in folders, deeper than a path may be long.
    fn dig(into: &Path) {
        use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
        let (folder, name) = (OFlags::RDONLY | OFlags::DIRECTORY, "d".repeat(200));
        let mut at = openat(CWD, into, folder, Mode::empty()).unwrap();
        for _ in 0..25 {
            mkdirat(&at, &name, Mode::RWXU).unwrap();
            at = openat(&at, &name, folder, Mode::empty()).unwrap();
        }
    }

    #[test]
    fn each_engine_of_the_site_has_a_folder_and_what_a_former_one_kept_is_erased() {
        let state = tempfile::tempdir().unwrap();
        let mut site = Site::unclaimed(1);
        tidy(state.path(), &site);
        assert!(!state.path().join("kv").exists());
        let slot = |recipe: &str| polder_site::EngineSlot::serving(recipe.parse().unwrap());
        for name in ["fast", "slow"] {
            site.engines.insert(name.parse().unwrap(), slot("tiny"));
        }
        tidy(state.path(), &site);
        let folder = |name: &str| state.path().join("kv").join(name);
        fs::create_dir(folder("fast").join("keys")).unwrap();
        fs::write(folder("fast").join("keys/0123456789abcdef01234567"), "secret").unwrap();
        fs::create_dir(folder("Not an engine")).unwrap();
        let packed = |name: &str| state.path().join("packed").join(name);
        fs::write(packed("fast").join("weights.bin"), "weights").unwrap();
        for at in [folder("fast"), packed("fast")] {
            dig(&at);
        }
        site.engines.remove(&"fast".parse::<EngineName>().unwrap());
        tidy(state.path(), &site);
        assert!(!folder("fast").exists());
        assert!(!packed("fast").exists() && packed("slow").is_dir());
        assert!(folder("slow").is_dir() && folder("Not an engine").is_dir());
        assert!(!state.path().join("containers").exists(), "no container serves any of them");
    }

    #[test]
    fn the_keys_of_a_former_engine_are_overwritten_also_where_it_shut_them_away() {
        use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
        use std::os::unix::fs::PermissionsExt;
        let state = tempfile::tempdir().unwrap();
        let folder = kept_by(state.path(), &"fast".parse().unwrap());
        let keys = folder.join("keys");
        fs::create_dir_all(&keys).unwrap();
        let key = keys.join("0123456789abcdef01234567");
        fs::write(&key, "secret").unwrap();
        fs::write(folder.join("lock"), "").unwrap();
        let read = fs::File::open(&key).unwrap();
        dig(&folder);
        for shut in [key, folder.join("lock"), keys, folder.clone()] {
            fs::set_permissions(shut, fs::Permissions::from_mode(0o000)).unwrap();
        }
        let at = state.path().to_owned();
        let tidied = std::thread::spawn(move || {
            // Somebody whom rights bind: root's own are put off, for this thread.
            let none = CapabilitySet::empty();
            let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
            set_capabilities(None, none).unwrap();
            tidy(&at, &Site::unclaimed(1));
        });
        tidied.join().unwrap();
        assert!(!folder.exists());
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut &read, &mut bytes).unwrap();
        assert!(!bytes.starts_with(b"secret"), "it was removed and not overwritten");
    }

    #[test]
    fn what_a_container_had_unpacked_goes_when_something_else_serves_its_slot() {
        let state = tempfile::tempdir().unwrap();
        let (mut site, name): (Site, EngineName) = (Site::unclaimed(1), "big".parse().unwrap());
        let mut slot = polder_site::EngineSlot::serving("tiny".parse().unwrap());
        slot.kind = EngineKind::Container;
        site.engines.insert(name.clone(), slot.clone());
        tidy(state.path(), &site);
        let unpacked = unpacked_by(state.path(), &name);
        fs::create_dir(unpacked.join("storage")).unwrap();
        tidy(state.path(), &site);
        assert!(unpacked.join("storage").is_dir());
        slot.kind = EngineKind::Polder;
        site.engines.insert(name, slot);
        tidy(state.path(), &site);
        assert!(!unpacked.exists());
    }
}
