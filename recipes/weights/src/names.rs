//! Names from recipes, folders and servers are hostile until they passed here.

use std::collections::BTreeSet;

use crate::WeightsError;

/// The longest name of a file in a model's folder.
const LONGEST: usize = 512;
/// The deepest folder in a model's folder.
const DEEPEST: usize = 8;
/// More files than any model has.
pub(crate) const MOST_FILES: usize = 4096;

/// A recipe's name, which becomes the name of a folder and of a manifest.
pub(crate) fn recipe_name(name: &str) -> Result<(), WeightsError> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    match () {
        () if name.is_empty() => Err(refused(name, "it is empty")),
        () if name.len() > 128 => Err(refused(name, "it is longer than 128 characters")),
        () if name.starts_with(['.', '-']) => Err(refused(name, "it starts with a dot or a dash")),
        () if !name.chars().all(fine) => {
            Err(refused(name, "it has other characters than letters, digits, `.`, `_` and `-`"))
        }
        () => Ok(()),
    }
}

/// A file's name in a model's folder or in a source: relative, plain, short, no pickle.
pub(crate) fn file_name(name: &str) -> Result<(), WeightsError> {
    let why = match () {
        () if name.is_empty() => "it is empty",
        () if name.len() > LONGEST => "it is longer than 512 bytes",
        () if name.starts_with('/') => "it is absolute",
        () if name.chars().any(|c| c.is_control() || c == '\\') => {
            "it has a control character or a backslash"
        }
        () if name.split('/').any(|part| part.is_empty() || part == "." || part == "..") => {
            "it has an empty part, `.` or `..`"
        }
        () if name.split('/').any(|part| part.len() > 255) => "a part is longer than 255 bytes",
        () if name.split('/').count() > DEEPEST => "it lies more than 8 folders deep",
        () if is_pickle(name) => return Err(WeightsError::Pickle { name: name.to_owned() }),
        () => return Ok(()),
    };
    Err(refused(name, why))
}

/// All names of one model together: each good by itself, none twice, none both file and folder.
pub(crate) fn files_together<'a>(
    names: impl IntoIterator<Item = &'a str>,
) -> Result<(), WeightsError> {
    let mut seen = BTreeSet::new();
    for name in names {
        file_name(name)?;
        if !seen.insert(name) {
            return Err(refused(name, "two files have it"));
        }
        if seen.len() > MOST_FILES {
            return Err(refused(name, "the model has more than 4096 files"));
        }
    }
    for name in &seen {
        let mut folders = name.match_indices('/').map(|(at, _)| &name[..at]);
        if folders.any(|folder| seen.contains(folder)) {
            return Err(refused(name, "a part of it is also the name of a file"));
        }
    }
    Ok(())
}

/// Formats that Python's loaders unpickle, which runs what the file says.
pub(crate) fn is_pickle(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    [".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"].iter().any(|end| name.ends_with(end))
}

/// A name as the path of an address.
pub(crate) fn in_url(name: &str) -> String {
    let mut url = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            url.push(char::from(byte));
        } else {
            url.push_str(&format!("%{byte:02X}"));
        }
    }
    url
}

/// An address as it may be shown and stored: without user, password, query and fragment.
pub(crate) fn shown(url: &str) -> String {
    let plain = url.split(['?', '#']).next().unwrap_or_default();
    let Some((scheme, rest)) = plain.split_once("://") else { return shorten(plain) };
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = host.rsplit('@').next().unwrap_or_default();
    shorten(&format!("{scheme}://{host}{path}"))
}

/// A base address that we can build others on, without its last slash.
pub(crate) fn base_url(option: &'static str, url: &str) -> Result<String, WeightsError> {
    let fail = |why: &str| Err(WeightsError::Option { option, why: why.to_owned() });
    let url = url.trim();
    let lower = url.to_ascii_lowercase();
    if !(lower.starts_with("http://") || lower.starts_with("https://")) {
        return fail("it must start with http:// or https://");
    }
    if url.len() > 2048 || url.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return fail("it has a space in it or is longer than 2048 characters");
    }
    if url.contains(['?', '#']) {
        return fail("it must be the address of a folder, without `?` and `#`");
    }
    Ok(url.trim_end_matches('/').to_owned())
}

/// Text from outside, short enough for a message, on one line.
pub(crate) fn shorten(text: &str) -> String {
    let mut short: String =
        text.chars().take(160).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(160).is_some() {
        short.push('…');
    }
    short
}

fn refused(name: &str, why: &'static str) -> WeightsError {
    WeightsError::Name { name: shorten(name), why }
}

#[cfg(test)]
mod tests {
    use std::path::{Component, Path};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_that_would_leave_the_folder_are_refused() {
        for name in ["/etc/passwd", "../x", "a/../../x", "a//b", "", ".", "a/.", "a\0b", "a\\b"] {
            assert!(file_name(name).is_err(), "{name:?}");
        }
        assert!(file_name(&"a/".repeat(9)).is_err());
        assert!(file_name(&"x".repeat(256)).is_err());
        file_name("model-00001-of-00002.safetensors").unwrap();
        file_name("onnx/tokenizer.json").unwrap();
    }
    #[test]
    fn formats_that_run_code_are_refused_by_name() {
        for name in ["pytorch_model.bin", "a/model.PT", "x.pth", "x.pkl", "x.ckpt", "x.pickle"] {
            let said = file_name(name).unwrap_err().to_string();
            assert!(said.starts_with(name), "{said}");
        }
    }
    #[test]
    fn a_name_cannot_be_a_file_and_a_folder() {
        assert!(files_together(["a", "a/b"]).is_err());
        assert!(files_together(["a", "a"]).is_err());
        files_together(["a.json", "a/b"]).unwrap();
    }
    #[test]
    fn recipe_names_are_plain() {
        for name in ["", ".x", "-x", "a/b", "a b", "ä", &"x".repeat(129)] {
            assert!(recipe_name(name).is_err(), "{name:?}");
        }
        recipe_name("smollm2-135m-instruct").unwrap();
    }
    #[test]
    fn a_password_in_an_address_is_never_shown() {
        assert_eq!(shown("https://me:secret@box.lan:1/m?sig=1#x"), "https://box.lan:1/m");
        assert_eq!(shown("http://box"), "http://box");
    }
    #[test]
    fn odd_characters_are_escaped_in_addresses() {
        assert_eq!(in_url("a b/ü?.json"), "a%20b/%C3%BC%3F.json");
    }

    proptest! {
        #[test]
        fn a_name_that_passes_stays_in_the_folder(name in "[a-z./\\\\\u{0}é]{0,24}") {
            if file_name(&name).is_ok() {
                prop_assert!(Path::new(&name).components().all(|part| matches!(part, Component::Normal(_))));
            }
        }
        #[test]
        fn no_text_panics_the_name_rules(name in ".{0,600}") {
            let _ = (file_name(&name), recipe_name(&name), shown(&name), shorten(&name), in_url(&name));
            let _ = base_url("x", &name);
        }
    }
}
