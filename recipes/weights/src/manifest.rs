use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use jiff::Timestamp;
use polder_recipes::Digest;
use serde::{Deserialize, Serialize};

use crate::partial::{sync_folder_of, write_new};
use crate::{WeightsError, names};

/// No manifest of ours is larger: 4096 files of at most about 700 bytes each.
const LONGEST: u64 = 4 << 20;

/// What was imported for one recipe: the record that makes blobs a model. For a recipe that pins
/// nothing itself this is also its pin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The recipe's name.
    pub recipe: String,
    /// Where the files came from, in words, without passwords.
    pub source: String,
    /// When the import ended.
    pub imported: Timestamp,
    /// Whether the digests were not in the recipe but are those of the first import.
    pub pinned_here: bool,
    /// The full commit, where the source has such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Every file of the model.
    #[serde(default, rename = "file")]
    pub files: Vec<StoredFile>,
}

/// One file of an imported model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredFile {
    /// Its name in the model's folder.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// What it hashed to: the name of its blob.
    pub sha256: Digest,
}

impl Manifest {
    /// Bytes of all files together.
    pub fn bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.size))
    }
    pub(crate) fn file(&self, name: &str) -> Option<&StoredFile> {
        self.files.iter().find(|file| file.name == name)
    }
    /// Reads and checks one. None where there is none.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>, WeightsError> {
        let fail = |why: String| WeightsError::Manifest { path: path.to_owned(), why };
        let mut text = String::new();
        match File::open(path).and_then(|file| file.take(LONGEST).read_to_string(&mut text)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|e| fail(e.to_string()))?,
        };
        Self::parse(&text).map(Some).map_err(fail)
    }
    fn parse(text: &str) -> Result<Self, String> {
        let manifest: Self = toml::from_str(text).map_err(|e| names::shorten(e.message()))?;
        names::recipe_name(&manifest.recipe)
            .and_then(|()| names::files_together(manifest.files.iter().map(|f| f.name.as_str())))
            .map_err(|e| e.to_string())?;
        Ok(manifest)
    }
    /// Puts it in place, whole or not at all.
    pub(crate) fn write(&self, path: &Path) -> Result<(), WeightsError> {
        let text = toml::to_string(self).expect("a manifest is plain data");
        let fresh = path.with_extension("fresh");
        write_new(&fresh, text.as_bytes())
            .and_then(|()| fs::rename(&fresh, path))
            .and_then(|()| sync_folder_of(path))
            .map_err(WeightsError::writing(&self.recipe, path))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn manifest(name: &str) -> Manifest {
        Manifest {
            recipe: "m".into(),
            source: "a folder".into(),
            imported: Timestamp::UNIX_EPOCH,
            pinned_here: true,
            commit: None,
            files: vec![StoredFile {
                name: name.into(),
                size: 7,
                sha256: Digest::from_bytes([9; 32]),
            }],
        }
    }

    #[test]
    fn a_manifest_comes_back_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.toml");
        assert_eq!(Manifest::read(&path).unwrap(), None);
        manifest("a/b.json").write(&path).unwrap();
        assert_eq!(Manifest::read(&path).unwrap(), Some(manifest("a/b.json")));
    }
    #[test]
    fn a_manifest_with_a_hostile_name_is_refused() {
        let text = toml::to_string(&manifest("../../etc/passwd")).unwrap();
        assert!(Manifest::parse(&text).unwrap_err().contains("../../etc/passwd"));
        let named = Manifest { recipe: "../m".into(), ..manifest("x") };
        assert!(Manifest::parse(&toml::to_string(&named).unwrap()).is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics_the_parser(text in ".{0,200}") {
            let _ = Manifest::parse(&text);
        }
    }
}
