//! What each of several engines may take of the memory that they share, and whether their models fit into that.

use polder_recipes::Recipe;

use crate::assumptions::Assumptions;
use crate::count::{KvShape, Weights};
use crate::memory::{LENGTHS, weights_size, workspace};
use crate::text;

/// The memory that engines share: that of the graphics card where there is one, else the machine's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// All of it.
    pub bytes: u64,
    /// Whether it is a card's.
    pub card: bool,
}

/// One engine that is to live there.
#[derive(Debug, Clone, Copy)]
pub struct Lodger<'a> {
    /// As the site calls it.
    pub name: &'a str,
    /// What it serves.
    pub recipe: &'a Recipe,
    /// Whether it holds conversations in 8 bits a number where that is possible: on a card.
    pub compact: bool,
    /// Bytes that it may take for everything, where somebody said so.
    pub budget: Option<u64>,
}

/// What the processor's engine takes for weights, at most, by their files: packing widens some formats to that. It starts with no less
/// (`free_beside_weights` in the engine's loading), and a plan must not promise what it would refuse.
const PROCESSOR_WIDENS: f64 = 1.5;

/// Why engines cannot share a memory. One sentence: what, where, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShareError {
    /// The budgets are more than there is.
    #[error(
        "the engines may take {} of memory together ({each}), and {place} has {}; lower a budget by {}",
        gb(.given), gb(.whole), gb(&(.given - .whole))
    )]
    Over {
        /// All budgets together, bytes.
        given: u64,
        /// Each of them, in words.
        each: String,
        /// Whose memory.
        place: &'static str,
        /// All of it, bytes.
        whole: u64,
    },
    /// A model does not fit into its budget.
    #[error(
        "{title} needs {} of memory as {name} ({what}), and its budget is {}: {} are lacking; raise engines.{name}.memory, or choose a smaller model",
        gb(.needed), gb(.budget), gb(&(.needed - .budget))
    )]
    Small {
        /// The engine.
        name: String,
        /// The model.
        title: String,
        /// Of what its needs are made.
        what: String,
        /// All of them, bytes.
        needed: u64,
        /// What it may take, bytes.
        budget: u64,
    },
    /// An only engine's model is more than there is.
    #[error(
        "the weights of {title} alone take {} of memory, and {place} has {}: {} are lacking; choose a smaller model",
        gb(.weights), gb(.whole), gb(&(.weights - .whole))
    )]
    Never {
        /// The model.
        title: String,
        /// Whose memory.
        place: &'static str,
        /// Its weights, bytes.
        weights: u64,
        /// All of the memory, bytes.
        whole: u64,
    },
    /// Those without a budget do not fit into what is left.
    #[error(
        "{names} need {} of memory, and {place} leaves {} for them: {} are lacking; choose a smaller model, remove an engine, or lower another one's budget",
        gb(.needed), gb(.left), gb(&(.needed - .left))
    )]
    Full {
        /// The engines and their models, in words.
        names: String,
        /// Whose memory.
        place: &'static str,
        /// What they need, bytes.
        needed: u64,
        /// What there is for them, bytes.
        left: u64,
    },
}

fn gb(bytes: &u64) -> String {
    text::bytes(*bytes as f64)
}

impl Room {
    /// Of a machine with these graphics cards (bytes of each, where the driver tells them) and so much memory. One card is used, as
    /// plans do: the largest. A card that shares the machine's memory has no size of its own.
    pub fn of_machine(cards: &[Option<u64>], memory: u64) -> Self {
        let largest = cards.iter().flatten().max();
        match largest {
            Some(bytes) => Self { bytes: *bytes, card: true },
            None => Self { bytes: memory, card: !cards.is_empty() },
        }
    }

    fn place(self) -> &'static str {
        if self.card { "the graphics card" } else { "this machine" }
    }

    fn assumptions(self) -> Assumptions {
        if self.card { Assumptions::for_card() } else { Assumptions::for_processor() }
    }
}

/// What an engine needs at least, in bytes.
struct Needs {
    weights: f64,
    work: f64,
    conversation: f64,
}

impl Needs {
    /// Of a model that its recipe does not describe only the files are known.
    fn of(engine: &Lodger<'_>, room: Room) -> Self {
        let recipe = engine.recipe;
        let widened = if room.card { 1.0 } else { PROCESSOR_WIDENS };
        let files = widened * recipe.total_size().unwrap_or_default() as f64;
        let assumed = room.assumptions();
        let (Some(architecture), Some(quantization)) = (&recipe.architecture, &recipe.quantization)
        else {
            return Self { weights: files, work: assumed.fixed_workspace, conversation: 0.0 };
        };
        let counted = Weights::of(architecture);
        let mut weights = widened * weights_size(recipe, &counted, quantization).value;
        // A card's kernels read ggml's formats as 16 bits.
        if room.card && recipe.files.iter().any(|file| file.name.ends_with(".gguf")) {
            weights = weights.max(2.0 * counted.total());
        }
        let kv_bits = if room.card && engine.compact { 8.0 } else { 16.0 };
        let shortest = LENGTHS[0].min(recipe.context.unwrap_or(LENGTHS[0]));
        Self {
            weights,
            work: workspace(architecture, &assumed).value,
            conversation: KvShape::of(architecture, kv_bits).session_bytes(shortest),
        }
    }

    fn bytes(&self) -> u64 {
        (self.weights + self.work + self.conversation).ceil() as u64
    }

    fn in_words(&self) -> String {
        let [weights, work, conversation] =
            [self.weights, self.work, self.conversation].map(text::bytes);
        format!("{weights} of weights, {work} to work with, {conversation} for a conversation")
    }
}

/// Bytes that each engine may take, in their order; `None`: whatever is free. Those with a budget have that. Of what it leaves those
/// without have what each needs, and equal parts of the rest. An only engine without a budget is not held to any, as long as its weights can be there at all.
pub fn shares(room: Room, engines: &[Lodger<'_>]) -> Result<Vec<Option<u64>>, ShareError> {
    let needs: Vec<u64> = engines.iter().map(|e| Needs::of(e, room).bytes()).collect();
    for (engine, needed) in engines.iter().zip(&needs) {
        match engine.budget {
            Some(budget) if budget < *needed => {
                return Err(ShareError::Small {
                    name: engine.name.to_owned(),
                    title: engine.recipe.title.clone(),
                    what: Needs::of(engine, room).in_words(),
                    needed: *needed,
                    budget,
                });
            }
            _ => {}
        }
    }
    let budgets = engines.iter().filter_map(|e| Some((e.name, e.budget?)));
    let given = budgets.clone().fold(0_u64, |sum, (_, budget)| sum.saturating_add(budget));
    if given > room.bytes {
        let each: Vec<String> = budgets.map(|(name, b)| format!("{name} {}", gb(&b))).collect();
        let (each, place) = (each.join(", "), room.place());
        return Err(ShareError::Over { given, each, place, whole: room.bytes });
    }
    if let [only @ Lodger { budget: None, .. }] = engines {
        let weights = Needs::of(only, room).weights.ceil() as u64;
        if weights > room.bytes {
            let (title, place) = (only.recipe.title.clone(), room.place());
            return Err(ShareError::Never { title, place, weights, whole: room.bytes });
        }
        return Ok(vec![None]);
    }
    let usable = (room.bytes as f64 * room.assumptions().utilisation) as u64;
    let left = usable.saturating_sub(given);
    let open = || engines.iter().zip(&needs).filter(|(engine, _)| engine.budget.is_none());
    let needed = open().fold(0_u64, |sum, (_, needed)| sum.saturating_add(*needed));
    if needed > left && open().next().is_some() {
        let names: Vec<String> =
            open().map(|(e, _)| format!("{} ({})", e.name, e.recipe.title)).collect();
        let (names, place) = (names.join(" and "), room.place());
        return Err(ShareError::Full { names, place, needed, left });
    }
    let each = left.saturating_sub(needed) / (open().count() as u64).max(1);
    let share = |(engine, needed): (&Lodger<'_>, &u64)| engine.budget.or(Some(needed + each));
    Ok(engines.iter().zip(&needs).map(share).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GB: u64 = 1_000_000_000;

    fn lodger(name: &'static str, recipe: &str, budget: Option<u64>) -> Lodger<'static> {
        Lodger { name, recipe: Recipe::find(recipe).unwrap(), compact: false, budget }
    }

    fn card(gb: u64) -> Room {
        Room { bytes: gb * GB, card: true }
    }

    fn refused(room: Room, engines: &[Lodger<'_>]) -> String {
        shares(room, engines).unwrap_err().to_string()
    }

    #[test]
    fn one_engine_takes_what_is_free_and_two_share_it_by_what_they_need() {
        let (fast, slow) = ("qwen3-4b", "qwen3-30b-a3b");
        assert_eq!(shares(card(80), &[lodger("fast", fast, None)]).unwrap(), [None]);
        let both = [lodger("fast", fast, None), lodger("slow", slow, None)];
        let each: Vec<u64> = shares(card(141), &both).unwrap().into_iter().flatten().collect();
        let needs = both.map(|e| Needs::of(&e, card(141)).bytes());
        assert_eq!(each[0] - needs[0], each[1] - needs[1]);
        let all: u64 = each.iter().sum();
        assert!((126 * GB..=127 * GB).contains(&all), "{all}");
    }

    #[test]
    fn budgets_that_exceed_the_card_are_refused() {
        let both = [
            lodger("fast", "qwen3-4b", Some(40 * GB)),
            lodger("slow", "qwen3-30b-a3b", Some(50 * GB)),
        ];
        let why = refused(card(80), &both);
        let says = "the engines may take 90.0 GB of memory together (fast 40.0 GB, slow 50.0 GB), and the graphics card has 80.0 GB; lower a budget by 10.0 GB";
        assert_eq!(why, says);
        assert_eq!(shares(card(90), &both).unwrap(), [Some(40 * GB), Some(50 * GB)]);
    }

    #[test]
    fn a_model_that_does_not_fit_its_budget_is_refused_with_what_is_lacking() {
        let why = refused(card(80), &[lodger("slow", "qwen3-30b-a3b", Some(GB))]);
        assert!(why.contains("as slow") && why.contains("its budget is 1.0 GB"), "{why}");
        assert!(why.contains("are lacking; raise engines.slow.memory"), "{why}");
    }

    #[test]
    fn engines_without_budgets_that_do_not_fit_beside_each_other_are_refused() {
        let both = [lodger("fast", "qwen3-4b", None), lodger("slow", "qwen3-30b-a3b", None)];
        let why = refused(card(24), &both);
        assert!(why.starts_with("fast (") && why.contains(" and slow ("), "{why}");
        assert!(why.contains("the graphics card leaves 21.6 GB for them"), "{why}");
        let beside = [lodger("fast", "qwen3-4b", Some(75 * GB)), both[1]];
        assert!(refused(card(80), &beside).contains("slow ("));
    }

    #[test]
    fn an_only_engine_whose_weights_can_never_be_there_is_refused() {
        let big = [lodger("slow", "qwen3-30b-a3b", None)];
        let why = refused(card(12), &big);
        assert!(
            why.contains("alone take ") && why.contains("the graphics card has 12.0 GB"),
            "{why}"
        );
        assert!(why.ends_with("are lacking; choose a smaller model"), "{why}");
        // Where they can, it is the engine that finds out whether there is room for conversations.
        let weights = Needs::of(&big[0], card(80)).weights.ceil() as u64;
        assert_eq!(shares(Room { bytes: weights, card: true }, &big).unwrap(), [None]);
        assert!(shares(Room { bytes: weights - 1, card: true }, &big).is_err());
    }

    #[test]
    fn the_processor_takes_more_for_weights_than_their_files_and_the_plan_says_so() {
        let trial = lodger("fast", polder_recipes::DEFAULT_RECIPE, None);
        let (size, machine) = (trial.recipe.total_size().unwrap(), Room::of_machine(&[], GB));
        let weights = Needs::of(&trial, machine).weights;
        assert!(weights >= 1.5 * size as f64 * 0.99, "{weights} for {size}");
    }

    #[test]
    fn conversations_in_8_bits_need_half_as_much_and_only_a_card_holds_them_so() {
        let full = lodger("fast", "qwen3-4b", None);
        let compact = Lodger { compact: true, ..full };
        let needs = |engine: &Lodger<'_>, room| Needs::of(engine, room).conversation;
        assert_eq!(needs(&full, card(80)), 2.0 * needs(&compact, card(80)));
        let machine = Room::of_machine(&[], 80 * GB);
        assert_eq!(needs(&full, machine), needs(&compact, machine));
    }

    #[test]
    fn without_a_card_the_memory_of_the_machine_is_shared() {
        let room = Room::of_machine(&[], 16 * GB);
        assert_eq!(room, Room { bytes: 16 * GB, card: false });
        let trial = [
            lodger("fast", polder_recipes::DEFAULT_RECIPE, Some(GB)),
            lodger("slow", polder_recipes::DEFAULT_RECIPE, None),
        ];
        let each = shares(room, &trial).unwrap();
        assert_eq!(each, [Some(GB), Some(11 * GB)]);
        let small = Room::of_machine(&[], GB / 2);
        assert!(refused(small, &trial).contains("this machine has 500.0 MB"));
        // A card that shares the machine's memory does not say how much it has.
        assert_eq!(Room::of_machine(&[None], 128 * GB), Room { bytes: 128 * GB, card: true });
        assert_eq!(Room::of_machine(&[Some(24 * GB), Some(80 * GB)], 7), card(80));
    }

    proptest! {
        #[test]
        fn no_shares_are_more_than_there_is_or_less_than_is_needed(
            gb in 1_u64..400, card in any::<bool>(),
            kinds in prop::collection::vec((0_usize..Recipe::builtin().len(), prop::option::of(0_u64..400)), 0..5),
        ) {
            let room = Room { bytes: gb * GB, card };
            let engines: Vec<Lodger<'_>> = kinds.iter().map(|(at, budget)| Lodger {
                name: "one",
                recipe: &Recipe::builtin()[*at],
                compact: false,
                budget: budget.map(|gb| gb * GB),
            }).collect();
            match shares(room, &engines) {
                Err(why) => prop_assert!(!why.to_string().is_empty()),
                Ok(each) => {
                    prop_assert_eq!(each.len(), engines.len());
                    prop_assert!(each.iter().flatten().sum::<u64>() <= room.bytes);
                    for (engine, share) in engines.iter().zip(each) {
                        let least = Needs::of(engine, room).bytes();
                        prop_assert!(share.is_none_or(|share| share >= least));
                    }
                }
            }
        }
    }
}
