use polder_control::{Check, Issue, Severity};

use super::issue;
use crate::seen::Seen;

/// One steward alone cannot be helped by anybody.
pub(super) fn check(seen: &Seen) -> Vec<Issue> {
    if seen.stewards != Some(1) {
        return Vec::new();
    }
    let what = "there is only one steward: nobody can help when they are ill, leave or forget their password".to_owned();
    let advice = "Make somebody else a steward too, on the page Members, and give three people a recovery sheet each, on the page Collective";
    vec![issue(Check::Stewards, "who looks after the box", Severity::Notice, what, advice)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_steward_alone_is_told_and_two_or_none_known_are_not() {
        let told = |stewards| check(&Seen { stewards, ..Seen::default() }).len();
        assert_eq!([told(None), told(Some(0)), told(Some(1)), told(Some(2))], [0, 0, 1, 0]);
    }
}
