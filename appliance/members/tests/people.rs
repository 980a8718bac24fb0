//! Members, invites, sign-in.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Barrier;
use std::time::Duration;

use common::{PASSWORD, home, person, place, secret};
use polder_members::{KeyLimits, LimitReached, MembersError, NewKey, Role, SignInRefused};

const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

#[test]
fn a_member_signs_in_whatever_the_case_of_the_name_and_a_wrong_password_does_not() {
    let place = place();
    let ada = place.add("Ada Lovelace", Role::Member);
    let (member, token) =
        place.members.sign_in(" ada  LOVELACE", &secret(PASSWORD), home()).unwrap();
    assert_eq!(member.id, ada.id);
    let place = place.restart();
    assert_eq!(place.members.session(token.expose()).unwrap().unwrap().id, ada.id);
    for (name, password) in
        [("Ada Lovelace", "wrong words in a row"), ("Nobody", PASSWORD), ("<", PASSWORD)]
    {
        let refused = place.members.sign_in(name, &secret(password), home());
        assert!(matches!(refused, Err(SignInRefused::Wrong)), "{name}");
    }
    place.members.sign_out(token.expose()).unwrap();
    assert_eq!(place.members.session(token.expose()).unwrap(), None);
}

#[test]
fn two_members_cannot_have_one_name_in_different_cases() {
    let place = place();
    place.add("Šárka", Role::Member);
    let again = place.members.add_member(&person("šárka"), Role::Member);
    assert!(matches!(again, Err(MembersError::NameTaken(_))));
}

#[test]
fn an_unknown_name_takes_about_as_long_as_a_wrong_password() {
    let place = place();
    place.add("Ada", Role::Member);
    let time = |name: &str| {
        (0..4)
            .map(|_| {
                let start = std::time::Instant::now();
                let _ = place.members.sign_in(name, &secret("wrong words in a row"), home());
                start.elapsed()
            })
            .min()
            .unwrap()
    };
    let (known, unknown) = (time("Ada"), time("Nobody"));
    assert!(unknown > known / 3 && known > unknown / 3, "{known:?} and {unknown:?}");
}

#[test]
fn guessing_a_password_is_slowed_down_and_a_right_one_forgives() {
    let place = place();
    place.add("Ada", Role::Member);
    for _ in 0..9 {
        assert!(place.members.sign_in("Ada", &secret("wrong wrong wrong"), home()).is_err());
    }
    assert!(place.members.sign_in("Ada", &secret(PASSWORD), home()).is_ok());
    for _ in 0..10 {
        assert!(place.members.sign_in("Ada", &secret("wrong wrong wrong"), home()).is_err());
    }
    let slow = place.members.sign_in("Ada", &secret(PASSWORD), home());
    assert!(matches!(slow, Err(SignInRefused::TooMany { .. })));
    // From elsewhere, Ada herself still gets in.
    assert!(place.members.sign_in("Ada", &secret(PASSWORD), [10, 1, 1, 1].into()).is_ok());
    place.clock.pass(60);
    assert!(place.members.sign_in("Ada", &secret(PASSWORD), home()).is_ok());
}

#[test]
fn a_session_ends_when_it_was_not_used_for_a_week_or_after_thirty_days() {
    let place = place();
    let ada = place.add("Ada", Role::Member);
    let day = 24 * 3600;
    let (_, idle) = place.members.begin_session(ada.id).unwrap();
    place.clock.pass(7 * day - 10);
    assert!(place.members.session(idle.expose()).unwrap().is_some());
    place.clock.pass(7 * day + 1);
    assert!(place.members.session(idle.expose()).unwrap().is_none());

    let (_, busy) = place.members.begin_session(ada.id).unwrap();
    for _ in 0..5 {
        place.clock.pass(6 * day - 1);
        assert!(place.members.session(busy.expose()).unwrap().is_some());
    }
    place.clock.pass(10);
    assert!(place.members.session(busy.expose()).unwrap().is_none());
}

#[test]
fn a_new_password_ends_every_other_session_and_needs_the_present_one() {
    let place = place();
    let ada = place.add("Ada", Role::Member);
    let (_, here) = place.members.begin_session(ada.id).unwrap();
    let (_, there) = place.members.begin_session(ada.id).unwrap();
    let new = secret("another four words here");
    let wrong =
        place.members.change_password(ada.id, &secret("not mine at all"), &new, here.expose());
    assert!(matches!(wrong, Err(MembersError::WrongPassword)));
    place.members.change_password(ada.id, &secret(PASSWORD), &new, here.expose()).unwrap();
    assert!(place.members.session(here.expose()).unwrap().is_some());
    assert!(place.members.session(there.expose()).unwrap().is_none());
    assert!(place.members.sign_in("Ada", &secret(PASSWORD), home()).is_err());
    assert!(place.members.sign_in("Ada", &new, home()).is_ok());
    place.members.sign_out_everywhere(ada.id).unwrap();
    assert!(place.members.session(here.expose()).unwrap().is_none());
}

#[test]
fn the_last_steward_can_be_neither_removed_nor_disabled_nor_made_a_member() {
    let place = place();
    let ada = place.add("Ada", Role::Steward);
    let ben = place.add("Ben", Role::Steward);
    place.members.set_disabled(ben.id, true).unwrap();
    assert!(matches!(place.members.remove_member(ada.id), Err(MembersError::LastSteward)));
    assert!(matches!(place.members.set_disabled(ada.id, true), Err(MembersError::LastSteward)));
    assert!(matches!(place.members.set_role(ada.id, Role::Member), Err(MembersError::LastSteward)));
    place.members.set_disabled(ben.id, false).unwrap();
    place.members.remove_member(ada.id).unwrap();
    assert_eq!(place.members.members().unwrap().len(), 1);
    assert!(matches!(place.members.remove_member(ada.id), Err(MembersError::NoMember)));
}

#[test]
fn a_disabled_member_is_signed_out_and_stays_out_until_let_in_again() {
    let place = place();
    place.add("Ada", Role::Steward);
    let ben = place.add("Ben", Role::Member);
    let (_, token) = place.members.begin_session(ben.id).unwrap();
    place.members.set_disabled(ben.id, true).unwrap();
    assert_eq!(place.members.session(token.expose()).unwrap(), None);
    let refused = place.members.sign_in("Ben", &secret(PASSWORD), home());
    assert!(matches!(refused, Err(SignInRefused::Wrong)));
    place.members.set_disabled(ben.id, false).unwrap();
    assert!(place.members.sign_in("Ben", &secret(PASSWORD), home()).is_ok());
}

#[test]
fn an_invite_makes_one_member_with_the_role_it_names() {
    let place = place();
    let ada = place.add("Ada", Role::Steward);
    let (invite, token) = place.members.invite(ada.id, Role::Steward, "for Ben", WEEK).unwrap();
    let place = place.restart();
    let seen = place.members.look_at_invite(token.expose()).unwrap();
    assert_eq!((seen.id, seen.made_by.as_deref()), (invite.id, Some("Ada")));
    // A refused name leaves the invite as it was.
    assert!(place.members.accept_invite(token.expose(), &person("ADA")).is_err());
    let ben = place.members.accept_invite(token.expose(), &person("Ben")).unwrap();
    assert_eq!(ben.role, Role::Steward);
    let again = place.members.accept_invite(token.expose(), &person("Cy"));
    assert!(matches!(again, Err(MembersError::InviteGone)));
    assert!(place.members.invites().unwrap().is_empty());
}

#[test]
fn of_two_who_take_one_invite_at_once_exactly_one_becomes_a_member() {
    let place = place();
    let ada = place.add("Ada", Role::Steward);
    let (_, token) = place.members.invite(ada.id, Role::Member, "", WEEK).unwrap();
    let start = Barrier::new(2);
    let won = std::thread::scope(|scope| {
        let tries = ["Ben", "Cy"].map(|name| {
            let (members, start, token) = (&place.members, &start, &token);
            scope.spawn(move || {
                start.wait();
                members.accept_invite(token.expose(), &person(name)).is_ok()
            })
        });
        tries.into_iter().filter_map(|t| t.join().unwrap().then_some(())).count()
    });
    assert_eq!(won, 1);
    assert_eq!(place.members.members().unwrap().len(), 2);
}

#[test]
fn an_invite_that_is_too_old_or_was_withdrawn_is_gone() {
    let place = place();
    let ada = place.add("Ada", Role::Steward);
    let (_, old) = place.members.invite(ada.id, Role::Member, "", WEEK).unwrap();
    place.clock.pass(7 * 24 * 3600);
    assert!(matches!(place.members.look_at_invite(old.expose()), Err(MembersError::InviteGone)));
    let (invite, token) = place.members.invite(ada.id, Role::Member, "", WEEK).unwrap();
    place.members.withdraw_invite(&invite.id).unwrap();
    assert!(matches!(
        place.members.accept_invite(token.expose(), &person("Ben")),
        Err(MembersError::InviteGone)
    ));
}

#[test]
fn invites_die_with_the_standing_of_the_steward_who_made_them() {
    let place = place();
    let ada = place.add("Ada", Role::Steward);
    let kept = place.members.invite(ada.id, Role::Member, "", WEEK).unwrap().1;
    for (name, end) in [("Ben", 0), ("Cy", 1), ("Di", 2)] {
        let steward = place.add(name, Role::Steward).id;
        let link = place.members.invite(steward, Role::Steward, "", WEEK).unwrap().1;
        match end {
            0 => place.members.set_role(steward, Role::Member).unwrap(),
            1 => place.members.set_disabled(steward, true).unwrap(),
            _ => place.members.remove_member(steward).unwrap(),
        }
        let looked = place.members.look_at_invite(link.expose());
        assert!(matches!(looked, Err(MembersError::InviteGone)), "{name}");
    }
    assert!(place.members.look_at_invite(kept.expose()).is_ok());
}

#[test]
fn no_secret_of_a_member_is_in_the_file() {
    let place = place();
    let ada = place.add("Ada", Role::Steward);
    let (_, session) = place.members.begin_session(ada.id).unwrap();
    let (_, invite) = place.members.invite(ada.id, Role::Member, "", WEEK).unwrap();
    let key = place.members.mint_key(ada.id, &Default::default()).unwrap();
    let place = place.restart();
    let file = std::fs::read(&place.path).unwrap();
    for text in [PASSWORD, session.expose(), invite.expose(), key.key.expose()] {
        assert!(!file.windows(text.len()).any(|w| w == text.as_bytes()));
    }
}

#[test]
fn what_runs_in_a_members_name_without_a_key_ends_when_they_may_no_more() {
    let place = place();
    place.add("Ada", Role::Steward);
    let ben = place.add("Ben", Role::Member);
    let gone = place.members.gone(ben.id);
    place.members.set_role(ben.id, Role::Steward).unwrap();
    assert!(!gone.is_cancelled());
    place.members.set_disabled(ben.id, true).unwrap();
    assert!(gone.is_cancelled());
    place.members.set_disabled(ben.id, false).unwrap();
    let gone = place.members.gone(ben.id);
    assert!(!gone.is_cancelled());
    place.members.remove_member(ben.id).unwrap();
    assert!(gone.is_cancelled());
}

#[test]
fn who_wants_to_be_forgotten_is_noted_until_every_engine_has_confirmed_it() {
    let place = place();
    let engines = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    let (ada, ben) = (place.add("ada", Role::Steward), place.add("ben", Role::Member));
    assert!(place.members.to_forget(&engines(&["fast"])).unwrap().is_empty());
    place.members.want_forgotten(ada.id).unwrap();
    place.members.remove_member(ben.id).unwrap();
    let left = |names: &[&str]| -> Vec<(i64, String)> {
        let left = place.members.to_forget(&engines(names)).unwrap();
        left.into_iter().map(|(member, engine)| (member.0, engine)).collect()
    };
    let pair = |member: &polder_members::Member, engine: &str| (member.id.0, engine.to_owned());
    let all = [pair(&ada, "fast"), pair(&ada, "slow"), pair(&ben, "fast"), pair(&ben, "slow")];
    assert_eq!(left(&["fast", "slow"]), all);
    place.members.forgotten(ada.id, "fast").unwrap();
    assert_eq!(left(&["fast", "slow"]), all[1..]);
    // Once more, while the other engine has not confirmed the first time.
    place.members.want_forgotten(ada.id).unwrap();
    assert_eq!(left(&["fast", "slow"]), all);
    // An engine that is gone has taken along what it kept.
    assert_eq!(left(&["fast"]), [pair(&ada, "fast"), pair(&ben, "fast")]);
    assert_eq!(left(&["fast", "slow"]), [pair(&ada, "fast"), pair(&ben, "fast")]);
    assert!(left(&[]).is_empty() && left(&["fast"]).is_empty());
}

/// A leap year and more, hour by hour, in the real database.
#[test]
fn in_a_year_nothing_grows_quotas_begin_with_their_months_and_nobody_is_locked_out() {
    const HOUR: i64 = 3600;
    // Through 2028 and on, until counts of more than 400 days ago have to go.
    const BEGIN: i64 = 1_830_297_600;
    const DAYS: i64 = 420;
    const LEAP_DAY: i64 = 59;
    let place = place();
    let ahead = BEGIN - jiff::Timestamp::now().as_second();
    place.clock.pass(ahead);
    place.members.set_metering(true);
    let ada = place.add("Ada", Role::Steward);
    let everybody = [ada.clone(), place.add("Ben", Role::Member), place.add("Cleo", Role::Member)];
    let quota = KeyLimits { tokens_per_month: Some(31_000), ..KeyLimits::default() };
    let limits = [KeyLimits::default(), quota];
    let keys: Vec<_> = everybody
        .iter()
        .flat_map(|member| limits.map(|limits| (member, limits)))
        .map(|(member, limits)| {
            let new = NewKey { label: "daily".into(), limits, ..NewKey::default() };
            place.members.mint_key(member.id, &new).unwrap().key.expose().to_owned()
        })
        .collect();
    let session = place.members.begin_session(ada.id).unwrap().1;
    let mut signed_in = Some(session);
    let (mut refused, mut tokens) = (Vec::new(), 0_u64);
    for day in 0..DAYS {
        for hour in 0..24 {
            for key in &keys {
                let grant = place.members.verify_key(key).expect("a key ended by itself");
                match place.members.admit(&grant) {
                    Ok(admission) => {
                        admission.count("m", 40, 10);
                        tokens += 50;
                    }
                    Err(LimitReached::Month { seconds, .. }) => {
                        if refused.last() != Some(&(day, hour, seconds)) {
                            refused.push((day, hour, seconds));
                        }
                    }
                    Err(other) => panic!("{other:?}"),
                }
            }
            place.clock.pass(HOUR);
        }
        // One of them comes by every second day; each session is good for a month at most.
        if day % 2 == 0 {
            let member = &everybody[usize::try_from(day / 2 % 3).unwrap()];
            let (_, token) = place.members.begin_session(member.id).unwrap();
            if member.id == ada.id {
                // Six days ago.
                let old = signed_in.replace(token).unwrap();
                assert!(place.members.session(old.expose()).unwrap().is_some(), "{day}");
            }
        }
        if day % 7 == 0 {
            let week = Duration::from_secs(7 * 24 * 3600);
            place.members.invite(ada.id, Role::Member, "a friend", week).unwrap();
        }
        if day % 4 == 0 {
            // A program makes itself a key for a day, and forgets it.
            let expires_in = Some(Duration::from_secs(24 * 3600));
            let new = NewKey { label: "nightly".into(), expires_in, ..NewKey::default() };
            place.members.mint_key(ada.id, &new).expect("old keys stand in the way of new ones");
        }
        place.members.flush().unwrap();
        if day == LEAP_DAY {
            let rows = place.members.usage_of(ada.id, 2).unwrap();
            assert!(rows.iter().any(|row| row.day == "2028-02-29"), "{rows:?}");
        }
    }

    // Six members' quotas of 31 000 are over after 620 hours of 50 tokens: in every month on its 26th day, and good again when the next
    // begins; February has one day more.
    let days: std::collections::BTreeSet<i64> = refused.iter().map(|(day, ..)| *day).collect();
    let begins = days.iter().filter(|day| !days.contains(&(*day - 1)));
    let begins: Vec<i64> = begins.copied().collect();
    assert_eq!(begins[..4], [25, 56, 85, 116], "{begins:?}");
    let last_hour = refused.iter().filter(|(day, hour, _)| (*day, *hour) == (LEAP_DAY, 23)).count();
    assert_eq!(last_hour, 1);
    assert!(refused.iter().all(|(_, _, seconds)| *seconds <= 31 * 24 * 3600));

    // Nothing of what is over is left, and no day is missing.
    let used = place.members.usage_of_all(4000).unwrap();
    let mut days: Vec<&str> = used.iter().map(|row| row.day.as_str()).collect();
    days.dedup();
    assert_eq!(days.len(), 400, "{:?} to {:?}", days.first(), days.last());
    let counted: u64 = used.iter().map(|row| row.prompt + row.completion).sum();
    assert!(counted < tokens && counted > tokens / 420 * 395, "{counted} of {tokens}");
    assert_eq!(place.members.invites().unwrap().len(), 1);
    let db = rusqlite::Connection::open(&place.path).unwrap();
    let count = |table: &str| -> i64 {
        db.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
    };
    assert!(count("sessions") <= 8, "{}", count("sessions"));
    assert!(count("invites") <= 2, "{}", count("invites"));
    assert!(count("quota_use") <= 6, "{}", count("quota_use"));
    assert!(count("keys") <= 6 + 10, "{}", count("keys"));
    assert!(count("usage") <= 400 * 6, "{}", count("usage"));
    let pages: i64 = db.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
    assert!(pages * 4096 < 4 << 20, "{} KiB", pages * 4);
}
