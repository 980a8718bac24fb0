//! Replays the fuzz corpora.

use std::path::Path;

use polder_parsers::{PARSERS, feed};

#[test]
fn nothing_in_the_fuzz_corpora_makes_a_parser_panic() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    for (name, _) in PARSERS {
        let folder = corpora.join(name);
        let files = std::fs::read_dir(&folder).unwrap_or_else(|e| {
            panic!("{name} has no corpus ({e}): add one in tests/fuzz/corpus/{name}")
        });
        let mut fed = 0;
        for file in files {
            feed(name, &std::fs::read(file.unwrap().path()).unwrap());
            fed += 1;
        }
        assert!(fed > 0, "the corpus of {name} is empty");
    }
}

#[test]
fn every_fuzz_target_feeds_a_parser_that_exists() {
    let targets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/fuzz_targets");
    for (name, _) in PARSERS {
        let target = std::fs::read_to_string(targets.join(format!("{name}.rs")))
            .unwrap_or_else(|e| panic!("{name} has no fuzz target: {e}"));
        assert!(target.contains(&format!("\"{name}\"")), "{name}.rs feeds another parser");
    }
}
