//! What models take, and what is kept of conversations.

use super::*;

#[tokio::test]
async fn usage_is_shown_as_the_site_says_and_can_be_deleted() {
    let place = place().await;
    let (status, page) = place.get("/usage", Some(&place.member.1)).await;
    assert_eq!(status, StatusCode::OK);
    assert!(page.contains("does not count") && !page.contains("Everyone's"));
    place.gateway.members.set_metering(true);
    place.gateway.members.count_chat(place.member.0.id, "m", 1000, 234);
    let (_, page) = place.get("/usage", Some(&place.member.1)).await;
    assert!(page.contains("1,234 tokens"), "{page}");
    place.post("/usage/forget", Some(&place.member.1), "").await;
    assert!(place.gateway.members.usage_of(place.member.0.id, 30).unwrap().is_empty());
    place.post("/usage", Some(&place.steward.1), "per_member=yes&visible_to=stewards").await;
    let asked = place.asked.lock().unwrap();
    assert!(asked.iter().any(|r| matches!(r, Request::Apply { by: Actor::Member(_), .. })));
}

#[tokio::test]
async fn a_steward_says_whether_members_trust_each_other() {
    let place = place().await;
    let steward = Some(place.steward.1.as_str());
    assert!(place.get("/models", steward).await.1.contains("Our members trust each other"));
    assert_eq!(place.post("/sharing", Some(&place.member.1), "").await.0, StatusCode::FORBIDDEN);
    for (form, trusting) in [("trusting=yes", true), ("", false)] {
        assert_eq!(place.post("/sharing", steward, form).await.1, "/models?said=sharing");
        let wanted = SiteChange::Sharing(polder_site::Sharing { trusting });
        let asked = |r: &Request| matches!(r, Request::Apply { change, by: Actor::Member(_) } if *change == wanted);
        assert!(place.asked.lock().unwrap().iter().any(asked), "{wanted:?}");
    }
}

#[tokio::test]
async fn a_steward_says_which_instructions_are_common_to_all() {
    let place = place().await;
    let steward = Some(place.steward.1.as_str());
    let form = "title=+Agent&text=Be%0D%0A+brief.";
    assert_eq!(place.post("/common", Some(&place.member.1), form).await.0, StatusCode::FORBIDDEN);
    assert_eq!(place.post("/common", steward, form).await.1, "/models?said=sharing");
    assert_eq!(
        place.post("/common/remove", steward, "title=Agent").await.1,
        "/models?said=sharing"
    );
    for wanted in [
        SiteChange::Common { title: "Agent".into(), text: "Be\n brief.".into() },
        SiteChange::RemoveCommon("Agent".into()),
    ] {
        let asked = |r: &Request| matches!(r, Request::Apply { change, by: Actor::Member(_) } if *change == wanted);
        assert!(place.asked.lock().unwrap().iter().any(asked), "{wanted:?}");
    }
    let (status, page) = place.post("/common", steward, "title=Agent&text=+").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(page.contains("are empty"), "{page}");
}

#[tokio::test]
async fn a_steward_says_how_much_memory_a_model_takes() {
    let place = place().await;
    let steward = Some(place.steward.1.as_str());
    let models = place.get("/models", steward).await.1;
    assert!(models.contains("what is free") && models.contains("/engines/fast"), "{models}");
    let form = "memory=24+GiB&conversations=compact";
    assert_eq!(place.post("/engines/fast/memory", steward, form).await.1, "/runs/7");
    let slot = EngineSlot {
        memory: Some("24 GiB".parse().unwrap()),
        conversations: polder_site::Conversations::Compact,
        ..EngineSlot::serving("smollm2-135m-instruct".parse().unwrap())
    };
    let wanted = SiteChange::Engine { name: "fast".parse().unwrap(), slot };
    let asked = |r: &Request| matches!(r, Request::Apply { change, by: Actor::Member(_) } if *change == wanted);
    assert!(place.asked.lock().unwrap().iter().any(asked));
    let (status, page) = place.post("/engines/fast/memory", steward, "memory=a+lot").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(page.contains("is no amount of memory") && page.contains("value=\"a lot\""), "{page}");
    assert_eq!(place.get("/engines/none", steward).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_steward_says_what_stays_on_disk_and_members_read_it() {
    let place = place().await;
    let steward = Some(place.steward.1.as_str());
    let page = place.get("/models", steward).await.1;
    assert!(page.contains("<option value=\"30\" selected>for 30 days"), "{page}");
    let form = "days=0&disk_percent=20";
    assert_eq!(place.post("/keeping", Some(&place.member.1), form).await.0, StatusCode::FORBIDDEN);
    assert_eq!(place.post("/keeping", steward, form).await.1, "/runs/7");
    let wanted = SiteChange::Keeping(polder_site::Keeping { days: 0, disk_percent: 20 });
    let asked = |r: &Request| matches!(r, Request::Apply { change, by: Actor::Member(_) } if *change == wanted);
    assert!(place.asked.lock().unwrap().iter().any(asked));
    let own = place.get("/account", Some(&place.member.1)).await.1;
    assert!(
        own.contains(
            "a key that the box keeps beside it and destroys when you say so, for 30 days"
        ),
        "{own}"
    );
    // An engine that knows nothing of it keeps nothing.
    let forget = place.post("/account/forget", Some(&place.member.1), "").await;
    assert_eq!(forget.1, "/account?said=conversations");
}

#[tokio::test]
async fn a_steward_keeps_a_password_for_a_registry_and_no_page_and_no_request_shows_it() {
    let place = place_of(|site| {
        let container = polder_site::Container {
            image: "registry.lan:5000/servers/toy".parse().unwrap(),
            digest: format!("sha256:{}", "ab".repeat(32)).parse().unwrap(),
            authority: None,
            port: 8000,
            arguments: Vec::new(),
            called: None,
            health: None,
            environment: Default::default(),
        };
        let slot = site.engines.values_mut().next().unwrap();
        slot.kind = polder_site::EngineKind::Container;
        slot.container = Some(Box::new(container));
    })
    .await;
    let steward = Some(place.steward.1.as_str());
    let plan = async || place.get("/models/smollm2-135m-instruct", steward).await.1;
    let before = plan().await;
    assert!(before.contains("registry.lan:5000") && before.contains(">none<"), "{before}");
    let form = "registry=registry.lan%3A5000&user=house&password=a+heron+stands";
    assert_eq!(place.post("/registries", steward, form).await.1, "/registries?said=registry");
    let secrets = polder_upstream::Secrets::of(&place.gateway.state);
    let holder = polder_upstream::Holder::Registry("registry.lan:5000");
    let password = polder_control::SecretText::new("a heron stands");
    let kept = secrets.get(holder).unwrap().unwrap();
    assert_eq!(kept, polder_upstream::login("house", &password).unwrap());
    // Written, and never shown again.
    let (shown, after) = (place.get("/registries", steward).await.1, plan().await);
    assert!(shown.contains("registry.lan:5000") && after.contains(">kept<"), "{after}");
    let asked = format!("{:?}", place.asked());
    for text in [&shown, &after, &asked] {
        assert!(!text.contains("heron") && !text.contains(kept.expose()), "{text}");
    }
    let what = "kept a user and a password for images of".to_owned();
    assert!(place.recorded().contains(&(what, "registry.lan:5000".to_owned())));
    // What is wrong is said beside what was written, without the password.
    for form in [
        "registry=registry.lan%2Fx&user=house&password=a+heron+stands",
        "registry=registry.lan&user=a%3Ab&password=a+heron+stands",
        "registry=registry.lan&user=house&password=",
    ] {
        let (status, page) = place.post("/registries", steward, form).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{form}");
        assert!(page.contains("value=\"registry.lan") && !page.contains("heron"), "{page}");
    }
    let form = "registry=registry.lan%3A5000";
    for _ in 0..2 {
        let (_, to) = place.post("/registries/forget", steward, form).await;
        assert_eq!(to, "/registries?said=registry-forgotten");
    }
    assert_eq!(secrets.get(holder).unwrap(), None);
    let forgot = |(what, _): &&(String, String)| what.starts_with("forgot the user");
    assert_eq!(place.recorded().iter().filter(forgot).count(), 1);
}
