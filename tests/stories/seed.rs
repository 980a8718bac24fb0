//! Somebody whose machine has no screen opens the page on the stick, without a network, and saves a seed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use polder_seed::Seed;
use polder_stories::{Browser, free_port, polder, send_signal};

fn on_the_stick(name: &str) -> PathBuf {
    let stick = "../image/tree/usr/share/polder/stick";
    Path::new(env!("CARGO_MANIFEST_DIR")).join(stick).join(name).canonicalize().unwrap()
}

async fn page(width: u32) -> Browser {
    let browser = Browser::open(width, 1400, false, true).await;
    browser.visit(&format!("file://{}", on_the_stick("seed.html").display())).await;
    browser
}

async fn made(browser: &Browser) -> Seed {
    browser.press("Make the seed file").await;
    browser.hear("The seed is ready.").await;
    let text = browser.read("#seed").await;
    Seed::parse(&text).unwrap_or_else(|error| panic!("{error}:\n{text}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_on_the_stick_makes_a_seed_that_polder_follows() {
    let browser = page(1000).await;
    browser.is_usable_by_ear_and_keyboard().await;
    browser.fill("disk", " S4EV-NX0N 12 ").await;
    browser.fill("name", "meadow").await;
    browser.hear("https://meadow.local").await;
    let seed = made(&browser).await;
    assert_eq!(seed.disk.as_deref(), Some("S4EV-NX0N 12"));
    assert_eq!(seed.name.unwrap().as_str(), "meadow");
    assert_eq!(seed.network, None);
    assert!(seed.owner.is_some());
    browser.picture("seed-made").await;

    browser.press("Ask me, on a screen or in a browser.").await;
    browser.press("With a code that the machine shows on its screen.").await;
    browser.press("It always has this one:").await;
    browser.fill("address", "192.168.7.20/24").await;
    browser.fill("gateway", "192.168.7.1").await;
    browser.fill("dns", "192.168.7.1, fd00::1").await;
    let seed = made(&browser).await;
    assert_eq!(seed.disk, None);
    assert_eq!(seed.owner, None);
    let network = seed.network.unwrap();
    assert_eq!(
        network.address.to_string(),
        "192.168.7.20/24, with the router 192.168.7.1, asking 192.168.7.1 and fd00::1 for names"
    );
    assert_eq!(network.port, None);
    for (typed, meant) in
        [("enp3s0", "the port enp3s0"), ("52-54-00-12-34-5A", "52:54:00:12:34:5a")]
    {
        browser.fill("port", typed).await;
        let port = made(&browser).await.network.unwrap().port.unwrap().to_string();
        assert!(port.contains(meant), "{port}");
    }
    // What is changed after that is not in the file yet.
    browser.fill("name", "other").await;
    assert!(!browser.words().await.contains("The seed is ready."));
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_says_what_polder_would_refuse() {
    let browser = page(320).await;
    browser.fits_its_window().await;
    browser.press("Make the seed file").await;
    browser.hear("Type the disk's serial number, or choose to be asked.").await;
    browser.fill("disk", "S1").await;
    browser.fill("name", "Our Box").await;
    browser.press("Make the seed file").await;
    browser.hear("A name has 1 to 63 small letters").await;
    browser.fill("name", "box").await;
    browser.press("It always has this one:").await;
    for (address, gateway, words) in [
        ("192.168.7.20", "", "has the length of its network behind it"),
        ("192.168.7.320/24", "", "has the length of its network behind it"),
        ("192.168.7.20/24", "192.168.8.1", "not in the box's own network"),
        ("192.168.7.20/24", "router", "The gateway is an address"),
    ] {
        browser.fill("address", address).await;
        browser.fill("gateway", gateway).await;
        browser.press("Make the seed file").await;
        browser.hear(words).await;
    }
    browser.fill("gateway", "").await;
    browser.fill("port", "the left one").await;
    browser.press("Make the seed file").await;
    browser.hear("A network port is the number on it").await;
    browser.picture("seed-wrong").await;
    browser.close().await;
}

/// A box that a seed was carried to, before its first start.
struct Seeded(std::process::Child);

impl Seeded {
    fn start(state: &Path, port: u16) -> Self {
        let log = std::fs::File::create(state.join("story.log")).unwrap();
        let mut command = polder(&["supervise", "--first-port", &port.to_string(), "--state"]);
        let child = command.arg(state).stdin(Stdio::piped()).stderr(log).spawn().unwrap();
        let begun = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(60), "it does not open its door");
            std::thread::sleep(Duration::from_millis(100));
        }
        Self(child)
    }
}

impl Drop for Seeded {
    fn drop(&mut self) {
        send_signal(self.0.id(), rustix::process::Signal::TERM);
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_saved_the_owners_key_claims_the_box_and_nobody_gets_a_code() {
    let browser = page(1000).await;
    browser.fill("disk", "S1").await;
    browser.fill("name", "meadow").await;
    // Another seed's key first: it is not this box's.
    made(&browser).await;
    browser.press("Save polder-owner-key.json").await;
    let others = browser.saved("polder-owner-key.json").await;
    made(&browser).await;
    browser.press("Save polder-seed.toml").await;
    let seed = browser.saved("polder-seed.toml").await;
    browser.press("Save polder-owner-key.json").await;
    let key = browser.saved("polder-owner-key (1).json").await;

    let state = tempfile::tempdir().unwrap();
    let at = |name: &str| state.path().join(name);
    std::fs::write(at("stick.toml"), &seed).unwrap();
    std::fs::write(at("key.json"), key).unwrap();
    std::fs::write(at("others.json"), others).unwrap();
    let mut take = polder(&["seed", "take", "--state"]);
    take.arg(state.path()).arg("--networks").arg(at("net")).arg(at("stick.toml"));
    assert!(take.status().unwrap().success());
    let port = free_port();
    let _box = Seeded::start(state.path(), port);

    let reopened = polder(&["claim", "reopen", "--state"]).arg(state.path()).output().unwrap();
    let said = String::from_utf8(reopened.stderr).unwrap();
    assert!(!reopened.status.success() && said.contains("owner's key file"), "{said}");

    browser.visit(&format!("http://localhost:{port}/")).await;
    browser.hear("This box came with an owner's key.").await;
    browser.is_usable_by_ear_and_keyboard().await;
    browser.picture("owner-1-claim").await;
    browser.press("Claim this box").await;
    browser.hear("Choose the key file first.").await;
    browser.choose("#key-file", &at("stick.toml")).await;
    browser.press("Claim this box").await;
    browser.hear("That is not a key file").await;
    browser.choose("#key-file", &at("others.json")).await;
    browser.press("Claim this box").await;
    browser.hear("That key file is not this box's").await;
    browser.choose("#key-file", &at("key.json")).await;
    browser.press("Claim this box").await;
    browser.at("/setup/machine").await;
    browser.close().await;

    // Another browser with the same file goes on where the first was; one without it gets nowhere.
    let second = Browser::open(320, 700, false, true).await;
    second.visit(&format!("http://localhost:{port}/setup/machine")).await;
    second.hear("This box came with an owner's key.").await;
    second.fits_its_window().await;
    second.choose("#key-file", &at("key.json")).await;
    second.press("Claim this box").await;
    second.at("/setup/machine").await;
    second.close().await;
}

#[test]
fn the_guide_prints_on_one_page() {
    let folder = tempfile::tempdir().unwrap();
    let pdf = folder.path().join("guide.pdf");
    let printed = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer"])
        .arg(format!("--user-data-dir={}", folder.path().display()))
        .arg(format!("--print-to-pdf={}", pdf.display()))
        .arg(format!("file://{}", on_the_stick("guide.html").display()))
        .output()
        .unwrap();
    assert!(printed.status.success());
    let bytes = std::fs::read(pdf).unwrap();
    let pages = String::from_utf8_lossy(&bytes).matches("/Type /Page\n").count();
    assert_eq!(pages, 1);
}
