//! The box is lost, and comes back from its backups and a sheet of paper.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use polder_control::{
    Actor, BackupWish, DoorReply, DoorRequest, KitWords, PartState, Reply, Request, Sockets,
};
use polder_stories::{Running, Up, free_port, import_trial_model, polder, scaled};

/// `polder backup …` of the box in `state`, with something typed.
fn backup(state: &Path, arguments: &[&str], typed: &str) -> Output {
    let mut command = polder(&["backup"]);
    command.args(arguments).arg("--state").arg(state);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(typed.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

fn done(state: &Path, arguments: &[&str], typed: &str) -> String {
    let output = backup(state, arguments, typed);
    assert!(output.status.success(), "backup {arguments:?}: {}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// The key, as a person would type it from the sheet.
pub(crate) fn key_on(sheet: &str) -> String {
    let letters = |line: &&str| line.trim().chars().all(|c| c.is_ascii_lowercase() || c == ' ');
    let lines = sheet.lines().filter(|line| line.starts_with("    ") && !line.trim().is_empty());
    let lines: Vec<&str> = lines.filter(letters).collect();
    assert_eq!(lines.len(), 3, "{sheet}");
    lines.join(" ").to_uppercase()
}

/// A box whose backups are set up, and what is on paper.
fn with_backups(state: &Path, disk: &Path) -> (Running, Up, String) {
    let (running, up) = Running::ready(state);
    let disk = disk.to_str().unwrap();
    let early = text(&backup(state, &["to", disk], ""));
    assert!(early.contains("emergency kit"), "backups began without a kit: {early}");
    let key = key_on(&done(state, &["kit"], ""));
    let wrong = text(&backup(state, &["kit", "--confirm"], "cbde fghi"));
    assert!(wrong.contains("nine groups"), "{wrong}");
    done(state, &["kit", "--confirm"], &key);
    let plan = done(state, &["to", disk, "--plan"], "");
    assert!(plan.contains("1. Make a store for backups"), "{plan}");
    done(state, &["to", disk], "");
    (running, up, key)
}

/// Waits until the box is the restored one, its supervisor answers and so does its model.
fn serves(running: &Running) {
    let deadline = Instant::now() + scaled(Duration::from_secs(60));
    let restored = || {
        let names = std::fs::read_dir(&running.state).unwrap().flatten().map(|e| e.file_name());
        names.into_iter().any(|name| name.to_string_lossy().starts_with("before-restore-"))
            && !running.state.join("restore").exists()
    };
    let answers = || UnixStream::connect(Sockets::of(&running.state).control()).is_ok();
    while !(restored() && answers()) {
        assert!(Instant::now() < deadline, "it is not restored; {}", running.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    running.until("a ready engine", |status| {
        status.engines.first().is_some_and(|engine| engine.part.state == PartState::Ready)
    });
}

/// What a member has of the box: its address, its authority, a key.
fn as_before(up: &Up, ca: &Path, port: u16) -> Up {
    Up { url: format!("https://localhost:{port}"), ca_file: ca.to_owned(), ..up.clone() }
}

fn kept(ca: &Path, folder: &Path) -> PathBuf {
    let kept = folder.join("members-ca.pem");
    std::fs::copy(ca, &kept).unwrap();
    kept
}

#[test]
fn a_box_that_is_thrown_away_comes_back_elsewhere_and_its_members_notice_nothing() {
    let (disk, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let old = tempfile::tempdir().unwrap();
    let (running, up, key) = with_backups(old.path(), disk.path());
    let drilled = done(old.path(), &["drill"], "");
    assert!(drilled.contains("a whole box, and a door started on it"), "{drilled}");
    assert!(!old.path().join("drill").exists());
    let listed = done(old.path(), &["list"], "");
    assert_eq!(listed.lines().count(), 1, "{listed}");
    let ca = kept(&up.ca_file, elsewhere.path());
    assert!(running.stop().success());
    drop(old);

    let new = elsewhere.path().join("new");
    std::fs::create_dir(&new).unwrap();
    import_trial_model(&new);
    let from = disk.path().to_str().unwrap();
    let wrong = backup(&new, &["restore", "--from", from], &"c".repeat(36));
    assert!(!wrong.status.success() && !new.join("site.toml").exists(), "{}", text(&wrong));
    let said = done(&new, &["restore", "--from", from], &key);
    assert!(said.contains("this is the box polder"), "{said}");

    let port = free_port();
    let running = Running::start(&new, port, &[]);
    serves(&running);
    let member = as_before(&up, &ca, port);
    let answer = member.client().chat(&up.model, "What is the capital of France?");
    assert_eq!(answer.status, 200, "the member's key or certificate does not work any more");
    // And it goes on with its backups, at the same place, under the same key; of one hour one is kept.
    done(&new, &["now"], "");
    let after = done(&new, &["list"], "");
    assert!(after.lines().count() == 1 && after != listed, "{after}");
}

#[test]
fn a_box_that_runs_becomes_another_one_in_one_sitting() {
    let (disk, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let old = tempfile::tempdir().unwrap();
    let (running, up, key) = with_backups(old.path(), disk.path());
    let ca = kept(&up.ca_file, elsewhere.path());
    assert!(running.stop().success());

    let new = elsewhere.path().join("new");
    std::fs::create_dir(&new).unwrap();
    import_trial_model(&new);
    let port = free_port();
    let running = Running::start(&new, port, &[]);
    running.line_with("http");
    let ask = |from: &Path, key: &str| {
        let from = from.to_str().unwrap().parse().unwrap();
        let wish = BackupWish::Restore { from, snapshot: None };
        let key = Some(KitWords(key.to_owned()));
        running.ask(&Request::Backups { wish, key, by: Actor::Claimer })
    };
    let Reply::Refused(why) = ask(elsewhere.path(), &key) else {
        panic!("an empty place was taken")
    };
    assert!(why.contains("no backups"), "{why}");
    assert!(matches!(ask(disk.path(), &key), Reply::Accepted(_)));
    // The same process goes on as the other box.
    serves(&running);
    let member = as_before(&up, &ca, port);
    let answer = member.client().chat(&up.model, "What is the capital of France?");
    assert_eq!(answer.status, 200);
    let path = Sockets::of(&new).gateway();
    let ready =
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(
            async {
                let mut door: polder_control::Client<DoorRequest, DoorReply> =
                    polder_control::Client::connect(&path).await?;
                door.ask(&DoorRequest::Ready).await
            },
        );
    assert!(matches!(ready, Ok(DoorReply::Ready { claimed: true, .. })));
    assert!(!new.join("restore").exists() && !new.join("backup/restore-key").exists());
}
