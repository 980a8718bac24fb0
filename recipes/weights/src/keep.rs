use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use polder_recipes::Digest;

use crate::import::digest_of;
use crate::manifest::{Manifest, StoredFile};
use crate::progress::{CancelFlag, Event, Phase, Teller};
use crate::store::{Store, files_in};
use crate::{WeightsError, names, view};

/// What [`Store::verify`] found.
#[derive(Debug, Clone, PartialEq)]
pub struct Verified {
    /// Blobs that are what their name says.
    pub good: usize,
    /// Bytes that were read.
    pub bytes: u64,
    /// What is not.
    pub damage: Vec<Damage>,
}

/// A file that is not what was imported. Its model is not served until it is imported again.
#[derive(Debug, Clone, PartialEq)]
pub struct Damage {
    /// The model.
    pub recipe: String,
    /// The file.
    pub file: String,
    /// What it must hash to.
    pub expected: Digest,
    /// What is wrong, in one clause: it is gone, it hashes to something else, it cannot be read.
    pub why: String,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { recipe, file, expected, why } = self;
        write!(f, "{file} of {recipe} (sha256 {expected}) {why}; import {recipe} again")
    }
}

/// What [`Store::gc`] removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Collected {
    /// Blobs that no manifest named.
    pub blobs: usize,
    /// Partial files, views and wheels that nobody will go on with.
    pub leftovers: usize,
    /// Bytes of the disk that are free again.
    pub bytes: u64,
}

impl Store {
    /// Reads every blob of the named model, or of all, and hashes it. A blob that is wrong is taken
    /// away at once, so that nothing serves it; the next import brings it again.
    pub fn verify(
        &self,
        name: Option<&str>,
        observer: &mut dyn FnMut(Event),
        cancel: &CancelFlag,
    ) -> Result<Verified, WeightsError> {
        let manifests = match name {
            None => self.list()?,
            Some(name) => vec![self.manifest(name)?.ok_or_else(|| unknown(name))?],
        };
        let mut teller = Teller::new(observer, self.options.tell_every);
        let total = manifests.iter().map(Manifest::bytes).fold(0, u64::saturating_add);
        teller.begin(Phase::Checking, 0, Some(total));
        let mut verified = Verified { good: 0, bytes: 0, damage: Vec::new() };
        let mut seen: BTreeMap<Digest, Option<String>> = BTreeMap::new();
        for (manifest, file) in manifests.iter().flat_map(|m| m.files.iter().map(move |f| (m, f))) {
            if let Entry::Vacant(unseen) = seen.entry(file.sha256) {
                teller.file(&file.name);
                let before = teller.done();
                let wrong = self.look_at(file, &mut teller, cancel)?;
                verified.bytes += teller.done() - before;
                verified.good += usize::from(wrong.is_none());
                unseen.insert(wrong);
            }
            if let Some(Some(why)) = seen.get(&file.sha256) {
                let (recipe, expected) = (manifest.recipe.clone(), file.sha256);
                let damage = Damage { recipe, file: file.name.clone(), expected, why: why.clone() };
                log::error!("{damage}");
                verified.damage.push(damage);
            }
        }
        teller.begin(Phase::Done, verified.bytes, Some(verified.bytes));
        Ok(verified)
    }

    /// What is wrong with a blob, after it was taken away.
    fn look_at(
        &self,
        file: &StoredFile,
        teller: &mut Teller<'_>,
        cancel: &CancelFlag,
    ) -> Result<Option<String>, WeightsError> {
        let path = self.blob(&file.sha256);
        let opened = File::open(&path).and_then(|blob| Ok((blob.metadata()?.len(), blob)));
        let digest = match opened {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Some("is gone".into())),
            Err(e) => Err(e),
            Ok((size, blob)) => digest_of(&blob, size, teller, cancel)?,
        };
        let why = match digest {
            Ok(found) if found == file.sha256 => return Ok(None),
            Ok(found) => format!("is damaged: it hashes to {found}"),
            Err(e) => format!("cannot be read: {e}"),
        };
        let aside = self.partial().join(format!("damaged-{}", file.sha256));
        fs::rename(&path, &aside).map_err(WeightsError::store("take away", &path))?;
        Ok(Some(why))
    }

    /// Forgets a model or a cut import of one, and the pin of one that the box pinned itself. Its bytes stay until
    /// [`Store::gc`], and an engine that has them open goes on.
    pub fn remove(&self, name: &str) -> Result<(), WeightsError> {
        let _lock = self.lock(false, None)?;
        if self.manifest(name)?.is_none() && !self.intent_path(name).exists() {
            return Err(unknown(name));
        }
        for path in [self.manifest_path(name), self.intent_path(name)] {
            gone(fs::remove_file(&path)).map_err(WeightsError::store("remove", &path))?;
        }
        let view = self.model_path(name);
        view::remove(&view).map_err(WeightsError::store("remove", &view))
    }

    /// Removes blobs that no manifest names, and what was left behind by imports that were cut
    /// longer than `stale` ago ([`crate::STALE`]; zero for all). Never while an import runs.
    pub fn gc(&self, stale: Duration) -> Result<Collected, WeightsError> {
        let _lock = self.lock(false, None)?;
        let mut collected = Collected::default();
        let mut wanted = BTreeSet::new();
        let mut models = BTreeSet::new();
        // A manifest that cannot be read ends this here: in doubt nothing is removed.
        for manifest in self.list()? {
            wanted.extend(manifest.files.iter().map(|file| file.sha256.to_string()));
            models.insert(manifest.recipe);
        }
        for path in files_in(&self.partial())? {
            let old = age(&path).is_none_or(|age| age >= stale);
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with("damaged-") || old {
                collected.leftover(&path)?;
            } else if name.ends_with(".toml") {
                // What a cut import has so far is kept for it to go on.
                let begun = Manifest::read(&path)?;
                let files = begun.iter().flat_map(|manifest| &manifest.files);
                wanted.extend(files.map(|file| file.sha256.to_string()));
            }
        }
        for path in files_in(&self.blobs())? {
            if !wanted.contains(&*path.file_name().unwrap_or_default().to_string_lossy()) {
                collected.bytes += remove(&path)?;
                collected.blobs += 1;
            }
        }
        // A downloads folder from the options may be others' too.
        if self.options.downloads.is_none() {
            for path in files_in(&self.downloads())? {
                if age(&path).is_none_or(|age| age >= stale) {
                    collected.leftover(&path)?;
                }
            }
        }
        self.sweep_views(&models, &mut collected)?;
        Ok(collected)
    }

    /// Views without a manifest: of models that were removed in the middle of something.
    fn sweep_views(
        &self,
        models: &BTreeSet<String>,
        collected: &mut Collected,
    ) -> Result<(), WeightsError> {
        let folder = self.models();
        let fail = || WeightsError::store("list", &folder);
        for entry in fs::read_dir(&folder).map_err(fail())? {
            let entry = entry.map_err(fail())?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !models.contains(&name) {
                view::remove(&entry.path())
                    .map_err(WeightsError::store("remove", &entry.path()))?;
                collected.leftovers += 1;
            }
        }
        Ok(())
    }
}

impl Collected {
    fn leftover(&mut self, path: &Path) -> Result<(), WeightsError> {
        self.bytes += remove(path)?;
        self.leftovers += 1;
        Ok(())
    }
}

/// Removes a file; gives the bytes of the disk that it held.
fn remove(path: &Path) -> Result<u64, WeightsError> {
    let held = fs::symlink_metadata(path).map_or(0, |found| found.blocks().saturating_mul(512));
    fs::remove_file(path).map_err(WeightsError::store("remove", path))?;
    Ok(held)
}

fn age(path: &Path) -> Option<Duration> {
    let changed = fs::symlink_metadata(path).ok()?.modified().ok()?;
    // A clock that was set back makes it young, not old: it is kept.
    Some(SystemTime::now().duration_since(changed).unwrap_or_default())
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn unknown(name: &str) -> WeightsError {
    WeightsError::Unknown { name: names::shorten(name) }
}
