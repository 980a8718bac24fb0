//! A machine that never ran starts from the image and becomes somebody's box, without a way out to the internet.

use polder_stories::{Browser, Client};

use crate::machine::Disks;

#[tokio::test(flavor = "multi_thread")]
async fn vm_a_machine_without_a_network_out_is_claimed_and_answers_from_a_plugged_in_disk() {
    let disks = Disks::fresh().with_models();
    let mut machine = disks.switch_on();
    let code = machine.says("Claim code: ");
    let code = code.split(' ').next().unwrap().to_owned();
    assert!(machine.serial().contains("Certificate fingerprint (SHA-256):"));

    let url = format!("https://localhost:{}", machine.port);
    let browser = Browser::open_whatever_the_certificate(1280, 900).await;
    browser.visit(&format!("{url}/#claim={code}")).await;
    browser.at("/setup/machine").await;
    browser.picture("vm-1-machine").await;
    browser.press("Go on: choose a model").await;
    browser.press("Bring this model in").await;
    browser.at("/setup/address").await;
    browser.press("Go on").await;
    browser.at("/setup/member").await;
    browser.fill("name", "Ada").await;
    browser.fill("password", "four quiet brown otters").await;
    browser.fill("again", "four quiet brown otters").await;
    browser.press("Make me the first steward").await;
    browser.hear("Ask the model something").await;
    browser.picture("vm-2-done").await;
    let page = browser.words().await;
    let key = page.split_whitespace().find(|word| word.starts_with("plk_")).unwrap().to_owned();
    browser.visit(&format!("{url}/dashboard")).await;
    browser.see("h1").await;
    browser.picture("vm-3-dashboard").await;
    browser.close().await;

    // As its owner does: the certificate is the one whose fingerprint the machine's own screen shows.
    let fingerprint = machine.fingerprint();
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    Client::fetch_authority(&url, &fingerprint, &ca);
    let client = Client::new(&url, &ca, Some(&key));
    let answer = client.chat("smollm2-135m-instruct", "What is the capital of France?");
    assert!(!answer.words().is_empty(), "{answer:?}");
    machine.says("Everything runs.");

    // The power button ends everything in order, and what was acknowledged is there at the next start.
    machine.power_button();
    machine.goes_off();
    let mut machine = disks.switch_on();
    machine.says("Everything runs.");
    let again = Client::new(&format!("https://localhost:{}", machine.port), &ca, Some(&key));
    let answer = again.chat("smollm2-135m-instruct", "What is the capital of France?");
    assert!(!answer.words().is_empty(), "{answer:?}");

    // A key on the serial line turns it off too.
    machine.press("p");
    machine.says("turn the machine off");
    machine.press("o");
    machine.goes_off();
}
