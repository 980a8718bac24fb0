//! What to bring and from where: the same for every source, decided before anything is moved.

use polder_recipes::{FileSpec, Source};

use crate::bring::{Item, Place, Whose};
use crate::folder::Folder;
use crate::hub::Hub;
use crate::import::{Import, Origin};
use crate::manifest::{Manifest, StoredFile};
use crate::progress::Teller;
use crate::select::{INDEX, Listed, select};
use crate::web::Web;
use crate::wheel::{Member, Package};
use crate::{WeightsError, hub, names};

/// What to bring and from where, before anything is moved.
pub(crate) struct Plan {
    pub(crate) items: Vec<Item>,
    /// In words, for the manifest and messages.
    pub(crate) source: String,
    pub(crate) commit: Option<String>,
    pub(crate) web: Option<Web>,
    pub(crate) folder: Option<Folder>,
}

/// What this box knows of an unpinned recipe from before.
#[derive(Default)]
pub(crate) struct Pins {
    /// An import that ended: its files are the model.
    pub(crate) whole: Option<Manifest>,
    /// An import that was cut: some of its files.
    begun: Option<Manifest>,
}

impl Pins {
    fn any(&self) -> Option<&Manifest> {
        self.whole.as_ref().or(self.begun.as_ref())
    }
}

impl Import<'_> {
    /// What was imported or begun before, where the recipe itself does not say it all.
    pub(crate) fn pins(&self, from: &Origin) -> Result<Pins, WeightsError> {
        if self.recipe.is_pinned() {
            return Ok(Pins::default());
        }
        let whole = self.store.manifest(&self.recipe.name)?;
        let begun = match &whole {
            None => Manifest::read(&self.store.intent_path(&self.recipe.name))?,
            Some(_) => None,
        };
        // Nothing is promised before the first import ended: another source starts afresh.
        let begun = begun.filter(|begun| came_from(begun, from, &self.recipe.source));
        Ok(Pins { whole, begun })
    }

    pub(crate) fn plan(
        &self,
        from: &Origin,
        pins: &Pins,
        teller: &mut Teller<'_>,
    ) -> Result<Plan, WeightsError> {
        match (from, &self.recipe.source) {
            (Origin::Folder(path), source) => self.plan_folder(Folder::open(path)?, source, pins),
            (Origin::Web(base), _) => self.plan_web(base, pins, false),
            (Origin::AsTheRecipeSays, Source::Web { base }) => self.plan_web(base, pins, true),
            (Origin::AsTheRecipeSays, Source::Wheel { packages }) => {
                self.plan_wheel(packages, pins)
            }
            (Origin::AsTheRecipeSays, Source::HuggingFace { repo, revision }) => {
                self.plan_hub(repo, revision, pins, teller)
            }
        }
    }

    fn plan_folder(
        &self,
        folder: Folder,
        source: &Source,
        pins: &Pins,
    ) -> Result<Plan, WeightsError> {
        let recipe = &self.recipe.name;
        let shown = folder.root().display().to_string();
        let mut items = self.items(pins, || {
            let listed = folder.list(recipe)?;
            let index = match listed.iter().any(|file| file.name == INDEX) {
                true => Some(self.read_index(&folder)?),
                false => None,
            };
            select(recipe, &listed, index.as_deref())
        })?;
        let packages = match source {
            Source::Wheel { packages } => parse_packages(recipe, packages)?,
            _ => Vec::new(),
        };
        for item in items.iter_mut().filter(|item| !self.is_here(item)) {
            let digest = item.expected.as_ref().map(|(digest, _)| digest);
            item.place = match folder.find(recipe, &item.name, digest)? {
                Some(found) => {
                    item.check_size(found.size, &shown)?;
                    item.size = Some(found.size);
                    Place::Folder(found)
                }
                None => self.in_wheels_of(&folder, &packages, item)?,
            };
        }
        Ok(Plan { items, source: shown, commit: None, web: None, folder: Some(folder) })
    }

    fn read_index(&self, folder: &Folder) -> Result<Vec<u8>, WeightsError> {
        use std::io::Read;
        let found = folder.find(&self.recipe.name, INDEX, None)?;
        let path = found.map_or(INDEX.to_owned(), |found| found.path);
        let mut text = Vec::new();
        folder
            .file(&path)
            .and_then(|file| file.take(64 << 20).read_to_end(&mut text))
            .map_err(|why| folder.gone(INDEX, why))?;
        Ok(text)
    }

    /// A folder may also hold the wheels that the recipe names, as pip left them.
    fn in_wheels_of(
        &self,
        folder: &Folder,
        packages: &[Package],
        item: &Item,
    ) -> Result<Place, WeightsError> {
        let not_there = || WeightsError::NotThere {
            file: item.name.clone(),
            source_name: folder.root().display().to_string(),
            hint: "choose the folder that has the model's files under their own names".into(),
        };
        if packages.is_empty() {
            return Err(not_there());
        }
        let members = self.members(packages, &item.parts)?;
        for member in &members {
            member.package.wheel_in(folder.root())?.ok_or_else(not_there)?;
        }
        Ok(Place::Wheels { members, folder: folder.root().to_owned(), ours: false })
    }

    fn plan_web(&self, base: &str, pins: &Pins, own: bool) -> Result<Plan, WeightsError> {
        let base = names::base_url("the address of the files", base)?;
        let shown = names::shown(&base);
        let mut items = self.items(pins, || {
            Err(self.fail(
                "it does not name its files and a web address cannot be listed; import it from a \
                 folder or name the files in the recipe",
            ))
        })?;
        for item in items.iter_mut().filter(|item| !self.is_here(item)) {
            let path = match &item.parts[..] {
                [part] if own => part,
                [_, _, ..] if own => {
                    return Err(self.fail("a file in several parts can only come from wheels"));
                }
                _ => &item.name,
            };
            names::file_name(path)?;
            item.place = Place::Url(format!("{base}/{}", names::in_url(path)));
        }
        let web = Some(Web::new(&self.store.options, &base)?);
        Ok(Plan { items, source: shown, commit: None, web, folder: None })
    }

    fn plan_wheel(&self, packages: &[String], pins: &Pins) -> Result<Plan, WeightsError> {
        let packages = parse_packages(&self.recipe.name, packages)?;
        let mut items =
            self.items(pins, || Err(self.fail("it does not name the files inside its wheels")))?;
        for item in items.iter_mut().filter(|item| !self.is_here(item)) {
            let members = self.members(&packages, &item.parts)?;
            item.place = Place::Wheels { members, folder: self.store.downloads(), ours: true };
        }
        let specs: Vec<_> = packages.iter().map(Package::spec).collect();
        let source = format!("the wheel {}", specs.join(", "));
        Ok(Plan { items, source, commit: None, web: None, folder: None })
    }

    fn plan_hub(
        &self,
        repo: &str,
        revision: &str,
        pins: &Pins,
        teller: &mut Teller<'_>,
    ) -> Result<Plan, WeightsError> {
        let recipe = &self.recipe.name;
        let hub = Hub::new(recipe, self.store.options.hub_endpoint.as_deref(), repo)?;
        let web = Web::new(&self.store.options, hub.endpoint())?;
        // What was pinned or begun at a commit goes on at that commit, though the branch moved on.
        let pinned = pins.any().and_then(|manifest| manifest.commit.clone());
        let revision = pinned.unwrap_or_else(|| revision.to_owned());
        let mut commit = hub::is_commit(&revision).then(|| revision.clone());
        let mut items = if self.recipe.is_pinned() {
            self.items(pins, || unreachable!("a pinned recipe names its files"))?
        } else {
            let listing = hub.list(&web, &revision, teller, self.cancel)?;
            let has_index = listing.files.iter().any(|file| file.name == INDEX);
            let mut items = self.items(pins, || {
                let index = match has_index {
                    true => Some(hub.index(&web, &listing.commit, teller, self.cancel)?),
                    false => None,
                };
                select(recipe, &listing.files, index.as_deref())
            })?;
            for item in &mut items {
                let known = listing.files.iter().find(|file| file.name == item.name);
                let known = known.ok_or_else(|| WeightsError::NotThere {
                    file: item.name.clone(),
                    source_name: hub.shown(&revision),
                    hint: "check the recipe's name for the file".into(),
                })?;
                item.learn(recipe, known, &hub.shown(&listing.commit))?;
            }
            commit = Some(listing.commit);
            items
        };
        let revision = commit.clone().unwrap_or(revision);
        for item in items.iter_mut().filter(|item| !self.is_here(item)) {
            let path = match &item.parts[..] {
                [] => &item.name,
                [part] => part,
                _ => return Err(self.fail("a file in several parts can only come from wheels")),
            };
            names::file_name(path)?;
            item.place = Place::Url(hub.file(&revision, path));
        }
        let source = hub.shown(&revision);
        Ok(Plan { items, source, commit, web: Some(web), folder: None })
    }

    /// The files to have: those of the recipe, else those that were pinned, else what the source
    /// offers. Each with what it must hash to, as far as that is known.
    fn items(
        &self,
        pins: &Pins,
        offered: impl FnOnce() -> Result<Vec<Listed>, WeightsError>,
    ) -> Result<Vec<Item>, WeightsError> {
        let listed = |file: Listed| FileSpec {
            name: file.name,
            size: file.size,
            sha256: None,
            parts: Vec::new(),
        };
        let stored = |file: &StoredFile| FileSpec {
            name: file.name.clone(),
            size: None,
            sha256: None,
            parts: Vec::new(),
        };
        let specs = match (&self.recipe.files[..], &pins.whole) {
            ([], Some(whole)) => whole.files.iter().map(stored).collect(),
            ([], None) => offered()?.into_iter().map(listed).collect(),
            (files, _) => files.to_vec(),
        };
        names::files_together(specs.iter().map(|spec| spec.name.as_str()))?;
        let item = |spec: FileSpec| {
            let pin = pins.any().and_then(|manifest| manifest.file(&spec.name));
            let recipe = spec.sha256.map(|digest| (digest, Whose::Recipe));
            let pinned = pin.map(|file| (file.sha256, Whose::FirstImport));
            let size = spec.size.or(pin.map(|file| file.size));
            let (name, parts) = (spec.name, spec.parts);
            Item { name, size, expected: recipe.or(pinned), parts, place: Place::Here }
        };
        Ok(specs.into_iter().map(item).collect())
    }

    fn members(&self, packages: &[Package], parts: &[String]) -> Result<Vec<Member>, WeightsError> {
        if parts.is_empty() {
            return Err(self.fail("it does not say where in its wheels a file is"));
        }
        parts.iter().map(|part| Member::parse(&self.recipe.name, packages, part)).collect()
    }
}

pub(crate) fn parse_packages(
    recipe: &str,
    packages: &[String],
) -> Result<Vec<Package>, WeightsError> {
    packages.iter().map(|spec| Package::parse(recipe, spec)).collect()
}

/// Whether an import that was cut took its files from the same source.
fn came_from(begun: &Manifest, from: &Origin, source: &Source) -> bool {
    let shown = &begun.source;
    match (from, source) {
        (Origin::Folder(path), _) => *shown == path.display().to_string(),
        (Origin::Web(base), _) | (Origin::AsTheRecipeSays, Source::Web { base }) => {
            *shown == names::shown(base.trim().trim_end_matches('/'))
        }
        (Origin::AsTheRecipeSays, Source::HuggingFace { repo, .. }) => {
            shown.starts_with(&format!("{repo} at "))
        }
        (Origin::AsTheRecipeSays, Source::Wheel { .. }) => shown.starts_with("the wheel "),
    }
}
