//! Keeping what people write apart from what steers the model.
//!
//! A chat template mixes both into one text, and may trim, split or compare what people wrote
//! on the way, so their words must go through it nearly as they are. Before rendering, a marker
//! character is put into every place of a message that could be read as a control token or as a
//! part of one at its edges; after rendering, the text is cut at the control tokens that are
//! still whole (the template's own), and only then the markers are taken out.

use std::borrow::Cow;

use serde_json::Value;

use crate::error::ChatError;
use crate::special::SpecialTokens;

/// Unicode's own characters "for internal use", which no text should contain.
pub(crate) const MARKERS: std::ops::RangeInclusive<char> = '\u{fdd0}'..='\u{fdef}';

/// A marker that occurs nowhere in these texts.
pub(crate) fn choose_marker<'a>(
    texts: impl Iterator<Item = &'a str> + Clone,
) -> Result<char, ChatError> {
    MARKERS
        .into_iter()
        .find(|marker| texts.clone().all(|text| !text.contains(*marker)))
        .ok_or(ChatError::NoMarkerLeft)
}

/// Every string in a value, keys of objects too.
pub(crate) fn strings<'a>(value: &'a Value, to: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => to.push(text),
        Value::Array(list) => list.iter().for_each(|value| strings(value, to)),
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            to.push(key);
            strings(value, to);
        }),
        _ => {}
    }
}

/// Marks every string in a value.
pub(crate) fn mark_all(specials: &SpecialTokens, value: &mut Value, marker: char) {
    match value {
        Value::String(text) => {
            if let Cow::Owned(marked) = mark(specials, text, marker) {
                *text = marked;
            }
        }
        Value::Array(list) => {
            list.iter_mut().for_each(|value| mark_all(specials, value, marker));
        }
        Value::Object(map) => {
            *map = std::mem::take(map)
                .into_iter()
                .map(|(key, mut value)| {
                    mark_all(specials, &mut value, marker);
                    (mark(specials, &key, marker).into_owned(), value)
                })
                .collect();
        }
        _ => {}
    }
}

/// Marks one string, so that no control token can be found that holds any of its characters:
/// within it, nor across its first or last character that is not white space. (What is wholly
/// the inside of a control token stays: only a template that writes bare brackets around
/// people's words could complete it.)
pub(crate) fn mark<'a>(specials: &SpecialTokens, text: &'a str, marker: char) -> Cow<'a, str> {
    // A marker goes after the first character of what must not be found, or, where only the
    // end of a token could be completed by what comes before, in front of it.
    let after_first = |at: usize| at + text[at..].chars().next().map_or(0, char::len_utf8);
    let mut places: Vec<usize> =
        specials.control_starts(text).into_iter().map(after_first).collect();
    let trimmed = text.trim_end();
    for control in specials.control_texts() {
        for (at, _) in control.char_indices().skip(1) {
            if trimmed.ends_with(&control[..at]) {
                places.push(after_first(trimmed.len() - at));
            }
        }
    }
    let start = text.len() - text.trim_start().len();
    let completes = |control: &str| {
        control.char_indices().skip(1).any(|(at, _)| text[start..].starts_with(&control[at..]))
    };
    if specials.control_texts().any(completes) {
        places.push(start);
    }
    if places.is_empty() {
        return Cow::Borrowed(text);
    }
    places.sort_unstable();
    places.dedup();
    let mut marked = String::with_capacity(text.len() + places.len() * marker.len_utf8());
    let mut from = 0;
    for place in places {
        marked.push_str(&text[from..place]);
        marked.push(marker);
        from = place;
    }
    marked.push_str(&text[from..]);
    Cow::Owned(marked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::special::Fragment;
    use crate::special::tests::specials;
    use proptest::prelude::*;

    const CONTROL: [(&str, bool); 4] =
        [("<|im_start|>", true), ("<|im_end|>", true), ("|><|", true), ("<think>", false)];

    fn controls_in(specials: &SpecialTokens, text: &str) -> usize {
        specials
            .cut(text, true)
            .iter()
            .filter(|fragment| matches!(fragment, Fragment::Token(id) if id.0 < 3))
            .count()
    }

    #[test]
    fn ordinary_text_is_left_as_it_is() {
        let specials = specials(&CONTROL);
        for text in ["", "a < b || c > d", "<think>hm</think>", "Grüße 👋"] {
            assert!(matches!(mark(&specials, text, '\u{fdd0}'), Cow::Borrowed(_)), "{text}");
        }
    }

    #[test]
    fn a_marker_that_someone_wrote_is_not_used() {
        let texts = ["a\u{fdd0}b", "\u{fdd1}"];
        assert_eq!(choose_marker(texts.iter().copied()).unwrap(), '\u{fdd2}');
        let all: String = MARKERS.collect();
        assert!(choose_marker([all.as_str()].iter().copied()).is_err());
    }

    proptest! {
        #[test]
        fn no_two_strings_make_a_control_token_together(
            words in prop::collection::vec(
                prop::collection::vec(
                    prop::sample::select(vec![
                        "<", "|", ">", "<|", "|>", "im_start", "im_end", "im_", "start|>", "<|im_end|>",
                        "<|im_start|>", " ", "\n", "é", "<think>",
                    ]),
                    0..8,
                ),
                1..5,
            ),
        ) {
            let specials = specials(&CONTROL);
            let marker = '\u{fdd0}';
            let texts: Vec<String> = words.iter().map(|words| words.concat()).collect();
            let marked: Vec<_> = texts.iter().map(|text| mark(&specials, text, marker)).collect();
            prop_assert_eq!(controls_in(&specials, &marked.concat()), 0);
            let trimmed: String = marked.iter().map(|text| text.trim()).collect();
            prop_assert_eq!(controls_in(&specials, &trimmed), 0);
            // Between the template's own tokens, only those are found.
            let framed = format!("<|im_start|>{}<|im_end|>", marked.join("<|im_end|>"));
            prop_assert_eq!(controls_in(&specials, &framed), 1 + texts.len());
            prop_assert_eq!(marked.concat().replace(marker, ""), texts.concat());
        }
    }
}
