//! A card fails under an engine: its answers end with an error, the process ends and says of what, and the next one goes on with the same
//! conversation from disk. Real processes; nobody waits for ever.

#![allow(clippy::unwrap_used)] // Helpers outside test functions unwrap too.

mod common;
#[path = "../../backend/cuda/tests/common/faults.rs"]
mod faults;
#[path = "common/golden.rs"]
mod golden;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use common::{Answer, open};
use faults::Breaker;
use golden::make_model;
use http_body_util::BodyExt;
use polder_backend_cuda::pack::Pack;
use polder_engine_server::{EngineError, EngineOptions, Keeping, run};
use serde_json::{Value, json};

/// Set for the process that is the engine: the folder with its model, its socket and what it keeps; and what it may take of the card.
const HOME: &str = "POLDER_TEST_HOME";
const MEMORY: &str = "POLDER_TEST_MEMORY";
/// Longest that a step may hang.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest from a fault to the engine's end.
const END: Duration = Duration::from_secs(30);

/// No test, but what the others start: the engine, which breaks its card when a file says how. Without its folder it does nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a GPU"]
async fn the_engine_itself() {
    let Some(home) = std::env::var_os(HOME).map(PathBuf::from) else { return };
    let mut options =
        EngineOptions::new("test", home.join("engine.sock"), home.join("model"), "tiny");
    let made = Some(std::env::temp_dir().join("polder-test-kernels"));
    options.kernels = Pack { shipped: std::env::var_os("POLDER_KERNELS").map(PathBuf::from), made };
    options.patience = PATIENCE;
    options.memory = std::env::var(MEMORY).ok().map(|text| text.parse().unwrap());
    options.keeping = Some(Keeping {
        weights: "the weights of the golden files".into(),
        folder: Some(home.join("kv")),
        host_bytes: Some(16 << 20),
        disk_bytes: 64 << 20,
        disk_reserve_bytes: 0,
        retention: Duration::from_secs(3600),
    });
    std::thread::spawn(move || {
        let order = home.join("fault");
        let mut breaker = None;
        loop {
            std::thread::sleep(Duration::from_millis(5));
            match std::fs::read_to_string(&order).unwrap_or_default().as_str() {
                "ready" => {
                    breaker.get_or_insert_with(Breaker::new);
                }
                "trap" => break breaker.unwrap().trap(),
                "write nowhere" => break breaker.unwrap().write_nowhere(),
                "hang" => {
                    breaker.as_ref().unwrap().hang();
                    // It is never let go.
                    std::mem::forget(breaker);
                    break;
                }
                _ => continue,
            }
            let _ = std::fs::remove_file(&order);
        }
        let _ = std::fs::remove_file(&order);
    });
    let status = match run(options, std::future::pending()).await {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("the engine ends: {error}");
            error.exit_status()
        }
    };
    // As the real one does: what the driver left to be run at the end may wait for a kernel that hangs.
    std::thread::spawn(|| {
        std::thread::sleep(Duration::from_secs(5));
        eprintln!("its end had to be hurried");
        Command::new("kill").args(["-9", &std::process::id().to_string()]).status().unwrap();
    });
    std::process::exit(status.into());
}

struct Engine {
    process: Child,
    home: PathBuf,
}

impl Engine {
    fn begin(home: &Path, memory: Option<u64>) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--ignored", "--exact", "--nocapture", "the_engine_itself"]).env(HOME, home);
        if let Some(memory) = memory {
            command.env(MEMORY, memory.to_string());
        }
        Self { process: command.spawn().unwrap(), home: home.to_owned() }
    }

    async fn start(home: &Path) -> Self {
        let engine = Self::begin(home, None);
        for _ in 0..6000 {
            if tokio::net::UnixStream::connect(engine.socket()).await.is_ok()
                && open(&engine.socket(), "GET", "/health", &[], Vec::new()).await.status() == 200
            {
                return engine;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the engine did not start within two minutes");
    }

    fn socket(&self) -> PathBuf {
        self.home.join("engine.sock")
    }

    /// Has the engine do something to its card, and waits until it has.
    async fn order(&self, what: &str) {
        let (new, file) = (self.home.join("order"), self.home.join("fault"));
        std::fs::write(&new, what).unwrap();
        std::fs::rename(new, &file).unwrap();
        for _ in 0..6000 {
            if !file.exists() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{what} was never done");
    }

    async fn ask(&self, messages: &[Value]) -> Value {
        let body = json!({
            "model": "tiny", "messages": messages, "temperature": 0, "max_tokens": 24,
            "ignore_eos": true,
        });
        let (headers, body) = ([("x-polder-member", "ada")], body.to_string().into_bytes());
        let answer = open(&self.socket(), "POST", "/v1/chat/completions", &headers, body).await;
        let answer = Answer::read(answer).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.json()
    }

    async fn written(&self) {
        for _ in 0..3000 {
            let metrics = open(&self.socket(), "GET", "/metrics", &[], Vec::new()).await;
            let text = Answer::read(metrics).await.text;
            let value = |name: &str| -> f64 {
                let line = text.lines().find(|line| line.split(['{', ' ']).next() == Some(name));
                line.unwrap().rsplit(' ').next().unwrap().parse().unwrap()
            };
            if value("polder_kv_disk_blocks") > 0.0 && value("polder_kv_spills_waiting") == 0.0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the disk was never done");
    }

    async fn ended(&mut self, limit: Duration) -> ExitStatus {
        let begun = Instant::now();
        while begun.elapsed() < limit {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the engine has not ended after {limit:?}");
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn cached(answer: &Value) -> u64 {
    answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
}

/// A conversation, a fault in the middle of another answer, and the conversation again.
async fn survives(fault: &str) {
    let home = tempfile::tempdir().unwrap();
    make_model(&home.path().join("model"));
    let said =
        "The dike at Warffum held in 1953, though nobody slept that night; what did it cost?";
    let mut talk = vec![json!({"role": "user", "content": said.repeat(2)})];
    let mut engine = Engine::start(home.path()).await;
    let first = engine.ask(&talk).await;
    assert_eq!(cached(&first), 0);
    let known = first["usage"]["prompt_tokens"].as_u64().unwrap() / 16 * 16;
    talk.push(first["choices"][0]["message"].clone());
    talk.push(json!({"role": "user", "content": "And who paid?"}));
    let undisturbed = engine.ask(&talk).await;
    engine.written().await;

    engine.order("ready").await;
    let body = json!({
        "model": "tiny", "prompt": "on and on", "max_tokens": 900, "ignore_eos": true, "stream": true,
    });
    let body = body.to_string().into_bytes();
    let mut stream = open(&engine.socket(), "POST", "/v1/completions", &[], body).await;
    stream.body_mut().frame().await.unwrap().unwrap();
    let begun = Instant::now();
    let (rest, ()) =
        tokio::join!(tokio::time::timeout(END, Answer::read(stream)), engine.order(fault));
    let rest = rest.expect("the stream ends");
    let last = rest.text.trim_end().rsplit("\n\n").next().unwrap();
    let told: Value = serde_json::from_str(last.strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(told["error"]["code"], "engine_stopped", "{last}");
    let heard = begun.elapsed();
    let status = engine.ended(END).await;
    println!(
        "{fault}: the answer's error after {heard:.1?}, {status} after {:.1?}",
        begun.elapsed()
    );
    assert_eq!(status.code(), Some(EngineError::DEVICE_FAILED.into()), "{status}");
    drop(engine);

    let engine = Engine::start(home.path()).await;
    let again = engine.ask(&talk).await;
    assert!(cached(&again) >= known, "{} of {known}", cached(&again));
    assert_eq!(again["choices"], undisturbed["choices"]);
}

#[tokio::test]
#[ignore = "needs a GPU"]
async fn gpu_a_kernel_that_traps_ends_answers_with_an_error_and_their_conversations_go_on_later() {
    survives("trap").await;
}

#[tokio::test]
#[ignore = "needs a GPU"]
async fn gpu_a_write_to_nowhere_ends_answers_with_an_error_and_their_conversations_go_on_later() {
    survives("write nowhere").await;
}

#[tokio::test]
#[ignore = "needs a GPU"]
async fn gpu_a_kernel_that_hangs_ends_answers_with_an_error_and_their_conversations_go_on_later() {
    survives("hang").await;
}

#[tokio::test]
#[ignore = "needs a GPU"]
async fn gpu_an_engine_that_does_not_fit_ends_and_says_so_by_its_status() {
    let home = tempfile::tempdir().unwrap();
    make_model(&home.path().join("model"));
    for memory in [1 << 20, 800 << 20] {
        let mut engine = Engine::begin(home.path(), Some(memory));
        let status = engine.ended(Duration::from_secs(60)).await;
        assert_eq!(status.code(), Some(EngineError::DOES_NOT_FIT.into()), "{status}");
    }
}
