//! Why a form cannot be had, in one sentence without its full stop, for whoever asked for it.

/// Longest part of a sentence that comes from the library, characters.
const MOST: usize = 300;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// It is wrong, or asks for what cannot be honoured.
    #[error("{0}")]
    Unusable(String),
    /// It is larger than what is read here.
    #[error("it has {bytes} bytes, and at most {most} are read; send a smaller one")]
    TooLong {
        /// Its bytes.
        bytes: usize,
        /// How many would do.
        most: usize,
    },
    /// It is nested deeper than what is read here.
    #[error("it is nested more than {most} deep; send a flatter one")]
    TooDeep {
        /// How deep would do.
        most: usize,
    },
    /// This model's vocabulary cannot be used.
    #[error("this model's vocabulary cannot be used for that; use another model")]
    Vocabulary,
}

impl GrammarError {
    /// What the library says, as part of one sentence.
    pub(crate) fn from_library(error: &str) -> Self {
        Self::Unusable(sentence(error))
    }
}

/// The first line of what the library says, shortened: it may quote whole grammars and, where it
/// panicked, a backtrace.
pub(crate) fn sentence(error: &str) -> String {
    if let Some(ours) = translated(error) {
        return ours;
    }
    if error.starts_with("panic: ") {
        return "it cannot be read here; send a simpler one".into();
    }
    let lines: Vec<&str> = error.lines().map(str::trim).filter(|line| said(line)).collect();
    let first = lines.first().copied().unwrap_or_default();
    // A heading is followed by a picture of the place and, last, by what is wrong there.
    let wrong = lines.iter().skip(1).rev().find_map(|line| line.strip_prefix("error: "));
    let line = match wrong.filter(|_| first.ends_with(':')) {
        Some(wrong) => format!("{first} {wrong}"),
        None => first.to_owned(),
    };
    let line = line.trim_end_matches(['.', ':', ' ']);
    match line.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None if line.is_empty() => "it cannot be read here; send a simpler one".into(),
        None => line.to_owned(),
    }
}

/// The library marks with angles where it would quote an answer.
fn said(line: &str) -> bool {
    !line.is_empty() && !line.starts_with('<')
}

/// What people can do about it, where the library speaks of its own settings.
fn translated(error: &str) -> Option<String> {
    if let Some((_, keys)) = error.split_once("Unimplemented keys: ") {
        let keys = keys.lines().next().unwrap_or_default().trim_matches(['[', ']']);
        return Some(format!("it uses {keys}, which is not supported here; leave it out"));
    }
    if error.contains("oneOf constraints are not supported") {
        return Some(
            "its \"oneOf\" has options that cannot be told apart for certain; use \"anyOf\"".into(),
        );
    }
    if error.contains("NoExtensionBias") {
        return Some("no token can come next".into());
    }
    if let Some((_, reference)) = error.split_once("'referencing' feature; ref ") {
        let reference: String = reference.lines().next()?.chars().take(100).collect();
        return Some(format!("its \"$ref\" {reference} leads elsewhere; use \"#/$defs/…\""));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_library_says_becomes_part_of_one_sentence() {
        let told = sentence("Unimplemented keys: [\"if\", \"not\"]\n");
        assert_eq!(told, "it uses \"if\", \"not\", which is not supported here; leave it out");
        assert!(!sentence("panic: index\n<backtrace>\n 0: main").contains("main"));
        assert_eq!(sentence(&"ä".repeat(1000)).chars().count(), MOST + 1);
        assert!(!sentence("").is_empty());
        let pictured = "regex parse error:\n    a(\n     ^\nerror: unclosed group";
        assert_eq!(sentence(pictured), "regex parse error: unclosed group");
        assert_eq!(sentence("too big\n<non-verbose/>"), "too big");
    }
}
