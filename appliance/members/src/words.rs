use crate::MembersError;

/// A person's name as it is shown, and the form by which it is unique.
pub(crate) fn member_name(given: &str) -> Result<(String, String), MembersError> {
    let name = given.split_whitespace().collect::<Vec<_>>().join(" ");
    let count = name.chars().count();
    if count == 0 {
        return Err(MembersError::Field("the name is empty; write 1 to 40 letters".into()));
    }
    if count > 40 {
        return Err(MembersError::Field("the name is too long; write at most 40 letters".into()));
    }
    let ok = |c: char| c.is_alphanumeric() || " ._-'’".contains(c);
    if let Some(bad) = name.chars().find(|c| !ok(*c)) {
        return Err(MembersError::Field(format!(
            "the name has the sign {bad:?}; use letters, digits, spaces, dots, dashes and apostrophes"
        )));
    }
    if !name.chars().any(char::is_alphanumeric) {
        return Err(MembersError::Field("the name has no letter or digit".into()));
    }
    let key = name.to_lowercase();
    Ok((name, key))
}

/// An address that mail could go to, loosely: nothing is sent to it, it is told to other web apps.
pub(crate) fn email(given: Option<&str>) -> Result<Option<String>, MembersError> {
    let given = given.unwrap_or_default().trim();
    if given.is_empty() {
        return Ok(None);
    }
    let plausible = given.len() <= 254
        && given.chars().all(|c| c.is_ascii_graphic() && !"\"<>(),;:\\[]".contains(c))
        && given.split_once('@').is_some_and(|(local, host)| {
            !local.is_empty() && !host.is_empty() && !host.contains('@')
        });
    if plausible {
        Ok(Some(given.to_owned()))
    } else {
        Err(MembersError::Field(
            "the e-mail address is not one; write it like name@example.org, or leave it empty"
                .into(),
        ))
    }
}

/// A key's label or an invite's note: one line, `what` says which in the refusal.
pub(crate) fn line(what: &str, given: &str, most: usize) -> Result<String, MembersError> {
    let text = given.split_whitespace().collect::<Vec<_>>().join(" ");
    if text.chars().count() > most {
        return Err(MembersError::Field(format!(
            "the {what} is too long; write at most {most} letters"
        )));
    }
    // Control signs and those that turn the direction of writing could make one label look like another.
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
    };
    if text.chars().any(hidden) {
        return Err(MembersError::Field(format!(
            "the {what} has signs that cannot be seen; write it anew"
        )));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_many_scripts_are_taken_and_spaces_are_tidied() {
        for (given, shown) in
            [("  Ada   Lovelace ", "Ada Lovelace"), ("Šárka", "Šárka"), ("李雷", "李雷")]
        {
            assert_eq!(member_name(given).unwrap().0, shown);
        }
        assert_eq!(member_name("ADA").unwrap().1, member_name("ada").unwrap().1);
    }

    #[test]
    fn names_that_could_mislead_are_refused() {
        for bad in ["", "   ", "a\u{202e}b", "<b>", "a\0b", "--", &"x".repeat(41), "a\u{200b}"] {
            assert!(member_name(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn an_email_address_is_optional_but_not_anything() {
        assert_eq!(email(Some("  ")).unwrap(), None);
        assert_eq!(email(Some("a@b.example")).unwrap().as_deref(), Some("a@b.example"));
        for bad in ["a", "@b", "a@", "a@b@c", "a b@c", "a@b\r\nX: y", "ä@b"] {
            assert!(email(Some(bad)).is_err(), "{bad:?} was taken");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_checks_panic(text in ".{0,200}") {
            let _ = (member_name(&text), email(Some(&text)), line("label", &text, 60));
        }
    }
}
