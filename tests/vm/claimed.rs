//! A box that somebody owns and that answers: made once for each image, and kept for every story that goes on from it.

use std::fs;
use std::path::{Path, PathBuf};

use polder_stories::{Browser, Client, need};

use crate::machine::{Disks, Machine};

pub(crate) const MODEL: &str = "smollm2-135m-instruct";
pub(crate) const OWNER: &str = "Ada";
pub(crate) const PASSWORD: &str = "four quiet brown otters";

/// What its owner has.
pub(crate) struct Owned {
    pub(crate) key: String,
    pub(crate) ca: String,
}

impl Owned {
    /// Her program, which trusts the box's own authority and no other.
    pub(crate) fn client(&self, machine: &Machine) -> Client {
        let folder = tempfile::tempdir().unwrap();
        let ca = folder.path().join("ca.pem");
        fs::write(&ca, &self.ca).unwrap();
        Client::new(&format!("https://localhost:{}", machine.port), &ca, Some(&self.key))
    }

    /// Her browser, signed in.
    pub(crate) async fn browser(&self, machine: &Machine) -> Browser {
        let browser = Browser::open_whatever_the_certificate(1280, 900).await;
        browser.visit(&format!("https://localhost:{}/sign-in", machine.port)).await;
        browser.fill("name", OWNER).await;
        browser.fill("password", PASSWORD).await;
        browser.press("Sign in").await;
        browser.see("h1").await;
        browser
    }
}

/// A browser in front of the wizard of a box that nobody owns, with the code from its screen.
pub(crate) async fn wizard(machine: &mut Machine) -> Browser {
    let code = machine.says("Claim code: ");
    let code = code.split(' ').next().unwrap().to_owned();
    let browser = Browser::open_whatever_the_certificate(1280, 900).await;
    browser.visit(&format!("https://localhost:{}/#claim={code}", machine.port)).await;
    browser.at("/setup/machine").await;
    browser
}

/// Starts a machine that never ran and makes it somebody's box, as a person would. Leaves it on.
pub(crate) async fn claim(disks: &Disks, pictures: bool) -> (Machine, Owned) {
    let mut machine = disks.switch_on();
    let browser = wizard(&mut machine).await;
    assert!(machine.serial().contains("Certificate fingerprint (SHA-256):"));

    let url = format!("https://localhost:{}", machine.port);
    let show = async |name: &str| {
        if pictures {
            browser.picture(name).await;
        }
    };
    show("vm-1-machine").await;
    assert!(browser.words().await.contains(disks.about_the_driver()));
    browser.press("Go on: what opens the disk").await;
    browser.hear("This machine has no TPM 2.0").await;
    show("vm-1-disk").await;
    browser.press("Leave it open").await;
    browser.press("Bring this model in").await;
    browser.at("/setup/address").await;
    browser.press("Go on").await;
    browser.at("/setup/power").await;
    show("vm-1-power").await;
    browser.press("Go on without one").await;
    browser.at("/setup/lines").await;
    browser.press("Go on with one line").await;
    browser.at("/setup/member").await;
    browser.fill("name", OWNER).await;
    browser.fill("password", PASSWORD).await;
    browser.fill("again", PASSWORD).await;
    browser.press("Make me the first steward").await;
    browser.hear("Ask the model something").await;
    show("vm-2-done").await;
    let page = browser.words().await;
    let key = page.split_whitespace().find(|word| word.starts_with("plk_")).unwrap().to_owned();
    browser.visit(&format!("{url}/dashboard")).await;
    browser.see("h1").await;
    show("vm-3-dashboard").await;
    browser.close().await;

    // As its owner does: the certificate is the one whose fingerprint the machine's own screen shows.
    let fingerprint = machine.fingerprint();
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    Client::fetch_authority(&url, &fingerprint, &ca);
    (machine, Owned { key, ca: fs::read_to_string(ca).unwrap() })
}

/// A box like that, which is off. Kept beside other things that were made from the same image, so that each story can be
/// told by itself.
pub(crate) async fn claimed() -> (Disks, Owned) {
    let place = place();
    if !place.join("key").exists() {
        let disks = Disks::fresh().with_models();
        let (mut machine, owned) = claim(&disks, false).await;
        machine.says("Everything runs.");
        machine.power_button();
        machine.goes_off();
        keep(&disks, &owned);
    }
    let read = |name: &str| fs::read_to_string(place.join(name)).unwrap();
    (Disks::of_kept(&place), Owned { key: read("key"), ca: read("ca.pem") })
}

/// Keeps a claimed machine, which is off.
pub(crate) fn keep(disks: &Disks, owned: &Owned) {
    let place = place();
    // Of other images there is no use for any more.
    let _ = fs::remove_dir_all(place.parent().unwrap());
    disks.keep(&place);
    fs::write(place.join("ca.pem"), &owned.ca).unwrap();
    // Last: what has a key is whole.
    fs::write(place.join("key"), &owned.key).unwrap();
}

fn place() -> PathBuf {
    let disk = need("POLDER_VM_DISK");
    let sums = fs::read_to_string(disk.with_extension("sha256")).unwrap();
    let name = disk.file_name().unwrap().to_string_lossy().into_owned();
    let line = sums.lines().find(|line| line.ends_with(&name)).unwrap();
    Path::new(&need("POLDER_VM_KEPT")).join("claimed").join(&line[..16])
}
