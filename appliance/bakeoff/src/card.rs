//! Which graphics card this is, and whether Polder was measured on its kind.

/// Kinds of cards that Polder's kernels were measured on.
const MEASURED: [&str; 2] = ["H100", "H200"];

/// The first card's name, as the driver tells it; None on a machine without one.
pub fn name() -> Option<String> {
    let cards = std::fs::read_dir("/proc/driver/nvidia/gpus").ok()?;
    let mut files: Vec<_> = cards.flatten().map(|card| card.path().join("information")).collect();
    files.sort();
    model(&std::fs::read_to_string(files.first()?).ok()?)
}

fn model(information: &str) -> Option<String> {
    let line = information.lines().find_map(|line| line.strip_prefix("Model:"))?;
    Some(line.trim().to_owned()).filter(|name| !name.is_empty())
}

/// A card's name with what is known of its kind.
pub fn label(card: Option<&str>) -> String {
    match card {
        None => "no graphics card found here".to_owned(),
        Some(name) if is_measured(name) => name.to_owned(),
        Some(name) => {
            format!("{name}, untested: nobody has measured Polder on this kind of card yet")
        }
    }
}

fn is_measured(name: &str) -> bool {
    name.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| MEASURED.contains(&word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_that_nobody_has_measured_is_called_untested() {
        let text = "Model: \t\t NVIDIA GeForce RTX 4090\nIRQ:   \t\t 16\n";
        let name = model(text).unwrap();
        assert_eq!(name, "NVIDIA GeForce RTX 4090");
        assert!(label(Some(&name)).contains("untested"));
        assert_eq!(label(Some("NVIDIA H100 80GB HBM3")), "NVIDIA H100 80GB HBM3");
        assert!(label(Some("NVIDIA GH100X")).contains("untested"));
        assert_eq!(model("IRQ: 3\n"), None);
    }
}
