//! Somebody takes the disk of a box that was used, and looks for what was said.

use std::path::{Path, PathBuf};
use std::time::Duration;

use polder_stories::{Running, chat};

/// Words that are nowhere else, and enough of them to fill blocks of what the model keeps.
const QUESTION: &str = "The heron Quibblewick keeps seventeen copper kettles under the old weir at Nettlebed, and \
    every autumn she lends three of them to the ferryman Ostrander, who boils quinces and sings to the eels. \
    Quibblewick has never told a soul where the eighteenth kettle went. Repeat all of this once more, word by word.";

/// Every file of a folder but the models themselves, which everybody may have.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if kind.is_dir() && !["weights", "packed"].contains(&entry.file_name().to_str().unwrap()) {
            files(&path, found);
        } else if kind.is_file() {
            found.push(path);
        }
    }
}

fn holds(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// What is looked for, and what it is called when it is found.
struct Canaries(Vec<(&'static str, Vec<u8>)>);

impl Canaries {
    fn look_in(&self, folder: &Path) {
        let mut found = Vec::new();
        files(folder, &mut found);
        assert!(found.len() > 5, "{found:?}");
        for file in found {
            let bytes = std::fs::read(&file).unwrap();
            for (what, part) in &self.0 {
                assert!(!holds(&bytes, part), "{what} is in {}", file.display());
            }
        }
    }
}

#[test]
fn a_copy_of_a_boxs_folder_has_no_question_answer_or_key_in_it() {
    let state = tempfile::tempdir().unwrap();
    let (running, up) = Running::ready(state.path());
    let client = up.client();
    let mut body = chat(&up.model, QUESTION, 60);
    body["temperature"] = 0.into();
    let answer = client.post("/v1/chat/completions", &body);
    assert_eq!(answer.status, 200, "{}", answer.text);
    let said = answer.words();
    let middle: String = said.chars().skip(5).take(30).collect();
    assert!(middle.len() >= 20, "the answer is too short to look for: {said:?}");
    let counted =
        client.post("/tokenize", &serde_json::json!({ "model": up.model, "prompt": QUESTION }));
    let tokens: Vec<u8> = counted.json()["tokens"]
        .as_array()
        .unwrap_or_else(|| panic!("{}", counted.text))
        .iter()
        .skip(4)
        .take(6)
        .flat_map(|token| (token.as_u64().unwrap() as u32).to_le_bytes())
        .collect();
    let canaries = Canaries(vec![
        ("the question", b"Quibblewick".to_vec()),
        ("the answer", middle.into_bytes()),
        ("the question as the model's numbers", tokens),
        ("a key", up.api_key.clone().into_bytes()),
    ]);
    for (what, part) in &canaries.0 {
        assert!(!holds(running.log().as_bytes(), part), "{what} is in the log");
    }
    // Something is kept of the conversation: there is something to look at.
    let kept = state.path().join("kv");
    for _ in 0..100 {
        let mut blocks = Vec::new();
        files(&kept, &mut blocks);
        if blocks.iter().any(|file| file.metadata().is_ok_and(|about| about.len() > 0)) {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(kept.is_dir());
    // As it is when the power goes, and after an orderly end.
    canaries.look_in(state.path());
    assert!(running.stop().success());
    canaries.look_in(state.path());
}
