//! A model is brought in: from a disk with a flipped byte, through a cut, twice.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use polder_stories::{model_folder, polder};
use rustix::process::Signal;

const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const DIGEST: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

fn import(state: &Path, from: &Path) -> std::process::Output {
    polder(&["weights", "import", "smollm2-135m-instruct", "--from"])
        .arg(from)
        .arg("--state")
        .arg(state)
        .output()
        .unwrap()
}

#[test]
fn a_flipped_byte_is_refused_by_name_and_nothing_becomes_visible() {
    let (state, disk) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut bytes = std::fs::read(model_folder().join(FILE)).unwrap();
    bytes[50_000_000] ^= 1;
    std::fs::write(disk.path().join(FILE), bytes).unwrap();
    let output = import(state.path(), disk.path());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(said.contains(FILE) && said.contains(&DIGEST[..12]), "{said}");
    assert!(!state.path().join("weights/blobs/sha256").join(DIGEST).exists());
    assert!(!state.path().join("weights/models/smollm2-135m-instruct").exists());

    // The good file afterwards is taken.
    assert!(import(state.path(), &model_folder()).status.success());
    assert!(state.path().join("weights/blobs/sha256").join(DIGEST).exists());
}

#[test]
fn an_import_that_is_killed_is_finished_by_the_next_one() {
    let state = tempfile::tempdir().unwrap();
    for pause in [20, 60, 120, 200] {
        let mut child = polder(&["weights", "import", "smollm2-135m-instruct", "--from"])
            .arg(model_folder())
            .arg("--state")
            .arg(state.path())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(pause));
        polder_stories::send_signal(child.id(), Signal::KILL);
        child.wait().unwrap();
        // Whatever is visible is whole.
        let blob = state.path().join("weights/blobs/sha256").join(DIGEST);
        if let Ok(found) = std::fs::metadata(&blob) {
            assert_eq!(found.len(), 98_362_432, "a half blob became visible after {pause} ms");
        }
    }
    assert!(import(state.path(), &model_folder()).status.success());
    let verified = polder(&["weights", "verify", "--state"]).arg(state.path()).output().unwrap();
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
}

#[test]
fn importing_twice_copies_nothing() {
    let state = tempfile::tempdir().unwrap();
    assert!(import(state.path(), &model_folder()).status.success());
    let blob = state.path().join("weights/blobs/sha256").join(DIGEST);
    let before = std::fs::metadata(&blob).unwrap();
    assert!(import(state.path(), &model_folder()).status.success());
    let after = std::fs::metadata(&blob).unwrap();
    assert_eq!((before.ino(), before.mtime_nsec()), (after.ino(), after.mtime_nsec()));
}

#[test]
fn a_byte_that_rots_in_the_store_is_found_by_verify_and_named() {
    let state = tempfile::tempdir().unwrap();
    assert!(import(state.path(), &model_folder()).status.success());
    let blob = state.path().join("weights/blobs/sha256").join(DIGEST);
    let mut bytes = std::fs::read(&blob).unwrap();
    bytes[1_000_000] ^= 0x10;
    let mut permissions = std::fs::metadata(&blob).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o600);
    std::fs::set_permissions(&blob, permissions).unwrap();
    std::fs::write(&blob, bytes).unwrap();
    let verified = polder(&["weights", "verify", "--state"]).arg(state.path()).output().unwrap();
    assert!(!verified.status.success());
    let said = String::from_utf8_lossy(&verified.stderr).into_owned()
        + &String::from_utf8_lossy(&verified.stdout);
    assert!(said.contains(FILE) || said.contains(DIGEST), "{said}");
}
