//! Another box's weights come to this one by digest: what is here already is not sent again, what was cut goes on where it was, and nothing is
//! a blob before its digest matched.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

use polder_recipes::Digest;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::manifest::{Manifest, StoredFile};
use crate::partial::{BLOCK, Hash, sync_folder_of};
use crate::progress::CancelFlag;
use crate::store::Store;
use crate::{WeightsError, names, space, view};

/// Bytes of one piece, at most.
pub const PIECE: u64 = 8 << 20;
/// Bytes of the disk that what is sent leaves free: the box has models and records of its own.
const LEFT_FREE: u64 = 1 << 30;

/// What is here of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Which.
    pub sha256: Digest,
    /// Its size.
    pub size: u64,
    /// Bytes from the start that are here, each of which came with a digest that it matched.
    pub bytes: u64,
    /// All of them are, and the digest of the whole matched too.
    pub whole: bool,
}

/// What is here of a model, and whether the rest has room.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldModel {
    /// One for each different file.
    pub files: Vec<Held>,
    /// Bytes that are lacking.
    pub lacking: u64,
    /// Bytes of the disk that may be used for them.
    pub room: u64,
}

/// What became of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Taken {
    /// So many bytes are here now.
    Here(u64),
    /// It was not what its digest says; send it again.
    Flipped,
    /// The file goes on at another place.
    At(u64),
}

/// Whether a file is what its name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Judged {
    /// It is a blob now.
    Whole,
    /// It was not, and is gone: it is to be sent anew.
    Wrong,
    /// Bytes are lacking.
    Lacking,
}

impl Manifest {
    /// One that came from somewhere else, checked: no name in it leads out of a store.
    pub fn foreign(text: &str) -> Result<Self, WeightsError> {
        let manifest: Self =
            serde_json::from_str(text).map_err(|e| foreign(names::shorten(&e.to_string())))?;
        names::recipe_name(&manifest.recipe)?;
        names::files_together(manifest.files.iter().map(|file| file.name.as_str()))?;
        if manifest.files.is_empty() || manifest.files.len() > 4096 {
            return Err(foreign("it has no files, or more than 4096".to_owned()));
        }
        Ok(manifest)
    }

    /// Each different file once.
    fn blobs(&self) -> Vec<&StoredFile> {
        let mut blobs: Vec<&StoredFile> = self.files.iter().collect();
        blobs.sort_by_key(|file| file.sha256.as_bytes());
        blobs.dedup_by_key(|file| file.sha256);
        blobs
    }
}

fn foreign(why: String) -> WeightsError {
    WeightsError::Manifest { path: PathBuf::from("the other box's list"), why }
}

impl Store {
    /// What is here of these files. Nothing is hashed for the answer.
    pub fn held(&self, manifest: &Manifest) -> Result<HeldModel, WeightsError> {
        let held = |file: &&StoredFile| {
            let whole = self.has(&file.sha256, file.size);
            let part =
                fs::symlink_metadata(self.mirrored(&file.sha256)).map_or(0, |part| part.len());
            let bytes = if whole { file.size } else { part.min(file.size) };
            Held { sha256: file.sha256, size: file.size, bytes, whole }
        };
        let files: Vec<Held> = manifest.blobs().iter().map(held).collect();
        let lacking =
            files.iter().fold(0u64, |sum, held| sum.saturating_add(held.size - held.bytes));
        let room = space::free(self.root())?.saturating_sub(LEFT_FREE);
        Ok(HeldModel { files, lacking, room })
    }

    /// Adds a piece, of which `sha256` is the digest, at `from` of the file `blob`; on disk when this returns.
    pub fn take_piece(
        &self,
        blob: &Digest,
        size: u64,
        from: u64,
        sha256: &Digest,
        bytes: &[u8],
    ) -> Result<Taken, WeightsError> {
        let count = bytes.len() as u64;
        if count > PIECE || from.checked_add(count).is_none_or(|end| end > size) {
            return Err(foreign("a piece is longer than it may be".to_owned()));
        }
        if self.has(blob, size) {
            return Ok(Taken::Here(size));
        }
        let path = self.mirrored(blob);
        let fail = || WeightsError::writing(&blob.to_string(), &path);
        let file = open(&path).map_err(fail())?;
        let here = file.metadata().map_err(fail())?.len();
        if from != here {
            return Ok(Taken::At(here.min(size)));
        }
        if Sha256::digest(bytes).as_slice() != sha256.as_bytes() {
            return Ok(Taken::Flipped);
        }
        if space::free(self.root())? < count.saturating_add(LEFT_FREE) {
            let (needed, free) = (size - from, space::free(self.root())?);
            let (what, folder) = (blob.to_string(), self.root().to_owned());
            return Err(WeightsError::NoSpace { what, needed, free, folder });
        }
        let written = file.write_all_at(bytes, from).and_then(|()| file.sync_data());
        if let Err(error) = written {
            // Half a piece would be taken for a whole one.
            let _ = file.set_len(from);
            return Err(fail()(error));
        }
        Ok(Taken::Here(from + count))
    }

    /// Reads a file that is all here back from the disk; it is a blob only if it is what its name says.
    pub fn judge(
        &self,
        blob: &Digest,
        size: u64,
        cancel: &CancelFlag,
    ) -> Result<Judged, WeightsError> {
        if self.has(blob, size) {
            return Ok(Judged::Whole);
        }
        let path = self.mirrored(blob);
        let fail = || WeightsError::writing(&blob.to_string(), &path);
        let file = open(&path).map_err(fail())?;
        if file.metadata().map_err(fail())?.len() < size {
            return Ok(Judged::Lacking);
        }
        let mut hash = Hash::default();
        while hash.at() < size {
            cancel.check()?;
            hash.follow(&file, size, 64 * BLOCK as u64).map_err(fail())?;
        }
        if hash.digest() != *blob || file.metadata().map_err(fail())?.len() != size {
            fs::remove_file(&path).map_err(fail())?;
            return Ok(Judged::Wrong);
        }
        let to = self.blob(blob);
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o444))
            .and_then(|()| file.sync_all())
            .and_then(|()| fs::rename(&path, &to))
            .and_then(|()| sync_folder_of(&to))
            .map_err(fail())?;
        Ok(Judged::Whole)
    }

    /// The model is wholly here: from now on it can be served.
    pub fn adopt(&self, manifest: &Manifest) -> Result<(), WeightsError> {
        let _lock = self.lock(false, None)?;
        if let Some(file) = manifest.files.iter().find(|file| !self.has(&file.sha256, file.size)) {
            return Err(foreign(format!("{} is not wholly here", file.name)));
        }
        view::build(&self.model_path(&manifest.recipe), &manifest.files)?;
        manifest.write(&self.manifest_path(&manifest.recipe))
    }

    /// A piece of a blob of ours, to be sent: its bytes, and their digest.
    pub fn piece(
        &self,
        blob: &Digest,
        from: u64,
        count: u64,
    ) -> Result<(Vec<u8>, Digest), WeightsError> {
        let path = self.blob(blob);
        let fail = || WeightsError::store("read", &path);
        let mut bytes = vec![0; usize::try_from(count.min(PIECE)).unwrap_or(BLOCK)];
        let file = File::open(&path).map_err(fail())?;
        file.read_exact_at(&mut bytes, from).map_err(fail())?;
        let digest = Digest::from_bytes(Sha256::digest(&bytes).into());
        Ok((bytes, digest))
    }

    fn mirrored(&self, blob: &Digest) -> PathBuf {
        self.partial().join(format!("mirror-{blob}.part"))
    }
}

/// Never through a link.
fn open(path: &std::path::Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644)
        .custom_flags(OFlags::NOFOLLOW.bits() as i32)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(bytes: &[u8]) -> Digest {
        Digest::from_bytes(Sha256::digest(bytes).into())
    }

    fn manifest(bytes: &[u8]) -> Manifest {
        let file = StoredFile {
            name: "model.gguf".into(),
            size: bytes.len() as u64,
            sha256: digest(bytes),
        };
        Manifest {
            recipe: "tiny".into(),
            source: "a box".into(),
            imported: jiff::Timestamp::UNIX_EPOCH,
            pinned_here: true,
            commit: None,
            files: vec![file.clone(), StoredFile { name: "again.gguf".into(), ..file }],
        }
    }

    fn send(store: &Store, of: &[u8], from: usize, to: usize, bytes: &[u8]) -> Taken {
        let piece = &bytes[from..to];
        store.take_piece(&digest(of), of.len() as u64, from as u64, &digest(piece), piece).unwrap()
    }

    #[test]
    fn what_was_cut_goes_on_where_it_was_and_is_a_model_when_all_of_it_is_here() {
        let folder = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..10_000u32).map(|n| n as u8).collect();
        let list = Manifest::foreign(&serde_json::to_string(&manifest(&bytes)).unwrap()).unwrap();
        let store = Store::open(folder.path()).unwrap();
        assert_eq!(store.held(&list).unwrap().lacking, 10_000);
        assert_eq!(send(&store, &bytes, 0, 4000, &bytes), Taken::Here(4000));
        drop(store);
        let store = Store::open(folder.path()).unwrap();
        let held = store.held(&list).unwrap();
        assert_eq!((held.files.len(), held.files[0].bytes, held.lacking), (1, 4000, 6000));
        // Sent twice, or with a gap, it says where to go on.
        for from in [0, 5000] {
            assert_eq!(send(&store, &bytes, from, from + 10, &bytes), Taken::At(4000));
        }
        let never = CancelFlag::default();
        assert_eq!(store.judge(&digest(&bytes), 10_000, &never).unwrap(), Judged::Lacking);
        assert!(store.adopt(&list).is_err());
        assert_eq!(send(&store, &bytes, 4000, 10_000, &bytes), Taken::Here(10_000));
        assert!(!store.has(&digest(&bytes), 10_000), "it is a blob before it was judged");
        assert_eq!(store.judge(&digest(&bytes), 10_000, &never).unwrap(), Judged::Whole);
        store.adopt(&list).unwrap();
        assert_eq!(store.manifest("tiny").unwrap(), Some(list.clone()));
        let view = store.model_path("tiny").join("again.gguf");
        assert_eq!(fs::read(view).unwrap(), bytes);
        assert_eq!(store.held(&list).unwrap().lacking, 0);
        let (piece, of) = store.piece(&digest(&bytes), 100, 50).unwrap();
        assert_eq!((piece.as_slice(), of), (&bytes[100..150], digest(&bytes[100..150])));
    }

    #[test]
    fn a_flipped_byte_is_found_on_the_way_and_on_the_disk_and_fetched_again() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let bytes = vec![7; 5000];
        let (name, never) = (digest(&bytes), CancelFlag::default());
        let flipped = store.take_piece(&name, 5000, 0, &digest(&bytes[..9]), &[7, 7, 8]);
        assert_eq!(flipped.unwrap(), Taken::Flipped);
        // A box whose own copy is damaged sends other bytes with their right digest.
        let mut other = bytes.clone();
        other[4321] = 8;
        assert_eq!(send(&store, &bytes, 0, 5000, &other), Taken::Here(5000));
        assert_eq!(store.judge(&name, 5000, &never).unwrap(), Judged::Wrong);
        assert!(!store.has(&name, 5000));
        assert_eq!(send(&store, &bytes, 0, 5000, &bytes), Taken::Here(5000));
        // On the spare's own disk.
        fs::write(store.mirrored(&name), &other).unwrap();
        assert_eq!(store.judge(&name, 5000, &never).unwrap(), Judged::Wrong);
        assert_eq!(send(&store, &bytes, 0, 5000, &bytes), Taken::Here(5000));
        assert_eq!(store.judge(&name, 5000, &never).unwrap(), Judged::Whole);
    }

    #[test]
    fn a_hostile_box_writes_nothing_outside_the_store_and_no_more_than_it_said() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().join("weights")).unwrap();
        let mut bad = manifest(b"x");
        for name in ["../../etc/passwd", "/etc/passwd", "a/../../b", "", "a\0b"] {
            bad.files[0].name = name.into();
            let text = serde_json::to_string(&bad).unwrap();
            assert!(Manifest::foreign(&text).is_err(), "{name:?}");
        }
        bad = manifest(b"x");
        bad.recipe = "../x".into();
        assert!(Manifest::foreign(&serde_json::to_string(&bad).unwrap()).is_err());
        let name = digest(b"xy");
        for (size, from) in [(1, 0), (2, u64::MAX), (2, 1)] {
            assert!(store.take_piece(&name, size, from, &digest(b"xy"), b"xy").is_err());
        }
        // A link where the part would be is not followed.
        let outside = folder.path().join("outside");
        std::os::unix::fs::symlink(&outside, store.mirrored(&name)).unwrap();
        assert!(store.take_piece(&name, 2, 0, &digest(b"xy"), b"xy").is_err());
        assert!(!outside.exists());
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_list_panic(text in ".{0,200}") {
            let _ = Manifest::foreign(&text);
        }
    }
}
