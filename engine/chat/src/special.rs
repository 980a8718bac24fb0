//! Tokens that are found in text as they stand, before any other rule applies.

use aho_corasick::{AhoCorasick, MatchKind};
use polder_backend::TokenId;

use crate::error::ChatError;

/// One token that is matched as it stands.
#[derive(Debug, Clone)]
pub(crate) struct SpecialToken {
    pub(crate) id: TokenId,
    pub(crate) text: String,
    /// Steers the model (begin, end, whose turn); never text.
    pub(crate) control: bool,
    /// Swallows white space before it.
    pub(crate) left_strip: bool,
    /// Swallows white space after it.
    pub(crate) right_strip: bool,
}

/// All of them.
#[derive(Debug, Clone)]
pub(crate) struct SpecialTokens {
    tokens: Vec<SpecialToken>,
    /// Every token, longest first where several start at one place.
    all: AhoCorasick,
    /// Those that are text too.
    plain: AhoCorasick,
    plain_index: Vec<usize>,
    /// Control tokens, overlapping ones as well.
    control: AhoCorasick,
}

/// A stretch of text: either one special token or ordinary text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fragment<'a> {
    Token(TokenId),
    Text(&'a str),
}

impl SpecialTokens {
    pub(crate) fn new(mut tokens: Vec<SpecialToken>) -> Result<Self, ChatError> {
        tokens.retain(|token| !token.text.is_empty());
        let broken = |error: aho_corasick::BuildError| ChatError::Broken(error.to_string());
        let longest = |texts: Vec<&str>| {
            AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(texts)
        };
        let all =
            longest(tokens.iter().map(|token| token.text.as_str()).collect()).map_err(broken)?;
        let plain_index: Vec<usize> =
            (0..tokens.len()).filter(|index| !tokens[*index].control).collect();
        let plain = longest(plain_index.iter().map(|&at| tokens[at].text.as_str()).collect())
            .map_err(broken)?;
        let controls = tokens.iter().filter(|token| token.control).map(|token| &token.text);
        let control = AhoCorasick::builder().build(controls).map_err(broken)?;
        Ok(Self { tokens, all, plain, plain_index, control })
    }

    /// Cuts text at the special tokens in it; at control tokens only where `control` says so.
    pub(crate) fn cut<'a>(&self, text: &'a str, control: bool) -> Vec<Fragment<'a>> {
        let finder = if control { &self.all } else { &self.plain };
        let mut fragments = Vec::new();
        let mut start = 0;
        for found in finder.find_iter(text) {
            if found.start() < start {
                continue; // Swallowed as white space by the token before.
            }
            let index = found.pattern().as_usize();
            let token = &self.tokens[if control { index } else { self.plain_index[index] }];
            let mut before = &text[start..found.start()];
            if token.left_strip {
                before = before.trim_end();
            }
            if !before.is_empty() {
                fragments.push(Fragment::Text(before));
            }
            fragments.push(Fragment::Token(token.id));
            start = found.end();
            if token.right_strip {
                start = text.len() - text[start..].trim_start().len();
            }
        }
        if start < text.len() {
            fragments.push(Fragment::Text(&text[start..]));
        }
        fragments
    }

    /// Where control tokens start in this text, in order; overlapping ones too.
    pub(crate) fn control_starts(&self, text: &str) -> Vec<usize> {
        let mut starts: Vec<usize> =
            self.control.find_overlapping_iter(text).map(|found| found.start()).collect();
        starts.sort_unstable();
        starts.dedup();
        starts
    }

    /// All control tokens.
    pub(crate) fn controls(&self) -> impl Iterator<Item = &SpecialToken> {
        self.tokens.iter().filter(|token| token.control)
    }

    /// The texts of all control tokens.
    pub(crate) fn control_texts(&self) -> impl Iterator<Item = &str> {
        self.controls().map(|token| token.text.as_str())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn specials(texts: &[(&str, bool)]) -> SpecialTokens {
        SpecialTokens::new(
            texts
                .iter()
                .enumerate()
                .map(|(id, (text, control))| SpecialToken {
                    id: TokenId(id as u32),
                    text: (*text).into(),
                    control: *control,
                    left_strip: false,
                    right_strip: false,
                })
                .collect(),
        )
        .unwrap()
    }

    #[test]
    fn control_tokens_are_found_only_where_they_are_allowed() {
        let specials = specials(&[("<|a|>", true), ("<think>", false)]);
        let text = "x<|a|><think>y";
        use Fragment::{Text, Token};
        assert_eq!(
            specials.cut(text, true),
            [Text("x"), Token(TokenId(0)), Token(TokenId(1)), Text("y")]
        );
        assert_eq!(specials.cut(text, false), [Text("x<|a|>"), Token(TokenId(1)), Text("y")]);
    }

    #[test]
    fn a_token_that_strips_swallows_the_white_space_beside_it() {
        let specials = SpecialTokens::new(vec![SpecialToken {
            id: TokenId(0),
            text: "<m>".into(),
            control: true,
            left_strip: true,
            right_strip: true,
        }])
        .unwrap();
        use Fragment::{Text, Token};
        assert_eq!(specials.cut("a \n<m>  b", true), [Text("a"), Token(TokenId(0)), Text("b")]);
    }
}
