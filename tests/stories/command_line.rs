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
    // What is below each command is found in its own help, so that none is forgotten.
    let mut looked_at = 0;
    let mut next: Vec<Vec<String>> = vec![Vec::new()];
    while let Some(command) = next.pop() {
        let mut asked: Vec<&str> = command.iter().map(String::as_str).collect();
        asked.push("--help");
        let (ok, text) = said(&asked);
        assert!(ok, "{text}");
        assert!(text.contains("Example"), "polder {} shows no example:\n{text}", asked.join(" "));
        looked_at += 1;
        let listed = text.split_once("Commands:\n").map_or("", |(_, rest)| rest);
        let listed = listed.split("\n\n").next().unwrap_or_default();
        for line in listed.lines().filter(|line| !line.starts_with("   ")) {
            let name = line.split_whitespace().next().unwrap();
            if name != "help" {
                next.push(command.iter().cloned().chain([name.to_owned()]).collect());
            }
        }
    }
    assert!(looked_at > 20, "only {looked_at} commands were found");
}

#[test]
fn what_is_misspelt_gets_a_suggestion() {
    for (typed, meant) in [
        (&["up", "--prot", "9000"][..], "--port"),
        (&["pln"], "plan"),
        (&["weights", "improt", "x"], "import"),
        (&["up", "--yes", "--model", "smollm2-135m"], "smollm2-135m-instruct"),
    ] {
        let (ok, text) = said(typed);
        assert!(!ok && text.contains(meant), "{typed:?} does not suggest {meant}:\n{text}");
    }
}

#[test]
fn a_folder_that_cannot_be_the_boxs_is_named_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a-file");
    std::fs::write(&file, "").unwrap();
    let (ok, text) = said(&["up", "--state", file.to_str().unwrap()]);
    assert!(!ok && text.contains("a-file") && text.contains("--state"), "{text}");
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
