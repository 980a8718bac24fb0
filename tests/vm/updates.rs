//! Another version comes on a stick: a good one stays, one that can do less is taken back by itself.

use std::path::PathBuf;
use std::time::Duration;

use polder_stories::{Browser, need};

use crate::claimed::{MODEL, claimed};
use crate::machine::Machine;

/// The signed files of one version, as a stick has them.
pub(crate) fn files(version: &str) -> Vec<PathBuf> {
    let folder = need("POLDER_VM_DISK").parent().unwrap().to_owned();
    let begin = format!("polder_{version}_");
    let mut found: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            name.starts_with(&begin)
                && [".root", ".verity", ".efi", ".toml", ".minisig"]
                    .iter()
                    .any(|e| name.ends_with(e))
        })
        .collect();
    found.sort();
    assert!(found.len() >= 5, "{version} was not made: {found:?}");
    found
}

/// As a steward does. The machine starts again soon after.
pub(crate) async fn change_to(browser: &Browser, machine: &Machine, version: &str) {
    versions(browser, machine).await;
    browser.press("Look for an update").await;
    browser.hear(&format!("Write {version} beside what runs and read it back")).await;
    browser.picture("vm-update-1-found").await;
    browser.press(&format!("Change to Polder {version}")).await;
    browser.agree().await;
    browser.at("/runs/").await;
    // Until the machine is gone, and the page with it; a step that fails stays on it.
    while browser.shows("ol").await && !browser.words().await.contains("Done.") {
        assert!(!browser.shows(".error").await, "{}", browser.words().await);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn versions(browser: &Browser, machine: &Machine) {
    browser.visit(&format!("https://localhost:{}/versions", machine.port)).await;
    browser.hear("What runs").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vm_an_update_whose_engine_cannot_answer_is_taken_back_and_says_why() {
    let (disks, owned) = claimed().await;
    let disks = disks.with_stick(&files("0.3.0"));
    let mut machine = disks.switch_on_for_good();
    machine.says("Everything runs.");
    let browser = owned.browser(&machine).await;
    change_to(&browser, &machine, "0.3.0").await;
    browser.close().await;

    // Three starts that cannot answer, then what ran before.
    machine.says("Polder 0.3.0");
    machine.says_after("Polder 0.3.0", 0, "Polder 0.1.0");
    let since = machine.said("Polder 0.1.0") - 1;
    machine.says_after("Polder 0.1.0", since, "Everything runs.");
    let answer = owned.client(&machine).chat(MODEL, "What is the capital of France?");
    assert!(!answer.words().is_empty(), "{answer:?}");
    let browser = owned.browser(&machine).await;
    versions(&browser, &machine).await;
    let page = browser.words().await;
    browser.picture("vm-update-2-why").await;
    assert!(page.contains("It was started 3 times and then left; 0.1.0 runs again"), "{page}");
    assert!(page.contains("fast did not answer"), "{page}");
    browser.close().await;
}
