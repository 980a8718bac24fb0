//! The published guide's figures, row by row: those that are right come out, those that are wrong
//! come out as what its own premises give, and a note says so.

#![allow(clippy::unwrap_used)]

use polder_planner::{Assumptions, Estimate, KvShape, Weights, plan, step_seconds};
use polder_recipes::{BoxSpec, Recipe};

const GB: f64 = 1e9;

fn weights(model: &str) -> Weights {
    Weights::of(Recipe::find(model).unwrap().architecture.as_ref().unwrap())
}

fn gigabytes(model: &str) -> f64 {
    weights(model).bytes(Recipe::find(model).unwrap().quantization.as_ref().unwrap()) / GB
}

fn kv(model: &str, bits: f64) -> KvShape {
    KvShape::of(Recipe::find(model).unwrap().architecture.as_ref().unwrap(), bits)
}

/// Weights read by a step that makes a token for each of `n` people.
fn step(model: &str, n: u32) -> f64 {
    let recipe = Recipe::find(model).unwrap();
    let quantization = recipe.quantization.as_ref().unwrap();
    let weights = weights(model);
    (weights.fixed_step_bytes(quantization) + weights.expert_step_bytes(quantization, n)) / GB
}

/// As the guide counts: all memory, no working space.
fn whole_memory() -> Assumptions {
    let station = BoxSpec::find("dgx-station-gb300").unwrap();
    Assumptions { utilisation: 1.0, warm_share: 1.0, ..Assumptions::for_box(station) }
}

fn station(model: &str, members: u32) -> Estimate {
    let spec = BoxSpec::find("dgx-station-gb300").unwrap();
    plan(spec, Recipe::find(model).unwrap(), members, &Assumptions::for_box(spec)).unwrap()
}

#[track_caller]
fn about(value: f64, expected: f64, digits: i32) {
    let half = 0.5 * 10_f64.powi(-digits);
    assert!((value - expected).abs() <= half + 1e-9, "{value} is not {expected}");
}

#[test]
fn a_token_of_the_235b_takes_192512_bytes_in_16_bits_and_half_of_that_in_8() {
    assert_eq!(kv("qwen3-235b-a22b", 16.0).growing, 192_512.0);
    assert_eq!(kv("qwen3-235b-a22b", 8.0).growing, 96_256.0);
    assert_eq!(kv("qwen3-30b-a3b", 8.0).growing, 49_152.0);
}

#[test]
fn the_235b_has_235_billion_weights_of_which_22_work_on_a_token() {
    about(weights("qwen3-235b-a22b").total() / GB, 235.09, 2);
    about(weights("qwen3-235b-a22b").active() / GB, 22.19, 2);
}

#[test]
fn the_235b_takes_470_gb_in_16_bits_235_in_8_and_124_in_awq() {
    let total = weights("qwen3-235b-a22b").total() / GB;
    about(total * 2.0, 470.2, 1);
    about(total, 235.1, 1);
    about(gigabytes("qwen3-235b-a22b"), 124.1, 1);
}

#[test]
fn in_8_bits_the_235b_leaves_17_gb_of_the_station() {
    about(252.0 - weights("qwen3-235b-a22b").total() / GB, 16.9, 1);
}

#[test]
fn the_station_holds_1_33_million_tokens_and_1_07_with_a_tenth_in_reserve() {
    let per_token = kv("qwen3-235b-a22b", 8.0).growing;
    let weights = gigabytes("qwen3-235b-a22b") * GB;
    about((252.0 * GB - weights) / per_token / 1e6, 1.33, 2);
    about((252.0 * GB * 0.9 - weights) / per_token / 1e6, 1.07, 2);
}

#[test]
fn that_is_162_conversations_of_8k_40_of_32k_10_of_128k_and_one_of_a_million() {
    let kv = kv("qwen3-235b-a22b", 8.0);
    let weights = gigabytes("qwen3-235b-a22b") * GB;
    let many = |share: f64, tokens| (252.0 * GB * share - weights) / kv.session_bytes(tokens);
    about(many(1.0, 8192), 162.0, 0);
    about(many(1.0, 32_768), 40.6, 1);
    about(many(1.0, 131_072), 10.1, 1);
    about(many(1.0, 1 << 20), 1.3, 1);
    about(many(0.9, 8192), 130.0, 0);
    about(many(0.9, 32_768), 32.6, 1);
    about(many(0.9, 131_072), 8.1, 1);
    about(many(0.9, 1 << 20), 1.0, 1);
}

#[test]
fn the_slow_memory_holds_5_15_million_tokens_in_8_bits_and_2_58_in_16() {
    about(496.0 * GB / kv("qwen3-235b-a22b", 8.0).growing / 1e6, 5.15, 2);
    about(496.0 * GB / kv("qwen3-235b-a22b", 16.0).growing / 1e6, 2.58, 2);
}

#[test]
fn the_slow_memory_is_18_times_slower() {
    let spec = BoxSpec::find("dgx-station-gb300").unwrap();
    about(spec.fast.bandwidth.value / spec.slow.as_ref().unwrap().bandwidth.value, 17.9, 1);
}

#[test]
fn both_memories_are_748_gb_and_not_784() {
    let spec = BoxSpec::find("dgx-station-gb300").unwrap();
    assert_eq!(spec.fast.bytes.value + spec.slow.as_ref().unwrap().bytes.value, 748.0 * GB);
}

#[test]
fn the_30b_reads_2_06_then_7_19_then_14_27_gb_a_step() {
    about(step("qwen3-30b-a3b", 1), 2.06, 2);
    about(step("qwen3-30b-a3b", 8), 7.19, 2);
    about(step("qwen3-30b-a3b", 32), 14.27, 2);
}

#[test]
fn the_235b_reads_12_20_then_52_41_then_107_85_gb_a_step() {
    about(step("qwen3-235b-a22b", 1), 12.20, 2);
    about(step("qwen3-235b-a22b", 8), 52.41, 2);
    about(step("qwen3-235b-a22b", 32), 107.85, 2);
}

#[test]
fn a_step_takes_at_least_what_reading_takes_at_three_bandwidths() {
    let milliseconds = |model, n, terabytes: f64| {
        step_seconds(step(model, n) * GB, 0.0, terabytes * 1e12, 1.0) * 1e3
    };
    for (model, n, expected) in [
        ("qwen3-30b-a3b", 1, [0.61, 0.43, 0.26]),
        ("qwen3-30b-a3b", 8, [2.15, 1.50, 0.90]),
        ("qwen3-30b-a3b", 32, [4.26, 2.97, 1.78]),
        ("qwen3-235b-a22b", 1, [3.64, 2.54, 1.52]),
        ("qwen3-235b-a22b", 8, [15.64, 10.92, 6.55]),
        ("qwen3-235b-a22b", 32, [32.19, 22.47, 13.48]),
    ] {
        for (bandwidth, expected) in [3.35, 4.8, 8.0].into_iter().zip(expected) {
            about(milliseconds(model, n, bandwidth), expected, 2);
        }
    }
}

#[test]
fn one_person_gets_at_most_582_tokens_a_second_and_462_at_32k() {
    let estimate = station("qwen3-235b-a22b", 50);
    let ceiling = |n, context| ceiling_of(&estimate, n, context);
    about(ceiling(1, 0), 582.0, 0);
    about(ceiling(1, 32_768), 462.0, 0);
}

#[test]
fn at_65_percent_one_person_gets_378_301_and_246() {
    let estimate = station("qwen3-235b-a22b", 50);
    let best = |context| {
        estimate
            .decode
            .iter()
            .find(|r| r.together == 1 && r.context == context)
            .unwrap()
            .likely
            .high
    };
    about(best(0), 378.0, 0);
    about(best(32_768), 301.0, 0);
    about(best(68_000), 246.0, 0);
}

#[test]
fn eight_people_get_at_most_135_91_and_68_each() {
    let estimate = station("qwen3-235b-a22b", 50);
    about(ceiling_of(&estimate, 8, 0), 135.0, 0);
    about(ceiling_of(&estimate, 8, 32_768), 91.0, 0);
    about(ceiling_of(&estimate, 8, 68_000), 68.0, 0);
    about(ceiling_of(&estimate, 8, 0) * 0.65, 88.0, 0);
    about(ceiling_of(&estimate, 8, 32_768) * 0.65, 59.0, 0);
    about(ceiling_of(&estimate, 8, 68_000) * 0.65, 44.0, 0);
}

#[test]
fn thirty_two_people_get_at_most_66_34_and_22_each() {
    let estimate = station("qwen3-235b-a22b", 50);
    about(ceiling_of(&estimate, 32, 0), 66.0, 0);
    about(ceiling_of(&estimate, 32, 32_768), 34.0, 0);
    about(ceiling_of(&estimate, 32, 68_000), 22.0, 0);
}

fn ceiling_of(estimate: &Estimate, n: u32, context: u32) -> f64 {
    let row = estimate.decode.iter().find(|row| row.together == n && row.context == context);
    row.unwrap().ceiling.value
}

#[test]
fn eight_people_read_4_3_times_the_weights_that_one_reads() {
    about(step("qwen3-235b-a22b", 8) / step("qwen3-235b-a22b", 1), 4.3, 1);
}

#[test]
fn a_prompt_token_is_43_gflop_and_short_prompts_are_read_at_23_thousand_a_second() {
    let work = 2.0 * weights("qwen3-235b-a22b").per_token();
    about(work / GB, 43.0, 0);
    about(2.5e15 * 0.4 / work / 1e3, 23.0, 0);
}

#[test]
fn the_measured_prefill_of_the_235b_lies_within_what_the_formula_allows() {
    // 4,688 tokens a second for a prompt of 32K on an H200 were 55 % of 789 TFLOPS.
    let spec = BoxSpec::find("h200-141").unwrap();
    let assumed = Assumptions { prefill_utilisation: 0.55, ..Assumptions::for_box(spec) };
    let estimate = plan(spec, Recipe::find("qwen3-235b-a22b").unwrap(), 8, &assumed).unwrap();
    let row = estimate.prefill.iter().find(|row| row.tokens == 32_768).unwrap();
    assert!((row.speed.value / 4688.0 - 1.0).abs() < 0.03, "{}", row.speed.value);
}

#[test]
fn the_measured_decode_of_the_235b_lies_within_what_is_called_likely() {
    // Tokens a second for each on an H200, with prompts of 1,024: 84.2, 40.8 and 22.5.
    let estimate = plan(
        BoxSpec::find("h200-141").unwrap(),
        Recipe::find("qwen3-235b-a22b").unwrap(),
        8,
        &Assumptions::for_box(BoxSpec::find("h200-141").unwrap()),
    )
    .unwrap();
    for (together, measured) in [(1, 84.2), (8, 40.8), (32, 22.5)] {
        let row =
            estimate.decode.iter().find(|r| r.together == together && r.context == 0).unwrap();
        assert!(row.likely.low <= measured && measured <= row.likely.high, "{together}: {row:?}");
    }
}

#[test]
fn the_smaller_models_take_what_their_weights_give_in_awq() {
    for (model, expected, digits) in [
        ("qwen3-30b-a3b", 16.8, 1),
        ("hermes-4.3-36b", 21.1, 1),
        ("deepseek-r1-distill-qwen-32b", 19.3, 1),
        ("hermes-4-14b", 10.0, 1),
        ("deepseek-r1-0528-qwen3-8b", 6.1, 1),
        ("phi-4-reasoning-plus", 9.1, 1),
    ] {
        about(gigabytes(model), expected, digits);
    }
    // Text only; which parts stay in 16 bits differs by publisher.
    assert!((gigabytes("qwen3.5-35b-a3b") / 19.7 - 1.0).abs() < 0.01);
}

#[test]
fn sixty_gb_hold_89_conversations_of_one_model_and_7_of_another() {
    let many = |model, bits| 60.0 * GB / (kv(model, bits).growing * 32_768.0);
    about(many("qwen3.5-35b-a3b", 16.0), 89.0, 0);
    about(many("qwen3.5-35b-a3b", 8.0), 179.0, 0);
    about(many("hermes-4.3-36b", 16.0), 7.0, 0);
    about(many("deepseek-r1-distill-qwen-32b", 8.0), 14.0, 0);
    about(many("qwen3-30b-a3b", 16.0), 18.6, 1);
    about(many("qwen3-30b-a3b", 8.0), 37.0, 0);
}

#[test]
fn a_24_gb_card_keeps_two_to_four_people_at_32k() {
    let room = 24.0 * 0.9 - gigabytes("hermes-4-14b");
    about(room * GB / kv("hermes-4-14b", 16.0).session_bytes(32_768), 2.2, 1);
    about(room * GB / kv("hermes-4-14b", 8.0).session_bytes(32_768), 4.3, 1);
}

#[test]
fn a_million_tokens_of_v4_flash_take_6_72_gib_and_of_v4_pro_9_6() {
    let gib = |model, bits| kv(model, bits).growing * f64::from(1 << 20) / f64::from(1 << 30);
    about(gib("deepseek-v4-flash", 16.0), 6.72, 2);
    about(gib("deepseek-v4-flash", 8.0), 3.36, 2);
    about(gib("deepseek-v4-pro", 16.0), 9.6, 1);
}

#[test]
fn the_station_holds_12_8_people_at_a_million_tokens_of_v4_flash_in_16_bits() {
    let free = 252.0 * GB - 159.6 * GB;
    let session = |bits| kv("deepseek-v4-flash", bits).growing * f64::from(1 << 20);
    about(free / session(16.0), 12.8, 1);
    about(free / session(8.0), 25.6, 1);
    about((252.0 * 0.9 - 159.6) * GB / session(16.0), 9.3, 1);
    about((252.0 * 0.9 - 159.6) * GB / session(8.0), 18.6, 1);
}

#[test]
fn v4_flash_is_counted_within_three_percent_of_its_published_size() {
    // The published files hold a draft layer besides.
    let counted = gigabytes("deepseek-v4-flash");
    assert!((0.97..1.0).contains(&(counted / 159.6)), "{counted}");
}

#[test]
fn v4_pro_does_not_fit_the_station_and_the_plan_says_by_how_much() {
    let estimate = station("deepseek-v4-pro", 50);
    assert_eq!(estimate.verdict.fit, polder_planner::Fit::DoesNotFit);
    assert!(estimate.verdict.why.contains("748.0 GB"), "{}", estimate.verdict.why);
    assert!(estimate.decode.is_empty() && estimate.prefill.is_empty());
    let note = &estimate.notes[0];
    assert!(note.here.contains("1,312.5 GB") && note.here.contains("3.24 bits"), "{note:?}");
}

#[test]
fn kimi_fits_the_station_only_with_experts_in_slow_memory() {
    let spec = BoxSpec::find("dgx-station-gb300").unwrap();
    let kimi = Recipe::find("kimi-k2").unwrap();
    let estimate = plan(spec, kimi, 50, &whole_memory()).unwrap();
    assert_eq!(estimate.verdict.fit, polder_planner::Fit::FitsWithSlowExperts);
    assert!(estimate.memory.weights_in_slow.is_some());
    // The guide hopes for 30 to 80 tokens a second.
    assert!((30.0..80.0).contains(&ceiling_of(&estimate, 1, 0)));
}

#[test]
fn kimi_with_every_weight_spread_evenly_reaches_at_most_44_tokens_a_second() {
    // 16.6 GB a token, of which (520 - 252) / 520 come from the slow memory.
    let slow = 16.6 * GB * (520.0 - 252.0) / 520.0;
    about(1.0 / step_seconds(16.6 * GB, slow, 7.1e12, 396e9), 44.0, 0);
}

#[test]
fn a_conversation_with_kimi_takes_576_numbers_a_layer_and_token() {
    assert_eq!(kv("kimi-k2", 16.0).growing, 576.0 * 61.0 * 2.0);
}

#[test]
fn the_hybrid_keeps_60_mib_of_state_per_conversation_however_long() {
    let shape = kv("qwen3.5-35b-a3b", 16.0);
    assert_eq!(shape.growing, 20_480.0);
    let convolution = 30.0 * 8192.0 * 3.0 * 2.0;
    assert_eq!(shape.fixed, 30.0 * 2_097_152.0 + convolution);
    assert_eq!(shape.session_bytes(1000) - shape.session_bytes(0), 20_480_000.0);
}

#[test]
fn electricity_is_350_dollars_for_1168_kilowatt_hours() {
    let electricity = station("qwen3-235b-a22b", 50).cost.electricity.unwrap();
    about(electricity.value, 350.0, 0);
    assert!(electricity.formula.contains("1,168 kWh"), "{}", electricity.formula);
}

#[test]
fn one_time_costs_are_139300_to_207200_and_3869_to_5756_a_month() {
    let cost = station("qwen3-235b-a22b", 50).cost;
    let once = cost.one_time.unwrap();
    assert_eq!((once.low, once.high), (139_300.0, 207_200.0));
    let share = cost.amortisation.unwrap();
    about(share.low, 3869.0, 0);
    about(share.high, 5756.0, 0);
}

#[test]
fn with_the_guides_4500_of_amortisation_a_month_costs_5000_to_5850() {
    // 4,500 a month is A$162,000 over 36 months, within the range of one-time costs.
    let cost = station("qwen3-235b-a22b", 50).cost;
    let once = cost.one_time.unwrap();
    assert!((once.low..once.high).contains(&162_000.0));
    let running = cost.running.unwrap();
    about(162_000.0 / 36.0 + running.low, 5000.0, -1);
    about(162_000.0 / 36.0 + running.high, 5850.0, -1);
}

#[test]
fn each_member_pays_87_to_142_at_50_and_more_where_they_are_fewer() {
    for (members, low, high) in
        [(50, 87.0, 142.0), (25, 175.0, 284.0), (15, 291.0, 474.0), (10, 437.0, 711.0)]
    {
        let each = station("qwen3-235b-a22b", members).cost.per_member.unwrap();
        about(each.low, low, 0);
        about(each.high, high, 0);
    }
}

#[test]
fn a_support_contract_adds_17_to_33_at_50() {
    let support = station("qwen3-235b-a22b", 50).cost.support_per_member.unwrap();
    about(support.low, 17.0, 0);
    about(support.high, 33.0, 0);
}

#[test]
fn amortisation_is_counted_once() {
    let cost = station("qwen3-235b-a22b", 50).cost;
    let (monthly, once) = (cost.monthly.unwrap(), cost.one_time.unwrap());
    let running = cost.running.unwrap();
    about(monthly.low, once.low / 36.0 + running.low, 6);
    about(cost.per_member.unwrap().high * 50.0, once.high / 36.0 + running.high, 6);
}

#[test]
fn it_takes_30_to_48_members_at_150_dollars() {
    let monthly = station("qwen3-235b-a22b", 50).cost.monthly.unwrap();
    about(monthly.low, 4370.0, 0);
    about(monthly.high, 7106.0, 0);
    assert_eq!(((monthly.low / 150.0).ceil(), (monthly.high / 150.0).ceil()), (30.0, 48.0));
}

#[test]
fn a_note_is_shown_only_for_the_box_and_model_it_speaks_of() {
    let guide = |spec: &str, model: &str| -> Vec<String> {
        let spec = BoxSpec::find(spec).unwrap();
        let recipe = Recipe::find(model).unwrap();
        let estimate = plan(spec, recipe, 10, &Assumptions::for_box(spec)).unwrap();
        estimate.notes.into_iter().map(|note| note.guide).collect()
    };
    let says = |notes: &[String], what: &str| notes.iter().any(|note| note.contains(what));
    let main = guide("dgx-station-gb300", "qwen3-235b-a22b");
    for what in [
        "1.4 million",
        "175, 44",
        "2.6 million",
        "645",
        "8 people",
        "32 people",
        "784",
        "155 to 193",
    ] {
        assert!(says(&main, what), "{what}: {main:#?}");
    }
    let small = guide("dgx-station-gb300", "hermes-4-14b");
    assert!(says(&small, "784") && says(&small, "take 8 GB") && !says(&small, "645"));
    let flash = guide("dgx-station-gb300", "deepseek-v4-flash");
    assert!(says(&flash, "90 GB") && says(&flash, "9.6 GB") && says(&flash, "16 people"));
    assert!(says(&guide("h100-80", "qwen3-30b-a3b"), "60 GB stay free"));
    assert_eq!(guide("cpu", "smollm2-135m-instruct"), [""; 0]);
}
