//! Names that are safe as a file name and in a URL, and the nearest name to a misspelt one.

/// What is wrong with a recipe's or box's name; the rule is the one that `site.toml` uses.
pub(crate) fn name_fault(name: &str) -> Option<&'static str> {
    let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    if name.is_empty() || name.len() > 64 {
        Some("has to have 1 to 64 characters")
    } else if !name.chars().all(letters) {
        Some("may only have lower-case letters, digits, dots and dashes")
    } else if name.starts_with(['-', '.']) || name.ends_with(['-', '.']) || name.contains("..") {
        Some("may not begin or end with a dash or dot, nor have two dots in a row")
    } else {
        None
    }
}

/// What is wrong with a path that has to stay inside its folder, on any operating system.
pub(crate) fn path_fault(path: &str) -> Option<&'static str> {
    if path.is_empty() || path.len() > 512 {
        return Some("has to have 1 to 512 characters");
    }
    if path.starts_with('/') {
        return Some("is absolute; it has to be relative to the model's folder");
    }
    if path.chars().any(|c| c.is_control() || matches!(c, '\\' | ':' | '?' | '#' | '%')) {
        return Some("has a character that has no place in a file's name");
    }
    for part in path.split('/') {
        if part.is_empty() || part == "." || part == ".." {
            return Some(
                "has an empty, `.` or `..` part; it has to stay inside the model's folder",
            );
        }
        if part.len() > 255 || part.starts_with(['-', ' ']) || part.ends_with([' ', '.']) {
            return Some("has a part that is too long, or begins or ends oddly");
        }
    }
    None
}

/// `did you mean "…"?` for the nearest of `known`, or the whole list when none is near.
pub(crate) fn hint<'a>(given: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    let asked: String = given.chars().take(64).collect::<String>().to_ascii_lowercase();
    // Half a name is what people type; it counts as nearer than any other name.
    let part = |name: &str| asked.len() >= 3 && (is_part(&asked, name) || asked.contains(name));
    let near = known
        .clone()
        .map(|name| (!part(name), distance(&asked, name), name))
        .min_by_key(|(other, steps, _)| (*other, *steps));
    match near {
        Some((other, steps, name)) if !other || steps <= 2 + asked.len() / 4 => {
            format!("did you mean {name:?}?")
        }
        _ => format!("there are: {}", known.collect::<Vec<_>>().join(", ")),
    }
}

/// Whether `name` has all characters of `asked` in that order.
fn is_part(asked: &str, name: &str) -> bool {
    let mut letters = name.chars();
    asked.chars().all(|wanted| letters.any(|letter| letter == wanted))
}

/// How many single-character changes turn `a` into `b` (Levenshtein), in one row of memory.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.iter().enumerate() {
            let change = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_leaves_its_folder_is_refused() {
        for bad in [
            "",
            "/etc/passwd",
            "../a",
            "a/../b",
            "a//b",
            "a/.",
            "C:\\x",
            "a\\b",
            "a\nb",
            "-rf",
            "a/",
        ] {
            assert!(path_fault(bad).is_some(), "{bad:?} was taken");
        }
        for good in ["model.gguf", "a/b-c_d.1.safetensors", "model-00001-of-00002.safetensors"] {
            assert_eq!(path_fault(good), None, "{good:?}");
        }
    }

    #[test]
    fn the_distance_between_two_words_is_the_number_of_changes() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", "abc"), 0);
    }

    #[test]
    fn a_misspelt_name_gets_its_nearest_and_a_strange_one_gets_the_list() {
        let known = ["qwen3-235b-a22b", "kimi-k2", "smollm2-135m-instruct"];
        let say = |given| hint(given, known.into_iter());
        assert_eq!(say("qwen3-235b"), "did you mean \"qwen3-235b-a22b\"?");
        assert_eq!(say("qwen-235b"), "did you mean \"qwen3-235b-a22b\"?");
        assert_eq!(say("Kimi_K2"), "did you mean \"kimi-k2\"?");
        assert_eq!(say("zzzzzzzz"), format!("there are: {}", known.join(", ")));
    }
}
