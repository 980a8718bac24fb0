//! Somebody whose machine has no screen opens the page on the stick, without a network, and saves a seed.

use std::path::{Path, PathBuf};
use std::process::Command;

use polder_seed::Seed;
use polder_stories::Browser;

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
    browser.picture("seed-made").await;

    browser.press("Ask me, on a screen or in a browser.").await;
    browser.press("It always has this one:").await;
    browser.fill("address", "192.168.7.20/24").await;
    browser.fill("gateway", "192.168.7.1").await;
    browser.fill("dns", "192.168.7.1, fd00::1").await;
    let seed = made(&browser).await;
    assert_eq!(seed.disk, None);
    let network = seed.network.unwrap();
    assert_eq!((network.address.to_string().as_str(), network.prefix), ("192.168.7.20", 24));
    assert_eq!(network.gateway.unwrap().to_string(), "192.168.7.1");
    assert_eq!(network.dns.len(), 2);
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
    browser.picture("seed-wrong").await;
    browser.close().await;
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
