//! The pages of the collective, as a browser gets them.

use axum::http::StatusCode;
use polder_control::Request;
use polder_members::{Clock, MemberId, NewMember, Role, Secret};

use super::tests::{PASSWORD, Place, place_at};

const DAY: i64 = 24 * 3600;

/// A box whose two are stewards for days, with a third and a plain member; their sessions.
async fn collective() -> (Place, Clock, [(MemberId, String); 4]) {
    let clock = Clock::system();
    let place = place_at(clock.clone()).await;
    let members = place.gateway.members.clone();
    members.set_role(place.member.0.id, Role::Steward).unwrap();
    let add = |name: &str, role| {
        let password = Secret::new(PASSWORD.into());
        let new = NewMember { name: name.into(), email: None, password };
        let id = members.add_member(&new, role).unwrap().id;
        (id, members.begin_session(id).unwrap().1.expose().to_owned())
    };
    let (cleo, dan) = (add("Cleo", Role::Steward), add("Dan", Role::Member));
    let (ada, ben) = (place.steward.clone(), place.member.clone());
    clock.pass(2 * DAY);
    (place, clock, [(ada.0.id, ada.1), (ben.0.id, ben.1), cleo, dan])
}

fn what(place: &Place) -> Vec<String> {
    let asked = place.asked();
    let what = asked.into_iter().filter_map(|request| match request {
        Request::Record { what, .. } => Some(what),
        _ => None,
    });
    what.collect()
}

#[tokio::test]
async fn what_a_steward_announces_is_on_everybodys_first_page_until_they_have_read_it() {
    let (place, _, [ada, _, _, dan]) = collective().await;
    let (ada, dan) = (Some(ada.1.as_str()), Some(dan.1.as_str()));
    let (status, page) = place.post("/collective/announce", ada, "text=").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(page.contains("announcement is empty"), "{page}");
    let text = "text=The+box+is+off+on+%3Cb%3ESunday%3C%2Fb%3E.";
    let (_, to) = place.post("/collective/announce", ada, text).await;
    assert_eq!(to, "/collective?said=announced");
    let (_, home) = place.get("/", dan).await;
    assert!(home.contains("off on &lt;b&gt;Sunday"), "{home}");
    let (_, to) = place.post("/collective/read", dan, "up_to=99&back=home").await;
    assert_eq!(to, "/");
    assert!(!place.get("/", dan).await.1.contains("Sunday"));
    assert!(place.get("/", ada).await.1.contains("Sunday"), "each reads for themselves");
    assert!(place.get("/collective", dan).await.1.contains("Sunday"), "it stays to be looked up");
}

#[tokio::test]
async fn whom_stewards_made_a_member_is_marked_and_one_of_them_lets_groups_decide_again() {
    let (place, _, [ada, ben, cleo, dan]) = collective().await;
    let members = &place.gateway.members;
    let proposal = members.propose(ada.0, ben.0, polder_members::Wanted::Member, None).unwrap();
    members.agree(cleo.0, proposal.id).unwrap();
    let (_, page) = place.get("/members", Some(&ada.1)).await;
    assert_eq!(page.matches("no steward by groups").count(), 1, "{page}");
    let lift = format!("/members/{}/groups", ben.0);
    assert!(page.contains(&lift), "{page}");
    // Not they themselves, and nobody who is no steward.
    for session in [&ben.1, &dan.1] {
        assert_eq!(place.post(&lift, Some(session), "").await.0, StatusCode::FORBIDDEN);
    }
    assert!(members.member(ben.0).unwrap().kept_member);
    let (_, to) = place.post(&lift, Some(&ada.1), "").await;
    assert_eq!(to, "/members?said=groups");
    let (_, page) = place.get("/members", Some(&ada.1)).await;
    assert!(!page.contains("no steward by groups"), "{page}");
    assert!(place.get("/", Some(&dan.1)).await.1.contains("decide again"), "nobody was told");
    assert!(what(&place).contains(&"let the groups decide about the role of".to_owned()));
}

#[tokio::test]
async fn two_stewards_replace_a_third_by_way_of_the_pages() {
    let (place, _, [ada, ben, cleo, dan]) = collective().await;
    let form = format!("target={}&what=remove&successor={}", ben.0, dan.0);
    let (_, to) = place.post("/collective/stewards/propose", Some(&ada.1), &form).await;
    assert_eq!(to, "/collective/stewards?said=proposed");
    let (status, page) = place.post("/collective/stewards/1/agree", Some(&ada.1), "").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(page.contains("second steward has to agree"));
    assert!(!place.get("/collective/stewards", Some(&ben.1)).await.1.contains(">Agree<"));
    let (_, home) = place.get("/", Some(&dan.1)).await;
    assert!(home.contains("is removed from the box, and Dan becomes a steward"), "{home}");
    let (_, page) = place.get("/collective/stewards", Some(&cleo.1)).await;
    assert!(page.contains(">Agree<"), "{page}");
    let (_, to) = place.post("/collective/stewards/1/agree", Some(&cleo.1), "").await;
    assert_eq!(to, "/collective?said=replaced");
    assert_eq!(place.get("/", Some(&ben.1)).await.1, "/sign-in");
    assert_eq!(place.get("/dashboard", Some(&dan.1)).await.0, StatusCode::OK);
    assert_eq!(what(&place), ["proposed to replace the steward", "agreed to replace the steward"]);
}

/// What is on a sheet, read off the page.
fn typed_from(page: &str) -> String {
    let lines = page.split("<strong><code>").skip(1);
    let lines: Vec<&str> = lines.filter_map(|rest| rest.split("</code>").next()).collect();
    lines.join(" ").replace(' ', "+")
}

#[tokio::test]
async fn two_sheets_let_somebody_in_when_nobody_can_and_each_is_shown_to_its_holder_alone() {
    let (place, clock, [ada, ben, cleo, dan]) = collective().await;
    let (_, none) = place.get("/locked-out", None).await;
    assert!(none.contains("no recovery sheets in force"), "{none}");
    let holders = format!("first={}&second={}&third={}", ben.0, cleo.0, dan.0);
    let (_, to) = place.post("/collective/sheets/make", Some(&ada.1), &holders).await;
    assert_eq!(to, "/collective/sheets?said=sheets");
    let (status, _) = place.post("/collective/sheets/show", Some(&ada.1), "").await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "a steward sees nobody's sheet");
    let mut papers = Vec::new();
    for (_, session) in [&ben, &cleo, &dan] {
        assert!(place.get("/collective", Some(session)).await.1.contains("keep a recovery sheet"));
        let (_, page) = place.post("/collective/sheets/show", Some(session), "").await;
        let paper = typed_from(&page);
        let slip = format!("sheet={}", paper.replacen(['b', 'c'], "d", 1));
        let (status, _) = place.post("/collective/sheets/confirm", Some(session), &slip).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        let form = format!("sheet={paper}");
        let (status, to) = place.post("/collective/sheets/confirm", Some(session), &form).await;
        assert_eq!(status, StatusCode::SEE_OTHER, "{to}");
        papers.push(paper);
    }
    assert!(place.get("/locked-out", None).await.1.contains("Two of the three people"));
    let form = format!("first={}&second={}&name=Dan", papers[0], papers[0]);
    let (status, page) = place.post("/locked-out", None, &form).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(page.contains("same sheet twice"), "{page}");
    let form = format!(
        "first={}&second={}&name=Eve&password=four+other+words+here&again=four+other+words+here",
        papers[0], papers[2]
    );
    let (_, page) = place.post("/locked-out", None, &form).await;
    assert!(page.contains("Eve") && page.contains("Every member is told"), "{page}");
    // A steward is there after all.
    assert!(
        place.get("/dashboard", Some(&ada.1)).await.1.contains("Two recovery sheets were used")
    );
    let (status, _) = place.post("/collective/recovery/refuse", Some(&dan.1), "").await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    let (_, to) = place.post("/collective/recovery/refuse", Some(&ada.1), "").await;
    assert_eq!(to, "/collective/stewards?said=refused");
    clock.pass(2 * DAY);
    assert_eq!(place.gateway.members.settle_recovery().unwrap(), None);
    // And once when nobody is: the box does it by itself when the day is over.
    place.post("/locked-out", None, &form).await;
    clock.pass(DAY);
    let following = tokio::spawn(super::follow_recovery(place.gateway.clone()));
    let noticed = |request: &Request| matches!(request, Request::Noticed { on, .. } if on == "Eve");
    while !place.asked().iter().any(noticed) {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    following.abort();
    let (_, to) = place
        .post("/sign-in", None, "name=Eve&password=four+other+words+here&next=/dashboard")
        .await;
    assert_eq!(to, "/dashboard");
    let records: Vec<String> = place.asked().iter().map(|r| format!("{r:?}")).collect();
    for paper in &papers {
        let paper = paper.replace('+', " ");
        assert!(records.iter().all(|r| !r.contains(&paper[..9])), "a sheet is in the trail");
    }
}

#[tokio::test]
async fn a_member_takes_their_data_along_leaves_and_nothing_of_theirs_works_any_more() {
    let (place, _, [ada, _, _, dan]) = collective().await;
    let members = place.gateway.members.clone();
    let new = polder_members::NewKey { label: "laptop".into(), ..Default::default() };
    let key = members.mint_key(dan.0, &new).unwrap();
    let (_, token) =
        members.invite(ada.0, Role::Member, "x", std::time::Duration::from_secs(60)).unwrap();
    let dans = members
        .invite(dan.0, Role::Member, "friend", std::time::Duration::from_secs(60))
        .unwrap()
        .1;
    let files = members.own_data(dan.0).unwrap();
    let all: String = files.iter().map(|(_, text)| text.as_str()).collect();
    assert!(all.contains("laptop") && all.contains("Dan") && all.contains("friend"));
    for secret in [key.key.expose(), dans.expose(), "argon2", "Ada"] {
        assert!(!all.contains(secret), "{secret} is in what Dan takes along");
    }
    let (_, page) = place.get("/account/leave", Some(&dan.1)).await;
    for part in ["1 browser", "API keys (1)", "1 invite that you made", "never works again"] {
        assert!(page.contains(part), "{part}: {page}");
    }
    for (form, why) in [
        ("name=Don&password=four+words+in+a+row", "not your name"),
        ("name=Dan&password=wrong", "not your present password"),
    ] {
        let (status, page) = place.post("/account/leave", Some(&dan.1), form).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(page.contains(why), "{page}");
    }
    let form = "name=Dan&password=four+words+in+a+row";
    let (status, page) = place.post("/account/leave", Some(&dan.1), form).await;
    assert_eq!(status, StatusCode::OK);
    assert!(page.contains("You have left") && !page.contains("Collective"), "{page}");
    assert_eq!(place.get("/", Some(&dan.1)).await.1, "/sign-in");
    assert!(members.verify_key(key.key.expose()).is_err() && members.member(dan.0).is_err());
    assert!(
        members.look_at_invite(dans.expose()).is_err()
            && members.look_at_invite(token.expose()).is_ok()
    );
    assert_eq!(members.newest_revocation().unwrap(), 1, "the spare is not told");
    assert!(what(&place).contains(&"left".to_owned()));
}

#[tokio::test]
async fn the_end_is_asked_for_by_one_and_agreed_to_by_another_who_types_the_boxs_name() {
    let (place, _, [ada, ben, _, dan]) = collective().await;
    let (_, page) = place.get("/collective/end", Some(&dan.1)).await;
    assert!(page.contains("What this cannot do") && !page.contains("Ask for the end"), "{page}");
    assert_eq!(place.get("/collective/end/record", Some(&ada.1)).await.0, StatusCode::NOT_FOUND);
    let (status, page) =
        place.post("/collective/end/ask", Some(&ada.1), "name=elm&models=stay").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(page.contains("Type the box&#39;s name") || page.contains("name, oak"), "{page}");
    let (_, to) = place.post("/collective/end/ask", Some(&ada.1), "name=oak&models=stay").await;
    assert_eq!(to, "/collective/end?said=end-asked");
    assert!(place.get("/", Some(&dan.1)).await.1.contains("asks for the end of this box"));
    let (_, record) = place.get("/collective/end/record", Some(&ben.1)).await;
    assert!(record.contains("RECORD OF THE END of the box oak"), "{record}");
    let (status, _) = place.post("/collective/end/agree", Some(&ada.1), "name=oak").await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "one alone");
    let ended = |place: &Place| place.asked().iter().any(|r| matches!(r, Request::End { .. }));
    assert!(!ended(&place));
    let (_, page) = place.post("/collective/end/agree", Some(&ben.1), "name=oak").await;
    assert!(
        page.contains("RECORD OF THE END") && page.contains("Ada Lovelace, then Ben"),
        "{page}"
    );
    assert!(ended(&place));
    assert_eq!(place.get("/ended", None).await.0, StatusCode::NOT_FOUND, "it is somebody's box");
}
