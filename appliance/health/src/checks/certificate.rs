use polder_control::{Check, Issue, Severity};

use super::{DAY, issue, span};
use crate::seen::{Certificate, Seen};

/// The certificates that the door shows. The box renews them by itself long before their end: one that comes near to it
/// was not renewed.
pub(super) fn check(seen: &Seen) -> Vec<Issue> {
    let certificates = seen.certificates.iter().flatten();
    certificates.filter_map(|certificate| of(certificate, seen.now)).collect()
}

fn of(certificate: &Certificate, now: i64) -> Option<Issue> {
    let Certificate { on, authority, from, until } = certificate;
    let told = |severity, what: String, advice| {
        Some(issue(Check::Certificate, on, severity, what, advice))
    };
    if now < *from {
        return told(
            Severity::Urgent,
            format!("the certificate of {on} is not valid yet: the machine's clock is wrong"),
            "Set the clock, or give the box a way to the internet; the certificate is good as it is",
        );
    }
    let (life, left) = (until.saturating_sub(*from), until.saturating_sub(now));
    if left <= 0 {
        return told(
            Severity::Urgent,
            format!("the certificate of {on} has ended: browsers and programs refuse the box"),
            "Start the box again: it makes itself a new one. If that does not help, its clock may be wrong",
        );
    }
    if *authority {
        return (left < 90 * DAY).then(|| {
            issue(
                Check::Certificate,
                on,
                if left < 21 * DAY { Severity::Warning } else { Severity::Notice },
                format!("the box's own authority ends in {}", span(left)),
                "The box makes a new one by itself. Every member then has to install its certificate: tell them where (page Connect)",
            )
        });
    }
    (left < life / 6 || left < DAY).then(|| {
        issue(
            Check::Certificate,
            on,
            if left < (life / 20).min(3 * DAY) { Severity::Urgent } else { Severity::Warning },
            format!("the certificate of {on} ends in {} and was not renewed", span(left)),
            "Start the box again. If it is a name that the world trusts, look whether the box reaches the internet and whether the name still leads to it",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(authority: bool, from: i64, until: i64, now: i64) -> Option<Severity> {
        let certificates =
            Some(vec![Certificate { on: "oak.local".into(), authority, from, until }]);
        check(&Seen { now, certificates, ..Seen::default() }).first().map(|issue| issue.severity)
    }

    #[test]
    fn a_certificate_of_any_lifetime_is_told_when_it_should_have_been_renewed() {
        let year = 397 * DAY;
        assert_eq!(told(false, 0, year, year / 2), None);
        assert_eq!(told(false, 0, year, year - year / 7), Some(Severity::Warning));
        assert_eq!(told(false, 0, year, year - DAY), Some(Severity::Urgent));
        // Six days: renewed after four.
        let short = 6 * DAY;
        assert_eq!(told(false, 0, short, 4 * DAY), None);
        assert_eq!(told(false, 0, short, short - DAY / 2), Some(Severity::Warning));
        assert_eq!(told(false, 0, short, short), Some(Severity::Urgent));
        assert_eq!(told(false, 100, short, 50), Some(Severity::Urgent));
    }

    #[test]
    fn the_boxs_own_authority_is_told_months_before() {
        let life = 3650 * DAY;
        assert_eq!(told(true, 0, life, life - 100 * DAY), None);
        assert_eq!(told(true, 0, life, life - 80 * DAY), Some(Severity::Notice));
        assert_eq!(told(true, 0, life, life - 10 * DAY), Some(Severity::Warning));
    }
}
