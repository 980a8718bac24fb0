use subtle::ConstantTimeEq;

use crate::{Digest, RecoveryError, SHEETS, Sheet};

/// Any steward who is there has this long to say no, in seconds.
pub const WAIT: i64 = 24 * 3600;

/// How far a recovery is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// For this many seconds more it can be refused.
    Waiting {
        /// Seconds.
        left: i64,
    },
    /// It is time.
    Due,
}

/// How far a recovery is that was asked for then, both in Unix seconds. A clock that was set back makes it wait longer.
pub fn stage(asked_at: i64, now: i64) -> Stage {
    match asked_at.saturating_add(WAIT).saturating_sub(now) {
        left @ 1.. => Stage::Waiting { left },
        _ => Stage::Due,
    }
}

/// Whether these are two different sheets of the three, by what is kept of those; their numbers, the smaller first.
pub fn pair(
    kept: &[Digest; SHEETS as usize],
    first: &Sheet,
    second: &Sheet,
) -> Result<(u8, u8), RecoveryError> {
    if first.number() == second.number() {
        return Err(RecoveryError::Same);
    }
    // Both are compared, whatever the first one says.
    let good = |sheet: &Sheet| sheet.digest().ct_eq(&kept[usize::from(sheet.number() - 1)]);
    match (good(first) & good(second)).into() {
        true => Ok((first.number().min(second.number()), first.number().max(second.number()))),
        false => Err(RecoveryError::Wrong),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set() -> ([Sheet; 3], [Digest; 3]) {
        let sheets = [1, 2, 3].map(|number| Sheet::make(number).unwrap());
        let kept = [&sheets[0], &sheets[1], &sheets[2]].map(Sheet::digest);
        (sheets, kept)
    }

    #[test]
    fn any_two_of_the_three_are_enough_and_one_is_nothing() {
        let (sheets, kept) = set();
        for (a, b) in [(0, 1), (1, 2), (2, 0)] {
            let numbers = pair(&kept, &sheets[a], &sheets[b]).unwrap();
            assert_eq!(numbers.0 as usize + numbers.1 as usize, a + b + 2);
            assert!(numbers.0 < numbers.1);
        }
        for sheet in &sheets {
            assert_eq!(pair(&kept, sheet, sheet), Err(RecoveryError::Same));
        }
    }

    #[test]
    fn a_stolen_sheet_beside_one_of_another_set_or_a_made_up_one_is_nothing() {
        let (sheets, kept) = set();
        let (others, _) = set();
        for (number, sheet) in sheets.iter().enumerate() {
            for (_, other) in others.iter().enumerate().filter(|(n, _)| *n != number) {
                assert_eq!(pair(&kept, sheet, other), Err(RecoveryError::Wrong));
                assert_eq!(pair(&kept, other, sheet), Err(RecoveryError::Wrong));
            }
        }
    }

    #[test]
    fn the_day_is_over_after_a_day_and_not_a_second_before() {
        assert_eq!(stage(1000, 1000), Stage::Waiting { left: WAIT });
        assert_eq!(stage(1000, 999 + WAIT), Stage::Waiting { left: 1 });
        assert_eq!(stage(1000, 1000 + WAIT), Stage::Due);
        assert_eq!(stage(1000, 1000 + 50 * WAIT), Stage::Due);
        // The clock was set back.
        assert_eq!(stage(1000, 0), Stage::Waiting { left: WAIT + 1000 });
    }

    proptest::proptest! {
        #[test]
        fn no_clock_makes_it_panic_and_time_never_undoes_it(asked in i64::MIN.., now in i64::MIN.., later in 0i64..) {
            if stage(asked, now) == Stage::Due {
                proptest::prop_assert_eq!(stage(asked, now.saturating_add(later)), Stage::Due);
            }
        }
    }
}
