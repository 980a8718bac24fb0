//! Models of a restored box that do not fit its new machine: noted with the restore, and said until a steward has chosen others.

use std::fs;
use std::path::{Path, PathBuf};

use polder_site::{EngineName, RecipeName, Site};
use serde::{Deserialize, Serialize};

use crate::key::private_folder;
use crate::{BackupError, Folders, restore};

/// No note of ours is longer.
const LONGEST: u64 = 256 << 10;

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// What members know it as.
    pub engine: EngineName,
    /// The model that the box had.
    pub recipe: RecipeName,
    /// The smaller model of this machine that answers in its place, if one does.
    pub instead: Option<RecipeName>,
    /// Why: a part of a sentence.
    pub why: String,
}

impl LeftOut {
    /// For stewards.
    pub fn sentence(&self) -> String {
        let Self { engine, recipe, why, .. } = self;
        match &self.instead {
            Some(instead) => format!(
                "{engine} serves {instead}, the smaller model of this machine, instead of {recipe}: {why}."
            ),
            None => format!("{engine} is left out, and with it {recipe}: {why}."),
        }
    }

    /// What the last restore of this state folder left out, as far as nobody has chosen another model since.
    pub fn noted(state: &Path, site: &Site) -> Vec<Self> {
        let path = note_in(state);
        let short = fs::metadata(&path).is_ok_and(|file| file.len() <= LONGEST);
        let text = if short { fs::read(&path).unwrap_or_default() } else { Vec::new() };
        let all: Vec<Self> = serde_json::from_slice(&text).unwrap_or_default();
        let as_left = |one: &Self| {
            let serves = site.engines.get(&one.engine).map(|slot| &slot.recipe);
            serves == one.instead.as_ref()
        };
        all.into_iter().filter(as_left).collect()
    }

    /// Notes it with the restore that is being made ready; what an earlier one left out is so no more. To be called before [`restore::ready`].
    pub fn note(folders: &Folders, all: &[Self]) -> Result<(), BackupError> {
        let path = note_in(&restore::also(folders));
        private_folder(&restore::also(folders))?;
        private_folder(path.parent().unwrap_or(Path::new(".")))?;
        let text = serde_json::to_vec(all).expect("a note has only plain values");
        polder_site::write_durably(&path, &text)
            .map_err(|source| BackupError::File { path, source })
    }
}

fn note_in(state: &Path) -> PathBuf {
    state.join("backup/left-out.json")
}

#[cfg(test)]
mod tests {
    use polder_site::EngineSlot;

    use super::*;
    use crate::KitKey;

    #[test]
    fn what_was_left_out_is_said_with_the_restore_and_until_somebody_chose_another_model() {
        let state = tempfile::tempdir().unwrap();
        let folders = Folders::of(state.path());
        let of = |engine: &str, instead: Option<&str>| LeftOut {
            engine: engine.parse().unwrap(),
            recipe: "huge".parse().unwrap(),
            instead: instead.map(|name| name.parse().unwrap()),
            why: "it needs 80 GB".to_owned(),
        };
        let all = [of("fast", Some("small")), of("slow", None)];
        fs::create_dir_all(restore::incoming(&folders)).unwrap();
        LeftOut::note(&folders, &all).unwrap();
        let mut site = Site::unclaimed(8443);
        let mut serve = |engine: &str, recipe: &str| {
            let slot = EngineSlot::serving(recipe.parse().unwrap());
            site.engines.insert(engine.parse().unwrap(), slot);
            site.clone()
        };
        let restored = serve("fast", "small");
        assert_eq!(LeftOut::noted(state.path(), &restored), [], "it is not in place yet");
        restore::ready(&folders, &KitKey::make().unwrap()).unwrap();
        restore::settle(state.path()).unwrap().unwrap();
        let said: Vec<String> =
            LeftOut::noted(state.path(), &restored).iter().map(LeftOut::sentence).collect();
        assert_eq!(
            said,
            [
                "fast serves small, the smaller model of this machine, instead of huge: it needs 80 GB.",
                "slow is left out, and with it huge: it needs 80 GB."
            ]
        );
        assert_eq!(LeftOut::noted(state.path(), &serve("slow", "medium")), all[..1]);
        assert_eq!(LeftOut::noted(state.path(), &serve("fast", "large")), []);
        fs::write(note_in(state.path()), "{").unwrap();
        assert_eq!(LeftOut::noted(state.path(), &restored), []);
    }
}
