//! Apps, other services, and where people sign in.

use super::*;

#[tokio::test]
async fn a_steward_opens_an_app_and_one_elsewhere_is_refused() {
    let place = place().await;
    let steward = Some(place.steward.1.as_str());
    let form = "name=wiki&upstream=http%3A%2F%2F127.0.0.1%3A3000&open_to=stewards";
    assert_eq!(place.post("/apps", steward, form).await.1, "/apps?said=app");
    let app = App {
        upstream: "http://127.0.0.1:3000".parse().unwrap(),
        open_to: polder_site::Audience::Stewards,
    };
    let wanted = SiteChange::App { name: "wiki".parse().unwrap(), app };
    let asked = |r: &Request| matches!(r, Request::Apply { change, by: Actor::Member(_) } if *change == wanted);
    assert!(place.asked.lock().unwrap().iter().any(asked));
    let form = "name=wiki&upstream=http%3A%2F%2F192.168.1.7%3A3000";
    let (status, page) = place.post("/apps", steward, form).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(page.contains("is not a place on this machine") && page.contains("192.168.1.7"));
    let (status, _) = place.post("/apps/nothing/remove", steward, "").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_steward_has_another_service_asked_and_one_elsewhere_is_refused() {
    let place = place().await;
    let steward = Some(place.steward.1.as_str());
    let form = "url=http%3A%2F%2F127.0.0.1%3A4180%2Fauth&mode=forward";
    assert_eq!(place.post("/verifier", steward, form).await.1, "/apps?said=verifier");
    let url = "http://127.0.0.1:4180/auth".parse().unwrap();
    let wanted = SiteChange::Verifier(Verifier { url, mode: VerifierMode::Forward });
    let removed = place.post("/verifier/remove", steward, "").await;
    assert_eq!(removed.1, "/apps?said=verifier-removed");
    for wanted in [wanted, SiteChange::RemoveVerifier] {
        let asked = |r: &Request| matches!(r, Request::Apply { change, by: Actor::Member(_) } if *change == wanted);
        assert!(place.asked.lock().unwrap().iter().any(asked), "{wanted:?}");
    }
    let form = "url=http%3A%2F%2Fsso.example%2Fauth&mode=nginx";
    let (status, page) = place.post("/verifier", steward, form).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(page.contains("is not a place on this machine") && page.contains("sso.example"));
}

#[tokio::test]
async fn a_steward_names_where_people_sign_in_and_its_secret_is_in_no_request_and_no_page() {
    let place = place().await;
    let steward = Some(place.steward.1.as_str());
    let form = "name=House&issuer=https%3A%2F%2Fsso.example.org&client=box&secret=s3cr3t&groups_claim=\
                &members=a%0D%0Ab&new_people=yes";
    assert_eq!(place.post("/identity", steward, form).await.1, "/identity?said=identity");
    let issuer = "https://sso.example.org".parse().unwrap();
    let mut wanted = polder_site::SignIn::at("House", issuer, "box");
    wanted.members = vec!["a".into(), "b".into()];
    wanted.new_people = true;
    let wanted = SiteChange::SignIn(Box::new(wanted));
    assert_eq!(
        place.post("/identity/remove", steward, "").await.1,
        "/identity?said=identity-removed"
    );
    let asked = format!("{:?}", place.asked.lock().unwrap());
    assert!(!asked.contains("s3cr3t"), "{asked}");
    for wanted in [wanted, SiteChange::RemoveSignIn] {
        let asked = |r: &Request| matches!(r, Request::Apply { change, by: Actor::Member(_) } if *change == wanted);
        assert!(place.asked.lock().unwrap().iter().any(asked), "{wanted:?}");
    }
    let form = "name=House&issuer=http%3A%2F%2Fsso.example.org&client=box&secret=s3cr3t";
    let (status, page) = place.post("/identity", steward, form).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(page.contains("not the address of a service") && !page.contains("s3cr3t"), "{page}");
    assert_eq!(place.post("/identity/look", steward, "").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn an_app_s_secret_is_shown_once_and_an_address_that_could_lead_anywhere_is_refused() {
    let place = place().await;
    let steward = Some(place.steward.1.as_str());
    let form = "title=Wiki&redirects=https%3A%2F%2Fwiki.example%2Fback";
    let (status, page) = place.post("/clients", steward, form).await;
    assert_eq!(status, StatusCode::OK, "{page}");
    assert!(page.contains("shown only now") && page.contains("openid-configuration"), "{page}");
    let (_, list) = place.get("/apps", steward).await;
    assert!(list.contains("https://wiki.example/back") && !list.contains("shown only now"));
    let form = "title=Wiki&redirects=https%3A%2F%2F*.example%2Fback";
    let (status, page) = place.post("/clients", steward, form).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(page.contains("is not an address that people can be sent back to"), "{page}");
    let id = list.split("/clients/").nth(1).unwrap().split('/').next().unwrap().to_owned();
    let removed = place.post(&format!("/clients/{id}/remove"), steward, "").await;
    assert_eq!(removed.1, "/apps?said=client-removed");
    assert!(!place.get("/apps", steward).await.1.contains("wiki.example"));
}
