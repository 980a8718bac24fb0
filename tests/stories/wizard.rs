//! Somebody who has never seen Polder claims a box in a browser and asks it something.

use std::time::Duration;

use polder_stories::{Browser, Client, Running, free_port, import_trial_model};

/// The link that the console prints.
pub(crate) fn claim_link(running: &Running) -> String {
    running.line_with("http://localhost").trim().to_owned()
}

/// From the link to the page that shows the first key.
pub(crate) async fn walk(browser: &Browser, link: &str, pictures: Option<&str>) -> String {
    let look = async |name: &str| {
        if let Some(prefix) = pictures {
            browser.picture(&format!("{prefix}-{name}")).await;
            browser.fits_its_window().await;
            browser.is_usable_by_ear_and_keyboard().await;
        }
    };
    browser.visit(link).await;
    browser.at("/setup/machine").await;
    look("1-machine").await;
    browser.press("Go on: choose a model").await;
    browser.at("/setup/model").await;
    look("2-model").await;
    if pictures.is_some() {
        let here = browser.place().await;
        let planner = here.replace("/setup/model", "/setup/planner");
        browser.visit(&format!("{planner}?model=qwen3-235b-a22b&box=h200-141&members=32")).await;
        look("2-planner").await;
        browser.visit(&here).await;
    }
    browser.press("Bring this model in").await;
    browser.at("/setup/import").await;
    browser.picture(&format!("{}-3-import", pictures.unwrap_or("walk"))).await;
    // It moves on by itself when the model is in.
    browser.at("/setup/address").await;
    look("4-address").await;
    browser.press("Go on").await;
    browser.at("/setup/power").await;
    look("5-power").await;
    browser.press("Go on without one").await;
    browser.at("/setup/lines").await;
    look("5-lines").await;
    browser.press("Go on with one line").await;
    browser.at("/setup/member").await;
    look("6-member").await;
    browser.fill("name", "Ada").await;
    browser.fill("password", "four quiet brown otters").await;
    browser.fill("again", "four quiet brown otters").await;
    browser.press("Make me the first steward").await;
    browser.hear("Ask the model something").await;
    look("7-done").await;
    let page = browser.words().await;
    let key = page.split_whitespace().find(|w| w.starts_with("plk_"));
    key.unwrap_or_else(|| panic!("the last page shows no key:\n{page}"))
        .trim_matches('"')
        .to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn browser_a_stranger_walks_the_wizard_and_reads_a_streamed_answer_on_the_chat_page() {
    let state = tempfile::tempdir().unwrap();
    import_trial_model(state.path());
    let running = Running::start(state.path(), free_port(), &[]);
    let link = claim_link(&running);
    let browser = Browser::open(1280, 900, false, true).await;
    let key = walk(&browser, &link, Some("wizard")).await;

    browser.press("Ask the model something").await;
    browser.at("/chat").await;
    browser.hear("tiny and often wrong").await;
    browser.fill("message", "Say hello to my friends.").await;
    browser.press("Send").await;
    browser.hear("Say hello to my friends.").await;
    browser.see("#talk .said.box .words *").await;
    // It comes piece by piece; how long it gets is the model's affair.
    for _ in 0..600 {
        if browser.read("#talk .said.box .words").await.len() > 5 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(browser.read("#talk .said.box .words").await.len() > 2, "the answer is empty");
    browser.picture("chat").await;
    browser.fits_its_window().await;
    browser.is_usable_by_ear_and_keyboard().await;

    look_around(&browser, running.port, "wide").await;
    browser.close().await;

    // The key that the last page showed opens the API, over TLS with the box's own certificate.
    let url = format!("https://localhost:{}", running.port);
    let client = Client::new(&url, &state.path().join("pki/ca.pem"), Some(&key));
    assert!(!client.chat("smollm2-135m-instruct", "Say hello.").words().is_empty());
}

/// Every page that a steward has, and what one sees who went wrong.
async fn look_around(browser: &Browser, port: u16, prefix: &str) {
    let pages = "/ chat dashboard members models models/change moving moving/sheet usage money audit connect ca account \
                 sign-in nowhere invite/nothing";
    for page in pages.split_whitespace() {
        let path = page.trim_start_matches('/');
        browser.visit(&format!("http://localhost:{port}/{path}")).await;
        browser.see("h1").await;
        let name = if path.is_empty() { "home".to_owned() } else { path.replace('/', "-") };
        browser.picture(&format!("{prefix}-{name}")).await;
        browser.fits_its_window().await;
        browser.is_usable_by_ear_and_keyboard().await;
    }
}

/// The wizard and every page after it, on a screen of this size.
async fn see_everything(width: u32, height: u32, dark: bool, prefix: &str) {
    let state = tempfile::tempdir().unwrap();
    import_trial_model(state.path());
    let running = Running::start(state.path(), free_port(), &[]);
    let browser = Browser::open(width, height, dark, true).await;
    walk(&browser, &claim_link(&running), Some(prefix)).await;
    look_around(&browser, running.port, prefix).await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn browser_every_page_fits_a_telephone_320_pixels_wide() {
    see_everything(320, 700, true, "narrow").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn browser_every_page_is_readable_on_a_4k_screen() {
    see_everything(3840, 2160, false, "4k").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn browser_the_wizard_can_be_walked_without_javascript_on_a_narrow_dark_screen() {
    let state = tempfile::tempdir().unwrap();
    import_trial_model(state.path());
    let running = Running::start(state.path(), free_port(), &[]);
    let link = claim_link(&running);
    let (address, code) = link.split_once("/#claim=").unwrap();
    let browser = Browser::open(320, 700, true, false).await;
    browser.visit(address).await;
    browser.at("/setup").await;
    browser.picture("no-scripts-0-claim").await;
    browser.fill("code", code).await;
    browser.press("Claim this box").await;
    browser.at("/setup/machine").await;
    browser.picture("no-scripts-1-machine").await;
    browser.press("Go on: choose a model").await;
    browser.picture("no-scripts-2-model").await;
    browser.press("Bring this model in").await;
    browser.at("/setup/address").await;
    browser.picture("no-scripts-4-address").await;
    browser.press("Go on").await;
    browser.at("/setup/power").await;
    browser.picture("no-scripts-5-power").await;
    browser.press("Go on without one").await;
    browser.at("/setup/lines").await;
    browser.press("Go on with one line").await;
    browser.fill("name", "Ada").await;
    browser.fill("password", "four quiet brown otters").await;
    browser.fill("again", "four quiet brown otters").await;
    browser.press("Make me the first steward").await;
    browser.hear("Ask the model something").await;
    browser.picture("no-scripts-6-done").await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn browser_a_stranger_who_comes_second_with_the_same_code_gets_nothing() {
    let state = tempfile::tempdir().unwrap();
    let running = Running::start(state.path(), free_port(), &[]);
    let link = claim_link(&running);
    let first = Browser::open(1280, 900, false, true).await;
    first.visit(&link).await;
    first.at("/setup/machine").await;
    let second = Browser::open(1280, 900, false, true).await;
    second.visit(&link).await;
    second.hear("code is not good").await;
    second.visit(&format!("http://localhost:{}/setup/machine", running.port)).await;
    assert!(!second.words().await.contains("choose a model"), "{}", second.words().await);
    first.press("Go on: choose a model").await;
    first.at("/setup/model").await;
    first.close().await;
    second.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn browser_a_box_that_lost_power_in_the_middle_of_the_wizard_goes_on_at_the_same_step() {
    let state = tempfile::tempdir().unwrap();
    import_trial_model(state.path());
    let port = free_port();
    let mut running = Running::start(state.path(), port, &[]);
    let browser = Browser::open(1280, 900, false, true).await;
    browser.visit(&claim_link(&running)).await;
    browser.at("/setup/machine").await;
    browser.press("Go on: choose a model").await;
    browser.press("Bring this model in").await;
    browser.at("/setup/import").await;
    running.signal(rustix::process::Signal::KILL);
    running.wait();
    std::thread::sleep(std::time::Duration::from_secs(2));

    let again = Running::start(state.path(), port, &[]);
    claim_link(&again);
    browser.visit(&format!("http://localhost:{port}/setup")).await;
    browser.at("/setup/address").await;
    browser.close().await;
}
