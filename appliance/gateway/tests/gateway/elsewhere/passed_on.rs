//! Slots that other servers serve: what another box passed on goes no further, and one that died is asked for elsewhere at once.

use polder_site::{EngineKind, Served};
use polder_upstream::StandIn;

use super::*;

fn fast() -> polder_site::EngineName {
    "fast".parse().unwrap()
}

/// A slot that another server serves.
fn served(url: &str) -> Served {
    Served { url: url.parse().unwrap(), authority: None, called: None }
}

#[tokio::test]
async fn what_another_box_passed_on_goes_no_further_and_that_is_what_it_hears() {
    let cloud = Cloud::open().await;
    let mut house = house_with(cloud.as_upstream()).await;
    let ask = async |house: &House, hops: &str| {
        let head = format!(
            "POST /v1/chat/completions\nauthorization: Bearer {}\npolder-elsewhere: {hops}",
            house.key
        );
        house.ask(&head, "{\"model\":\"small\",\"tokens\":1}").await
    };
    let well = ask(&house, "1").await;
    assert!(well.contains("x-polder-served-by: oak/fast\r\n"), "{well}");
    assert_eq!(house.engine.last_headers()["polder-elsewhere"], "1");
    // A slot on a third machine.
    {
        let slot = house.site.engines.get_mut(&fast()).unwrap();
        (slot.kind, slot.served) =
            (EngineKind::Url, Some(Box::new(served("https://third.example.org/v1"))));
    }
    house.heard(PartState::Ready).await;
    for hops in ["1", "7", "300", "?"] {
        let refused = ask(&house, hops).await;
        assert_eq!(status_of(&refused), 508, "{refused}");
        assert!(refused.contains("passed on by another box already"), "{refused}");
        assert!(!refused.contains("you let nothing leave"), "{refused}");
    }
    assert_eq!(status_of(&ask(&house, "0").await), 200, "its own members' go there");
    // One at this machine may be no box, but what comes a second time came from here.
    let here = served("http://127.0.0.1:9/v1");
    house.site.engines.get_mut(&fast()).unwrap().served = Some(Box::new(here));
    house.heard(PartState::Ready).await;
    assert_eq!(
        (status_of(&ask(&house, "1").await), status_of(&ask(&house, "2").await)),
        (200, 508)
    );
    // A server elsewhere is not asked either.
    house.heard(PartState::Stopped).await;
    let refused = ask(&house, "1").await;
    assert!(status_of(&refused) == 503 && refused.contains("passed on once only"), "{refused}");
    assert_eq!(cloud.requests(), 0);
}

#[tokio::test]
async fn boxes_whose_slots_lead_to_each_other_ask_each_other_once() {
    let house = House::open().await;
    house.engine.kill();
    // Its slot is served by what is, in the end, this very box.
    let served = served(&format!("http://127.0.0.1:{}/v1", house.port));
    house.change(|status| {
        let slot = status.site.engines.get_mut(&fast()).unwrap();
        (slot.kind, slot.served) = (EngineKind::Url, Some(Box::new(served.clone())));
    });
    let socket = house.sockets().engine(&"fast".parse().unwrap());
    let stand_in = StandIn { socket: socket.clone(), called: "small".to_owned() };
    let key = SecretText::new(&house.key);
    let serving =
        tokio::spawn(
            async move { stand_in.serve(&served, Some(&key), std::future::pending()).await },
        );
    soon("it listens", || socket.exists()).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let answer = tokio::time::timeout(
        Duration::from_secs(20),
        house.chat("{\"model\":\"small\",\"tokens\":1}"),
    );
    let answer = answer.await.expect("it does not go round");
    assert!(status_of(&answer) == 508 && answer.contains("might go round for ever"), "{answer}");
    serving.abort();
}

#[tokio::test]
async fn a_slot_that_died_before_the_door_has_heard_of_it_is_asked_for_elsewhere() {
    let cloud = Cloud::open().await;
    let mut server = cloud.as_upstream();
    // Only for when the box is down: it is not said to be full.
    (server.when_down, server.when_full) = (true, false);
    let house = house_with(server).await;
    let stream = "{\"model\":\"small\",\"stream\":true,\"tokens\":3}";
    let from_cloud = |answer: &str| {
        assert_eq!(status_of(answer), 200, "{answer}");
        assert!(answer.contains("x-polder-served-by: cloud\r\n"), "{answer}");
        assert!(
            answer.contains("\"content\":\"2\"") && answer.contains("data: [DONE]"),
            "{answer}"
        );
    };
    let here = house.chat(stream).await;
    assert!(here.contains("x-polder-served-by: oak/fast\r\n"), "{here}");
    // Its engine takes no connection any more.
    house.engine.kill();
    from_cloud(&house.chat(stream).await);
    // Its stand-in does, and the server behind that is gone.
    let socket = house.sockets().engine(&"fast".parse().unwrap());
    let stand_in = StandIn { socket: socket.clone(), called: "small".to_owned() };
    let serving = tokio::spawn(async move {
        stand_in.serve(&served("http://127.0.0.1:9/v1"), None, std::future::pending()).await
    });
    soon("it listens", || socket.exists()).await;
    from_cloud(&house.chat(stream).await);
    // Or there is something that says so in its place.
    serving.abort();
    let gone = Cloud::open().await;
    let url = format!("http://127.0.0.1:{}/v1", gone.port);
    let _ = std::fs::remove_file(&socket);
    let stand_in = StandIn { socket: socket.clone(), called: "small".to_owned() };
    let serving =
        tokio::spawn(
            async move { stand_in.serve(&served(&url), None, std::future::pending()).await },
        );
    soon("it listens", || socket.exists()).await;
    let refused = house.chat("{\"model\":\"small\",\"cloud_status\":502,\"tokens\":1}").await;
    // The cloud of this test plays the same refusal, so that what the slot said stands, with why nobody else answered.
    assert!(status_of(&refused) == 502 && refused.contains("oak/fast"), "{refused}");
    assert!(refused.contains("; and cloud failed to answer (status 502)"), "{refused}");
    assert_eq!((gone.requests() >= 1, cloud.requests()), (true, 3));
    serving.abort();
}
