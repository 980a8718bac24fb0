//! Updates, backups, the spare, the UPS and the shell.

use super::*;

#[tokio::test]
async fn a_steward_sees_what_runs_takes_an_update_and_goes_back() {
    let place = place().await;
    let steward = Some(place.steward.1.as_str());
    let (_, page) = place.get("/versions", steward).await;
    for shown in
        ["Polder 0.1.0", "Polder 0.2.0", &"ab".repeat(32), "It stays.", "Go back to Polder 0.0.9"]
    {
        assert!(page.contains(shown), "{shown}: {page}");
    }
    for (path, wish) in [
        ("/versions/apply", UpdateWish::Apply),
        ("/versions/fetch", UpdateWish::Fetch),
        ("/versions/back", UpdateWish::Back),
    ] {
        assert_eq!(place.post(path, steward, "").await.1, "/runs/7");
        let asked = |r: &Request| matches!(r, Request::Update { wish: w, by: Actor::Member(_) } if *w == wish);
        assert!(place.asked.lock().unwrap().iter().any(asked), "{wish:?}");
        // Nothing moves because somebody else presses.
        assert_eq!(place.post(path, Some(&place.member.1), "").await.0, StatusCode::FORBIDDEN);
    }
}

#[tokio::test]
async fn a_steward_has_the_key_of_backups_on_paper_before_a_place_for_them_is_asked_for() {
    let place = place().await;
    let steward = Some(place.steward.1.as_str());
    let (_, page) = place.get("/backup", steward).await;
    assert!(page.contains("No backups are made") && page.contains("After the kit is on paper"));
    assert!(place.get("/dashboard", steward).await.1.contains("No backups are made"));
    let (status, sheet) = place.post("/backup/kit", steward, "").await;
    assert!(status == StatusCode::OK && sheet.contains("<svg"), "{sheet}");
    // Neither a link nor another site's picture shows it.
    assert_eq!(place.get("/backup/kit", steward).await.0, StatusCode::METHOD_NOT_ALLOWED);
    let typed = place.post("/backup/confirm", steward, "key=cbde+fghi").await;
    assert_eq!(typed.1, "/backup?said=kit");
    let asked = |r: &Request| matches!(r, Request::ConfirmKit { key, by: Actor::Member(_) } if key.0 == "cbde fghi");
    assert!(place.asked.lock().unwrap().iter().any(asked));
    // A place is done only after its steps were seen.
    let form = "to=%2Fmnt%2Fusb&limit_kib=500";
    let done = |r: &Request| matches!(r, Request::Apply { change: SiteChange::Backup(b), .. } if b.limit_kib == 500);
    place.post("/backup/to", steward, form).await;
    assert!(!place.asked.lock().unwrap().iter().any(done));
    assert_eq!(place.post("/backup/to", steward, &format!("{form}&seen=yes")).await.1, "/runs/7");
    assert!(place.asked.lock().unwrap().iter().any(done));
    assert!(
        place.post("/backup/to", steward, "to=usb").await.1.contains("is no place for backups")
    );
    for path in ["/backup/now", "/backup/drill"] {
        assert_eq!(place.post(path, steward, "").await.1, "/runs/7");
        assert_eq!(place.post(path, Some(&place.member.1), "").await.0, StatusCode::FORBIDDEN);
    }
    assert_eq!(place.post("/backup/kit", Some(&place.member.1), "").await.0, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn a_steward_pairs_the_box_with_a_spare_or_makes_it_one_and_nobody_else_does() {
    let place = place().await;
    let (steward, member) = (Some(place.steward.1.as_str()), Some(place.member.1.as_str()));
    let (_, page) = place.get("/spare", steward).await;
    for shown in
        ["Have a spare", "Be the spare of another box", "remember each other&#39;s certificate"]
    {
        assert!(
            page.contains(shown) || page.contains(&shown.replace("&#39;", "'")),
            "{shown}: {page}"
        );
    }
    let form = "address=ash.local&code=4821+otter+lamp";
    assert_eq!(place.post("/spare/pair", member, form).await.0, StatusCode::FORBIDDEN);
    assert_eq!(place.post("/spare/pair", steward, form).await.1, "/runs/7");
    let paired = |r: &Request| matches!(r, Request::PairSpare { address, code, by: Actor::Member(_) } if address == "ash.local" && code.expose() == "4821 otter lamp");
    assert!(place.asked.lock().unwrap().iter().any(paired));
    assert!(!format!("{:?}", place.asked.lock().unwrap()).contains("otter"));
    // A change is done only after its steps were seen.
    let done = |r: &Request| matches!(r, Request::Apply { change: SiteChange::Spare(s), .. } if s.disk_percent == 30);
    place.post("/spare/be", steward, "disk_percent=30&port=8444").await;
    assert!(!place.asked.lock().unwrap().iter().any(done));
    let form = "disk_percent=30&port=8444&seen=yes";
    assert_eq!(place.post("/spare/be", steward, form).await.1, "/runs/7");
    assert!(place.asked.lock().unwrap().iter().any(done));
    assert!(place.post("/spare/be", steward, "disk_percent=half").await.1.contains("whole number"));
    // Without a part to ask, the page says so.
    assert!(place.post("/spare/code", steward, "").await.1.contains("is not up"));
    for path in ["be", "none", "code", "hide", "unpair", "remove-old"] {
        let path = format!("/spare/{path}");
        assert_eq!(place.post(&path, member, "seen=yes").await.0, StatusCode::FORBIDDEN, "{path}");
        assert_eq!(place.get(&path, steward).await.0, StatusCode::METHOD_NOT_ALLOWED, "{path}");
    }
}

#[tokio::test]
async fn a_shell_is_opened_for_a_while_by_a_steward_and_by_nobody_else() {
    let place = place().await;
    let steward = Some(place.steward.1.as_str());
    let form = "key=ssh-ed25519+AAAA&hours=4";
    assert_eq!(place.post("/shell", Some(&place.member.1), form).await.0, StatusCode::FORBIDDEN);
    assert_eq!(place.post("/shell", steward, form).await.1, "/shell");
    let asked = |r: &Request| matches!(r, Request::OpenShell { key, hours: 4, by: Actor::Member(_) } if key == "ssh-ed25519 AAAA");
    assert!(place.asked.lock().unwrap().iter().any(asked));
    assert!(place.get("/shell", steward).await.1.contains("never as root"));
}

#[tokio::test]
async fn updates_are_looked_for_where_a_steward_says_and_nowhere_with_a_password() {
    let place = place().await;
    let steward = Some(place.steward.1.as_str());
    let form = "address=https%3A%2F%2Fexample.org%2Fpolder%2F";
    assert_eq!(place.post("/versions/from", steward, form).await.1, "/versions?said=updates");
    let from = "https://example.org/polder".parse().unwrap();
    let wanted = SiteChange::Updates(polder_site::Updates { from });
    let asked = |r: &Request| matches!(r, Request::Apply { change, .. } if *change == wanted);
    assert!(place.asked.lock().unwrap().iter().any(asked));
    let form = "address=https%3A%2F%2Fada%3Asecret%40example.org";
    let (status, page) = place.post("/versions/from", steward, form).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(page.contains("without a name or password"), "{page}");
}

#[tokio::test]
async fn a_ups_is_chosen_by_a_steward_and_a_mistyped_one_is_told_with_what_was_typed() {
    let place = place().await;
    let steward = Some(place.steward.1.as_str());
    assert_eq!(place.get("/power", Some(&place.member.1)).await.0, StatusCode::FORBIDDEN);
    let page = place.get("/power", steward).await.1;
    assert!(page.contains("Live off a UPS"), "{page}");
    let form = "ups=ups%40localhost&role=primary&low_charge=35&start_charge=&card_percent=60";
    let (status, to) = place.post("/power", steward, form).await;
    assert!(status == StatusCode::SEE_OTHER && to.starts_with("/runs/"), "{status} {to}");
    let mut plan = polder_site::PowerPlan::of("ups@localhost".parse().unwrap());
    (plan.low_charge, plan.card_percent) = (35, Some(60));
    let wanted = SiteChange::Power(plan);
    let asked = |r: &Request| matches!(r, Request::Apply { change, .. } if *change == wanted);
    assert!(place.asked.lock().unwrap().iter().any(asked));
    let (status, page) = place.post("/power", steward, "ups=mine&low_charge=3").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(page.contains("ups@localhost") && page.contains("value=\"mine\""), "{page}");
    let (status, page) = place.post("/power", steward, "ups=a%40b&low_charge=3").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(page.contains("choose 5 to 90 percent"), "{page}");
}
