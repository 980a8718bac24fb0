//! Into how many parts prefill cuts walks over long histories, where a step has fewer tiles than the card has multiprocessors.
//!
//! A prompt is read in shares that do not hold up others' answers: a hundred tokens at a time behind sixty thousand positions. Those are a
//! few tiles of rows, each with a walk of milliseconds, and most of the card would watch.

/// Positions of a step of a walk.
pub(crate) const STEP: u32 = 128;
/// Parts that are shorter than this cost more than they save.
const LEAST: u32 = 4;
/// What a part costs beside its walk, and putting them together does, in steps.
const EACH: u32 = 2;
const JOIN: u32 = 2;
/// Most parts for each multiprocessor.
pub(crate) const MOST_ROUNDS: u32 = 4;

/// Steps of a part, where cutting walks of so many `steps` pays; each is walked once for each of the `heads`.
pub(crate) fn cut(steps: &[u32], heads: u32, processors: u32) -> Option<u32> {
    // So many walks run at once.
    let places = (processors / heads).max(1);
    if steps.is_empty() || steps.len() > (MOST_ROUNDS * places) as usize {
        return None;
    }
    let whole = longest_first(steps, places);
    let parts = |length: u32| steps.iter().map(|s| s.div_ceil(length)).sum::<u32>();
    let best = (1..=MOST_ROUNDS).filter_map(|rounds| {
        let (mut low, mut high) = (LEAST, *steps.iter().max()?);
        if high < low || parts(high) > rounds * places {
            return None;
        }
        while low < high {
            let middle = low.midpoint(high);
            match parts(middle) <= rounds * places {
                true => high = middle,
                false => low = middle + 1,
            }
        }
        // A part's number is told in a byte.
        (parts(low) as usize > steps.len() && steps.iter().all(|s| s.div_ceil(low) < 256))
            .then_some((rounds * (low + EACH) + JOIN, low))
    });
    best.min().filter(|(cost, _)| cost * 10 < whole * 9).map(|(_, length)| length)
}

/// How long the card takes for walks that are not cut.
fn longest_first(steps: &[u32], places: u32) -> u32 {
    let mut sorted = steps.to_vec();
    sorted.sort_unstable_by_key(|steps| std::cmp::Reverse(*steps));
    let mut busy = vec![0; places as usize];
    for steps in sorted {
        if let Some(first) = busy.iter_mut().min() {
            *first += steps;
        }
    }
    busy.into_iter().max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn few_long_walks_are_cut_so_that_the_whole_card_walks() {
        // 128 tokens of eight rows behind 60,000 positions on an H100: 8 tiles, 33 places.
        assert_eq!(cut(&[470; 8], 4, 132), Some(118));
        // 4096 tokens of a text's beginning: there is enough for all.
        let many: Vec<u32> = (0..256).map(|n| 1 + n / 8).collect();
        assert_eq!(cut(&many, 4, 132), None);
        assert_eq!(cut(&[3, 3], 4, 132), None);
        assert_eq!(cut(&[], 4, 132), None);
    }

    proptest! {
        #[test]
        fn parts_are_no_more_than_there_is_memory_for_and_shorter_than_what_they_replace(
            steps in prop::collection::vec(1u32..2000, 1..200), heads in 1u32..9, processors in 8u32..200,
        ) {
            if let Some(length) = cut(&steps, heads, processors) {
                let parts: u32 = steps.iter().map(|s| s.div_ceil(length)).sum();
                prop_assert!(parts * heads <= MOST_ROUNDS * processors.max(heads));
                let places = (processors / heads).max(1);
                prop_assert!(length < longest_first(&steps, places));
            }
        }
    }
}
