//! Pure: what of a machine stays when another box's state comes to it, and with which models it goes on.

use std::collections::{BTreeMap, BTreeSet};

use polder_site::{Backup, EngineKind, EngineName, EngineSlot, RecipeName, Site};

/// What becomes of a model of the main box on its spare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// It is here and fits.
    Theirs(EngineName, RecipeName),
    /// This machine's own model answers in its place.
    Own {
        /// The place.
        name: EngineName,
        /// What answers there.
        slot: EngineSlot,
        /// What members know it as.
        instead_of: RecipeName,
        /// Why.
        why: String,
    },
    /// Nothing answers in its place.
    Without(EngineName, RecipeName, String),
}

/// Which models a spare serves: the main box's own where they are here and fit this machine, else one of its own under the same name.
/// `imported`: what is whole here. `fits`: whether the engines of a site fit, in a sentence where they do not.
pub fn choose(
    main: &Site,
    spare: &Site,
    imported: &BTreeSet<RecipeName>,
    fits: &dyn Fn(&Site) -> Result<(), String>,
) -> Vec<Choice> {
    let mut site = adapt(main, spare, BTreeMap::new(), None);
    let mut choices = Vec::new();
    // What another server serves needs no weights here.
    let there = |slot: &EngineSlot| slot.kind == EngineKind::Url || imported.contains(&slot.recipe);
    for (name, slot) in &main.engines {
        if !there(slot) {
            let why = "its weights are not here".to_owned();
            choices.push(Choice::Without(name.clone(), slot.recipe.clone(), why));
            continue;
        }
        site.engines.insert(name.clone(), slot.clone());
        match fits(&site) {
            Ok(()) => choices.push(Choice::Theirs(name.clone(), slot.recipe.clone())),
            Err(why) => {
                site.engines.remove(name);
                choices.push(Choice::Without(name.clone(), slot.recipe.clone(), why));
            }
        }
    }
    if site.engines.is_empty() {
        let mut own = spare.engines.values().filter(|slot| there(slot));
        for choice in &mut choices {
            let Choice::Without(name, instead_of, why) = choice.clone() else { continue };
            let fitting = own.find(|slot| {
                site.engines.insert(name.clone(), (*slot).clone());
                let fitting = fits(&site).is_ok();
                if !fitting {
                    site.engines.remove(&name);
                }
                fitting
            });
            let Some(slot) = fitting.cloned() else { break };
            *choice = Choice::Own { name, slot, instead_of, why };
        }
    }
    choices
}

/// The engines that these choices come to.
pub fn models(main: &Site, choices: &[Choice]) -> BTreeMap<EngineName, EngineSlot> {
    let chosen = choices.iter().filter_map(|choice| match choice {
        Choice::Theirs(name, _) => Some((name.clone(), main.engines.get(name)?.clone())),
        Choice::Own { name, slot, .. } => Some((name.clone(), slot.clone())),
        Choice::Without(..) => None,
    });
    chosen.collect()
}

/// The site of a box that came to another machine: who it is comes with it; where it listens, its uplinks, its ports' addresses, its
/// battery, what it may use of the disk and who answers beside it are this machine's.
pub fn adapt(
    came: &Site,
    here: &Site,
    engines: BTreeMap<EngineName, EngineSlot>,
    backup: Option<Backup>,
) -> Site {
    let mut site = came.clone();
    site.door.port = here.door.port;
    site.door.listen.clone_from(&here.door.listen);
    site.uplinks.clone_from(&here.uplinks);
    site.ports.clone_from(&here.ports);
    site.power.clone_from(&here.power);
    site.updates.clone_from(&here.updates);
    site.keeping = here.keeping;
    // Their keys are this machine's own: a spare at a rented server may have nothing but them.
    site.upstreams.clone_from(&here.upstreams);
    // Which of the two this machine is.
    site.spare = here.spare;
    (site.engines, site.backup) = (engines, backup);
    // A change of model that was under way there is about engines that are not here.
    site.succession = None;
    site.aliases.retain(|_, to| site.engines.contains_key(to));
    site
}

#[cfg(test)]
mod tests {
    use polder_site::{Spare, SpareRole};

    use super::*;

    fn site(name: &str, port: u16, engines: &[(&str, &str)]) -> Site {
        let mut site = Site::unclaimed(port);
        site.name = name.parse().unwrap();
        let slot = |recipe: &str| EngineSlot::serving(recipe.parse().unwrap());
        site.engines = engines.iter().map(|(n, r)| (n.parse().unwrap(), slot(r))).collect();
        site
    }
    fn names(all: &[&str]) -> BTreeSet<RecipeName> {
        all.iter().map(|name| name.parse().unwrap()).collect()
    }
    fn said(choices: &[Choice]) -> Vec<String> {
        let one = |choice: &Choice| match choice {
            Choice::Theirs(name, recipe) => format!("{name}: {recipe}"),
            Choice::Own { name, slot, instead_of, why } => {
                format!("{name}: {} instead of {instead_of}, {why}", slot.recipe)
            }
            Choice::Without(name, recipe, why) => format!("{name}: not {recipe}, {why}"),
        };
        choices.iter().map(one).collect()
    }

    #[test]
    fn the_main_boxs_own_models_where_they_are_here_and_fit_else_the_spares_smaller_one() {
        let main = site("oak", 443, &[("fast", "big"), ("slow", "huge")]);
        let spare = site("elm", 8443, &[("fast", "small")]);
        let all = |_: &Site| Ok(());
        let one = |site: &Site| match site.engines.values().any(|s| s.recipe.as_str() == "huge") {
            true => Err("huge needs 80 GB, and 24 are there".to_owned()),
            false => Ok(()),
        };
        let chosen = choose(&main, &spare, &names(&["big", "huge", "small"]), &all);
        assert_eq!(said(&chosen), ["fast: big", "slow: huge"]);
        let chosen = choose(&main, &spare, &names(&["big", "huge", "small"]), &one);
        assert_eq!(
            said(&chosen),
            ["fast: big", "slow: not huge, huge needs 80 GB, and 24 are there"]
        );
        let chosen = choose(&main, &spare, &names(&["small"]), &all);
        assert_eq!(
            said(&chosen),
            [
                "fast: small instead of big, its weights are not here",
                "slow: not huge, its weights are not here"
            ]
        );
        assert_eq!(models(&main, &chosen).len(), 1);
        // Nor is one of its own taken that does not fit beside what was chosen already.
        let none = |site: &Site| match site.engines.len() {
            0 => Ok(()),
            _ => Err("no memory is left".to_owned()),
        };
        let chosen = choose(&main, &spare, &names(&["small"]), &none);
        assert!(models(&main, &chosen).is_empty(), "{chosen:?}");
        let chosen = choose(&main, &spare, &names(&[]), &all);
        assert!(models(&main, &chosen).is_empty());
    }

    #[test]
    fn who_the_box_is_comes_with_it_and_what_the_machine_is_stays() {
        let mut main = site("oak", 443, &[("fast", "big")]);
        main.door.names.push("oak.example.org".into());
        main.spare = Some(Spare::of(SpareRole::OfThis));
        main.backup = Some(Backup::to("spare".parse().unwrap()));
        main.keeping.disk_percent = 50;
        let mut spare = site("elm", 8443, &[]);
        spare.door.listen = vec!["10.0.0.7".parse().unwrap()];
        spare.spare = Some(Spare::of(SpareRole::ForAnother));
        let adapted = adapt(&main, &spare, BTreeMap::new(), None);
        assert_eq!(adapted.name, main.name);
        assert_eq!(adapted.door.names, main.door.names);
        assert_eq!((adapted.door.port, &adapted.door.listen), (8443, &spare.door.listen));
        assert_eq!((adapted.keeping, &adapted.backup), (spare.keeping, &None));
        assert_eq!(adapted.spare, spare.spare);
        adapted.check().unwrap();
        // And back again, onto the main box's machine.
        let back = adapt(&adapted, &main, main.engines.clone(), main.backup.clone());
        assert_eq!(back, main);
    }

    #[test]
    fn a_name_that_leads_to_a_model_that_is_not_here_does_not_come_along() {
        let mut main = site("oak", 443, &[("fast", "big"), ("slow", "huge")]);
        main.aliases.insert("house".parse().unwrap(), "fast".parse().unwrap());
        main.aliases.insert("night".parse().unwrap(), "slow".parse().unwrap());
        let spare = site("elm", 8443, &[("fast", "small")]);
        let chosen = choose(&main, &spare, &names(&["small"]), &|_| Ok(()));
        let adapted = adapt(&main, &spare, models(&main, &chosen), None);
        let led: Vec<&str> = adapted.aliases.keys().map(|alias| alias.as_str()).collect();
        assert_eq!((led, &adapted.succession), (vec!["house"], &None));
        adapted.check().unwrap();
    }
}
