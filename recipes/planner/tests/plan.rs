//! Plans as people and programs get them.

#![allow(clippy::unwrap_used)]

use polder_planner::{Assumptions, Fit, PlanError, PlanRequest, plan, what_fits};
use polder_recipes::{BoxSpec, Recipe};
use proptest::prelude::*;

fn request(box_name: &str, model_name: &str, members: u32) -> PlanRequest {
    PlanRequest { box_name: box_name.into(), model_name: model_name.into(), members }
}

/// Written anew with `POLDER_WRITE_GOLDEN=1`; read the difference before committing it.
#[test]
fn the_table_for_the_station_and_its_main_model_is_as_it_was() {
    let text =
        request("dgx-station-gb300", "qwen3-235b-a22b", 50).estimate().unwrap().render_table();
    let file = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/golden/dgx-station-gb300_qwen3-235b-a22b_50.txt"
    );
    if std::env::var_os("POLDER_WRITE_GOLDEN").is_some() {
        std::fs::write(file, &text).unwrap();
    }
    let golden = std::fs::read_to_string(file).unwrap();
    for (at, (now, then)) in text.lines().zip(golden.lines()).enumerate() {
        assert_eq!(now, then, "line {}", at + 1);
    }
    assert_eq!(text.lines().count(), golden.lines().count());
}

#[test]
fn no_table_is_wider_than_100_columns_or_shows_a_broken_number() {
    for spec in BoxSpec::builtin() {
        for recipe in Recipe::builtin() {
            let estimate = plan(spec, recipe, 12, &Assumptions::for_box(spec)).unwrap();
            let text = estimate.render_table();
            let name = format!("{} on {}", recipe.name, spec.name);
            for line in text.lines() {
                assert!(line.chars().count() <= 100, "{name}: {line}");
                assert_eq!(line, line.trim_end(), "{name}");
            }
            for broken in ["NaN", "inf", " -0", "{", "}"] {
                assert!(!text.contains(broken), "{name}: {broken}\n{text}");
            }
        }
    }
}

#[test]
fn every_number_for_programs_has_unit_formula_and_label() {
    let estimate = request("dgx-station-gb300", "qwen3-235b-a22b", 50).estimate().unwrap();
    let json = serde_json::to_value(&estimate).unwrap();
    let mut seen = 0;
    check_numbers(&json, &mut seen);
    assert!(seen > 100, "only {seen} numbers");
    assert_eq!(json["memory"]["fast"]["label"], "vendor");
    assert_eq!(json["memory"]["workspace"]["label"], "estimate");
    assert_eq!(json["kv"]["bits8"]["value"], 96256.0);
    assert_eq!(json["kv"]["bits8"]["unit"], "B/token");
    assert_eq!(json["verdict"]["fit"], "fits");
    assert_eq!(json["box"], "dgx-station-gb300");
}

fn check_numbers(json: &serde_json::Value, seen: &mut u32) {
    match json {
        serde_json::Value::Object(fields) => {
            if fields.contains_key("value") || fields.contains_key("low") {
                *seen += 1;
                for field in ["unit", "formula", "label"] {
                    let text = fields[field].as_str().unwrap();
                    assert!(!text.is_empty(), "{field} of {fields:?}");
                }
                let number = fields.get("value").or(fields.get("high")).unwrap();
                assert!(number.as_f64().unwrap().is_finite(), "{fields:?}");
            }
            fields.values().for_each(|value| check_numbers(value, seen));
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| check_numbers(item, seen)),
        _ => {}
    }
}

#[test]
fn measured_figures_are_labelled_so() {
    let estimate = request("h200-141", "smollm2-135m-instruct", 1).estimate().unwrap();
    let json = serde_json::to_value(&estimate).unwrap();
    assert_eq!(json["memory"]["fast"]["label"], "measured");
    assert_eq!(json["memory"]["weights"]["label"], "measured");
    assert_eq!(json["memory"]["weights"]["value"], 98_362_432.0);
}

#[test]
fn misspelt_names_and_senseless_numbers_are_refused_in_a_sentence() {
    let say = |box_name, model, members| {
        request(box_name, model, members).estimate().unwrap_err().to_string()
    };
    assert_eq!(
        say("dgx-station-gb200", "qwen3-235b-a22b", 5),
        "there is no box called \"dgx-station-gb200\"; did you mean \"dgx-station-gb300\"?"
    );
    assert_eq!(
        say("cpu", "qwen-235b", 5),
        "there is no model called \"qwen-235b\"; did you mean \"qwen3-235b-a22b\"?"
    );
    assert_eq!(
        say("cpu", "smollm2-135m-instruct", 0),
        "a plan for 0 members makes no sense; say a number from 1 to 100000"
    );
}

#[test]
fn a_recipe_that_does_not_describe_its_model_is_refused_by_name() {
    let spec = BoxSpec::find("cpu").unwrap();
    let recipe = Recipe { architecture: None, ..Recipe::default_recipe().clone() };
    let refused = plan(spec, &recipe, 1, &Assumptions::for_box(spec)).unwrap_err();
    assert!(matches!(refused, PlanError::Undescribed { missing: "architecture", .. }), "{refused}");
}

#[test]
fn what_fits_lists_every_model_once_with_those_that_fit_first() {
    for spec in BoxSpec::builtin() {
        let models = what_fits(spec);
        assert_eq!(models.len(), Recipe::builtin().len(), "{}", spec.name);
        let fits: Vec<bool> = models.iter().map(|m| m.verdict.fit != Fit::DoesNotFit).collect();
        assert!(fits.is_sorted_by(|a, b| a >= b), "{}: {fits:?}", spec.name);
        for model in &models {
            assert!(model.line.len() < 110 && !model.line.contains('\n'), "{}", model.line);
        }
    }
}

#[test]
fn the_default_model_fits_even_a_machine_with_1_gb() {
    let spec = BoxSpec::for_machine::<&str>(&[], 1 << 30);
    let models = what_fits(&spec);
    let small = models.iter().find(|m| m.recipe.name == "smollm2-135m-instruct").unwrap();
    assert_ne!(small.verdict.fit, Fit::DoesNotFit, "{}", small.line);
    let large = models.iter().find(|m| m.recipe.name == "qwen3-30b-a3b").unwrap();
    assert_eq!(large.verdict.fit, Fit::DoesNotFit, "{}", large.line);
}

#[test]
fn a_machine_that_was_found_gets_a_plan_with_its_own_memory_as_the_slow_tier() {
    let spec = BoxSpec::for_machine(&[("NVIDIA H200", Some(150_750_000_000))], 128 << 30);
    let recipe = Recipe::find("qwen3-30b-a3b").unwrap();
    let estimate = plan(&spec, recipe, 10, &Assumptions::for_box(&spec)).unwrap();
    let row = &estimate.sessions[1];
    assert!(row.waiting.as_ref().unwrap().value > 10.0, "{row:?}");
    // 1.6 GB at 55.3 GB/s.
    assert!((row.bring_back.as_ref().unwrap().value - 29.1).abs() < 0.1, "{row:?}");
}

#[test]
fn more_people_than_fit_are_marked_in_the_table() {
    let estimate = request("rtx-4090-24", "hermes-4-14b", 8).estimate().unwrap();
    let crowded = estimate.decode.iter().find(|r| r.together == 32 && r.context == 32_768).unwrap();
    assert!(!crowded.all_ready);
    assert!(estimate.render_table().contains("they take turns"));
}

#[test]
fn conversations_longer_than_the_model_was_made_for_are_marked() {
    let estimate = request("dgx-station-gb300", "qwen3-235b-a22b", 50).estimate().unwrap();
    let marked: Vec<bool> = estimate.sessions.iter().map(|row| row.beyond_context).collect();
    assert_eq!(marked, [false, false, true, true, true]);
}

proptest! {
    #[test]
    fn any_box_and_assumption_gives_finite_numbers_and_never_panics(
        fast in 1e3..1e16_f64,
        rate in 1.0..1e16_f64,
        slow in prop::option::of((1e3..1e16_f64, 1.0..1e15_f64)),
        compute in 1.0..1e20_f64,
        members in 1..100_000_u32,
        which in 0..14_usize,
        share in 0.0..=1.0_f64,
        bits in prop::sample::select(vec![4.0, 8.0, 16.0]),
    ) {
        let mut spec = BoxSpec::find("dgx-station-gb300").unwrap().clone();
        spec.fast.bytes.value = fast;
        spec.fast.bandwidth.value = rate;
        spec.compute.value = compute;
        spec.slow = slow.map(|(bytes, rate)| {
            let mut tier = spec.fast.clone();
            tier.bytes.value = bytes;
            tier.bandwidth.value = rate;
            tier
        });
        let assumed = Assumptions { utilisation: share, kv_bits: bits, ..Assumptions::for_box(&spec) };
        let estimate = plan(&spec, &Recipe::builtin()[which], members, &assumed).unwrap();
        let text = estimate.render_table();
        prop_assert!(!text.contains("NaN") && !text.contains("inf"), "{}", text);
        prop_assert!(text.lines().all(|line| line.chars().count() <= 100), "{}", text);
        prop_assert!(estimate.memory.conversations.value >= 0.0);
        let json = serde_json::to_value(&estimate).unwrap();
        let mut seen = 0;
        check_numbers(&json, &mut seen);
    }

    #[test]
    fn more_memory_never_holds_fewer_conversations(
        which in 0..14_usize,
        less in 1e9..1e12_f64,
        more in 0.0..1e12_f64,
    ) {
        let with = |bytes: f64| {
            let mut spec = BoxSpec::find("h200-141").unwrap().clone();
            spec.fast.bytes.value = bytes;
            let estimate = plan(&spec, &Recipe::builtin()[which], 5, &Assumptions::for_box(&spec)).unwrap();
            estimate.sessions[0].ready.value
        };
        prop_assert!(with(less + more) >= with(less));
    }

    #[test]
    fn no_name_makes_a_request_panic(box_name in "\\PC{0,80}", model_name in "\\PC{0,80}", members: u32) {
        let _ = PlanRequest { box_name, model_name, members }.estimate();
    }
}
