//! A model is brought in: from a disk with a flipped byte, through a cut, twice.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

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

/// A web server with the model's file, which counts the bytes that it gives and can take its time.
struct Mirror {
    address: String,
    given: Arc<AtomicU64>,
    slow: Arc<AtomicBool>,
}

impl Mirror {
    fn open() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = format!("http://{}/", listener.local_addr().unwrap());
        let (given, slow) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(true)));
        let mirror = Self { address, given: given.clone(), slow: slow.clone() };
        let file: Arc<[u8]> = std::fs::read(model_folder().join(FILE)).unwrap().into();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (file, given, slow) = (file.clone(), given.clone(), slow.clone());
                std::thread::spawn(move || drop(give(&stream, &file, &given, &slow)));
            }
        });
        mirror
    }
}

/// Answers one request for a range, or for the whole.
fn give(
    mut stream: &TcpStream,
    file: &[u8],
    given: &AtomicU64,
    slow: &AtomicBool,
) -> std::io::Result<()> {
    let (mut range, mut body) = (None, true);
    for line in BufReader::new(stream).lines() {
        let line = line?.to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        body &= !line.starts_with("head ");
        if let Some((first, last)) =
            line.strip_prefix("range: bytes=").and_then(|r| r.split_once('-'))
        {
            range = Some((first.parse().unwrap(), last.parse().unwrap_or(file.len() - 1)));
        }
    }
    let (first, last) = range.unwrap_or((0, file.len() - 1));
    let status = if range.is_some() { "206 Partial Content" } else { "200 OK" };
    write!(
        stream,
        "HTTP/1.1 {status}\r\netag: \"one\"\r\naccept-ranges: bytes\r\ncontent-length: {}\r\n\
         content-range: bytes {first}-{last}/{}\r\nconnection: close\r\n\r\n",
        last + 1 - first,
        file.len()
    )?;
    for piece in file[first..=last].chunks(64 << 10).filter(|_| body) {
        stream.write_all(piece)?;
        given.fetch_add(piece.len() as u64, Ordering::SeqCst);
        if slow.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}

#[test]
fn an_import_over_the_network_that_is_cut_goes_on_where_it_was() {
    const SIZE: u64 = 98_362_432;
    let (state, mirror) = (tempfile::tempdir().unwrap(), Mirror::open());
    let mut child = polder(&["weights", "import", "smollm2-135m-instruct", "--from"])
        .arg(&mirror.address)
        .arg("--state")
        .arg(state.path())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    // What is on disk is noted after two seconds or eight pieces of 8 MiB: some is fetched again.
    while mirror.given.load(Ordering::SeqCst) < SIZE / 10 * 9 {
        assert!(begun.elapsed() < Duration::from_secs(60), "the import does not get on");
        std::thread::sleep(Duration::from_millis(5));
    }
    polder_stories::send_signal(child.id(), Signal::KILL);
    child.wait().unwrap();
    mirror.slow.store(false, Ordering::SeqCst);
    // What was on its way to the dead process counts for the first time.
    std::thread::sleep(Duration::from_millis(200));
    let before = mirror.given.load(Ordering::SeqCst);
    assert!(!state.path().join("weights/blobs/sha256").join(DIGEST).exists());

    let output = import(state.path(), Path::new(&mirror.address));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(state.path().join("weights/blobs/sha256").join(DIGEST).exists());
    let again = mirror.given.load(Ordering::SeqCst) - before;
    assert!(
        again < SIZE * 3 / 4,
        "{again} of {SIZE} bytes were fetched again or for the first time"
    );
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
