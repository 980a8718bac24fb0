//! A server that speaks OpenAI's API, whichever it is.

use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::figures::Timed;
use crate::parity::Token;

/// A long prompt on a slow machine takes minutes; an answer may take as long as it goes on coming.
const PATIENCE: Duration = Duration::from_secs(900);
/// Until there is a connection.
const CONNECTING: Duration = Duration::from_secs(30);
/// Alternatives that are asked for at each place.
const BEST: u32 = 5;
/// Most bytes of one line of a stream.
const LONGEST_LINE: u64 = 1 << 20;

/// Why a server was of no use.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// It could not be reached, or the connection broke.
    #[error("{url} cannot be reached ({why}); is the engine running, and the address right?")]
    Unreachable {
        /// Which server.
        url: String,
        /// What went wrong.
        why: String,
    },
    /// It refused.
    #[error("{url} answered {status}: {said}")]
    Refused {
        /// Which server.
        url: String,
        /// The HTTP status.
        status: u16,
        /// Its own words.
        said: String,
    },
    /// It answered what is no answer.
    #[error("{url} answers, but not as OpenAI's API does ({why}); is it another kind of server?")]
    Strange {
        /// Which server.
        url: String,
        /// What is missing.
        why: String,
    },
    /// It serves several models, or not the one that was named.
    #[error("{url} serves {names}; name one of them")]
    WhichModel {
        /// Which server.
        url: String,
        /// What it serves.
        names: String,
    },
    /// The file of certificates has none.
    #[error("there is no certificate in the file that is to be trusted")]
    NoCertificate,
}

/// One server and one of its models.
#[derive(Debug, Clone)]
pub struct Endpoint {
    url: String,
    key: Option<String>,
    model: String,
    agent: ureq::Agent,
}

impl Endpoint {
    /// Asks which models there are; `model` has to be one of them, and may be left out where there is one only. `trusted` are
    /// certificates in PEM, in place of the system's.
    pub fn find(
        url: &str,
        key: Option<&str>,
        model: Option<&str>,
        trusted: Option<&[u8]>,
    ) -> Result<Self, AskError> {
        Self::patient(url, key, model, trusted, PATIENCE)
    }

    fn patient(
        url: &str,
        key: Option<&str>,
        model: Option<&str>,
        trusted: Option<&[u8]>,
        patience: Duration,
    ) -> Result<Self, AskError> {
        let mut config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_resolve(Some(CONNECTING))
            .timeout_connect(Some(CONNECTING))
            .timeout_per_write(Some(patience))
            .timeout_per_read(Some(patience));
        if let Some(pem) = trusted {
            let roots: Vec<_> = ureq::tls::parse_pem(pem)
                .filter_map(|item| match item {
                    Ok(ureq::tls::PemItem::Certificate(certificate)) => Some(certificate),
                    _ => None,
                })
                .collect();
            if roots.is_empty() {
                return Err(AskError::NoCertificate);
            }
            let roots = ureq::tls::RootCerts::new_with_certs(&roots);
            config = config.tls_config(ureq::tls::TlsConfig::builder().root_certs(roots).build());
        }
        let url = url.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        let key = key.map(str::to_owned);
        let mut found = Self { url, key, model: String::new(), agent: config.build().into() };
        let listed = found.get("/v1/models")?;
        let names: Vec<&str> = listed["data"]
            .as_array()
            .ok_or_else(|| found.strange("no list of models"))?
            .iter()
            .filter_map(|model| model["id"].as_str())
            .collect();
        found.model = match (model, &names[..]) {
            (Some(model), names) if names.contains(&model) => model.to_owned(),
            (None, [only]) => (*only).to_owned(),
            _ => {
                let (url, names) = (without_password(&found.url), names.join(", "));
                return Err(AskError::WhichModel { url, names });
            }
        };
        Ok(found)
    }

    /// The model that is asked for.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// What the server says that it is: vLLM tells its version.
    pub fn version(&self) -> Option<String> {
        let told = self.get("/version").ok()?;
        told["version"].as_str().map(|version| version.chars().take(40).collect())
    }

    /// A greedy answer with the logprobs of its tokens.
    pub fn answer(&self, prompt: &str, tokens: u32) -> Result<Vec<Token>, AskError> {
        let mut body = self.body(prompt, tokens);
        body["logprobs"] = json!(true);
        body["top_logprobs"] = json!(BEST);
        let mut response = self.post(&body)?;
        let text = response.body_mut().read_to_string().map_err(|e| self.unreachable(&e))?;
        let told: Value = serde_json::from_str(&text).map_err(|_| self.strange("no JSON"))?;
        let content = told["choices"][0]["logprobs"]["content"].as_array();
        let content = content.ok_or_else(|| self.strange("no logprobs of the answer's tokens"))?;
        let text = |at: &Value| at["token"].as_str().unwrap_or_default().to_owned();
        let one = |at: &Value| Token {
            token: text(at),
            logprob: at["logprob"].as_f64(),
            top: at["top_logprobs"].as_array().map_or_else(Vec::new, |top| {
                top.iter().filter_map(|t| Some((text(t), t["logprob"].as_f64()?))).collect()
            }),
        };
        Ok(content.iter().map(one).collect())
    }

    /// An answer of exactly so many tokens, as it comes.
    pub fn stream(&self, prompt: &str, tokens: u32) -> Result<Timed, AskError> {
        let mut body = self.body(prompt, tokens);
        body["stream"] = json!(true);
        body["stream_options"] = json!({ "include_usage": true });
        body["ignore_eos"] = json!(true);
        let asked = Instant::now();
        let response = self.post(&body)?;
        let mut lines = BufReader::new(response.into_body().into_reader());
        let (mut first, mut last, mut gaps) = (None, asked, Vec::new());
        let (mut pieces, mut counted, mut ended) = (0, None, false);
        let mut line = Vec::new();
        while !ended {
            line.clear();
            let mut piece = std::io::Read::take(&mut lines, LONGEST_LINE);
            if piece.read_until(b'\n', &mut line).map_err(|e| self.unreachable(&e))? == 0 {
                return Err(self.unreachable(&"the answer broke off"));
            }
            let Some(data) = line.strip_prefix(b"data:") else { continue };
            let now = Instant::now();
            if data.trim_ascii() == b"[DONE]" {
                ended = true;
                continue;
            }
            let event: Value =
                serde_json::from_slice(data).map_err(|_| self.strange("an event is no JSON"))?;
            if let Some(said) = event["error"]["message"].as_str() {
                return Err(self.refused(200, said));
            }
            if let Some(tokens) = event["usage"]["completion_tokens"].as_u64() {
                counted = u32::try_from(tokens).ok();
            }
            let delta = &event["choices"][0]["delta"];
            let says = |field: &str| delta[field].as_str().is_some_and(|text| !text.is_empty());
            // Thoughts are tokens too.
            if says("content") || says("reasoning_content") || says("reasoning") {
                match first {
                    None => first = Some((now - asked).as_secs_f64()),
                    Some(_) => gaps.push((now - last).as_secs_f64()),
                }
                pieces += 1;
                last = now;
            }
        }
        let first = first.ok_or_else(|| self.strange("an answer without words"))?;
        Ok(Timed { first, gaps, tokens: counted.unwrap_or(pieces) })
    }

    /// The tokens that a prompt takes.
    pub fn count(&self, prompt: &str) -> Result<u32, AskError> {
        let mut response = self.post(&self.body(prompt, 1))?;
        let text = response.body_mut().read_to_string().map_err(|e| self.unreachable(&e))?;
        let told: Value = serde_json::from_str(&text).map_err(|_| self.strange("no JSON"))?;
        let count = told["usage"]["prompt_tokens"].as_u64().and_then(|n| u32::try_from(n).ok());
        count.ok_or_else(|| self.strange("no count of tokens"))
    }

    fn body(&self, prompt: &str, tokens: u32) -> Value {
        json!({ "model": self.model, "messages": [{ "role": "user", "content": prompt }],
                "temperature": 0, "max_tokens": tokens })
    }

    fn get(&self, path: &str) -> Result<Value, AskError> {
        let mut request = self.agent.get(format!("{}{path}", self.url));
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let response = self.checked(request.call())?;
        let text = response.into_body().read_to_string().map_err(|e| self.unreachable(&e))?;
        serde_json::from_str(&text).map_err(|_| self.strange("no JSON"))
    }

    fn post(&self, body: &Value) -> Result<ureq::http::Response<ureq::Body>, AskError> {
        let mut request = self.agent.post(format!("{}/v1/chat/completions", self.url));
        request = request.header("content-type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        self.checked(request.send(body.to_string()))
    }

    fn checked(
        &self,
        answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<ureq::http::Response<ureq::Body>, AskError> {
        let mut response = answer.map_err(|e| self.unreachable(&e))?;
        let status = response.status().as_u16();
        if status == 200 {
            return Ok(response);
        }
        let text = response.body_mut().read_to_string().unwrap_or_default();
        let told: Value = serde_json::from_str(&text).unwrap_or_default();
        Err(self.refused(status, told["error"]["message"].as_str().unwrap_or("no reason given")))
    }

    fn unreachable(&self, why: &dyn std::fmt::Display) -> AskError {
        let url = without_password(&self.url);
        let mut why = why.to_string();
        if let Some(secret) = password(&self.url) {
            why = why.replace(secret, "");
        }
        AskError::Unreachable { url, why }
    }

    fn refused(&self, status: u16, said: &str) -> AskError {
        let said = said.chars().filter(|c| !c.is_control()).take(300).collect();
        AskError::Refused { url: without_password(&self.url), status, said }
    }

    fn strange(&self, why: &str) -> AskError {
        AskError::Strange { url: without_password(&self.url), why: why.to_owned() }
    }
}

/// The name and password of an address, with the @ behind them. Up to the last @, as one may be in a password.
fn password(url: &str) -> Option<&str> {
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url.rfind('@')?;
    url.get(start..=end)
}

/// An address as it may be shown.
pub fn without_password(url: &str) -> String {
    match password(url) {
        Some(secret) => url.replacen(secret, "", 1),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn passwords_of_addresses_are_not_shown() {
        for (url, shown) in [
            ("https://box.local:8443", "https://box.local:8443"),
            ("http://me:s3cret@box:80/v1", "http://box:80/v1"),
            ("http://me:s3@cr/et@box", "http://box"),
            ("me:s3cret@box", "box"),
            ("@", ""),
        ] {
            assert_eq!(without_password(url), shown);
        }
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        for url in [format!("http://me:s3cret@{closed}"), "http://me:s3cret@a b".to_owned()] {
            let said = Endpoint::find(&url, None, None, None).unwrap_err().to_string();
            assert!(!said.contains("s3cret"), "{said}");
        }
    }

    #[test]
    fn a_slow_answer_that_goes_on_coming_is_waited_for() {
        let door = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", door.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let list = r#"{"data":[{"id":"m"}]}"#;
            let head = "HTTP/1.1 200 OK\r\nconnection: close\r\n";
            let listed = format!("{head}content-length: {}\r\n\r\n{list}", list.len());
            let answer = format!("{head}content-type: text/event-stream\r\n\r\n");
            let word = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
            for first in [&listed, &answer] {
                let (mut asked, _) = door.accept().unwrap();
                let _ = asked.read(&mut [0; 4096]).unwrap();
                asked.write_all(first.as_bytes()).unwrap();
                if first == &answer {
                    for _ in 0..8 {
                        std::thread::sleep(Duration::from_millis(100));
                        asked.write_all(word.as_bytes()).unwrap();
                    }
                    asked.write_all(b"data: [DONE]\n\n").unwrap();
                }
            }
        });
        // Longer than its patience altogether, and no piece of it.
        let patience = Duration::from_millis(400);
        let found = Endpoint::patient(&url, None, None, None, patience).unwrap();
        assert_eq!(found.stream("x", 8).unwrap().tokens, 8);
        server.join().unwrap();
    }
}
