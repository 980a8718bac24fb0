//! Listens to an engine's streamed answer. Pure: bytes in, text out.

use serde_json::Value;

/// An answer longer than this is cut off: no page could show it.
const LONGEST: usize = 2 << 20;
/// A line longer than this is no line of an answer.
const LONGEST_LINE: usize = 1 << 20;

/// Collects server-sent events of `/v1/chat/completions`.
#[derive(Default)]
pub(super) struct Listener {
    line: Vec<u8>,
    text: String,
    written: Option<u64>,
    thinks: bool,
    finish: Option<String>,
    done: bool,
    trouble: Option<String>,
}

impl Listener {
    /// Takes the next bytes, cut anywhere.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if self.is_over() {
                return;
            }
            if *byte != b'\n' {
                self.line.push(*byte);
                if self.line.len() > LONGEST_LINE {
                    self.trouble = Some("the model's answer could not be understood".into());
                }
                continue;
            }
            let line = std::mem::take(&mut self.line);
            if let Ok(line) = std::str::from_utf8(&line)
                && let Some(data) = line.trim_end_matches('\r').strip_prefix("data:")
            {
                self.data(data.trim());
            }
        }
    }

    fn data(&mut self, data: &str) {
        if data == "[DONE]" {
            self.done = true;
            return;
        }
        let Ok(value) = serde_json::from_str::<Value>(data) else { return };
        if let Some(why) = value["error"]["message"].as_str() {
            self.trouble = Some(why.to_owned());
            return;
        }
        let choice = &value["choices"][0];
        if let Some(piece) = choice["delta"]["content"].as_str()
            && !piece.is_empty()
        {
            self.text.push_str(piece);
        }
        if choice["delta"]["reasoning_content"].as_str().is_some_and(|t| !t.is_empty()) {
            self.thinks = true;
        }
        if let Some(finish) = choice["finish_reason"].as_str() {
            self.finish = Some(finish.to_owned());
        }
        if let Some(n) = value["usage"]["completion_tokens"].as_u64() {
            self.written = Some(n);
        }
        if self.text.len() > LONGEST {
            self.finish = Some("length".into());
            self.done = true;
        }
    }

    /// The engine's end of the line broke.
    pub(super) fn broke(&mut self) {
        self.trouble.get_or_insert_with(|| {
            "the model stopped in the middle of its answer; try again".into()
        });
    }

    /// Nothing more is to come.
    pub(super) fn is_over(&self) -> bool {
        self.done || self.trouble.is_some()
    }

    /// The answer so far.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// The model has begun to think for itself.
    pub(super) fn thinks(&self) -> bool {
        self.thinks
    }

    /// Tokens of the answer, once the engine has said so.
    pub(super) fn written(&self) -> Option<u64> {
        self.written
    }

    /// How it ended: the engine's word for it, or a sentence of what went wrong.
    pub(super) fn end(&self) -> Result<&str, String> {
        match (&self.trouble, &self.finish, self.done) {
            (Some(why), ..) => Err(why.clone()),
            (None, Some(finish), _) => Ok(finish),
            (None, None, true) => Ok("stop"),
            (None, None, false) => {
                Err("the model stopped in the middle of its answer; try again".into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\"}}]}\n\n\
        : a comment\n\n\
        data: {\"choices\":[{\"delta\":{\"content\":\"Grü\"}}]}\r\n\r\n\
        data: {\"choices\":[{\"delta\":{\"content\":\"ße\"},\"finish_reason\":\"stop\"}]}\n\n\
        data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2}}\n\n\
        data: [DONE]\n\n";

    #[test]
    fn an_answer_cut_anywhere_is_heard_whole() {
        for size in 1..40 {
            let mut listener = Listener::default();
            for piece in STREAM.as_bytes().chunks(size) {
                listener.push(piece);
            }
            assert_eq!(listener.text(), "Grüße");
            assert_eq!(listener.end(), Ok("stop"));
            assert_eq!(listener.written(), Some(2));
        }
    }

    #[test]
    fn an_answer_that_breaks_off_says_so() {
        let mut listener = Listener::default();
        listener.push(b"data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n");
        assert!(listener.end().unwrap_err().contains("middle"));
        listener.push(b"data: {\"error\":{\"message\":\"the engine was stopped\"}}\n\n");
        assert_eq!(listener.end().unwrap_err(), "the engine was stopped");
    }

    #[test]
    fn a_line_without_end_is_not_kept_for_ever() {
        let mut listener = Listener::default();
        for _ in 0..(LONGEST_LINE / 1000 + 2) {
            listener.push(&[b'x'; 1000]);
        }
        assert!(listener.is_over() && listener.line.len() <= LONGEST_LINE + 1);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, tail in "data: [\\[\\]{}\":a-z0-9,]{0,40}\n") {
            let mut listener = Listener::default();
            listener.push(&bytes);
            listener.push(tail.as_bytes());
            let _ = (listener.end(), listener.text().len());
        }
    }
}
