use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::document::{Site, SiteError};
use crate::unknown::{UnknownKey, rewritten};

/// A version of the site, counted from 1.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct Version(pub u64);

/// The file or its history could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file could not be read.
    #[error("could not read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file could not be written; what was there before is still there.
    #[error("could not write {}; the site is unchanged", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file's text is not a site.
    #[error("{}: {source}", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        source: SiteError,
    },
    /// The new site is not one that a box can be.
    #[error(transparent)]
    Invalid(SiteError),
    /// There is no such version.
    #[error("the history has no version {0}")]
    NoVersion(u64),
}

/// `site.toml` in the state folder, and every version before it in `HISTORY/`.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
}

impl Store {
    /// Uses (and makes, if need be) the state folder.
    pub fn open(state: &Path) -> Result<Self, StoreError> {
        let history = state.join("HISTORY");
        let made = fs::create_dir_all(&history)
            .and_then(|()| File::open(state))
            .and_then(|folder| folder.sync_all());
        made.map_err(|source| StoreError::Write { path: history, source })?;
        Ok(Self { folder: state.to_owned() })
    }

    /// The site as it stands; `None` on a box that never had one.
    pub fn current(&self) -> Result<Option<Site>, StoreError> {
        Ok(read_site(&self.folder.join("site.toml"), Site::read)?.map(|read| read.site))
    }

    /// What the file says that this version does not know, if there is a file.
    pub fn unknown(&self) -> Result<Vec<UnknownKey>, StoreError> {
        Self::unknown_in(&self.folder)
    }

    /// The same of the file in a box's state folder, without opening the history: it only reads, so that a page may ask.
    pub fn unknown_in(state: &Path) -> Result<Vec<UnknownKey>, StoreError> {
        let read = read_site(&state.join("site.toml"), Site::read)?;
        Ok(read.map(|read| read.unknown).unwrap_or_default())
    }

    /// The file as it stands, once it was found to be a site.
    pub fn text(&self) -> Result<Option<String>, StoreError> {
        Ok(read_site(&self.folder.join("site.toml"), Site::read)?.map(|read| read.text))
    }

    /// The site as it stands, or the given one written as the first version.
    pub fn current_or_first(&self, first: impl FnOnce() -> Site) -> Result<Site, StoreError> {
        match self.current()? {
            Some(site) => Ok(site),
            None => {
                let site = first();
                self.write(&site, "first start")?;
                Ok(site)
            }
        }
    }

    /// Makes `site` the current one. The history entry is durable before the switch, and the
    /// switch is one rename, so that a power cut leaves the old site or the new one whole. What the file had that this version
    /// does not know stays in it.
    pub fn write(&self, site: &Site, why: &str) -> Result<Version, StoreError> {
        site.check().map_err(StoreError::Invalid)?;
        let version = Version(self.versions()?.last().map_or(1, |v| v.0 + 1));
        let why: String = why.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let before = read_text(&self.folder.join("site.toml"))?.unwrap_or_default();
        let content = rewritten(site, &before);
        let text = format!("# version {}, {}: {why}\n{content}", version.0, Timestamp::now());
        for path in [self.version_path(version), self.folder.join("site.toml")] {
            write_durably(&path, text.as_bytes())
                .map_err(|source| StoreError::Write { path, source })?;
        }
        Ok(version)
    }

    /// Every version there is, oldest first.
    pub fn versions(&self) -> Result<Vec<Version>, StoreError> {
        let path = self.folder.join("HISTORY");
        let read = |source| StoreError::Read { path: path.clone(), source };
        let mut versions = Vec::new();
        for entry in fs::read_dir(&path).map_err(read)? {
            let name = entry.map_err(read)?.file_name();
            let number =
                name.to_str().and_then(|n| n.strip_suffix(".toml")).and_then(|n| n.parse().ok());
            versions.extend(number.map(Version));
        }
        versions.sort_unstable();
        Ok(versions)
    }

    /// An older site.
    pub fn version(&self, version: Version) -> Result<Site, StoreError> {
        let read = read_site(&self.version_path(version), Site::written)?;
        read.map(|read| read.site).ok_or(StoreError::NoVersion(version.0))
    }

    fn version_path(&self, version: Version) -> PathBuf {
        self.folder.join("HISTORY").join(format!("{:06}.toml", version.0))
    }
}

/// A file that is a site.
struct Read {
    site: Site,
    unknown: Vec<UnknownKey>,
    text: String,
}

fn read_site(
    path: &Path,
    read: impl FnOnce(&str) -> Result<(Site, Vec<UnknownKey>), SiteError>,
) -> Result<Option<Read>, StoreError> {
    let Some(text) = read_text(path)? else { return Ok(None) };
    let (site, unknown) =
        read(&text).map_err(|source| StoreError::Content { path: path.to_owned(), source })?;
    Ok(Some(Read { site, unknown, text }))
}

/// None where there is no such file.
fn read_text(path: &Path) -> Result<Option<String>, StoreError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StoreError::Read { path: path.to_owned(), source }),
    }
}

/// Replaces a file so that a power cut leaves the old content or the new one whole: writes beside
/// it, syncs, renames over it, syncs the folder. `path` is a file in a folder that exists. Only its
/// owner may read it.
pub fn write_durably(path: &Path, content: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    let folder = path.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_is_kept_and_the_last_one_is_current() {
        let state = tempfile::tempdir().unwrap();
        let store = Store::open(state.path()).unwrap();
        assert!(store.current().unwrap().is_none());
        let first = store.current_or_first(|| Site::unclaimed(1)).unwrap();
        let second = Site::unclaimed(2);
        assert_eq!(store.write(&second, "moved\nhouse").unwrap(), Version(2));
        let again = Store::open(state.path()).unwrap();
        assert_eq!(again.current().unwrap(), Some(second));
        assert_eq!(again.version(Version(1)).unwrap(), first);
        assert!(matches!(again.version(Version(3)), Err(StoreError::NoVersion(3))));
    }

    #[test]
    fn what_a_newer_version_wrote_is_told_and_outlives_every_change_of_this_one() {
        let state = tempfile::tempdir().unwrap();
        let store = Store::open(state.path()).unwrap();
        assert_eq!((store.unknown().unwrap(), store.text().unwrap()), (vec![], None));
        store.write(&Site::unclaimed(5), "first").unwrap();
        let path = state.path().join("site.toml");
        let newer = fs::read_to_string(&path).unwrap() + "\n[lamps]\nkitchen = \"on\"\n";
        fs::write(&path, &newer).unwrap();
        assert_eq!(store.current().unwrap(), Some(Site::unclaimed(5)));
        assert_eq!(store.text().unwrap(), Some(newer));
        for port in [6, 7] {
            let told: Vec<String> = store.unknown().unwrap().iter().map(UnknownKey::key).collect();
            assert_eq!(told, ["lamps"]);
            store.write(&Site::unclaimed(port), "moved").unwrap();
            assert_eq!(store.current().unwrap(), Some(Site::unclaimed(port)));
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.contains("[lamps]\nkitchen = \"on\""), "{text}");
        }
        assert_eq!(store.version(Version(3)).unwrap(), Site::unclaimed(7));
    }

    #[test]
    fn only_the_owner_may_read_the_site_and_its_history() {
        use std::os::unix::fs::PermissionsExt;
        let state = tempfile::tempdir().unwrap();
        Store::open(state.path()).unwrap().write(&Site::unclaimed(1), "first").unwrap();
        for file in ["site.toml", "HISTORY/000001.toml"] {
            let mode = fs::metadata(state.path().join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
    }

    #[test]
    fn a_site_that_fails_its_check_changes_nothing() {
        let state = tempfile::tempdir().unwrap();
        let store = Store::open(state.path()).unwrap();
        store.write(&Site::unclaimed(5), "first").unwrap();
        assert!(store.write(&Site::unclaimed(0), "bad").is_err());
        assert_eq!(store.current().unwrap(), Some(Site::unclaimed(5)));
    }

    #[test]
    fn a_file_that_cannot_be_read_is_not_written_over() {
        let state = tempfile::tempdir().unwrap();
        let store = Store::open(state.path()).unwrap();
        store.write(&Site::unclaimed(5), "first").unwrap();
        let path = state.path().join("site.toml");
        let strange =
            [fs::read(&path).unwrap().as_slice(), b"[lamps]\nkitchen = \"\xff\"\n"].concat();
        fs::write(&path, &strange).unwrap();
        assert!(matches!(store.write(&Site::unclaimed(6), "moved"), Err(StoreError::Read { .. })));
        assert_eq!(fs::read(&path).unwrap(), strange);
        assert_eq!(store.versions().unwrap(), [Version(1)]);
    }

    #[test]
    fn a_leftover_of_a_cut_write_is_not_taken_for_a_version() {
        let state = tempfile::tempdir().unwrap();
        let store = Store::open(state.path()).unwrap();
        store.write(&Site::unclaimed(5), "first").unwrap();
        fs::write(state.path().join("HISTORY/000002.new"), "half").unwrap();
        assert_eq!(store.versions().unwrap(), [Version(1)]);
        store.write(&Site::unclaimed(6), "second").unwrap();
        assert_eq!(store.current().unwrap(), Some(Site::unclaimed(6)));
    }
}
