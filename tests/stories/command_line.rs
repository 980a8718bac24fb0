//! What somebody at the machine types.

use polder_stories::polder;

fn said(arguments: &[&str]) -> (bool, String) {
    let output = polder(arguments).output().unwrap();
    (
        output.status.success(),
        String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr),
    )
}

#[test]
fn every_command_explains_itself_with_an_example() {
    for command in ["up", "plan", "weights", "recipes", "claim", "status", "site"] {
        let (ok, text) = said(&[command, "--help"]);
        assert!(ok, "{text}");
        assert!(text.contains("Example"), "polder {command} --help shows no example:\n{text}");
    }
}

#[test]
fn a_plan_says_whether_a_model_fits_and_a_misspelt_one_gets_a_suggestion() {
    let (ok, text) =
        said(&["plan", "--box", "h200-141", "--model", "qwen3-235b-a22b", "--members", "32"]);
    assert!(ok, "{text}");
    assert!(text.contains("96,256"), "no KV bytes per token in:\n{text}");
    let (ok, text) =
        said(&["plan", "--box", "h200-141", "--model", "qwen3-235b-a22", "--members", "32"]);
    assert!(!ok);
    assert!(text.contains("qwen3-235b-a22b"), "no suggestion in:\n{text}");
}

#[test]
fn a_command_that_needs_a_running_box_says_how_to_start_one() {
    let state = tempfile::tempdir().unwrap();
    let (ok, text) = said(&["status", "--state", state.path().to_str().unwrap()]);
    assert!(!ok);
    assert!(text.contains("polder up"), "{text}");
}
