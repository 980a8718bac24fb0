//! Another box serves in this one's place: nobody is let in here.

use std::sync::atomic::Ordering;

use polder_control::{Closed, DoorReply, DoorRequest, Stand};
use tokio::io::AsyncWriteExt;

use crate::house::{House, soon, status_of, until};

fn closed(stand: Stand) -> Option<Closed> {
    Some(Closed { stand, other: "elm".to_owned() })
}

#[tokio::test]
async fn a_closed_door_looks_at_no_key_and_no_session_and_says_who_serves() {
    let house = House::open().await;
    assert_eq!(status_of(&house.chat(r#"{"model":"small","tokens":1}"#).await), 200);
    house.change(|now| now.closed = closed(Stand::Fenced));
    let shut = async || match house.console(DoorRequest::Doorway).await {
        DoorReply::Doorway(doorway) => doorway.closed,
        other => panic!("{other:?}"),
    };
    while !shut().await {
        tokio::task::yield_now().await;
    }
    let asked = house.engine.requests();
    let heads = [
        "GET /v1/models\nauthorization: Bearer no-key".to_owned(),
        format!("GET /v1/models\nauthorization: Bearer {}", house.key),
        format!("POST /v1/chat/completions\nauthorization: Bearer {}", house.key),
        "GET /auth".to_owned(),
        "GET /metrics".to_owned(),
    ];
    for head in &heads {
        let answer = house.ask(head, "").await;
        assert_eq!(status_of(&answer), 503, "{head}: {answer}");
        assert!(answer.contains("spare_serves") && answer.contains("retry-after: 30"), "{answer}");
    }
    let cookie = format!("cookie: polder={}", house.session);
    for path in ["/", "/dashboard", "/sign-in", "/connect", "/.well-known/acme-challenge/x"] {
        let answer = house.ask(&format!("GET {path}\n{cookie}"), "").await;
        assert_eq!(status_of(&answer), 503, "{path}: {answer}");
        assert!(answer.contains("The spare serves now") && answer.contains("elm"), "{answer}");
        assert!(answer.contains("content-security-policy"), "{answer}");
    }
    assert_eq!(house.engine.requests(), asked, "the engine was asked");
    house.change(|now| now.closed = None);
    while shut().await {
        tokio::task::yield_now().await;
    }
    assert_eq!(status_of(&house.chat(r#"{"model":"small","tokens":1}"#).await), 200);
}

#[tokio::test]
async fn an_answer_that_is_being_given_ends_when_the_door_is_closed() {
    let house = House::open().await;
    let mut stream = house.here().await;
    let body = r#"{"model":"small","tokens":100000,"pause_ms":5,"stream":true}"#;
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\r\n{body}",
        house.key,
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    until(&mut stream, "data: ").await;
    house.change(|now| now.closed = closed(Stand::Handed));
    soon("the engine stopped", || house.engine.dropped.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn what_the_other_box_revoked_ends_here_as_soon_as_it_is_told_and_not_only_at_the_next_start()
{
    let house = House::open().await;
    let id = house.key.split('_').nth(1).unwrap();
    let mut stream = house.here().await;
    let body = r#"{"model":"small","tokens":100000,"pause_ms":5,"stream":true}"#;
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\r\n{body}",
        house.key,
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    until(&mut stream, "data: ").await;
    // As the supervisor of a box that stands in writes what its main box tells.
    let line =
        format!("{{\"number\":7,\"at\":5,\"what\":{{\"kind\":\"key\",\"key\":\"{id}\"}}}}\n");
    assert_eq!(polder_members::keep_gone_lines(house.folder.path(), &line).unwrap(), 1);
    assert_eq!(house.console(DoorRequest::HearGone).await, DoorReply::Gone(1));
    soon("the engine stopped", || house.engine.dropped.load(Ordering::SeqCst) == 1).await;
    assert_eq!(status_of(&house.chat(r#"{"model":"small","tokens":1}"#).await), 401);
    assert_eq!(house.console(DoorRequest::HearGone).await, DoorReply::Gone(0));
}
