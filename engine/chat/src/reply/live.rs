//! Arguments that are sent on as they come.

use super::call::Emit;
use super::json::{Fed, Json};
use super::marker::{Seen, Watch};

/// Sends a JSON object on; what turns out to be none, up to a marker.
#[derive(Debug)]
pub(super) struct LiveArguments {
    json: Json,
    end: &'static str,
    spoiled: Option<Watch>,
}

/// How far the arguments are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Live {
    /// They go on.
    On,
    /// They were whole with this character.
    Ended,
    /// They were no JSON, and their marker came.
    EndedByMarker,
}

impl LiveArguments {
    /// `end` ends arguments that are no JSON; where it is empty nothing does.
    pub(super) fn new(end: &'static str) -> Self {
        Self { json: Json::new(), end, spoiled: None }
    }

    /// Takes one character; the first is the opening bracket.
    pub(super) fn feed(&mut self, character: char, emit: &mut Emit) -> Live {
        if self.spoiled.is_none() {
            let spelled = self.json.spell(character);
            match self.json.feed(character) {
                Fed::Wrong => self.spoiled = Some(Watch::new([self.end])),
                fed => {
                    emit.arguments(&spelled);
                    return if fed == Fed::Ended { Live::Ended } else { Live::On };
                }
            }
        }
        for seen in self.spoiled.iter_mut().flat_map(|watch| watch.feed(character)) {
            match seen {
                Seen::Plain(plain) => emit.arguments(plain.encode_utf8(&mut [0; 4])),
                Seen::Marker(_) => return Live::EndedByMarker,
            }
        }
        Live::On
    }

    /// Nothing follows.
    pub(super) fn finish(&mut self, emit: &mut Emit) {
        if let Some(watch) = &mut self.spoiled {
            emit.arguments(&watch.finish());
        }
    }
}
