use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::running::scaled;

/// A small HTTP client that trusts one certificate.
pub struct Client {
    agent: ureq::Agent,
    url: String,
    key: Option<String>,
}

/// An answer, whatever its status.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body as text.
    pub text: String,
}

/// A streamed answer, event by event.
pub struct Stream {
    lines: std::io::Lines<BufReader<Box<dyn Read + Send>>>,
}

impl Client {
    /// A client for this address, that trusts this file's certificates and nothing else.
    pub fn new(url: &str, ca_file: &Path, key: Option<&str>) -> Self {
        let pem = std::fs::read(ca_file).expect("the CA file can be read");
        let roots: Vec<_> = ureq::tls::parse_pem(&pem)
            .filter_map(|item| match item {
                Ok(ureq::tls::PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            })
            .collect();
        assert!(!roots.is_empty(), "no certificate in {}", ca_file.display());
        let tls = ureq::tls::TlsConfig::builder()
            .root_certs(ureq::tls::RootCerts::new_with_certs(&roots))
            .build();
        let agent = ureq::Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_global(Some(scaled(Duration::from_secs(120))))
            .build()
            .into();
        Self { agent, url: url.to_owned(), key: key.map(str::to_owned) }
    }

    /// Fetches the box's own authority into `file`, as its owner does before they trust it: it must have the
    /// `fingerprint` that the machine's own screen shows.
    pub fn fetch_authority(url: &str, fingerprint: &str, file: &Path) {
        let tls = ureq::tls::TlsConfig::builder().disable_verification(true).build();
        let agent: ureq::Agent = ureq::Agent::config_builder().tls_config(tls).build().into();
        let answer =
            agent.get(format!("{url}/ca.crt")).call().expect("the box gives its certificate");
        let pem = answer.into_body().read_to_vec().expect("a certificate is short");
        let certificate = ureq::tls::Certificate::from_pem(&pem).expect("it is a certificate");
        let digest = Sha256::digest(certificate.der());
        let shown: Vec<String> = digest.iter().map(|byte| format!("{byte:02X}")).collect();
        assert_eq!(shown.join(":"), fingerprint);
        std::fs::write(file, pem).expect("a temporary folder can be written to");
    }

    /// The same box with another key, or none.
    pub fn with_key(&self, key: Option<&str>) -> Self {
        Self { agent: self.agent.clone(), url: self.url.clone(), key: key.map(str::to_owned) }
    }

    /// GET.
    pub fn get(&self, path: &str) -> Answer {
        let mut request = self.agent.get(format!("{}{path}", self.url));
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        answer(request.call().unwrap_or_else(|e| panic!("GET {path}: {e}")))
    }

    /// POST of a JSON document.
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        answer(self.send(path, body).unwrap_or_else(|e| panic!("POST {path}: {e}")))
    }

    /// POST; the answer as a stream of events.
    pub fn stream(&self, path: &str, body: &Value) -> Stream {
        let response = self.send(path, body).unwrap_or_else(|e| panic!("POST {path}: {e}"));
        assert_eq!(response.status(), 200, "{path} did not stream");
        let body: Box<dyn Read + Send> = Box::new(response.into_body().into_reader());
        Stream { lines: BufReader::new(body).lines() }
    }

    /// GET as a browser with this cookie.
    pub fn look(&self, path: &str, cookie: &str) -> Answer {
        let request = self.agent.get(format!("{}{path}", self.url)).header("cookie", cookie);
        answer(request.call().unwrap_or_else(|e| panic!("GET {path}: {e}")))
    }

    /// POST of a form, as a page of the box itself does it.
    pub fn form(&self, path: &str, cookie: &str, fields: &[(&str, &str)]) -> Answer {
        let request = self
            .agent
            .post(format!("{}{path}", self.url))
            .header("cookie", cookie)
            .header("origin", &self.url);
        let fields = fields.iter().copied();
        answer(request.send_form(fields).unwrap_or_else(|e| panic!("POST {path}: {e}")))
    }

    /// Signs in, and gives the browser's cookie.
    pub fn sign_in(&self, name: &str, password: &str) -> String {
        let answer = self.form("/sign-in", "", &[("name", name), ("password", password)]);
        assert_eq!(answer.status, 303, "{}", answer.text);
        let cookie = answer.header("set-cookie").expect("a cookie").to_owned();
        cookie.split(';').next().expect("it has a value").to_owned()
    }

    /// A short, greedy chat.
    pub fn chat(&self, model: &str, words: &str) -> Answer {
        self.post("/v1/chat/completions", &chat(model, words, 12))
    }

    fn send(
        &self,
        path: &str,
        body: &Value,
    ) -> Result<ureq::http::Response<ureq::Body>, ureq::Error> {
        let mut request = self
            .agent
            .post(format!("{}{path}", self.url))
            .header("content-type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        request.send(body.to_string())
    }
}

/// The body of a greedy chat request.
pub fn chat(model: &str, words: &str, tokens: u32) -> Value {
    json!({ "model": model, "temperature": 0, "max_tokens": tokens,
            "messages": [{ "role": "user", "content": words }] })
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("not JSON ({e}): {}", self.text))
    }
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
    /// The words of a chat completion.
    pub fn words(&self) -> String {
        assert_eq!(self.status, 200, "{}", self.text);
        self.json()["choices"][0]["message"]["content"]
            .as_str()
            .expect("a chat answer has content")
            .to_owned()
    }
    /// The sentence of an OpenAI-shaped error.
    pub fn error(&self) -> String {
        self.json()["error"]["message"]
            .as_str()
            .unwrap_or_else(|| panic!("no error in {}", self.text))
            .to_owned()
    }
}

impl Iterator for Stream {
    type Item = Result<String, std::io::Error>;
    /// The data of the next event, comments skipped.
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.lines.next()? {
                Ok(line) => {
                    if let Some(data) = line.strip_prefix("data: ") {
                        return Some(Ok(data.to_owned()));
                    }
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

fn answer(response: ureq::http::Response<ureq::Body>) -> Answer {
    let status = response.status().as_u16();
    let headers = response
        .headers()
        .iter()
        .map(|(n, v)| (n.as_str().to_owned(), v.to_str().unwrap_or_default().to_owned()))
        .collect();
    let body = response.into_body().read_to_vec().expect("the body comes whole");
    // Also what is no text, such as an archive.
    let text = String::from_utf8_lossy(&body).into_owned();
    Answer { status, headers, text }
}
