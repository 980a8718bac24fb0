//! What a server elsewhere answered instead of an answer, in one sentence of ours. Pure.

use http::{HeaderMap, StatusCode};
use serde_json::Value;

/// Letters of a server's own words that are repeated.
const LONGEST_WORDS: usize = 300;
/// Seconds; whatever longer it asks for, somebody may try again after this.
const LONGEST_WAIT: u64 = 3600;

/// Why there is no answer from elsewhere. The message is one sentence, without its server's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// For the client.
    pub status: StatusCode,
    /// For programs.
    pub code: &'static str,
    /// For people.
    pub message: String,
    /// When the same may succeed, in seconds.
    pub retry_after: Option<u64>,
}

/// What is to be done with an answer's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answered {
    /// It is an answer.
    Well,
    /// It is the question's fault: another server would say the same.
    Refused(Fault),
    /// It is the server's: another may answer.
    Failed(Fault),
}

/// Judges an answer of the server called `name`, by its head and what there is of its body. `secret` is never repeated.
pub fn answered(
    name: &str,
    there: &str,
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
    secret: Option<&str>,
) -> Answered {
    let fault = |status, code, message: String| Fault { status, code, message, retry_after: None };
    let words = || said(body, secret).map(|words| format!(": {words}")).unwrap_or_default();
    let bad = StatusCode::BAD_GATEWAY;
    let wait = || {
        let after = headers
            .get(http::header::RETRY_AFTER)
            .and_then(|v| v.to_str().ok()?.trim().parse().ok());
        Some(after.unwrap_or(30).clamp(1, LONGEST_WAIT))
    };
    match status.as_u16() {
        200..=299 => Answered::Well,
        400 | 413 | 415 | 422 => Answered::Refused(fault(
            status,
            "refused_elsewhere",
            format!("{name}, which was asked instead of this box, refused the question{}", words()),
        )),
        401 | 403 => Answered::Failed(fault(
            bad,
            "key_refused_elsewhere",
            format!(
                "{name} does not take the key that this box has for it; a steward can put in another one on the page Elsewhere"
            ),
        )),
        402 => Answered::Failed(fault(
            bad,
            "unpaid_elsewhere",
            format!(
                "{name} answers no more until it is paid; a steward has to look at the account there"
            ),
        )),
        404 => Answered::Failed(fault(
            bad,
            "model_not_elsewhere",
            format!(
                "{name} does not know the model {there}; a steward can correct its name on the page Elsewhere"
            ),
        )),
        429 | 503 | 529 => Answered::Failed(Fault {
            retry_after: wait(),
            ..fault(
                StatusCode::SERVICE_UNAVAILABLE,
                "busy_elsewhere",
                format!("{name} has no room for the question now; try again in a little while"),
            )
        }),
        508 => Answered::Failed(fault(
            bad,
            "passed_on_elsewhere",
            format!(
                "{name} has the model {there} from another server itself, and a question is passed on once only; a steward can name that server on the page Elsewhere"
            ),
        )),
        300..=399 => Answered::Failed(fault(
            bad,
            "moved_elsewhere",
            format!(
                "{name} sends this box on to another address, where it does not go; a steward can correct its address on the page Elsewhere"
            ),
        )),
        other => Answered::Failed(fault(
            bad,
            "failed_elsewhere",
            format!(
                "{name} failed to answer (status {other}); try again, and tell a steward if it stays so"
            ),
        )),
    }
}

/// The server's own words, as much of them as a sentence can hold.
fn said(body: &[u8], secret: Option<&str>) -> Option<String> {
    let value: Value = serde_json::from_slice(body).ok()?;
    let words = [&value["error"]["message"], &value["message"], &value["detail"], &value["error"]];
    let words = words.iter().find_map(|v| v.as_str())?;
    let words = match secret.filter(|secret| !secret.is_empty()) {
        Some(secret) => words.replace(secret, "(hidden)"),
        None => words.to_owned(),
    };
    let plain: String =
        words.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST_WORDS).collect();
    let plain = plain.trim().trim_end_matches('.');
    (!plain.is_empty()).then(|| plain.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn judged(status: u16, body: &str) -> Answered {
        let status = StatusCode::from_u16(status).unwrap();
        answered(
            "cloud",
            "v/big",
            status,
            &HeaderMap::new(),
            body.as_bytes(),
            Some("sk-secret-key"),
        )
    }

    fn message(answered: Answered) -> String {
        match answered {
            Answered::Well => String::new(),
            Answered::Refused(fault) | Answered::Failed(fault) => fault.message,
        }
    }

    #[test]
    fn a_question_that_is_wrong_is_refused_in_the_servers_words_and_nobody_else_is_asked() {
        let body = r#"{"error":{"message":"max_tokens is\n too large."}}"#;
        let Answered::Refused(fault) = judged(400, body) else { panic!() };
        assert_eq!(
            fault.message,
            "cloud, which was asked instead of this box, refused the question: max_tokens is  too large"
        );
        assert_eq!(fault.status, StatusCode::BAD_REQUEST);
    }

    #[test]
    fn a_server_that_fails_is_told_apart_by_what_a_steward_can_do() {
        for (status, part) in [
            (401, "key"),
            (403, "key"),
            (402, "paid"),
            (404, "v/big"),
            (301, "another address"),
            (500, "status 500"),
            (529, "no room"),
        ] {
            let answered = judged(status, "");
            assert!(matches!(answered, Answered::Failed(_)), "{status}");
            assert!(message(answered).contains(part), "{status}");
        }
        let Answered::Failed(busy) = judged(429, "") else { panic!() };
        assert_eq!((busy.status.as_u16(), busy.retry_after), (503, Some(30)));
    }

    #[test]
    fn a_key_is_never_repeated() {
        for status in [400, 401, 404, 422, 500] {
            let text =
                message(judged(status, r#"{"error":{"message":"wrong key sk-secret-key given"}}"#));
            assert!(!text.contains("sk-secret"), "{text}");
        }
    }

    proptest! {
        #[test]
        fn whatever_it_says_is_one_line_of_bounded_length(status in 100u16..1000, body in "\\PC{0,2000}|\\{\"error\":\"[a-z\\\\n]{0,900}\"\\}") {
            let text = message(judged(status, &body));
            prop_assert!(text.chars().count() < 600 && !text.contains('\n'));
        }
    }
}
