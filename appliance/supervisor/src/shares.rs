//! What each engine of a site may take of the memory that they share.

use std::collections::BTreeMap;

use polder_planner::{Lodger, Room, ShareError, shares};
use polder_recipes::Recipe;
use polder_site::{Conversations, EngineKind, EngineName, Site};

/// Bytes for each engine of the site; `None`: whatever is free. The error is one sentence. An engine whose recipe this version does not
/// know is left out: it does not start either.
pub fn memory_shares(
    site: &Site,
    room: Room,
) -> Result<BTreeMap<EngineName, Option<u64>>, ShareError> {
    let known = site.engines.iter().filter_map(|(name, slot)| {
        // What another machine serves takes nothing here.
        if slot.kind == EngineKind::Url {
            return None;
        }
        let recipe = Recipe::find(slot.recipe.as_str()).ok()?;
        let budget = slot.memory.map(|budget| budget.of(room.bytes));
        let compact = slot.conversations == Conversations::Compact;
        Some((name, Lodger { name: name.as_str(), recipe, compact, budget }))
    });
    let (names, lodgers): (Vec<&EngineName>, Vec<Lodger<'_>>) = known.unzip();
    let each = shares(room, &lodgers)?;
    Ok(names.into_iter().cloned().zip(each).collect())
}

#[cfg(test)]
mod tests {
    use polder_site::EngineSlot;

    use super::*;

    #[test]
    fn a_part_is_of_the_card_and_an_unknown_recipe_takes_none() {
        let mut site = Site::unclaimed(8443);
        let mut put = |name: &str, recipe: &str, memory: Option<&str>| {
            let memory = memory.map(|text| text.parse().unwrap());
            let slot = EngineSlot { memory, ..EngineSlot::serving(recipe.parse().unwrap()) };
            site.engines.insert(name.parse().unwrap(), slot);
        };
        put("fast", "qwen3-4b", Some("25 %"));
        put("slow", "qwen3-30b-a3b", None);
        put("gone", "no-such-model", None);
        let room = Room { bytes: 80_000_000_000, card: true };
        let each = memory_shares(&site, room).unwrap();
        let bytes: Vec<_> = each.iter().map(|(name, bytes)| (name.as_str(), *bytes)).collect();
        assert_eq!(bytes, [("fast", Some(20_000_000_000)), ("slow", Some(52_000_000_000))]);
    }
}
