//! Pure: what a unit's properties mean, in the words that are used for child processes too.

use crate::parts::{Ended, exit_words};

/// `CLD_EXITED` of waitid(2); what the kernel calls other ends are signals.
const EXITED: i32 = 1;
/// The exit statuses that systemd gives itself when it could not even run the program.
const OWN_STATUSES: std::ops::RangeInclusive<i32> = 200..=245;
/// More of its last words than this is not told to people.
const LONGEST_WORDS: usize = 300;

/// A unit at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// `active`, `activating`, `deactivating`, `inactive`, `failed`.
    pub(crate) active: String,
    /// Whether something is still to be done to it.
    pub(crate) job: bool,
    /// Another one for every start; empty before the first.
    pub(crate) invocation: Vec<u8>,
    /// Its main process, or 0.
    pub(crate) pid: u32,
}

impl Seen {
    /// It runs, or is about to, or is about to end.
    pub(crate) fn is_alive(&self) -> bool {
        matches!(
            self.active.as_str(),
            "active" | "activating" | "reloading" | "refreshing" | "deactivating"
        )
    }

    /// It runs and is not being ended: somebody can take it over.
    pub(crate) fn runs(&self) -> bool {
        self.is_alive() && self.active != "deactivating" && self.pid != 0
    }
}

/// How far a unit is that was told to start.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Begun {
    /// Its turn has not come yet.
    NotYet,
    /// Its program was started; it may have ended since.
    Yes,
    /// Nothing more will happen, and it was never started.
    Never,
}

/// Compares a unit after it was told to start with what it was before that.
pub(crate) fn begun(before: &Seen, now: &Seen) -> Begun {
    let another = now.invocation != before.invocation && !now.invocation.is_empty();
    match (another, now.is_alive()) {
        (true, true) if now.pid != 0 => Begun::Yes,
        (true, false) => Begun::Yes,
        (false, false) if !now.job => Begun::Never,
        _ => Begun::NotYet,
    }
}

/// What a unit's last life ended of, as systemd noted it down.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) result: String,
    pub(crate) code: i32,
    pub(crate) status: i32,
    pub(crate) said: String,
}

impl Verdict {
    /// The end of `unit` as it is told to people.
    pub(crate) fn ended(&self, unit: &str) -> Ended {
        let (exit, signal) = match self.code {
            EXITED => (Some(self.status), None),
            0 => (Some(0), None),
            _ => (None, Some(self.status)),
        };
        let status = match (self.result.as_str(), exit) {
            ("watchdog", _) => "its watchdog: it had stopped saying that it is alive".to_owned(),
            ("oom-kill", _) => "signal 9 (killed; memory ran out)".to_owned(),
            ("timeout", _) => "a time limit: it took too long to begin or to end".to_owned(),
            ("start-limit-hit", _) => "too many starts in a short time".to_owned(),
            ("resources", _) => {
                format!(
                    "something that systemd could not give it; `journalctl -u {unit}` says what"
                )
            }
            (_, Some(own)) if OWN_STATUSES.contains(&own) => format!(
                "exit status {own} (systemd could not run its program; `journalctl -u {unit}` says why)"
            ),
            _ => exit_words(exit, signal),
        };
        Ended { status, last_words: last_words(&self.said) }
    }
}

/// What a part reports while all is well is no news; what it failed of is.
fn last_words(said: &str) -> Option<String> {
    let words = said.strip_prefix("error: ")?;
    Some(words.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST_WORDS).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(result: &str, code: i32, status: i32) -> String {
        let verdict = Verdict { result: result.into(), code, status, said: String::new() };
        verdict.ended("polder-engine@fast.service").to_string()
    }

    #[test]
    fn ends_that_a_child_process_has_too_are_told_in_the_same_words() {
        assert_eq!(verdict("exit-code", 1, 3), "exit status 3");
        assert_eq!(verdict("success", 1, 0), "exit status 0");
        assert_eq!(verdict("signal", 2, 9), "signal 9 (killed; perhaps memory ran out)");
        assert_eq!(verdict("core-dump", 3, 11), "signal 11");
        assert_eq!(verdict("success", 0, 0), "exit status 0");
    }

    #[test]
    fn what_only_systemd_knows_is_told_as_well() {
        assert_eq!(verdict("oom-kill", 2, 9), "signal 9 (killed; memory ran out)");
        assert!(verdict("watchdog", 3, 6).starts_with("its watchdog"));
        assert!(verdict("timeout", 2, 9).starts_with("a time limit"));
        assert!(verdict("start-limit-hit", 1, 1).starts_with("too many starts"));
        let own = verdict("exit-code", 1, 226);
        assert!(own.contains("226") && own.contains("journalctl -u polder-engine@fast"), "{own}");
        assert!(verdict("resources", 0, 0).contains("journalctl"));
    }

    #[test]
    fn last_words_are_what_a_part_failed_of_and_not_how_well_it_was() {
        assert_eq!(last_words("loading the model: 41 %"), None);
        assert_eq!(last_words("error: no weights\u{1b}[2J").as_deref(), Some("no weights [2J"));
        assert_eq!(last_words(&format!("error: {}", "x".repeat(999))).unwrap().len(), 300);
    }

    #[test]
    fn a_start_is_over_when_another_life_began_or_nothing_more_will_happen() {
        let seen = |active: &str, job, life: &[u8], pid| Seen {
            active: active.into(),
            job,
            invocation: life.to_vec(),
            pid,
        };
        let never_ran = Seen { active: "inactive".into(), ..Seen::default() };
        let failed_before = seen("failed", false, b"1", 0);
        for (before, now, expected) in [
            (&never_ran, seen("inactive", true, b"", 0), Begun::NotYet),
            (&never_ran, seen("activating", true, b"1", 0), Begun::NotYet),
            (&never_ran, seen("activating", true, b"1", 7), Begun::Yes),
            (&never_ran, seen("active", false, b"1", 7), Begun::Yes),
            (&never_ran, seen("failed", false, b"1", 0), Begun::Yes),
            (&never_ran, seen("inactive", false, b"", 0), Begun::Never),
            (&failed_before, seen("failed", true, b"1", 0), Begun::NotYet),
            (&failed_before, seen("failed", false, b"1", 0), Begun::Never),
            (&failed_before, seen("failed", false, b"2", 0), Begun::Yes),
            (
                &seen("deactivating", true, b"1", 7),
                seen("deactivating", true, b"1", 7),
                Begun::NotYet,
            ),
        ] {
            assert_eq!(begun(before, &now), expected, "{before:?} {now:?}");
        }
    }
}
