//! Another version comes on a stick: a good one stays, one that can do less is taken back by itself.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use minisign::KeyPair;
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

/// Has the box look, and waits until it says this.
async fn looks(browser: &Browser, machine: &Machine, words: &str) {
    versions(browser, machine).await;
    // A stick that was plugged in a moment ago is not mounted yet.
    for _ in 0..20 {
        browser.press("Look for an update").await;
        browser.hear("What runs").await;
        if browser.words().await.contains(words) {
            return;
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    panic!("no {words:?}: {}", browser.words().await);
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
    // Until the machine is gone, and the page with it; a step that fails stays on it. Where it does not come back, the
    // page stays and the machine's ports go.
    let there = || TcpStream::connect(("127.0.0.1", machine.port)).is_ok();
    while browser.shows("ol").await && !browser.words().await.contains("Done.") && there() {
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

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: `make test-vm-all` runs it"]
async fn vm_an_update_that_answers_is_kept_with_everything_and_can_be_left_again() {
    let (disks, owned) = claimed().await;
    let disks = disks.with_stick(&files("0.2.0"));
    let mut machine = disks.switch_on_for_good();
    machine.says("Everything runs.");
    let browser = owned.browser(&machine).await;
    change_to(&browser, &machine, "0.2.0").await;
    browser.close().await;

    machine.says_after("Polder 0.2.0", 0, "Everything runs.");
    let browser = owned.browser(&machine).await;
    kept(&browser, &machine).await;
    browser.picture("vm-update-3-kept").await;
    browser.close().await;
    // Her key and the model are what they were, and the next start needs no trial.
    let answer = owned.client(&machine).chat(MODEL, "What is the capital of France?");
    assert!(!answer.words().is_empty(), "{answer:?}");
    machine.power_button();
    machine.goes_off();
    let mut machine = disks.switch_on_for_good();
    machine.says("Everything runs.");
    assert_eq!(machine.said("Polder 0.1.0"), 0, "{}", machine.serial());

    let browser = owned.browser(&machine).await;
    machine.pull_out("stick");
    disks.plug_in(&machine, "older", &files("0.1.0"));
    looks(&browser, &machine, "0.1.0 is not newer than 0.2.0, which runs").await;
    browser.press("Go back to Polder 0.1.0").await;
    browser.agree().await;
    browser.at("/runs/").await;
    browser.close().await;
    machine.says_after("Polder 0.1.0", 0, "Everything runs.");
    let answer = owned.client(&machine).chat(MODEL, "What is the capital of France?");
    assert!(!answer.words().is_empty(), "{answer:?}");
    let browser = owned.browser(&machine).await;
    versions(&browser, &machine).await;
    browser.hear("Ada went back to 0.1.0").await;
    browser.close().await;
}

/// Waits until the version on trial stays.
async fn kept(browser: &Browser, machine: &Machine) {
    for _ in 0..60 {
        versions(browser, machine).await;
        if browser.words().await.contains("It did everything that the box could do before") {
            return;
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    panic!("it is still on trial: {}", browser.words().await);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: `make test-vm-all` runs it"]
async fn vm_an_update_that_hangs_on_its_way_up_is_taken_back_and_says_so() {
    let (disks, owned) = claimed().await;
    let disks = disks.with_stick(&files("0.4.0"));
    let mut machine = disks.switch_on_for_good();
    machine.says("Everything runs.");
    let since = machine.said("Polder 0.1.0");
    let browser = owned.browser(&machine).await;
    change_to(&browser, &machine, "0.4.0").await;
    browser.close().await;

    machine.says_after("Polder 0.1.0", since, "Everything runs.");
    let answer = owned.client(&machine).chat(MODEL, "What is the capital of France?");
    assert!(!answer.words().is_empty(), "{answer:?}");
    let browser = owned.browser(&machine).await;
    versions(&browser, &machine).await;
    browser.hear("It was started 3 times and then left; 0.1.0 runs again").await;
    browser.hear("3 starts never came as far as its supervisor").await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: `make test-vm-all` runs it"]
async fn vm_an_update_that_nobody_signed_that_others_signed_or_that_is_cut_short_is_refused() {
    let (disks, owned) = claimed().await;
    let good = files("0.2.0");
    let unsigned: Vec<PathBuf> =
        good.iter().filter(|path| path.extension().unwrap() != "minisig").cloned().collect();
    let disks = disks.with_stick(&unsigned);
    let mut machine = disks.switch_on();
    machine.says("Everything runs.");
    let browser = owned.browser(&machine).await;
    looks(&browser, &machine, "The update is not signed by anyone whom this box trusts").await;
    browser.picture("vm-update-4-unsigned").await;

    let folder = tempfile::tempdir().unwrap();
    let changed = |change: &dyn Fn(&Path)| -> Vec<PathBuf> {
        let copy = |path: &PathBuf| {
            let to = folder.path().join(path.file_name().unwrap());
            std::fs::copy(path, &to).unwrap();
            change(&to);
            to
        };
        good.iter().map(copy).collect()
    };
    machine.pull_out("stick");
    let others = KeyPair::generate_unencrypted_keypair().unwrap();
    let by_others = changed(&|path| {
        if path.to_string_lossy().ends_with(".toml.minisig") {
            let text = std::fs::read(path.with_extension("")).unwrap();
            let signature = minisign::sign(None, &others.sk, &text[..], None, None).unwrap();
            std::fs::write(path, signature.to_string()).unwrap();
        }
    });
    disks.plug_in(&machine, "others", &by_others);
    looks(&browser, &machine, "signed by anyone whom this box trusts (Signature key id").await;

    machine.pull_out("others");
    let short = changed(&|path| {
        if path.extension().unwrap() == "root" {
            let length = std::fs::metadata(path).unwrap().len();
            std::fs::File::options().write(true).open(path).unwrap().set_len(length / 2).unwrap();
        }
    });
    disks.plug_in(&machine, "short", &short);
    looks(&browser, &machine, "Write 0.2.0 beside what runs and read it back").await;
    browser.press("Change to Polder 0.2.0").await;
    browser.agree().await;
    browser.at("/runs/").await;
    browser
        .hear("polder_0.2.0_x86_64.root from /run/media/STICK is not the file that is wanted")
        .await;
    browser.see(".error").await;
    browser.picture("vm-update-5-short").await;
    browser.close().await;

    // Nothing of what runs was touched, nor what runs next.
    let answer = owned.client(&machine).chat(MODEL, "What is the capital of France?");
    assert!(!answer.words().is_empty(), "{answer:?}");
    machine.power_button();
    machine.goes_off();
    let mut machine = disks.switch_on();
    machine.says("Everything runs.");
    assert_eq!(machine.said("Polder 0.2.0"), 0, "{}", machine.serial());
}
