//! A restored box goes on with the models that fit its new machine. What does not is left out, and said.

use std::path::Path;

use polder_backup::{Folders, LeftOut, restore};
use polder_control::Machine;
use polder_site::{Site, Store};
use polder_takeover::{Choice, choose, models};

use crate::shelf::Shelf;

/// Gives what was fetched the models that fit `machine`, where a box with other ones was here with its smaller model if need be, and notes what that leaves
/// out. To be called before [`restore::ready`]. May block; the error is one sentence.
pub fn fit_restored(
    state: &Path,
    shelf: &dyn Shelf,
    machine: &Machine,
) -> Result<Vec<LeftOut>, String> {
    let folders = Folders::of(state);
    let say = |error: polder_site::StoreError| crate::work::with_source(&error);
    let store = Store::open(&restore::incoming(&folders)).map_err(say)?;
    let came = store.current().map_err(say)?.ok_or("the backup has no site.toml")?;
    // One that cannot be read has nothing to offer.
    let here = Store::open(state).and_then(|store| store.current()).ok().flatten();
    let here = here.unwrap_or_else(|| Site::unclaimed(came.door.port));
    let (next, left) = fitting(&came, &here, shelf, machine)?;
    if next != came {
        next.check().map_err(|error| error.to_string())?;
        store.write(&next, "with what fits this machine").map_err(say)?;
    }
    LeftOut::note(&folders, &left).map_err(|error| crate::work::with_source(&error))?;
    Ok(left)
}

/// The site with what fits, and what does not.
fn fitting(
    came: &Site,
    here: &Site,
    shelf: &dyn Shelf,
    machine: &Machine,
) -> Result<(Site, Vec<LeftOut>), String> {
    // The box's own models can be brought in; of this machine's only those count that are here.
    let mut there = shelf.imported()?;
    there.extend(came.engines.values().map(|slot| slot.recipe.clone()));
    let choices = choose(came, here, &there, &|site| shelf.fits(site, machine));
    let left: Vec<LeftOut> = choices.iter().filter_map(left_out).collect();
    if left.is_empty() {
        return Ok((came.clone(), left));
    }
    let mut site = Site { engines: models(came, &choices), ..came.clone() };
    // A change of model that was under way there, and names that lead to what is not here.
    site.succession = None;
    site.aliases.retain(|_, to| site.engines.contains_key(to));
    site.format = site.layout();
    Ok((site, left))
}

fn left_out(choice: &Choice) -> Option<LeftOut> {
    match choice.clone() {
        Choice::Theirs(..) => None,
        Choice::Own { name: engine, slot, instead_of: recipe, why } => {
            Some(LeftOut { engine, recipe, instead: Some(slot.recipe), why })
        }
        Choice::Without(engine, recipe, why) => {
            Some(LeftOut { engine, recipe, instead: None, why })
        }
    }
}

#[cfg(test)]
mod tests {
    use polder_site::EngineSlot;

    use super::*;
    use crate::Weights;

    fn site(engines: &[(&str, &str)]) -> Site {
        let mut site = Site::unclaimed(8443);
        let slot = |recipe: &str| EngineSlot::serving(recipe.parse().unwrap());
        site.engines = engines.iter().map(|(n, r)| (n.parse().unwrap(), slot(r))).collect();
        site
    }

    fn machine(state: &Path, gib: u64) -> Machine {
        Machine { memory: gib << 30, ..crate::machine::detect(state, Vec::new()) }
    }

    fn restored(came: &Site, here: Option<&Site>, gib: u64) -> (Site, Vec<String>) {
        let state = tempfile::tempdir().unwrap();
        let folders = Folders::of(state.path());
        let incoming = restore::incoming(&folders);
        std::fs::create_dir_all(&incoming).unwrap();
        Store::open(&incoming).unwrap().write(came, "there").unwrap();
        if let Some(here) = here {
            Store::open(state.path()).unwrap().write(here, "here").unwrap();
        }
        let shelf = Weights::of(state.path()).unwrap();
        let left = fit_restored(state.path(), &shelf, &machine(state.path(), gib)).unwrap();
        let site = Store::open(&incoming).unwrap().current().unwrap().unwrap();
        (site, left.iter().map(LeftOut::sentence).collect())
    }

    #[test]
    fn a_large_box_on_a_small_machine_goes_on_with_what_fits_and_says_what_does_not() {
        let mut came = site(&[("fast", "smollm2-135m-instruct"), ("slow", "qwen3-30b-a3b")]);
        came.aliases.insert("house".parse().unwrap(), "fast".parse().unwrap());
        came.aliases.insert("night".parse().unwrap(), "slow".parse().unwrap());
        // As large as the one before: nothing changes.
        let (same, said) = restored(&came, None, 512);
        assert_eq!((same, said.len()), (came.clone(), 0));
        let (small, said) = restored(&came, None, 8);
        let names: Vec<&str> = small.engines.keys().map(|name| name.as_str()).collect();
        let led: Vec<&str> = small.aliases.keys().map(|name| name.as_str()).collect();
        assert_eq!((names, led), (vec!["fast"], vec!["house"]));
        assert_eq!(said.len(), 1);
        assert!(said[0].starts_with("slow is left out, and with it qwen3-30b-a3b: "), "{said:?}");
    }

    #[test]
    fn where_nothing_fits_nothing_is_brought_in() {
        let came = site(&[("fast", "qwen3-30b-a3b")]);
        // The model of the machine is not here any more, so it cannot answer either.
        let (none, said) = restored(&came, Some(&site(&[("own", "smollm2-135m-instruct")])), 4);
        assert!(none.engines.is_empty() && said.len() == 1, "{said:?}");
    }
}
