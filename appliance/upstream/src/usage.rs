//! Listens to an answer for what it used, without holding it up. Pure: bytes in, bytes out.

use bytes::Bytes;
use serde_json::Value;

use crate::price::Price;
use crate::told::Told;

/// No question and no answer has more tokens: a server that says so is wrong, and its figures must not break the books.
pub const MOST_TOKENS: u64 = 1 << 30;
/// An event longer than this is passed on unread.
const LONGEST_EVENT: usize = 1 << 20;
/// An answer that is no stream and longer than this is passed on unread.
const LONGEST_WHOLE: usize = 8 << 20;

/// What an answer used, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Read, those kept from before too.
    pub prompt: u64,
    /// Written.
    pub completion: u64,
    /// Of those read: kept from before.
    pub cached: u64,
    /// Of those read: kept from now on for some minutes, which may cost more.
    pub written: u64,
    /// Of those read: kept from now on for an hour.
    pub written_long: u64,
}

impl Usage {
    /// The same, as far as it goes together: no less was read than its parts are. Of figures that cannot be, the dearer count: a server that
    /// says that it keeps more than it read charges for what it keeps.
    pub(crate) fn sane(self) -> Self {
        let parts = self.cached.saturating_add(self.written).saturating_add(self.written_long);
        Self { prompt: self.prompt.max(parts), ..self }
    }
}

/// Hears an answer.
#[derive(Debug)]
pub(crate) struct Listener {
    events: bool,
    /// Leave out the event that only says what was used.
    hide_usage: bool,
    /// What must not reach a client: the key that the server was asked with.
    secret: Option<String>,
    /// Of figures that differ the dearer count, by this.
    price: Price,
    held: Vec<u8>,
    /// Where the present line begins in what is held.
    line: usize,
    /// Too long to be held: passed on until it is over.
    passing: bool,
    told: Told,
    /// Events with something in them.
    pieces: u64,
    bytes: u64,
}

impl Listener {
    pub(crate) fn new(
        events: bool,
        hide_usage: bool,
        secret: Option<String>,
        price: Price,
    ) -> Self {
        let secret = secret.filter(|secret| secret.len() >= 8);
        Self {
            events,
            hide_usage,
            secret,
            price,
            held: Vec::new(),
            line: 0,
            passing: false,
            told: Told::default(),
            pieces: 0,
            bytes: 0,
        }
    }

    /// Takes the next bytes, cut anywhere, and gives those that may go on.
    pub(crate) fn push(&mut self, data: &[u8]) -> Bytes {
        self.bytes += data.len() as u64;
        if !self.events {
            return self.push_whole(data);
        }
        let mut out = Vec::with_capacity(self.held.len() + data.len());
        for byte in data {
            self.held.push(*byte);
            if *byte != b'\n' {
                if self.held.len() >= LONGEST_EVENT {
                    self.passing = true;
                    out.append(&mut self.held);
                    self.line = 0;
                }
                continue;
            }
            let blank =
                self.held[self.line..].trim_ascii().is_empty() && (self.line > 0 || !self.passing);
            self.line = self.held.len();
            if blank {
                let event = std::mem::take(&mut self.held);
                self.line = 0;
                match std::mem::take(&mut self.passing) {
                    true => out.extend_from_slice(&event),
                    false => self.event(event, &mut out),
                }
            }
        }
        Bytes::from(out)
    }

    fn push_whole(&mut self, data: &[u8]) -> Bytes {
        if self.passing {
            return Bytes::copy_from_slice(data);
        }
        self.held.extend_from_slice(data);
        if self.held.len() > LONGEST_WHOLE {
            self.passing = true;
            return Bytes::from(std::mem::take(&mut self.held));
        }
        Bytes::new()
    }

    /// What is left when the answer is over.
    pub(crate) fn end(&mut self) -> Bytes {
        let held = std::mem::take(&mut self.held);
        self.line = 0;
        if self.events {
            let mut out = Vec::new();
            match self.passing {
                true => out = held,
                false => self.event(held, &mut out),
            }
            return Bytes::from(out);
        }
        if let Ok(value) = serde_json::from_slice::<Value>(&held) {
            self.told.take(&value, &self.price);
        }
        Bytes::from(self.without_secret(held))
    }

    fn event(&mut self, event: Vec<u8>, out: &mut Vec<u8>) {
        let data = event
            .split(|byte| *byte == b'\n')
            .find_map(|line| line.trim_ascii().strip_prefix(b"data:"))
            .map(<[u8]>::trim_ascii);
        if let Some(data) = data.filter(|data| data.starts_with(b"{")) {
            self.pieces += 1;
            if contains(data, b"\"usage\"")
                && let Ok(value) = serde_json::from_slice::<Value>(data)
            {
                self.told.take(&value, &self.price);
                let only = value["choices"].as_array().is_some_and(Vec::is_empty);
                if only && value["usage"].is_object() {
                    self.pieces -= 1;
                    if self.hide_usage {
                        return;
                    }
                }
            }
        }
        out.append(&mut self.without_secret(event));
    }

    fn without_secret(&self, text: Vec<u8>) -> Vec<u8> {
        match &self.secret {
            Some(secret) if contains(&text, secret.as_bytes()) => {
                String::from_utf8_lossy(&text).replace(secret.as_str(), "(hidden)").into_bytes()
            }
            _ => text,
        }
    }

    /// What the server said that it used, if it did.
    pub(crate) fn told(&self) -> Option<Usage> {
        self.told.usage(&self.price)
    }

    /// Whether the server said what it read.
    pub(crate) fn told_prompt(&self) -> bool {
        self.told.has_prompt()
    }

    /// What was used, by the look of it: a token in each event, or in every four bytes.
    pub(crate) fn estimate(&self, prompt: u64) -> Usage {
        let completion = if self.events { self.pieces } else { self.bytes / 4 };
        self.told.usage_of(prompt, completion, &self.price)
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hearing(events: bool, hide_usage: bool, secret: Option<String>) -> Listener {
        Listener::new(events, hide_usage, secret, Price::of_tokens())
    }

    const STREAM: &str = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\"}}],\"usage\":null}\n\n\
        : ping\n\n\
        data: {\"choices\":[{\"delta\":{\"content\":\"Hi\"}}]}\r\n\r\n\
        data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":4,\"prompt_tokens_details\":{\"cached_tokens\":3}}}\n\n\
        data: [DONE]\n\n";

    fn heard(listener: &mut Listener, pieces: &[&[u8]]) -> String {
        let mut out = Vec::new();
        pieces.iter().for_each(|piece| out.extend_from_slice(&listener.push(piece)));
        out.extend_from_slice(&listener.end());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_a_stream_used_is_heard_and_left_out_only_for_whoever_did_not_ask() {
        let mut listener = hearing(true, false, None);
        assert_eq!(heard(&mut listener, &[STREAM.as_bytes()]), STREAM);
        let told = Usage { prompt: 9, completion: 4, cached: 3, ..Usage::default() };
        assert_eq!(listener.told(), Some(told));
        let mut hiding = hearing(true, true, None);
        let without = heard(&mut hiding, &[STREAM.as_bytes()]);
        assert!(!without.contains("prompt_tokens") && without.ends_with("data: [DONE]\n\n"));
        assert_eq!((hiding.told(), hiding.estimate(1).completion), (Some(told), 4));
    }

    #[test]
    fn anthropics_words_are_understood_too_and_pieces_are_put_together() {
        let stream = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":5,\"cache_read_input_tokens\":20,\"output_tokens\":1}}}\n\n\
            event: message_delta\ndata: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":17}}\n\n";
        let mut listener = hearing(true, true, None);
        assert_eq!(heard(&mut listener, &[stream.as_bytes()]), stream);
        assert_eq!(
            listener.told(),
            Some(Usage { prompt: 25, completion: 17, cached: 20, ..Usage::default() })
        );
    }

    #[test]
    fn what_is_kept_from_now_on_is_heard_and_no_later_event_makes_less_of_it() {
        let stream = "event: message_start\ndata: {\"message\":{\"usage\":{\"input_tokens\":5,\"cache_read_input_tokens\":20,\
            \"cache_creation_input_tokens\":100,\"cache_creation\":{\"ephemeral_5m_input_tokens\":40,\"ephemeral_1h_input_tokens\":60},\"output_tokens\":1}}}\n\n\
            event: message_delta\ndata: {\"usage\":{\"input_tokens\":5,\"output_tokens\":17}}\n\n";
        let mut listener = hearing(true, true, None);
        heard(&mut listener, &[stream.as_bytes()]);
        let told = Usage { prompt: 125, completion: 17, cached: 20, written: 40, written_long: 60 };
        assert_eq!(listener.told(), Some(told));
        // Only the sum, only the spans, and the words of those who pass on to several.
        for (usage, told) in [
            ("{\"input_tokens\":5,\"cache_creation_input_tokens\":7}", (12, 0, 7, 0)),
            (
                "{\"input_tokens\":5,\"cache_creation\":{\"ephemeral_1h_input_tokens\":7}}",
                (12, 0, 0, 7),
            ),
            (
                "{\"prompt_tokens\":50,\"prompt_tokens_details\":{\"cached_tokens\":20,\"cache_write_tokens\":30}}",
                (50, 20, 30, 0),
            ),
            (
                "{\"input_tokens\":50,\"input_tokens_details\":{\"cached_tokens\":20}}",
                (50, 20, 0, 0),
            ),
        ] {
            let mut listener = hearing(false, true, None);
            heard(&mut listener, &[format!("{{\"usage\":{usage}}}").as_bytes()]);
            let (prompt, cached, written, written_long) = told;
            let told = Usage { prompt, completion: 0, cached, written, written_long };
            assert_eq!(listener.told(), Some(told), "{usage}");
        }
    }

    #[test]
    fn who_says_little_at_the_end_has_not_used_less_than_it_said_before() {
        let told = |events: &[&str]| {
            let mut listener = hearing(true, true, None);
            let stream: String =
                events.iter().map(|usage| format!("data: {{\"usage\":{usage}}}\n\n")).collect();
            heard(&mut listener, &[stream.as_bytes()]);
            listener.told().unwrap()
        };
        let openai = told(&[
            "{\"prompt_tokens\":900,\"completion_tokens\":400}",
            "{\"prompt_tokens\":1,\"completion_tokens\":1,\"total_tokens\":2}",
        ]);
        assert_eq!(openai, Usage { prompt: 900, completion: 400, ..Usage::default() });
        let anthropic = told(&[
            "{\"input_tokens\":5,\"cache_read_input_tokens\":20,\"cache_creation_input_tokens\":100,\"cache_creation\":{\"ephemeral_1h_input_tokens\":60,\"ephemeral_5m_input_tokens\":40},\"output_tokens\":90}",
            "{\"input_tokens\":0,\"cache_read_input_tokens\":0,\"cache_creation_input_tokens\":0,\"cache_creation\":{\"ephemeral_1h_input_tokens\":0},\"output_tokens\":0}",
        ]);
        let all = Usage { prompt: 125, completion: 90, cached: 20, written: 40, written_long: 60 };
        assert_eq!(anthropic, all);
        // What was kept from before makes it cheaper: there the last word counts.
        let kept = |cached: u64| {
            format!(
                "{{\"prompt_tokens\":50,\"prompt_tokens_details\":{{\"cached_tokens\":{cached}}}}}"
            )
        };
        assert_eq!(told(&[&kept(40), &kept(10)]).cached, 10);
    }

    #[test]
    fn a_server_that_keeps_more_than_it_says_that_it_read_charges_for_what_it_keeps() {
        let mut listener = hearing(false, true, None);
        let usage = "{\"prompt_tokens\":5,\"prompt_tokens_details\":{\"cached_tokens\":20,\"cache_write_tokens\":100}}";
        heard(&mut listener, &[format!("{{\"usage\":{usage}}}").as_bytes()]);
        let told = Usage { prompt: 120, cached: 20, written: 100, ..Usage::default() };
        assert_eq!(listener.told(), Some(told));
    }

    #[test]
    fn an_answer_that_is_whole_is_read_whole() {
        let body = "{\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2}}";
        let mut listener = hearing(false, true, None);
        assert_eq!(heard(&mut listener, &[&body.as_bytes()[..9], &body.as_bytes()[9..]]), body);
        assert_eq!(
            listener.told(),
            Some(Usage { prompt: 3, completion: 2, cached: 0, ..Usage::default() })
        );
    }

    #[test]
    fn a_stream_that_is_cut_is_estimated_by_what_was_seen() {
        let mut listener = hearing(true, true, None);
        listener.push(STREAM.split_once(": ping").unwrap().0.as_bytes());
        assert_eq!(listener.told(), None);
        assert_eq!(
            listener.estimate(12),
            Usage { prompt: 12, completion: 1, cached: 0, ..Usage::default() }
        );
    }

    #[test]
    fn a_key_that_a_server_repeats_goes_no_further() {
        let secret = || Some("sk-very-secret".to_owned());
        let text = "data: {\"error\":{\"message\":\"bad key sk-very-secret\"}}\n\n";
        let mut listener = hearing(true, false, secret());
        assert_eq!(
            heard(&mut listener, &[&text.as_bytes()[..40], &text.as_bytes()[40..]]),
            text.replace("sk-very-secret", "(hidden)")
        );
        let mut whole = hearing(false, false, secret());
        assert_eq!(heard(&mut whole, &[b"[\"sk-very", b"-secret\"]"]), "[\"(hidden)\"]");
    }

    #[test]
    fn impossible_figures_are_bounded() {
        let body = format!(
            "{{\"usage\":{{\"prompt_tokens\":{},\"completion_tokens\":-5,\"prompt_tokens_details\":7}}}}",
            u64::MAX
        );
        let mut listener = hearing(false, false, None);
        heard(&mut listener, &[body.as_bytes()]);
        assert_eq!(
            listener.told(),
            Some(Usage { prompt: MOST_TOKENS, completion: 0, cached: 0, ..Usage::default() })
        );
    }

    #[test]
    fn what_has_no_end_is_not_kept() {
        for events in [true, false] {
            let mut listener = hearing(events, true, None);
            let mut passed = 0;
            for _ in 0..20 {
                passed += listener.push(&[b'x'; 1 << 19]).len();
                assert!(listener.held.len() <= LONGEST_WHOLE);
            }
            passed += listener.end().len();
            assert_eq!(passed, 20 << 19, "{events}");
        }
    }

    proptest! {
        #[test]
        fn how_the_bytes_are_cut_does_not_matter(cuts in proptest::collection::vec(0..STREAM.len(), 0..6), hide: bool) {
            let mut cuts = cuts;
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut from = 0;
            for cut in cuts.into_iter().chain([STREAM.len()]) {
                pieces.push(&STREAM.as_bytes()[from..cut]);
                from = cut;
            }
            let (mut whole, mut parts) = (hearing(true, hide, None), hearing(true, hide, None));
            prop_assert_eq!(heard(&mut whole, &[STREAM.as_bytes()]), heard(&mut parts, &pieces));
            prop_assert_eq!(whole.told(), parts.told());
        }

        #[test]
        fn no_bytes_panic_or_are_lost(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..30), 0..10), events: bool) {
            let mut listener = hearing(events, false, None);
            let mut out = Vec::new();
            for piece in &pieces {
                out.extend_from_slice(&listener.push(piece));
            }
            out.extend_from_slice(&listener.end());
            prop_assert_eq!(out, pieces.concat());
        }
    }
}
