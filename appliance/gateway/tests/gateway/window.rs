//! A real browser: Debian's Chromium, headless, told what to do through its driver with curl.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::surfer::{free_port, listens};

/// Chromium starts slowly on a machine that builds beside it.
const PATIENCE: Duration = Duration::from_secs(90);

pub(crate) struct Window {
    driver: Child,
    at: String,
    _profile: TempDir,
}

impl Window {
    pub(crate) fn open() -> Self {
        let (port, profile) = (free_port(), tempfile::tempdir().unwrap());
        let driver = Command::new("chromedriver")
            .arg(format!("--port={port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver is installed (make test installs it)");
        listens(port);
        let folder = format!("--user-data-dir={}", profile.path().display());
        let arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", &folder];
        let wish = json!({ "capabilities": { "alwaysMatch": {
            "goog:chromeOptions": { "args": arguments }
        } } });
        let mut window =
            Self { driver, at: format!("http://127.0.0.1:{port}/session"), _profile: profile };
        let opened = window.ask("POST", "", &wish);
        let id = opened["sessionId"].as_str().unwrap_or_else(|| panic!("no window: {opened}"));
        window.at = format!("{}/{id}", window.at);
        window
    }

    pub(crate) fn visit(&self, url: &str) {
        self.ask("POST", "/url", &json!({ "url": url }));
    }

    /// Where it is, when that contains `part`.
    pub(crate) fn at(&self, part: &str) -> String {
        self.wait(part, |window| {
            let url = window.ask("GET", "/url", &Value::Null);
            url.as_str().filter(|url| url.contains(part)).map(str::to_owned)
        })
    }

    /// What the page says, when that contains `words`.
    pub(crate) fn hear(&self, words: &str) -> String {
        self.wait(words, |window| {
            let script = json!({ "script": "return document.body.innerText", "args": [] });
            let text = window.ask("POST", "/execute/sync", &script);
            text.as_str().filter(|text| text.contains(words)).map(str::to_owned)
        })
    }

    pub(crate) fn fill(&self, css: &str, text: &str) {
        let element = self.find("css selector", css);
        self.ask("POST", &format!("/element/{element}/value"), &json!({ "text": text }));
    }

    pub(crate) fn press(&self, how: &str, what: &str) {
        let element = self.find(how, what);
        self.ask("POST", &format!("/element/{element}/click"), &json!({}));
    }

    fn find(&self, how: &str, what: &str) -> String {
        self.wait(what, |window| {
            let found = window.ask("POST", "/element", &json!({ "using": how, "value": what }));
            let id = found.as_object()?.values().next()?.as_str()?;
            found.get("error").is_none().then(|| id.to_owned())
        })
    }

    fn wait<T>(&self, what: &str, look: impl Fn(&Self) -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            if begun.elapsed() > PATIENCE {
                let page = self.ask("GET", "/source", &Value::Null);
                panic!("waited for {what:?} at {}: {page}", self.ask("GET", "/url", &Value::Null));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn ask(&self, method: &str, path: &str, what: &Value) -> Value {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--noproxy", "*", "--max-time", "120", "-X", method]);
        if method == "POST" {
            curl.args(["-H", "content-type: application/json", "-d", &what.to_string()]);
        }
        let done = curl.arg(format!("{}{path}", self.at)).output().expect("curl is installed");
        let said: Value = serde_json::from_slice(&done.stdout).unwrap_or_default();
        said["value"].clone()
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.ask("DELETE", "", &Value::Null);
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
