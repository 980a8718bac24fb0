//! The image for machines with an ARM processor. Emulated: it never ran on a Grace CPU, nor on any other.

use polder_stories::{Browser, Client};

use crate::machine::{Disks, Kind};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: `make test-vm-all` runs it"]
async fn vm_aarch64_emulated_a_machine_without_a_network_out_is_claimed_and_answers() {
    let disks = Disks::of(Kind::Aarch64).with_models();
    let mut machine = disks.switch_on();
    let code = machine.says("Claim code: ");
    let code = code.split(' ').next().unwrap().to_owned();
    println!("the code was there after {} s", machine.age().as_secs());
    // It asked for an address and got one: the browser below comes in through it.
    assert!(machine.serial().contains("https://10.0.2.15/"), "{}", machine.serial());

    let url = format!("https://localhost:{}", machine.port);
    let browser = Browser::open_whatever_the_certificate(1280, 900).await;
    browser.visit(&format!("{url}/#claim={code}")).await;
    browser.at("/setup/machine").await;
    browser.picture("vm-aarch64-1-machine").await;
    assert!(browser.words().await.contains("this image has no NVIDIA driver"));
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
    let page = browser.words().await;
    let key = page.split_whitespace().find(|word| word.starts_with("plk_")).unwrap().to_owned();
    browser.close().await;

    let fingerprint = machine.fingerprint();
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    Client::fetch_authority(&url, &fingerprint, &ca);
    let client = Client::new(&url, &ca, Some(&key));
    let answer = client.chat("smollm2-135m-instruct", "What is the capital of France?");
    assert!(!answer.words().is_empty(), "{answer:?}");
    machine.says("Everything runs.");
    println!("it answered after {} s: {:?}", machine.age().as_secs(), answer.words());

    machine.power_button();
    machine.goes_off();
    // The second slot was made at the first start, empty, for an update to come.
    let parts = disks.partitions();
    assert_eq!(parts.iter().filter(|name| *name == "_empty").count(), 2, "{parts:?}");
    assert!(parts.iter().any(|name| name == "polder-var"), "{parts:?}");
    let mut machine = disks.switch_on();
    machine.says("Everything runs.");
    let again = Client::new(&format!("https://localhost:{}", machine.port), &ca, Some(&key));
    let answer = again.chat("smollm2-135m-instruct", "What is the capital of France?");
    assert!(!answer.words().is_empty(), "{answer:?}");
}

#[test]
#[ignore = "slow: `make test-vm-all` runs it"]
fn vm_aarch64_emulated_one_flipped_byte_in_the_system_and_the_machine_does_not_start_from_it() {
    let disks = Disks::of(Kind::Aarch64);
    disks.flip_a_byte_of_the_system();
    let mut machine = disks.switch_on();
    machine.says("is corrupted");
    assert!(!machine.says_within("Claim code: ", std::time::Duration::from_secs(60)));
}
