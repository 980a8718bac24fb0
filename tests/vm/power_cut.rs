//! The power goes in the middle of an update, at any moment: what the disk holds then starts, and nothing is lost.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::process::Command;

use polder_recipes::Digest;
use polder_stories::need;
use polder_update::{Entry, Manifest};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::claimed::{MODEL, claimed};
use crate::machine::Disks;
use crate::power::{Log, Luck, Undo};
use crate::updates::{change_to, files};

/// Cuts that are looked at, unless POLDER_VM_CUTS says otherwise.
const CUTS: usize = 12;
/// The same cuts every time.
const SEED: u64 = 0x706f_6c64_6572;
/// A LUKS2 header, with room for its tool to see that there is a volume behind it.
const HEADER: u64 = 20 << 20;
/// Where the boot partition begins.
const BOOT: &str = "@@1M";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: `make test-vm-all` runs it"]
async fn vm_power_cut_in_an_update_leaves_a_box_that_starts_with_all_that_was_acknowledged() {
    let (disks, owned) = claimed().await;
    let mut disks = disks.with_stick(&files("0.2.0"));
    disks.flatten();
    let mut machine = disks.switch_on_with_a_log_of_writes();
    machine.says("Everything runs.");
    let browser = owned.browser(&machine).await;
    change_to(&browser, &machine, "0.2.0").await;
    browser.close().await;
    // It would start again now.
    machine.goes_off();
    drop(machine);

    let log = Log::read(&disks.place("writes.log"));
    let look = Look::of(&disks);
    let cuts = std::env::var("POLDER_VM_CUTS").map_or(CUTS, |cuts| cuts.parse().unwrap());
    let mut luck = Luck(SEED);
    let mut at: Vec<usize> =
        (0..cuts).map(|_| (luck.number() % log.len() as u64) as usize + 1).collect();
    at.sort_unstable();
    let path = disks.place("cut.raw");
    assert!(
        Command::new("cp")
            .args(["--sparse=always", "--"])
            .arg(disks.place("base.raw"))
            .arg(&path)
            .status()
            .unwrap()
            .success()
    );
    let disk = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let (mut since, mut old, mut new) = (0, 0, 0);
    for (number, cut) in at.iter().enumerate() {
        let flushed = log.flushed(*cut);
        // What is surely there at this cut is there at every later one.
        drop(log.replay(&disk, since, flushed, &mut || true));
        since = flushed;
        let undo = log.replay(&disk, flushed, *cut, &mut || luck.number().is_multiple_of(2));
        let started = look.at(&path);
        eprintln!("cut {number} after {cut} of {} writes: {started} starts", log.len());
        match started.as_str() {
            "0.1.0" => old += 1,
            "0.2.0" => new += 1,
            other => panic!("{other} starts after {cut} writes"),
        }
        // Some of them really start, and what is in their databases is there.
        if number % (cuts / 2).clamp(1, 50) == 1 {
            let sample = Disks::of_disk(&path);
            let mut machine = sample.switch_on();
            machine.says("Everything runs.");
            let answer = owned.client(&machine).chat(MODEL, "What is the capital of France?");
            assert!(!answer.words().is_empty(), "{answer:?}");
        }
        Undo::all(undo, &disk);
    }
    eprintln!(
        "{cuts} cuts: the version before starts after {old} of them, the new one after {new}"
    );
    assert!(old > 0);
}

/// Looks at disks without starting them.
struct Look<'a> {
    disks: &'a Disks,
    manifests: Vec<Manifest>,
}

impl<'a> Look<'a> {
    fn of(disks: &'a Disks) -> Self {
        let folder = need("POLDER_VM_DISK").parent().unwrap().to_owned();
        let read = |version: &str| {
            let path = folder.join(format!("polder_{version}_x86_64.toml"));
            toml::from_str(&fs::read_to_string(path).unwrap()).unwrap()
        };
        Self { disks, manifests: ["0.1.0", "0.2.0"].map(read).to_vec() }
    }

    /// The version that the boot loader takes from this disk, whose slot is whole and whose database can be read.
    fn at(&self, disk: &Path) -> String {
        let listed = self.disks.answer(&["mdir", "-b", "-i", &inside(disk, BOOT), "::/EFI/Linux"]);
        let entries: Vec<Entry> = listed
            .lines()
            .filter_map(|line| Entry::of_file(line.rsplit('/').next().unwrap_or_default().trim()))
            .collect();
        let next = entries.iter().max_by_key(|entry| (entry.is_bootable(), &entry.version));
        let next = next.unwrap_or_else(|| panic!("nothing starts: {listed}"));
        let manifest = self.manifests.iter().find(|manifest| manifest.version == next.version);
        let manifest = manifest.unwrap_or_else(|| panic!("{next:?} was never made"));
        self.entry_is_whole(disk, next, manifest);
        let table: Value =
            serde_json::from_str(&self.disks.answer(&["sfdisk", "--json", &inside(disk, "")]))
                .unwrap();
        let parts = table["partitiontable"]["partitions"].as_array().unwrap();
        let hash = manifest.roothash.to_string();
        for (half, part) in [(&hash[..32], &manifest.root), (&hash[32..], &manifest.verity)] {
            let named = |line: &&Value| {
                line["uuid"].as_str().unwrap().replace('-', "").eq_ignore_ascii_case(half)
            };
            let line =
                parts.iter().find(named).unwrap_or_else(|| panic!("no partition {half}: {table}"));
            let found = digest(disk, line["start"].as_u64().unwrap() * 512, part.size);
            assert_eq!(found, part.sha256, "{} of {}", part.name, next.version);
        }
        let var = parts.iter().find(|line| line["name"] == "polder-var").unwrap();
        self.database_is_whole(disk, var["start"].as_u64().unwrap() * 512);
        next.version.to_string()
    }

    fn entry_is_whole(&self, disk: &Path, entry: &Entry, manifest: &Manifest) {
        let _ = fs::remove_file(self.disks.place("entry.efi"));
        let file = format!("::/EFI/Linux/{}", entry.file());
        self.disks.answer(&["mcopy", "-n", "-i", &inside(disk, BOOT), &file, "/mnt/vm/entry.efi"]);
        let copied = self.disks.place("entry.efi");
        assert_eq!(digest(&copied, 0, manifest.entry.size), manifest.entry.sha256, "{file}");
    }

    /// Decrypts the copy of the disk, whose passphrase is empty, without the device mapper that a machine has.
    fn open(&self, disk: &Path, start: u64) {
        let key = "cd /mnt/vm; rm -f key; : > empty; cryptsetup luksDump --batch-mode --dump-volume-key \
                   --volume-key-file key --key-file empty var.luks";
        self.disks.answer(&["sh", "-euc", key]);
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("vm/open_disk.py");
        let mut command = Command::new("python3");
        command.arg(script).arg(disk).arg(start.to_string());
        command.args(["key", "var.raw"].map(|name| self.disks.place(name)));
        assert!(command.status().unwrap().success());
    }

    /// After what any start does first: the file system's journal is played back.
    fn database_is_whole(&self, disk: &Path, start: u64) {
        copy_header(disk, start, &self.disks.place("var.luks"));
        self.open(disk, start);
        let checked = self.disks.status(&["e2fsck", "-fy", "/mnt/vm/var.raw"]);
        // 1: something was put right, as after any cut.
        assert!(matches!(checked, Some(0 | 1)), "e2fsck ended with {checked:?}");
        let folder = self.disks.place("database");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        for file in ["polder.db", "polder.db-wal"] {
            let dump = format!("dump /lib/polder/{file} /mnt/vm/database/{file}");
            self.disks.answer(&["debugfs", "-R", &dump, "/mnt/vm/var.raw"]);
        }
        let ask = "import sqlite3,sys; d=sqlite3.connect(sys.argv[1]); print(d.execute('pragma integrity_check').fetchone()[0], d.execute('select count(*) from members').fetchone()[0])";
        let python = Command::new("python3")
            .args(["-c", ask])
            .arg(folder.join("polder.db"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&python.stdout).trim().to_owned();
        assert_eq!(said, "ok 1", "{}", String::from_utf8_lossy(&python.stderr));
    }
}

/// A disk as the tools in the room call it.
fn inside(disk: &Path, more: &str) -> String {
    format!("/mnt/vm/{}{more}", disk.file_name().unwrap().to_string_lossy())
}

fn digest(path: &Path, start: u64, bytes: u64) -> Digest {
    let mut file = File::open(path).unwrap();
    file.seek(SeekFrom::Start(start)).unwrap();
    let mut hash = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    let mut rest = file.take(bytes);
    loop {
        match rest.read(&mut piece).unwrap() {
            0 => break,
            length => hash.update(&piece[..length]),
        }
    }
    Digest::from_bytes(hash.finalize().into())
}

/// Copies what is before the data of the volume that begins at this place of a disk.
fn copy_header(disk: &Path, start: u64, to: &Path) {
    let mut file = File::open(disk).unwrap();
    file.seek(SeekFrom::Start(start)).unwrap();
    let mut header = Vec::new();
    file.take(HEADER).read_to_end(&mut header).unwrap();
    fs::write(to, header).unwrap();
}
