//! Where packages and products are kept between builds: taken by one process at a time, swept of what
//! broken builds left behind and of what was not used for long.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::{Debs, ImageError, Key, Product};

/// Products of one kind that are kept: what is worked on, what it is compared with, and the versions
/// that it changes to in tests.
const KEPT: usize = 6;

/// A cache folder that this process alone writes to.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
    debs: Debs,
    // Two builds in one cache would make the same things twice.
    _mine: File,
}

impl Cache {
    /// Takes the folder for this process; waits for another one that has it.
    pub fn open(folder: &Path) -> Result<Self, ImageError> {
        fs::create_dir_all(folder).map_err(ImageError::file("make", folder))?;
        let path = folder.join("lock");
        let mine = File::create(&path).map_err(ImageError::file("make", &path))?;
        mine.lock().map_err(ImageError::file("lock", &path))?;
        let debs = Debs::open(&folder.join("debs"))?;
        let cache = Self { folder: folder.to_owned(), debs, _mine: mine };
        // Whoever made them is gone: the folder is ours.
        cache.remove_leftovers(folder)?;
        cache.remove_leftovers(&folder.join("debs"))?;
        Ok(cache)
    }

    /// Another folder for products, and the same packages.
    pub(crate) fn apart(&self, folder: &Path) -> Result<Self, ImageError> {
        let apart = Self::open(folder)?;
        Ok(Self { debs: self.debs.clone(), ..apart })
    }

    /// The package files in it.
    pub fn debs(&self) -> &Debs {
        &self.debs
    }

    /// The folder itself.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where a product with this key is, or would be.
    pub(crate) fn place(&self, product: Product, key: &Key) -> PathBuf {
        self.folder.join(format!("{}-{key}", product.name()))
    }

    /// A folder for something that is being made.
    pub(crate) fn scratch(&self, name: &str) -> Result<Scratch, ImageError> {
        Scratch::new(&self.folder.join(format!("{name}.partial")))
    }

    /// A new, empty log.
    pub(crate) fn log(&self, name: &str) -> Result<PathBuf, ImageError> {
        let folder = self.folder.join("logs");
        fs::create_dir_all(&folder).map_err(ImageError::file("make", &folder))?;
        let path = folder.join(format!("{name}.log"));
        File::create(&path).map_err(ImageError::file("write", &path))?;
        Ok(path)
    }

    /// Notes that what is at this place was used now.
    pub(crate) fn used(&self, place: &Path) -> Result<(), ImageError> {
        let now = SystemTime::now();
        let touched = File::open(place).and_then(|folder| folder.set_modified(now));
        touched.map_err(ImageError::file("note the use of", place))
    }

    /// Removes products that were not used for long.
    pub(crate) fn sweep(&self) -> Result<(), ImageError> {
        let mut found = Vec::new();
        for (name, path) in entries(&self.folder)? {
            // What cannot be asked is not ours to remove.
            if let Ok(data) = fs::symlink_metadata(&path)
                && data.is_dir()
                && let Ok(used) = data.modified()
            {
                found.push((name, used));
            }
        }
        for name in surplus(&found) {
            // Under another name first: half a product must not look like a whole one.
            let (from, to) = (self.folder.join(&name), self.folder.join(format!("{name}.partial")));
            fs::rename(&from, &to).map_err(ImageError::file("remove", &from))?;
            fs::remove_dir_all(&to).map_err(ImageError::file("remove", &to))?;
        }
        Ok(())
    }

    fn remove_leftovers(&self, folder: &Path) -> Result<(), ImageError> {
        for (name, path) in entries(folder)? {
            if !name.ends_with(".partial") && !name.ends_with(".inner") {
                continue;
            }
            let data = fs::symlink_metadata(&path).map_err(ImageError::file("read", &path))?;
            let gone =
                if data.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            gone.map_err(ImageError::file("remove", &path))?;
        }
        Ok(())
    }
}

fn entries(folder: &Path) -> Result<Vec<(String, PathBuf)>, ImageError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(ImageError::file("read", folder))? {
        let entry = entry.map_err(ImageError::file("read", folder))?;
        if let Ok(name) = entry.file_name().into_string() {
            found.push((name, entry.path()));
        }
    }
    Ok(found)
}

/// Of folders and when they were used, those that are products and too many of their kind.
fn surplus(found: &[(String, SystemTime)]) -> Vec<String> {
    let mut kinds: BTreeMap<&str, Vec<(SystemTime, &String)>> = BTreeMap::new();
    for (name, used) in found {
        if let Some(kind) = kind(name) {
            kinds.entry(kind).or_default().push((*used, name));
        }
    }
    let mut old = Vec::new();
    for mut kind in kinds.into_values() {
        kind.sort_by(|a, b| b.cmp(a));
        old.extend(kind.into_iter().skip(KEPT).map(|(_, name)| name.clone()));
    }
    old
}

/// `root` of `root-23ad74030d6bc7474057`; nothing of a name that no product has.
fn kind(name: &str) -> Option<&str> {
    let (kind, key) = name.rsplit_once('-')?;
    let known = kind == TESTER || Product::ALL.iter().any(|product| product.name() == kind);
    (known && Key::is_one(key)).then_some(kind)
}

/// The first part of the name of the room in which images are booted.
pub(crate) const TESTER: &str = "tester";

/// A folder for something that is being made; gone when it is dropped, unless it was kept.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    fn new(path: &Path) -> Result<Self, ImageError> {
        let gone = || if path.exists() { fs::remove_dir_all(path) } else { Ok(()) };
        gone().map_err(ImageError::file("empty", path))?;
        fs::create_dir_all(path).map_err(ImageError::file("make", path))?;
        Ok(Self(path.to_owned()))
    }

    pub(crate) fn keep_at(self, place: &Path) -> Result<(), ImageError> {
        fs::rename(&self.0, place).map_err(ImageError::file("make", place))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// How long steps took last time, for saying how long they will.
pub(crate) struct Times {
    path: PathBuf,
    seconds: BTreeMap<String, u64>,
}

impl Times {
    pub(crate) fn of(cache: &Cache) -> Self {
        let path = cache.folder.join("times");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let line = |line: &str| {
            let (step, seconds) = line.split_once(' ')?;
            Some((step.to_owned(), seconds.parse().ok()?))
        };
        Self { path, seconds: text.lines().filter_map(line).collect() }
    }

    pub(crate) fn last(&self, step: &str) -> Option<Duration> {
        self.seconds.get(step).copied().map(Duration::from_secs)
    }

    pub(crate) fn note(&mut self, step: &str, took: Duration) {
        self.seconds.insert(step.to_owned(), took.as_secs());
        let text: String = self.seconds.iter().map(|(step, s)| format!("{step} {s}\n")).collect();
        // Nothing depends on it.
        let _ = fs::write(&self.path, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> Key {
        Key::of(&[&[n]])
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            entries(folder).unwrap().into_iter().map(|(name, _)| name).collect();
        names.sort();
        names
    }

    #[test]
    fn those_of_a_kind_that_were_used_last_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        let places: Vec<PathBuf> = (0..8).map(|n| cache.place(Product::Root, &key(n))).collect();
        for (age, place) in places.iter().enumerate() {
            fs::create_dir_all(place.join("usr")).unwrap();
            let then = SystemTime::now() - Duration::from_secs(1000 * (age as u64 + 1));
            File::open(place).unwrap().set_modified(then).unwrap();
        }
        let disk = cache.place(Product::Disk, &key(9));
        fs::create_dir(&disk).unwrap();
        // The oldest is needed again.
        cache.used(&places[7]).unwrap();
        cache.sweep().unwrap();
        let there: Vec<bool> = places.iter().map(|place| place.is_dir()).collect();
        assert_eq!(there, [true, true, true, true, true, false, false, true]);
        assert!(disk.is_dir());
    }

    #[test]
    fn only_products_are_ever_too_many() {
        let now = SystemTime::now();
        let mut found = Vec::new();
        for n in 0..9 {
            found.push((format!("roots-{}", key(n)), now));
            found.push((format!("root-{n}"), now));
            found.push((format!("debs-{}", key(n)), now));
        }
        found.extend(["debs", "cargo", "logs", "root", "-", ""].map(|name| (name.to_owned(), now)));
        assert_eq!(surplus(&found), Vec::<String>::new());
        for n in 0..9 {
            found.push((format!("tester-{}", key(n)), now + Duration::from_secs(n.into())));
        }
        let mut gone = surplus(&found);
        gone.sort();
        let mut old: Vec<String> =
            (0..9 - KEPT as u8).map(|n| format!("tester-{}", key(n))).collect();
        old.sort();
        assert_eq!(gone, old);
    }

    #[test]
    fn what_a_broken_build_left_is_gone_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for name in ["root.partial/usr", "root.inner", "debs", "logs", "apt.partial"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        for name in ["debs/a.partial", "debs/b.deb", "times"] {
            fs::write(root.join(name), "x").unwrap();
        }
        // A leftover that leads elsewhere is removed; what it leads to is not.
        let other = tempfile::tempdir().unwrap();
        fs::write(other.path().join("mine"), "x").unwrap();
        std::os::unix::fs::symlink(other.path(), root.join("x.partial")).unwrap();
        let _cache = Cache::open(root).unwrap();
        assert_eq!(names(root), ["debs", "lock", "logs", "times"]);
        assert_eq!(names(&root.join("debs")), ["b.deb"]);
        assert_eq!(names(other.path()), ["mine"]);
    }

    #[test]
    fn a_folder_apart_shares_the_packages_and_nothing_else() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let cache = Cache::open(here.path()).unwrap();
        let place = cache.place(Product::Root, &key(1));
        fs::create_dir(&place).unwrap();
        let apart = cache.apart(there.path()).unwrap();
        let digest = polder_recipes::Digest::from_bytes([1; 32]);
        assert_eq!(apart.debs().path(&digest), cache.debs().path(&digest));
        assert!(!apart.place(Product::Root, &key(1)).exists());
        apart.sweep().unwrap();
        assert!(place.is_dir());
    }
}
