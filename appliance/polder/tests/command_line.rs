//! The binary as somebody types it, where no box needs to run.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn polder(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_polder"));
    command.args(arguments).stdin(Stdio::null());
    command
}

fn said(arguments: &[&str]) -> (bool, String) {
    let Output { status, stdout, stderr } = polder(arguments).output().unwrap();
    let text = [stdout, stderr].concat();
    (status.success(), String::from_utf8(text).unwrap())
}

/// As the image's unit runs it; on a machine where no such disk is, so that nothing is mounted.
#[test]
fn a_disk_that_is_not_there_is_not_lent_in_one_sentence_and_needs_no_taking_back() {
    let (ok, text) = said(&["backup", "disk", "lend", "0123-CAFE"]);
    let why = "error: the disk 0123-CAFE is not plugged in; plug it in";
    assert!(!ok && text.lines().any(|line| line.starts_with(why)), "{text}");
    assert_eq!(said(&["backup", "disk", "take-back", "0123-CAFE"]), (true, String::new()));
    let (ok, text) = said(&["backup", "disk", "lend", "../sda1"]);
    assert!(!ok && text.contains("../sda1"), "{text}");
}

#[test]
fn looking_at_a_box_that_is_not_there_says_how_to_make_one_and_makes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("box");
    let state_text = state.to_str().unwrap();
    for command in [
        &["status"] as &[&str],
        &["audit"],
        &["claim", "reopen"],
        &["site", "show"],
        &["site", "history"],
    ] {
        let arguments = [command, &["--state", state_text]].concat();
        let (ok, text) = said(&arguments);
        assert!(!ok && text.contains("`polder up`"), "{command:?}: {text}");
        assert!(text.starts_with("error: ") && text.lines().count() == 1, "{text}");
        assert!(!state.exists(), "{command:?} made a folder");
    }
}

#[test]
fn what_the_site_says_and_nobody_knows_is_shown_and_told() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().to_str().unwrap();
    let site = polder_site::Site::unclaimed(8443).to_toml();
    std::fs::write(folder.path().join("site.toml"), format!("{site}\n[keepin]\ndays = 3\n"))
        .unwrap();
    let (ok, text) = said(&["site", "show", "--state", state]);
    assert!(ok && text.contains("[keepin]\ndays = 3"), "{text}");
    assert!(text.contains("warning: site.toml says keepin, which"), "{text}");
    assert!(text.contains("if keeping is meant"), "{text}");
}

#[test]
fn a_misspelt_model_is_told_with_the_one_that_was_meant_and_nothing_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("box");
    let state_text = state.to_str().unwrap();
    for command in [
        &["recipes", "show", "smollm2-135m-instrct"] as &[&str],
        &["up", "--yes", "--model", "smollm2-135m-instrct", "--state", state_text],
        &["weights", "import", "smollm2-135m-instrct", "--state", state_text],
    ] {
        let (ok, text) = said(command);
        assert!(!ok && text.contains("smollm2-135m-instruct"), "{command:?}: {text}");
    }
    assert!(!state.exists());
}

#[test]
fn a_port_that_is_taken_is_named_before_anything_starts() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let state = tempfile::tempdir().unwrap();
    let (ok, text) = said(&["up", "--port", &port, "--state", state.path().to_str().unwrap()]);
    assert!(!ok && text.contains(&port) && text.lines().count() == 1, "{text}");
    assert!(!state.path().join("site.toml").exists());
}

#[test]
fn the_state_folder_is_made_for_its_owner_only() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("box");
    assert!(said(&["weights", "list", "--state", state.to_str().unwrap()]).0);
    assert_eq!(state.metadata().unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_reader_that_stops_early_is_no_error() {
    let mut child =
        polder(&["recipes"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(child.wait().unwrap().success(), "{text}");
    assert_eq!(text, "");
}

#[test]
fn a_box_that_nobody_listens_to_any_more_ends_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port().to_string();
    drop(free);
    let state = folder.path().join("box");
    let mut up = polder(&["up", "--state", state.to_str().unwrap(), "--port", &port])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop((up.stdout.take(), up.stderr.take()));
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = up.try_wait().unwrap() {
            break status;
        }
        if begun.elapsed() > Duration::from_secs(60) {
            up.kill().unwrap();
            up.wait().unwrap();
            panic!("it still runs");
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    assert!(status.success(), "{status}");
    let parts = std::fs::read_dir("/proc").unwrap().filter_map(|process| {
        let line = std::fs::read_to_string(process.ok()?.path().join("cmdline")).ok()?;
        line.contains(state.to_str()?).then_some(line)
    });
    assert_eq!(parts.collect::<Vec<_>>(), Vec::<String>::new(), "a part outlived the supervisor");
}
