//! What is told, as a mail, a message and a document.

use polder_control::{Channel, IssueId, Severity, Standing};
use serde_json::json;

use crate::checks::span;

/// Something to be told.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Letter {
    /// What is wrong and was not told yet, or is worse, or still urgent.
    pub(crate) begun: Vec<Standing>,
    /// What is back to normal: which, and what was wrong.
    pub(crate) over: Vec<(IssueId, String)>,
    /// How much is wrong in all.
    pub(crate) still: usize,
}

impl Letter {
    pub(crate) fn is_urgent(&self) -> bool {
        self.begun.iter().any(|s| s.issue.severity == Severity::Urgent)
    }

    /// In one line, ASCII wherever the box's own words are.
    pub(crate) fn subject(&self, name: &str) -> String {
        let worst = self.begun.iter().max_by_key(|s| s.issue.severity);
        let (first, rest) = match (worst, self.over.first()) {
            (Some(worst), _) => {
                let issue = &worst.issue;
                let mark = if issue.severity == Severity::Urgent { "urgent: " } else { "" };
                (format!("{mark}{}", issue.what), self.begun.len() - 1)
            }
            (None, Some((id, _))) => (format!("back to normal: {}", id.on), self.over.len() - 1),
            (None, None) => ("nothing new".to_owned(), 0),
        };
        let more = if rest > 0 { format!(" (and {rest} more)") } else { String::new() };
        let line = format!("[{name}] {first}");
        line.chars().filter(|c| !c.is_control()).take(150).collect::<String>() + &more
    }

    /// For people.
    pub(crate) fn body(&self, name: &str, now: i64) -> String {
        let mut text = String::new();
        for Standing { issue, since, .. } in &self.begun {
            text += &format!(
                "{}: {}.\nFor {}.\nWhat helps: {}.\n\n",
                issue.severity.word().to_uppercase(),
                capital(&issue.what),
                span(now.saturating_sub(*since)),
                issue.advice
            );
        }
        for (_, what) in &self.over {
            text += &format!("BACK TO NORMAL: it was so that {what}.\n\n");
        }
        text += &match self.still {
            0 => format!("Nothing else is wrong with {name}.\n"),
            1 => format!("In all one thing is wrong with {name}; its page Health shows it.\n"),
            n => format!("In all {n} things are wrong with {name}; its page Health shows them.\n"),
        };
        text
    }

    /// For programs.
    pub(crate) fn document(&self, name: &str, now: i64) -> serde_json::Value {
        let begun = self.begun.iter().map(|s| {
            json!({
                "check": s.issue.id.check, "on": s.issue.id.on, "severity": s.issue.severity,
                "what": s.issue.what, "advice": s.issue.advice, "since": s.since,
            })
        });
        let over = self
            .over
            .iter()
            .map(|(id, what)| json!({"check": id.check, "on": id.on, "what": what}));
        json!({
            "box": name, "at": now, "text": self.subject(name), "standing": self.still,
            "begun": begun.collect::<Vec<_>>(), "over": over.collect::<Vec<_>>(),
        })
    }

    /// What a steward sends to see whether it arrives.
    pub(crate) fn test(channel: Channel) -> (String, String) {
        let subject = "a test".to_owned();
        let body = format!(
            "A steward wanted to see whether messages by {} arrive. This one did. Nothing is wrong.\n",
            channel.word()
        );
        (subject, body)
    }
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters
        .next()
        .map(|first| first.to_uppercase().collect::<String>() + letters.as_str())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use polder_control::{Check, Issue};

    use super::*;

    #[test]
    fn a_letter_says_what_is_wrong_since_when_what_helps_and_what_is_over() {
        let id = |on: &str| IssueId { check: Check::DiskSpace, on: on.into() };
        let issue = Issue {
            id: id("the box's disk"),
            severity: Severity::Urgent,
            what: "the disk is full".into(),
            advice: "Remove models".into(),
            fix: None,
            unsafe_to_update: true,
        };
        let begun = vec![Standing { issue, since: 0, gone_since: None }];
        let letter = Letter { begun, over: vec![(id("5g"), "5g was down".into())], still: 1 };
        assert_eq!(letter.subject("oak"), "[oak] urgent: the disk is full");
        let body = letter.body("oak", 7200);
        assert!(
            body.contains("URGENT: The disk is full.\nFor 2 hours.\nWhat helps: Remove models.")
        );
        assert!(body.contains("BACK TO NORMAL: it was so that 5g was down."));
        let document = letter.document("oak", 7200);
        assert_eq!(document["begun"][0]["check"], "disk-space");
        assert_eq!(document["over"][0]["on"], "5g");
        let over = Letter { begun: Vec::new(), ..letter };
        assert_eq!(over.subject("oak"), "[oak] back to normal: 5g");
    }
}
