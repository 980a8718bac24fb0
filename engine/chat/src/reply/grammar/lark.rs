//! Pieces of llguidance's dialect of Lark.

use std::fmt::Write;

/// A text as it stands.
pub(super) fn literal(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            control if control.is_control() => escape(control, &mut quoted),
            plain => quoted.push(plain),
        }
    }
    quoted + "\""
}

fn escape(control: char, into: &mut String) {
    write!(into, "\\u{:04x}", control as u32).expect("writing to a string does not fail");
}

/// A regular expression between slashes.
pub(super) fn regex(expression: &str) -> String {
    let mut lark = String::from("/");
    let mut characters = expression.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => match characters.next() {
                Some('\n') | None => lark.push_str("\\\\"),
                Some(escaped) => lark.extend(['\\', escaped]),
            },
            '/' => lark.push_str("\\/"),
            control if control.is_control() => {
                write!(lark, "\\x{{{:x}}}", control as u32)
                    .expect("writing to a string does not fail");
            }
            plain => lark.push(plain),
        }
    }
    lark + "/"
}

/// A regular expression for exactly this text.
pub(super) fn escaped(text: &str) -> String {
    let mut expression = String::new();
    for character in text.chars() {
        if r"\.+*?()|[]{}^$#&-~".contains(character) {
            expression.push('\\');
        }
        expression.push(character);
    }
    expression
}

/// Any text that holds none of these.
pub(super) fn without(words: &[&str]) -> String {
    let any = "/(?s:.*)/";
    if words.is_empty() {
        return any.into();
    }
    let words: Vec<String> = words.iter().map(|word| escaped(word)).collect();
    format!("{any} & ~{}", regex(&format!("(?s:.*)({})(?s:.*)", words.join("|"))))
}
