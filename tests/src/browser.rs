use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fantoccini::{Client, ClientBuilder, Locator};
use serde_json::json;

use crate::running::{free_port, scaled, screenshots};

/// Chromium makes no window narrower than this; what is narrower has to be pretended.
const NARROWEST_WINDOW: u32 = 500;
/// How long a page may take to show something.
const PATIENCE: Duration = Duration::from_secs(60);

/// A person in front of Debian's Chromium, headless.
pub struct Browser {
    client: Client,
    width: u32,
    driver: Driver,
    shots: PathBuf,
    profile: tempfile::TempDir,
}

struct Driver(Child);
impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Browser {
    /// Opens a window of this size; `dark` asks for a dark page, `scripts` allows JavaScript.
    pub async fn open(width: u32, height: u32, dark: bool, scripts: bool) -> Self {
        Self::open_with(width, height, dark, scripts, &[]).await
    }

    /// Opens a window of somebody who clicks through the warning about a certificate that nobody vouches for.
    pub async fn open_whatever_the_certificate(width: u32, height: u32) -> Self {
        Self::open_with(width, height, false, true, &["--ignore-certificate-errors"]).await
    }

    async fn open_with(width: u32, height: u32, dark: bool, scripts: bool, more: &[&str]) -> Self {
        let port = free_port();
        let driver = Command::new("chromedriver")
            .arg(format!("--port={port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver is installed (make test installs it)");
        let driver = Driver(driver);
        let profile = tempfile::tempdir().expect("a temporary folder can be made");
        let mut arguments = vec![
            "--headless".to_owned(),
            "--no-sandbox".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-quic".to_owned(),
            "--no-first-run".to_owned(),
            "--disable-background-networking".to_owned(),
            "--disable-component-update".to_owned(),
            "--disable-sync".to_owned(),
            format!("--user-data-dir={}", profile.path().display()),
            format!("--window-size={width},{height}"),
        ];
        arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        if dark {
            arguments.push("--force-dark-mode".to_owned());
            arguments.push("--blink-settings=preferredColorScheme=0".to_owned());
        }
        let mut options = json!({ "args": arguments });
        if width < NARROWEST_WINDOW {
            let screen = json!({ "width": width, "height": height, "pixelRatio": 1.0, "mobile": false, "touch": false });
            options["mobileEmulation"] = json!({ "deviceMetrics": screen });
        }
        options["prefs"] = json!({ "download.default_directory": profile.path().join("saved") });
        if !scripts {
            options["prefs"]["profile.managed_default_content_settings.javascript"] = json!(2);
        }
        let capabilities = [("goog:chromeOptions".to_owned(), options)].into_iter().collect();
        let begun = Instant::now();
        let client = loop {
            let mut builder =
                ClientBuilder::new(hyper_util::client::legacy::connect::HttpConnector::new());
            builder.capabilities(fantoccini::wd::Capabilities::clone(&capabilities));
            match builder.connect(&format!("http://127.0.0.1:{port}")).await {
                Ok(client) => break client,
                Err(error) if begun.elapsed() > scaled(PATIENCE) => {
                    panic!("no browser session: {error}")
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        };
        Self { client, width, driver, shots: screenshots(), profile }
    }

    /// Goes to an address.
    pub async fn visit(&self, url: &str) {
        self.client.goto(url).await.expect("the page loads");
    }

    /// Where it is now.
    pub async fn place(&self) -> String {
        self.client.current_url().await.expect("a page has an address").to_string()
    }

    /// Waits until the address contains `part`.
    pub async fn at(&self, part: &str) {
        let begun = Instant::now();
        while !self.place().await.contains(part) {
            if begun.elapsed() > scaled(PATIENCE) {
                self.picture("stuck").await;
                panic!(
                    "waited for {part:?}, still at {}:\n{}",
                    self.place().await,
                    self.words().await
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until something on the page matches.
    pub async fn see(&self, css: &str) {
        let found =
            self.client.wait().at_most(scaled(PATIENCE)).for_element(Locator::Css(css)).await;
        if found.is_err() {
            self.picture("stuck").await;
            panic!("no {css:?} at {}:\n{}", self.place().await, self.words().await);
        }
    }

    /// Waits until the page says `words`.
    pub async fn hear(&self, words: &str) {
        let begun = Instant::now();
        while !self.words().await.contains(words) {
            if begun.elapsed() > scaled(PATIENCE) {
                self.picture("stuck").await;
                panic!("waited for {words:?} at {}:\n{}", self.place().await, self.words().await);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Everything the page says.
    pub async fn words(&self) -> String {
        match self.client.find(Locator::Css("body")).await {
            Ok(body) => body.text().await.unwrap_or_default(),
            Err(_) => String::new(),
        }
    }

    /// Whether the page has such an element just now.
    pub async fn shows(&self, css: &str) -> bool {
        self.client.find(Locator::Css(css)).await.is_ok()
    }

    /// Types into the field of this name.
    pub async fn fill(&self, name: &str, text: &str) {
        self.fill_first(&format!("[name='{name}']"), text).await;
    }

    /// Types into the first field that matches.
    pub async fn fill_first(&self, css: &str, text: &str) {
        self.see(css).await;
        let field = self.client.find(Locator::Css(css)).await.expect("it was seen");
        field.clear().await.expect("a field can be emptied");
        field.send_keys(text).await.expect("a field can be typed into");
    }

    /// Presses the button or link with these words.
    pub async fn press(&self, words: &str) {
        let path = format!(
            "//*[self::button or self::a or self::summary or self::label][normalize-space()={words:?}]"
        );
        let found =
            self.client.wait().at_most(scaled(PATIENCE)).for_element(Locator::XPath(&path)).await;
        let Ok(button) = found else {
            self.picture("stuck").await;
            panic!(
                "nothing to press says {words:?} at {}:\n{}",
                self.place().await,
                self.words().await
            )
        };
        // What is folded away cannot be pressed; the same words may be on the page as well.
        let mut all = self.client.find_all(Locator::XPath(&path)).await.expect("there was one");
        all.insert(0, button);
        for seen in all {
            if seen.is_displayed().await.unwrap_or(false) {
                return seen.click().await.expect("a button can be pressed");
            }
        }
        panic!("{words:?} is folded away at {}", self.place().await);
    }

    /// Presses the first button that matches.
    pub async fn press_first(&self, css: &str) {
        let begun = Instant::now();
        loop {
            self.see(css).await;
            // It may have been seen on a page that another one is just taking the place of.
            let found = self.client.find(Locator::Css(css)).await;
            if found.is_ok() || begun.elapsed() > scaled(PATIENCE) {
                let button = found.expect("it was seen");
                return button.click().await.expect("a button can be pressed");
            }
        }
    }

    /// Chooses a file of this computer.
    pub async fn choose(&self, css: &str, file: &Path) {
        self.see(css).await;
        let field = self.client.find(Locator::Css(css)).await.expect("it was seen");
        let path = file.to_str().expect("a path that can be typed");
        field.send_keys(path).await.expect("a file can be chosen");
    }

    /// Waits until the browser has saved a file of this name, and reads it.
    pub async fn saved(&self, name: &str) -> String {
        let (path, begun) = (self.profile.path().join("saved").join(name), Instant::now());
        loop {
            match std::fs::read_to_string(&path) {
                Ok(text) if !text.is_empty() => return text,
                _ if begun.elapsed() > PATIENCE => panic!("{name} was not saved"),
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// Presses the button that says this to somebody who hears the page.
    pub async fn press_labelled(&self, label: &str) {
        let css = format!("[aria-label={label:?}]");
        self.see(&css).await;
        let button = self.client.find(Locator::Css(&css)).await.expect("it was seen");
        button.click().await.expect("a button can be pressed");
    }

    /// Says yes to the browser's own question.
    pub async fn agree(&self) {
        self.client.accept_alert().await.expect("the page asks");
    }

    /// The value or text of the first match.
    pub async fn read(&self, css: &str) -> String {
        self.see(css).await;
        let element = self.client.find(Locator::Css(css)).await.expect("it was seen");
        match element.prop("value").await.ok().flatten() {
            Some(value) if !value.is_empty() => value,
            _ => element.text().await.expect("an element has a text"),
        }
    }

    /// Moves the page so that the first match is in the window.
    pub async fn look_at(&self, css: &str) {
        self.see(css).await;
        let script = "document.querySelector(arguments[0]).scrollIntoView({block: 'center'})";
        self.client.execute(script, vec![css.into()]).await.expect("the page can be moved");
    }

    /// Chooses from the first list that matches.
    pub async fn select(&self, css: &str, label: &str) {
        self.see(css).await;
        let list = self.client.find(Locator::Css(css)).await.expect("it was seen");
        list.select_by_label(label).await.expect("the list has it");
    }

    /// Leaves a picture under `target/screenshots`.
    pub async fn picture(&self, name: &str) {
        let picture = self.client.screenshot().await.expect("a page can be pictured");
        std::fs::write(self.shots.join(format!("{name}.png")), picture)
            .expect("target/ is writable");
    }

    /// Fails when the page is wider than its window: somebody would have to scroll sideways.
    pub async fn fits_its_window(&self) {
        let wide = self
            .client
            .execute("return [document.documentElement.scrollWidth, window.innerWidth]", Vec::new())
            .await
            .expect("the page can be measured");
        let (page, window) = (wide[0].as_f64(), wide[1].as_f64());
        assert_eq!(
            window,
            Some(f64::from(self.width)),
            "the window is not as wide as it should be"
        );
        assert!(
            page <= window.map(|w| w + 1.0),
            "{} is {page:?} wide in {window:?}",
            self.place().await
        );
    }

    /// Fails where somebody who cannot see or point is left out: a field without a name, a picture
    /// without words, an identifier used twice, a page without one first heading or a language; text
    /// too small for the screen, something to press that a finger misses, a page that is not in the
    /// middle.
    pub async fn is_usable_by_ear_and_keyboard(&self) {
        let script = r#"
            const faults = [];
            const named = e => (e.labels && e.labels.length) || e.getAttribute('aria-label')
                || e.getAttribute('aria-labelledby') || e.textContent.trim() || e.title;
            for (const e of document.querySelectorAll('input:not([type=hidden]), select, textarea, button, a[href], progress'))
                if (!named(e)) faults.push('no name: ' + e.outerHTML.slice(0, 120));
            for (const e of document.querySelectorAll('img:not([alt]), svg:not([aria-hidden]):not([role])'))
                faults.push('no words: ' + e.outerHTML.slice(0, 120));
            for (const e of document.querySelectorAll('[tabindex]'))
                if (e.tabIndex > 0) faults.push('jumps the order: ' + e.outerHTML.slice(0, 120));
            if (document.querySelectorAll('h1').length !== 1) faults.push('not one h1');
            if (!document.documentElement.lang) faults.push('no language');
            const ids = [...document.querySelectorAll('[id]')].map(e => e.id);
            for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) faults.push('twice: #' + id);
            const shown = e => e.checkVisibility() && !e.closest('.hidden-visually, .skip')
                && e.getBoundingClientRect().width > 1;
            const smallest = Math.max(12, innerWidth / 210);
            for (const e of document.querySelectorAll('body *'))
                if (shown(e) && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())
                    && parseFloat(getComputedStyle(e).fontSize) < smallest)
                    faults.push('too small: ' + getComputedStyle(e).fontSize + ' ' + e.outerHTML.slice(0, 120));
            for (const e of document.querySelectorAll('button, select, .button, input:not([type=hidden], [type=checkbox], [type=radio])'))
                if (shown(e) && e.getBoundingClientRect().height < 24) faults.push('too low: ' + e.outerHTML.slice(0, 120));
            const main = document.querySelector('main').getBoundingClientRect();
            if (Math.abs(main.left - (document.documentElement.clientWidth - main.right)) > 2) faults.push('not in the middle');
            return faults;"#;
        let faults = self.client.execute(script, Vec::new()).await.expect("the page can be read");
        let faults: HashSet<String> = faults
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|f| f.as_str().map(str::to_owned))
            .collect();
        assert!(faults.is_empty(), "{}: {faults:#?}", self.place().await);
    }

    /// Closes the window.
    pub async fn close(self) {
        let _ = self.client.close().await;
        drop(self.driver);
    }
}
