//! The handbook names tests that play each attacker. They are looked up in the sources, so that the list cannot rot.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::path::Path;

use polder_handbook::chapter;

/// A line of the list: "- `FILE` `TEST`: what it shows".
struct Named<'a> {
    attacker: &'a str,
    file: &'a str,
    test: &'a str,
}

fn attackers(slug: &str) -> Vec<&'static str> {
    chapter(slug).unwrap().text.lines().filter_map(|line| line.strip_prefix("## ")).collect()
}

fn named() -> Vec<Named<'static>> {
    let mut attacker = "";
    let mut all = Vec::new();
    for line in chapter("tested").unwrap().text.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            attacker = heading;
        }
        if let Some(item) = line.strip_prefix("- ") {
            let mut quoted = item.split('`').skip(1).step_by(2);
            let (Some(file), Some(test)) = (quoted.next(), quoted.next()) else {
                panic!("this line names no file and test: {line}");
            };
            all.push(Named { attacker, file, test });
        }
    }
    all
}

/// Is `name` a test in this text, and one that runs? Those that start the image are left out of `make test` and run by
/// `make test-vm`.
fn runs(text: &str, name: &str, with_image: bool) -> Result<(), &'static str> {
    let at = text.find(&format!("fn {name}(")).ok_or("there is no such function")?;
    // What stands between the end of what is before it and the function: its attributes.
    let before = &text[..at];
    let begin = before.rfind(['}', ';']).map_or(0, |end| end + 1);
    let attributes = &before[begin..];
    if attributes.contains("ignore") && !with_image {
        return Err("it is ignored");
    }
    match attributes.contains("#[test]") || attributes.contains("::test") {
        true => Ok(()),
        false => Err("it is no test"),
    }
}

#[test]
fn every_attacker_of_the_handbook_is_played_by_tests_that_exist_and_run() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let all = named();
    assert!(all.len() > 30, "the list was not read: {}", all.len());
    for Named { attacker, file, test } in &all {
        let text = std::fs::read_to_string(root.join(file))
            .unwrap_or_else(|error| panic!("{attacker}: {file}: {error}"));
        if let Err(why) = runs(&text, test, file.starts_with("tests/vm/")) {
            panic!("{attacker}: {file} {test}: {why}; name the test that took its place");
        }
    }
    assert_eq!(
        attackers("limits-of-trust"),
        attackers("tested"),
        "the same attackers, in one order"
    );
    for attacker in attackers("limits-of-trust") {
        let tests = all.iter().filter(|named| named.attacker == attacker).count();
        assert!(tests >= 2, "{attacker} is played by {tests} tests");
    }
}

#[test]
fn a_test_that_is_gone_renamed_or_ignored_is_noticed() {
    let text = "#[test]\nfn one() {}\n\n#[test]\n#[ignore = \"slow\"]\nfn two() {}\n\nfn three() {}\n\n#[tokio::test(flavor = \"multi_thread\")]\nasync fn four() {}\n";
    assert_eq!(runs(text, "one", false), Ok(()));
    assert_eq!(runs(text, "two", false), Err("it is ignored"));
    assert_eq!(runs(text, "two", true), Ok(()));
    assert_eq!(runs(text, "three", false), Err("it is no test"));
    assert_eq!(runs(text, "four", false), Ok(()));
    assert_eq!(runs(text, "five", false), Err("there is no such function"));
}

#[test]
fn every_part_that_is_said_to_protect_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let text = chapter("limits-of-trust").unwrap().text;
    let parts = text.split('`').skip(1).step_by(2).filter(|quoted| {
        ["appliance/", "engine/", "recipes/", "image"].iter().any(|top| quoted.starts_with(top))
    });
    let mut count = 0;
    for part in parts {
        assert!(root.join(part).exists(), "{part} is not there");
        count += 1;
    }
    assert!(count > 10, "{count}");
}
