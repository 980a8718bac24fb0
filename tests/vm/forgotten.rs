//! Somebody at the machine's own screen has it start safely, forget all but its models, and forget everything.

use polder_stories::Browser;

use crate::claimed::wizard;
use crate::machine::{Disks, Machine};

/// Walks from the code on the screen to the page of models; says what is there.
async fn models(machine: &mut Machine) -> (Browser, String) {
    let browser = wizard(machine).await;
    browser.press("Go on: what opens the disk").await;
    browser.press("Leave it open").await;
    browser.at("/setup/model").await;
    let words = browser.words().await;
    (browser, words)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: `make test-vm-all` runs it"]
async fn vm_a_box_starts_safely_forgets_all_but_its_models_and_then_everything() {
    let disks = Disks::fresh().with_models();
    let mut machine = disks.switch_on();
    let (browser, words) = models(&mut machine).await;
    assert!(!words.contains("On this box"), "{words}");
    browser.press("Bring this model in").await;
    browser.at("/setup/address").await;
    browser.close().await;
    machine.says("Everything runs.");
    let first = machine.fingerprint();

    machine.press("m");
    machine.says("once without engines and apps");
    machine.press("y");
    machine.goes_off();
    let mut machine = disks.switch_on();
    machine.says("Safe mode: no engine and no app runs.");
    assert_eq!(machine.fingerprint(), first);

    machine.press("f");
    machine.says("The models can stay.");
    machine.press("m");
    machine.says("Type the box's name,");
    machine.press("polder\r");
    machine.goes_off();
    let mut machine = disks.switch_on();
    machine.says("nothing of before is left but the models");
    let (browser, words) = models(&mut machine).await;
    assert!(words.contains("On this box"), "{words}");
    browser.close().await;
    let second = machine.fingerprint();
    assert_ne!(second, first, "the box is another one, with keys of its own");

    machine.press("f");
    machine.says("erase everything");
    machine.press("e");
    machine.press("polder\r");
    machine.goes_off();
    // Once to make the disk anew, once to begin.
    disks.switch_on().goes_off();
    let mut machine = disks.switch_on();
    machine.says("nothing of before is left.");
    let (browser, words) = models(&mut machine).await;
    assert!(!words.contains("On this box"), "{words}");
    browser.close().await;
    assert_ne!(machine.fingerprint(), second);
}
