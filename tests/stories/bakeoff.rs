//! An owner compares the box's engine with another one, on their own model and lengths.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use polder_stories::{Running, Up, free_port, need, polder, scaled};
use serde_json::Value;

/// llama.cpp's server with the same file.
struct Rival {
    child: Child,
    url: String,
}

impl Rival {
    fn start(model: &Path) -> Self {
        let port = free_port();
        let child = Command::new(need("POLDER_LLAMA_SERVER"))
            .args([
                "--host",
                "127.0.0.1",
                "--port",
                &port.to_string(),
                "-c",
                "8192",
                "-np",
                "2",
                "-t",
                "1",
                "-tb",
                "1",
            ])
            .arg("-m")
            .arg(model)
            .arg("--jinja")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let rival = Self { child, url: format!("http://127.0.0.1:{port}") };
        let until = Instant::now() + scaled(Duration::from_secs(120));
        while ureq::get(format!("{}/health", rival.url)).call().is_err() {
            assert!(Instant::now() < until, "llama.cpp's server does not start");
            std::thread::sleep(Duration::from_millis(100));
        }
        rival
    }
}

impl Drop for Rival {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn bakeoff(up: &Up, arguments: &[&str]) -> (bool, String, String) {
    let output = polder(&["bakeoff", "--ca", up.ca_file.to_str().unwrap(), "--key", &up.api_key])
        .args(arguments)
        .env("POLDER_THEIR_API_KEY", &up.api_key)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn an_owner_hears_whether_another_engine_answers_alike_and_which_to_keep() {
    let state = tempfile::tempdir().unwrap();
    let (_running, up) = Running::ready(state.path());
    let rival = Rival::start(&need("POLDER_SMOLLM2"));
    let mix = state.path().join("mix.jsonl");
    std::fs::write(
        &mix,
        "{\"prompt\": 80, \"answer\": 6, \"known\": 30}\n{\"prompt\": 50, \"answer\": 8}\n",
    )
    .unwrap();
    let mix = mix.to_str().unwrap();
    let few = ["--requests", "2", "--concurrency", "2", "--prompts", "2"];

    // Both at once.
    let sides = ["--ours", &up.url, "--theirs", &rival.url, "--mix", mix];
    let (ok, told, progress) = bakeoff(&up, &[&sides[..], &few, &["--json"]].concat());
    assert!(ok, "{told}{progress}");
    let found: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(found["parity"]["prompts"], 2, "{found}");
    assert!(found["parity"]["median_same"].as_u64().unwrap() >= 8, "{found}");
    for side in ["ours", "theirs"] {
        assert_eq!(found[side]["figures"]["answered"], 2, "{found}");
        assert!(found[side]["figures"]["rate"].as_f64().unwrap() > 0.0, "{found}");
    }
    assert!(["ours", "theirs", "either", "neither"].contains(&found["keep"].as_str().unwrap()));
    assert!(progress.contains("left") || progress.contains("of 4"), "no progress: {progress}");

    // One after the other, as where a card has room for one only; in words.
    let kept = state.path().join("ours.json");
    let kept = kept.to_str().unwrap();
    let (ok, told, why) =
        bakeoff(&up, &[&["--ours", &up.url, "--save", kept, "--mix", mix], &few[..]].concat());
    assert!(ok, "{told}{why}");
    let their_ca = up.ca_file.to_str().unwrap();
    let (ok, told, why) =
        bakeoff(&up, &["--ours", kept, "--theirs", &up.url, "--their-ca", their_ca]);
    assert!(ok, "{told}{why}");
    // The same engine twice.
    assert!(told.contains("of 2 prompts 2 identical"), "{told}");
    assert!(told.contains("keep "), "{told}");
}

#[test]
fn what_cannot_be_compared_is_said_in_one_sentence() {
    let state = tempfile::tempdir().unwrap();
    let folder = state.path().to_str().unwrap();
    let said = |arguments: &[&str]| {
        let output = polder(arguments).args(["--state", folder]).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let gone = format!("http://127.0.0.1:{}", free_port());
    assert!(
        said(&["bakeoff", "--ours", &gone, "--theirs", &gone]).contains("is the engine running")
    );
    assert!(said(&["bakeoff", "--ours", "nowhere.json"]).contains("neither an address"));
    assert!(said(&["bakeoff"]).contains("--ours and --theirs"));
    let secret = gone.replace("http://", "http://me:s3cret@");
    for wrong in [&secret[..], "me:s3cret@box"] {
        let told = said(&["bakeoff", "--ours", wrong]);
        assert!(!told.contains("s3cret"), "{told}");
    }
}
