//! An answer as the list of its parts, thoughts, texts and calls, in the order in which the model
//! wrote them: what Anthropic calls content blocks, and the Responses API output items.

use polder_chat::reply::ReplyEvent;

use crate::generate::Piece;

/// One part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Block {
    Thoughts(String),
    Text(String),
    Call {
        /// Which of the answer's calls, from 0.
        call: usize,
        name: String,
        /// The text of a JSON object, unless the model wrote no JSON.
        arguments: String,
        /// It was not cut off.
        whole: bool,
    },
}

/// What became of the block of this number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    Begun(usize),
    More(usize, String),
    Ended(usize),
}

/// The blocks so far. The last one may still grow.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    list: Vec<Block>,
    open: bool,
}

impl Blocks {
    pub(crate) fn list(&self) -> &[Block] {
        &self.list
    }

    /// The block that still grows.
    pub(crate) fn open(&self) -> Option<usize> {
        self.list.len().checked_sub(1).filter(|_| self.open)
    }

    /// Takes more of an answer.
    pub(crate) fn hear(&mut self, piece: Piece) -> Vec<Step> {
        let mut steps = Vec::new();
        let text = Some(piece.text).filter(|text| !text.is_empty()).map(ReplyEvent::Content);
        for event in text.into_iter().chain(piece.besides) {
            match event {
                ReplyEvent::Content(text) => {
                    self.say(text, Block::Text(String::new()), &mut steps);
                }
                ReplyEvent::Reasoning(text) => {
                    self.say(text, Block::Thoughts(String::new()), &mut steps);
                }
                ReplyEvent::CallBegin { index, name } => {
                    let arguments = String::new();
                    self.begin(
                        Block::Call { call: index, name, arguments, whole: false },
                        &mut steps,
                    );
                }
                ReplyEvent::CallArguments { fragment, .. } => self.grow(fragment, &mut steps),
                ReplyEvent::CallEnd { .. } => {
                    if let Some(Block::Call { whole, .. }) = self.list.last_mut() {
                        *whole = true;
                    }
                    steps.extend(self.end());
                }
            }
        }
        steps
    }

    /// Begins a block, after the end of the one before.
    pub(crate) fn begin(&mut self, block: Block, steps: &mut Vec<Step>) {
        steps.extend(self.end());
        steps.push(Step::Begun(self.list.len()));
        self.list.push(block);
        self.open = true;
    }

    /// Ends the block that still grows.
    pub(crate) fn end(&mut self) -> Option<Step> {
        let last = self.open()?;
        self.open = false;
        Some(Step::Ended(last))
    }

    fn say(&mut self, text: String, kind: Block, steps: &mut Vec<Step>) {
        let same = |last: &Block| std::mem::discriminant(last) == std::mem::discriminant(&kind);
        if !(self.open && self.list.last().is_some_and(same)) {
            self.begin(kind, steps);
        }
        self.grow(text, steps);
    }

    fn grow(&mut self, more: String, steps: &mut Vec<Step>) {
        let Some(last) = self.open() else { return };
        match &mut self.list[last] {
            Block::Thoughts(text) | Block::Text(text) | Block::Call { arguments: text, .. } => {
                text.push_str(&more);
            }
        }
        steps.push(Step::More(last, more));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beside(event: ReplyEvent) -> Piece {
        Piece { besides: vec![event], ..Piece::default() }
    }

    fn text(text: &str) -> Piece {
        Piece { text: text.into(), ..Piece::default() }
    }

    #[test]
    fn blocks_come_in_the_order_of_the_answer_and_end_where_the_next_begins() {
        let mut blocks = Blocks::default();
        let begin = ReplyEvent::CallBegin { index: 0, name: "f".into() };
        let arguments = ReplyEvent::CallArguments { index: 0, fragment: "{}".into() };
        let pieces = [
            beside(ReplyEvent::Reasoning("hm".into())),
            text("a"),
            text("b"),
            beside(begin),
            beside(arguments),
            beside(ReplyEvent::CallEnd { index: 0 }),
            text("c"),
        ];
        let mut steps: Vec<Step> =
            pieces.into_iter().flat_map(|piece| blocks.hear(piece)).collect();
        steps.extend(blocks.end());
        let more = |block, text: &str| Step::More(block, text.into());
        assert_eq!(
            steps,
            [
                Step::Begun(0),
                more(0, "hm"),
                Step::Ended(0),
                Step::Begun(1),
                more(1, "a"),
                more(1, "b"),
                Step::Ended(1),
                Step::Begun(2),
                more(2, "{}"),
                Step::Ended(2),
                Step::Begun(3),
                more(3, "c"),
                Step::Ended(3),
            ]
        );
        let call = Block::Call { call: 0, name: "f".into(), arguments: "{}".into(), whole: true };
        assert_eq!(
            blocks.list(),
            [Block::Thoughts("hm".into()), Block::Text("ab".into()), call, Block::Text("c".into())]
        );
        assert_eq!(blocks.end(), None);
    }
}
