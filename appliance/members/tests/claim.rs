//! The claim: one code, one winner, a window that closes.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Barrier;
use std::time::Duration;

use common::{home, person, place};
use polder_members::{ClaimRefused, Members, MembersError, Role, SetupWindow};

const HALF_HOUR: Duration = Duration::from_secs(1800);

#[test]
fn the_code_on_the_console_opens_the_wizard_once() {
    let place = place();
    let code = place.members.open_claim(HALF_HOUR).unwrap();
    let token = place.members.claim(code.expose(), home()).unwrap();
    assert!(place.members.setup_session(token.0.expose()).unwrap());
    assert!(!place.members.setup_session("something else").unwrap());
}

#[test]
fn a_second_claim_with_the_same_code_is_refused() {
    let place = place();
    let code = place.members.open_claim(HALF_HOUR).unwrap();
    place.members.claim(code.expose(), home()).unwrap();
    assert!(matches!(place.members.claim(code.expose(), home()), Err(ClaimRefused::Wrong)));
}

#[test]
fn of_eight_claims_at_once_through_two_openings_of_the_file_exactly_one_wins() {
    let place = place();
    let code = place.members.open_claim(HALF_HOUR).unwrap();
    let second = Members::open(&place.path).unwrap();
    let start = Barrier::new(8);
    let won = std::thread::scope(|scope| {
        let tries: Vec<_> = (0..8)
            .map(|i| {
                let members = if i % 2 == 0 { &place.members } else { &second };
                let (start, code) = (&start, &code);
                scope.spawn(move || {
                    start.wait();
                    members.claim(code.expose(), home()).is_ok()
                })
            })
            .collect();
        tries.into_iter().filter_map(|t| t.join().unwrap().then_some(())).count()
    });
    assert_eq!(won, 1);
}

#[test]
fn a_new_code_kills_the_old_one_and_a_mistyped_one_harms_neither() {
    let place = place();
    let old = place.members.open_claim(HALF_HOUR).unwrap();
    let new = place.members.open_claim(HALF_HOUR).unwrap();
    assert!(place.members.claim(old.expose(), home()).is_err());
    assert!(place.members.claim("", home()).is_err());
    assert!(place.members.claim(&new.expose().to_lowercase(), home()).is_ok());
}

#[test]
fn the_window_closes_after_its_time_also_over_a_restart() {
    let place = place();
    let code = place.members.open_claim(HALF_HOUR).unwrap();
    let place = place.restart();
    assert!(matches!(
        place.members.setup_window().unwrap(),
        SetupWindow::Open { seconds: 1799..=1800 }
    ));
    place.clock.pass(1801);
    assert_eq!(place.members.setup_window().unwrap(), SetupWindow::Closed);
    assert!(matches!(place.members.claim(code.expose(), home()), Err(ClaimRefused::Wrong)));
    let place = place.restart();
    assert!(matches!(place.members.claim(code.expose(), home()), Err(ClaimRefused::Wrong)));
}

#[test]
fn the_setup_session_survives_a_restart_and_ends_with_the_first_steward() {
    let place = place();
    let code = place.members.open_claim(HALF_HOUR).unwrap();
    let token = place.members.claim(code.expose(), home()).unwrap();
    let place = place.restart();
    let token = token.0.expose();
    assert!(place.members.setup_session(token).unwrap());
    assert!(!place.members.is_claimed().unwrap());

    let steward = place.members.add_first_steward(token, &person("Ada")).unwrap();
    assert_eq!(steward.role, Role::Steward);
    assert!(place.members.is_claimed().unwrap());
    assert!(!place.members.setup_session(token).unwrap());
    assert!(matches!(
        place.members.add_first_steward(token, &person("Mallory")),
        Err(MembersError::SetupOver)
    ));
    assert!(matches!(place.members.open_claim(HALF_HOUR), Err(MembersError::Claimed)));
}

#[test]
fn a_code_shown_before_the_first_steward_came_is_dead_afterwards() {
    let place = place();
    let code = place.members.open_claim(HALF_HOUR).unwrap();
    place.members.ensure_up_key().unwrap();
    assert!(place.members.is_claimed().unwrap());
    assert!(matches!(place.members.claim(code.expose(), home()), Err(ClaimRefused::Wrong)));
}

#[test]
fn a_winning_claim_ends_the_setup_session_of_an_earlier_one() {
    let place = place();
    let code = place.members.open_claim(HALF_HOUR).unwrap();
    let first = place.members.claim(code.expose(), home()).unwrap();
    let code = place.members.open_claim(HALF_HOUR).unwrap();
    // Opening alone does not: `polder up` shows a new code at every start.
    assert!(place.members.setup_session(first.0.expose()).unwrap());
    let second = place.members.claim(code.expose(), home()).unwrap();
    assert!(!place.members.setup_session(first.0.expose()).unwrap());
    assert!(place.members.setup_session(second.0.expose()).unwrap());
}

#[test]
fn a_reopened_setup_lets_one_more_steward_be_made_and_then_ends() {
    let place = place();
    place.members.ensure_up_key().unwrap();
    let code = place.members.reopen_setup(HALF_HOUR).unwrap();
    let token = place.members.claim(code.expose(), home()).unwrap();
    let token = token.0.expose();
    assert!(place.members.setup_session(token).unwrap());
    place.members.add_first_steward(token, &person("Ada")).unwrap();
    assert!(place.members.setup_session(token).unwrap());
    place.members.end_setup().unwrap();
    assert!(!place.members.setup_session(token).unwrap());

    let code = place.members.reopen_setup(HALF_HOUR).unwrap();
    let token = place.members.claim(code.expose(), home()).unwrap();
    place.clock.pass(3 * 3600);
    assert!(!place.members.setup_session(token.0.expose()).unwrap());
}

#[test]
fn guessing_is_slowed_down_per_address_and_in_all() {
    let place = place();
    let code = place.members.open_claim(HALF_HOUR).unwrap();
    for _ in 0..10 {
        assert!(matches!(place.members.claim("WRONG", home()), Err(ClaimRefused::Wrong)));
    }
    let refused = place.members.claim(code.expose(), home());
    assert!(matches!(refused, Err(ClaimRefused::TooMany { seconds: 1..=6 })), "{refused:?}");
    // Somebody else is not slowed, until all together are too many.
    for i in 0..50u8 {
        let from = [10, 0, 0, i].into();
        assert!(matches!(place.members.claim("WRONG", from), Err(ClaimRefused::Wrong)));
    }
    let other = [10, 0, 1, 1].into();
    assert!(matches!(place.members.claim(code.expose(), other), Err(ClaimRefused::TooMany { .. })));
    // The owner at the machine itself is not locked out by that.
    assert!(place.members.claim(code.expose(), [127, 0, 0, 1].into()).is_ok());
}

#[test]
fn a_proof_claims_the_box_within_the_same_limits_until_it_has_a_steward() {
    let place = place();
    for _ in 0..10 {
        let refused = place.members.claim_proven(|| false, home());
        assert!(matches!(refused, Err(ClaimRefused::Wrong)));
    }
    let mut asked = false;
    let refused = place.members.claim_proven(|| std::mem::replace(&mut asked, true), home());
    assert!(matches!(refused, Err(ClaimRefused::TooMany { .. })) && !asked);
    place.clock.pass(60);
    let first = place.members.claim_proven(|| true, home()).unwrap();
    let second = place.members.claim_proven(|| true, home()).unwrap();
    assert!(!place.members.setup_session(first.0.expose()).unwrap());
    place.members.add_first_steward(second.0.expose(), &person("Ada")).unwrap();
    assert!(matches!(place.members.claim_proven(|| true, home()), Err(ClaimRefused::Wrong)));
}

#[test]
fn neither_code_nor_token_is_in_the_file_or_in_debug() {
    let place = place();
    let code = place.members.open_claim(HALF_HOUR).unwrap();
    let token = place.members.claim(code.expose(), home()).unwrap();
    assert!(!format!("{token:?}{code:?}").contains(token.0.expose()));
    let place = place.restart();
    let file = std::fs::read(&place.path).unwrap();
    for text in [code.expose(), token.0.expose()] {
        assert!(!file.windows(text.len()).any(|w| w == text.as_bytes()));
    }
}

#[test]
fn the_wizards_state_is_there_after_a_restart() {
    let place = place();
    assert_eq!(place.members.wizard_state().unwrap(), None);
    place.members.set_wizard_state("{\"at\":\"model\"}").unwrap();
    place.members.set_wizard_state("{\"at\":\"import\"}").unwrap();
    let place = place.restart();
    assert_eq!(place.members.wizard_state().unwrap().as_deref(), Some("{\"at\":\"import\"}"));
}
