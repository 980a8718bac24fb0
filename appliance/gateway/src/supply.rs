//! What is begun while the box lives off its battery: less and less.

use polder_control::{PowerPhase, Supply};

use crate::errors::ApiError;

/// A question and an answer of more tokens than this, all together, are long work.
const LONG: u64 = 2048;
/// When trying again makes sense, in seconds: a short cut is over by then.
const SOON: u64 = 60;
/// The same for a box that turns itself off.
const LATER: u64 = 300;

/// Why this is not begun now, if so. `tokens` tells how much it is; it is asked only where that matters.
pub(crate) fn refusal(
    supply: Option<&Supply>,
    background: bool,
    tokens: impl FnOnce() -> u64,
) -> Option<ApiError> {
    let phase = supply?.phase;
    let (message, seconds) = match () {
        () if phase >= PowerPhase::Draining => (
            "the mains is away where this box is, and it turns itself off; try again when the power is back",
            LATER,
        ),
        () if phase.refuses_long_work() && (background || tokens() > LONG) => (
            "the mains is away where this box is, and until it is back the box begins no long answers; ask for less (fewer max_tokens), or try again in a minute",
            SOON,
        ),
        () if phase.pauses_work() && background => (
            "the mains is away where this box is, and until it is back work in the background waits; try again in a minute",
            SOON,
        ),
        () => return None,
    };
    let status = http::StatusCode::SERVICE_UNAVAILABLE;
    Some(ApiError::new(status, "server_error", "on_battery", message).after(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(phase: PowerPhase, background: bool, tokens: u64) -> Option<u64> {
        let supply = Supply { phase, ..Supply::default() };
        let refused = refusal(Some(&supply), background, || tokens)?;
        assert_eq!(refused.status, 503);
        refused.retry_after
    }

    #[test]
    fn the_longer_the_mains_is_away_the_less_is_begun() {
        use PowerPhase::*;
        assert!(refusal(None, true, || u64::MAX).is_none(), "no UPS, no question");
        assert_eq!(at(Mains, true, u64::MAX), None);
        assert_eq!(at(OnBattery, false, u64::MAX), None);
        assert_eq!(at(OnBattery, true, 10), Some(60));
        assert_eq!(at(Saving, false, 2048), None);
        assert_eq!(at(Saving, false, 2049), Some(60));
        for phase in [Draining, TellSecondaries, PowerOff] {
            assert_eq!(at(phase, false, 1), Some(300));
        }
    }
}
