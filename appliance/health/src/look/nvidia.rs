//! What `nvidia-smi -q -x` tells. The names of its tags changed with driver 535 (`clocks_throttle_…` to `clocks_event_…`) and
//! again where cards tell how many degrees are left instead of a limit; both are read.

use roxmltree::{Document, Node, ParsingOptions};

use crate::seen::Card;

/// Every card in the tool's output.
pub(crate) fn cards(xml: &str) -> Result<Vec<Card>, String> {
    let options =
        ParsingOptions { allow_dtd: true, nodes_limit: 200_000, ..ParsingOptions::default() };
    let document = Document::parse_with_options(xml, options).map_err(|e| e.to_string())?;
    let gpus = document.root_element().children().filter(|node| node.has_tag_name("gpu"));
    Ok(gpus.take(64).zip(0..).map(|(gpu, index)| card(gpu, index)).collect())
}

fn card(gpu: Node<'_, '_>, index: u32) -> Card {
    let text = |path: &[&str]| text(gpu, path).unwrap_or_default();
    let degrees = |name: &str| number(text(&["temperature", name]));
    let yes = |path: &[&str]| matches!(text(path), "Yes");
    let reason = |name: &str| {
        ["clocks_event_reason", "clocks_throttle_reason"]
            .iter()
            .any(|kind| text(&[&format!("{kind}s"), &format!("{kind}_{name}")]) == "Active")
    };
    let temperature = degrees("gpu_temp");
    let slows_at = degrees("gpu_temp_slow_threshold").or_else(|| {
        // What is left now, and how much is left (mostly less than nothing) when it begins to slow down.
        let left = degrees("gpu_temp_tlimit")? - degrees("gpu_temp_slow_tlimit_threshold")?;
        Some(temperature? + left)
    });
    let counted = |word: &str| count(gpu, &["ecc_errors", "volatile"], word);
    let recovery = match text(&["gpu_recovery_action"]) {
        "" | "None" | "N/A" => None,
        action => Some(action.chars().take(40).collect()),
    };
    let reset = || {
        let of = |name| yes(&["gpu_reset_status", name]);
        (of("reset_required") || of("drain_and_reset_recommended")).then(|| "a restart".to_owned())
    };
    let (others, largest_other) = others(gpu);
    Card {
        index,
        bus: gpu.attribute("id").map(bus).unwrap_or_default(),
        name: text(&["product_name"]).chars().filter(|c| !c.is_control()).take(60).collect(),
        temperature,
        slows_at,
        memory_temperature: degrees("memory_temp").zip(degrees("gpu_temp_max_mem_threshold")),
        too_hot: reason("hw_thermal_slowdown") || reason("sw_thermal_slowdown"),
        power_brake: reason("hw_power_brake_slowdown"),
        uncorrected: counted("uncorrectable"),
        corrected: counted("_correctable"),
        remap_pending: yes(&["remapped_rows", "remapped_row_pending"]),
        remap_failed: yes(&["remapped_rows", "remapped_row_failure"])
            || yes(&["ecc_errors", "unrepairable_memory"]),
        recovery: recovery.or_else(reset),
        others,
        largest_other,
    }
}

fn child<'a, 'i>(node: Node<'a, 'i>, path: &[&str]) -> Option<Node<'a, 'i>> {
    path.iter().try_fold(node, |node, name| node.children().find(|c| c.has_tag_name(*name)))
}

fn text<'a>(node: Node<'a, '_>, path: &[&str]) -> Option<&'a str> {
    child(node, path)?.text().map(str::trim)
}

/// `27 C`, `81920 MiB`, `-2 C`; `N/A` is none.
fn number(text: &str) -> Option<f64> {
    text.split_whitespace().next()?.parse().ok().filter(|n: &f64| n.is_finite())
}

/// The sum of all counters in a group whose names have this word; none where the card does not count.
fn count(gpu: Node<'_, '_>, group: &[&str], word: &str) -> Option<u64> {
    let counters = child(gpu, group)?.children().filter(|c| c.tag_name().name().contains(word));
    let counts: Vec<u64> = counters.filter_map(|c| c.text()?.trim().parse().ok()).collect();
    (!counts.is_empty()).then(|| counts.iter().fold(0u64, |sum, n| sum.saturating_add(*n)))
}

/// Memory of programs that are not ours, and the largest of them. One whose name the tool cannot tell may be ours.
fn others(gpu: Node<'_, '_>) -> (u64, Option<String>) {
    let Some(processes) = child(gpu, &["processes"]) else { return (0, None) };
    let mut rivals: Vec<(u64, String)> = processes
        .children()
        .filter(|process| process.has_tag_name("process_info"))
        .filter_map(|process| {
            let path = text(process, &["process_name"])?;
            let program = path.split_whitespace().next()?.rsplit('/').next()?;
            let mib = number(text(process, &["used_memory"])?)?.max(0.0) as u64;
            let ours = program == "polder" || program.starts_with('[');
            let name = program.chars().filter(|c| !c.is_control()).take(40).collect();
            (!ours).then_some((mib.saturating_mul(1 << 20), name))
        })
        .collect();
    rivals.sort();
    let sum = rivals.iter().fold(0u64, |sum, (bytes, _)| sum.saturating_add(*bytes));
    (sum, rivals.pop().map(|(_, name)| name))
}

/// `00000000:09:00.0` as the kernel's log writes it: `0000:09:00`.
fn bus(id: &str) -> String {
    let id = id.split('.').next().unwrap_or_default().to_ascii_lowercase();
    match id.split_once(':') {
        Some((domain, rest)) if domain.is_ascii() => {
            format!("{}:{rest}", &domain[domain.len().saturating_sub(4)..])
        }
        _ => id,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A100: &str = include_str!("../../fixtures/nvidia-smi-a100-535.xml");
    const GEFORCE: &str = include_str!("../../fixtures/nvidia-smi-3090-590.xml");

    #[test]
    fn real_output_of_two_generations_of_drivers_is_read() {
        let a100 = &cards(A100).unwrap()[0];
        assert_eq!(
            (a100.bus.as_str(), a100.name.as_str()),
            ("0000:01:00", "NVIDIA A100-SXM4-80GB")
        );
        assert_eq!((a100.temperature, a100.slows_at), (Some(27.0), Some(89.0)));
        assert_eq!(a100.memory_temperature, Some((44.0, 95.0)));
        assert_eq!((a100.uncorrected, a100.corrected), (Some(0), Some(0)));
        let geforce = &cards(GEFORCE).unwrap()[0];
        assert_eq!((geforce.temperature, geforce.slows_at), (Some(32.0), Some(95.0)));
        // It has no memory that counts its errors.
        assert_eq!((geforce.uncorrected, geforce.recovery.as_deref()), (None, None));
    }

    #[test]
    fn other_programs_memory_is_added_up_and_our_own_is_not() {
        let process = |name: &str, used: &str| {
            format!(
                "<process_info><pid>7</pid><type>C</type><process_name>{name}</process_name><used_memory>{used}</used_memory></process_info>"
            )
        };
        let list = [
            process("/usr/bin/polder", "60000 MiB"),
            process("/usr/bin/python3", "4096 MiB"),
            process("/opt/blender --x", "1024 MiB"),
            process("[Not Found]", "999 MiB"),
            process("gone", "N/A"),
        ];
        let xml =
            GEFORCE.replace("</gpu>", &format!("<processes>{}</processes></gpu>", list.concat()));
        let card = &cards(&xml).unwrap()[0];
        assert_eq!((card.others, card.largest_other.as_deref()), (5 << 30, Some("python3")));
    }

    proptest! {
        #[test]
        fn no_output_makes_reading_panic(text in "\\PC{0,200}", at in 0usize..4000) {
            let _ = cards(&text);
            let cut = GEFORCE.char_indices().map(|(i, _)| i).nth(at).unwrap_or(GEFORCE.len());
            let _ = cards(&GEFORCE[..cut]);
            let _ = cards(&format!("{}{text}{}", &GEFORCE[..cut], &GEFORCE[cut..]));
        }
    }
}
