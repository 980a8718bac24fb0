//! How fast backups and restores are, beside plain restic on the same data in the same run: a table with ratios.
//!
//!     cargo run --release -p polder-backup --example pace -- 256
//!
//! The number is MiB of data that cannot be pressed together, in the shape of a state folder. Both sides write to the same kind of folder beside each other,
//! each with a store of its own; what is measured on our side is all that a backup does (laying out and sending) and all that a restore does (fetching,
//! looking at it, putting it in place).
#![allow(
    clippy::unwrap_used,
    reason = "a measurement that meets what it did not expect should end there"
)]

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use polder_backup::{Folders, KitKey, Location, Repository, Restic, Stop, gather, restore};
use polder_members::{Members, NewMember, Role, Secret};
use polder_pki::{Keeper, Names};
use polder_site::{Site, Store};

fn main() {
    let mib: usize = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(256);
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    let state = at("state");
    make_box(&state, mib);
    let bytes = folder_size(&state) as f64 / f64::from(1 << 20);

    let key = KitKey::make().unwrap();
    let ours = Restic::of(&Location::Folder(at("ours")), &key, 0, &at("private"));
    ours.make().unwrap();
    restic(&key, &at("plain"), None, &["init"]);
    let stage = Folders::of(&state).stage();
    let begun = Instant::now();
    gather(&state, &stage, "pace").unwrap();
    ours.save(&stage, "pace", &mut |_| {}, &Stop::default()).unwrap();
    restore::clear(&stage).unwrap();
    let saved = begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    restic(&key, &at("plain"), Some(&state), &["backup", "--exclude", "backup", "."]);
    let plain_saved = begun.elapsed().as_secs_f64();

    let new = at("new");
    fs::create_dir(&new).unwrap();
    let folders = Folders::of(&new);
    let begun = Instant::now();
    let all = ours.snapshots().unwrap();
    let chosen = restore::choose(&all, None, "ours").unwrap();
    let listed = begun.elapsed().as_secs_f64();
    restore::fetch(&folders, &ours, &chosen, &all, &mut |_| {}, &Stop::default()).unwrap();
    let fetched = begun.elapsed().as_secs_f64();
    restore::examine(&folders).unwrap();
    restore::ready(&folders, &key).unwrap();
    restore::settle(&new).unwrap();
    let restored = begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    restic(
        &key,
        &at("plain"),
        None,
        &["restore", "latest", "--target", at("out").to_str().unwrap()],
    );
    let plain_restored = begun.elapsed().as_secs_f64();

    println!("| {bytes:.0} MiB | Polder, MB/s | restic, MB/s | ratio |\n|---|---|---|---|");
    let line = |what: &str, ours: f64, plain: f64| {
        let pace = |seconds: f64| bytes * 1.048_576 / seconds;
        println!("| {what} | {:.0} | {:.0} | {:.2} |", pace(ours), pace(plain), plain / ours);
    };
    line("first backup", saved, plain_saved);
    line("restore", restored, plain_restored);
    println!(
        "\nOf the restore: listing {listed:.2} s, fetching {:.2} s, looking at it and putting it in place {:.2} s",
        fetched - listed,
        restored - fetched
    );
}

fn make_box(state: &Path, mib: usize) {
    fs::create_dir(state).unwrap();
    Store::open(state).unwrap().write(&Site::unclaimed(8443), "made").unwrap();
    let names = Names { hosts: vec!["pace.local".into()], addresses: Vec::new() };
    Keeper::open(&state.join("pki"), &names, jiff::Timestamp::now().as_second()).unwrap();
    let members = Members::open(&state.join("polder.db")).unwrap();
    let password = Secret::new("four words in a row".into());
    let ada = NewMember { name: "ada".into(), email: None, password };
    members.add_member(&ada, Role::Steward).unwrap();
    fs::create_dir(state.join("audit")).unwrap();
    let mut seed = 1_u64;
    for part in 0..mib.div_ceil(16) {
        let mut noise = vec![0_u8; 16 << 20];
        for eight in noise.chunks_mut(8) {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            eight.copy_from_slice(&seed.to_le_bytes());
        }
        fs::write(state.join("audit").join(format!("part-{part}")), noise).unwrap();
    }
}

fn folder_size(folder: &Path) -> u64 {
    let size = |entry: fs::DirEntry| match entry.metadata().unwrap() {
        found if found.is_dir() => folder_size(&entry.path()),
        found => found.len(),
    };
    fs::read_dir(folder).unwrap().flatten().map(size).sum()
}

fn restic(key: &KitKey, store: &Path, folder: Option<&Path>, arguments: &[&str]) {
    let mut command = Command::new("restic");
    command.arg("--repo").arg(store).args([
        "--password-file",
        "/dev/stdin",
        "--no-cache",
        "--quiet",
    ]);
    command.args(arguments).stdin(Stdio::piped());
    if let Some(folder) = folder {
        command.current_dir(folder);
    }
    let mut child = command.spawn().unwrap();
    writeln!(child.stdin.take().unwrap(), "{}", key.expose()).unwrap();
    assert!(child.wait().unwrap().success(), "restic {arguments:?}");
}
