use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use polder_control::{ImportSource, Machine, Progress, Unit};
use polder_planner::Room;
use polder_recipes::Recipe;
use polder_site::{RecipeName, Site};
use polder_weights::{CancelFlag, Event, Origin, Store, WeightsError};

use crate::shares::memory_shares;
use crate::shelf::{Described, ImportEnd, Shelf};

/// The recipes that polder brings along, and the store of weights in a state folder.
#[derive(Debug, Clone)]
pub struct Weights {
    store: Store,
    /// Where disks are mounted that people plug in.
    disks: PathBuf,
}

/// Where the image mounts them.
const DISKS: &str = "/run/media";

impl Weights {
    /// The store of this state folder; made if need be.
    pub fn of(state: &Path) -> Result<Self, WeightsError> {
        Ok(Self { store: Store::open(state.join("weights"))?, disks: DISKS.into() })
    }

    /// With disks in another place.
    pub fn with_disks(mut self, disks: &Path) -> Self {
        self.disks = disks.to_owned();
        self
    }
}

impl Shelf for Weights {
    fn describe(&self, recipe: &RecipeName) -> Option<Described> {
        let recipe = Recipe::find(recipe.as_str()).ok()?;
        Some(Described { title: recipe.title.clone(), bytes: recipe.total_size() })
    }

    fn imported(&self) -> Result<BTreeSet<RecipeName>, String> {
        let whole = |recipe: &&Recipe| self.store.model_folder(recipe).is_some();
        Ok(Recipe::builtin().iter().filter(whole).filter_map(|r| r.name.parse().ok()).collect())
    }

    fn fits(&self, site: &Site, machine: &Machine) -> Result<(), String> {
        let cards: Vec<Option<u64>> = machine.gpus.iter().map(|gpu| gpu.memory).collect();
        let room = Room::of_machine(&cards, machine.memory);
        memory_shares(site, room).map(drop).map_err(|error| error.to_string())
    }

    fn is_near(&self, recipe: &RecipeName, from: &ImportSource) -> bool {
        match from {
            ImportSource::Folder(_) => true,
            ImportSource::Web(_) => false,
            ImportSource::Recipe => Recipe::find(recipe.as_str())
                .is_ok_and(|recipe| self.store.disk_with(recipe, &self.disks).is_some()),
        }
    }

    fn import(
        &self,
        recipe: &RecipeName,
        from: &ImportSource,
        progress: &(dyn Fn(Progress) + Sync),
        stop: &CancelFlag,
    ) -> Result<(), ImportEnd> {
        let recipe = Recipe::find(recipe.as_str()).map_err(|e| ImportEnd::Failed(e.to_string()))?;
        let from = match from {
            ImportSource::Recipe => match self.store.disk_with(recipe, &self.disks) {
                Some(disk) => {
                    log::info!("{} is on the disk {}", recipe.title, disk.display());
                    Origin::Folder(disk)
                }
                None => Origin::AsTheRecipeSays,
            },
            ImportSource::Folder(folder) => Origin::Folder(folder.clone()),
            ImportSource::Web(address) => Origin::Web(address.clone()),
        };
        let last = Mutex::new(nothing_yet());
        let mut observer = |event| {
            let mut last = last.lock().expect("nothing panics while it holds this");
            *last = shown(event, &last);
            progress(last.clone());
        };
        match self.store.import(recipe, &from, &mut observer, stop) {
            Ok(_) => Ok(()),
            Err(WeightsError::Cancelled) => Err(ImportEnd::Stopped),
            Err(error) => Err(ImportEnd::Failed(error.to_string())),
        }
    }
}

/// An event of the importer as people see it. What is not a figure (waiting, trying again) is
/// shown in place of the phase, over the last figures.
pub(crate) fn shown(event: Event, last: &Progress) -> Progress {
    match event {
        Event::Progress(progress) => figures(&progress),
        other => {
            Progress { phase: other.to_string(), rate: None, eta_seconds: None, ..last.clone() }
        }
    }
}

/// The importer's figures in the form that everybody shows.
pub fn figures(progress: &polder_weights::Progress) -> Progress {
    Progress {
        phase: progress.phase.as_str().to_owned(),
        done: progress.done,
        total: progress.total,
        unit: Unit::Bytes,
        rate: progress.rate,
        eta_seconds: progress.eta.map(|eta| eta.as_secs()),
    }
}

pub(crate) fn nothing_yet() -> Progress {
    let (phase, unit) = (String::new(), Unit::Bytes);
    Progress { phase, done: 0, total: None, unit, rate: None, eta_seconds: None }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use polder_weights::Phase;

    use super::*;

    #[test]
    fn a_disk_that_somebody_plugged_in_is_looked_at_before_the_network() {
        let place = tempfile::tempdir().unwrap();
        let recipe = Recipe::find(polder_recipes::DEFAULT_RECIPE).unwrap();
        let (first, second) = (place.path().join("disks/A"), place.path().join("disks/B"));
        std::fs::create_dir_all(&first).unwrap();
        std::fs::create_dir_all(&second).unwrap();
        let weights = Weights::of(&place.path().join("state")).unwrap();
        let find = || weights.store.disk_with(recipe, &place.path().join("disks"));
        assert_eq!(find(), None);
        for file in &recipe.files {
            // Of the right name and size; whether it is the right one is found out by reading it.
            let made = std::fs::File::create(second.join(&file.name)).unwrap();
            made.set_len(file.size.unwrap()).unwrap();
            std::fs::write(first.join(&file.name), "another file of this name").unwrap();
        }
        assert_eq!(find(), Some(second));
        assert_eq!(weights.store.disk_with(recipe, Path::new("/nowhere")), None);
    }

    #[test]
    fn engines_that_do_not_fit_beside_each_other_are_refused_by_what_this_machine_has() {
        let place = tempfile::tempdir().unwrap();
        let weights = Weights::of(place.path()).unwrap();
        let mut site = Site::unclaimed(8443);
        for (name, recipe) in [("fast", "qwen3-4b"), ("slow", "qwen3-30b-a3b")] {
            let slot = polder_site::EngineSlot::serving(recipe.parse().unwrap());
            site.engines.insert(name.parse().unwrap(), slot);
        }
        let mut machine = crate::machine::detect(place.path(), Vec::new());
        let mut with = |memory: Option<u64>| {
            let name = "NVIDIA RTX 3090".to_owned();
            machine.gpus = vec![polder_control::Gpu { name, memory }];
            weights.fits(&site, &machine)
        };
        assert_eq!(with(Some(80_000_000_000)), Ok(()));
        let why = with(Some(24_000_000_000)).unwrap_err();
        assert!(why.contains("the graphics card leaves 21.6 GB"), "{why}");
    }

    #[test]
    fn figures_stay_in_sight_while_a_connection_is_tried_again() {
        let figures = polder_weights::Progress {
            phase: Phase::Fetching,
            file: Some("a.gguf".to_owned()),
            done: 5,
            total: Some(10),
            rate: Some(2.0),
            eta: Some(Duration::from_secs(3)),
        };
        let first = shown(Event::Progress(figures), &nothing_yet());
        assert_eq!((first.phase.as_str(), first.done, first.eta_seconds), ("fetching", 5, Some(3)));
        let wait = Duration::from_secs(1);
        let event = Event::Retrying { file: "a.gguf".to_owned(), why: "it broke".to_owned(), wait };
        let second = shown(event, &first);
        assert!(second.phase.contains("it broke"), "{second:?}");
        assert_eq!((second.done, second.total, second.rate), (5, Some(10), None));
    }
}
