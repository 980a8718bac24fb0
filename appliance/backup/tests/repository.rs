//! Against the real `restic`: from a state folder to a store and back.
#![allow(clippy::unwrap_used, reason = "a test that meets what it did not expect should end there")]

use std::fs;
use std::path::{Path, PathBuf};

use polder_backup::{
    BackupError, Folders, KitKey, Location, Repository, Restic, Stop, Store, gather, look, restore,
};
use polder_members::{Members, NewKey, NewMember, Role, Secret};
use polder_pki::{Keeper, Names};
use polder_site::{Retention, Site, Store as SiteStore};

/// In every kind of secret: must not be in the store.
const CANARY: &str = "canary-of-the-marsh-4711";

/// A box with a member, a key and an authority; what a member's key is.
fn make_box(state: &Path) -> String {
    let mut site = Site::unclaimed(8443);
    site.name = "birch".parse().unwrap();
    site.common.insert("Agent".into(), format!("Be brief, {CANARY}."));
    SiteStore::open(state).unwrap().write(&site, "made").unwrap();
    let names = Names { hosts: vec!["birch.local".into()], addresses: Vec::new() };
    Keeper::open(&state.join("pki"), &names, jiff::Timestamp::now().as_second()).unwrap();
    fs::create_dir_all(state.join("audit")).unwrap();
    fs::write(state.join("audit/trail.jsonl"), format!("{{\"on\":\"{CANARY}\"}}\n")).unwrap();
    fs::create_dir_all(state.join("weights/blobs/sha256")).unwrap();
    fs::write(state.join("weights/blobs/sha256/aa"), vec![7; 4 << 20]).unwrap();
    fs::create_dir_all(state.join("weights/manifests")).unwrap();
    fs::write(state.join("weights/manifests/tiny.toml"), "x").unwrap();
    let members = Members::open(&state.join("polder.db")).unwrap();
    let password = Secret::new("four words in a row".into());
    let ada = NewMember { name: "ada".into(), email: None, password };
    let ada = members.add_member(&ada, Role::Steward).unwrap();
    let label = CANARY.to_owned();
    let minted = members.mint_key(ada.id, &NewKey { label, ..NewKey::default() }).unwrap();
    minted.key.expose().to_owned()
}

struct Place {
    folder: tempfile::TempDir,
    key: KitKey,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), key: KitKey::make().unwrap() }
    }
    fn store(&self) -> PathBuf {
        self.folder.path().join("store/polder-backup")
    }
    fn with(&self, key: &KitKey) -> Restic {
        let private = self.folder.path().join("private");
        Restic::of(&Location::Folder(self.store()), key, 0, &private)
    }
    fn restic(&self) -> Restic {
        self.with(&self.key)
    }
    fn save(&self, state: &Path) -> polder_backup::Saved {
        let stage = Folders::of(state).stage();
        gather(state, &stage, "birch").unwrap();
        self.restic().save(&stage, "birch", &mut |_| {}, &Stop::default()).unwrap()
    }
}

fn files_in(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => files.extend(files_in(&entry.path())),
            false => files.push(entry.path()),
        }
    }
    files
}

fn restored(place: &Place, key: &KitKey, state: &Path) -> Result<String, BackupError> {
    let (folders, restic) = (Folders::of(state), place.with(key));
    let all = restic.snapshots()?;
    let chosen = restore::choose(&all, None, "the store")?;
    restore::fetch(&folders, &restic, &chosen, &all, &mut |_| {}, &Stop::default())?;
    let examined = restore::examine(&folders)?;
    restore::ready(&folders, key)?;
    restore::settle(state)?;
    Ok(examined.words())
}

#[test]
fn a_box_comes_back_from_the_paper_alone_with_the_same_members_keys_and_authority() {
    let (old, new, place) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), Place::new());
    let api_key = make_box(old.path());
    place.restic().make().unwrap();
    let saved = place.save(old.path());
    assert!(saved.bytes > 0 && saved.bytes < 1 << 20, "weights were sent: {saved:?}");
    let typed = KitKey::typed(&place.key.expose().to_uppercase().replace('-', " ")).unwrap();
    let before = polder_pki::examine(&old.path().join("pki")).unwrap();
    drop(old);
    let words = restored(&place, &typed, new.path()).unwrap();
    assert!(words.contains("the box birch") && words.contains("1 member"), "{words}");
    let after = polder_pki::examine(&new.path().join("pki")).unwrap();
    assert_eq!((after.pem, after.fingerprint), (before.pem, before.fingerprint));
    let members = Members::open(&new.path().join("polder.db")).unwrap();
    assert!(members.verify_key(&api_key).is_ok(), "the member's key does not work");
    assert!(new.path().join("weights/manifests/tiny.toml").exists());
    // And it goes on with its backups.
    assert!(matches!(look(&place.restic(), &Location::Folder(place.store())), Ok(Store::Ours(1))));
}

#[test]
fn no_secret_is_in_the_clear_in_the_store() {
    let (state, place) = (tempfile::tempdir().unwrap(), Place::new());
    let api_key = make_box(state.path());
    place.restic().make().unwrap();
    place.save(state.path());
    let files = files_in(&place.store());
    assert!(files.len() > 4);
    // The canary is where it is looked for, so that the search below can find something.
    let stage = files_in(&Folders::of(state.path()).stage());
    let has = |file: &PathBuf, what: &str| {
        let bytes = fs::read(file).unwrap();
        bytes.windows(what.len()).any(|window| window == what.as_bytes())
    };
    assert!(stage.iter().filter(|file| has(file, CANARY)).count() >= 3);
    for secret in [CANARY, &api_key[..20], place.key.expose(), "PRIVATE KEY", "birch"] {
        for file in &files {
            assert!(!has(file, secret), "{secret} is in {}", file.display());
            assert!(!file.to_string_lossy().contains(secret));
        }
    }
}

#[test]
fn a_wrong_key_a_damaged_pack_and_an_empty_place_are_told_apart_and_change_nothing() {
    let (old, new, place) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), Place::new());
    make_box(old.path());
    let nothing = restored(&place, &place.key, new.path()).unwrap_err().to_string();
    assert!(nothing.contains("no backups at"), "{nothing}");
    place.restic().make().unwrap();
    place.save(old.path());
    let wrong = restored(&place, &KitKey::make().unwrap(), new.path()).unwrap_err().to_string();
    assert!(wrong.contains("the key does not open"), "{wrong}");
    let mut packs = files_in(&place.store().join("data"));
    packs.sort_by_key(|pack| fs::metadata(pack).unwrap().len());
    let largest = packs.last().unwrap();
    let mut bytes = fs::read(largest).unwrap();
    let middle = bytes.len() / 3;
    bytes[middle] ^= 1;
    let mut permissions = fs::metadata(largest).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o600);
    fs::set_permissions(largest, permissions).unwrap();
    fs::write(largest, bytes).unwrap();
    let damaged = restored(&place, &place.key, new.path()).unwrap_err();
    assert!(matches!(damaged, BackupError::Damaged { .. }), "{damaged}");
    let checked = place.restic().check(100, &Stop::default()).unwrap_err();
    assert!(matches!(checked, BackupError::Damaged { .. }), "{checked}");
    assert!(!new.path().join("site.toml").exists() && !restore::pending(&Folders::of(new.path())));
}

#[test]
fn old_backups_are_removed_as_the_site_says_and_a_foreign_folder_is_left_alone() {
    let (state, place) = (tempfile::tempdir().unwrap(), Place::new());
    make_box(state.path());
    place.restic().make().unwrap();
    for _ in 0..3 {
        place.save(state.path());
    }
    let keep = Retention { hours: 1, days: 0, weeks: 0, months: 0 };
    assert!(place.restic().thin(&keep, &Stop::default()).unwrap());
    assert_eq!(place.restic().snapshots().unwrap().len(), 1);
    let foreign = tempfile::tempdir().unwrap();
    fs::write(foreign.path().join("letters.txt"), "dear").unwrap();
    let location = Location::Folder(foreign.path().to_owned());
    assert!(matches!(look(&place.restic(), &location), Err(BackupError::Foreign { .. })));
}

#[test]
fn what_is_stopped_ends_at_once_and_is_done_anew_the_next_time() {
    let (state, place) = (tempfile::tempdir().unwrap(), Place::new());
    make_box(state.path());
    // Large enough to be cut off in the middle, and not to be pressed together.
    let mut noise = vec![0; 12 << 20];
    let mut seed = 1_u64;
    for byte in &mut noise {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *byte = (seed >> 56) as u8;
    }
    fs::write(state.path().join("large"), noise).unwrap();
    place.restic().make().unwrap();
    let stage = Folders::of(state.path()).stage();
    gather(state.path(), &stage, "birch").unwrap();
    let stop = Stop::default();
    let (told, other) = (stop.clone(), stop.clone());
    std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(300));
        other.now();
    });
    let slow = Restic::of(&Location::Folder(place.store()), &place.key, 1024, state.path());
    let ended = slow.save(&stage, "birch", &mut |_| {}, &told);
    assert!(matches!(ended, Err(BackupError::Stopped)), "{ended:?}");
    assert_eq!(place.restic().snapshots().unwrap().len(), 0);
    place.save(state.path());
    assert_eq!(place.restic().snapshots().unwrap().len(), 1);
}

/// Debian's rclone, which serves restic's protocol and lets nothing be removed.
struct Server {
    child: std::process::Child,
    address: String,
}

const LOGIN: &str = "box:a-password-of-the-spare";

impl Server {
    fn start(folder: &Path) -> Self {
        let port = {
            let free = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
            free.local_addr().unwrap().port()
        };
        let (user, password) = LOGIN.split_once(':').unwrap();
        let mut command = std::process::Command::new("rclone");
        command.args(["serve", "restic", "--append-only", "--addr", &format!("127.0.0.1:{port}")]);
        command.args(["--config", "/dev/null", "--user", user, "--pass", password]).arg(folder);
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let child =
            command.spawn().expect("rclone starts; install it (Debian: apt install rclone)");
        let begun = std::time::Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begun.elapsed().as_secs() < 20, "rclone does not listen");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        Self { child, address: format!("http://127.0.0.1:{port}/") }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What everybody on the machine can see of restic's processes.
fn command_lines() -> String {
    let mut all = String::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        for file in ["cmdline", "environ"] {
            let bytes = fs::read(entry.path().join(file)).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes).replace('\0', " ");
            if file == "environ" || text.starts_with("restic") {
                all += &text;
            }
        }
    }
    all
}

#[test]
fn a_server_that_lets_nothing_be_removed_is_a_place_and_no_secret_is_seen_on_the_way() {
    let (old, new, place) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), Place::new());
    make_box(old.path());
    let server = Server::start(&place.folder.path().join("served"));
    let private = place.folder.path().join("private");
    let of = |login: Option<&str>| {
        let location =
            Location::Server { address: server.address.clone(), login: login.map(str::to_owned) };
        (Restic::of(&location, &place.key, 0, &private), location)
    };
    let (stranger, _) = of(None);
    let refused = stranger.make().unwrap_err().to_string();
    assert!(refused.contains("polder backup login"), "{refused}");
    let (restic, location) = of(Some(LOGIN));
    assert_eq!(look(&restic, &location).unwrap(), Store::Nothing);
    restic.make().unwrap();
    let stage = Folders::of(old.path()).stage();
    gather(old.path(), &stage, "birch").unwrap();
    let seen = std::sync::Mutex::new(String::new());
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                *seen.lock().unwrap() += &command_lines();
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        });
        for _ in 0..2 {
            restic.save(&stage, "birch", &mut |_| {}, &Stop::default()).unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    let seen = seen.into_inner().unwrap();
    assert!(seen.contains("--password-file /dev/stdin"), "nobody looked at the right moment");
    for secret in [place.key.expose(), "box:a-password"] {
        assert!(!seen.contains(secret), "everybody could see {secret}");
    }
    assert!(
        fs::read_dir(&private).unwrap().next().is_none(),
        "the address with the password is still there"
    );
    let keep = Retention { hours: 1, days: 0, weeks: 0, months: 0 };
    assert!(!restic.thin(&keep, &Stop::default()).unwrap(), "something was removed");
    assert_eq!(restic.snapshots().unwrap().len(), 2);
    let folders = Folders::of(new.path());
    let all = restic.snapshots().unwrap();
    let newest = restore::choose(&all, None, "the server").unwrap();
    restore::fetch(&folders, &restic, &newest, &all, &mut |_| {}, &Stop::default()).unwrap();
    assert_eq!(restore::examine(&folders).unwrap().name, "birch");
    drop(server);
    let away = restic.snapshots().unwrap_err().to_string();
    assert!(away.contains("cannot be reached"), "{away}");
}

/// The spare's side of a link, on a thread of its own until it is dropped.
struct Spare {
    runtime: tokio::runtime::Runtime,
    state: tempfile::TempDir,
    port: u16,
}

impl Spare {
    fn start(disk_percent: u8) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let state = tempfile::tempdir().unwrap();
        let port =
            std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let mut site = Site::unclaimed(8443);
        site.name = "ash".parse().unwrap();
        let spare = polder_site::Spare::of(polder_site::SpareRole::ForAnother);
        site.spare = Some(polder_site::Spare { port, disk_percent, ..spare });
        let at = state.path().to_owned();
        runtime.spawn(async move {
            let mounts = polder_spare::Mounts::default();
            polder_spare::serve(&at, &site, mounts, std::future::pending()).await.unwrap();
        });
        Self { runtime, state, port }
    }

    fn pair_with(&self, main: &Path) {
        use polder_control::{Client, Sockets, SpareReply, SpareRequest};
        let path = Sockets::of(self.state.path()).spare();
        let begun = std::time::Instant::now();
        let code = self.runtime.block_on(async {
            let mut part: Client<SpareRequest, SpareReply> = loop {
                match Client::connect(&path).await {
                    Ok(part) => break part,
                    Err(error) => assert!(begun.elapsed().as_secs() < 30, "{error}"),
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            };
            match part.ask(&SpareRequest::ShowCode).await.unwrap() {
                SpareReply::Code { code, .. } => code.parse().unwrap(),
                other => panic!("{other:?}"),
            }
        });
        let address = format!("127.0.0.1:{}", self.port);
        let pairing = polder_spare::pair(main, &address, &code, "birch", None);
        self.runtime.block_on(pairing).unwrap();
    }

    fn store(&self) -> PathBuf {
        let folders = polder_spare::Folders::of(self.state.path());
        let peer = polder_spare::Peer::read(&folders).unwrap().unwrap();
        folders.store_of(&peer.certificate)
    }
}

/// What restic itself says when it is to remove all but the last one. It would go on trying for a minute.
fn forget(spare: &Spare, main: &Path, key: &KitKey) -> String {
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Command, Stdio};
    let at = polder_spare::Folders::of(main);
    let mut restic = Command::new("restic")
        .args(["--repo", &format!("rest:https://127.0.0.1:{}/backup/", spare.port)])
        .arg("--cacert")
        .arg(at.peer_certificate())
        .arg("--tls-client-cert")
        .arg(at.identity())
        .args(["--password-file", "/dev/stdin", "--no-cache"])
        .args(["forget", "--keep-last", "1", "--group-by", "", "--prune"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    writeln!(restic.stdin.take().unwrap(), "{}", key.expose()).unwrap();
    let lines = BufReader::new(restic.stderr.take().unwrap()).lines().map_while(Result::ok);
    let said = lines.into_iter().find(|line| line.contains("40")).unwrap_or_default();
    restic.kill().unwrap();
    restic.wait().unwrap();
    said
}

#[test]
fn a_spare_keeps_backups_that_the_main_box_can_read_and_restore_and_not_remove() {
    let (spare, main) = (Spare::start(50), tempfile::tempdir().unwrap());
    make_box(main.path());
    let folders = Folders::of(main.path());
    let key = KitKey::of_box(&folders).unwrap();
    let alone = polder_backup::locate(&polder_site::BackupPlace::Spare, &folders).unwrap_err();
    assert!(alone.to_string().contains("paired with no spare"), "{alone}");
    spare.pair_with(main.path());
    let location = polder_backup::locate(&polder_site::BackupPlace::Spare, &folders).unwrap();
    let restic = Restic::of(&location, &key, 0, &folders.own());
    assert_eq!(look(&restic, &location).unwrap(), Store::Nothing);
    restic.make().unwrap();
    let save = || {
        gather(main.path(), &folders.stage(), "birch").unwrap();
        restic.save(&folders.stage(), "birch", &mut |_| {}, &Stop::default()).unwrap()
    };
    let (first, second) = (save(), save());
    assert!(first.added > second.added, "{first:?} {second:?}");
    assert_eq!(look(&restic, &location).unwrap(), Store::Ours(2));
    restic.check(100, &Stop::default()).unwrap();

    // As with `rclone serve restic --append-only`: nothing of the past can be taken away from here.
    let only_the_last = Retention { hours: 1, days: 0, weeks: 0, months: 0 };
    assert!(forget(&spare, main.path(), &key).contains("403"));
    assert_eq!(look(&restic, &location).unwrap(), Store::Ours(2));

    let back = tempfile::tempdir().unwrap();
    let newest = restore::choose(&restic.snapshots().unwrap(), None, "the spare").unwrap();
    restic.fetch(&newest, back.path(), &mut |_| {}, &Stop::default()).unwrap();
    assert_eq!(polder_backup::examine(back.path()).unwrap().members, 1);

    // On the spare it is a store in a folder, which a trial restore opens, and where old ones do go.
    let there = Location::Folder(spare.store());
    let there = Restic::of(&there, &key, 0, &spare.state.path().join("private"));
    there.check(100, &Stop::default()).unwrap();
    assert!(there.thin(&only_the_last, &Stop::default()).unwrap());
    assert_eq!(there.snapshots().unwrap().len(), 1);
    for file in files_in(&spare.state.path().join("spare")) {
        let text = fs::read(&file).unwrap();
        assert!(!text.windows(CANARY.len()).any(|w| w == CANARY.as_bytes()), "{}", file.display());
    }

    drop(spare);
    let away = restic.snapshots().unwrap_err().to_string();
    assert!(away.contains("the spare ash") && away.contains("cannot be reached"), "{away}");
}

#[test]
fn a_spare_without_room_says_so() {
    let (spare, main) = (Spare::start(0), tempfile::tempdir().unwrap());
    make_box(main.path());
    spare.pair_with(main.path());
    let folders = Folders::of(main.path());
    let key = KitKey::of_box(&folders).unwrap();
    let location = polder_backup::locate(&polder_site::BackupPlace::Spare, &folders).unwrap();
    let full = Restic::of(&location, &key, 0, &folders.own()).make().unwrap_err();
    assert!(matches!(full, BackupError::NoSpace(_)), "{full:?}");
    assert!(full.to_string().contains("the spare ash is full"), "{full}");
}
