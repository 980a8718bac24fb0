//! Signing in, keys, invites, and who looks after the box.

use super::*;

#[tokio::test]
async fn signing_in_leads_where_one_wanted_to_go_and_a_wrong_password_says_so() {
    let place = place().await;
    let form = "name=Ada+Lovelace&password=four+words+in+a+row&next=/audit";
    let response =
        place.send(Method::POST, "/sign-in", None, "application/x-www-form-urlencoded", form).await;
    let cookie = response.headers()[header::SET_COOKIE].to_str().unwrap().to_owned();
    assert!(cookie.starts_with("polder=") && cookie.contains("HttpOnly; SameSite=Lax"));
    assert_eq!(response.headers()[header::LOCATION], "/audit");
    let token = cookie.split(['=', ';']).nth(1).unwrap();
    assert_eq!(place.get("/audit", Some(token)).await.0, StatusCode::OK);
    // A steward's is in the trail.
    assert_eq!(place.recorded(), [("signed in from".into(), "127.0.0.1".into())]);

    let (status, page) =
        place.post("/sign-in", None, "name=%3Cscript%3E&password=wrong&next=//evil.example").await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(
        page.contains("Name and password do not belong together") && !page.contains("<script>")
    );
    assert!(!page.contains("evil.example") && !page.contains("wrong\""));
    place.post("/sign-out", Some(token), "").await;
    assert_eq!(place.get("/audit", Some(token)).await.0, StatusCode::SEE_OTHER);
}

#[tokio::test]
async fn a_key_is_shown_once_and_revoked_by_its_owner_alone() {
    let place = place().await;
    let form = "label=%3Cscript%3Ealert(1)%3C/script%3E&month=1000";
    let (status, page) = place.post("/keys", Some(&place.member.1), form).await;
    assert_eq!(status, StatusCode::OK, "{page}");
    let key = page.split("plk_").nth(1).unwrap().split('<').next().unwrap();
    let key = format!("plk_{key}");
    let grant = place.gateway.members.verify_key(&key).unwrap();
    assert!(!page.contains("<script>alert"));
    let (_, again) = place.get("/", Some(&place.member.1)).await;
    assert!(!again.contains(&key) && again.contains("&lt;script&gt;alert(1)"));
    assert!(again.contains("tokens this month"));

    let revoke = format!("/keys/{}/revoke", grant.key);
    assert_eq!(place.post(&revoke, Some(&place.steward.1), "").await.0, StatusCode::NOT_FOUND);
    assert!(place.gateway.members.verify_key(&key).is_ok());
    let (status, to) = place.post(&revoke, Some(&place.member.1), "").await;
    assert_eq!((status, to.as_str()), (StatusCode::SEE_OTHER, "/?said=key-revoked"));
    assert!(place.gateway.members.verify_key(&key).is_err());
    let records = place.recorded();
    assert_eq!(records[0].0, "made key");
    assert_eq!(records[1].0, "revoked key");
    assert!(records.iter().all(|(_, on)| !on.contains(&key)), "{records:?}");
}

#[tokio::test]
async fn a_bad_form_says_what_is_wrong_and_keeps_what_was_written() {
    let place = place().await;
    let (status, page) =
        place.post("/keys", Some(&place.member.1), "label=editor&requests=ten").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(page.contains("The limit of requests is not a whole number"));
    assert!(page.contains("value=\"editor\"") && page.contains("value=\"ten\""));
}

#[tokio::test]
async fn an_invite_makes_a_member_and_signs_them_in() {
    let place = place().await;
    let (status, page) = place
        .post("/members/invite", Some(&place.steward.1), "note=%3Cb%3ECy&role=member&days=7")
        .await;
    assert_eq!(status, StatusCode::OK);
    assert!(!page.contains("<b>Cy"));
    let token = page.split("/invite/").skip(1).map(|t| t.split(['<', '"', '/']).next().unwrap());
    let token = token.max_by_key(|t| t.len()).unwrap().to_owned();
    let (status, page) = place.get(&format!("/invite/{token}"), None).await;
    assert_eq!(status, StatusCode::OK);
    assert!(page.contains("Ada Lovelace") && page.contains("a member"));

    let join = |again: &str| format!("name=Cy&email=&password=some+four+words+here&again={again}");
    let (status, page) = place.post(&format!("/invite/{token}"), None, &join("other")).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(page.contains("differ"));
    let path = format!("/invite/{token}");
    let kind = "application/x-www-form-urlencoded";
    let response = place.send(Method::POST, &path, None, kind, &join("some+four+words+here")).await;
    let cookie = response.headers()[header::SET_COOKIE].to_str().unwrap().to_owned();
    let session = cookie.split(['=', ';']).nth(1).unwrap();
    let (status, page) = place.get("/?said=welcome", Some(session)).await;
    assert_eq!(status, StatusCode::OK);
    assert!(page.contains("Good to see you, Cy."));
    let (status, page) = place.get(&format!("/invite/{token}"), None).await;
    assert_eq!(status, StatusCode::GONE);
    assert!(page.contains("ask a steward for a new one"));
    let records = place.recorded();
    assert!(records.iter().all(|(what, on)| !what.contains(&token) && !on.contains(&token)));
    assert_eq!(records.last().unwrap().0, "joined");
}

#[tokio::test]
async fn a_steward_changes_members_and_the_last_one_stays() {
    let place = place().await;
    let (ada, ben) = (place.steward.0.id, place.member.0.id);
    let steward = Some(place.steward.1.as_str());
    let (status, page) = place.post(&format!("/members/{ada}/role"), steward, "role=member").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(page.contains("This is the last steward"));
    let (_, to) = place.post(&format!("/members/{ada}/remove"), steward, "").await;
    assert_eq!(to, "/account/leave", "oneself one leaves");
    let own = "password=another+four+words";
    let (status, page) = place.post(&format!("/members/{ada}/password"), steward, own).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(page.contains("on your account page"), "{page}");
    let (_, to) = place.post(&format!("/members/{ben}/role"), steward, "role=steward").await;
    assert_eq!(to, "/members?said=role");
    assert!(place.gateway.members.member(ben).unwrap().is_steward());
    // From now on they are two, and neither of them is changed by the other alone.
    for (act, form) in [
        ("role", "role=member"),
        ("disable", "disabled=yes"),
        ("remove", ""),
        ("password", "password=another+four+words"),
    ] {
        let (status, page) = place.post(&format!("/members/{ben}/{act}"), steward, form).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{act}");
        assert!(page.contains("one steward alone does not change"), "{act}: {page}");
    }
    let own = Some(place.member.1.as_str());
    let (_, to) = place.post(&format!("/members/{ben}/role"), own, "role=member").await;
    assert_eq!(to, "/members?said=role", "oneself one may");
    place.post(&format!("/members/{ben}/disable"), steward, "disabled=yes").await;
    assert_eq!(place.get("/", Some(&place.member.1)).await.1, "/sign-in");
    place.post(&format!("/members/{ben}/remove"), steward, "").await;
    assert!(place.gateway.members.member(ben).is_err());
    let what: Vec<String> = place.recorded().into_iter().map(|(what, _)| what).collect();
    assert_eq!(what, ["made a steward", "made a member", "disabled", "removed"]);
}

#[tokio::test]
async fn a_member_says_on_their_own_page_that_nothing_of_theirs_leaves_the_box() {
    let place = place().await;
    let (member, session) = (&place.member.0, Some(place.member.1.as_str()));
    assert!(place.get("/account", session).await.1.contains("My questions never leave this box"));
    let said = place.post("/account/leaving", session, "stays_here=yes").await;
    assert_eq!(said.1, "/account?said=leaving");
    assert!(place.gateway.members.member(member.id).unwrap().stays_here);
    place.post("/account/leaving", session, "").await;
    assert!(!place.gateway.members.member(member.id).unwrap().stays_here);
    let (_, page) = place.post("/keys", session, "label=x&stays_here=yes").await;
    assert!(page.contains("never elsewhere"), "{page}");
}
