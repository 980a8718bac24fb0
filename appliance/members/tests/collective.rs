//! Who leaves, who looks after the box, who gets in when nobody can, and the end: with a clock that tests move.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{PASSWORD, Place, home, person, place, secret};
use polder_members::{
    Identity, Member, Members, MembersError, NewClientApp, NewKey, NewVisit, RecoveryRefused,
    Revocation, Revoked, Role, Ruling, Secret, Wanted, WhoRecovers, keep_gone_lines,
    keep_late_lines, keep_revocations,
};

const DAY: i64 = 24 * 3600;

/// A box with four people, of whom three are stewards for days.
fn collective() -> (Place, [Member; 4]) {
    let place = place();
    let people = [
        place.add("Ada", Role::Steward),
        place.add("Ben", Role::Steward),
        place.add("Cleo", Role::Steward),
        place.add("Dan", Role::Member),
    ];
    place.clock.pass(2 * DAY);
    (place, people)
}

/// Three sheets in force, as text on paper.
fn sheets(place: &Place, by: &Member, holders: [&Member; 3]) -> Vec<Secret> {
    place.members.make_sheets(by.id, holders.map(|h| h.id)).unwrap();
    let mut papers = Vec::new();
    for (number, holder) in (1..).zip(holders) {
        let sheet = place.members.show_sheet(holder.id).unwrap();
        let paper = secret(sheet.expose());
        assert_eq!(place.members.confirm_sheet(holder.id, &paper).unwrap(), number == 3);
        papers.push(paper);
    }
    papers
}

fn told(place: &Place) -> String {
    place.members.announcements().unwrap().first().unwrap().text.clone()
}

fn said(error: impl std::error::Error) -> String {
    error.to_string()
}

#[test]
fn whoever_was_removed_stays_away_from_a_database_that_is_brought_back_from_before() {
    let (place, [_, ben, _, dan]) = collective();
    let key = place
        .members
        .mint_key(dan.id, &NewKey { label: "laptop".into(), ..NewKey::default() })
        .unwrap();
    let other = place
        .members
        .mint_key(ben.id, &NewKey { label: "old".into(), ..NewKey::default() })
        .unwrap();
    let (_, session) = place.members.begin_session(dan.id).unwrap();
    let before = place.path.with_file_name("backup.db");
    rusqlite_copy(&place.path, &before);

    place.members.remove_member(dan.id).unwrap();
    place.members.revoke_key(ben.id, &other.info.id).unwrap();
    place.members.set_role(ben.id, Role::Member).unwrap();
    let list = place.members.revocations_since(0).unwrap();
    // Made a member by people's hand: no group makes him a steward either.
    assert!(matches!(list[2].what, Revoked::KeptMember { .. }), "{list:?}");
    assert_eq!(list.len(), 4, "{list:?}");
    assert!(list.windows(2).all(|two| two[0].number < two[1].number));
    assert_eq!(place.members.revocations_since(list[1].number).unwrap(), list[2..]);
    assert_eq!(place.members.newest_revocation().unwrap(), list[3].number);

    // The disk brings yesterday back, as a restore does.
    let Place { members, path, clock, _folder } = place;
    drop(members);
    for end in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{end}", path.display()));
    }
    std::fs::rename(&before, &path).unwrap();
    let members = Members::open_with_clock(&path, clock).unwrap();
    assert!(members.members().unwrap().iter().all(|m| m.name != "Dan"));
    assert!(
        members.verify_key(key.key.expose()).is_err()
            && members.verify_key(other.key.expose()).is_err()
    );
    assert!(members.session(session.expose()).unwrap().is_none());
    assert!(members.sign_in("Dan", &secret(PASSWORD), home()).is_err());
    assert_eq!(members.member(ben.id).unwrap().role, Role::Member);
    assert_eq!(members.revocations_since(0).unwrap(), list, "the list has a hole");
    // And the engines are told to forget again, as the number of a member is known to them.
    assert!(members.to_forget(&["fast".into()]).unwrap().iter().any(|(id, _)| *id == dan.id));
}

/// What somebody has on a box that signs people in at other apps and by a service.
struct Signs {
    app: String,
    kept: String,
    refresh: String,
}

const HOUSE: &str = "https://sso.house.example";

fn at_house(subject: &str) -> Identity {
    let (issuer, names) = (HOUSE.to_owned(), vec![subject.to_owned()]);
    Identity { issuer, subject: subject.to_owned(), names, email: None }
}

fn keepers() -> Ruling {
    Ruling { admitted: true, steward: Some(true), new_people: true }
}

/// Dan is at an app with his session; there are two apps, and Dan and Ben are linked.
fn signs(place: &Place, ben: &Member, dan: &Member) -> Signs {
    let members = &place.members;
    let add = |name: &str| {
        let redirects = vec!["https://app.example/back".to_owned()];
        let new = NewClientApp { name: name.into(), redirects, ..NewClientApp::default() };
        members.add_client_app(&new).unwrap().0.id
    };
    let (app, kept) = (add("Wiki"), add("Chat"));
    for member in [ben, dan] {
        members.link_identity(member.id, &at_house(&member.name)).unwrap();
    }
    let (_, session) = members.begin_session(dan.id).unwrap();
    let visit = NewVisit {
        app: kept.clone(),
        issuer: "https://oak.local".into(),
        redirect: "https://app.example/back".into(),
        challenge: None,
        nonce: None,
        scope: "openid".into(),
    };
    members.agree_to_app(dan.id, &kept, "openid", true).unwrap();
    members.agree_to_app(ben.id, &kept, "openid", false).unwrap();
    let code = members.begin_visit(session.expose(), &visit).unwrap().unwrap();
    let visit = members.redeem_code(code.expose()).unwrap().unwrap();
    let tokens = members.visit_tokens(&visit.id, true).unwrap();
    Signs { app, kept, refresh: tokens.refresh.unwrap().expose().to_owned() }
}

/// What was undone stays undone; what was not is there.
fn undone_stays_undone(members: &Members, signs: &Signs, ben: &Member, dan: &Member) {
    assert_eq!(members.client_app(&signs.app).unwrap(), None, "a removed app is back");
    assert!(members.client_app(&signs.kept).unwrap().is_some());
    assert_eq!(members.agreements(dan.id).unwrap(), [], "what was taken back from an app is back");
    assert_eq!(members.agreements(ben.id).unwrap().len(), 1);
    assert_eq!(members.identities(dan.id).unwrap(), [], "a link that was undone is back");
    assert_eq!(members.identities(ben.id).unwrap().len(), 1);
    let came = members.arrive(&at_house("Ben"), keepers(), "House").unwrap().member;
    assert!(came.id == ben.id && !came.is_steward(), "groups undid what two stewards decided");
    let anew = members.arrive(&at_house("Cleo"), keepers(), "House").unwrap().member;
    assert!(!anew.is_steward(), "whom two stewards removed is a steward again");
    let strange = members.arrive(&at_house("Dan"), keepers(), "House").unwrap().member;
    assert_ne!(strange.id, dan.id);
}

fn undo(place: &Place, signs: &Signs, [ada, ben, cleo, dan]: &[Member; 4]) {
    let members = &place.members;
    members.remove_client_app(&signs.app).unwrap();
    members.unlink_identity(dan.id, HOUSE, "House").unwrap();
    assert!(members.take_back_from_app(dan.id, &signs.kept).unwrap());
    let proposal = members.propose(ada.id, cleo.id, Wanted::Removed, None).unwrap();
    members.agree(ben.id, proposal.id).unwrap();
    let eve = place.add("Eve", Role::Steward);
    place.clock.pass(2 * DAY);
    let proposal = members.propose(ada.id, ben.id, Wanted::Member, None).unwrap();
    members.agree(eve.id, proposal.id).unwrap();
}

#[test]
fn apps_links_and_decisions_about_stewards_stay_undone_after_a_restore() {
    let (place, people) = collective();
    let signs = signs(&place, &people[1], &people[3]);
    place.members.link_identity(people[2].id, &at_house("Cleo")).unwrap();
    let before = place.path.with_file_name("backup.db");
    rusqlite_copy(&place.path, &before);
    undo(&place, &signs, &people);
    let list = place.members.revocations_since(0).unwrap();
    let text = std::fs::read_to_string(place.path.with_file_name("gone.jsonl")).unwrap();
    assert_eq!(text.lines().count(), list.len());
    assert!(!text.contains("house.example") && !text.contains("Cleo"), "{text}");

    // The disk brings yesterday back.
    let Place { members, path, clock, _folder } = place;
    drop(members);
    for end in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{end}", path.display()));
    }
    std::fs::rename(&before, &path).unwrap();
    let members = Members::open_with_clock(&path, clock.clone()).unwrap();
    assert_eq!(members.revocations_since(0).unwrap(), list, "the list has a hole");
    undone_stays_undone(&members, &signs, &people[1], &people[3]);
    // Once: what is decided anew from then on counts.
    members.let_groups_decide(people[0].id, people[1].id).unwrap();
    members
        .link_identity(people[3].id, &Identity { subject: "d".into(), ..at_house("Dan") })
        .unwrap();
    clock.pass(5);
    members.agree_to_app(people[3].id, &signs.kept, "openid", false).unwrap();
    drop(members);
    let members = Members::open_with_clock(&path, clock).unwrap();
    assert_eq!(members.agreements(people[3].id).unwrap().len(), 1);
    assert_eq!(members.identities(people[3].id).unwrap().len(), 1);
    assert!(members.arrive(&at_house("Ben"), keepers(), "House").unwrap().member.is_steward());
}

#[test]
fn a_spare_that_takes_over_from_an_older_backup_knows_of_apps_links_and_decisions() {
    let (place, people) = collective();
    let signs = signs(&place, &people[1], &people[3]);
    place.members.link_identity(people[2].id, &at_house("Cleo")).unwrap();
    let spare = tempfile::tempdir().unwrap();
    let path = spare.path().join("polder.db");
    rusqlite_copy(&place.path, &path);
    undo(&place, &signs, &people);
    // What the spare was pushed line by line, as the two boxes do it.
    let lines = std::fs::read_to_string(place.path.with_file_name("gone.jsonl")).unwrap();
    assert!(keep_gone_lines(spare.path(), &lines).unwrap() > 4);
    let members = Members::open_with_clock(&path, place.clock.clone()).unwrap();
    undone_stays_undone(&members, &signs, &people[1], &people[3]);
    // What apps were given hangs on sign-ins; a takeover begins those anew, and so it ends with them.
    assert!(!signs.refresh.is_empty());
}

#[test]
fn a_list_of_the_version_before_goes_on_under_its_own_numbers() {
    let (place, [_, _, _, dan]) = collective();
    place.members.remove_member(dan.id).unwrap();
    let list = place.members.revocations_since(0).unwrap();
    let Place { members, path, clock, _folder } = place;
    drop(members);
    // As the version before left it.
    let db = rusqlite::Connection::open(&path).unwrap();
    db.execute_batch(
        "DROP TRIGGER revoke_app; DROP TRIGGER revoke_link; DROP TRIGGER revoke_groups; DROP TRIGGER revoke_identity;
         DROP TABLE agreements;
         ALTER TABLE members DROP COLUMN kept_member; DROP TABLE kept_identities;
         DELETE FROM additions WHERE name IN ('kept a member', 'revocations of what people sign in with', 'agreements with apps', 'agreements by number');",
    )
    .unwrap();
    drop(db);
    let members = Members::open_with_clock(&path, clock).unwrap();
    assert_eq!(members.revocations_since(0).unwrap(), list);
    let redirects = vec!["https://app.example/back".to_owned()];
    let new = NewClientApp { name: "a".into(), redirects, ..NewClientApp::default() };
    let app = members.add_client_app(&new).unwrap().0.id;
    members.remove_client_app(&app).unwrap();
    let after = members.revocations_since(list[0].number).unwrap();
    assert_eq!((after.len(), &after[0].what), (1, &Revoked::App { app }));
    assert_eq!(after[0].number, list[0].number + 1);
}

#[test]
fn a_spare_keeps_what_was_revoked_without_a_database_and_honours_it_when_it_has_one() {
    let (place, [_, _, _, dan]) = collective();
    place.members.remove_member(dan.id).unwrap();
    let list = place.members.revocations_since(0).unwrap();
    let spare = tempfile::tempdir().unwrap();
    assert_eq!(keep_revocations(spare.path(), &list).unwrap(), 1);
    assert_eq!(keep_revocations(spare.path(), &list).unwrap(), 0, "twice is once");
    let members = Members::open(&spare.path().join("polder.db")).unwrap();
    assert_eq!(members.revocations_since(0).unwrap(), list);
    // Half a line that a power cut left, and one of a newer version, cost nothing else.
    let file = spare.path().join("gone.jsonl");
    let text = std::fs::read_to_string(&file).unwrap();
    let newer = "{\"number\":9,\"at\":1,\"what\":{\"kind\":\"passkey\",\"id\":\"x\"}}\n";
    std::fs::write(&file, format!("{newer}{text}{{\"number\":7")).unwrap();
    let more = [Revocation { number: 8, at: 5, what: Revoked::Key { key: "abc".into() } }];
    assert_eq!(keep_revocations(spare.path(), &more).unwrap(), 1);
    drop(members);
    let members = Members::open(&spare.path().join("polder.db")).unwrap();
    assert_eq!(members.revocations_since(0).unwrap().len(), 2);
}

#[test]
fn revocations_of_a_box_that_runs_are_applied_once_and_mean_nobody_else() {
    let (place, [ada, ben, _, dan]) = collective();
    let key = place.members.mint_key(dan.id, &NewKey::default()).unwrap();
    let other =
        |member: &Member| Revoked::Member { member: member.id, since: member.created_at - 7 };
    let wanted = [
        Revocation { number: 1, at: 1, what: other(&ada) },
        Revocation { number: 2, at: 2, what: Revoked::Key { key: key.info.id.0.clone() } },
        Revocation {
            number: 3,
            at: 3,
            what: Revoked::ShutOut { member: ben.id, since: ben.created_at },
        },
    ];
    assert_eq!(place.members.apply_revocations(&wanted).unwrap(), 2);
    assert_eq!(place.members.apply_revocations(&wanted).unwrap(), 0);
    assert!(place.members.verify_key(key.key.expose()).is_err());
    assert_eq!(
        place.members.members().unwrap().len(),
        4,
        "somebody else of the same number was meant"
    );
    assert!(place.members.member(ben.id).unwrap().disabled);
    let place = place.restart();
    assert!(place.members.member(ben.id).unwrap().disabled);
    place.members.set_disabled(ben.id, false).unwrap();
    assert!(!place.restart().members.member(ben.id).unwrap().disabled);
}

#[test]
fn what_comes_into_the_file_while_a_box_runs_ends_what_runs_by_it_and_nothing_else() {
    let (place, [ada, ben, cleo, dan]) = collective();
    let members = &place.members;
    let mint = |member: &Member| members.mint_key(member.id, &NewKey::default()).unwrap();
    let (stays, goes, bens) = (mint(&ada), mint(&ada), mint(&ben));
    let grants = [&stays, &goes, &bens].map(|key| members.verify_key(key.key.expose()).unwrap());
    let (cleos, dans) = (members.gone(cleo.id), members.gone(dan.id));
    // As the supervisor of a box that stands in adds what its main box tells.
    let state = place.path.parent().unwrap();
    let line = |number: u64, what: Revoked| {
        serde_json::to_string(&Revocation { number, at: 5, what }).unwrap() + "\n"
    };
    let lines = line(1, Revoked::Key { key: goes.info.id.0.clone() })
        + &line(2, Revoked::ShutOut { member: ben.id, since: ben.created_at })
        + &line(3, Revoked::Member { member: dan.id, since: dan.created_at })
        + &line(4, Revoked::NoSteward { member: cleo.id, since: cleo.created_at });
    keep_gone_lines(state, &lines).unwrap();
    assert!(members.verify_key(goes.key.expose()).is_ok(), "nobody has said so yet");
    assert_eq!((members.hear_gone().unwrap(), members.hear_gone().unwrap()), (4, 0));
    let works = [&stays, &goes, &bens].map(|key| members.verify_key(key.key.expose()).is_ok());
    assert_eq!(works, [true, false, false]);
    assert_eq!(grants.map(|grant| grant.revoked.is_cancelled()), [false, true, true]);
    assert!(dans.is_cancelled() && !cleos.is_cancelled());
    assert!(members.member(dan.id).is_err() && !members.member(cleo.id).unwrap().is_steward());
    // What goes on is the same as before: it ends with its key.
    let grant = members.verify_key(stays.key.expose()).unwrap();
    members.revoke_key(ada.id, &stays.info.id).unwrap();
    assert!(grant.revoked.is_cancelled());
    // Nothing of it is news at the next start, and the file knows what was revoked here since.
    let list = members.revocations_since(0).unwrap();
    assert_eq!(place.restart().members.revocations_since(0).unwrap(), list);
}

/// As the supervisor of a box that stands in hears its main box, and then the door.
fn told_late(place: &Place, words: &[(u64, i64, Revoked)]) -> usize {
    let line = |(number, at, what): &(u64, i64, Revoked)| {
        let revocation = Revocation { number: *number, at: *at, what: what.clone() };
        serde_json::to_string(&revocation).unwrap() + "\n"
    };
    let lines: String = words.iter().map(line).collect();
    let now = jiff::Timestamp::now().as_second();
    keep_late_lines(place.path.parent().unwrap(), &lines, now).unwrap();
    // Whatever grows later, the whole list comes again.
    assert_eq!(keep_late_lines(place.path.parent().unwrap(), &lines, now + 9).unwrap(), 0);
    place.members.hear_gone().unwrap()
}

#[test]
fn a_main_box_opens_nothing_on_one_that_stands_in_for_it_whatever_its_clock_says() {
    let (place, [_, ben, ..]) = collective();
    let (member, since) = (ben.id, ben.created_at);
    place.members.set_disabled(ben.id, true).unwrap();
    let ahead = jiff::Timestamp::now().as_second() + 86_400;
    let words = [
        (90, ahead, Revoked::LetIn { member, since }),
        (91, ahead, Revoked::GroupsAgain { member, since }),
    ];
    assert_eq!(told_late(&place, &words), 0);
    assert!(place.members.member(ben.id).unwrap().disabled);
    // None of it is on the list, or what a steward decides now would not be.
    let before = place.members.revocations_since(0).unwrap().len();
    place.members.set_disabled(ben.id, false).unwrap();
    let list = place.members.revocations_since(0).unwrap();
    assert_eq!((list.len(), &list[before].what), (before + 1, &Revoked::LetIn { member, since }));
    // An old word that is refused in the ordinary way is not on it either.
    place.members.set_disabled(ben.id, true).unwrap();
    let old = Revocation { number: 95, at: 5, what: Revoked::LetIn { member, since } };
    place.members.apply_revocations(&[old]).unwrap();
    let before = place.members.revocations_since(0).unwrap().len();
    place.members.set_disabled(ben.id, false).unwrap();
    assert_eq!(place.members.revocations_since(0).unwrap().len(), before + 1);
}

#[test]
fn one_line_of_a_stolen_main_box_sends_nobody_away_from_the_one_that_stands_in_for_it() {
    let (place, [_, ben, cleo, _]) = collective();
    let far = 9_000_000_000_000_000_000;
    let (member, since) = (ben.id, ben.created_at);
    let words = [(1, far, Revoked::Everybody), (2, far, Revoked::ShutOut { member, since })];
    told_late(&place, &words);
    assert_eq!(place.members.members().unwrap().len(), 4);
    let list = place.members.revocations_since(0).unwrap();
    assert!(list.iter().all(|r| r.what != Revoked::Everybody && r.at < far), "{list:?}");
    assert!(place.members.member(ben.id).unwrap().disabled, "what shuts counts");
    // Who is let in again stays in, also after a start: no moment to come shuts them out.
    place.members.set_disabled(ben.id, false).unwrap();
    let place = place.restart();
    assert!(!place.members.member(ben.id).unwrap().disabled);
    assert!(place.members.member(cleo.id).is_ok());
}

#[test]
fn no_late_word_of_the_main_box_takes_the_last_steward_away_and_everybody_is_told_of_each() {
    let (place, people) = collective();
    let stewards = |place: &Place| -> Vec<Member> {
        let all = place.members.members().unwrap();
        all.into_iter().filter(|m| m.is_steward() && !m.disabled).collect()
    };
    let first = stewards(&place);
    assert!(first.len() > 1, "there are some to take away");
    // One after the other, each in another way, and then all of them in all ways.
    let ways: [fn(&Member) -> Revoked; 3] = [
        |m| Revoked::NoSteward { member: m.id, since: m.created_at },
        |m| Revoked::ShutOut { member: m.id, since: m.created_at },
        |m| Revoked::Member { member: m.id, since: m.created_at },
    ];
    let all = first.iter().enumerate();
    let words: Vec<_> = all.map(|(n, steward)| (500 + n as u64, 5, ways[n % 3](steward))).collect();
    told_late(&place, &words);
    let left = stewards(&place);
    assert_eq!(left.len(), 1);
    let others = ways.iter().enumerate().map(|(n, way)| (600 + n as u64, 5, way(&left[0])));
    told_late(&place, &others.collect::<Vec<_>>());
    let told = place.members.announcements().unwrap();
    let told: Vec<String> = told.into_iter().map(|told| told.text).collect();
    let held = told.iter().filter(|t| t.contains("It was not done")).count();
    assert_eq!(held, 3, "{told:?}");
    for gone in first.iter().filter(|steward| steward.id != left[0].id) {
        assert!(told.iter().any(|t| t.starts_with(&gone.name)), "{gone:?} in {told:?}");
    }
    // Nor at the next start, where it is not told again.
    let place = place.restart();
    assert_eq!(stewards(&place).len(), 1);
    assert_eq!(place.members.announcements().unwrap().len(), told.len());
    assert!(people.iter().any(|m| m.id == left[0].id));
    // On the box that said so, where the state comes back to, each of its words counts.
    let word = Revocation { number: 602, at: 5, what: ways[2](&left[0]) };
    keep_revocations(place.path.parent().unwrap(), &[word]).unwrap();
    let place = place.restart();
    assert!(place.members.member(left[0].id).is_err());
}

#[test]
fn what_was_shut_since_is_not_opened_by_an_earlier_word_of_the_other_box() {
    let (place, [_, ben, _, _]) = collective();
    place.members.set_disabled(ben.id, true).unwrap();
    let at = place.members.revocations_since(0).unwrap()[0].at;
    let let_in = |at| {
        let what = Revoked::LetIn { member: ben.id, since: ben.created_at };
        [Revocation { number: 90 + at as u64, at, what }]
    };
    place.members.apply_revocations(&let_in(at - 60)).unwrap();
    assert!(place.members.member(ben.id).unwrap().disabled, "an old word let somebody in");
    place.members.apply_revocations(&let_in(at + 60)).unwrap();
    assert!(!place.members.member(ben.id).unwrap().disabled);
}

#[test]
fn a_spare_of_a_box_that_was_ended_lets_none_of_its_members_in() {
    let (place, people) = collective();
    let backup = place.path.with_file_name("backup.db");
    rusqlite_copy(&place.path, &backup);
    place.members.everybody_is_gone().unwrap();
    let list = place.members.revocations_since(0).unwrap();
    assert_eq!(list[0].what, Revoked::Everybody);
    let spare = tempfile::tempdir().unwrap();
    let path = spare.path().join("polder.db");
    std::fs::rename(&backup, &path).unwrap();
    keep_revocations(spare.path(), &list).unwrap();
    let members = Members::open_with_clock(&path, place.clock.clone()).unwrap();
    assert!(!members.is_claimed().unwrap() && members.member(people[0].id).is_err());
    // Whoever has that machine next is meant by nothing of it.
    place.clock.pass(60);
    members.add_member(&person("Eve"), Role::Steward).unwrap();
    drop(members);
    let members = Members::open_with_clock(&path, place.clock.clone()).unwrap();
    assert_eq!(members.members().unwrap().len(), 1);
}

#[test]
fn what_is_announced_is_shown_to_each_until_they_have_read_it_and_not_to_who_came_later() {
    let (place, [ada, ben, ..]) = collective();
    place.members.announce("The box is off on Sunday.", "Ada").unwrap();
    let second = place.members.announce("It is on again.", "Ada").unwrap();
    assert_eq!(place.members.unread(&ada).unwrap().len(), 2);
    place.members.has_read(ada.id, second).unwrap();
    assert_eq!(place.members.unread(&ada).unwrap(), []);
    assert_eq!(place.members.unread(&ben).unwrap()[0].text, "It is on again.");
    place.clock.pass(10);
    let eve = place.add("Eve", Role::Member);
    assert_eq!(place.members.unread(&eve).unwrap(), []);
    assert!(
        place.members.announce(" ", "Ada").is_err()
            && place.members.announce(&"x".repeat(400), "Ada").is_err()
    );
    for n in 0..300 {
        place.members.announce(&format!("{n}"), "Ada").unwrap();
    }
    assert_eq!(place.members.announcements().unwrap().len(), 200);
}

#[test]
fn any_two_stewards_replace_a_third_and_everybody_is_told() {
    let (place, [ada, ben, cleo, dan]) = collective();
    let members = &place.members;
    assert!(
        matches!(members.may_alone(ada.id, ben.id), Err(MembersError::NeedsTwo(name)) if name == "Ben")
    );
    members.may_alone(ada.id, dan.id).unwrap();
    members.may_alone(ada.id, ada.id).unwrap();
    assert!(
        members.propose(dan.id, ben.id, Wanted::Member, None).is_err(),
        "a member proposes nothing"
    );
    assert!(members.propose(ada.id, ada.id, Wanted::Member, None).is_err());
    assert!(
        members.propose(ada.id, dan.id, Wanted::Member, None).is_err(),
        "who is no steward needs no two"
    );
    let proposal = members.propose(ada.id, ben.id, Wanted::Removed, Some(dan.id)).unwrap();
    assert!(told(&place).contains("Ben is removed from the box, and Dan becomes a steward"));
    assert!(members.propose(cleo.id, ben.id, Wanted::Member, None).is_err(), "one at a time");
    for (who, why) in
        [(ada.id, "asked for it yourself"), (ben.id, "about you"), (dan.id, "a steward now")]
    {
        let refused = said(members.agree(who, proposal.id).unwrap_err());
        assert!(refused.contains(why), "{refused}");
    }
    // The one whom it is about cannot stop it while there are two others.
    assert!(members.refuse_proposal(ben.id, proposal.id).is_err());
    let (_, session) = members.begin_session(ben.id).unwrap();
    members.agree(cleo.id, proposal.id).unwrap();
    assert!(told(&place).contains("Ada and Cleo decided"), "{}", told(&place));
    assert!(members.session(session.expose()).unwrap().is_none());
    assert!(members.member(ben.id).is_err() && members.member(dan.id).unwrap().is_steward());
    assert_eq!(members.proposals().unwrap(), []);
    assert!(members.agree(cleo.id, proposal.id).is_err());
}

#[test]
fn everybody_hears_of_a_steward_more_or_less_however_it_came() {
    let (place, [ada, ben, cleo, dan]) = collective();
    let members = &place.members;
    let week = std::time::Duration::from_secs(7 * 24 * 3600);
    let invite = |role| members.invite(ada.id, role, "somebody", week).unwrap().1;
    let count = || members.announcements().unwrap().len();
    members.accept_invite(invite(Role::Member).expose(), &person("Eve")).unwrap();
    assert_eq!(count(), 0, "a member more is no such news");
    members.accept_invite(invite(Role::Steward).expose(), &person("Fay")).unwrap();
    assert_eq!(told(&place), "Fay is a steward now: Ada invited them as one.");
    members.decide_role(ada.id, dan.id, Role::Steward).unwrap();
    assert_eq!(told(&place), "Ada made Dan a steward.");
    let refused = members.decide_role(ada.id, ben.id, Role::Member);
    assert!(matches!(refused, Err(MembersError::NeedsTwo(name)) if name == "Ben"));
    assert!(members.member(ben.id).unwrap().is_steward());
    members.decide_role(dan.id, dan.id, Role::Member).unwrap();
    assert_eq!(told(&place), "Dan is no steward any more.");
    assert!(
        members.decide_role(dan.id, dan.id, Role::Steward).is_err(),
        "nobody makes themselves one"
    );
    assert!(!members.belongings(cleo.id).unwrap().leaves_one);
    members.leave(cleo.id).unwrap();
    assert_eq!(told(&place), "Cleo left, and is no steward any more.");
    for who in members.members().unwrap().iter().filter(|m| m.name == "Fay") {
        members.leave(who.id).unwrap();
    }
    assert!(members.belongings(ben.id).unwrap().leaves_one);
    members.leave(ben.id).unwrap();
    assert!(matches!(members.leave(ada.id), Err(MembersError::LastSteward)));
    assert!(matches!(
        members.decide_role(ada.id, ada.id, Role::Member),
        Err(MembersError::LastSteward)
    ));
    let before = count();
    members.leave(dan.id).unwrap();
    assert_eq!(count(), before, "who is no steward leaves quietly");
}

#[test]
fn a_steward_whom_two_remove_may_still_hold_a_recovery_sheet_and_everybody_is_told() {
    let (place, [ada, ben, cleo, dan]) = collective();
    sheets(&place, &ada, [&ben, &cleo, &dan]);
    let proposal = place.members.propose(ada.id, ben.id, Wanted::Removed, None).unwrap();
    place.members.agree(cleo.id, proposal.id).unwrap();
    assert!(told(&place).contains("keep a recovery sheet"), "{}", told(&place));
}

#[test]
fn the_last_two_cannot_remove_each_other_and_a_second_self_of_today_counts_for_nothing() {
    let place = place();
    let (ada, ben) = (place.add("Ada", Role::Steward), place.add("Ben", Role::Steward));
    place.clock.pass(2 * DAY);
    let proposal = place.members.propose(ada.id, ben.id, Wanted::Member, None).unwrap();
    assert!(place.members.agree(ada.id, proposal.id).is_err());
    let puppet = place.add("Ada 2", Role::Steward);
    let refused = said(place.members.agree(puppet.id, proposal.id).unwrap_err());
    assert!(refused.contains("less than a day"), "{refused}");
    // Ben is there, and there are three now: not he, but the other one may say no.
    assert!(place.members.refuse_proposal(ben.id, proposal.id).is_err());
    place.members.remove_member(puppet.id).unwrap();
    place.members.refuse_proposal(ben.id, proposal.id).unwrap();
    assert!(told(&place).contains("Ben said no"));
    // A proposal that nobody answers is gone after two weeks.
    let proposal = place.members.propose(ada.id, ben.id, Wanted::Member, None).unwrap();
    place.clock.pass(15 * DAY);
    assert_eq!(place.members.proposals().unwrap(), []);
    assert!(place.members.agree(ben.id, proposal.id).is_err());
}

#[test]
fn two_sheets_make_a_member_a_steward_after_a_day_also_when_the_machine_was_off_meanwhile() {
    let (place, [ada, ben, cleo, dan]) = collective();
    let papers = sheets(&place, &ada, [&ben, &cleo, &dan]);
    let asked = place
        .members
        .ask_recovery([&papers[0], &papers[2]], &WhoRecovers::Member("dan".into()), home())
        .unwrap();
    assert_eq!(
        (asked.name.as_str(), asked.holders.as_str(), asked.new),
        ("Dan", "Ben and Dan", false)
    );
    assert_eq!(asked.due_at - asked.asked_at, DAY);
    assert!(told(&place).contains("in 24 hours"));
    assert_eq!(place.members.settle_recovery().unwrap(), None);
    place.clock.pass(DAY - 60);
    assert_eq!(place.members.settle_recovery().unwrap(), None);
    assert!(!place.members.member(dan.id).unwrap().is_steward());
    // Off, and on again when the time has passed.
    place.clock.pass(3 * DAY);
    let place = place.restart();
    let done = place.members.settle_recovery().unwrap().unwrap();
    assert_eq!(done.name.as_deref(), Some("Dan"));
    assert!(place.members.member(dan.id).unwrap().is_steward());
    assert!(told(&place).contains("Dan is a steward now"));
    // Used up.
    let again = place.members.ask_recovery(
        [&papers[1], &papers[2]],
        &WhoRecovers::Member("Dan".into()),
        home(),
    );
    assert!(matches!(again, Err(RecoveryRefused::Sheets(_))), "{again:?}");
    assert_eq!(place.members.settle_recovery().unwrap(), None);
}

#[test]
fn a_steward_who_is_there_says_no_and_one_who_comes_late_does_not() {
    let (place, [ada, ben, cleo, dan]) = collective();
    let papers = sheets(&place, &ada, [&ben, &cleo, &dan]);
    let who = WhoRecovers::New(person("Eve"));
    let ask = || place.members.ask_recovery([&papers[0], &papers[1]], &who, home()).unwrap();
    assert!(ask().new);
    assert!(place.members.refuse_recovery(dan.id).is_err(), "a member stops nothing");
    // A minute before: the clock runs on while sheets are looked at.
    place.clock.pass(DAY - 60);
    place.members.refuse_recovery(ada.id).unwrap();
    assert!(told(&place).contains("Ada said no"));
    place.clock.pass(2 * DAY);
    assert_eq!(place.members.settle_recovery().unwrap(), None);
    assert!(place.members.members().unwrap().iter().all(|m| m.name != "Eve"));
    ask();
    place.clock.pass(DAY);
    assert!(place.members.refuse_recovery(ada.id).is_err());
    assert_eq!(place.members.settle_recovery().unwrap().unwrap().name.as_deref(), Some("Eve"));
    let (eve, _) = place.members.sign_in("Eve", &secret(PASSWORD), home()).unwrap();
    assert!(eve.is_steward());
}

#[test]
fn one_sheet_alone_is_nothing_and_guessing_is_slowed_down() {
    let (place, [ada, ben, cleo, dan]) = collective();
    let who = WhoRecovers::Member("Dan".into());
    let papers = sheets(&place, &ada, [&ben, &cleo, &dan]);
    let try_ = |a: &Secret, b: &Secret| {
        said(place.members.ask_recovery([a, b], &who, home()).unwrap_err())
    };
    assert!(try_(&papers[0], &papers[0]).contains("same sheet twice"));
    assert!(try_(&papers[0], &secret("cbde fghi")).contains("slip of the pen"));
    // One of an earlier set beside one in force.
    let newer = sheets(&place, &ben, [&ben, &cleo, &dan]);
    assert!(try_(&papers[0], &newer[1]).contains("not two sheets"));
    assert!(
        try_(&papers[0], &papers[1]).contains("not two sheets"),
        "the earlier set is still good"
    );
    try_(&papers[0], &papers[1]);
    assert!(try_(&newer[0], &newer[1]).contains("too many tries"));
    assert_eq!(place.members.recovery().unwrap(), None);
    place.clock.pass(3600);
    let steward = WhoRecovers::Member("Ada".into());
    let refused = place.members.ask_recovery([&newer[0], &newer[1]], &steward, home());
    assert!(said(refused.unwrap_err()).contains("steward already"));
    place.members.ask_recovery([&newer[0], &newer[1]], &who, home()).unwrap();
}

#[test]
fn sheets_in_force_stay_so_until_each_of_the_new_ones_is_on_paper() {
    let (place, [ada, ben, cleo, dan]) = collective();
    let papers = sheets(&place, &ada, [&ben, &cleo, &dan]);
    assert!(
        place.members.make_sheets(dan.id, [ben.id, cleo.id, dan.id]).is_err(),
        "a member makes none"
    );
    assert!(place.members.make_sheets(ada.id, [ben.id, ben.id, dan.id]).is_err(), "three people");
    place.members.make_sheets(ada.id, [ada.id, ben.id, dan.id]).unwrap();
    assert!(place.members.show_sheet(cleo.id).is_err(), "none waits for her");
    let first = place.members.show_sheet(ada.id).unwrap();
    let second = place.members.show_sheet(ada.id).unwrap();
    assert!(place.members.confirm_sheet(ada.id, &secret(first.expose())).is_err());
    assert!(!place.members.confirm_sheet(ada.id, &secret(second.expose())).unwrap());
    let known = place.members.sheets().unwrap();
    assert_eq!((known.in_force.len(), known.in_making.len()), (3, 3));
    assert!(known.of(ada.id).is_none() && known.of(dan.id).is_some());
    place
        .members
        .ask_recovery([&papers[0], &papers[1]], &WhoRecovers::Member("Dan".into()), home())
        .unwrap();
    // Nothing of what is on them is in the database.
    let text = std::fs::read(&place.path).unwrap();
    let wal = std::fs::read(format!("{}-wal", place.path.display())).unwrap_or_default();
    for paper in papers.iter().map(Secret::expose).chain([second.expose()]) {
        for form in [paper.to_owned(), paper.replace('-', "")] {
            let there = |bytes: &[u8]| bytes.windows(form.len()).any(|w| w == form.as_bytes());
            assert!(!there(&text) && !there(&wal));
        }
    }
}

#[test]
fn the_end_needs_two_stewards_or_two_sheets() {
    let (place, [ada, ben, cleo, dan]) = collective();
    assert!(place.members.ask_to_end(dan.id, false).is_err());
    assert!(place.members.agree_to_end(ada.id).is_err(), "nobody asked");
    place.members.ask_to_end(ada.id, true).unwrap();
    assert!(told(&place).contains("Take your data with you"));
    assert!(place.members.ask_to_end(ben.id, false).is_err(), "one at a time");
    for who in [ada.id, dan.id] {
        assert!(place.members.agree_to_end(who).is_err());
    }
    let ending = place.members.agree_to_end(ben.id).unwrap();
    assert_eq!((ending.by, ending.keep_models), (vec!["Ada".to_owned(), "Ben".to_owned()], true));
    place.members.take_end_back(cleo.id).unwrap();
    assert_eq!(place.members.ending().unwrap(), None);
    // Whoever asked and is no steward any more asks for nothing.
    place.members.ask_to_end(ada.id, false).unwrap();
    let proposal = place.members.propose(ben.id, ada.id, Wanted::Member, None).unwrap();
    place.members.agree(cleo.id, proposal.id).unwrap();
    assert_eq!(place.members.ending().unwrap(), None);
    place.members.ask_to_end(ben.id, false).unwrap();
    place.clock.pass(8 * DAY);
    assert_eq!(place.members.ending().unwrap(), None, "it is forgotten after a week");
    let papers = sheets(&place, &ben, [&ben, &cleo, &dan]);
    assert!(place.members.end_with_sheets([&papers[0], &papers[0]], false, home()).is_err());
    let end = || place.members.end_with_sheets([&papers[2], &papers[1]], false, home());
    let db = rusqlite::Connection::open(&place.path).unwrap();
    assert!(said(end().unwrap_err()).contains("two stewards"));
    db.execute("UPDATE members SET role = 'member' WHERE name = 'Cleo'", []).unwrap();
    assert!(said(end().unwrap_err()).contains("younger than 24 hours"));
    place.clock.pass(DAY);
    assert_eq!(end().unwrap().by, ["the recovery sheets of Cleo and Dan"]);
    db.execute("UPDATE members SET disabled = 1 WHERE name = 'Dan'", []).unwrap();
    assert!(said(end().unwrap_err()).contains("the sheet of Dan"));
}

/// A copy as a backup makes it.
fn rusqlite_copy(from: &std::path::Path, to: &std::path::Path) {
    let db = rusqlite::Connection::open(from).unwrap();
    db.execute("VACUUM INTO ?1", [to.to_str().unwrap()]).unwrap();
}
