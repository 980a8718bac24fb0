use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use polder_recipes::{Digest, FileSpec, Recipe};

use crate::manifest::Manifest;
use crate::progress::{CancelFlag, Event, Teller};
use crate::{WeightsError, names, view};

/// How long what a cut import left behind is kept for it to go on: seven days.
pub const STALE: Duration = Duration::from_secs(7 * 24 * 3600);

/// How imports are made. [`Options::from_env`] is what the program uses; tests set the rest.
#[derive(Clone)]
pub struct Options {
    /// The server of repositories in the Hugging Face layout; `POLDER_HF_ENDPOINT`. No default.
    pub hub_endpoint: Option<String>,
    /// Trust these certificates (PEM) and no others; `SSL_CERT_FILE`. Unset: the common public ones.
    pub ca_file: Option<PathBuf>,
    /// Who asks a registry of images that lets not everybody in: user and password as HTTP has them (`Basic`), in base64. Shown nowhere.
    pub login: Option<String>,
    /// Where fetched wheels are kept; `POLDER_DOWNLOADS`. Unset: `downloads/` in the store.
    pub downloads: Option<PathBuf>,
    /// The command that is pip. Unset: the first of `python3 -m pip`, `pip`, `pip3` that works.
    pub pip: Option<Vec<String>>,
    /// Connections to one server, 1 to 32.
    pub connections: usize,
    /// Bytes that are asked for at once, and that a cut costs for each connection.
    pub chunk: u64,
    /// Failures in a row, without any progress, after which a download is given up.
    pub tries: u32,
    /// The wait after the first failure; it doubles with each, within 50 to 100 percent.
    pub first_wait: Duration,
    /// The longest such wait.
    pub longest_wait: Duration,
    /// A connection that is silent for so long is cut; it also bounds how late a cancel is obeyed.
    pub stall: Duration,
    /// The least time between two [`Event::Progress`] of one phase.
    pub tell_every: Duration,
    /// Whether an import waits for another to end; if not it fails with [`WeightsError::Busy`].
    pub wait_for_others: bool,
}

/// Short, and without a password that an address may have in it.
impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("hub_endpoint", &self.hub_endpoint.as_deref().map(names::shown))
            .field("ca_file", &self.ca_file)
            .field("downloads", &self.downloads)
            .finish_non_exhaustive()
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            hub_endpoint: None,
            ca_file: None,
            login: None,
            downloads: None,
            pip: None,
            connections: 4,
            chunk: 8 << 20,
            tries: 12,
            first_wait: Duration::from_millis(500),
            longest_wait: Duration::from_secs(30),
            stall: Duration::from_secs(20),
            tell_every: Duration::from_millis(200),
            wait_for_others: true,
        }
    }
}

impl Options {
    /// The defaults, with what the environment says.
    pub fn from_env() -> Self {
        let var = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        Self {
            hub_endpoint: var("POLDER_HF_ENDPOINT").map(|url| url.to_string_lossy().into_owned()),
            ca_file: var("SSL_CERT_FILE").map(PathBuf::from),
            downloads: var("POLDER_DOWNLOADS").map(PathBuf::from),
            ..Self::default()
        }
    }
}

/// The weights of this box, in one folder:
///
/// ```text
/// blobs/sha256/<hex>      files under their digest, read-only
/// manifests/<name>.toml   what was imported, and the pin of a recipe that has none
/// models/<name>/          the files under their own names: links to blobs
/// partial/                what is not whole yet
/// downloads/              wheels
/// lock                    held by the import that runs
/// ```
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) root: Arc<Path>,
    pub(crate) options: Arc<Options>,
}

impl Store {
    /// The store in this folder, made if need be, with the options of the environment.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self, WeightsError> {
        Self::open_with(folder, Options::from_env())
    }
    /// The same with other options.
    pub fn open_with(folder: impl AsRef<Path>, options: Options) -> Result<Self, WeightsError> {
        let folder = folder.as_ref();
        let create =
            |path: &Path| fs::create_dir_all(path).map_err(WeightsError::store("create", path));
        create(folder)?;
        let root = folder.canonicalize().map_err(WeightsError::store("open", folder))?;
        let store = Self { root: root.into(), options: Arc::new(options) };
        for path in
            [store.blobs(), store.manifests(), store.models(), store.partial(), store.downloads()]
        {
            create(&path)?;
        }
        Ok(store)
    }
    /// The folder of the store.
    pub fn root(&self) -> &Path {
        &self.root
    }
    /// Everything that was imported, by name. A manifest that cannot be read is an error.
    pub fn list(&self) -> Result<Vec<Manifest>, WeightsError> {
        let mut manifests = Vec::new();
        for path in files_in(&self.manifests())? {
            if path.extension().is_some_and(|end| end == "toml") {
                manifests.extend(Manifest::read(&path)?);
            }
        }
        manifests.sort_by(|a, b| a.recipe.cmp(&b.recipe));
        Ok(manifests)
    }
    /// What was imported for a recipe of this name, if anything.
    pub fn manifest(&self, name: &str) -> Result<Option<Manifest>, WeightsError> {
        names::recipe_name(name)?;
        Manifest::read(&self.manifest_path(name))
    }
    /// The folder to give to an engine: every file of the recipe under its own name. Only where
    /// every digest matched at the import, is the one that the recipe now names, and every blob is
    /// still here in full size.
    pub fn model_folder(&self, recipe: &Recipe) -> Option<PathBuf> {
        let manifest = self.whole(recipe).ok().flatten()?;
        let folder = self.model_path(&recipe.name);
        // Links are cheap to lay again; a power cut may have lost some that the manifest outlived.
        if !view::is_right(&folder, &manifest.files) {
            view::build(&folder, &manifest.files).ok()?;
        }
        Some(folder)
    }

    /// The manifest, where it is of what the recipe names now and every blob is here.
    pub(crate) fn whole(&self, recipe: &Recipe) -> Result<Option<Manifest>, WeightsError> {
        let Some(manifest) = self.manifest(&recipe.name)? else { return Ok(None) };
        let whole = fits(&manifest, &recipe.files)
            && manifest.files.iter().all(|file| self.has(&file.sha256, file.size));
        Ok(whole.then_some(manifest))
    }
    /// Whether this blob is here, in this size.
    pub(crate) fn has(&self, digest: &Digest, size: u64) -> bool {
        fs::symlink_metadata(self.blob(digest)).is_ok_and(|f| f.is_file() && f.len() == size)
    }
    /// Waits for the lock, or says who has it.
    pub(crate) fn lock(
        &self,
        wait: bool,
        teller: Option<(&mut Teller<'_>, &CancelFlag)>,
    ) -> Result<File, WeightsError> {
        let path = self.root.join("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(WeightsError::store("open", &path))?;
        let mut teller = teller;
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::Error(e)) => return Err(WeightsError::store("lock", &path)(e)),
                Err(TryLockError::WouldBlock) => {}
            }
            let Some((teller, cancel)) = teller.as_mut().filter(|_| wait) else {
                return Err(WeightsError::Busy { folder: self.root.to_path_buf() });
            };
            if !std::mem::replace(&mut told, true) {
                teller.say(Event::Waiting);
            }
            cancel.check()?;
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    pub(crate) fn blobs(&self) -> PathBuf {
        self.root.join("blobs/sha256")
    }
    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.to_string())
    }
    pub(crate) fn manifests(&self) -> PathBuf {
        self.root.join("manifests")
    }
    pub(crate) fn manifest_path(&self, name: &str) -> PathBuf {
        self.manifests().join(format!("{name}.toml"))
    }
    pub(crate) fn models(&self) -> PathBuf {
        self.root.join("models")
    }
    pub(crate) fn model_path(&self, name: &str) -> PathBuf {
        self.models().join(name)
    }
    pub(crate) fn partial(&self) -> PathBuf {
        self.root.join("partial")
    }
    /// What an import that was cut had so far: a manifest of the files that are blobs already.
    pub(crate) fn intent_path(&self, name: &str) -> PathBuf {
        self.partial().join(format!("{name}.toml"))
    }
    pub(crate) fn downloads(&self) -> PathBuf {
        match &self.options.downloads {
            Some(folder) => folder.clone(),
            None => self.root.join("downloads"),
        }
    }
}

/// Whether what was imported is what the recipe asks for now.
fn fits(manifest: &Manifest, files: &[FileSpec]) -> bool {
    let same = |spec: &FileSpec| {
        manifest.file(&spec.name).is_some_and(|file| {
            spec.size.is_none_or(|size| size == file.size)
                && spec.sha256.is_none_or(|digest| digest == file.sha256)
        })
    };
    !manifest.files.is_empty()
        && files.iter().all(same)
        && (files.is_empty() || files.len() == manifest.files.len())
}

/// The plain files of a folder, sorted by name. None where there is no such folder.
pub(crate) fn files_in(folder: &Path) -> Result<Vec<PathBuf>, WeightsError> {
    let fail = || WeightsError::store("list", folder);
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(fail())?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry.map_err(fail())?;
        if entry.file_type().map_err(fail())?.is_file() {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}
