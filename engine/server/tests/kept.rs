//! An engine is killed and started again, and goes on with conversations from its disk: a real model, real processes,
//! and nothing that the next engine was told but its folder.

#![allow(clippy::unwrap_used)] // Helpers outside test functions unwrap too.

mod common;
#[path = "common/golden.rs"]
mod golden;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{Answer, open};
use golden::make_model;
use polder_engine_server::{EngineOptions, Keeping, run};
use serde_json::{Value, json};

/// Set for the process that is the engine: its socket, its model, and where it keeps KV, if anywhere.
const SOCKET: &str = "POLDER_TEST_SOCKET";
const MODEL: &str = "POLDER_TEST_MODEL";
const KEPT: &str = "POLDER_TEST_KEPT";

/// No test, but what the other one starts: the engine. Without its socket it does nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_engine_itself() {
    let path = |name| std::env::var_os(name).map(PathBuf::from);
    let (Some(socket), Some(model)) = (path(SOCKET), path(MODEL)) else { return };
    let mut options = EngineOptions::new("test", socket, model, "tiny");
    options.kv_memory = Some(4 << 20);
    options.threads = Some(1);
    options.keeping = path(KEPT).map(|folder| Keeping {
        weights: "the weights of the golden files".into(),
        folder: Some(folder),
        host_bytes: Some(16 << 20),
        disk_bytes: 64 << 20,
        disk_reserve_bytes: 0,
        retention: Duration::from_secs(3600),
    });
    run(options, std::future::pending()).await.unwrap();
}

struct Engine {
    process: Child,
    socket: PathBuf,
}

impl Engine {
    /// Another process, which is killed when this is dropped.
    async fn start(home: &Path, kept: Option<&Path>) -> Self {
        let socket = home.join("engine.sock");
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "the_engine_itself"]).env(SOCKET, &socket);
        command.env(MODEL, home.join("model")).stdout(Stdio::null()).stderr(Stdio::null());
        if let Some(kept) = kept {
            command.env(KEPT, kept);
        }
        let engine = Self { process: command.spawn().unwrap(), socket };
        for _ in 0..6000 {
            if tokio::net::UnixStream::connect(&engine.socket).await.is_ok()
                && open(&engine.socket, "GET", "/health", &[], Vec::new()).await.status() == 200
            {
                return engine;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the engine did not start within a minute");
    }

    async fn ask(&self, member: &str, messages: &[Value]) -> Value {
        let body = json!({
            "model": "tiny", "messages": messages, "temperature": 0, "max_tokens": 24,
            "ignore_eos": true, "logprobs": true, "top_logprobs": 3,
        });
        let (headers, body) = ([("x-polder-member", member)], body.to_string().into_bytes());
        let answer = open(&self.socket, "POST", "/v1/chat/completions", &headers, body).await;
        let answer = Answer::read(answer).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.json()
    }

    async fn forget(&self, headers: &[(&str, &str)]) -> u16 {
        open(&self.socket, "DELETE", "/kv", headers, Vec::new()).await.status().as_u16()
    }

    async fn metric(&self, name: &str) -> f64 {
        let text =
            Answer::read(open(&self.socket, "GET", "/metrics", &[], Vec::new()).await).await.text;
        let line = text.lines().find(|line| line.split(['{', ' ']).next() == Some(name));
        line.unwrap_or_else(|| panic!("no {name}")).rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Waits until everything that was put is on disk.
    async fn written(&self) {
        for _ in 0..6000 {
            if self.metric("polder_kv_disk_blocks").await > 0.0
                && self.metric("polder_kv_spills_waiting").await == 0.0
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the disk was never done");
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // SIGKILL: it has no say in it.
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

fn cached(answer: &Value) -> u64 {
    answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
}

/// A card multiplies a prompt that is read in one piece in another order than one of which a part is known, so that the last bits differ. Of
/// probabilities that were rounded to bf16 on the way, logarithms are within this.
const NEAR: f64 = 0.05;

/// The same answer: to the last bit where the processor computes, and on a card word for word, with probabilities that are `NEAR`.
fn assert_same(one: &Value, other: &Value) {
    if polder_backend_cuda::device::Device::open(0).is_err() {
        assert_eq!(one["choices"], other["choices"]);
        return;
    }
    let choice = |answer: &Value| answer["choices"][0].clone();
    let (one, other) = (choice(one), choice(other));
    for part in ["message", "finish_reason", "index"] {
        assert_eq!(one[part], other[part]);
    }
    let tokens = |choice: &Value| choice["logprobs"]["content"].as_array().unwrap().clone();
    let (one, other) = (tokens(&one), tokens(&other));
    assert_eq!(one.len(), other.len());
    for (one, other) in one.iter().zip(&other) {
        assert_eq!(one["token"], other["token"]);
        let apart = one["logprob"].as_f64().unwrap() - other["logprob"].as_f64().unwrap();
        assert!(apart.abs() < NEAR, "{one} and {other}");
    }
}

/// Every byte below a folder.
fn bytes_below(folder: &Path) -> Vec<u8> {
    let mut all = Vec::new();
    for entry in folder.read_dir().unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => all.extend(bytes_below(&path)),
            false => all.extend(std::fs::read(&path).unwrap()),
        }
    }
    all
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_engine_goes_on_with_a_conversation_from_disk_until_its_member_is_forgotten() {
    let home = tempfile::tempdir().unwrap();
    let kept = home.path().join("kv");
    make_model(&home.path().join("model"));
    let said =
        "The dike at Warffum held in 1953, though nobody slept that night; what did it cost?";
    let first = vec![json!({"role": "user", "content": said.repeat(2)})];

    let engine = Engine::start(home.path(), Some(&kept)).await;
    let answer = engine.ask("ada", &first).await;
    assert_eq!(cached(&answer), 0);
    let prompt_tokens = answer["usage"]["prompt_tokens"].as_u64().unwrap();
    let mut second = first.clone();
    second.push(answer["choices"][0]["message"].clone());
    second.push(json!({"role": "user", "content": "And who paid?"}));
    engine.written().await;
    drop(engine);

    // What lies there says nothing: no words, no tokens, no name, no address that can be computed.
    let on_disk = bytes_below(&kept);
    assert!(on_disk.len() > 100_000, "{}", on_disk.len());
    let tokens: Vec<u8> =
        b"Warffum".iter().flat_map(|byte| u32::from(byte - 0x21).to_le_bytes()).collect();
    for part in [&said.as_bytes()[4..16], b"Warffum", &tokens[..], b"\0ada\0", b"\"ada\""] {
        assert!(!contains(&on_disk, part), "{part:?}");
    }

    // The same as an engine that keeps nothing.
    let engine = Engine::start(home.path(), None).await;
    let without = engine.ask("ada", &second).await;
    assert_eq!((cached(&without), engine.forget(&[("x-polder-member", "ada")]).await), (0, 204));
    drop(engine);
    let engine = Engine::start(home.path(), Some(&kept)).await;
    let other = engine.ask("bob", &second).await;
    assert_eq!(cached(&other), 0, "nobody gets what was kept for somebody else");
    let with = engine.ask("ada", &second).await;
    assert_same(&with, &without);
    assert!(cached(&with) >= prompt_tokens / 16 * 16, "{} of {prompt_tokens}", cached(&with));
    let restored = engine.metric("vllm:external_prefix_cache_hits_total").await;
    assert_eq!(restored, cached(&with) as f64);
    assert_eq!(engine.metric("polder_kv_disk_restores_total").await * 16.0, restored);

    // Forgotten: the key is gone with the answer, here and for whoever comes after.
    engine.written().await;
    let keys = || kept.join("keys").read_dir().unwrap().count();
    assert_eq!(keys(), 2);
    assert_eq!(engine.forget(&[]).await, 400);
    assert_eq!(engine.forget(&[("x-polder-member", "ada")]).await, 204);
    assert_eq!(keys(), 1);
    assert_eq!(cached(&engine.ask("bob", &second).await) % 16, 0);
    let again = engine.ask("ada", &second).await;
    assert_eq!(cached(&again), 0);
    assert_same(&again, &without);
    assert_eq!(engine.forget(&[("x-polder-member", "ada")]).await, 204);
    drop(engine);
    let engine = Engine::start(home.path(), Some(&kept)).await;
    assert_eq!(keys(), 1);
    let again = engine.ask("ada", &second).await;
    assert_eq!(cached(&again), 0);
    assert_same(&again, &without);
    assert!(cached(&engine.ask("bob", &second).await) > 0, "what is another's stays");
}
