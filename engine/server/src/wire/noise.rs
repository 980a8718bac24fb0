//! What some clients put into a system prompt anew with each request, although it says nothing to
//! the model: the prefix cache would have to begin from nothing each time.

use serde_json::{Map, Value};

/// How the line of Claude Code begins that says which version asks, with a number that differs each
/// time: `x-anthropic-billing-header: cc_version=2.1.37.0d9; cc_entrypoint=cli; cch=5e2f1;`.
const BILLING: &str = "x-anthropic-billing-header: ";

/// A system prompt without the billing line, where that is its first line in exactly this shape.
pub fn without_billing_line(system: &str) -> &str {
    let (line, rest) = system.split_once('\n').unwrap_or((system, ""));
    match line.strip_suffix('\r').unwrap_or(line).strip_prefix(BILLING) {
        Some(pairs) if are_pairs(pairs) => rest,
        _ => system,
    }
}

/// The same for a conversation that begins with a system prompt.
pub(crate) fn quieten(messages: &mut [Map<String, Value>]) {
    if let Some(first) = messages.first_mut()
        && first["role"] == "system"
        && let Some(Value::String(text)) = first.get_mut("content")
    {
        *text = without_billing_line(text).to_owned();
    }
}

/// `name=value; name=value;`
fn are_pairs(text: &str) -> bool {
    let text = text.trim_end().strip_suffix(';').unwrap_or(text);
    text.split(';').all(|pair| {
        let is = |part: &str, more: &str| {
            part.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
        };
        pair.trim()
            .split_once('=')
            .is_some_and(|(name, value)| !name.is_empty() && is(name, "_-") && is(value, "_-.:+/"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_billing_line_goes_and_what_follows_stays() {
        for line in [
            "x-anthropic-billing-header: cc_version=2.1.37.0d9; cc_entrypoint=cli; cch=5e2f1;",
            "x-anthropic-billing-header: cc_version=2.1.37; cch=",
            "x-anthropic-billing-header: cch=00000;\r",
        ] {
            assert_eq!(without_billing_line(line), "");
            assert_eq!(without_billing_line(&format!("{line}\nYou are.\n")), "You are.\n");
        }
    }

    #[test]
    fn what_only_looks_like_it_stays() {
        for text in [
            "",
            "You are.\nx-anthropic-billing-header: cch=1;",
            " x-anthropic-billing-header: cch=1;",
            "X-Anthropic-Billing-Header: cch=1;",
            "x-anthropic-billing-header: ",
            "x-anthropic-billing-header: what does this line mean?",
            "x-anthropic-billing-header: cch=1; and say why a=b c",
            "x-anthropic-billing-header:cch=1;",
            "x-anthropic-billing-header: ;;",
        ] {
            assert_eq!(without_billing_line(text), text);
        }
    }

    proptest! {
        #[test]
        fn what_stays_is_the_end_of_what_was_there(
            text in "(x-anthropic-billing-header: |cch=1;|\n| |\u{e9}|a=b){0,8}",
        ) {
            let rest = without_billing_line(&text);
            prop_assert!(text.ends_with(rest));
            let gone = &text[..text.len() - rest.len()];
            prop_assert!(gone.is_empty() || gone.starts_with(BILLING));
            prop_assert!(gone.trim_end_matches('\n').lines().count() <= 1);
        }
    }
}
