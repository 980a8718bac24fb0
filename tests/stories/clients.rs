//! Programs that members work with, as they come from their makers, do a turn with a model whose words are known: a call of
//! a tool, what it gave, an answer. They run in a network in which there is nothing but the box.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use polder_stories::{Running, Up, free_port, need, polder};

/// A pinned model of this family is not known by its digests, so that a checkpoint of our own may take its place.
const MODEL: &str = "hermes-4-14b";
const SAID: &str = "said by the box\n";

/// A cut off box that serves the checkpoint with the known answers (`tests/clients/model.py`).
struct House {
    running: Running,
    up: Up,
    folder: tempfile::TempDir,
}

impl House {
    fn open() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (model, state) = (folder.path().join("model"), folder.path().join("state"));
        for made in ["state", "home", "work"] {
            std::fs::create_dir(folder.path().join(made)).unwrap();
        }
        done(Command::new(python()).arg(clients().join("model.py")).arg(&model));
        let mut import = polder(&["weights", "import", MODEL, "--from"]);
        done(import.arg(&model).arg("--state").arg(&state));
        let arguments = ["--yes", "--json", "--model", MODEL];
        let running = Running::start_cut_off(&state, free_port(), &arguments);
        let up = running.up();
        Self { running, up, folder }
    }

    /// A program in the box's network, in an empty folder, of somebody who has just bought this computer.
    fn client(&self, program: &Path) -> Command {
        let mut command = self.running.beside(program);
        command.current_dir(self.work()).env("HOME", self.folder.path().join("home"));
        command
    }

    fn work(&self) -> PathBuf {
        self.folder.path().join("work")
    }

    fn written(&self) -> String {
        std::fs::read_to_string(self.work().join("said.txt")).unwrap_or_default()
    }

    fn ca(&self) -> &str {
        self.up.ca_file.to_str().unwrap()
    }
}

fn clients() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients")
}

fn python() -> PathBuf {
    need("POLDER_VENV").join("bin/python")
}

fn done(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (said(&output.stdout), said(&output.stderr));
    assert!(output.status.success(), "{command:?}: {out}\n{err}");
    output
}

#[test]
fn claude_code_calls_a_tool_and_its_second_turn_reads_only_what_is_new() {
    let house = House::open();
    let output = done(
        house
            .client(&need("POLDER_CLAUDE_CODE"))
            .args(["-p", "Write the word into said.txt.", "--allowedTools", "Bash"])
            .args(["--output-format", "json"])
            .env("NODE_EXTRA_CA_CERTS", house.ca())
            .env("ANTHROPIC_BASE_URL", &house.up.url)
            .env("ANTHROPIC_AUTH_TOKEN", &house.up.api_key)
            .env("ANTHROPIC_MODEL", MODEL)
            .env("ANTHROPIC_DEFAULT_HAIKU_MODEL", MODEL)
            .env("CLAUDE_CODE_MAX_CONTEXT_TOKENS", "131072")
            .env("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1"),
    );
    assert_eq!(house.written(), SAID);
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["result"], "The word is written.", "{told}");
    assert_eq!((&told["num_turns"], &told["is_error"]), (&2.into(), &false.into()), "{told}");
    assert_eq!(told["modelUsage"][MODEL]["contextWindow"], 131_072, "{told}");
    // Its instructions and tools are thousands of tokens, and were read once.
    let count = |what: &str| told["usage"][what].as_u64().unwrap();
    let (read, kept) = (count("input_tokens"), count("cache_read_input_tokens"));
    assert!(kept > 4000 && kept > read * 9 / 10, "{kept} kept, {read} read");
}

#[test]
fn aider_writes_the_file_that_the_model_answers_with() {
    let house = House::open();
    done(
        house
            .client(&need("POLDER_AIDER"))
            .args(["--model", &format!("openai/{MODEL}"), "--edit-format", "whole"])
            .args(["--yes-always", "--no-git", "--no-check-update", "--analytics-disable"])
            .args(["--no-show-model-warnings", "--no-pretty", "--message", "Write the word."])
            .arg("said.txt")
            .env("SSL_CERT_FILE", house.ca())
            .env("OPENAI_API_BASE", format!("{}/v1", house.up.url))
            .env("OPENAI_API_KEY", &house.up.api_key),
    );
    assert_eq!(house.written(), SAID);
}

#[test]
fn a_langchain_agent_calls_a_tool_by_all_three_ways_to_chat() {
    let house = House::open();
    done(
        house
            .client(&python())
            .arg(clients().join("agent.py"))
            .env("SSL_CERT_FILE", house.ca())
            .env("URL", &house.up.url)
            .env("KEY", &house.up.api_key)
            .env("MODEL", MODEL),
    );
}
