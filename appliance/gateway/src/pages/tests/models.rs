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
