//! Backups of a real machine go to a USB disk that is only read at all other times: it is chosen on the page, pulled out, put back, and found whole at
//! home; what takes no backups says why; and another machine becomes the box with it.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use polder_stories::{Client, scaled};

use crate::claimed::{OWNER, Owned, PASSWORD, claimed, wizard};
use crate::machine::{Disks, Machine, PATIENCE};

/// Between two looks at a page.
const LOOK: Duration = Duration::from_secs(2);

/// A steward in front of the box's pages.
struct Steward {
    client: Client,
    cookie: String,
}

impl Steward {
    fn of(owned: &Owned, machine: &Machine) -> Self {
        let client = owned.client(machine);
        let cookie = client.sign_in(OWNER, PASSWORD);
        Self { client, cookie }
    }

    fn page(&self, path: &str) -> String {
        self.client.look(path, &self.cookie).text
    }

    fn until(&self, path: &str, what: &str, holds: impl Fn(&str) -> bool) -> Duration {
        let begun = Instant::now();
        loop {
            let page = self.page(path);
            if holds(&page) {
                return begun.elapsed();
            }
            assert!(begun.elapsed() < scaled(PATIENCE), "waited for {what:?} at {path}:\n{page}");
            std::thread::sleep(LOOK);
        }
    }

    fn hears(&self, path: &str, words: &str) {
        self.until(path, words, |page| page.contains(words));
    }

    /// Presses a button that leads to a run.
    fn begins(&self, path: &str, fields: &[(&str, &str)]) -> String {
        let answer = self.client.form(path, &self.cookie, fields);
        let to = answer.header("location").unwrap_or_else(|| panic!("{path}: {}", answer.text));
        assert!(to.contains("/runs/"), "{path} leads to {to}");
        to.to_owned()
    }

    /// Waits for the end of a run, and sees what came of it.
    fn sees(&self, run: &str, words: &[&str]) -> String {
        self.until(run, "its end", |page| page.contains("data-done"));
        let page = self.page(run);
        assert!(words.iter().any(|words| page.contains(words)), "none of {words:?}:\n{page}");
        page
    }

    /// The key, as it is on the sheet.
    fn kit(&self) -> String {
        let sheet = self.client.form("/backup/kit", &self.cookie, &[]).text;
        let (_, rest) = sheet.split_once("The key of its backups:").unwrap();
        let (key, _) = rest.split_once("<svg").unwrap();
        let words = key.split(|c: char| !c.is_ascii_alphanumeric());
        let groups: Vec<_> = words.filter(|word| word.len() == 4 && *word != "code").collect();
        assert_eq!(groups.len(), 9, "{sheet}");
        groups.join("-")
    }

    /// The place on the disk of this name, once the page offers it and it is mounted to be read.
    fn offered(&self, label: &str) -> String {
        let begins = format!("value=\"disk:{label}@");
        self.until("/backup", label, |page| page.contains(&begins) && page.contains(" free"));
        let page = self.page("/backup");
        let (_, rest) = page.split_once(&begins).unwrap();
        format!("disk:{label}@{}", rest.split('"').next().unwrap())
    }
}

/// Whatever is on the disk, without mounting it.
fn restic(disks: &Disks, key: &str, arguments: &[&str]) -> Output {
    let mut restic = Command::new("restic");
    restic.arg("--repo").arg(disks.place("out/polder-backup")).args(["--no-cache", "--no-lock"]);
    restic.args(arguments).env("RESTIC_PASSWORD", key).output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: `make test-vm-all` runs it"]
async fn vm_backups_go_to_a_usb_disk_that_is_pulled_out_and_put_back_and_another_machine_becomes_the_box_with_it()
 {
    let (disks, owned) = claimed().await;
    disks.make_usb("truncate -s 96M safe.raw; mkfs.ext4 -q -F -L SAFE safe.raw");
    disks.make_usb("truncate -s 256K tiny.raw; mkfs.vfat -n TINY tiny.raw > /dev/null");
    disks.make_usb("truncate -s 16M shut.raw; mkfs.ext4 -q -F -L SHUT shut.raw");
    disks.make_usb("truncate -s 16M bare.raw");
    let mut machine = disks.switch_on();
    machine.says("Everything runs.");
    let told = |what: &str, machine: &Machine| {
        println!("usb: {:4.0} s: {what}", machine.age().as_secs_f64())
    };
    let ada = Steward::of(&owned, &machine);
    let key = ada.kit();
    ada.client.form("/backup/confirm", &ada.cookie, &[("key", &key)]);
    ada.hears("/backup", "None is. Plug one into the box by USB");
    told("the kit is on paper", &machine);

    machine.plug("safe", "one", "");
    let safe = ada.offered("SAFE");
    let plan = ada.client.form("/backup/to", &ada.cookie, &[("to", &safe)]).text;
    assert!(plan.contains("Make a store for backups at the disk SAFE"), "{plan}");
    let run = ada.begins("/backup/to", &[("to", &safe), ("seen", "yes")]);
    ada.sees(&run, &["Done."]);
    ada.hears("/backup", "backups go here");
    told("the first backup is on the disk", &machine);

    // Pulled out in the middle, or just before: one sentence, and an issue.
    let run = ada.begins("/backup/now", &[]);
    machine.pull_out("one");
    let away = "he disk SAFE is not plugged in; plug it in";
    let page = ada.sees(&run, &["pulled out while it was written to", away]);
    told(
        if page.contains("while it") { "pulled out in the middle" } else { "pulled out" },
        &machine,
    );
    ada.hears("/issues", "o backup can be made: the disk SAFE is not plugged in");
    let run = ada.begins("/backup/now", &[]);
    ada.sees(&run, &[away]);
    told("the issue is told", &machine);

    // Put back, it is used by itself: nobody presses anything.
    machine.plug("safe", "two", "");
    let back = ada.until("/backup", "a backup by itself", |page| {
        page.contains("backups go here") && !page.contains("The last backup failed")
    });
    told(&format!("backed up by itself {} s after it was back", back.as_secs()), &machine);
    let run = ada.begins("/backup/drill", &[]);
    ada.sees(&run, &["Done."]);
    told("restored for a trial", &machine);

    // What takes no backups says why, and backups go on where they went.
    machine.plug("shut", "shut", ",readonly=on");
    machine.plug("bare", "bare", "");
    ada.hears("/backup", "The disk SHUT is write-protected");
    ada.hears("/backup", "has no file system that this box knows");
    machine.plug("tiny", "tiny", "");
    let tiny = ada.offered("TINY");
    let begun = Instant::now();
    // Mounted to be read a moment after it is listed.
    let answer = loop {
        let fields = [("to", tiny.as_str()), ("seen", "yes")];
        let answer = ada.client.form("/backup/to", &ada.cookie, &fields);
        if answer.status == 303 || begun.elapsed() > scaled(PATIENCE) {
            break answer;
        }
        std::thread::sleep(LOOK);
    };
    let run = answer.header("location").unwrap_or_else(|| panic!("{}", answer.text)).to_owned();
    ada.sees(&run, &["is full"]);
    ada.hears("/backup", "backups go here");
    assert!(ada.page("/backup").contains("the disk SAFE"), "it goes on where it went");
    told("other disks say what is wrong with them", &machine);
    machine.power_button();
    machine.goes_off();

    // At home, with nothing but restic and the key.
    disks.make_usb("mkdir out; debugfs -R 'rdump /polder-backup out' safe.raw");
    assert_eq!(disks.status(&["e2fsck", "-fn", "/mnt/vm/safe.raw"]), Some(0));
    let checked = restic(&disks, &key, &["check", "--read-data"]);
    assert!(checked.status.success(), "{checked:?}");
    let listed = restic(&disks, &key, &["snapshots", "--json"]);
    let listed: Vec<serde_json::Value> = serde_json::from_slice(&listed.stdout).unwrap();
    assert!(listed.len() >= 2, "{listed:?}");
    let files = restic(&disks, &key, &["ls", "latest"]);
    assert!(String::from_utf8_lossy(&files.stdout).contains("/site.toml"), "{files:?}");

    // Another machine, at its first page.
    let next = Disks::fresh();
    std::fs::copy(disks.place("safe.raw"), next.place("safe.raw")).unwrap();
    let mut machine = next.switch_on();
    let browser = wizard(&mut machine).await;
    machine.plug("safe", "safe", ",readonly=on");
    let restore = format!("https://localhost:{}/setup/restore", machine.port);
    let begun = Instant::now();
    // Listed a moment after it is plugged in, and mounted to be read a moment after that.
    while !browser.place().await.contains("/going") {
        assert!(begun.elapsed() < scaled(PATIENCE), "{}", browser.words().await);
        browser.visit(&restore).await;
        if browser.shows("[name='disk']").await {
            browser.press("SAFE").await;
            browser.fill("key", &key).await;
            browser.press("Restore it").await;
            browser.see("h1").await;
        }
        tokio::time::sleep(LOOK).await;
    }
    browser.picture("vm-backup-restore").await;
    browser.close().await;
    is_the_box(&owned, &machine).await;
    told("the other machine is the box", &machine);
}

/// Her program, with her key and the authority of the box that was, is let in.
async fn is_the_box(owned: &Owned, machine: &Machine) {
    let begun = Instant::now();
    loop {
        let client = owned.client(machine);
        // Until then it has another authority, and no client gets through to it.
        let asked = tokio::task::spawn_blocking(move || client.get("/v1/models").status).await;
        if matches!(asked, Ok(200)) {
            return;
        }
        assert!(begun.elapsed() < scaled(PATIENCE), "{asked:?}\n{}", machine.serial());
        tokio::time::sleep(LOOK).await;
    }
}
