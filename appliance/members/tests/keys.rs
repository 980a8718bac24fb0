//! API keys: what they open, their limits, revoking, usage.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Place, place};
use polder_members::{
    KeyGrant, KeyLimits, KeyRefused, LimitReached, MembersError, MintedKey, NewKey, Role, Scope,
    UsedLengths,
};

fn key(place: &Place, limits: KeyLimits) -> (MintedKey, Arc<KeyGrant>) {
    let ada = match place.members.members().unwrap().into_iter().next() {
        Some(member) => member,
        None => place.add("Ada", Role::Steward),
    };
    let new = NewKey { label: "laptop".into(), limits, ..NewKey::default() };
    let minted = place.members.mint_key(ada.id, &new).unwrap();
    let grant = place.members.verify_key(minted.key.expose()).unwrap();
    (minted, grant)
}

#[test]
fn a_key_is_known_again_after_a_restart_and_a_changed_one_is_not() {
    let place = place();
    let (minted, _) = key(&place, KeyLimits::default());
    let place = place.restart();
    let text = minted.key.expose();
    assert!(text.starts_with("plk_"));
    assert_eq!(place.members.verify_key(text).unwrap().member_name, "Ada");
    let mut last = text.to_owned();
    last.pop();
    for bad in ["", "plk_", "plk__", "sk-abc", &last, &format!("{text}a"), &text.to_uppercase()] {
        assert_eq!(place.members.verify_key(bad).unwrap_err(), KeyRefused::Unknown, "{bad}");
    }
}

#[test]
fn a_revoked_key_opens_nothing_at_once_and_ends_what_it_runs() {
    let place = place();
    let (minted, grant) = key(&place, KeyLimits::default());
    let (other, other_grant) = key(&place, KeyLimits::default());
    place.members.revoke_key(minted.info.member, &minted.info.id).unwrap();
    assert!(grant.revoked.is_cancelled());
    assert!(!other_grant.revoked.is_cancelled());
    assert_eq!(place.members.verify_key(minted.key.expose()).unwrap_err(), KeyRefused::Unknown);
    assert!(place.members.verify_key(other.key.expose()).is_ok());
    let again = place.members.revoke_key(minted.info.member, &minted.info.id);
    assert!(matches!(again, Err(MembersError::NoKey)));
    let place = place.restart();
    assert!(place.members.verify_key(minted.key.expose()).is_err());
}

#[test]
fn nobody_revokes_another_members_key() {
    let place = place();
    let (minted, grant) = key(&place, KeyLimits::default());
    let ben = place.add("Ben", Role::Steward);
    let tried = place.members.revoke_key(ben.id, &minted.info.id);
    assert!(matches!(tried, Err(MembersError::NoKey)));
    assert!(!grant.revoked.is_cancelled());
}

#[test]
fn removing_or_disabling_a_member_ends_their_keys_and_their_streams() {
    let place = place();
    place.add("Ada", Role::Steward);
    let ben = place.add("Ben", Role::Member);
    let minted = place.members.mint_key(ben.id, &NewKey::default()).unwrap();
    let grant = place.members.verify_key(minted.key.expose()).unwrap();
    place.members.set_disabled(ben.id, true).unwrap();
    assert!(grant.revoked.is_cancelled());
    assert!(place.members.verify_key(minted.key.expose()).is_err());
    place.members.set_disabled(ben.id, false).unwrap();
    let grant = place.members.verify_key(minted.key.expose()).unwrap();
    assert!(!grant.revoked.is_cancelled());
    place.members.set_role(ben.id, Role::Steward).unwrap();
    assert!(!grant.revoked.is_cancelled());
    assert_eq!(place.members.verify_key(minted.key.expose()).unwrap().role, Role::Steward);
    place.members.remove_member(ben.id).unwrap();
    assert!(grant.revoked.is_cancelled());
    assert!(place.members.verify_key(minted.key.expose()).is_err());
}

#[test]
fn a_key_past_its_time_says_that_it_expired() {
    let place = place();
    let ada = place.add("Ada", Role::Steward);
    let new = NewKey { expires_in: Some(Duration::from_secs(60)), ..NewKey::default() };
    let minted = place.members.mint_key(ada.id, &new).unwrap();
    assert!(place.members.verify_key(minted.key.expose()).is_ok());
    place.clock.pass(60);
    assert_eq!(place.members.verify_key(minted.key.expose()).unwrap_err(), KeyRefused::Expired);
}

#[test]
fn a_key_opens_what_its_scopes_and_models_say() {
    let place = place();
    let ada = place.add("Ada", Role::Steward);
    let new = NewKey {
        scopes: vec![Scope::Auth],
        models: vec!["qwen3-0.6b".into()],
        strict: true,
        ..NewKey::default()
    };
    let minted = place.members.mint_key(ada.id, &new).unwrap();
    let place = place.restart();
    let grant = place.members.verify_key(minted.key.expose()).unwrap();
    assert!(grant.opens(Scope::Auth) && !grant.opens(Scope::Api) && grant.strict);
    assert!(grant.may_use("qwen3-0.6b") && !grant.may_use("another"));
    let bad = NewKey { models: vec!["a b".into()], ..NewKey::default() };
    assert!(place.members.mint_key(ada.id, &bad).is_err());
}

#[test]
fn the_request_over_the_limit_per_minute_waits_and_another_key_does_not() {
    let place = place();
    let limits = KeyLimits { requests_per_minute: Some(3), ..KeyLimits::default() };
    let (_, grant) = key(&place, limits);
    let (_, free) = key(&place, KeyLimits::default());
    for _ in 0..3 {
        place.members.admit(&grant).unwrap();
    }
    let refused = place.members.admit(&grant).err().unwrap();
    assert_eq!(refused, LimitReached::Requests { limit: 3, seconds: 20 });
    assert!(place.members.admit(&free).is_ok());
    place.clock.pass(20);
    assert!(place.members.admit(&grant).is_ok());
}

#[test]
fn a_request_that_used_more_tokens_than_a_minute_has_makes_the_next_one_wait() {
    let place = place();
    let limits = KeyLimits { tokens_per_minute: Some(100), ..KeyLimits::default() };
    let (_, grant) = key(&place, limits);
    place.members.admit(&grant).unwrap().count("m", 50, 150);
    let refused = place.members.admit(&grant).err().unwrap();
    assert!(
        matches!(refused, LimitReached::Tokens { limit: 100, seconds: 60..=61 }),
        "{refused:?}"
    );
    place.clock.pass(62);
    assert!(place.members.admit(&grant).is_ok());
}

#[test]
fn requests_at_once_are_given_back_when_they_end() {
    let place = place();
    let limits = KeyLimits { at_once: Some(2), ..KeyLimits::default() };
    let (_, grant) = key(&place, limits);
    let first = place.members.admit(&grant).unwrap();
    let _second = place.members.admit(&grant).unwrap();
    assert_eq!(place.members.admit(&grant).err(), Some(LimitReached::Concurrency { limit: 2 }));
    drop(first);
    assert!(place.members.admit(&grant).is_ok());
}

#[test]
fn requests_at_once_do_not_go_through_a_quota_together() {
    let place = place();
    for limits in [
        KeyLimits { tokens_per_month: Some(1000), ..KeyLimits::default() },
        KeyLimits { tokens_per_minute: Some(1000), ..KeyLimits::default() },
    ] {
        let (_, grant) = key(&place, limits);
        let mut first = place.members.admit(&grant).unwrap();
        let mut second = place.members.admit(&grant).unwrap();
        first.reserve(5000).unwrap();
        let refused = second.reserve(10);
        assert!(matches!(refused, Err(LimitReached::Reserved { limit: 1000 })), "{refused:?}");
        first.count("m", 100, 100);
        drop(first);
        second.reserve(10).unwrap();
        drop(second);
        assert!(place.members.admit(&grant).unwrap().reserve(10_000).is_ok());
    }
}

#[test]
fn a_months_quota_holds_over_a_restart_and_begins_anew_next_month() {
    let place = place();
    let limits = KeyLimits { tokens_per_month: Some(1000), ..KeyLimits::default() };
    let (minted, grant) = key(&place, limits);
    place.members.admit(&grant).unwrap().count("m", 900, 50);
    place.members.admit(&grant).unwrap().count("m", 900, 50);
    let place = place.restart();
    let grant = place.members.verify_key(minted.key.expose()).unwrap();
    assert!(matches!(place.members.admit(&grant), Err(LimitReached::Month { limit: 1000, .. })));
    let info = place.members.keys_of(minted.info.member).unwrap().remove(0);
    assert_eq!(info.tokens_this_month, 1900);
    place.clock.pass(31 * 24 * 3600);
    assert!(place.members.admit(&grant).is_ok());
}

#[test]
fn a_count_beyond_all_reason_keeps_nobody_elses_from_the_disk() {
    let place = place();
    let limits = KeyLimits { tokens_per_month: Some(1000), ..KeyLimits::default() };
    let (minted, grant) = key(&place, limits);
    place.members.set_metering(true);
    for _ in 0..3 {
        place.members.admit(&grant).map(|a| a.count("m", u64::MAX, u64::MAX)).ok();
        place.members.count_chat(minted.info.member, "m", i64::MAX as u64, u64::MAX);
        place.members.flush().unwrap();
    }
    let ben = place.add("Ben", Role::Member);
    place.members.count_chat(ben.id, "m", 5, 6);
    place.members.flush().unwrap();
    let place = place.restart();
    let bens = place.members.usage_of(ben.id, 30).unwrap();
    assert_eq!(bens.iter().map(|r| (r.prompt, r.completion)).collect::<Vec<_>>(), [(5, 6)]);
    assert!(
        place.members.usage_of(minted.info.member, 30).unwrap().iter().all(|r| r.prompt > 1 << 60)
    );
}

#[test]
fn nothing_is_counted_about_a_member_until_the_site_says_so() {
    let place = place();
    let (minted, grant) = key(&place, KeyLimits::default());
    place.members.admit(&grant).unwrap().count("m", 10, 20);
    assert!(place.members.usage_of_all(30).unwrap().is_empty());
    place.members.set_metering(true);
    place.members.admit(&grant).unwrap().count("m", 10, 20);
    place.members.admit(&grant).unwrap().count("m", 1, 2);
    place.members.count_chat(minted.info.member, "m", 5, 6);
    let place = place.restart();
    let rows = place.members.usage_of(minted.info.member, 30).unwrap();
    let seen: Vec<_> =
        rows.iter().map(|r| (r.key_label.as_deref(), r.requests, r.prompt, r.completion)).collect();
    assert_eq!(seen, [(None, 1, 5, 6), (Some("laptop"), 2, 11, 22)]);
    place.members.forget_usage(minted.info.member).unwrap();
    assert!(place.members.usage_of_all(30).unwrap().is_empty());
}

#[test]
fn lengths_that_were_used_are_read_beside_a_box_that_runs() {
    let place = place();
    assert_eq!(UsedLengths::read(&place.path, 4000).unwrap(), UsedLengths::default());
    let ada = place.add("Ada", Role::Steward);
    let ben = place.add("Ben", Role::Member);
    place.members.set_metering(true);
    for (who, prompt) in [(ada.id, 5), (ben.id, 50), (ben.id, 70)] {
        place.members.count_chat(who, "m", prompt, 6);
    }
    place.members.flush().unwrap();
    let mut found = UsedLengths::read(&place.path, 4000).unwrap();
    found.rows.sort();
    assert_eq!(found, UsedLengths { rows: vec![[1, 5, 6], [2, 120, 12]], most_members: 2 });
    let nowhere = place.path.with_file_name("no-such.db");
    assert_eq!(UsedLengths::read(&nowhere, 30).unwrap(), UsedLengths::default());
    assert!(!nowhere.exists());
}

#[test]
fn usage_of_a_removed_member_goes_with_them() {
    let place = place();
    place.add("Ada", Role::Steward);
    let ben = place.add("Ben", Role::Member);
    place.members.set_metering(true);
    place.members.count_chat(ben.id, "m", 5, 6);
    assert_eq!(place.members.usage_of_all(1).unwrap().len(), 1);
    place.members.count_chat(ben.id, "m", 5, 6);
    place.members.remove_member(ben.id).unwrap();
    assert!(place.members.usage_of_all(1).unwrap().is_empty());
}

#[test]
fn last_use_is_written_and_kept() {
    let place = place();
    let (minted, _) = key(&place, KeyLimits::default());
    let place = place.restart();
    let info = place.members.keys_of(minted.info.member).unwrap().remove(0);
    assert!(info.used_at.is_some());
}

#[test]
fn each_start_of_up_revokes_the_key_of_the_one_before() {
    let place = place();
    let first = place.members.ensure_up_key().unwrap();
    let grant = place.members.verify_key(first.key.expose()).unwrap();
    assert_eq!((grant.member_name.as_str(), grant.role), ("steward", Role::Steward));
    let own = place
        .members
        .mint_key(grant.member, &NewKey { label: "up".into(), ..NewKey::default() })
        .unwrap();
    let place = place.restart();
    let second = place.members.ensure_up_key().unwrap();
    assert!(place.members.verify_key(first.key.expose()).is_err());
    assert!(place.members.verify_key(second.key.expose()).is_ok());
    // A key that a member happened to call `up` is theirs.
    assert!(place.members.verify_key(own.key.expose()).is_ok());
    assert_eq!(place.members.members().unwrap().len(), 1);
    assert!(place.members.sign_in("steward", &common::secret(""), common::home()).is_err());
}

#[test]
fn limits_and_labels_that_make_no_sense_are_refused() {
    let place = place();
    let ada = place.add("Ada", Role::Steward);
    let zero = KeyLimits { at_once: Some(0), ..KeyLimits::default() };
    for bad in [
        NewKey { limits: zero, ..NewKey::default() },
        NewKey { label: "x".repeat(61), ..NewKey::default() },
        NewKey { label: "a\u{202e}b".into(), ..NewKey::default() },
    ] {
        assert!(matches!(place.members.mint_key(ada.id, &bad), Err(MembersError::Field(_))));
    }
}

#[test]
fn checking_a_key_takes_microseconds() {
    let place = place();
    let (minted, _) = key(&place, KeyLimits::default());
    let start = Instant::now();
    for _ in 0..1000 {
        place.members.verify_key(minted.key.expose()).unwrap();
    }
    // Generous: this is the unoptimised build on a busy machine; a database read takes longer.
    assert!(start.elapsed() < Duration::from_millis(100), "{:?}", start.elapsed());
}

#[test]
fn debug_of_a_key_or_grant_prints_no_secret() {
    let place = place();
    let (minted, grant) = key(&place, KeyLimits::default());
    let secret = minted.key.expose().rsplit('_').next().unwrap();
    assert!(!format!("{minted:?}{grant:?}").contains(secret));
}

#[test]
fn keys_and_streams_of_many_threads_are_counted_exactly() {
    let place = place();
    let limits = KeyLimits { tokens_per_month: Some(1 << 40), ..KeyLimits::default() };
    let (minted, _) = key(&place, limits);
    place.members.set_metering(true);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let grant = place.members.verify_key(minted.key.expose()).unwrap();
                    place.members.admit(&grant).unwrap().count("m", 2, 3);
                }
            });
        }
    });
    let place = place.restart();
    let row = place.members.usage_of(minted.info.member, 1).unwrap().remove(0);
    assert_eq!((row.requests, row.prompt, row.completion), (1600, 3200, 4800));
    assert_eq!(place.members.keys_of(minted.info.member).unwrap()[0].tokens_this_month, 8000);
}
